"""launch/slurm.sbatch under a SLURM that the tests start: two nodes on loopback."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli import corpus
from tests.launch import programs

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "launch" / "slurm.sbatch"
pytestmark = [pytest.mark.slow, pytest.mark.shared]
# JAX would listen on all interfaces; the port is that of bert_jax/distributed.py.
LOOPBACK = f"""#!/bin/sh
port=$((61440 + (SLURM_JOB_ID * 16 + SLURM_STEP_ID) % 4096))
export JAX_COORDINATOR_BIND_ADDRESS=127.0.0.1:$port
exec {sys.executable} "$@"
"""
TRAIN = (
    "train",
    "--config=configs/bert_tiny.py:smoke",
    "--config.data.num_workers=1",
    "--config.log_every=1",
)


class Slurm:
    """A cluster of two nodes with two cores each; `stop` ends it."""

    def __init__(self, folder, shared):
        self.script = shared.parent / "reference/slurm/slurm_local.sh"
        self.folder = folder
        self.environment = {
            **os.environ,
            "SLURM_LOCAL_DIR": str(folder),
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PYTHON": str(folder / "python"),
            "XLA_FLAGS": "",  # the eight fake devices of the other tests
            "JAX_NUM_CPU_DEVICES": "1",
        }
        (folder / "python").write_text(LOOPBACK)
        (folder / "python").chmod(0o755)

    def run(self, *command, check=True, **environment):
        result = subprocess.run(
            list(map(str, command)),
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert not check or result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def stop(self):
        pids = [int(p.read_text()) for p in (self.folder / "run").glob("*.pid")]
        self.run(self.script, "stop", check=False)
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 60)

    def submit(self, *words, nodes=2, cwd=ROOT, flags=(), **environment):
        """Returns the job's number; its log is FOLDER/NUMBER.log."""
        flags = f"--nodes={nodes}", f"--chdir={cwd}", *flags
        log = f"--output={self.folder}/%j.log"
        command = "sbatch", "--parsable", *flags, log, SCRIPT, *words
        return self.run(*command, **environment).strip()

    def show(self, job):
        """What SLURM says of a job, or of each task of an array."""
        lines = self.run("scontrol", "show", "job", "--oneliner", job).splitlines()
        return [dict(re.findall(r"(\w+)=(\S*)", line)) for line in lines]

    def wait(self, job, state, seconds=600):
        """Waits until a job, or every task of an array, is in a state for good."""

        def reached():
            found = {task["JobState"] for task in self.show(job)}
            ends = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
            assert found <= {state} or not found & (ends - {state}), self.log(job)
            return found == {state}

        until(reached, seconds, lambda: self.log(job))
        return self.show(job)

    def log(self, job):
        path = self.folder / f"{job}.log"
        return path.read_text(errors="replace") if path.exists() else ""


