"""The recurrent mixers against plain loops, packed and alone, on one device and eight.

What is said of both is tested on both; `mamba.selective_scan` has tests of its own.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from bert_jax import metrics, optim, sharding, tree
from bert_jax.config import Mesh
from bert_jax.model import mamba
from bert_jax.model.lstm import LSTM
from bert_jax.model.mamba import Mamba, selective_scan
from tests import linear_task
from tests.model.batches import variant

B, L, D, SLOTS = 4, 27, 16, 7
CONFIG = variant(hidden=D)
MIXERS = {
    "mamba": Mamba(CONFIG, ssm_state=3, ssm_expand=2, ssm_conv=3),
    "lstm": LSTM(CONFIG),
}
RNG = np.random.default_rng(0)
X, WEIGHT = RNG.standard_normal((2, B, L, D)).astype(np.float32)


@pytest.fixture(scope="module", autouse=True)
def short_pieces():
    """Rows of these tests have several pieces of several chunks, the last not full."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mamba, "_CHUNK", 4)
        patch.setattr(mamba, "_PIECE", 10)
        patch.setattr(mamba, "device_kind", lambda: "one that cuts rows")
        yield


def random_params(name, seed=0):
    ones = jnp.ones((1, 2), jnp.int32)
    init = MIXERS[name].init
    shapes = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 2, D)), ones, None)
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: 0.4 * rng.standard_normal(leaf.shape).astype(np.float32),
        shapes["params"],
    )


def measured(name):
    """Function to values, and gradients of the parameters and of x."""

    def total(params, x, example, weight):
        y = MIXERS[name].apply({"params": params}, x, example, None)
        return (y * weight).sum(), y

    def both(*args):
        gradients, y = jax.grad(total, (0, 1), has_aux=True)(*args)
        return y, *gradients

    return jax.jit(both)


MEASURED = {name: measured(name) for name in MIXERS}


def close(found, wanted, tolerance=1e-5):
    """Within the tolerance of the largest value."""
    scale = max(1, np.max(np.abs(wanted)))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * scale)


@st.composite
def packings(draw):
    """Examples, int32 [B, L], with padding before, between and after them."""
    rows = np.zeros((B, L), np.int32)
    for row in rows:
        at = 0
        for number in range(1, SLOTS + 1):
            at += draw(st.sampled_from((0, 0, 0, 1, 3)))
            length = draw(st.sampled_from((1, 2, 5, 9, 16, L)))
            row[at : at + length] = number
            at += length
    return rows


def apart(values, example):
    """Each example as the beginning of a row of its own, for all arrays alike."""
    found = np.zeros((B * SLOTS, L, *values.shape[2:]), values.dtype)
    for row, number in np.ndindex(B, SLOTS):
        here = values[row, example[row] == number + 1]
        found[row * SLOTS + number, : len(here)] = here
    return found


@pytest.mark.parametrize("name", MIXERS)
@settings(max_examples=15)
@given(example=packings())
def test_packed_equals_alone(name, example):
    params, both = random_params(name), MEASURED[name]
    y, inner, outer = both(params, X, example, WEIGHT)
    alone = (apart(a, example) for a in (X, np.ones_like(example), WEIGHT))
    wanted, inner_alone, outer_alone = both(params, *alone)
    close(apart(np.asarray(y), example), wanted)
    close(apart(np.asarray(outer), example), outer_alone)
    jax.tree.map(close, inner, inner_alone)
    padding = example == 0
    assert not np.asarray(y)[padding].any() and not np.asarray(outer)[padding].any()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def plain_mamba(x, p):
    """float64 [L, D] of one example, position by position."""
    both = np.einsum("ld,dje->jle", x, p["in"]["kernel"]) + p["in"]["bias"][:, None]
    inner, gate = both
    total = 0
    for r in (0, 1):
        u, ys = inner[::-1] if r else inner, []
        width = p["conv"].shape[1]
        state = np.zeros(p["rate_log"].shape[1:])
        for t in range(len(u)):
            taps = [p["conv"][r, k] * u[t - k] for k in range(width) if k <= t]
            v = sum(taps) + p["conv_bias"][r]
            v = v * sigmoid(v)
            selected, size = v @ p["select"][r], len(state)
            low, taken, read = np.split(selected, [-2 * size, -size])
            step = np.log1p(np.exp(low @ p["step"][r] + p["step_bias"][r]))
            state = state * np.exp(-np.exp(p["rate_log"][r]) * step)
            state = state + np.outer(taken, step * v)
            ys.append(read @ state + p["skip"][r] * v)
        total = total + np.array(ys[::-1] if r else ys)
    mixed = total * gate * sigmoid(gate)
    return mixed @ p["out"]["kernel"] + p["out"]["bias"]


