"""Reading a finished or running run back, for the commands that use its model."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import jax

from bert_jax import sharding
from bert_jax.checkpoint import Checkpoints
from bert_jax.config import Config, Mesh
from bert_jax.errors import UserError
from bert_jax.run import Run, assemble
from bert_jax.tasks import Task


def restore(args: argparse.Namespace) -> tuple[Run, int, Any]:
    """The run in `--workdir`, the step of its newest checkpoint, its parameters.

    Raises:
      UserError: there is no run, or no checkpoint in it.
    """
    config = require(args)
    run = assemble(config, args.workdir, lambda _: None)
    step, params = parameters(run.config, args.workdir, run.task, run.mesh)
    return run, step, params


def require(args: argparse.Namespace) -> Config:
    """The config of the run in `--workdir`, to be used on all local devices."""
    if not args.workdir:
        raise UserError("--workdir=DIR is missing: the directory of a run")
    if args.config is None or not (Path(args.workdir) / "checkpoints").is_dir():
        raise UserError(
            f"--workdir={args.workdir} holds no run; train one with bert-jax train"
        )
    phases = [p.batch for p in args.config.phases]
    mesh = Mesh() if all(b % jax.device_count() == 0 for b in phases) else Mesh(1, 1, 1)
    return dataclasses.replace(args.config, mesh=mesh)


def parameters(
    config: Config, workdir: str, task: Task, mesh: jax.sharding.Mesh
) -> tuple[int, Any]:
    """The newest checkpoint's step and parameters, without the optimizer's state."""
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    places = sharding.param_shardings(mesh, shapes)
    wanted = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=place
        ),
        shapes,
        places,
    )
    directory = Path(workdir) / "checkpoints"
    with Checkpoints(directory, config.keep_last, config.keep_best) as checkpoints:
        step = checkpoints.latest_step()
        return step or 0, checkpoints.restore_params(wanted, step)
