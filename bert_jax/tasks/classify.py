"""Classes or numbers for texts and pairs of texts, and classes for their tokens."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from bert_jax.config import Model, TaskSettings
from bert_jax.losses import cross_entropy
from bert_jax.model import Batch, Bert
from bert_jax.model.tagger import FeatureTagger
from bert_jax.tasks import Pairs, Task, ratios


def classify(model: Model, settings: TaskSettings) -> Task:
    """The task of naming the class of each example or token, or of giving a number.

    Args:
      model: sizes and numerics.
      settings: `kind` is classify or tag, with a class for each of `labels`, regress,
        or choice, where a batch has `group` int32 [B, K] and label 1 for right;
        `features` leaves the encoder as it is and tags by an LSTM.

    Returns:
      A Task with the pairs `loss` and, of classes, `accuracy`; a batch has `label`
      (int32 classes or float32 numbers) and `weight` float32, [B, K] of examples or,
      to tag, [B, L] of tokens. `predict` gives `logits` float32 of the same shape
      with an axis C, which is 1 for numbers.

    Devlin et al. 2019, sections 4.1, 4.4 and 5.3; numbers by mean squared error.
    """
    method = "tag" if settings.kind == "tag" else "classify"
    numbers = settings.kind in ("regress", "choice")
    classes = 1 if numbers else len(settings.labels)
    bert: Any = Bert(model, classes)
    if settings.features:
        kind, units = settings.features, settings.lstm_hidden
        bert = FeatureTagger(model, classes, features=kind, units=units)

    def logits(
        params: dict[str, Any], batch: Batch, rng: jax.Array | None = None
    ) -> jax.Array:
        return bert.apply({"params": params}, batch, rng, method=method)

    def init(rng: jax.Array) -> dict[str, Any]:
        keys = ("token", "segment", "position", "example", "nsp_position")
        batch = {key: jnp.zeros((1, 2), jnp.int32) for key in keys}
        return bert.init(rng, batch, method=method)["params"]

    def loss(params: dict[str, Any], batch: Batch, rng: jax.Array | None) -> Pairs:
        found = logits(params, batch, rng)
        label, weight = jnp.asarray(batch["label"]), jnp.asarray(batch["weight"])
        if settings.kind == "choice":
            return _choose(found[:, :, 0], label, weight, jnp.asarray(batch["group"]))
        if numbers:
            error = jnp.square(found[:, :, 0] - label)
            return {"loss": ((error * weight).sum(), weight.sum())}
        entropy, right = cross_entropy(found, label, weight)
        return {"loss": entropy, "accuracy": right}

    def predict(params: dict[str, Any], batch: Batch) -> Batch:
        return {"logits": logits(params, batch)}

    return Task(init, loss, ("loss",), predict, ratios, "eval_score", largest=True)


def untrained(settings: TaskSettings) -> str:
    """A regex of the paths of the parameters that a task does not train, or ""."""
    return "^(embeddings|layers)/" if settings.features else ""


def _choose(
    score: Float[Array, "B K"],
    right: Int32[Array, "B K"],
    weight: Float[Array, "B K"],
    group: Int32[Array, "B K"],
) -> Pairs:
    """Softmax over the choices of each question, wherever in the batch they lie."""
    count = score.size  # no batch has more questions than slots
    flat = [x.reshape(-1) for x in (score, right * weight, weight, group)]
    score, right, weight, group = flat
    real = jnp.where(weight > 0, score, -jnp.inf)
    top = jax.lax.stop_gradient(jax.ops.segment_max(real, group, count))
    top = jnp.where(jnp.isfinite(top), top, 0)
    power = jnp.where(weight > 0, jnp.exp(score - top[group]), 0)
    total = jax.ops.segment_sum(power, group, count)
    log_total = top + jnp.log(jnp.where(total > 0, total, 1))
    questions = right.sum()
    loss = (right * (log_total[group] - score)).sum()
    best = (right * (score >= top[group])).sum()
    return {"loss": (loss, questions), "accuracy": (best, questions)}
