"""Answers as spans of a text: where they begin and where they end."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from bert_jax.config import Model
from bert_jax.model import Batch, Bert
from bert_jax.tasks import Pairs, Task, ratios


def span(model: Model) -> Task:
    """The task of finding an answer's first and last token.

    Args:
      model: sizes and numerics.

    Returns:
      A Task with the pairs `loss`, the mean of both ends, and `accuracy`, both ends
      right. A batch has `label` int32 [B, K, 2], tokens counted from the example's
      [CLS], which means no answer, and `weight` float32 [B, K]. `predict` gives
      `logits` float32 [B, L, 2].

    Devlin et al. 2019, sections 4.2 and 4.3.
    """
    bert: Any = Bert(model, classes=2)

    def logits(
        params: dict[str, Any], batch: Batch, rng: jax.Array | None = None
    ) -> jax.Array:
        return bert.apply({"params": params}, batch, rng, method="tag")

    def init(rng: jax.Array) -> dict[str, Any]:
        keys = ("token", "segment", "position", "example")
        batch = {key: jnp.zeros((1, 2), jnp.int32) for key in keys}
        return bert.init(rng, batch, method="tag")["params"]

    def loss(params: dict[str, Any], batch: Batch, rng: jax.Array | None) -> Pairs:
        arrays = {name: jnp.asarray(value) for name, value in batch.items()}
        first = arrays["nsp_position"]
        entropy, right = _ends(
            logits(params, batch, rng),
            arrays["example"],
            first[:, :, None] + arrays["label"],
        )
        weight, total = arrays["weight"], arrays["weight"].sum()
        return {
            "loss": ((entropy.mean(-1) * weight).sum(), total),
            "accuracy": ((right.all(-1) * weight).sum(), total),
        }

    def predict(params: dict[str, Any], batch: Batch) -> Batch:
        return {"logits": logits(params, batch)}

    return Task(init, loss, ("loss",), predict, ratios, "eval_score", largest=True)


def _ends(
    logits: Float[Array, "B L 2"],
    example: Int32[Array, "B L"],
    label: Int32[Array, "B K 2"],
) -> tuple[Float[Array, "B K 2"], Float[Array, "B K 2"]]:
    """Cross entropy over the tokens of each example, and whether the best is right."""
    slots = jnp.arange(label.shape[1])[None, :, None] + 1
    own = (example[:, None] == slots)[..., None]
    inside = jnp.where(own, logits[:, None], -1e30)
    log_total = jax.nn.logsumexp(inside, axis=2)
    place = jnp.minimum(label, logits.shape[1] - 1)
    mine = jnp.take_along_axis(inside, place[:, :, None], axis=2)[:, :, 0]
    # An empty slot has no token of its own, and must give a number all the same.
    mine = jnp.where(own.any(2), mine, log_total)
    return log_total - mine, (mine >= inside.max(2)).astype(jnp.float32)
