"""Fine-tuning and predicting, as a user types them, on a task that can be learned."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from bert_jax import interop, tree
from bert_jax.__main__ import main
from bert_jax.checkpoint import Checkpoints
from tests import random_run
from tests.random_run import FAST

ROOT = Path(__file__).parents[2]
GLUE = f"--config={ROOT / 'configs/glue.py'}"


def _rows(count, seed):
    """Texts whose first word decides the label, and by its number the score."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        words = rng.integers(1, 60, rng.integers(2, 9))
        words[0] = rng.choice([3, 4])
        yield " ".join(f"w{i}" for i in words), "yes" if words[0] == 3 else "no"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model to start from, and training, dev and test files."""
    folder = tmp_path_factory.mktemp("finetune")
    random_run.write(folder)
    for name, count in (("train", 320), ("dev", 70)):
        rows = "".join(f"{t}\t{label}\n" for t, label in _rows(count, count))
        (folder / f"{name}.tsv").write_text(f"text\tlabel\n{rows}")
    rows = "".join(f"{text}\n" for text, _ in _rows(30, 9))
    (folder / "test.tsv").write_text(f"text\n{rows}")
    return folder


def _train(files, workdir, *flags, config=GLUE):
    given = [f"--config.init={files / 'hf'}", f"--workdir={workdir}", *FAST]
    given += [f"--config.task.{n}_file={files / n}.tsv" for n in ("train", "dev")]
    return main(["train", config, *given, *flags])


@pytest.fixture(scope="module")
def run(files):
    """A finished fine-tuning run."""
    assert _train(files, files / "tuned", "--config.task.epochs=4") == 0
    return files / "tuned"


def test_a_task_is_learned(run):
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 80 and summary["score_name"] == "accuracy"
    assert summary["score"] >= 0.9 and summary["best_step"] in (20, 40, 60, 80)
    assert summary["examples_per_second"] > 0
    saved = json.loads((run / "config.json").read_text())
    assert saved["task"]["labels"] == ["no", "yes"]
    lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    scores = [x["eval_score"] for x in lines if x["kind"] == "eval"]
    assert summary["score"] == max(scores) and len(scores) == 4


def test_curves_are_drawn(run):
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_run_ends_when_its_score_no_longer_grows(files, tmp_path, capsys):
    workdir = tmp_path / "run"
    flags = ["--config.task.epochs=2", "--config.patience=2", "--config.eval_every=5"]
    flags += ["--config.optim.peak_rate=1e-12"]  # it never grows
    assert _train(files, workdir, *flags) == 0
    assert "ending at step 15" in capsys.readouterr().err
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["steps"] == 15 and summary["best_step"] == 5
    # Killed before the summary was written, it ends at the same place again.
    (workdir / "summary.json").unlink()
    assert _train(files, workdir, *flags) == 0
    again = json.loads((workdir / "summary.json").read_text())
    assert again["params_digest"] == summary["params_digest"]


def test_the_size_of_a_model_without_its_weights(files, tmp_path, capsys):
    flags = [f"--config.init=none:{files / 'run'}", "--config.task.epochs=0.1"]
    assert _train(files, tmp_path / "run", *flags) == 0
    assert "weights of" not in capsys.readouterr().err
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    there = json.loads((files / "run" / "config.json").read_text())
    assert saved["model"] == there["model"] | {
        name: saved["model"][name] for name in ("dropout", "attention_dropout", "scan")
    }


def test_a_frozen_encoder_stays_as_it_was(files, tmp_path):
    flags = ["--config.optim.freeze_layers=5", "--config.task.epochs=0.2"]
    assert _train(files, tmp_path / "run", *flags) == 0
    out = tmp_path / "out"
    assert main(["export", f"--workdir={tmp_path / 'run'}", f"--output={out}"]) == 0
    before, after = (
        load_file(folder / "model.safetensors") for folder in (files / "hf", out)
    )
    encoder = [n for n in before if n.startswith(("bert.encoder", "bert.embeddings"))]
    assert len(encoder) > 16 * 5
    assert all((before[name] == after[name]).all() for name in encoder)
    pooler = "bert.pooler.dense.weight"
    assert (before[pooler] != after[pooler]).any()


def test_the_same_command_says_that_it_is_done(files, run, capsys):
    assert _train(files, run, "--config.task.epochs=4") == 0
    assert "was finished already" in capsys.readouterr().out


def test_evaluate_repeats_the_best_score(run, capsys):
    assert main(["evaluate", f"--workdir={run}", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    summary = json.loads((run / "summary.json").read_text())
    assert told["step"] == summary["best_step"]
    assert told["eval_score"] == summary["score"]


@pytest.mark.parametrize("suffix", ["tsv", "jsonl"])
def test_predict_labels_new_text(files, run, tmp_path, suffix):
    output = tmp_path / f"out.{suffix}"
    arguments = [f"--workdir={run}", f"--input={files / 'test.tsv'}"]
    assert main(["predict", *arguments, f"--output={output}"]) == 0
    lines = output.read_text().splitlines()
    wanted = [label for _, label in _rows(30, 9)]
    if suffix == "tsv":
        assert lines[0] == "index\tprediction"
        found = [line.split("\t")[1] for line in lines[1:]]
        assert [line.split("\t")[0] for line in lines[1:3]] == ["0", "1"]
    else:
        rows = [json.loads(line) for line in lines]
        found = [row["prediction"] for row in rows]
        assert all(abs(sum(r["probabilities"].values()) - 1) < 1e-4 for r in rows)
    assert np.mean([a == b for a, b in zip(found, wanted, strict=True)]) >= 0.85
    assert main(["predict", *arguments, f"--output={output}"]) == 2  # it exists


def test_a_tuned_model_is_exported_at_its_best(run, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["export", f"--workdir={run}", f"--output={out}", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["class"] == "BertForSequenceClassification"
    assert told["step"] == json.loads((run / "summary.json").read_text())["best_step"]
    assert json.loads((out / "config.json").read_text())["id2label"] == {
        "0": "no",
        "1": "yes",
    }


@pytest.mark.slow
def test_numbers_are_learned(files, tmp_path):
    for name in ("train", "dev"):
        text = (files / f"{name}.tsv").read_text().replace("label", "score")
        text = text.replace("\tyes", "\t2.5").replace("\tno", "\t1.0")
        text = "".join(f"x\t{line}\n" for line in text.splitlines())
        (tmp_path / f"{name}.tsv").write_text(text.replace("x\ttext", "id\tsentence1"))
    (tmp_path / "hf").symlink_to(files / "hf")
    flags = ["--config.task.pair_column=", "--config.task.epochs=8"]
    config = f"{GLUE}:stsb"
    run = tmp_path / "run"
    assert _train(tmp_path, run, *flags, config=config) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["score_name"] == "pearson" and summary["score"] > 0.8
    out = tmp_path / "out"
    assert main(["export", f"--workdir={run}", f"--output={out}"]) == 0
    assert main(["import", f"--source={out}", f"--workdir={tmp_path / 'again'}"]) == 0
    saved = json.loads((tmp_path / "again" / "config.json").read_text())
    assert saved["task"]["kind"] == "regress"


@pytest.mark.parametrize(
    ("dev", "flags", "words"),
    [
        ("text\tlabel\nw1\tmaybe\n", [], ["dev.tsv:2", "maybe", "no", "yes"]),
        ("text\tlabel\nw1\tyes\nw2\n", [], ["dev.tsv:3"]),
        ("text\tlabel\nw1\tyes\n", ["--config.task.text_column=txt"], ["txt", "text"]),
        ("text\tlabel\n", [], ["dev.tsv"]),
        ("text\tlabel\nw1\tyes\n", ["--config.task.score=pearson"], ["task.score"]),
        (
            "text\tlabel\nw1\tyes\n",
            ["--config.task.dev_file=", "--config.task.dev_share=0"],
            ["task.dev_share", "320", "task.dev_file"],
        ),
        ("text\tlabel\nw1\tyes\n", ["--config.init="], ["--config.init"]),
        ("text\tlabel\nw1\tyes\n", ["--config.task.features=last"], ["kind=tag"]),
        ("text\tlabel\nw1\tyes\n", ["--config.task.kind=regress"], ["not a number"]),
    ],
)
def test_bad_input_is_one_message(files, tmp_path, capsys, dev, flags, words):
    (tmp_path / "dev.tsv").write_text(dev)
    flags = [f"--config.task.dev_file={tmp_path / 'dev.tsv'}", *flags]
    assert _train(files, tmp_path / "run", *flags) == 2
    told = capsys.readouterr().err
    assert told.count("bert-jax: error:") == 1 and "Traceback" not in told
    assert all(word in told for word in words), told
    assert not (tmp_path / "run" / "checkpoints").exists()


def _sentences(count, seed):
    """Sentences in which w4 begins an entity that goes on over w5s."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        numbers, tags = rng.choice([4, 5, 7], rng.integers(2, 9)), []
        for i in numbers:
            inside = i == 5 and tags and tags[-1] != "O"
            tags.append("B-x" if i == 4 else "I-x" if inside else "O")
        yield [f"w{i}" for i in numbers], tags


