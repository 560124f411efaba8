"""Lines of a text file as packed rows, for a model that only reads."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bert_jax.data import text
from bert_jax.data.packing import pack
from bert_jax.data.sequences import Sequences, frame
from bert_jax.data.tokenizer import TextTokenizer

_SHORT = 128  # [tokens] a row of lines that fit; longer ones get rows of the limit
_LONGEST_TOKEN = 100  # [characters] a line is encoded up to so many for each token
_MOST = 32  # lines that may share a row


def read(source: Path, encoding: str, counts: Counter[str]) -> Iterator[str]:
    """Stream every line of a text file, empty ones too.

    Args:
      source: file of any suffix, also .bz2 .gz .xz .zst.
      encoding: codec of the file if it has no byte order mark.
      counts: `bad_utf8_lines` counts lines with bytes that were replaced.

    Raises:
      UserError: the file cannot be read, is damaged, or is in another encoding.
    """
    for line in text.lines(str(source), encoding, counts, replace=True):
        assert line is not None  # since invalid bytes are replaced
        yield line


def windows(
    lines: Iterable[str],
    tokenizer: TextTokenizer,
    limit: int,
    size: int,
    spans: bool,
    counts: Counter[str],
) -> Iterator[Sequences]:
    """Encode lines, some at a time.

    Args:
      lines: texts, from `read`.
      tokenizer: of the model.
      limit: [tokens] of a line with [CLS] and [SEP]; the rest is cut off.
      size: [tokens] about, in a window. Where one ends depends on nothing else.
      spans: also where in its line each token stands.
      counts: of `lines`, `tokens` and `cut` lines.
    """
    waiting: list[str] = []
    room = size
    for line in lines:
        waiting.append(line[: limit * _LONGEST_TOKEN])
        room -= min(len(line) // 4 + 2, limit)  # tokens, roughly: not encoded yet
        if room <= 0:
            yield _frame(waiting, tokenizer, limit, spans, counts)
            waiting, room = [], size
    if waiting:
        yield _frame(waiting, tokenizer, limit, spans, counts)


def _frame(
    lines: list[str],
    tokenizer: TextTokenizer,
    limit: int,
    spans: bool,
    counts: Counter[str],
) -> Sequences:
    found = frame(tokenizer, lines, None, limit, spans)
    counts.update(lines=len(lines), tokens=len(found.token), cut=found.cut)
    return found


def rows(
    length: NDArray[np.int64], limit: int
) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Packs lines into rows of one or two lengths.

    Rows of the limit take the lines that need them, and short ones into the gaps.

    Args:
      length: [tokens] of each line, at most the limit.
      limit: [tokens] in a long row.

    Yields:
      The lines in each row by their numbers, [R, most] with -1 where there is none,
      and the length [tokens] of these rows.
    """
    order = np.argsort(-length, kind="stable")
    short = min(_SHORT, limit)
    long = order[: int((length > short).sum())]
    if len(long):
        most = min(_MOST, limit // 2)
        numbers = np.arange(len(long))
        room = (
            len(pack(length[long], limit, most, numbers)) * limit - length[long].sum()
        )
        rest = order[len(long) :]
        filling = rest[np.cumsum(length[rest]) <= room * 0.9]
        mixed = order[: len(long) + len(filling)]
        rows = pack(length[mixed], limit, most, np.arange(len(mixed)))
        yield np.where(rows >= 0, mixed[rows], -1), limit
        order = order[len(mixed) :]
    if len(order):
        most = min(_MOST, short // 2)
        rows = pack(length[order], short, most, np.arange(len(order)))
        yield np.where(rows >= 0, order[rows], -1), short
