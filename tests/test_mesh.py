"""BERT itself, on real batches: one device and every mesh of eight agree.

Every preset takes steps in bfloat16 on 1, 2, 3 and 8 devices, and its gradients are
those of float32.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax import optim, sharding, tree
from bert_jax.config import Config, Data, Mesh, Model, Optim, Phase, load
from bert_jax.data import device
from bert_jax.data.pipeline import Batches
from bert_jax.run import task_of
from bert_jax.step import abstract_state, init_state, make_train_step
from bert_jax.tasks import Task
from bert_jax.tasks.pretrain import pretrain
from tests.data.synthetic import random_store

STEPS = 5
QUICK = [(2, 2, 2)]
SLOW = [
    (8, 1, 1),
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


# Sizes that 2, 3 and 8 devices divide on every axis.
SIZES = (
    "model.hidden=48 model.heads=24 model.mlp=48 model.layers=2 "
    "model.vocab_multiple=24 objective.generator_size=1.0 task.lstm_hidden=24 "
    f"data.eval_share=0.0 model.vocab_size={STORE.vocabulary.size} "
    "phases[0].length=24 phases[0].batch=24"
).split()


def _programs() -> dict[str, Config]:
    """The presets, those that compile to the same step once."""
    found: dict[Any, tuple[str, Config]] = {}
    for path in sorted((Path(__file__).parents[1] / "configs").glob("*.py")):
        config = load(f"{path}:smoke", SIZES)
        if config.model.embedding:
            config = load(f"{path}:smoke", [*SIZES, "model.embedding=24"])
        same = config.model, config.objective, config.task.kind, config.optim.name
        found.setdefault(same, (path.stem, config))
    return dict(found.values())


PROGRAMS = _programs()
QUICKLY: Any = {"xla_backend_optimization_level": 0}


def _batch(config: Config) -> dict[str, np.ndarray]:
    if config.task.kind == "pretrain":
        return Batches(STORE, config, 0).batch(0)
    rows, length = config.phases[0].batch, config.phases[0].length
    zeros = np.zeros((rows, length), np.int32)
    batch: dict[str, Any] = {"segment": zeros, "position": zeros, "example": zeros + 1}
    batch["token"] = np.arange(rows * length, dtype=np.int32).reshape(rows, length) % 50
    batch["nsp_position"] = np.zeros((rows, 1), np.int32)
    shape = rows, length if config.task.kind == "tag" else 1
    batch["weight"] = np.ones(shape, np.float32)
    batch["label"] = np.ones(shape, np.int32)
    if config.task.kind == "span":
        batch["label"] = np.ones((rows, 1, 2), np.int32)
    if config.task.kind == "choice":
        batch["group"] = np.arange(rows, dtype=np.int32)[:, None] // 2
    return batch


def _task(config: Config, dtype: str) -> Task:
    model = dataclasses.replace(config.model, dtype=dtype)
    labels = dataclasses.replace(config.task, labels=("a", "b", "c"))
    return task_of(dataclasses.replace(config, model=model, task=labels))


def _two_steps(config: Config, dtype: str, shape: tuple[int, int, int]) -> list[float]:
    mesh = sharding.make_mesh(Mesh(*shape), jax.devices()[: math.prod(shape)])
    task, optimizer = _task(config, dtype), optim.optimizer(config.optim, 100)
    rng = np.random.default_rng(0)

    def fill(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        # Without a program that draws them, which takes as long to compile.
        value = 0.02 * rng.standard_normal(leaf.shape)
        return jax.device_put(np.abs(value).astype(leaf.dtype), leaf.sharding)

    state = jax.tree.map(fill, abstract_state(task, optimizer, mesh))
    made = make_train_step(task, optimizer, lambda _: 1e-3, mesh, 3)
    place = sharding.batch_sharding(mesh)
    batch = device.to_device(_batch(config), place)
    step = made.lower(state, batch).compile(compiler_options=QUICKLY)
    losses = []
    for _ in range(2):
        state, measured = step(state, batch)
        losses.append(float(measured["loss"]))
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(PROGRAMS)), ids=list(PROGRAMS))
def test_every_preset_takes_steps_on_any_number_of_devices(number):
    """In bfloat16 on one device; on 2, 3 and 8 axes and types take turns.

    What a program consists of depends on the axes of its mesh, and hardly on how many
    devices each has: all presets together meet every axis with every number of
    devices, in both types.
    """
    config = list(PROGRAMS.values())[number]
    alone = _two_steps(config, "bfloat16", (1, 1, 1))
    assert np.isfinite(alone).all()
    for turn, count in enumerate((2, 3, 8)):
        shape, place = [1, 1, 1], number + turn
        shape[place % 3] = count
        dtype = ("bfloat16", "float32")[place // 3 % 2]
        try:
            losses = _two_steps(config, dtype, tuple(shape))
        except Exception as error:
            raise AssertionError(f"{number}: {dtype} on {shape}") from error
        # The dropped values are the same, whatever the mesh.
        np.testing.assert_allclose(losses, alone, rtol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_bfloat16_gives_the_gradients_of_float32(name):
    """No sum over rows loses what it adds up: each is right to 1 % in its size.

    Beside that, values that are rounded to eight bits give each gradient a noise of
    about 1 %, which has no direction of its own.
    """
    config = PROGRAMS[name]
    batch = {key: jnp.asarray(rows) for key, rows in _batch(config).items()}
    params = jax.jit(_task(config, "float32").init)(jax.random.key(0))
    # Softmax takes away what is added to all: the exact gradient is zero.
    added_to_all = {"head/bias"} if config.task.kind in ("span", "choice") else set()

    def gradients(dtype: str) -> dict[str, np.ndarray]:
        task = _task(config, dtype)

        def loss(params):
            pairs = task.loss(params, batch, jax.random.key(1))
            return task.total({name: pairs[name][0] / pairs[name][1] for name in terms})

        terms = task.terms
        made = jax.jit(jax.grad(loss)).lower(params).compile(compiler_options=QUICKLY)
        found = tree.flatten(made(params))
        return {name: np.asarray(g, np.float64).ravel() for name, g in found.items()}

    wanted, found = gradients("float32"), gradients("bfloat16")
    whole = math.sqrt(sum(gradient @ gradient for gradient in wanted.values()))
    for path, exact in wanted.items():
        size = np.linalg.norm(exact)
        if path in added_to_all or path.endswith("key/bias"):
            assert np.linalg.norm(found[path]) < 1e-2 * whole, path
            continue
        assert found[path] @ exact / size**2 == pytest.approx(1, abs=0.01), path
        assert np.linalg.norm(found[path] - exact) < 0.03 * size, path
