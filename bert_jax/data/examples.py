"""From planned spans of the token store to the arrays of a batch."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bert_jax.config import Objective
from bert_jax.data.cut import Examples
from bert_jax.data.store import Store

Batch = dict[str, NDArray]


class Layout(NamedTuple):
    """What masking must know of a batch besides its tokens."""

    fixed: NDArray[np.bool_]  # [B, L] special tokens and padding
    opens: NDArray[np.bool_]  # [B, L] first tokens of sentences; none to mask tokens
    size: NDArray[np.int64]  # [B, E] tokens of each example, special ones included
    free: NDArray[np.int64]  # [B, E] tokens of each example that may be masked


def build(
    store: Store, examples: Examples, objective: Objective, length: int
) -> tuple[Batch, Layout]:
    """Lays examples out in rows, with special tokens, segments and positions.

    A pair reads [CLS] A [SEP] B [SEP], a single text [CLS] A [SEP]; with
    `full_sentences` a row is one example, [CLS] A [SEP] A' [SEP] and so on.

    Args:
      store: the tokenised corpus.
      examples: [B, K] spans; a first_length of 0 marks an empty slot.
      objective: pair and input decide the layout.
      length: L, tokens in a row.

    Returns:
      `token segment position example` int32 [B, L]; for pairs also `nsp_position
      nsp_label` int32 [B, K], label 1 where B does not follow A, and `nsp_weight`
      float32 [B, K], 0 where there is no B. Then their layout.
    """
    count = _piece_lengths(examples, objective, length)
    rows, slots = examples.first.shape
    pieces = (count.shape[1] - 1) // slots
    flat = count.ravel()
    begin = np.cumsum(flat) - flat
    source = np.zeros_like(count)
    source[:, 1:-1:pieces] = examples.first
    if pieces == 5:
        source[:, 3:-1:5] = examples.second
    ramp = np.arange(rows * length)
    where = np.repeat(source.ravel() - begin, flat)
    where += ramp
    token = np.take(store.tokens, where, mode="clip").astype(np.int32)

    opens = np.zeros(rows * length, bool)
    text = range(1, pieces, 2) if objective.masking != "token" else ()
    for piece in text:
        span = np.arange(count.size).reshape(count.shape)[:, piece:-1:pieces].ravel()
        span = span[flat[span] > 0]
        number, place = _sentence_starts(store, source.ravel()[span], flat[span])
        opens[begin[span[number]] + place] = True

    grid = begin.reshape(count.shape)
    vocabulary = store.vocabulary
    fixed = np.zeros(rows * length, bool)
    for piece, special in (
        (0, vocabulary.cls),
        (2, vocabulary.sep),
        (4, vocabulary.sep),
    ):
        if piece < pieces:
            at, used = grid[:, piece:-1:pieces], count[:, piece:-1:pieces] > 0
            token[at[used]] = special
            fixed[at[used]] = True
    number = np.arange(1, slots + 1)
    if objective.input == "full_sentences":
        number = np.minimum(number, 1)
    label = np.zeros_like(count, np.int32)
    label[:, :-1] = np.repeat(number, pieces)
    example = np.repeat(label.ravel(), flat)
    padding = np.flatnonzero(example == 0)
    token[padding], fixed[padding] = vocabulary.pad, True

    origin = grid[:, :-1:pieces].copy()
    if objective.input == "full_sentences":
        origin[:] = origin[:, :1]
    pad = grid[:, -1:]
    origin = np.concatenate([origin, pad], 1)
    size = np.add.reduceat(count, np.arange(0, count.shape[1], pieces), 1)
    position = ramp.astype(np.int32)
    position -= np.repeat(origin.ravel(), size.ravel()).astype(np.int32)
    position[padding] = 0

    shape = (rows, length)
    batch = {
        "token": token.reshape(shape),
        "segment": np.zeros(shape, np.int32),
        "position": position.reshape(shape),
        "example": example.reshape(shape),
    }
    if pieces == 5:
        second = np.zeros(count.shape, np.int32)
        second[:, 3:-1:5] = second[:, 4:-1:5] = 1
        batch["segment"] = np.repeat(second.ravel(), flat).reshape(shape)
        used = count[:, :-1:5] > 0
        start = grid[:, :-1:5] - np.arange(rows)[:, None] * length
        batch["nsp_position"] = np.where(used, start, 0).astype(np.int32)
        paired = examples.second_length > 0
        batch["nsp_label"] = (examples.wrong & paired).astype(np.int32)
        batch["nsp_weight"] = paired.astype(np.float32)
    free, size = examples.first_length + examples.second_length, size[:, :-1]
    if objective.input == "full_sentences":
        free, size = free.sum(1, keepdims=True), size.sum(1, keepdims=True)
    return batch, Layout(fixed.reshape(shape), opens.reshape(shape), size, free)


def _sentence_starts(
    store: Store, source: NDArray[np.int64], size: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sentences that begin in spans of the store.

    Args:
      store: the tokenised corpus.
      source: [N] first token of each span.
      size: [N] tokens.

    Returns:
      For each such sentence the number of its span, and the tokens before it there.
    """
    low, high = np.searchsorted(store.sentences, [source, source + size])
    span = np.repeat(np.arange(len(source)), high - low)
    before = np.cumsum(high - low) - (high - low)
    sentence = np.arange(len(span)) + (low - before)[span]
    return span, store.sentences[sentence] - source[span]


def _piece_lengths(
    examples: Examples, objective: Objective, length: int
) -> NDArray[np.int64]:
    """[B, K * pieces + 1] tokens of each piece of each slot, padding last."""
    rows, slots = examples.first.shape
    used = (examples.first_length > 0).astype(np.int64)
    opening = used.copy()
    if objective.input == "full_sentences":
        opening[:, 1:] = 0
    parts = [opening, examples.first_length, used]
    if objective.pair != "none":
        parts += [examples.second_length, examples.second_length > 0]
    count = np.zeros((rows, slots * len(parts) + 1), np.int64)
    for i, part in enumerate(parts):
        count[:, i : -1 : len(parts)] = part
    count[:, -1] = length - count[:, :-1].sum(1)
    return count
