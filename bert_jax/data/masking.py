"""Which tokens the model must predict, and what it sees in their place.

Devlin et al. 2019, section 3.1 and appendix A.1: 15 % of the tokens of each
example are chosen; of these 80 % become [MASK], 10 % a random token (of the whole
vocabulary, specials included, as in the original code) and 10 % stay.

Spans are those of Joshi et al. 2020, section 3.1: runs of words that become [MASK],
random tokens or stay as one.

In text without spaces a word, as the tokenizer marks words, may be as long as a line.
Words longer than `WORD` tokens are therefore divided into parts of that many, each of
which counts as a word. Where no word fits into what is left of the quota, as many
tokens of one are masked. So every example has its quota, whatever the script.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bert_jax.config import Objective
from bert_jax.data import hashing
from bert_jax.data.examples import Batch, Layout
from bert_jax.data.store import Vocabulary

_COUNT, _CHOICE, _REPLACE, _LENGTH, _PART = range(5)

WORD = 8  # [tokens] of the longest word that is masked as a whole

# P(length <= n words), n from 1 to 10: geometric with p = 0.2, scaled to add up to 1.
# The paper's text says "clip", but its mean of 3.8 and its authors' code are these.
_LENGTHS = 1 - np.cumprod([0.8] * 10)
_LENGTHS /= _LENGTHS[-1]


class Words(NamedTuple):
    """The W words of a batch, or parts of words, that may be masked, in order."""

    row: NDArray[np.int64]  # [W]
    first: NDArray[np.int64]  # [W] place of its first token
    size: NDArray[np.int64]  # [W] tokens
    start: NDArray[np.int64]  # [B, L] place of the first token of each token's word


def max_masked(objective: Objective, length: int) -> int:
    """P, the most tokens of a row that are predicted."""
    if objective.kind == "ltr":
        return length
    return max(1, math.ceil(objective.mask_rate * length - 1e-9))


def mask(
    batch: Batch,
    layout: Layout,
    vocabulary: Vocabulary,
    objective: Objective,
    key: hashing.Bits,
) -> Batch:
    """Chooses and hides tokens; special tokens and padding are never chosen.

    Of `ltr` nothing is hidden: each token of an example is to be predicted but the
    first, at the place before it.

    Args:
      batch: arrays of `examples.build`; `token` is changed in place.
      layout: of the same batch.
      vocabulary: the [MASK] id, the size, and which ids continue a word.
      objective: rates, rounding, masking and span_boundary.
      key: [B] bits of each row; all of its random choices follow from them.

    Returns:
      The batch with `mlm_position mlm_label` int32 [B, P] and `mlm_weight` float32
      [B, P] (1 for a token to predict, 0 for an unused place). With span_boundary
      also int32 [B, P] `sbo_left sbo_right`, the places next to each token's span,
      and `sbo_offset`, its own place in the span from 0.
    """
    length = batch["token"].shape[1]
    if objective.kind == "ltr":
        return batch | _next(batch["token"], batch["example"])
    most = max_masked(objective, length)
    quota = np.minimum(_quota(layout.size, objective, key), layout.free)
    bound = np.minimum(np.cumsum(quota, 1), most)
    row = hashing.mix(key + np.uint64(_CHOICE))[:, None]
    bits = hashing.mix(row + np.arange(length, dtype=np.uint64))
    if objective.masking == "token":
        place, used = _choose_tokens(batch["example"], layout, bits, bound)
    else:
        words = _words(layout, vocabulary.continues[batch["token"]])
        span = words.start
        if objective.masking == "span":
            span = _spans(words, layout, key)
        part = hashing.mix(row[:, 0] + np.uint64(_PART))
        place, used = _choose_words(
            batch["example"], layout, words, span, bits, bound, part
        )
    place = np.pad(place, ((0, 0), (0, most - place.shape[1])))
    used = np.pad(used, ((0, 0), (0, most - used.shape[1])))
    unit = place
    if objective.masking == "span":
        unit = np.take_along_axis(span, place, 1)
    if objective.span_boundary:
        batch |= _boundary(place, unit, used)
    return _hide(batch, vocabulary, objective, key, place, unit, used)


def _next(token: NDArray[np.int32], example: NDArray[np.int32]) -> Batch:
    following = np.zeros_like(example)
    following[:, :-1] = example[:, 1:]
    used = (following == example) & (example > 0)
    place = np.broadcast_to(np.arange(token.shape[1], dtype=np.int32), token.shape)
    return {
        "mlm_position": np.ascontiguousarray(place),
        "mlm_label": np.where(used, np.roll(token, -1, 1), 0),
        "mlm_weight": used.astype(np.float32),
    }


def _quota(
    size: NDArray[np.int64], objective: Objective, key: hashing.Bits
) -> NDArray[np.int64]:
    """[B, E] tokens to predict in each example.

    `nearest` is the original's rule, which at L = 128 predicts 14.8 % on average;
    `unbiased` rounds the running total of a row up or down at random, so that the
    mean is the mask rate and a full row never exceeds P. A row that is so short that
    none would be left has one.
    """
    if objective.mask_count == "nearest":
        count = np.maximum(np.rint(objective.mask_rate * size).astype(np.int64), 1)
        return np.where(size > 0, count, 0)
    shift = hashing.uniform(hashing.mix(key + np.uint64(_COUNT)))[:, None]
    total = np.floor(objective.mask_rate * np.cumsum(size, 1) + shift)
    total[(total[:, -1] == 0) & (size[:, 0] > 0)] = 1
    return np.diff(total.astype(np.int64), axis=1, prepend=0)


def _choose_tokens(
    example: NDArray[np.int32],
    layout: Layout,
    bits: hashing.Bits,
    bound: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The tokens of lowest hash in each example: [B, P] places, and which are used.

    One sort of integer keys `example | hash | place` orders a whole row.
    """
    length, last = example.shape[1], layout.size.shape[1]
    place_bits, example_bits = (length - 1).bit_length(), last.bit_length()
    kind = np.uint32 if place_bits + example_bits <= 16 else np.uint64
    hash_bits = np.iinfo(kind).bits - place_bits - example_bits
    order = (bits >> np.uint64(64 - hash_bits)).astype(kind)
    order <<= kind(place_bits)
    order |= np.arange(length, dtype=kind)
    order |= example.astype(kind) << kind(place_bits + hash_bits)
    order[layout.fixed] = np.iinfo(kind).max
    order.sort(1)

    slot = np.arange(int(bound.max(initial=0)))
    begin = np.cumsum(layout.free, 1) - layout.free
    before = np.concatenate([np.zeros_like(bound[:, :1]), bound[:, :-1]], 1)
    member = (slot[None, :, None] >= bound[:, None, :]).sum(2)
    member = np.minimum(member, last - 1)
    index = slot + np.take_along_axis((begin - before).astype(np.int64), member, 1)
    used = slot < bound[:, -1:]
    chosen = np.take_along_axis(order, np.where(used, index, 0), 1)
    place = chosen & kind(2**place_bits - 1)
    return np.where(used, place, 0).astype(np.int64), used


