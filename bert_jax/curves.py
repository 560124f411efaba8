"""Learning curves of runs as a PNG, from their metrics.jsonl."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bert_jax.log import read_metrics

_LOSSES = ("rtd_loss", "mlm_loss", "ltr_loss", "loss")  # of a run, the first it has
_SCORES = (
    "eval_score",
    "eval_rtd_accuracy",
    "eval_mlm_accuracy",
    "eval_ltr_accuracy",
    "eval_accuracy",
)


def draw(workdirs: Sequence[str | Path], path: str | Path) -> None:
    """Draws loss and held-out score over the steps, a row of two panels a run.

    Args:
      workdirs: of runs that have reported something.
      path: of the PNG to be written.

    Raises:
      ImportError: there is no matplotlib.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.4 * len(workdirs)), dpi=110, layout="constrained")
    panels = figure.subplots(len(workdirs), 2, squeeze=False)
    for (left, right), workdir in zip(panels, workdirs, strict=True):
        lines = read_metrics(workdir)
        summary = Path(workdir) / "summary.json"
        facts = json.loads(summary.read_text()) if summary.is_file() else {}
        _loss(left, lines, facts.get("unigram_loss"))
        _score(right, lines, facts)
        name = Path(workdir).resolve().name.encode("utf-8", "replace").decode()
        left.set_title(name, parse_math=False)  # `$` is a letter here
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a font without some letters
        figure.savefig(path)


def points(lines: list[dict[str, Any]], name: str) -> list[list[Any]]:
    """A metric wherever it is a number.

    Args:
      lines: of a run's metrics.jsonl.
      name: of the metric; that of the held-out set begins with `eval_`.

    Returns:
      The steps, and a value for each; both empty where there is none.
    """
    found = [(x["step"], x[name]) for x in lines if x.get(name) is not None]
    return [list(axis) for axis in zip(*found, strict=True)] or [[], []]


def _loss(panel: Any, lines: list[dict[str, Any]], frequency: float | None) -> None:
    known = {name for line in lines for name in line}
    name = next((name for name in _LOSSES if name in known), _LOSSES[-1])
    panel.plot(*points(lines, name), linewidth=0.8, label="training")
    panel.plot(*points(lines, f"eval_{name}"), "o-", markersize=4, label="held out")
    if frequency is not None:
        panel.axhline(frequency, color="gray", linestyle="--")
        beside = {"textcoords": "offset points", "xytext": (4, 4), "color": "gray"}
        panel.annotate("by frequency alone", (0, frequency), **beside)
    labels = {
        "rtd_loss": "replaced-token loss [nats]",
        "mlm_loss": "masked-token loss [nats]",
        "ltr_loss": "next-token loss [nats]",
    }
    label = labels.get(name, "loss")
    panel.set(xlabel="step", ylabel=label)
    panel.legend()


def _score(panel: Any, lines: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    known = {name for line in lines for name in line}
    name = next((name for name in _SCORES if name in known), _SCORES[-1])
    steps, values = points(lines, name)
    panel.plot(steps, values, "o-", markersize=4, color="C1")
    if facts.get("best_step") in steps:
        best = facts["best_step"], facts["score"]
        panel.plot(*best, "o", markersize=9, color="C1", label=f"best: {best[1]:.4f}")
        panel.legend()
    what = (
        name.removeprefix("eval_")
        .replace("rtd", "replaced-token")
        .replace("mlm", "masked-token")
        .replace("ltr", "next-token")
        .replace("_", " ")
    )
    panel.set(xlabel="step", ylabel=f"held out: {facts.get('score_name', what)}")
