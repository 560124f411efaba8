"""Grid files: what they may hold, and that the shipped ones can be run."""

from pathlib import Path

import pytest

from bert_jax import config, grid, sweep
from bert_jax.data import tfds
from bert_jax.errors import UserError

ROOT = Path(__file__).parents[1]
SHIPPED = sorted((ROOT / "configs/grids").glob("*.toml"))
FILE = """
title = "A study"
source = "Someone 2020"
seeds = [3, 5]
[variants.a]
1 = ["f=1"]
2 = []
[variants.b]
x = ["tune:g=1"]
[tiny]
set = ["h=1"]
[tiny.pretrain]
config = "first.py"
[tiny.tune]
config = "second.py:arg"
set = ["h=2"]
[tiny2]
variants = {own = ["i=1"]}
[tiny2.pretrain]
config = "first.py"
"""


@pytest.fixture
def write(tmp_path):
    """Writes a grid file; returns its path."""

    def make(text):
        path = tmp_path / "grid.toml"
        path.write_text(text)
        return path

    return make


def test_a_file_has_variants_seeds_and_stages(write):
    path = write(FILE)
    found = grid.read(f"{path}:tiny")
    assert found.title == "A study - Someone 2020"
    assert list(grid.seeds(found.seeds)) == [3, 5]
    first, second = found.stages
    assert first == ("pretrain", "first.py", ("h=1",))
    assert second == ("tune", "second.py:arg", ("h=1", "h=2"))
    cells = grid.expand(["j=1,2"], found.axes)
    assert [cell.name for cell in cells] == ["1,x,j=1", "1,x,j=2", "2,x,j=1", "2,x,j=2"]
    assert cells[0].settings == {"a": "1", "b": "x", "j": "1"}
    assert cells[0].overrides == ("f=1", "tune:g=1", "j=1")
    other = grid.read(f"{path}:tiny2")
    assert other.axes == {"variant": {"own": ["i=1"]}}
    only = grid.read(str(write("seeds = 2\n[variants]\none = []")))
    assert only == ("", "2", {"variant": {"one": []}}, ())


def test_an_override_may_be_for_one_stage():
    texts = ["a=1", "x:b=tfds:2", "y:c=3"]
    assert grid.for_stage(texts, "x", ["x", "yy", "y"]) == ["a=1", "b=tfds:2"]
    with pytest.raises(UserError, match="(?s)no stage 'x'; did you .* stage 'zz'"):
        grid.for_stage([*texts, "zz:d=1"], "y", ["xx", "y"])


HEAD = '[tiny.a]\nconfig = "c"\n'


@pytest.mark.parametrize(
    ("text", "size", "words"),
    [
        ("=", ":tiny", ["grid.toml"]),
        ("", ":tiny", ["no size 'tiny'"]),
        (HEAD, "", ["no size ''", "there are tiny"]),
        (HEAD, ":tny", ["did you mean 'tiny'?"]),
        ("titel = 'x'\n" + HEAD, ":tiny", ["titel", "did you mean 'title'?"]),
        ("[varians]\na = []\n" + HEAD, ":tiny", ["did you mean 'variants'?"]),
        ("seeds = 'x'\n" + HEAD, ":tiny", ["seeds: needs"]),
        ("seeds = 0\n" + HEAD, ":tiny", ["seeds: needs"]),
        ("seeds = [3, 3]\n" + HEAD, ":tiny", ["seeds: needs"]),
        ("variants = {}\n" + HEAD, ":tiny", ["variants: needs"]),
        ("variants = {a = 'b=1'}\n" + HEAD, ":tiny", ["variants: needs"]),
        ("variants = {a = [1]}\n" + HEAD, ":tiny", ["variants: needs"]),
        ("variants = {'' = []}\n" + HEAD, ":tiny", ["variants: needs"]),
        ("variants = {a = [], b = {c = []}}\n" + HEAD, ":tiny", ["variants: needs"]),
        ("[tiny]\nsett = []\n" + HEAD, ":tiny", ["tiny.sett", "mean 'set'?"]),
        ("[tiny]\n", ":tiny", ["tiny: has no stage"]),
        (HEAD + "sets = []\n", ":tiny", ["tiny.a.sets", "mean 'set'?"]),
        (
            "title = 1\n[tiny]\nset = 1\n[tiny.a]\nset = [1]\n",
            ":tiny",
            ["title: ", "tiny.set: ", "tiny.a.set: ", "tiny.a.config: missing"],
        ),
    ],
)
def test_every_fault_is_named(write, text, size, words):
    with pytest.raises(UserError) as raised:
        grid.read(f"{write(text)}{size}")
    assert all(word in str(raised.value) for word in words), raised.value


