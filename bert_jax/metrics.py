"""Adding and dividing (sum, weight) pairs; model FLOPs and device peaks."""

from collections.abc import Mapping
from typing import Any

from bert_jax import chips
from bert_jax.config import Model


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


def train_flops(
    model: Model, length: int, masked: int, boundary: bool = False
) -> float:
    """Model FLOPs of training on one row: the forward pass three times.

    Counts matrix products only, with the real vocabulary; no rematerialisation,
    no embedding lookup, no pooler.

    Args:
      model: the sizes.
      length: positions of a row. [tokens]
      masked: positions that the masked-token head works on. [tokens a row]
      boundary: the span boundary objective predicts them once more.

    Returns:
      [FLOP a row].
    """
    hidden, layers = model.hidden, model.layers
    dense = layers * (4 * hidden**2 + 2 * hidden * model.mlp)
    scores = 2 * layers * hidden * length
    head = hidden * model.vocab_size + hidden**2
    head += boundary * (head + 3 * hidden**2)
    return 6.0 * (length * (dense + scores) + masked * head)


def repeated_flops(model: Model, length: int) -> float:
    """FLOPs that rematerialisation adds to `train_flops`.

    Args:
      model: `remat` decides: `full` repeats the forward pass of the layers, `dots`
        only the products inside attention.
      length: positions of a row. [tokens]

    Returns:
      [FLOP a row].
    """
    hidden = model.hidden
    scores = 2 * hidden * length
    dense = 4 * hidden**2 + 2 * hidden * model.mlp
    again = {"none": 0, "dots": scores, "full": scores + dense}[model.remat]
    return 2.0 * length * model.layers * again


def device_peak(kind: str) -> float | None:
    """Peak dense bfloat16 rate of a device, in FLOP/s.

    Args:
      kind: `jax.Device.device_kind`, for example "NVIDIA H100 80GB HBM3".

    Returns:
      The vendor's figure; None for a CPU or an unknown device.
    """
    chip = chips.find(kind)
    return chip and chip.flops
