"""Pretraining: masked tokens and, with sentence pairs, next sentence prediction."""

from typing import Any

import jax
import jax.numpy as jnp

from bert_jax.config import Model, Objective
from bert_jax.losses import cross_entropy
from bert_jax.model import Batch, Bert
from bert_jax.tasks import Pairs, Task, ratios


def pretrain(model: Model, objective: Objective) -> Task:
    """The task of pretraining BERT.

    Args:
      model: sizes and numerics.
      objective: `pair=nsp` adds next sentence prediction to masked tokens.

    Returns:
      A Task with the pairs `mlm_loss mlm_accuracy` and, for `pair=nsp`,
      `nsp_loss nsp_accuracy`; `predict` gives `mlm_logits` float32 [B, P, V] over
      the real vocabulary and `nsp_logits` float32 [B, K, 2].

    Devlin et al. 2019, section 3.1: the loss is the sum of both means.
    """
    names = ("mlm", "nsp") if objective.pair == "nsp" else ("mlm",)
    bert: Any = Bert(model)

    def logits(
        params: dict[str, Any], batch: Batch, rng: jax.Array | None = None
    ) -> Batch:
        return bert.apply({"params": params}, batch, rng, method="pretrain")

    def init(rng: jax.Array) -> dict[str, Any]:
        keys = ["token", "segment", "position", "example"]
        keys += [f"{name}_position" for name in names]
        batch = {key: jnp.zeros((1, 2), jnp.int32) for key in keys}
        return bert.init(rng, batch, method="pretrain")["params"]

    def loss(params: dict[str, Any], batch: Batch, rng: jax.Array | None) -> Pairs:
        outputs, pairs = logits(params, batch, rng), {}
        for name in names:
            label = jnp.asarray(batch[f"{name}_label"])
            weight = jnp.asarray(batch[f"{name}_weight"])
            scores = outputs[f"{name}_logits"]
            entropy, right = cross_entropy(scores, label, weight)
            pairs |= {f"{name}_loss": entropy, f"{name}_accuracy": right}
        return pairs

    def predict(params: dict[str, Any], batch: Batch) -> Batch:
        outputs = logits(params, batch)
        real = outputs["mlm_logits"][:, :, : model.vocab_size]
        return outputs | {"mlm_logits": real}

    terms = tuple(f"{name}_loss" for name in names)
    return Task(init=init, loss=loss, terms=terms, predict=predict, score=ratios)
