"""`bert-jax export`: a run's model in Hugging Face's format."""

import argparse
import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etils import epath

from bert_jax.cli.arguments import parse

EXAMPLE = "bert-jax export --workdir=runs/tiny --output=exported/tiny"


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", metavar="DIR", required=True, help="the directory to make"
    )


def main(argv: Sequence[str]) -> int:
    """Writes the newest checkpoint of a run for `from_pretrained`."""
    about = "Write a run's newest checkpoint for Hugging Face's transformers."
    args = parse(argv, about, EXAMPLE, _options, config_required=False)
    from bert_jax.cli.restore import require

    config = require(args)

    from bert_jax import config as configs
    from bert_jax import remote
    from bert_jax.cli.restore import local_mesh, parameters
    from bert_jax.data.tokenizer import load_tokenizer
    from bert_jax.interop import huggingface
    from bert_jax.interop.card import card
    from bert_jax.run import store_directory

    workdir = Path(args.workdir)
    tokenizer = load_tokenizer(workdir / "tokenizer", config.tokenizer)
    mesh = local_mesh(config, copies=1)
    best = "eval_score" if config.task.score else None
    step, params = parameters(args.workdir, lambda rng: {}, mesh, best)
    pad = tokenizer.vocabulary().pad
    made = {
        folder: (model, *huggingface.to_tensors(part, model, config.task, pad))
        for folder, (model, part) in huggingface.halves(params, config).items()
    }
    summary = _read(remote.where(workdir, remote.SUMMARY))
    store = store_directory(config, args.workdir)
    manifest = _read(remote.where(store, remote.MANIFEST))
    title = remote.where(workdir).resolve().name
    output = Path(args.output)
    huggingface.make(output)
    for folder, (model, kind, tensors) in made.items():
        own = dataclasses.replace(config, model=model)
        size = sum(array.size for array in tensors.values())
        text = card(own, title, kind, summary, manifest, size)
        huggingface.save(output / folder, own, kind, tensors, tokenizer, text)
        settings = configs.to_json(config)
        (output / folder / "bert_jax_config.json").write_text(settings, "utf-8")
    kinds = {str(output / folder): kind for folder, (_, kind, _) in made.items()}
    if args.json:
        kind = next(iter(kinds.values()))
        result = {"output": args.output, "class": kind, "step": step, "models": kinds}
        print(json.dumps(result))
        return 0
    for path, kind in kinds.items():
        print(f'{path}: step {step}; load it with {kind}.from_pretrained("...")')
    return 0


def _read(file: epath.Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        return json.loads(file.read_text(encoding="utf-8"))
    return {}
