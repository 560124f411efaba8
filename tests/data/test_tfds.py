import inspect
from collections import Counter

import numpy as np
import pytest

from bert_jax.config import Data
from bert_jax.data.corpus import documents
from bert_jax.data.labelled import Form, choices, table
from bert_jax.data.labels import labels_of
from bert_jax.data.records import Report
from bert_jax.data.squad import questions
from bert_jax.data.tagged import sentences
from bert_jax.errors import UserError

tfds = pytest.importorskip("tensorflow_datasets")
from tests import tfds_set  # noqa: E402  (needs the library)

TEXT = tfds.features.Text()
PAIR = {"sentence1": TEXT, "sentence2": TEXT, "idx": np.int32}


def classes(*names):
    return tfds.features.ClassLabel(names=list(names))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    return tmp_path


def test_a_table_is_in_the_order_of_idx_and_says_where(folder):
    features = {**PAIR, "label": classes("entailment", "not_entailment")}
    order = [3, 0, 700, 2, *range(10, 600)]  # more than are converted together
    rows = [
        {"sentence1": f"caf\u00e9 {i}", "sentence2": "", "label": i % 2, "idx": i}
        for i in order
    ]
    tfds_set.write(folder, "glue/rte/2.0.0", features, {"validation": rows})
    name = "tfds:glue/rte:validation"
    found = table(name, "sentence1", "sentence2", "label")
    assert [one.text for one in found] == [f"caf\u00e9 {i}" for i in sorted(order)]
    assert found[1] == ("caf\u00e9 2", "", "entailment", f"{name}[1]")
    assert labels_of(found) == ["entailment", "not_entailment"]
    assert len(table(f"{name}[:50%]", "sentence1")) == len(order) // 2


@pytest.mark.parametrize(
    ("task", "names"),
    [("mrpc", "not_equivalent equivalent"), ("wnli", "not_entailment entailment")],
)
def test_classes_are_numbers_where_glue_has_numbers(folder, task, names):
    features = {**PAIR, "label": classes(*names.split())}
    rows = [
        {"sentence1": "a", "sentence2": "b", "label": i - 1, "idx": i} for i in range(3)
    ]
    splits = {"train": rows[1:], "test": rows}
    tfds_set.write(folder, f"glue/{task}/2.0.0", features, splits)
    found = table(f"tfds:glue/{task}:train", "sentence1", label="label")
    assert [one.label for one in found] == ["0", "1"]
    test = f"tfds:glue/{task}:test"
    assert len(table(test, "sentence1", "sentence2")) == 3
    with pytest.raises(UserError, match=r"test\[0\]: the label, .*'label', is hidden"):
        table(test, "sentence1", label="label")
    found = table(test, "sentence1", label="label", missing="-")
    assert [one.label for one in found] == ["-", "0", "1"]


def test_scores_are_numbers_and_hidden_ones_are_known(folder):
    rows = [
        {"sentence1": "a", "sentence2": "b", "label": score, "idx": i}
        for i, score in enumerate([-1.0, 0.0, 2.5])
    ]
    features = {**PAIR, "label": np.float32}
    splits = {"train": rows[1:], "test": rows}
    tfds_set.write(folder, "glue/stsb/2.0.0", features, splits)
    found = table("tfds:glue/stsb:train", "sentence1", label="score|label")
    assert [one.label for one in found] == ["0.0", "2.5"]
    with pytest.raises(UserError, match=r"stsb:test\[0\].* is hidden"):
        table("tfds:glue/stsb:test", "sentence1", label="label")


@pytest.mark.parametrize("version", ["v1.1", "v2.0"])
def test_questions_have_their_answers(folder, version):
    answers = tfds.features.Sequence({"text": TEXT, "answer_start": np.int32})
    features = {name: TEXT for name in ("id", "title", "context", "question")}
    features |= {"answers": answers}
    given = {"text": ["it", "it is"], "answer_start": [3, 3]}
    none = {"text": [], "answer_start": []}
    row = dict(id="q1", title="t", context="so it is", question="what?", answers=given)
    rows = [row]
    if version == "v2.0":
        features |= {"is_impossible": np.bool_, "plausible_answers": answers}
        rows = [
            {**row, "is_impossible": False, "plausible_answers": none},
            {**row, "id": "q2", "is_impossible": True}
            | {"answers": none, "plausible_answers": given},
        ]
    splits = {"validation": rows}
    tfds_set.write(folder, f"squad/{version}/3.0.0", features, splits)
    found = questions(f"tfds:squad/{version}:validation")
    first = ("q1", "what?", "so it is", (("it", 3), ("it is", 3)), False, "t")
    second = ("q2", "what?", "so it is", (), True, "t")
    assert [one[:6] for one in found] == [first, second][: len(rows)]


