"""The split and the order of texts: by content alone, nothing lost between parts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.data import hashing
from bert_jax.data.texts import split
from bert_jax.errors import UserError
from tests.data.synthetic import random_store, store

DOCUMENTS = st.lists(
    st.lists(st.integers(1, 400), min_size=1, max_size=30), min_size=1, max_size=6
)


def _tokens(begin, end):
    return np.concatenate(
        [np.arange(a, b) for a, b in zip(begin, end, strict=True)] or [np.arange(0)]
    )


def _all_tokens(texts):
    return _tokens(*texts.span(np.arange(len(texts))))


@settings(max_examples=60)
@given(DOCUMENTS, st.sampled_from([0.001, 0.1, 0.5, 0.999]))
def test_both_sides_have_text_and_share_none(documents, share):
    source = store(documents)
    if len(source.tokens) < 2:
        return
    sides = split(source, share)
    found = np.concatenate([_all_tokens(side) for side in sides])
    assert all(len(side) for side in sides)
    assert sorted(found.tolist()) == list(range(len(source.tokens)))


@pytest.mark.parametrize("share", [0.01, 0.1, 0.9, 0.999])
def test_passages_of_few_documents_are_the_share_and_contiguous(share):
    source = store([[20] * 5_000])
    train, held_out = split(source, share)
    assert train.are_passages and held_out.are_passages
    assert held_out.tokens / 100_000 == pytest.approx(share, rel=0.1, abs=0.005)
    assert min(train.tokens, held_out.tokens) >= 100
    for texts in (train, held_out):
        begin, _ = texts.span(np.arange(len(texts)))
        assert (begin % 20 == 0).all()  # sentences stay whole
    moved = store([[7] * 9, [20] * 5_000])
    moved = moved._replace(hashes=np.append(moved.hashes[:1], source.hashes))
    if np.count_nonzero(moved.hashes < share * 2.0**64) in (0, 2):
        again = _all_tokens(split(moved, share)[1]) - 63
        assert np.isin(_all_tokens(held_out), again).mean() > 0.8


def test_documents_are_held_out_whole_where_there_are_enough():
    train, held_out = split(random_store(20_000), 0.2)
    assert not train.are_passages and not held_out.are_passages


def test_nothing_is_held_out_at_0():
    source = store([[9]])
    train, held_out = split(source, 0.0)
    assert (len(train), train.tokens, len(held_out)) == (1, 9, 0)


def test_a_single_token_cannot_be_split():
    with pytest.raises(UserError, match="eval_share=0.1"):
        split(store([[1]]), 0.1)


@settings(max_examples=60)
@given(DOCUMENTS, st.integers(1, 500), st.integers(1, 9), st.integers(0, 9))
def test_parts_of_an_order_divide_the_text(documents, stretch, parts, seed):
    source = store(documents)
    texts, _ = split(source, 0.0)
    edges = np.linspace(0, texts.tokens, parts + 1).astype(int).tolist()
    found, key = [], hashing.key(seed)
    for low, high in zip(edges, edges[1:], strict=False):
        spans = texts.deal(key, low, high, stretch)
        starts = source.sentences[source.documents]
        assert (starts[spans.text] <= spans.begin).all()
        assert (spans.end <= starts[spans.text + 1]).all()
        found.append(_tokens(spans.begin, spans.end))
    assert sorted(np.concatenate(found).tolist()) == list(range(texts.tokens))
