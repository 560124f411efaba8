import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest

from bert_jax import config, optim, sharding, step, tree
from bert_jax.tasks.classify import classify
from bert_jax.tasks.pretrain import pretrain
from tests import linear_task

SETTINGS = config.Optim(peak_rate=1e-2, warmup_share=0.2)
STEPS = 10
OPTIMIZER = optim.optimizer(SETTINGS, STEPS)
SCHEDULE = optim.learning_rate(SETTINGS, STEPS)
TASK = linear_task.TASK
MESHES = [(d, f, 8 // (d * f)) for d in (1, 2, 4, 8) for f in (1, 2, 4, 8) if d * f < 9]
QUICK = [(8, 1, 1), (2, 2, 2)]


@functools.cache
def mesh_of(data: int, fsdp: int, model: int) -> jax.sharding.Mesh:
    devices = jax.devices()[: data * fsdp * model]
    assert len(devices) == data * fsdp * model, "tests need 8 (fake) devices"
    return sharding.make_mesh(config.Mesh(data, fsdp, model), devices)


@functools.cache
def compiled(mesh, accumulate=1):
    return step.make_train_step(TASK, OPTIMIZER, SCHEDULE, mesh, 3, accumulate)


@functools.cache
def initial():
    return jax.device_get(step.init_state(TASK, OPTIMIZER, mesh_of(1, 1, 1), 7))


def state_on(mesh):
    """The same as init_state, without compiling it for each mesh."""
    return jax.device_put(initial(), step.state_shardings(TASK, OPTIMIZER, mesh))


def run(mesh, accumulate=1, steps=5):
    state, train_step, history = state_on(mesh), compiled(mesh, accumulate), []
    for i in range(steps):
        state, metrics = train_step(state, linear_task.batch(i))
        history.append({name: float(value) for name, value in metrics.items()})
    return state, history


def one_step(loss, accumulate=1, number=0, edits=None):
    """Metrics of another loss, with an optimizer that compiles quickly."""
    task, mesh = TASK._replace(loss=loss), mesh_of(1, 1, 1)
    sgd = optax.sgd(0.1)
    make = step.make_train_step(task, sgd, SCHEDULE, mesh, 3, accumulate)
    params = initial().params
    state = step.TrainState(np.int32(number), params, sgd.init(params))
    return make(state, linear_task.batch() | (edits or {}))


@functools.cache
def on_one_device():
    return run(mesh_of(1, 1, 1))


def assert_close(left, right, tolerance):
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name] == pytest.approx(b[name], rel=tolerance), name


def test_all_mesh_shapes_of_eight_devices_are_covered():
    assert len(MESHES) == 10


@pytest.mark.parametrize(
    "shape",
    [pytest.param(s, marks=[pytest.mark.slow] * (s not in QUICK)) for s in MESHES],
    ids=str,
)
def test_eight_devices_do_as_one(shape):
    _, history = run(mesh_of(*shape))
    assert_close(history, on_one_device()[1], 1e-5)


def test_accumulation_equals_the_full_batch():
    # The micro-batches carry different weights, so a mean of means would differ.
    _, history = run(mesh_of(2, 2, 2), accumulate=4)
    assert_close(history, on_one_device()[1], 1e-6 * 5)


def test_metrics_are_ratios_of_the_whole_batch():
    history = on_one_device()[1]
    params = initial().params
    pairs = linear_task.loss(params, linear_task.batch(0), None)
    for name, (total, weight) in pairs.items():
        assert history[0][name] == pytest.approx(float(total / weight), rel=1e-5)
    first = history[0]
    assert first["loss"] == pytest.approx(first["mlm_loss"] + first["nsp_loss"])
    rates = [metrics["learning_rate"] for metrics in history]
    np.testing.assert_allclose(
        rates, [float(np.asarray(SCHEDULE(i))) for i in range(5)], rtol=1e-6
    )


def test_state_is_born_in_pieces():
    mesh = mesh_of(2, 2, 2)
    state = step.init_state(TASK, OPTIMIZER, mesh, 7)
    for part in (state.params, state.opt_state["moments"].mu):
        kernel = part["layers"]["mlp"]["up"]["kernel"]
        pieces = {shard.data.shape for shard in kernel.addressable_shards}
        assert pieces == {(linear_task.N, linear_task.D // 2, linear_task.F // 2)}
    expected = step.state_shardings(TASK, OPTIMIZER, mesh)
    jax.tree.map(
        lambda leaf, place: leaf.sharding.is_equivalent_to(place, leaf.ndim) or 1 / 0,
        state,
        expected,
    )


def test_initial_values_do_not_depend_on_the_mesh():
    model = config.Model(
        vocab_size=50, vocab_multiple=8, hidden=16, layers=1, heads=4, mlp=24
    )
    task = pretrain(model, config.Objective())
    digests = {
        tree.params_digest(step.init_state(task, OPTIMIZER, mesh, 7).params)
        for mesh in (mesh_of(1, 1, 1), mesh_of(1, 2, 4))
    }
    assert len(digests) == 1


def test_state_is_donated():
    state = state_on(mesh_of(2, 2, 2))
    after, _ = compiled(mesh_of(2, 2, 2), 1)(state, linear_task.batch())
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert int(after.step) == 1


@pytest.mark.parametrize("accumulate", [1, 2])
def test_batch_without_targets_is_not_nan(accumulate):
    batch = linear_task.batch()
    empty = {k: np.zeros_like(batch[k]) for k in ("mlm_weight", "nsp_weight")}
    state, metrics = one_step(linear_task.loss, accumulate, edits=empty)
    assert float(metrics["loss"]) == float(metrics["grad_norm"]) == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_dropout_is_a_function_of_seed_step_and_micro_batch(accumulate):
    def loss(params, batch, rng):
        drawn = 0.0 if rng is None else jax.random.uniform(rng)
        weight = 0.0 * batch["mlm_weight"].sum() + 2.0
        return dict.fromkeys(TASK.terms, (drawn * weight, weight))

    for number in (0, 4):
        _, metrics = one_step(loss, accumulate, number)
        rng = jax.random.fold_in(jax.random.key(3), number)
        micro = [jax.random.fold_in(rng, i) for i in range(accumulate)]
        rngs = [rng] if accumulate == 1 else micro
        expected = np.mean([jax.random.uniform(rng) for rng in rngs])
        assert float(metrics["mlm_loss"]) == pytest.approx(float(expected))


def test_eval_step_sums_over_batches_of_any_size():
    mesh = mesh_of(2, 2, 2)
    params = state_on(mesh).params
    eval_step = step.make_eval_step(TASK, mesh)
    whole = linear_task.batch(1)
    halves = [{k: v[s] for k, v in whole.items()} for s in np.split(np.arange(32), 2)]
    parts = [eval_step(params, half) for half in halves]
    for name, pair in eval_step(params, whole).items():
        added = np.sum([part[name] for part in parts], axis=0)
        np.testing.assert_allclose(pair, added, rtol=1e-5)


def test_scores_and_predictions_cost_one_pass():
    model = config.Model(vocab_size=64, hidden=32, layers=2, heads=2, mlp=64)
    task = classify(model, config.TaskSettings(kind="classify", labels=("a", "b")))
    mesh, params = mesh_of(1, 1, 1), task.init(jax.random.key(0))
    names = ("token", "segment", "position", "nsp_position", "label")
    batch = {name: np.zeros((2, 16), np.int32) for name in names}
    batch |= {"example": np.ones((2, 16), np.int32), "weight": np.ones((2, 16))}
    makers = step.make_eval_step, step.make_predict_step, step.make_score_step
    programs = [make(task, mesh).lower(params, batch).compile() for make in makers]
    first, second, both = (program.cost_analysis()["flops"] for program in programs)
    assert both < 1.1 * max(first, second)
    pairs, outputs = programs[2](params, batch)
    assert jax.tree.map(float, pairs) == jax.tree.map(float, programs[0](params, batch))
    np.testing.assert_array_equal(
        outputs["logits"], programs[1](params, batch)["logits"]
    )


@pytest.mark.parametrize("name", ["adamw", "lamb", "radam"])
@pytest.mark.parametrize("correction", [True, False])
def test_every_optimizer_state_has_a_sharding(name, correction):
    settings = dataclasses.replace(SETTINGS, name=name, bias_correction=correction)
    optimizer = optim.optimizer(settings, STEPS)
    places = step.state_shardings(TASK, optimizer, mesh_of(2, 2, 2))
    named = tree.flatten(places.opt_state)
    moments = [n for n in named if "/mu/" in n or "/nu/" in n]
    assert len(moments) == 2 * len(tree.flatten(places.params))
    token = places.params["embeddings"]["token"]
    assert named["moments/nu/embeddings/token"] == token
