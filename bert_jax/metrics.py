"""Adding and dividing (sum, weight) pairs; model FLOPs and device peaks."""

from collections.abc import Mapping
from typing import Any

from bert_jax import chips
from bert_jax.config import Model, Objective


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
    model: Model,
    length: int,
    masked: int,
    objective: Objective | None = None,
    teacher: Model | None = None,
) -> float:
    """Model FLOPs of training on one row: the forward pass three times.

    Counts matrix products only (of Mamba also its scan), with the real vocabulary; no
    rematerialisation, no embedding lookup, no pooler. Not exact where fine-tuning has
    an LSTM on top, which is not counted, and where parameters are frozen: layers below
    the first one that learns cost a third, and what is frozen above two thirds.

    Args:
      model: the sizes.
      length: positions of a row. [tokens]
      masked: positions that the masked-token head works on. [tokens a row]
      objective: of pretraining, what else is computed: span boundaries predict these
        once more, and replaced tokens have a generator, which alone has that head.
      teacher: its sizes, where one is distilled: it has a forward pass and no other.

    Returns:
      [FLOP a row].
    """
    if teacher:
        taught = train_flops(teacher, length, masked, objective) / 3
        return taught + train_flops(model, length, masked, objective)
    hidden, embedding = model.hidden, model.embedding_width
    layers = model.layers * (_mixed(model, length) + _forward(model))
    layers += hidden * embedding * (embedding != hidden)
    if objective and objective.kind == "rtd":
        small = model.narrowed(objective.generator_size)
        generator = train_flops(small, length, masked)
        return generator + 6.0 * length * (layers + hidden**2 + hidden)
    head = embedding * (model.vocab_size + hidden)
    if objective and objective.span_boundary:
        head += head + 3 * hidden**2
    return 6.0 * (length * layers + masked * head)


def _forward(model: Model) -> float:
    """Multiplications of one layer's feed-forward at a position."""
    return (2 if model.feed_forward == "gelu" else 3) * model.hidden * model.mlp


def _mixed(model: Model, length: int) -> float:
    """Multiplications of a layer's mixer at a position, the mean over the layers."""
    if model.mixer.endswith("attention"):
        return 4 * model.hidden**2 + 2 * model.hidden * _seen(model, length)
    flops = {"mamba": mamba_flops, "lstm": lstm_flops}[model.mixer](model.hidden)
    return flops / 2


def _seen(model: Model, length: int) -> float:
    """Positions that one attends to, the mean over the layers; causal ones in full."""
    if not model.window:
        return length
    wide = -(-model.layers // model.global_every) / model.layers
    return wide * length + (1 - wide) * min(length, model.window + 1)


def repeated_flops(model: Model, length: int) -> float:
    """FLOPs that rematerialisation adds to `train_flops`.

    Args:
      model: `remat` decides: `full` repeats the forward pass of the layers, `dots`
        only the products inside attention, or all of another mixer's.
      length: positions of a row. [tokens]

    Returns:
      [FLOP a row].
    """
    mixed, dense = _mixed(model, length), _forward(model)
    attends = model.mixer.endswith("attention")
    scores = 2 * model.hidden * _seen(model, length) if attends else mixed
    again = {"none": 0, "dots": scores, "full": mixed + dense}[model.remat]
    return 2.0 * length * model.layers * again


def mamba_flops(hidden: int, state: int = 16, expand: int = 2, taps: int = 4) -> float:
    """FLOPs of the forward pass of one `model.mamba.Mamba` at a position.

    With E = expand * hidden channels, M = state and K = hidden / 16, rounded up: the
    maps in and out are products of hidden * 2E and E * hidden. In each of the two
    directions the convolution is one of E * taps, those that select E * (K + 2M) and
    K * E, and each of the E * M states takes seven operations: step * rate, its
    exponential, times the state, the input * into, their sum, and times `out`, added.
    No activation and nothing else that is done once for a channel is counted.

    Args:
      hidden: features that are mixed.
      state: numbers that a channel remembers.
      expand: channels over hidden.
      taps: of the convolution. [positions]

    Returns:
      [FLOP a position], which does not depend on the length of the row.
    """
    channels, rank = expand * hidden, -(-hidden // 16)
    direction = channels * (2 * (taps + 2 * rank + 2 * state) + 7 * state)
    return 2.0 * (3 * hidden * channels + direction)


def lstm_flops(hidden: int) -> float:
    """FLOPs of the forward pass of one `model.lstm.LSTM` at a position.

    Four gates of `hidden` units in two directions, each a product with the input and
    one with the state, 2 * 4 * 2 * hidden^2 multiplications; then 2 * hidden^2 of the
    map of both directions to `hidden`. As `train_flops`, products only.

    Args:
      hidden: features that are mixed.

    Returns:
      [FLOP a position], which does not depend on the length of the row.
    """
    return 36.0 * hidden**2


def device_peak(kind: str) -> float | None:
    """Peak dense bfloat16 rate of a device, in FLOP/s.

    Args:
      kind: `jax.Device.device_kind`, for example "NVIDIA H100 80GB HBM3".

    Returns:
      The vendor's figure; None for a CPU or an unknown device.
    """
    chip = chips.find(kind)
    return chip and chip.flops
