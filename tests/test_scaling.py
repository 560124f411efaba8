"""Collectives of a step as devices are added, the work of each staying the same."""

import dataclasses

import jax
import pytest

from bert_jax import plan, topology, tree
from bert_jax.config import Mesh
from bert_jax.tasks.pretrain import pretrain
from tests.test_plan import CONFIG

SCALARS = 20  # losses, their weights and the gradient's norm


def moved(mesh):
    """kind -> (count, elements) in a step of phase 1, 4 rows a device."""
    count = mesh.data * mesh.fsdp * mesh.model
    config = dataclasses.replace(CONFIG, mesh=mesh)
    place = topology.Topology("fake", jax.devices()[:count], None, 10**9)
    found = plan.attempt(config, 1, place, lambda _: None, 4)
    kinds = plan.report(found)["collectives"]
    return {kind: (total["count"], total["elements"]) for kind, total in kinds.items()}


@pytest.fixture(scope="module")
def sizes():
    task = pretrain(CONFIG.model, CONFIG.objective)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    return {name: leaf.size for name, leaf in tree.flatten(shapes).items()}


def test_data_parallel_steps_move_the_gradients_whatever_the_devices(sizes):
    found = [moved(Mesh(n, 1, 1)) for n in (2, 8)]
    wanted = sum(sizes.values()) + sizes["embeddings/token"]
    for kinds in found:
        assert list(kinds) == ["all-reduce"]
        count, elements = kinds["all-reduce"]
        assert wanted < elements < wanted + SCALARS
        assert count <= CONFIG.model.layers + 2


@pytest.mark.parametrize(
    "mesh", [Mesh(2, 4, 1), pytest.param(Mesh(1, 8, 1), marks=pytest.mark.slow)]
)
def test_fsdp_moves_parameters_and_not_activations(sizes, mesh):
    # Before activations were held by their rows, each layer reduced [B, L, F].
    kinds = moved(mesh)
    every, token = sum(sizes.values()), sizes["embeddings/token"]
    layers = sum(size for name, size in sizes.items() if name.startswith("layers/"))
    rows = 4 * 40 * CONFIG.model.hidden
    assert kinds["all-gather"][1] < 1.1 * (2 * layers + 2 * token)
    slices = every / mesh.fsdp if mesh.data > 1 else 0
    assert kinds["all-reduce"][1] < 1.1 * (every + slices + token / mesh.fsdp)
    assert kinds["all-to-all"][1] <= 4.1 * rows
