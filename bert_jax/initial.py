"""Weights to start from: a run's, or another program's."""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax

from bert_jax import config as configs
from bert_jax import interop, remote, tree
from bert_jax.checkpoint import Checkpoints
from bert_jax.config import Config, Model, Tokenizer
from bert_jax.data.tokenizer import load_tokenizer
from bert_jax.errors import UserError
from bert_jax.sharding import replicated
from bert_jax.tasks.distill import EXTRA

# What the weights decide, and how a new head is drawn; numerics such as dtype and
# dropout stay the new run's.
WEIGHTS_DECIDE = (
    *("vocab_size", "vocab_multiple", "hidden", "layers", "heads", "mlp"),
    *("positions", "segments", "activation", "norm_epsilon", "init_std"),
    *("embedding", "layer_groups", "position", "rope_base", "feed_forward", "norm"),
    *("mixer", "window", "global_every", "pooler"),
)


def is_run(directory: str | Path) -> bool:
    """Whether a directory is a run of ours, with weights in it."""
    directory = Path(directory)
    there = remote.where(directory, remote.CHECKPOINTS).is_dir()
    return there and (directory / "config.json").is_file()


def fit_vocabulary(config: Config, size: int) -> Config:
    """The config for a vocabulary of `size` tokens, which may be fewer than asked for.

    Weights from elsewhere may have rows that no token uses; those keep them.
    """
    if config.init or config.distill.teacher:
        return config
    model = dataclasses.replace(config.model, vocab_size=size)
    return dataclasses.replace(config, model=model)


def adopt(config: Config) -> Config:
    """The config with the sizes and the tokenizer of `config.init`, if that is set.

    After `none:DIR` it is as if these had been asked for, and `init` had not been set.

    Raises:
      UserError: there is no model in that directory.
    """
    none, _, model_of = config.init.partition(":")
    if none == "none":
        config = adopt(dataclasses.replace(config, init=model_of))
        alone = dataclasses.replace(config.distill, copy=False)
        return dataclasses.replace(config, init="", distill=alone)
    if config.init:
        model, tokenizer = describe(config.init, "config.init")
        config = take(config, model, tokenizer, WEIGHTS_DECIDE)
    return config


def describe(directory: str, field: str) -> tuple[Model, Tokenizer]:
    """The sizes of a model, and its tokenizer with the path of its file.

    Args:
      directory: of a run, or of another program's model.
      field: of the config that names it, for messages.

    Raises:
      UserError: there is no model in it.
    """
    if remote.is_remote(directory):
        raise UserError(
            f"{field}={directory}: has to be on this disk; copy it with "
            f"`gcloud storage cp -r {directory} .` and name the copy"
        )
    if not is_run(directory):
        model, settings, _ = interop.describe(directory)
        return model, settings
    found = configs.load(str(Path(directory) / "config.json"))
    path = str(Path(directory) / "tokenizer")
    size = load_tokenizer(path, found.tokenizer).vocabulary().size
    settings = dataclasses.replace(found.tokenizer, path=path)
    return fit_vocabulary(found, size).model, settings


def take(
    config: Config, model: Model, settings: Tokenizer, names: Iterable[str]
) -> Config:
    """The config with some sizes of a model, and its tokenizer if none is named.

    Args:
      config: of the run.
      model: from `describe`.
      settings: from `describe`.
      names: of the sizes, fields of `Model`.
    """
    if not config.tokenizer.path:
        kind, path, lowercase = settings.kind, settings.path, settings.lowercase
        own = Tokenizer(kind=kind, path=path, lowercase=lowercase)
        config = dataclasses.replace(config, tokenizer=own)
    return inherit(config, model, names)


def inherit(
    config: Config, model: Model, names: Iterable[str] = WEIGHTS_DECIDE
) -> Config:
    """The config with some sizes of a model; with all that its weights decide."""
    sizes = {name: getattr(model, name) for name in names}
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **sizes))


def weights(config: Config, fresh: Any, note: Callable[[str], None]) -> Any:
    """Parameters with the weights of `config.init` in place of random ones.

    Args:
      config: with `init` set, from `adopt`.
      fresh: the new model's random parameters, on their devices.
      note: is told which parts keep them.

    Returns:
      The same tree, with the same shardings. A head that the weights lack, or have
      for other classes, keeps its random values.

    Raises:
      UserError: the encoder's weights are missing or of other shapes.
    """
    own = tree.flatten(fresh)
    if is_run(config.init):
        where = f"config.init={config.init}"
        found = tree.flatten(restore(config.init, own, note, where))
        found = {n: a for n, a in found.items() if not n.startswith(f"{EXTRA}/")}
    else:
        found = tree.flatten(interop.load(config.init).params)
    faults, kept = [], []

    def choose(name: str, leaf: Any) -> Any:
        value = found.get(name)
        if value is not None and value.shape == leaf.shape:
            return jax.device_put(value, leaf.sharding)
        if name.startswith(("embeddings/", "project/", "layers/", "norm/")):
            there = "missing" if value is None else list(value.shape)
            faults.append(f"{name}: {there} there, {list(leaf.shape)} in this run")
        kept.append(name.split("/")[0])
        return leaf

    params = tree.map_named(choose, fresh)
    if faults:
        lines = "\n".join(f"  {fault}" for fault in faults)
        raise UserError(f"config.init={config.init} is another encoder:\n{lines}")
    note(f"weights of {config.init}" + (f"; random: {listed(kept)}" if kept else ""))
    return params


def listed(names: Iterable[str]) -> str:
    """Names for a message, each once."""
    return ", ".join(dict.fromkeys(names))


def restore(
    directory: str,
    own: dict[str, Any],
    note: Callable[[str], None],
    where: str,
    best: bool = False,
) -> Any:
    """A run's parameters, placed like those of this run that have the same shape.

    Args:
      directory: of that run.
      own: of this run by name: arrays, or shapes with shardings.
      note: is told of damage.
      where: field and value of the config, for messages.
      best: of the checkpoint with the best score on a dev set, if there is one; else
        of the newest.

    Raises:
      UserError: it has no checkpoint.
    """
    saved = remote.where(directory, remote.CHECKPOINTS)
    score = {"metric": "eval_score", "largest": True}
    with Checkpoints(saved, **score, read_only=True) as checkpoints:
        step = checkpoints.best_step(note) if best else None
        step = checkpoints.newest_whole(note) if step is None else step
        if step is None:
            raise UserError(f"{where}: that run has no checkpoint yet")
        whole = next(iter(own.values())).sharding.mesh

        def place(name: str, leaf: Any) -> jax.ShapeDtypeStruct:
            same = own.get(name, leaf)
            fits = name in own and same.shape == leaf.shape
            cut = same.sharding if fits else replicated(whole)
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=cut)

        shapes = checkpoints.params_shapes(step)
        return checkpoints.restore_params(tree.map_named(place, shapes), step)
