"""Fine-tuning data: labelled files as batches, and the scores of their dev set."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bert_jax import scores
from bert_jax.config import Config, TaskSettings
from bert_jax.data import labels as labelling
from bert_jax.data import words
from bert_jax.data.labelled import Example, table
from bert_jax.data.sequences import ExampleBatches, Sequences, frame
from bert_jax.data.tagged import Sentence, check_scheme, sentences
from bert_jax.data.tokenizer import TextTokenizer
from bert_jax.errors import UserError
from bert_jax.evaluate import HeldOut

_SCORES = {  # of each kind, its own first
    "classify": ("accuracy", "f1", "matthews"),
    "regress": ("pearson", "spearman"),
    "tag": ("entity_f1",),
}
KINDS = tuple(_SCORES)

Item = Example | Sentence


class Files(NamedTuple):
    """The examples of the training and the dev file, as read."""

    train: Sequence[Item]
    dev: Sequence[Item]


def read(settings: TaskSettings) -> Files:
    """Reads both files.

    Raises:
      UserError: one is not set, missing or wrong; the message names file and line.
    """
    for name in ("train_file", "dev_file"):
        if not getattr(settings, name):
            raise UserError(
                f"config.task.{name}: not set; --config.task.{name}=FILE names a file "
                "of labelled examples"
            )
    found = [_read(settings, f) for f in (settings.train_file, settings.dev_file)]
    return Files(*found)


def _read(settings: TaskSettings, path: str, labels: bool = True) -> Sequence[Item]:
    text = settings.text_column
    label = settings.label_column if labels else None
    delimiter = {"": None, "tab": "\t"}.get(settings.delimiter, settings.delimiter)
    if settings.kind != "tag":
        return table(
            path, text, settings.pair_column or None, label, delimiter=delimiter
        )
    found = sentences(path, _column(text), label and _column(label), delimiter)
    if labels:
        check_scheme(found)
    return found


def _column(name: str) -> int | str:
    return int(name) if name.lstrip("-").isdigit() else name


def settle(config: Config, files: Files) -> Config:
    """The config with what the files decide: labels, steps, when to evaluate.

    Raises:
      UserError: the score does not fit the kind of task, or the number of labels.
    """
    settings = config.task
    score = settings.score or _SCORES[settings.kind][0]
    if score not in _SCORES[settings.kind]:
        raise UserError(
            f"config.task.score={score}: config.task.kind={settings.kind} has "
            f"{', '.join(_SCORES[settings.kind])}"
        )
    labels = settings.labels
    if settings.kind == "classify" and not labels:
        labels = tuple(labelling.labels_of(files.train))  # pyright: ignore
    if settings.kind == "tag" and not labels:
        labels = words.tags_of(files.train)  # pyright: ignore
    if score == "f1" and len(labels) != 2:
        raise UserError(
            f"config.task.score={score}: needs two classes, there are {len(labels)}"
        )
    epoch = -(-len(files.train) // config.phases[0].batch)
    return dataclasses.replace(
        config,
        task=dataclasses.replace(settings, labels=labels, score=score),
        steps=max(1, math.ceil(epoch * settings.epochs)),
        eval_every=min(config.eval_every, epoch),
        save_every=min(config.eval_every, epoch),
    )


class _Set(NamedTuple):
    """One file, encoded."""

    sequences: Sequences
    labels: np.ndarray  # of each example, or of each token
    first: np.ndarray  # of each word the token that has its label, or -1; to tag


def _encode(
    config: Config, items: Sequence[Any], tokenizer: TextTokenizer, labels: bool = True
) -> _Set:
    settings, limit = config.task, config.phases[0].length
    if settings.kind == "tag":
        known = settings.labels if labels else ()
        return _Set(*words.encode(tokenizer, items, known, limit))
    first = [item.text for item in items]
    second = [item.pair or "" for item in items] if settings.pair_column else None
    sequences = frame(tokenizer, first, second, limit)
    found: np.ndarray = np.zeros(len(items), np.int32)
    if labels and settings.kind == "regress":
        found = labelling.to_numbers(items)
    elif labels:
        found = labelling.label_ids(items, settings.labels)
    return _Set(sequences, found, np.zeros(0, np.int64))


class Labelled:
    """Both files, encoded.

    Args:
      config: from `settle`.
      files: from `read`.
      tokenizer: of the model.
      unit: rows of a batch are a multiple of it: of the devices that share them.
    """

    def __init__(
        self, config: Config, files: Files, tokenizer: TextTokenizer, unit: int
    ) -> None:
        self._config, self._unit, self._dev_items = config, unit, files.dev
        self._train, self._dev = (_encode(config, f, tokenizer) for f in files)

    def batches(self, phase: int) -> ExampleBatches:
        """Training batches, shuffled anew in every epoch."""
        shape, seed = self._config.phases[phase], self._config.seed
        return ExampleBatches(*self._train[:2], shape, seed, self._unit)

    def held_out(self, phase: int) -> HeldOut:
        """The dev set in its own order, and its score."""
        shape, settings = self._config.phases[phase], self._config.task
        batches = ExampleBatches(*self._dev[:2], shape, None, self._unit)

        def score(outputs: list[dict[str, np.ndarray]]) -> dict[str, float]:
            logits = batches.collect([output["logits"] for output in outputs])
            if settings.kind == "tag":
                found = words.tags(logits, self._dev.first, settings.labels)
                return _entities(self._dev_items, found)
            return {"eval_score": measure(settings.score, logits, self._dev.labels)}

        facts = {"dev_examples": len(self._dev_items), "score_name": settings.score}
        return HeldOut(batches, facts, score)


def _entities(gold: Sequence[Any], found: list[str]) -> dict[str, float]:
    """Entity-level scores of the tags of all words, one sentence after another."""
    rest, predicted = iter(found), []
    for sentence in gold:
        predicted.append([next(rest) for _ in sentence.words])
    result = scores.entity_f1([sentence.tags for sentence in gold], predicted)
    return {
        "eval_score": result["f1"],
        "eval_precision": result["precision"],
        "eval_recall": result["recall"],
    }


def measure(name: str, logits: np.ndarray, labels: np.ndarray) -> float:
    """A task's official score of its predictions.

    Args:
      name: of a function in `scores`.
      logits: [E, C]; C = 1 for numbers.
      labels: [E] classes or numbers.
    """
    numbers = name in _SCORES["regress"]
    found = logits[:, 0] if numbers else logits.argmax(-1)
    return float(getattr(scores, name)(labels, found))


class Unlabelled:
    """A file to be predicted.

    Args:
      config: of the run.
      path: of the file; a file of words may lack the tags.
      tokenizer: of the model.
      unit: devices that share a batch.

    Raises:
      UserError: the file is wrong; the message names file and line.
    """

    def __init__(
        self, config: Config, path: str, tokenizer: TextTokenizer, unit: int
    ) -> None:
        self._settings = config.task
        self._items: Sequence[Any] = _read(config.task, path, labels=False)
        self._set = _encode(config, self._items, tokenizer, labels=False)
        shape = config.phases[0]
        self.batches = ExampleBatches(*self._set[:2], shape, None, unit)

    def describe(self, logits: np.ndarray) -> list[dict[str, Any]]:
        """What a model says of each example, in words.

        Args:
          logits: [E, C], or [T, C] to tag; from `batches.collect`.

        Returns:
          `prediction`, a label or a number, and of labels their `probabilities`; to
          tag, `words` and `tags` of each sentence.
        """
        settings = self._settings
        if settings.kind == "tag":
            rest = iter(words.tags(logits, self._set.first, settings.labels))
            return [
                {"words": s.words, "tags": [next(rest) for _ in s.words]}
                for s in self._items
            ]
        if settings.kind == "regress":
            return [{"prediction": round(float(value), 4)} for value in logits[:, 0]]
        share = np.exp(logits - logits.max(-1, keepdims=True))
        share /= share.sum(-1, keepdims=True)
        return [_named(settings.labels, row) for row in share]


def _named(labels: Sequence[str], share: np.ndarray) -> dict[str, Any]:
    shares = zip(labels, share, strict=True)
    return {
        "prediction": labels[int(share.argmax())],
        "probabilities": {label: round(float(value), 6) for label, value in shares},
    }
