"""Attention inside packed examples as Triton kernels, written in Pallas.

JAX's own `mha` is deprecated, and its successor in tokamax knows no packed rows. These
also drop probabilities, see causal and local attention, and skip blocks of positions
that do not see each other.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, Int32, UInt32

from bert_jax import sharding
from bert_jax.model.layers import scramble

STEP = 64  # [positions] that a program takes at a time; a row is a multiple of it
FEATURES = (16, 32, 64, 128)  # that a head may have
_BLOCK = 128  # [positions] that stay with a program
_BACK = 32  # [positions] that it takes at a time in the backward pass
_NEVER = -1e30  # a score; infinity would give NaN


class Rule(NamedTuple):
    """What is the same for all positions.

    Attributes:
      causal: a position sees none that comes after it.
      half: how far it sees to each side; 0 is everywhere. [positions]
      rate: probability of dropping an attention probability.
    """

    causal: bool
    half: int
    rate: float


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(
    rule: Rule,
    query: Float[Array, "B L H h"],
    key: Float[Array, "B L H h"],
    value: Float[Array, "B L H h"],
    example: Int32[Array, "B L"],
    words: UInt32[Array, "B H 2"],
) -> Float[Array, "B L H h"]:
    """`attention.attend` of one device's rows and heads; interpreted without a GPU.

    Args:
      rule: who sees whom, and dropout.
      query: as there.
      key: as there.
      value: as there.
      example: as there.
      words: dropout's, of each head of each row.

    Returns:
      As there.

    Dao 2023 (FlashAttention-2), section 3. Two kernels in the backward pass, for
    queries and for keys: sums of programs that run at once would depend on their order.
    """
    return _forward(rule, query, key, value, example, words)[0]


def _forward(rule, query, key, value, example, words):
    rows, length, heads, _ = query.shape
    # Padding comes last, as in a row, and sees itself.
    example = jnp.where(example > 0, example, jnp.iinfo(jnp.int32).max)
    span = spans(rule, example, math.gcd(length, _BLOCK), STEP)
    out, total = _call(
        functools.partial(_forward_kernel, rule),
        [*span, example, words, query, key, value],
        [query, jax.ShapeDtypeStruct((rows, heads, length), jnp.float32)],
    )
    return out, (query, key, value, example, words, out, total)


def _backward(rule, kept, gradient):
    query, key, value, example, words, out, total = kept
    mean = jnp.einsum(
        "BLHh,BLHh->BHL", out, gradient, preferred_element_type=jnp.float32
    )
    arrays = [example, words, query, key, value, gradient, total, mean]
    block = math.gcd(query.shape[1], _BLOCK)
    (query_gradient,) = _call(
        functools.partial(_query_kernel, rule),
        [*spans(rule, example, block, _BACK), *arrays],
        [query],
    )
    key_gradient, value_gradient = _call(
        functools.partial(_key_kernel, rule),
        [*spans(rule, example, block, _BACK, True), *arrays],
        [key, value],
    )
    return query_gradient, key_gradient, value_gradient, None, None


attend.defvjp(_forward, _backward)


def spans(
    rule: Rule,
    example: Int32[Array, "B L"],
    block: int,
    step: int,
    turned: bool = False,
) -> tuple[Int32[Array, "B n"], Int32[Array, "B n"]]:
    """Which positions some block of others may see, in a span that has all of them.

    Args:
      rule: who sees whom.
      example: numbers of the packed ones, the closer to sorted the shorter the spans.
      block: size of those who see. [positions]
      step: size of those seen. [positions]
      turned: the other way round: whom some may be seen by.

    Returns:
      For each block, the first step and the end of the last. [steps]
    """

    def bounds(x: Array, size: int) -> tuple[Array, Array]:
        blocks = x.reshape(x.shape[0], -1, size)
        return blocks.min(-1), blocks.max(-1)

    both = example, jnp.arange(example.shape[1])[None]
    low, high, begin, end = (b[:, :, None] for x in both for b in bounds(x, block))
    least, most, first, last = (b[:, None] for x in both for b in bounds(x, step))
    meets = (low <= most) & (least <= high)
    if rule.causal:
        meets &= begin <= last if turned else first <= end
    if rule.half:
        meets &= (first <= end + rule.half) & (begin <= last + rule.half)
    before = jnp.argmax(meets, axis=2).astype(jnp.int32)
    after = jnp.argmax(meets[:, :, ::-1], axis=2).astype(jnp.int32)
    return before, meets.shape[2] - after


def _call(kernel, inputs, results):
    """Runs a kernel for each block of positions, of each row and head.

    It is given all positions of the inputs, and its own ones of the results.
    """
    rows, length, heads, features = results[0].shape
    block = math.gcd(length, _BLOCK)

    def spec(array, size: int = 0) -> pl.BlockSpec:
        shape, place = array.shape, lambda i: i if size else 0
        if len(shape) == 4:
            sizes = None, size or length, None, features
            return pl.BlockSpec(sizes, lambda i, row, head: (row, place(i), head, 0))
        if len(shape) == 3:
            sizes = None, None, size or shape[2]
            return pl.BlockSpec(sizes, lambda i, row, head: (row, head, place(i)))
        return pl.BlockSpec((None, shape[1]), lambda i, row, head: (row, 0))

    return pl.pallas_call(
        kernel,
        grid=(length // block, rows, heads),
        in_specs=[spec(array) for array in inputs],
        out_specs=[spec(array, block) for array in results],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in results],
        compiler_params=triton.CompilerParams(
            num_warps=4 if features <= 64 else 8, num_stages=3
        ),
        interpret=not sharding.device_kind().startswith("NVIDIA"),
        name=f"attention{kernel.func.__name__}",
    )(*inputs)


class _Side(NamedTuple):
    """Some positions of a row and head."""

    vectors: Float[Array, "n h"]
    example: Int32[Array, " n"]
    place: Int32[Array, " n"]


def _side(vectors, example, start, size: int) -> _Side:
    where = pl.ds(start, size)
    return _Side(vectors[where, :], example[where], start + jnp.arange(size))


def _scores(rule: Rule, queries: _Side, keys: _Side, turned: bool = False):
    """As powers of two, of queries and keys; of keys and queries if `turned`."""
    a, b = (keys, queries) if turned else (queries, keys)
    scale = math.log2(math.e) / math.sqrt(a.vectors.shape[1])
    seen = a.example[:, None] == b.example[None]
    ahead = b.place[None] - a.place[:, None]
    if rule.causal:
        seen &= ahead >= 0 if turned else ahead <= 0
    if rule.half:
        seen &= jnp.abs(ahead) <= rule.half
    return jnp.where(seen, _dot(a.vectors, b.vectors, 1) * scale, _NEVER)


def _dropped(rule: Rule, x, words, length: int, queries, keys, turned: bool = False):
    """As `layers.dropout` of a head's probabilities [L, L], of which x is a part."""
    if not rule.rate:
        return x
    query, key = (side.place.astype(jnp.uint32) for side in (queries, keys))
    query *= jnp.uint32(length)
    index = query[None] + key[:, None] if turned else query[:, None] + key[None]
    kept = scramble(index, words[0], words[1]) >= jnp.uint32(round(rule.rate * 2**32))
    return jnp.where(kept, x * (1 / (1 - rule.rate)), 0.0)


