"""BERT in plain NumPy float64, written from the paper alone, one row at a time."""

import math

import numpy as np


def norm(x, params, kind="post"):
    if kind == "rms":
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12) * params["scale"]
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-12) * params["scale"] + params["bias"]


def gelu_erf(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def gelu_tanh(x):
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return 0.5 * x * (1 + np.tanh(inner))


GELU = {"gelu": gelu_erf, "gelu_tanh": gelu_tanh}


def turned(x, position, base):
    """Rotary positions as products of complex numbers, feature i with i + h / 2."""
    half = x.shape[1] // 2
    angle = position[:, None] * base ** (-np.arange(half) / half)
    y = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angle)
    return np.concatenate([y.real, y.imag], axis=1)


def self_attention(x, row, params, config, number):
    out, example = np.zeros_like(x), row["example"]
    window = config.window if number % config.global_every else 0
    for head in range(params["query"]["kernel"].shape[1]):
        query, key, value = (
            x @ params[name]["kernel"][:, head] + params[name]["bias"][head]
            for name in ("query", "key", "value")
        )
        if config.position == "rope":
            query = turned(query, row["position"], config.rope_base)
            key = turned(key, row["position"], config.rope_base)
        for i in range(len(x)):
            if example[i] == 0:
                continue
            seen = np.flatnonzero(example == example[i])
            if config.mixer == "causal_attention":
                seen = seen[seen <= i]
            if window:
                seen = seen[abs(seen - i) <= window / 2]
            score = key[seen] @ query[i] / math.sqrt(query.shape[1])
            power = np.exp(score - score.max())
            mixed = (power / power.sum()) @ value[seen]
            out[i] += mixed @ params["out"]["kernel"][head]
    return out + params["out"]["bias"]


def feed_forward(x, params, config):
    def linear(name, x):
        return x @ params[name]["kernel"] + params[name]["bias"]

    gelu = GELU[config.activation]
    if config.feed_forward == "gelu":
        return linear("down", gelu(linear("up", x)))
    gate = linear("gate", x)
    gate = gelu(gate) if config.feed_forward == "geglu" else gate / (1 + np.exp(-gate))
    return linear("down", gate * linear("up", x))


def layer(x, row, params, config, number):
    attention, mlp, kind = params["attention"], params["mlp"], config.norm
    if kind == "post":
        x = norm(
            x + self_attention(x, row, attention, config, number), attention["norm"]
        )
        return norm(x + feed_forward(x, mlp, config), mlp["norm"])
    y = norm(x, attention["norm"], kind)
    x = x + self_attention(y, row, attention, config, number)
    return x + feed_forward(norm(x, mlp["norm"], kind), mlp, config)


def encode(row, params, config):
    """float64 [L, D] of one row of token, segment, position, example."""
    table = params["embeddings"]
    x = sum(table[name][row[name]] for name in ("token", "segment"))
    if config.position == "learned":
        x = x + table["position"][row["position"]]
    if config.position == "sinusoidal":
        half = x.shape[1] // 2
        angle = row["position"][:, None] / 10_000 ** (np.arange(half) / half)
        x = x + np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
    x = norm(x, table["norm"], config.norm)
    if "project" in params:
        x = x @ params["project"]["kernel"] + params["project"]["bias"]
    layers, groups = params["layers"], len(params["layers"]["mlp"]["up"]["bias"])
    for i in range(config.layers):
        own = _index(layers, i * groups // config.layers)
        x = layer(x, row, own, config, i)
    return x if config.norm == "post" else norm(x, params["norm"], config.norm)


def masked_logits(hidden, params, config):
    head = params["mlm"]
    x = hidden @ head["transform"]["kernel"] + head["transform"]["bias"]
    x, table = GELU[config.activation](x), params["embeddings"]["token"]
    return norm(x, head["norm"], config.norm) @ table.T + head["bias"]


def pair_logits(first, params):
    pooled = np.tanh(first @ params["pooler"]["kernel"] + params["pooler"]["bias"])
    return pooled @ params["nsp"]["kernel"] + params["nsp"]["bias"]


def _index(tree, i):
    if isinstance(tree, dict):
        return {name: _index(value, i) for name, value in tree.items()}
    return tree[i]
