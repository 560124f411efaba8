"""The files that gluebenchmark.com takes: names, test sets and forms.

Wang et al. 2018, https://arxiv.org/abs/1804.07461; the forms are those of the site's
sample submission.
"""

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from bert_jax.config import TaskSettings
from bert_jax.errors import UserError


class Part(NamedTuple):
    """One file of a submission."""

    file: str
    source: str  # of its test set
    size: int  # [examples] of GLUE's own test set


_PARTS = {
    "cola": [Part("CoLA.tsv", "tfds:glue/cola:test", 1063)],
    "sst2": [Part("SST-2.tsv", "tfds:glue/sst2:test", 1821)],
    "mrpc": [Part("MRPC.tsv", "tfds:glue/mrpc:test", 1725)],
    "stsb": [Part("STS-B.tsv", "tfds:glue/stsb:test", 1379)],
    "qqp": [Part("QQP.tsv", "tfds:glue/qqp:test", 390_965)],
    "mnli": [
        Part("MNLI-m.tsv", "tfds:glue/mnli:test_matched", 9796),
        Part("MNLI-mm.tsv", "tfds:glue/mnli:test_mismatched", 9847),
        Part("AX.tsv", "tfds:glue/ax:test", 1104),
    ],
    "qnli": [Part("QNLI.tsv", "tfds:glue/qnli:test", 5463)],
    "rte": [Part("RTE.tsv", "tfds:glue/rte:test", 3000)],
    "wnli": [Part("WNLI.tsv", "tfds:glue/wnli:test", 146)],
}
_LABELS = {  # of the others: 0 and 1
    "stsb": (),
    "mnli": ("contradiction", "entailment", "neutral"),
    "qnli": ("entailment", "not_entailment"),
    "rte": ("entailment", "not_entailment"),
}


def parts(settings: TaskSettings, inputs: Sequence[str]) -> list[Part]:
    """What a run is to submit.

    Args:
      settings: of the run.
      inputs: test sets to take in place of GLUE's in TensorFlow Datasets, in the order
        matched, mismatched, AX for MNLI; AX may be missing.

    Raises:
      UserError: the run is of no GLUE task, has other labels than GLUE, or the inputs
        are too few or too many.
    """
    if not settings.glue:
        raise UserError(
            "--submission: the run does not say which GLUE task it is of; add "
            f"--config.task.glue=TASK, one of {', '.join(_PARTS)}"
        )
    wanted = _LABELS.get(settings.glue, ("0", "1"))
    if set(wanted) != set(settings.labels):
        raise UserError(
            f"--submission: GLUE's labels of {settings.glue} are "
            f"{', '.join(wanted) or 'numbers'}, those of this run "
            f"{', '.join(settings.labels) or 'numbers'}; train it on GLUE's own files"
        )
    found = _PARTS[settings.glue]
    if not inputs:
        return found
    few = 2 if len(found) == 3 else 1  # without AX
    if not few <= len(inputs) <= len(found):
        names = ", ".join(part.file for part in found)
        raise UserError(
            f"--input: given {len(inputs)} times; {settings.glue} needs a test set for "
            f"each of {names}, in this order" + (" (AX may be missing)" * (few > 1))
        )
    pairs = zip(found, inputs, strict=False)
    return [part._replace(source=source) for part, source in pairs]


def official(part: Part, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Predictions as GLUE wants them: scores of STS-B in [0, 5] with three decimals.

    Says so on stderr if their number is not that of GLUE's test set.
    """
    if len(rows) != part.size:
        print(
            f"predict: {part.file} has {len(rows):,} examples, but GLUE's test set "
            f"{part.size:,}: it will not be accepted",
            file=sys.stderr,
        )
    empty = [n for n, row in enumerate(rows) if row["prediction"] is None]
    if empty:
        raise UserError(
            f"--submission: row {empty[0]} of {part.source} has no text, and GLUE "
            "wants a label for every row; name another test set with --input"
        )
    if part.file != "STS-B.tsv":
        return list(rows)
    numbers = (min(max(row["prediction"], 0.0), 5.0) for row in rows)
    return [{"prediction": f"{number:.3f}"} for number in numbers]
