"""Reading a finished or running run back, for the commands that use its model."""

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from bert_jax import config as configs
from bert_jax import labelled, remote, rundir, sharding, tree
from bert_jax.checkpoint import Checkpoints
from bert_jax.config import Config, Mesh
from bert_jax.data.texts import ALL
from bert_jax.errors import UserError
from bert_jax.initial import as_trained
from bert_jax.model import Bert
from bert_jax.resolve import resolve
from bert_jax.run import Run, assemble, store_directory, task_of
from bert_jax.tasks.distill import EXTRA


def restore(args: argparse.Namespace, scratch: str) -> tuple[Run, int, Any]:
    """Return the run in `--workdir`, the step of a checkpoint, and its parameters.

    Args:
      args: arguments of the command.
      scratch: empty directory, for the store of text that the run does not have.

    Raises:
      UserError: there is no run, no checkpoint in it, or no text to score on.
    """
    config = require(args)
    if config.task.kind == "pretrain":
        config = _with_text(args, config, scratch)
    files = None
    if config.task.kind in labelled.KINDS:
        encoding = config.data.encoding
        files = labelled.read(config.task, train=False, encoding=encoding)
    other = config.data.store.startswith(scratch)
    other |= any(text.startswith("task.dev_file=") for text in args.overrides)
    mesh = local_mesh(config)
    run = assemble(config, args.workdir, lambda _: None, files, other=other, mesh=mesh)
    best = run.task.best if run.task.largest else None
    step, params = parameters(args.workdir, run.task.init, run.mesh, best)
    return run, step, params


def _with_text(args: argparse.Namespace, config: Config, scratch: str) -> Config:
    """Return the config with the store to score on; nothing is written to the run.

    It is the run's own store, or of `--config.data.source` if that names other text:
    then all of its documents are scored on.
    """
    given = any(text.startswith("data.source=") for text in args.overrides)
    there = remote.exists(store_directory(config, args.workdir), remote.MANIFEST)
    own = configs.load(str(Path(args.workdir) / "config.json"), stored=True)
    named = rundir.absolute(config).data.source
    if there and not (given and named != rundir.absolute(own).data.source):
        return config
    if not given and rundir.origin(args.workdir):
        return config  # its store has moved: `assemble` says so
    if not given:
        raise UserError(
            f"--workdir={args.workdir}: has no text to score the model on; name some "
            "with --config.data.source=FILE"
        )
    store = str(Path(scratch) / "store")
    data = dataclasses.replace(config.data, store=store, eval_share=ALL)
    path = str(Path(args.workdir) / "tokenizer")
    tokenizer = dataclasses.replace(config.tokenizer, path=path)
    return dataclasses.replace(config, data=data, tokenizer=tokenizer)


def require(args: argparse.Namespace) -> Config:
    """Return the config of the run in `--workdir`, to be used on all local devices.

    Its sizes are those of the parameters, and its tokenizer is the run's own.

    Raises:
      UserError: there is no run.
    """
    if not args.workdir:
        raise UserError("--workdir=DIR is missing: the directory of a run")
    place = remote.where(args.workdir, remote.CHECKPOINTS)
    if args.config is None or not place.is_dir():
        raise UserError(
            f"--workdir={place.parent} holds no run; train one with bert-jax train, or "
            "import one with bert-jax import"
        )
    config = args.config
    if args.config_file:  # another one than the run's own, which is resolved
        config, _ = resolve(config)
    config = as_trained(config, args.workdir)
    rundir.check_model(args.workdir, config)
    return dataclasses.replace(config, mesh=_mesh(config))


def _mesh(config: Config) -> Mesh:
    """Return the mesh of the run, or the nearest one of the devices that are here."""
    if config.mesh.fsdp == config.mesh.model == 1:
        return Mesh(jax.device_count(), 1, 1)
    if config.task.kind == "encoder":
        init = functools.partial(_encoder, config)
    else:
        init = task_of(config).init
    shapes = jax.eval_shape(init, jax.random.key(0))
    return sharding.nearest_mesh(config.mesh, jax.device_count(), shapes)


def _encoder(config: Config, rng: jax.Array) -> Any:
    batch = dict.fromkeys(
        ("token", "segment", "position", "example"), jax.numpy.zeros((1, 2), "int32")
    )
    bert: Any = Bert(config.model)
    return bert.init(rng, batch, method="encode")["params"]


def local_mesh(config: Config, copies: int | None = None) -> jax.sharding.Mesh:
    """Return the mesh of a config from `require`, on the first devices that it needs.

    Args:
      config: config of the run.
      copies: number of copies of the model; None is what the mesh has.
    """
    mesh = dataclasses.replace(config.mesh, data=copies or config.mesh.data)
    count = mesh.data * mesh.fsdp * mesh.model
    return sharding.make_mesh(mesh, jax.devices()[:count])


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