def _learn_entities(files, tmp_path, config, *flags):
    for name, count in (("train", 320), ("dev", 60)):
        rows = [
            "".join(f"{w} _ {t}\n" for w, t in zip(*s, strict=True))
            for s in _sentences(count, count)
        ]
        (tmp_path / f"{name}.tsv").write_text("\n".join(rows))
    (tmp_path / "hf").symlink_to(files / "hf")
    config = f"--config={ROOT / 'configs' / config}"
    assert _train(tmp_path, tmp_path / "run", *flags, config=config) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["score_name"] == "entity_f1" and summary["score"] > 0.9
    wanted = list(_sentences(20, 5))
    text = "\n\n".join("\n".join(words) for words, _ in wanted)
    (tmp_path / "new.txt").write_text(text)
    out = tmp_path / "out.tsv"
    flags = [f"--input={tmp_path / 'new.txt'}", f"--output={out}"]
    assert main(["predict", f"--workdir={tmp_path / 'run'}", *flags]) == 0
    blocks = out.read_text().strip("\n").split("\n\n")
    found = [[line.split("\t") for line in b.splitlines()] for b in blocks]
    assert [[word for word, _ in s] for s in found] == [w for w, _ in wanted]
    pairs = zip(found, wanted, strict=True)
    right = [
        t == u for s, (_, tags) in pairs for (_, t), u in zip(s, tags, strict=True)
    ]
    assert np.mean(right) > 0.9


