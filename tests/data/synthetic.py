"""Token stores made in memory, whose token ids tell where they came from."""

import numpy as np

from bert_jax.data.store import Store, Vocabulary

SPECIALS = 5


def store(documents: list[list[int]], seed: int = 0) -> Store:
    """A store of documents given as sentence lengths; every token id is unique.

    Token number i of the corpus has the id SPECIALS + i.
    """
    lengths = np.array([n for document in documents for n in document], np.int64)
    sentences = np.concatenate([[0], np.cumsum(lengths)])
    counts = np.array([len(document) for document in documents], np.int64)
    starts = np.concatenate([[0], np.cumsum(counts)])
    total = int(sentences[-1])
    rng = np.random.default_rng(seed)
    size = total + SPECIALS
    continues = rng.random(size) < 0.3
    continues[:SPECIALS] = False
    return Store(
        path="",
        tokens=np.arange(SPECIALS, size).astype(np.uint32),
        sentences=sentences,
        documents=starts,
        hashes=rng.integers(2**64 - 1, size=len(documents), dtype=np.uint64),
        vocabulary=Vocabulary(size, 0, 1, 2, 3, 4, continues, ""),
        manifest={},
    )


def opens(store: Store, token: np.ndarray) -> np.ndarray:
    """Whether a word begins with each token: as its id says, or a sentence does."""
    starts = np.isin(token - SPECIALS, store.sentences)
    return ~store.vocabulary.continues[token] | starts


def random_store(tokens: int, seed: int = 0) -> Store:
    """A store of about `tokens` tokens in sentences of some 20, documents of 15."""
    rng = np.random.default_rng(seed)
    documents, made = [], 0
    while made < tokens:
        document = rng.geometric(1 / 20, rng.geometric(1 / 15)).tolist()
        documents.append(document)
        made += sum(document)
    return store(documents, seed)
