"""Labelled texts from tables: one text or two with a label, or endings to choose.

The GLUE tasks (Wang et al., 2018, https://arxiv.org/abs/1804.07461) and most data
sets of the kind are such tables; SWAG (Zellers et al., 2018,
https://arxiv.org/abs/1808.05326) is the model for the choices.
"""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from bert_jax.data import tfds
from bert_jax.data.objects import not_text
from bert_jax.data.records import BadRow, Record, Report, records
from bert_jax.errors import UserError

Item = TypeVar("Item")


class Example(NamedTuple):
    """A text or a pair of them, with the label as the file has it."""

    text: str
    pair: str | None
    label: str | None  # without spaces around it; None where no column was named
    where: str  # file:line, or tfds:NAME:SPLIT[NUMBER]


class Choice(NamedTuple):
    """A context and the endings of which one is right."""

    context: str
    endings: tuple[str, ...]
    label: int | None  # of the right ending, from 0
    where: str  # file:line


class Form(NamedTuple):
    """How a file is written, and what becomes of rows that cannot be used."""

    header: bool | None = None  # the first line names the columns; None: if one is
    delimiter: str | None = None  # between columns; None: by the suffix
    encoding: str = "utf-8"  # codec of a file without byte order mark
    bad_rows: str = "refuse"  # or skip, or cut: skip, but not those with more columns


_USUAL = Form()


def table(
    path: str,
    text: str,
    pair: str | None = None,
    label: str | None = None,
    *,
    missing: str | None = None,
    numbers: bool = False,
    form: Form = _USUAL,
    report: Report | None = None,
) -> list[Example]:
    """Reads the examples of a table or of a file of JSON objects.

    Args:
      path: as `records.records` takes it.
      text: the column of the text, by name or by number from 0.
      pair: the column of the second text, if there is one.
      label: the column of the label; None for a file that is to be predicted, of
        which every row is kept: blank lines, and bad rows if they are not refused,
        become examples without a text.
      missing: what stands for a label that is null, or hidden in TensorFlow Datasets.
      numbers: labels must be finite numbers.
      form: of the file.
      report: is filled in.

    Returns:
      One or more examples, in the order of the file.

    Raises:
      UserError: naming file and line; also if a label is missing.
    """
    columns = [text] + [column for column in (pair, label) if column is not None]

    def example(record: Record) -> Example:
        found = None if label is None else _label(record, columns, missing)
        if numbers and found not in (None, missing) and math.isnan(to_number(found)):
            raise BadRow(
                f"{record.where}: label {found!r} is not a number; correct it, or name "
                "the column of the scores"
            )
        return Example(
            _text(record, columns, 0),
            None if pair is None else _text(record, columns, 1),
            found,
            record.where,
        )

    def empty(where: str) -> Example:
        return Example("", None if pair is None else "", None, where)

    blank = empty if label is None else None
    return _read(path, columns, example, blank, form, report or Report())


def to_number(label: str) -> float:
    """The number that a label is, NaN if it is none or not finite."""
    try:
        number = float(label)
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def choices(
    path: str,
    context: Sequence[str],
    endings: Sequence[str],
    label: str | None = None,
    *,
    start: str | None = None,
    form: Form = _USUAL,
    report: Report | None = None,
) -> list[Choice]:
    """Reads multiple choice questions of a table or of a file of JSON objects.

    SWAG as in section 4.4 of the BERT paper (Devlin et al., 2019,
    https://arxiv.org/abs/1810.04805) is `context=["sent1"], start="sent2"`.

    Args:
      path: as `records.records` takes it.
      context: the columns that make the context, by name or by number from 0.
      endings: the columns of the endings; or one JSON key that holds a list of them,
        which may then be of any length.
      label: the column of the right ending's number, from 0; None for a file that is
        to be predicted, as for `table`.
      start: the column of the words with which every ending begins, if there is one.
      form: of the file.
      report: is filled in.

    Returns:
      One or more questions, in the order of the file, each with two endings or more.

    Raises:
      UserError: naming file and line; also if a label is missing or is the number of
        no ending.
    """
    columns = [*context, *endings]
    columns += [column for column in (start, label) if column is not None]

    def choice(record: Record) -> Choice:
        where, inside = record.where, len(context)
        given = _texts(record, columns, range(inside))
        ends = _texts(record, columns, range(inside, inside + len(endings)))
        if len(ends) < 2:
            raise BadRow(
                f"{where}: {len(ends)} ending(s) to choose from; name the columns of "
                "at least two, or the key of a list"
            )
        if start is not None:
            begin = _text(record, columns, inside + len(endings)).strip()
            ends = [f"{begin} {end.strip()}".strip() for end in ends]
        right = None if label is None else _label(record, columns)
        if right is not None and right not in map(str, range(len(ends))):
            raise BadRow(
                f"{where}: label {right!r} is the number of no ending; use 0 to "
                f"{len(ends) - 1}"
            )
        number = None if right is None else int(right)
        return Choice(" ".join(given), tuple(ends), number, where)

    blank = (lambda at: Choice("", ("", ""), None, at)) if label is None else None
    return _read(path, columns, choice, blank, form, report or Report())


