"""Pretraining: masked, next or replaced tokens, pairs and span boundaries."""

from typing import Any

import jax
import jax.numpy as jnp

from bert_jax.config import Model, Objective
from bert_jax.losses import cross_entropy
from bert_jax.model import Batch, Bert
from bert_jax.model.electra import Electra
from bert_jax.tasks import Pairs, Parts, Task, ratios


def pretrain(model: Model, objective: Objective) -> Task:
    """The task of pretraining BERT.

    Args:
      model: sizes and numerics.
      objective: its `kind` decides between masked, next and replaced tokens; `pair`
        adds next sentence or sentence order prediction to masked tokens,
        `span_boundary` a second prediction of these.

    Returns:
      A Task with the pairs `mlm_loss mlm_accuracy`, the same of `nsp` or `sop` by the
      name of the pair, and of `sbo`; `predict` gives `mlm_logits sbo_logits` float32
      [B, P, V] over the real vocabulary and `nsp_logits` float32 [B, K, 2]. Next
      tokens have the pairs `ltr_loss ltr_accuracy` in place of those of `mlm`;
      replaced ones add `rtd`, and `rtd_logits` float32 [B, L, 2].

    Devlin et al. 2019, section 3.1: the loss is the sum of the means; so it is in
    Joshi et al. 2020, section 3.2, and Lan et al. 2020, section 3.1. The last of Clark
    et al. 2020, section 2, is weighted.
    """
    token = "ltr" if objective.kind == "ltr" else "mlm"
    heads = {token: ("mlm", "mlm")}  # of each loss: the logits and the labels
    places = ["mlm_position"]
    if objective.pair != "none":
        heads[objective.pair] = "nsp", "nsp"
        places += ["nsp_position"]
    if objective.span_boundary:
        heads["sbo"] = "sbo", "mlm"
        places += ["sbo_left", "sbo_right", "sbo_offset"]
    bert: Any = Bert(model)
    if objective.kind == "rtd":
        bert = Electra(model, generator_size=objective.generator_size)
        heads["rtd"] = "rtd", "rtd"
        places += ["mlm_label", "mlm_weight"]

    def init(rng: jax.Array) -> dict[str, Any]:
        keys = ["token", "segment", "position", "example", *places]
        batch = {key: jnp.zeros((1, 2), jnp.int32) for key in keys}
        return bert.init(rng, batch, method="pretrain")["params"]

    def choices(outputs: Batch, batch: Batch) -> Pairs:
        # What is a replaced token depends on what the generator drew.
        whole = {**batch, **outputs}
        return {
            f"{name}_loss": (
                whole[f"{head}_logits"],
                jnp.asarray(whole[f"{labels}_weight"]),
            )
            for name, (head, labels) in heads.items()
        }

    def pairs(outputs: Batch, batch: Batch) -> Pairs:
        whole, found = {**batch, **outputs}, {}
        for term, (scores, weight) in choices(outputs, batch).items():
            name = term.removesuffix("_loss")
            label = jnp.asarray(whole[f"{heads[name][1]}_label"])
            entropy, right = cross_entropy(scores, label, weight)
            found |= {term: entropy, f"{name}_accuracy": right}
        return found

    def predict(params: dict[str, Any], batch: Batch) -> Batch:
        outputs = bert.apply({"params": params}, batch, method="pretrain")
        return {
            name: array[:, :, : model.vocab_size]
            for name, array in outputs.items()
            if name.endswith("_logits")
        }

    terms = tuple(f"{name}_loss" for name in heads)
    parts = Parts(bert, "pretrain", pairs, choices)
    best = "rtd" if objective.kind == "rtd" else token
    return Task(
        init,
        parts.loss,
        terms,
        predict,
        ratios,
        best=f"eval_{best}_loss",
        parts=parts,
        factors={"rtd_loss": objective.rtd_factor},
    )
