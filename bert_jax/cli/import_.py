"""`bert-jax import`: another program's encoder as a run directory."""

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bert_jax.cli.arguments import parse
from bert_jax.errors import UserError

_OWNER = ".owner.json"  # `owner.NAME`, which is imported late
_WRITTEN = "checkpoints", "tokenizer", "summary.json"  # before config.json
EXAMPLE = (
    "bert-jax import --source=downloads/bert-base-uncased --workdir=runs/base-uncased"
)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--source",
        metavar="DIR",
        required=True,
        help="a directory with config.json and model.safetensors (Hugging Face), or "
        "with bert_config.json, vocab.txt and bert_model.ckpt.* (the original)",
    )
    parser.add_argument(
        "--lowercase",
        choices=("true", "false"),
        help="whether the model reads lowercased text; without it the files decide",
    )
    parser.add_argument(
        "--drop",
        metavar="REGEX",
        default="",
        help="tensors to leave out, by a regular expression found in their names",
    )
    parser.add_argument(
        "--architecture",
        metavar="CLASS",
        default="",
        help="class of transformers to read it as, such as BertForMaskedLM, in place "
        "of the one that config.json names",
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
    _check_empty(workdir)
    from bert_jax import config as configs
    from bert_jax import interop, owner
    from bert_jax.data import coverage

    lowercase = None if args.lowercase is None else args.lowercase == "true"
    choices = interop.Choices(lowercase, args.drop, args.architecture)
    source = interop.load(args.source, choices)
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
        with owner.hold(args.workdir, lambda text: print(text, file=sys.stderr)):
            _check_empty(workdir)  # another import may have filled it
            _write(workdir, source, configs.to_json(frozen))
    except BaseException:
        with contextlib.suppress(OSError):  # not empty
            workdir.rmdir()
        raise
    share, known = coverage.unknown(source.tokenizer)
    if said := coverage.warning(share, known):
        print(f"bert-jax: warning: {args.source}: {said}", file=sys.stderr)
    if source.dropped:
        print(
            f"bert-jax: left out {len(source.dropped)} tensors by --drop={args.drop}: "
            f"{', '.join(source.dropped)}",
            file=sys.stderr,
        )
    result = {
        "workdir": args.workdir,
        "kind": source.task.kind,
        "parts": list(source.params),
        "vocabulary": source.tokenizer.vocabulary().size,
        "tokenizer": list(source.tokenizer.notes),
        "unknown_share": share,
        "dropped": list(source.dropped),
        **{n: getattr(source.model, n) for n in ("layers", "hidden", "heads")},
    }
    if args.json:
        print(json.dumps(result))
        return 0
    for note in source.tokenizer.notes:
        print(f"tokenizer: {note}")
    if known:
        print(f"[UNK]: {share:.1%} of a built-in sample in {', '.join(known)} letters")
    print(
        f"{args.workdir}: {result['layers']} layers, {result['hidden']} "
        f"features, {result['vocabulary']:,} tokens; parts: {', '.join(source.params)}"
    )
    return 0


def _check_empty(workdir: Path) -> None:
    """Refuses a directory with anything but what a killed import left in it."""
    names = set(os.listdir(workdir)) if workdir.is_dir() else set()
    killed = _OWNER in names and names <= {_OWNER, *_WRITTEN}
    if (workdir.exists() and not workdir.is_dir()) or (names and not killed):
        raise UserError(f"--workdir={workdir} is not empty; choose another directory")


def _clear(workdir: Path) -> None:
    for name in _WRITTEN:
        path = workdir / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _write(workdir: Path, source: Any, config: str) -> None:
    from bert_jax import log, tree
    from bert_jax.checkpoint import Checkpoints

    _clear(workdir)
    try:
        with Checkpoints(workdir / "checkpoints") as checkpoints:
            checkpoints.save_params(source.params)
        source.tokenizer.save(workdir / "tokenizer")
        log.write_json(
            workdir / "summary.json",
            {"steps": 0, "params_digest": tree.params_digest(source.params)},
        )
        # Last: without it nothing takes the directory for a run.
        log.write_text(workdir / "config.json", config)
    except BaseException:
        _clear(workdir)
        raise
