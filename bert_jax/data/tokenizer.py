"""Text to token ids and back: four families of subword tokenizer, one interface.

`tokenizers` makes WordPiece, BPE and byte-level BPE, `sentencepiece` makes Unigram.
Runs of whitespace count as one space throughout, as in a token store.
"""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from numpy.typing import NDArray

from bert_jax import config
from bert_jax.data import pretrained
from bert_jax.data.subword_models import (
    SPACE,
    SPECIAL,
    Subwords,
    Unigram,
    albert,
    byte_bpe,
    kind_of_content,
    read_vocabulary,
    unigram_vocabulary,
    word_piece,
)
from bert_jax.data.word_cache import Encoded, flatten, skip_space
from bert_jax.errors import UserError

UNKNOWN_LIMIT = 0.05  # [share of tokens] beyond which [UNK] is warned of
# Files of each kind that a directory may hold; the first is taken.
_FILES = {
    "wordpiece": ("tokenizer.json", "vocab.txt"),
    "bpe": ("tokenizer.json",),
    "byte_bpe": ("tokenizer.json", "vocab.json"),
    "unigram": ("tokenizer.model", "tokenizer.json", "spiece.model"),
}
_BYTE = {  # GPT-2's printable stand-ins: every byte that is not itself, from 256 on
    char: byte
    for byte, char in zip(
        [*range(33), *range(127, 161), 173],
        map(chr, range(256, 324)),
        strict=True,
    )
}


class Vocabulary(NamedTuple):
    """What the data pipeline must know of a tokenizer."""

    size: int  # [tokens]
    pad: int
    unk: int
    cls: int
    sep: int
    mask: int
    continues: NDArray[np.bool_]  # [V] True where the id continues a word
    hash: str  # SHA-256 over all tokens in the order of their ids


class TextTokenizer:
    """A tokenizer of any family, from `load_tokenizer` or `train_tokenizer`.

    No text, whatever it holds, is encoded to a special token but [UNK], unless asked.
    """

    def __init__(
        self, backend: Subwords | Unigram, kind: str, notes: Sequence[str] = ()
    ) -> None:
        self._backend, self.kind = backend, kind
        self.notes = tuple(notes)  # what was decided in reading another program's
        self.special = backend.special  # its names of what `SPECIAL` names
        self.separators = backend.separators  # [SEP] between two texts; RoBERTa's two
        self.lowercase = backend.normalize("A") == "a"

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        """Encodes texts without adding or recognising special tokens.

        Args:
          texts: any Unicode strings; whitespace runs count as one space.

        Returns:
          All ids in one int32 array [T], and int64 offsets [len(texts) + 1] into it.
        """
        return self.encode_parts([[text] for text in texts])

    def encode_parts(self, texts: Sequence[Sequence[str]]) -> Encoded:
        """Encodes whole texts, and finds the tokens of their parts.

        Args:
          texts: each a list of parts, any Unicode strings, which make up the text
            without anything between them.

        Returns:
          The ids of the whole texts in one int32 array [T], and int64 offsets
          [parts + 1] into it. A token that two parts share belongs to the first.
        """
        return self._backend.encode_parts(texts)

    def encode_spans(
        self, texts: Sequence[str]
    ) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int32]]:
        """`encode_batch`, and where in its text each token stands.

        Args:
          texts: any Unicode strings.

        Returns:
          Ids [T] and offsets [len(texts) + 1] as `encode_batch`, and int32 [T, 2]:
          first character and the one after the last, without the space before a
          word. A piece that stands for a space alone is empty.
        """
        plain, places = zip(*map(_collapse, texts), strict=True) if texts else ((), ())
        rows = self._backend.encode_spans(plain)
        spans = [
            (int(place[a]), int(place[b - 1]) + 1 if b > a else int(place[a]))
            for (_, found), text, place in zip(rows, plain, places, strict=True)
            for a, b in (skip_space(text, *span) for span in found)
        ]
        ids, offsets = flatten([row for row, _ in rows])
        return ids, offsets, np.array(spans, np.int32).reshape(-1, 2)

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Ids of one text; `special` reads [MASK] and its like as the tokens."""
        if not special:
            return self.encode_batch([text])[0].tolist()
        for name, own in zip(SPECIAL, self.special, strict=True):
            text = text.replace(name, own)
        return self._backend.encode_special(" ".join(text.split()))

    def decode(self, ids: Sequence[int]) -> str:
        """Readable text of ids; special tokens are left out."""
        return self._backend.decode([int(token) for token in ids]).strip()

    def token(self, id: int) -> str:
        """The vocabulary entry of one id, with the marks of its family."""
        return self._backend.tokens[id]

    def bert_normalizer(self) -> dict[str, Any] | None:
        """The flags of a WordPiece tokenizer with BERT's normalizer, else None."""
        return self._backend.bert_normalizer() if self.kind == "wordpiece" else None

    def save(self, directory: str | Path) -> None:
        """Write all that `load_tokenizer` needs, beside what other programs read.

        Raises:
          UserError: the directory cannot be written, or the disk is full.
        """
        place = Path(directory)
        try:
            place.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".tokenizer-", dir=place) as fresh:
                self._backend.save(Path(fresh))
                for path in Path(fresh).iterdir():
                    os.replace(path, place / path.name)
        except Exception as error:  # both libraries raise bare exceptions
            raise UserError(
                f"{place}: the tokenizer cannot be written ({error}); make room or "
                "name another directory, then run the same command again"
            ) from error

    def vocabulary(self) -> Vocabulary:
        """The vocabulary's size, special ids, word continuations and hash.

        WordPiece marks continuations ("##"). The others mark the start of a word by
        a space; there a word runs from a space or a punctuation mark to the next.
        """
        tokens = self._backend.tokens
        digest = hashlib.sha256("\0".join(tokens).encode()).hexdigest()
        continues = np.array([_continues(token, self.kind) for token in tokens])
        pad, unk, cls, sep, mask = ids = [*map(tokens.index, self.special)]
        continues[ids] = False
        return Vocabulary(len(tokens), pad, unk, cls, sep, mask, continues, digest)


