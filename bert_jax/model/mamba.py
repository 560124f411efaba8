"""A selective state space in both directions over rows of packed examples.

Axis letters beside those of `layers`: R direction, E expanded channel, M state of a
channel, K rank of the step size. I is a position inside a chunk, C a chunk. The scan
goes chunk by chunk through S sequences side by side: the pieces, one or more, of each
row in each direction. One axis, for XLA's CPU kernels take up to thirty times as long
for a sum beside an axis of one, which that of a single row would be.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32, UInt32

from bert_jax.config import Model
from bert_jax.model.directions import directions, goes_on
from bert_jax.model.layers import Dense, initializer
from bert_jax.model.products import linear, matmul_dtype, product
from bert_jax.sharding import by_rows_and_channels, device_kind

_CHUNK = 16  # [positions] whose states the backward pass computes again at once
_PIECE = 512  # [positions] that a scan takes one after another, but on a CPU
_STEPS = 1e-3, 0.1  # initial step sizes

# Of one channel's filter: a fan-in of its few taps, not of the features.
_FILTER = nn.initializers.variance_scaling(
    1 / 3, "fan_in", "uniform", in_axis=1, out_axis=2, batch_axis=0
)


class Mamba(nn.Module):
    """Mixes each example by a selective state space, forwards and backwards.

    Both directions share the maps in and out and have everything else to themselves;
    their outputs are added. Neither state nor convolution crosses from one example to
    another, so packed ones give what each would give alone.

    Attributes:
      config: the model's sizes and numerics.
      ssm_state: numbers that a channel remembers.
      ssm_expand: channels, over the hidden features.
      ssm_conv: taps of the convolution before the scan. [positions]

    Gu and Dao 2023, sections 3.2 to 3.4 and 3.6; the directions as in Zhu et al. 2024
    (Vision Mamba), "Vim block", and Schiff et al. 2024 (Caduceus), "BiMamba". As
    everywhere here, the maps in and out have biases.
    """

    config: Model
    ssm_state: int = 16
    ssm_expand: int = 2
    ssm_conv: int = 4

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L D"],
        example: Int32[Array, "B L"],
        words: UInt32[Array, "sites 2"] | None,
    ) -> Float[Array, "B L D"]:
        """Mixes the positions of each example; no dropout site.

        Args:
          x: floating, which linear maps and activations are computed in; the state
            and what makes it decay are float32.
          example: number of the example at each position; 0 is padding. The positions
            of an example lie side by side.
          words: not used.

        Returns:
          As x; zeros at padding.
        """
        del words
        config, state = self.config, self.ssm_state
        channels = self.ssm_expand * config.hidden
        rank = -(-config.hidden // 16)

        def param(name: str, init, *shape: int) -> Array:
            return self.param(name, init, (2, *shape), jnp.float32)

        y = Dense(config, (2, channels), name="in")(jnp.swapaxes(x, 0, 1))
        number = directions(example.T)
        filtered = _convolve(
            directions(y[:, :, 0]),
            number,
            param("conv", _FILTER, self.ssm_conv, channels),
            param("conv_bias", nn.initializers.zeros, channels),
        )
        small, dtype = initializer(config), matmul_dtype(config)
        select = param("select", small, channels, rank + 2 * state)
        low, into, out = jnp.split(
            _product(filtered, select, dtype), (rank, rank + state), -1
        )
        step = _product(low, param("step", small, rank, channels), dtype)
        step = step.astype(jnp.float32)
        step += _at_all(param("step_bias", _step_bias, channels), step)
        scanned = by_rows_and_channels(selective_scan)(
            filtered,
            jax.nn.softplus(step),
            into,
            out,
            -jnp.exp(param("rate_log", _rate_log, state, channels)),
            goes_on(number),
        )
        skip = param("skip", nn.initializers.ones, channels)
        scanned += _scale(skip, filtered)
        mixed = (scanned[:, 0] + scanned[::-1, 1]) * nn.silu(y[:, :, 1])
        y = jnp.swapaxes(Dense(config, (config.hidden,), name="out")(mixed), 0, 1)
        return jnp.where((example > 0)[:, :, None], y, 0)


def _product(x: Float[Array, "L R B _"], kernel: Float[Array, "R _ _"], dtype) -> Array:
    """A linear map of each direction; R at its place would cost transpositions."""
    each: list[Any] = [linear(1, dtype, x[:, i], kernel[i]) for i in range(len(kernel))]
    return jnp.stack(each, 1)


def _at_all(
    values: Float[Array, "R E"], x: Float[Array, "L R B E"]
) -> Float[Array, "L R B E"]:
    """The same at all positions of x, in the dtype of x."""
    return _repeated(x.shape, x.dtype, values)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _repeated(shape, dtype, values):
    row = jnp.broadcast_to(values.astype(dtype)[:, None], shape[1:]).reshape(-1)
    few = jnp.broadcast_to(row, (-(-shape[0] // _CHUNK), row.size))
    few = jax.lax.optimization_barrier(few)
    return jnp.repeat(few, _CHUNK, 0)[: shape[0]].reshape(shape)


def _repeated_forward(shape, dtype, values):
    return _repeated(shape, dtype, values), None


def _repeated_backward(shape, dtype, _, gradient):
    """Added up in float32, chunk by chunk first and over positions alone.

    XLA's CPU kernels take many times as long for one long sum, and for one over an
    axis of a single row besides.
    """
    few = shape[0], -(-shape[0] // _CHUNK), math.prod(shape[1:])
    rows = gradient.astype(jnp.float32).reshape(shape[0], -1)
    rows = jnp.pad(rows, ((0, few[1] * _CHUNK - shape[0]), (0, 0)))
    some = jax.lax.optimization_barrier(rows.reshape(few[1], _CHUNK, -1).sum(1))
    return (some.sum(0).reshape(shape[1:]).sum(1),)


_repeated.defvjp(_repeated_forward, _repeated_backward)


# Cheaper to redo than to store: the same at all positions.
@functools.partial(jax.checkpoint, prevent_cse=False)
def _scale(
    values: Float[Array, "R E"], x: Float[Array, "L R B E"]
) -> Float[Array, "L R B E"]:
    return _at_all(values, x) * x


# Cheaper to redo than to store: one shifted copy for every tap.
@functools.partial(jax.checkpoint, prevent_cse=False)
def _convolve(
    x: Float[Array, "L R B E"],
    number: Int32[Array, "L R B"],
    kernel: Float[Array, "R W E"],
    bias: Float[Array, "R E"],
) -> Float[Array, "L R B E"]:
    """SiLU of a causal filter of each channel, which ends at an example's start."""
    taps = [_at_all(kernel[:, back], x) for back in range(kernel.shape[1])]
    y = taps[0] * x + _at_all(bias, x)
    for back in range(1, min(len(taps), len(x))):
        same = number[back:] == number[:-back]
        earlier = jnp.where(same[..., None], x[:-back], 0)
        earlier = jnp.pad(earlier, ((back, 0), (0, 0), (0, 0), (0, 0)))
        y += taps[back] * earlier
    return nn.silu(y)


