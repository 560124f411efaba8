import csv
import gzip
import io
import json
import lzma
import re

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from bert_jax.data.labelled import Choice, Form, choices, table
from bert_jax.data.labels import label_ids, labels_of, to_numbers
from bert_jax.errors import UserError

COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}
ANY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"))
TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\t\ufeff\0")
)
LABEL = st.sampled_from(["0", "1", "yes", '"', "caf\u00e9", "two words"])
NAMES = ["id", "first", "second", "label"]


def rows(text):
    return st.lists(st.tuples(TEXT, text, text, LABEL), min_size=1, max_size=8)


def write_tsv(table):
    return "".join("\t".join(row) + "\n" for row in table)


def write_csv(table, end="\r\n"):
    file = io.StringIO()
    csv.writer(file, lineterminator=end).writerows(table)
    return file.getvalue()


def write_jsonl(table, indent=None):
    records = (dict(zip(NAMES, row, strict=True)) for row in table)
    return "".join(json.dumps(record, indent=indent) + "\n" for record in records)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("labelled")


def put(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def same(examples, expected):
    assert [(one.text, one.pair, one.label) for one in examples] == [
        row[1:] for row in expected
    ]


@given(expected=rows(TEXT))
def test_a_tsv_comes_back_by_name_and_by_number(folder, expected):
    path = put(folder, "named.tsv", write_tsv([NAMES, *expected]))
    same(table(path, "first", "second", "label"), expected)
    assert [one.where for one in table(path, "first")] == [
        f"{path}:{number}" for number in range(2, len(expected) + 2)
    ]
    path = put(folder, "plain.tsv", write_tsv(expected))
    same(table(path, "1", "2", "3"), expected)


@given(expected=rows(ANY), end=st.sampled_from(["\n", "\r\n"]))
def test_a_csv_comes_back_with_line_ends_inside(folder, expected, end):
    content = write_csv([NAMES, *expected], end)
    examples = table(put(folder, "a.csv", content), "first", "second", "label")
    same(examples, expected)
    lines = [len(write_csv([row], end).split("\n")) - 1 for row in expected]
    assert [int(one.where.rpartition(":")[2]) for one in examples] == list(
        np.cumsum([2, *lines])[:-1]
    )


@given(expected=rows(ANY), indent=st.sampled_from([None, 2]))
def test_json_objects_come_back_on_a_line_or_several(folder, expected, indent):
    path = put(folder, "a.jsonl", write_jsonl(expected, indent))
    same(table(path, "first", "second", "label"), expected)
    height = 1 if indent is None else 2 + len(NAMES)
    assert [one.where for one in table(path, "first")] == [
        f"{path}:{number * height + 1}" for number in range(len(expected))
    ]


@given(expected=rows(ANY), indent=st.sampled_from([None, 2]))
def test_an_array_of_objects_is_read_as_they_are_alone(folder, expected, indent):
    records = [dict(zip(NAMES, row, strict=True)) for row in expected]
    found = json.dumps(records, indent=indent)
    path = put(folder, "a.json", f"\n {found}\n")
    same(table(path, "first", "second", "label"), expected)
    height = 0 if indent is None else 2 + len(NAMES)
    assert [one.where for one in table(path, "first")] == [
        f"{path}:{number * height + 2 + (indent is not None)}"
        for number in range(len(expected))
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", "gj04\t1\t*\tit is\n"),  # as CoLA's training file
        ("a.tsv", "index\tsentence\tlabel\n0\tit is\t1\n"),
        ("a.json", '{"sentence": "it is", "label": 1}'),
    ],
)
def test_of_several_names_the_first_that_is_there_counts(tmp_path, name, content):
    path = put(tmp_path, name, content)
    (found,) = table(path, "3|text|sentence", label="1|label")
    assert (found.text, found.label) == ("it is", "1")


@pytest.mark.parametrize("compression", COMPRESS)
def test_tables_may_be_compressed(tmp_path, compression):
    content = COMPRESS[compression](b"\xef\xbb\xbfsentence\tlabel\r\nso\t1\r\n")
    path = put(tmp_path, f"a.txt{compression}", content)
    assert table(path, "sentence", label="label") == [("so", None, "1", f"{path}:2")]


def test_the_header_and_the_delimiter_can_be_set(tmp_path):
    path = put(tmp_path, "a.csv", "a;7\n1;2\n")
    form = Form(header=True, delimiter=";")
    found = table(path, "7", label="0", form=form)
    assert found == [("2", None, "1", f"{path}:2")]
    found = table(path, "1", form=form)
    assert [one.text for one in found] == ["2"]
    path = put(tmp_path, "a.odd", 'a\t"b\n')
    assert [one.text for one in table(path, "1", form=Form(delimiter="\t"))] == ['"b']


