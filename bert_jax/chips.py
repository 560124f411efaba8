"""What accelerators can do, by their vendors' data sheets."""

import re
from typing import NamedTuple


class Chip(NamedTuple):
    """The ceilings of one chip; 0 is unknown here, as `plan` does not offer it.

    Attributes:
      kind: regex on `jax.Device.device_kind`.
      flops: dense bfloat16, of a V100 float16. [FLOP/s]
      memory: of a TPU what its compiler gives to programs. [bytes]
      memory_rate: of that memory. [byte/s]
      link: one way; of one link of a TPU, of all NVLinks of a GPU. [byte/s]
      torus: size from which an axis of a TPU slice wraps around. [chips]
      network: one way, between machines of 8 GPUs. [byte/s]
    """

    kind: str
    flops: float
    memory: int = 0
    memory_rate: float = 0.0
    link: float = 0.0
    torus: int = 0
    network: float = 0.0


_GiB = 2**30

# Sources: cloud.google.com/tpu/docs (system architecture of each version), the
# "SXM" columns of NVIDIA's data sheets, DGX user guides for the network.
CHIPS = {
    "h100": Chip(r"\bG?H100\b", 989e12, 84_978_434_048, 3.352e12, 450e9, network=50e9),
    "h200": Chip(r"\bG?H200\b", 989e12, 150_109_880_320, 4.8e12, 450e9, network=50e9),
    "a100": Chip(r"\bA100\b", 312e12, 84_974_239_744, 2.039e12, 300e9, network=25e9),
    "v100": Chip(r"\bV100\b", 125e12),
    "v3": Chip(r"^TPU v3\b", 123e12),  # a chip, which JAX shows as two devices
    "v4": Chip(r"^TPU v4$", 275e12),
    "v5e": Chip(r"^TPU v5( lite|e)", 197e12, int(15.75 * _GiB), 819e9, 50e9, torus=16),
    "v5p": Chip(r"^TPU v5p?$", 459e12, int(95.73 * _GiB), 2.765e12, 100e9, torus=4),
    "v6e": Chip(
        r"^TPU v6( lite|e)", 918e12, int(31.24 * _GiB), 1.64e12, 100e9, torus=16
    ),
}


def find(kind: str) -> Chip | None:
    """The chip of a `jax.Device.device_kind`, or None."""
    return next((chip for chip in CHIPS.values() if re.search(chip.kind, kind)), None)
