"""BERT itself, on real batches: one device and every mesh of eight agree."""

import dataclasses

import jax
import numpy as np
import pytest

from bert_jax import optim, sharding
from bert_jax.config import Config, Data, Mesh, Model, Optim, Phase
from bert_jax.data import device
from bert_jax.data.pipeline import Batches
from bert_jax.step import init_state, make_train_step
from bert_jax.tasks.pretrain import pretrain
from tests.data.synthetic import random_store

STEPS = 5
QUICK = [(8, 1, 1), (2, 2, 2)]
SLOW = [
    (4, 2, 1),
    (4, 1, 2),
    (2, 4, 1),
    (2, 1, 4),
    (1, 8, 1),
    (1, 1, 8),
    (1, 4, 2),
    (1, 2, 4),
]
STORE = random_store(3_000)
CONFIG = Config(
    data=Data(eval_share=0.0),
    model=Model(
        vocab_size=STORE.vocabulary.size,
        hidden=48,
        layers=3,
        heads=8,
        mlp=80,
        positions=40,
        dtype="float32",
    ),
    optim=Optim(peak_rate=1e-3, warmup_share=0.0),
    phases=(Phase(length=40, batch=16, max_packed=3),),
)


def _losses(
    mesh_config: Mesh, accumulate: int = 1, config: Config = CONFIG
) -> np.ndarray:
    """[STEPS, 2] loss and gradient norm, dropout included."""
    config = dataclasses.replace(config, mesh=mesh_config)
    count = mesh_config.data * mesh_config.fsdp * mesh_config.model
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:count])
    task = pretrain(config.model, config.objective)
    optimizer = optim.optimizer(config.optim, 100)
    schedule = optim.learning_rate(config.optim, 100)
    state = init_state(task, optimizer, mesh, seed=3)
    step = make_train_step(task, optimizer, schedule, mesh, 3, accumulate)
    batches = Batches(STORE, config, 0)
    found = []
    for number in range(STEPS):
        batch = device.to_device(batches.batch(number), sharding.batch_sharding(mesh))
        state, measured = step(state, batch)
        found.append([float(measured["loss"]), float(measured["grad_norm"])])
    return np.array(found)


@pytest.fixture(scope="module")
def alone() -> np.ndarray:
    """What one device measures."""
    return _losses(Mesh(1, 1, 1))


@pytest.mark.parametrize(
    "shape", [*QUICK, *(pytest.param(s, marks=pytest.mark.slow) for s in SLOW)]
)
def test_every_mesh_agrees_with_one_device(shape, alone):
    found = _losses(Mesh(*shape))
    np.testing.assert_allclose(found, alone, rtol=1e-5, atol=1e-5)
    assert not np.allclose(alone[0], alone[-1])
