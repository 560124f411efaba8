"""GLUE from its name to its submission, as a user types it, without a network."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest

from bert_jax.__main__ import main
from bert_jax.cli.submission import official, parts
from bert_jax.config import TaskSettings, presets
from tests import random_run

tfds = pytest.importorskip("tensorflow_datasets")
from tests import tfds_set  # noqa: E402  (needs the library)
from tests.random_run import FAST  # noqa: E402

GLUE = f"--config={Path(__file__).parents[2] / 'configs/glue.py'}"
LABELS = ("entailment", "neutral", "contradiction")
TEXT = tfds.features.Text()


def _pairs(count, seed):
    """The second text decides the label: its number, and the two texts."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        label = int(rng.integers(0, 3))
        yield label, f"w{rng.choice([5, 7, 8])}", f"w{(1, 2, 4)[label]}"


def _records(count, seed, hidden=False):
    """The same as the library has them, shuffled."""
    found = [
        {"premise": a, "hypothesis": b, "label": -1 if hidden else label, "idx": i}
        for i, (label, a, b) in enumerate(_pairs(count, seed))
    ]
    np.random.default_rng(0).shuffle(found)  # pyright: ignore
    return found


SIZES = {"train": 320, "validation_matched": 60, "validation_mismatched": 50}
TESTS = {"test_matched": 40, "test_mismatched": 30}


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A model to start from, MNLI and the diagnostic set."""
    folder = tmp_path_factory.mktemp("glue")
    random_run.write(folder)
    features = {"premise": TEXT, "hypothesis": TEXT, "idx": np.int32}
    features["label"] = tfds.features.ClassLabel(names=list(LABELS))
    splits = {name: _records(count, count) for name, count in SIZES.items()}
    splits["train"][::20] = [{**x, "label": -1} for x in splits["train"][::20]]
    splits |= {name: _records(count, count, True) for name, count in TESTS.items()}
    tfds_set.write(folder, "glue/mnli/2.0.0", features, splits)
    diagnostic = {"test": _records(20, 20, True)}
    tfds_set.write(folder, "glue/ax/2.0.0", features, diagnostic)
    return folder


@pytest.fixture(autouse=True)
def prepared(sets, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(sets))


@pytest.fixture(scope="module")
def run(sets):
    """A run of a task's name alone, and beside it in `told` what it said."""
    told = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(told):
        patch.setenv("TFDS_DATA_DIR", str(sets))
        given = [f"--config.init={sets / 'hf'}", f"--workdir={sets / 'mnli'}", *FAST]
        assert main(["train", f"{GLUE}:mnli", *given, "--config.task.epochs=3"]) == 0
    (sets / "told").write_text(told.getvalue())
    return sets / "mnli"


