"""SIGKILL at any moment, then the same command: as if nothing had happened."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bert_jax import config
from bert_jax.errors import Stopped
from bert_jax.train import train
from bert_jax.watch import Watch
from tests.cli import corpus

ROOT = Path(__file__).parents[1]


def _command(name: str, folder: Path) -> list[str]:
    """Of a command on one text and store."""
    return [
        sys.executable,
        "-m",
        "bert_jax",
        name,
        "--config=configs/bert_tiny.py:smoke",
        f"--config.data.source={folder / 'text.txt'}",
        f"--config.data.store={folder / 'store'}",
        "--config.data.num_workers=1",
    ]


def _train(workdir: Path) -> list[str]:
    return [
        *_command("train", workdir.parent),
        "--config.steps=60",
        "--config.save_every=7",
        "--config.eval_every=14",
        "--config.log_every=1",
        f"--workdir={workdir}",
    ]


def _steps(workdir: Path) -> int:
    try:
        return (workdir / "metrics.jsonl").read_text().count('"train"')
    except OSError:
        return 0


@pytest.mark.slow
def test_killed_three_times_equals_unbroken(tmp_path):
    corpus.write(tmp_path / "text.txt")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for command in (_command("prepare", tmp_path), _train(whole)):
        subprocess.run(command, cwd=ROOT, check=True, timeout=300)
    rng = random.Random(0)
    for attempt in range(3):
        wanted = attempt * 15 + rng.randrange(2, 15)
        process = subprocess.Popen(_train(broken), cwd=ROOT)
        deadline = time.monotonic() + 300
        while _steps(broken) < wanted and process.poll() is None:
            assert time.monotonic() < deadline, "the run makes no progress"
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL, "it ended before it was killed"
    subprocess.run(_train(broken), cwd=ROOT, check=True, timeout=300)
    ends = [json.loads((d / "summary.json").read_text()) for d in (whole, broken)]
    assert ends[0]["params_digest"] == ends[1]["params_digest"]
    losses = [
        [
            (line["step"], line["loss"])
            for line in map(json.loads, (d / "metrics.jsonl").read_text().splitlines())
            if line["kind"] == "train"
        ]
        for d in (whole, broken)
    ]
    assert losses[0] == losses[1]


def test_a_stopped_run_reports_all_its_steps(tmp_path):
    class Impatient(Watch):
        polls = 0

        def poll(self, what):
            super().poll(what)
            self.polls += 1
            if self.polls > 3:
                raise Stopped("told to stop", 75)

    text = corpus.write(tmp_path / "text.txt")
    edits = [f"data.source={text}", "data.num_workers=1"]
    settings = config.load(str(ROOT / "configs/bert_tiny.py:smoke"), edits)
    with pytest.raises(Stopped, match="step 3 is saved"):
        train(settings, str(tmp_path / "run"), Impatient(0))
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 3]
