"""Labels of examples as the numbers that a model learns."""

import math
import re
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from bert_jax.data.labelled import Example, to_number
from bert_jax.errors import UserError

_INTEGER = re.compile(r"[+-]?[0-9]+")
_SHOWN = 20  # labels listed in a message


def labels_of(examples: Sequence[Example]) -> list[str]:
    """The distinct labels: by number if all are integers, else by code point.

    Raises:
      UserError: an example has no label; or a label is a number in two spellings, such
        as 1 and 1.0, or is NaN among numbers.
    """
    first: dict[str, str] = {}
    for label, where in _labels(examples):
        first.setdefault(label, where)
    numbers: dict[float, str] = {}
    nan = {label: where for label, where in first.items() if label.lower() == "nan"}
    for label, where in first.items():
        number = to_number(label)
        if math.isnan(number):
            continue
        other = numbers.setdefault(number, label)
        if other != label and "." in label + other:
            raise UserError(
                f"{where}: label {label!r} is written {other!r} in {first[other]}; "
                "write both alike"
            )
    if nan and len(numbers) + len(nan) == len(first) > len(nan):
        label, where = next(iter(nan.items()))
        raise UserError(
            f"{where}: label {label!r} among numbers stands for a missing one; leave "
            f"such examples out with --config.task.skip_label={label}, or correct it"
        )
    if all(map(_INTEGER.fullmatch, first)):
        return sorted(first, key=lambda label: (int(label), label))
    return sorted(first)


def label_ids(examples: Sequence[Example], labels: Sequence[str]) -> NDArray[np.int32]:
    """Each example's label by its place among those of training.

    Args:
      examples: with labels.
      labels: known from training, `labels_of`.

    Returns:
      [examples] int32.

    Raises:
      UserError: an example has no label, or one that is not known.
    """
    place = {label: number for number, label in enumerate(labels)}
    ids: list[int] = []
    for label, where in _labels(examples):
        if label not in place:
            known = ", ".join(map(repr, labels[:_SHOWN]))
            more = f", ... ({len(labels)} in all)" if len(labels) > _SHOWN else ""
            raise UserError(
                f"{where}: label {label!r} did not occur in training, whose labels "
                f"are {known}{more}; correct it, or train with it in "
                "--config.task.labels"
            )
        ids.append(place[label])
    return np.array(ids, np.int32)


def to_numbers(examples: Sequence[Example]) -> NDArray[np.float32]:
    """Labels as the numbers that a regression is to predict.

    Returns:
      [examples] float32.

    Raises:
      UserError: an example has no label, or one that is no finite number.
    """
    numbers: list[float] = []
    for label, where in _labels(examples):
        number = to_number(label)
        if math.isnan(number):
            raise UserError(
                f"{where}: label {label!r} is not a number; correct it, or name the "
                "column of the scores"
            )
        numbers.append(number)
    return np.array(numbers, np.float32)


def _labels(examples: Sequence[Example]) -> Iterator[tuple[str, str]]:
    for example in examples:
        if example.label is None:
            raise UserError(f"{example.where}: read without labels; name their column")
        yield example.label, example.where
