"""Labelled sequences as batches: the same examples a step, packed into few rows.

A batch holds a fixed number of examples, as fine-tuning recipes count them, laid out
in as few rows as they need: short examples do not pay for long rows. The number of
rows is rounded up to one of few sizes, so that few programs are compiled.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bert_jax.config import Phase
from bert_jax.data import hashing
from bert_jax.data.packing import pack
from bert_jax.data.tokenizer import TextTokenizer

Batch = dict[str, NDArray]

_SHUFFLE = 0


class Sequences(NamedTuple):
    """Texts or pairs of texts, framed by special tokens and cut to the limit."""

    token: NDArray[np.int32]  # [T]
    segment: NDArray[np.int32]  # [T] 1 for the second text and its [SEP]
    offset: NDArray[np.int64]  # [S + 1]
    span: NDArray[np.int32]  # [T, 2] characters of its text; [0, 0] for special ones
    cut: int  # sequences that were shortened


def frame(
    tokenizer: TextTokenizer,
    first: Sequence[str],
    second: Sequence[str] | None,
    limit: int,
    spans: bool = False,
) -> Sequences:
    """[CLS] first [SEP], or [CLS] first [SEP] second [SEP].

    Between the two there are as many [SEP] as the tokenizer puts there.

    Args:
      tokenizer: of the model.
      first: texts.
      second: as many, or None.
      limit: [tokens] of a sequence. Of a pair that is too long the longer text loses
        tokens from its end until both fit, as in the original code.
      spans: find out where in its text each token stands, which takes longer; without
        it `span` is empty.
    """
    one = _encode(tokenizer, first, spans)
    length = np.diff(one.offset)
    if second is None:
        kept = np.minimum(length, limit - 2)
        return _lay(tokenizer, [(one, kept)], int((kept < length).sum()), spans)
    two = _encode(tokenizer, second, spans)
    other = np.diff(two.offset)
    room = limit - 2 - tokenizer.separators
    half = room // 2
    # The longer one gives way until both are equally long; then they take turns.
    kept = np.where(
        length + other <= room, length, np.clip(room - other, room - half, length)
    )
    kept = np.minimum(kept, length)
    rest = np.minimum(other, room - kept)
    shortened = int(((kept < length) | (rest < other)).sum())
    return _lay(tokenizer, [(one, kept), (two, rest)], shortened, spans)


class _Encoded(NamedTuple):
    ids: NDArray[np.int32]
    offset: NDArray[np.int64]
    span: NDArray[np.int32]


def _encode(tokenizer: TextTokenizer, texts: Sequence[str], spans: bool) -> _Encoded:
    if spans:
        return _Encoded(*tokenizer.encode_spans(texts))
    return _Encoded(*tokenizer.encode_batch(texts), np.zeros((0, 2), np.int32))


def _lay(
    tokenizer: TextTokenizer,
    parts: list[tuple[_Encoded, NDArray]],
    cut: int,
    spans: bool,
) -> Sequences:
    vocabulary, separators = tokenizer.vocabulary(), tokenizer.separators
    # [CLS], the texts, what stands between them, and [SEP].
    total = 2 + sum(kept for _, kept in parts) + separators * (len(parts) - 1)
    end = np.concatenate([[0], np.cumsum(total)])
    token = np.full(end[-1], vocabulary.sep, np.int32)
    segment = np.zeros(end[-1], np.int32)
    span = np.zeros((end[-1] if spans else 0, 2), np.int32)
    token[end[:-1]] = vocabulary.cls
    start = end[:-1] + 1
    for number, (text, kept) in enumerate(parts):
        owner = np.repeat(np.arange(len(kept)), kept)
        inside = np.arange(len(owner)) - np.repeat(np.cumsum(kept) - kept, kept)
        take, put = text.offset[owner] + inside, start[owner] + inside
        token[put] = text.ids[take]
        segment[put] = number
        segment[start + kept] = number
        if spans:
            span[put] = text.span[take]
        start = start + kept + separators
    return Sequences(token, segment, end, span, cut)


class ExampleBatches:
    """All batches of a labelled set, by number.

    Args:
      sequences: one for each example.
      labels: [E] or [E, ...] of each example, or [T] of each token; there -1 is none.
      phase: `length` of a row, `batch` examples a step, `max_packed` in a row.
      seed: shuffles every epoch anew; None keeps the order, for evaluation.
      unit: devices that share a batch; rows are a multiple of it.
      groups: [E + 1] where an example's sequences begin, if it has several, the
        choices of a question; labels are then 1 for the right one and 0.
    """

    masked = 0  # tokens of a row that a masked-token head works on

    def __init__(
        self,
        sequences: Sequences,
        labels: NDArray,
        phase: Phase,
        seed: int | None,
        unit: int = 1,
        groups: NDArray[np.int64] | None = None,
    ):
        self.sequences, self.labels, self.phase = sequences, labels, phase
        self._seed, self._unit, self._groups = seed, unit, groups
        self._count = len(sequences.offset if groups is None else groups) - 1
        # A sequence has at least two tokens.
        self._per_token = len(labels) != len(sequences.offset) - 1
        self._order = functools.lru_cache(2)(self._shuffle)

    def __len__(self) -> int:
        """Batches of an epoch; the last may hold fewer examples."""
        return -(-self._count // self.phase.batch)

    def describe(self) -> list[str]:
        """Nothing: every example is in an epoch once."""
        return []

    def examples(self, number: int) -> NDArray[np.int64]:
        """The numbers of the examples in batch `number`, counted over all epochs."""
        epoch, index = divmod(number, len(self))
        first = index * self.phase.batch
        chosen = np.arange(first, min(first + self.phase.batch, self._count))
        return chosen if self._seed is None else self._order(epoch)[chosen]

    def _shuffle(self, epoch: int) -> NDArray[np.int64]:
        key = hashing.key(self._seed or 0, _SHUFFLE, epoch)
        return np.argsort(hashing.draw(key, np.arange(self._count)))

    def layout(self, number: int) -> NDArray[np.int64]:
        """[R, K] the sequence in each slot of each row of a batch; -1 is none."""
        chosen = self.examples(number)
        if self._groups is not None:
            chosen, _ = _members(self._groups, chosen)
        size = np.diff(self.sequences.offset)[chosen]
        slots = self.phase.max_packed
        rows = pack(size, self.phase.length, slots, np.arange(len(size)))
        count = round_up(-(-len(rows) // self._unit)) * self._unit
        full = np.full((count, slots), -1, np.int64)
        full[: len(rows)] = np.where(rows >= 0, chosen[rows], -1)
        return full

    def collect(self, outputs: Sequence[NDArray], tokens: bool = False) -> NDArray:
        """What a model gave for each batch of one epoch, in the order of the file.

        Args:
          outputs: [R, K, ...] of each batch, or of tokens [R, L, ...].
          tokens: the outputs are of tokens.

        Returns:
          [E, ...], or [T, ...].
        """
        offset = self.sequences.offset
        count = offset[-1] if tokens else len(offset) - 1
        found = np.zeros((count, *outputs[0].shape[2:]), outputs[0].dtype)
        for number, output in enumerate(outputs):
            place = self.layout(number)
            if tokens:
                place = rows_of(self.sequences, place, self.phase.length)[1]
            found[place[place >= 0]] = output[place >= 0]
        return found

    def batch(self, number: int, part: tuple[int, int] = (0, 1)) -> Batch:
        """The rows of a batch that a host reads.

        Args:
          number: of the batch, from 0, over all epochs.
          part: (index, count) of the host among those that share the batch.

        Returns:
          `token segment position example` int32 [R, L]; `nsp_position` int32 [R, K],
          the [CLS] of each example; `label` and `weight` float32, [R, K] of examples
          or [R, L] of tokens; of choices also `group` int32 [R, K], which question
          of the batch each belongs to.
        """
        rows = self.layout(number)
        share = len(rows) // part[1]
        rows = rows[part[0] * share : (part[0] + 1) * share]
        arrays, source = rows_of(self.sequences, rows, self.phase.length)
        place = source if self._per_token else rows
        used = place >= 0
        if self._per_token:
            used &= self.labels[place] >= 0
        label = self.labels[place]
        label[~used] = 0
        batch = {**arrays, "label": label, "weight": used.astype(np.float32)}
        if self._groups is not None:
            member, group = _members(self._groups, self.examples(number))
            order = np.argsort(member)
            at = np.searchsorted(member, rows, sorter=order)
            found = group[order[np.minimum(at, len(order) - 1)]]
            batch["group"] = np.where(used, found, 0).astype(np.int32)
        return batch


def _members(
    groups: NDArray[np.int64], examples: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The sequences of some examples, and for each the place of its example."""
    size = np.diff(groups)[examples]
    place = np.repeat(np.arange(len(examples)), size)
    inside = np.arange(len(place)) - np.repeat(np.cumsum(size) - size, size)
    return groups[examples][place] + inside, place


