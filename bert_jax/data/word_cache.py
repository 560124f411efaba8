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

# What the cache keeps, about 100 MB; beyond either bound it starts anew.
_WORDS = 1 << 19  # distinct words
_CHARACTERS = 1 << 23  # in all of them
BATCH = 1 << 18  # [characters] that the library encodes at a time, at 100 bytes each
_FIRST = "\n"  # marks a word that no space precedes; no word holds this character
_LOCAL_NORMALIZERS = {
    "BertPreTokenizer": {"BertNormalizer", "Lowercase", "NFC", "NFD", "StripAccents"},
    "ByteLevel": {"Lowercase", "NFC", "NFD"},
    "WhitespaceSplit": {"BertNormalizer", "Lowercase", "NFC", "NFD", "StripAccents"},
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
        self._characters = 0
        self._ids = np.zeros(0, np.int32)
        self._starts = np.zeros(1, np.int64)  # of each slot in _ids, and the end

    def encode_batch(
        self, texts: Sequence[str]
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """As `TextTokenizer.encode_batch`."""
        if len(self._slots) > _WORDS or self._characters > _CHARACTERS:
            self._clear()
        rows = [text.split() for text in texts]
        if self._first:
            for row in rows:
                row[:1] = [_FIRST + word for word in row[:1]]
        ends = np.cumsum(np.fromiter(map(len, rows), np.int64, len(rows)))
        words = itertools.chain.from_iterable(rows)
        count = int(ends[-1]) if rows else 0
        slot = np.fromiter(map(self._slots.__getitem__, words), np.int64, count)
        if self._slots.new:
            self._encode_new()
        start = self._starts[slot]
        length = self._starts[slot + 1] - start
        stop = np.concatenate([[0], np.cumsum(length)])
        gather = np.repeat(start - stop[:-1], length) + np.arange(stop[-1])
        return self._ids[gather], stop[np.concatenate([[0], ends]).astype(np.int64)]

    def _encode_new(self) -> None:
        words, self._slots.new = self._slots.new, []
        if self._byte_level:
            words = [word[1:] if word[0] == _FIRST else " " + word for word in words]
        ids, lengths = [self._ids], [np.zeros(0, np.int64)]
        for some in batches(words):
            found = self._tokenizer.encode_batch_fast(some, add_special_tokens=False)
            rows = [encoding.ids for encoding in found]
            self._characters += sum(map(len, some))
            lengths.append(np.fromiter(map(len, rows), np.int64, len(rows)))
            flat = itertools.chain.from_iterable(rows)
            ids.append(np.fromiter(flat, np.int32, lengths[-1].sum()))
        self._ids = np.concatenate(ids)
        ends = self._starts[-1] + np.cumsum(np.concatenate(lengths))
        self._starts = np.concatenate([self._starts, ends])
