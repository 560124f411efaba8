"""`bert-jax import`: another program's encoder as a run directory."""

import argparse
import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from bert_jax.cli.arguments import parse
from bert_jax.errors import UserError

EXAMPLE = "bert-jax import --source=bert-base-uncased --workdir=runs/base-uncased"


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--source",
        metavar="DIR",
        required=True,
        help="a directory with config.json and model.safetensors (Hugging Face), or "
        "with bert_config.json, vocab.txt and bert_model.ckpt.* (the original)",
    )


def main(argv: Sequence[str]) -> int:
    """Reads a model, writes it as a run, prints what it is."""
    about = "Turn a model of Hugging Face, or an original BERT, into a run directory."
    args = parse(
        argv,
        about,
        EXAMPLE,
        _options,
        config_required=False,
        remote_workdir=False,
    )
    if not args.workdir:
        raise UserError("--workdir=DIR is missing: the run directory to make")
    workdir = Path(args.workdir)
    if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise UserError(f"--workdir={workdir} is not empty; choose another directory")

    from bert_jax import config as configs
    from bert_jax import interop, log, tree
    from bert_jax.checkpoint import Checkpoints

    source = interop.load(args.source)
    positions = source.model.positions
    frozen = configs.Config(
        init=args.source,
        model=source.model,
        task=source.task,
        tokenizer=dataclasses.replace(source.settings, path=str(workdir / "tokenizer")),
        objective=configs.Objective(pair=source.pair),
        phases=(configs.Phase(length=min(128, positions)),),
    )
    try:
        with Checkpoints(workdir / "checkpoints") as checkpoints:
            checkpoints.save_params(source.params)
        source.tokenizer.save(workdir / "tokenizer")
        log.write_json(
            workdir / "summary.json",
            {"steps": 0, "params_digest": tree.params_digest(source.params)},
        )
        # Last: without it nothing takes the directory for a run.
        (workdir / "config.json").write_text(configs.to_json(frozen), "utf-8")
    except BaseException:
        shutil.rmtree(workdir, ignore_errors=True)
        raise
    result = {
        "workdir": args.workdir,
        "kind": source.task.kind,
        "parts": list(source.params),
        "vocabulary": source.tokenizer.vocabulary().size,
        **{n: getattr(source.model, n) for n in ("layers", "hidden", "heads")},
    }
    if args.json:
        print(json.dumps(result))
        return 0
    print(
        f"{args.workdir}: {result['layers']} layers, {result['hidden']} "
        f"features, {result['vocabulary']:,} tokens; parts: {', '.join(source.params)}"
    )
    return 0
