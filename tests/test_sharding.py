import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from bert_jax import config, sharding, tree
from bert_jax.errors import UserError
from bert_jax.tasks.classify import classify
from bert_jax.tasks.distill import distill
from bert_jax.tasks.pretrain import pretrain
from tests import linear_task
from tests.model.batches import SMALL


def mesh_of(data, fsdp, model):
    assert len(jax.devices()) == 8, "tests need 8 (fake) devices"
    return sharding.make_mesh(config.Mesh(data, fsdp, model))


@pytest.mark.parametrize(
    ("asked", "got"),
    [((-1, 1, 1), (8, 1, 1)), ((2, -1, 2), (2, 2, 2)), ((1, 2, 4), (1, 2, 4))],
)
def test_minus_one_takes_the_rest(asked, got):
    assert tuple(mesh_of(*asked).shape.values()) == got


@pytest.mark.parametrize("asked", [(3, -1, 1), (2, 2, 1), (16, 1, 1), (-1, 16, 1)])
def test_wrong_device_count_names_the_field_and_the_numbers(asked):
    with pytest.raises(UserError, match=r"config\.mesh: data=.* 8 there are"):
        mesh_of(*asked)


@pytest.mark.parametrize("pair", [True, False])
def test_every_parameter_has_one_rule(pair):
    named = tree.flatten(
        sharding.param_shardings(mesh_of(2, 2, 2), linear_task.structs(pair))
    )
    specs = {name: place.spec for name, place in named.items()}
    heads = PartitionSpec(None, "fsdp", "model", None)
    assert specs["embeddings/token"] == PartitionSpec("model", "fsdp")
    assert specs["layers/attention/key/kernel"] == heads
    assert specs["layers/mlp/down/kernel"] == PartitionSpec(None, "model", "fsdp")
    assert specs["mlm/bias"] == PartitionSpec("model")
    assert specs["embeddings/norm/scale"] == PartitionSpec(None)
    assert ("nsp/kernel" in specs) == pair


def test_every_parameter_has_one_rule_and_every_rule_a_parameter():
    settings = config.TaskSettings(kind="tag", labels=("a", "b"), features="sum_all")
    objective = config.Objective(pair="sop", masking="span", span_boundary=True)
    edits = [{"mixer": "mamba"}, {"mixer": "lstm"}]
    edits += [{"embedding": 8, "norm": "pre", "feed_forward": "geglu"}]
    models = [dataclasses.replace(SMALL, **edit) for edit in edits]
    tasks = [pretrain(m, objective) for m in (SMALL, *models)]
    narrow = dataclasses.replace(SMALL, hidden=8)
    rules = config.Distill(hidden=1.0, layers=(1, 2))
    tasks += [distill(pretrain(narrow, objective), tasks[0], rules, None)]
    met = set()
    for task in (classify(SMALL, settings), *tasks):
        shapes = jax.eval_shape(task.init, jax.random.key(0))
        for name in tree.flatten(shapes):
            matching = [r for r in sharding.RULES if re.fullmatch(r.pattern, name)]
            assert len(matching) == 1, name
            met.update(matching)
        sharding.param_shardings(mesh_of(2, 2, 2), shapes)
    assert met == set(sharding.RULES)


def test_all_faults_are_reported_together():
    shapes = linear_task.structs()
    shapes["mlm"]["extra"] = jax.ShapeDtypeStruct((7,), jnp.float32)
    shapes["mlm"]["bias"] = jax.ShapeDtypeStruct((57,), jnp.float32)
    del shapes["layers"]["mlp"]["up"]["bias"]
    with pytest.raises(UserError) as caught:
        sharding.param_shardings(mesh_of(2, 2, 2), shapes)
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == 3
    extra, size, unused = sorted(lines, key=lambda line: "layers" in line)[0:3]
    found = "\n".join([extra, size, unused])
    assert "mlm/extra (7,): no rule" in found
    assert "'layers/mlp/(up|gate)/bias' in" in found
    assert (
        "mlm/bias (57,): size 57 of axis 'vocab' is not divisible by "
        "config.mesh.model=2; change it or config.model.vocab_multiple" in found
    )


def test_hidden_size_must_divide_over_fsdp():
    shapes = linear_task.structs()
    shapes["pooler"]["kernel"] = jax.ShapeDtypeStruct((18, 16), jnp.float32)
    with pytest.raises(UserError, match=r"pooler/kernel .* 18 .*config\.mesh\.fsdp=4"):
        sharding.param_shardings(mesh_of(2, 4, 1), shapes)


def test_batch_must_divide_over_devices_and_micro_batches():
    phase = config.Phase(batch=24, accumulate=3)
    sharding.check_batch(mesh_of(4, 2, 1), phase, 0)
    with pytest.raises(UserError, match=r"config\.phases\[1\]\.batch=20.*config\.mesh"):
        sharding.check_batch(
            mesh_of(4, 2, 1), dataclasses.replace(phase, batch=20, accumulate=1), 1
        )
    with pytest.raises(UserError, match="48 would do"):
        edited = dataclasses.replace(phase, batch=40, accumulate=6)
        sharding.check_batch(mesh_of(4, 2, 1), edited, 0)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("asked", [(-1, 1, 1), (1, 8, 1), (2, 2, 2), (-1, 1, 4)])
def test_the_nearest_mesh_fits_and_is_cut_as_far_as_it_can(asked, count):
    shapes = linear_task.structs()
    found = sharding.nearest_mesh(config.Mesh(*asked), count, shapes)
    devices = jax.devices()[: found.data * found.fsdp * found.model]
    assert len(devices) <= count
    mesh = sharding.make_mesh(found, devices)
    sharding.param_shardings(mesh, shapes)  # raises where it does not fit
    wanted = math.prod(asked[1:])
    assert found.fsdp * found.model <= wanted
    if 8 % count == 0:
        assert found.fsdp * found.model == min(wanted, count)
        assert found.data == max(1, count // wanted)
    if count == 8:
        assert (found.fsdp, found.model) == asked[1:]
