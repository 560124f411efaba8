"""The closed world: import order, lazy imports, configs that freeze, live fields."""

import ast
import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bert_jax import config
from bert_jax.config import presets

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "bert_jax"
ROWS = (  # lower rows first; `bert_jax` itself holds only its version
    "bert_jax errors",
    "config tree chips program remote",
    "grid losses metrics scores sharding distributed log arrays topology",
    "watch goodput cluster checkpoint_files",
    "owner",
    "model data",
    "optim",
    "tasks interop",
    "step",
    "plan",
    "checkpoint evaluate speed",
    "initial labelled",
    "teacher",
    "resolve",
    "rundir",
    "run curves",
    "train extract sweep report",
    "cli __main__",
)
RANK = {name: rank for rank, row in enumerate(ROWS) for name in row.split()}
LAZY = (
    "sklearn",
    "scipy",
    "tensorflow",
    "tensorflow_datasets",
    "torch",
    "pyarrow",
    "transformers",
    "matplotlib",
)
OTHER = ("tests", "runs", "build", "bert_jax.egg-info")  # the last three: made here
MODULES = sorted(PACKAGE.rglob("*.py"))
CONFIGS = sorted((ROOT / "configs").glob("*.py"))


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of what a piece of code imports, `from a import b` as a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def top_level(tree: ast.Module) -> Iterator[str]:
    """What is imported as soon as the module is: not inside functions."""
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield from imports(node)


def unit(name: str) -> str:
    """Which entry of `ROWS` a dotted name or a file of bert_jax belongs to."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in RANK else "bert_jax"


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path: Path) -> None:
    name = name_of(path)
    assert name == "bert_jax" or name.split(".")[1] in RANK, f"add {name} to ROWS"
    own = unit(name)
    for other in imports(ast.parse(path.read_text())):
        if other.split(".")[0] == "bert_jax" and unit(other) != own:
            assert RANK[unit(other)] < RANK[own], f"{name} imports {other}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_heavy_packages_load_only_when_used(path: Path) -> None:
    name = name_of(path)
    tree = ast.parse(path.read_text())
    heads = {other.split(".")[0] for other in top_level(tree)}
    assert not heads & set(LAZY), name
    if name.startswith("bert_jax.data") and name != "bert_jax.data.device":
        used = {other.split(".")[0] for other in imports(tree)}
        assert not used & {"jax", "flax", "optax"}, name


def test_the_loop_names_no_task() -> None:
    names = set(imports(ast.parse((PACKAGE / "train.py").read_text())))
    assert not any(name.startswith("bert_jax.tasks.pretrain") for name in names)


VARIANTS = ("", "smoke", "paper", "cpu", "paper,smoke")
TASKS = dict.fromkeys(("squad", "swag"), ("", "smoke"))
OWN = {"glue": ("", *presets.GLUE, "mnli,smoke"), **TASKS}
PLAIN = ("", "smoke", "cpu", "cpu,smoke")
OWN |= dict.fromkeys("spanbert distilbert tinybert modern mamba".split(), PLAIN)
OWN["roberta"] = (*PLAIN, "large", "large,smoke")
OWN["albert"] = (*VARIANTS, "large", "xlarge", "xlarge,smoke")
OWN["electra"] = (*VARIANTS, "small", "base", "base,smoke", "base,paper")
OWN["ner"] = ("", "smoke", "features", "features,smoke")


@pytest.mark.parametrize(
    ("path", "variant"),
    [(path, v) for path in CONFIGS for v in OWN.get(path.stem, VARIANTS)],
    ids=lambda value: getattr(value, "stem", value),
)
def test_every_config_freezes_and_survives_json(
    path: Path, variant: str, tmp_path: Path
) -> None:
    frozen = config.load(f"{path}:{variant}")
    saved = tmp_path / "config.json"
    saved.write_text(config.to_json(frozen))
    assert config.load(str(saved)) == frozen


def fields(kind: type) -> Iterator[str]:
    for field in dataclasses.fields(kind):
        yield field.name
    for group in (config.Data, config.Tokenizer, config.TaskSettings):
        yield from (field.name for field in dataclasses.fields(group))
    for group in (config.Objective, config.Model):
        yield from (field.name for field in dataclasses.fields(group))
    for group in (config.Optim, config.Distill, config.Phase, config.Mesh):
        yield from (field.name for field in dataclasses.fields(group))


def test_every_field_has_a_reader() -> None:
    read = {
        node.attr
        for path in MODULES
        if "config" not in path.relative_to(PACKAGE).parts
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    # A phase's share is read through Config.phase_starts.
    through = {"share"} if "phase_starts" in read else set()
    assert not set(fields(config.Config)) - read - through


def test_nothing_but_tests_names_the_folder_of_real_data() -> None:
    """`tests` and the hidden `.ci` may; a user has no such folder."""
    own = [p for p in ROOT.iterdir() if p.name[0] != "." and p.name not in OTHER]
    found = [
        path.relative_to(ROOT)
        for path in (*own, *(inner for top in own for inner in top.rglob("*")))
        if path.is_file() and b"../shared" in path.read_bytes()
    ]
    assert PACKAGE in own and not found


def test_a_program_started_elsewhere_imports_this_repository(tmp_path: Path) -> None:
    """Else the tests that start programs would test another installation."""
    words = [sys.executable, "-c", "import bert_jax; print(bert_jax.__file__)"]
    said = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True).stdout
    assert Path(said.strip()) == PACKAGE / "__init__.py"
