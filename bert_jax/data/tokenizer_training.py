"""Training of the four tokenizer families, made repeatable.

The libraries number letters in the order of a hash table whose seed differs from
process to process; here the alphabet is chosen and ordered beforehand.
"""

import io
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator

import sentencepiece
import tokenizers
from tokenizers import decoders, normalizers, pre_tokenizers, trainers

from bert_jax import config
from bert_jax.data.subword_models import SPACE, SPECIAL, lowercasing, word_piece
from bert_jax.data.text import pieces
from bert_jax.data.word_cache import batches

# [characters] of a text and a word given to a trainer; longer ones are cut.
_CUT = 1 << 11, 1 << 8  # `tokenizers` holds 256 texts at 100 bytes a character
_UNIGRAM_CUT = 1 << 16, 1 << 8  # `sentencepiece` finds other seeds in shorter texts
_DISTINCT = 5_000_000  # [characters] in distinct words, at about 70 bytes each
_UNIGRAM_CHARACTERS = 12_000_000  # more takes minutes and gigabytes, and gains little
_COVERAGE = 0.9995  # share of a text's characters that are in its alphabet
_ALPHABET_SHARE = 8  # one in so many tokens may be a letter beyond that
# One mark or symbol, with the space before it; the space's stand-in is one too.
_PUNCTUATION = f"{SPACE}?(?!{SPACE})[\\p{{P}}\\p{{S}}]"


def collapsed(texts: Iterable[str], cut: tuple[int, int] = _CUT) -> Iterator[str]:
    """Return texts with single spaces; long ones are cut at spaces.

    Args:
      texts: any text.
      cut: [characters] at most in a text, and in a word, which is cut as a line is:
        see `text.pieces`.
    """
    longest, word = cut
    run = re.compile(f"(.{{1,{longest}}})(?: |$)", re.S)
    for text in texts:
        words = text.split()
        if len(text) > word and max(map(len, words), default=0) > word:
            words = [piece for whole in words for piece in pieces(whole, word)]
        text = " ".join(words)
        if len(text) <= longest:
            yield text
        else:
            yield from run.findall(text)


def _words(texts: Iterable[str]) -> tuple[Counter[str], int]:
    """Count words, of every n-th text where there are too many distinct ones; and n."""
    step = 1
    while True:
        words: Counter[str] = Counter()
        room = _DISTINCT  # [characters], at least, until the limit
        for text in itertools.islice(collapsed(texts), 0, None, step):
            words.update(text.split())
            room -= len(text)
            if room <= 0:
                room = _DISTINCT - sum(map(len, words)) - 4 * len(words)
                if room <= _DISTINCT // 64:
                    break
        else:
            return words, step
        step *= 2


def subwords(
    settings: config.Tokenizer, vocab_size: int, texts: Iterable[str]
) -> tokenizers.Tokenizer:
    """Train WordPiece, BPE or byte-level BPE.

    An even share of the texts is used where distinct words are very many.

    Args:
      settings: as in `train_tokenizer`.
      vocab_size: [tokens] at most.
      texts: sentences or paragraphs; iterated over several times.
    """
    kind, lowercase = settings.kind, settings.lowercase
    if kind == "wordpiece":
        tokenizer = _word_piece({}, lowercase)
    else:
        make = _byte_bpe if kind == "byte_bpe" else _bpe
        tokenizer = make(lowercase)
    words, step = _words(texts)
    sample = itertools.islice(collapsed(texts), 0, None, step)
    special = list(SPECIAL)
    options = {"min_frequency": settings.min_frequency, "show_progress": False}
    if kind == "byte_bpe":
        letters = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=special,
            initial_alphabet=letters,
            **options,
        )
        tokenizer.train_from_iterator(sample, trainer)
        return tokenizer
    first, later = _alphabets(tokenizer, words, vocab_size, kind == "wordpiece")
    letters = sorted(set(first) | set(later))
    options |= {"initial_alphabet": letters, "limit_alphabet": len(letters)}
    if kind == "bpe":
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=special, **options
        )
        tokenizer.train_from_iterator(sample, trainer)
        return tokenizer
    # As "special" tokens the "##x" get their ids before any word is read.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=special + ["##" + letter for letter in later],
        **options,
    )
    tokenizer.train_from_iterator(sample, trainer)
    return _word_piece(tokenizer.get_vocab(with_added_tokens=False), lowercase)


