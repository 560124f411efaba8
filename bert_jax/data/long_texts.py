"""Texts of records of any length, in little more memory than their UTF-8.

Python holds a text in up to 4 bytes a character, and a parser holds it twice. Long
strings of a record are therefore left as UTF-8 and decoded a piece at a time.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from bert_jax.data.text import utf8_pieces
from bert_jax.errors import UserError

LONG = 1 << 20  # [bytes] of a record that is not decoded at once

_STRING = re.compile(rb'"((?:[^"\\]++|\\.)*+)"', re.S)
_KEPT = 1 << 16  # [bytes] of a string that stays in the record
# No escape is cut, and no pair of escapes that is one character.
_PIECE = re.compile(
    rb"(?:[^\\]{1,64}+|\\u[dD][89abAB]..\\u[dD][c-fC-F]..|\\u....|\\.){1,4096}+", re.S
)
_MARK = "\udfff"  # begins the placeholder of a long string; no valid text holds it


class Utf8Text:
    """UTF-8, iterated over in decoded pieces; invalid bytes become surrogates."""

    def __init__(self, content: memoryview) -> None:
        self._content = content

    def __iter__(self) -> Iterator[str]:
        return utf8_pieces(self._content)


class JsonText:
    """A string of a JSON record, iterated over in decoded pieces.

    Args:
      line: UTF-8 of the record.
      span: [bytes] begin and end of the string's content.
      where: file and line, for messages.
    """

    def __init__(
        self, line: bytes | bytearray, span: tuple[int, int], where: str
    ) -> None:
        self._line, self._span, self._where = line, span, where

    def __iter__(self) -> Iterator[str]:
        start, stop = self._span
        while start < stop:
            match = _PIECE.match(self._line, start, stop)
            end = match.end() if match else stop
            while self._line[end] & 0xC0 == 0x80:  # within a character
                end -= 1
            yield _parse(b'"' + self._line[start:end] + b'"', self._where)
            start = end


def _parse(content: bytes | bytearray, where: str) -> Any:
    try:
        return json.loads(content.decode())
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where}: not JSON ({error}); a .jsonl file holds one object a line"
        ) from None


def read_json(line: bytes | bytearray, where: str) -> Any:
    """Parse a record; its long strings are left as they are, as `JsonText`.

    Args:
      line: UTF-8.
      where: file and line, for messages.

    Raises:
      UserError: the line is not JSON. Faults inside a long string are found when
        that is iterated over.
    """
    if len(line) <= LONG:
        return _parse(line, where)
    texts: list[JsonText] = []

    def placeholder(match: re.Match[bytes]) -> bytes:
        start, end = match.span(1)
        if end - start <= _KEPT:
            return match[0]
        texts.append(JsonText(line, (start, end), where))
        return json.dumps(f"{_MARK}{len(texts) - 1}").encode()

    record = _parse(_STRING.sub(placeholder, line), where)
    for key, value in record.items() if isinstance(record, dict) else ():
        if isinstance(value, str) and value.startswith(_MARK) and value[1:].isdigit():
            record[key] = texts[int(value[1:])]
    return record