def is_empty(item: Example | Choice) -> bool:
    """Whether an example has no text at all."""
    if isinstance(item, Example):
        return not (item.text.strip() or (item.pair or "").strip())
    return not any(text.strip() for text in (item.context, *item.endings))


def _read(
    path: str,
    columns: Sequence[str],
    make: Callable[[Record], Item],
    blank: Callable[[str], Item] | None,
    form: Form,
    report: Report,
) -> list[Item]:
    """The items of a file's rows.

    Args:
      path: of the file.
      columns: that are wanted.
      make: gives the item of a row, or raises BadRow.
      blank: gives the item of a row that is bad or blank, by its place; None leaves
        such rows out.
      form: of the file.
      report: is filled in.
    """
    kinds = {"blank": blank is not None, "cut": form.bad_rows == "cut"}
    rows = records(path, columns, *form[:3], **kinds, report=report)
    found: list[Item] = []
    for record in rows:
        try:
            if record.fault:
                raise BadRow(record.fault)
            found.append(make(record))
        except BadRow as error:
            if form.bad_rows == "refuse":
                raise UserError(
                    f"{error}; or leave such rows out with --config.task.bad_rows=skip"
                ) from None
            report.faults.append(str(error))
            if blank:
                found.append(blank(record.where))
    if 2 * len(report.faults) > report.rows:
        raise UserError(
            f"{path}: {len(report.faults):,} of {report.rows:,} rows cannot be used; "
            f"the first for this reason: {report.faults[0]}"
        )
    return found


def _label(record: Record, columns: Sequence[str], instead: str | None = None) -> str:
    """The last column; a number or a truth value of JSON in JSON's spelling."""
    value = record.values[-1]
    if value is None or value != value:  # null, or NaN
        value = instead
    if isinstance(value, int | float):
        value = json.dumps(value)
    if isinstance(value, str) and value.strip():
        return value.strip()
    if value is None and tfds.is_named(record.where):
        raise BadRow(
            f"{record.where}: the label, column {columns[-1]!r}, is hidden (-1), as in "
            "test sets; name a split with labels"
        )
    missing = value is None or isinstance(value, str)
    what = "is missing" if missing else f"is a {type(value).__name__}"
    raise BadRow(
        f"{record.where}: the label, column {columns[-1]!r}, {what}; write it there, "
        "or name another column in --config.task.label_column"
    )


def _text(record: Record, columns: Sequence[str], number: int) -> str:
    return _checked(record.values[number], columns[number], record.where)


def _texts(record: Record, columns: Sequence[str], numbers: range) -> list[str]:
    """The texts of some columns, or those in the list that is the only one."""
    if len(numbers) == 1 and isinstance(record.values[numbers[0]], list):
        column = columns[numbers[0]]
        values = record.values[numbers[0]]
        return [_checked(value, column, record.where) for value in values]
    return [_text(record, columns, number) for number in numbers]


def _checked(value: Any, column: str, where: str) -> str:
    if wrong := not_text(value):
        raise BadRow(
            f"{where}: column {column!r} holds {wrong}; name the column of the text, "
            "or correct it"
        )
    return value
