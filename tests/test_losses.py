"""Cross entropy pairs, and the arithmetic on pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax import metrics
from bert_jax.losses import cross_entropy, soft_cross_entropy


def example(rows=4, columns=3, classes=7, seed=0):
    rng = np.random.default_rng(seed)
    logits = (3 * rng.standard_normal((rows, columns, classes))).astype(np.float32)
    label = rng.integers(0, classes, (rows, columns)).astype(np.int32)
    weight = rng.integers(0, 2, (rows, columns)).astype(np.float32)
    return jnp.asarray(logits), jnp.asarray(label), jnp.asarray(weight)


def plain(logits, label, weight):
    log = jax.nn.log_softmax(logits)
    return -(jnp.take_along_axis(log, label[..., None], -1)[..., 0] * weight).sum()


def test_equals_log_softmax_with_its_gradient():
    logits, label, weight = example()
    (loss, total), (right, count) = cross_entropy(logits, label, weight)
    assert loss == pytest.approx(float(plain(logits, label, weight)), rel=1e-5)
    assert right == ((logits.argmax(-1) == label) * weight).sum()
    assert total == count == weight.sum()
    ours = jax.grad(lambda x: cross_entropy(x, label, weight)[0][0])(logits)
    theirs = jax.grad(lambda x: plain(x, label, weight))(logits)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_float32_from_bfloat16():
    logits, label, weight = example()
    (loss, _), _ = cross_entropy(jnp.asarray(logits, jnp.bfloat16), label, weight)
    assert loss.dtype == jnp.float32
    assert loss == pytest.approx(float(plain(logits, label, weight)), rel=0.02)


@settings(deadline=None, max_examples=10)
@given(cut=st.integers(1, 3), seed=st.integers(0, 99))
def test_adding_the_pairs_of_parts_gives_the_whole(cut, seed):
    batch = example(seed=seed)

    def pairs(part):
        loss, right = cross_entropy(*(x[part] for x in batch))
        return {"loss": loss, "accuracy": right}

    parts = metrics.add(pairs(np.s_[:cut]), pairs(np.s_[cut:]))
    whole = metrics.divide(pairs(np.s_[:]))
    for name, value in metrics.divide(parts).items():
        assert value == pytest.approx(float(whole[name]), rel=1e-5, abs=1e-6)


def test_items_without_weight_do_not_count_even_if_not_finite():
    logits, label, weight = example()
    weight = weight.at[0, 0].set(0)
    (expected, _), _ = cross_entropy(logits, label, weight)
    logits = logits.at[0, 0].set(jnp.nan)
    (loss, _), (right, _) = cross_entropy(logits, label, weight)
    assert loss == expected
    assert np.isfinite(right)


def test_huge_logits_are_finite():
    logits, label, weight = example()
    (loss, _), _ = cross_entropy(1e30 * logits, label, weight)
    assert np.isfinite(loss)


def test_add_and_divide():
    a, b = {"loss": (3.0, 2.0)}, {"loss": (5.0, 6.0)}
    assert metrics.divide(metrics.add(a, b)) == {"loss": 1.0}
    assert metrics.add({}, a) == a
    assert metrics.divide({"loss": (0.0, 0.0)}) == {"loss": 0.0}
    with pytest.raises(ValueError, match="different names"):
        metrics.add(a, {"other": (1.0, 1.0)})


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_soft_targets_by_the_formula(temperature):
    logits, _, weight = example()
    teacher, _, _ = example(seed=5)

    def soften(x):
        power = np.exp(np.asarray(x, np.float64) / temperature)
        return power / power.sum(-1, keepdims=True)

    entropy = -(soften(teacher) * np.log(soften(logits))).sum(-1)
    wanted = temperature**2 * (entropy * np.asarray(weight)).sum()
    loss, total = soft_cross_entropy(logits, teacher, weight, temperature)
    assert float(loss) == pytest.approx(wanted, rel=1e-5)
    assert total == weight.sum()
    # Hinton et al. 2015, section 2: T times the difference of the probabilities.
    found = jax.grad(lambda x: soft_cross_entropy(x, teacher, weight, temperature)[0])(
        logits
    )
    difference = soften(logits) - soften(teacher)
    wanted = temperature * difference * np.asarray(weight)[..., None]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_soft_numbers_are_squared_differences():
    a, b = jnp.array([[1.0], [5.0]]), jnp.array([[3.0], [jnp.nan]])
    loss, total = soft_cross_entropy(a, b, jnp.array([2.0, 0.0]), 3.0)
    assert (float(loss), float(total)) == (8.0, 2.0)
