"""Batches as a function of the step, and the iterators that run ahead of them."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bert_jax.config import Config
from bert_jax.data import examples, hashing, masking
from bert_jax.data.plan import Plan
from bert_jax.data.store import Store

Batch = examples.Batch

_HELD_OUT_SEED = 0  # every run on a store is scored on the same rows and masks
_TRAIN, _HELD_OUT = range(2)


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
        self.phase = config.phases[phase]
        if held_out:
            seed = int(hashing.key(_HELD_OUT_SEED, _HELD_OUT, self.phase.length))
        else:
            seed = int(hashing.key(config.seed, _TRAIN, phase))
        self._key = np.uint64(seed)
        self.masked = masking.max_masked(config.objective, self.phase.length)
        args = store, config.data, config.objective, self.phase, seed, held_out
        self.plan = Plan(*args)
        self._rows = None
        if held_out:
            self._rows = min(self.plan.rows_per_chapter, config.data.eval_rows)

    def __len__(self) -> int:
        """Batches of the held-out set; the last may be part empty."""
        assert self._rows is not None, "training batches have no end"
        return -(-self._rows // self.phase.batch)

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
