"""Text to token ids and back: four families of subword tokenizer, one interface.

`tokenizers` makes WordPiece, BPE and byte-level BPE, `sentencepiece` makes Unigram.
Runs of whitespace count as one space throughout, as in a token store.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import sentencepiece
import tokenizers
from numpy.typing import NDArray

from bert_jax import config
from bert_jax.data.word_cache import WordCache, is_local
from bert_jax.errors import UserError

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SPACE = "\u2581"  # starts a word in the vocabularies of BPE and Unigram
_MODELS = {"wordpiece": "WordPiece", "bpe": "BPE", "byte_bpe": "BPE"}
_BYTE = {  # GPT-2's printable stand-ins: every byte that is not itself, from 256 on
    char: byte
    for byte, char in zip(
        [*range(33), *range(127, 161), 173],
        map(chr, range(256, 324)),
        strict=True,
    )
}

Encoded = tuple[NDArray[np.int32], NDArray[np.int64]]


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


class _Backend(Protocol):
    tokens: list[str]

    def encode_batch(self, texts: Sequence[str]) -> Encoded: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def save(self, directory: Path) -> None: ...


class TextTokenizer:
    """A trained tokenizer of any family; `load_tokenizer` and `train_tokenizer` make it.

    No text, whatever it holds, is encoded to a special token but [UNK], unless asked.
    """

    def __init__(self, backend: _Backend, kind: str) -> None:
        self._backend, self.kind = backend, kind

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        """Encodes texts without adding or recognising special tokens.

        Args:
          texts: any Unicode strings; whitespace runs count as one space.

        Returns:
          All ids in one int32 array [T], and int64 offsets [len(texts) + 1] into it.
        """
        return self._backend.encode_batch(texts)

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Ids of one text; `special` reads [MASK] and its like as the tokens."""
        if not special:
            return self._backend.encode_batch([text])[0].tolist()
        pattern = "|".join(map(re.escape, SPECIAL))
        ids: list[int] = []
        for piece in re.split(f"({pattern})", text):
            if piece in SPECIAL:
                ids.append(self._backend.tokens.index(piece))
            else:
                ids += self.encode(piece)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Readable text of ids; special tokens are left out."""
        return self._backend.decode([int(token) for token in ids]).strip()

    def token(self, id: int) -> str:
        """The vocabulary entry of one id, with the marks of its family."""
        return self._backend.tokens[id]

    def save(self, directory: str | Path) -> None:
        """Writes all that `load_tokenizer` needs, beside what other programs read."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        self._backend.save(Path(directory))

    def vocabulary(self) -> Vocabulary:
        """The vocabulary's size, special ids, word continuations and hash.

        WordPiece marks continuations ("##"). The others mark the start of a word by
        a space; there a word runs from a space or a punctuation mark to the next.
        """
        tokens = self._backend.tokens
        digest = hashlib.sha256("\0".join(tokens).encode()).hexdigest()
        continues = np.array([_continues(token, self.kind) for token in tokens])
        special = (tokens.index(name) for name in SPECIAL)
        return Vocabulary(len(tokens), *special, continues, digest)


def _continues(token: str, kind: str) -> bool:
    if token in SPECIAL or not token:
        return False
    if kind == "wordpiece":
        return token.startswith("##") and len(token) > 2
    first = token[0]
    if kind != "byte_bpe":
        return first != SPACE and (first.isalnum() or ord(first) > 0x2FFF)
    byte = _BYTE.get(first, ord(first))
    return byte >= 0x80 or chr(byte).isalnum()


