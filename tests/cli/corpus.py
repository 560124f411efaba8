"""A small made-up language for tests: enough documents to split and to pair."""

from pathlib import Path

import numpy as np


def write(path: Path, documents: int = 120, seed: int = 0) -> Path:
    """Writes documents of a few sentences; words of a document share a topic."""
    rng = np.random.default_rng(seed)
    letters = list("abdegiklmnoprstu")
    words = ["".join(rng.choice(letters, rng.integers(2, 8))) for _ in range(300)]
    texts = []
    for _ in range(documents):
        topic = rng.choice(words, 30)
        lines = [" ".join(rng.choice(topic, 12)) + "." for _ in range(8)]
        texts.append("\n".join(lines))
    path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    return path