def test_nine_are_shipped():
    assert len(SHIPPED) == 9


@pytest.mark.parametrize("size", ["tiny", "paper"])
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_stage_of_a_shipped_grid_freezes(path, size, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    found = grid.read(f"{path.stem}:{size}")
    runs = sweep.Runs(Path("runs"), found.stages)
    configs = {
        tuple(runs.config(grid.Trial(cell, 0), stage) for stage in found.stages)
        for cell in grid.expand([], found.axes)
    }
    assert len(configs) == len(grid.expand([], found.axes))
    assert len(grid.seeds(found.seeds or "")) >= 3
    for first, *others in configs:
        assert first.task.kind == "pretrain" and isinstance(first, config.Config)
        assert all(other.init.endswith("/pretrain") for other in others)
        assert len({one.data.store for one in (first, *others)} - {""}) == 1


# What a stage of a tiny grid is scored on; the other stages are of named entities.
FILES = {
    "pretrain": ["data.source=python-docs"],
    "sst2": ["task.train_file=SST-2/train.tsv.xz", "task.dev_file=SST-2/dev.tsv"],
    "qnli": ["task.train_file=QNLI/dev.tsv.xz"],
    "nsmc": [
        "task.train_file=NSMC/ratings_train.txt.xz",
        "task.dev_file=NSMC/ratings_test.txt.xz",
    ],
}
ENTITIES = [
    "task.train_file=NER/gum_train.conll.xz",
    "task.dev_file=NER/gum_test.conll",
]


@pytest.mark.shared
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_tiny_grid_takes_local_files(path, shared, tmp_path):
    found = grid.read(f"{path.stem}:tiny")
    texts = [
        f"{stage.name}:{text}".replace("_file=", f"_file={shared}/finetune/")
        for stage in found.stages
        for text in FILES.get(stage.name, ENTITIES)
    ]
    runs = sweep.Runs(tmp_path, found.stages, tuple(texts))
    sweep.check(runs, grid.expand([], found.axes), [0])


GLUE = {  # the columns of TensorFlow Datasets
    "sst2": ["sentence", "label"],
    "qnli": ["question", "sentence", "label"],
}


@pytest.mark.parametrize("name", ["table5", "table6", "input_formats"])
def test_glue_comes_from_tensorflow_datasets(name, monkeypatch, tmp_path):
    asked = []

    def examples(source):
        asked.append(source)
        columns = GLUE[source.removeprefix("tfds:glue/").partition(":")[0]]
        for i in range(40):
            values = dict.fromkeys(columns, f"text {i}") | {"label": str(i % 2)}
            yield f"{source}[{i}]", values

    monkeypatch.setattr(tfds, "examples", examples)
    monkeypatch.chdir(tmp_path)
    found = grid.read(f"{name}:tiny")
    sweep.check(sweep.Runs(tmp_path, found.stages), grid.expand([], found.axes), [0])
    assert {"tfds:glue/sst2:train", "tfds:glue/sst2:validation"} <= set(asked)
    assert ("tfds:glue/qnli:validation" in asked) == ("qnli" in str(found.stages))


@pytest.mark.parametrize("size", ["tiny", "paper"])
@pytest.mark.parametrize("name", ["table7", "table8", "korean_tokenizers"])
def test_a_grid_without_its_files_says_which_flag_names_them(name, size, tmp_path):
    found = grid.read(f"{name}:{size}")
    stages = [stage for stage in found.stages if not stage.config.startswith("glue:")]
    runs = sweep.Runs(tmp_path, tuple(stages))
    with pytest.raises(UserError, match="--config.task.train_file=FILE") as caught:
        sweep.check(runs, grid.expand([], found.axes), [0])
    assert len(str(caught.value).splitlines()) == 1
