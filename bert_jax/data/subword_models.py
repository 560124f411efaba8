"""The models behind the tokenizer interface, one class a library."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers

from bert_jax.data.word_cache import (
    Encoded,
    WordCache,
    batches,
    divide,
    flatten,
    is_local,
    join,
)

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_OTHERS = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")  # RoBERTa's; ALBERT's in part
SPACE = "\u2581"  # starts a word in the vocabularies of BPE and Unigram

Spans = list[tuple[list[int], list[tuple[int, int]]]]


def special_of(tokens: Sequence[str]) -> tuple[str, ...]:
    """What a vocabulary calls each of `SPECIAL`, "" where it has none."""
    there, pairs = set(tokens), zip(SPECIAL, _OTHERS, strict=True)
    return tuple(next((n for n in pair if n in there), "") for pair in pairs)


class Subwords:
    """The tokenizers of the `tokenizers` library: of every family, Unigram too."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True  # "[SEP]" in a text is plain text
        self._tokenizer = tokenizer
        ids = tokenizer.get_vocab(with_added_tokens=True)
        self.tokens = [""] * (max(ids.values()) + 1)
        for token, index in ids.items():
            self.tokens[index] = token
        self.special = special_of(self.tokens)
        # Of a pair there are two more, at both ends; without a frame there are none.
        self.separators = max(1, tokenizer.num_special_tokens_to_add(True) - 2)
        self._cache = WordCache(tokenizer) if is_local(tokenizer) else None

    def encode_parts(self, texts: Sequence[Sequence[str]]) -> Encoded:
        """As `TextTokenizer.encode_parts`."""
        if self._cache:
            return self._cache.encode_parts(texts)
        return _encode_parts(self, texts)

    def encode_plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, whose spaces are single."""
        found = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in found]

    def encode_spans(self, texts: Sequence[str]) -> Spans:
        """Ids and (start, end) of each text, in characters."""
        found = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return [(encoding.ids, encoding.offsets) for encoding in found]

    def decode(self, ids: Sequence[int]) -> str:
        """As `TextTokenizer.decode`."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def save(self, directory: Path) -> None:
        """Writes the files that `load_tokenizer` reads."""
        save(self._tokenizer, self.tokens, directory, self.separators)
        if isinstance(self._tokenizer.model, tokenizers.models.WordPiece):
            lines = "".join(token + "\n" for token in self.tokens)
            (directory / "vocab.txt").write_text(lines, "utf-8")


