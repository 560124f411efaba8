"""Tagged words as sequences: nothing lost, whatever the lengths."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.config import Tokenizer
from bert_jax.data import words
from bert_jax.data.tagged import Sentence
from bert_jax.data.tokenizer import load_tokenizer
from bert_jax.errors import UserError

PIECES = ["a", "##b", "##c", "d", "##e", "f"]
TAGS = ("O", "B-x", "I-x")
WORD = st.sampled_from(["a", "abc", "abcbcbcbcbcb", "d", "de", "f", " ", "\u200b", "q"])
SENTENCE = st.lists(st.tuples(WORD, st.sampled_from(TAGS)), min_size=1, max_size=15)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pieces")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "vocab.txt").write_text("\n".join([*special, *PIECES]) + "\n")
    return load_tokenizer(folder, Tokenizer())


def _sentences(found):
    return [
        Sentence([w for w, _ in s], [t for _, t in s], f"file:{i}")
        for i, s in enumerate(found)
    ]


@settings(max_examples=80)
@given(found=st.lists(SENTENCE, min_size=1, max_size=4), limit=st.integers(4, 12))
def test_every_word_keeps_its_tag(tokenizer, found, limit):
    found = _sentences(found)
    sequences, label, first = words.encode(tokenizer, found, TAGS, limit)
    size = np.diff(sequences.offset)
    assert (size >= 2).all() and size.max() <= limit
    assert (sequences.token[sequences.offset[:-1]] == 2).all()
    assert (sequences.token[sequences.offset[1:] - 1] == 3).all()
    tags = [tag for sentence in found for tag in sentence.tags]
    texts = [word for sentence in found for word in sentence.words]
    assert len(first) == len(tags)
    assert (label >= 0).sum() == (first >= 0).sum()
    logits = np.eye(len(TAGS) + 1, dtype=np.float32)[label][:, :-1]
    for text, wanted, got in zip(
        texts, tags, words.tags(logits, first, TAGS), strict=True
    ):
        assert got == (wanted if tokenizer.encode(text) else "O")


def test_a_new_tag_is_named(tokenizer):
    found = [Sentence(["a", "d"], ["O", "B-new"], "dev.conll:7")]
    with pytest.raises(UserError, match=r"dev.conll:7: the tag 'B-new' of 'd'"):
        words.encode(tokenizer, found, TAGS, 8)
    assert words.tags_of(found) == ("O", "B-new")