def _step_bias(rng: jax.Array, shape: tuple[int, ...], dtype: type) -> jax.Array:
    """What softplus turns into log-uniform step sizes."""
    low, high = map(math.log, _STEPS)
    step = jnp.exp(jax.random.uniform(rng, shape, dtype, low, high))
    return step + jnp.log(-jnp.expm1(-step))


def _rate_log(rng: jax.Array, shape: tuple[int, ...], dtype: type) -> jax.Array:
    """Rates of 1 to M in every channel: S4D-real, Gu et al. 2022 (S4D), section 4."""
    del rng
    rates = jnp.arange(1, shape[1] + 1, dtype=dtype)
    return jnp.broadcast_to(jnp.log(rates)[None, :, None], shape)


@jax.custom_vjp
def selective_scan(
    x: Float[Array, "L R B E"],
    step: Float[Array, "L R B E"],
    into: Float[Array, "L R B M"],
    out: Float[Array, "L R B M"],
    rate: Float[Array, "R M E"],
    same: Bool[Array, "L R B"],
) -> Float[Array, "L R B E"]:
    """y = out . h, of h = exp(step * rate) * (h before) + step * x * into.

    The states of all positions are never in memory at once: the forward pass keeps
    one in `_CHUNK`, from which the backward pass computes the others again.

    Args:
      x: floating, in the order in which each direction reads it.
      step: float32, the step size of each channel.
      into: floating, how the state takes x up.
      out: floating, how the state is read.
      rate: float32, negative.
      same: False where the state before is forgotten.

    Returns:
      x.dtype; computed in float32.

    Gu and Dao 2023, algorithm 2 with the discretisation of its own code: exact for
    the decay, Euler's for the input.
    """
    return _forward(x, step, into, out, rate, same)[0]


def _forward(x, step, into, out, rate, same):
    pieces = _pieces(len(x))
    cut = tuple(_cut(a, pieces) for a in (x, step, into, out, same))
    wide = _spread(rate, cut)

    def position(state, now):
        state = _next(wide, state, now)
        return state, (state * _wide(now[3])).sum(1).astype(x.dtype)

    def chunk(state, now):
        last, y = jax.lax.scan(position, state, now)
        return last, (state, y)

    start = _ends(functools.partial(_next, wide), wide, cut, pieces)
    _, (states, y) = jax.lax.scan(chunk, start, cut)
    return _join(y, x.shape, pieces), (x, step, into, out, rate, same, states)


