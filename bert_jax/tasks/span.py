"""Answers as spans of a text: where they begin and where they end."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from bert_jax.config import Model
from bert_jax.model import Batch, Bert
from bert_jax.tasks import Pairs, Parts, Task, ratios


def span(model: Model, units: int = 0) -> Task:
    """The task of finding an answer's first and last token.

    Args:
      model: sizes and numerics.
      units: of each direction of an LSTM that the head reads; 0 is none.

    Returns:
      A Task with the pairs `loss`, the mean of both ends, and `accuracy`, both ends
      right. A batch has `label` int32 [B, K, 2], tokens counted from the example's
      [CLS], which means no answer, and `weight` float32 [B, K]. `predict` gives
      `logits` float32 [B, L, 2].

    Devlin et al. 2019, sections 4.2 and 4.3.
    """
    bert: Any = Bert(model, classes=2, units=units)

    def init(rng: jax.Array) -> dict[str, Any]:
        keys = ("token", "segment", "position", "example")
        batch = {key: jnp.zeros((1, 2), jnp.int32) for key in keys}
        return bert.init(rng, batch, method="tag")["params"]

    def pairs(found: jax.Array, batch: Batch) -> Pairs:
        arrays = {name: jnp.asarray(value) for name, value in batch.items()}
        first = arrays["nsp_position"]
        label = first[:, :, None] + arrays["label"]
        entropy, right = _ends(found, arrays["example"], label)
        weight, total = arrays["weight"], arrays["weight"].sum()
        return {
            "loss": ((entropy.mean(-1) * weight).sum(), total),
            "accuracy": ((right.all(-1) * weight).sum(), total),
        }

    def choices(found: jax.Array, batch: Batch) -> Pairs:
        weight = jnp.asarray(batch["weight"])[:, :, None]
        inside = _inside(found, jnp.asarray(batch["example"]), weight.shape[1])
        both = jnp.broadcast_to(weight, (*weight.shape[:2], 2))
        return {"loss": (jnp.swapaxes(inside, 2, 3), both)}

    def predict(params: dict[str, Any], batch: Batch) -> Batch:
        return {"logits": bert.apply({"params": params}, batch, method="tag")}

    parts = Parts(bert, "tag", pairs, choices)
    best = "eval_score", True
    return Task(init, parts.loss, ("loss",), predict, ratios, *best, parts)


def _inside(
    logits: Float[Array, "B L 2"], example: Int32[Array, "B L"], slots: int
) -> Float[Array, "B K L 2"]:
    """The logits of the tokens of each example, of others next to none."""
    number = jnp.arange(slots)[None, :, None] + 1
    own = (example[:, None] == number)[..., None]
    return jnp.where(own, logits[:, None], -1e30)


def _ends(
    logits: Float[Array, "B L 2"],
    example: Int32[Array, "B L"],
    label: Int32[Array, "B K 2"],
) -> tuple[Float[Array, "B K 2"], Float[Array, "B K 2"]]:
    """Cross entropy over the tokens of each example, and whether the best is right."""
    inside = _inside(logits, example, label.shape[1])
    log_total = jax.nn.logsumexp(inside, axis=2)
    place = jnp.minimum(label, logits.shape[1] - 1)
    mine = jnp.take_along_axis(inside, place[:, :, None], axis=2)[:, :, 0]
    # An empty slot has no token of its own, and must give a number all the same.
    mine = jnp.where(inside.max(2) > -1e30, mine, log_total)
    return log_total - mine, (mine >= inside.max(2)).astype(jnp.float32)
