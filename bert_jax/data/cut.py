"""Cutting text into examples: segments, and pairs of them, as array operations.

The rules are those of Devlin et al. 2019, appendix A.2, and of the authors' example
generator, but that no text is lost: what a row has no room for begins the next
segment. A sentence longer than a row is cut too, and its pieces follow one another.
"""

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bert_jax.config import Objective
from bert_jax.data import hashing
from bert_jax.data.store import Store
from bert_jax.data.texts import Spans, Texts

_TRIES = 4  # places that are tried for a random partner of the right length

# What a draw of random bits is for; part of its key.
_SHORT, _TARGET, _FULL, _SPLIT, _COIN, _OTHER, *_PLACE = range(6 + _TRIES)

Draw = tuple[np.uint64, ...]  # one key for each purpose


class Examples(NamedTuple):
    """Examples as spans of the token store; arrays of one common shape."""

    first: NDArray[np.int64]  # [token offset] of segment A
    first_length: NDArray[np.int64]  # [tokens]
    second: NDArray[np.int64]  # [token offset] of segment B
    second_length: NDArray[np.int64]  # [tokens]; 0 where there is no B
    wrong: NDArray[np.bool_]  # B is not what follows A

    def take(self, index: NDArray) -> "Examples":
        """The examples at `index`, of any shape."""
        return Examples(*(field[index] for field in self))  # pyright: ignore


class _Segments(NamedTuple):
    """Stretches [begin, stop) of text, one of each text span, and their split."""

    text: NDArray[np.int64]
    begin: NDArray[np.int64]
    split: NDArray[np.int64]  # where B would begin; stop, if there is but one token
    stop: NDArray[np.int64]
    at_sentence: NDArray[np.bool_]  # the split is where a sentence begins

    def take(self, index: NDArray) -> "_Segments":
        return _Segments(*(field[index] for field in self))  # pyright: ignore


def cut(
    texts: Texts,
    spans: Spans,
    objective: Objective,
    length: int,
    seed: tuple[int, ...],
    squeeze: float = 0.0,
) -> Examples:
    """Cuts all spans into examples, side by side.

    Each turn of the loop takes the next segment of every span that has text left, so
    there are as many turns as the longest span has segments. All of the text is in
    the examples exactly once, random second segments (pair=nsp) not counted.

    Args:
      texts: random second segments are taken from all of them.
      spans: what to cut; stretches of these texts.
      objective: pair, input and short_seq_prob decide the cut.
      length: [tokens] of a row.
      seed: key of every random choice.
      squeeze: [share of rows] to save, about: fewer pairs are random, and more segments
        are as long as a row.

    Returns:
      The examples; within a span in order of their text.

    The inputs by name are those of Liu et al. 2019, section 4.2.
    """
    keys = tuple(hashing.key(*seed, purpose) for purpose in range(6 + _TRIES))
    pairs = objective.pair != "none"
    room = length - (3 if pairs else 2)
    text, begin, end = spans
    turns = []
    while len(begin):
        stop = _stops(texts.store, begin, end, objective, room, squeeze, keys)
        if not pairs:
            none = np.zeros_like(begin)
            turn, following = Examples(begin, stop - begin, begin, none, none > 0), stop
        else:
            segments = _split(texts.store, text, begin, stop, objective.pair, keys)
            if objective.pair == "sop":
                turn, following = _ordered(texts.store, segments, keys), stop
            else:
                chance = max(0.5 - squeeze, 0.25)
                turn, following = _next(
                    texts, segments, end, objective, room, chance, keys
                )
        turns.append(turn)
        alive = following < end
        text, begin, end = text[alive], following[alive], end[alive]
    return Examples(*(np.concatenate(fields) for fields in zip(*turns, strict=True)))


