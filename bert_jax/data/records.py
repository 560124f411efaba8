"""Records of labelled sets: rows of tables, JSON objects, TensorFlow Datasets.

Labelled sets are small beside a corpus, so a file is held in memory. A row that cannot
be used is yielded with its fault: whether it is left out is the caller's decision.
"""

import csv
import dataclasses
import itertools
from collections.abc import Container, Iterator, Sequence
from typing import Any, NamedTuple

from bert_jax.data import tfds
from bert_jax.data.objects import (
    SUFFIXES_OF_JSON,
    holds_objects,
    keys_of,
    look_up,
    objects,
    suffix,
    text,
    unknown,
)
from bert_jax.errors import UserError

_DELIMITERS = {".tsv": "\t", ".txt": "\t", ".csv": ","}
_SUFFIXES = (*_DELIMITERS, *SUFFIXES_OF_JSON)
QUOTED_TAB = "quoted_tab"  # delimiter of tables as spreadsheets write them
_LONGEST_CELL = 1 << 27  # [characters] csv's own limit, 2^17, is less than some texts


class BadRow(UserError):
    """A row that cannot be used, in a file that can."""


class Record(NamedTuple):
    """The values of the columns that were asked for, in that order."""

    values: list[Any]  # of a table always str; none where there is a fault
    where: str  # file:line
    fault: str = ""  # why the row cannot be used; "" if it can


@dataclasses.dataclass
class Report:
    """What a reader left out of a file, or found odd in it."""

    faults: list[str] = dataclasses.field(default_factory=list)  # of rows left out
    quoted: list[str] = dataclasses.field(default_factory=list)  # file:line of rows
    rows: int = 0  # rows of the file, without the header

    def notes(self, path: str, kept: bool = False) -> list[str]:
        """Return one sentence for each kind.

        Args:
          path: of the file.
          kept: rows with faults stay, without a text, since the file is predicted.
        """
        found: list[str] = []
        if self.faults:
            what = "cannot be read" if kept else "are left out"
            found.append(
                f"{path}: {len(self.faults):,} of {self.rows:,} rows {what}, the first "
                f"for this reason: {self.faults[0]}"
            )
        if self.quoted:
            found.append(
                f"{self.quoted[0]}: {len(self.quoted):,} rows have cells in quotes, "
                "which are read as a part of the text; if a spreadsheet wrote the "
                f"file, set --config.task.delimiter={QUOTED_TAB}"
            )
        return found


