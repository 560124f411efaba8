"""Labelled files as people have them: read, or one message, and nothing lost."""

import dataclasses
import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax import config as configs
from bert_jax import labelled
from bert_jax.config import Config, TaskSettings
from bert_jax.data.task_files import Source, read
from bert_jax.errors import UserError

ROOT = Path(__file__).parents[2]
CLASSIFY = TaskSettings(kind="classify", dev_share=0.5)
TAG = TaskSettings(kind="tag", text_column="0", label_column="-1", dev_share=0.5)
CHOICE = TaskSettings(kind="choice", text_column="c", pair_column="a,b", dev_share=0.5)
SPAN = TaskSettings(kind="span", dev_share=0.5)
QQP = configs.load(f"{ROOT / 'configs/glue.py'}:qqp").task


def put(folder, name, content, encoding="utf-8"):
    path = folder / name
    raw = content if isinstance(content, bytes) else content.encode(encoding)
    path.write_bytes(raw)
    return str(path)


def on(task, path, dev=None, **more):
    return dataclasses.replace(task, train_file=path, dev_file=dev or path, **more)


def settled(task, files):
    return labelled.settle(Config(task=task), files).task


# Anything at all, made of what such files are made of.
PARTS = st.sampled_from(
    '\t|\n|\r\n|\r|\0|,|;|"|""|#|# |-DOCSTART-| |\u3000|\ufeff|text|label|a|b|c|0|1|1.0'
    "|nan|O|B-X|I-X|PER_B|{|}|[|]|:|null|true|NaN|-|\ud83d|\u200b|data|paragraphs|qas|id"
    '|"text":|"label":|"a"|"data":|"answers":|"words":|"ner":|\x85|\xe9'.split("|")
)
TASKS = {"classify": CLASSIFY, "tag": TAG, "choice": CHOICE, "span": SPAN}


@pytest.mark.parametrize("kind", [*TASKS, "regress", "skip"])
@settings(max_examples=60)
@given(parts=st.lists(PARTS, max_size=40), data=st.data())
def test_any_content_is_read_or_one_message(tmp_path_factory, kind, parts, data):
    names = ["a.tsv", "a.csv", "a.jsonl", "a.json", "a.conll", "a.tsv"]
    task = TASKS.get(kind, CLASSIFY)
    if kind == "regress":
        task = dataclasses.replace(CLASSIFY, kind=kind)
    if kind == "skip":
        delimiter = data.draw(st.sampled_from(["", "tab", "quoted_tab", ";"]))
        task = dataclasses.replace(CLASSIFY, bad_rows="cut", delimiter=delimiter)
    content = "".join(parts).encode("utf-8", "surrogatepass")
    content = data.draw(st.sampled_from([b"", b"text\tlabel\n", b"text,label\n"])) + (
        content.decode("utf-8", "ignore").encode(
            data.draw(st.sampled_from(["utf-8", "utf-16", "utf-8-sig"]))
        )
    )
    folder = tmp_path_factory.getbasetemp()
    path = put(folder, data.draw(st.sampled_from(names)), content)
    for labels in (True, False):
        try:
            found = Source(task, path, "utf-8", labels)
            assert found.items
            if labels and kind != "span":
                settled(on(task, path), read(on(task, path)))
        except UserError as error:
            assert path in str(error) or "config.task" in str(error)


def rows(count, label=lambda i: i % 2, extra="\t"):
    return "".join(f"text {i}{extra}{label(i)}\n" for i in range(count))


