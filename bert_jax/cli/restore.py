"""Reading a finished or running run back, for the commands that use its model."""

import argparse
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from bert_jax import labelled, remote, sharding, tree
from bert_jax.checkpoint import Checkpoints
from bert_jax.config import Config, Mesh
from bert_jax.errors import UserError
from bert_jax.run import Run, assemble
from bert_jax.tasks.distill import EXTRA


def restore(args: argparse.Namespace) -> tuple[Run, int, Any]:
    """The run in `--workdir`, the step of its newest checkpoint, its parameters.

    Raises:
      UserError: there is no run, or no checkpoint in it.
    """
    config = require(args)
    if config.tokenizer.path:
        # The run's own copy: the model that it began as may be gone.
        path = str(Path(args.workdir) / "tokenizer")
        tokenizer = dataclasses.replace(config.tokenizer, path=path)
        config = dataclasses.replace(config, tokenizer=tokenizer)
    files = None
    if config.task.kind in labelled.KINDS:
        encoding = config.data.encoding
        files = labelled.read(config.task, train=False, encoding=encoding)
    run = assemble(config, args.workdir, lambda _: None, files)
    best = run.task.best if run.task.largest else None
    step, params = parameters(args.workdir, run.task.init, run.mesh, best)
    return run, step, params


def require(args: argparse.Namespace) -> Config:
    """The config of the run in `--workdir`, to be used on all local devices."""
    if not args.workdir:
        raise UserError("--workdir=DIR is missing: the directory of a run")
    place = remote.where(args.workdir, remote.CHECKPOINTS)
    if args.config is None or not place.is_dir():
        raise UserError(
            f"--workdir={place.parent} holds no run; train one with bert-jax train, or "
            "import one with bert-jax import"
        )
    phases = [p.batch for p in args.config.phases]
    mesh = Mesh() if all(b % jax.device_count() == 0 for b in phases) else Mesh(1, 1, 1)
    return dataclasses.replace(args.config, mesh=mesh)


def _warn(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parameters(
    workdir: str,
    init: Callable[[jax.Array], Any],
    mesh: jax.sharding.Mesh,
    largest: str | None = None,
) -> tuple[int, Any]:
    """A checkpoint's step and parameters, without the optimizer's state.

    Args:
      workdir: of the run.
      init: rng -> the parameters that are needed; others that there are come along,
        but not those that only training uses.
      mesh: to place them on.
      largest: take the checkpoint with most of this metric; None is the newest.

    Raises:
      UserError: there is no checkpoint, or it lacks a part or has another shape.
    """
    directory = remote.where(workdir, remote.CHECKPOINTS)
    metric = {"metric": largest, "largest": True} if largest else {}
    with Checkpoints(directory, **metric, read_only=True) as checkpoints:
        best = checkpoints.best_step(_warn) if largest else None
        step = checkpoints.newest_whole(_warn) if best is None else best
        if step is None:
            raise UserError(f"{directory}: no checkpoint yet; let the run reach one")
        needed = tree.flatten(jax.eval_shape(init, jax.random.key(0)))
        saved = tree.flatten(checkpoints.params_shapes(step))
        lacking = dict.fromkeys(n.split("/")[0] for n in needed if n not in saved)
        if lacking:
            raise UserError(
                f"--workdir={workdir}: its model has no {' or '.join(lacking)} part, "
                "which this command needs; train one with --config.init="
                f"{workdir}, or use another run"
            )
        shapes = tree.unflatten({**saved, **needed})
        wanted = sharding.placed(shapes, sharding.param_shardings(mesh, shapes))
        params = checkpoints.restore_params(wanted, step)
        return step, {part: params[part] for part in params if part != EXTRA}
