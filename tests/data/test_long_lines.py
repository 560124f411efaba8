"""Work and memory do not depend on how long a line, a word or a record is."""

import json
import re
import sys
import tracemalloc
from collections import Counter

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_jax import config
from bert_jax.data import blocks, corpus, long_texts, text, tokenizer_training
from bert_jax.data.tokenizer import train_tokenizer
from bert_jax.data.word_cache import divide, skip_space
from bert_jax.errors import UserError

LINES = {
    "english": "The lazy dog, said the fox, is not quick at all today. ",
    "chinese": "中国的天气很好我们去了北京看长城。",
    "korean": "오늘은 영화를 보았다 참 좋은 영화였다. ",
    "dna": "GATTACAACGTTAGCCATGCATTACGGACT",
}


def documents(path):
    return corpus.documents(config.Data(source=(str(path),)))


def write(path, content):
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": [content]}), path)
    elif path.suffix == ".jsonl":
        record = json.dumps({"id": 1, "text": content}, ensure_ascii=False)
        path.write_text(record + "\n", "utf-8")
    else:
        path.write_text(content, "utf-8")


def calls(work):
    """Function calls of Python and of C in it."""
    count = 0

    def profile(frame, event, arg):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "byte_bpe", "unigram"])
def test_work_does_not_depend_on_the_line_length(kind):
    tokenizer = train_tokenizer(config.Tokenizer(kind=kind), 300, LINES.values())

    for line in LINES.values():

        def work(size, line=line):
            content = line * (66_000 // len(line))
            cut = list(text.pieces(content, size))
            blocks.encode(["\n".join(cut).encode()], tokenizer, "en")

        assert calls(lambda: work(1 << 16)) < 2 * calls(lambda: work(500))  # noqa: B023


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".parquet"])
def test_a_long_record_is_read_in_little_memory(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(corpus, "_DOCUMENT_LIMIT", 1 << 18)
    content = "\U0001f600" + LINES["english"] * 72_000
    write(tmp_path / f"a{suffix}", content)
    size = len(content)
    next(documents(tmp_path))  # imports
    tracemalloc.start()
    try:
        read = sum(len("".join(document)) for document in documents(tmp_path))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0.99 * size < read <= size
    assert peak < (size if suffix == ".jsonl" else 0) * 1.3 + 3_500_000


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_long_record_has_the_lines_of_the_text(tmp_path, suffix):
    content = "\U0001f600 é\\\"'\n中文\t \n" * 60_000
    write(tmp_path / f"a{suffix}", content)
    found = [line for document in documents(tmp_path) for line in document]
    assert found == [line.strip() for line in content.split("\n")[:-1]]


ANY = st.text('ab\\"/\n\u4e2d\U0001f600\ud83d\ude00 ', max_size=40)


@given(content=ANY, ascii=st.booleans(), other=ANY)
def test_json_in_pieces_is_what_json_reads(content, ascii, other):
    if not ascii:
        content, other = (re.sub("[\ud800-\udfff]", "", x) for x in (content, other))
    line = json.dumps({other: 1, "text": content, "n": [content]}, ensure_ascii=ascii)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_texts, "LONG", 0)
        patch.setattr(long_texts, "_KEPT", len("text"))
        short = long_texts._PIECE.pattern.replace(b"64", b"3").replace(b"4096", b"2")
        patch.setattr(long_texts, "_PIECE", re.compile(short, re.S))
        found = long_texts.read_json(line.encode(), "a")["text"]
        assert "".join(found) == json.loads(line)["text"]


@pytest.mark.parametrize("end", ["", '"', '"}}', '\\x"}', '\\u12"}', '\t"}'])
def test_a_long_record_that_is_no_json_is_named(tmp_path, end):
    (tmp_path / "a.jsonl").write_text('{"text": "' + "x" * 2_000_000 + end)
    with pytest.raises(UserError, match="a.jsonl, line 1: not JSON"):
        list(documents(tmp_path))


@given(st.lists(st.text("ab é字 ", max_size=60), max_size=6))
def test_texts_to_train_on_are_cut_between_words(texts):
    found = list(tokenizer_training.collapsed(texts, (8, 3)))
    assert max(map(len, found), default=0) <= 8
    words = [word for text in found for word in text.split()]
    whole = [piece for t in texts for w in t.split() for piece in text.pieces(w, 3)]
    assert words == whole


def test_distinct_words_to_train_on_are_bounded(monkeypatch):
    monkeypatch.setattr(tokenizer_training, "_DISTINCT", 10_000)
    many = [" ".join(str(n) for n in range(i, i + 100)) for i in range(0, 20_000, 100)]
    for texts in (many, [" ".join(many)], ["".join(many)]):
        words, step = tokenizer_training._words(texts)
        assert step > 1
        assert 2_000 < sum(map(len, words)) < 10_000
    assert tokenizer_training._words(["a b a"]) == (Counter(a=2, b=1), 1)


@given(st.text("ab  字\U0001f600", max_size=30), st.data())
def test_tokens_are_divided_by_their_first_letter(content, data):
    ends = st.integers(0, len(content))
    cuts = [0, *sorted(data.draw(st.lists(ends))), len(content)]
    spans = list(zip(cuts, cuts[1:], strict=False))
    borders = sorted(data.draw(st.lists(ends, max_size=4)))
    found = divide(content, list(range(len(spans))), spans, borders)
    starts = [skip_space(content, *span)[0] for span in spans]
    edges = [-1, *borders, len(content) + 1]
    assert sum(found, []) == list(range(len(spans)))
    for part, low, high in zip(found, edges, edges[1:], strict=False):
        assert all(low <= max(starts[: i + 1]) < high for i in part)
