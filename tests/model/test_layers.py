"""Dropout: the share, the expectation, independence and sharding; LayerNorm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bert_jax.model.layers import Norm, activate, dropout, keep
from tests.model.batches import SMALL, variant

SHAPE = (29, 64, 50)


def words(seed):
    return jax.random.bits(jax.random.key(seed), (2,), jnp.uint32)


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("seed", range(4))
def test_share_dropped(seed, rate):
    kept = np.asarray(keep(words(seed), SHAPE, rate))
    sigma = np.sqrt(rate * (1 - rate))
    for axes in [(0, 1, 2), (1, 2), (0, 2), (0, 1)]:
        size = np.prod([SHAPE[a] for a in axes])
        error = np.abs(1 - kept.mean(axes) - rate) / sigma * np.sqrt(size)
        assert np.max(error) < (4 if error.ndim == 0 else 5)


def test_expectation_is_kept_and_gradient_uses_the_same_mask():
    x = jnp.ones(SHAPE)
    y = dropout(x, words(1), 0.1)
    assert set(np.unique(y).round(4)) == {0.0, np.float32(1 / 0.9).round(4)}
    assert y.mean() == pytest.approx(1, abs=4 * np.sqrt(0.1 / 0.9 / x.size))
    slope = jax.grad(lambda x: (dropout(x, words(1), 0.1) * 3).sum())(x)
    np.testing.assert_allclose(slope, 3 * y, rtol=1e-6)


def test_off():
    x = jnp.ones((3, 4))
    assert dropout(x, None, 0.5) is x
    assert dropout(x, words(0), 0.0) is x


def test_masks_are_uncorrelated():
    base = jax.random.key(7)
    draws = jax.random.bits(base, (12, 2), jnp.uint32)
    # Also words that differ in one bit, the hardest case for a hash.
    near = jnp.stack([draws[0] ^ jnp.array([1 << b, 0], jnp.uint32) for b in (20, 31)])
    masks = [np.asarray(keep(w, SHAPE, 0.3)).ravel() for w in [*draws, *near]]
    limit = 5 / np.sqrt(masks[0].size)
    correlation = np.corrcoef(masks) - np.eye(len(masks))
    assert abs(correlation).max() < limit
    shifted = [
        np.corrcoef(masks[0][:-s], masks[0][s:])[0, 1] for s in (1, 50, 64, 3200)
    ]
    assert np.abs(shifted).max() < limit


def test_same_bits_on_one_and_eight_devices():
    assert len(jax.devices()) >= 8
    x = jnp.arange(16 * 6 * 10.0).reshape(16, 6, 10)
    one = jax.jit(lambda x: dropout(x, words(3), 0.4))(x)
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ("data", "model"))
    spec = NamedSharding(mesh, PartitionSpec("data", None, "model"))
    split = jax.jit(
        lambda x: dropout(x, words(3), 0.4), in_shardings=spec, out_shardings=spec
    )(x)
    np.testing.assert_array_equal(one, split)


def test_layer_norm_keeps_float32_statistics():
    config = variant(dtype="bfloat16", hidden=40)
    rng = np.random.default_rng(0)
    x = jnp.asarray(100 + rng.standard_normal((3, 5, 40)), jnp.bfloat16)
    y = jnp.asarray(rng.standard_normal((3, 5, 40)), jnp.bfloat16)
    norm = Norm(config)
    params = norm.init(jax.random.key(0), x)
    for args in ((x,), (x, y)):
        total = sum(np.asarray(a, np.float64) for a in args)
        centred = total - total.mean(-1, keepdims=True)
        exact = centred / centred.std(-1, keepdims=True)
        np.testing.assert_allclose(
            np.asarray(norm.apply(params, *args), np.float64), exact, atol=0.02
        )


@pytest.mark.parametrize("terms", [1, 2])
def test_layer_norm_has_the_gradients_of_its_formula(terms):
    config = variant(hidden=40)
    rng = np.random.default_rng(1)
    args = [jnp.asarray(rng.normal(3, 2, (3, 5, 40)), jnp.float32)] * terms
    target = jnp.asarray(rng.standard_normal((3, 5, 40)), jnp.float32)
    norm = Norm(config)
    params = {
        "scale": jnp.asarray(rng.normal(1, 0.3, 40), jnp.float32),
        "bias": jnp.asarray(rng.normal(0, 0.3, 40), jnp.float32),
    }

    def ours(params, *args):
        return (norm.apply({"params": params}, *args) * target).sum()

    def formula(params, *args):
        x = sum(args)
        x = x - x.mean(-1, keepdims=True)
        x = x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + config.norm_epsilon)
        scale, bias = params["scale"][None, None], params["bias"][None, None]
        return ((x * scale + bias) * target).sum()

    wanted, got = (
        jax.grad(f, tuple(range(1 + terms)))(params, *args) for f in (formula, ours)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, wanted
    )


def test_gelu_kinds_differ():
    x = jnp.linspace(-3, 3, 41)
    gap = abs(activate(x, "gelu") - activate(x, "gelu_tanh")).max()
    assert 1e-5 < gap < 1e-3
    assert SMALL.activation == "gelu_tanh"
