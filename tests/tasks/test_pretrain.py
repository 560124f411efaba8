"""The pretraining task through the five functions of `Task`."""

import jax
import numpy as np
import optax
import pytest

from bert_jax.config import Objective
from bert_jax.tasks.pretrain import pretrain
from tests.model.batches import SMALL, mean_loss, packed, some_params, task


def test_pairs_and_terms():
    params, batch = some_params(), packed([7, 5, 3])
    pairs = jax.jit(task().loss)(params, batch, None)
    names = {"mlm_loss", "mlm_accuracy", "nsp_loss", "nsp_accuracy"}
    assert pairs.keys() == names
    assert task().terms == ("mlm_loss", "nsp_loss")
    assert pairs["mlm_loss"][1] == batch["mlm_weight"].sum()
    assert pairs["nsp_accuracy"][1] == 15


def test_without_sentence_pairs():
    params = some_params(pair="none")
    batch = packed([7, 5, 3])
    batch = {name: x for name, x in batch.items() if not name.startswith("nsp")}
    pairs = jax.jit(task(pair="none").loss)(params, batch, jax.random.key(0))
    assert pairs.keys() == {"mlm_loss", "mlm_accuracy"}
    assert task(pair="none").terms == ("mlm_loss",)
    assert jax.jit(task(pair="none").predict)(params, batch).keys() == {"mlm_logits"}


def test_span_boundaries_and_order_have_names_of_their_own():
    objective = Objective(pair="sop", masking="span", span_boundary=True)
    asked, batch = pretrain(SMALL, objective), packed([7, 5, 3])
    for name in ("left", "right", "offset"):
        batch[f"sbo_{name}"] = batch["mlm_position"]
    params = jax.jit(asked.init)(jax.random.key(0))
    pairs = jax.jit(asked.loss)(params, batch, None)
    assert asked.terms == ("mlm_loss", "sop_loss", "sbo_loss")
    parts = ("mlm", "sop", "sbo")
    assert pairs.keys() == {f"{p}_{k}" for p in parts for k in ("loss", "accuracy")}
    assert pairs["sbo_loss"][1] == batch["mlm_weight"].sum()
    assert pairs["sop_loss"][1] == batch["nsp_weight"].sum()
    logits = jax.jit(asked.predict)(params, batch)
    assert logits["sbo_logits"].shape == logits["mlm_logits"].shape == (5, 4, 37)
    log = np.asarray(jax.nn.log_softmax(logits["sbo_logits"]))
    chosen = np.take_along_axis(log, batch["mlm_label"][..., None], -1)[..., 0]
    total = -(chosen * batch["mlm_weight"]).sum()
    assert pairs["sbo_loss"][0] == pytest.approx(total, rel=1e-4)


def test_predictions_agree_with_the_loss():
    params, batch = some_params(), packed([7, 5, 3])
    logits = jax.jit(task().predict)(params, batch)
    assert logits["mlm_logits"].shape == (5, 4, 37)
    assert logits["nsp_logits"].shape == (5, 3, 2)
    pairs = jax.jit(task().loss)(params, batch, None)
    for name in ("mlm", "nsp"):
        label, weight = batch[f"{name}_label"], batch[f"{name}_weight"]
        log = np.asarray(jax.nn.log_softmax(logits[f"{name}_logits"]))
        chosen = np.take_along_axis(log, label[..., None], -1)[..., 0]
        assert pairs[f"{name}_loss"][0] == pytest.approx(
            -(chosen * weight).sum(), rel=1e-4
        )


def test_score_divides():
    sums = {"mlm_loss": (6.0, 4.0), "mlm_accuracy": (1.0, 4.0)}
    assert task().score(sums) == {"eval_mlm_loss": 1.5, "eval_mlm_accuracy": 0.25}


def test_loss_falls():
    batch, params = packed([7, 5, 3]), jax.jit(task().init)(jax.random.key(0))
    optimizer = optax.adam(3e-3)
    state, losses = optimizer.init(params), []

    @jax.jit
    def step(params, state):
        loss, grads = jax.value_and_grad(mean_loss(SMALL))(params, batch)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, loss

    for _ in range(60):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    assert losses[0] == pytest.approx(np.log(37) + np.log(2), abs=0.3)
    assert losses[-1] < 0.5 * losses[0]
