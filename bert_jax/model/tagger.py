"""A tagger on top of a frozen encoder: its features, an LSTM, one layer."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bert_jax.model.bert import Batch, Bert
from bert_jax.model.layers import dropout
from bert_jax.model.products import product

_STATES = {  # of the encoder; the embeddings are the first
    "embeddings": 0,
    "second_to_last": -2,
    "last": -1,
    "sum_last_4": slice(-4, None),
    "concat_last_4": slice(-4, None),
    "sum_all": slice(1, None),
}


class FeatureTagger(Bert):
    """Bert whose `tag` reads fixed features, which give the encoder no gradient.

    Attributes:
      features: `embeddings`, `second_to_last`, `last`, `concat_last_4`, or a learned
        mean of layers: `sum_last_4` or `sum_all`, which is without the embeddings.
      units: of each direction of the LSTM.

    Devlin et al. 2019, section 5.3, table 7.
    """

    keep: str = "hidden"
    features: str = "concat_last_4"
    units: int = 768

    def setup(self) -> None:
        """Declares the parameters and parts."""
        super().setup()
        self.mix = Mix()

    def tag(self, batch: Batch, rng: jax.Array | None = None) -> Float[Array, "B L C"]:
        """float32 logits of the head for each token."""
        states = jax.lax.stop_gradient(self.hidden_states(batch))
        x = self._choose(states)
        if rng is not None:
            words = jax.random.bits(jax.random.fold_in(rng, 3), (2,), jnp.uint32)
            x = dropout(x, words, self.config.dropout)
        return self._classes(self.lstm(x, jnp.asarray(batch["example"])), rng)

    def _choose(self, states: Float[Array, "states B L D"]) -> Float[Array, "B L _"]:
        chosen = states[_STATES[self.features]]
        if self.features == "concat_last_4":
            return jnp.concatenate(list(chosen), -1)
        return self.mix(chosen) if "sum" in self.features else chosen


class Mix(nn.Module):
    """A learned mean of layers and its scale.

    Peters et al. 2018, "Deep contextualized word representations", equation 1.
    """

    @nn.compact
    def __call__(self, states: Float[Array, "layers B L D"]) -> Float[Array, "B L D"]:
        """Mixes float arrays in their own dtype."""
        weight = self.param("weight", nn.initializers.zeros, states.shape[:1])
        scale = self.param("scale", nn.initializers.ones, ())
        share = (scale * jax.nn.softmax(weight)).astype(states.dtype)
        return product("N,NBLD->BLD", share, states, states.dtype, states.dtype)
