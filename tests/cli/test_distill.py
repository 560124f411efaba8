"""Distillation, as a user types it: pretraining and a task, and all that is refused."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from bert_jax import config as configs
from bert_jax import interop, tree
from bert_jax.__main__ import main
from bert_jax.checkpoint import Checkpoints
from bert_jax.errors import Stopped, UserError
from bert_jax.train import train
from bert_jax.watch import Watch
from tests import random_run
from tests.random_run import FAST

ROOT = Path(__file__).parents[2]
DISTILBERT = f"{ROOT / 'configs/distilbert.py'}:smoke"
TINYBERT = f"{ROOT / 'configs/tinybert.py'}:smoke"
GLUE = str(ROOT / "configs/glue.py")
SHORT = ["phases[0].length=32", "data.num_workers=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pretrained teacher of five layers, as a run and as Hugging Face's, and text."""
    folder = tmp_path_factory.mktemp("distill")
    random_run.write(folder)
    (folder / "text.txt").write_text(random_run.text(1500))
    rng = np.random.default_rng(0)
    for name, count in (("train", 160), ("dev", 40)):
        words = rng.integers(5, 60, (count, 4))
        words[:, 0] = rng.choice([3, 4], count)
        rows = [" ".join(f"w{i}" for i in row) for row in words]
        labels = np.where(words[:, 0] == 3, "yes", "no")
        lines = [f"{a}\t{b}" for a, b in zip(rows, labels, strict=True)]
        (folder / f"{name}.tsv").write_text("\n".join(["text\tlabel", *lines]) + "\n")
    return folder


def edits(folder, *more):
    return [f"data.source={folder / 'text.txt'}", *SHORT, *more]


def start(config, workdir, *given):
    flags = [f"--config.{edit}" for edit in given]
    return main(["train", f"--config={config}", f"--workdir={workdir}", *flags])


def summary(workdir):
    return json.loads((workdir / "summary.json").read_text())


def parameters(workdir):
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        step = checkpoints.latest_step()
        assert step is not None
        shapes = checkpoints.params_shapes(step)
        place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        wanted = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes
        )
        return tree.flatten(jax.device_get(checkpoints.restore_params(wanted, step)))


@pytest.fixture(scope="module")
def student(folder):
    """A finished run whose teacher is gone, and its config."""
    teacher = folder / "leaves"
    shutil.copytree(folder / "run", teacher)
    workdir, given = folder / "student", edits(folder, f"distill.teacher={teacher}")
    assert start(DISTILBERT, workdir, *given) == 0
    return workdir, given


