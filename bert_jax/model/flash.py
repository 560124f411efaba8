"""Attention of one head of one row at a time, whose scores stay in a core's cache.

`xla` of `attend` goes through all scores of a batch several times, which on a CPU costs
more than the products. Here they are made, used and forgotten head by head, and made
again in the backward pass.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from bert_jax.model.layers import Words, dropout, keep
from bert_jax.model.products import product


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def flash(
    rate: float,
    dtype: jnp.dtype,
    query: Float[Array, "B L H h"],
    key: Float[Array, "B T H h"],
    value: Float[Array, "B T H h"],
    allowed: Bool[Array, "B 1 L T"],
    words: Words | None,
) -> Float[Array, "B L H h"]:
    """Softmax attention with a mask and with dropout of probabilities.

    Args:
      rate: probability of dropping an attention probability.
      dtype: of the factors of matrix products, whose sums are float32.
      query: floating, not scaled yet.
      key: as query.
      value: as query.
      allowed: who sees whom; a position that sees nothing gives zeros.
      words: random uint32 [B, H, 2], those of each head of each row; None drops none.

    Returns:
      The query's dtype and shape.

    Dao et al. 2022 (FlashAttention), algorithms 1 and 4, with one block.
    """
    return _forward(rate, dtype, query, key, value, allowed, words)[0]


def _forward(rate, dtype, query, key, value, allowed, words):
    def row(_, one):
        query, key, value, allowed, words = one

        def head(one):
            query, key, value, words = one
            score = jnp.where(allowed[0], _dot(dtype, query, key), -1e30)
            top = score.max(-1, keepdims=True)
            power = jnp.where(allowed[0], jnp.exp(score - top), 0)
            total = jnp.maximum(power.sum(-1, keepdims=True), 1e-30)
            mixed = _dot(dtype, dropout(power, words, rate), value)
            return mixed / total, (top + jnp.log(total))[:, 0]

        heads = _rows(query) * _size(query), _columns(key), _rows(value), words
        mixed, log_total = jax.lax.map(head, heads)
        return None, (_rows(mixed).astype(query.dtype), log_total)

    arrays = query, key, value, allowed, words
    _, (mixed, log_total) = jax.lax.scan(row, None, arrays)
    return mixed, (*arrays, mixed, log_total)


def _backward(rate, dtype, kept, gradient):
    """Transposed throughout: a product of a transpose is slow in XLA's CPU back end."""

    def row(_, one):
        query, key, value, allowed, words, mixed, log_total, gradient = one
        size, seen = _size(query), allowed[0].T
        mean = product("LHh,LHh->HL", mixed, gradient, jnp.float32, jnp.float32)

        def head(one):
            query, query_t, key, key_t, value, out, out_t, log_total, mean, words = one
            share = jnp.exp(_dot(dtype, key, query_t) - log_total[None])
            share = jnp.where(seen, share, 0)
            share_gradient = _dot(dtype, value, out_t)
            dropped = share
            if words is not None:
                # Of the same places: forward they were not transposed.
                kept = keep(words, share.T.shape, rate, turned=True)
                scale = 1 / (1 - rate)
                dropped = jnp.where(kept, share * scale, 0)
                share_gradient = jnp.where(kept, share_gradient * scale, 0)
            value_gradient = _dot(dtype, dropped, out)
            score_gradient = share * (share_gradient - mean[None])
            key_gradient = _dot(dtype, score_gradient, query)
            return _dot(dtype, key_t, score_gradient), key_gradient, value_gradient

        heads = (
            *(_rows(query) * size, _columns(query) * size),
            *(_rows(key), _columns(key), _rows(value)),
            *(_rows(gradient), _columns(gradient), log_total, mean, words),
        )
        of_query, *others = jax.lax.map(head, heads)
        found = jnp.transpose(of_query, (2, 0, 1)) * size, *map(_rows, others)
        return None, tuple(x.astype(query.dtype) for x in found)

    _, found = jax.lax.scan(row, None, (*kept, gradient))
    return *found, None, None


flash.defvjp(_forward, _backward)


def _dot(dtype, x, y):
    return product(1, x, y, dtype, jnp.float32)


def _size(query):
    return 1 / math.sqrt(query.shape[-1])


def _rows(x: Float[Array, "X Y h"]) -> Float[Array, "Y X h"]:
    return jnp.swapaxes(x, 0, 1)


def _columns(x: Float[Array, "L H h"]) -> Float[Array, "H h L"]:
    return jnp.transpose(x, (1, 2, 0))
