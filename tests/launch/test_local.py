"""The launcher for one machine: outcomes, restarts, signals, and nothing left over."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LAUNCHER = Path(__file__).parents[2] / "launch" / "local.py"
# Stands for `python -m bert_jax`: the launcher runs in a folder that has this one.
PRELUDE = """
import os, signal, sys, time
from pathlib import Path
index = int(os.environ["JAX_PROCESS_INDEX"])
tried = Path(f"tried{index}")
attempt = len(tried.read_text()) if tried.exists() else 0
tried.write_text("x" * (attempt + 1))
Path(f"pid{index}").write_text(str(os.getpid()))
def until(condition):
    limit = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.005)
def gone(other):
    try:
        stat = Path(f"/proc/{Path(f'pid{other}').read_text()}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
def ready():
    Path(f"ready{index}").touch()
def hold():
    ready()
    until(lambda: False)
"""


class Launch:
    """One launcher with a stand-in program, in a folder of its own."""

    def __init__(self, folder, program, *flags, words=("train",), **environment):
        package = folder / "bert_jax"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "__main__.py").write_text(PRELUDE + program)
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, str(LAUNCHER), *flags, "--", *words],
            cwd=folder,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self):
        """The exit status and the output; by then no process may be left."""
        self.out, self.err = self.process.communicate(timeout=30)
        assert not any(map(alive, self.pids())), self.err
        return self.process.returncode

    def wait(self, *names):
        until(lambda: all((self.folder / name).exists() for name in names))

    def pids(self):
        return [int(path.read_text()) for path in self.folder.glob("pid*")]

    def tried(self):
        return len((self.folder / "tried0").read_text())


def until(condition):
    limit = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < limit, "it does not happen"
        time.sleep(0.005)


def alive(pid):
    """Whether a process runs; one that nobody has waited for yet does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


@pytest.fixture
def launch(tmp_path):
    """Starts one launcher; whatever the test does, none outlives it."""
    launches = []

    def start(program, *flags, **options):
        launches.append(Launch(tmp_path, program, *flags, **options))
        return launches[-1]

    yield start
    for one in launches:
        one.process.kill()
        one.process.communicate()


def test_each_process_learns_its_place(launch, tmp_path):
    program = """
import json
names = "JAX_PROCESS_COUNT JAX_NUM_CPU_DEVICES CUDA_VISIBLE_DEVICES".split()
address = os.environ["JAX_COORDINATOR_ADDRESS"]
assert address.startswith("127.0.0.1:")
found = [os.environ[name] for name in names] + sys.argv[1:]
Path(f"found{index}").write_text(json.dumps(found))
"""
    flags = "--processes=3", "--devices=4", "--gpus=2"
    words = ("train", "--config.data.source=a b", "--x=$HOME")
    visible = {"CUDA_VISIBLE_DEVICES": "7,6,5,4,3,2"}
    ran = launch(program, *flags, words=words, **visible)
    assert ran.end() == 0, ran.err
    for index, own in enumerate(("7,6", "5,4", "3,2")):
        found = json.loads((tmp_path / f"found{index}").read_text())
        assert found == ["3", "4", own, *words]


def test_only_process_0_writes_plainly(launch, tmp_path):
    program = """
print(f"out {index}")
print(f"error {index}", file=sys.stderr)
print("no end", end="")
"""
    ran = launch(program, "--processes=2")
    assert ran.end() == 0
    assert ran.out == "out 0\nno end"
    own = [line for line in ran.err.splitlines() if line.startswith("[1] ")]
    assert sorted(own) == ["[1] error 1", "[1] no end", "[1] out 1"]
    assert set(ran.err.splitlines()) - set(own) == {"error 0"}


@pytest.mark.parametrize("code", [1, 2, 139])
@pytest.mark.parametrize("faulty", [0, 1])
def test_no_restart_where_none_helps(launch, faulty, code):
    program = f"""
ready()
until(lambda: Path("go").exists())
if index == {faulty}:
    os._exit({code})
os.abort()  # as JAX does when a peer is gone: not the cause
"""
    ran = launch(program, "--processes=2")
    ran.wait("ready0", "ready1")
    # It finds both ended, in no order.
    ran.process.send_signal(signal.SIGSTOP)
    (ran.folder / "go").touch()
    until(lambda: not any(map(alive, ran.pids())))
    ran.process.send_signal(signal.SIGCONT)
    assert ran.end() == code
    assert ran.tried() == 1 and f"process {faulty} ended with {code}" in ran.err


@pytest.mark.parametrize("code", [42, 75, 134, 137, 143])
def test_restarts_are_counted(launch, tmp_path, code):
    how = f"os.kill(os.getpid(), {code - 128})" if code > 128 else f"sys.exit({code})"
    ran = launch(how, "--processes=1", "--restarts=2")
    assert ran.end() == code
    assert ran.tried() == 3 and "no restart of 2 left" in ran.err


def test_a_restart_continues_at_another_port(launch, tmp_path):
    program = """
with open("ports", "a") as file:
    file.write(os.environ["JAX_COORDINATOR_ADDRESS"] + "\\n")
ready()
until(lambda: Path("ready0").exists() and Path("ready1").exists())
sys.exit(0 if attempt else 75)
"""
    ran = launch(program, "--processes=2")
    assert ran.end() == 0
    ports = (tmp_path / "ports").read_text().split()
    assert len(ports) == 4 and len(set(ports)) == 2
    assert "process 0 ended with 75" in ran.err or "process 1" in ran.err


@pytest.mark.parametrize("flag", [["--workdir=run"], ["--workdir", "run"]])
def test_restarts_without_a_new_checkpoint_end(launch, tmp_path, flag):
    program = """
if attempt in (1, 2):
    os.makedirs(f"run/checkpoints/{attempt * 10}")
sys.exit(42)
"""
    words = ("train", *flag)
    ran = launch(program, "--processes=1", "--restarts=99", words=words)
    assert ran.end() == 42
    assert ran.tried() == 6 and "3 restarts made no new checkpoint" in ran.err


def test_who_stays_behind_is_killed(launch, tmp_path):
    program = """
if index == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    hold()
until(lambda: Path("ready0").exists())
sys.exit(1)
"""
    assert launch(program, "--processes=2", "--grace=0.2").end() == 1


def test_who_leaves_in_time_is_not_killed(launch, tmp_path):
    program = """
if index:
    until(lambda: Path("ready0").exists())
    sys.exit(75)
until(lambda: Path("pid1").exists())
ready()
until(lambda: gone(1))
Path("saved").touch()
sys.exit(75)
"""
    ran = launch(program, "--processes=2", "--restarts=0")
    assert ran.end() == 75 and (tmp_path / "saved").exists()


def test_what_a_killed_process_started_goes_too(launch, tmp_path):
    program = """
if os.fork() == 0:
    Path("pid9").write_text(str(os.getpid()))
    os.execvp("sleep", ["sleep", "60"])
until(lambda: Path("pid9").exists())
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert launch(program, "--processes=1", "--restarts=0").end() == 137


def test_a_stopped_process_is_killed_and_all_start_again(launch, tmp_path):
    program = """
if attempt:
    sys.exit(0)
if index:
    hold()
ready()
until(lambda: Path("stopped").exists())
sys.exit(42)
"""
    ran = launch(program, "--processes=2", "--grace=0.2")
    ran.wait("ready0", "ready1")
    stopped = int((tmp_path / "pid1").read_text())
    os.kill(stopped, signal.SIGSTOP)
    (tmp_path / "stopped").touch()
    assert ran.end() == 0 and ran.tried() == 2
    assert not alive(stopped)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)]
)
def test_a_signal_reaches_all_once_and_nothing_restarts(launch, tmp_path, number, code):
    program = f"""
def got(*_):
    with open(f"signals{{index}}", "a") as file:
        file.write("x")
    global stop
    stop = True
stop = False
signal.signal({int(number)}, got)
ready()
until(lambda: stop)
sys.exit({code})
"""
    ran = launch(program, "--processes=2")
    ran.wait("ready0", "ready1")
    ran.process.send_signal(number)
    assert ran.end() == code
    assert ran.tried() == 1 and f"after {number.name}" in ran.err
    for index in range(2):
        assert (tmp_path / f"signals{index}").read_text() == "x"


def test_a_second_interrupt_kills(launch, tmp_path):
    program = """
signal.signal(signal.SIGINT, lambda *_: Path(f"got{index}").touch())
hold()
"""
    ran = launch(program, "--processes=2")
    ran.wait("ready0", "ready1")
    ran.process.send_signal(signal.SIGINT)
    ran.wait("got0", "got1")
    ran.process.send_signal(signal.SIGINT)
    assert ran.end() == 137 and ran.tried() == 1


def test_none_outlives_a_killed_launcher(launch, tmp_path):
    program = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nhold()"
    ran = launch(program, "--processes=2")
    ran.wait("ready0", "ready1")
    stopped, _ = pids = ran.pids()
    os.kill(stopped, signal.SIGSTOP)
    ran.process.kill()
    until(lambda: not any(map(alive, pids)))
    assert ran.end() == -signal.SIGKILL


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "--processes"),
        (["--processes=0", "--", "train"], "at least 1"),
        (["--processes=2"], "the command is missing"),
        (["--processes=2", "--gpus=3", "--", "train"], "needs 6"),
    ],
)
def test_mistakes_are_said(tmp_path, flags, says):
    result = subprocess.run(
        [sys.executable, str(LAUNCHER), *flags],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "0,1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2 and re.search(says, result.stderr), result.stderr
