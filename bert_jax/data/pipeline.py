"""Batches as a function of the step, and the iterators that run ahead of them."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bert_jax.config import Config
from bert_jax.data import examples, hashing, masking
from bert_jax.data.plan import STRETCH_ROWS, Plan
from bert_jax.data.store import Store
from bert_jax.data.texts import Texts, split
from bert_jax.errors import UserError

Batch = examples.Batch

_HELD_OUT_SEED = 0  # every run on a store is scored on the same rows and masks
_TRAIN, _HELD_OUT, _ORDER = range(3)
_ALL = 2**62  # rows of a phase that does not end


class Batches:
    """All batches of one phase, or of its held-out set, by number.

    Args:
      store: the tokenised corpus.
      config: of the run.
      phase: index into `config.phases`.
      held_out: the held-out rows, with fixed masks, instead of training rows.
    """

    def __init__(
        self, store: Store, config: Config, phase: int, held_out: bool = False
    ):
        self.config, self.store = config, store
        self.phase, self._rows = config.phases[phase], None
        self.masked = masking.max_masked(config.objective, self.phase.length)
        self._train, self._held_out = split(store, config.data.eval_share)
        if not (self._held_out if held_out else self._train).tokens:
            what = "held out" if held_out else "left to train on"
            raise UserError(
                f"config.data.eval_share={config.data.eval_share}: no text is {what}"
            )
        if not held_out:
            self.plan = _plan(self._train, config, phase)
            self._key = np.uint64(_seed(config, phase))
            return
        seed = int(hashing.key(_HELD_OUT_SEED, _HELD_OUT, self.phase.length))
        self._key = np.uint64(seed)
        self.plan = Plan(
            self._held_out,
            config.objective,
            self.phase,
            seed,
            order=_HELD_OUT_SEED,
            stretch=STRETCH_ROWS * self.phase.length,
            rows=_ALL,
        )
        self._rows = min(self.plan.epoch_rows, config.data.eval_rows)

    def __len__(self) -> int:
        """Batches of the held-out set; the last may be part empty."""
        assert self._rows is not None, "training batches have no end"
        return -(-self._rows // self.phase.batch)

    def pairs(
        self, begin: int, end: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """Lengths of A, lengths of B and labels of the pairs in some held-out rows.

        Args:
          begin: of the rows, in sizes of the held-out set; 0 is where that begins.
          end: of the rows; those from 1 are other rows of the text that is held out.
        """
        assert self._rows is not None, "training rows have no end"
        found = self.plan.take(np.arange(begin * self._rows, end * self._rows))
        found = found.take(found.second_length > 0)
        return found.first_length, found.second_length, found.wrong

    def describe(self) -> list[str]:
        """Sentences on what is in an epoch of training rows."""
        counts, about = self.plan.coverage, "about " * (self.plan.chapters > 1)
        text, trimmed = counts["text_tokens"], counts["trimmed_tokens"]
        told = [
            f"an epoch is {about}{self.plan.epoch_rows:,} rows with {text:,} tokens of "
            f"text, each once but {trimmed:,} that are left out"
        ]
        if counts["partner_tokens"]:
            told[0] += f"; {counts['partner_tokens']:,} more in random second segments"
            if len(self._train) == 1:
                told.append("random second segments are from the only text there is")
        if self._train.are_passages:
            told.append(
                f"{self._held_out.tokens:,} tokens in {len(self._held_out):,} passages "
                "are held out, as there are too few documents to hold out whole ones"
            )
        return told

    def batch(self, number: int, part: tuple[int, int] = (0, 1)) -> Batch:
        """Rows of batch `number`, counted from the start of the phase.

        Args:
          number: of the batch, from 0.
          part: (index, count) of the host among those that share the global batch;
            its rows are the same for any division.

        Returns:
          A dict of arrays, see `examples.build` and `masking.mask`. Beyond the end
          of the held-out set rows are padding with weight 0.
        """
        share = self.phase.batch // part[1]
        first = number * self.phase.batch + part[0] * share
        return self.rows(np.arange(first, first + share, dtype=np.int64))

    def rows(self, row: NDArray[np.int64]) -> Batch:
        """The rows of the given numbers, counted from the start of the phase."""
        part = self.plan.take(row)
        if self._rows is not None:
            part.first_length[row >= self._rows] = 0
            part.second_length[row >= self._rows] = 0
        objective, vocabulary = self.config.objective, self.store.vocabulary
        batch, layout = examples.build(self.store, part, objective, self.phase.length)
        key = hashing.draw(self._key, row)
        return masking.mask(batch, layout, vocabulary, objective, key)


def _seed(config: Config, phase: int) -> int:
    return int(hashing.key(config.seed, _TRAIN, phase))


def _plan(texts: Texts, config: Config, phase: int) -> Plan:
    """The plan of a phase, which begins where the one before it ends."""
    starts = config.phase_starts()
    rows = (starts[phase + 1] - starts[phase]) * config.phases[phase].batch
    return Plan(
        texts,
        config.objective,
        config.phases[phase],
        _seed(config, phase),
        order=int(hashing.key(config.seed, _ORDER)),
        stretch=STRETCH_ROWS * max(shape.length for shape in config.phases),
        rows=rows,
        after=_plan(texts, config, phase - 1) if phase else None,
    )


def shapes(config: Config, phase: int) -> dict[str, tuple[tuple[int, int], type]]:
    """Shape and dtype of each array of a phase's batches, without making one.

    Args:
      config: of the run.
      phase: index into `config.phases`.

    Returns:
      name -> (shape, dtype), as `examples.build` and `masking.mask` have them.
    """
    shape, objective = config.phases[phase], config.objective
    masked = masking.max_masked(objective, shape.length)
    groups = {
        "token segment position example": shape.length,
        "mlm_position mlm_label mlm_weight": masked,
    }
    if objective.span_boundary:
        groups["sbo_left sbo_right sbo_offset"] = masked
    if objective.pair != "none":
        groups["nsp_position nsp_label nsp_weight"] = shape.max_packed
    return {
        name: (
            (shape.batch, size),
            np.float32 if name.endswith("weight") else np.int32,
        )
        for names, size in groups.items()
        for name in names.split()
    }


def iterate(
    read: Callable[[int], Batch], start: int, stop: int, ahead: int = 4
) -> Iterator[Batch]:
    """Yields `read(start)` to `read(stop - 1)`, working ahead in the background.

    tf.data does the work where TensorFlow is installed, a thread elsewhere; the
    batches are the same.

    Args:
      read: makes the batch of a number.
      start: first number.
      stop: end of the numbers.
      ahead: batches kept ready.

    Yields:
      Dicts of arrays.
    """
    try:
        import tensorflow as tf
    except ImportError:
        return _iterate_thread(read, start, stop, ahead)
    return _iterate_tf(tf, read, start, stop, ahead)


def _iterate_tf(
    tf: Any, read: Callable[[int], Batch], start: int, stop: int, ahead: int
) -> Iterator[Batch]:
    tf.config.set_visible_devices([], "GPU")
    sample = read(start)
    names, kinds = list(sample), [array.dtype for array in sample.values()]

    def load(number):
        return tf.numpy_function(lambda n: list(read(int(n)).values()), [number], kinds)

    dataset = tf.data.Dataset.range(start, stop).map(load)
    options = tf.data.Options()
    options.autotune.enabled = False
    options.threading.private_threadpool_size = 1
    dataset = dataset.with_options(options).prefetch(ahead)
    for arrays in dataset.as_numpy_iterator():
        yield dict(zip(names, arrays, strict=True))


def _iterate_thread(
    read: Callable[[int], Batch], start: int, stop: int, ahead: int
) -> Iterator[Batch]:
    ready: queue.Queue[Batch | BaseException] = queue.Queue(ahead)
    closed = threading.Event()

    def put(item: Batch | BaseException) -> None:
        while not closed.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for number in range(start, stop):
                if closed.is_set():
                    return
                put(read(number))
        except BaseException as error:  # the reader of the queue raises it
            put(error)

    threading.Thread(target=work, daemon=True, name="batches").start()
    try:
        for _ in range(start, stop):
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        closed.set()
