"""The pretraining task through the five functions of `Task`."""

import jax
import numpy as np
import optax
import pytest

from bert_jax.config import Objective
from bert_jax.model.electra import draw
from bert_jax.tasks.pretrain import pretrain
from tests.model.batches import SMALL, mean_loss, packed, some_params, task, variant


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


def test_next_tokens_see_nothing_to_the_right():
    causal = variant(mixer="causal_attention")
    asked = pretrain(causal, Objective(kind="ltr", pair="none"))
    params, batch = some_params(causal, "none"), packed([7, 5, 3])
    batch = {name: x for name, x in batch.items() if not name.startswith("nsp")}
    batch["mlm_position"] = np.tile(np.arange(16, dtype=np.int32), (5, 1))
    logits = jax.jit(asked.predict)(params, batch)["mlm_logits"]
    changed = dict(batch, token=batch["token"].copy())
    changed["token"][:, 9] = (changed["token"][:, 9] + 1) % 37
    other = jax.jit(asked.predict)(params, changed)["mlm_logits"]
    moved = abs(np.asarray(logits - other)).max((0, 2)) > 1e-6
    assert moved.tolist() == [9 <= place < 12 for place in range(16)]
    assert asked.terms == ("ltr_loss",) and asked.best == "eval_ltr_loss"


def test_replaced_tokens():
    model, share = variant(heads=4, embedding=8), 0.5
    asked = pretrain(model, Objective(kind="rtd", pair="none", generator_size=share))
    batch = packed([7, 5, 3])
    # A place comes once, and the unused ones are 0 as those of the pipeline.
    batch["mlm_position"] = np.tile(np.array([1, 4, 9, 0], np.int32), (5, 1))
    batch["mlm_weight"] = np.tile(np.array([1, 1, 1, 0], np.float32), (5, 1))
    params = jax.jit(asked.init)(jax.random.key(0))
    assert set(params) == {*"embeddings project layers rtd generator".split()}
    assert params["generator"]["layers"]["mlp"]["up"]["kernel"].shape == (2, 6, 10)
    assert params["generator"]["mlm"]["transform"]["kernel"].shape == (6, 8)

    outputs = jax.jit(asked.parts.bert.apply, static_argnames="method")(
        {"params": params}, batch, method="pretrain"
    )
    label, weight = outputs["rtd_label"], outputs["rtd_weight"]
    places = np.zeros((5, 16), bool)
    places[:, [1, 4, 9]] = True
    assert label.sum() and not label[~places].any()
    np.testing.assert_array_equal(weight, batch["example"] > 0)
    pairs = jax.jit(asked.loss)(params, batch, None)
    odds = np.asarray(outputs["rtd_logits"][:, :, 1], np.float64)
    entropy = np.log1p(np.exp(np.where(label == 1, -odds, odds)))
    assert pairs["rtd_loss"][0] == pytest.approx(
        float((entropy * weight).sum()), rel=1e-5
    )
    ratios = {"mlm_loss": jax.numpy.array(2.0), "rtd_loss": jax.numpy.array(0.5)}
    assert asked.total(ratios) == 27

    def of_discriminator(params):
        return asked.loss(params, batch, None)["rtd_loss"][0]

    gradient = jax.jit(jax.grad(of_discriminator))(params)
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient["generator"]))
    assert all(leaf.any() for leaf in jax.tree.leaves(gradient["project"]))


def test_replacements_are_drawn_from_the_softmax():
    share = np.array([0.5, 0.3, 0.15, 0.05], np.float32)
    logits = jax.numpy.asarray(np.tile(np.log(share), (100, 200, 1)))
    words = jax.numpy.array([7, 8], jax.numpy.uint32)
    drawn = np.asarray(draw(logits, words))
    found = np.bincount(drawn.ravel(), minlength=4) / drawn.size
    np.testing.assert_allclose(found, share, atol=4 * np.sqrt(0.25 / drawn.size))
    columns = np.asarray(drawn == 0).mean(0)
    assert columns.std() == pytest.approx(np.sqrt(0.25 / 100), rel=0.2), "independent"


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
