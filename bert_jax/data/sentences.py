"""Sentences of lines of any length, in linear time.

The compiled splitter takes time that grows with the square of a line's length where
it holds characters beyond ASCII, so that it is given windows of a long line.
"""

import re
from collections.abc import Iterator
from typing import Any

import sentencex

from bert_jax.data.text import pieces

_WINDOW = 1024  # [characters] of a line that the splitter is given at a time
_LONGEST = 4 * _WINDOW  # [characters] of a sentence; a longer one is cut
_AHEAD = 64  # [characters] behind a sentence's end that the splitter may look at
# The splitter ends no sentence between quotes or brackets that belong together.
_PAIRED = re.compile('[][(){}<>“”‘«»„「」"]')
_OPENING, _CLOSING = frozenset("[({<“‘«„「"), frozenset("])}>”’»」")


def split(language: str, line: str) -> list[str]:
    """Split a line into sentences, with the spaces behind them.

    A line of at most 1,024 characters is split as `sentencex` does. In a longer one
    the sentences are those of windows that begin at a sentence's start; they are the
    same unless a quotation or a parenthesis is longer than the window.

    Args:
      language: [ISO 639-1] code; one without rules of its own gets the default's.
      line: text.

    Returns:
      Sentences that are the line when joined, none longer than 4,096 characters
      unless the line is; none for an empty line.
    """
    splitter: Any = sentencex  # compiled, without type stubs
    if len(line) <= _WINDOW:
        return splitter.segment(language, line)
    return list(_windows(splitter, language, line))


def _windows(splitter: Any, language: str, line: str) -> Iterator[str]:
    start, size = 0, _WINDOW
    while start < len(line):
        window = line[start : start + size]
        found = splitter.segment(language, window)
        if start + size >= len(line):
            yield from found
            return
        count = _complete(found, len(window) - _AHEAD)
        if count:
            yield from found[:count]
            start, size = start + sum(map(len, found[:count])), _WINDOW
        elif size < _LONGEST:
            size *= 2
        else:
            part = next(pieces(window, _LONGEST - 1))
            yield part
            start, size = start + len(part), _WINDOW


def _complete(sentences: list[str], limit: int) -> int:
    """The number of sentences that end before the limit, outside of quotes if any."""
    end = depth = straight = count = last = 0
    for number, sentence in enumerate(sentences, start=1):
        end += len(sentence)
        if end > limit:
            break
        last = number
        for mark in _PAIRED.findall(sentence):
            depth += (mark in _OPENING) - (mark in _CLOSING)
            straight += mark == '"'
        if depth <= 0 and straight % 2 == 0:
            count = number
    return count or last