def _dot(a, b, axis: int):
    """Sums over the last axis of a and one of b."""
    over = (((1,), (axis,)), ((), ()))
    return lax.dot_general(a, b, over, preferred_element_type=jnp.float32)


def _forward_kernel(rule, first, end, example, words, query, key, value, out, total):
    block, features = out.shape
    number = pl.program_id(0)
    queries = _side(query, example, number * block, block)

    def step(index, carry):
        mixed, most, weight = carry
        keys = _side(key, example, index * STEP, STEP)
        score = _scores(rule, queries, keys)
        top = jnp.maximum(most, score.max(-1))
        fade, share = jnp.exp2(most - top), jnp.exp2(score - top[:, None])
        weight = weight * fade + share.sum(-1)
        share = _dropped(rule, share, words, query.shape[0], queries, keys)
        values = value[pl.ds(index * STEP, STEP), :]
        mixed = mixed * fade[:, None] + _dot(share.astype(values.dtype), values, 0)
        return mixed, top, weight

    start = jnp.zeros((block, features)), jnp.full(block, _NEVER), jnp.zeros(block)
    mixed, most, weight = lax.fori_loop(first[number], end[number], step, start)
    out[...] = (mixed / weight[:, None]).astype(out.dtype)
    total[...] = most + jnp.log2(weight)


def _query_kernel(
    rule, first, end, example, words, query, key, value, gradient, total, mean, out
):
    block, features = out.shape
    number = pl.program_id(0)
    mine = pl.ds(number * block, block)
    queries = _side(query, example, number * block, block)
    gradients, totals, means = gradient[mine, :], total[mine], mean[mine]

    def step(index, found):
        keys = _side(key, example, index * _BACK, _BACK)
        values = value[pl.ds(index * _BACK, _BACK), :]
        share = jnp.exp2(_scores(rule, queries, keys) - totals[:, None])
        change = _dot(gradients, values, 1)
        change = _dropped(rule, change, words, query.shape[0], queries, keys)
        change = (share * (change - means[:, None])).astype(query.dtype)
        return found + _dot(change, keys.vectors, 0)

    start = jnp.zeros((block, features))
    found = lax.fori_loop(first[number], end[number], step, start)
    out[...] = (found / math.sqrt(features)).astype(out.dtype)


def _key_kernel(
    rule, first, end, example, words, query, key, value, gradient, total, mean, *out
):
    block, features = out[0].shape
    number = pl.program_id(0)
    keys = _side(key, example, number * block, block)
    values = value[pl.ds(number * block, block), :]

    def step(index, found):
        of_keys, of_values = found
        others = pl.ds(index * _BACK, _BACK)
        queries = _side(query, example, index * _BACK, _BACK)
        gradients = gradient[others, :]
        drop = functools.partial(
            _dropped,
            rule,
            words=words,
            length=query.shape[0],
            queries=queries,
            keys=keys,
            turned=True,
        )
        share = jnp.exp2(_scores(rule, queries, keys, True) - total[others][None])
        change = drop(_dot(values, gradients, 1))
        change = (share * (change - mean[others][None])).astype(key.dtype)
        of_keys += _dot(change, queries.vectors, 0)
        of_values += _dot(drop(share).astype(value.dtype), gradients, 0)
        return of_keys, of_values

    start = jnp.zeros((block, features)), jnp.zeros((block, features))
    of_keys, of_values = lax.fori_loop(first[number], end[number], step, start)
    out[0][...] = (of_keys / math.sqrt(features)).astype(key.dtype)
    out[1][...] = of_values.astype(value.dtype)
