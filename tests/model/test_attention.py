"""`attend` against a straightforward computation, forward and backward."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax import topology
from bert_jax.config import Mesh, Model
from bert_jax.errors import UserError
from bert_jax.model import kernels
from bert_jax.model.attention import attend, choose, in_training
from bert_jax.model.layers import dropout, spread
from bert_jax.sharding import make_mesh

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
    if words is not None:
        words = spread(words, share.shape[:2])
    share = dropout(jnp.where(same[:, None], share, 0), words, rate)
    return jnp.einsum("bnqk,bknd->bqnd", share, value)


@pytest.mark.parametrize("kind", ["xla", "flash"])
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_values_and_gradients(rate, kind):
    query, key, value, example, weight = inputs()
    words = jnp.array([3, 123456789], jnp.uint32)

    def total(function):
        def scalar(query, key, value):
            return (function(query, key, value, example, words, rate) * weight).sum()

        return jax.jit(jax.value_and_grad(scalar, (0, 1, 2)))(query, key, value)

    ours = total(functools.partial(attend, implementation=kind))
    theirs = total(plain)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-5), ours, theirs
    )


def who_sees_whom(example, causal, window):
    place = np.arange(example.shape[1])
    ahead = place[None, :] - place[:, None]
    seen = (example[:, :, None] == example[:, None]) & (example > 0)[:, :, None]
    seen &= (ahead <= 0) | (not causal)
    return seen & ((abs(ahead) <= window // 2) | (not window))


@pytest.mark.parametrize("kind", ["xla", "flash"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("length", "window"),
    [(24, 0), (24, 4), (24, 8), (24, 12), (24, 16), (24, 60), (23, 4)],
)
def test_causal_and_local_attention(length, window, causal, kind):
    """In blocks where half a window divides the row, and whole where it does not."""
    rng = np.random.default_rng(length + window)
    shape = (4, B, length, H, h)
    query, key, value, weight = map(jnp.asarray, rng.standard_normal(shape, np.float32))
    example = np.sort(rng.integers(0, 4, (B, length)), 1).astype(np.int32)[:, ::-1]
    seen = who_sees_whom(example, causal, window)[:, None]
    example = jnp.asarray(example)

    def ours(query, key, value):
        limits = {"implementation": kind, "causal": causal, "window": window}
        return (attend(query, key, value, example, **limits) * weight).sum()

    def theirs(query, key, value):
        score = jnp.einsum("bqnd,bknd->bnqk", query, key) / np.sqrt(h)
        share = jax.nn.softmax(jnp.where(seen, score, -1e9), axis=-1)
        share = jnp.where(seen, share, 0)
        return (jnp.einsum("bnqk,bknd->bqnd", share, value) * weight).sum()

    found, wanted = (
        jax.jit(jax.value_and_grad(f, (0, 1, 2)))(query, key, value)
        for f in (ours, theirs)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-5), found, wanted
    )


def test_local_attention_costs_as_much_as_its_window():
    """The products grow with the length, not with its square."""

    def flops(length, window):
        shape = jax.ShapeDtypeStruct((1, length, 1, 8), jnp.float32)
        example = jax.ShapeDtypeStruct((1, length), jnp.int32)
        function = functools.partial(attend, window=window)
        lowered = jax.jit(function).lower(shape, shape, shape, example)
        return lowered.compile().cost_analysis()["flops"]

    assert flops(1024, 32) < 2.2 * flops(512, 32)
    assert flops(1024, 32) < flops(1024, 0) / 10


@pytest.mark.parametrize("kind", ["xla", "flash"])
def test_padding_gives_zeros(kind):
    query, key, value, example, _ = inputs()
    assert (example == 0).any()
    out = attend(query, key, value, example, implementation=kind)
    assert not out[example == 0].any()


def test_bfloat16_in_bfloat16_out():
    query, key, value, example, _ = inputs()
    narrow = [jnp.asarray(x, jnp.bfloat16) for x in (query, key, value)]
    out = attend(*narrow, example)
    assert out.dtype == jnp.bfloat16
    exact = attend(query, key, value, example)
    np.testing.assert_allclose(out.astype(np.float32), exact, atol=0.05)


@pytest.mark.parametrize("kind", ["xla", "flash"])
def test_large_scores_do_not_overflow(kind):
    query, key, value, example, _ = inputs()

    def total(query):
        return attend(query, key * 1e4, value, example, implementation=kind).sum()

    for found in jax.value_and_grad(total)(query * 1e4):
        assert np.isfinite(found).all()


def test_flash_multiplies_in_its_dtype():
    query, key, value, example, _ = inputs()
    flash = functools.partial(attend, implementation="flash")
    exact = flash(query, key, value, example)
    rounded = flash(query, key, value, example, dtype="bfloat16")
    assert rounded.dtype == jnp.float32
    error = np.abs(rounded - exact).max()
    assert 1e-4 < error < 0.05


def test_flash_does_not_keep_the_scores():
    """What its backward pass is given grows with the length, not with its square."""

    def kept(length):
        vectors = [jnp.ones((1, length, 1, 4))] * 3
        example = jnp.ones((1, length), jnp.int32)

        def function(*vectors):
            return attend(*vectors, example, implementation="flash")

        pullback = jax.vjp(function, *vectors)[1]
        leaves = jax.tree.leaves(pullback)
        return sum(x.size for x in leaves if x.dtype == jnp.float32)

    assert kept(128) <= 2.1 * kept(64)


def test_unknown_implementation():
    query, key, value, example, _ = inputs()
    with pytest.raises(UserError, match=r"config\.model\.attention='fast'"):
        attend(query, key, value, example, implementation="fast")


def in_both_directions(kind, mesh, vectors, weight, *rest, real=1.0, **limits):
    """Loss, result, and gradients of query, key and value, on a mesh or one device."""

    def scalar(*vectors):
        mixed = attend(*vectors, *rest, implementation=kind, **limits)
        # Times 0, not chosen: what padding gives must be finite.
        return (mixed * real * weight).sum(), mixed * real

    function = jax.jit(jax.value_and_grad(scalar, (0, 1, 2), has_aux=True))
    if mesh is None:
        return function(*vectors)
    with jax.set_mesh(make_mesh(mesh)):
        return function(*vectors)


@pytest.mark.parametrize(
    ("mesh", "limits"),
    [
        *((None, {}), (None, {"causal": True}), (None, {"window": 64})),
        (Mesh(data=2, fsdp=2, model=2), {"causal": True, "window": 64}),
    ],
)
@pytest.mark.parametrize("kernel", ["flash", "splash", "pallas"])
def test_kernels_equal_xla_forward_and_backward(kernel, mesh, limits):
    rng = np.random.default_rng(3)
    shape = 4, 4, 256, 2, 16
    *vectors, weight = jnp.asarray(rng.standard_normal(shape), jnp.float32)
    example = np.sort(rng.integers(1, 5, (4, 256)), 1).astype(np.int32)
    example[0, 100:], example[1] = 0, 0
    example[2] = rng.permutation(example[2])  # nothing asks for them in order
    example = jnp.asarray(example)
    real = (example > 0)[:, :, None, None]
    found, wanted = (
        in_both_directions(kind, mesh, vectors, weight, example, real=real, **limits)
        for kind in (kernel, "xla")
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-5), found, wanted
    )


@pytest.mark.parametrize(
    ("mesh", "causal"), [(None, False), (Mesh(data=2, fsdp=2, model=2), True)]
)
@pytest.mark.parametrize("kernel", ["flash", "pallas"])
def test_kernels_drop_the_probabilities_that_xla_drops(kernel, mesh, causal):
    rng = np.random.default_rng(4)
    shape = 4, 4, 192, 2, 16
    *vectors, weight = jnp.asarray(rng.standard_normal(shape), jnp.float32)
    example = jnp.asarray(np.sort(rng.integers(1, 4, (4, 192)), 1), jnp.int32)
    rest = example, jnp.array([123456789, 4000000000], jnp.uint32), 0.25
    found, wanted = (
        in_both_directions(kind, mesh, vectors, weight, *rest, causal=causal)
        for kind in (kernel, "xla")
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-5), found, wanted
    )


def test_pallas_leaves_out_blocks_that_do_not_see_each_other():
    example = jnp.asarray(np.repeat([[1, 2, 3, 0]], [64, 160, 32, 256], 1), jnp.int32)
    example = jnp.where(example > 0, example, 9)

    def spans(causal=False, half=0):
        rule = kernels.Rule(causal, half, 0.0)
        first, end = kernels.spans(rule, example, 128, 64)
        return list(zip(first[0].tolist(), end[0].tolist(), strict=True))

    assert spans() == [(0, 4), (1, 4), (4, 8), (4, 8)]
    assert spans(causal=True) == [(0, 2), (1, 4), (4, 6), (4, 8)]
    assert spans(half=1) == [(0, 3), (1, 4), (4, 7), (5, 8)]


@pytest.mark.slow
@pytest.mark.usefixtures("as_users_compile")
@pytest.mark.parametrize("features", [64, 128])
@pytest.mark.parametrize(("name", "rate"), [("h100:4", 0.1), ("a100:4", 0.0)])
def test_pallas_becomes_three_triton_kernels_on_a_gpu(name, rate, features):
    """Compiled to the end, where it would say that shared memory does not suffice."""
    mesh = make_mesh(Mesh(data=2, model=2), topology.named(name).devices)
    place = jax.NamedSharding(mesh, jax.P("data", None, "model"))
    vectors = jax.ShapeDtypeStruct((4, 384, 4, features), jnp.bfloat16, sharding=place)
    example = jax.ShapeDtypeStruct(
        (4, 384), jnp.int32, sharding=jax.NamedSharding(mesh, jax.P("data"))
    )
    words = jax.ShapeDtypeStruct(
        (2,), jnp.uint32, sharding=jax.NamedSharding(mesh, jax.P())
    )

    def total(query, key, value, example, words):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            mixed = attend(query, key, value, example, words, rate, "pallas")
        return mixed.astype(jnp.float32).sum()

    step = jax.jit(jax.grad(total, (0, 1, 2)))
    compiled = step.lower(vectors, vectors, vectors, example, words).compile()
    text = compiled.as_text()
    assert text and len(re.findall(r'custom_call_target="[^"]*triton', text)) == 3
    # A device has two rows and heads, and nothing of [L, L].
    assert f"bf16[2,384,2,{features}]" in text and "384,384]" not in text


@pytest.mark.parametrize("kind", ["cudnn", "splash"])
def test_what_kernels_cannot_do_is_said(kind):
    query, key, value, example, _ = inputs()
    words = jnp.array([3, 4], jnp.uint32)
    with pytest.raises(UserError, match="attention_dropout=0"):
        attend(query, key, value, example, words, 0.1, kind)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("splash", "multiples of 128 tokens, here cpu and 11"),
        ("cudnn", "NVIDIA GPUs"),
        ("pallas", "multiples of 64 tokens .* here cpu, float32, 11 and 5"),
    ],
)
def test_kernels_name_what_they_are_for(kind, message):
    query, key, value, example, _ = inputs()
    with pytest.raises(UserError, match=f"{message}.*set it to auto or xla"):
        attend(query, key, value, example, implementation=kind)


@pytest.mark.parametrize(
    ("kind", "length", "features", "dtype", "dropping", "wanted"),
    [
        ("TPU v5 lite", 512, 64, "bfloat16", False, "splash"),
        ("TPU v5 lite", 512, 64, "bfloat16", True, "xla"),
        ("TPU v5 lite", 96, 64, "bfloat16", False, "xla"),
        ("TPU v5 lite", 512, 64, "float32", False, "xla"),
        ("NVIDIA H100 80GB HBM3", 96, 64, "bfloat16", False, "cudnn"),
        ("NVIDIA H100 80GB HBM3", 512, 20, "bfloat16", False, "xla"),
        ("Tesla V100-SXM2-16GB", 512, 64, "bfloat16", False, "xla"),
        ("cpu", 512, 64, "float32", True, "flash"),
        ("cpu", 128, 64, "bfloat16", False, "xla"),
    ],
)
def test_choice(kind, length, features, dtype, dropping, wanted):
    assert choose(kind, length, features, dtype, dropping) == wanted


def test_training_tells_what_dropout_keeps_away():
    assert in_training(Model(), 512, "TPU v6 lite") == ("xla", "splash")
    assert in_training(Model(), 512, "cpu") == ("flash", "")
    dropping = Model(attention_dropout=0.0)
    assert in_training(dropping, 512, "NVIDIA H200") == ("cudnn", "")
