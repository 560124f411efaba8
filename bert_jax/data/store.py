"""The token store: a corpus as memory-mapped token ids, and its file format.

A store is a directory with `tokens.bin` (ids, without special tokens),
`sentences.npy`, `documents.npy`, `hashes.npy`, `continues.npy`, the tokenizer's own
files and `manifest.json`. It is written beside its final place and renamed, so that
a directory that opens is whole.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bert_jax import config, remote
from bert_jax.data.tokenizer import TextTokenizer, Vocabulary, load_tokenizer
from bert_jax.errors import UserError

FORMAT = 1


class Store(NamedTuple):
    """An open token store; the arrays are read-only memory maps."""

    path: str
    tokens: np.ndarray  # uint16 or uint32 [T]
    sentences: np.ndarray  # int64 [S+1] token offsets of sentences
    documents: np.ndarray  # int64 [D+1] sentence offsets of documents
    hashes: np.ndarray  # uint64 [D] XXH3 of each document's text
    vocabulary: Vocabulary
    manifest: dict


def open_store(path: str, note: Callable[[str], None] = lambda text: None) -> Store:
    """Memory-maps a token store and checks it against its manifest.

    Args:
      path: the directory that `prepare` wrote; one in a bucket is copied to this host.
      note: is told how far the copying is.

    Raises:
      UserError: no store there, one of another format, a damaged one, or one whose
        tokenizer files are not those that it was made with.
    """
    if remote.is_remote(path):
        path = remote.fetch(path, note)
    manifest = read_manifest(path)
    try:
        tokens = _tokens(Path(path), manifest)
        arrays = {
            name: np.load(Path(path) / f"{name}.npy", mmap_mode="r")
            for name in ("sentences", "documents", "hashes", "continues")
        }
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise _damaged(path, str(error)) from None
    sizes = {
        "sentences": manifest["sentences"] + 1,
        "documents": manifest["documents"] + 1,
        "hashes": manifest["documents"],
        "continues": manifest["vocabulary"]["size"],
    }
    for name, size in sizes.items():
        if arrays[name].shape != (size,):
            raise _damaged(
                path, f"{name}.npy has {arrays[name].size} entries, not {size}"
            )
    if arrays["sentences"][-1] != len(tokens):
        raise _damaged(path, "sentences.npy does not end with the last token")
    if arrays["documents"][-1] != manifest["sentences"]:
        raise _damaged(path, "documents.npy does not end with the last sentence")
    continues = np.array(arrays.pop("continues"))
    vocabulary = Vocabulary(**manifest["vocabulary"], continues=continues)
    present = store_tokenizer(path, manifest).vocabulary().hash
    if present != vocabulary.hash:
        raise UserError(
            f"{path}: the store was made with another tokenizer than the one in it "
            f"(vocabulary {vocabulary.hash[:12]}, found {present[:12]}); put its own "
            "tokenizer back, or delete the directory and run prepare"
        )
    return Store(path, tokens, **arrays, vocabulary=vocabulary, manifest=manifest)


def store_tokenizer(path: str, manifest: dict | None = None) -> TextTokenizer:
    """The tokenizer that a store was made with, from the files inside it."""
    kind = (manifest or read_manifest(path))["tokenizer"]["kind"]
    return load_tokenizer(path, config.Tokenizer(kind=kind))


def read_manifest(path: str) -> dict:
    """A store's manifest, without opening the rest.

    Raises:
      UserError: no store there, or one of a format that this version cannot read.
    """
    file = Path(path) / "manifest.json"
    try:
        manifest = json.loads(file.read_text("utf-8"))
    except OSError:
        raise UserError(
            f"{path}: no token store there (no manifest.json); run `python -m "
            "bert_jax prepare` with this config and workdir first"
        ) from None
    except ValueError as error:
        raise _damaged(path, f"manifest.json: {error}") from None
    if manifest.get("format") != FORMAT:
        raise UserError(
            f"{path}: token store of format {manifest.get('format')}, this version "
            f"reads {FORMAT}; delete the directory and run prepare"
        )
    return manifest


def _tokens(path: Path, manifest: dict) -> np.ndarray:
    dtype = np.dtype(manifest["dtype"])
    size = (path / "tokens.bin").stat().st_size
    if size != manifest["tokens"] * dtype.itemsize:
        wanted = manifest["tokens"] * dtype.itemsize
        raise ValueError(f"tokens.bin has {size} bytes, not {wanted}")
    return np.memmap(path / "tokens.bin", dtype, "r")


def _damaged(path: str, why: str) -> UserError:
    return UserError(
        f"{path}: damaged token store ({why}); delete the directory and run prepare"
    )
