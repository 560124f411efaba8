"""The processes of one run: how they find each other, agree and exchange news."""

import collections
import glob
import importlib.util
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax._src import distributed as _jax_distributed  # the key-value store

from bert_jax.errors import Hung, UserError

_START = 300  # [s] for all processes to appear
_HEARTBEAT = 10  # [s] without a sign of life after which a process counts as dead
_END = 60  # [s] for all processes to come to their end
PREPARE = 7 * 24 * 3600.0  # [s] for the data of all processes to be there
_SHOWN = 12  # differing facts in a message


_COMPILED = "~/.cache/bert_jax/compiled"
_COMPILED_BYTES = 8 << 30


class Cluster(NamedTuple):
    """What a process has to know to join the others."""

    coordinator: str  # host:port of process 0
    count: int
    index: int
    devices: list[int] | None = None  # GPUs that are this process's own; None: all


def use_all_cores() -> None:
    """Shows a CPU-only process as many devices as it has cores, in powers of two.

    XLA runs one device of a CPU mostly on one core; with several, data parallelism
    uses them all. Accelerators are not affected, and a number of devices that the
    environment asks for is left alone.
    """
    asked = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if asked or "JAX_NUM_CPU_DEVICES" in os.environ:
        return
    fewer = hasattr(os, "sched_getaffinity")  # this process may not use them all
    cores = len(os.sched_getaffinity(0)) if fewer else os.cpu_count() or 1
    jax.config.update("jax_num_cpu_devices", 1 << (cores.bit_length() - 1))


def keep_compiled() -> None:
    """Lets later starts use what XLA compiles in this one.

    JAX's own settings (JAX_COMPILATION_CACHE_DIR and the like) come first.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        folder = os.path.expanduser(_COMPILED)
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_compilation_cache_max_size", _COMPILED_BYTES)


def find(environ: Mapping[str, str]) -> Cluster | None:
    """What the environment says of the other processes.

    Args:
      environ: as `os.environ`. JAX_COORDINATOR_ADDRESS with JAX_PROCESS_COUNT and
        JAX_PROCESS_INDEX or JOB_COMPLETION_INDEX (`launch/`, JobSet) comes before
        what SLURM's `srun` sets.

    Returns:
      Where this process belongs; None if it is alone, or on a TPU, whose processes
      JAX finds by itself.

    Raises:
      UserError: variables are missing or make no sense.
    """
    address = environ.get("JAX_COORDINATOR_ADDRESS")
    if address:
        index = "JAX_PROCESS_INDEX"
        if index not in environ and "JOB_COMPLETION_INDEX" in environ:
            index = "JOB_COMPLETION_INDEX"
        numbers = [_number(environ, name) for name in ("JAX_PROCESS_COUNT", index)]
        count, place = numbers
        if not 0 <= place < count:
            raise UserError(
                f"{index}={place}: processes are numbered from 0 to "
                f"JAX_PROCESS_COUNT - 1, which is {count - 1}"
            )
        if not re.fullmatch(r".+:\d+", address):
            raise UserError(f"JAX_COORDINATOR_ADDRESS={address}: is not HOST:PORT")
        return Cluster(address, count, place)
    # A shell inside an allocation has some of SLURM's variables, a task of srun all.
    needed = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_PROCID", "SLURM_STEP_NODELIST")
    tasks = environ.get("SLURM_STEP_NUM_TASKS", "1")
    if all(name in environ for name in needed) and tasks != "1":
        return _slurm(environ)
    return None


def _slurm(environ: Mapping[str, str]) -> Cluster:
    nodes = environ["SLURM_STEP_NODELIST"]  # such as a[03-05,7],b1
    found = re.match(r"([^,\[]+)(?:\[(\d+))?", nodes)
    assert found, nodes
    host = found[1] + (found[2] or "")
    job, step = _number(environ, "SLURM_JOB_ID"), _number(environ, "SLURM_STEP_ID")
    port = 61440 + (job * 16 + step) % 4096  # the same in all tasks, rarely in two jobs
    shared = not re.match(r"1\b", environ.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    given = environ.get("CUDA_VISIBLE_DEVICES", ",")
    # Tasks of one node take a GPU each, unless SLURM has given each its own.
    own = shared and "," in given
    devices = [_number(environ, "SLURM_LOCALID")] if own else None
    count = _number(environ, "SLURM_STEP_NUM_TASKS")
    return Cluster(f"{host}:{port}", count, _number(environ, "SLURM_PROCID"), devices)


def _number(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name, "")
    if not text.isdigit():
        said = f"{name}={text}" if name in environ else f"{name} is not set"
        raise UserError(f"{said}; it has to be a number where several processes run")
    return int(text)


def start(environ: Mapping[str, str]) -> None:
    """Joins the other processes, if there are any; before JAX opens its devices.

    Args:
      environ: as for `find`.

    Raises:
      UserError: the environment makes no sense. Ends the process with status 42 if the
        others do not appear.
    """
    if jax.distributed.is_initialized():
        return
    cluster = find(environ)
    times: dict[str, Any] = {
        "initialization_timeout": 2 * _START,
        "heartbeat_timeout_seconds": _HEARTBEAT,
        "shutdown_timeout_seconds": _END,
    }
    if cluster is None:
        if _on_tpu(environ):
            jax.distributed.initialize(**times)
        return
    host = cluster.coordinator.rpartition(":")[0]
    if host in ("127.0.0.1", "localhost"):  # JAX would listen to the whole world
        times["coordinator_bind_address"] = cluster.coordinator
    # JAX would end the process by itself, without saying what was missing.
    late = threading.Timer(_START, _give_up, [cluster])
    late.daemon = True
    late.start()
    jax.distributed.initialize(
        cluster.coordinator,
        cluster.count,
        cluster.index,
        cluster.devices,
        cluster_detection_method="deactivate",
        **times,
    )
    late.cancel()


def _give_up(cluster: Cluster) -> None:
    print(
        f"bert-jax: process {cluster.index} of {cluster.count} could not join the "
        f"others at {cluster.coordinator} in {_START} s: are all {cluster.count} "
        "started, and can they reach that address?",
        file=sys.stderr,
        flush=True,
    )
    os._exit(Hung.status)


def _on_tpu(environ: Mapping[str, str]) -> bool:
    wanted = environ.get("JAX_PLATFORMS", "tpu")
    chips = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
    return (
        "tpu" in wanted
        and bool(chips)
        and importlib.util.find_spec("libtpu") is not None
    )


def leave() -> None:
    """Ends the connection once all processes have come to the same point."""
    if _client():
        jax.distributed.shutdown()


def _client() -> Any:
    return _jax_distributed.global_state.client


def count() -> int:
    """Processes of the run."""
    return _jax_distributed.global_state.num_processes if _client() else 1


def index() -> int:
    """This process's place among them, known before JAX opens its devices."""
    return _jax_distributed.global_state.process_id if _client() else 0


