"""Embeddings and the stack of post-LayerNorm Transformer layers."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, UInt32

from bert_jax.config import Model
from bert_jax.model.attention import Attention
from bert_jax.model.layers import Dense, Norm, Words, dropout, initializer
from bert_jax.model.lstm import LSTM
from bert_jax.model.mamba import Mamba
from bert_jax.sharding import hold_looked_up, hold_rows


def padded_vocabulary(config: Model) -> int:
    """Rows of the token table: vocab_size rounded up to vocab_multiple."""
    return -(-config.vocab_size // config.vocab_multiple) * config.vocab_multiple


class Embeddings(nn.Module):
    """Sum of token, segment and position embeddings, normalised.

    Devlin et al. 2019, section 3, "Input/Output Representations".
    """

    config: Model

    def setup(self) -> None:
        """Declares the parameters and parts."""
        config, init = self.config, initializer(self.config)

        def table(name: str, rows: int) -> Array:
            return self.param(name, init, (rows, config.hidden), jnp.float32)

        self.token = table("token", padded_vocabulary(config))
        self.position = table("position", config.positions)
        self.segment = table("segment", config.segments)
        self.norm = Norm(config)

    def __call__(
        self,
        token: Int32[Array, "B L"],
        segment: Int32[Array, "B L"],
        position: Int32[Array, "B L"],
        words: Words | None,
    ) -> Float[Array, "B L D"]:
        """Embeds three int32 arrays in the dtype of the computation."""
        # Gathered in float32: a bfloat16 gather would add up its gradient in bfloat16.
        # Out of range is NaN ("fill"): a wrong vocabulary shows at the first step.
        # The axis of one keeps XLA from adding this gradient onto that of the output
        # layer before both are reduced over the devices: it would reduce each.
        total = jnp.take(self.token[None], token, axis=1)[0]
        total += jnp.take(self.position, position, axis=0)
        # A product, not a gather: its gradient would add all rows onto two of them.
        one_hot = jax.nn.one_hot(segment, self.config.segments, dtype=total.dtype)
        total += one_hot @ self.segment
        total = hold_looked_up(total)
        return dropout(self.norm(total), words, self.config.dropout)


class MLP(nn.Module):
    """The position-wise feed-forward sublayer, with its residual and LayerNorm.

    Vaswani et al. 2017, section 3.3.
    """

    config: Model

    def setup(self) -> None:
        """Declares the parameters and parts."""
        self.up = Dense(self.config, (self.config.mlp,))
        self.down = Dense(self.config, (self.config.hidden,))
        self.norm = Norm(self.config)

    def __call__(
        self, x: Float[Array, "B L D"], words: Words | None
    ) -> Float[Array, "B L D"]:
        """Applies the sublayer; `words` decides its dropout."""
        y = self.down(self.up(x), activation=self.config.activation)
        return self.norm(dropout(y, words, self.config.dropout), x)


_MIXERS = {"mamba": Mamba, "lstm": LSTM}


class Layer(nn.Module):
    """One post-LayerNorm layer, in the form that `nn.scan` takes.

    A mixer other than attention leaves residual, dropout and LayerNorm to the layer.
    """

    config: Model
    keep: bool = False

    def setup(self) -> None:
        """Declares the parameters and parts."""
        if self.config.mixer == "attention":
            self.attention = Attention(self.config)
        else:
            setattr(self, self.config.mixer, _MIXERS[self.config.mixer](self.config))
            self.norm = Norm(self.config)
        self.mlp = MLP(self.config)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        words: UInt32[Array, "sites 2"] | None,
        example: Int32[Array, "B L"],
    ) -> tuple[Float[Array, "B L D"], Float[Array, "B L D"] | None]:
        """Applies the layer; what `nn.scan` stacks comes second."""
        _, after, last = (None,) * 3 if words is None else words
        y = getattr(self, self.config.mixer)(
            x, example, None if words is None else words[:2]
        )
        if self.config.mixer != "attention":
            y = self.norm(dropout(y, after, self.config.dropout), x)
        x = hold_rows(y)
        x = hold_rows(self.mlp(x, last))
        return x, x if self.keep else None


def stack(config: Model, keep: bool) -> nn.Module:
    """All layers, their parameters stacked on a leading axis N.

    The second result is each layer's output, stacked, or None unless `keep`.

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
    scanned = nn.scan(
        layer,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(0, nn.broadcast),  # pyright: ignore
        length=config.layers,
        unroll=1 if config.scan else config.layers,
    )
    return scanned(config, keep)


class Dropouts(NamedTuple):
    """Random words of every place where the encoder drops values."""

    embeddings: Words
    layers: UInt32[Array, "N 3 2"]  # attention probabilities and output, mlp output


def draw(rng: jax.Array | None, layers: int) -> Dropouts | None:
    """One step's dropout from its rng; None stays None (no dropout)."""
    if rng is None:
        return None
    words = jax.random.bits(jax.random.fold_in(rng, 0), (layers, 3, 2), jnp.uint32)
    return Dropouts(
        jax.random.bits(jax.random.fold_in(rng, 1), (2,), jnp.uint32), words
    )