def plain_lstm(x, p):
    """float64 [L, D] of one example, position by position."""
    found = []
    for r in (0, 1):
        units = p["states"]["recurrent"].shape[1]
        h, c, hs = np.zeros(units), np.zeros(units), []
        for row in x[::-1] if r else x:
            gates = np.einsum("d,dgu->gu", row, p["states"]["input"][:, r])
            gates += np.einsum("v,vgu->gu", h, p["states"]["recurrent"][r])
            i, f, g, o = gates + p["states"]["bias"][r]
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            hs.append(h)
        found.append(hs[::-1] if r else hs)
    return np.concatenate(found, -1) @ p["out"]["kernel"] + p["out"]["bias"]


PACKED = np.repeat([0, 1, 2, 3, 0], [1, 14, 1, 8, 3]).astype(np.int32)


@pytest.mark.parametrize(
    ("name", "plain"), [("mamba", plain_mamba), ("lstm", plain_lstm)]
)
def test_equals_a_plain_loop(name, plain):
    params = random_params(name)
    wide = jax.tree.map(lambda leaf: leaf.astype(np.float64), params)
    example = np.tile(PACKED, (B, 1))
    y, _, _ = MEASURED[name](params, X, example, WEIGHT)
    for row in range(B):
        for number in (1, 2, 3):
            here = example[row] == number
            wanted = plain(X[row, here].astype(np.float64), wide)
            close(np.asarray(y)[row, here], wanted)


def one_way(name, params, direction):
    """The parameters with the other direction silenced."""
    other = 1 - direction
    if name == "lstm":
        kernel = params["out"]["kernel"].reshape(2, D, D).copy()
        kernel[other] = 0
        out = params["out"] | {"kernel": kernel.reshape(2 * D, D)}
        return params | {"out": out}
    edited = {key: params[key].copy() for key in ("conv", "conv_bias")}
    for leaf in edited.values():
        leaf[other] = 0
    return params | edited


@pytest.mark.parametrize("direction", [0, 1])
@pytest.mark.parametrize("name", MIXERS)
def test_each_direction_reads_its_own_way(name, direction):
    params = one_way(name, random_params(name), direction)
    example, at = np.tile(PACKED, (B, 1)), 6
    changed = X.copy()
    changed[:, at] += 1
    before, after = (
        np.asarray(MEASURED[name](params, x, example, WEIGHT)[0]) for x in (X, changed)
    )
    position = np.arange(L)
    reached = (PACKED == PACKED[at]) & (position <= at if direction else position >= at)
    np.testing.assert_array_equal(before[:, ~reached], after[:, ~reached])
    assert (before != after).any(-1)[:, reached].all()


def sharded(name, mesh):
    """Where the rules put the parameters of one layer."""
    shapes = linear_task.structs()
    shapes["layers"][name] = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype),
        random_params(name),
    )
    places = sharding.param_shardings(mesh, shapes)["layers"][name]
    return jax.tree.map(
        lambda place: NamedSharding(mesh, PartitionSpec(*place.spec[1:])), places
    )


@pytest.mark.parametrize("name", MIXERS)
def test_a_mesh_agrees_with_one_device(name):
    params, example = random_params(name), np.tile(PACKED, (B, 1))
    wanted = MEASURED[name](params, X, example, WEIGHT)
    mesh = sharding.make_mesh(Mesh(data=2, fsdp=2, model=2))
    places = sharded(name, mesh)
    rows = sharding.batch_sharding(mesh)
    cut = jax.device_put(params, places), *jax.device_put((X, example, WEIGHT), rows)
    with jax.set_mesh(mesh):
        found = jax.jit(measured(name), out_shardings=(rows, places, rows))(*cut)
    jax.tree.map(close, found, wanted)


@pytest.mark.parametrize("name", MIXERS)
def test_bfloat16_is_near(name):
    params, example = random_params(name), np.tile(PACKED, (B, 1))
    wanted, inner, _ = MEASURED[name](params, X, example, WEIGHT)
    narrow, example = jnp.asarray(X, jnp.bfloat16), jnp.asarray(example)
    mixer = MIXERS[name].clone(config=variant(hidden=D, dtype="bfloat16"))

    def total(params):
        y = mixer.apply({"params": params}, narrow, example, None)
        return (y.astype(jnp.float32) * WEIGHT).sum(), y

    gradient, y = jax.jit(jax.grad(total, has_aux=True))(params)
    assert y.dtype == jnp.bfloat16
    for a, b in zip(
        *map(jax.tree.leaves, ((y, gradient), (wanted, inner))), strict=True
    ):
        far = np.linalg.norm(np.asarray(a, np.float32) - b)
        assert far < 0.03 * np.linalg.norm(b)


def scan_inputs(length, rows, channels, state, dtype=np.float32):
    rng = np.random.default_rng(1)
    shape = length, 2, rows
    x, step = rng.standard_normal((2, *shape, channels)).astype(dtype)
    into, out = rng.standard_normal((2, *shape, state)).astype(dtype)
    rate = -np.exp(rng.standard_normal((2, state, channels))).astype(np.float32)
    return x, np.abs(step), into, out, rate, rng.random(shape) > 0.1


