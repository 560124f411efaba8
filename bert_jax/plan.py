"""What a run would need and how fast it could be, from its compiled training step.

The step is compiled for machines that need not be here. Memory and collectives are
the compiler's own; seconds are a roofline (Williams et al. 2009): the longest of the
arithmetic, the memory traffic and the interconnect, each at its data sheet's rate. A
real step takes longer.
"""

import dataclasses
import functools
import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from bert_jax import metrics, optim, program, sharding, step
from bert_jax.config import Config, Mesh
from bert_jax.data import masking, pipeline
from bert_jax.errors import UserError
from bert_jax.model.attention import in_training
from bert_jax.tasks.pretrain import pretrain
from bert_jax.topology import Topology

_FIRST = 8  # [rows a chip] that the search for the largest batch begins with
_MOST = 4096
_TURNS = {  # of a collective's bytes, over the links of one chip; n devices
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
}

_LATER = (  # figures of a report that need a program, one that fits, or a known chip
    "traffic_bytes seconds step_seconds_roofline bound mfu_roofline tokens_per_second "
    "days chip_hours"
).split()


class Compiled(NamedTuple):
    """A training step on one kind of machine.

    Attributes:
      config: that it was compiled from, with its mesh.
      phase: index into `config.phases`.
      topology: of the machines.
      mesh: of their devices.
      params: of the model.
      state: bytes of a chip that hold its share of the state and the batch.
      used: bytes of a chip in all; None where it does not fit and the compiler does
        not say by how much.
      program: None where it does not fit and so was not compiled.
      seconds: of tracing and compiling.
    """

    config: Config
    phase: int
    topology: Topology
    mesh: jax.sharding.Mesh
    params: int
    state: int
    used: int | None
    program: program.Program | None
    seconds: float = 0.0

    @property
    def fits(self) -> bool:
        """Whether a chip's memory holds it."""
        used = self.used
        return bool(self.program) and used is not None and used <= self.topology.memory

    @property
    def rows(self) -> int:
        """Rows that a chip works on at a time, a share of them for `mesh.model`."""
        phase = self.config.phases[self.phase]
        return phase.batch // phase.accumulate // _shares(self.mesh)


class Lowered(NamedTuple):
    """A training step before it is compiled.

    Attributes:
      mesh: of its devices.
      state: shapes, dtypes and shardings.
      batch: the same.
      start: makes the state before the first step; it takes real devices.
      lowered: what `jax.jit(...).lower` gave.
    """

    mesh: jax.sharding.Mesh
    state: step.TrainState
    batch: dict[str, jax.ShapeDtypeStruct]
    start: Callable[[], step.TrainState]
    lowered: Any


def lower_step(config: Config, phase: int, devices: Sequence[Any]) -> Lowered:
    """Traces the training step of a phase for some devices.

    Args:
      config: of a pretraining run; nothing of it is read from disk.
      phase: index into `config.phases`.
      devices: real or described.

    Returns:
      What is left to compile.

    Raises:
      UserError: config and devices do not fit together.
    """
    shape = config.phases[phase]
    mesh = sharding.make_mesh(config.mesh, devices)
    sharding.check_batch(mesh, shape, phase)
    task = pretrain(config.model, config.objective)
    optimizer = optim.optimizer(config.optim, config.steps)
    schedule = optim.learning_rate(config.optim, config.steps)
    place = sharding.batch_sharding(mesh)
    batch = {
        name: jax.ShapeDtypeStruct(size, dtype, sharding=place)
        for name, (size, dtype) in pipeline.shapes(config, phase).items()
    }
    state = step.abstract_state(task, optimizer, mesh)
    make = step.make_train_step
    train_step: Any = make(
        task, optimizer, schedule, mesh, config.seed, shape.accumulate
    )
    start = functools.partial(step.init_state, task, optimizer, mesh, config.seed)
    return Lowered(mesh, state, batch, start, train_step.lower(state, batch))


def compile_step(config: Config, phase: int, topology: Topology) -> Compiled:
    """Compiles the training step of a phase, and reads what came out.

    Args:
      config: of a pretraining run; nothing of it is read from disk.
      phase: index into `config.phases`.
      topology: what to compile for.

    Returns:
      What the compiler says, also if it says that the step does not fit.

    Raises:
      UserError: config and devices do not fit together.
    """
    if config.task.kind != "pretrain":
        raise UserError(
            f"config.task.kind={config.task.kind}: plan compiles pretraining only"
        )
    began = time.perf_counter()
    mesh, state, batch, _, lowered = lower_step(config, phase, topology.devices)
    params = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params))
    held = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves((state, batch))
    )
    known = config, phase, topology, mesh, params, held
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Compiled(*known, program.memory_asked(str(error), held), None)
    seconds, used = time.perf_counter() - began, used_bytes(compiled)
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"{topology.name}: this libtpu writes programs that this jaxlib cannot "
            "read; pip install 'bert-jax[aot-tpu]' has one that it can"
        ) from error
    return Compiled(*known, used, program.read(text), seconds)


