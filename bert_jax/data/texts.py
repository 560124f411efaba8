"""Which text is trained on and which is held out, and its order in an epoch.

A text is a document or, where documents are too few for the split, a run of
passages of one. Nothing here grows with the tokens of a corpus; with its documents
grows one array of their numbers, 8 bytes each.
"""

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bert_jax.data import hashing
from bert_jax.data.store import Store
from bert_jax.errors import UserError

ALL = math.nextafter(1, 0)  # share of text that is scored on alone
_BLOCK = 2**18  # [texts] looked at together
_BUCKET_BITS = 12
_PASSAGE = 2048  # [tokens] of the longest held-out passage in corpora of usual sizes
_PASSAGES = 2**16  # at most, whatever the size of the corpus


class Spans(NamedTuple):
    """Stretches of text that are cut into examples one by one."""

    text: NDArray[np.int64]  # [N] number of the text
    begin: NDArray[np.int64]  # [N] [token offset]
    end: NDArray[np.int64]  # [N] [token offset]


class Texts:
    """The texts on one side of the split, numbered from 0.

    Args:
      store: the tokenised corpus.
      documents: [D] int64, the documents that are texts; or
      begin: [D] int64 token offsets of the texts, if they are not documents.
      end: [D] int64 token offsets of their ends.
    """

    def __init__(
        self,
        store: Store,
        documents: NDArray[np.int64] | None = None,
        begin: NDArray[np.int64] | None = None,
        end: NDArray[np.int64] | None = None,
    ):
        self.store = store
        self._documents, self._begin, self._end = documents, begin, end
        self._count = len(begin if documents is None else documents)  # pyright: ignore
        self.tokens = sum(
            int((end - begin).sum()) for begin, end in map(self.span, self._numbers())
        )  # in all texts
        self._edges = lru_cache(2)(self._bucket_edges)

    def __len__(self) -> int:
        return self._count

    @property
    def are_passages(self) -> bool:
        """Whether texts are parts of documents."""
        return self._documents is None

    def span(
        self, text: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The token offsets where the given texts begin and end."""
        if self._documents is None:
            assert self._begin is not None and self._end is not None
            return self._begin[text], self._end[text]
        document = self._documents[text]
        sentences, starts = self.store.sentences, self.store.documents
        return sentences[starts[document]], sentences[starts[document + 1]]

    def deal(self, key: np.uint64, low: int, high: int, stretch: int) -> Spans:
        """The part [low, high) of all text, in an order drawn by a key.

        The order is one of stretches, so that long texts are spread over it. Parts
        that share an edge have no token in common and leave none out between them.

        Args:
          key: of the random order.
          low: [tokens] where the part begins, counted in the order.
          high: [tokens] where it ends.
          stretch: [tokens] at which longer texts are divided.

        Returns:
          Stretches of the texts; the first and the last may be cut, anywhere.
        """
        edges = self._edges(key, stretch)
        first = int(np.searchsorted(edges, low, "right")) - 1
        last = int(np.searchsorted(edges, high, "left"))
        found = []
        for spans, bits in self._stretches(key, stretch):
            bucket = bits >> np.uint64(64 - _BUCKET_BITS)
            inside = (bucket >= first) & (bucket < last)
            found.append([*(field[inside] for field in spans), bits[inside]])
        text, begin, end, bits = (np.concatenate(f) for f in zip(*found, strict=True))
        order = np.argsort(bits, kind="stable")
        text, begin, end = text[order], begin[order], end[order]
        size = end - begin
        place = edges[first] + np.cumsum(size) - size
        cut_begin = begin + np.clip(low - place, 0, size)
        cut_end = begin + np.clip(high - place, 0, size)
        kept = cut_begin < cut_end
        return Spans(text[kept], cut_begin[kept], cut_end[kept])

    def _numbers(self) -> Iterator[NDArray[np.int64]]:
        for start in range(0, max(self._count, 1), _BLOCK):
            yield np.arange(start, min(start + _BLOCK, self._count))

    def _stretches(
        self, key: np.uint64, stretch: int
    ) -> Iterator[tuple[Spans, hashing.Bits]]:
        """All stretches of the texts and the random bits that order them."""
        for number in self._numbers():
            begin, end = self.span(number)
            bits = hashing.draw(key, number)
            parts = np.maximum(-(-(end - begin) // stretch), 1)
            if parts.max(initial=1) > 1:
                text = np.repeat(np.arange(len(number)), parts)
                part = np.arange(len(text)) - np.repeat(np.cumsum(parts) - parts, parts)
                raw = begin[text] + part * stretch
                cut = part > 0
                raw[cut] = _last_boundary(self.store, raw[cut], raw[cut] - stretch)
                ends = np.append(raw[1:], 0)
                last = part == parts[text] - 1
                ends[last] = end
                number, begin, end = number[text], raw, ends
                bits = bits[text] + part.astype(np.uint64)
            yield Spans(number, begin, end), hashing.mix(bits)

    def _bucket_edges(self, key: np.uint64, stretch: int) -> NDArray[np.int64]:
        """Tokens before each bucket of the order; a bucket is the top of the bits."""
        count = np.zeros(2**_BUCKET_BITS)
        for spans, bits in self._stretches(key, stretch):
            bucket = (bits >> np.uint64(64 - _BUCKET_BITS)).astype(np.int64)
            count += np.bincount(bucket, spans.end - spans.begin, len(count))
        return np.concatenate([[0], np.cumsum(count).astype(np.int64)])


def _last_boundary(
    store: Store, offset: NDArray[np.int64], above: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The last sentence boundary up to `offset` that is above another; else `offset`.

    Args:
      store: the tokenised corpus.
      offset: token offsets.
      above: token offsets.
    """
    at = np.searchsorted(store.sentences, offset, "right") - 1
    boundary = store.sentences[at]
    return np.where(boundary > above, boundary, offset)


def split(store: Store, share: float) -> tuple[Texts, Texts]:
    """The texts to train on and those that are held out.

    Documents are held out by their hash. Where that leaves one side empty, documents
    are divided into passages, and those of the lowest hashes are held out, one at
    least. Both depend on the text alone.

    Args:
      store: the tokenised corpus.
      share: [share of the text] to hold out; nothing at 0, and everything at `ALL`.

    Raises:
      UserError: the corpus has less than two tokens, so that it has no two sides.
    """
    side = np.asarray(store.hashes) < np.uint64(share * 2.0**64)
    if share == ALL:
        side[:] = True
    if share in (0, ALL) or 0 < np.count_nonzero(side) < len(side):
        return Texts(store, np.flatnonzero(~side)), Texts(store, np.flatnonzero(side))
    return _passages(store, share)


def _passages(store: Store, share: float) -> tuple[Texts, Texts]:
    tokens = len(store.tokens)
    if tokens < 2:
        raise UserError(
            f"config.data.eval_share={share}: a corpus of {tokens} tokens has no part "
            "to hold out; add text, or set --config.data.eval_share=0"
        )
    # As long as the share allows, so that few rows end where a passage does.
    size = int(tokens * min(share, 1 - share))
    size = max(min(size, _PASSAGE), -(-tokens // _PASSAGES), 1)
    documents = np.arange(len(store.hashes))
    whole = Texts(store, documents)
    begin, document = [], []
    for spans, _ in whole._stretches(np.uint64(0), size):
        begin.append(spans.begin)
        document.append(spans.text)
    begin, document = np.concatenate(begin), np.concatenate(document)
    end = np.append(begin[1:], tokens)
    # Texts without tokens are no passages.
    begin, document, end = (x[end > begin] for x in (begin, document, end))
    offset = begin - whole.span(document)[0]
    bits = hashing.mix(np.asarray(store.hashes)[document])
    bits = hashing.mix(bits + offset.astype(np.uint64))
    count = min(max(round(share * len(begin)), 1), len(begin) - 1)
    side = np.zeros(len(begin), bool)
    side[np.argsort(bits, kind="stable")[:count]] = True
    # Neighbours of one side and document are one text.
    opens = np.ones(len(begin), bool)
    opens[1:] = (side[1:] != side[:-1]) | (document[1:] != document[:-1])
    closes = np.append(opens[1:], True)
    begin, end, side = begin[opens], end[closes], side[opens]
    return (
        Texts(store, begin=begin[~side], end=end[~side]),
        Texts(store, begin=begin[side], end=end[side]),
    )
