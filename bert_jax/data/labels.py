"""Labels of examples as the numbers that a model learns."""

import math
import re
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from bert_jax.data.labelled import Example
from bert_jax.errors import UserError

_INTEGER = re.compile(r"[+-]?[0-9]+")
_SHOWN = 20  # labels listed in a message


def labels_of(examples: Sequence[Example]) -> list[str]:
    """The distinct labels: by number if all are integers, else by code point.

    Raises:
      UserError: an example has no label.
    """
    labels = {label for label, _ in _labels(examples)}
    if all(map(_INTEGER.fullmatch, labels)):
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)


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
                f"are {known}{more}; mend it, or train on it too"
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
        try:
            number = float(label)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise UserError(
                f"{where}: label {label!r} is not a number; mend it, or name the "
                "column of the scores"
            )
        numbers.append(number)
    return np.array(numbers, np.float32)


def _labels(examples: Sequence[Example]) -> Iterator[tuple[str, str]]:
    for example in examples:
        if example.label is None:
            raise UserError(f"{example.where}: read without labels; name their column")
        yield example.label, example.where
