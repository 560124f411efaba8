import dataclasses
import gzip
import json
import lzma
from collections import Counter

import pytest
import zstandard

from bert_jax.config import Data
from bert_jax.data import corpus, python_docs
from bert_jax.errors import UserError

TEXT = "One line.\nAnother.\n\n\nSecond document, caf\u00e9.\n"
DOCUMENTS = [["One line.", "Another."], ["Second document, caf\u00e9."]]
COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def read(*source, skipped=None, **fields):
    data = dataclasses.replace(Data(), source=tuple(map(str, source)), **fields)
    return list(corpus.documents(data, skipped))


def records(key="text"):
    return ["\n".join(document) for document in DOCUMENTS], key


def write_jsonl():
    texts, key = records()
    return "".join(json.dumps({key: text}) + "\n" for text in texts).encode()


def write_parquet():
    import io

    import pyarrow
    import pyarrow.parquet

    texts, key = records()
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({key: texts, "n": [1, 2]}), file)
    return file.getvalue()


WRITE = {".txt": TEXT.encode, ".jsonl": write_jsonl, ".parquet": write_parquet}


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("kind", WRITE)
def test_every_format_gives_the_same_documents(tmp_path, kind, compression):
    path = tmp_path / f"a{kind}{compression}"
    path.write_bytes(COMPRESS[compression](WRITE[kind]()))
    assert read(path) == DOCUMENTS


def test_a_directory_and_a_glob_take_files_in_name_order(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.txt", "a.txt", "sub/c.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "notes.md").write_text("not read")
    assert read(tmp_path) == [["a.txt"], ["b.txt"], ["sub/c.txt"]]
    assert read(tmp_path / "*.txt") == [["a.txt"], ["b.txt"]]
    assert read(tmp_path / "b.txt", tmp_path / "a.txt") == [["b.txt"], ["a.txt"]]


def test_bad_utf8_and_empty_documents_are_counted(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfgood\nb\xffad\nalso good\n")
    (tmp_path / "b.jsonl").write_text(
        '{"text": " "}\n{"text": null}\n{"text": "\\ud800"}\n{"text": "x"}\n'
    )
    skipped = Counter()
    assert read(tmp_path, skipped=skipped) == [["good", "also good"], ["x"]]
    assert skipped == {"bad_utf8_lines": 2, "empty_documents": 2}


def test_text_without_a_line_end_is_cut_and_loses_nothing(tmp_path):
    word = "\u00e9\u00e8\u00ea\u00eb " * 300_000
    (tmp_path / "a.txt").write_text(word, "utf-8")
    (document,) = read(tmp_path / "a.txt")
    assert len(document) > 1
    assert max(map(len, document)) < 1 << 20
    assert " ".join(document).split() == word.split()


def test_a_file_without_blank_lines_is_cut_into_documents(tmp_path):
    lines = [f"{number} " + "x" * 1000 for number in range(9_000)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    skipped = Counter()
    found = read(tmp_path / "a.txt", skipped=skipped)
    assert [line for document in found for line in document] == lines
    assert skipped == {"documents_cut": len(found) - 1}
    assert len(found) == 3


@pytest.mark.parametrize("kind", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("damage", ["cut", "garbled"])
def test_damaged_files_are_named(tmp_path, kind, damage):
    content = COMPRESS[kind]("".join(f"line {n}\n" for n in range(5000)).encode())
    half = len(content) // 2
    bad = content[:half] if damage == "cut" else b"\x00" * 40 + content[40:]
    path = tmp_path / f"a.txt{kind}"
    path.write_bytes(bad)
    with pytest.raises(UserError, match=rf"a\.txt\{kind}: corrupt or cut short"):
        read(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "x"}\n{"body": "y", "id": 3}\n', "line 2.*body, id"),
        ("a.jsonl", '{"text": "x"}\n["y"]\n', "line 2.*a list"),
        ("a.jsonl", '{"text": 7}\n', "line 1.*a int"),
        ("a.jsonl", '{"text"\n', "line 1: not JSON"),
        ("a.parquet", "no parquet", "a.parquet: damaged Parquet"),
        ("a.txt", "\n \n\t\n", "a.txt: no documents"),
        ("a.csv", "x", "a.csv has an unknown suffix.*txt"),
    ],
)
def test_unusable_files_are_named_with_a_remedy(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read(tmp_path / name)


def test_a_parquet_file_without_the_key_names_its_columns(tmp_path):
    (tmp_path / "a.parquet").write_bytes(write_parquet())
    with pytest.raises(UserError, match=r"a\.parquet.*text_key='body'.*text, n"):
        read(tmp_path / "a.parquet", text_key="body")


@pytest.mark.parametrize(
    ("source", "message"),
    [("none.txt", "no such file"), ("*.txt", "matches no file"), (".", "holds no")],
)
def test_a_source_without_files_is_named(tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"config.data.source=.*{message}"):
        read(source)


def test_python_docs_are_prose_and_repeatable(monkeypatch):
    monkeypatch.setattr(python_docs, "_LIMIT", 600_000)
    read_anew = python_docs.documents.__wrapped__
    found = read_anew()
    lines = [line for document in found for line in document]
    assert 600_000 <= sum(map(len, lines)) < 800_000
    assert len(set(lines)) == len(lines)
    assert not any(">>>" in line[:5] for line in lines)
    assert read_anew() == found


def test_tensorflow_datasets_are_read_by_name(tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    from tests import tfds_set

    features = {"text": tfds.features.Text()}
    texts = [{"text": "\n".join(document)} for document in DOCUMENTS]
    tfds_set.write(tmp_path, "tiny_text/1.0.0", features, {"test": texts})
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert read("tfds:tiny_text:test") == DOCUMENTS
    with pytest.raises(UserError, match=r"tfds:tiny_text:test.*text_key='body'.*text"):
        read("tfds:tiny_text:test", text_key="body")
    with pytest.raises(UserError, match="tfds:tiny_text:nosplit"):
        read("tfds:tiny_text:nosplit")
