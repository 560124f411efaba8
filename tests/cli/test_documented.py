"""The command lines of docs/finetuning.md, each with its real files."""

import json
import os
import re
import shlex
from pathlib import Path

import pytest

from bert_jax.__main__ import main
from tests import random_run

ROOT = Path(__file__).parents[2]
LINES = [
    line
    for block in re.findall(
        r"```bash\n(.*?)```", (ROOT / "docs/finetuning.md").read_text(), re.DOTALL
    )
    for line in block.splitlines()
]
COMMANDS = [line for line in LINES if line.startswith("$train ")]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small model that knows a few made-up words: enough to run."""
    return random_run.write(tmp_path_factory.mktemp("model"))


def test_there_are_thirteen_sets():
    assert len(COMMANDS) == 13
    definitions = [line for line in LINES if not line.startswith("$train ")]
    assert all(line.startswith('train="bert-jax train ') for line in definitions)


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize(
    "line", COMMANDS, ids=[re.findall(r"runs/(\S+)", x)[0] for x in COMMANDS]
)
def test_each_runs_as_it_stands(shared, model, tmp_path, monkeypatch, line):
    monkeypatch.chdir(ROOT)
    text = line.replace("$DATA", str(shared / "finetune"))
    text = text.replace("=runs/", f"={tmp_path}/")
    words = shlex.split(text)[1:]
    length = 160 if "squad" in line else 64  # shorter windows of COVID-QA are many
    short = ["--config.task.epochs=0.001", f"--config.phases[0].length={length}"]
    assert not os.listdir(tmp_path)
    assert main(["train", f"--config.init={model}", *words, *short]) == 0
    (workdir,) = tmp_path.iterdir()
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["steps"] >= 1 and summary["dev_examples"] > 50
    assert -1 <= summary["score"] <= 100
