"""Classes or numbers for texts and pairs of texts, from the summary of [CLS]."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bert_jax import metrics
from bert_jax.config import Model, TaskSettings
from bert_jax.losses import cross_entropy
from bert_jax.model import Batch, Bert
from bert_jax.tasks import Pairs, Task


def classify(model: Model, settings: TaskSettings) -> Task:
    """The task of naming the class of each example, or of giving it a number.

    Args:
      model: sizes and numerics.
      settings: `kind` is classify, with a class for each of `labels`, or regress.

    Returns:
      A Task with the pairs `loss` and, of classes, `accuracy`; a batch has `label`
      [B, K] (int32 classes or float32 numbers) and `weight` float32 [B, K]. `predict`
      gives `logits` float32 [B, K, C], with C = 1 for numbers.

    Devlin et al. 2019, section 4.1; numbers by mean squared error.
    """
    numbers = settings.kind == "regress"
    bert: Any = Bert(model, classes=1 if numbers else len(settings.labels))

    def logits(
        params: dict[str, Any], batch: Batch, rng: jax.Array | None = None
    ) -> jax.Array:
        return bert.apply({"params": params}, batch, rng, method="classify")

    def init(rng: jax.Array) -> dict[str, Any]:
        keys = ("token", "segment", "position", "example", "nsp_position")
        batch = {key: jnp.zeros((1, 2), jnp.int32) for key in keys}
        return bert.init(rng, batch, method="classify")["params"]

    def loss(params: dict[str, Any], batch: Batch, rng: jax.Array | None) -> Pairs:
        found = logits(params, batch, rng)
        label, weight = jnp.asarray(batch["label"]), jnp.asarray(batch["weight"])
        if numbers:
            error = jnp.square(found[:, :, 0] - label)
            return {"loss": ((error * weight).sum(), weight.sum())}
        entropy, right = cross_entropy(found, label, weight)
        return {"loss": entropy, "accuracy": right}

    def predict(params: dict[str, Any], batch: Batch) -> Batch:
        return {"logits": logits(params, batch)}

    def score(sums: Mapping[str, tuple[float, float]]) -> dict[str, float]:
        return {f"eval_{k}": float(v) for k, v in metrics.divide(sums).items()}

    return Task(init, loss, ("loss",), predict, score, "eval_score", largest=True)
