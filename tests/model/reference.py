"""BERT in plain NumPy float64, written from the paper alone, one row at a time."""

import math

import numpy as np


def layer_norm(x, norm):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-12) * norm["scale"] + norm["bias"]


def gelu_erf(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def gelu_tanh(x):
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return 0.5 * x * (1 + np.tanh(inner))


def self_attention(x, example, params):
    out = np.zeros_like(x)
    for head in range(params["query"]["kernel"].shape[1]):
        query, key, value = (
            x @ params[name]["kernel"][:, head] + params[name]["bias"][head]
            for name in ("query", "key", "value")
        )
        for i in range(len(x)):
            if example[i] == 0:
                continue
            seen = np.flatnonzero(example == example[i])
            score = key[seen] @ query[i] / math.sqrt(query.shape[1])
            power = np.exp(score - score.max())
            mixed = (power / power.sum()) @ value[seen]
            out[i] += mixed @ params["out"]["kernel"][head]
    return out + params["out"]["bias"]


def layer(x, example, params, gelu):
    attention, mlp = params["attention"], params["mlp"]
    x = layer_norm(x + self_attention(x, example, attention), attention["norm"])
    y = gelu(x @ mlp["up"]["kernel"] + mlp["up"]["bias"])
    y = y @ mlp["down"]["kernel"] + mlp["down"]["bias"]
    return layer_norm(x + y, mlp["norm"])


def encode(row, params, gelu):
    """float64 [L, D] of one row of token, segment, position, example."""
    table = params["embeddings"]
    x = sum(table[name][row[name]] for name in ("token", "segment", "position"))
    x = layer_norm(x, table["norm"])
    layers = params["layers"]
    for i in range(len(layers["mlp"]["up"]["bias"])):
        x = layer(x, row["example"], _index(layers, i), gelu)
    return x


def masked_logits(hidden, params, gelu):
    head = params["mlm"]
    x = gelu(hidden @ head["transform"]["kernel"] + head["transform"]["bias"])
    table = params["embeddings"]["token"]
    return layer_norm(x, head["norm"]) @ table.T + head["bias"]


def pair_logits(first, params):
    pooled = np.tanh(first @ params["pooler"]["kernel"] + params["pooler"]["bias"])
    return pooled @ params["nsp"]["kernel"] + params["nsp"]["bias"]


def _index(tree, i):
    if isinstance(tree, dict):
        return {name: _index(value, i) for name, value in tree.items()}
    return tree[i]