# A file, the task, and words of the message that it must give.
BAD = [
    (
        "a.tsv",
        "text\tlabel\n" + rows(3) + "one\n",
        {},
        [":5: 1 columns", "=skip"],
    ),
    (
        "a.tsv",
        "text\tlabel\n" + rows(3) + "a\tb\t1\n",
        {},
        [":5: 3 columns"],
    ),
    ("a.tsv", "text\tlabel\n" + rows(3) + "a\t\n", {}, [":5: the label"]),
    ("a.tsv", "text\tlabel\n" + rows(3, lambda i: 7), {}, ["all labels are '7'"]),
    ("a.tsv", "text\tlabel\n" + rows(30, lambda i: i), {}, ["of its own", "regress"]),
    ("a.tsv", "text\tlabel\n" + rows(3) + "a\t1.0\n", {}, [":5: label '1.0'", ":3"]),
    ("a.tsv", "text\tlabel\n" + rows(3) + "a\tNaN\n", {}, [":5: ", "skip_label=NaN"]),
    ("a.jsonl", '{"text": "a", "label": NaN}\n', {}, [":1: the label", "missing"]),
    ("a.jsonl", '{"text": ["a"], "label": 1}\n', {}, [":1: column 'text'", "a list"]),
    ("a.jsonl", '{"text": "a", "label": {"x": 1}}\n', {}, [":1: the label", "a dict"]),
    ("a.jsonl", "[" * 100_000, {}, [":1: ", "not JSON"]),
    ("a.jsonl", '{"text": "a", "label": ' + "9" * 5000 + "}", {}, [":1: ", "not JSON"]),
    ("a.tsv", "", {}, ["no examples"]),
    ("a.tsv", "\n\n", {}, ["no examples"]),
    ("a.tsv", "text\tlabel\n", {}, ["no examples"]),
    ("a.tsv", "text\tlabel\tlabel\na\t1\t0\n", {}, [":1: 2 columns 'label'", "number"]),
    ("a.tsv", "a\t1\n", {"text_column": "0", "label_column": "7"}, [":1: no column 7"]),
    ("a.tsv", "text,label\na,1\n", {}, [":1: no column 'text'", "task.delimiter"]),
    ("a.tsv", '"text"\t"label"\n"a"\t"1"\n', {}, [":1: no column", "quoted_tab"]),
    ("a.tsv", 'text\tlabel\n"two\nlines"\t1\n', {}, [":2: 1 columns", "quoted_tab"]),
    ("a.tsv", "text\tlabel\rso\t1\r", {}, [":1: ", "carriage returns"]),
    ("a.tsv", "text\tlabel\nso\0\t1\n", {}, [":2: a NUL"]),
    ("a.csv", "text,label\nso,1\n", {"bad_rows": "skip"}, ["all labels are '1'"]),
    (
        "a.csv",
        "text,label\na\nb\nc,1\n",
        {"bad_rows": "skip"},
        ["2 of 3", ":2: 1"],
    ),
]


@pytest.mark.parametrize(("name", "content", "more", "words"), BAD)
def test_a_bad_row_is_named_with_what_to_do(tmp_path, name, content, more, words):
    task = on(CLASSIFY, put(tmp_path, name, content), **more)
    with pytest.raises(UserError) as told:
        settled(task, read(task))
    assert all(word in str(told.value) for word in [name, *words]), told.value


@pytest.mark.parametrize(
    ("bad", "left_out"),
    [
        ('"\tWas it real? What is known?\t0\n', 1),
        ("1\t2\t3\tone\ttwo\t1\textra\n", 1),
        ("1\t2\t3\tone\ttwo\t\n", 1),
        ("\n", 0),
    ],
)
def test_rows_of_glue_that_lost_columns_are_left_out_and_counted(
    tmp_path, bad, left_out
):
    head = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    good = "".join(f"{i}\t1\t2\tWhy {i}?\tWhy so {i}?\t{i % 2}\n" for i in range(20))
    path = put(tmp_path, "train.tsv", head + good + bad + good)
    files = read(on(QQP, path))
    assert len(files.train) == 40
    assert sum("1 of 41 rows are left out" in note for note in files.notes) == (
        2 * left_out
    )
    if left_out:
        assert f"{path}:22: " in files.notes[0]
        with pytest.raises(UserError, match=r"train\.tsv:22.*bad_rows=skip"):
            read(on(QQP, path, bad_rows="refuse"))
        # A file to be predicted keeps the row.
        found = Source(QQP, path, "utf-8", labels=False)
        assert len(found.items) == 41


