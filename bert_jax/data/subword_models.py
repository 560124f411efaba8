"""The models behind the tokenizer interface, one class a library."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers

from bert_jax.data.word_cache import (
    ACCENTS,
    Encoded,
    WordCache,
    batches,
    divide,
    flatten,
    is_local,
    join,
)
from bert_jax.errors import UserError

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_OTHERS = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")  # RoBERTa's; ALBERT's in part
SPACE = "\u2581"  # starts a word in the vocabularies of BPE and Unigram

Spans = list[tuple[list[int], list[tuple[int, int]]]]


def special_of(tokens: Sequence[str]) -> tuple[str, ...]:
    """What a vocabulary calls each of `SPECIAL`, "" where it has none."""
    there, pairs = set(tokens), zip(SPECIAL, _OTHERS, strict=True)
    return tuple(next((n for n in pair if n in there), "") for pair in pairs)


def kind_of_content(content: Mapping[str, Any]) -> str:
    """The `kind` of the content of a tokenizer.json."""
    model = content["model"].get("type", "WordPiece")
    if model == "BPE":
        pre = json.dumps(content.get("pre_tokenizer"))
        return "byte_bpe" if "ByteLevel" in pre else "bpe"
    return {"WordPiece": "wordpiece", "Unigram": "unigram"}[model]


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

    def bert_normalizer(self) -> dict[str, Any] | None:
        """The flags of BERT's normalizer and pre-tokenizer, None with any other."""
        content = json.loads(self._tokenizer.to_str())
        normalizer, pre = content["normalizer"], content["pre_tokenizer"]
        plain = (normalizer or {}).get("type") == "BertNormalizer"
        return normalizer if plain and pre == {"type": "BertPreTokenizer"} else None

    def normalize(self, text: str) -> str:
        """The text as the model sees it."""
        normalizer = self._tokenizer.normalizer
        return normalizer.normalize_str(text) if normalizer else text

    def encode_special(self, text: str) -> list[int]:
        """Ids of a text in which special tokens stand for themselves."""
        self._tokenizer.encode_special_tokens = False
        try:
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        finally:
            self._tokenizer.encode_special_tokens = True

    def decode(self, ids: Sequence[int]) -> str:
        """As `TextTokenizer.decode`."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def save(self, directory: Path) -> None:
        """Writes the files that `load_tokenizer` reads."""
        finish(self._tokenizer, self.tokens)
        self._tokenizer.save(str(directory / "tokenizer.json"))
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

    def normalize(self, text: str) -> str:
        """The text as the model sees it."""
        return self._processor.normalize(text).replace(SPACE, " ").strip()

    def bert_normalizer(self) -> None:
        """It has none."""

    def encode_special(self, text: str) -> list[int]:
        """Ids of a text in which special tokens stand for themselves."""
        fast = as_fast_unigram(self._model)
        finish(fast, self.tokens)
        return fast.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """As `TextTokenizer.decode`."""
        special = set(map(self.tokens.index, self.special))
        return self._processor.decode([token for token in ids if token not in special])

    def save(self, directory: Path) -> None:
        """Writes the files that `load_tokenizer` reads."""
        (directory / "tokenizer.model").write_bytes(self._model)
        fast = as_fast_unigram(self._model)
        finish(fast, self.tokens)
        fast.save(str(directory / "tokenizer.json"))


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


def as_fast_unigram(model: bytes) -> tokenizers.Tokenizer:
    """The same Unigram model for the `tokenizers` library, for other programs."""
    scores, charsmap = unigram_vocabulary(model)
    names = special_of([piece for piece, _ in scores])
    unk = [piece for piece, _ in scores].index(names[1])
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram(scores, unk, False))
    normalizers = tokenizers.normalizers
    tokenizer.normalizer = normalizers.Sequence(
        [
            *([normalizers.Precompiled(charsmap)] if charsmap else ()),
            normalizers.Replace(tokenizers.Regex(" {2,}"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.decoder = tokenizers.decoders.Metaspace()
    tokenizer.add_special_tokens(list(names))
    return tokenizer


def albert(
    scores: list[tuple[str, float]],
    charsmap: bytes,
    lowercase: bool,
    keep_accents: bool = False,
) -> tokenizers.Tokenizer:
    """ALBERT's tokenizer: Lan et al. 2020, `tokenization.py`.

    Args:
      scores: pieces and their scores, from `unigram_vocabulary`.
      charsmap: of sentencepiece's normalization; b"" for none.
      lowercase: whether text is lowercased, which the model file does not say.
      keep_accents: whether accents are kept, likewise.
    """
    steps = tokenizers.normalizers
    before = [steps.Replace("``", '"'), steps.Replace("''", '"')]
    before += [] if keep_accents else [steps.NFKD(), steps.StripAccents()]
    before += [steps.Lowercase()] if lowercase else []
    before += [steps.Precompiled(charsmap)] if charsmap else []
    pieces = [piece for piece, _ in scores]
    unk = special_of(pieces)[1]
    model = tokenizers.models.Unigram(scores, pieces.index(unk) if unk else 0, False)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = steps.Sequence(before)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.WhitespaceSplit(),
            tokenizers.pre_tokenizers.Metaspace(),
        ]
    )
    tokenizer.decoder = tokenizers.decoders.Metaspace()
    return tokenizer


def unigram_vocabulary(model: bytes) -> tuple[list[tuple[str, float]], bytes]:
    """Pieces with their scores and the normalization of a sentencepiece model.

    Raises:
      ValueError: the model is damaged.
    """
    from sentencepiece import sentencepiece_model_pb2

    messages: Any = sentencepiece_model_pb2  # made at run time
    try:
        proto = messages.ModelProto.FromString(model)
    except Exception as error:  # of protobuf, which may be one of two
        raise ValueError(f"no sentencepiece model: {error}") from None
    scores = [(piece.piece, piece.score) for piece in proto.pieces]
    return scores, proto.normalizer_spec.precompiled_charsmap


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
        frame(tokenizer, names, separators=2)
    return tokenizer


def frame(
    tokenizer: tokenizers.Tokenizer, names: Sequence[str], separators: int = 1
) -> None:
    """Sets what stands around a text and between two: [CLS] A [SEP] B [SEP]."""
    _, _, cls, sep, _ = names
    between = " ".join([sep] * separators)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {between} $B:1 {sep}:1",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in (cls, sep)],
    )


def finish(tokenizer: tokenizers.Tokenizer, tokens: list[str]) -> None:
    """Makes it frame texts and pairs as the model reads them, if it does not yet.

    [MASK] then takes up the space before it, which byte-level BPE would otherwise
    make a token of.
    """
    if tokenizer.post_processor is None:
        names = special_of(tokens)
        added = tokenizers.AddedToken(names[-1], lstrip=True, special=True)
        tokenizer.add_special_tokens([added])
        frame(tokenizer, names)


def read_vocabulary(file: Path) -> dict[str, int]:
    """Token to id of a vocab.txt: the line number, from 0."""
    text = file.read_bytes().decode("utf-8-sig").removesuffix("\n")
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    for what, count in (
        ("a piece, a tab and a number", sum("\t" in line for line in lines)),
        ("pieces of sentencepiece", sum(line[:1] == SPACE for line in lines)),
        ("pieces of byte-level BPE", sum(line[:1] == "\u0120" for line in lines)),
        ("pieces of BPE", sum(line.endswith(("@@", "</w>")) for line in lines)),
    ):
        if count > max(2, len(lines) // 20):
            raise UserError(
                f"{file}: no vocabulary of WordPiece, which has one token a line and "
                f"##x for the later pieces of a word: {count:,} of {len(lines):,} "
                f"lines hold {what}; give the tokenizer.json, or the .model file, of "
                "that tokenizer"
            )
    return {line: index for index, line in enumerate(lines)}


def lowercasing() -> tokenizers.normalizers.Normalizer:
    """Lowercases, and removes accents as BERT does, of European letters alone.

    BERT's own normalizer decomposes all text: Hangul falls into jamo, and Japanese,
    Indic and other scripts lose marks that are no accents.
    """
    steps = tokenizers.normalizers
    accents = tokenizers.Regex(ACCENTS)
    parts = [steps.BertNormalizer(True, True, False, True), steps.NFD()]
    return steps.Sequence([*parts, steps.Replace(accents, ""), steps.NFC()])


def word_piece(
    vocabulary: dict[str, int],
    lowercase: bool,
    strip_accents: bool | None = None,
    chinese: bool = True,
) -> tokenizers.Tokenizer:
    """A BERT tokenizer: Devlin et al. 2019, the original `tokenization.py`.

    Args:
      vocabulary: ids of the tokens.
      lowercase: whether text is lowercased.
      strip_accents: whether accents are taken off; None if text is lowercased.
      chinese: whether each Chinese character is a word.
    """
    model = tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(
        True, chinese, strip_accents, lowercase
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = tokenizers.decoders.WordPiece(prefix="##")
    tokenizer.add_special_tokens([name for name in SPECIAL if name in vocabulary])
    return tokenizer
