"""Labelled texts from tables: one text or two with a label, or endings to choose.

The GLUE tasks (Wang et al., 2018, https://arxiv.org/abs/1804.07461) and most data
sets of the kind are such tables; SWAG (Zellers et al., 2018,
https://arxiv.org/abs/1808.05326) is the model for the choices.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from bert_jax.data import tfds
from bert_jax.data.records import Record, not_text, records
from bert_jax.errors import UserError


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


def table(
    path: str,
    text: str,
    pair: str | None = None,
    label: str | None = None,
    *,
    header: bool | None = None,
    delimiter: str | None = None,
    missing: str | None = None,
    encoding: str = "utf-8",
) -> list[Example]:
    """Reads the examples of a table or of a file of JSON objects.

    Args:
      path: as `records.records` takes it.
      text: the column of the text, by name or by number from 0.
      pair: the column of the second text, if there is one.
      label: the column of the label; None for a file that is to be predicted.
      header: whether the first line names the columns; None: if a name is given here.
      delimiter: between the columns; None: what the suffix says.
      missing: what stands for a label that is null, or hidden in TensorFlow Datasets.
      encoding: of the characters of the file.

    Returns:
      One or more examples, in the order of the file.

    Raises:
      UserError: naming file and line; also if a label is missing.
    """
    columns = [text] + [column for column in (pair, label) if column is not None]
    return [
        Example(
            _text(record, columns, 0),
            None if pair is None else _text(record, columns, 1),
            None if label is None else _label(record, columns, missing),
            record.where,
        )
        for record in records(path, columns, header, delimiter, encoding)
    ]


def choices(
    path: str,
    context: Sequence[str],
    endings: Sequence[str],
    label: str | None = None,
    *,
    start: str | None = None,
    header: bool | None = None,
    delimiter: str | None = None,
    encoding: str = "utf-8",
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
        to be predicted.
      start: the column of the words with which every ending begins, if there is one.
      header: as for `table`.
      delimiter: as for `table`.
      encoding: as for `table`.

    Returns:
      One or more questions, in the order of the file, each with two endings or more.

    Raises:
      UserError: naming file and line; also if a label is missing or is the number of
        no ending.
    """
    columns = [*context, *endings]
    columns += [column for column in (start, label) if column is not None]
    found: list[Choice] = []
    for record in records(path, columns, header, delimiter, encoding):
        where, inside = record.where, len(context)
        given = _texts(record, columns, range(inside))
        ends = _texts(record, columns, range(inside, inside + len(endings)))
        if len(ends) < 2:
            raise UserError(
                f"{where}: {len(ends)} ending(s) to choose from; name the columns of "
                "at least two, or the key of a list"
            )
        if start is not None:
            begin = _text(record, columns, inside + len(endings)).strip()
            ends = [f"{begin} {end.strip()}".strip() for end in ends]
        right = None if label is None else _label(record, columns)
        if right is not None and right not in map(str, range(len(ends))):
            raise UserError(
                f"{where}: label {right!r} is the number of no ending; use 0 to "
                f"{len(ends) - 1}"
            )
        number = None if right is None else int(right)
        found.append(Choice(" ".join(given), tuple(ends), number, where))
    return found


def _label(record: Record, columns: Sequence[str], instead: str | None = None) -> str:
    """The last column; a number or a truth value of JSON in JSON's spelling."""
    value = instead if record.values[-1] is None else record.values[-1]
    if isinstance(value, int | float):
        value = json.dumps(value)
    if isinstance(value, str) and value.strip():
        return value.strip()
    if value is None and tfds.is_named(record.where):
        raise UserError(
            f"{record.where}: the label, column {columns[-1]!r}, is hidden (-1), as in "
            "test sets; name a split with labels"
        )
    missing = value is None or isinstance(value, str)
    what = "is missing" if missing else f"is a {type(value).__name__}"
    raise UserError(
        f"{record.where}: the label, column {columns[-1]!r}, {what}; write it there, "
        "or name no column of labels for a file that is to be predicted"
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
        raise UserError(
            f"{where}: column {column!r} holds {wrong}; name the column of the text, "
            "or mend it"
        )
    return value