def test_snli_of_glue_has_rows_of_two_widths(tmp_path):
    """Four more labels stand before the last column: dropping it would be wrong."""
    head = "index\tsentence1\tsentence2\tlabel1\tgold_label\n"
    names = ["entailment", "neutral"]
    lines = [f"{i}\ta {i}\tb\t{names[i % 2]}\t{names[i % 2]}\n" for i in range(20)]
    lines += ["20\ta\tb\tneutral\tneutral\tentailment\tneutral\tneutral\tneutral\n"]
    lines += ["21\ta\tb\t-\t-\n"]
    task = configs.load(f"{ROOT / 'configs/glue.py'}:mnli").task
    files = read(on(task, put(tmp_path, "train.tsv", head + "".join(lines))))
    assert len(files.train) == 20
    assert "1 of 22 rows are left out" in files.notes[0]
    assert "1 examples are left out, whose label is '-'" in files.notes[1]


def test_the_sts_benchmark_has_more_columns_in_some_rows(tmp_path):
    lines = [f"news\tx\t2012\t{i}\t{i % 5}.5\tone {i}\ttwo\n" for i in range(9)]
    lines[4] = lines[4].strip() + "\tAP\thttp://example.org\n"
    task = configs.load(
        f"{ROOT / 'configs/glue.py'}:stsb",
        ["task.text_column=5", "task.pair_column=6", "task.label_column=4"],
    ).task
    path = put(tmp_path, "sts-train.csv", "".join(lines))
    task = on(task, path, delimiter="tab")
    files = read(task)
    assert len(files.train) == 8 and "sts-train.csv:5: 9 columns" in files.notes[0]
    files = read(dataclasses.replace(task, bad_rows="cut"))
    assert [one.label for one in files.train] == [f"{i % 5}.5" for i in range(9)]


@pytest.mark.parametrize("encoding", ["cp949", "utf-16", "utf-8-sig", "gb18030"])
def test_tables_in_other_encodings(tmp_path, encoding):
    content = 'text\tlabel\r\n"좋은 ""영화"""\t1\r\n"나쁜\r\n영화"\t0\r\n'
    path = put(tmp_path, "a.txt", content, encoding)
    task = on(CLASSIFY, path, delimiter="quoted_tab")
    marked = encoding in ("utf-16", "utf-8-sig")
    files = read(task, encoding="utf-8" if marked else encoding)
    assert [one.text for one in files.train] == ['좋은 "영화"', "나쁜\r\n영화"]
    if not marked:
        with pytest.raises(UserError, match=r"a\.txt:2: .*config\.data\.encoding"):
            read(task)


def test_quoted_cells_of_a_tsv_are_said(tmp_path):
    content = 'text\tlabel\n"she said ""no"""\t1\nplain\t0\n'
    path = put(tmp_path, "a.tsv", content)
    (note,) = read(on(CLASSIFY, path, path)).notes[:1]
    assert note.startswith(f"{path}:2: 1 rows have cells in quotes")
    assert "delimiter=quoted_tab" in note
    every = put(tmp_path, "b.tsv", 'text\tlabel\n"a"\t1\n"b"\t0\n')
    assert "2 rows have cells in quotes" in read(on(CLASSIFY, every)).notes[0]
    some = put(tmp_path, "c.tsv", 'text\tlabel\n"a"\t1\nb\t0\n" c\t0\n')
    assert read(on(CLASSIFY, some)).notes == ()


def test_a_header_among_numbered_columns_is_said(tmp_path):
    numbered = {"text_column": "0", "label_column": "1"}
    path = put(tmp_path, "a.tsv", "sentence\tclass\n" + rows(6))
    (note, _) = read(on(CLASSIFY, path, **numbered)).notes
    assert note.startswith(f"{path}:1: is read as an example") and "'class'" in note
    path = put(tmp_path, "a.tsv", rows(6))
    assert read(on(CLASSIFY, path, **numbered)).notes == ()