def test_a_cell_may_be_as_long_as_a_book(tmp_path):
    path = put(tmp_path, "a.csv", f"1,{'word ' * 100_000}\n")
    assert len(table(path, "1")[0].text) == 500_000


def test_labels_of_json_may_be_numbers_and_truth_values(tmp_path):
    lines = ['{"t": "x", "l": 2}', '{"t": "x", "l": true}', '{"t": "x", "l": 0.5}']
    path = put(tmp_path, "a.jsonl", "\n".join(lines))
    assert [one.label for one in table(path, "t", label="l")] == ["2", "true", "0.5"]


NAMED = {"text": "sentence", "label": "label"}
HEAD = "sentence\tlabel\n"


@pytest.mark.parametrize(
    ("name", "content", "settings", "message"),
    [
        ("a.tsv", HEAD + "a\t1\n", {"text": "sentense"}, r"a\.tsv:1: no column 'sent"),
        ("a.tsv", HEAD + "a\t1\n", {"text": "sentense"}, "mean 'sentence'"),
        ("a.tsv", HEAD + "a\t1\n", {"text": "xyz"}, "among 'sentence', 'label'; .*0 "),
        ("a.tsv", HEAD + "a\t1\n", {"text": "2"}, r"a\.tsv:1: no column 2; .* 0 to 1"),
        ("a.tsv", "l\tl\na\t1\n", {"text": "l"}, r"a\.tsv:1: 2 columns 'l'"),
        (
            "a.tsv",
            "a\t1\n",
            NAMED | {"form": Form(header=False)},
            r"a\.tsv:1: .*no header.*0 to 1",
        ),
        ("a.tsv", HEAD + "a\t1\nb\n", NAMED, r"a\.tsv:3: 1 columns, but line 1 has 2"),
        ("a.csv", "a,1\n\nb,1,2\n", {"text": "0"}, r"a\.csv:3: 3 columns, .* 1 has 2"),
        ("a.tsv", HEAD + "a\t1\nb\t \n", NAMED, r"a\.tsv:3: .*'label', is missing"),
        ("a.tsv", "", NAMED, r"a\.tsv: no examples.*at least one"),
        ("a.tsv", HEAD, NAMED, r"a\.tsv: no examples"),
        ("a.jsonl", "\n", NAMED, r"a\.jsonl: no examples"),
        (
            "a.tsv",
            b"sentence\na\n\xe9\n",
            NAMED,
            r"a\.tsv:3: not valid utf-8.*encoding",
        ),
        ("a.csv", 'a,1\n"b,2\nc,3\n', {"text": "0"}, r"a\.csv:2: not CSV.*quotes"),
        ("a.csv", 'a,1\n"b" c,2\n', {"text": "0"}, r"a\.csv:2: not CSV"),
        ("a.csv", "a,1\nb\rc,2\n", {"text": "0"}, r"a\.csv:2: not CSV.*line ends"),
        ("a.xyz", "a", {"text": "0"}, r"a\.xyz: .*delimiter.*\.tsv.*\.jsonl"),
        (
            "a.csv",
            "a",
            {"text": "0", "form": Form(delimiter="||")},
            "delimiter to one character",
        ),
        ("a.jsonl", '{"sentence": "a"}', NAMED, r"a\.jsonl:1: no key 'label' among"),
        ("a.jsonl", '{"sentence": 1, "label": 1}', NAMED, ":1: .*a int, not text"),
        ("a.json", '{"sentence": "a", "label": []}', NAMED, ":1: .*label.* is a list"),
        ("a.json", '{"sentence": "a", "label": null}', NAMED, ":1: .*is missing"),
        ("a.json", '{"sentence": "\\ud800", "label": 1}', NAMED, ":1: .*half a char"),
        ("a.json", '{\n"sentence": 1}\n\n{"a"', {"text": "a"}, r":1: no key 'a'"),
        ("a.jsonl", '{"a": "1"}\n\n{"a"', {"text": "a"}, r"a\.jsonl:3: .*not JSON"),
        ("a.json", "[{}]", NAMED, r"a\.json:1: no key 'sentence'"),
        ("a.json", '["x"]', {"text": "a"}, r"a\.json:1: a str where an object"),
        ("a.json", '[\n{"a": "1"}\n{"a": "2"}]', {"text": "a"}, ":2: neither another"),
        ("a.json", '[\n{"a": "1"},\n', {"text": "a"}, ":2: neither another"),
        ("a.json", '[{"a": "1"}]\n{"a": "2"}', {"text": "a"}, ":1: neither another"),
        ("a.json", '[\n{"a": "1"},\n{"b"', {"text": "a"}, ":3: .*not JSON"),
        ("a.json", "[]", {"text": "a"}, r"a\.json:1: .*not JSON"),
        ("a.json", '{"a": "1"}', {"text": "b|c"}, r":1: no key 'b\|c' among 'a'"),
        ("a.tsv", "a\tb\n", {"text": "c|d"}, r":1: no column 'c\|d' among"),
    ],
)
def test_mistakes_are_named_with_file_and_line(
    tmp_path, name, content, settings, message
):
    with pytest.raises(UserError, match=message):
        table(put(tmp_path, name, content), **settings)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.tsv: cannot be read"):
        table(str(tmp_path / "none.tsv"), "0")


