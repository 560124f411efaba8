"""What is decided of labelled files, and what is written and scored of outputs."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from bert_jax import labelled
from bert_jax.cli.predict import _texts
from bert_jax.config import Config, Phase, TaskSettings, Tokenizer
from bert_jax.data import answers
from bert_jax.data.tokenizer import load_tokenizer
from bert_jax.errors import UserError

COUNT = 3000


def _tables(path, order):
    lines = [f"a text {n % 1000}\tits pair {n}\t{n % 3}\n" for n in order]
    path.write_text("text\tpair\tlabel\n" + "".join(lines))
    return TaskSettings(kind="classify", pair_column="pair", train_file=str(path))


def _words(path, order):
    path.write_text("\n".join(f"w{n % 1000} O\nx B-p\n" for n in order))
    names = {"text_column": "0", "label_column": "-1"}
    return TaskSettings(kind="tag", train_file=str(path), **names)


def _answers(path, order):
    def question(n):
        answer = {"text": "here", "answer_start": 0}
        return {"id": str(n), "question": f"where {n}?", "answers": [answer]}

    paragraphs = [{"context": f"here {n % 1000}", "qas": [question(n)]} for n in order]
    path.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    return TaskSettings(kind="span", train_file=str(path))


@pytest.mark.parametrize("write", [_tables, _words, _answers])
def test_a_share_is_held_out_where_there_is_no_dev_file(tmp_path, write):
    def split(order):
        # A tag file's sentences and a table's texts come first in their tuples.
        files = labelled.read(write(tmp_path / "train.tsv", order))
        texts = [
            {item.context if write is _answers else str(item[0]) for item in side}
            for side in files[:2]
        ]
        assert len(files.train) + len(files.dev) == COUNT
        assert not texts[0] & texts[1]
        assert 0.07 < len(texts[1]) / 1000 < 0.13
        return texts

    # Which text lies where does not depend on its place in the file.
    assert split(range(COUNT)) == split(reversed(range(COUNT)))


@pytest.mark.parametrize("texts", [["a", "b"], ["a"] * 5, ["a", "a", "b"], list("abc")])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.99])
def test_few_texts_are_enough_to_hold_one_out(tmp_path, texts, share):
    path = tmp_path / "a.tsv"
    path.write_text("text\tlabel\n" + "".join(f"{text}\t1\n" for text in texts))
    task = TaskSettings("classify", train_file=str(path), dev_share=share)
    files = labelled.read(task)
    assert files.train and files.dev
    assert len(files.train) + len(files.dev) == len(texts)
    same = {one.text for one in files.train} & {one.text for one in files.dev}
    assert bool(same) == (len(set(texts)) == 1) == bool(files.notes)
    with pytest.raises(UserError, match=r"dev_share=0.*0 to score on"):
        labelled.read(dataclasses.replace(task, dev_share=0.0))


LABELS = {"classify": ("no", "yes"), "tag": ("B-x", "O"), "regress": ()}
SPLIT = {
    "tag": {"text_column": "0"},
    "choice": {"text_column": "c", "pair_column": "e"},
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] one two three what ?".split()
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return load_tokenizer(folder, Tokenizer())


def _predicted(tmp_path, tokenizer, kind, name, content, **more):
    """What `predict` writes of a file, with scores that prefer the last class."""
    path = tmp_path / name
    path.write_text(content)
    task = TaskSettings(kind, LABELS.get(kind, ()), **{**SPLIT.get(kind, {}), **more})
    config = Config(task=task, phases=(Phase(length=16, batch=4),))
    data = labelled.Unlabelled(config, str(path), tokenizer, 1)
    sequences = data.batches.sequences
    tokens = kind in ("tag", "span")
    count = sequences.offset[-1] if tokens else len(sequences.offset) - 1
    classes = {"regress": 1, "choice": 1}.get(kind, 2)
    # Through the batches and back, as outputs of a model come.
    outputs = []
    for number in range(len(data.batches)):
        rows = data.batches.batch(number)["token" if tokens else "nsp_position"].shape
        outputs.append(np.tile(np.arange(classes, dtype=np.float32), (*rows, 1)))
    logits = data.batches.collect(outputs, tokens)
    assert len(logits) == count
    return data, data.describe(logits)


EMPTY = [
    ("classify", "t.tsv", "text\none\n\ntwo\n \n", [0, 2], 4, {}),
    ("classify", "t.tsv", "text\tid\none\t1\n\n\t2\ntwo\t3\n\n", [0, 3], 5, {}),
    ("classify", "t.tsv", "\none\n\ntwo\n", [1, 3], 4, {"text_column": "0"}),
    ("classify", "t.csv", 'text,id\none,1\n\n"",2\ntwo,3\n', [0, 3], 4, {}),
    ("classify", "t.jsonl", '{"text": "one"}\n{"text": ""}\n', [0], 2, {}),
    (
        "classify",
        "t.jsonl",
        '{"text": "one"}\n{"text": null}\n{}\n{"text": "two"}\n{"text": "two"}\n',
        [0, 3, 4],
        5,
        {"bad_rows": "skip"},
    ),
    ("classify", "t.tsv", "text\ta\none\t1\nx\nt\t2\n", [0, 2], 3, {"glue": "sst2"}),
    ("classify", "t.tsv", "a\tb\none\t\n\ttwo\n\t\n", [0, 1], 3, {"pair_column": "b"}),
    ("regress", "t.tsv", "text\none\n\ntwo\n", [0, 2], 3, {}),
    (
        "choice",
        "t.jsonl",
        '{"c": "", "e": ["", ""]}\n{"c": "one", "e": ["", "two"]}',
        [1],
        2,
        {},
    ),
    ("choice", "t.tsv", "c\ta\tb\none\tone\ttwo\n\n", [0], 2, {"pair_column": "a,b"}),
    (
        "tag",
        "t.jsonl",
        '{"words": []}\n{"words": ["one", "", "?"]}\n{"words": []}\n',
        [1],
        3,
        {},
    ),
]


@pytest.mark.parametrize(("kind", "name", "content", "full", "count", "more"), EMPTY)
def test_as_many_rows_are_predicted_as_there_are(
    tmp_path, tokenizer, kind, name, content, full, count, more
):
    if more.get("pair_column") == "b":
        more = {**more, "text_column": "a"}
    data, rows = _predicted(tmp_path, tokenizer, kind, name, content, **more)
    assert len(rows) == count
    key = "tags" if kind == "tag" else "prediction"
    assert [n for n, row in enumerate(rows) if row[key] not in (None, [])] == full
    if len(full) < count:
        assert any("their prediction is empty" in note for note in data.notes)
    # And in what is written: a line for each, blank where there is nothing.
    for suffix in ("jsonl", "tsv"):
        (text,) = _texts(Path(f"out.{suffix}"), rows, data.layout).values()
        lines = text.split("\n")
        if suffix == "jsonl":
            assert [json.loads(line) for line in lines] == rows
        elif kind == "tag":
            assert text == "\none\tO\n\tO\n?\tO\n\n"
        else:
            assert [line.split("\t")[0] for line in lines[1:]] == [
                str(n) for n in range(count)
            ]
            assert [n for n, x in enumerate(lines[1:]) if x.split("\t")[1]] == full


CONLL = (
    "-DOCSTART- -X-\n\n\n# id = 1\none\n#\ntwo\n \n\n#begin document\n\u200b\nthree\n\n"
)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_words_are_written_line_by_line(tmp_path, tokenizer, end):
    content = CONLL.replace("\n", end)
    data, rows = _predicted(tmp_path, tokenizer, "tag", "t.conll", content)
    assert [row["words"] for row in rows] == [["one", "#", "two"], ["\u200b", "three"]]
    (text,) = _texts(Path("out.tsv"), rows, data.layout).values()
    words = {"one", "#", "two", "\u200b", "three"}
    expected = [f"{x}\tO" if x in words else x for x in CONLL.split("\n")[:-1]]
    assert text.split("\n") == expected
    # The output is a file of tagged words again.
    (tmp_path / "out.tsv").write_text(text + "\n")
    again = labelled.read(
        TaskSettings("tag", dev_file=str(tmp_path / "out.tsv"), **_COLUMNS), train=False
    )
    assert [one.words for one in again.dev] == [row["words"] for row in rows]


_COLUMNS = {"text_column": "0", "label_column": "-1"}


def _asked(path, *questions):
    paragraphs = [
        {"context": context, "qas": [{"id": i, "question": "what ?"} | more]}
        for i, context, more in questions
    ]
    path.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    return str(path)


def test_questions_are_answered_though_texts_are_empty_and_ids_repeat(
    tmp_path, tokenizer
):
    path = tmp_path / "t.json"
    _asked(path, ("a", "one two", {}), ("a", "three", {}), ("b", "", {}))
    data, rows = _predicted(
        tmp_path, tokenizer, "span", "t.json", path.read_text(), max_answer=30
    )
    assert [row["id"] for row in rows] == ["a", "a", "b"]
    assert [bool(row["prediction"]) for row in rows] == [True, True, False]
    assert "id 'a' is also that of data[0].paragraphs[0].qas[0]" in str(data.repeated())


@pytest.mark.parametrize(
    ("score", "wrong"), [("f1", 0.0), ("korquad", 2 / 3), ("exact", 0.0)]
)
def test_each_question_counts_once_whatever_its_id(tmp_path, tokenizer, score, wrong):
    answer = [{"text": "onetwo", "answer_start": 0}]
    other = [{"text": "one", "answer_start": 0}]
    path = _asked(
        tmp_path / "t.json",
        ("a", "one two three", {"answers": [{"text": "one two", "answer_start": 0}]}),
        ("a", "one two three", {"answers": other}),
        ("a", "one onetwo", {"answers": answer}),
    )
    task = TaskSettings("span", score=score, train_file=path, dev_file=path)
    config = Config(task=task, phases=(Phase(length=16, batch=4),))
    files = labelled.read(task)
    data = labelled.Labelled(config, files, tokenizer, 1, lambda _: None)
    held = data.held_out(0)
    outputs = []
    for number in range(len(held.batches)):
        batch = held.batches.batch(number)
        logits = np.zeros((*batch["token"].shape, 2), np.float32)
        # [CLS] what ? [SEP] one: always the first token of the text.
        slots = np.arange(batch["nsp_position"].shape[1])
        for row, place in zip(logits, batch["nsp_position"], strict=True):
            used = place[slots] + 4
            row[used[used < logits.shape[1]]] = 9
        outputs.append({"logits": logits})
    result = held.score(outputs)
    partly = {"f1": 2 / 3, "korquad": 2 * (3 / 6) / (3 / 6 + 1), "exact": 0.0}[score]
    assert result["eval_score"] == pytest.approx((partly + 1 + wrong) / 3)


def test_answers_that_tokens_cannot_say_are_counted(tmp_path, tokenizer):
    def answer(text, start):
        return {"answers": [{"text": text, "answer_start": start}]}

    long = " ".join(["one two three"] * 5)
    path = _asked(
        tmp_path / "t.json",
        ("a", "one two three", answer("one two ", 0)),  # white space does not matter
        ("b", "one two three", answer("wo", 5)),
        ("c", long, answer(long, 0)),
        ("d", "one  two", answer(" ", 3)),
    )
    task = TaskSettings("span", train_file=path, dev_file=path)
    config = Config(task=task, phases=(Phase(length=16, batch=4),))
    said = []
    files = labelled.read(task)
    data = labelled.Labelled(config, files, tokenizer, 1, said.append)
    assert len(data.batches(0)) == 1 and len(data.batches(0).examples(0)) == 2
    assert labelled.settle(config, files, tokenizer).steps == 3
    assert [note.removeprefix(f"{path}: ") for note in said] == [
        f"1 answers {reason}"
        for reason in (answers.INSIDE, answers.TOO_LONG, answers.NO_TOKEN)
    ]
    config = dataclasses.replace(config, phases=(Phase(length=8, batch=4),))
    some = files._replace(train=files.train[2:])
    with pytest.raises(UserError, match="no window .*length=8 .* set longer rows"):
        labelled.settle(config, some, tokenizer)


@pytest.mark.parametrize("positive", ["", "no"])
def test_f1_names_the_class_that_it_counts(tmp_path, tokenizer, positive):
    path = tmp_path / "t.tsv"
    path.write_text("text\tlabel\none\tyes\ntwo\tno\nthree\tno\n")
    files = dict.fromkeys(("train_file", "dev_file"), str(path))
    task = TaskSettings("classify", score="f1", positive=positive, **files)
    config = Config(task=task, phases=(Phase(length=16, batch=4),))
    read = labelled.read(task)
    config, said = labelled.settle(config, read), []
    held = labelled.Labelled(config, read, tokenizer, 1, said.append).held_out(0)
    name = positive or "yes"
    assert held.facts["positive"] == name and f"f1 is that of label '{name}'" in said[0]
    slots = held.batches.batch(0)["nsp_position"].shape
    logits = np.tile(np.array([1.0, 0.0], np.float32), (*slots, 1))  # always "no"
    expected = {"yes": 0.0, "no": 0.8}[name]
    assert held.score([{"logits": logits}])["eval_score"] == pytest.approx(expected)
