import jax
import numpy as np
import pytest

from bert_jax import config, distributed, sharding
from bert_jax.data import device
from bert_jax.distributed import Cluster, find
from bert_jax.errors import UserError

OURS = {
    "JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234",
    "JAX_PROCESS_COUNT": "4",
    "JAX_PROCESS_INDEX": "3",
}
SLURM = {
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "1(x8)",
    "SLURM_STEP_NODELIST": "node[003-007,9],other1",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "0",
}
PORT = 61440 + 17 * 16


def test_alone():
    assert find({}) is None
    # A shell in an allocation, and a task that has no others.
    assert find({"SLURM_JOB_ID": "17", "SLURM_NTASKS": "8"}) is None
    assert find({**SLURM, "SLURM_STEP_NUM_TASKS": "1"}) is None


def test_launchers_variables_come_first():
    assert find({**SLURM, **OURS}) == Cluster("10.0.0.1:1234", 4, 3)
    jobset = {k: v for k, v in OURS.items() if k != "JAX_PROCESS_INDEX"}
    assert find({**jobset, "JOB_COMPLETION_INDEX": "2"}).index == 2
    assert find({**OURS, "JOB_COMPLETION_INDEX": "2"}).index == 3


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("node[003-007,9],other1", "node003"),
        ("a,b", "a"),
        ("gpu-1-[2,5]", "gpu-1-2"),
        ("h100", "h100"),
    ],
)
def test_slurm_names_its_first_node(nodes, host):
    found = find({**SLURM, "SLURM_STEP_NODELIST": nodes})
    assert found == Cluster(f"{host}:{PORT}", 8, 5, None)


@pytest.mark.parametrize(
    ("tasks", "visible", "devices"),
    [
        ("1(x8)", None, None),  # a task has all GPUs of its node
        ("4(x2)", None, [2]),
        ("4(x2)", "0,1,2,3", [2]),
        ("4(x2)", "2", None),  # SLURM gave each task its own
        ("12", None, [2]),
    ],
)
def test_slurm_tasks_of_a_node_share_its_gpus(tasks, visible, devices):
    environ = {**SLURM, "SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_LOCALID": "2"}
    if visible:
        environ["CUDA_VISIBLE_DEVICES"] = visible
    assert find(environ).devices == devices


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"JAX_PROCESS_COUNT": None}, "JAX_PROCESS_COUNT is not set"),
        ({"JAX_PROCESS_INDEX": None}, "JAX_PROCESS_INDEX is not set"),
        ({"JAX_PROCESS_INDEX": "-1"}, "JAX_PROCESS_INDEX=-1"),
        ({"JAX_PROCESS_INDEX": "4"}, "from 0 to JAX_PROCESS_COUNT - 1, which is 3"),
        ({"JAX_COORDINATOR_ADDRESS": "host"}, "is not HOST:PORT"),
    ],
)
def test_nonsense_is_a_user_error(change, message):
    environ = {k: v for k, v in {**OURS, **change}.items() if v is not None}
    with pytest.raises(UserError, match=message):
        find(environ)


def test_one_process_agrees_with_itself():
    distributed.agree("anything", {"a": 1})
    assert distributed.primary_first("work", lambda: 5) == 5
    assert distributed.Board("notes").now() == {}
    distributed.leave()


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2), (1, 1, 8), (1, 8, 1)])
def test_rows_on_the_mesh_are_the_rows_read(shape):
    mesh = sharding.make_mesh(config.Mesh(*shape))
    place = sharding.batch_sharding(mesh)
    assert device.host_part(place) == (0, 1)  # the only process reads all rows
    rows = np.arange(48, dtype=np.int32).reshape(16, 3)
    (array,) = device.to_device({"token": rows}, place).values()
    assert array.sharding == place
    np.testing.assert_array_equal(jax.device_get(array), rows)