class Board:
    """Notes that all processes can read, for as long as process 0 lives.

    Args:
      name: of the board; a process without others has one of its own.
    """

    def __init__(self, name: str):
        self._name = f"bert_jax/{name}"

    def put(self, value: Any, again: bool = False) -> None:
        """Sets this process's note; `again`: in place of its last one."""
        path = f"{self._name}/{index()}"
        if _client():
            _client().key_value_set(path, json.dumps(value), allow_overwrite=again)

    def now(self) -> dict[int, Any]:
        """The notes there are, by process."""
        pairs = _client().key_value_dir_get(self._name) if _client() else []
        return {int(key.rpartition("/")[2]): json.loads(text) for key, text in pairs}

    def of(self, process: int, seconds: float) -> Any:
        """The note of one process, once it is there.

        Raises:
          Hung: it has left none in that time.
        """
        try:
            path = f"{self._name}/{process}"
            text = _client().blocking_key_value_get(path, round(seconds * 1000))
        except jax.errors.JaxRuntimeError as error:
            raise Hung(
                f"process {process} has not come to {self._name} in {seconds:.0f} s"
            ) from error
        return json.loads(text)

    def all(self, seconds: float) -> list[Any]:
        """The notes of all processes, in their order; errors as `of`."""
        return [self.of(process, seconds) for process in range(count())]


def tell(news: Mapping[str, Any]) -> None:
    """Tells every process, this one included, what has happened; see `listen`."""
    number = _client().key_value_increment("bert_jax/news/count", 1)
    _client().key_value_set(f"bert_jax/news/{number}", json.dumps(news))


def listen(hear: Callable[[dict[str, Any]], None]) -> None:
    """Calls `hear` with all news in their order; returns when the connection ends."""
    number = 1
    while client := _client():
        try:
            text = client.blocking_key_value_get(f"bert_jax/news/{number}", 10_000)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" in str(error):
                continue
            return
        number += 1
        hear(json.loads(text))


def agree(name: str, facts: Mapping[str, Any], seconds: float = _START) -> None:
    """Makes sure that all processes are about to do the same.

    Args:
      name: what is compared, for messages; each may be used once.
      facts: by name, JSON values.
      seconds: for all processes to come here.

    Raises:
      UserError: processes differ; the message names which, and in what.
      Hung: a process has not come here in time.
    """
    if count() == 1:
        return
    board = Board(f"agree/{name}")
    board.put(facts)
    notes = board.all(seconds)
    faults = []
    for fact in sorted({fact for note in notes for fact in note}):
        texts = [json.dumps(note.get(fact)) for note in notes]
        usual, agreeing = collections.Counter(texts).most_common(1)[0]
        if agreeing < len(texts):
            others = [(i, text) for i, text in enumerate(texts) if text != usual]
            said = ", ".join(f"{text} in process {i}" for i, text in others[:_SHOWN])
            faults.append(f"  {fact}: {said}; {usual} in the others")
    if faults:
        more = f"\n  and {len(faults) - _SHOWN} more" if faults[_SHOWN:] else ""
        raise UserError(
            f"the processes of this run differ in their {name}:\n"
            + "\n".join(faults[:_SHOWN])
            + more
            + "\nstart all of them with the same command, code and files"
        )


def primary_first(name: str, work: Callable[[], Any]) -> Any:
    """Process 0 works, then all others; where they share a disk it is done by then.

    Args:
      name: of the work, for messages; each may be used once.
      work: returns something.

    Returns:
      What `work` returned here.

    Raises:
      Hung: process 0 was not done in time.
    """
    if count() == 1:
        return work()
    board = Board(f"first/{name}")
    if index():
        board.of(0, PREPARE)
        return work()
    result = work()
    board.put(True)
    return result