def test_labels_lie_in_nested_objects(tmp_path):
    record = {"guid": 1, "sentence1": "a", "labels": {"label": 3.7, "real-label": 3.71}}
    path = put(tmp_path, "a.json", json.dumps([record, record]))
    task = dataclasses.replace(CLASSIFY, kind="regress", text_column="sentence1")
    files = read(on(task, path, label_column="labels.real-label"))
    assert [one.label for one in files.train] == ["3.71"] * 2
    with pytest.raises(UserError, match=r"a\.json:1: .*'labels\.label'"):
        read(on(task, path, label_column="score"))


@pytest.mark.parametrize(
    ("label", "positive"),
    [("duplicate not_duplicate", ""), ("duplicate not_duplicate", "duplicate")],
)
def test_the_class_that_f1_counts_is_known(tmp_path, label, positive):
    names = label.split()
    path = put(tmp_path, "a.tsv", "text\tlabel\n" + rows(9, lambda i: names[i % 2]))
    task = on(CLASSIFY, path, score="f1", positive=positive)
    assert settled(task, read(task)).labels == tuple(names)
    with pytest.raises(UserError, match=r"task\.positive=spam: no such label.*not_dup"):
        settled(dataclasses.replace(task, positive="spam"), read(task))


def test_labels_of_the_share_that_is_held_out_are_known(tmp_path):
    for task, head, row in (
        (CLASSIFY, "text\tlabel\n", "{text}\t{label}\n"),
        (TAG, "", "{text}\tB-{label}\n\n"),
    ):
        lines = [row.format(text=f"w{i}", label=f"l{i // 2}") for i in range(12)]
        path = put(tmp_path, "a.tsv", head + "".join(lines))
        task = dataclasses.replace(task, train_file=path)
        assert len(settled(task, read(task)).labels) in (6, 7)  # O besides


def test_ids_that_occur_twice_are_named(tmp_path):
    def asked(number):
        answer = {"text": "a", "answer_start": 0}
        item = {"id": f"q{number % 2}", "question": "?", "answers": [answer]}
        return {"context": f"a {number}", "qas": [item]}

    data = {"data": [{"paragraphs": [asked(n) for n in range(4)]}]}
    path = put(tmp_path, "a.json", json.dumps(data))
    files = read(on(SPAN, path))
    assert len(files.train) == 4
    assert files.notes[0].startswith(
        f"{path}: data[0].paragraphs[2].qas[0]: id 'q0' is also that of "
        "data[0].paragraphs[0].qas[0]"
    )


