"""A small model and packed batches; a different number for every dimension."""

import dataclasses

import jax
import numpy as np

from bert_jax.config import Model, Objective
from bert_jax.tasks.pretrain import pretrain

SMALL = Model(
    vocab_size=37,
    vocab_multiple=16,
    hidden=12,
    layers=2,
    heads=2,
    mlp=20,
    positions=17,
    segments=2,
    dtype="float32",
    scan=False,
)


def variant(**edits) -> Model:
    return dataclasses.replace(SMALL, **edits)


def task(model: Model = SMALL, pair: str = "nsp"):
    return pretrain(model, Objective(pair=pair))


def some_params(model: Model = SMALL, pair: str = "nsp", seed: int = 0):
    """Random parameters, in which no bias is 0 and no scale 1."""
    return draw(task(model, pair), seed)


def draw(made, seed: int = 0):
    """The same of any task."""
    shapes = jax.eval_shape(made.init, jax.random.key(0))
    rng = np.random.default_rng(seed)

    def one(path, leaf):
        noise = 0.3 * rng.standard_normal(leaf.shape).astype(np.float32)
        return jax.numpy.asarray(noise + (path[-1].key == "scale"))

    return jax.tree_util.tree_map_with_path(one, shapes)


def packed(lengths, rows=5, seed=1, total=16, masked=4, vocabulary=37):
    """Rows that each hold examples of the given lengths, then padding."""
    rng = np.random.default_rng(seed)
    shape = (rows, total)
    batch = {name: np.zeros(shape, np.int32) for name in ("token", "segment")}
    batch |= {name: np.zeros(shape, np.int32) for name in ("position", "example")}
    starts = np.cumsum([0, *lengths])
    for number, (start, length) in enumerate(zip(starts, lengths, strict=False), 1):
        here = np.s_[:, start : start + length]
        batch["token"][here] = rng.integers(0, vocabulary, (rows, length))
        batch["segment"][here] = np.sort(rng.integers(0, 2, (rows, length)))
        batch["position"][here] = np.arange(length)
        batch["example"][here] = number
    used = starts[-1]
    batch["mlm_position"] = rng.integers(0, used, (rows, masked)).astype(np.int32)
    batch["mlm_label"] = rng.integers(0, vocabulary, (rows, masked)).astype(np.int32)
    batch["mlm_weight"] = rng.integers(0, 2, (rows, masked)).astype(np.float32)
    first = np.tile(starts[:-1], (rows, 1)).astype(np.int32)
    batch["nsp_position"] = first
    batch["nsp_label"] = rng.integers(0, 2, first.shape).astype(np.int32)
    batch["nsp_weight"] = np.ones(first.shape, np.float32)
    return batch


def mean_loss(model: Model, rng=None, pair="nsp"):
    """The training loss, jitted, as a function of parameters and batch."""
    made = task(model, pair)

    def loss(params, batch):
        pairs = made.loss(params, batch, rng)
        return sum(pairs[name][0] / pairs[name][1] for name in made.terms)

    return loss
