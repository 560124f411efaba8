"""Training of the four tokenizer families, made repeatable.

The libraries number letters in the order of a hash table whose seed differs from
process to process; here the alphabet is chosen and ordered beforehand.
"""

import io
from collections import Counter

import sentencepiece
import tokenizers
from tokenizers import decoders, normalizers, pre_tokenizers, trainers

from bert_jax import config
from bert_jax.data.subword_models import SPACE, SPECIAL, word_piece
from bert_jax.data.word_cache import batches

_UNIGRAM_CHARACTERS = 12_000_000  # more takes minutes and gigabytes, and gains little
_ALPHABET_SHARE = 8  # at most one in so many tokens of a vocabulary is a letter
# One mark or symbol, with the space before it; the space's stand-in is one too.
_PUNCTUATION = f"{SPACE}?(?!{SPACE})[\\p{{P}}\\p{{S}}]"


def subwords(
    settings: config.Tokenizer, vocab_size: int, texts: list[str]
) -> tokenizers.Tokenizer:
    """Trains WordPiece, BPE or byte-level BPE on texts without whitespace runs."""
    kind, lowercase = settings.kind, settings.lowercase
    if kind == "wordpiece":
        tokenizer = word_piece({}, lowercase)
    else:
        make = _byte_bpe if kind == "byte_bpe" else _bpe
        tokenizer = make(lowercase)
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
        tokenizer.train_from_iterator(texts, trainer)
        return tokenizer
    first, later = _alphabets(tokenizer, texts, max(vocab_size // _ALPHABET_SHARE, 64))
    letters = sorted(set(first) | set(later))
    options |= {"initial_alphabet": letters, "limit_alphabet": len(letters)}
    if kind == "bpe":
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=special, **options
        )
        tokenizer.train_from_iterator(texts, trainer)
        return tokenizer
    # As "special" tokens the "##x" get their ids before any word is read.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=special + ["##" + letter for letter in later],
        **options,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return word_piece(tokenizer.get_vocab(with_added_tokens=False), lowercase)


def _bpe(lowercase: bool) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
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
    tokenizer: tokenizers.Tokenizer, texts: list[str], limit: int
) -> tuple[list[str], list[str]]:
    """The letters of the most distinct words: those that start one, and the others."""
    words: set[str] = set()
    for text in texts:
        words.update(text.split())
    first: Counter[str] = Counter()
    later: Counter[str] = Counter()
    for some in batches(list(words)):
        plain = tokenizer.normalizer.normalize_str(" ".join(some))
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(plain):
            first[word[0]] += 1
            later.update(word[1:])
    both = first + later
    kept = sorted(both, key=lambda letter: (-both[letter], letter))[:limit]
    return sorted(set(kept) & set(first)), sorted(set(kept) & set(later))


def unigram(settings: config.Tokenizer, vocab_size: int, texts: list[str]) -> bytes:
    """Trains a sentencepiece Unigram model on texts without whitespace runs.

    Kudo 2018, "Subword Regularization". Text is NFKC-normalised, case folded too
    when `lowercase`. An even share of the texts is used where there is very much.
    """
    step = sum(map(len, texts)) // _UNIGRAM_CHARACTERS + 1
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts[::step]),
        model_writer=model,
        model_type="unigram",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        byte_fallback=False,
        character_coverage=0.9995,
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
