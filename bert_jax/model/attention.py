"""Self-attention inside each packed example, behind one entry: `attend`."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32, UInt32

from bert_jax.config import Model
from bert_jax.errors import UserError
from bert_jax.model.layers import Dense, Norm, Words, dropout


class Attention(nn.Module):
    """The self-attention sublayer, with its residual and LayerNorm.

    Vaswani et al. 2017, section 3.2.2.
    """

    config: Model

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L D"],
        example: Int32[Array, "B L"],
        words: UInt32[Array, "sites 2"] | None,
    ) -> Float[Array, "B L D"]:
        """Mixes the positions of each example; two dropout sites."""
        config = self.config
        inside, after = (None, None) if words is None else (words[0], words[1])
        heads = (config.heads, config.hidden // config.heads)
        query, key, value = (
            Dense(config, heads, name=name)(x) for name in ("query", "key", "value")
        )
        rate, kind = config.attention_dropout, config.attention
        mixed = attend(query, key, value, example, inside, rate, kind)
        y = Dense(config, (config.hidden,), inputs=2, name="out")(mixed)
        return Norm(config, name="norm")(dropout(y, after, config.dropout), x)


def attend(
    query: Float[Array, "B L H h"],
    key: Float[Array, "B L H h"],
    value: Float[Array, "B L H h"],
    example: Int32[Array, "B L"],
    words: Words | None = None,
    rate: float = 0.0,
    implementation: str = "auto",
) -> Float[Array, "B L H h"]:
    """Softmax attention among the positions of the same packed example.

    Args:
      query: floating, not scaled yet.
      key: as query.
      value: as query.
      example: number of the example at each position; 0 is padding, which
        neither attends nor is attended to and gives zeros.
      words: random uint32 [2] for dropout of probabilities; None is no dropout.
      rate: probability of dropping an attention probability.
      implementation: `auto` or `xla`.

    Returns:
      The query's dtype and shape; softmax in float32.

    Raises:
      UserError: unknown implementation.

    Vaswani et al. 2017, section 3.2.1; packing as in Krell et al. 2021, section 3.2.
    """
    if implementation not in ("auto", "xla"):
        raise UserError(
            f"config.model.attention={implementation!r}: choose one of auto, xla"
        )
    same = example[:, :, None] == example[:, None, :]
    allowed = (same & (example > 0)[:, :, None])[:, None]
    return _attend(rate, query, key, value, allowed, words)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(rate, query, key, value, allowed, words):
    return _forward(rate, query, key, value, allowed, words)[0]


def _forward(rate, query, key, value, allowed, words):
    share = _probabilities(query, key, allowed)
    dropped = dropout(share, words, rate)
    mixed = jnp.einsum("BHLT,BTHh->BLHh", dropped, value)
    return mixed, (query, key, value, share, words)


def _probabilities(
    query: Float[Array, "B L H h"],
    key: Float[Array, "B L H h"],
    allowed: Bool[Array, "B 1 L L"],
) -> Float[Array, "B H L L"]:
    score = jnp.einsum(
        "BLHh,BTHh->BHLT", query, key, preferred_element_type=jnp.float32
    )
    # A finite floor, not -inf: a row with nothing allowed must not make NaN.
    score = jnp.where(allowed, score * (1 / math.sqrt(query.shape[-1])), -1e30)
    power = jnp.exp(score - score.max(-1, keepdims=True))
    share = power / power.sum(-1, keepdims=True)
    return jnp.where(allowed, share, 0).astype(query.dtype)


def _backward(rate, kept, gradient):
    """Keeps the probabilities once, in the computation's dtype; autodiff: thrice."""
    query, key, value, share, words = kept
    size = 1 / math.sqrt(query.shape[-1])
    dropped = dropout(share, words, rate)
    value_gradient = jnp.einsum("BHLT,BLHh->BTHh", dropped, gradient)
    share_gradient = jnp.einsum(
        "BLHh,BTHh->BHLT", gradient, value, preferred_element_type=jnp.float32
    )
    share_gradient = dropout(share_gradient, words, rate)
    share = share.astype(jnp.float32)
    mean = (share * share_gradient).sum(-1, keepdims=True)
    score_gradient = (share * (share_gradient - mean) * size).astype(query.dtype)
    query_gradient = jnp.einsum("BHLT,BTHh->BLHh", score_gradient, key)
    key_gradient = jnp.einsum("BHLT,BLHh->BTHh", score_gradient, query)
    return query_gradient, key_gradient, value_gradient, None, None


_attend.defvjp(_forward, _backward)
