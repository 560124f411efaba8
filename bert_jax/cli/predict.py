"""`bert-jax predict`: what a fine-tuned model says of new examples."""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.cli import submission
from bert_jax.cli.arguments import parse
from bert_jax.errors import UserError

Rows = list[dict[str, Any]]

EXAMPLE = "bert-jax predict --workdir=runs/sst2 --input=test.tsv --output=labels.tsv"


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input",
        metavar="FILE",
        action="append",
        help="a table with the text columns of the training file, or tfds:NAME:SPLIT",
    )
    results = parser.add_mutually_exclusive_group(required=True)
    results.add_argument(
        "--output",
        metavar="FILE",
        help="a .tsv of `index` and `prediction`, or of words and tags; a .json of "
        "answers by id, with .nbest.json beside it; or a .jsonl, with probabilities",
    )
    results.add_argument(
        "--submission",
        metavar="DIR",
        help="write the file that gluebenchmark.com wants for the run's GLUE task "
        "(configs/glue.py:TASK), such as SST-2.tsv, into DIR. The test set comes from "
        "TensorFlow Datasets, or from --input; for MNLI give --input twice (matched, "
        "mismatched) or three times (AX too)",
    )


def main(argv: Sequence[str]) -> int:
    """Writes a label, or a number, for each example of a file."""
    about = "Let a fine-tuned model label the examples of a file."
    args = parse(argv, about, EXAMPLE, _options, config_required=False)
    from bert_jax.distributed import use_all_cores

    use_all_cores()
    from bert_jax.cli.restore import require

    config, inputs = require(args), args.input or []
    parts: list[submission.Part] = []
    if args.submission:
        parts = submission.parts(config.task, inputs)
        inputs = [part.source for part in parts]
        outputs = [Path(args.submission, part.file) for part in parts]
    else:
        outputs = [_output(args, config.task.kind)]
    for output in outputs:
        if output.exists():
            raise UserError(f"{output} exists; choose another place, or remove it")
    by_id = not args.submission and outputs[0].suffix == ".json"
    found = _predict(config, args.workdir, inputs, by_id)
    texts: dict[Path, str] = {}
    if args.submission:
        for output, part, (rows, _) in zip(outputs, parts, found, strict=True):
            texts[output] = _table(submission.official(part, rows))
    else:
        texts = _texts(outputs[0], *found[0])
    _write(texts)
    if args.json:
        examples = sum(len(rows) for rows, _ in found)
        where = args.submission or args.output
        print(json.dumps({"output": where, "examples": examples}))
    else:
        for output, (rows, _) in zip(outputs, found, strict=True):
            print(f"{output}: {len(rows):,} examples")
    return 0


def _output(args: argparse.Namespace, kind: str) -> Path:
    output = Path(args.output)
    wanted = (".json", ".jsonl") if kind == "span" else (".tsv", ".jsonl")
    if output.suffix not in wanted:
        raise UserError(f"--output={output}: must end in {' or '.join(wanted)}")
    given = len(args.input or [])
    if given != 1:
        raise UserError(f"--input=FILE: needed once, given {given} times")
    return output


def _texts(output: Path, rows: Rows, layout: list[str | None]) -> dict[Path, str]:
    """What the files are to hold."""
    if output.suffix == ".jsonl":
        return {output: "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)}
    if output.suffix == ".tsv":
        tags = "tags" in rows[0]
        return {output: _words(rows, layout) if tags else _table(rows)}
    best = {row["id"]: row["prediction"] for row in rows}
    more = {row["id"]: row["nbest"] for row in rows}
    return {output: _object(best), output.with_suffix(".nbest.json"): _object(more)}


def _write(texts: dict[Path, str]) -> None:
    for file, text in texts.items():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{file}: cannot be written ({error.strerror})") from None


def _object(values: dict[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False, indent=1)


def _table(rows: Rows) -> str:
    """A GLUE submission: the number of each row and its prediction."""
    given = ("" if row["prediction"] is None else row["prediction"] for row in rows)
    lines = (f"{number}\t{value}" for number, value in enumerate(given))
    return "\n".join(["index\tprediction", *lines])


def _words(rows: Rows, layout: list[str | None]) -> str:
    """Words with their tags, in the lines of the input or with a blank line after each.

    Args:
      rows: words and tags of each sentence.
      layout: None for a line with a word, else the line; empty if the input had none.
    """
    if not layout:
        layout = [line for row in rows for line in [*[None] * len(row["words"]), ""]]
    pairs = (zip(row["words"], row["tags"], strict=True) for row in rows)
    lines = (f"{word}\t{tag}" for pair in pairs for word, tag in pair)
    return "\n".join(next(lines) if line is None else line for line in layout)


def _predict(
    config: Any, workdir: str, sources: Sequence[str], by_id: bool
) -> list[tuple[Rows, list[str | None]]]:
    """What the run says of each example of each source, and the source's layout.

    Args:
      config: of the run.
      workdir: its directory.
      sources: files or names of data sets.
      by_id: answers are to be written by the ids of their questions.
    """
    import jax

    from bert_jax import labelled, remote, sharding
    from bert_jax.checkpoint import Checkpoints
    from bert_jax.cli.restore import local_mesh, parameters
    from bert_jax.data import device
    from bert_jax.data.tokenizer import load_tokenizer
    from bert_jax.run import task_of
    from bert_jax.step import make_predict_step

    if config.task.kind not in labelled.KINDS:
        raise UserError(
            f"--workdir={workdir}: a {config.task.kind} model predicts no labels; "
            "fine-tune one with configs/glue.py"
        )
    tokenizer = load_tokenizer(Path(workdir) / "tokenizer", config.tokenizer)
    mesh = local_mesh(config)
    task = task_of(config)
    _, params = parameters(workdir, task.init, mesh, task.best)
    params = {
        part: params[part] for part in jax.eval_shape(task.init, jax.random.key(0))
    }
    unit = mesh.shape["data"] * mesh.shape["fsdp"]
    where = remote.where(workdir, remote.CHECKPOINTS)
    with Checkpoints(
        where, metric=task.best, largest=task.largest, read_only=True
    ) as checkpoints:
        _, scores = checkpoints.best() or (0, {})
    threshold = scores.get("eval_null_threshold", math.inf)
    sets = [
        labelled.Unlabelled(config, source, tokenizer, unit, threshold)
        for source in sources
    ]
    for data in sets:
        if by_id and (twice := data.repeated()):
            raise UserError(
                f"{twice}; write --output=FILE.jsonl, with a line for each question"
            )
        for note in data.notes:
            print(f"predict: {note}", file=sys.stderr)
    step, place = make_predict_step(task, mesh), sharding.batch_sharding(mesh)
    tokens = config.task.kind in ("tag", "span")

    def describe(data: labelled.Unlabelled) -> tuple[Rows, list[str | None]]:
        batches = data.batches
        read = (device.to_device(batches.batch(n), place) for n in range(len(batches)))
        outputs = [np.asarray(step(params, batch)["logits"]) for batch in read]
        return data.describe(batches.collect(outputs, tokens)), data.layout

    return [describe(data) for data in sets]
