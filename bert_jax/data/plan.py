"""Which text is in which row of an epoch, computed at once from (seed, epoch).

Texts are cut into examples (`cut`), examples are packed into rows (`packing`) and
rows are shuffled, all as array operations.

A corpus too large to plan at once is worked through in chapters: each epoch puts the
text in a random order and divides it into equal parts, which bounds the plan's memory.
Every chapter has the same number of rows, made so by a few rows that are packed less
tightly. The chapter of a row is therefore a division, opening at step 1,000,000 costs
the same as opening at step 0, and every row of an epoch holds text of its own.

The order of an epoch is one for all phases of a run: a phase begins where the one
before it stopped, so that in a run of less than an epoch no text is read twice.
"""

import functools
import logging
import math

import numpy as np
from numpy.typing import NDArray

from bert_jax.config import Objective, Phase
from bert_jax.data import hashing
from bert_jax.data.cut import Examples, cut
from bert_jax.data.packing import pack
from bert_jax.data.texts import Texts

CHAPTER_TOKENS = 2**27  # [tokens] planned at once: about 100 MB of plan
STRETCH_ROWS = 32  # [rows] of the longest length, that long texts are divided at
_SMALL = 2**20  # [tokens] of a corpus that is cut some times to count its rows
_ATTEMPTS = 8  # cuts that are tried for a chapter to need no more than its rows

_EPOCH, _ORDER, _SHUFFLE = range(100, 103)  # what random bits are for

_log = logging.getLogger("bert_jax")


