"""A teacher: what it decides of its student, its weights, and whether it fits."""

import dataclasses
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from bert_jax import config as configs
from bert_jax import interop, tree
from bert_jax.config import Config, Distill, Model, Phase, TaskSettings
from bert_jax.data.tokenizer import load_tokenizer
from bert_jax.errors import UserError
from bert_jax.initial import (
    WEIGHTS_DECIDE,
    describe,
    is_run,
    listed,
    restore,
    source,
    take,
)
from bert_jax.model.parts import stacked


def decides(config: Config) -> tuple[str, ...]:
    """Return the fields of `config.model` that `distill.teacher` decides.

    All sizes of a student that begins as some of its layers, else those of the
    vocabulary. A student that is to have no segments has none of the teacher's.
    """
    directory, taken = source(config)
    if not config.distill.teacher or (directory and taken):
        return ()
    names = WEIGHTS_DECIDE
    if directory or not config.distill.copy:
        names = ("vocab_size", "vocab_multiple")
    left = () if config.model.segments else ("segments", "pooler")
    return tuple(name for name in names if name not in left)


def adopt(config: Config) -> Config:
    """The config with what `distill.teacher` decides of the student, if that is set.

    That is the tokenizer, all sizes of a student that begins as some of its layers,
    and where `distill.layers` is () what that stands for. A student that is to have
    no segments leaves those of the teacher out, as Sanh et al. 2019, section 3.

    Args:
      config: from `initial.adopt`.

    Raises:
      UserError: there is no model in that directory, or none that can teach this one.
    """
    if not config.distill.teacher:
        return config
    settings = config.distill
    model, tokenizer = describe(settings.teacher, "config.distill.teacher")
    copy = settings.copy and not config.init
    config = take(config, model, tokenizer, decides(config))
    if copy:
        count = len(settings.layers) or max(1, model.layers // 2)
        own = dataclasses.replace(config.model, layers=count)
        config = dataclasses.replace(config, model=own)
    if copy or settings.hidden or settings.attention:
        count = config.model.layers
        even = tuple(n * model.layers // count for n in range(1, count + 1))
        settings = dataclasses.replace(settings, layers=settings.layers or even)
    settings = dataclasses.replace(settings, copy=copy)
    _check(config.model, model, settings, config.phases)
    own, other = (load_tokenizer(t.path, t) for t in (config.tokenizer, tokenizer))
    if (own.vocabulary().hash, config.model.vocab_size) != (
        other.vocabulary().hash,
        model.vocab_size,
    ):
        raise UserError(
            f"config.distill.teacher={settings.teacher}: has another vocabulary than "
            "the student; leave config.tokenizer.path unset to get the teacher's, and "
            "config.init too or name one that has it"
        )
    return dataclasses.replace(config, distill=settings)


def _check(
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
    if settings.copy and teacher.layer_groups:
        faults.append(
            "config.distill.copy=True: the teacher's layers share their parameters "
            "and cannot be taken one by one; set it to false"
        )
    both = student, teacher
    if settings.attention and any(m.mixer != "attention" or m.window for m in both):
        faults.append(
            f"config.distill.attention={settings.attention}: needs config.model.mixer="
            "attention and config.model.window=0 of both; or set it to 0"
        )
    if faults:
        lines = "\n".join(f"  {fault}" for fault in faults)
        raise UserError(f"{settings.teacher} cannot teach this model:\n{lines}")


def _within(layers: Iterable[int], model: Model) -> bool:
    return all(1 <= layer <= model.layers for layer in layers)


def sizes(config: Config) -> Config:
    """The config, from `adopt`, with the sizes of the teacher; numerics stay its own.

    Raises:
      UserError: there is no model in that directory.
    """
    model, settings = describe(config.distill.teacher, "config.distill.teacher")
    config = take(config, model, settings, WEIGHTS_DECIDE)
    once = dataclasses.replace(config.model, remat="none")  # it has no gradient
    return dataclasses.replace(config, model=once)


def weights(config: Config, shapes: Any, note: Callable[[str], None]) -> Any:
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
        task = configs.load(str(Path(directory) / "config.json"), stored=True).task
        _check_task(config.task, task, where, note)
        found = tree.flatten(restore(directory, own, note, where, best=True))
    else:
        source = interop.load(directory)
        _check_task(config.task, source.task, where, note)
        found = tree.flatten(source.params)
    shape = {name: value.shape for name, value in found.items()}
    lacking = [name for name, leaf in own.items() if shape.get(name) != leaf.shape]
    if lacking:
        parts = listed([name.split("/")[0] for name in lacking])
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
            f"{where}: its classes are {listed(theirs.labels)}, those of this run "
            f"{listed(ours.labels)}; --config.task.labels={','.join(theirs.labels)} "
            "would be the teacher's"
        )
    note(f"{where} does not name its classes: taken for {listed(ours.labels)}")


def copied(
    config: Config, fresh: Any, teacher: Any, note: Callable[[str], None]
) -> Any:
    """Parameters of a student that begins as some layers of its teacher.

    Args:
      config: from `adopt`.
      fresh: the student's random parameters, on their devices.
      teacher: from `weights`.
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
        if stacked(name):
            value = jnp.take(value, jnp.array(layers) - 1, axis=0)
        # A copy: training consumes the student's arrays.
        return jax.device_put(jnp.copy(value), leaf.sharding)

    note(f"weights of {config.distill.teacher}, layers {listed(map(str, layers))}")
    return tree.map_named(choose, fresh)