def until(condition, seconds, report=lambda: ""):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, f"not in {seconds} s\n{report()}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory, shared):
    for program in ("slurmctld", "slurmd", "sbatch", "munged"):
        programs.need(program, "slurmctld slurmd slurm-client munge")
    cluster = Slurm(tmp_path_factory.mktemp("slurm"), shared)
    try:
        cluster.run(cluster.script, "start", 2)
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Flags of a text and its store, prepared once."""
    folder = tmp_path_factory.mktemp("data")
    text = corpus.write(folder / "text.txt")
    flags = f"--config.data.source={text}", f"--config.data.store={folder / 'store'}"
    command = sys.executable, "-m", "bert_jax", "prepare", *TRAIN[1:3], *flags
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)
    return flags


@pytest.fixture
def stand_in(tmp_path):
    """Writes a program in place of `python -m bert_jax`; returns where it counts."""

    def write(text):
        package = tmp_path / "bert_jax"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "__main__.py").write_text(f"import os, signal, sys, time\n{text}")
        return tmp_path

    return write


def _steps(workdir):
    try:
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
    except OSError:
        return []
    found = map(json.loads, lines)
    return [entry["step"] for entry in found if entry["kind"] == "train"]


def test_a_preempted_run_resumes_and_completes(slurm, data, tmp_path):
    workdir = tmp_path / "run"
    job = slurm.submit(
        *TRAIN,
        *data,
        "--config.steps=100",
        "--config.save_every=50",
        "--config.eval_every=100",
        f"--workdir={workdir}",
    )
    until(lambda: len(_steps(workdir)) >= 10, 300, lambda: slurm.log(job))
    slurm.run("scancel", "--signal=TERM", job)
    until(lambda: slurm.show(job)[0]["Restarts"] == "1", 60, lambda: slurm.log(job))
    saved = len(_steps(workdir))
    assert 10 <= saved < 100
    (task,) = slurm.wait(job, "COMPLETED")
    log = slurm.log(job)
    assert task["Restarts"] == "1" and task["NumNodes"] == "2", log
    assert "status 75, back to the queue" in log and "slurm: attempt 1" in log
    # The step that was saved was the last: none is missing, none was done twice.
    assert _steps(workdir) == list(range(1, 101)), (saved, log)
    assert json.loads((workdir / "summary.json").read_text())["steps"] == 100


def test_an_array_runs_a_line_a_task(slurm, data, tmp_path):
    runs = [tmp_path / f"a run {seed}" for seed in range(4)]
    lines = [f"--config.seed={i} --workdir='{run}'" for i, run in enumerate(runs)]
    (tmp_path / "runs.txt").write_text("\n".join(lines) + "\n")
    job = slurm.submit(
        f"--lines={tmp_path / 'runs.txt'}",
        *TRAIN,
        *data,
        "--config.steps=4",
        nodes=1,
        flags=["--array=0-3%2"],
    )
    tasks = slurm.wait(job, "COMPLETED")
    assert sorted(task["ArrayTaskId"] for task in tasks) == list("0123")
    for seed, run in enumerate(runs):
        assert json.loads((run / "config.json").read_text())["seed"] == seed
        assert _steps(run) == [1, 2, 3, 4]


GRID = """
[variants]
low = []
high = ["learn:optim.peak_rate=1e-3"]
[tiny.pretrain]
config = "configs/bert_tiny.py:smoke"
set = ["data.source=TEXT", "data.num_workers=1"]
[tiny.learn]
config = "configs/glue.py:smoke"
set = ["task.train_file=LABELLED", "task.dev_file=LABELLED", "task.epochs=1"]
"""


def test_a_killed_sweep_is_submitted_again(slurm, tmp_path):
    text, out = corpus.write(tmp_path / "text.txt"), tmp_path / "out"
    lines = [line for line in text.read_text().splitlines() if line][:32]
    rows = [f"{line}\t{'yes' if i % 2 else 'no'}\n" for i, line in enumerate(lines)]
    labelled = tmp_path / "labelled.tsv"
    labelled.write_text("text\tlabel\n" + "".join(rows))
    grid = tmp_path / "grid.toml"
    grid.write_text(GRID.replace("TEXT", str(text)).replace("LABELLED", str(labelled)))
    sweep = sys.executable, "-m", "bert_jax", "sweep", f"--grid={grid}:tiny"
    flags = f"--workdir={out}", "--config.keep_best=0", "--seeds=1"

    def submit():
        on = f"--on=slurm --nodes=1 --chdir={ROOT}"
        found = slurm.run(*sweep, *flags, on)
        return re.findall(r"submitted job (\d+): (\d) of 2 trials", found)[0]

    def log():
        return "".join(path.read_text() for path in out.glob("slurm/*.log"))

    job, count = submit()
    assert count == "2"
    until((out / "low/seed=0/pretrain/summary.json").exists, 300, log)
    slurm.run("scancel", job)
    until(lambda: not slurm.run("squeue", "--noheader").strip(), 60, log)
    before = (out / "low/seed=0/pretrain/summary.json").read_bytes()
    done = [
        p for p in ("low", "high") if (out / p / "seed=0/learn/summary.json").exists()
    ]
    job, count = submit()
    assert int(count) == 2 - len(done)
    slurm.wait(job, "COMPLETED")
    assert (out / "low/seed=0/pretrain/summary.json").read_bytes() == before
    table = slurm.run(*sweep, *flags, "--table")
    assert table.count("(1)") == 4 and table == slurm.run(*sweep, *flags)
    assert len(list((out / "store").iterdir())) == 1, log()


def test_a_hang_is_requeued_to_the_cap(slurm, stand_in):
    folder = stand_in("sys.exit(42)")
    job = slurm.submit("train", cwd=folder, nodes=1, MAX_RESTARTS="1")
    (task,) = slurm.wait(job, "FAILED")
    assert task["Restarts"] == "1" and task["ExitCode"] == "42:0"
    assert "no restart of 1 left" in slurm.log(job)


@pytest.mark.parametrize("code", [1, 2])
def test_a_bug_in_one_task_is_not_requeued(slurm, stand_in, code):
    folder = stand_in(
        f"""
if os.environ["SLURM_PROCID"] == "1":
    open("failed", "x").close()
    os._exit({code})
while not os.path.exists("failed"):
    time.sleep(0.01)
os.abort()
"""
    )
    job = slurm.submit("train", cwd=folder)
    (task,) = slurm.wait(job, "FAILED")
    assert task["Restarts"] == "0" and task["ExitCode"] == f"{code}:0", slurm.log(job)


def test_a_task_that_stays_behind_is_killed(slurm, stand_in):
    folder = stand_in(
        """
if os.environ["SLURM_PROCID"] == "1":
    os.kill(os.getpid(), signal.SIGSTOP)
sys.exit(42)
"""
    )
    knobs = {"MAX_RESTARTS": "0", "STRAGGLER_SECONDS": "1"}
    job = slurm.submit("train", cwd=folder, **knobs)
    slurm.wait(job, "FAILED", 60)
    assert "no restart of 0 left" in slurm.log(job)


def test_what_scancel_ends_stays_ended(slurm, stand_in):
    folder = stand_in(
        """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
open("ready", "x").close()
time.sleep(60)
"""
    )
    job = slurm.submit("train", cwd=folder, nodes=1)
    until((folder / "ready").exists, 60, lambda: slurm.log(job))
    slurm.run("scancel", job)
    slurm.wait(job, "CANCELLED", 60)
    until(lambda: "slurm: status" in slurm.log(job), 60, lambda: slurm.log(job))
    assert slurm.show(job)[0]["Restarts"] == "0"
    assert "ended from outside" in slurm.log(job), slurm.log(job)


@pytest.mark.parametrize("words", [[], ["--lines=none.txt"], ["--lines=short.txt"]])
def test_mistakes_end_with_2(tmp_path, words):
    (tmp_path / "short.txt").write_text("train\n")
    environment = {"PATH": os.environ["PATH"], "SLURM_ARRAY_TASK_ID": "1"}
    command = ["bash", SCRIPT, *words]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
    assert result.returncode == 2 and result.stderr