class Unigram:
    """Unigram of the `sentencepiece` library."""

    separators = 1

    def __init__(self, model: bytes) -> None:
        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        count = self._processor.get_piece_size()
        self.tokens = [self._processor.id_to_piece(index) for index in range(count)]
        self.special = special_of(self.tokens)

    def encode_parts(self, texts: Sequence[Sequence[str]]) -> Encoded:
        """As `TextTokenizer.encode_parts`."""
        return _encode_parts(self, texts)

    def encode_plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, whose spaces are single."""
        # One thread: the callers spread whole blocks of text over processes.
        return self._processor.encode(list(texts), num_threads=1)

    def encode_spans(self, texts: Sequence[str]) -> Spans:
        """Ids and (start, end) of each text, in characters."""
        found = self._processor.encode(
            list(texts), num_threads=1, return_type="offset_mapping"
        )
        return [(row["ids"], row["offsets"]) for row in found]

    def decode(self, ids: Sequence[int]) -> str:
        """As `TextTokenizer.decode`."""
        special = set(map(self.tokens.index, self.special))
        return self._processor.decode([token for token in ids if token not in special])

    def save(self, directory: Path) -> None:
        """Writes the files that `load_tokenizer` reads."""
        (directory / "tokenizer.model").write_bytes(self._model)
        save(as_fast_unigram(self._model, self.tokens), self.tokens, directory)


def _encode_parts(
    backend: Subwords | Unigram, texts: Sequence[Sequence[str]]
) -> Encoded:
    """Whole texts through the library; offsets are found only where one is cut."""
    made = [_collapse(parts) for parts in texts if parts]
    waiting, encoded = iter(borders for _, borders in made), []
    for some in batches([text for text, _ in made]):
        borders = [next(waiting) for _ in some]
        rows: list[list[list[int]]] = [[] for _ in some]
        single = [i for i, places in enumerate(borders) if not places]
        several = [i for i, places in enumerate(borders) if places]
        ids = backend.encode_plain([some[i] for i in single])
        for i, row in zip(single, ids, strict=True):
            rows[i] = [row]
        found = backend.encode_spans([some[i] for i in several])
        for i, (row, spans) in zip(several, found, strict=True):
            rows[i] = divide(some[i], row, spans, borders[i])
        encoded.append(flatten([part for row in rows for part in row]))
    return join(encoded)


def _collapse(parts: Sequence[str]) -> tuple[str, list[int]]:
    """The text with single spaces, and the borders of its parts in it."""
    text, size, borders, space = [], 0, [], False
    for part in parts:
        words = part.split()
        space = space or part[:1].isspace()
        if words:
            if space and size:
                text.append(" ")
                size += 1
            text.append(" ".join(words))
            space = part[-1].isspace()
        borders.append(size)
        size += len(text[-1]) if words else 0
    return "".join(text), borders[1:]


def as_fast_unigram(
    model: bytes, tokens: list[str], before: Sequence[Any] = ()
) -> tokenizers.Tokenizer:
    """The same Unigram model for the `tokenizers` library, for other programs.

    Args:
      model: of sentencepiece.
      tokens: its vocabulary.
      before: normalizers of the text that it is given.
    """
    from sentencepiece import sentencepiece_model_pb2

    messages: Any = sentencepiece_model_pb2  # made at run time
    proto = messages.ModelProto.FromString(model)
    scores = [(piece.piece, piece.score) for piece in proto.pieces]
    names = special_of(tokens)
    unk = tokens.index(names[1])
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram(scores, unk, False))
    normalizers = tokenizers.normalizers
    charsmap = proto.normalizer_spec.precompiled_charsmap
    tokenizer.normalizer = normalizers.Sequence(
        [
            *before,
            *([normalizers.Precompiled(charsmap)] if charsmap else ()),
            normalizers.Replace(tokenizers.Regex(" {2,}"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.decoder = tokenizers.decoders.Metaspace()
    tokenizer.add_special_tokens(list(names))
    return tokenizer


def albert(model: bytes, lowercase: bool) -> tokenizers.Tokenizer:
    """A tokenizer from ALBERT's spiece.model: Lan et al. 2020, `tokenization.py`.

    That code changes the text before the model sees it, which the file does not say.
    """
    steps = tokenizers.normalizers
    before = [steps.Replace("``", '"'), steps.Replace("''", '"')]
    before += [steps.NFKD(), steps.StripAccents()]
    before += [steps.Lowercase()] if lowercase else []
    return as_fast_unigram(model, Unigram(model).tokens, before)


def byte_bpe(vocabulary: dict[str, int], merges: str) -> tokenizers.Tokenizer:
    """RoBERTa's tokenizer, from vocab.json and the text of merges.txt.

    Radford et al. 2019, section 2.2; as there, the first word has no space before it.
    With RoBERTa's special tokens pairs are framed as it reads them.
    """
    lines = [line for line in merges.split("\n") if line]
    lines = lines[1:] if lines[:1] and lines[0].startswith("#version") else lines
    pairs = [(a, b) for a, _, b in (line.partition(" ") for line in lines)]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, pairs))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    names = special_of(list(vocabulary))
    tokenizer.add_special_tokens([name for name in names if name])
    if names == _OTHERS:
        _frame(tokenizer, names, separators=2)
    return tokenizer


def _frame(
    tokenizer: tokenizers.Tokenizer, names: Sequence[str], separators: int
) -> None:
    _, _, cls, sep, _ = names
    between = " ".join([sep] * separators)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {between} $B:1 {sep}:1",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in (cls, sep)],
    )


def save(
    tokenizer: tokenizers.Tokenizer,
    tokens: list[str],
    directory: Path,
    separators: int = 1,
) -> None:
    """Writes tokenizer.json, which frames texts and pairs as the model reads them.

    There [MASK] swallows the space before it, which byte-level BPE would otherwise
    make a token of.
    """
    names = special_of(tokens)
    added = tokenizers.AddedToken(names[-1], lstrip=True, special=True)
    tokenizer.add_special_tokens([added])
    _frame(tokenizer, names, separators)
    tokenizer.save(str(directory / "tokenizer.json"))


def read_vocabulary(file: Path) -> dict[str, int]:
    """Token to id of a vocab.txt: the line number, from 0."""
    lines = file.read_bytes().decode().removesuffix("\n").split("\n")
    return {line.removesuffix("\r"): index for index, line in enumerate(lines)}


def word_piece(vocabulary: dict[str, int], lowercase: bool) -> tokenizers.Tokenizer:
    """A BERT tokenizer: Devlin et al. 2019, the original `tokenization.py`."""
    model = tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = tokenizers.decoders.WordPiece(prefix="##")
    tokenizer.add_special_tokens([name for name in SPECIAL if name in vocabulary])
    return tokenizer
