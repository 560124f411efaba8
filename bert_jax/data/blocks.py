"""Blocks of raw text to part files of a token store, in this or other processes."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import zipfile
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash

from bert_jax.config import Config
from bert_jax.data.sentences import split
from bert_jax.data.tokenizer import TextTokenizer, load_tokenizer
from bert_jax.data.word_cache import join
from bert_jax.errors import UserError

_VERSION = 3  # of the parts' content; others are not reused
_BLOCK = 4_000_000  # [characters] of text in a part
_ENCODED = 1 << 20  # [characters] encoded at a time, at some 100 bytes each
_PENDING = 2  # blocks a worker that may wait, each some 10 MB in two processes


class Part(NamedTuple):
    """A part file and what it holds."""

    path: str
    documents: int
    sentences: int
    tokens: int
    text_bytes: int
    empty: int  # documents without a single token, left out
    unknown: int  # tokens that are [UNK]


class Encoder:
    """Splits, encodes and writes blocks; one lives in each worker."""

    def __init__(self, partial: Path, config: Config, dtype: str) -> None:
        self._tokenizer = load_tokenizer(partial / "tokenizer", config.tokenizer)
        self._unknown = self._tokenizer.vocabulary().unk
        self._directory, self._dtype = partial, dtype
        self._language = config.data.language
        digest = xxhash.xxh3_64(f"{_VERSION} {dtype} {self._language}".encode())
        for file in sorted((partial / "tokenizer").iterdir()):
            digest.update(file.read_bytes())
        self._seed = digest.intdigest()

    def __call__(self, index: int, block: bytes) -> Part:
        """Encodes a block: documents parted by blank lines. Reuses a part on disk."""
        name = xxhash.xxh3_64_hexdigest(block, seed=self._seed)
        path = self._directory / f"part-{index:06d}-{name}.npz"
        try:
            with open(path, "rb") as file, np.load(file) as arrays:
                return Part(str(path), *arrays["counts"].tolist())
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            pass  # none yet
        raw = block.split(b"\n\n")
        hashes = [xxhash.xxh3_64_intdigest(text) for text in raw]
        arrays = encode(raw, self._tokenizer, self._language)
        whole = arrays.pop("whole")
        counts = [
            len(arrays["documents"]),
            len(arrays["sentences"]),
            len(arrays["tokens"]),
            len(block) - 2 * len(raw) + 2,
            len(raw) - int(whole.sum()),
            int((arrays["tokens"] == self._unknown).sum()),
        ]
        arrays["tokens"] = arrays["tokens"].astype(self._dtype)
        arrays["hashes"] = np.array(hashes, np.uint64)[whole]
        fresh = path.with_suffix(".new")
        with open(fresh, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays, counts=np.array(counts))
        os.replace(fresh, path)
        return Part(str(path), *counts)


def encode(
    raw: list[bytes], tokenizer: TextTokenizer, language: str
) -> dict[str, np.ndarray]:
    """Token ids of whole documents.

    Args:
      raw: documents as UTF-8, one line a paragraph.
      tokenizer: makes the ids.
      language: [ISO 639-1] for sentence splitting.

    Returns:
      `tokens` int32 [T]; `sentences` int64 [S] and `documents` int64 [D], where each
      ends; `whole` bool [len(raw)], False for documents left out as without tokens.
    """
    lines: list[list[str]] = []  # each whole, as its sentences
    found = []
    ends, count, size = [], 0, 0
    for document in raw:
        for line in document.decode().split("\n"):
            lines.append(split(language, line))
            count += len(lines[-1])
            size += len(line)
            if size >= _ENCODED:
                found.append(tokenizer.encode_parts(lines))
                lines, size = [], 0
        ends.append(count)
    ids, offsets = join([*found, tokenizer.encode_parts(lines)])
    kept = np.diff(offsets) > 0
    before = np.concatenate([[0], np.cumsum(kept)])[[0, *ends]]
    whole = np.diff(before) > 0
    return {
        "tokens": ids,
        "sentences": offsets[1:][kept],
        "documents": before[1:][whole],
        "whole": whole,
    }


def _blocks(documents: Iterable[list[str]]) -> Iterator[bytes]:
    waiting: list[str] = []
    size = 0
    for document in documents:
        waiting.append("\n".join(document))
        size += len(waiting[-1])
        if size >= _BLOCK:
            yield "\n\n".join(waiting).encode()
            waiting, size = [], 0
    if waiting:
        yield "\n\n".join(waiting).encode()


def encode_blocks(
    documents: Iterable[list[str]],
    partial: Path,
    config: Config,
    dtype: str,
    workers: int,
) -> Iterator[Part]:
    """Encodes documents block by block, in order, with few blocks under way.

    Args:
      documents: the corpus.
      partial: the directory of the part files, with the tokenizer in `tokenizer/`.
      config: `data.language` and `tokenizer` are read.
      dtype: of the stored ids.
      workers: [processes] 1 is this process alone.

    Yields:
      One part for each block, in the corpus's order.

    Raises:
      UserError: a worker was killed.
    """
    blocks = enumerate(_blocks(documents))
    if workers == 1:
        encoder = Encoder(partial, config, dtype)
        yield from (encoder(index, block) for index, block in blocks)
        return
    # Not "fork": the parent may run threads of TensorFlow or of the tokenizer.
    pool = ProcessPoolExecutor(
        workers,
        multiprocessing.get_context("spawn"),
        _start_worker,
        (partial, config, dtype),
    )
    pending: deque[Future[Part]] = deque()
    try:
        for index, block in blocks:
            pending.append(pool.submit(_work, index, block))
            while len(pending) > _PENDING * workers or (pending and pending[0].done()):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            f"{partial}: a worker was killed, perhaps for want of memory; run again "
            "to continue, with a smaller --num-workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_encoder: Encoder | None = None  # of a worker process


def _start_worker(partial: Path, config: Config, dtype: str) -> None:
    global _encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _encoder = Encoder(partial, config, dtype)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _work(index: int, block: bytes) -> Part:
    assert _encoder is not None
    return _encoder(index, block)
