"""Subword encoding that looks up each distinct word once.

The `tokenizers` library makes about 2 MB of text a second on one core. Text repeats
its words, so a dictionary from word to ids, gathered with NumPy, makes ten times as
much and gives the same ids wherever normalisation and pre-tokenisation never look
across a space.
"""

import itertools
import json
from collections.abc import Iterator, Sequence

import numpy as np
import tokenizers
from numpy.typing import NDArray

Encoded = tuple[NDArray[np.int32], NDArray[np.int64]]

# What the cache keeps, about 100 MB; beyond either bound it starts anew.
_WORDS = 1 << 19  # distinct words
_CHARACTERS = 1 << 23  # in all of them
BATCH = 1 << 18  # [characters] that the library encodes at a time, at 100 bytes each
_FIRST = "\n"  # marks a word that no space precedes; no word holds this character
ACCENTS = r"(?<=[\p{Latin}\p{Greek}\p{Cyrillic}])\p{Mn}+"  # after NFD
_IN_WORDS = {"BertNormalizer", "Lowercase", "NFC", "NFD", "StripAccents", "Replace"}
_LOCAL_NORMALIZERS = {
    "BertPreTokenizer": _IN_WORDS,
    "ByteLevel": {"Lowercase", "NFC", "NFD"},
    "WhitespaceSplit": _IN_WORDS,
}


def is_local(tokenizer: tokenizers.Tokenizer) -> bool:
    """Whether words between single spaces may be encoded on their own."""
    content = json.loads(tokenizer.to_str())
    steps = content["pre_tokenizer"] or {}
    first = steps["pretokenizers"][0] if steps.get("type") == "Sequence" else steps
    normalizer = content["normalizer"] or {"type": "Sequence", "normalizers": []}
    parts = normalizer.get("normalizers", [normalizer])
    allowed = _LOCAL_NORMALIZERS.get(first.get("type", ""), set())
    plain = all(token["special"] for token in content["added_tokens"])
    return (
        bool(allowed)
        and plain  # a token added to the text's own words may hold spaces
        and first.get("use_regex", True)
        and all(part["type"] in allowed for part in parts)
        and all(part.get("pattern") in (None, {"Regex": ACCENTS}) for part in parts)
    )


def batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Part texts into runs of about `BATCH` characters, or of one longer text."""
    start = size = 0
    for place, text in enumerate(texts):
        size += len(text) + 8
        if size > BATCH:
            yield texts[start : place + 1]
            start, size = place + 1, 0
    if start < len(texts):
        yield texts[start:]


class _Slots(dict[str, int]):
    """Numbers words in the order in which they are first asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.new: list[str] = []

    def __missing__(self, word: str) -> int:
        slot = self[word] = len(self)
        self.new.append(word)
        return slot


class _Rows:
    """Words of texts given in parts; a border may lie inside a word."""

    def __init__(self) -> None:
        self.words: list[str] = []  # "" in place of a fragment of a cut word
        self.ends: list[int] = []  # [words] up to the end of each part
        self.cut: list[list[str]] = []  # fragments of each cut word
        self.places: list[int] = []  # index in `words` of each fragment

    def add(self, parts: Sequence[str], mark_first: bool) -> None:
        """Appends a text; its first word can be marked with `_FIRST`."""
        joins = False
        for part in parts:
            words = part.split()
            if words and mark_first:
                words[0], mark_first = _FIRST + words[0], False
            elif words and joins and not part[0].isspace():
                self._join(words)
            self.words += words
            self.ends.append(len(self.words))
            joins = not part[-1].isspace() if part else joins

    def _join(self, words: list[str]) -> None:
        """Makes the last word of all and the first of `words` fragments of one."""
        last = len(self.words) - 1
        if not self.places or self.places[-1] != last:
            self.cut.append([self.words[last]])
            self.places.append(last)
            self.words[last] = ""
        self.cut[-1].append(words[0])
        self.places.append(last + 1)
        words[0] = ""