class Subwords:
    """WordPiece, BPE and byte-level BPE of the `tokenizers` library."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True  # "[SEP]" in a text is plain text
        self._tokenizer = tokenizer
        ids = tokenizer.get_vocab(with_added_tokens=True)
        self.tokens = [""] * (max(ids.values()) + 1)
        for token, index in ids.items():
            self.tokens[index] = token
        self._cache = WordCache(tokenizer) if is_local(tokenizer) else None

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        if self._cache:
            return self._cache.encode_batch(texts)
        plain = [" ".join(text.split()) for text in texts]
        found = self._tokenizer.encode_batch_fast(plain, add_special_tokens=False)
        return flatten([encoding.ids for encoding in found])

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def save(self, directory: Path) -> None:
        self._tokenizer.save(str(directory / "tokenizer.json"))
        if isinstance(self._tokenizer.model, tokenizers.models.WordPiece):
            lines = "".join(token + "\n" for token in self.tokens)
            (directory / "vocab.txt").write_text(lines, "utf-8")


class Unigram:
    """Unigram of the `sentencepiece` library."""

    def __init__(self, model: bytes) -> None:
        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        count = self._processor.get_piece_size()
        self.tokens = [self._processor.id_to_piece(index) for index in range(count)]

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        # One thread: the callers spread whole blocks of text over processes.
        return flatten(self._processor.encode(list(texts), num_threads=1))

    def decode(self, ids: Sequence[int]) -> str:
        special = {self.tokens.index(name) for name in SPECIAL}
        return self._processor.decode([token for token in ids if token not in special])

    def save(self, directory: Path) -> None:
        (directory / "tokenizer.model").write_bytes(self._model)
        tokenizer = as_fast_unigram(self._model, self.tokens)
        tokenizer.save(str(directory / "tokenizer.json"))


def as_fast_unigram(model: bytes, tokens: list[str]) -> tokenizers.Tokenizer:
    """The same Unigram model for the `tokenizers` library, for other programs."""
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2.ModelProto.FromString(model)
    scores = [(piece.piece, piece.score) for piece in proto.pieces]
    unk = tokens.index("[UNK]")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram(scores, unk, False))
    normalizers = tokenizers.normalizers
    charsmap = proto.normalizer_spec.precompiled_charsmap
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Precompiled(charsmap),
            normalizers.Replace(tokenizers.Regex(" {2,}"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.decoder = tokenizers.decoders.Metaspace()
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def flatten(rows: list[list[int]]) -> Encoded:
    """Lists of ids as one int32 array and int64 offsets."""
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    ids = np.fromiter((i for row in rows for i in row), np.int32, offsets[-1])
    return ids, offsets


def load_tokenizer(path: str | Path, settings: config.Tokenizer) -> TextTokenizer:
    """Loads a tokenizer made here or elsewhere.

    Args:
      path: a tokenizer.json, vocab.txt (one token a line) or sentencepiece .model,
        or a directory that holds one of them.
      settings: `kind` must fit the file; `lowercase` is used for a vocab.txt only,
        since the other formats say it themselves.

    Raises:
      UserError: no such file, of another kind, unreadable, or without one of the
        special tokens [PAD] [UNK] [CLS] [SEP] [MASK].
    """
    file = _find(Path(path), settings.kind)
    try:
        backend = _open(file, settings)
    except UserError:
        raise
    except Exception as error:  # both libraries raise bare exceptions
        raise UserError(f"config.tokenizer.path={path}: cannot read {file} ({error})") from None
    missing = [name for name in SPECIAL if name not in backend.tokens]
    if missing:
        raise UserError(
            f"config.tokenizer.path={path}: {file} has no special token "
            f"{' '.join(missing)}; BERT needs {' '.join(SPECIAL)}"
        )
    return TextTokenizer(backend, settings.kind)


def _find(path: Path, kind: str) -> Path:
    names = ["tokenizer.model"] if kind == "unigram" else ["tokenizer.json", "vocab.txt"]
    if not path.is_dir():
        names, found = [path.name], [path] if path.is_file() else []
    else:
        found = [path / name for name in names if (path / name).is_file()]
    if not found:
        raise UserError(
            f"config.tokenizer.path={path}: no {' or '.join(names)} there for "
            f"config.tokenizer.kind={kind}; leave the path empty to train one"
        )
    return found[0]


def _open(file: Path, settings: config.Tokenizer) -> _Backend:
    kind = settings.kind
    if file.suffix == ".model" and kind == "unigram":
        return Unigram(file.read_bytes())
    if file.suffix == ".txt" and kind == "wordpiece":
        return Subwords(word_piece(read_vocabulary(file), settings.lowercase))
    if file.suffix == ".json" and kind in _MODELS:
        content = json.loads(file.read_text("utf-8"))
        pre = json.dumps(content.get("pre_tokenizer"))
        fits = content["model"].get("type", "WordPiece") == _MODELS[kind]
        if fits and ("ByteLevel" in pre) == (kind == "byte_bpe"):
            return Subwords(tokenizers.Tokenizer.from_file(str(file)))
    raise UserError(
        f"config.tokenizer.path={file} does not fit config.tokenizer.kind={kind}: "
        "unigram takes a sentencepiece .model, wordpiece a vocab.txt or "
        "tokenizer.json, bpe and byte_bpe a tokenizer.json of that kind"
    )


def read_vocabulary(file: Path) -> dict[str, int]:
    """Token to id of a vocab.txt: the line number, from 0."""
    lines = io.StringIO(file.read_bytes().decode(), newline="\n")
    return {line.rstrip("\r\n"): index for index, line in enumerate(lines)}


def word_piece(vocabulary: dict[str, int], lowercase: bool) -> tokenizers.Tokenizer:
    """A BERT tokenizer: Devlin et al. 2019, the original `tokenization.py`."""
    model = tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = tokenizers.decoders.WordPiece(prefix="##")
    tokenizer.add_special_tokens([name for name in SPECIAL if name in vocabulary])
    return tokenizer


def train_tokenizer(
    settings: config.Tokenizer, vocab_size: int, texts: Iterable[str]
) -> TextTokenizer:
    """Trains a tokenizer; the same texts always give the same one.

    Args:
      settings: kind, lowercase and min_frequency are read.
      vocab_size: [tokens] at most, special ones included; small texts give fewer.
      texts: sentences or paragraphs; all are held in memory meanwhile.

    Raises:
      UserError: the vocabulary is too small for the alphabet, or there is no text.
    """
    from bert_jax.data import tokenizer_training as training

    collapsed = [" ".join(text.split()) for text in texts]
    try:
        if settings.kind == "unigram":
            backend: _Backend = Unigram(training.unigram(settings, vocab_size, collapsed))
        else:
            backend = Subwords(training.subwords(settings, vocab_size, collapsed))
    except (RuntimeError, ValueError) as error:
        raise UserError(f"config.tokenizer.kind={settings.kind}: training: {error}") from None
    if len(backend.tokens) > vocab_size:
        raise UserError(
            f"config.model.vocab_size={vocab_size}: too small for the special tokens "
            f"and alphabet of {settings.kind}; needs at least {len(backend.tokens)}"
        )
    return TextTokenizer(backend, settings.kind)
