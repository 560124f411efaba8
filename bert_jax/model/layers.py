"""Dense, norms, activations and dropout, as cheap as they can be written in XLA.

Axis letters, here and everywhere: B batch, L position, P masked position,
K packed example, D hidden, E embedding, H head, h features of a head, F feed-forward,
V vocabulary, S segment, N layer. T is the position attended to.
"""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, UInt32

from bert_jax.config import Model
from bert_jax.model.products import add_bias, linear, matmul_dtype

Words = UInt32[Array, "*own 2"]


def initializer(config: Model) -> jax.nn.initializers.Initializer:
    """Truncated normal, cut at two deviations and not rescaled, as TensorFlow's."""
    return jax.nn.initializers.truncated_normal(config.init_std)


class Dense(nn.Module):
    """A linear map with bias from the last `inputs` axes onto the axes `outputs`.

    Attributes:
      config: the model's sizes and numerics.
      outputs: sizes of the axes that replace the contracted ones.
      inputs: how many trailing axes of the argument are contracted.
    """

    config: Model
    outputs: tuple[int, ...]
    inputs: int = 1

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "..."],
        activation: str = "",
        gate: Float[Array, "..."] | None = None,
    ) -> Float[Array, "..."]:
        """Maps x in its own dtype.

        Args:
          x: floating.
          activation: of `activate`, which x goes through first; "" is none. The
            backward pass keeps x and works it out again: the result would be the
            largest array of a layer, beside another one of its size.
          gate: goes through the activation in place of x, then is multiplied with x.
        """
        shape = (*x.shape[x.ndim - self.inputs :], *self.outputs)
        kernel = self.param("kernel", initializer(self.config), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, self.outputs, jnp.float32)
        dtype = matmul_dtype(self.config)

        def product(x: Array, kernel: Array, gate: Array | None) -> Array:
            if gate is not None:
                x *= activate(gate, activation)
            elif activation:
                x = activate(x, activation)
            return linear(self.inputs, dtype, x, kernel)

        if activation:
            # A loop's body is compiled once, so nothing merges it with its repetition.
            once = self.config.scan
            product = jax.checkpoint(product, prevent_cse=not once)
        y = product(x, kernel, gate)
        return add_bias(y, bias)


class Norm(nn.Module):
    """LayerNorm of x, or of x + residual, with float32 statistics.

    Where `config.norm` is `rms`, RMSNorm: the mean is neither subtracted nor learned.
    Returns an array of the computation's dtype.

    Ba et al. 2016, section 3; Zhang and Sennrich 2019, section 4.
    """

    config: Model

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*batch D"],
        residual: Float[Array, "*batch D"] | None = None,
    ) -> Float[Array, "*batch D"]:
        """Normalises the last axis."""
        shape = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        bias = None
        if self.config.norm != "rms":
            bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        terms = (x,) if residual is None else (x, residual)
        dtype, epsilon = jnp.dtype(self.config.dtype), self.config.norm_epsilon
        return _normalize(dtype, epsilon, terms, scale, bias)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _normalize(dtype, epsilon, terms, scale, bias):
    return _normalize_forward(dtype, epsilon, terms, scale, bias)[0]


def _normalize_forward(dtype, epsilon, terms, scale, bias):
    x = functools.reduce(lax.add, (term.astype(jnp.float32) for term in terms))
    mean = None if bias is None else x.mean(-1, keepdims=True)
    x = x if mean is None else x - mean
    power = lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + epsilon)
    rows = range(x.ndim - 1)
    y = x * power * lax.expand_dims(scale, rows)
    y = y if bias is None else y + lax.expand_dims(bias, rows)
    return y.astype(dtype), (terms, scale, mean, power)


def _normalize_backward(dtype, epsilon, kept, gradient):
    """As autodiff, but of the forward pass it keeps the terms and two numbers a row."""
    terms, scale, mean, power = kept
    x = functools.reduce(lax.add, (term.astype(jnp.float32) for term in terms))
    x = x if mean is None else x - mean
    normal, gradient = x * power, gradient.astype(jnp.float32)
    rows = tuple(range(x.ndim - 1))
    inner = gradient * lax.expand_dims(scale, rows)
    along = (inner * normal).mean(-1, keepdims=True)
    of_x, of_scale = inner - normal * along, (gradient * normal).sum(rows)
    of_bias = None if mean is None else gradient.sum(rows)
    of_x = (of_x if mean is None else of_x - inner.mean(-1, keepdims=True)) * power
    return tuple(of_x.astype(term.dtype) for term in terms), of_scale, of_bias


