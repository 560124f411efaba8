"""ELECTRA: a small generator that replaces tokens, and a Bert that finds out which."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from bert_jax.config import Model
from bert_jax.model.bert import Batch, Bert, gather
from bert_jax.model.layers import Dense, Words, activate, gumbel


class Electra(Bert):
    """Bert as the discriminator, with the generator of its inputs.

    Both halves have the same embeddings. The generator is trained to predict masked
    tokens, never to deceive: nothing flows back through the tokens that it draws.

    Attributes:
      generator_size: of its layers, heads and features, over the discriminator's.

    Clark et al. 2020, sections 2 and 3.2.
    """

    generator_size: float = 0.25

    def setup(self) -> None:
        """Declares the parameters and parts."""
        super().setup()
        small = self.config.narrowed(self.generator_size)
        self.generator = Bert(small, shared=self.embeddings)
        self.rtd = ReplacedHead(self.config)

    def pretrain(self, batch: Batch, rng: jax.Array | None = None) -> Batch:
        """Logits of the generator and of the discriminator.

        Args:
          batch: that of `encode` with `mlm_position mlm_label` int32 and
            `mlm_weight` float32 [B, P].
          rng: a JAX key for dropout and for the tokens that are drawn; None is no
            dropout, and the same draw every time.

        Returns:
          `mlm_logits` float32 [B, P, V], V padded, `rtd_logits` float32 [B, L, 2],
          `rtd_label` int32 [B, L], 1 for a token that is not the original one, and
          `rtd_weight` float32 [B, L], 1 at all tokens that are no padding.
        """
        batch = {name: jnp.asarray(value) for name, value in batch.items()}
        rngs: list = [None, None]
        words = jnp.array([0x243F6A88, 0x85A308D3], jnp.uint32)
        if rng is not None:
            rngs = [jax.random.fold_in(rng, 4), jax.random.fold_in(rng, 5)]
            words = jax.random.bits(jax.random.fold_in(rng, 6), (2,), jnp.uint32)
        place, used = batch["mlm_position"], batch["mlm_weight"] > 0
        masked = gather(self.generator.encode(batch, rngs[0]), place)
        logits = self.generator.mlm(masked, self.embeddings.token)
        original = _put(batch["token"], place, batch["mlm_label"], used)
        token = _put(original, place, draw(logits, words), used)
        hidden = self.encode({**batch, "token": token}, rngs[1])
        return {
            "mlm_logits": logits,
            "rtd_logits": self.rtd(hidden),
            "rtd_label": (token != original).astype(jnp.int32),
            "rtd_weight": (batch["example"] > 0).astype(jnp.float32),
        }


def draw(logits: Float[Array, "B P V"], words: Words) -> Int32[Array, "B P"]:
    """A token from each softmax, by the largest of its logits with Gumbel noise."""
    noisy = jax.lax.stop_gradient(logits) + gumbel(words, logits.shape)
    return noisy.argmax(-1).astype(jnp.int32)


def _put(token, place, new, used):
    """`token` with `new` at those places that are used; the others lie outside."""
    place = jnp.where(used, place, token.shape[1])
    return jax.vmap(lambda row, at, x: row.at[at].set(x, mode="drop"))(
        token, place, new
    )


class ReplacedHead(nn.Module):
    """Tells for each token whether it is the original one.

    Clark et al. 2020, section 2, with the layer between of the authors' code.
    """

    config: Model

    def setup(self) -> None:
        """Declares the parameters and parts."""
        self.transform = Dense(self.config, (self.config.hidden,))
        self.out = Dense(self.config, (1,))

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L 2"]:
        """float32 logits of original and replaced; the first are 0."""
        y = self.out(activate(self.transform(x), self.config.activation))
        y = y.astype(jnp.float32)
        return jnp.concatenate([jnp.zeros_like(y), y], axis=-1)
