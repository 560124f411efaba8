"""Which text is in which row of an epoch, computed at once from (seed, epoch).

Documents are cut at sentence boundaries into segments, segments become examples
(with a partner where pairs are asked for), examples are packed into rows and
rows are shuffled, all as array operations. The rules are those of Devlin et al.
2019, appendix A.2, and of the authors' example generator.

A corpus too large to plan at once is worked through in chapters: each epoch
deals the documents into as many chapters as bound the plan's memory, and every
chapter counts as the same number of rows. The chapter of a row is therefore a
division, and opening at step 1,000,000 costs the same as opening at step 0.
"""

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bert_jax.config import Data, Objective, Phase
from bert_jax.data import hashing
from bert_jax.data.packing import pack
from bert_jax.data.store import Store
from bert_jax.errors import UserError

CHAPTER_TOKENS = 2**27  # [tokens] planned at once: about 100 MB of plan
SAMPLE_TOKENS = 2**22  # [tokens] cut to learn how many rows a token makes

# What a draw of random bits is for; part of its key.
(
    _CHAPTER,
    _SHORT,
    _TARGET,
    _SPLIT,
    _COIN,
    _OTHER,
    _START,
    _TRIM,
    _ORDER,
    _SHUFFLE,
) = range(10)


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


class Plan:
    """Rows of one phase of training, or of the held-out set.

    Args:
      store: the tokenised corpus.
      data: decides which documents are held out.
      objective: decides what an example is.
      phase: length and packing of the rows.
      seed: of the run, and of the phase; held-out rows should use a fixed one.
      held_out: plan the held-out documents instead of the others.

    Raises:
      UserError: no document is left on this side of the split.
    """

    def __init__(
        self,
        store: Store,
        data: Data,
        objective: Objective,
        phase: Phase,
        seed: int,
        held_out: bool = False,
    ):
        self.store, self.objective, self.phase = store, objective, phase
        self._seed = seed
        side = np.asarray(store.hashes) < np.uint64(data.eval_share * 2.0**64)
        self._documents = np.flatnonzero(side if held_out else ~side)
        if not len(self._documents):
            what = "held-out" if held_out else "training"
            raise UserError(
                f"config.data.eval_share={data.eval_share}: the {what} set has none "
                f"of the store's {len(store.hashes)} documents; change the share or "
                "add text"
            )
        tokens = self._tokens(self._documents)
        # Two sentences make an example of about a fourth of a segment.
        shorter = 4 if objective.input == "sentence_pair" else 1
        self._chapters = -(-tokens * shorter // CHAPTER_TOKENS)
        share = max(tokens // SAMPLE_TOKENS, 1)
        sample = self._rows(self._deal(0, share, 0), 0)
        sampled = self._tokens(self._deal(0, share, 0))
        rows = len(sample[1]) * tokens / max(sampled, 1) / self._chapters
        self.rows_per_chapter = max(1, round(rows))
        self._chapter = functools.lru_cache(2)(self._plan_chapter)

    @property
    def epoch_rows(self) -> int:
        """Rows after which every document has been seen once more."""
        return self.rows_per_chapter * self._chapters

    def take(self, row: NDArray[np.int64]) -> Examples:
        """The examples of the given rows, of shape [B, K]; empty slots are 0 long."""
        chapter, index = np.divmod(row, self.rows_per_chapter)
        parts, places = [], []
        for number in np.unique(chapter):
            place = np.flatnonzero(chapter == number)
            examples, rows = self._chapter(int(number))
            slots = rows[index[place] % len(rows)]
            part = examples.take(slots)
            for field in (part.first_length, part.second_length):
                field[slots < 0] = 0
            parts.append(part)
            places.append(place)
        if len(parts) == 1:
            return parts[0]
        back = np.argsort(np.concatenate(places))
        return Examples(*(np.concatenate(f)[back] for f in zip(*parts, strict=True)))

    def _tokens(self, documents: NDArray) -> int:
        starts, sentences = self.store.documents, self.store.sentences
        ends = sentences[starts[documents + 1]] - sentences[starts[documents]]
        return int(ends.sum())

    def _deal(self, epoch: int, parts: int, part: int) -> NDArray[np.int64]:
        if parts == 1:
            return self._documents
        base = hashing.key(self._seed, _CHAPTER, epoch)
        dealt = hashing.below(hashing.draw(base, self._documents), np.int64(parts))
        return self._documents[dealt == part]

    def _plan_chapter(self, number: int) -> tuple[Examples, NDArray[np.int32]]:
        epoch, part = divmod(number, self._chapters)
        return self._rows(self._deal(epoch, self._chapters, part), number)

    def _rows(
        self, documents: NDArray, chapter: int
    ) -> tuple[Examples, NDArray[np.int32]]:
        seed, length = self._seed, self.phase.length
        examples = cut(self.store, documents, self.objective, length, (seed, chapter))
        capacity, size = length, example_length(examples, self.objective)
        if self.objective.input == "full_sentences":
            capacity -= 1  # one [CLS] opens the row
        number = np.arange(len(size))
        order = np.argsort(hashing.draw(hashing.key(seed, _ORDER, chapter), number))
        rows = pack(size, capacity, self.phase.max_packed, order)
        shuffle = hashing.draw(
            hashing.key(seed, _SHUFFLE, chapter), np.arange(len(rows))
        )
        return examples, rows[np.argsort(shuffle)]


def example_length(examples: Examples, objective: Objective) -> NDArray[np.int64]:
    """Tokens that each example takes in a row, special tokens included."""
    specials = 2 + (examples.second_length > 0)  # [CLS] A [SEP], and of B [SEP]
    if objective.input == "full_sentences":
        specials -= 1
    return examples.first_length + examples.second_length + specials


def cut(
    store: Store,
    documents: NDArray[np.int64],
    objective: Objective,
    length: int,
    seed: tuple[int, ...],
) -> Examples:
    """Cuts all documents into examples, side by side.

    Each turn of the loop takes the next segment of every document that has text
    left, so there are as many turns as the longest document has segments.

    Args:
      store: the tokenised corpus.
      documents: [D] numbers of the documents to cut.
      objective: pair, input and short_seq_prob decide the cut.
      length: [tokens] of a row.
      seed: key of every random choice.

    Returns:
      The examples; within a document in order of their text.

    The inputs by name are those of Liu et al. 2019, section 4.2.
    """
    every = documents
    start, end = store.documents[documents], store.documents[documents + 1]
    pairs = objective.pair != "none"
    room = length - (3 if pairs else 2)
    turns = []
    while len(start):
        bits = functools.partial(_draw, seed, start)
        short = hashing.uniform(bits(_SHORT)) < objective.short_seq_prob
        target = np.where(
            short, 2 + hashing.below(bits(_TARGET), np.int64(room - 1)), room
        )
        wanted = store.sentences[start] + target
        if pairs:  # the sentence that reaches the target still belongs to it
            stop = np.searchsorted(store.sentences, wanted, "left")
        else:  # only full sentences
            stop = np.searchsorted(store.sentences, wanted, "right") - 1
        if objective.input == "sentence_pair":
            target, stop = np.zeros_like(target), start + 2
        stop = np.minimum(np.maximum(stop, start + 1), end)
        if objective.pair == "nsp":
            turn, start_next = _pair(
                store, every, documents, start, stop, target, room, seed
            )
        elif objective.pair == "sop":
            turn, start_next = _ordered(store, documents, start, stop, room, seed)
        else:
            first, size = store.sentences[start], store.sentences[stop]
            size = np.minimum(size - first, room)
            none = np.zeros_like(first)
            turn, start_next = Examples(first, size, first, none, none > 0), stop
        turns.append(turn)
        alive = start_next < end
        documents, start, end = documents[alive], start_next[alive], end[alive]
    return Examples(*(np.concatenate(fields) for fields in zip(*turns, strict=True)))


def _draw(seed: tuple[int, ...], counter: NDArray, purpose: int) -> hashing.Bits:
    return hashing.draw(hashing.key(*seed, purpose), counter)


def _pair(
    store: Store,
    every: NDArray[np.int64],
    documents: NDArray[np.int64],
    start: NDArray[np.int64],
    stop: NDArray[np.int64],
    target: NDArray[np.int64],
    room: int,
    seed: tuple[int, ...],
) -> tuple[Examples, NDArray[np.int64]]:
    """Splits sentences [start, stop) into A and B, or finds a random B.

    A segment of one sentence always gets a random B, so somewhat more than half
    of all pairs are random, as in the original. The sentences that a random B
    displaces are put back: the document goes on after A.
    """
    bits = functools.partial(_draw, seed, start)
    count = stop - start
    split = start + 1 + hashing.below(bits(_SPLIT), np.maximum(count - 1, 1))
    split = np.minimum(split, stop)
    random = (count == 1) | (bits(_COIN) & np.uint64(1) == 0)
    other = every[hashing.below(bits(_OTHER), np.int64(len(every)))]
    # Stepping once to the next document keeps the choice uniform over the others.
    position = np.searchsorted(every, other)
    other = np.where(other == documents, every[(position + 1) % len(every)], other)
    low, high = store.documents[other], store.documents[other + 1]
    random_start = low + hashing.below(bits(_START), high - low)
    first = store.sentences[start]
    first_length = store.sentences[split] - first
    wanted = store.sentences[random_start] + np.maximum(target - first_length, 1)
    random_stop = np.minimum(np.searchsorted(store.sentences, wanted, "left"), high)
    second_start = np.where(random, random_start, split)
    second_stop = np.where(random, np.maximum(random_stop, random_start + 1), stop)
    second = store.sentences[second_start]
    second_length = store.sentences[second_stop] - second
    pair = Examples(first, first_length, second, second_length, random)
    return _trim(pair, room, bits(_TRIM)), np.where(random, split, stop)


def _ordered(
    store: Store,
    documents: NDArray[np.int64],
    start: NDArray[np.int64],
    stop: NDArray[np.int64],
    room: int,
    seed: tuple[int, ...],
) -> tuple[Examples, NDArray[np.int64]]:
    """Splits sentences [start, stop) into A and B, and swaps half of these pairs.

    A single sentence takes in the next one, or at the end of a document the one
    before it, which is then used twice. Only a document of one sentence has no B.

    Lan et al. 2020, section 3.1.
    """
    low, high = store.documents[documents], store.documents[documents + 1]
    stop = np.minimum(np.maximum(stop, start + 2), high)
    start = np.maximum(np.minimum(start, stop - 2), low)
    bits = functools.partial(_draw, seed, start)
    split = start + 1 + hashing.below(bits(_SPLIT), np.maximum(stop - start - 1, 1))
    swapped = (bits(_COIN) & np.uint64(1) == 0) & (split < stop)
    # Before they are trimmed: the lengths of the sides must not tell the order.
    here, between, end = (store.sentences[i] for i in (start, split, stop))
    first, first_end = np.where(swapped, (between, end), (here, between))
    second, second_end = np.where(swapped, (here, between), (between, end))
    pair = Examples(first, first_end - first, second, second_end - second, swapped)
    return _trim(pair, room, bits(_TRIM)), stop


def _trim(pair: Examples, room: int, bits: hashing.Bits) -> Examples:
    """Shortens the longer side, token by token, until the pair fits.

    Each dropped token comes off the front or the back with equal chance, so the
    number off the front is binomial: the ones among as many random bits.
    """
    first, second = pair.first_length, pair.second_length
    half = room // 2
    fits = first + second <= room
    small = np.minimum(first, second)
    even = small > half  # both sides are cut back to half of the room
    first_kept = np.where(
        even, room - half, np.where(first > second, room - second, first)
    )
    second_kept = np.where(even, half, np.where(first > second, second, room - first))
    first_kept = np.where(fits, first, first_kept)
    second_kept = np.where(fits, second, second_kept)
    first_front = _coins(first - first_kept, bits)
    second_front = _coins(second - second_kept, hashing.mix(bits))
    return pair._replace(
        first=pair.first + first_front,
        first_length=first_kept,
        second=pair.second + second_front,
        second_length=second_kept,
    )


def _coins(tosses: NDArray[np.int64], bits: hashing.Bits) -> NDArray[np.int64]:
    heads = np.zeros_like(tosses)
    left = tosses.copy()
    for word in range(-(-int(tosses.max(initial=0)) // 64)):
        size = np.clip(left, 0, 64).astype(np.uint64)
        mask = (np.uint64(1) << (size % np.uint64(64))) - np.uint64(1)
        mask = np.where(size == 64, np.uint64(2**64 - 1), mask)
        heads += np.bitwise_count(hashing.draw(np.uint64(word), bits) & mask)
        left -= 64
    return heads