def rows_of(
    sequences: Sequences, rows: NDArray[np.int64], length: int
) -> tuple[dict[str, NDArray[np.int32]], NDArray[np.int64]]:
    """The model's arrays for packed sequences.

    Args:
      sequences: all of them.
      rows: [R, K] those in each row by their numbers, -1 where there is none.
      length: L, tokens of a row.

    Returns:
      `token segment position example` int32 [R, L], `nsp_position` int32 [R, K], the
      [CLS] of each; and int64 [R, L], where among all tokens each one comes from, -1
      for padding.
    """
    begin = sequences.offset[:-1][rows]
    size = np.where(rows >= 0, np.diff(sequences.offset)[rows], 0)
    end = np.cumsum(size, axis=1)
    place = np.arange(length)
    example = (place[None, :, None] >= end[:, None, :]).sum(-1)
    real = place < end[:, -1:]
    example = np.where(real, example, 0)
    start = np.take_along_axis(end - size, example, axis=1)
    position = np.where(real, place - start, 0)
    source = np.where(real, np.take_along_axis(begin, example, axis=1) + position, -1)
    arrays = {
        "token": np.where(real, sequences.token[source], 0),
        "segment": np.where(real, sequences.segment[source], 0),
        "position": position,
        "example": np.where(real, example + 1, 0),
        "nsp_position": np.minimum(end - size, length - 1),
    }
    return {name: array.astype(np.int32) for name, array in arrays.items()}, source


def round_up(count: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, 24...: few shapes, little padding."""
    size = 1
    while size < count:
        size = size + max(size // 2, 1) if size.bit_count() == 1 else size * 4 // 3
    return size
