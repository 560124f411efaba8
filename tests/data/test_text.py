"""Text files in any encoding, and lines of any length."""

import codecs
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.config import Data
from bert_jax.data import corpus, text
from bert_jax.errors import UserError

SAMPLES = {
    "cp949": "오늘은 영화를 보았다. 참 좋은 영화였다.\n배우들의 연기가 훌륭했다.\n",
    "shift_jis": "私は昨日東京に行きました。\nとても楽しかったです。\n",
    "euc_jp": "私は昨日東京に行きました。\nとても楽しかったです。\n",
    "gb18030": "我昨天去了北京，那里的天气很好。\n我们看了长城，也吃了烤鸭。\n",
    "big5": "我昨天去了北京，那裡的天氣很好。\n我們看了長城，也吃了烤鴨。\n",
    "cp1251": "Я вчера ездил в Москву.\nПогода была хорошая.\n",
    "koi8-r": "Я вчера ездил в Москву.\nПогода была хорошая.\n",
    "latin-1": "Le garçon est allé à l'école.\nIl a été très étonné.\n",
    "cp1252": "Er sagte “schön” – und ging.\nDas Café war “zu”.\n",
    "utf-16-le": "오늘은 영화를 보았다.\nA film.\n",
    "utf-16-be": "我昨天去了北京 yesterday.\nThe Great Wall.\n",
}
MARKS = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}


def read(path, encoding="utf-8", **options):
    return list(text.lines(str(path), encoding, Counter(), **options))


@pytest.mark.parametrize("encoding", SAMPLES)
def test_a_file_in_another_encoding_is_refused_and_read_when_named(tmp_path, encoding):
    path = tmp_path / "a.txt"
    path.write_bytes(SAMPLES[encoding].encode(encoding) * 5)
    with pytest.raises(UserError, match=rf"a\.txt.*data\.encoding={encoding}\b"):
        read(path)
    with pytest.raises(UserError, match=r"a\.txt"):
        whole = text.read(str(path))
        assert "\0" not in whole, "a.txt"
        pytest.fail("read as UTF-8")
    assert read(path, encoding) == SAMPLES[encoding].split("\n")[:-1] * 5
    assert text.read(str(path), encoding) == SAMPLES[encoding] * 5


@pytest.mark.parametrize("encoding", MARKS)
@pytest.mark.parametrize("stated", ["utf-8", "cp949"])
def test_a_byte_order_mark_decides(tmp_path, encoding, stated):
    path = tmp_path / "a.txt"
    path.write_bytes(MARKS[encoding] + "가 é\nb".encode(encoding))
    assert read(path, stated) == ["가 é", "b"]
    assert text.read(str(path), stated) == "가 é\nb"


def test_few_invalid_lines_are_counted_and_many_refused(tmp_path):
    path = tmp_path / "a.txt"
    bad = "영화를 보았다".encode("cp949") + b"\n"
    good = "영화를 보았다\n".encode()
    counts = Counter()
    path.write_bytes(bad + good * 2)
    assert list(text.lines(str(path), "utf-8", counts)) == [
        None,
        *["영화를 보았다"] * 2,
    ]
    assert counts == {"bad_utf8_lines": 1}
    assert "\ufffd" in read(path, replace=True)[0]
    path.write_bytes(b"plain\n" * 300 + bad * 2)
    assert read(path).count(None) == 2
    path.write_bytes(b"plain\n" * 200 + bad * 100)
    with pytest.raises(UserError, match=r"100 of 300 lines are not valid.*cp949"):
        read(path)


def test_a_wrongly_stated_encoding_is_corrected(tmp_path):
    (tmp_path / "a.txt").write_text("영화를 보았다. 좋았다.\n" * 9, "utf-8")
    with pytest.raises(UserError, match=r"not valid shift_jis.*encoding=utf-8"):
        read(tmp_path / "a.txt", "shift_jis")


@given(
    st.text(
        "ab .。!字e\u0301\u200d\U0001f468\U0001f469\U0001f1e6\U0001f3fb", max_size=300
    ),
    st.integers(1, 40),
)
@settings(deadline=None)
def test_pieces_are_the_line_and_bounded(line, limit):
    found = list(text.pieces(line, limit))
    assert "".join(found) == line
    assert max(map(len, found)) <= limit


def test_pieces_end_where_a_reader_would_pause():
    line = "One two. Three four. Five six seven"
    assert list(text.pieces(line, 30))[0] == "One two. Three four. Five six "
    assert list(text.pieces("x" * 8 + "e\u0301" * 8, 16))[0] == "x" * 8 + "e\u0301" * 4
    assert list(text.pieces("好。" * 20, 16))[0] == "好。" * 8


@pytest.mark.parametrize("character", ["a", "字", "\U0001f600"])
@pytest.mark.parametrize("limit", [0, 1 << 16])
def test_time_is_linear_in_a_line(tmp_path, character, limit):
    def seconds(line, count):
        path = tmp_path / "a.txt"
        path.write_text(line * count, "utf-8")
        start = time.process_time()
        assert sum(map(len, read(path, limit=limit))) >= 2_000_000
        return time.process_time() - start

    many = min(seconds(character * 999 + "\n", 2003) for _ in range(2))
    assert seconds(character * 1000, 2003) < 3 * many + 0.05


WIKI = (
    '<doc id="12" url="https://x" title="A">\nA\n\nOne.\n\nTwo.\n\n</doc>\n'
    'lost\n<doc id="13" title="B">\nB\n</doc>\n'
)


@pytest.mark.parametrize("name", ["AA/wiki_00", "AA/wiki_01.bz2", "AB/a.txt"])
def test_files_of_wikiextractor_are_documents(tmp_path, name):
    import bz2

    path = tmp_path / name
    path.parent.mkdir()
    content = WIKI.encode()
    path.write_bytes(bz2.compress(content) if name.endswith("bz2") else content)
    (path.parent / "README").write_text("not read")
    skipped = Counter()
    found = list(corpus.documents(Data(source=(str(tmp_path),)), skipped))
    assert found == [["A", "One.", "Two."], ["B"]]
    assert skipped == {"lines_outside_documents": 1}


def test_a_file_without_suffix_is_text_and_json_of_wikiextractor_is_read(tmp_path):
    (tmp_path / "text8").write_text("anarchism originated\n")
    (tmp_path / "wiki_00").write_text('{"id": "1", "text": "A\\n\\nOne."}\n')
    data = Data(source=tuple(str(tmp_path / name) for name in ("text8", "wiki_00")))
    assert list(corpus.documents(data)) == [["anarchism originated"], ["A", "One."]]
