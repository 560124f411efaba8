"""Presets, grids and launchers are found by name from any directory."""

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from bert_jax import config, grid
from bert_jax.__main__ import main
from bert_jax.errors import UserError

ROOT = Path(__file__).parents[2]
PRESETS = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
GRIDS = sorted(path.stem for path in (ROOT / "configs/grids").glob("*.toml"))
# Files whose text shows commands, and values that stand for the reader's own.
PAGES = [
    *(ROOT / name for name in ("README.md", "launch/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "configs").rglob("*.py")),
    *sorted((ROOT / "configs").rglob("*.toml")),
    *sorted((ROOT / "bert_jax/cli").glob("*.py")),
]
OWN = re.compile(r"RUN|FILE|NAME|\.\.\.|\{|^benchmarks/|^(grid.toml|mine.py)$")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Every test of this file runs in an empty directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_found_by_name_and_by_its_path_in_the_repository(name):
    by_name = config.load(name)
    assert by_name == config.load(f"configs/{name}.py")
    assert by_name == config.load(str(ROOT / f"configs/{name}.py"))
    assert config.load(f"{name}:smoke") == config.load(f"./configs/{name}.py:smoke")


@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_is_found_by_name_and_by_its_path_in_the_repository(name):
    assert grid.read(f"{name}:tiny") == grid.read(f"configs/grids/{name}.toml:tiny")


def test_a_file_comes_before_the_shipped_one_of_the_same_path(elsewhere):
    text = (ROOT / "configs/bert_tiny.py").read_text()
    edited = text.replace('bert("tiny", arg)', 'bert("mini", arg)')
    assert edited != text
    (elsewhere / "configs").mkdir()
    (elsewhere / "configs/bert_tiny.py").write_text(edited)
    assert config.load("configs/bert_tiny.py").model.layers == 4
    assert config.load("bert_tiny").model.layers == 2


def test_neither_a_folder_nor_a_bare_file_hides_a_preset(elsewhere):
    (elsewhere / "squad").mkdir()
    (elsewhere / "ner").write_text("")
    assert config.load("squad").task.kind == "span"
    assert config.load("ner:smoke").task.kind == "tag"


BODY = """
from bert_jax.config import presets
def get_config(arg=""):
    config = presets.bert("tiny", "smoke")
    config.data.source = (arg,)
    return config
"""


@pytest.mark.parametrize("name", ["mine.py", "a:b.py", "한국어 [x] %s#=,.py", "-x.py"])
@pytest.mark.parametrize("arg", ["one", "tfds:wiki40b/ko:train", "a.py"])
def test_both_the_file_and_its_argument_may_hold_colons(elsewhere, name, arg):
    folder = elsewhere / "runs:old"
    folder.mkdir()
    (folder / name).write_text(BODY)
    found = config.load(f"runs:old/{name}:{arg}")
    assert found.data.source == (arg,)


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("bert_bse:cpu", "bert_base"),
        ("bert-base", "bert_base"),
        ("configs/bert_tny.py:smoke", "bert_tiny"),
        ("BERT-Base", "bert_base"),
        ("bert-base-uncased", "bert_base"),
        ("robberta", "roberta"),
        ("mine:smoke", "mine.py"),
        ("own", "configs/own.py"),
        ("runs/base", "runs/base/config.json"),
    ],
)
def test_a_misspelt_name_gets_the_nearest_and_all(elsewhere, capsys, text, near):
    for path in ("mine.py", "configs/own.py", "runs/base/config.json"):
        (elsewhere / path).parent.mkdir(parents=True, exist_ok=True)
        (elsewhere / path).touch()
    assert main(["train", f"--config={text}", "--workdir=out"]) == 2
    said = capsys.readouterr().err
    assert f"--config={text}: " in said and f"did you mean {near!r}?" in said
    assert ", ".join(PRESETS) in said and len(said.splitlines()) == 1
    assert not (elsewhere / "out").exists()


@pytest.mark.parametrize("text", ["", ":", "xyz", "/", "x" * 5000, ":smoke", "docs/"])
def test_a_name_like_none_lists_all(text):
    with pytest.raises(UserError, match="Shipped are albert, bert_base") as caught:
        config.load(text)
    assert "did you mean" not in str(caught.value)


def test_a_misspelt_grid_gets_the_nearest():
    with pytest.raises(UserError, match="did you mean 'table5'") as caught:
        grid.read("tabel5:tiny")
    assert ", ".join(GRIDS) in str(caught.value)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).name)
def test_every_config_and_grid_of_a_command_exists(page):
    text = page.read_text(encoding="utf-8")
    for flag, value in re.findall(r"--(config|grid)=([^\s`'\"\\);]+)", text):
        read = config.load if flag == "config" else grid.read
        if not OWN.search(value):
            read(value.rstrip(".,"))


def replaced(monkeypatch, *words):
    """The command line and the environment that `launch` replaces its process by."""

    class Replaced(Exception):
        pass

    def replace(program, command, environment):
        raise Replaced(program, command, environment)

    monkeypatch.setattr(os, "execvpe", replace)
    with pytest.raises(Replaced) as caught:
        main(["launch", *words])
    return caught.value.args


def test_a_launcher_gets_its_words_as_they_are(monkeypatch, elsewhere):
    words = ["--processes=2", "--", "train", "--config=bert_tiny:smoke", "--x=a b"]
    program, command, _ = replaced(monkeypatch, "local", *words)
    assert command == [sys.executable, str(ROOT / "launch/local.py"), *words]
    assert program == command[0]
    _, command, _ = replaced(monkeypatch, "tpu_pod", "status", "--name=a")
    assert command == ["bash", str(ROOT / "launch/tpu_pod.sh"), "status", "--name=a"]
    _, command, _ = replaced(monkeypatch, "gke", "--help")
    assert command == [sys.executable, str(ROOT / "launch/gke.py"), "--help"]


def test_a_slurm_job_is_submitted_with_this_python(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.delenv("PYTHON", raising=False)
    flags, words = ["--nodes=2", "--time=1:00"], ["--lines=a.txt", "train", "--", "x"]
    _, command, environment = replaced(monkeypatch, "slurm", *flags, "--", *words)
    script = str(ROOT / "launch/slurm.sbatch")
    assert command == ["sbatch", *flags, script, *words]
    assert environment["PYTHON"] == sys.executable
    monkeypatch.setenv("PYTHON", "other")
    assert replaced(monkeypatch, "slurm", "--", "train")[2]["PYTHON"] == "other"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["locl"], "did you mean 'local'?"),
        (["slurm", "--nodes=2", "train"], "put --"),
        (["slurm", "--", "train"], "no sbatch"),
    ],
)
def test_mistakes_of_launch_are_said(monkeypatch, capsys, words, says):
    monkeypatch.setenv("PATH", "")
    assert main(["launch", *words]) == 2
    assert says in capsys.readouterr().err


def test_help_of_launch_names_every_launcher_and_the_guide(capsys):
    assert main(["launch", "--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"  {name} " in said for name in ("local", "slurm", "tpu_pod", "gke"))
    assert str(ROOT / "launch/README.md") in said
    assert main(["launch"]) == 2
