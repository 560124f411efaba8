"""How fast the training step is on the devices that are here."""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from bert_jax import metrics, plan, sharding
from bert_jax.config import Config, Model
from bert_jax.data import device
from bert_jax.data.examples import Batch
from bert_jax.model.layers import matmul_dtype
from bert_jax.step import TrainState


class Ready(NamedTuple):
    """A compiled training step.

    Attributes:
      config: that it was compiled from.
      phase: index into `config.phases`.
      mesh: of all devices.
      start: makes the state before the first step.
      step: (state, batch) -> (state, metrics); consumes the state.
      compile_seconds: of tracing and compiling.
      memory: of one device: inputs, results, temporaries, program. [bytes]
    """

    config: Config
    phase: int
    mesh: jax.sharding.Mesh
    start: Callable[[], TrainState]
    step: Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]
    compile_seconds: float
    memory: int

    def place(self, batch: Batch) -> dict[str, jax.Array]:
        """The batch on the devices."""
        return device.to_device(batch, sharding.batch_sharding(self.mesh))


def compile_step(config: Config, phase: int) -> Ready:
    """Compiles the training step of a phase for all devices, and runs nothing.

    Args:
      config: of a pretraining run.
      phase: index into `config.phases`.

    Returns:
      The step.

    Raises:
      UserError: config and devices do not fit together.
      jax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED where the compiler sees that the
        step does not fit.
    """
    began = time.perf_counter()
    found = plan.lower_step(config, phase, jax.devices())
    compiled = found.lowered.compile()
    seconds = time.perf_counter() - began
    used = plan.used_bytes(compiled)
    return Ready(config, phase, found.mesh, found.start, compiled, seconds, used)


def measure(
    ready: Ready, batch: Batch, seconds: float, profile: str | None = None
) -> list[float]:
    """Times steps on one batch that stays on the devices, at least three.

    Args:
      ready: from `compile_step`.
      batch: of its phase.
      seconds: to measure for, without the first step.
      profile: folder for a trace of three more steps, that `tensorboard --logdir`
        opens with its profile plugin.

    Returns:
      Seconds of each step but the first, and without those of the trace.
    """
    placed, state, times = ready.place(batch), ready.start(), []
    while len(times) < 4 or sum(times[1:]) < seconds:
        began = time.perf_counter()
        state, told = ready.step(state, placed)
        jax.block_until_ready((state, told))
        times.append(time.perf_counter() - began)
    if profile:
        with jax.profiler.trace(profile):
            for number in range(3):
                with jax.profiler.StepTraceAnnotation("train", step_num=number):
                    state, told = ready.step(state, placed)
                    jax.block_until_ready((state, told))
    return times[1:]


def attempt(
    config: Config, phase: int, read: Callable[[Config], Batch], seconds: float
) -> dict[str, Any]:
    """Compiles a step and measures it, if it fits.

    Args:
      config: of a pretraining run.
      phase: index into `config.phases`.
      read: makes a batch of the phase; called only if the step fits.
      seconds: to measure for.

    Returns:
      `report` with `fits` True; else `fits` False and `peak_memory_bytes`, None where
      the compiler does not say.

    Raises:
      UserError: config and devices do not fit together.
    """
    used = None
    try:
        ready = compile_step(config, phase)
        used = ready.memory
        if used <= free_memory():
            batch = read(config)
            times = measure(ready, batch, seconds)
            return {"fits": True, **report(ready, batch, times)}
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
    return {"fits": False, "peak_memory_bytes": used}


def free_memory() -> int:
    """What a program may use on each device. [bytes]"""
    here = jax.local_devices()
    stats = here[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    import psutil

    return psutil.virtual_memory().available // len(here)


def report(ready: Ready, batch: Batch, times: list[float]) -> dict[str, Any]:
    """The figures of some steps, over all devices, as JSON takes them.

    Args:
      ready: the step.
      batch: that it ran on; positions of no example are padding.
      times: from `measure`. [s]

    Returns:
      Seconds, tokens and model FLOPs a second of the median step; `mfu` is None where
      the peak of the devices is not known.
    """
    median = statistics.median(times)
    padded, useful = batch["example"].size, int(np.count_nonzero(batch["example"]))
    flops = useful * token_flops(ready.config, ready.phase) / median
    peak = metrics.device_peak(jax.devices()[0].device_kind)
    return {
        "seconds_median": median,
        "seconds_min": min(times),
        "seconds_max": max(times),
        "useful_tokens_per_second": useful / median,
        "padded_tokens_per_second": padded / median,
        "model_flops_per_second": flops,
        "mfu": flops / (peak * jax.device_count()) if peak else None,
        "peak_memory_bytes": ready.memory,
        "compile_seconds": ready.compile_seconds,
    }


def token_flops(config: Config, phase: int) -> float:
    """Model FLOPs of training on one token of a full row; see `train_flops`."""
    length = config.phases[phase].length
    return plan.row_flops(config, length) / length


def matmul_flops(model: Model) -> float:
    """Rate of a large matrix product on all devices at once. [FLOP/s]

    Every device has rows of its own, as in a training step. The devices of a CPU
    share its cores, and so one product.

    Args:
      model: says the dtypes of the factors and of the result; products of float32 are
        as exact as the platform's default, TF32 on GPUs.
    """
    dtype = matmul_dtype(model)
    count = jax.device_count()
    on_cpu = jax.default_backend() == "cpu"
    size, turns = (2048, 1) if on_cpu else (8192, 10)
    rows = -(-size // count) * count if on_cpu else size * count
    mesh = jax.make_mesh((count,), ("rows",), axis_types=(AxisType.Auto,))
    # Not ones: what a GPU draws, and so its clock, depends on the numbers.
    make = jax.jit(
        lambda rows: jax.random.normal(jax.random.key(0), (rows, size), dtype),
        static_argnums=0,
        out_shardings=NamedSharding(mesh, PartitionSpec()),
    )
    cut = NamedSharding(mesh, PartitionSpec("rows"))
    a, b = jax.device_put(make(rows), cut), make(size)
    product = jax.jit(
        functools.partial(jnp.matmul, preferred_element_type=model.dtype),
        out_shardings=cut,
    )
    product(a, b).block_until_ready()
    times = []
    for _ in range(5):
        began = time.perf_counter()
        jax.block_until_ready([product(a, b) for _ in range(turns)])
        times.append((time.perf_counter() - began) / turns)
    return 2 * rows * size**2 / statistics.median(times)
