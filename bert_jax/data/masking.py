"""Which tokens the model must predict, and what it sees in their place.

Devlin et al. 2019, section 3.1 and appendix A.1: 15 % of the tokens of each
example are chosen; of these 80 % become [MASK], 10 % a random token (of the whole
vocabulary, specials included, as in the original code) and 10 % stay.
"""

import math

import numpy as np
from numpy.typing import NDArray

from bert_jax.config import Objective
from bert_jax.data import hashing
from bert_jax.data.examples import Batch, Layout
from bert_jax.data.store import Vocabulary

_COUNT, _CHOICE, _REPLACE = range(3)


def max_masked(objective: Objective, length: int) -> int:
    """P, the most tokens of a row that are predicted."""
    return max(1, math.ceil(objective.mask_rate * length - 1e-9))


def mask(
    batch: Batch,
    layout: Layout,
    vocabulary: Vocabulary,
    objective: Objective,
    key: hashing.Bits,
) -> Batch:
    """Chooses and hides tokens; special tokens and padding are never chosen.

    Args:
      batch: arrays of `examples.build`; `token` is changed in place.
      layout: of the same batch.
      vocabulary: the [MASK] id, the size, and which ids continue a word.
      objective: rates, rounding and whole_word.
      key: [B] bits of each row; all of its random choices follow from them.

    Returns:
      The batch with `mlm_position mlm_label` int32 [B, P] and `mlm_weight` float32
      [B, P] (1 for a token to predict, 0 for an unused place).
    """
    length = batch["token"].shape[1]
    most = max_masked(objective, length)
    quota = np.minimum(_quota(layout.size, objective, key), layout.free)
    bound = np.minimum(np.cumsum(quota, 1), most)
    row = hashing.mix(key + np.uint64(_CHOICE))[:, None]
    bits = hashing.mix(row + np.arange(length, dtype=np.uint64))
    if objective.whole_word:
        continues = vocabulary.continues[batch["token"]]
        place, used = _choose_words(batch["example"], layout, continues, bits, bound)
    else:
        place, used = _choose_tokens(batch["example"], layout, bits, bound)
    place = np.pad(place, ((0, 0), (0, most - place.shape[1])))
    used = np.pad(used, ((0, 0), (0, most - used.shape[1])))
    return _hide(batch, vocabulary, objective, key, place, used)


def _quota(
    size: NDArray[np.int64], objective: Objective, key: hashing.Bits
) -> NDArray[np.int64]:
    """[B, E] tokens to predict in each example.

    `nearest` is the original's rule, which at L = 128 predicts 14.8 % on average;
    `unbiased` rounds the running total of a row up or down at random, so that the
    mean is the mask rate and a full row never exceeds P.
    """
    if objective.mask_count == "nearest":
        count = np.maximum(np.rint(objective.mask_rate * size).astype(np.int64), 1)
        return np.where(size > 0, count, 0)
    shift = hashing.uniform(hashing.mix(key + np.uint64(_COUNT)))[:, None]
    total = np.floor(objective.mask_rate * np.cumsum(size, 1) + shift)
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


def _choose_words(
    example: NDArray[np.int32],
    layout: Layout,
    continues: NDArray[np.bool_],
    bits: hashing.Bits,
    bound: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Whole words in random order, leaving out those that exceed what is left.

    A word left out once never fits later, since the remainder only shrinks; so
    each pass takes, in every example at once, all words up to the first that does
    not fit, and drops those that are too long for what then remains.
    """
    rows, length = example.shape
    place = np.arange(length)
    opens = ~continues | layout.fixed
    opens[:, 1:] |= layout.fixed[:, :-1]
    opens[:, 0] = True
    start = np.maximum.accumulate(np.where(opens, place, 0), axis=1)
    row, first = np.nonzero(opens & ~layout.fixed)
    size = np.bincount((np.arange(rows)[:, None] * length + start).ravel())
    size = size[row * length + first]
    before = np.concatenate([np.zeros_like(bound[:, :1]), bound[:, :-1]], 1)
    quota = (bound - before).astype(np.int64).ravel()
    owner = row * bound.shape[1] + example[row, first] - 1
    order = np.lexsort((bits[row, first], owner))
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
    if taken:
        word = np.concatenate(taken)
        chosen[row[word] * length + first[word]] = True
    hidden = np.take_along_axis(chosen.reshape(rows, length), start, 1) & ~layout.fixed
    used = np.arange(int(hidden.sum(1).max(initial=0))) < hidden.sum(1)[:, None]
    places = np.zeros(used.shape, np.int64)
    places[used] = np.nonzero(hidden)[1]
    return places, used


def _hide(
    batch: Batch,
    vocabulary: Vocabulary,
    objective: Objective,
    key: hashing.Bits,
    place: NDArray[np.int64],
    used: NDArray[np.bool_],
) -> Batch:
    token = batch["token"]
    label = np.take_along_axis(token, place, 1)
    row = hashing.mix(key + np.uint64(_REPLACE))[:, None]
    bits = hashing.mix(row + place.astype(np.uint64))
    # The upper half of the bits chooses the replacement, the lower half the token.
    fate = (bits >> np.uint64(32)).astype(np.float64) * 2.0**-32
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
