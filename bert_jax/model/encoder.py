"""Embeddings and the stack of layers."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32, UInt32

from bert_jax.config import Model
from bert_jax.model.attention import Attention, Places, turns
from bert_jax.model.layers import (
    Dense,
    Norm,
    Words,
    add_residual,
    dropout,
    initializer,
)
from bert_jax.model.lstm import LSTM
from bert_jax.model.mamba import Mamba
from bert_jax.model.products import product
from bert_jax.sharding import hold_looked_up, hold_rows


def padded_vocabulary(config: Model) -> int:
    """Rows of the token table: vocab_size rounded up to vocab_multiple."""
    return -(-config.vocab_size // config.vocab_multiple) * config.vocab_multiple


class Embeddings(nn.Module):
    """Sum of token, segment and position embeddings, normalised.

    E is the width of the embeddings, `config.embedding` or else D.

    Devlin et al. 2019, section 3, "Input/Output Representations"; sinusoidal
    positions as in Vaswani et al. 2017, section 3.5, sines first.
    """

    config: Model

    def setup(self) -> None:
        """Declares the parameters and parts."""
        config, init = self.config, initializer(self.config)

        def table(name: str, rows: int) -> Array:
            shape = rows, config.embedding_width
            return self.param(name, init, shape, jnp.float32)

        self.token = table("token", padded_vocabulary(config))
        if config.position == "learned":
            self.position = table("position", config.positions)
        if config.segments:
            self.segment = table("segment", config.segments)
        self.norm = Norm(config)

    def __call__(
        self,
        token: Int32[Array, "B L"],
        segment: Int32[Array, "B L"],
        position: Int32[Array, "B L"],
        words: Words | None,
    ) -> Float[Array, "B L E"]:
        """Embeds three int32 arrays in the dtype of the computation."""
        config = self.config
        # Gathered in float32: a bfloat16 gather would add up its gradient in bfloat16.
        # Out of range is NaN ("fill"): a wrong vocabulary shows at the first step.
        # The axis of one keeps XLA from adding this gradient onto that of the output
        # layer before both are reduced over the devices: it would reduce each.
        total = jnp.take(self.token[None], token, axis=1)[0]
        if config.position == "learned":
            total += jnp.take(self.position, position, axis=0)
        elif config.position == "sinusoidal":
            wave = turns(position, total.shape[-1], 10_000.0)[::-1, :, :, 0]
            total += jnp.concatenate(list(wave), axis=-1)
        if config.segments:
            # A product, not a gather: its gradient would add all rows onto two.
            segment = jnp.minimum(segment, config.segments - 1)
            one_hot = jax.nn.one_hot(segment, config.segments, dtype=total.dtype)
            total += product(1, one_hot, self.segment, total.dtype, total.dtype)
        total = hold_looked_up(total)
        return dropout(self.norm(total), words, config.dropout)


# Of each kind: its activation, "" for that of the config, and whether it is gated.
FEED_FORWARD = {"gelu": ("", False), "geglu": ("", True), "swiglu": ("silu", True)}


class MLP(nn.Module):
    """The position-wise feed-forward sublayer, with its residual and norm.

    Vaswani et al. 2017, section 3.3; gated ones are Shazeer 2020, section 2.
    """

    config: Model

    def setup(self) -> None:
        """Declares the parameters and parts."""
        config = self.config
        own, gated = FEED_FORWARD[config.feed_forward]
        self.activation = own or config.activation
        self.up = Dense(config, (config.mlp,))
        self.gate = Dense(config, (config.mlp,)) if gated else None
        self.down = Dense(config, (config.hidden,))
        self.norm = Norm(config)

    def __call__(
        self, x: Float[Array, "B L D"], words: Words | None
    ) -> Float[Array, "B L D"]:
        """Applies the sublayer; `words` decides its dropout."""

        def forward(x: Array) -> Array:
            gate = None if self.gate is None else self.gate(x)
            return self.down(self.up(x), self.activation, gate)

        return add_residual(self.config, self.norm, x, forward, words)


_MIXERS = {"mamba": Mamba, "lstm": LSTM}


class Layer(nn.Module):
    """One layer, in the form that `nn.scan` takes.

    A mixer other than attention leaves residual, dropout and norm to the layer.

    Attributes:
      config: the model's sizes and numerics.
      keep: what else to return: `hidden`, the layer's output, or `scores`, that and
        the scores of its attention.
    """

    config: Model
    keep: str = ""

    def setup(self) -> None:
        """Declares the parameters and parts."""
        if self.config.mixer.endswith("attention"):
            self.attention = Attention(self.config, self.keep == "scores")
        else:
            setattr(self, self.config.mixer, _MIXERS[self.config.mixer](self.config))
            self.norm = Norm(self.config)
        self.mlp = MLP(self.config)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        words: UInt32[Array, "sites 2"] | None,
        wide: Bool[Array, ""] | None,
        places: Places,
    ) -> tuple[Float[Array, "B L D"], Any]:
        """Applies the layer; what `nn.scan` stacks comes second."""
        _, after, last = (None,) * 3 if words is None else words
        scores = None
        if self.config.mixer.endswith("attention"):
            two = None if words is None else words[:2]
            y, scores = self.attention(x, places, two, wide)
        else:
            mixer = getattr(self, self.config.mixer)
            mix = functools.partial(mixer, example=places.example, words=None)
            y = add_residual(self.config, self.norm, x, mix, after)
        y = hold_rows(y)
        y = hold_rows(self.mlp(y, last))
        kept = (y, scores) if self.keep else None
        return y, kept


def stack(config: Model, keep: str) -> nn.Module:
    """All layers, their parameters stacked on a leading axis N, or of groups.

    It takes x, the words and whether the layers see all, both None or with the axes
    of `layer_axes` in front, and the places. The second result is what the layers
    `keep`, stacked in the same way.

    A loop over one compiled layer (`model.scan`) or the same layers unrolled:
    the parameters, the dropout and the values are the same.
    """
    layer = Layer
    if config.remat != "none":
        saved = {
            "full": None,
            "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        }
        # A loop's body is compiled once, so nothing merges it with its repetition.
        layer = nn.remat(Layer, policy=saved[config.remat], prevent_cse=not config.scan)

    def loop(layer: Any, length: int, **of_params: Any) -> Any:
        unroll = 1 if config.scan else length
        axes: Any = (0, 0, nn.broadcast)
        return nn.scan(layer, in_axes=axes, length=length, unroll=unroll, **of_params)

    # Lan et al. 2020, section 3.1, "Cross-layer parameter sharing".
    shared = {"variable_broadcast": "params", "split_rngs": {"params": False}}
    own = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
    outer, *inner = layer_axes(config)
    for length in inner:
        layer = loop(layer, length, **shared)
    return loop(layer, outer, **own)(config, keep)


def layer_axes(config: Model) -> tuple[int, ...]:
    """Of what each layer has its own: [N], or [groups, layers of a group]."""
    groups = config.layer_groups
    return (groups, config.layers // groups) if groups else (config.layers,)


class Dropouts(NamedTuple):
    """Random words of every place where the encoder drops values."""

    embeddings: Words
    layers: UInt32[Array, "*N 3 2"]  # attention probabilities and output, mlp output


def draw(rng: jax.Array | None, config: Model) -> Dropouts | None:
    """One step's dropout from its rng; None stays None (no dropout)."""
    if rng is None:
        return None
    shape = (*layer_axes(config), 3, 2)
    words = jax.random.bits(jax.random.fold_in(rng, 0), shape, jnp.uint32)
    return Dropouts(
        jax.random.bits(jax.random.fold_in(rng, 1), (2,), jnp.uint32), words
    )