def _words(layout: Layout, continues: NDArray[np.bool_]) -> Words:
    rows, length = continues.shape
    opens = ~continues | layout.fixed | layout.opens
    opens[:, 1:] |= layout.fixed[:, :-1]
    opens[:, 0] = True
    place = np.arange(length)
    start = np.maximum.accumulate(np.where(opens, place, 0), axis=1)
    opens |= (place - start) % WORD == 0
    start = np.maximum.accumulate(np.where(opens, place, 0), axis=1)
    row, first = np.nonzero(opens & ~layout.fixed)
    size = np.bincount((np.arange(rows)[:, None] * length + start).ravel())
    return Words(row, first, size[row * length + first], start)


def _spans(words: Words, layout: Layout, key: hashing.Bits) -> NDArray[np.int64]:
    """Cuts the text between special tokens into spans: [B, L] places where they begin.

    Every word draws the length of a span that it would open. Those open one that are
    reached from the first word of a text, span after span: each turn doubles how
    many spans have been followed.
    """
    rows, width = layout.fixed.shape
    count = len(words.row)
    number = np.arange(count + 1)
    opens = np.append(layout.fixed[words.row, words.first - 1], True)
    end = np.flatnonzero(opens)[np.cumsum(opens[:-1])]
    row = hashing.mix(key + np.uint64(_LENGTH))[words.row]
    bits = hashing.mix(row + words.first.astype(np.uint64))
    length = 1 + np.searchsorted(_LENGTHS, hashing.uniform(bits), "right")
    following = np.append(np.minimum(number[:-1] + length, end), count)
    for _ in range(width.bit_length()):
        opens[following[opens]] = True
        following = following[following]
    begin = np.zeros((rows, width), np.int64)
    opens = opens[:-1]
    begin[words.row[opens], words.first[opens]] = words.first[opens]
    return np.maximum.accumulate(begin, axis=1)


