import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax import config, optim, tree
from tests import linear_task

PLAIN = config.Optim(
    peak_rate=0.1,
    schedule="constant",
    warmup_share=0.0,
    beta1=0.8,
    beta2=0.96,
    epsilon=1e-6,
    weight_decay=0.25,
    clip_norm=0.0,
)
PARAMS = {"mlm": {"transform": {"kernel": [[3.0, -4.0]], "bias": [2.0, 0.0]}}}
GRADS = {"mlm": {"transform": {"kernel": [[0.5, 0.0]], "bias": [1.0, -2.0]}}}


def arrays(nested):
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf, jnp.float32),
        nested,
        is_leaf=lambda node: isinstance(node, list),
    )


def update_of(optimizer, grads, params) -> Any:
    return optimizer.update(grads, optimizer.init(params), params)[0]


def first_update(**edits) -> Any:
    optimizer = optim.optimizer(dataclasses.replace(PLAIN, **edits), 10)
    return update_of(optimizer, arrays(GRADS), arrays(PARAMS))["mlm"]["transform"]


def random_tree(shapes, seed) -> Any:
    draw = np.random.default_rng(seed)
    leaves = jax.tree.map(lambda leaf: draw.normal(size=leaf.shape), shapes)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), leaves)


def follow(optimizer, params, count=3) -> Any:
    state = optimizer.init(params)
    for seed in range(count):
        updates, state = optimizer.update(random_tree(params, seed), state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_decay_acts_on_all_but_biases_and_norms():
    named = tree.flatten(optim.decays(linear_task.structs()))
    assert {name for name, decay in named.items() if decay} == {
        "embeddings/token",
        "embeddings/position",
        "embeddings/segment",
        "layers/attention/query/kernel",
        "layers/attention/key/kernel",
        "layers/attention/value/kernel",
        "layers/attention/out/kernel",
        "layers/mlp/up/kernel",
        "layers/mlp/down/kernel",
        "mlm/transform/kernel",
        "pooler/kernel",
        "nsp/kernel",
    }
    assert not named["mlm/bias"]


def test_adamw_by_hand():
    # Corrected, the first update is the sign of the gradient.
    update = first_update()
    np.testing.assert_allclose(
        update["kernel"], [[-0.1 * (1 + 0.75), -0.1 * (0 - 1)]], rtol=1e-5
    )
    np.testing.assert_allclose(update["bias"], [-0.1, 0.1], rtol=1e-5)


def test_uncorrected_adamw_by_hand():
    # Moments 0.2 g and 0.04 g^2: the quotient is 0.2 / 0.2, here by design 1.
    update = first_update(bias_correction=False)
    np.testing.assert_allclose(update["bias"], [-0.1, 0.1], rtol=1e-5)
    update = first_update(bias_correction=False, beta1=0.5, beta2=0.99)
    np.testing.assert_allclose(update["bias"], [-0.5, 0.5], rtol=1e-4)
    np.testing.assert_allclose(update["kernel"], [[-0.1 * (5 + 0.75), 0.1]], rtol=1e-4)


def test_lamb_by_hand():
    # |param| = 5; update (1 + 0.75, -1). The bias has no ratio.
    update = first_update(name="lamb")
    ratio = 5 / np.hypot(1.75, 1)
    np.testing.assert_allclose(
        update["kernel"], [[-0.175 * ratio, 0.1 * ratio]], rtol=1e-5
    )
    np.testing.assert_allclose(update["bias"], [-0.1, 0.1], rtol=1e-5)


@pytest.mark.parametrize("clip_norm", [0.0, 0.7])
def test_corrected_adamw_is_optax_adamw(clip_norm):
    params = random_tree(linear_task.structs(), 9)
    ours = optim.optimizer(dataclasses.replace(PLAIN, clip_norm=clip_norm), 10)
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    theirs = optax.chain(
        clip,
        optax.adamw(0.1, 0.8, 0.96, 1e-6, weight_decay=0.25, mask=optim.decays),
    )
    expected = follow(theirs, params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        follow(ours, params),
        expected,
    )


def test_radam_is_optax_radam():
    params = random_tree({"mlm": {"bias": jnp.zeros(7)}}, 9)
    ours = optim.optimizer(dataclasses.replace(PLAIN, name="radam"), 10)
    expected = follow(optax.radam(0.1, 0.8, 0.96, 1e-6), params, 9)
    np.testing.assert_allclose(
        follow(ours, params, 9)["mlm"]["bias"], expected["mlm"]["bias"], rtol=1e-5
    )


def test_lamb_on_the_stack_is_lamb_on_each_layer():
    stack = random_tree(linear_task.structs()["layers"], 1)
    # Layers of very different size, so that a ratio over the stack would show.
    stack = jax.tree.map(
        lambda leaf: leaf * (10.0 ** jnp.arange(4)).reshape(4, *[1] * (leaf.ndim - 1)),
        stack,
    )
    grads = random_tree(stack, 2)
    optimizer = optim.optimizer(dataclasses.replace(PLAIN, name="lamb"), 10)

    together = update_of(optimizer, {"layers": grads}, {"layers": stack})["layers"]
    for layer in range(4):
        # Outside `layers/` a parameter is one array with one ratio.
        one, gradient = (
            {"single": jax.tree.map(lambda leaf, i=layer: leaf[i], part)}
            for part in (stack, grads)
        )
        jax.tree.map(
            lambda a, b, i=layer: np.testing.assert_allclose(a[i], b, rtol=1e-5),
            together,
            update_of(optimizer, gradient, one)["single"],
        )


def test_lamb_leaves_zero_parameters_movable():
    params = {"mlm": {"kernel": jnp.zeros((2, 3))}}
    optimizer = optim.optimizer(dataclasses.replace(PLAIN, name="lamb"), 10)
    grads = {"mlm": {"kernel": jnp.ones((2, 3))}}
    update = update_of(optimizer, grads, params)
    np.testing.assert_allclose(update["mlm"]["kernel"], -0.1, rtol=1e-5)


@settings(max_examples=10, deadline=None)
@given(scale=st.floats(2.0, 1e6))
def test_clipping_forgets_the_size_of_large_gradients(scale):
    optimizer = optim.optimizer(
        dataclasses.replace(PLAIN, clip_norm=1.0, bias_correction=False), 10
    )
    params, grads = arrays(PARAMS), arrays(GRADS)
    large = jax.tree.map(lambda leaf: leaf * scale, grads)
    expected = update_of(optimizer, grads, params)
    updates = update_of(optimizer, large, params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), updates, expected
    )


@pytest.mark.parametrize("name", ["adamw", "lamb", "radam"])
def test_what_is_frozen_keeps_its_bits(name):
    params = random_tree(linear_task.structs(), 9)
    params["layers"]["mlp"]["up"]["kernel"] *= -0.0
    rule = dataclasses.replace(PLAIN, name=name, freeze="(embeddings|layers)/.*")
    after = tree.flatten(follow(optim.optimizer(rule, 10), params))
    for path, value in tree.flatten(params).items():
        same = value.tobytes() == after[path].tobytes()
        assert same == path.startswith(("embeddings/", "layers/")), path


def test_state_has_the_same_names_whatever_is_switched_on():
    def names(**edits):
        optimizer = optim.optimizer(dataclasses.replace(PLAIN, **edits), 10)
        return list(tree.flatten(optimizer.init(arrays(PARAMS))))

    assert names() == names(clip_norm=1.0) == names(name="lamb", weight_decay=0.0)
    assert names() == names(freeze="mlm/.*")