_normalize.defvjp(_normalize_forward, _normalize_backward)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu_tanh": jax.nn.gelu,  # of the original BERT code
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
}


@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=1)
def activate(x: Float[Array, "..."], activation: str) -> Float[Array, "..."]:
    """One of `ACTIVATIONS`; the backward pass keeps x alone.

    Args:
      x: any floating dtype and shape.
      activation: a name.

    Returns:
      Same dtype and shape. Hendrycks and Gimpel 2016, sections 2 and 4.
    """
    return ACTIVATIONS[activation](x)


def add_residual(
    config: Model,
    norm: Norm,
    x: Float[Array, "B L D"],
    sublayer: Callable[[Array], Array],
    words: Words | None,
) -> Float[Array, "B L D"]:
    """A sublayer with its dropout, its residual and its norm, before it or after.

    Vaswani et al. 2017, section 3.1 (`post`); Xiong et al. 2020, section 3 (`pre`).
    """
    if config.norm == "post":
        return norm(dropout(sublayer(x), words, config.dropout), x)
    return x + dropout(sublayer(norm(x)), words, config.dropout)


def dropout(
    x: Float[Array, "..."], words: Words | None, rate: float
) -> Float[Array, "..."]:
    """Zeroes a share `rate` of x and scales the rest to keep the expectation.

    Which elements go depends on `words` and an element's index alone, so neither
    sharding, scanning nor rematerialisation changes them, and the backward pass
    computes the mask again instead of storing it.

    Args:
      x: any floating dtype and shape.
      words: random uint32 [2], new for every place and step; None is no dropout. With
        axes in front, the first ones of x, each element of these has words of its own.
      rate: probability of an element to be dropped, in [0, 1).

    Returns:
      Same dtype and shape. Srivastava et al. 2014, section 4.
    """
    return x if words is None or rate == 0 else _dropout(rate, x, words)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _dropout(rate, x, words):
    kept = keep(words, x.shape, rate)
    return jnp.where(kept, x * (1 / (1 - rate)), jnp.zeros((), x.dtype))


def _dropout_forward(rate, x, words):
    return _dropout(rate, x, words), words


def _dropout_backward(rate, words, gradient):
    return _dropout(rate, gradient, words), None


_dropout.defvjp(_dropout_forward, _dropout_backward)


def keep(
    words: Words, shape: tuple[int, ...], rate: float, turned: bool = False
) -> Bool[Array, "..."]:
    """A mask of `shape`, True with probability 1 - rate; if `turned`, its transpose."""
    return _bits(words, shape, turned) >= jnp.uint32(round(rate * 2**32))


def spread(words: Words, shape: tuple[int, ...]) -> UInt32[Array, "... 2"]:
    """Words for each element of an array that begins with the axes of `words`."""
    other = words ^ jnp.uint32(0x9E3779B9)
    return jnp.stack([_bits(words, shape), _bits(other, shape)], axis=-1)


def gumbel(words: Words, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """float32 noise from the standard Gumbel distribution, by element as `keep`."""
    uniform = ((_bits(words, shape) >> 8).astype(jnp.float32) + 0.5) * 2.0**-24
    return -jnp.log(-jnp.log(uniform))


def _bits(
    words: Words, shape: tuple[int, ...], turned: bool = False
) -> UInt32[Array, "..."]:
    """Random bits of each element, from its index alone."""
    axes, own = range(len(shape)), words.ndim - 1
    strides = {axis: math.prod(shape[axis + 1 :]) % 2**32 for axis in axes[own:]}
    if turned:
        axes, shape = axes[::-1], shape[::-1]
    index = jnp.zeros(shape, jnp.uint32)
    for axis, stride in strides.items():
        place = lax.broadcasted_iota(jnp.uint32, shape, axes[axis])
        index += place * jnp.uint32(stride)
    first, second = (
        lax.expand_dims(words[..., i], range(own, len(shape))) for i in (0, 1)
    )
    return scramble(index, first, second)


def scramble(
    index: UInt32[Array, "..."],
    first: UInt32[Array, "..."],
    second: UInt32[Array, "..."],
) -> UInt32[Array, "..."]:
    """Random bits from numbers and two random words.

    JAX's counter-based generators cost more than BERT's matrix products on some
    backends; an integer hash of the element's index is a few fused operations.
    Multipliers and shifts are Wellons' lowbias32 (2018), seeded at both rounds.
    """
    bits = index ^ first
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x7FEB352D) ^ second
    bits = (bits ^ (bits >> 15)) * jnp.uint32(0x846CA68B)
    return bits ^ (bits >> 16)
