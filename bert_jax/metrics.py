"""Adding and dividing (sum, weight) pairs; model FLOPs and device peaks."""

import re
from collections.abc import Mapping
from typing import Any

from bert_jax.config import Model

_PEAKS = (  # dense bfloat16 (V100: float16) [FLOP/s], by vendors' data sheets
    (r"\bG?H[12]00\b", 989e12),
    (r"\bA100\b", 312e12),
    (r"\bV100\b", 125e12),
    (r"^TPU v3\b", 123e12),  # a chip, which JAX shows as two devices
    (r"^TPU v4$", 275e12),
    (r"^TPU v5( lite|e)", 197e12),
    (r"^TPU v5p?$", 459e12),
    (r"^TPU v6( lite|e)", 918e12),
)


def add(a: Mapping[str, tuple], b: Mapping[str, tuple]) -> dict[str, tuple]:
    """The pairs of two batches taken together.

    Args:
      a: name -> (sum, weight), numbers or arrays.
      b: the same names; an empty mapping counts as zeros, and so does an empty a.

    Returns:
      name -> (sum, weight).
    """
    if not a or not b:
        return dict(a or b)
    if a.keys() != b.keys():
        raise ValueError(f"pairs of different names: {sorted(a)} and {sorted(b)}")
    return {name: (a[name][0] + b[name][0], a[name][1] + b[name][1]) for name in a}


def divide(pairs: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
    """Each pair's ratio, sum / weight; a pair without weight gives 0.

    Works on traced arrays as on numbers.
    """
    # The weight of an empty pair is 0 and so is its sum: 0 / (0 + 1).
    return {name: total / (w + (w == 0)) for name, (total, w) in pairs.items()}


def train_flops(model: Model, length: int, masked: int) -> float:
    """Model FLOPs of training on one row: the forward pass three times.

    Counts matrix products only, with the real vocabulary; no rematerialisation,
    no embedding lookup, no pooler.

    Args:
      model: the sizes.
      length: positions of a row. [tokens]
      masked: positions that the masked-token head works on. [tokens a row]

    Returns:
      [FLOP a row].
    """
    hidden, layers = model.hidden, model.layers
    dense = layers * (4 * hidden**2 + 2 * hidden * model.mlp)
    scores = 2 * layers * hidden * length
    head = hidden * model.vocab_size + hidden**2
    return 6.0 * (length * (dense + scores) + masked * head)


def device_peak(kind: str) -> float | None:
    """Peak dense bfloat16 rate of a device, in FLOP/s.

    Args:
      kind: `jax.Device.device_kind`, for example "NVIDIA H100 80GB HBM3".

    Returns:
      The vendor's figure; None for a CPU or an unknown device.
    """
    return next((peak for word, peak in _PEAKS if re.search(word, kind)), None)