def plain_scan(x, step, into, out, rate, same):
    """As autodiff sees it."""

    def turn(h, now):
        x, step, into, out, same = now
        h = h * same[..., None, None] * jnp.exp(step[:, :, None] * rate[:, None])
        h += (step * x)[:, :, None] * into[..., None]
        return h, (h * out[..., None]).sum(2)

    zeros = jnp.zeros((*x.shape[1:3], *rate.shape[1:]))
    return jax.lax.scan(turn, zeros, (x, step, into, out, same))[1]


def take(monkeypatch, pieces):
    """Rows in pieces, as accelerators do, or whole, as CPUs do."""
    kind = "one that cuts rows" if pieces else "cpu"
    monkeypatch.setattr(mamba, "device_kind", lambda: kind)


@pytest.mark.parametrize(
    ("length", "pieces"), [(1, True), (10, True), (27, True), (48, True), (27, False)]
)
def test_the_gradient_is_that_of_autodiff(length, pieces, monkeypatch):
    take(monkeypatch, pieces)
    *inputs, same = scan_inputs(length, 2, 5, 3)
    weight = np.random.default_rng(2).standard_normal(inputs[0].shape)

    def total(scan):
        def scalar(*inputs):
            return (scan(*inputs, same) * weight.astype(np.float32)).sum()

        return jax.jit(jax.value_and_grad(scalar, range(5)))(*inputs)

    jax.tree.map(close, total(selective_scan), total(plain_scan))


def test_the_states_add_up_in_float32():
    # Nothing decays: the state grows by 0.002 at each of 400 positions,
    # which bfloat16 would lose from 0.5 on.
    ones = jnp.ones((400, 2, 1, 1), jnp.bfloat16)
    step = jnp.full((400, 2, 1, 1), 0.002)
    same = jnp.ones((400, 2, 1), bool)
    scan = jax.jit(selective_scan)
    y = scan(ones, step, ones, ones, jnp.zeros((2, 1, 1)), same)
    assert y.dtype == jnp.bfloat16
    assert float(y[-1, 0, 0, 0]) == pytest.approx(0.8, rel=0.01)


@pytest.mark.parametrize("pieces", [True, False])
def test_the_states_of_a_row_are_never_in_memory_at_once(pieces, monkeypatch):
    take(monkeypatch, pieces)
    monkeypatch.setattr(mamba, "_CHUNK", 16)
    monkeypatch.setattr(mamba, "_PIECE", 512)
    *inputs, same = scan_inputs(4096, 1, 64, 64)

    def total(*inputs):
        return selective_scan(*inputs, same).sum()

    compiled = jax.jit(jax.value_and_grad(total, range(5))).lower(*inputs).compile()
    states = 4096 * 2 * 64 * 64 * 4
    assert compiled.memory_analysis().temp_size_in_bytes < 0.3 * states


def test_initial_values_of_the_state_space():
    mixer = Mamba(variant(hidden=40))
    example = jnp.ones((1, 2), jnp.int32)
    made = jax.jit(mixer.init)(jax.random.key(1), jnp.zeros((1, 2, 40)), example, None)[
        "params"
    ]
    step = np.asarray(jax.nn.softplus(made["step_bias"]))
    assert 0.001 <= step.min() < 0.0015 and 0.07 < step.max() <= 0.1
    assert np.median(step) == pytest.approx(0.01, rel=0.3)
    rate = np.exp(made["rate_log"])
    assert rate.shape == (2, 16, 80)
    np.testing.assert_allclose(rate[1, :, 7], np.arange(1, 17), rtol=1e-6)
    assert (made["skip"] == 1).all()
    assert made["select"].shape == (2, 80, 3 + 32)
    assert 0.45 < abs(made["conv"]).max() <= 0.5
    decays = tree.flatten(optim.decays(made))
    assert {name for name, decay in decays.items() if decay} == {
        *("in/kernel", "out/kernel", "conv", "select", "step")
    }


def test_flops_are_those_of_the_parameters():
    sizes = {
        name: {key: leaf.size for key, leaf in tree.flatten(params).items()}
        for name, params in ((name, random_params(name)) for name in MIXERS)
    }
    products = {
        "mamba": ("in/kernel", "conv", "select", "step", "out/kernel"),
        "lstm": ("states/input", "states/recurrent", "out/kernel"),
    }
    flops = {
        name: 2 * sum(sizes[name][key] for key in keys)
        for name, keys in products.items()
    }
    flops["mamba"] += 7 * sizes["mamba"]["rate_log"]
    assert metrics.mamba_flops(D, state=3, expand=2, taps=3) == flops["mamba"]
    assert metrics.lstm_flops(D) == flops["lstm"]
