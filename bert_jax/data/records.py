"""Records of labelled sets: rows of tables, JSON objects, TensorFlow Datasets.

Labelled sets are small beside a corpus, so a file is held in memory; and unlike in a
corpus nothing may be skipped, so whatever is wrong ends the reading with its line.
"""

import csv
import difflib
import json
import os
import re
from collections.abc import Container, Iterator, Sequence
from typing import Any, NamedTuple

from bert_jax.data import tfds
from bert_jax.data.decompress import SUFFIXES
from bert_jax.data.text import invalid, read
from bert_jax.errors import UserError

_DELIMITERS = {".tsv": "\t", ".txt": "\t", ".csv": ","}
_JSON = (".json", ".jsonl")
_LONGEST_CELL = 1 << 27  # [characters] csv's own limit, 2^17, is less than some texts
_SHOWN = 20  # columns or keys listed in a message
_SPACE = re.compile(r"\s*")
_NEXT = re.compile(r"\s*,\s*(?=\{)|\s*\]\s*\Z")  # after an object of an array


class Record(NamedTuple):
    """The values of the columns that were asked for, in that order."""

    values: list[Any]  # of a table always str
    where: str  # file:line


def records(
    path: str,
    columns: Sequence[str],
    header: bool | None = None,
    delimiter: str | None = None,
    encoding: str = "utf-8",
) -> Iterator[Record]:
    """Reads some columns of a table, or keys of JSON objects.

    Args:
      path: .tsv or .txt (tabs; a quote is a character like any other), .csv (quoted
        cells may hold commas and line ends), .jsonl or .json (objects, one after
        another or in an array); each also compressed; or `tfds:NAME[/CONFIG]:SPLIT`.
      columns: names, or numbers from 0 where there is no header; keys for JSON. Of
        `a|b|0` the first that is there counts.
      header: whether the first line names the columns; None: if it holds a name that
        is asked for, or no number is.
      delimiter: between the cells, whatever the suffix; the tab means no quoting.
      encoding: as for `text`.

    Yields:
      Records, one or more, in the order of the file.

    Raises:
      UserError: naming file and line, of whatever is wrong with the file.
    """
    if holds_objects(path) and (delimiter is None or tfds.is_named(path)):
        found = _keys(path, columns, encoding)
    else:
        delimiter = delimiter or _DELIMITERS.get(_suffix(path))
        if delimiter is None or len(delimiter) != 1 or delimiter in '\r\n"':
            raise UserError(
                f"{path}: cannot tell what stands between its columns; set the "
                f"delimiter to one character, or use {' '.join([*_DELIMITERS, *_JSON])}"
            )
        rows = _rows(path, delimiter, encoding)
        found = _columns(path, rows, columns, header, delimiter)
    empty = True
    for record in found:
        empty = False
        yield record
    if empty:
        raise UserError(f"{path}: no examples in it; give a file with at least one")


def holds_objects(path: str) -> bool:
    """Whether `objects` reads it, by its name."""
    return tfds.is_named(path) or _suffix(path) in _JSON


def _suffix(path: str) -> str:
    """The suffix of a path, compression aside."""
    stem, end = os.path.splitext(path)
    return os.path.splitext(stem)[1] if end in SUFFIXES else end


def text(path: str, encoding: str = "utf-8") -> str:
    """Return the content of a file, decompressed, without a byte order mark.

    Args:
      path: of the file.
      encoding: codec of the file if it has no byte order mark.

    Raises:
      UserError: the file cannot be read, is damaged, is in another encoding, or holds
        no text.
    """
    content = read(path, encoding)
    if (place := content.find("\0")) >= 0:
        line = content.count("\n", 0, place) + 1
        raise invalid(f"{path}:{line}: a NUL", path, encoding, content.encode())
    if "\n" not in content and "\r" in content.rstrip("\r"):
        raise UserError(
            f"{path}:1: lines end with carriage returns alone; convert the file, for "
            "example with tr '\\r' '\\n'"
        )
    return content


def not_text(value: Any) -> str | None:
    """What is wrong with a value of JSON that should be text; None if nothing is."""
    if not isinstance(value, str):
        return f"a {type(value).__name__}, not text"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "half a character (an escape such as \\ud800 alone)"
    return None


