"""Every token of the text is in the rows of an epoch once, whatever the text."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.config import Config, Data, Objective, Phase
from bert_jax.data.pipeline import Batches
from bert_jax.evaluate import guess_by_lengths
from tests.data.synthetic import random_store, store

FORMS = [
    ("nsp", "segment_pair"),
    ("nsp", "sentence_pair"),
    ("sop", "segment_pair"),
    ("sop", "sentence_pair"),
    ("none", "doc_sentences"),
    ("none", "full_sentences"),
]
CORPORA = {  # sentence lengths of documents
    "one sentence each": [[20]] * 300,
    "one document": [[20] * 400],
    "one sentence": [[20_000]],
    "transcripts": [[700]] * 60,
    "a token more than a row": [[126]] * 200,
    "two tokens each": [[2]] * 400,
    "single tokens": [[1] * 5] * 200,
    "a last token alone": [[3, 1]] * 300,
    "a hundred thousand tokens": [[100_000], [1]],
    "long and short": [[1]] * 5 + [[5_000], [9] * 300, [200] * 9],
}
SENTENCES = st.one_of(
    st.integers(1, 3), st.integers(1, 60), st.integers(60, 700), st.just(5_000)
)
DOCUMENTS = st.one_of(
    st.lists(st.lists(SENTENCES, min_size=1, max_size=8), min_size=1, max_size=6),
    st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=1), min_size=2),
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=3), min_size=20),
)


def _config(objective, seed=0, share=0.0, steps=10**6, **phase) -> Config:
    phase = Phase(**{"length": 64, "batch": 8} | phase)
    data = Data(eval_share=share)
    return Config(
        seed=seed, steps=steps, data=data, objective=objective, phases=(phase,)
    )


def _times_seen(source, found, objective):
    """[T] how often each token is in some rows; random second segments not counted."""
    used = found.first_length > 0
    real = used & (found.second_length > 0)
    if objective.pair == "nsp":
        real &= ~found.wrong
    begin = np.concatenate([found.first[used], found.second[real]])
    size = np.concatenate([found.first_length[used], found.second_length[real]])
    change = np.bincount(begin, minlength=len(source.tokens) + 1)
    change -= np.bincount(begin + size, minlength=len(change))
    return np.cumsum(change)[:-1]


def _check_epoch(source, objective, epoch, **rest):
    plan = Batches(source, _config(objective, **rest), 0).plan
    rows = np.arange(plan.epoch_rows) + epoch * plan.epoch_rows
    found = plan.take(rows)
    assert (found.first_length > 0).any(1).all()  # no row is empty
    np.testing.assert_array_equal(_times_seen(source, found, objective), 1)
    assert plan.coverage["trimmed_tokens"] == 0
    return found


@settings(max_examples=20)
@given(
    DOCUMENTS,
    st.sampled_from(FORMS),
    st.sampled_from([0.0, 0.1, 0.5]),
    st.sampled_from([8, 33, 64, 128]),
    st.sampled_from([1, 2, 8]),
    st.integers(0, 40),
)
def test_every_token_is_in_an_epoch_once(documents, form, short, length, packed, epoch):
    objective = Objective("mlm", *form, short_seq_prob=short)
    source = store(documents)
    _check_epoch(source, objective, epoch, length=length, max_packed=packed)


@pytest.mark.parametrize("form", FORMS, ids="-".join)
@pytest.mark.parametrize("name", CORPORA)
def test_text_of_any_shape_is_read_whole_and_half_of_the_pairs_are_wrong(name, form):
    source, objective = store(CORPORA[name]), Objective("mlm", *form)
    labels = []
    for epoch in range(3):
        found = _check_epoch(source, objective, epoch, seed=epoch)
        labels.append(found.wrong[found.second_length > 0])
    labels = np.concatenate(labels)
    if objective.pair == "none":
        assert not len(labels)
        return
    # All have pairs, but for an order; five percent or, of few, four deviations.
    if objective.pair == "sop" and all(
        len(d) == 1 and d[0] < 100 for d in CORPORA[name]
    ):
        assert not len(labels)
        return
    assert len(labels) > 100
    assert abs(labels.mean() - 0.5) < max(0.05, 2 / np.sqrt(len(labels)))


@pytest.mark.parametrize("form", FORMS, ids="-".join)
def test_chapters_share_no_token_and_leave_none_out(monkeypatch, form):
    size = 40_000 if form[1] == "sentence_pair" else 10_000  # a fourth is planned
    monkeypatch.setattr("bert_jax.data.plan.CHAPTER_TOKENS", size)
    source = random_store(40_000)
    for epoch in (0, 3):
        for packed in (1, 8):
            objective = Objective("mlm", *form)
            _check_epoch(source, objective, epoch, length=128, max_packed=packed)


def test_no_seed_is_without_text(monkeypatch):
    """Long documents, fewer than there are chapters."""
    monkeypatch.setattr("bert_jax.data.plan.CHAPTER_TOKENS", 2**12)
    source = store([[400] * 25] * 3)
    for seed in range(6):
        config = _config(Objective(), seed=seed, length=128)
        batches = Batches(source, config, 0)
        assert batches.plan.chapters > 3
        for number in (0, 10, 1_000, 10**9):
            assert batches.batch(number)["example"].any(1).all()


@pytest.mark.parametrize("tokens", [1, 300])
def test_a_phase_of_few_rows_has_text_in_each(tokens):
    for seed in range(2):
        source = random_store(tokens, seed)
        for steps, batch in ((2, 1), (3, 1), (3, 8)):
            shapes = Phase(0.5, 32, batch), Phase(0.5, 64, batch)
            config = _config(Objective(), seed=seed, steps=steps)
            config = dataclasses.replace(config, phases=shapes)
            for phase in range(2):
                batches = Batches(source, config, phase)
                for number in (0, steps // 2, steps):
                    assert batches.batch(number)["example"].any(1).all()


@pytest.mark.parametrize("share", [(0.5, 0.5), (0.9, 0.1)])
def test_a_phase_reads_on_where_the_one_before_stopped(share):
    """Of 100,000 tokens two phases read some 60,000, then more than all of them."""
    source, objective = random_store(100_000), Objective(pair="none")
    for steps, whole in ((60, False), (160, True)):
        config = _config(objective, steps=steps)
        shapes = [Phase(share[0], 64, 16), Phase(share[1], 128, 8)]
        config = dataclasses.replace(config, phases=tuple(shapes))
        starts, seen = config.phase_starts(), np.zeros(len(source.tokens), int)
        for i, shape in enumerate(shapes):
            rows = np.arange((starts[i + 1] - starts[i]) * shape.batch)
            found = Batches(source, config, i).plan.take(rows)
            seen += _times_seen(source, found, objective)
        assert np.mean(seen >= 2) == pytest.approx(0.5 * whole, abs=0.15 * whole)
        assert np.mean(seen == 0) < 0.002 if whole else np.mean(seen <= 1) == 1


def test_random_partners_are_drawn_evenly_from_the_other_documents():
    lengths = [4, 60, 3, 9, 30, 2]
    source = store([[20] * n for n in lengths])
    plan = Batches(source, _config(Objective(), length=32), 0).plan
    found = plan.take(np.arange(plan.epoch_rows * 40))
    found = found.take(found.wrong & (found.second_length > 0))
    edges = source.sentences[source.documents]
    here, there = (
        np.searchsorted(edges, x, "right") - 1 for x in (found.first, found.second)
    )
    assert (here != there).all()
    for document in (1, 4):
        count = np.bincount(there[here == document], minlength=6)
        expected = count.sum() / 5
        others = np.delete(count, document)
        assert ((others - expected) ** 2 / expected).sum() < 20  # chi-squared of 4


def test_an_only_document_is_its_own_partner_but_not_what_follows():
    source = store([[15] * 300])
    found = _check_epoch(source, Objective(), 0, length=128)
    found = found.take(found.wrong & (found.second_length > 0))
    ends = found.first + found.first_length, found.second + found.second_length
    assert len(ends[0]) > 10
    assert ((found.second > ends[0]) | (ends[1] <= found.first)).all()


def test_lengths_tell_little_of_the_label():
    source = random_store(400_000)
    for pair in ("nsp", "sop"):
        config = _config(Objective("mlm", pair), length=128)
        found = Batches(source, config, 0).plan.take(np.arange(4_000))
        found = found.take(found.second_length > 0)
        sides = found.first_length, found.second_length, found.wrong
        half = len(found.wrong) // 2
        guessed = guess_by_lengths(
            tuple(x[:half] for x in sides),  # pyright: ignore[reportArgumentType]
            tuple(x[half:] for x in sides),  # pyright: ignore[reportArgumentType]
        )
        assert guessed < 0.58


def test_a_leak_through_lengths_is_found():
    rng = np.random.default_rng(0)
    sides = rng.integers(1, 120, (2, 4_000))
    known = sides[0], sides[1], sides.sum(0) > 120
    assert guess_by_lengths(known, known) > 0.85
    noise = sides[0], sides[1], rng.random(4_000) < 0.3
    assert guess_by_lengths(noise, noise) == pytest.approx(0.7, abs=0.02)
