"""Matrix products and sums over rows: the dtype of their factors and of their sums.

Factors may be bfloat16. Everything that is added up over the rows of a batch is added
up in float32: in bfloat16 a sum of ones stops growing at 256.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

from bert_jax import sharding
from bert_jax.config import Model


def matmul_dtype(config: Model) -> jnp.dtype:
    """Return the dtype of the factors of matrix products."""
    auto = config.matmul_dtype == "auto"
    return jnp.dtype(config.dtype if auto else config.matmul_dtype)


def product(
    over: str | int | tuple[Sequence[int], Sequence[int]],
    x: Float[Array, "..."],
    y: Float[Array, "..."],
    dtype: Any,
    result: Any,
) -> Float[Array, "..."]:
    """Return a product of two arrays, whose terms are added up in float32.

    Args:
      over: equation of `jnp.einsum`, or the axes of `jnp.tensordot`.
      x: first factor.
      y: second factor.
      dtype: dtype that the factors are converted to.
      result: dtype of the product.

    Returns:
      Array of dtype `result`.
    """
    factors = x.astype(dtype), y.astype(dtype)
    if isinstance(over, str):
        found = jnp.einsum(over, *factors, preferred_element_type=result)
    else:
        found = jnp.tensordot(*factors, over, preferred_element_type=result)
    # XLA's CPU back end cannot multiply bfloat16 factors into a float32 product that
    # it transposes as it does ("Unsupported element type for DotThunk"). The barrier
    # keeps a transposition apart. Other back ends can, and could not add this gradient
    # to another one before both are reduced over the devices.
    narrow = jnp.dtype(dtype).itemsize < jnp.dtype(result).itemsize
    if narrow and sharding.device_kind() == "cpu":
        found = lax.optimization_barrier(found)
    return found


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def linear(inputs, dtype, x, kernel):
    """Return x times a kernel over the last `inputs` axes of x, in the dtype of x."""
    return product(inputs, x, kernel, dtype, x.dtype)


def _linear_forward(inputs, dtype, x, kernel):
    # Not `linear`, whose product remat=dots would not see and so not keep.
    return product(inputs, x, kernel, dtype, x.dtype), (x, kernel)


def _linear_backward(inputs, dtype, kept, gradient):
    """As autodiff, but it too multiplies in `dtype`."""
    x, kernel = kept
    rows = x.ndim - inputs
    ends = [*range(rows, gradient.ndim)], [*range(inputs, kernel.ndim)]
    x_gradient = product(ends, gradient, kernel, dtype, x.dtype)
    # XLA's CPU back end transposes the first factor: the smaller one, then.
    wide = math.prod(x.shape[rows:]) > math.prod(gradient.shape[rows:])
    a, b = (gradient, x) if wide else (x, gradient)
    a, b = (v.reshape(*v.shape[:rows], -1) for v in (a, b))
    every = [*range(rows)]
    y = product((every, every), a, b, dtype, x.dtype)
    kernel_gradient = (y.T if wide else y).reshape(kernel.shape)
    return x_gradient, kernel_gradient.astype(kernel.dtype)


linear.defvjp(_linear_forward, _linear_backward)


@jax.custom_vjp
def add_bias(x: Float[Array, "..."], bias: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return x + bias, in the dtype of x; bias has the last axes of x.

    Its gradient is a sum over rows, in float32.
    """
    return x + lax.expand_dims(bias.astype(x.dtype), range(x.ndim - bias.ndim))


def _add_bias_forward(x, bias):
    return add_bias(x, bias), bias


def _add_bias_backward(bias, gradient):
    rows = tuple(range(gradient.ndim - bias.ndim))
    return gradient, gradient.astype(bias.dtype).sum(rows)


add_bias.defvjp(_add_bias_forward, _add_bias_backward)


def gather(
    x: Float[Array, "B L D"], position: Int32[Array, "B P"]
) -> Float[Array, "B P D"]:
    """Return the features at some positions of each row.

    The gradients of a position that is taken more than once are added in float32.
    """
    return _gather(x.shape[1], x.dtype, x, position)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gather(length, dtype, x, position):
    return jnp.take_along_axis(x, position[:, :, None], axis=1)


def _gather_forward(length, dtype, x, position):
    return _gather(length, dtype, x, position), position


def _gather_backward(length, dtype, position, gradient):
    rows, _, features = gradient.shape
    back = jax.linear_transpose(
        lambda x: jnp.take_along_axis(x, position[:, :, None], axis=1),
        jax.ShapeDtypeStruct((rows, length, features), jnp.float32),
    )
    (found,) = back(gradient.astype(jnp.float32))
    return found.astype(dtype), None


_gather.defvjp(_gather_forward, _gather_backward)