@pytest.mark.slow
def test_a_student_of_half_the_layers(student, folder):
    workdir, _ = student
    saved = json.loads((workdir / "config.json").read_text())
    assert saved["distill"]["layers"] == [2, 5]
    assert saved["model"]["layers"] == 2 and saved["model"]["hidden"] == 24
    text = (workdir / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    told = [x for x in lines if x["kind"] == "train"]
    for x in told:
        parts = 5 * x["mlm_soft_loss"] + 2 * x["mlm_loss"] + x["cosine_loss"]
        assert x["loss"] == pytest.approx(parts, rel=1e-5)
    names = {name for x in lines if x["kind"] == "eval" for name in x}
    assert {"eval_mlm_loss", "eval_mlm_accuracy"} <= names
    assert not any("soft" in name or "cosine" in name for name in names)
    found = parameters(workdir)
    assert {name.split("/")[0] for name in found} == {"embeddings", "layers", "mlm"}
    assert "embeddings/segment" not in found and saved["model"]["pooler"] == "relu"
    assert all(len(x) == 2 for n, x in found.items() if n.startswith("layers/"))


@pytest.mark.slow
def test_it_begins_as_its_teacher(folder, tmp_path):
    given = edits(folder, f"distill.teacher={folder / 'hf'}", "distill.layers=1,3,4")
    given += ["optim.peak_rate=1e-50", "steps=2", "objective.pair=nsp"]
    given += ["model.segments=2"]  # as many as the teacher has, then
    assert start(DISTILBERT, tmp_path / "run", *given) == 0
    found = parameters(tmp_path / "run")
    wanted = tree.flatten(interop.load(folder / "hf").params)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        value = value[[0, 2, 3]] if name.startswith("layers/") else value
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_a_student_is_a_model_like_others(student, folder, tmp_path, capsys):
    workdir, _ = student
    shutil.rmtree(folder / "leaves", ignore_errors=True)
    assert main(["evaluate", f"--workdir={workdir}", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    wanted = summary(workdir)["eval_mlm_loss"]
    assert told["eval_mlm_loss"] == pytest.approx(wanted, abs=1e-5)
    assert main(["fill", f"--workdir={workdir}", "w1 [MASK] w5"]) == 0
    out = tmp_path / "out"
    assert main(["export", f"--workdir={workdir}", f"--output={out}"]) == 0
    assert json.loads((out / "config.json").read_text())["n_layers"] == 2


@pytest.mark.slow
def test_a_student_goes_on_bit_for_bit(folder, tmp_path):
    given = edits(folder, f"distill.teacher={folder / 'run'}", "steps=6")
    assert start(DISTILBERT, tmp_path / "whole", *given) == 0

    class Impatient(Watch):
        polls = 0

        def poll(self, what):
            super().poll(what)
            self.polls += 1
            if self.polls > 2:
                raise Stopped("told to stop", 75)

    settings, broken = configs.load(DISTILBERT, given), tmp_path / "broken"
    with pytest.raises(Stopped, match="step 2 is saved"):
        train(settings, str(broken), Impatient(0))
    again = train(settings, str(broken))
    assert again["params_digest"] == summary(tmp_path / "whole")["params_digest"]


@pytest.mark.slow
def test_a_narrow_student_and_its_maps(folder, tmp_path, capsys):
    workdir, again = tmp_path / "run", tmp_path / "again"
    given = edits(folder, "model.hidden=12", "model.heads=3", "steps=2")
    given += [f"distill.teacher={folder / 'hf'}"]
    assert start(TINYBERT, workdir, *given) == 0
    found = parameters(workdir)
    assert found["distill/layers/kernel"].shape == (12, 24)
    assert found["layers/mlp/up/bias"].shape == (2, 64)
    assert main(["evaluate", f"--workdir={workdir}", "--json"]) == 0
    out = tmp_path / "out"
    assert main(["export", f"--workdir={workdir}", f"--output={out}"]) == 0
    # The maps begin anew, those of the state before are of another seed.
    given += [f"init={workdir}", "optim.peak_rate=1e-50", "seed=5"]
    assert start(TINYBERT, again, *given) == 0
    assert "random: distill" in capsys.readouterr().err
    after = parameters(again)
    for name, value in found.items():
        same = np.array_equal(after[name], value)
        assert same != name.startswith("distill/"), name


def tune(folder, workdir, *more):
    files = [f"task.{n}_file={folder / n}.tsv" for n in ("train", "dev")]
    fast = [flag.removeprefix("--config.") for flag in FAST]
    return start(GLUE, workdir, *fast, *files, *more)


@pytest.fixture(scope="module")
def tuned(folder):
    """A teacher of the task."""
    given = [f"init={folder / 'hf'}", "task.epochs=10"]
    assert tune(folder, folder / "tuned", *given) == 0
    return folder / "tuned"


@pytest.mark.slow
def test_a_task_is_learnt_from_a_tuned_teacher(folder, tuned, tmp_path):
    run = tmp_path / "run"
    assert tune(folder, run, f"distill.teacher={tuned}", "task.epochs=10") == 0
    assert summary(run)["score"] >= 0.9
    lines = (run / "metrics.jsonl").read_text()
    assert '"soft_loss"' in lines
    saved = json.loads((run / "config.json").read_text())
    assert saved["model"]["layers"] == 2
    out = tmp_path / "out.tsv"
    (tmp_path / "new.tsv").write_text("text\nw3 w9\nw4 w9\n")
    flags = [f"--input={tmp_path / 'new.tsv'}", f"--output={out}"]
    assert main(["predict", f"--workdir={run}", *flags]) == 0
    assert len(out.read_text().splitlines()) == 3


def refused(capsys, workdir, words):
    told = capsys.readouterr().err
    assert told.count("bert-jax: error:") == 1 and "Traceback" not in told
    assert all(word in told for word in words), told
    assert not (workdir / "checkpoints").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["distill.teacher=nothing/here"], ["nothing/here", "no model there"]),
        (["distill.teacher=gs://b/run"], ["config.distill.teacher", "this disk"]),
        (["distill.layers=2,6"], ["distill.layers=(2, 6)", "1 to 5"]),
        (
            ["distill.copy=false", "distill.layers=1", "distill.hidden=1"],
            ["for each of the student's 2"],
        ),
        (["distill.copy=false", "model.layers=6", "distill.hidden=1"], ["1 to 5"]),
        (["distill.copy=false"], ["distill.cosine=1.0", "model.hidden=24"]),
        (
            ["distill.copy=false", "distill.cosine=0", "distill.attention=1"],
            ["distill.attention", "model.heads=3"],
        ),
        (["model.positions=512", "phases[0].length=200"], ["200", "160 positions"]),
        (
            [
                *("distill.copy=false", "model.hidden=24", "model.heads=3"),
                *("model.mixer=lstm", "distill.attention=1"),
            ],
            ["config.model.mixer"],
        ),
        (["tokenizer.path=OTHER"], ["another vocabulary"]),
        (["objective.masking=span", "objective.span_boundary=true"], ["sbo"]),
    ],
)
def test_a_teacher_that_does_not_fit(folder, tmp_path, capsys, given, words):
    other = tmp_path / "vocab.txt"
    other.write_text("\n".join([*random_run.WORDS[:5], "x", *random_run.WORDS[5:]]))
    given = [edit.replace("OTHER", str(other)) for edit in given]
    given = edits(folder, f"distill.teacher={folder / 'run'}", *given)
    assert start(DISTILBERT, tmp_path / "run", *given) == 2
    refused(capsys, tmp_path / "run", words)


