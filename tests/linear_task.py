"""A model of one line per parameter, with BERT's parameter tree and batch.

It compiles in a fraction of the time of the encoder, and every parameter matters.
"""

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.tasks import Task

B, L, P, K, D, H, h, F, V, N = 32, 10, 3, 2, 16, 8, 5, 24, 56, 4
POSITIONS, SEGMENTS = 12, 2


def shapes(pair: bool = True) -> dict:
    norm = {"scale": (D,), "bias": (D,)}
    norms = {"scale": (N, D), "bias": (N, D)}
    inward = {"kernel": (N, D, H, h), "bias": (N, H, h)}
    tree = {
        "embeddings": {
            "token": (V, D),
            "position": (POSITIONS, D),
            "segment": (SEGMENTS, D),
            "norm": norm,
        },
        "layers": {
            "attention": {
                "query": inward,
                "key": inward,
                "value": inward,
                "out": {"kernel": (N, H, h, D), "bias": (N, D)},
                "norm": norms,
            },
            "mlp": {
                "up": {"kernel": (N, D, F), "bias": (N, F)},
                "down": {"kernel": (N, F, D), "bias": (N, D)},
                "norm": norms,
            },
        },
        "mlm": {
            "transform": {"kernel": (D, D), "bias": (D,)},
            "norm": norm,
            "bias": (V,),
        },
    }
    if pair:
        tree["pooler"] = {"kernel": (D, D), "bias": (D,)}
        tree["nsp"] = {"kernel": (D, 2), "bias": (2,)}
    return tree


def structs(pair: bool = True) -> dict:
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        shapes(pair),
        is_leaf=lambda node: isinstance(node, tuple),
    )


def init(rng: jax.Array) -> dict:
    # Waves, since random numbers for each leaf would take long to compile.
    leaves, tree = jax.tree.flatten(structs())
    phase = jax.random.uniform(rng)
    made = [
        jnp.sin(jnp.arange(leaf.size) * (1.7 + i) + phase).reshape(leaf.shape) * 0.1
        for i, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(tree, made)


def _norm(norm: dict, x: jax.Array) -> jax.Array:
    shape = (1,) * (x.ndim - 1) + (D,)
    return x * (1 + norm["scale"].reshape(shape)) + norm["bias"].reshape(shape)


def _bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    return x + jnp.broadcast_to(bias, x.shape[: x.ndim - bias.ndim] + bias.shape)


def _layer(x: jax.Array, layer: dict) -> tuple[jax.Array, None]:
    attention, mlp = layer["attention"], layer["mlp"]
    query, key, value = (
        _bias(jnp.einsum("bld,dhk->blhk", x, part["kernel"]), part["bias"])
        for part in (attention["query"], attention["key"], attention["value"])
    )
    mixed = jnp.tanh(query * key + value)
    out = attention["out"]
    x += _bias(jnp.einsum("blhk,hkd->bld", mixed, out["kernel"]), out["bias"])
    x = _norm(attention["norm"], x)
    up = jnp.tanh(_bias(x @ mlp["up"]["kernel"], mlp["up"]["bias"]))
    x += _bias(up @ mlp["down"]["kernel"], mlp["down"]["bias"])
    return _norm(mlp["norm"], x), None


def _pairs(logits: jax.Array, label: jax.Array, weight: jax.Array) -> tuple:
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), label[..., None], -1)
    right = (jnp.argmax(logits, -1) == label) * weight
    total = weight.sum()
    return (-(chosen[..., 0] * weight).sum(), total), (right.sum(), total)


def loss(params: dict, batch: dict, rng: jax.Array | None) -> dict:
    table = params["embeddings"]
    x = table["token"][batch["token"]] + table["position"][batch["position"]]
    x = _norm(table["norm"], x + table["segment"][batch["segment"]])
    del rng  # it knows no dropout
    x, _ = jax.lax.scan(_layer, x, params["layers"])
    mlm, pooler, nsp = params["mlm"], params["pooler"], params["nsp"]
    masked = jnp.take_along_axis(x, batch["mlm_position"][..., None], 1)
    masked = _bias(masked @ mlm["transform"]["kernel"], mlm["transform"]["bias"])
    logits = _bias(_norm(mlm["norm"], masked) @ table["token"].T, mlm["bias"])
    found = _pairs(logits, batch["mlm_label"], batch["mlm_weight"])
    first = jnp.take_along_axis(x, batch["nsp_position"][..., None], 1)
    pooled = jnp.tanh(_bias(first @ pooler["kernel"], pooler["bias"]))
    logits = _bias(pooled @ nsp["kernel"], nsp["bias"])
    next_found = _pairs(logits, batch["nsp_label"], batch["nsp_weight"])
    names = "mlm_loss mlm_accuracy nsp_loss nsp_accuracy".split()
    return dict(zip(names, (*found, *next_found), strict=True))


TASK = Task(
    init=init,
    loss=loss,
    terms=("mlm_loss", "nsp_loss"),
    predict=lambda params, batch: {},
    score=lambda sums: {},
)


def batch(seed: int = 0, rows: int = B) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)

    def ids(high: int, width: int) -> np.ndarray:
        return draw.integers(0, high, (rows, width), np.int32)

    return {
        "token": ids(V, L),
        "segment": ids(SEGMENTS, L),
        "position": ids(POSITIONS, L),
        "example": np.ones((rows, L), np.int32),
        "mlm_position": ids(L, P),
        "mlm_label": ids(V, P),
        "mlm_weight": (draw.random((rows, P)) < 0.6).astype(np.float32),
        "nsp_position": ids(L, K),
        "nsp_label": ids(2, K),
        "nsp_weight": (draw.random((rows, K)) < 0.6).astype(np.float32),
    }