def objects(path: str, encoding: str = "utf-8") -> Iterator[tuple[str, dict[str, Any]]]:
    """Reads JSON objects, on a line each or on several, or the records of a data set.

    Args:
      path: of the file, or `tfds:NAME[/CONFIG]:SPLIT`.
      encoding: as for `text`.

    Yields:
      Where an object begins, `file:line`, and the object.

    Raises:
      UserError: something is no JSON object.
    """
    if tfds.is_named(path):
        yield from tfds.examples(path)
        return
    content = text(path, encoding)
    decoder = json.JSONDecoder()
    line, counted, start = 1, 0, _skip_space(content, 0)
    array = content.startswith("[", start)
    if array:
        start = _skip_space(content, start + 1)
    while start < len(content):
        line += content.count("\n", counted, start)
        try:
            value, end = decoder.raw_decode(content, start)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}:{line}: the object that begins here is not JSON ({error}); "
                "mend it, or write the file anew with one object a line"
            ) from None
        if not isinstance(value, dict):
            raise UserError(
                f"{path}:{line}: a {type(value).__name__} where an object should be; "
                "write one {...} for each example, one after another"
            )
        counted, start = start, _skip_space(content, end)
        if array:
            match = _NEXT.match(content, end)
            if match is None:
                raise UserError(
                    f"{path}:{line}: neither another object nor the end of the array "
                    "follows the object that begins here; mend it, or fetch the file "
                    "again"
                )
            start = match.end()
        yield f"{path}:{line}", value


def _unknown(what: str, known: Sequence[str], name: str, remedy: str) -> UserError:
    near = difflib.get_close_matches(name, known, 1, 0.5)
    hint = f"; did you mean {near[0]!r}?" if near else f"; {remedy}"
    listed = ", ".join(repr(other[:30]) for other in known[:_SHOWN])
    more = ", ..." if len(known) > _SHOWN else ""
    return UserError(f"{what} {name!r} among {listed}{more}{hint}")


def _skip_space(content: str, start: int) -> int:
    match = _SPACE.match(content, start)
    return match.end() if match else start


def _keys(path: str, columns: Sequence[str], encoding: str) -> Iterator[Record]:
    for where, found in objects(path, encoding):
        keys = [_choose(column, found) for column in columns]
        for key, column in zip(keys, columns, strict=True):
            if key not in found:
                raise _unknown(
                    f"{where}: no key", list(found), column, "name one of these"
                )
        yield Record([found[key] for key in keys], where)


def _choose(column: str, known: Container[str]) -> str:
    """Of the names and numbers between bars the first name that is known, or number."""
    names = [column, *column.split("|")]
    numbers = filter(str.isdecimal, names)
    return next((name for name in names if name in known), next(numbers, column))


def _columns(
    path: str,
    rows: Iterator[tuple[int, list[str]]],
    columns: Sequence[str],
    header: bool | None,
    delimiter: str,
) -> Iterator[Record]:
    line, first = next(rows, (0, []))
    if not first:
        return
    names = [cell.strip() for cell in first]
    if header is None:
        chosen = [_choose(column, names) for column in columns]
        header = not all(name.isdecimal() for name in chosen)
    names = names if header else []
    places = [_place(column, names, len(first), f"{path}:{line}") for column in columns]
    if not header:
        yield Record([first[place] for place in places], f"{path}:{line}")
    for number, row in rows:
        if len(row) != len(first):
            raise UserError(
                f"{path}:{number}: {len(row)} columns, but line {line} has "
                f"{len(first)}; mend the line, or set the delimiter if it is not "
                f"{delimiter!r}"
            )
        yield Record([row[place] for place in places], f"{path}:{number}")


def _place(column: str, names: list[str], width: int, where: str) -> int:
    column = _choose(column, names)
    if names.count(column) > 1:
        raise UserError(f"{where}: {names.count(column)} columns {column!r}; number it")
    if column in names:
        return names.index(column)
    if column.isdecimal():
        if int(column) < width:
            return int(column)
        raise UserError(
            f"{where}: no column {column}; the columns are 0 to {width - 1}"
        )
    if not names:
        raise UserError(
            f"{where}: column {column!r} is a name, but there is said to be no header; "
            f"give a number from 0 to {width - 1}"
        )
    raise _unknown(
        f"{where}: no column",
        names,
        column,
        "name one of these, or number the columns from 0 if this is no header",
    )


def _rows(path: str, delimiter: str, encoding: str) -> Iterator[tuple[int, list[str]]]:
    lines = text(path, encoding).split("\n")
    if delimiter == "\t":
        for number, line in enumerate(lines, start=1):
            if line := line.removesuffix("\r"):
                yield number, line.split("\t")
        return
    csv.field_size_limit(_LONGEST_CELL)
    if not lines[-1]:
        lines.pop()
    reader = csv.reader(
        (line + "\n" for line in lines), delimiter=delimiter, strict=True
    )
    number = 1
    try:
        for row in reader:
            if row:
                yield number, row
            number = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{path}:{number}: not CSV ({error}); put cells with quotes or line ends "
            "in quotes, and double the quotes inside"
        ) from None
