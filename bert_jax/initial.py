"""Weights to start from: a run's, or another program's."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bert_jax import config as configs
from bert_jax import interop, remote, tree
from bert_jax.checkpoint import Checkpoints
from bert_jax.config import Config, Model, TaskSettings, Tokenizer
from bert_jax.data import coverage
from bert_jax.data.tokenizer import load_tokenizer
from bert_jax.errors import UserError
from bert_jax.model import parts
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
    if config.sized_elsewhere:
        return config
    model = dataclasses.replace(config.model, vocab_size=size)
    return dataclasses.replace(config, model=model)


def source(config: Config) -> tuple[str, bool]:
    """Return the directory that `config.init` names, and whether to take its weights.

    Of `none:DIR`, only the sizes and the tokenizer are taken.
    """
    none, _, directory = config.init.partition(":")
    return (directory, False) if none == "none" else (config.init, True)


def adopt(config: Config) -> Config:
    """The config with the sizes and the tokenizer of `config.init`, if that is set.

    After `none:DIR` it is as if these had been asked for, and `init` had not been set.

    Raises:
      UserError: there is no model in that directory.
    """
    directory, taken = source(config)
    if not taken:
        config = adopt(dataclasses.replace(config, init=directory))
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
    found = configs.load(str(Path(directory) / "config.json"), stored=True)
    found = as_trained(found, directory)
    path = str(Path(directory) / "tokenizer")
    return found.model, dataclasses.replace(found.tokenizer, path=path)


def as_trained(config: Config, directory: str | Path) -> Config:
    """Return the config of a run as its parameters are, whatever else is still there.

    The number of tokens is that of the run's own tokenizer, which also takes the place
    of one from elsewhere.

    Args:
      config: config from the run's `config.json`, whose vocabulary size is the one
        asked for where the run trained its tokenizer.
      directory: run directory.
    """
    path = str(Path(directory) / "tokenizer")
    if config.tokenizer.path:
        own = dataclasses.replace(config.tokenizer, path=path)
        config = dataclasses.replace(config, tokenizer=own)
    size = load_tokenizer(path, config.tokenizer).vocabulary().size
    return fit_vocabulary(config, size)


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
      note: is told which parts keep them, and how the tokenizer of another program's
        files is read.

    Returns:
      The same tree, with the same shardings. A head that the weights lack, or have
      for another task or other classes, keeps its random values.

    Raises:
      UserError: the encoder's weights are missing or of other shapes.
    """
    own = tree.flatten(fresh)
    if is_run(config.init):
        where = f"config.init={config.init}"
        found = tree.flatten(restore(config.init, own, note, where))
        found = {n: a for n, a in found.items() if not n.startswith(f"{EXTRA}/")}
        path = str(Path(config.init) / "config.json")
        there = configs.load(path, stored=True)
        task, pair = there.task, there.objective.pair
    else:
        source = interop.load(config.init)
        for text in source.tokenizer.notes:
            note(f"config.init={config.init}: {text}")
        if said := coverage.warning(*coverage.unknown(source.tokenizer)):
            note(f"warning: config.init={config.init}: {said}")
        found, task, pair = tree.flatten(source.params), source.task, source.pair
    found, meant = _same_heads(config, found, task, pair)
    faults, kept = [], []

    def choose(name: str, leaf: Any) -> Any:
        value = found.get(name)
        if value is not None and value.shape == leaf.shape:
            return jax.device_put(value, leaf.sharding)
        if parts.in_encoder(name):
            there = "missing" if value is None else list(value.shape)
            faults.append(f"{name}: {there} there, {list(leaf.shape)} in this run")
        part = name.split("/")[0]
        kept.append(f"{part} ({meant[part]})" if part in meant else part)
        return leaf

    params = tree.map_named(choose, fresh)
    if faults:
        lines = "\n".join(f"  {fault}" for fault in faults)
        raise UserError(f"config.init={config.init} is another encoder:\n{lines}")
    note(f"weights of {config.init}" + (f"; random: {listed(kept)}" if kept else ""))
    return params


def _same_heads(
    config: Config, found: dict[str, Any], task: TaskSettings, pair: str
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the parameters without heads that predict something else.

    Args:
      config: config of the new run.
      found: parameters of the weights, by name.
      task: task that the weights were trained on.
      pair: `objective.pair` of that training.

    Returns:
      The parameters, with the classes of a head in the order of this run, and by part
      why it was left out.
    """
    meant, ours = {}, config.task
    if not any(name.startswith(("head/", "nsp/")) for name in found):
        return found, meant
    if ours.kind == "pretrain" and pair not in ("none", config.objective.pair):
        meant["nsp"] = f"there for pair={pair}"
    if ours.kind != task.kind:
        meant["head"] = f"there for task.kind={task.kind}"
    elif ours.kind != "span" and ours.labels != task.labels:
        order = _order(ours.labels, task.labels)
        if order:
            found = {
                name: value[..., np.array(order)] if name.startswith("head/") else value
                for name, value in found.items()
            }
        else:
            meant["head"] = f"there for the classes {listed(task.labels)}"
    names = [n for n in found if n.split("/")[0] not in meant]
    return {name: found[name] for name in names}, meant


def _order(ours: Sequence[str], theirs: Sequence[str]) -> list[int]:
    """Return the place of each of our classes among theirs; [] if the names differ.

    Names that transformers gives, `LABEL_0` and so on, are those of the numbers.
    """
    if sorted(ours) != sorted(theirs):
        theirs = [re.sub(r"^LABEL_(\d+)$", r"\1", name) for name in theirs]
    same = sorted(ours) == sorted(theirs)
    return [theirs.index(name) for name in ours] if same else []


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
