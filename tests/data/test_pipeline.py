"""Batches: consistent with their source, and functions of (seed, step) alone."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.config import Config, Data, Objective, Phase
from bert_jax.data import pipeline
from bert_jax.data.masking import max_masked
from bert_jax.data.pipeline import Batches, iterate
from bert_jax.data.texts import split
from bert_jax.errors import UserError
from tests.data.synthetic import SPECIALS, opens, random_store, store

DOCUMENTS = st.lists(
    st.lists(st.integers(1, 70), min_size=1, max_size=12), min_size=1, max_size=12
)
OBJECTIVES = st.builds(
    lambda form, **rest: Objective("mlm", *form, **rest),
    st.sampled_from(
        [("nsp", "auto"), ("none", "auto"), ("sop", "auto")]
        + [("nsp", "sentence_pair"), ("sop", "sentence_pair")]
    ),
    short_seq_prob=st.sampled_from([0.0, 0.1, 0.5]),
    masking=st.sampled_from(["token", "whole_word", "span"]),
    mask_count=st.sampled_from(["unbiased", "nearest"]),
)


def _config(objective=None, seed=3, **phase) -> Config:
    phase = Phase(**{"length": 48, "batch": 6, "max_packed": 5} | phase)
    return Config(
        seed=seed,
        data=Data(eval_share=0.0),
        objective=objective or Objective(),
        phases=(phase,),
    )


def _unmask(batch):
    token = batch["token"].copy()
    rows, slots = np.nonzero(batch["mlm_weight"])
    token[rows, batch["mlm_position"][rows, slots]] = batch["mlm_label"][rows, slots]
    return token


def _document(source, offset):
    sentence = np.searchsorted(source.sentences, offset, "right") - 1
    return int(np.searchsorted(source.documents, sentence, "right") - 1)


def _check_span(source, ids):
    """Consecutive tokens of one document."""
    offsets = ids - SPECIALS
    assert (np.diff(offsets) == 1).all()
    assert _document(source, offsets[0]) == _document(source, offsets[-1])


def _check_example(source, batch, row, where, objective, label):
    vocabulary = source.vocabulary
    token = _unmask(batch)[row, where]
    assert (np.diff(where) == 1).all()
    assert batch["position"][row, where].tolist() == list(range(len(where)))
    assert token[0] == vocabulary.cls and token[-1] == vocabulary.sep
    ends = np.flatnonzero(token == vocabulary.sep)
    segment = batch["segment"][row, where]
    assert (segment[: ends[0] + 1] == 0).all()
    _check_span(source, token[1 : ends[0]])
    if label is None:
        assert len(ends) == 1
        return
    assert len(ends) == 2 and (segment[ends[0] + 1 :] == 1).all()
    first, second = token[1 : ends[0]], token[ends[0] + 1 : ends[1]]
    _check_span(source, second)
    here, there = (_document(source, ids[0] - SPECIALS) for ids in (first, second))
    if label == 0:
        assert here == there and second[0] > first[-1]
    elif objective.pair == "sop":
        assert here == there and first[0] > second[-1]
    elif len(source.documents) > 2:
        assert here != there
    else:
        assert second[0] > first[-1] + 1 or second[-1] < first[0]


@settings(max_examples=60)
@given(DOCUMENTS, OBJECTIVES, st.integers(0, 50), st.integers(1, 5))
def test_batches_are_consistent_with_the_source(documents, objective, number, packed):
    source = store(documents)
    config = _config(objective, max_packed=packed)
    batch = Batches(source, config, 0).batch(number)
    length = config.phases[0].length
    for row in range(config.phases[0].batch):
        example = batch["example"][row]
        padding = example == 0
        assert (batch["token"][row, padding] == source.vocabulary.pad).all()
        assert example.max() >= 1
        for number in range(1, example.max() + 1):
            where = np.flatnonzero(example == number)
            label = None
            if objective.pair != "none":
                assert batch["nsp_position"][row, number - 1] == where[0]
                weight = batch["nsp_weight"][row, number - 1]
                assert weight in (0, 1)
                label = batch["nsp_label"][row, number - 1] if weight else None
            _check_example(source, batch, row, where, objective, label)
    used = batch["mlm_weight"] > 0
    assert used.shape[1] == max_masked(objective, length)
    assert (batch["mlm_label"][used] >= SPECIALS).all()
    rows = np.nonzero(used)[0]
    places = list(zip(rows.tolist(), batch["mlm_position"][used].tolist(), strict=True))
    assert len(set(places)) == len(places)


@settings(max_examples=30)
@given(DOCUMENTS)
def test_unpacked_rows_cover_every_sentence_in_an_epoch(documents):
    source = store(documents)
    objective = Objective(pair="none", short_seq_prob=0.0)
    config = _config(objective, length=128, max_packed=4)
    plan = Batches(source, config, 0).plan
    spans = plan.take(np.arange(plan.epoch_rows))
    seen = np.zeros(len(source.tokens), int)
    for first, size in zip(
        spans.first.ravel(), spans.first_length.ravel(), strict=True
    ):
        seen[first : first + size] += 1
    assert (seen == 1).all()


def test_hosts_read_the_same_global_batch():
    batches = Batches(random_store(20_000), _config(batch=8), 0)
    whole = batches.batch(7)
    for hosts in (1, 2, 4, 8):
        parts = [batches.batch(7, (i, hosts)) for i in range(hosts)]
        for name, array in whole.items():
            np.testing.assert_array_equal(
                array, np.concatenate([p[name] for p in parts])
            )


def test_any_step_is_read_without_the_steps_before():
    source, config = random_store(20_000), _config()
    one = Batches(source, config, 0)
    for number in range(40):
        one.batch(number)
    for number in (0, 39, 1_000_000):
        for name, array in Batches(source, config, 0).batch(number).items():
            np.testing.assert_array_equal(array, one.batch(number)[name])


def test_masks_and_order_differ_between_epochs_and_seeds():
    source = random_store(5_000)
    batches = Batches(source, _config(batch=1), 0)
    epoch = batches.plan.epoch_rows
    first = [batches.batch(i)["token"].tolist() for i in range(epoch)]
    again = [batches.batch(i + epoch)["token"].tolist() for i in range(epoch)]
    other = Batches(source, _config(batch=1, seed=4), 0).batch(0)["token"].tolist()
    assert first != again and other != first[0]


def test_chapters_bound_the_plan(monkeypatch):
    monkeypatch.setattr("bert_jax.data.plan.CHAPTER_TOKENS", 4_000)
    source = random_store(20_000)
    objective = Objective(pair="none", short_seq_prob=0.0)
    batches = Batches(source, _config(objective, length=64), 0)
    plan = batches.plan
    assert plan.epoch_rows // plan.rows_per_chapter > 3
    assert plan._part(0)[0].first_length.sum() < 4_200
    boundary = np.array([plan.rows_per_chapter - 1, plan.rows_per_chapter])
    both, alone = plan.take(boundary), plan.take(boundary[1:])
    np.testing.assert_array_equal(both.first[1], alone.first[0])


def test_full_sentences_make_a_row_one_example():
    source = random_store(20_000)
    objective = Objective(pair="none", input="full_sentences")
    batch = Batches(source, _config(objective), 0).batch(0)
    assert set(np.unique(batch["example"])) <= {0, 1}
    ends = (_unmask(batch) == source.vocabulary.sep).sum(1)
    assert ends.max() > 1
    assert ((_unmask(batch) == source.vocabulary.cls).sum(1) == 1).all()


@pytest.mark.parametrize(
    ("length", "masking", "tokens"),
    [
        (128, "token", 10_300_000),
        (512, "token", 10_300_000),
        (128, "whole_word", 10_300_000),
    ],
)
def test_masking_statistics(length, masking, tokens):
    source = random_store(300_000)
    objective = Objective(masking=masking)
    batches = Batches(source, _config(objective, length=length, batch=256), 0)
    vocabulary = source.vocabulary
    count = dict.fromkeys(["real", "masked", "mask", "same", "pairs", "random"], 0)
    for number in range(-(-tokens // (256 * length))):
        batch = batches.batch(number)
        used = batch["mlm_weight"] > 0
        shown = np.take_along_axis(batch["token"], batch["mlm_position"], 1)[used]
        assert batch["mlm_label"][used].min() >= SPECIALS
        count["real"] += np.count_nonzero(batch["example"])
        count["masked"] += np.count_nonzero(used)
        count["mask"] += np.count_nonzero(shown == vocabulary.mask)
        count["same"] += np.count_nonzero(shown == batch["mlm_label"][used])
        count["pairs"] += int(batch["nsp_weight"].sum())
        count["random"] += int(batch["nsp_label"].sum())
    masked = count["masked"]
    assert 0.149 < masked / count["real"] < 0.151
    assert abs(count["mask"] / masked - 0.8) < 0.002
    assert abs(count["same"] / masked - 0.1) < 0.002
    assert 0.48 < count["random"] / count["pairs"] < 0.52


def test_whole_words_are_masked_whole():
    source = random_store(50_000)
    objective = Objective(masking="whole_word")
    batch = Batches(source, _config(objective, length=64, batch=64), 0).batch(0)
    token = _unmask(batch)
    chosen = np.zeros(token.shape, bool)
    rows, slots = np.nonzero(batch["mlm_weight"])
    chosen[rows, batch["mlm_position"][rows, slots]] = True
    inside = ~opens(source, token[:, 1:]) & (token[:, :-1] >= SPECIALS)
    assert inside.sum() > 100
    assert (chosen[:, 1:] == chosen[:, :-1])[inside].all()
    starts = np.isin(token[:, 1:] - SPECIALS, source.sentences)
    apart = starts & source.vocabulary.continues[token[:, 1:]]
    assert (chosen[:, 1:] != chosen[:, :-1])[apart].any()


def test_nearest_rounds_as_the_original():
    source = store([[126] * 50, [126] * 50])
    objective = Objective(pair="none", mask_count="nearest", short_seq_prob=0.0)
    batch = Batches(source, _config(objective, length=128), 0).batch(0)
    assert (batch["mlm_weight"].sum(1) == 19).all()  # round(0.15 * 128)


def test_held_out_documents_are_disjoint_and_fixed():
    source = random_store(50_000)
    data = Data(eval_share=0.2, eval_rows=7)
    config = dataclasses.replace(_config(batch=4), data=data)
    sides = [
        side.span(np.arange(len(side)))[0] for side in split(source, data.eval_share)
    ]
    starts = source.sentences[source.documents[:-1]]
    assert sorted(np.concatenate(sides).tolist()) == starts.tolist()
    held_out = Batches(source, config, 0, held_out=True)
    other_seed = dataclasses.replace(config, seed=99)
    again = Batches(source, other_seed, 0, held_out=True)
    assert len(held_out) == 2
    for number in range(2):
        for name, array in held_out.batch(number).items():
            np.testing.assert_array_equal(array, again.batch(number)[name])
    last = held_out.batch(1)
    assert last["mlm_weight"][3].sum() == 0 and last["example"][3].max() == 0


def test_an_empty_side_is_a_user_error():
    with pytest.raises(UserError, match="eval_share"):
        Batches(random_store(1_000), _config(), 0, held_out=True)


@pytest.mark.parametrize("way", ["thread", "tf"])
def test_iterators_yield_the_batches_in_order(way):
    import tensorflow as tf

    batches = Batches(random_store(5_000), _config(), 0)
    if way == "tf":
        stream = pipeline._iterate_tf(tf, batches.batch, 3, 9, 2)
    else:
        stream = pipeline._iterate_thread(batches.batch, 3, 9, 2)
    count = 0
    for number, batch in zip(range(3, 9), stream, strict=True):
        for name, array in batches.batch(number).items():
            assert batch[name].dtype == array.dtype
            np.testing.assert_array_equal(batch[name], array)
        count += 1
    assert count == 6


def test_an_error_while_reading_reaches_the_reader():
    def read(number):
        raise UserError("no such batch")

    with pytest.raises(UserError, match="no such batch"):
        next(pipeline._iterate_thread(read, 0, 3, 2))


def test_an_iterator_can_be_left_early():
    batches = Batches(random_store(5_000), _config(), 0)
    stream = iterate(batches.batch, 0, 1_000)
    next(stream)
    stream.close()  # pyright: ignore[reportAttributeAccessIssue]


def test_a_sentence_alone_is_divided_or_gets_a_random_partner():
    source = store([[60]] * 200)
    plan = Batches(source, _config(Objective(short_seq_prob=0.0), length=64), 0).plan
    spans = plan.take(np.arange(plan.epoch_rows))
    spans = spans.take(spans.first_length > 0)
    ends = spans.first + spans.first_length, spans.second + spans.second_length
    same = spans.first // 60 == spans.second // 60
    np.testing.assert_array_equal(same, ~spans.wrong)
    assert (ends[0] == spans.second)[same].all()
    # A random one ends a sentence where the next one would have done.
    assert (ends[1] % 60 == 0).all()
    assert abs(spans.wrong.mean() - 0.5) < 0.1


def test_sentences_that_a_random_partner_displaces_are_put_back():
    source = store([[6] * 40] * 5)
    objective = Objective(short_seq_prob=0.0)
    plan = Batches(source, _config(objective, length=51, max_packed=1), 0).plan
    spans = plan.take(np.arange(plan.epoch_rows))
    seen = np.zeros(len(source.tokens), int)
    real = ~spans.wrong & (spans.first_length > 0)
    for row, slot in np.argwhere(spans.first_length > 0):
        first = spans.first[row, slot]
        seen[first : first + spans.first_length[row, slot]] += 1
        if real[row, slot]:
            second = spans.second[row, slot]
            seen[second : second + spans.second_length[row, slot]] += 1
    assert spans.wrong.any() and real.any()
    assert (seen == 1).all()  # as A or as what follows it: once, and none is lost


def test_random_tokens_come_from_the_whole_vocabulary():
    source = store([[3] * 8] * 2)
    objective = Objective(mask_token_share=0.0, random_token_share=0.99)
    batches = Batches(source, _config(objective, batch=512), 0)
    shown = set()
    for number in range(4):
        batch = batches.batch(number)
        rows, slots = np.nonzero(batch["mlm_weight"])
        place = batch["mlm_position"][rows, slots]
        shown |= set(batch["token"][rows, place].tolist())
    assert shown == set(range(source.vocabulary.size))  # the special tokens too


def test_a_word_that_exceeds_the_quota_is_skipped():
    source = store([[200] * 20])
    # Words of 8 tokens never fit into a quota of 7; those of one always do.
    continues = np.zeros(source.vocabulary.size, bool)
    place = np.arange(len(source.tokens)) % 60
    continues[SPECIALS:] = (place < 32) & (place % 8 > 0)
    source = source._replace(vocabulary=source.vocabulary._replace(continues=continues))
    objective = Objective(pair="none", masking="whole_word", short_seq_prob=0.0)
    batch = Batches(source, _config(objective, batch=32, max_packed=1), 0).batch(0)
    assert (batch["mlm_weight"].sum(1) > 0).all()
    label = batch["mlm_label"][batch["mlm_weight"] > 0]
    # Pieces of a long word are masked only where a row holds but its end.
    long = (label - SPECIALS) % 60 < 32
    assert long.mean() < 0.05


def test_rows_are_shuffled_over_the_whole_corpus():
    source = store([[40]] * 2_000)
    objective = Objective(pair="none", short_seq_prob=0.0)
    plan = Batches(source, _config(objective, max_packed=1), 0).plan
    first = plan.take(np.arange(plan.epoch_rows)).first[:, 0]
    assert len(first) == 2_000
    rank = np.corrcoef(np.arange(2_000), first)[0, 1]
    assert abs(rank) < 0.1
    # A buffer of 100 would leave every row within 100 places of its origin.
    assert np.median(np.abs(first / 40 - np.arange(2_000))) > 300
