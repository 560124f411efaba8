"""The model against an independent reference, and against itself."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.config.presets import SIZES, model
from bert_jax.model import Bert
from bert_jax.model.bert import BoundaryHead
from bert_jax.model.encoder import MLP
from tests.model import reference
from tests.model.batches import SMALL, mean_loss, packed, some_params, task, variant

# With both heads and the vocabulary of 30,522, not padded: the original
# checkpoints' encoder and pooler (4,385,920 to 335,141,888) plus both heads.
COUNTS = {
    "tiny": 4_433_468,
    "mini": 11_267_900,
    "small": 29_058_876,
    "medium": 41_668_412,
    "base": 110_106_428,
    "large": 336_226_108,
}


def shapes(config, pair="nsp"):
    return jax.eval_shape(task(config, pair).init, jax.random.key(0))


def paths(tree):
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join(k.key for k in path): leaf for path, leaf in leaves}


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@functools.cache
def encoder(config):
    def encode(params, batch):
        return Bert(config).apply({"params": params}, batch, method="encode")

    return jax.jit(encode)


def hidden(config, params, batch):
    batch = {k: v for k, v in batch.items() if k[:3] not in ("mlm", "nsp")}
    return np.asarray(encoder(config)(params, batch))


@pytest.mark.parametrize("size", SIZES)
def test_parameter_counts(size):
    tree = shapes(dataclasses.replace(model(size), vocab_multiple=1))
    count = sum(leaf.size for leaf in jax.tree.leaves(tree))
    d, n, f, v = model(size).hidden, model(size).layers, model(size).mlp, 30_522
    layer = 4 * (d * d + d) + (d * f + f) + (f * d + d) + 4 * d
    heads = (d * d + d) + (d * d + d + 2 * d + v) + (2 * d + 2)
    by_hand = (v + 512 + 2 + 2) * d + n * layer + heads
    assert count == by_hand == COUNTS[size]


@pytest.mark.parametrize("scan", [True, False])
def test_parameter_paths_and_shapes(scan):
    expected = {"embeddings/token": (48, 12), "embeddings/position": (17, 12)}
    expected |= {"embeddings/segment": (2, 12)}
    for name in ("query", "key", "value"):
        expected[f"layers/attention/{name}/kernel"] = (2, 12, 2, 6)
        expected[f"layers/attention/{name}/bias"] = (2, 2, 6)
    expected["layers/attention/out/kernel"] = (2, 2, 6, 12)
    expected["layers/attention/out/bias"] = (2, 12)
    expected["layers/mlp/up/kernel"] = (2, 12, 20)
    expected["layers/mlp/up/bias"] = (2, 20)
    expected["layers/mlp/down/kernel"] = (2, 20, 12)
    expected["layers/mlp/down/bias"] = (2, 12)
    for norm, shape in {
        "embeddings": (12,),
        "layers/attention": (2, 12),
        "layers/mlp": (2, 12),
        "mlm": (12,),
    }.items():
        expected |= {f"{norm}/norm/{name}": shape for name in ("scale", "bias")}
    expected |= {"mlm/bias": (48,), "mlm/transform/kernel": (12, 12)}
    expected |= {"mlm/transform/bias": (12,)}
    alone = dict(expected)
    expected |= {"pooler/kernel": (12, 12), "pooler/bias": (12,)}
    expected |= {"nsp/kernel": (12, 2), "nsp/bias": (2,)}
    config = variant(scan=scan)
    for pair, wanted in (("nsp", expected), ("none", alone)):
        found = paths(shapes(config, pair))
        assert {path: leaf.shape for path, leaf in found.items()} == wanted
        assert {leaf.dtype for leaf in found.values()} == {jnp.dtype("float32")}


def test_initial_values():
    config = variant(hidden=64, mlp=256, vocab_size=500)
    params = paths(jax.jit(task(config).init)(jax.random.key(3)))
    for path, value in params.items():
        if path.endswith("bias"):
            assert not value.any()
        elif path.endswith("scale"):
            assert (value == 1).all()
        else:
            assert abs(value).max() <= 0.04
            if value.size > 10_000:
                # TensorFlow cuts at two deviations and does not rescale.
                assert value.std() == pytest.approx(0.8796 * 0.02, rel=0.03)
    kernel = params["layers/mlp/up/kernel"]
    assert not np.allclose(kernel[0], kernel[1]), "layers must differ"


# Every architecture that is no mixer of its own; `learned` positions etc. by default.
ARCHITECTURES = [
    {"activation": "gelu_tanh"},
    {"activation": "gelu"},
    {"norm": "pre"},
    {"norm": "rms", "feed_forward": "swiglu"},
    {"feed_forward": "geglu"},
    {"position": "sinusoidal"},
    {"position": "rope", "rope_base": 100.0},
    {"position": "none", "mixer": "causal_attention"},
    {"layers": 4, "layer_groups": 2, "embedding": 8, "scan": True},
    {"layers": 4, "window": 4, "global_every": 3, "scan": True},
    {"window": 4, "mixer": "causal_attention", "position": "rope"},
    {"layer_groups": 1, "norm": "pre", "position": "rope", "window": 2, "scan": True},
]


def named(edits):
    return ",".join(f"{name}={value}" for name, value in edits.items())


@pytest.mark.parametrize("edits", ARCHITECTURES, ids=named)
def test_equals_the_numpy_reference(edits):
    config, batch = variant(**edits), packed([7, 5, 3])
    params = some_params(config)
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    logits = jax.jit(task(config).predict)(params, batch)
    for i in range(len(batch["token"])):
        row = {name: value[i] for name, value in batch.items()}
        states = reference.encode(row, exact, config)
        real = row["example"] > 0
        close(hidden(config, params, batch)[i][real], states[real], 1e-4)
        masked = reference.masked_logits(states[row["mlm_position"]], exact, config)
        close(logits["mlm_logits"][i], masked[:, :37], 1e-4)
        if config.mixer == "attention":
            pairs = reference.pair_logits(states[row["nsp_position"]], exact)
            close(logits["nsp_logits"][i], pairs, 1e-4)


@pytest.mark.parametrize(
    "edits",
    [
        pytest.param(ARCHITECTURES[8], marks=pytest.mark.slow),
        pytest.param(ARCHITECTURES[9], marks=pytest.mark.slow),
        ARCHITECTURES[11],
    ],
    ids=named,
)
def test_scan_and_remat_leave_the_architecture_as_it_is(edits):
    config, batch = variant(**edits), packed([7, 5, 3])
    params, rng = some_params(config), jax.random.key(5)

    def gradient(**numerics):
        loss = mean_loss(dataclasses.replace(config, **numerics), rng)
        return jax.jit(jax.value_and_grad(loss))(params, batch)

    expected = gradient()
    jax.tree.map(close, gradient(scan=False, remat="full"), expected)


def test_packed_equals_unpacked_and_padding_does_not_matter():
    params, batch = some_params(), packed([7, 5, 3])
    together = hidden(SMALL, params, batch)
    for start, length in ((0, 7), (7, 5), (12, 3)):
        for total in (length, 16):
            alone = {}
            for name in ("token", "segment", "position", "example"):
                piece = batch[name][:, start : start + length]
                alone[name] = np.pad(piece, ((0, 0), (0, total - length)))
            states = hidden(SMALL, params, alone)[:, :length]
            close(states, together[:, start : start + length])


def test_examples_do_not_see_each_other_nor_padding():
    params, batch = some_params(), packed([7, 5, 3])
    changed = dict(batch, token=batch["token"].copy())
    changed["token"][:, :7] = (batch["token"][:, :7] + 1) % 37
    changed["token"][:, 15:] = 9
    a, b = hidden(SMALL, params, batch), hidden(SMALL, params, changed)
    np.testing.assert_array_equal(a[:, 7:15], b[:, 7:15])
    assert not np.allclose(a[:, :7], b[:, :7])


@pytest.mark.parametrize("name", ["token", "segment", "position"])
def test_every_input_is_used(name):
    params, batch = some_params(), packed([9])
    changed = dict(batch, **{name: 1 - np.minimum(batch[name], 1)})
    a, b = hidden(SMALL, params, batch), hidden(SMALL, params, changed)
    assert abs(a - b)[:, :9].max() > 1e-2


def test_all_padding_row_is_finite_with_its_gradient():
    params, batch = some_params(), packed([7, 5])
    batch["example"][2] = 0
    grads = jax.jit(jax.grad(mean_loss(SMALL, jax.random.key(0))))(params, batch)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


@functools.cache
def step(config):
    """Loss with dropout, and its gradient."""
    loss = mean_loss(config, jax.random.key(5))
    return jax.jit(jax.value_and_grad(loss))(some_params(), packed([7, 5, 3]))


@pytest.mark.parametrize(
    "edits",
    [
        {"scan": True},
        {"scan": True, "remat": "full"},
        {"remat": "dots"},
    ],
    ids=str,
)
def test_scan_and_remat_change_nothing(edits):
    jax.tree.map(close, step(variant(**edits)), step(SMALL))


@pytest.mark.parametrize("mixer", ["mamba", "lstm"])
def test_packed_examples_do_not_meet_in_other_mixers(mixer):
    config = variant(mixer=mixer)
    params, batch = some_params(config), packed([7, 5, 3])
    states = hidden(config, params, batch)
    other = dict(batch, token=np.where(batch["example"] == 2, 3, batch["token"]))
    changed = np.abs(hidden(config, params, other) - states).max(-1)
    assert changed[batch["example"] == 2].max() > 1e-3
    np.testing.assert_allclose(changed[batch["example"] != 2], 0, atol=1e-6)
    looped = variant(mixer=mixer, scan=True)
    np.testing.assert_allclose(hidden(looped, params, batch), states, atol=1e-5)


def linear_maps(jaxpr):
    """How many products without a batch axis a program and its parts hold."""
    count = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            _, (batched, _) = equation.params["dimension_numbers"]
            count += not batched
        for part in jax.tree.leaves(list(equation.params.values())):
            if hasattr(part, "eqns"):
                count += linear_maps(part)
            elif hasattr(part, "jaxpr"):
                count += linear_maps(part.jaxpr)
    return count


def test_remat_dots_repeats_no_linear_map():
    def count(remat):
        loss = mean_loss(variant(remat=remat), None)
        traced = jax.make_jaxpr(jax.grad(loss))(some_params(), packed([7, 5]))
        return linear_maps(traced.jaxpr)

    assert count("none") == count("dots") < count("full")


@pytest.mark.parametrize("scan", [True, False])
def test_the_backward_pass_keeps_one_array_of_the_feed_forward_size(scan):
    config = variant(scan=scan)
    layer = MLP(config)
    x = jnp.ones((2, 3, config.hidden))
    params = layer.init(jax.random.key(0), x, None)
    _, back = jax.vjp(lambda x: layer.apply(params, x, None), x)
    large = [a for a in jax.tree.leaves(back) if a.shape == (2, 3, config.mlp)]
    assert len(large) == 1


def test_scan_does_not_change_the_initial_values():
    rng = jax.random.key(5)
    a, b = (jax.jit(task(c).init)(rng) for c in (SMALL, variant(scan=True)))
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_bfloat16_is_close_and_float32_where_it_matters():
    params, batch = some_params(), packed([7, 5, 3])
    narrow = variant(dtype="bfloat16")
    states = hidden(narrow, params, batch)
    assert states.dtype == jnp.bfloat16
    error = abs(states.astype(np.float32) - hidden(SMALL, params, batch))
    assert error.mean() < 0.03
    logits = jax.jit(task(narrow).predict)(params, batch)
    assert {x.dtype for x in logits.values()} == {jnp.dtype("float32")}
    grads = jax.jit(jax.grad(mean_loss(narrow, jax.random.key(0))))(params, batch)
    assert {x.dtype for x in jax.tree.leaves(grads)} == {jnp.dtype("float32")}


def test_bfloat16_products_round_their_factors_alone():
    params, batch = some_params(), packed([7, 5, 3])
    mixed = variant(matmul_dtype="bfloat16")
    states = hidden(mixed, params, batch)
    assert states.dtype == jnp.float32
    exact = hidden(SMALL, params, batch)
    narrow = hidden(variant(dtype="bfloat16"), params, batch)
    errors = [abs(np.float32(x) - exact).mean() for x in (states, narrow)]
    assert 0 < errors[0] < 0.8 * errors[1]
    rng = jax.random.key(0)
    wanted = jax.jit(jax.grad(mean_loss(SMALL, rng)))(params, batch)
    found = jax.jit(jax.grad(mean_loss(mixed, rng)))(params, batch)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        size = np.linalg.norm(b)
        assert a.dtype == jnp.float32
        assert 0 < np.linalg.norm(a - b) < 0.05 * max(size, 1e-3)


def test_padded_vocabulary_takes_no_probability_and_no_gradient():
    params, batch = some_params(), packed([7, 5, 3])
    pretrain = functools.partial(Bert(SMALL).apply, method="pretrain")
    logits = jax.jit(pretrain)({"params": params}, batch)
    share = jax.nn.softmax(logits["mlm_logits"])
    assert share.shape[-1] == 48
    assert not share[..., 37:].any()
    grads = jax.jit(jax.grad(mean_loss(SMALL)))(params, batch)
    assert not grads["embeddings"]["token"][37:].any()
    assert not grads["mlm"]["bias"][37:].any()
    assert grads["mlm"]["bias"][:37].any()


def test_gradient_equals_finite_differences():
    params, batch = some_params(), packed([7, 5, 3])
    rng = np.random.default_rng(0)
    direction = jax.tree.map(
        lambda x: rng.standard_normal(x.shape).astype(np.float32), params
    )
    # The same key as in `step`, so the same elements are dropped.
    loss = jax.jit(mean_loss(SMALL, jax.random.key(5)))
    dots = jax.tree.map(lambda a, b: (a * b).sum(), step(SMALL)[1], direction)
    slope = sum(jax.tree.leaves(dots))

    def at(distance):
        moved = jax.tree.map(lambda a, b: a + distance * b, params, direction)
        return float(loss(moved, batch))

    assert (at(1e-3) - at(-1e-3)) / 2e-3 == pytest.approx(float(slope), rel=2e-2)


def test_dropout_follows_its_rng():
    loss, params, batch = jax.jit(task().loss), some_params(), packed([7, 5, 3])
    one, again = (loss(params, batch, jax.random.key(1)) for _ in range(2))
    other, none = (loss(params, batch, r) for r in (jax.random.key(2), None))
    assert one["mlm_loss"][0] == again["mlm_loss"][0]
    values = {float(x["mlm_loss"][0]) for x in (one, other, none)}
    assert len(values) == 3
    off = variant(dropout=0.0, attention_dropout=0.0)
    pairs = jax.jit(task(off).loss)(params, batch, jax.random.key(1))
    close(pairs["mlm_loss"][0], none["mlm_loss"][0])


def test_a_causal_summary_is_that_of_the_last_token():
    config = variant(mixer="causal_attention")
    params, batch = some_params(config), packed([7, 9], total=16)
    unused = np.full((5, 1), 3, np.int32)  # of a full row
    first = np.concatenate([batch["nsp_position"], unused], axis=1)
    apply = functools.partial(Bert(config).apply, {"params": params})
    states = apply(batch, method="encode")
    found = apply(states, batch | {"nsp_position": first}, method="pool")
    pooler = params["pooler"]
    last = jnp.tanh(states[:, [6, 15]] @ pooler["kernel"] + pooler["bias"][None, None])
    close(found[:, :2], last)
    assert np.isfinite(found).all()


def test_unknown_token_shows_as_nan():
    batch = packed([7, 5, 3])
    batch["token"][0, 0] = 48
    assert np.isnan(hidden(SMALL, some_params(), batch)[0, 0]).all()


def test_span_boundary_head_by_hand():
    rng, head = np.random.default_rng(0), BoundaryHead(SMALL)
    left, right = rng.standard_normal((2, 3, 4, 12)).astype(np.float32)
    offset = np.array([[0, 1, 5, 199]] * 3, np.int32)
    table = rng.standard_normal((48, 12)).astype(np.float32)
    arrays = map(jnp.asarray, (left, right, offset, table))
    made = jax.eval_shape(head.init, jax.random.key(0), *arrays)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), made)
    params = jax.tree.map(jnp.float32, params)

    def apply(offset):
        arrays = map(jnp.asarray, (left, right, offset, table))
        return np.asarray(head.apply(params, *arrays))

    found = apply(offset)
    own = jax.tree.map(np.float64, params["params"])

    def layer(x, dense, norm):
        x = x @ dense["kernel"] + dense["bias"]
        x = x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
        x = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
        return x * norm["scale"] + norm["bias"]

    x = np.concatenate([left, right, own["offset"][offset]], -1)
    x = layer(x, own["first"], own["norm"])
    x = layer(x, own["mlm"]["transform"], own["mlm"]["norm"])
    wanted = (x @ table.T + own["mlm"]["bias"])[..., :37]
    np.testing.assert_allclose(found[..., :37], wanted, rtol=1e-3, atol=1e-3)
    last = np.full_like(offset, 199)
    np.testing.assert_array_equal(apply(offset + 1_000), apply(last))
