"""The BERT encoder and its heads, as pure functions of (params, batch, rng)."""

from bert_jax.model.bert import Batch, Bert, gather
from bert_jax.model.encoder import padded_vocabulary

__all__ = ["Batch", "Bert", "gather", "padded_vocabulary"]