def _stops(
    store: Store,
    begin: NDArray[np.int64],
    end: NDArray[np.int64],
    objective: Objective,
    room: int,
    squeeze: float,
    keys: Draw,
) -> NDArray[np.int64]:
    """Where the segments that start at `begin` stop."""
    sentences, last = store.sentences, len(store.sentences) - 1
    short = hashing.uniform(hashing.draw(keys[_SHORT], begin))
    short = short < objective.short_seq_prob
    target = np.full_like(begin, room)
    if short.any():
        bits = hashing.draw(keys[_TARGET], begin[short])
        target[short] = 2 + hashing.below(bits, np.int64(room - 1))
    if objective.input == "sentence_pair":
        after = np.searchsorted(sentences, begin, "right")
        stop = sentences[np.minimum(after + 1, last)]
    elif objective.pair == "sop":
        # Only full sentences, two at least if a row has room for them.
        after = np.searchsorted(sentences, begin, "right")
        at = np.searchsorted(sentences, begin + target, "right") - 1
        most = np.searchsorted(sentences, begin + room, "right") - 1
        at = np.minimum(np.maximum(at, after + 1), most)
        alone = (at < after) | ((at == after) & ~_is_border(store, begin))
        stop = np.where(alone, begin + room, sentences[at])
    elif objective.pair != "none":
        # The sentence that reaches the target still belongs to it.
        at = np.searchsorted(sentences, begin + target, "left")
        stop = sentences[np.minimum(at, last)]
    else:  # only full sentences, but of a sentence longer than a row
        at = np.searchsorted(sentences, begin + target, "right") - 1
        stop = sentences[at]
        stop = np.where(stop > begin, stop, sentences[np.minimum(at + 1, last)])
    if squeeze:
        full = hashing.uniform(hashing.draw(keys[_FULL], begin)) < 20 * squeeze
        stop = np.where(full, begin + room, stop)
    stop = np.minimum(np.minimum(stop, begin + room), end)
    if objective.pair == "none":
        return stop
    # A token alone at the end could not be divided into A and B.
    alone = np.where(end - begin <= room, end, stop - 1)
    return np.where(end - stop == 1, alone, stop)