def used_bytes(compiled: Any) -> int:
    """Of a device: inputs, results, temporaries and the program. [bytes]"""
    sizes = compiled.memory_analysis()
    used = sizes.argument_size_in_bytes + sizes.output_size_in_bytes
    used += sizes.temp_size_in_bytes - sizes.alias_size_in_bytes
    return used + sizes.generated_code_size_in_bytes


def attempt(
    config: Config,
    phase: int,
    topology: Topology,
    note: Callable[[str], None],
    rows: int | None = None,
    what: str = "",
) -> Compiled:
    """`compile_step` that tells what it does, and may set the batch.

    Args:
      config: as there.
      phase: as there.
      topology: as there.
      note: is told before and after.
      rows: that a chip works on at a time; the batch follows. None: the config's.
      what: is tried, for `note`.

    Returns:
      What the compiler says.

    Raises:
      UserError: config and devices do not fit together.
    """
    if rows is not None:
        mesh = sharding.make_mesh(config.mesh, topology.devices)
        batch = rows * _shares(mesh) * config.phases[phase].accumulate
        config, what = with_phase(config, phase, batch=batch), f"{rows} rows a chip"
    note(f"{topology.name}: compiling {what}")
    found = compile_step(config, phase, topology)
    used = "more" if found.used is None else f"{found.used / 1e9:.1f} GB"
    note(f"{topology.name}: needs {used} of {topology.memory / 1e9:.1f} GB a chip")
    return found


