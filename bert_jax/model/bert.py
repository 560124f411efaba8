"""BERT: the encoder, the pooler and the pretraining heads."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from bert_jax.config import Model
from bert_jax.model.attention import Places, turns
from bert_jax.model.encoder import (
    Embeddings,
    draw,
    layer_axes,
    padded_vocabulary,
    stack,
)
from bert_jax.model.layers import (
    Dense,
    Norm,
    activate,
    dropout,
    initializer,
)
from bert_jax.model.lstm import BiLSTM
from bert_jax.model.products import gather, matmul_dtype, product

Batch = dict[str, Any]  # of arrays; see the data pipeline
_OFFSETS = 200  # [tokens] of a span that are told apart


class Bert(nn.Module):
    """BERT with the heads that its methods ask for.

    A part has parameters only if `init` ran a method that uses it, so a model
    without sentence pairs has neither `pooler` nor `nsp`.

    Attributes:
      config: the model's sizes and numerics.
      classes: of the head of a fine-tuned model.
      units: of each direction of an LSTM that the head reads; 0 is none.
      shared: embeddings of another model to use, of the same config but for widths.
      keep: `hidden`, what `hidden_states` gives, or `scores`, what `traces` gives;
        costs memory.

    Devlin et al. 2019, sections 3 and 3.1, appendix A.2.
    """

    config: Model
    classes: int = 0
    units: int = 0
    keep: str = ""
    shared: Embeddings | None = None

    def setup(self) -> None:
        """Declares the parameters and parts."""
        config = self.config
        self.embeddings = self.shared or Embeddings(config)
        if config.embedding_width != config.hidden:
            self.project = Dense(config, (config.hidden,))
        self.layers = stack(config, self.keep)
        if config.norm != "post":
            self.norm = Norm(config)
        self.pooler = Dense(config, (config.hidden,))
        self.mlm = MaskedHead(config)
        self.sbo = BoundaryHead(config)
        self.nsp = Dense(config, (2,))
        if self.units:
            self.lstm = BiLSTM(self.units, layers=2)
        self.head = Dense(config, (self.classes,))

    def encode(
        self, batch: Batch, rng: jax.Array | None = None
    ) -> Float[Array, "B L D"]:
        """The last layer's features at every position.

        Args:
          batch: `token segment position example`, int32 [B, L].
          rng: a JAX key for dropout; None is no dropout.

        Returns:
          config.dtype [B, L, D].
        """
        if self.keep:  # for `capture_intermediates`, by which one pass gives all
            return self.traces(batch, rng)[0][-1]
        return self._layers(batch, rng)[1]

    def hidden_states(self, batch: Batch) -> Float[Array, "states B L D"]:
        """The embeddings and every layer's features, of a model that keeps them.

        Args:
          batch: that of `encode`.

        Returns:
          config.dtype [N + 1, B, L, D]: embeddings first, the last layer last.
        """
        return self.traces(batch)[0]

    def traces(
        self, batch: Batch, rng: jax.Array | None = None
    ) -> tuple[Float[Array, "states B L D"], Float[Array, "N B H L L"] | None]:
        """The same with dropout, and the scores of each layer's attention.

        Args:
          batch: that of `encode`.
          rng: a JAX key for dropout; None is no dropout.

        Returns:
          What `hidden_states` gives and, of a model that keeps them, the float32
          scores [N, B, H, L, L] before the mask and the softmax, or else None.
        """
        embedded, last, kept = self._layers(batch, rng)
        axes = layer_axes(self.config)
        flat = [self.config.layers]
        each, scores = jax.tree.map(
            lambda x: x.reshape(flat + list(x.shape[len(axes) :])), kept
        )
        return jnp.concatenate([embedded[None], each[:-1], last[None]]), scores

    def _layers(self, batch: Batch, rng: jax.Array | None) -> tuple[Any, Any, Any]:
        """The embeddings, the last layer and what the layers keep."""
        config = self.config
        batch = {name: jnp.asarray(value) for name, value in batch.items()}
        words = draw(rng, config)
        x = self.embeddings(
            batch["token"],
            batch["segment"],
            batch["position"],
            None if words is None else words.embeddings,
        )
        if config.embedding_width != config.hidden:
            x = self.project(x)
        turn = wide = None
        if config.position == "rope":
            features = config.hidden // config.heads
            turn = turns(batch["position"], features, config.rope_base)
        if config.window:
            number = jnp.arange(config.layers).reshape(layer_axes(config))
            wide = number % config.global_every == 0
        per_layer = None if words is None else words.layers
        places = Places(batch["example"], turn)
        y, kept = self.layers(x, per_layer, wide, places)
        return x, y if config.norm == "post" else self.norm(y), kept

    def pool(
        self, hidden: Float[Array, "B L _"], batch: Batch
    ) -> Float[Array, "B K D"]:
        """A summary of each packed example from its first token, [CLS].

        Of a causal model it is from the last, the only one that has seen all.
        """
        place = jnp.asarray(batch["nsp_position"])
        if self.config.mixer == "causal_attention":
            example = jnp.asarray(batch["example"])
            own = jnp.take_along_axis(example, place, axis=1)
            place += (example[:, None] == own[:, :, None]).sum(-1) - 1
            # An unused slot points anywhere, but must give a number.
            place = jnp.minimum(place, example.shape[1] - 1)
        return activate(self.pooler(gather(hidden, place)), self.config.pooler)

    def pretrain(self, batch: Batch, rng: jax.Array | None = None) -> Batch:
        """Logits of all objectives that the batch has the places of.

        Args:
          batch: that of `encode` with `mlm_position` int32 [B, P]; for the span
            boundary objective `sbo_left sbo_right sbo_offset` int32 [B, P]; for
            sentence pairs `nsp_position` int32 [B, K].
          rng: a JAX key for dropout; None is no dropout.

        Returns:
          `mlm_logits sbo_logits` float32 [B, P, V], V padded; `nsp_logits` float32
          [B, K, 2].
        """
        batch = {name: jnp.asarray(value) for name, value in batch.items()}
        hidden = self.encode(batch, rng)
        masked = gather(hidden, batch["mlm_position"])
        logits = {"mlm_logits": self.mlm(masked, self.embeddings.token)}
        if "sbo_left" in batch:
            left, right = (gather(hidden, batch[f"sbo_{s}"]) for s in ("left", "right"))
            logits["sbo_logits"] = self.sbo(
                left, right, batch["sbo_offset"], self.embeddings.token
            )
        if "nsp_position" in batch:
            pair = self.nsp(self.pool(hidden, batch))
            logits["nsp_logits"] = pair.astype(jnp.float32)
        return logits

    def classify(
        self, batch: Batch, rng: jax.Array | None = None
    ) -> Float[Array, "B K C"]:
        """float32 logits of the head for each packed example; needs `nsp_position`.

        Devlin et al. 2019, section 4.1: a dropout, then one layer, on the summary.
        """
        return self._classes(self.pool(self._tuned(batch, rng), batch), rng)

    def tag(self, batch: Batch, rng: jax.Array | None = None) -> Float[Array, "B L C"]:
        """float32 logits of the head for each token, of answer spans too.

        Devlin et al. 2019, sections 4.2 and 5.3.
        """
        return self._classes(self._tuned(batch, rng), rng)

    def _tuned(self, batch: Batch, rng: jax.Array | None) -> Any:
        """What the head of a fine-tuned model reads; table 5 of Devlin et al. 2019."""
        x = self.encode(batch, rng)
        return self.lstm(x, jnp.asarray(batch["example"])) if self.units else x

    def _classes(self, x: Float[Array, "B _ D"], rng: jax.Array | None) -> Any:
        if rng is not None:
            words = jax.random.bits(jax.random.fold_in(rng, 2), (2,), jnp.uint32)
            x = dropout(x, words, self.config.dropout)
        return self.head(x).astype(jnp.float32)


class MaskedHead(nn.Module):
    """Predicts tokens: a transform, then the token embeddings as the output layer.

    Rows that only pad the table to a round size get a logit of -1e9: no
    probability and no gradient.

    Devlin et al. 2019, section 3.1; the tied output layer is Press and Wolf 2017.
    """

    config: Model

    def setup(self) -> None:
        """Declares the parameters and parts."""
        config = self.config
        self.transform = Dense(config, (config.embedding_width,))
        self.norm = Norm(config)
        shape = (padded_vocabulary(config),)
        self.bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)

    def __call__(
        self, x: Float[Array, "B P D"], token: Float[Array, "V E"]
    ) -> Float[Array, "B P V"]:
        """Logits over the padded vocabulary from features and the token table."""
        x = self.norm(activate(self.transform(x), self.config.activation))
        real = jnp.arange(len(self.bias)) < self.config.vocab_size
        bias = jnp.where(real, self.bias, -1e9)
        logits: Array = _tied(matmul_dtype(self.config), x, token, bias)
        return logits


class BoundaryHead(nn.Module):
    """Predicts the tokens of a masked span from the two tokens that enclose it.

    Joshi et al. 2020, section 3.2. Their embedding of a token's place in the span has
    200 features and 20 places. This one is as wide as the model, and has 200 places,
    the last for all tokens beyond: of byte-level words ten may be longer than 20.
    """

    config: Model

    def setup(self) -> None:
        """Declares the parameters and parts."""
        config, init = self.config, initializer(self.config)
        shape = (_OFFSETS, config.hidden)
        self.offset = self.param("offset", init, shape, jnp.float32)
        self.first = Dense(config, (config.hidden,))
        self.norm = Norm(config)
        self.mlm = MaskedHead(config)

    def __call__(
        self,
        left: Float[Array, "B P D"],
        right: Float[Array, "B P D"],
        offset: Int32[Array, "B P"],
        token: Float[Array, "V E"],
    ) -> Float[Array, "B P V"]:
        """Logits over the padded vocabulary; `token` is the table of embeddings."""
        # A product, as for segments: most tokens share a few rows.
        offset = jnp.minimum(offset, _OFFSETS - 1)
        one_hot = jax.nn.one_hot(offset, _OFFSETS, dtype=jnp.float32)
        place = product(1, one_hot, self.offset, jnp.float32, jnp.float32)
        x = jnp.concatenate([left, right, place.astype(left.dtype)], axis=-1)
        x = self.norm(activate(self.first(x), self.config.activation))
        return self.mlm(x, token)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tied(dtype, x, table, bias):
    return _tied_forward(dtype, x, table, bias)[0]


def _tied_forward(dtype, x, table, bias):
    y = product("BPD,VD->BPV", x, table, dtype, jnp.float32)
    return y + bias[None, None], (x, table)


def _tied_backward(dtype, kept, gradient):
    """As autodiff, but with the small result transposed, not the large gradient.

    The table's is float32, so that it and that of the lookup are reduced as one. The
    bias's is a product with ones: XLA's CPU back end sums so many columns ten times
    slower.
    """
    x, table = kept
    ones = jnp.ones(gradient.shape[:2], gradient.dtype)
    of_bias = product("BP,BPV->V", ones, gradient, jnp.float32, jnp.float32)
    gradient = gradient.astype(x.dtype)
    of_x = product("BPV,VD->BPD", gradient, table, dtype, x.dtype)
    of_table = product("BPD,BPV->DV", x, gradient, dtype, jnp.float32)
    return of_x, of_table.T, of_bias


_tied.defvjp(_tied_forward, _tied_backward)
