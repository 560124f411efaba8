"""`attend` against a straightforward computation, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.errors import UserError
from bert_jax.model.attention import attend
from bert_jax.model.layers import dropout

B, L, H, h = 3, 11, 2, 5


def inputs(seed=0):
    rng = np.random.default_rng(seed)
    query, key, value, weight = rng.standard_normal((4, B, L, H, h)).astype(np.float32)
    example = np.sort(rng.integers(0, 4, (B, L)), 1).astype(np.int32)[:, ::-1]
    example[1, 4:] = 0
    return tuple(map(jnp.asarray, (query, key, value, example, weight)))


def plain(query, key, value, example, words=None, rate=0.0):
    """Softmax attention as autodiff sees it."""
    same = (example[:, :, None] == example[:, None, :]) & (example[:, :, None] > 0)
    score = jnp.einsum("bqnd,bknd->bnqk", query, key) / np.sqrt(h)
    share = jax.nn.softmax(jnp.where(same[:, None], score, -1e9), axis=-1)
    share = dropout(jnp.where(same[:, None], share, 0), words, rate)
    return jnp.einsum("bnqk,bknd->bqnd", share, value)


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_values_and_gradients(rate):
    query, key, value, example, weight = inputs()
    words = jnp.array([3, 123456789], jnp.uint32)

    def total(function):
        def scalar(query, key, value):
            return (function(query, key, value, example, words, rate) * weight).sum()

        return jax.value_and_grad(scalar, (0, 1, 2))(query, key, value)

    ours, theirs = total(attend), total(plain)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-5), ours, theirs
    )


def test_padding_gives_zeros():
    query, key, value, example, _ = inputs()
    assert (example == 0).any()
    out = attend(query, key, value, example)
    assert not out[example == 0].any()


def test_bfloat16_in_bfloat16_out():
    query, key, value, example, _ = inputs()
    narrow = [jnp.asarray(x, jnp.bfloat16) for x in (query, key, value)]
    out = attend(*narrow, example)
    assert out.dtype == jnp.bfloat16
    exact = attend(query, key, value, example)
    np.testing.assert_allclose(out.astype(np.float32), exact, atol=0.05)


def test_large_scores_do_not_overflow():
    query, key, value, example, _ = inputs()
    out = attend(query * 1e4, key * 1e4, value, example)
    assert np.isfinite(out).all()


def test_unknown_implementation():
    query, key, value, example, _ = inputs()
    with pytest.raises(UserError, match=r"config\.model\.attention='fast'"):
        attend(query, key, value, example, implementation="fast")
