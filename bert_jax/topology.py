"""Machines by name: devices to compile for, whether or not they are here.

JAX hands the compilers of TPUs and GPUs a description of the machine instead of the
machine (`jax.experimental.topologies`). `libtpu` and the CUDA plugin are all it takes.
"""

import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from bert_jax.chips import CHIPS, Chip, find
from bert_jax.errors import UserError

KNOWN = "v5e:4x4, v5e:16x16, v5p:4x4x4, v6e:16x16, h100:8, h200:8 or a100:8"
_HOST = 8  # GPUs of a machine, joined by NVLink

# What makes libtpu start where there is no TPU: no questions to a metadata server, no
# lock file against other processes, and no logs on the terminal or in /tmp.
_TPU_ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_LOG_DIR": "disabled",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}

# XLA's GpuTargetConfig as text: what cudaGetDeviceProperties tells of each GPU.
_GPU_TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: {core_memory}
  shared_memory_per_block_optin: {block_memory}
  core_count: {cores} fpus_per_core: {units}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: {rate} l2_cache_size: {cache} clock_rate_ghz: {clock}
  device_memory_size: {memory} cuda_compute_capability {{ major: {major} minor: 0 }}
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 13 minor: 0 }} device_description_str: "{name}"
"""
_HOPPER = {
    "core_memory": 233_472,
    "block_memory": 232_448,
    "cores": 132,
    "units": 128,
    "cache": 52_428_800,
    "clock": 1.98,
    "major": 9,
}
_AMPERE = {
    "core_memory": 167_936,
    "block_memory": 166_912,
    "cores": 108,
    "units": 64,
    "cache": 41_943_040,
    "clock": 1.41,
    "major": 8,
}
_GPUS = {
    "h100": _HOPPER | {"name": "NVIDIA H100 80GB HBM3"},
    "h200": _HOPPER | {"name": "NVIDIA H200"},
    "a100": _AMPERE | {"name": "NVIDIA A100-SXM4-80GB"},
}


class Topology(NamedTuple):
    """Some machines.

    Attributes:
      name: such as `v5e:4x4`; of the local devices their kind and number.
      devices: JAX's, real or described.
      chip: None where its ceilings are not known.
      memory: that programs may use on each. [bytes]
    """

    name: str
    devices: Sequence[Any]
    chip: Chip | None
    memory: int

    def link_rate(self, group: Sequence[Any]) -> float:
        """One-way bandwidth of a chip towards the others of its group.

        Args:
          group: devices that work together.

        Returns:
          [byte/s]: on TPUs of the links along all axes that the group extends over,
          two for each axis that wraps around.
        """
        chip = self.chip
        assert chip is not None
        if not chip.torus:
            hosts = {device.id // _HOST for device in group}
            return chip.link if len(hosts) == 1 else chip.network
        every = list(zip(*(device.coords for device in self.devices), strict=True))
        along = list(zip(*(device.coords for device in group), strict=True))
        links = 0
        for axis, whole in zip(along, every, strict=True):
            used, size = len(set(axis)), len(set(whole))
            if used > 1:
                wraps = used == size and size % chip.torus == 0
                links += 2 if wraps else 1
        return chip.link * max(links, 1)


def local() -> Topology:
    """The devices that JAX finds here."""
    devices = jax.devices()
    kind = devices[0].device_kind
    chip = find(kind)
    stats = devices[0].memory_stats() or {}
    memory = stats.get("bytes_limit", 0)
    if not memory:
        import psutil

        memory = psutil.virtual_memory().total // jax.local_device_count()
    return Topology(f"{kind}:{len(devices)}", devices, chip, memory)


def named(name: str) -> Topology:
    """Machines by their name, none of which need be here.

    Args:
      name: `v5e:4x4`, `v5p:2x2x1` (TPU version and slice) or `h100:8` (GPUs).

    Returns:
      The topology.

    Raises:
      UserError: unknown, impossible, or its compiler is not installed.
    """
    family, _, size = name.partition(":")
    if family in _GPUS and re.fullmatch(r"[1-9]\d*", size):
        return _gpus(name, family, int(size))
    if family in CHIPS and CHIPS[family].torus and re.fullmatch(r"\d+(x\d+)+", size):
        return _tpus(name, family)
    raise UserError(f"--topology={name}: unknown; such as {KNOWN}")


def _tpus(name: str, family: str) -> Topology:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology={name}: the compiler for TPUs is not installed; "
            "pip install 'bert-jax[aot-tpu]'"
        )
    for variable, value in _TPU_ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    try:
        found = topologies.get_topology_desc(topology_name=name, platform="tpu")
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        if "INVALID_ARGUMENT" not in reason:
            raise
        raise UserError(
            f"--topology={name}: no such slice ({reason}); such as {KNOWN}"
        ) from error
    chip = CHIPS[family]
    return Topology(name, found.devices, chip, chip.memory)


def _gpus(name: str, family: str, count: int) -> Topology:
    plugins = ("jax_cuda13_plugin", "jax_cuda12_plugin")
    if not any(importlib.util.find_spec(plugin) for plugin in plugins):
        raise UserError(
            f"--topology={name}: the compiler for GPUs is not installed; "
            "pip install 'bert-jax[aot-gpu]'"
        )
    hosts = math.ceil(count / _HOST)
    if hosts > 1 and count % _HOST:
        raise UserError(
            f"--topology={name}: up to {_HOST} GPUs, or a multiple of {_HOST}"
        )
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    chip = CHIPS[family]
    text = _GPU_TARGET.format(
        rate=int(chip.memory_rate), memory=chip.memory, **_GPUS[family]
    )
    found = topologies.get_topology_desc(
        topology_name=family,
        platform="cuda",
        target_config=text,
        topology=f"1x{hosts}x{count // hosts}",
    )
    share = float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.75"))
    return Topology(name, found.devices, chip, int(share * chip.memory))
