"""The labelled files of a task, as its settings describe them."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import xxhash

from bert_jax.config import TaskSettings
from bert_jax.data import tfds
from bert_jax.data.labelled import Choice, Example, Form, choices, table
from bert_jax.data.records import Report
from bert_jax.data.squad import Question, questions, repair, repeated
from bert_jax.data.tagged import Sentence, check_scheme, sentences
from bert_jax.errors import UserError

Item = Example | Sentence | Choice | Question


class Files(NamedTuple):
    """The examples to train and to score on, as read."""

    train: Sequence[Item]  # none if only the dev file matters
    dev: Sequence[Item]
    notes: tuple[str, ...] = ()  # on what was left out


def read(settings: TaskSettings, train: bool = True, encoding: str = "utf-8") -> Files:
    """Reads both files; without a dev file, holds out a share of the other one.

    Args:
      settings: name the files.
      train: whether the examples to train on matter too.
      encoding: codec of files without byte order mark, `config.data.encoding`.

    Raises:
      UserError: one is not set, missing or wrong; the message names file and line.
    """
    train_file, dev_file = _sources(settings)
    if not train_file and (train or not dev_file):
        raise UserError(
            "config.task.train_file: not set; --config.task.train_file=FILE names a "
            "file of labelled examples"
        )
    notes: list[str] = []

    def load(path: str) -> Sequence[Item]:
        source = Source(settings, path, encoding)
        kept = _keep(settings, path, source.items)
        notes.extend(source.notes)
        if left_out := len(source.items) - len(kept):
            notes.append(
                f"{path}: {left_out} examples are left out, whose label is "
                f"{settings.skip_label!r}"
            )
        return kept

    if not dev_file:
        learnt, held, more = _hold_out(load(train_file), settings)
        notes += more
    else:
        learnt, held = load(train_file) if train else (), load(dev_file)
    if settings.kind == "span" and train:
        learnt, report = repair(learnt)  # pyright: ignore
        if report.repaired or report.unrepairable:
            notes.append(
                f"{train_file}: {report.repaired} answers were moved to where their "
                f"text is, {report.unrepairable} were not found"
                + (f" at one certain place ({report.messages[0]})" if report[1] else "")
                + f"; {report.dropped} questions without an answer are left out"
            )
        if not learnt:
            raise UserError(f"{train_file}: {report.messages[0]}; nor is any other")
    return Files(learnt, held, tuple(notes))


def _sources(settings: TaskSettings) -> tuple[str, str]:
    """The training and the dev file; of a GLUE task its own, if none are named."""
    train, dev = settings.train_file, settings.dev_file
    if settings.glue and not train:
        train = f"tfds:glue/{settings.glue}"
        matched = "_matched" if settings.glue == "mnli" else ""
        dev = dev or f"{train}:validation{matched}"
    return tfds.with_split(train, "train"), tfds.with_split(dev, "validation")


def _hold_out(
    items: Sequence[Any], settings: TaskSettings
) -> tuple[Sequence[Any], Sequence[Any], list[str]]:
    """Splits by a hash of the first text, so that none lies on both sides.

    At least one text is on each side. Where there is but one text, examples are split.

    Returns:
      The examples to train on, those held out, and notes.
    """
    share = settings.dev_share
    span = settings.kind == "span"
    texts = [item.context if span else str(item[0]) for item in items]
    place = {text: xxhash.xxh3_64_intdigest(text.encode()) for text in texts}
    if share > 0 and len(place) == 1 < len(items):
        count = max(1, int(share * len(items)))
        note = (
            f"{settings.train_file}: all {len(items)} examples have the same text; "
            f"{count} of them are held out to score on, which says little"
        )
        return items[count:], items[:count], [note]
    chosen = {text for text, value in place.items() if value < share * 2.0**64}
    if share > 0 and len(place) > 1:
        order = sorted(place, key=place.__getitem__)
        chosen = (chosen | {order[0]}) - {order[-1]}
    parts: tuple[list[Any], list[Any]] = [], []
    for item, text in zip(items, texts, strict=True):
        parts[text in chosen].append(item)
    if not all(parts):
        raise UserError(
            f"config.task.dev_share={share}: of the {len(items)} examples of "
            f"{settings.train_file} that leaves {len(parts[0])} to train and "
            f"{len(parts[1])} to score on; set another share, or --config.task.dev_file"
        )
    return *parts, []


def _keep(settings: TaskSettings, path: str, items: Sequence[Any]) -> Sequence[Item]:
    """The examples without those of `skip_label`."""
    if not settings.skip_label:
        return items
    kept = [item for item in items if item.label != settings.skip_label]
    if not kept:
        raise UserError(
            f"{path}: no example has another label than {settings.skip_label!r}, or "
            "all are hidden (-1), as in test sets; name a file with labels"
        )
    return kept


class Source:
    """One file, read.

    Args:
      settings: of the task; they name the columns.
      path: of the file, or name of a data set.
      encoding: codec of a file without byte order mark.
      labels: the labels matter; else the file is to be predicted, and every row of it
        is kept.

    Attributes:
      items: the examples, in the order of the file.
      notes: on what was left out or is odd.
      layout: lines of a file of words, as `sentences` fills it in; else empty.

    Raises:
      UserError: the file is missing or wrong; the message names file and line.
    """

    def __init__(
        self, settings: TaskSettings, path: str, encoding: str, labels: bool = True
    ) -> None:
        self.layout: list[str | None] = []
        self._settings, self._path, self._labels = settings, path, labels
        delimiter = {"": None, "tab": "\t"}.get(settings.delimiter, settings.delimiter)
        bad_rows = settings.bad_rows
        if bad_rows == "auto":  # GLUE's files of QQP and SNLI have such rows
            bad_rows = "skip" if settings.glue else "refuse"
        form = Form(None, delimiter, encoding, bad_rows)
        self.notes: list[str] = []
        self.items: Sequence[Any]
        if settings.kind == "span":
            self.items = questions(path, labels, encoding)
            if labels and (twice := repeated(self.items)):
                self.notes.append(f"{twice}; every question counts all the same")
        elif settings.kind == "tag":
            self.items = self._sentences(form)
        else:
            report = Report()
            self.items = self._table(form, report)
            self.notes += report.notes(path, kept=not labels)

    def _table(self, form: Form, report: Report) -> Sequence[Example | Choice]:
        settings, path = self._settings, self._path
        label = settings.label_column if self._labels else None
        pair = settings.pair_column
        more = {"form": form, "report": report}
        if settings.kind == "choice":
            start = settings.start_column or None
            ends = pair.split(",")
            text = [settings.text_column]
            return choices(path, text, ends, label, start=start, **more)
        more |= {"missing": settings.skip_label or None}
        more |= {"numbers": settings.kind == "regress"}
        found = table(path, settings.text_column, pair or None, label, **more)
        if label and settings.kind == "classify" and settings.label_column.isdecimal():
            count = Counter(example.label for example in found)
            once = [found for found, times in count.items() if times == 1]
            if len(count) > 2 and once == [found[0].label]:
                self.notes.append(
                    f"{found[0].where}: is read as an example, and no other has its "
                    f"label, {once[0]!r}; if it is a header, give a column by its name"
                )
        return found

    def _sentences(self, form: Form) -> Sequence[Sentence]:
        settings, path = self._settings, self._path
        label = _column(settings.label_column) if self._labels else None
        columns = _column(settings.text_column), label
        found = sentences(path, *columns, *form[1:3], self.layout)
        if not self._labels:
            return found
        check_scheme(found)
        kept = [sentence for sentence in found if sentence.words]
        if left_out := len(found) - len(kept):
            self.notes.append(f"{path}: {left_out} records without words are left out")
        return kept


def _column(name: str) -> int | str:
    return int(name) if name.lstrip("-").isdigit() else name