def _split(
    store: Store,
    text: NDArray[np.int64],
    begin: NDArray[np.int64],
    stop: NDArray[np.int64],
    pair: str,
    keys: Draw,
) -> _Segments:
    """Draws where A ends: at a sentence boundary, or within an only sentence.

    A boundary is drawn evenly from those inside the segment; within a sentence a
    place is drawn from the middle half. With pair=sop only segments of full sentences
    are divided at a boundary, so that no side alone begins or ends within a sentence.
    """
    sentences, last = store.sentences, len(store.sentences) - 1
    low = np.searchsorted(sentences, begin, "right")
    inner = np.searchsorted(sentences, stop, "left") - low
    bits = hashing.draw(keys[_SPLIT], begin)
    pick = low + hashing.below(bits, np.maximum(inner, 1))
    size = stop - begin
    quarter = np.maximum(size // 4, 1)
    within = quarter + hashing.below(bits, np.maximum(size - 2 * quarter + 1, 1))
    at_sentence = inner > 0
    if pair == "sop":
        at_sentence &= _is_border(store, begin) & _is_border(store, stop)
    split = np.where(at_sentence, sentences[np.minimum(pick, last)], begin + within)
    return _Segments(text, begin, split, stop, at_sentence)


def _ordered(store: Store, segments: _Segments, keys: Draw) -> Examples:
    """Pairs A and B in order, and half of them swapped.

    Both sides are full sentences, or both begin and end within one: otherwise these
    places would tell the order, and the segment stays whole, without a B.

    Lan et al. 2020, section 3.1.
    """
    _, begin, split, stop, at_sentence = segments
    borders = [_is_border(store, place) for place in (begin, split, stop)]
    split = np.where(at_sentence | ~np.any(borders, axis=0), split, stop)
    coin = hashing.draw(keys[_COIN], begin) & np.uint64(1)
    swapped = (coin == 0) & (split < stop)
    first, first_end = np.where(swapped, (split, stop), (begin, split))
    second, second_end = np.where(swapped, (begin, split), (split, stop))
    return Examples(first, first_end - first, second, second_end - second, swapped)


def _is_border(store: Store, place: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether a sentence begins or ends at each token offset."""
    return store.sentences[np.searchsorted(store.sentences, place, "left")] == place


def _next(
    texts: Texts,
    segments: _Segments,
    end: NDArray[np.int64],
    objective: Objective,
    room: int,
    chance: float,
    keys: Draw,
) -> tuple[Examples, NDArray[np.int64]]:
    """Pairs of A and what follows it, or for half of them a random B.

    What a random B displaces is put back: the text goes on after A, as in the
    original. A single token always has a random B.

    Returns:
      The pairs, and where each text goes on.
    """
    _, begin, split, stop, _ = segments
    random = hashing.uniform(hashing.draw(keys[_COIN], begin)) < chance
    random |= split == stop
    if len(texts) == 1:  # what lies on both sides may be nothing
        low, high = texts.span(segments.text)
        random &= (begin > low) | (stop < high)
    chosen = np.flatnonzero(random)
    drawn = segments.take(chosen)
    # One token that is left over could not be divided: A leaves two or takes it.
    shorter = np.where(drawn.split - drawn.begin > 1, drawn.split - 1, drawn.stop)
    lone = (end[chosen] - drawn.split == 1) & (drawn.split < drawn.stop)
    drawn = drawn._replace(split=np.where(lone, shorter, drawn.split))
    start, length = _partners(texts, drawn, objective, room, keys)
    split, second, second_length = split.copy(), split.copy(), stop - split
    split[chosen], second[chosen], second_length[chosen] = drawn.split, start, length
    pair = Examples(begin, split - begin, second, second_length, random)
    return pair, np.where(random, split, stop)


def _partners(
    texts: Texts, segments: _Segments, objective: Objective, room: int, keys: Draw
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Random second segments: where they begin and their lengths.

    The text is drawn evenly from all others; of a single text, from what lies before
    and after the segment. So that lengths and places of the cuts do not tell a random
    B from the one that follows, it has the length of that one, and begins and ends at
    a sentence boundary, or within a sentence, where that one does.
    """
    wanted = np.maximum(segments.stop - segments.split, 1)
    limit = room - (segments.split - segments.begin)
    bits = hashing.draw(keys[_OTHER], segments.begin)
    if len(texts) > 1:
        other = hashing.below(bits, np.int64(len(texts) - 1))
        low, high = texts.span(other + (other >= segments.text))
    else:
        low, high = texts.span(segments.text)
        before, after = segments.begin - low, high - segments.stop
        later = hashing.uniform(bits) * (before + after) >= before
        low = np.where(later, segments.stop, low)
        high = np.where(later, high, segments.begin)
    sentences, last = texts.store.sentences, len(texts.store.sentences) - 1
    stops = np.searchsorted(sentences, segments.stop, "left")
    closed = sentences[np.minimum(stops, last)] == segments.stop
    one = objective.input == "sentence_pair"
    place = functools.partial(_place, sentences, one=one)
    begin, stop = place(
        low, high, wanted, limit, segments, closed, hashing.draw(keys[_PLACE[0]], bits)
    )
    # Whole sentences have the wanted length only about: the best of some tries.
    index = np.flatnonzero(segments.at_sentence & closed)
    if not one and len(index):
        some = low[index], high[index], wanted[index], limit[index]
        these = segments.take(index), closed[index]
        for key in keys[_PLACE[1] :]:
            fresh = hashing.draw(key, bits[index])
            there = place(*some, *these, fresh)
            lengths = there[1] - there[0], stop[index] - begin[index]
            better = np.abs(lengths[0] - some[2]) < np.abs(lengths[1] - some[2])
            begin[index] = np.where(better, there[0], begin[index])
            stop[index] = np.where(better, there[1], stop[index])
    return begin, stop - begin


def _place(
    sentences: NDArray[np.int64],
    low: NDArray[np.int64],
    high: NDArray[np.int64],
    wanted: NDArray[np.int64],
    limit: NDArray[np.int64],
    segments: _Segments,
    closed: NDArray[np.bool_],
    bits: hashing.Bits,
    one: bool,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A stretch in [low, high) of about the wanted length, at most `limit`.

    Args:
      sentences: token offsets of all sentences.
      low: where the text begins.
      high: where it ends.
      wanted: [tokens]
      limit: [tokens]
      segments: it is to begin at a sentence where these split at one.
      closed: it is to end where a sentence does.
      bits: random.
      one: whole sentences are to be single ones.
    """
    last = len(sentences) - 1
    latest = np.maximum(high - (1 if one else wanted), low)
    # A sentence that begins in [low, latest], or any place there.
    early = np.searchsorted(sentences, low, "left")
    count = np.searchsorted(sentences, latest, "right") - early
    drawn = early + hashing.below(bits, np.maximum(count, 1))
    sentence = np.where(count > 0, sentences[np.minimum(drawn, last)], low)
    latest = np.maximum(high - wanted, low)
    within = low + (hashing.uniform(bits) * (latest - low + 1)).astype(np.int64)
    begin = np.where(segments.at_sentence, sentence, within)
    stop = begin + wanted
    at = np.searchsorted(sentences, stop, "left")
    above = sentences[np.minimum(at, last)]
    if one:
        at = np.searchsorted(sentences, begin, "right")
        whole = np.minimum(sentences[np.minimum(at, last)], begin + limit)
    else:
        below = sentences[np.maximum(at - 1, 0)]
        nearer = (stop - below < above - stop) | (above - begin > limit)
        whole = np.where((below > begin) & nearer, below, above)
        whole = np.minimum(whole, begin + limit)
    whole = np.where(closed | one, whole, stop)
    # From within a sentence to its end: the exact length, counted from the end.
    ending = np.where(closed, np.minimum(above, high), stop)
    shifted = np.maximum(ending - wanted, low)
    begin, stop = (
        np.where(segments.at_sentence, begin, shifted),
        np.where(segments.at_sentence, whole, ending),
    )
    return begin, np.minimum(stop, high)
