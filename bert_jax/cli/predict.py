"""`bert-jax predict`: what a fine-tuned model says of new examples."""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.cli.arguments import parse
from bert_jax.errors import UserError

EXAMPLE = "bert-jax predict --workdir=runs/sst2 --input=test.tsv --output=SST-2.tsv"


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input",
        metavar="FILE",
        required=True,
        help="a table with the text columns of the training file",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        required=True,
        help="a .tsv of `index` and `prediction`, as GLUE wants it, or of words and "
        "tags; a .json of answers by id, with .nbest.json beside it; or a .jsonl, with "
        "probabilities",
    )


def main(argv: Sequence[str]) -> int:
    """Writes a label, or a number, for each example of a file."""
    about = "Let a fine-tuned model label the examples of a file."
    args = parse(argv, about, EXAMPLE, _options, config_required=False)
    from bert_jax.distributed import use_all_cores

    use_all_cores()
    from bert_jax.cli.restore import require

    config = require(args)
    output = Path(args.output)
    wanted = (".json", ".jsonl") if config.task.kind == "span" else (".tsv", ".jsonl")
    if output.suffix not in wanted:
        raise UserError(f"--output={output}: must end in {' or '.join(wanted)}")
    if output.exists():
        raise UserError(f"--output={output} exists; choose another file, or remove it")
    rows = _predict(config, args.workdir, args.input)
    texts = {output: _table(rows)}
    if output.suffix == ".jsonl":
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        texts = {output: "\n".join(lines)}
    elif output.suffix == ".json":
        texts = {
            output: _object({row["id"]: row["prediction"] for row in rows}),
            output.with_suffix(".nbest.json"): _object(
                {row["id"]: row["nbest"] for row in rows}
            ),
        }
    try:
        for file, text in texts.items():
            file.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"--output={output}: cannot be written ({error.strerror})"
        ) from None
    if args.json:
        print(json.dumps({"output": args.output, "examples": len(rows)}))
    else:
        print(f"{output}: {len(rows):,} examples")
    return 0


def _object(values: dict[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False, indent=1)


def _table(rows: list[dict[str, Any]]) -> str:
    """A GLUE submission; or words with their tags, a blank line after a sentence."""
    if "tags" not in rows[0]:
        labels = (f"{i}\t{row['prediction']}" for i, row in enumerate(rows))
        return "\n".join(["index\tprediction", *labels])
    lines = []
    for row in rows:
        pairs = zip(row["words"], row["tags"], strict=True)
        lines += [*(f"{word}\t{tag}" for word, tag in pairs), ""]
    return "\n".join(lines)


def _predict(config: Any, workdir: str, source: str) -> list[dict[str, Any]]:
    import jax

    from bert_jax import labelled, sharding
    from bert_jax.checkpoint import Checkpoints
    from bert_jax.cli.restore import parameters
    from bert_jax.data import device
    from bert_jax.data.tokenizer import load_tokenizer
    from bert_jax.initial import fit_vocabulary
    from bert_jax.run import labelled_task
    from bert_jax.step import make_predict_step

    if config.task.kind not in labelled.KINDS:
        raise UserError(
            f"--workdir={workdir}: a {config.task.kind} model predicts no labels; "
            "fine-tune one with configs/glue.py"
        )
    tokenizer = load_tokenizer(Path(workdir) / "tokenizer", config.tokenizer)
    config = fit_vocabulary(config, tokenizer.vocabulary().size)
    mesh = sharding.make_mesh(config.mesh)
    task = labelled_task(config)
    _, params = parameters(workdir, task.init, mesh, task.best)
    params = {
        part: params[part] for part in jax.eval_shape(task.init, jax.random.key(0))
    }
    unit = mesh.shape["data"] * mesh.shape["fsdp"]
    where = Path(workdir) / "checkpoints"
    with Checkpoints(
        where, metric=task.best, largest=task.largest, read_only=True
    ) as checkpoints:
        _, scores = checkpoints.best() or (0, {})
    threshold = scores.get("eval_null_threshold", math.inf)
    data = labelled.Unlabelled(config, source, tokenizer, unit, threshold)
    batches = data.batches
    step, place = make_predict_step(task, mesh), sharding.batch_sharding(mesh)
    outputs = [
        np.asarray(step(params, device.to_device(batches.batch(n), place))["logits"])
        for n in range(len(batches))
    ]
    tokens = config.task.kind in ("tag", "span")
    return data.describe(batches.collect(outputs, tokens))
