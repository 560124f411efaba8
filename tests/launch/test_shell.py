"""Every shell script of the project passes shellcheck."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.launch import programs

ROOT = Path(__file__).parents[2]
SCRIPTS = [
    path
    for folder in (".ci", "launch", "benchmarks", "tests")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.is_file() and re.match(rb"#!.*\b(ba)?sh\b", path.read_bytes()[:64])
]


def test_they_are_found():
    assert {"run", "slurm.sbatch", "tpu_pod.sh"} <= {path.name for path in SCRIPTS}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_it_has_no_known_mistake(path):
    shellcheck = programs.need("shellcheck", "shellcheck")
    result = subprocess.run([shellcheck, path], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