def records(
    path: str,
    columns: Sequence[str],
    header: bool | None = None,
    delimiter: str | None = None,
    encoding: str = "utf-8",
    *,
    blank: bool = False,
    cut: bool = False,
    report: Report | None = None,
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
      delimiter: between the cells, whatever the suffix; the tab means no quoting,
        `quoted_tab` tabs and quotes as in .csv.
      encoding: as for `text`.
      blank: also yield the blank lines of a table, as rows of empty cells.
      cut: accept rows of a table with more cells than the first, whose last cells do
        not matter.
      report: its `quoted` and `rows` are filled in.

    Yields:
      Records, one or more, in the order of the file; rows with another number of cells
      than the first and objects without a key with their fault.

    Raises:
      UserError: naming file and line, of whatever is wrong with the file as a whole.
    """
    report = report or Report()
    if holds_objects(path) and (delimiter is None or tfds.is_named(path)):
        found = _keys(path, columns, encoding)
    else:
        delimiter = delimiter or _DELIMITERS.get(suffix(path)) or ""
        known = delimiter == QUOTED_TAB or len(delimiter) == 1
        if not known or delimiter in '\r\n"':
            raise UserError(
                f"{path}: cannot tell what stands between its columns; set the "
                f"delimiter to one character, or use {' '.join(_SUFFIXES)}"
            )
        rows = _rows(path, delimiter, encoding)
        table = _Table(path, delimiter, blank, cut, report)
        found = _columns(table, rows, columns, header)
    count = 0
    for record in found:
        count += 1
        yield record
    report.rows = count
    if not count:
        raise UserError(f"{path}: no examples in it; give a file with at least one")


def _keys(path: str, columns: Sequence[str], encoding: str) -> Iterator[Record]:
    for where, found in objects(path, encoding):
        values: list[Any] = []
        fault = ""
        for column in columns:
            for name in (column, *column.split("|")):
                try:
                    values.append(look_up(found, name))
                    break
                except KeyError:
                    continue
            else:
                what, known = f"{where}: no key", keys_of(found)
                fault = str(unknown(what, known, column, "name one of these"))
                break
        yield Record([] if fault else values, where, fault)


def _choose(column: str, known: Container[str]) -> str:
    """Of the names and numbers between bars the first name that is known, or number."""
    names = [column, *column.split("|")]
    numbers = filter(str.isdecimal, names)
    return next((name for name in names if name in known), next(numbers, column))


class _Table(NamedTuple):
    """A table and how it is to be read; as the arguments of `records`."""

    path: str
    delimiter: str
    blank: bool
    cut: bool
    report: Report


def _columns(
    table: _Table,
    rows: Iterator[tuple[int, list[str]]],
    columns: Sequence[str],
    header: bool | None,
) -> Iterator[Record]:
    path, leading = table.path, []
    for line, first in rows:
        if first:
            break
        leading.append(line)
    else:
        return
    names = [cell.strip() for cell in first]
    if header is None:
        chosen = [_choose(column, names) for column in columns]
        header = not all(name.isdecimal() for name in chosen)
    names = names if header else []
    places = [_place(column, names, len(first), f"{path}:{line}") for column in columns]
    if not header:
        rows = itertools.chain([(n, []) for n in leading], [(line, first)], rows)
    quoted: list[str] = []
    doubled: list[str] = []
    count = 0
    for number, row in rows:
        if not row and not table.blank:
            continue
        count += 1
        where = f"{path}:{number}"
        if not row:
            yield Record([""] * len(places), where)
        elif len(row) != len(first) and not (table.cut and len(row) > len(first)):
            wanted = f"line {line} has {len(first)}"
            yield Record([], where, _ragged(table, where, row, wanted))
        else:
            cells = list(filter(_is_quoted, row)) if table.delimiter == "\t" else []
            if cells:
                quoted.append(where)
            if any('""' in cell[1:-1] for cell in cells):
                doubled.append(where)
            yield Record([row[place] for place in places], where)
    # A sentence may be in quotes, but hardly every one.
    table.report.quoted = quoted if len(quoted) == count > 1 else doubled


def _is_quoted(cell: str) -> bool:
    """Whether a cell is in quotes, with those inside doubled, as in CSV."""
    return (
        len(cell) > 1
        and cell[0] == cell[-1] == '"'
        and ('"' not in cell[1:-1].replace('""', ""))
    )


def _ragged(table: _Table, where: str, row: list[str], wanted: str) -> str:
    remedy = f"correct the line, or set the delimiter if it is not {table.delimiter!r}"
    if table.delimiter == "\t" and any(
        c.startswith('"') != c.endswith('"') for c in row
    ):
        remedy += f", or {QUOTED_TAB} if cells are in quotes"
    return f"{where}: {len(row)} columns, but {wanted}; {remedy}"


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
    if len(names) == 1 or f'"{column}"' in names:
        raise UserError(
            f"{where}: no column {column!r} among {', '.join(map(repr, names))}; set "
            f"--config.task.delimiter, to {QUOTED_TAB} if tabs are between cells in "
            "quotes"
        )
    raise unknown(
        f"{where}: no column",
        names,
        column,
        "name one of these, number the columns from 0 if this is no header, or set "
        "--config.task.delimiter",
    )


def _rows(path: str, delimiter: str, encoding: str) -> Iterator[tuple[int, list[str]]]:
    """The lines of a table, from 1, and their cells; none of a blank line."""
    lines = text(path, encoding).split("\n")
    if not lines[-1]:
        lines.pop()
    if delimiter == "\t":
        for number, line in enumerate(lines, start=1):
            line = line.removesuffix("\r")
            yield number, line.split("\t") if line else []
        return
    csv.field_size_limit(_LONGEST_CELL)
    reader = csv.reader(
        (line + "\n" for line in lines),
        delimiter="\t" if delimiter == QUOTED_TAB else delimiter,
        strict=True,
    )
    number = 1
    try:
        for row in reader:
            yield number, row
            number = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{path}:{number}: not CSV ({error}); put cells with quotes or line ends "
            "in quotes, and double the quotes inside"
        ) from None