def labelled(tmp_path, *labels):
    lines = "".join(f"text\t{label}\n" for label in labels)
    return table(put(tmp_path, "l.tsv", lines), "0", label="1")


def test_labels_are_sorted_by_number_only_if_all_are(tmp_path):
    assert labels_of(labelled(tmp_path, "10", "9", "-1", "9")) == ["-1", "9", "10"]
    assert labels_of(labelled(tmp_path, "10", "9", "x")) == ["10", "9", "x"]


def test_label_ids_follow_the_labels_of_training(tmp_path):
    examples = labelled(tmp_path, "b", "a", "b")
    ids = label_ids(examples, ["a", "b"])
    assert ids.tolist() == [1, 0, 1]
    assert ids.dtype == np.int32
    with pytest.raises(UserError, match=r"l\.tsv:2: label 'a' .*are 'b', 'c'; correct"):
        label_ids(examples, ["b", "c"])
    with pytest.raises(UserError, match=r"'19', \.\.\. \(30 in all\)"):
        label_ids(examples, list(map(str, range(30))))


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_numbers_come_back(folder, numbers):
    found = to_numbers(labelled(folder, *numbers))
    assert found.dtype == np.float32
    assert found.tolist() == numbers


@pytest.mark.parametrize("label", ["3,5", "nan", "inf", "high"])
def test_what_is_no_number_is_named(tmp_path, label):
    with pytest.raises(UserError, match=rf"l\.tsv:2: label '{label}' is not a number"):
        to_numbers(labelled(tmp_path, "1.5", label))


@pytest.mark.parametrize("use", [labels_of, to_numbers, lambda e: label_ids(e, ["1"])])
def test_examples_read_without_labels_say_so(tmp_path, use):
    path = put(tmp_path, "a.tsv", "x\ty\n")
    with pytest.raises(UserError, match=r"a\.tsv:1: read without labels; name"):
        use(table(path, "0"))


@given(
    st.lists(
        st.tuples(ANY, st.lists(ANY, min_size=2, max_size=6), st.integers(0, 1)),
        min_size=1,
    )
)
def test_choices_of_any_number_come_back_from_json(folder, expected):
    lines = (
        json.dumps({"context": context, "endings": endings, "label": label}) + "\n"
        for context, endings, label in expected
    )
    path = put(folder, "c.jsonl", "".join(lines))
    assert choices(path, ["context"], ["endings"], "label") == [
        Choice(context, tuple(endings), label, f"{path}:{number}")
        for number, (context, endings, label) in enumerate(expected, start=1)
    ]


SWAG = ["ending0", "ending1", "ending2", "ending3"]


def test_a_table_like_swag_begins_every_ending_alike(tmp_path):
    names = ["", "sent1", "sent2", *SWAG, "label"]
    row = ["7", "He sat, then.", "He", "ate.", "slept.", "ran.", "", "2"]
    path = put(tmp_path, "a.csv", write_csv([names, row]))
    (found,) = choices(path, ["sent1"], SWAG, "label", start="sent2")
    endings = ("He ate.", "He slept.", "He ran.", "He")
    assert found == ("He sat, then.", endings, 2, f"{path}:2")
    (found,) = choices(path, ["sent1", "sent2"], SWAG)
    assert found[0::2] == ("He sat, then. He", None)


@pytest.mark.parametrize(
    ("content", "endings", "message"),
    [
        ("c\ta\tb\t2\n", "12", r"a\.tsv:1: label '2' .* use 0 to 1"),
        ("c\ta\tb\t1\nc\ta\tb\tx\n", "12", r"a\.tsv:2: label 'x'"),
        ("c\ta\tb\t-1\n", "12", "label '-1'"),
        ("c\ta\tb\t\n", "12", r"a\.tsv:1: the label, column '3', is missing"),
        ("c\ta\tb\t0\n", "1", r"a\.tsv:1: 1 ending\(s\)"),
    ],
)
def test_mistakes_in_choices_are_named(tmp_path, content, endings, message):
    with pytest.raises(UserError, match=message):
        choices(put(tmp_path, "a.tsv", content), ["0"], list(endings), "3")


