"""Start-up of a process, before JAX opens its devices."""

import os

import jax


def use_all_cores() -> None:
    """Shows a CPU-only process as many devices as it has cores, in powers of two.

    XLA runs one device of a CPU mostly on one core; with several, data parallelism
    uses them all. Accelerators are not affected, and a number of devices that the
    environment asks for is left alone.
    """
    asked = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if asked or "JAX_NUM_CPU_DEVICES" in os.environ:
        return
    fewer = hasattr(os, "sched_getaffinity")  # this process may not use them all
    cores = len(os.sched_getaffinity(0)) if fewer else os.cpu_count() or 1
    jax.config.update("jax_num_cpu_devices", 1 << (cores.bit_length() - 1))