class WordCache:
    """Encodes whole texts from the ids of their words."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        steps = json.loads(tokenizer.to_str())["pre_tokenizer"]
        self._byte_level = steps["type"] == "ByteLevel"
        # With the prefix the first word of a text has its space as all others do.
        self._first = self._byte_level and not steps["add_prefix_space"]
        self._clear()

    def _clear(self) -> None:
        self._slots = _Slots()
        self._slots[""] = 0
        self._characters = 0
        self._ids = np.zeros(0, np.int32)
        self._starts = np.zeros(2, np.int64)  # of each slot in _ids, and the end

    def encode_parts(self, texts: Sequence[Sequence[str]]) -> Encoded:
        """As `TextTokenizer.encode_parts`."""
        if len(self._slots) > _WORDS or self._characters > _CHARACTERS:
            self._clear()
        rows = _Rows()
        for parts in texts:
            rows.add(parts, self._first)
        slot = np.fromiter(
            map(self._slots.__getitem__, rows.words), np.int64, len(rows.words)
        )
        if self._slots.new:
            self._encode_new()
        ids, starts = self._ids, self._starts
        if rows.cut:
            # Cut words are rare, or whole lines without a space: not worth keeping.
            slot[rows.places] = len(starts) - 1 + np.arange(len(rows.places))
            own, ends = self._encode_cut(rows.cut)
            ids = np.concatenate([ids, own])
            starts = np.concatenate([starts, starts[-1] + ends[1:]])
        start = starts[slot]
        length = starts[slot + 1] - start
        stop = np.concatenate([[0], np.cumsum(length)])
        gather = np.repeat(start - stop[:-1], length) + np.arange(stop[-1])
        return ids[gather], stop[np.array([0, *rows.ends])]

    def _encode_new(self) -> None:
        words, self._slots.new = list(map(self._spaced, self._slots.new)), []
        self._characters += sum(map(len, words))
        parts = []
        for some in batches(words):
            found = self._tokenizer.encode_batch_fast(some, add_special_tokens=False)
            parts.append(flatten([encoding.ids for encoding in found]))
        ids, ends = join(parts)
        self._ids = np.concatenate([self._ids, ids])
        self._starts = np.concatenate([self._starts, self._starts[-1] + ends[1:]])

    def _encode_cut(self, cut: list[list[str]]) -> Encoded:
        parts, waiting = [], iter(cut)
        for some in batches([self._spaced("".join(word)) for word in cut]):
            found = self._tokenizer.encode_batch(some, add_special_tokens=False)
            rows: list[list[int]] = []
            for text, encoding in zip(some, found, strict=True):
                ends = np.cumsum(list(map(len, next(waiting))))
                borders = ends[:-1] + len(text) - ends[-1]
                rows += divide(text, encoding.ids, encoding.offsets, borders)
            parts.append(flatten(rows))
        return join(parts)

    def _spaced(self, word: str) -> str:
        """The word with the space before it where the library reads one."""
        if not self._byte_level:
            return word
        return word[1:] if word[0] == _FIRST else " " + word


def divide(
    text: str,
    ids: list[int],
    spans: Sequence[tuple[int, int]],
    borders: Sequence[int] | NDArray[np.int64],
) -> list[list[int]]:
    """Cuts the tokens of a text at borders; one across a border goes to its left.

    Args:
      text: the text.
      ids: of its tokens.
      spans: [characters] begin and end of each token in the text.
      borders: [characters] ascending places in the text.

    Returns:
      The ids of each of the len(borders) + 1 parts.
    """
    begin, end = np.array(spans, np.int64).reshape(-1, 2).T
    places = np.arange(len(text) + 1)
    space = np.frombuffer(text.encode("utf-32-le"), np.uint32) == ord(" ")
    places[:-1][space] = len(text)
    after_space = np.minimum.accumulate(places[::-1])[::-1]
    starts = np.maximum.accumulate(np.minimum(after_space[begin], end))
    cuts = [0, *np.searchsorted(starts, borders).tolist(), len(ids)]
    return [ids[a:b] for a, b in itertools.pairwise(cuts)]


def skip_space(text: str, start: int, end: int) -> tuple[int, int]:
    """A span without the spaces that it begins with."""
    while start < end and text[start] == " ":
        start += 1
    return start, end


def flatten(rows: list[list[int]]) -> Encoded:
    """Lists of ids as one int32 array and int64 offsets."""
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    ids = np.fromiter(itertools.chain.from_iterable(rows), np.int32, offsets[-1])
    return ids, offsets


def join(parts: list[Encoded]) -> Encoded:
    """Ids and offsets of texts from those of runs of them."""
    sizes = np.cumsum([0, *(len(ids) for ids, _ in parts)])
    ids = np.concatenate([np.zeros(0, np.int32), *(ids for ids, _ in parts)])
    offsets = [ends[1:] + size for (_, ends), size in zip(parts, sizes, strict=False)]
    return ids, np.concatenate([np.zeros(1, np.int64), *offsets])