def test_choices_may_be_a_list(folder):
    features = {"context": TEXT, "endings": tfds.features.Sequence(TEXT)}
    features["label"] = classes("0", "1", "2")
    row = {"context": "so", "endings": ["a", "b", "c"], "label": 2}
    splits = {"train": [row], "test": [{**row, "label": -1}]}
    tfds_set.write(folder, "tiny_choices/1.0.0", features, splits)
    name = "tfds:tiny_choices:train"
    found = choices(name, ["context"], ["endings"], "label")
    assert found == [("so", ("a", "b", "c"), 2, f"{name}[0]")]
    with pytest.raises(UserError, match="is hidden"):
        choices("tfds:tiny_choices:test", ["context"], ["endings"], "label")


def test_words_have_the_names_of_their_tags(folder):
    features = {
        "tokens": tfds.features.Sequence(TEXT),
        "ner": tfds.features.Sequence(classes("O", "B-x")),
    }
    rows = [{"tokens": ["so", "it"], "ner": [0, 1]}, {"tokens": ["is"], "ner": [0]}]
    tfds_set.write(folder, "tiny_words/1.0.0", features, {"train": rows})
    found = sentences("tfds:tiny_words:train")
    assert [one[:2] for one in found] == [(["so", "it"], ["O", "B-x"]), (["is"], ["O"])]


def test_text_that_is_not_utf8_is_named_or_counted(folder):
    features = {"text": TEXT, "label": classes("no", "yes")}
    rows = [{"text": text, "label": 1} for text in (b"so", b"caf\xe9", b"it", b"is")]
    tfds_set.write(folder, "tiny_bytes/1.0.0", features, {"train": rows})
    name = "tfds:tiny_bytes:train"
    with pytest.raises(UserError, match=r"train\[1\]: .*not UTF-8.*bad_rows=skip"):
        table(name, "text", label="label")
    report = Report()
    found = table(
        name, "text", label="label", form=Form(bad_rows="skip"), report=report
    )
    assert [one.text for one in found] == ["so", "it", "is"]
    assert "1 of 4 rows are left out" in report.notes(name)[0]
    # To be predicted, it has all of its rows.
    found = table(name, "text", form=Form(bad_rows="skip"))
    assert [one.text for one in found] == ["so", "", "it", "is"]
    skipped = Counter()
    lines = list(documents(Data(source=(name,)), skipped))
    assert lines == [["so"], ["it"], ["is"]] and skipped["bad_utf8_lines"] == 1


@pytest.mark.parametrize(
    ("name", "column", "words"),
    [
        ("tfds:nonesuch:train", "text", ["nonesuch not found"]),
        ("tfds:glue/nonesuch:train", "text", ["nonesuch not found"]),
        ("tfds:tiny:dev", "text", ["Unknown split 'dev'", "train"]),
        ("tfds:tiny:", "text", ["tfds:tiny:: "]),
        ("tfds:tiny:train", "txt", ["train[0]: no key 'txt'", "mean 'text'"]),
    ],
)
def test_what_cannot_be_read_is_one_message(folder, name, column, words):
    tfds_set.write(folder, "tiny/1.0.0", {"text": TEXT}, {"train": [{"text": "a"}]})
    with pytest.raises(UserError) as caught:
        table(name, column)
    told = str(caught.value)
    assert told.startswith(name) and "\n" not in told and len(told) < 500
    assert all(word in told for word in words), told


def test_what_cannot_be_fetched_says_where_to_put_it(folder, monkeypatch):
    def fail(*_, **__):
        raise OSError("no network\nat all")

    builder = tfds.core.DatasetBuilder
    monkeypatch.setattr(builder, "download_and_prepare", fail)
    with pytest.raises(UserError, match=r"rte:train.*\(no network\).*TFDS_DATA_DIR"):
        table("tfds:glue/rte:train", "sentence1")


def test_a_machine_without_a_network_is_not_asked_for_minutes():
    from tensorflow_datasets.core.download import downloader

    with pytest.raises(UserError, match="no_such_set"):
        table("tfds:no_such_set:train", "text")
    # The library has no setting for it but this one.
    assert "total=MAX_RETRIES" in inspect.getsource(downloader)
    assert downloader.MAX_RETRIES == 5
