"""Fine-tuning data: labelled files as batches, and the scores of their dev set."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import xxhash

from bert_jax import scores
from bert_jax.config import Config, Phase, TaskSettings
from bert_jax.data import answers, tfds, words
from bert_jax.data import labels as labelling
from bert_jax.data.labelled import is_empty
from bert_jax.data.sequences import ExampleBatches, Sequences, frame
from bert_jax.data.squad import repeated
from bert_jax.data.task_files import Files, Source
from bert_jax.data.task_files import read as read
from bert_jax.data.tokenizer import TextTokenizer
from bert_jax.errors import UserError
from bert_jax.evaluate import HeldOut

_SCORES = {  # of each kind, its own first
    "classify": ("accuracy", "f1", "matthews"),
    "regress": ("pearson", "spearman"),
    "tag": ("entity_f1",),
    "choice": ("accuracy",),
    "span": ("f1", "exact", "korquad"),
}
KINDS = tuple(_SCORES)
_FEW = 20  # classes or labels


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
    # What is held out of the training file has labels of the same set.
    items = [*files.train, *([] if settings.dev_file else files.dev)]
    if settings.kind == "classify" and not labels:
        labels = tuple(labelling.labels_of(items))  # pyright: ignore
        _check_classes(labels, len(items), settings)
    if settings.kind == "tag" and not labels:
        labels = words.tags_of(items)  # pyright: ignore
    if settings.kind == "classify" and score == "f1":
        _check_positive(settings.positive, labels)
    if settings.features.endswith("last_4") and config.model.layers < 4:
        raise UserError(
            f"config.task.features={settings.features}: needs 4 layers, and the model "
            f"has {config.model.layers}; use last or sum_all"
        )
    examples = len(files.train)
    if settings.kind == "span" and tokenizer:
        shape = config.phases[0].length, settings.doc_stride, settings.null_windows
        examples = answers.count(tokenizer, files.train, *shape)  # pyright: ignore
        if files.train and not examples:
            raise UserError(
                f"{settings.train_file}: no window of config.phases[0].length="
                f"{config.phases[0].length} tokens holds an answer; set longer rows"
            )
    epoch = -(-examples // config.phases[0].batch)
    return dataclasses.replace(
        config,
        task=dataclasses.replace(settings, labels=labels, score=score),
        steps=max(1, math.ceil(epoch * settings.epochs)),
        eval_every=min(config.eval_every, epoch),
        save_every=min(config.eval_every, epoch),
    )


def _check_classes(
    labels: Sequence[str], examples: int, settings: TaskSettings
) -> None:
    column = f"config.task.label_column={settings.label_column}"
    if len(labels) == 1:
        raise UserError(
            f"{settings.train_file}: all labels are {labels[0]!r}, and a classifier "
            f"needs two classes at least; is {column} right?"
        )
    if len(labels) == examples > _FEW:
        raise UserError(
            f"{settings.train_file}: each of {examples:,} examples has a label of its "
            f"own; is {column} right? Numbers need --config.task.kind=regress"
        )


def _check_positive(positive: str, labels: Sequence[str]) -> None:
    """Raise UserError unless it is clear which class F1 counts."""
    if positive and positive not in labels:
        raise UserError(
            f"config.task.positive={positive}: no such label; use one of "
            f"{', '.join(labels[:_FEW])}"
        )
    if not positive and len(labels) != 2:
        raise UserError(
            f"config.task.score=f1: needs two classes, there are {len(labels)}; or "
            "name the class that counts with --config.task.positive=LABEL"
        )


def facts(config: Config, files: Files) -> dict[str, Any]:
    """Numbers and fingerprints of the examples that were read, and the labels."""
    found: dict[str, Any] = {"labels": list(config.task.labels)}
    for name, items in (("train", files.train), ("dev", files.dev)):
        if items:
            digest = xxhash.xxh3_64()
            for item in items:
                values = item._asdict()
                values.pop("where", None)  # the file may move
                digest.update(repr(values).encode("utf-8", "replace"))
            found[name] = {"examples": len(items), "fingerprint": digest.hexdigest()}
    return found


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
    unusable: Counter[str] | None = None,
) -> _Set:
    settings, limit = config.task, config.phases[0].length
    if settings.kind == "tag":
        known = settings.labels if labels else ()
        return _Set(*words.encode(tokenizer, items, known, limit))
    if settings.kind == "span":
        shape = limit, settings.doc_stride, share
        return _Set(*answers.encode(tokenizer, items, *shape, unusable))
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
        self._positive = config.task.positive or "".join(config.task.labels[1:2])
        self._vocabulary = tokenizer.vocabulary().hash
        for text in files.notes:
            note(text)
        share, unusable = config.task.null_windows, Counter[str]()
        self._train = None
        if files.train:
            more = {"share": share, "unusable": unusable}
            self._train = _encode(config, files.train, tokenizer, **more)
        for reason, count in unusable.items():
            note(f"{config.task.train_file}: {count:,} answers {reason}")
        if config.task.kind == "classify" and config.task.score == "f1":
            note(
                f"f1 is that of label {self._positive!r}; "
                "--config.task.positive=LABEL chooses another"
            )
        self._dev = _encode(config, files.dev, tokenizer)

    def borders(self) -> list[int]:
        """No steps: every phase is scored on the same dev set."""
        return []

    def facts(self) -> dict[str, Any]:
        """Fingerprints of the examples, labels and vocabulary."""
        return {**facts(self._config, self._files), "vocabulary": self._vocabulary}

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
            labels = self._dev.labels
            if settings.score == "f1":
                place = settings.labels.index(self._positive)
                return {"eval_score": scores.f1(labels, logits.argmax(-1), place)}
            return {"eval_score": measure(settings.score, logits, labels)}

        facts = {"dev_examples": len(self._files.dev), "score_name": settings.score}
        if settings.kind == "classify" and settings.score == "f1":
            facts["positive"] = self._positive
        return HeldOut(batches, facts, score)


def _span_scores(
    settings: TaskSettings, items: Sequence[Any], data: _Set, logits: np.ndarray
) -> dict[str, float]:
    """Official scores; where questions may lack an answer, at the best threshold."""
    found = answers.decode(items, answers.Windows(*data), logits, settings.max_answer)
    # By number: ids may occur twice, in files that were put together.
    golds = {str(n): [text for text, _ in q.answers] for n, q in enumerate(items)}
    some = any(item.impossible for item in items)
    texts = answers.choose(found, math.inf)
    predicted = {str(n): text for n, text in enumerate(texts)}
    null = {str(n): one.null for n, one in enumerate(found)}
    result = scores.squad(
        predicted,
        golds,
        null if some else None,
        language="ko" if settings.score == "korquad" else "en",
        threshold=math.inf,
    )
    chosen = "f1" if settings.score == "korquad" else settings.score
    best = "best_" if some else ""
    more = {"eval_null_threshold": result["best_f1_threshold"]} if some else {}
    return {
        "eval_score": result[f"{best}{chosen}"],
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
        source = Source(config.task, path, config.data.encoding, labels=False)
        self._items: Sequence[Any] = source.items
        self.notes, self.layout = list(source.notes), source.layout
        if empty := sum(map(self._is_empty, self._items)):
            self.notes.append(
                f"{path}: {empty:,} rows have no text; their prediction is empty"
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
          `nbest`. Of rows without a text `prediction` is None, of sentences without
          words both lists are empty, of questions it is "".
        """
        settings = self._settings
        if settings.kind == "span":
            windows = answers.Windows(*self._set)
            found = answers.decode(self._items, windows, logits, settings.max_answer)
            chosen = answers.choose(found, self._threshold)
            return [
                {"id": q.id, "prediction": text, "nbest": answers.nbest(one)}
                for q, text, one in zip(self._items, chosen, found, strict=True)
            ]
        if settings.kind == "tag":
            rest = iter(words.tags(logits, self._set.parts, settings.labels))
            return [
                {"words": s.words, "tags": [next(rest) for _ in s.words]}
                for s in self._items
            ]
        if settings.kind == "choice":
            found = map(_share, _split(logits, self._set.parts))
            rows = [_named([str(i) for i in range(len(s))], s) for s in found]
        elif settings.kind == "regress":
            rows = [{"prediction": round(float(value), 4)} for value in logits[:, 0]]
        else:
            rows = [_named(settings.labels, row) for row in _share(logits)]
        return [
            dict.fromkeys(row) if self._is_empty(item) else row
            for item, row in zip(self._items, rows, strict=True)
        ]

    def repeated(self) -> str | None:
        """Describe the first id that two questions have, if there is one."""
        return repeated(self._items) if self._settings.kind == "span" else None

    def _is_empty(self, item: Any) -> bool:
        if self._settings.kind == "span":
            return not item.context.strip()
        return not item.words if self._settings.kind == "tag" else is_empty(item)


def _share(logits: np.ndarray) -> np.ndarray:
    power = np.exp(logits - logits.max(-1, keepdims=True))
    return power / power.sum(-1, keepdims=True)


def _named(labels: Sequence[str], share: np.ndarray) -> dict[str, Any]:
    shares = zip(labels, share, strict=True)
    return {
        "prediction": labels[int(share.argmax())],
        "probabilities": {label: round(float(value), 6) for label, value in shares},
    }
