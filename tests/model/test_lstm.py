"""The LSTM: examples in a row do not meet, and its own gradient is autodiff's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.model import lstm
from bert_jax.model.lstm import BiLSTM
from tests.model.batches import packed

LENGTHS, PLACES = (7, 5, 3), ((0, 7), (7, 5), (12, 3))
MODEL = BiLSTM(units=6, layers=2)
EXAMPLE = packed(LENGTHS)["example"]
RNG = np.random.default_rng(0)
X = RNG.standard_normal((5, 16, 9)).astype(np.float32)
WEIGHT = RNG.standard_normal((5, 16, 12)).astype(np.float32)


@pytest.fixture(scope="module")
def params():
    return jax.jit(MODEL.init)(jax.random.key(0), X, EXAMPLE)


def total(params, x, example, weight):
    y = MODEL.apply(params, x, example)
    return (y * weight).sum(), y


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def both(params, x, example, weight):
    """Values, and gradients of the parameters and of x."""
    grad = jax.jit(jax.grad(total, (0, 1), has_aux=True))
    gradients, y = grad(params, x, example, weight)
    return np.asarray(y), *gradients


def test_packed_equals_unpacked(params):
    values, inner, outer = both(params, X, EXAMPLE, WEIGHT)
    sums = jax.tree.map(jnp.zeros_like, inner)
    for start, length in PLACES:
        here = np.s_[:, start : start + length]
        pad = ((0, 0), (0, 16 - length), (0, 0))
        x, weight = (np.pad(a[here], pad) for a in (X, WEIGHT))
        example = (np.arange(16) < length) * np.ones((5, 1), np.int32)
        y, ours, theirs = both(params, x, example.astype(np.int32), weight)
        close(y[:, :length], values[here])
        close(theirs[:, :length], outer[here])
        sums = jax.tree.map(jnp.add, sums, ours)
    jax.tree.map(close, sums, inner)
    assert not values[:, 15:].any() and not outer[:, 15:].any()


def test_both_directions_stay_inside_an_example(params):
    apply = jax.jit(MODEL.apply)
    before = np.asarray(apply(params, X, EXAMPLE))
    for at, (start, length) in ((9, PLACES[1]), (7, PLACES[1]), (6, PLACES[0])):
        changed = X.copy()
        changed[:, at] += 1
        after = np.asarray(apply(params, changed, EXAMPLE))
        inside = np.arange(16) >= start
        inside &= np.arange(16) < start + length
        np.testing.assert_array_equal(before[:, ~inside], after[:, ~inside])
        assert (before != after).any(-1)[:, inside].all()


def test_the_gradient_is_that_of_autodiff(params, monkeypatch):
    ours = both(params, X, EXAMPLE, WEIGHT)
    monkeypatch.setattr(lstm, "_recur", lstm._scan)
    jax.tree.map(close, ours, both(params, X, EXAMPLE, WEIGHT))


def test_bfloat16_adds_up_its_states_in_float32():
    model, x = BiLSTM(units=1, layers=1), jnp.zeros((1, 400, 1), jnp.bfloat16)
    # Nothing is forgotten: the cell grows by 0.002 a position,
    # which bfloat16 would lose from 0.5 on.
    bias = jnp.tile(jnp.array([0, 12, 0.004, 0])[:, None], (2, 1, 1))
    layer = {"bias": bias, "input": jnp.zeros((1, 2, 4, 1))}
    layer["recurrent"] = jnp.zeros((2, 1, 4, 1))
    params = {"params": {"layer_0": layer}}
    y = jax.jit(model.apply)(params, x, jnp.ones((1, 400), jnp.int32))
    assert y.dtype == jnp.bfloat16
    wanted = 0.5 * np.tanh(400 * 0.5 * 0.004)
    assert float(y[0, -1, 0]) == pytest.approx(wanted, rel=0.01)
    assert float(y[0, 0, 1]) == pytest.approx(wanted, rel=0.01)


def test_bfloat16_gives_a_near_gradient_in_float32(params):
    _, wanted, _ = both(params, X, EXAMPLE, WEIGHT)
    _, found, _ = both(params, X.astype(jnp.bfloat16), EXAMPLE, WEIGHT)
    for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        assert a.dtype == jnp.float32
        assert np.linalg.norm(a - b) < 0.02 * np.linalg.norm(b)


def test_initial_values():
    model = BiLSTM(units=40, layers=1)
    made = jax.jit(model.init)(jax.random.key(1), X, EXAMPLE)
    layer = made["params"]["layer_0"]
    assert layer["input"].shape == (9, 2, 4, 40)
    assert layer["recurrent"].shape == (2, 40, 4, 40)
    for name, outside in (("input", 9), ("recurrent", 40)):
        limit = np.sqrt(6 / (outside + 40))
        assert 0.95 * limit < abs(layer[name]).max() <= limit
    np.testing.assert_array_equal(layer["bias"].sum((0, 2)), [0, 80, 0, 0])
