"""`bert-jax predict`: what a fine-tuned model says of new examples."""

import argparse
import json
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
        "tags; or a .jsonl, with probabilities",
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
    if output.suffix not in (".tsv", ".jsonl"):
        raise UserError(f"--output={output}: must end in .tsv or .jsonl")
    if output.exists():
        raise UserError(f"--output={output} exists; choose another file, or remove it")
    rows = _predict(config, args.workdir, args.input)
    if output.suffix == ".jsonl":
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    else:
        lines = _table(rows)
    try:
        output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"--output={output}: cannot be written ({error.strerror})"
        ) from None
    if args.json:
        print(json.dumps({"output": args.output, "examples": len(rows)}))
    else:
        print(f"{output}: {len(rows):,} examples")
    return 0


def _table(rows: list[dict[str, Any]]) -> list[str]:
    """A GLUE submission; or words with their tags, a blank line after a sentence."""
    if "tags" not in rows[0]:
        labels = (f"{i}\t{row['prediction']}" for i, row in enumerate(rows))
        return ["index\tprediction", *labels]
    lines = []
    for row in rows:
        pairs = zip(row["words"], row["tags"], strict=True)
        lines += [*(f"{word}\t{tag}" for word, tag in pairs), ""]
    return lines


def _predict(config: Any, workdir: str, source: str) -> list[dict[str, Any]]:
    import jax

    from bert_jax import labelled, sharding
    from bert_jax.cli.restore import parameters
    from bert_jax.data import device
    from bert_jax.data.tokenizer import load_tokenizer
    from bert_jax.initial import fit_vocabulary
    from bert_jax.step import make_predict_step
    from bert_jax.tasks.classify import classify

    if config.task.kind not in labelled.KINDS:
        raise UserError(
            f"--workdir={workdir}: a {config.task.kind} model predicts no labels; "
            "fine-tune one with configs/glue.py"
        )
    tokenizer = load_tokenizer(Path(workdir) / "tokenizer", config.tokenizer)
    config = fit_vocabulary(config, tokenizer.vocabulary().size)
    mesh = sharding.make_mesh(config.mesh)
    task = classify(config.model, config.task)
    _, params = parameters(workdir, task.init, mesh, task.best)
    params = {
        part: params[part] for part in jax.eval_shape(task.init, jax.random.key(0))
    }
    unit = mesh.shape["data"] * mesh.shape["fsdp"]
    data = labelled.Unlabelled(config, source, tokenizer, unit)
    batches = data.batches
    step, place = make_predict_step(task, mesh), sharding.batch_sharding(mesh)
    outputs = [
        np.asarray(step(params, device.to_device(batches.batch(n), place))["logits"])
        for n in range(len(batches))
    ]
    return data.describe(batches.collect(outputs))