class Plan:
    """Rows of one phase of training, or of the held-out set.

    Args:
      texts: one side of the split; not empty.
      objective: decides what an example is.
      phase: length and packing of the rows.
      seed: of cuts and shuffles, different in each phase.
      order: seed of the order of texts in each epoch, the same in all phases.
      stretch: [tokens] that long texts are divided at, the same in all phases.
      rows: rows that the phase reads; where it ends, the next one begins.
      after: the plan of the phase before.
    """

    def __init__(
        self,
        texts: Texts,
        objective: Objective,
        phase: Phase,
        seed: int,
        order: int,
        stretch: int,
        rows: int,
        after: "Plan | None" = None,
    ):
        self.texts, self.objective, self.phase = texts, objective, phase
        self._seed, self._order, self._stretch = seed, order, stretch
        self._rows, self._after = rows, after
        # Two sentences make an example of about a fourth of a segment.
        shorter = 4 if objective.input == "sentence_pair" else 1
        self.chapters = max(-(-texts.tokens * shorter // CHAPTER_TOKENS), 1)
        self._attempt = functools.lru_cache(1)(self._pack)
        self._part = functools.lru_cache(2)(self._plan_part)

    @functools.cached_property
    def rows_per_chapter(self) -> int:
        """Rows of a chapter: what the first one needs, and a few to spare."""
        if self.texts.tokens <= _SMALL:
            tried = [len(self._first(attempt)[1]) for attempt in range(1, 4)]
            return max(*tried, len(self._first()[1]))
        needed = len(self._first()[1])
        if self.chapters > 1:  # their texts differ
            return needed + needed // 100 + 2 * math.isqrt(needed)
        varies = self.objective.short_seq_prob or self.objective.pair == "nsp"
        return needed + math.isqrt(needed) // 2 * bool(varies)

    @property
    def epoch_rows(self) -> int:
        """Rows after which every text has been seen once more."""
        return self.rows_per_chapter * self.chapters

    @functools.cached_property
    def coverage(self) -> dict[str, int]:
        """What becomes of the text in an epoch, as counted in its first chapter.

        Returns:
          `text_tokens` there are; `trimmed_tokens`, those in no row; and
          `partner_tokens`, those read once more as random second segments.
        """
        examples, _, text = self._first()
        first, second = examples.first_length, examples.second_length
        partners = int(second[examples.wrong].sum())
        if self.objective.pair != "nsp":
            partners = 0
        read = int(first.sum() + second.sum()) - partners
        return {
            "text_tokens": self.texts.tokens,
            "trimmed_tokens": (text - read) * self.chapters,
            "partner_tokens": partners * self.chapters,
        }

    def take(self, row: NDArray[np.int64]) -> Examples:
        """The examples of the given rows, of shape [B, K]; empty slots are 0 long."""
        row = row + self._first_row
        chapter = row // self.rows_per_chapter
        late = row >= self._first_row + self._rows
        parts, places = [], []
        for number in np.unique(2 * chapter + late).tolist():
            place = np.flatnonzero(2 * chapter + late == number)
            examples, rows = self._part(number)
            slots = rows[row[place] - self._limits(number)[0]]
            part = examples.take(slots)
            for field in (part.first_length, part.second_length):
                field[slots < 0] = 0
            parts.append(part)
            places.append(place)
        if len(parts) == 1:
            return parts[0]
        back = np.argsort(np.concatenate(places))
        return Examples(*(np.concatenate(f)[back] for f in zip(*parts, strict=True)))

    # Places in the text are counted in tokens of all epochs up to there. What is read
    # of a chapter in which a phase begins or ends may need more rows than its share of
    # the tokens: it gets a few more, the square root of their number.

    @functools.cached_property
    def _begin(self) -> int:
        return self._after._end if self._after else 0

    @functools.cached_property
    def _end(self) -> int:
        rows = self._first_row + self._rows
        part = rows - max(rows - rows % self.rows_per_chapter, self._first_row)
        rows -= math.isqrt(part) * (part > 3)
        return max(rows * self.texts.tokens // self.epoch_rows, self._begin)

    @functools.cached_property
    def _first_row(self) -> int:
        """The row of its epoch with which the phase begins, counted in all epochs."""
        rows = self._begin * self.epoch_rows // self.texts.tokens
        before = rows % self.rows_per_chapter
        spare = math.isqrt(self.rows_per_chapter - before)
        return rows - min(spare, before)

    def _limits(self, number: int) -> tuple[int, int]:
        """First row of a part and the end of its rows.

        Parts are chapters, but the one in which the phase ends is two of them, and so
        is the one in which it begins.
        """
        chapter, late = divmod(number, 2)
        low, high = (
            chapter * self.rows_per_chapter,
            (chapter + 1) * self.rows_per_chapter,
        )
        end = self._first_row + self._rows
        if late:
            return max(low, end), high
        return max(low, self._first_row), min(high, end)

    def _plan_part(self, number: int) -> tuple[Examples, NDArray[np.int32]]:
        low, high = self._limits(number)
        tokens, rows = self.texts.tokens, self.epoch_rows
        begin = self._begin if low == self._first_row else low * tokens // rows
        last = high == self._first_row + self._rows
        end = max(self._end if last else high * tokens // rows, begin + 1)
        epoch = low // rows
        begin, end = begin - epoch * tokens, end - epoch * tokens
        place, wanted = (number, epoch, begin, min(end, tokens)), high - low
        examples, found, _ = self._attempt(place, 0, squeeze := 0.0)
        for attempt in range(1, _ATTEMPTS):
            if len(found) <= wanted:
                break
            squeeze += len(found) / wanted - 1
            examples, found, _ = self._attempt(place, attempt, squeeze)
        self._attempt.cache_clear()
        if (surplus := len(found) - wanted) > 0:
            _log.warning("%d of %d rows of text are left out", surplus, len(found))
        examples, found = spread(examples, found, wanted, self.objective)
        key = hashing.key(self._seed, _SHUFFLE, number)
        shuffle = hashing.draw(key, np.arange(len(found)))
        return examples, found[np.argsort(shuffle)]

    def _first(self, attempt: int = 0) -> tuple[Examples, NDArray[np.int32], int]:
        """The first chapter as it would be without rows to spare."""
        place = 0, 0, 0, self.texts.tokens // self.chapters
        return self._attempt(place, attempt, 0.0)

    def _pack(
        self, place: tuple[int, int, int, int], attempt: int, squeeze: float
    ) -> tuple[Examples, NDArray[np.int32], int]:
        """The examples of some text, their rows, and how many tokens the text has."""
        number, epoch, begin, end = place
        seed, length = self._seed, self.phase.length
        key = hashing.key(self._order, _EPOCH, epoch)
        spans = self.texts.deal(key, begin, end, self._stretch)
        seeds = seed, number, attempt
        examples = cut(self.texts, spans, self.objective, length, seeds, squeeze)
        size, capacity = example_length(examples, self.objective), length
        if self.objective.input == "full_sentences":
            capacity -= 1  # one [CLS] opens the row
        key = hashing.key(seed, _ORDER, number, attempt)
        order = np.argsort(hashing.draw(key, np.arange(len(size))))
        rows = pack(size, capacity, self.phase.max_packed, order)
        return examples, rows, int((spans.end - spans.begin).sum())


def example_length(examples: Examples, objective: Objective) -> NDArray[np.int64]:
    """Tokens that each example takes in a row, special tokens included."""
    specials = 2 + (examples.second_length > 0)  # [CLS] A [SEP], and of B [SEP]
    if objective.input == "full_sentences":
        specials -= 1
    return examples.first_length + examples.second_length + specials


def spread(
    examples: Examples, rows: NDArray[np.int32], count: int, objective: Objective
) -> tuple[Examples, NDArray[np.int32]]:
    """Brings packed rows to a given number, without another token in any.

    Examples that share a row get one of their own; where none do, examples are
    halved. Rows are repeated only if no example can be halved any more, and left out
    if there are too many.

    Args:
      examples: [E] of them.
      rows: [R, K] example numbers, -1 where a slot is empty.
      count: rows wanted.
      objective: pair decides how an example is halved.

    Returns:
      The examples, and [count, K] their rows.
    """
    rows = rows[:count].copy()
    while (missing := count - len(rows)) > 0 and rows.shape[1] > 1:
        shared = np.flatnonzero(rows[:, 1] >= 0)[:missing]
        if not len(shared):
            break
        last = (rows[shared] >= 0).sum(1) - 1
        fresh = np.full((len(shared), rows.shape[1]), -1, np.int32)
        fresh[:, 0] = rows[shared, last]
        rows[shared, last] = -1
        rows = np.concatenate([rows, fresh])
    while (missing := count - len(rows)) > 0:
        slot = rows[:, 0]
        one = examples.take(slot)
        paired = one.second_length > 0
        smaller = np.minimum(one.first_length, one.second_length)
        smaller = np.where(paired, smaller, one.first_length)
        long = np.argsort(-smaller, kind="stable")[:missing]
        in_order = paired & ~(one.wrong & (objective.pair == "nsp"))
        long = long[(smaller[long] > 1) | in_order[long]]
        if not len(long):
            break
        one, two = _halves(one.take(long), objective)
        fresh = np.full((len(long), rows.shape[1]), -1, np.int32)
        fresh[:, 0] = np.arange(len(long)) + len(examples.first)
        rows = np.concatenate([rows, fresh])
        both = [examples, two]
        fields = [np.concatenate(pair) for pair in zip(*both, strict=True)]
        for field, new in zip(fields, one, strict=True):
            field[slot[long]] = new
        examples = Examples(*fields)
    return examples, rows[np.arange(count) % len(rows)]


def _halves(whole: Examples, objective: Objective) -> tuple[Examples, Examples]:
    """Two examples of each one.

    A and B in order become a pair each. Of a random pair half of A is paired with half
    of B. Where a side in order has one token, or the order is what is asked for, A and
    B part.
    """
    first, size, second, other, wrong = whole
    half, rest = size // 2, other // 2
    side_by_side = (
        (first, half, second, rest),
        (first + half, size - half, second + rest, other - rest),
    )
    in_order = (
        (first, half, first + half, size - half),
        (second, rest, second + rest, other - rest),
    )
    alone = (first, size, first, 0 * size), (second, other, second, 0 * other)
    random = (other == 0) | wrong
    single = (other > 0) & ((np.minimum(size, other) < 2) | (objective.pair == "sop"))
    made = [
        [
            np.select([single, random], choices, default)
            for *choices, default in zip(*forms, strict=True)
        ]
        for forms in zip(alone, side_by_side, in_order, strict=True)
    ]
    wrong = wrong & ~single
    one, two = (Examples._make([*fields, wrong]) for fields in made)
    return one, two