def best_batch(
    config: Config, phase: int, topology: Topology, note: Callable[[str], None]
) -> Compiled:
    """The step with the most rows a chip, a power of two, or with half of them.

    Half of them where its roofline is higher: of arrays that are too large a compiler
    keeps less on the chip.

    Args:
      config: its micro-batches keep their number; the batch follows.
      phase: index into `config.phases`.
      topology: what to compile for.
      note: is told of each attempt.

    Returns:
      The better of the two, or one row a chip if not even that fits.
    """

    @functools.cache
    def of(rows: int) -> Compiled:
        return attempt(config, phase, topology, note, rows)

    rows, first = _FIRST, of(_FIRST)
    if first.used is not None:  # all but the state grows with the rows
        share = (topology.memory - first.state) / max(first.used - first.state, 1)
        rows = 2 ** math.floor(math.log2(min(max(share * rows, 1), _MOST)))
    while not of(rows).fits and rows > 1:
        rows //= 2
    while rows < _MOST and of(rows).fits and of(2 * rows).fits:
        rows *= 2
    if rows == 1 or topology.chip is None:
        return of(rows)
    both = of(rows), of(rows // 2)
    return max(both, key=lambda found: report(found)["mfu_roofline"])


def remedy(
    failed: Compiled, note: Callable[[str], None]
) -> tuple[dict[str, Any], Compiled] | None:
    """The first change that makes a step fit, tried by compiling it.

    In this order: more micro-batches, then rematerialisation, then an fsdp axis.

    Args:
      failed: the step that does not fit.
      note: is told of each attempt.

    Returns:
      The fields of the config to set, and the step with them; None if none helps.
    """
    config, phase, topology = failed.config, failed.phase, failed.topology

    def helps(edits: dict[str, Any], edited: Config) -> Any:
        text = " ".join(f"--config.{name}={value}" for name, value in edits.items())
        found = attempt(edited, phase, topology, note, what=f"with {text}")
        return (edits, found) if found.fits else None

    for accumulate in _halvings(failed):
        edits = {f"phases[{phase}].accumulate": accumulate}
        if found := helps(edits, with_phase(config, phase, accumulate=accumulate)):
            return found
    for remat in ("dots", "full"):
        model = dataclasses.replace(config.model, remat=remat)
        edited = dataclasses.replace(config, model=model)
        if config.model.remat == "none":
            if found := helps({"model.remat": remat}, edited):
                return found
    fsdp = 2 * failed.mesh.shape["fsdp"]
    while _shares(failed.mesh) % fsdp == 0:
        mesh = Mesh(-1, fsdp, failed.mesh.shape["model"])
        if config.model.hidden % fsdp == 0:
            edited = dataclasses.replace(config, mesh=mesh)
            edits = {"mesh.data": -1, "mesh.fsdp": fsdp}
            if found := helps(edits, edited):
                return found
        fsdp *= 2
    return None


def _halvings(failed: Compiled) -> list[int]:
    """More micro-batches, without those that are far too few."""
    shape = failed.config.phases[failed.phase]
    rows, counts, accumulate = failed.rows, [], shape.accumulate
    while rows > 1 and rows % 2 == 0:
        rows, accumulate = rows // 2, accumulate * 2
        counts.append(accumulate)
    if failed.used is None:
        return counts
    # All but the state shrinks at most in proportion; a factor of 2 for what may not.
    free = max(failed.topology.memory - failed.state, 1)
    least = shape.accumulate * (failed.used - failed.state) / free / 2
    return [count for count in counts if count >= least]


def with_phase(config: Config, phase: int, **edits: Any) -> Config:
    """The config with some fields of one phase changed."""
    phases = list(config.phases)
    phases[phase] = dataclasses.replace(phases[phase], **edits)
    return dataclasses.replace(config, phases=tuple(phases))


def _shares(mesh: jax.sharding.Mesh) -> int:
    return mesh.shape["data"] * mesh.shape["fsdp"]


def report(found: Compiled, wanted: Config | None = None) -> dict[str, Any]:
    """Everything that is known of a compiled step, as JSON takes it.

    `chip_hours` and `days` are of the whole run: the rows of all steps and phases that
    the config names, those of other phases at the compiled one's share of the peak.

    Args:
      found: from `compile_step`.
      wanted: the config before its batch was changed; None: that of `found`.

    Returns:
      Figures of a chip and of all together; None where the step does not fit or a
      ceiling of the chip is not known.
    """
    config, topology = found.config, found.topology
    shape, chips = config.phases[found.phase], len(topology.devices)
    flops = [row_flops(config, p.length) for p in config.phases]
    kind = topology.devices[0].device_kind
    using, faster = in_training(config.model, shape.length, kind)
    result: dict[str, Any] = {
        "topology": topology.name,
        "chips": chips,
        "mesh": dict(found.mesh.shape),
        "phase": found.phase,
        "length": shape.length,
        "batch": shape.batch,
        "batch_per_chip": found.rows,
        "accumulate": shape.accumulate,
        "remat": config.model.remat,
        "attention": using,
        "attention_without_dropout": faster or using,
        "fits": found.fits,
        "hbm_bytes": topology.memory,
        "hbm_used_bytes": found.used,
        "state_bytes": found.state,
        "compile_seconds": found.seconds,
        "params": found.params,
        "flops_per_token": flops[found.phase] / shape.length,
        "largest": [],
        "relaid": [],
        "calls": {},
        "collectives": {},
        **dict.fromkeys(_LATER),
    }
    if found.program is None:
        return result
    kinds, interconnect = _collectives(found)
    result["collectives"] = kinds
    for name in ("largest", "relaid"):
        result[name] = [array._asdict() for array in getattr(found.program, name)]
    result["calls"] = found.program.calls
    result["traffic_bytes"] = found.program.traffic
    chip = topology.chip
    if chip is None or not found.fits:
        return result
    again = metrics.repeated_flops(config.model, shape.length)
    share = shape.batch / chips / chip.flops
    seconds = {
        "compute": share * (flops[found.phase] + again),
        "hbm": found.program.traffic / chip.memory_rate,
        "interconnect": interconnect,
    }
    bound = max(seconds, key=lambda name: seconds[name])
    mfu = share * flops[found.phase] / seconds[bound]
    starts = config.phase_starts()
    steps = [end - begin for begin, end in zip(starts, starts[1:], strict=False)]
    phases = (wanted or config).phases
    rows = [n * p.batch for n, p in zip(steps, phases, strict=True)]
    work = sum(n * each for n, each in zip(rows, flops, strict=True))
    hours = work / (chip.flops * mfu) / 3600
    return result | {
        "seconds": seconds,
        "step_seconds_roofline": seconds[bound],
        "bound": bound,
        "mfu_roofline": mfu,
        "tokens_per_second": shape.batch * shape.length / seconds[bound],
        "days": hours / chips / 24,
        "chip_hours": hours,
    }


def row_flops(config: Config, length: int) -> float:
    """Model FLOPs of pretraining on one full row of some tokens; see `train_flops`."""
    masked = masking.max_masked(config.objective, length)
    return metrics.train_flops(config.model, length, masked, config.objective)


def _collectives(found: Compiled) -> tuple[dict[str, dict[str, Any]], float]:
    """By kind, and the seconds of all of them one after the other."""
    assert found.program is not None
    devices = list(found.mesh.devices.flat)
    kinds: dict[str, dict[str, Any]] = defaultdict(
        lambda: {"count": 0, "bytes": 0, "elements": 0, "seconds": 0.0}
    )
    for one in found.program.collectives:
        group = [devices[number] for number in one.group] or devices
        total = kinds[one.kind]
        total["count"] += one.times
        total["bytes"] += one.times * one.bytes
        total["elements"] += one.times * one.elements
        if found.topology.chip is not None:
            turns = _TURNS.get(one.kind, lambda n: 1.0)(len(group))
            rate = found.topology.link_rate(group)
            total["seconds"] += one.times * one.bytes * turns / rate
    return dict(kinds), sum(kind["seconds"] for kind in kinds.values())