# Every labelled file that lies there; counted with wc, grep, json and csv.
SETS = """
glue.py:sst2 SST-2/train.tsv.xz 67349
glue.py:sst2 SST-2/dev.tsv 872
glue.py:cola CoLA/train.tsv.xz 8551
glue.py:cola CoLA/dev.tsv 527
glue.py:cola CoLA/ood_dev.tsv 516
glue.py:qnli QNLI/dev.tsv.xz 5463
glue.py:mrpc hf_fixtures/MRPC_dev.tsv 6
glue.py:mrpc hf_fixtures/MRPC_train.tsv 6
glue.py:stsb hf_fixtures/STS-B_dev.tsv 9
glue.py:stsb hf_fixtures/STS-B_train.tsv 9
glue.py:stsb STS-B/stsb-en-train.csv.xz 5749 text_column=0 pair_column=1 label_column=2
glue.py:stsb STS-B/stsb-en-dev.csv 1500 text_column=0 pair_column=1 label_column=2
glue.py:stsb STS-B/stsb-en-test.csv 1379 text_column=0 pair_column=1 label_column=2
glue.py:stsb KorSTS/sts-train.tsv.xz 5749
glue.py:stsb KorSTS/sts-dev.tsv.xz 1500
glue.py:stsb KorSTS/sts-test.tsv 1379
glue.py:mnli SNLI-subset/all_combined_train.tsv.xz 8330
glue.py:mnli SNLI-subset/all_combined_dev.tsv 1000
glue.py:mnli SNLI-subset/all_combined_test.tsv 2000
glue.py:mnli SNLI-subset/orig_train.tsv 1666
glue.py:mnli SNLI-subset/orig_dev.tsv 200
glue.py:mnli SNLI-subset/orig_test.tsv 400
glue.py NSMC/ratings_train.txt.xz 120000 text_column=document
glue.py NSMC/ratings_test.txt.xz 10000 text_column=document
glue.py KorChatbot/ChatbotData.csv.xz 11823 text_column=Q
glue.py paraKQC/paraKQC_v1.txt.xz 10000 text_column=2 label_column=1
ner.py NER/wnut17_train.conll.xz 3394
ner.py NER/wnut17_dev.conll 1009
ner.py NER/wnut17_test.conll 1287
ner.py NER/gum_train.conll.xz 2495
ner.py NER/gum_test.conll 1000
ner.py KLUE-NER/klue-ner-v1.1_dev.tsv.xz 5000 delimiter=tab
ner.py hf_fixtures/conll_sample.json 10
swag.py CODAH/full_data.tsv.xz 2776
swag.py CODAH/fold_0_train.tsv 1665
swag.py CODAH/fold_0_dev.tsv 556
swag.py CODAH/fold_0_test.tsv 555
swag.py hf_fixtures/swag_sample.json 10
squad.py SQuAD-format/xquad.en.json.xz 1190
squad.py SQuAD-format/covidQA_200423.json.xz 1380
squad.py hf_fixtures/SQUAD_sample.json 14
"""
CODAH = ["text_column=1", "pair_column=2,3,4,5", "label_column=6", "start_column="]
UNLABELLED = ["QNLI/test.tsv.xz", "SST-2/test.tsv"]
NOT_LABELLED = ["hf_fixtures/sample_text.txt", "hf_fixtures/wiki_text_wiki_00"]


@pytest.mark.slow
@pytest.mark.shared
def test_every_real_set_is_read_whole_with_its_flags(shared):
    folder, seen = shared / "finetune", set(UNLABELLED + NOT_LABELLED)
    for line in SETS.strip().splitlines():
        preset, name, count, *flags = line.split()
        flags = CODAH if "CODAH" in name else flags
        config = configs.load(
            str(ROOT / "configs" / preset), [f"task.{flag}" for flag in flags]
        )
        path = str(folder / name)
        found = Source(config.task, path, "utf-8")
        assert (name, len(found.items)) == (name, int(count))
        quoted = "SNLI" in name  # a few rows went through CSV
        assert quoted or not found.notes, found.notes
        # To be predicted, it has at least as many rows.
        assert len(Source(config.task, path, "utf-8", labels=False).items) == int(count)
        seen.add(name)
    for name in UNLABELLED:
        preset = {"Q": "qnli", "S": "sst2"}[name[0]]
        task = configs.load(f"{ROOT / 'configs/glue.py'}:{preset}").task
        found = Source(task, str(folder / name), "utf-8", labels=False)
        assert len(found.items) == {"Q": 5463, "S": 1821}[name[0]]
    there = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert there == seen


@pytest.mark.shared
def test_damage_to_a_real_set_is_named_or_counted(shared, tmp_path):
    """Of real lines, each with a column lost or gained: no other outcome."""
    lines = (shared / "finetune/SST-2/dev.tsv").read_text().splitlines()[:200]
    rng = random.Random(0)
    for number in rng.sample(range(1, 200), 20):
        damaged = list(lines)
        damaged[number] = rng.choice(["", "x", "a\tb\tc", "\t", '"open\t1', "a\t"])
        path = put(tmp_path, "d.tsv", "\n".join(damaged) + "\n")
        task = on(dataclasses.replace(CLASSIFY, text_column="sentence"), path)
        try:
            found = read(task).train
            assert len(found) == 199 - (damaged[number] == "")
        except UserError as error:
            assert f"d.tsv:{number + 1}: " in str(error)
        skipped = read(dataclasses.replace(task, bad_rows="skip"))
        assert len(skipped.train) >= 198