@pytest.mark.slow
def test_a_teacher_of_another_task(folder, tuned, tmp_path, capsys):
    common = [f"init={folder / 'hf'}", f"distill.teacher={folder / 'run'}"]
    assert tune(folder, tmp_path / "a", *common) == 2
    refused(capsys, tmp_path / "a", ["kind=pretrain, not classify"])
    text = (folder / "train.tsv").read_text().replace("yes", "maybe")
    (tmp_path / "train.tsv").write_text(text)
    given = [f"distill.teacher={tuned}", f"task.train_file={tmp_path / 'train.tsv'}"]
    given += ["task.dev_file="]
    assert tune(folder, tmp_path / "b", *given) == 2
    refused(capsys, tmp_path / "b", ["no, yes", "maybe", "--config.task.labels=no,yes"])


@pytest.mark.parametrize(
    ("labels", "words"),
    [(("LABEL_0", "LABEL_1"), ["does not name"]), (("LABEL_0",) * 3, ["classes are"])],
)
def test_a_teacher_with_nameless_classes(labels, words):
    from bert_jax import teacher

    ours = configs.TaskSettings(kind="classify", labels=("no", "yes"))
    theirs = configs.TaskSettings(kind="classify", labels=labels)
    told = []
    try:
        teacher._check_task(ours, theirs, "teacher", told.append)
    except Exception as error:  # the message counts, not who tells it
        told.append(str(error))
    assert len(told) == 1 and all(word in told[0] for word in words)


@pytest.mark.parametrize(
    "edit",
    [
        "distill.temperature=0",
        "distill.soft=-1",
        "distill.soft=0",
        "distill.layers=0,1",
        "distill.layers=a",
        "task.features=last",
        "objective.kind=rtd",
    ],
)
def test_every_rule_names_its_field(edit):
    zero = ["distill.hard=0", "distill.cosine=0", "distill.teacher=t"]
    zero += ["task.kind=tag"] * ("task" in edit)
    with pytest.raises(UserError, match=f"config.{edit.partition('=')[0]}"):
        configs.check(configs.load(DISTILBERT, [*zero, edit]))