def _choose_words(
    example: NDArray[np.int32],
    layout: Layout,
    words: Words,
    span: NDArray[np.int64],
    bits: hashing.Bits,
    bound: NDArray[np.int64],
    part: hashing.Bits,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Whole words in random order, leaving out those that exceed what is left.

    The words of one `span` [B, L] follow one another, so that a span which exceeds
    what is left is cut there. If only words are left over that exceed it, part of the
    next one fills the quota; the random bits `part` [B] decide which part.

    A word left out once never fits later, since the remainder only shrinks; so
    each pass takes, in every example at once, all words up to the first that does
    not fit, and drops those that are too long for what then remains.
    """
    rows, length = example.shape
    row, first, size, start = words
    before = np.concatenate([np.zeros_like(bound[:, :1]), bound[:, :-1]], 1)
    quota = (bound - before).astype(np.int64).ravel()
    owner = row * bound.shape[1] + example[row, first] - 1
    order = np.lexsort((bits[row, span[row, first]], owner))
    alive, taken = order, []
    while True:
        alive = alive[size[alive] <= quota[owner[alive]]]
        if not len(alive):
            break
        total = np.cumsum(size[alive])
        opening = np.r_[True, owner[alive][1:] != owner[alive][:-1]]
        base = np.maximum.accumulate(np.where(opening, total - size[alive], 0))
        fits = total - base <= quota[owner[alive]]
        taken.append(alive[fits])
        quota -= np.bincount(owner[alive[fits]], size[alive[fits]], len(quota)).astype(
            np.int64
        )
        alive = alive[~fits]
    chosen = np.zeros(rows * length, bool)
    word = np.concatenate(taken or [order[:0]])
    chosen[row[word] * length + first[word]] = True
    hidden = np.take_along_axis(chosen.reshape(rows, length), start, 1) & ~layout.fixed
    if quota.any():
        left = order[~chosen[row[order] * length + first[order]]]
        left = left[quota[owner[left]] > 0]
        left = left[np.unique(owner[left], return_index=True)[1]]
        size = size[left]
        count = quota[owner[left]]
        begin = first[left] + hashing.below(part[row[left]], size - count + 1)
        inside = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        hidden[np.repeat(row[left], count), np.repeat(begin, count) + inside] = True
    used = np.arange(int(hidden.sum(1).max(initial=0))) < hidden.sum(1)[:, None]
    places = np.zeros(used.shape, np.int64)
    places[used] = np.nonzero(hidden)[1]
    return places, used


def _boundary(
    place: NDArray[np.int64], unit: NDArray[np.int64], used: NDArray[np.bool_]
) -> Batch:
    """What lies beside the run of masked tokens of one span that each belongs to."""
    slot = np.arange(place.shape[1])
    opens = np.ones(place.shape, bool)
    opens[:, 1:] = (np.diff(place, axis=1) != 1) | (np.diff(unit, axis=1) != 0)
    closes = np.roll(opens, -1, 1)
    closes[:, -1] = True
    first = np.maximum.accumulate(np.where(opens, slot, 0), 1)
    last = np.where(closes, slot, slot[-1])[:, ::-1]
    last = np.minimum.accumulate(last, 1)[:, ::-1]
    left = np.take_along_axis(place, first, 1) - 1
    right = np.take_along_axis(place, last, 1) + 1
    arrays = {"left": left, "right": right, "offset": place - left - 1}
    return {
        f"sbo_{name}": np.where(used, array, 0).astype(np.int32)
        for name, array in arrays.items()
    }


def _hide(
    batch: Batch,
    vocabulary: Vocabulary,
    objective: Objective,
    key: hashing.Bits,
    place: NDArray[np.int64],
    unit: NDArray[np.int64],
    used: NDArray[np.bool_],
) -> Batch:
    """Replaces the chosen tokens; those of one `unit` [B, P] have one fate."""
    token = batch["token"]
    label = np.take_along_axis(token, place, 1)
    row = hashing.mix(key + np.uint64(_REPLACE))[:, None]
    bits = hashing.mix(row + place.astype(np.uint64))
    # The upper half of the bits chooses the replacement, the lower half the token.
    fate = hashing.mix(row + unit.astype(np.uint64)) >> np.uint64(32)
    fate = fate.astype(np.float64) * 2.0**-32
    pick = hashing.below(bits << np.uint64(32), np.int64(vocabulary.size))
    share = objective.mask_token_share
    shown = np.where(fate < share, vocabulary.mask, label)
    random = (fate >= share) & (fate < share + objective.random_token_share)
    shown = np.where(random, pick, shown).astype(np.int32)
    rows = np.broadcast_to(np.arange(len(token))[:, None], place.shape)
    token[rows[used], place[used]] = shown[used]
    batch["mlm_position"] = place.astype(np.int32)
    batch["mlm_label"] = np.where(used, label, 0).astype(np.int32)
    batch["mlm_weight"] = used.astype(np.float32)
    return batch
