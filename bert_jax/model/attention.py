"""Self-attention inside each packed example, behind one entry: `attend`.

`xla` is written out here and the measure of the others, which never hold the [L, L]
scores in memory: `flash` on CPUs, `cudnn` and `pallas` (kernels.py) on NVIDIA GPUs, and
JAX's `splash` on TPUs.
"""

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32, UInt32

from bert_jax import sharding
from bert_jax.config import Model
from bert_jax.errors import UserError
from bert_jax.model.flash import flash
from bert_jax.model.layers import (
    Dense,
    Norm,
    Words,
    add_residual,
    dropout,
    spread,
)
from bert_jax.model.products import matmul_dtype, product

_LANES = 128  # of a TPU's vector unit, which splash takes positions by
_LONG = 256  # [tokens] from which the scores of a batch leave the caches
_NO_FLASH = ("V100", "P100", "T4", "K80", "GTX", "RTX 20")  # GPUs before Ampere


class Places(NamedTuple):
    """Where the tokens of a batch stand."""

    example: Int32[Array, "B L"]  # numbers the packed ones from 1; 0 is padding
    turn: Float[Array, "2 B L 1 half"] | None  # cosine and sine of `position=rope`


class Attention(nn.Module):
    """The self-attention sublayer, with its residual and norm.

    Attributes:
      config: the model's sizes and numerics.
      scores: also return these.

    Vaswani et al. 2017, section 3.2.2.
    """

    config: Model
    scores: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L D"],
        places: Places,
        words: UInt32[Array, "sites 2"] | None,
        wide: Bool[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B L D"], Float[Array, "B H L L"] | None]:
        """Mixes the positions of each example; two dropout sites.

        Args:
          x: floating.
          places: of the tokens.
          words: random uint32 [2, 2] for dropout; None is no dropout.
          wide: whether the layer sees beyond `config.window`, where there is one.

        Returns:
          As x, and the float32 scores before the mask and the softmax, or None.
        """
        config = self.config
        inside, after = (None, None) if words is None else (words[0], words[1])
        heads = (config.heads, config.hidden // config.heads)
        scores = None

        def mix(x: Array) -> Array:
            nonlocal scores
            query, key, value = (
                Dense(config, heads, name=name)(x) for name in ("query", "key", "value")
            )
            if places.turn is not None:
                query, key = rotate(query, places.turn), rotate(key, places.turn)
            scores = _scores(query, key) if self.scores else None
            attend_to = functools.partial(
                attend,
                words=inside,
                rate=config.attention_dropout,
                # The short rows that parameters are made with suit no kernel.
                implementation="xla" if self.is_initializing() else config.attention,
                causal=config.mixer == "causal_attention",
                dtype=matmul_dtype(config),
            )
            arrays = query, key, value, places.example
            if wide is None:
                mixed = attend_to(*arrays)
            else:
                near = functools.partial(attend_to, window=config.window)
                # Worked out again in the backward pass, which would else keep what
                # either branch needs: for the near one, keys and values thrice.
                either = jax.checkpoint(
                    functools.partial(jax.lax.cond, wide, attend_to, near),
                    prevent_cse=not config.scan,
                )
                mixed = either(*arrays)
            return Dense(config, (config.hidden,), inputs=2, name="out")(mixed)

        y = add_residual(config, Norm(config, name="norm"), x, mix, after)
        return y, scores


def attend(
    query: Float[Array, "B L H h"],
    key: Float[Array, "B L H h"],
    value: Float[Array, "B L H h"],
    example: Int32[Array, "B L"],
    words: Words | None = None,
    rate: float = 0.0,
    implementation: str = "auto",
    causal: bool = False,
    window: int = 0,
    dtype: jax.typing.DTypeLike | None = None,
) -> Float[Array, "B L H h"]:
    """Softmax attention among the positions of the same packed example.

    Args:
      query: floating, not scaled yet.
      key: as query.
      value: as query.
      example: number of the example at each position; 0 is padding, to which nothing
        else attends. What it gives is finite and means nothing: to clear it would cost
        the kernels' backward pass another copy of the result.
      words: random uint32 [2] for dropout of probabilities; None is no dropout.
      rate: probability of dropping an attention probability.
      implementation: `xla`, `flash`, `cudnn`, `pallas`, `splash`, or `auto`: what
        `choose` chooses.
      causal: a position sees none that comes after it.
      window: how far it sees: half of it to each side; 0 is everywhere. [positions]
      dtype: of the factors that `flash` multiplies; None is the query's.

    Returns:
      The query's dtype and shape; softmax in float32.

    Raises:
      UserError: the implementation cannot do this.

    Vaswani et al. 2017, section 3.2.1; packing as in Krell et al. 2021, section 3.2.
    """
    kind, (_, length, _, features) = sharding.device_kind(), query.shape
    own = None if words is None or not rate else spread(words, query.shape[::2])
    limits = kind, length, features, query.dtype, own is not None
    if implementation == "auto":
        implementation = choose(*limits)
    _check(implementation, *limits)
    rule = _Rule(causal, window, rate, jnp.dtype(dtype or query.dtype))
    kernel = functools.partial(_IMPLEMENTATIONS[implementation], rule)
    if implementation != "xla":  # which the compiler can cut
        kernel = sharding.by_rows_and_heads(kernel)
    return kernel(query, key, value, example, own)


def _check(
    implementation: str,
    kind: str,
    length: int,
    features: int,
    dtype: jax.typing.DTypeLike,
    dropping: bool,
) -> None:
    """Raises UserError where a kernel cannot do this; arguments as of `choose`."""
    if implementation not in _IMPLEMENTATIONS:
        raise UserError(
            f"config.model.attention={implementation!r}: choose one of auto, "
            f"{', '.join(_IMPLEMENTATIONS)}"
        )
    if dropping and implementation in ("cudnn", "splash"):
        raise UserError(
            f"config.model.attention={implementation} cannot drop attention "
            "probabilities: set config.model.attention_dropout=0, or attention=xla; "
            "on NVIDIA GPUs attention=pallas drops them too"
        )
    if implementation == "splash" and (length % _LANES or kind.startswith("NVIDIA")):
        raise UserError(
            f"config.model.attention=splash: is for TPUs and rows of multiples of "
            f"{_LANES} tokens, here {kind} and {length}; set it to auto or xla"
        )
    suited = choose(kind, length, features, dtype, False)
    if implementation == "cudnn" and suited != "cudnn":
        raise UserError(
            f"config.model.attention=cudnn: is for NVIDIA GPUs from Ampere on, "
            f"bfloat16 and heads of a multiple of 8 features up to 128, here {kind}, "
            f"{dtype} and {features}; set it to auto or xla"
        )
    if implementation == "pallas":
        from bert_jax.model import kernels

        fits = features in kernels.FEATURES and length % kernels.STEP == 0
        if not fits or not (kind == "cpu" or _fuses(kind, dtype)):
            raise UserError(
                f"config.model.attention=pallas: is for NVIDIA GPUs from Ampere on, "
                f"bfloat16, rows of multiples of {kernels.STEP} tokens and heads of "
                f"16, 32, 64 or 128 features, here {kind}, {dtype}, {length} and "
                f"{features}; set it to auto or xla"
            )


def choose(
    kind: str, length: int, features: int, dtype: jax.typing.DTypeLike, dropping: bool
) -> str:
    """The implementation that `auto` stands for.

    Args:
      kind: of device, as JAX names it.
      length: of the rows. [tokens]
      features: of a head.
      dtype: of query, key and value.
      dropping: attention probabilities are dropped, which of the accelerators' kernels
        `pallas` alone can. It is never chosen: its speed is not measured yet.

    Returns:
      `xla`, `flash`, `cudnn` or `splash`.
    """
    if kind == "cpu" and length >= _LONG:
        return "flash"
    if dropping or jnp.dtype(dtype) != jnp.bfloat16:
        return "xla"
    if kind.startswith("TPU") and length % _LANES == 0:
        return "splash"
    fits = features % 8 == 0 and features <= 128
    return "cudnn" if fits and _fuses(kind, dtype) else "xla"


def _fuses(kind: str, dtype: jax.typing.DTypeLike) -> bool:
    """Whether this is a GPU, and a dtype, that fused attention is for."""
    recent = kind.startswith("NVIDIA") and not any(name in kind for name in _NO_FLASH)
    return recent and jnp.dtype(dtype) == jnp.bfloat16


def in_training(config: Model, length: int, kind: str) -> tuple[str, str]:
    """The implementation that training uses, and a faster one that it could use.

    Args:
      config: the model's.
      length: of the rows. [tokens]
      kind: of device, as JAX names it.

    Returns:
      Two implementations, the first of which may be another mixer; the second is ""
      unless attention dropout alone rules it out.
    """
    dropping = config.attention_dropout > 0
    if not config.mixer.endswith("attention"):
        return config.mixer, ""
    if config.attention != "auto":
        return config.attention, ""
    features = config.hidden // config.heads
    now, without = (
        choose(kind, length, features, config.dtype, drops)
        for drops in (dropping, False)
    )
    return now, without if without != now else ""


def rotate(
    x: Float[Array, "B L H h"], turn: Float[Array, "2 B L 1 half"]
) -> Float[Array, "B L H h"]:
    """Turns pairs of features, i and i + h / 2, by angles that grow with the position.

    Su et al. 2021, section 3.2.2.
    """
    cosine, sine = turn.astype(x.dtype)
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cosine - b * sine, b * cosine + a * sine], axis=-1)


