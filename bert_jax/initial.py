"""Weights to start from: a run's, or another program's."""

import dataclasses
from collections.abc import Callable
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

# What the weights decide, and how a new head is drawn; numerics such as dtype and
# dropout stay the new run's.
_WEIGHTS_DECIDE = (
    *("vocab_size", "vocab_multiple", "hidden", "layers", "heads", "mlp"),
    *("positions", "segments", "activation", "norm_epsilon", "init_std"),
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
    if config.init:
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
        return dataclasses.replace(config, init="")
    if not config.init:
        return config
    if remote.is_remote(config.init):
        raise UserError(
            f"config.init={config.init}: has to be on this disk; copy it with "
            f"`gcloud storage cp -r {config.init} .` and name the copy"
        )
    if is_run(config.init):
        found = configs.load(str(Path(config.init) / "config.json"))
        settings = found.tokenizer
        path = str(Path(config.init) / "tokenizer")
        size = load_tokenizer(path, settings).vocabulary().size
        model = fit_vocabulary(found, size).model
    else:
        model, settings, _ = interop.describe(config.init)
        path = settings.path
    if not config.tokenizer.path:
        own = Tokenizer(kind=settings.kind, path=path, lowercase=settings.lowercase)
        config = dataclasses.replace(config, tokenizer=own)
    return inherit(config, model)


def inherit(config: Config, model: Model) -> Config:
    """The config with what weights of a model decide."""
    own = {name: getattr(model, name) for name in _WEIGHTS_DECIDE}
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **own))


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
        found = tree.flatten(_restore(config.init, own, note))
    else:
        found = tree.flatten(interop.load(config.init).params)
    faults, kept = [], []

    def choose(name: str, leaf: Any) -> Any:
        value = found.get(name)
        if value is not None and value.shape == leaf.shape:
            return jax.device_put(value, leaf.sharding)
        if name.startswith(("embeddings/", "layers/")):
            there = "missing" if value is None else list(value.shape)
            faults.append(f"{name}: {there} there, {list(leaf.shape)} in this run")
        kept.append(name.split("/")[0])
        return leaf

    params = tree.map_named(choose, fresh)
    if faults:
        lines = "\n".join(f"  {fault}" for fault in faults)
        raise UserError(f"config.init={config.init} is another encoder:\n{lines}")
    note(f"weights of {config.init}" + (f"; random: {_list(kept)}" if kept else ""))
    return params


def _list(names: list[str]) -> str:
    return ", ".join(dict.fromkeys(names))


def _restore(directory: str, own: dict[str, Any], note: Callable[[str], None]) -> Any:
    """A run's parameters, placed like those of this run that have the same shape."""
    saved = remote.where(directory, remote.CHECKPOINTS)
    with Checkpoints(saved, read_only=True) as checkpoints:
        step = checkpoints.newest_whole(note)
        if step is None:
            raise UserError(f"config.init={directory}: that run has no checkpoint yet")
        whole = next(iter(own.values())).sharding.mesh

        def place(name: str, leaf: Any) -> jax.ShapeDtypeStruct:
            same = own.get(name, leaf)
            fits = name in own and same.shape == leaf.shape
            where = same.sharding if fits else replicated(whole)
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

        shapes = checkpoints.params_shapes(step)
        return checkpoints.restore_params(tree.map_named(place, shapes), step)
