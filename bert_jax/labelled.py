"""Fine-tuning data: labelled files as batches, and the scores of their dev set."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import xxhash

from bert_jax import scores
from bert_jax.config import Config, Phase, TaskSettings
from bert_jax.data import answers, tfds, words
from bert_jax.data import labels as labelling
from bert_jax.data.labelled import Choice, Example, choices, table
from bert_jax.data.sequences import ExampleBatches, Sequences, frame
from bert_jax.data.squad import Question, questions, repair
from bert_jax.data.tagged import Sentence, check_scheme, sentences
from bert_jax.data.tokenizer import TextTokenizer
from bert_jax.errors import UserError
from bert_jax.evaluate import HeldOut

_SCORES = {  # of each kind, its own first
    "classify": ("accuracy", "f1", "matthews"),
    "regress": ("pearson", "spearman"),
    "tag": ("entity_f1",),
    "choice": ("accuracy",),
    "span": ("f1", "exact"),
}
KINDS = tuple(_SCORES)

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
      encoding: of the characters of the files, `config.data.encoding`.

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
        items = _read(settings, path, encoding)
        kept = _keep(settings, path, items)
        if left_out := len(items) - len(kept):
            notes.append(
                f"{path}: {left_out} examples are left out, whose label is "
                f"{settings.skip_label!r}"
            )
        return kept

    if not dev_file:
        learnt, held = _hold_out(load(train_file), settings)
    else:
        learnt, held = load(train_file) if train else (), load(dev_file)
    if settings.kind == "span" and train:
        learnt, report = repair(learnt)  # pyright: ignore
        if report.repaired or report.unrepairable:
            notes.append(
                f"{train_file}: {report.repaired} answers were moved to where their "
                f"text is, {report.unrepairable} were not found; {report.dropped} "
                "questions without an answer are left out"
            )
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
) -> tuple[Sequence[Any], Sequence[Any]]:
    """Splits by a hash of the first text, so that none lies on both sides."""
    limit, parts = settings.dev_share * 2.0**64, ([], [])
    for item in items:
        text = item.context if settings.kind == "span" else str(item[0])
        parts[xxhash.xxh3_64_intdigest(text.encode()) < limit].append(item)
    if not all(parts):
        raise UserError(
            f"config.task.dev_share={settings.dev_share}: of the {len(items)} examples "
            f"of {settings.train_file} that leaves {len(parts[0])} to train and "
            f"{len(parts[1])} to score on; set another share, or --config.task.dev_file"
        )
    return parts


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


def _read(
    settings: TaskSettings, path: str, encoding: str, labels: bool = True
) -> Sequence[Item]:
    text = settings.text_column
    label = settings.label_column if labels else None
    delimiter = {"": None, "tab": "\t"}.get(settings.delimiter, settings.delimiter)
    if settings.kind == "span":
        return questions(path, labels, encoding)
    if settings.kind == "choice":
        ends, start = settings.pair_column.split(","), settings.start_column or None
        form = {"start": start, "delimiter": delimiter, "encoding": encoding}
        return choices(path, [text], ends, label, **form)
    if settings.kind != "tag":
        pair, missing = settings.pair_column or None, settings.skip_label or None
        form = {"delimiter": delimiter, "missing": missing, "encoding": encoding}
        return table(path, text, pair, label, **form)
    columns = _column(text), label and _column(label)
    found = sentences(path, *columns, delimiter, encoding)
    if labels:
        check_scheme(found)
    return found


def _column(name: str) -> int | str:
    return int(name) if name.lstrip("-").isdigit() else name


def settle(
    config: Config, files: Files, tokenizer: TextTokenizer | None = None
) -> Config:
    """The config with what the files decide: labels, steps, when to evaluate.

    Args:
      config: of the run.
      files: from `read`.
      tokenizer: of the model, to count the windows of questions on a text.

    Raises:
      UserError: the score does not fit the kind of task, or the number of labels;
        or the features the number of layers.
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
    if settings.kind == "classify" and score == "f1" and len(labels) != 2:
        raise UserError(
            f"config.task.score={score}: needs two classes, there are {len(labels)}"
        )
    if settings.features.endswith("last_4") and config.model.layers < 4:
        raise UserError(
            f"config.task.features={settings.features}: needs 4 layers, and the model "
            f"has {config.model.layers}; use last or sum_all"
        )
    examples = len(files.train)
    if settings.kind == "span" and tokenizer:
        shape = config.phases[0].length, settings.doc_stride, settings.null_windows
        examples = answers.count(tokenizer, files.train, *shape)  # pyright: ignore
    epoch = -(-examples // config.phases[0].batch)
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
    # To tag: of each word the token that has its label, or -1. To choose: where the
    # choices of each question begin, and the end. To find spans: each one's question.
    parts: np.ndarray


def _encode(
    config: Config,
    items: Sequence[Any],
    tokenizer: TextTokenizer,
    labels: bool = True,
    share: float = 1.0,
) -> _Set:
    settings, limit = config.task, config.phases[0].length
    if settings.kind == "tag":
        known = settings.labels if labels else ()
        return _Set(*words.encode(tokenizer, items, known, limit))
    if settings.kind == "span":
        shape = limit, settings.doc_stride, share
        return _Set(*answers.encode(tokenizer, items, *shape))
    if settings.kind == "choice":
        context = [item.context for item in items for _ in item.endings]
        ends = [ending for item in items for ending in item.endings]
        sequences = frame(tokenizer, context, ends, limit)
        groups = np.concatenate([[0], np.cumsum([len(i.endings) for i in items])])
        right = [i.label == n for i in items for n in range(len(i.endings))]
        return _Set(sequences, np.array(right, np.int32), groups)
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
      note: is told of examples left out and answers that had to be repaired.
    """

    def __init__(
        self,
        config: Config,
        files: Files,
        tokenizer: TextTokenizer,
        unit: int,
        note: Callable[[str], None] = print,
    ) -> None:
        self._config, self._unit, self._files = config, unit, files
        for text in files.notes:
            note(text)
        share = config.task.null_windows
        self._train = (
            _encode(config, files.train, tokenizer, share=share)
            if files.train
            else None
        )
        self._dev = _encode(config, files.dev, tokenizer)

    def borders(self) -> list[int]:
        """No steps: every phase is scored on the same dev set."""
        return []

    def fingerprint(self) -> str:
        """Hash of the examples of both files."""
        text = repr((self._files.train, self._files.dev))
        return xxhash.xxh3_64_hexdigest(text.encode())

    def batches(self, phase: int) -> ExampleBatches:
        """Training batches, shuffled anew in every epoch."""
        assert self._train is not None, "only the dev file was read"
        shape, seed = self._config.phases[phase], self._config.seed
        return _batches(self._config, self._train, shape, seed, self._unit)

    def held_out(self, phase: int) -> HeldOut:
        """The dev set in its own order, and its score."""
        shape, settings = self._config.phases[phase], self._config.task
        batches = _batches(self._config, self._dev, shape, None, self._unit)

        def score(outputs: list[dict[str, np.ndarray]]) -> dict[str, float]:
            tokens = settings.kind in ("tag", "span")
            logits = batches.collect([o["logits"] for o in outputs], tokens)
            if settings.kind == "span":
                return _span_scores(settings, self._files.dev, self._dev, logits)
            if settings.kind == "tag":
                found = words.tags(logits, self._dev.parts, settings.labels)
                return _entities(self._files.dev, found)
            if settings.kind == "choice":
                right = _split(self._dev.labels[:, None], self._dev.parts)
                found = _split(logits, self._dev.parts)
                gold, best = ([s.argmax() for s in part] for part in (right, found))
                return {"eval_score": scores.accuracy(gold, best)}
            return {"eval_score": measure(settings.score, logits, self._dev.labels)}

        facts = {"dev_examples": len(self._files.dev), "score_name": settings.score}
        return HeldOut(batches, facts, score)


def _span_scores(
    settings: TaskSettings, items: Sequence[Any], data: _Set, logits: np.ndarray
) -> dict[str, float]:
    """Official scores; where questions may lack an answer, at the best threshold."""
    found = answers.decode(items, answers.Windows(*data), logits, settings.max_answer)
    golds = {item.id: [text for text, _ in item.answers] for item in items}
    some = any(item.impossible for item in items)
    predicted = answers.choose(items, found, math.inf)
    null = {q.id: one.null for q, one in zip(items, found, strict=True)}
    result = scores.squad(predicted, golds, null if some else None, threshold=math.inf)
    best = "best_" if some else ""
    more = {"eval_null_threshold": result["best_f1_threshold"]} if some else {}
    return {
        "eval_score": result[f"{best}{settings.score}"],
        "eval_exact": result[f"{best}exact"],
        "eval_f1": result[f"{best}f1"],
        **more,
    }


def _batches(
    config: Config, data: _Set, shape: Phase, seed: int | None, unit: int
) -> ExampleBatches:
    groups = data.parts if config.task.kind == "choice" else None
    return ExampleBatches(*data[:2], shape, seed, unit, groups)


def _split(logits: np.ndarray, groups: np.ndarray) -> list[np.ndarray]:
    """The scores of the choices of each question."""
    return np.split(logits[:, 0], groups[1:-1])


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
      path: of the file; a file of words may lack the tags. Or a data set's name.
      tokenizer: of the model.
      unit: devices that share a batch.
      threshold: above which a question is left without an answer (span).

    Raises:
      UserError: the file is wrong; the message names file and line.
    """

    def __init__(
        self,
        config: Config,
        path: str,
        tokenizer: TextTokenizer,
        unit: int,
        threshold: float = math.inf,
    ) -> None:
        self._settings, self._threshold = config.task, threshold
        path = tfds.with_split(path, "test")
        self._items: Sequence[Any] = _read(
            config.task, path, config.data.encoding, labels=False
        )
        self._set = _encode(config, self._items, tokenizer, labels=False)
        shape = config.phases[0]
        self.batches = _batches(config, self._set, shape, None, unit)

    def describe(self, logits: np.ndarray) -> list[dict[str, Any]]:
        """What a model says of each example, in words.

        Args:
          logits: [E, C], or [T, C] of tokens; from `batches.collect`.

        Returns:
          `prediction`, a label or a number, and of labels their `probabilities`; to
          tag, `words` and `tags` of each sentence; to answer, `id`, `prediction` and
          `nbest`.
        """
        settings = self._settings
        if settings.kind == "span":
            windows = answers.Windows(*self._set)
            found = answers.decode(self._items, windows, logits, settings.max_answer)
            chosen = answers.choose(self._items, found, self._threshold)
            return [
                {"id": i, "prediction": text, "nbest": answers.nbest(one)}
                for (i, text), one in zip(chosen.items(), found, strict=True)
            ]
        if settings.kind == "tag":
            rest = iter(words.tags(logits, self._set.parts, settings.labels))
            return [
                {"words": s.words, "tags": [next(rest) for _ in s.words]}
                for s in self._items
            ]
        if settings.kind == "choice":
            found = map(_share, _split(logits, self._set.parts))
            return [_named([str(i) for i in range(len(s))], s) for s in found]
        if settings.kind == "regress":
            return [{"prediction": round(float(value), 4)} for value in logits[:, 0]]
        return [_named(settings.labels, row) for row in _share(logits)]


def _share(logits: np.ndarray) -> np.ndarray:
    power = np.exp(logits - logits.max(-1, keepdims=True))
    return power / power.sum(-1, keepdims=True)


def _named(labels: Sequence[str], share: np.ndarray) -> dict[str, Any]:
    shares = zip(labels, share, strict=True)
    return {
        "prediction": labels[int(share.argmax())],
        "probabilities": {label: round(float(value), 6) for label, value in shares},
    }