def _collapse(text: str) -> tuple[str, NDArray[np.int64]]:
    """The text with single spaces, and the place of each of its characters before."""
    words = [match.span() for match in re.finditer(r"\S+", text)]
    ends = [(end, end + 1) for _, end in words]
    places = [
        np.arange(*span) for pair in zip(words, ends, strict=True) for span in pair
    ]
    whole = np.concatenate([*places, [len(text)]])
    return " ".join(text[a:b] for a, b in words), whole


def _continues(token: str, kind: str) -> bool:
    if not token:
        return False
    if kind == "wordpiece":
        return token.startswith("##") and len(token) > 2
    first = token[0]
    if kind != "byte_bpe":
        return first != SPACE and (first.isalnum() or ord(first) > 0x2FFF)
    byte = _BYTE.get(first, ord(first))
    return byte >= 0x80 or chr(byte).isalnum()


def load_tokenizer(
    path: str | Path, settings: config.Tokenizer, lowercase: bool | None = None
) -> TextTokenizer:
    """Loads a tokenizer made here or elsewhere.

    A directory of transformers is read as that program reads it.

    Args:
      path: a tokenizer.json, vocab.txt (one token a line), vocab.json (beside a
        merges.txt) or sentencepiece .model, or a directory that holds one of them.
      settings: `kind` must fit the file; `lowercase` is used for a vocab.txt and for
        ALBERT's spiece.model, since the other formats say it themselves.
      lowercase: in a directory of transformers, the user's choice against its files.

    Raises:
      UserError: no such file, of another kind, unreadable, or without one of the
        special tokens [PAD] [UNK] [CLS] [SEP] [MASK], or RoBERTa's <pad> <unk> <s>
        </s> <mask> in their places.
    """
    notes: Sequence[str] = ()
    file = Path(path)
    try:
        if pretrained.is_directory(file):
            inner, kind, notes = pretrained.read(file, lowercase)
            if kind != settings.kind:
                raise UserError(
                    f"config.tokenizer.path={path}: holds a tokenizer of another kind; "
                    f"set --config.tokenizer.kind={kind}"
                )
            backend = Subwords(inner)
        else:
            file = _find(file, settings.kind)
            backend = _open(file, settings)
    except UserError:
        raise
    except Exception as error:  # both libraries raise bare exceptions
        raise UserError(
            f"config.tokenizer.path={path}: cannot read {file} ({error})"
        ) from None
    pairs = zip(SPECIAL, backend.special, strict=True)
    missing = [name for name, own in pairs if not own]
    if missing:
        raise UserError(
            f"config.tokenizer.path={path}: {file} has no special token "
            f"{' '.join(missing)}; BERT needs {' '.join(SPECIAL)}"
        )
    return TextTokenizer(backend, settings.kind, notes)


