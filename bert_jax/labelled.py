"""Fine-tuning data: labelled files as batches, and the scores of their dev set."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bert_jax import scores
from bert_jax.config import Config, TaskSettings
from bert_jax.data import labels as labelling
from bert_jax.data.labelled import Example, table
from bert_jax.data.sequences import ExampleBatches, Sequences, frame
from bert_jax.data.tokenizer import TextTokenizer
from bert_jax.errors import UserError
from bert_jax.evaluate import HeldOut

KINDS = ("classify", "regress")
_OWN = {"classify": "accuracy", "regress": "pearson"}  # score of each kind
_NUMBERS = ("pearson", "spearman")


class Files(NamedTuple):
    """The examples of the training and the dev file, as read."""

    train: list[Example]
    dev: list[Example]


def read(settings: TaskSettings) -> Files:
    """Reads both files.

    Raises:
      UserError: one is not set, missing or wrong; the message names file and line.
    """
    for name in ("train_file", "dev_file"):
        if not getattr(settings, name):
            raise UserError(
                f"config.task.{name}: not set; --config.task.{name}=FILE names a "
                ".tsv, .csv or .jsonl file with a column of labels"
            )
    train, dev = (
        table(
            path,
            settings.text_column,
            settings.pair_column or None,
            settings.label_column,
        )
        for path in (settings.train_file, settings.dev_file)
    )
    return Files(train, dev)


def settle(config: Config, files: Files) -> Config:
    """The config with what the files decide: labels, steps, when to evaluate.

    Raises:
      UserError: the score does not fit the kind of task.
    """
    settings = config.task
    score = settings.score or _OWN[settings.kind]
    if (score in _NUMBERS) != (settings.kind == "regress"):
        raise UserError(
            f"config.task.score={score}: does not fit config.task.kind={settings.kind}"
        )
    labels = settings.labels
    if settings.kind == "classify" and not labels:
        labels = tuple(labelling.labels_of(files.train))
    if score in ("f1",) and len(labels) != 2:
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


class Labelled:
    """Both files, encoded.

    Args:
      config: from `settle`.
      files: from `read`.
      tokenizer: of the model.
      unit: devices that share a batch.
    """

    def __init__(
        self, config: Config, files: Files, tokenizer: TextTokenizer, unit: int
    ) -> None:
        self._config, self._unit = config, unit
        self._train, self._dev = (
            (_frame(config, examples, tokenizer), self._labels(examples))
            for examples in files
        )

    def _labels(self, examples: Sequence[Example]) -> np.ndarray:
        settings = self._config.task
        if settings.kind == "regress":
            return np.array(labelling.to_numbers(examples), np.float32)
        return np.array(labelling.label_ids(examples, settings.labels), np.int32)

    def batches(self, phase: int) -> ExampleBatches:
        """Training batches, shuffled anew in every epoch."""
        config = self._config
        shape = config.phases[phase]
        return ExampleBatches(*self._train, shape, config.seed, self._unit)

    def held_out(self, phase: int) -> HeldOut:
        """The dev set in its own order, and its score."""
        shape = self._config.phases[phase]
        batches = ExampleBatches(*self._dev, shape, None, self._unit)
        labels, name = self._dev[1], self._config.task.score

        def score(outputs: list[dict[str, np.ndarray]]) -> dict[str, float]:
            logits = batches.collect([output["logits"] for output in outputs])
            return {"eval_score": measure(name, logits, labels)}

        facts = {"dev_examples": len(labels), "score_name": name}
        return HeldOut(batches, facts, score)


def unlabelled(
    config: Config, path: str, tokenizer: TextTokenizer, unit: int
) -> ExampleBatches:
    """The examples of a file to be predicted, in their order.

    Raises:
      UserError: the file is wrong; the message names file and line.
    """
    examples = table(path, config.task.text_column, config.task.pair_column or None)
    sequences = _frame(config, examples, tokenizer)
    none = np.zeros(len(examples), np.int32)
    return ExampleBatches(sequences, none, config.phases[0], None, unit)


def describe(settings: TaskSettings, logits: np.ndarray) -> list[dict[str, Any]]:
    """What a model says of each example, in words.

    Args:
      settings: kind and labels.
      logits: [E, C].

    Returns:
      `prediction`, a label or a number, and of labels their `probabilities`.
    """
    if settings.kind == "regress":
        return [{"prediction": round(float(value), 4)} for value in logits[:, 0]]
    share = np.exp(logits - logits.max(-1, keepdims=True))
    share /= share.sum(-1, keepdims=True)
    return [
        {
            "prediction": settings.labels[int(row.argmax())],
            "probabilities": {
                label: round(float(value), 6)
                for label, value in zip(settings.labels, row, strict=True)
            },
        }
        for row in share
    ]


def _frame(
    config: Config, examples: Sequence[Example], tokenizer: TextTokenizer
) -> Sequences:
    first = [example.text for example in examples]
    second = [example.pair or "" for example in examples]
    pairs = second if config.task.pair_column else None
    return frame(tokenizer, first, pairs, config.phases[0].length)


def measure(name: str, logits: np.ndarray, labels: np.ndarray) -> float:
    """A task's official score of its predictions.

    Args:
      name: of a function in `scores`.
      logits: [E, C]; C = 1 for numbers.
      labels: [E] classes or numbers.
    """
    found = logits[:, 0] if name in _NUMBERS else logits.argmax(-1)
    return float(getattr(scores, name)(labels, found))
