"""The list of an encoder's parts is that of the parameters, for every preset."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax import config, optim, tree
from bert_jax.config import load
from bert_jax.model import Bert, parts
from bert_jax.optim.transforms import scale_by_layer_trust_ratio
from bert_jax.tasks.pretrain import pretrain

PRESETS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))
ZERO = jnp.zeros((1, 2), jnp.int32)
NARROW = config.Model(
    vocab_size=64, hidden=32, layers=2, heads=2, mlp=16, embedding=8, norm="pre"
)


def _encoder(model: config.Model) -> dict[str, Any]:
    batch = dict.fromkeys(("token", "segment", "position", "example"), ZERO)
    bert: Any = Bert(model)
    found = jax.eval_shape(
        lambda key: bert.init(key, batch, method="encode"), jax.random.key(0)
    )
    return found["params"]


def test_every_preset_has_the_parts_that_are_listed():
    models = {load(f"{path}:smoke").model for path in PRESETS}
    seen = set()
    for model in models:
        found = _encoder(model)
        assert set(found) == set(parts.of_encoder(model))
        assert all(map(parts.in_encoder, tree.flatten(found)))
        seen |= set(found)
    assert seen == set(parts.ENCODER), "each part is in some preset"


@pytest.mark.parametrize("kind", ["mlm", "rtd"])
def test_learning_rates_fall_with_the_depth_of_every_part(kind):
    objective = config.Objective(kind=kind, pair="none", generator_size=0.5)
    task = pretrain(NARROW, objective)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    found = tree.flatten(optim.rate_factors(config.Optim(layer_decay=0.5), shapes))
    assert found["embeddings/token"] == 0.5**3
    for begin in ("", "generator/") if kind == "rtd" else ("",):
        assert found[f"{begin}project/kernel"] == 0.5**3
        kernel = found[f"{begin}layers/mlp/up/kernel"]
        np.testing.assert_allclose(kernel.ravel(), [0.25, 0.5])
        assert found[f"{begin}norm/scale"] == 0.5
    head = "generator/mlm/bias" if kind == "rtd" else "mlm/bias"
    assert found[head] == 1


@pytest.mark.parametrize(("layers", "norm"), [(1, 1), (2, 0)])
def test_freezing_layers_freezes_what_lies_below(layers, norm):
    task = pretrain(NARROW, config.Objective())
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    settings = config.Optim(freeze_layers=layers)
    found = tree.flatten(optim.rate_factors(settings, shapes))
    assert not found["embeddings/token"] and not found["project/bias"]
    kernel = found["layers/mlp/up/kernel"].ravel()
    assert kernel.tolist() == [0.0] * layers + [1.0] * (2 - layers)
    assert found["norm/scale"] == norm and found["mlm/bias"] == 1


def test_a_generator_has_a_trust_ratio_for_each_layer():
    layers = {"layers": {"mlp": {"kernel": jnp.array([[1.0] * 3, [9.0] * 3])}}}
    params = layers | {"generator": layers}
    lamb = scale_by_layer_trust_ratio()
    updates = jax.tree.map(jnp.ones_like, params)
    found, _ = lamb.update(updates, lamb.init(params), params)
    for leaf in jax.tree.leaves(found):
        np.testing.assert_allclose(leaf[:, 0], [1, 9])
