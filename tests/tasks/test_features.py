"""Tagging from fixed features: which ones, what learns and what does not."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax import config, labelled, optim, run, sharding, step, tree
from bert_jax.errors import UserError
from bert_jax.model.tagger import FeatureTagger
from bert_jax.tasks.classify import classify, untrained
from tests.model.batches import SMALL, packed, variant

MODEL = variant(layers=5, scan=True, hidden=16, positions=16)
KINDS = ["concat_last_4"] + [
    pytest.param(kind, marks=pytest.mark.slow)
    for kind in ("embeddings", "second_to_last", "last", "sum_last_4", "sum_all")
]


def batch():
    arrays = packed([7, 5, 3], rows=8)
    keys = ("token", "segment", "position", "example")
    label = arrays["token"] % 3
    weight = (arrays["example"] > 0).astype(np.float32)
    return {key: arrays[key] for key in keys} | {"label": label, "weight": weight}


@functools.cache
def two_steps(kind, *mesh):
    """Losses of two steps, and the parameters before and after."""
    settings = config.TaskSettings(
        kind="tag", labels=("a", "b", "c"), features=kind, lstm_hidden=4
    )
    task = classify(MODEL, settings)
    rule = config.Optim(
        peak_rate=0.01, warmup_share=0, weight_decay=0.25, freeze=untrained(settings)
    )
    devices = jax.devices()[: np.prod(mesh)]
    place = sharding.make_mesh(config.Mesh(*mesh), devices)
    optimizer, schedule = optim.optimizer(rule, 9), optim.learning_rate(rule, 9)
    state = step.init_state(task, optimizer, place, 0)
    before = jax.device_get(tree.flatten(state.params))
    update = step.make_train_step(task, optimizer, schedule, place, 0)
    losses = []
    for _ in range(2):
        state, measured = update(state, batch())
        losses.append(float(measured["loss"]))
    return losses, before, jax.device_get(tree.flatten(state.params))


@pytest.mark.parametrize("kind", KINDS)
def test_the_tagger_learns_and_the_encoder_does_not(kind):
    losses, before, after = two_steps(kind, 1, 1, 1)
    assert losses[1] < losses[0]
    parts = {"embeddings", "layers", "lstm", "head"}
    parts |= {"mix"} if "sum" in kind else set()
    assert {name.split("/")[0] for name in after} == parts
    for name, value in after.items():
        same = value.tobytes() == before[name].tobytes()
        assert same == name.startswith(("embeddings/", "layers/")), name


@pytest.mark.slow
def test_the_mesh_changes_nothing():
    one, many = two_steps("concat_last_4", 1, 1, 1), two_steps("concat_last_4", 2, 2, 2)
    np.testing.assert_allclose(one[0], many[0], rtol=1e-5)
    for name, value in one[2].items():
        np.testing.assert_allclose(value, many[2][name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "states"),
    [
        ("embeddings", [0]),
        ("second_to_last", [4]),
        ("last", [5]),
        ("sum_last_4", [2, 3, 4, 5]),
        ("concat_last_4", [2, 3, 4, 5]),
        ("sum_all", [1, 2, 3, 4, 5]),
    ],
)
def test_which_features(kind, states):
    every = jax.random.normal(jax.random.key(0), (6, 2, 3, 16))
    power = np.arange(1.0, 1 + len(states), dtype=np.float32)
    mix = {"weight": jnp.log(power), "scale": jnp.float32(3)}
    tagger = FeatureTagger(MODEL, 3, features=kind)
    found = tagger.apply({"params": {"mix": mix}}, every, method="_choose")
    wanted = np.concatenate(every[np.array(states)], -1)
    if "sum" in kind:
        wanted = 3 * np.tensordot(power / power.sum(), every[np.array(states)], 1)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_dropout_is_before_the_lstm_and_the_head_alone():
    model = variant(layers=5, scan=True, hidden=16, dropout=0.5, attention_dropout=0.5)
    tagger = FeatureTagger(model, 3, features="last", units=8)
    arrays = {key: jnp.asarray(value) for key, value in batch().items()}
    init = jax.jit(lambda rng: tagger.init(rng, arrays, method="tag"))
    params = init(jax.random.key(0))

    @jax.jit
    def inputs(rng):
        """What the LSTM and the head are given."""
        seen = {}

        def note(call, args, kwargs, context):
            seen.setdefault(context.module.name, args)
            return call(*args, **kwargs)

        with nn.intercept_methods(note):
            tagger.apply(params, arrays, rng, method="tag")
        return [seen[name][0] for name in ("lstm", "head")]

    features, _ = inputs(None)
    dropped, states = map(np.asarray, inputs(jax.random.key(1)))
    kept = dropped != 0
    # The encoder's own dropout would change what is kept.
    np.testing.assert_allclose(dropped[kept], 2 * np.asarray(features)[kept], rtol=1e-5)
    real = arrays["example"] > 0
    for share in (kept[real].mean(), (states[real] != 0).mean()):
        assert share == pytest.approx(0.5, abs=0.06)


def test_four_layers_are_needed_for_the_last_four():
    task = config.TaskSettings(kind="tag", labels=("O",), features="concat_last_4")
    asked = config.Config(task=task, model=variant(layers=3))
    with pytest.raises(UserError, match="needs 4 layers, and the model has 3"):
        labelled.settle(asked, labelled.Files((), ()))


@pytest.mark.parametrize("kind", ["classify", "span"])
def test_an_lstm_between_encoder_and_head(kind):
    """The head reads it alone, and the encoder learns through it."""
    labels = ("a", "b", "c") if kind == "classify" else ()
    settings = config.TaskSettings(kind=kind, labels=labels, lstm=True, lstm_hidden=5)
    task = run.task_of(config.Config(model=SMALL, task=settings))
    arrays = packed([7, 5, 3]) | {"weight": np.ones((5, 3), np.float32)}
    arrays["label"] = np.ones((5, 3) + (2,) * (kind == "span"), np.int32)
    params = jax.jit(task.init)(jax.random.key(0))
    assert params["lstm"]["layer_1"]["input"].shape == (10, 2, 4, 5)
    head = params["pooler" if kind == "classify" else "head"]["kernel"]
    assert head.shape[0] == 10

    def loss(params):
        return task.loss(params, arrays, None)["loss"][0]

    gradient = jax.jit(jax.grad(loss))(params)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient["layers"]["mlp"]))