def _word_piece(vocabulary: dict[str, int], lowercase: bool) -> tokenizers.Tokenizer:
    tokenizer = word_piece(vocabulary, lowercase)
    if lowercase:
        tokenizer.normalizer = lowercasing()
    return tokenizer


def _bpe(lowercase: bool) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="[UNK]"))
    plain = normalizers.BertNormalizer(lowercase=False)
    tokenizer.normalizer = lowercasing() if lowercase else plain
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(prepend_scheme="always"),
            pre_tokenizers.Split(tokenizers.Regex(_PUNCTUATION), "isolated"),
        ]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    return tokenizer


def _byte_bpe(lowercase: bool) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _alphabets(
    tokenizer: tokenizers.Tokenizer, words: Counter[str], vocab_size: int, twice: bool
) -> tuple[list[str], list[str]]:
    """The letters that start a word, and those that continue one, most frequent first.

    They cover 99.95 % of the characters, as in sentencepiece, and more where they
    take up less than an eighth of the vocabulary; never more than fits into it.

    Args:
      tokenizer: normalizes and splits the words.
      words: how often each word occurs.
      vocab_size: [tokens] of the vocabulary with its special tokens.
      twice: a letter within words is a token of its own, beside the one at the start.
    """
    alike: dict[int, list[str]] = {}  # words by how often they occur
    for word, count in words.items():
        alike.setdefault(count, []).append(word)
    first: Counter[str] = Counter()
    later: Counter[str] = Counter()
    for count, some in alike.items():
        own: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
        for block in batches(some):
            plain = tokenizer.normalizer.normalize_str(" ".join(block))
            for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(plain):
                own[0][word[0]] += 1
                own[1].update(word[1:])
        for total, part in zip((first, later), own, strict=True):
            total.update({letter: n * count for letter, n in part.items()})
    both = first + later
    total = both.total() - both[SPACE]  # which stands for a border, not a letter
    room, kept, covered = vocab_size - len(SPECIAL), set(), 0
    for letter in sorted(both, key=lambda letter: (-both[letter], letter)):
        room -= 1 + (twice and letter in later)
        enough = covered >= _COVERAGE * total
        if room < 0 or (enough and len(kept) >= max(vocab_size // _ALPHABET_SHARE, 64)):
            break
        kept.add(letter)
        covered += both[letter] if letter != SPACE else 0
    return sorted(kept & set(first)), sorted(kept & set(later))


def unigram(settings: config.Tokenizer, vocab_size: int, texts: Iterable[str]) -> bytes:
    """Train a sentencepiece Unigram model.

    Kudo 2018, "Subword Regularization". Text is NFKC-normalised, case folded too
    when `lowercase`. An even share of the texts is used where there is very much.
    """
    step = sum(map(len, collapsed(texts, _UNIGRAM_CUT))) // _UNIGRAM_CHARACTERS + 1
    step = max(step, _words(texts)[1])
    share = itertools.islice(collapsed(texts, _UNIGRAM_CUT), 0, None, step)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=share,
        model_writer=model,
        model_type="unigram",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        byte_fallback=False,
        character_coverage=_COVERAGE,
        normalization_rule_name="nfkc_cf" if settings.lowercase else "nfkc",
        max_sentence_length=1 << 20,
        pad_id=0,
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        pad_piece=SPECIAL[0],
        unk_piece=SPECIAL[1],
        control_symbols=list(SPECIAL[2:]),
        num_threads=8,  # a fixed number: sums are made per thread
        minloglevel=2,
    )
    return model.getvalue()