def turns(
    position: Int32[Array, "B L"], features: int, base: float
) -> Float[Array, "2 B L 1 half"]:
    """Cosine and sine of the angles of `rotate`, for heads of so many features."""
    power = jnp.arange(0, features, 2, dtype=jnp.float32) / features
    place = position[:, :, None, None].astype(jnp.float32)
    angle = place / (base**power)[None, None, None]
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)])


class _Rule(NamedTuple):
    """What is the same for all positions, as `attend` has it."""

    causal: bool
    window: int
    rate: float
    dtype: Any


def _masked(attend, rule, query, key, value, example, words):
    """`attend` with the mask of who sees whom, a local one in blocks of half a window.

    Of local attention each block of positions sees itself and its two neighbours.
    """
    length, half = query.shape[1], rule.window // 2
    if not half or length % half or length <= 3 * half:
        place = jnp.arange(length)
        mask = _allowed(example, example, place, place, rule.causal, half)
        return attend(query, key, value, mask, words)

    def blocks(x: Array) -> Array:
        return x.reshape(-1, length // half, half, *x.shape[2:])

    def around(x: Array) -> Array:
        sides = jnp.pad(x, [(0, 0), (half, half)] + [(0, 0)] * (x.ndim - 2))
        near = [blocks(sides[:, i : i + length]) for i in (0, half, 2 * half)]
        return jnp.concatenate(near, axis=2)

    index = jnp.arange(length)[None]
    examples = blocks(example), around(example)
    mask = _allowed(*examples, blocks(index), around(index), rule.causal, half)
    arrays = blocks(query), around(key), around(value), mask
    if words is not None:
        own = spread(words, (*words.shape[:2], length // half))
        words = jnp.swapaxes(own, 1, 2).reshape(-1, *words.shape[1:])
    flat = [x.reshape(-1, *x.shape[2:]) for x in arrays]
    return attend(*flat, words).reshape(query.shape)


def _allowed(
    mine: Int32[Array, "*B L"],
    theirs: Int32[Array, "*B T"],
    place: Int32[Array, "*_ L"],
    other: Int32[Array, "*_ T"],
    causal: bool,
    half: int,
) -> Bool[Array, "*B 1 L T"]:
    """Who sees whom, by the numbers of their examples and their places in the row."""
    allowed = (mine[..., None] == theirs[..., None, :]) & (mine > 0)[..., None]
    ahead = other[..., None, :] - place[..., None]
    if causal:
        allowed &= jnp.expand_dims(ahead <= 0, range(allowed.ndim - ahead.ndim))
    if half:
        near = jnp.abs(ahead) <= half
        allowed &= jnp.expand_dims(near, range(allowed.ndim - near.ndim))
    return allowed[..., None, :, :]


def _xla(rule, *arrays):
    return _masked(functools.partial(_attend, rule.rate), rule, *arrays)


def _flash(rule, *arrays):
    return _masked(functools.partial(flash, rule.rate, rule.dtype), rule, *arrays)


def _cudnn(rule, query, key, value, example, words):
    def attend(query, key, value, mask, _):
        return jax.nn.dot_product_attention(
            query, key, value, mask=mask, implementation="cudnn"
        )

    # Padding sees padding: the mask of a row without anything allowed is not defined.
    return _masked(attend, rule, query, key, value, example + 1, words)


def _splash(rule, query, key, value, example, _):
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    _, length, heads, features = query.shape
    block = max(size for size in (128, 256, 512) if length % size == 0)
    mask, half = splash.FullMask((length, length)), rule.window // 2 or None
    if rule.causal or half:
        # Ahead of a position there is nothing, half a window or all to be seen.
        ahead = 0 if rule.causal else half
        mask = splash.LocalMask((length, length), (half, ahead), 0)
    kernel: Any = splash.make_splash_mha(
        splash.MultiHeadMask([mask] * heads),
        block_sizes=splash.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            use_fused_bwd_kernel=True,
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=not sharding.device_kind().startswith("TPU"),
    )

    def row(query, key, value, example):
        numbers = splash.SegmentIds(example, example)
        return kernel(query, key, value, numbers)

    query = query * jnp.asarray(1 / math.sqrt(features), query.dtype)
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    return jnp.swapaxes(jax.vmap(row)(query, key, value, example), 1, 2)


def _pallas(rule, query, key, value, example, words):
    from bert_jax.model import kernels

    rate = rule.rate
    if words is None:
        words, rate = jnp.zeros((*query.shape[::2], 2), jnp.uint32), 0.0
    own = kernels.Rule(rule.causal, rule.window // 2, rate)
    return kernels.attend(own, query, key, value, example, words)


_IMPLEMENTATIONS = {
    "xla": _xla,
    "flash": _flash,
    "cudnn": _cudnn,
    "pallas": _pallas,
    "splash": _splash,
}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(rate, query, key, value, allowed, words):
    return _forward(rate, query, key, value, allowed, words)[0]


def _forward(rate, query, key, value, allowed, words):
    share = _probabilities(query, key, allowed)
    dropped = dropout(share, words, rate)
    kind = query.dtype
    mixed = product("BHLT,BTHh->BLHh", dropped, value, kind, kind)
    return mixed, (query, key, value, share, words)


def _scores(
    query: Float[Array, "B L H h"], key: Float[Array, "B T H h"]
) -> Float[Array, "B H L T"]:
    score = product("BLHh,BTHh->BHLT", query, key, query.dtype, jnp.float32)
    return score * (1 / math.sqrt(query.shape[-1]))


def _probabilities(
    query: Float[Array, "B L H h"],
    key: Float[Array, "B T H h"],
    allowed: Bool[Array, "B 1 L T"],
) -> Float[Array, "B H L T"]:
    # A finite floor, not -inf: a row with nothing allowed must not make NaN.
    score = jnp.where(allowed, _scores(query, key), -1e30)
    power = jnp.exp(score - score.max(-1, keepdims=True))
    share = power / power.sum(-1, keepdims=True)
    return jnp.where(allowed, share, 0).astype(query.dtype)


def _backward(rate, kept, gradient):
    """Keeps the probabilities once, in the computation's dtype; autodiff: thrice."""
    query, key, value, share, words = kept
    size, kind = 1 / math.sqrt(query.shape[-1]), query.dtype
    dropped = dropout(share, words, rate)
    value_gradient = product("BHLT,BLHh->BTHh", dropped, gradient, kind, kind)
    share_gradient = product("BLHh,BTHh->BHLT", gradient, value, kind, jnp.float32)
    share_gradient = dropout(share_gradient, words, rate)
    share = share.astype(jnp.float32)
    mean = (share * share_gradient).sum(-1, keepdims=True)
    score_gradient = (share * (share_gradient - mean) * size).astype(query.dtype)
    query_gradient = product("BHLT,BTHh->BLHh", score_gradient, key, kind, kind)
    key_gradient = product("BHLT,BLHh->BTHh", score_gradient, query, kind, kind)
    return query_gradient, key_gradient, value_gradient, None, None


_attend.defvjp(_forward, _backward)
