"""A group of processes that train together, for tests that break one of them."""

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LIMIT = 240  # [s] for anything to happen on a busy machine
GONE = 15  # [s] for all processes to be gone after a fault


def wait_for(what: str, condition: Callable[[], Any], limit: float = LIMIT) -> Any:
    """Returns once the condition holds."""
    deadline = time.monotonic() + limit
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {limit} s: {what}"
        time.sleep(0.02)
    return found


@dataclasses.dataclass
class Group:
    """Processes of one run; `python tests/faults/process.py train ...` each."""

    workdir: Path
    flags: list[str]
    count: int = 1
    devices: int = 2
    fault: dict | None = None
    environ: dict[str, str] = dataclasses.field(default_factory=dict)  # %: the index
    logs: Path | None = None  # where the output goes; None: beside the run directory
    processes: list[subprocess.Popen] = dataclasses.field(default_factory=list)

    def __enter__(self) -> "Group":
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        self.mark.parent.mkdir(parents=True, exist_ok=True)
        self.mark.unlink(missing_ok=True)
        for index in range(self.count):
            environ = {
                **{k: v for k, v in os.environ.items() if k != "XLA_FLAGS"},
                "JAX_NUM_CPU_DEVICES": str(self.devices),
                "FAULT": json.dumps(self.fault),
                "MARK": str(self.mark),
                "PYTHONPATH": str(ROOT),
                **{k: v.replace("%", str(index)) for k, v in self.environ.items()},
            }
            if self.count > 1:
                environ["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{port}"
                environ["JAX_PROCESS_COUNT"] = str(self.count)
                environ["JAX_PROCESS_INDEX"] = str(index)
            command = [sys.executable, str(Path(__file__).with_name("process.py"))]
            command += ["train", f"--workdir={self.workdir}", *self.flags]
            with self.log(index).open("w") as log:
                self.processes.append(
                    subprocess.Popen(
                        command, env=environ, cwd=ROOT, stdout=log, stderr=log
                    )
                )
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()

    @property
    def mark(self) -> Path:
        """A file that is there once the planned fault has happened."""
        return (self.logs or self.workdir).with_suffix(".mark")

    def log(self, index: int) -> Path:
        return (self.logs or self.workdir).with_suffix(f".{index}.log")

    def text(self, index: int) -> str:
        return self.log(index).read_text()

    def send(self, index: int, number: signal.Signals) -> None:
        self.processes[index].send_signal(number)

    def until(self, what: str, condition: Callable[[], Any]) -> Any:
        """Waits for a condition; the processes may not end before it holds."""

        def look() -> Any:
            found = condition()
            ended = [p.poll() for p in self.processes if p.poll() is not None]
            texts = "\n".join(self.text(i)[-3000:] for i in range(self.count))
            assert found or not ended, f"{what}: ended with {ended}\n{texts}"
            return found

        return wait_for(what, look)

    def until_step(self, step: int) -> None:
        self.until(f"step {step}", lambda: last_step(self.workdir) >= step)

    def until_steps(self, count: int) -> None:
        """Waits for some steps since this start."""
        self.until(
            f"{count} steps",
            lambda: len(re.findall(r"^step \d", self.text(0), re.M)) >= count,
        )

    def until_fault(self) -> None:
        self.until("the fault", self.mark.exists)

    def statuses(self, limit: float = LIMIT) -> list[int]:
        """Exit statuses, once all have ended."""
        wait_for(
            "all processes end",
            lambda: all(p.poll() is not None for p in self.processes),
            limit,
        )
        return [p.returncode for p in self.processes]


def run(*args: Any, **settings: Any) -> list[int]:
    """Runs a group to its end; its exit statuses."""
    with Group(*args, **settings) as group:
        found = group.statuses()
        if any(found):
            print("\n".join(group.text(i)[-3000:] for i in range(group.count)))
        return found


def last_step(workdir: Path) -> int:
    return max((line["step"] for line in lines(workdir)), default=0)


def lines(workdir: Path, kind: str = "train") -> list[dict]:
    """What metrics.jsonl says."""
    try:
        text = (workdir / "metrics.jsonl").read_text()
    except OSError:
        return []
    whole = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [line for line in map(json.loads, whole) if line["kind"] == kind]


def outcome(workdir: Path) -> dict:
    """All that must be the same after any number of faults."""
    summary = json.loads((workdir / "summary.json").read_text())
    return {
        "params": summary["params_digest"],
        "losses": [(line["step"], line["loss"]) for line in lines(workdir)],
        "evaluations": [
            (line["step"], line["eval_mlm_loss"]) for line in lines(workdir, "eval")
        ],
    }


def saved(workdir: Path) -> list[int]:
    """Steps of the checkpoints that are complete."""
    folders = (workdir / "checkpoints").glob("*")
    return sorted(int(f.name) for f in folders if f.name.isdigit())
