"""Text files of any encoding, and their lines, however long.

A byte order mark decides; without one `config.data.encoding` does.
"""

import codecs
import collections
import functools
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from bert_jax.data.decompress import chunks
from bert_jax.errors import UserError

_MARKS = (  # the longer first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
Line = TypeVar("Line", str, bytes | bytearray)
_PIECE = 1 << 18  # [bytes] decoded at a time
_SAMPLE = 1 << 14  # [bytes] that a guess of the encoding looks at
_INVALID = "\udcff"  # no text holds it, and it is not valid in UTF-8 either
_INVALID_RUN = re.compile("[\ud800-\udfff]+")
# The last of each in a range: greedy up to what follows no more.
_SENTENCE_END = re.compile(r".*(?:[.!?…][\"'”’)\]]*\s+|[。！？｡][”’」』）]*)", re.S)
_SPACE = re.compile(r".*\s", re.S)
_JOINER = "\u200d"
_FLAG = re.compile("[\U0001f1e6-\U0001f1ff]")
_EXTENDS = re.compile("[\u1160-\u11ff\ud7b0-\ud7fb\U0001f3fb-\U0001f3ff]")


def _mark_invalid(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return _INVALID, error.end


codecs.register_error("bert_jax.invalid", _mark_invalid)


def lines(
    path: str,
    encoding: str,
    counts: Counter[str],
    limit: int = 0,
    replace: bool = False,
) -> Iterator[str | None]:
    """Stream the lines of a text file, decompressed, without their line ends.

    Time is linear in the size of the file, whatever the lengths of its lines.

    Args:
      path: file, also compressed.
      encoding: codec of the file if it has no byte order mark.
      counts: `bad_utf8_lines` counts the lines that are not valid in the encoding.
      limit: [characters] above which a line is yielded as several, see `pieces`; 0
        for none.
      replace: yield an invalid line with U+FFFD for the faulty bytes.

    Yields:
      Lines; None for an invalid one unless `replace`.

    Raises:
      UserError: the file cannot be read, is damaged, or most of its lines beyond
        ASCII are not valid in the encoding.
    """
    split = functools.partial(split_lines, limit=limit)
    for line, valid in _checked(path, encoding, counts, split):
        if valid:
            yield line
        else:
            yield _INVALID_RUN.sub("\ufffd", line) if replace else None


def utf8_lines(
    path: str, encoding: str, counts: Counter[str]
) -> Iterator[bytes | bytearray | None]:
    """Stream the lines of a text file as UTF-8, which takes the least memory.

    Args, Yields and Raises: as `lines`.
    """
    for line, valid in _checked(path, encoding, counts, _split_utf8):
        yield line if valid else None


def _checked(
    path: str,
    encoding: str,
    counts: Counter[str],
    split: Callable[[Iterable[str]], Iterator[Line]],
) -> Iterator[tuple[Line, bool]]:
    """Lines, and whether each is valid in the file's encoding."""
    found = chunks(path)
    head = b""
    for chunk in found:
        head += chunk
        if len(head) >= 4:
            break
    encoding, head = _marked(head, encoding)
    wide = _guess_wide(head[:_SAMPLE])
    if wide and codecs.lookup(encoding).name == "utf-8":
        what = f"{path}: not {encoding}, it is full of zero bytes"
        raise invalid(what, path, encoding, head)
    total = bad = beyond = 0
    sample = b""
    decoded = _decode(itertools.chain([head], found), encoding)
    for line in split(decoded):
        total += 1
        if line.isascii():
            yield line, True
            continue
        if _is_valid(line):
            beyond += 1
            yield line, True
            continue
        bad += 1
        counts["bad_utf8_lines"] += 1
        if len(sample) < _SAMPLE:
            start = line[:_SAMPLE]
            if isinstance(start, str):
                start = start.encode(errors="surrogateescape")
            sample += start + b"\n"
        if bad >= 1024 and bad & (bad - 1) == 0:
            _check(path, encoding, (total, beyond, bad), sample, head)
        yield line, False
    _check(path, encoding, (total, beyond, bad), sample, head)


def _is_valid(line: str | bytes | bytearray) -> bool:
    try:
        if isinstance(line, str):
            line.encode()
        else:
            collections.deque(utf8_pieces(line, "strict"), 0)
    except UnicodeError:
        return False
    return True


def utf8_pieces(
    content: bytes | bytearray | memoryview, errors: str = "surrogateescape"
) -> Iterator[str]:
    """Decode UTF-8 in pieces of bounded size."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors)
    for start in range(0, len(content), _PIECE):
        yield decoder.decode(content[start : start + _PIECE])
    yield decoder.decode(b"", True)


def _check(
    path: str, encoding: str, found: tuple[int, int, int], sample: bytes, head: bytes
) -> None:
    total, beyond, bad = found
    if bad <= beyond or bad <= total / 2 and bad < max(2, total / 100):
        return
    if codecs.lookup(encoding).name != "utf-8":  # then a bad line's bytes are gone
        first = re.search(rb"[\x80-\xff]", head)
        sample = head[first.start() & ~3 :] if first else head
    what = f"{path}: {bad:,} of {total:,} lines are not valid {encoding}"
    raise invalid(what, path, encoding, sample)


def _decode(found: Iterable[bytes], encoding: str) -> Iterator[str]:
    utf8 = codecs.lookup(encoding).name == "utf-8"
    errors = "surrogateescape" if utf8 else "bert_jax.invalid"
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    for chunk in found:
        yield decoder.decode(chunk)
    yield decoder.decode(b"", True)


def split_lines(texts: Iterable[str], limit: int) -> Iterator[str]:
    """Lines of a text given in parts of any size; longer ones cut as by `pieces`."""
    waiting: list[str] = []
    size = 0
    for text in texts:
        first, *others = text.split("\n")
        waiting.append(first)
        size += len(first)
        for line in others:
            whole = "".join(waiting)  # of which no second copy is kept meanwhile
            waiting, size = [line], len(line)
            yield from pieces(whole, limit)
        if limit and size > 2 * limit:
            *cut, rest = pieces("".join(waiting), limit)
            yield from cut
            waiting, size = [rest], len(rest)
    if size:
        yield from pieces("".join(waiting), limit)


def _split_utf8(texts: Iterable[str]) -> Iterator[bytes | bytearray]:
    waiting = bytearray()  # grows in place, unlike a list whose parts are joined
    for text in texts:
        first, *others = text.encode(errors="surrogateescape").split(b"\n")
        waiting += first
        if others:
            yield waiting
            waiting = bytearray(others.pop())
            yield from others
    if waiting:
        yield waiting


def pieces(line: str, limit: int) -> Iterator[str]:
    """Cut a line where it does least harm, if it is longer than a limit.

    In the last eighth of each piece: after the end of a sentence, else after a space,
    else between two characters that do not belong together.

    Args:
      line: text.
      limit: [characters] of the longest piece; 0 for no limit.

    Yields:
      One or more pieces, which are the line when joined.
    """
    start = 0
    while limit and len(line) - start > limit:
        end = start + limit
        near = max(end - limit // 8, start + 1)
        for place in (_SENTENCE_END, _SPACE):
            if match := place.match(line, near, end):
                end = match.end()
                break
        else:
            end = _between(line, near, end)
        yield line[start:end]
        start = end
    yield line[start:]


def _between(line: str, near: int, end: int) -> int:
    """The last place from `near` to `end` that is not inside a grapheme cluster."""
    for place in range(end, max(near, end - 256), -1):
        before, after = line[place - 1], line[place]
        joined = (
            unicodedata.category(after)[0] == "M"
            or before == _JOINER
            or after == _JOINER
            or _EXTENDS.match(after)
        )
        flags = _FLAG.match(before) and _FLAG.match(after)
        if not (joined or flags):
            return place
    return end


def _marked(content: bytes, encoding: str) -> tuple[str, bytes]:
    """Return the encoding by the byte order mark, and the bytes after the mark."""
    for mark, name in _MARKS:
        if content.startswith(mark):
            return name, content[len(mark) :]
    return encoding, content


def read(path: str, encoding: str = "utf-8") -> str:
    """Return the content of a file, decompressed, without byte order mark.

    Args:
      path: file, also compressed; held in memory.
      encoding: codec of the file if it has no byte order mark.

    Raises:
      UserError: the file cannot be read, is damaged or is not valid in the encoding;
        the message names the line and the likely encoding.
    """
    encoding, content = _marked(b"".join(chunks(path)), encoding)
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        before = content[: error.start].decode(encoding, "replace")
        line = before.count("\n") + 1
        what = f"{path}:{line}: not valid {encoding} ({error.reason})"
        raise invalid(what, path, encoding, content[error.start & ~3 :]) from None


def invalid(what: str, path: str, encoding: str, sample: bytes) -> UserError:
    """Return the error for a file that is not in its stated encoding.

    Args:
      what: first part of the message: file, line and fault.
      path: file, for the command that converts it.
      encoding: stated one.
      sample: bytes of the file, from the fault on.
    """
    likely = guess(sample)
    if likely and codecs.lookup(likely) != codecs.lookup(encoding):
        return UserError(
            f"{what}; it looks like {likely}: set --config.data.encoding={likely}, or "
            f"convert the file with `iconv -f {likely} -t utf-8`"
        )
    return UserError(
        f"{what}; if {path} is text, set --config.data.encoding to its encoding, or "
        "convert it to utf-8"
    )


def guess(sample: bytes) -> str | None:
    """Return the encoding in which bytes make the most ordinary text, or None.

    Args:
      sample: bytes of a text, from any place in it; some may be cut characters.
    """
    sample = sample[:_SAMPLE]
    wide = _guess_wide(sample)
    if wide or b"\0" in sample:
        return wide
    best, name = max((_ordinary(sample, name), name) for name in _ORDINARY)
    if best < 0.6:
        return None
    if name == "cp1252" and not re.search(rb"[\x80-\x9f]", sample):
        return "latin-1"
    return name


def _guess_wide(sample: bytes) -> str | None:
    """UTF-16 by the zero bytes of its spaces and ASCII letters."""
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    if max(even, odd) < 0.02 * len(sample) or min(even, odd) * 10 > max(even, odd):
        return None
    return "utf-16-le" if odd > even else "utf-16-be"


_KANA = "[ぁ-ヶー、。]"
# What most characters beyond ASCII are in ordinary text: a pattern, or the lead bytes
# of the common ones; and a weight. Hangul and kana weigh more than Chinese characters,
# since their bytes stand for common ones of those.
_ORDINARY: dict[str, tuple[str | tuple[str, int, int], float]] = {
    "utf-8": ("[^\0-\x7f\ufffd]", 1.3),
    "cp949": ("[가-힣]", 1.3),
    "shift_jis": (_KANA, 2.5),
    "euc_jp": (_KANA, 2.5),
    "gb18030": (("gb2312", 0xA1, 0xD7), 1.0),
    "big5": (("big5", 0xA1, 0xC6), 1.0),
    "cp1251": ("[а-яё]", 1.0),
    "koi8-r": ("[а-яё]", 1.0),
    "cp1252": ("(?<![^\0-\x7f])[¡-ÿ‘’“”–—…€](?![^\0-\x7f])", 1.0),
}


def _ordinary(sample: bytes, encoding: str) -> float:
    """Return the share of ordinary characters beyond ASCII, 0 to about 1."""
    text = sample.decode(encoding, "replace")
    beyond = re.sub("[\0-\x7f]+", "", text)
    if not beyond:
        return 0.0
    common, weight = _ORDINARY[encoding]
    if isinstance(common, str):
        count = len(re.findall(common, text))
    else:
        codec, first, last = common
        leads = (char.encode(codec, "ignore")[:1] or b"\0" for char in beyond)
        count = sum(first <= ord(lead) <= last for lead in leads)
    share = weight * (count - beyond.count("\ufffd")) / len(beyond)
    return min(share, 1.05 if weight > 1 else 1.0)
