"""Learning curves of several runs in one PNG; `train` draws those of its own.

Command: python benchmarks/curves.py --output=docs/curves.png RUN [RUN ...]
         python benchmarks/curves.py --output=docs/study.png --sweeps SWEEP [SWEEP ...]

With --sweeps, a panel for each stage of a `bert-jax sweep` and a line for each of its
settings: the held-out score over the steps, of pretraining the loss, mean and standard
deviation of its seeds.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bert_jax.curves import draw, points
from bert_jax.log import read_metrics

_SCORES = {  # the first that a stage has
    "eval_score": "score on the dev set",
    "eval_rtd_loss": "replaced-token loss [nats]",
    "eval_mlm_loss": "masked-token loss [nats]",
    "eval_ltr_loss": "next-token loss [nats]",
}


def main() -> None:
    """Draws the runs below one another, or the sweeps beside one another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", help="directories of runs, or of sweeps")
    parser.add_argument("--output", required=True, help="PNG file")
    parser.add_argument("--sweeps", action="store_true", help="RUN are sweeps")
    args = parser.parse_args()
    (draw_sweeps if args.sweeps else draw)(args.runs, args.output)


def draw_sweeps(sweeps: Sequence[str], path: str) -> None:
    """A panel for each stage of each sweep; see above."""
    from matplotlib.figure import Figure

    panels = [
        (" ".join(filter(None, [Path(sweep).name, stage])), settings)
        for sweep in sweeps
        for stage, settings in stages(sweep).items()
    ]
    if not panels:
        raise SystemExit(f"no runs of a sweep in {', '.join(sweeps)}")
    figure = Figure(figsize=(4.2 * len(panels), 3.6), dpi=110, layout="constrained")
    places = figure.subplots(1, len(panels), squeeze=False)[0]
    for place, (title, settings) in zip(places, panels, strict=True):
        names = set()
        for setting, runs in settings.items():
            name, steps, scores = held_out(runs)
            mean = scores.mean(0)
            spread = scores.std(0, ddof=1) if len(scores) > 1 else 0 * mean
            place.plot(steps, mean, "o-", markersize=3, label=setting or "all")
            place.fill_between(steps, mean - spread, mean + spread, alpha=0.15)
            names.add(name)
        place.set(title=title, xlabel="step", ylabel=" or ".join(sorted(names)))
        place.legend()
    figure.savefig(path)


def stages(sweep: str) -> dict[str, dict[str, list[Path]]]:
    """The runs of each setting by stage, "" where a trial is one run."""
    found: dict[str, dict[str, list[Path]]] = {}
    for file in sorted(Path(sweep).glob("**/seed=*/**/metrics.jsonl")):
        parts = file.parent.relative_to(sweep).parts
        trial = next(i for i, part in enumerate(parts) if part.startswith("seed="))
        setting, stage = "/".join(parts[:trial]), "/".join(parts[trial + 1 :])
        found.setdefault(stage, {}).setdefault(setting, []).append(file.parent)
    return found


def held_out(runs: Sequence[Path]) -> tuple[str, np.ndarray, np.ndarray]:
    """What all seeds of a setting are scored by, steps [S] and scores [seed, S]."""
    lines = [read_metrics(run) for run in runs]
    known = {name for own in lines for line in own for name in line}
    name = next((name for name in _SCORES if name in known), "eval_loss")
    seeds = [dict(zip(*points(own, name), strict=True)) for own in lines]
    steps = sorted(set.intersection(*(set(found) for found in seeds)))
    scores = np.array([[found[s] for s in steps] for found in seeds])
    return _SCORES.get(name, name), np.array(steps), scores


if __name__ == "__main__":
    main()