def _backward(kept, gradient):
    """Autodiff would keep several arrays as large as all states of a chunk."""
    x, step, into, out, rate, same, states = kept
    pieces = _pieces(len(x))
    cut = tuple(_cut(a, pieces) for a in (x, step, into, out, same, gradient))
    wide = _spread(rate, cut)

    def over_channels(x, y):
        return product("SME,SE->SM", x, y, jnp.float32, jnp.float32)

    def again(state, now):
        return _next(wide, state, now), state

    def here(later, out, gradient):
        return later + _wide(out) * gradient.astype(jnp.float32)[:, None]

    def position(carried, now):
        later, rate_gradient = carried
        state, (x, step, into, out, same, gradient) = now
        state_gradient = here(later, out, gradient)
        decay, taken = _decay(wide, step, same), step * x
        decayed = decay * state
        exponent_gradient = state_gradient * decayed
        taken_gradient = (state_gradient * _wide(into)).sum(1)
        step_gradient = (exponent_gradient * wide).sum(1) + x * taken_gradient
        rate_gradient += exponent_gradient * step[:, None]
        into_gradient = over_channels(state_gradient, taken)
        state = decayed + taken[:, None] * _wide(into)
        gradient = gradient.astype(jnp.float32)
        found = (
            (step * taken_gradient).astype(x.dtype),
            step_gradient,
            into_gradient.astype(into.dtype),
            over_channels(state, gradient).astype(out.dtype),
        )
        return (decay * state_gradient, rate_gradient), found

    def chunk(carried, now):
        state, now = now
        _, before = jax.lax.scan(again, state, now[:5])
        return jax.lax.scan(position, carried, (before, now), reverse=True)

    def before(later, now):
        _, step, _, out, same, gradient = now
        return _decay(wide, step, same) * here(later, out, gradient)

    later = _ends(before, wide, cut, pieces, reverse=True)
    carried = later, jnp.zeros_like(wide)
    (_, rate_gradient), found = jax.lax.scan(
        chunk, carried, (states, cut), reverse=True
    )
    rate_gradient = rate_gradient.reshape(len(rate), -1, *rate.shape[1:]).sum(1)
    shapes = (a.shape for a in (x, step, into, out))
    joined = (_join(y, s, pieces) for y, s in zip(found, shapes, strict=True))
    return *joined, rate_gradient, None


selective_scan.defvjp(_forward, _backward)


def _next(rate, state, now):
    x, step, into, _, same = now
    return _decay(rate, step, same) * state + (step * x)[:, None] * _wide(into)


def _decay(rate, step, same):
    """[S, M, E], which multiplies the state before."""
    return jnp.exp(step[:, None] * rate) * same[:, None, None]


def _wide(x):
    return x.astype(jnp.float32)[..., None]


def _ends(turn, rate, cut, pieces, reverse=False):
    """What each piece of a row is entered with from the one before, [S, M, E].

    A piece hands on what it makes of zeros and, by the product of its decays, a part
    of what it is entered with. These two of every piece are found side by side.

    Args:
      turn: of a state and the values of a position, to the next state.
      rate: from `_spread`.
      cut: values from `_cut`, of which the second is `step` and the fifth `same`.
      pieces: in a row.
      reverse: the pieces are entered from their ends.
    """
    step, same, zeros = cut[1], cut[4], jnp.zeros_like(rate)
    if pieces == 1:
        return zeros
    positions = tuple(a.reshape(-1, *a.shape[2:]) for a in cut)
    added, _ = jax.lax.scan(
        lambda state, now: (turn(state, now), None), zeros, positions, reverse=reverse
    )
    passed = _decay(rate, step.sum((0, 1)), same.all((0, 1)))
    added, passed = (
        jnp.moveaxis(a.reshape(-1, pieces, *a.shape[1:]), 1, 0) for a in (added, passed)
    )
    _, entered = jax.lax.scan(
        lambda state, now: (now[1] * state + now[0], state),
        jnp.zeros_like(added[0]),
        (added, passed),
        reverse=reverse,
    )
    return jnp.moveaxis(entered, 0, 1).reshape(zeros.shape)


def _pieces(length):
    """Into how many a row is cut, to have work side by side.

    Their price is `_ends`: each pass goes through all positions once more. On a CPU the
    states of a single row are work enough.
    """
    return 1 if device_kind() == "cpu" else -(-length // _PIECE)


def _spread(rate, cut):
    """[R, M, E] -> [S, M, E]."""
    return jnp.repeat(rate, cut[0].shape[2] // len(rate), 0)


def _cut(x, pieces):
    """[L, R, B, ...] -> [C, I, S, ...], with zeros after the end of the row."""
    length, directions, rows, *rest = x.shape
    chunks = -(-length // (pieces * _CHUNK))
    pad = pieces * chunks * _CHUNK - length
    x = jnp.pad(x, ((0, pad), *((0, 0) for _ in x.shape[1:])))
    if pieces > 1:  # else XLA's CPU compiler copies what has its place already
        x = jnp.moveaxis(x.reshape(pieces, -1, *x.shape[1:]), 0, 3)
    return x.reshape(chunks, _CHUNK, directions * rows * pieces, *rest)


def _join(y, shape, pieces):
    """Undoes `_cut` of an array of that shape."""
    length, directions, rows, *rest = shape
    y = y.reshape(-1, directions, rows, pieces, *rest)
    if pieces > 1:
        y = jnp.moveaxis(y, 3, 0)
    return y.reshape(-1, directions, rows, *rest)[:length]