def kind_of(directory: Path) -> str:
    """The `kind` of a directory's tokenizer; wordpiece where there is none.

    Raises:
      UserError: a tokenizer.json cannot be read, or is of no known kind.
    """
    file = directory / "tokenizer.json"
    if file.is_file():
        try:
            return kind_of_content(json.loads(file.read_text("utf-8")))
        except Exception as error:  # what is in the file may be anything
            raise UserError(f"{file}: no tokenizer is read from it ({error})") from None
    for kind, names in reversed(_FILES.items()):
        if any((directory / name).is_file() for name in names):
            return kind
    return "wordpiece"


def _find(path: Path, kind: str) -> Path:
    names = _FILES[kind]
    if not path.is_dir():
        names, found = (path.name,), [path] if path.is_file() else []
    else:
        found = [path / name for name in names if (path / name).is_file()]
    if not found:
        raise UserError(
            f"config.tokenizer.path={path}: no {' or '.join(names)} there for "
            f"config.tokenizer.kind={kind}; leave the path empty to train one"
        )
    return found[0]


def _open(file: Path, settings: config.Tokenizer) -> Subwords | Unigram:
    kind = settings.kind
    if file.name == "spiece.model" and kind == "unigram":
        pieces = unigram_vocabulary(file.read_bytes())
        return Subwords(albert(*pieces, settings.lowercase))
    if file.suffix == ".model" and kind == "unigram":
        return Unigram(file.read_bytes())
    if file.suffix == ".txt" and kind == "wordpiece":
        return Subwords(word_piece(read_vocabulary(file), settings.lowercase))
    if file.name == "vocab.json" and kind == "byte_bpe":
        merges = file.with_name("merges.txt").read_text("utf-8")
        return Subwords(byte_bpe(json.loads(file.read_text("utf-8")), merges))
    if (
        file.suffix == ".json"
        and kind_of_content(json.loads(file.read_text("utf-8"))) == kind
    ):
        return Subwords(tokenizers.Tokenizer.from_file(str(file)))
    raise UserError(
        f"config.tokenizer.path={file} does not fit config.tokenizer.kind={kind}: "
        "unigram takes a sentencepiece .model, wordpiece a vocab.txt, byte_bpe a "
        "vocab.json with its merges.txt, and each a tokenizer.json of that kind"
    )


def train_tokenizer(
    settings: config.Tokenizer, vocab_size: int, texts: Iterable[str]
) -> TextTokenizer:
    """Trains a tokenizer; the same texts always give the same one.

    Args:
      settings: kind, lowercase and min_frequency are read.
      vocab_size: [tokens] at most, special ones included; small texts give fewer.
      texts: sentences or paragraphs; iterated over several times.

    Raises:
      UserError: the vocabulary is too small for the alphabet, or there is no text.
    """
    from bert_jax.data import tokenizer_training as training

    try:
        if settings.kind == "unigram":
            model = training.unigram(settings, vocab_size, texts)
            backend: Subwords | Unigram = Unigram(model)
        else:
            backend = Subwords(training.subwords(settings, vocab_size, texts))
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"config.tokenizer.kind={settings.kind}: training failed: {error}; "
            "give more text or another config.model.vocab_size"
        ) from None
    if len(backend.tokens) > vocab_size:
        raise UserError(
            f"config.model.vocab_size={vocab_size}: too small for the special tokens "
            f"and alphabet of {settings.kind}; needs at least {len(backend.tokens)}"
        )
    return TextTokenizer(backend, settings.kind)