@pytest.mark.parametrize("endings", ['["a"]', "[]", '["a", 1]', "7"])
def test_mistakes_in_a_list_of_endings_are_named(tmp_path, endings):
    content = f'{{"c": "x", "endings": {endings}}}'
    with pytest.raises(UserError, match=r"a\.json:1: .*(to choose from|not text)"):
        choices(put(tmp_path, "a.json", content), ["c"], ["endings"])


# Counted with wc and, for .csv, the csv module alone; a header is no example.
@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "columns", "count", "labels"),
    [
        ("SST-2/train.tsv.xz", "sentence - label", 67349, "0 1"),
        ("SST-2/dev.tsv", "sentence - label", 872, "0 1"),
        ("SST-2/test.tsv", "sentence - -", 1821, None),
        ("CoLA/train.tsv.xz", "3 - 1", 8551, "0 1"),
        ("CoLA/ood_dev.tsv", "3 - 1", 516, "0 1"),
        (
            "QNLI/dev.tsv.xz",
            "question sentence label",
            5463,
            "entailment not_entailment",
        ),
        ("QNLI/test.tsv.xz", "question sentence -", 5463, None),
        (
            "SNLI-subset/all_combined_train.tsv.xz",
            "sentence1 sentence2 gold_label",
            8330,
            "contradiction entailment neutral",
        ),
        ("NSMC/ratings_test.txt.xz", "document - label", 10000, "0 1"),
        ("KorChatbot/ChatbotData.csv.xz", "Q - label", 11823, "0 1 2"),
        ("paraKQC/paraKQC_v1.txt.xz", "2 - 1", 10000, "0 1 2 3"),
    ],
)
def test_real_classification_sets_are_read_whole(shared, name, columns, count, labels):
    text, pair, label = (None if name == "-" else name for name in columns.split())
    examples = table(str(shared / "finetune" / name), text or "", pair, label)
    assert len(examples) == count
    assert all(one.text.strip() for one in examples)
    assert (pair is None) == (examples[0].pair is None)
    if labels:
        assert labels_of(examples) == labels.split()


@pytest.mark.shared
def test_columns_with_a_hash_and_a_byte_order_mark_are_found(shared):
    path = str(shared / "finetune/hf_fixtures/MRPC_train.tsv")
    examples = table(path, "#1 String", "#2 String", "Quality")
    assert len(examples) == 6
    assert examples[0].pair and examples[0].pair.startswith('" The foodservice')
    assert labels_of(examples) == ["0", "1"]


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "columns", "count", "total"),
    [
        ("STS-B/stsb-en-dev.csv", "0 1 2", 1500, 3545.861333),
        ("STS-B/stsb-en-test.csv", "0 1 2", 1379, 3596.317),
        ("STS-B/stsb-en-train.csv.xz", "0 1 2", 5749, 15528.043397),
        ("KorSTS/sts-test.tsv", "sentence1 sentence2 score", 1379, 3596.317),
        ("hf_fixtures/STS-B_train.tsv", "sentence1 sentence2 score", 9, 28.0),
    ],
)
def test_real_scores_are_read_whole(shared, name, columns, count, total):
    path = str(shared / "finetune" / name)
    scores = to_numbers(table(path, *columns.split()))
    assert len(scores) == count
    np.testing.assert_allclose(scores.sum(dtype=np.float64), total, rtol=1e-6)
    assert scores.min() >= 0 and scores.max() <= 5


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "count"), [("full_data.tsv.xz", 2776), ("fold_0_dev.tsv", 556)]
)
def test_codah_is_read_whole(shared, name, count):
    path = str(shared / "finetune/CODAH" / name)
    found = choices(path, ["1"], list("2345"), "6")
    assert len(found) == count
    assert {one.label for one in found} == {0, 1, 2, 3}
    assert all(len(one.endings) == 4 for one in found)


@pytest.mark.shared
def test_swag_is_read_from_json_objects_over_several_lines(shared):
    path = str(shared / "finetune/hf_fixtures/swag_sample.json")
    found = choices(path, ["sent1"], SWAG, "label", start="sent2")
    assert len(found) == 10
    assert [one.label for one in found[:5]] == [0, 3, 1, 3, 0]
    assert all(re.match("A drum line ", end) for end in found[0].endings)
    assert found[1].where == f"{path}:9"