def _evaluate(run, capsys, *flags):
    assert main(["evaluate", f"--workdir={run}", "--json", *flags]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_task_is_learned_by_its_name(run):
    summary = json.loads((run / "summary.json").read_text())
    assert summary["dev_examples"] == 60 and summary["score"] > 0.8
    saved = json.loads((run / "config.json").read_text())
    assert saved["task"]["labels"] == sorted(LABELS)
    assert saved["steps"] == 3 * 304 // 16  # without those of no label
    told = (run.parent / "told").read_text()
    assert told.count("train: 16 examples are left out, whose label is '-'") == 1


def test_a_run_is_scored_on_other_sets(run, sets, tmp_path, capsys):
    scored = _evaluate(run, capsys)
    assert scored["dev_examples"] == 60
    other = "--config.task.dev_file=tfds:glue/mnli:validation_mismatched"
    scored = _evaluate(run, capsys, other)
    assert scored["dev_examples"] == 50
    rows = [f"{a}\t{b}\t{LABELS[label]}\n" for label, a, b in _pairs(50, 50)]
    rows.insert(7, "w5\tw6\t-\n")
    path = tmp_path / "dev_mismatched.tsv"
    path.write_text("sentence1\tsentence2\tgold_label\n" + "".join(rows))
    # The training set plays no part.
    flags = [f"--config.task.dev_file={path}", "--config.task.train_file=gone.tsv"]
    assert _evaluate(run, capsys, *flags) == scored


def _read(path):
    head, *rows = [line.split("\t") for line in path.read_text().splitlines()]
    assert head == ["index", "prediction"]
    assert [row[0] for row in rows] == [str(i) for i in range(len(rows))]
    return [row[1] for row in rows]


def test_a_submission_has_every_file_in_the_order_of_the_examples(
    run, tmp_path, capsys
):
    out = tmp_path / "new" / "glue"
    flags = [f"--workdir={run}", f"--submission={out}"]
    assert main(["predict", *flags, "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out.splitlines()[-1])["examples"] == 90
    assert "MNLI-m.tsv has 40 examples, but GLUE's test set 9,796" in told.err
    counts = {"MNLI-m.tsv": 40, "MNLI-mm.tsv": 30, "AX.tsv": 20}
    assert {path.name for path in out.iterdir()} == set(counts)
    for name, count in counts.items():
        right = [LABELS[label] for label, *_ in _pairs(count, count)]
        found = _read(out / name)
        assert np.mean([a == b for a, b in zip(found, right, strict=True)]) > 0.8
    assert main(["predict", *flags]) == 2  # they exist
    assert "MNLI-m.tsv exists" in capsys.readouterr().err


def test_a_submission_of_local_files_is_the_same(run, tmp_path):
    inputs = []
    for count in (40, 30):
        rows = [f"{i}\t{a}\t{b}\n" for i, (_, a, b) in enumerate(_pairs(count, count))]
        path = tmp_path / f"{count}.tsv"
        path.write_text("index\tsentence1\tsentence2\n" + "".join(rows))
        inputs.append(f"--input={path}")
    flags = ["predict", f"--workdir={run}"]
    assert main([*flags, f"--submission={tmp_path / 'local'}", *inputs]) == 0
    assert main([*flags, f"--submission={tmp_path / 'named'}"]) == 0
    for name in ("MNLI-m.tsv", "MNLI-mm.tsv"):
        texts = [(tmp_path / d / name).read_text() for d in ("local", "named")]
        assert texts[0] == texts[1]
    assert not (tmp_path / "local" / "AX.tsv").exists()
    output = tmp_path / "one.tsv"
    assert main([*flags, "--input=tfds:glue/ax", f"--output={output}"]) == 0
    assert _read(output) == _read(tmp_path / "named" / "AX.tsv")


def test_scores_are_submitted_within_their_range(capsys):
    (part,) = parts(TaskSettings(kind="regress", glue="stsb"), [])
    values = [-0.2, 0.0, 1.23456, 5.01] + [1.0] * 1375
    found = official(part, [{"prediction": value} for value in values])
    right = ["0.000", "0.000", "1.235", "5.000"]
    assert [row["prediction"] for row in found[:4]] == right
    assert not capsys.readouterr().err  # as many as in GLUE's test set


@pytest.mark.parametrize("task", presets.GLUE)
def test_every_task_has_its_files(task):
    kind, labels = ("regress", ()) if task == "stsb" else ("classify", ("1", "0"))
    if task in ("qnli", "rte"):
        labels = ("not_entailment", "entailment")
    labels = LABELS if task == "mnli" else labels
    found = parts(TaskSettings(kind=kind, glue=task, labels=labels), [])
    names = {part.file.removesuffix(".tsv").replace("-", "").lower() for part in found}
    assert names == ({"mnlim", "mnlimm", "ax"} if task == "mnli" else {task})
    assert all(
        part.source.split("/")[1].startswith(("ax:test", task)) for part in found
    )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--config.task.glue="], ["--config.task.glue=TASK", "mnli"]),
        (["--config.task.glue=sst2"], ["sst2 are 0, 1", "contradiction"]),
        (["--input=a.tsv"], ["given 1 times", "MNLI-mm.tsv"]),
        (["--input=a.tsv", "--input=b.tsv"], ["a.tsv: cannot be read"]),
    ],
)
def test_what_cannot_be_submitted_is_one_message(run, tmp_path, capsys, flags, words):
    out = tmp_path / "out"
    assert main(["predict", f"--workdir={run}", f"--submission={out}", *flags]) == 2
    told = capsys.readouterr().err
    assert told.count("bert-jax: error:") == 1 and "Traceback" not in told
    assert all(word in told for word in words), told
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--config.task.dev_file=tfds:glue/mnli:test_matched"], "all are hidden"),
        (["--config.task.train_file=tfds:glue/mnli:test_matched"], "all are hidden"),
        (
            ["--config.task.skip_label=", "--config.task.bad_rows=refuse"],
            "the label, column 'gold_label|label', is",
        ),
        (["--config.task.dev_file=tfds:glue/mnli"], "Unknown split 'validation'"),
        (["--config.task.dev_file=tfds:nonesuch:train"], "nonesuch not found"),
        (["--config.task.pair_column=answer"], "train[0]: no key 'answer'"),
    ],
)
def test_bad_sets_are_one_message(sets, tmp_path, capsys, flags, word):
    given = [f"--config.init={sets / 'hf'}", f"--workdir={tmp_path / 'run'}", *FAST]
    assert main(["train", f"{GLUE}:mnli", *given, *flags]) == 2
    told = capsys.readouterr().err
    assert told.count("bert-jax: error:") == 1 and "Traceback" not in told
    assert word in told
    assert not (tmp_path / "run").exists()
