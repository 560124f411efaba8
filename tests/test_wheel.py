"""An installed wheel has the presets, the grids and the launchers, and trains."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("setup.py", "pyproject.toml", "README.md", "bert_jax", "configs", "launch")
# Every preset and grid, found by its name; then what could hide a missing file.
READ = """
import sys, bert_jax
from bert_jax import config, grid
from bert_jax.config import shipped
for name in shipped.names("configs", ".py"):
    config.load(name)
for name in shipped.names("configs/grids", ".toml"):
    grid.read(f"{name}:tiny")
print(bert_jax.__file__, *sys.path, sep="\\n")
"""
pytestmark = pytest.mark.slow


def run(*words, **options):
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy: setuptools writes beside its sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, folder / part)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir=out", ".", cwd=folder)
    (path,) = (folder / "out").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder of programs of an environment with the wheel and our dependencies."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin/python"
    pip = (sys.executable, "-m", "pip", f"--python={python}", "install", "--quiet")
    run(*pip, "--no-deps", "--no-index", wheel)
    # Folders that a .pth file adds are not searched for other .pth files, and so not
    # for that of this repository.
    (site,) = folder.glob("lib/python*/site-packages")
    ours = [path for path in sys.path if path.endswith("site-packages")]
    (site / "dependencies.pth").write_text("\n".join(ours) + "\n")
    return folder / "bin"


@pytest.fixture
def elsewhere(tmp_path):
    """Where and how programs are started: as by a user without the repository."""
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return {"cwd": tmp_path, "env": inherited}


def test_the_wheel_holds_every_file_that_is_no_module(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    shipped = [
        f"bert_jax/{path.relative_to(ROOT)}"
        for folder in ("configs", "launch")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    ]
    assert len(shipped) > 30 and not {*shipped, "bert_jax/report.html"} - held


def test_presets_and_grids_are_read_without_the_repository(installed, elsewhere):
    file, *path = run(installed / "python", "-c", READ, **elsewhere).splitlines()
    assert Path(file).is_relative_to(installed.parent)
    assert str(ROOT) not in path


def test_a_run_from_another_directory(installed, elsewhere, tmp_path):
    words = "train", "--config=quickstart:smoke", "--workdir=run"
    program = installed / "bert-jax"
    run(program, "launch", "local", "--processes=1", "--", *words, **elsewhere)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["steps"] == 8