@pytest.mark.slow
def test_entities_are_learned_and_predicted(files, tmp_path):
    _learn_entities(files, tmp_path, "ner.py", "--config.task.epochs=12")


@pytest.mark.slow
def test_entities_are_learned_from_fixed_features(files, tmp_path, capsys):
    # Random layers hide the words; a tagger of seconds sees them below.
    flags = ["--config.task.features=embeddings", "--config.task.lstm_hidden=32"]
    flags += ["--config.task.epochs=6", "--config.optim.peak_rate=1e-2"]
    _learn_entities(files, tmp_path, "ner.py:features", *flags)
    run = tmp_path / "run"
    assert main(["evaluate", f"--workdir={run}", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    summary = json.loads((run / "summary.json").read_text())
    assert told["eval_score"] == pytest.approx(summary["score"])
    with Checkpoints(run / "checkpoints", read_only=True) as checkpoints:
        saved = checkpoints.params_shapes(summary["steps"])
        params = checkpoints.restore_params(saved, summary["steps"])
    first = interop.load(files / "hf").params
    for part in ("embeddings", "layers"):
        digests = [tree.params_digest(weights[part]) for weights in (first, params)]
        assert digests[0] == digests[1]
    out = tmp_path / "exported"
    assert main(["export", f"--workdir={run}", f"--output={out}"]) == 2
    assert "transformers has no model with an LSTM" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.slow
def test_choices_are_learned_and_predicted(files, tmp_path):
    rng = np.random.default_rng(0)
    for name, count in (("train", 240), ("dev", 50)):
        rows = []
        for number in range(count):
            ends = [["w7", "w8", "w10"][i] for i in rng.integers(0, 3, 3)]
            right = int(rng.integers(0, 3))
            ends[right] = "w4"
            words = " ".join(f"w{i}" for i in rng.integers(5, 60, number % 6 + 1))
            rows.append(",".join([words, "w5", *ends, str(right)]))
        text = "\n".join(["sent1,sent2,a,b,c,label", *rows]) + "\n"
        (tmp_path / f"{name}.csv").write_text(text)
    config = f"--config={ROOT / 'configs/swag.py'}"
    flags = [f"--config.task.{n}_file={tmp_path / n}.csv" for n in ("train", "dev")]
    flags += ["--config.task.pair_column=a,b,c", "--config.task.epochs=6"]
    run, out = tmp_path / "run", tmp_path / "out.jsonl"
    assert _train(files, run, *flags, config=config) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["score"] > 0.9 and summary["dev_examples"] == 50
    assert summary["eval_accuracy"] == pytest.approx(summary["eval_score"])
    flags = [f"--input={tmp_path / 'dev.csv'}", f"--output={out}"]
    assert main(["predict", f"--workdir={run}", *flags]) == 0
    found = [json.loads(line)["prediction"] for line in out.read_text().splitlines()]
    rows = (tmp_path / "dev.csv").read_text().splitlines()[1:]
    right = [row.rsplit(",", 1)[1] for row in rows]
    score = np.mean([a == b for a, b in zip(found, right, strict=True)])
    assert score == pytest.approx(summary["score"])


def _squad(path, count, seed, impossible=False):
    """Texts in which w4 or w14 answers; some have neither."""
    rng, rows = np.random.default_rng(seed), []
    for number in range(count):
        words = [f"w{i}" for i in rng.choice([5, 7, 8, 10, 11], 12)]
        at = int(rng.integers(0, 10))
        none = impossible and number % 3 == 0
        words[at] = "w2" if none else ["w4", "w14"][number % 2]
        start = len(" ".join(words[:at])) + (at > 0)
        answer = {"text": words[at], "answer_start": start}
        rows.append(
            {
                "context": " ".join(words),
                "qas": [
                    {
                        "id": f"q{number}",
                        "question": "w13",
                        "is_impossible": none,
                        "answers": [] if none else [answer],
                    }
                ],
            }
        )
    path.write_text(json.dumps({"data": [{"title": "t", "paragraphs": rows}]}))


@pytest.mark.parametrize(
    "impossible", [pytest.param(False, marks=pytest.mark.slow), True]
)
def test_answers_are_learned_and_predicted(files, tmp_path, impossible):
    _squad(tmp_path / "train.json", 300, 1, impossible)
    _squad(tmp_path / "dev.json", 60, 2, impossible)
    config = f"--config={ROOT / 'configs/squad.py'}"
    flags = [f"--config.task.{n}_file={tmp_path / n}.json" for n in ("train", "dev")]
    flags += ["--config.task.epochs=12", "--config.task.doc_stride=8"]
    flags += ["--config.phases[0].length=24"]
    run, out = tmp_path / "run", tmp_path / "out.json"
    assert _train(files, run, *flags, config=config) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["score_name"] == "f1" and summary["score"] > 0.8
    assert ("eval_null_threshold" in summary) == impossible
    flags = [f"--input={tmp_path / 'dev.json'}", f"--output={out}"]
    assert main(["predict", f"--workdir={run}", *flags]) == 0
    found = json.loads(out.read_text())
    assert len(found) == 60
    paragraphs = json.loads((tmp_path / "dev.json").read_text())["data"][0][
        "paragraphs"
    ]
    right = []
    for paragraph in paragraphs:
        (question,) = paragraph["qas"]
        wanted = [answer["text"] for answer in question["answers"]] or [""]
        right.append(found[question["id"]] == wanted[0])
    assert np.mean(right) == pytest.approx(summary["score"], abs=0.02)
    best = json.loads((tmp_path / "out.nbest.json").read_text())
    assert best["q1"][0]["probability"] <= 1
