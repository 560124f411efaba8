"""Classes or numbers for texts and pairs of texts, and classes for their tokens."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from bert_jax.config import Model, TaskSettings
from bert_jax.losses import cross_entropy
from bert_jax.model import Batch, Bert
from bert_jax.model.parts import pattern
from bert_jax.model.tagger import FeatureTagger
from bert_jax.tasks import Pairs, Parts, Task, ratios


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
    units = settings.lstm_hidden
    bert: Any = Bert(model, classes, units * settings.lstm)
    if settings.features:
        kind = settings.features
        bert = FeatureTagger(model, classes, features=kind, units=units)

    def init(rng: jax.Array) -> dict[str, Any]:
        keys = ("token", "segment", "position", "example", "nsp_position")
        batch = {key: jnp.zeros((1, 2), jnp.int32) for key in keys}
        return bert.init(rng, batch, method=method)["params"]

    def pairs(found: jax.Array, batch: Batch) -> Pairs:
        label, weight = jnp.asarray(batch["label"]), jnp.asarray(batch["weight"])
        if settings.kind == "choice":
            return _choose(found[:, :, 0], label, weight, jnp.asarray(batch["group"]))
        if numbers:
            error = jnp.square(found[:, :, 0] - label)
            return {"loss": ((error * weight).sum(), weight.sum())}
        entropy, right = cross_entropy(found, label, weight)
        return {"loss": entropy, "accuracy": right}

    def choices(found: jax.Array, batch: Batch) -> Pairs:
        weight = jnp.asarray(batch["weight"])
        if settings.kind == "choice":
            return {"loss": _questions(found, weight, jnp.asarray(batch["group"]))}
        return {"loss": (found, weight)}

    def predict(params: dict[str, Any], batch: Batch) -> Batch:
        return {"logits": bert.apply({"params": params}, batch, method=method)}

    parts = Parts(bert, method, pairs, choices)
    best = "eval_score", True
    return Task(init, parts.loss, ("loss",), predict, ratios, *best, parts)


def untrained(settings: TaskSettings) -> str:
    """A regex of the paths of the parameters that a task does not train, or ""."""
    return pattern() if settings.features else ""


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


def _questions(
    score: Float[Array, "B K 1"],
    weight: Float[Array, "B K"],
    group: Int32[Array, "B K"],
) -> tuple[Float[Array, "Q N"], Float[Array, "Q"]]:
    """The scores of the choices of each question, and whether there is that question.

    As many of both as the batch has slots, for want of a better bound.
    """
    flat = [x.reshape(-1) for x in (score, weight, group)]
    score, weight, group = flat
    own = group[None] == jnp.arange(score.size)[:, None]
    own &= (weight > 0)[None]
    return jnp.where(own, score[None], -1e30), own.any(1).astype(jnp.float32)
