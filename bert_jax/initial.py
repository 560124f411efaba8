"""Weights to start from: a run's, or another program's."""

import dataclasses
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from bert_jax import config as configs
from bert_jax import interop, remote, tree
from bert_jax.checkpoint import Checkpoints
from bert_jax.config import Config, Distill, Model, Phase, TaskSettings, Tokenizer
from bert_jax.data.tokenizer import load_tokenizer
from bert_jax.errors import UserError
from bert_jax.sharding import replicated
from bert_jax.tasks.distill import EXTRA

# What the weights decide, and how a new head is drawn; numerics such as dtype and
# dropout stay the new run's.
_WEIGHTS_DECIDE = (
    *("vocab_size", "vocab_multiple", "hidden", "layers", "heads", "mlp"),
    *("positions", "segments", "activation", "norm_epsilon", "init_std"),
    *("embedding", "layer_groups", "position", "rope_base", "feed_forward", "norm"),
    *("mixer", "window", "global_every"),
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
    A teacher decides the tokenizer too, all sizes of a student that begins as some of
    its layers, and where `distill.layers` is () what that stands for.

    Raises:
      UserError: there is no model in that directory, or none that can teach this one.
    """
    none, _, model_of = config.init.partition(":")
    if none == "none":
        config = adopt(dataclasses.replace(config, init=model_of))
        alone = dataclasses.replace(config.distill, copy=False)
        return dataclasses.replace(config, init="", distill=alone)
    if config.init:
        model, tokenizer = _describe(config.init, "config.init")
        config = _take(config, model, tokenizer, _WEIGHTS_DECIDE)
    return _adopt_teacher(config) if config.distill.teacher else config


def _describe(directory: str, field: str) -> tuple[Model, Tokenizer]:
    """The sizes of a model, and its tokenizer with the path of its file."""
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


def _take(
    config: Config, model: Model, settings: Tokenizer, names: Iterable[str]
) -> Config:
    """The config with some sizes of a model, and its tokenizer if none is named."""
    if not config.tokenizer.path:
        kind, path, lowercase = settings.kind, settings.path, settings.lowercase
        own = Tokenizer(kind=kind, path=path, lowercase=lowercase)
        config = dataclasses.replace(config, tokenizer=own)
    return inherit(config, model, names)


def inherit(
    config: Config, model: Model, names: Iterable[str] = _WEIGHTS_DECIDE
) -> Config:
    """The config with some sizes of a model; with all that its weights decide."""
    sizes = {name: getattr(model, name) for name in names}
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **sizes))


def _adopt_teacher(config: Config) -> Config:
    settings = config.distill
    teacher, tokenizer = _describe(settings.teacher, "config.distill.teacher")
    copy = settings.copy and not config.init
    names = ("vocab_size", "vocab_multiple") if not copy else _WEIGHTS_DECIDE
    config = _take(config, teacher, tokenizer, () if config.init else names)
    if copy:
        count = len(settings.layers) or max(1, teacher.layers // 2)
        model = dataclasses.replace(config.model, layers=count)
        config = dataclasses.replace(config, model=model)
    if copy or settings.hidden or settings.attention:
        count = config.model.layers
        even = tuple(n * teacher.layers // count for n in range(1, count + 1))
        settings = dataclasses.replace(settings, layers=settings.layers or even)
    _check_teacher(config.model, teacher, settings, config.phases)
    own, other = (load_tokenizer(t.path, t) for t in (config.tokenizer, tokenizer))
    if (own.vocabulary().hash, config.model.vocab_size) != (
        other.vocabulary().hash,
        teacher.vocab_size,
    ):
        raise UserError(
            f"config.distill.teacher={settings.teacher}: has another vocabulary than "
            "the student; leave config.tokenizer.path unset to get the teacher's, and "
            "config.init too or name one that has it"
        )
    return dataclasses.replace(config, distill=settings)


def _check_teacher(
    student: Model, teacher: Model, settings: Distill, phases: Iterable[Phase]
) -> None:
    faults, layers = [], settings.layers
    if layers and (len(layers) != student.layers or not _within(layers, teacher)):
        faults.append(
            f"config.distill.layers={layers}: needs a layer of the teacher, 1 to "
            f"{teacher.layers}, for each of the student's {student.layers}"
        )
    longest = max(phase.length for phase in phases)
    if longest > teacher.positions:
        faults.append(
            f"config.phases[...].length={longest}: the teacher has {teacher.positions} "
            "positions; use shorter rows"
        )
    for name, size in (("cosine", "hidden"), ("attention", "heads")):
        ours, theirs = getattr(student, size), getattr(teacher, size)
        if getattr(settings, name) and ours != theirs:
            faults.append(
                f"config.distill.{name}={getattr(settings, name)}: needs "
                f"config.model.{size}={theirs} as of the teacher, not {ours}; or set "
                "it to 0"
            )
    if faults:
        lines = "\n".join(f"  {fault}" for fault in faults)
        raise UserError(f"{settings.teacher} cannot teach this model:\n{lines}")


def _within(layers: Iterable[int], model: Model) -> bool:
    return all(1 <= layer <= model.layers for layer in layers)


def teacher(config: Config) -> Config:
    """The config, from `adopt`, with the sizes of the teacher; numerics stay its own.

    Raises:
      UserError: there is no model in that directory.
    """
    model, settings = _describe(config.distill.teacher, "config.distill.teacher")
    config = _take(config, model, settings, _WEIGHTS_DECIDE)
    once = dataclasses.replace(config.model, remat="none")  # it has no gradient
    return dataclasses.replace(config, model=once)


def teacher_weights(config: Config, shapes: Any, note: Callable[[str], None]) -> Any:
    """The teacher's parameters; of a run that was scored on a dev set at its best.

    Args:
      config: of the student, from `adopt` and with its labels.
      shapes: of the parameters that the teacher's task has, with their shardings.
      note: is told where the names of its classes are unknown.

    Returns:
      The same tree of arrays.

    Raises:
      UserError: it was trained on another task.
    """
    directory, own = config.distill.teacher, tree.flatten(shapes)
    where = f"config.distill.teacher={directory}"
    if is_run(directory):
        task = configs.load(str(Path(directory) / "config.json")).task
        _check_task(config.task, task, where, note)
        found = tree.flatten(_restore(directory, own, note, where, best=True))
    else:
        source = interop.load(directory)
        _check_task(config.task, source.task, where, note)
        found = tree.flatten(source.params)
    shape = {name: value.shape for name, value in found.items()}
    lacking = [name for name, leaf in own.items() if shape.get(name) != leaf.shape]
    if lacking:
        parts = _list([name.split("/")[0] for name in lacking])
        raise UserError(
            f"{where}: lacks what config.task and config.objective ask for, or has it "
            f"in another shape: {parts}; set these as the teacher was trained"
        )
    return tree.map_named(
        lambda name, leaf: jax.device_put(found[name], leaf.sharding), shapes
    )


def _check_task(
    ours: TaskSettings, theirs: TaskSettings, where: str, note: Callable[[str], None]
) -> None:
    if ours.kind != theirs.kind:
        raise UserError(
            f"{where}: was trained for config.task.kind={theirs.kind}, not {ours.kind}"
        )
    if ours.kind not in ("classify", "tag") or ours.labels == theirs.labels:
        return
    nameless = all(re.fullmatch(r"LABEL_\d+", label) for label in theirs.labels)
    if not nameless or len(ours.labels) != len(theirs.labels):
        raise UserError(
            f"{where}: its classes are {_list(theirs.labels)}, those of this run "
            f"{_list(ours.labels)}; --config.task.labels={','.join(theirs.labels)} "
            "would be the teacher's"
        )
    note(f"{where} does not name its classes: taken for {_list(ours.labels)}")


def copied(
    config: Config, fresh: Any, teacher: Any, note: Callable[[str], None]
) -> Any:
    """Parameters of a student that begins as some layers of its teacher.

    Args:
      config: from `adopt`.
      fresh: the student's random parameters, on their devices.
      teacher: from `teacher_weights`.
      note: is told which layers.

    Returns:
      The tree of `fresh`, of arrays of its own, with the embeddings and the heads of
      the teacher too.

    Sanh et al. 2019, section 3, "Student initialization".
    """
    found, layers = tree.flatten(teacher), config.distill.layers

    def choose(name: str, leaf: Any) -> Any:
        if name not in found:
            return leaf
        value = found[name]
        if name.startswith("layers/"):
            value = jnp.take(value, jnp.array(layers) - 1, axis=0)
        # A copy: training consumes the student's arrays.
        return jax.device_put(jnp.copy(value), leaf.sharding)

    note(f"weights of {config.distill.teacher}, layers {_list(map(str, layers))}")
    return tree.map_named(choose, fresh)


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
        found = tree.flatten(_restore(config.init, own, note, where))
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
    note(f"weights of {config.init}" + (f"; random: {_list(kept)}" if kept else ""))
    return params


def _list(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))


def _restore(
    directory: str,
    own: dict[str, Any],
    note: Callable[[str], None],
    where: str,
    best: bool = False,
) -> Any:
    """A run's parameters, placed like those of this run that have the same shape."""
    saved = remote.where(directory, remote.CHECKPOINTS)
    score = {"metric": "eval_score", "largest": True}
    with Checkpoints(saved, **score, read_only=True) as checkpoints:
        step = checkpoints.best_step() if best else None
        step = checkpoints.newest_whole(note) if step is None else step
        if step is None:
            raise UserError(f"{where}: that run has no checkpoint yet")
        whole = next(iter(own.values())).sharding.mesh

        def place(name: str, leaf: Any) -> jax.ShapeDtypeStruct:
            same = own.get(name, leaf)
            fits = name in own and same.shape == leaf.shape
            where = same.sharding if fits else replicated(whole)
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

        shapes = checkpoints.params_shapes(step)
        return checkpoints.restore_params(tree.map_named(place, shapes), step)
