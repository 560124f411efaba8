"""What a run remembers of its config and data, and what may differ later."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from bert_jax import config as configs
from bert_jax import labelled, rundir
from bert_jax.data import prepare
from bert_jax.data.labelled import Example
from bert_jax.errors import UserError
from bert_jax.run import assemble
from bert_jax.train import _keep_tokenizer
from tests.cli import corpus

SMOKE = str(Path(__file__).parents[1] / "configs/bert_tiny.py") + ":smoke"


def settings(source, *edits):
    edits = [f"data.source={source}", "data.num_workers=1", *edits]
    return configs.load(SMOKE, edits)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run directory as `train` leaves it before its first step, and its config."""
    home = tmp_path_factory.mktemp("home [1]")
    corpus.write(home / "text.txt")
    old = os.getcwd()
    os.chdir(home)
    try:
        begin(settings("text.txt"), "run")
    finally:
        os.chdir(old)
    return home


def begin(config, workdir, **more):
    rundir.claim(config, workdir)
    run = assemble(config, workdir, print, **more)
    _keep_tokenizer(run, workdir)
    rundir.remember(workdir, config, run.data.facts())
    return run


@pytest.fixture
def home(begun, tmp_path, monkeypatch):
    """A copy of it, which is the working directory."""
    copy = tmp_path / "home [1]"
    shutil.copytree(begun, copy)
    (copy / "checkpoints").mkdir()
    for name in ("config.json", "origin.json"):
        path = copy / "run" / name
        path.write_text(path.read_text().replace(str(begun), str(copy)))
    monkeypatch.chdir(copy)
    return copy


def known(config, workdir="run"):
    found = rundir.continued(config, workdir)
    assert found is not None
    return found


def refused(config, workdir="run"):
    with pytest.raises(UserError) as caught:
        rundir.continued(config, workdir)
    return str(caught.value)


def test_the_same_command_continues_from_any_directory(home, tmp_path, monkeypatch):
    (home / "text.txt").rename(tmp_path / "moved.txt")
    again = known(settings("text.txt"), "run")
    assert again.data.source == (f"{home}/text.txt",)
    monkeypatch.chdir(tmp_path)
    for source in (home / "text.txt", "home [1]/text.txt", "moved.txt"):
        again = known(settings(source), "home [1]/run")
        run = assemble(again, "home [1]/run", print)  # the text is not opened
        assert run.data.facts()["store"]["documents"] == 120


def test_a_store_is_used_though_its_text_has_grown(home):
    with (home / "text.txt").open("a") as file:
        file.write("one more line\n")
    again = known(settings("text.txt"), "run")
    assert assemble(again, "run", print)


def test_other_text_is_refused_whatever_its_name(home, tmp_path):
    corpus.write(home / "other.txt", seed=1)
    said = refused(settings("other.txt"))
    assert "config.data.source" in said
    assert f"{home}/text.txt" in said and f"{home}/other.txt" in said
    assert "no-such.txt" in refused(settings("no-such.txt"))


def test_a_store_that_moved_is_known_by_its_fingerprint(home):
    shutil.move("run/store", "elsewhere")
    again = known(settings("text.txt"), "run")
    with pytest.raises(UserError, match="token store is not there any more") as told:
        assemble(again, "run", print)
    moved = settings("text.txt", "data.store=elsewhere")
    again = known(moved, "run")
    facts = assemble(again, "run", print).data.facts()
    # The command in the message makes the same store again.
    words = str(told.value).partition("bert-jax prepare ")[2]
    config = configs.load("run/config.json", ["tokenizer.path=run/tokenizer"])
    assert "--config.tokenizer.path=run/tokenizer" in words
    prepare.prepare_store(config, "run/store", 1)
    again = known(settings("text.txt"), "run")
    assert assemble(again, "run", print).data.facts() == facts


def test_another_store_is_refused_and_nothing_is_overwritten(home):
    text = corpus.write(home / "other.txt", seed=1)
    prepare.prepare_store(settings(text), "other", 1)
    before = {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()}
    again = known(settings("text.txt", "data.store=other"), "run")
    with pytest.raises(UserError, match="a run on other data") as told:
        assemble(again, "run", print)
    for text in ("token store", "vocabulary", "12,480 tokens", "there", "now"):
        assert text in str(told.value)
    shutil.rmtree("run/store")
    shutil.copytree("other", "run/store")
    with pytest.raises(UserError, match="a run on other data"):
        assemble(known(settings("text.txt")), "run", print)
    after = {p: p.read_bytes() for p in before if p.exists() and "store" not in str(p)}
    assert after.items() <= before.items() and Path("run/tokenizer").is_dir()


def other(value):
    """Another value of the same type."""
    if isinstance(value, dict):
        return {name: other(item) for name, item in value.items()}
    if isinstance(value, list):
        return [*value, "other"]
    return f"{value}other" if isinstance(value, str) else not value


def fields(values, path=""):
    for name, value in values.items():
        yield from (
            fields(value, f"{path}{name}.")
            if isinstance(value, dict)
            else [f"{path}{name}"]
        )


def test_only_fields_that_change_no_result_may_differ(home):
    """Each field of the config alone."""
    config = settings("text.txt")
    free = set()
    for path in fields(rundir._values(config)):
        old, new = rundir._values(config), rundir._values(config)
        *groups, last = path.split(".")
        node = new
        for group in groups:
            node = node[group]
        node[last] = other(node[last])
        if not rundir._faults(old, new, "run", config):
            free.add("mesh" if groups == ["mesh"] else path)
    assert free == {*rundir.FREE, *rundir.MOVABLE}


def test_free_fields_are_those_of_the_command(home):
    edits = ("log_every=7", "mesh.data=1", "data.num_workers=3", "model.remat=full")
    again = known(settings("text.txt", *edits), "run")
    assert (again.log_every, again.mesh.data, again.model.remat) == (7, 1, "full")
    said = refused(settings("text.txt", "phases[1].batch=16", "seed=5"))
    assert "config.seed: 0 there, 5 now" in said
    assert "config.phases[1].batch: 8 there, 16 now" in said


def test_the_runs_own_config_continues_it(home):
    assert rundir.continued(configs.load("run/config.json"), "run") is not None


def test_a_record_of_an_older_version_has_the_defaults_of_new_fields(home):
    began = json.loads(Path("run/origin.json").read_text())
    del began["asked"]["model"]["norm"], began["asked"]["distill"]
    del began["asked"]["phases"][1]["max_packed"]
    Path("run/origin.json").write_text(json.dumps(began))
    assert rundir.continued(settings("text.txt"), "run") is not None


def test_a_run_that_has_not_begun_may_get_another_config(tmp_path):
    run = str(tmp_path)
    rundir.claim(settings("no-such.txt"), run)
    rundir.claim(settings("right.txt"), run)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match=r"config\.data\.source"):
        rundir.claim(settings("no-such.txt"), run)


def items(labels):
    place = str(np.random.default_rng().random())  # of a file that has moved
    rows = enumerate(labels)
    return [Example(f"text {i}", label=v, pair=None, where=place) for i, v in rows]


@pytest.mark.parametrize(
    ("files", "labels", "said"),
    [
        (("yynn", "yn"), ("n", "y"), ""),
        (("yyny", "yn"), ("n", "y"), "training examples"),
        (("yynn", "ny"), ("n", "y"), "dev examples"),
        (("yynn", "yn"), ("y", "n"), "labels, in order"),
        (("", "yn"), ("n", "y"), ""),  # evaluate reads the dev set alone
    ],
)
def test_a_relabelled_file_of_equal_size_is_noticed(tmp_path, files, labels, said):
    def facts(files, labels):
        task = configs.Config().task
        task = dataclasses.replace(task, labels=labels)
        config = dataclasses.replace(configs.Config(), task=task)
        train, dev = map(items, files)
        return labelled.facts(config, labelled.Files(train, dev))

    run = str(tmp_path)
    rundir.remember(run, configs.Config(), facts(("yynn", "yn"), ("n", "y")))
    if not said:
        rundir.compare(run, facts(files, labels))
        return
    with pytest.raises(UserError, match=said) as told:
        rundir.compare(run, facts(files, labels))
    assert "there" in str(told.value) and "now" in str(told.value)
