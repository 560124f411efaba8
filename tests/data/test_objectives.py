"""The objectives beside BERT's own: order of segments, other inputs, spans."""

import collections
import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.config import Config, Data, Objective, Phase
from bert_jax.data.masking import max_masked
from bert_jax.data.pipeline import Batches
from bert_jax.evaluate import held_out
from tests.data.synthetic import SPECIALS, random_store, store
from tests.data.synthetic import opens as opening

SPANS = Objective(masking="span", span_boundary=True)
SETTINGS = [
    Objective("mlm", "sop"),
    Objective("mlm", "sop", "sentence_pair"),
    Objective("mlm", "nsp", "sentence_pair"),
    Objective("mlm", "none", "full_sentences"),
    SPANS,
]
SOURCE = random_store(60_000)


def _batches(source, objective, seed=3, **phase) -> Batches:
    phase = Phase(**{"length": 64, "batch": 8, "max_packed": 5} | phase)
    data = Data(eval_share=0.0)
    config = Config(seed=seed, data=data, objective=objective, phases=(phase,))
    return Batches(source, config, 0)


def _every_example(source, objective, **phase):
    """Those of an epoch, side by side."""
    plan = _batches(source, objective, **phase).plan
    found = plan.take(np.arange(plan.epoch_rows))
    return found.take(found.first_length > 0)


def _masked(batch):
    """Of each masked token: its row and place, and what is shown there."""
    rows, slots = np.nonzero(batch["mlm_weight"])
    places = batch["mlm_position"][rows, slots]
    return rows, slots, places, batch["token"][rows, places]


@pytest.mark.parametrize("input", ["doc_sentences", "full_sentences"])
def test_next_tokens(input):
    """Each token of an example but the first, at the place before; nothing hidden."""
    plain = _batches(SOURCE, Objective("mlm", "none", input=input)).batch(2)
    batch = _batches(SOURCE, Objective("ltr", "none", input=input)).batch(2)
    shown = plain["token"].copy()
    rows, slots = np.nonzero(plain["mlm_weight"])
    shown[rows, plain["mlm_position"][rows, slots]] = plain["mlm_label"][rows, slots]
    np.testing.assert_array_equal(batch["token"], shown)
    for row in range(8):
        example, wanted = batch["example"][row], {}
        for place in range(63):
            if example[place] and example[place] == example[place + 1]:
                wanted[place] = shown[row, place + 1]
        used = batch["mlm_weight"][row] > 0
        places, labels = (batch[f"mlm_{n}"][row][used] for n in ("position", "label"))
        assert dict(zip(places.tolist(), labels.tolist(), strict=True)) == wanted


@pytest.mark.parametrize("objective", SETTINGS)
def test_batches_depend_on_seed_and_step_alone(objective):
    batches = _batches(SOURCE, objective)
    for number in (0, 7, 1_000_000):
        whole = _batches(SOURCE, objective).batch(number)
        for hosts in (1, 2, 4):
            parts = [batches.batch(number, (i, hosts)) for i in range(hosts)]
            for name, array in whole.items():
                together = np.concatenate([part[name] for part in parts])
                np.testing.assert_array_equal(array, together)


@pytest.mark.parametrize("objective", SETTINGS)
def test_epochs_and_seeds_differ(objective):
    source = random_store(2_000)
    batches = _batches(source, objective, batch=1)
    epoch = batches.plan.epoch_rows
    other = _batches(source, objective, seed=4, batch=1)
    read = {
        name: [made.batch(start + i) for i in range(epoch)]
        for name, made, start in (
            ("first", batches, 0),
            ("second", batches, epoch),
            ("other", other, 0),
        )
    }
    seen = {
        tuple(np.concatenate([batch["token"][0] for batch in rows]).tolist())
        for rows in read.values()
    }
    assert len(seen) == 3
    if "nsp_label" in read["first"][0]:
        labels = [
            [batch["nsp_label"].tolist() for batch in rows] for rows in read.values()
        ]
        assert labels[0] != labels[1] != labels[2]


@pytest.mark.parametrize("form", ["segment_pair", "sentence_pair"])
def test_swapped_pairs_are_half_of_all(form):
    pairs = _every_example(SOURCE, Objective("mlm", "sop", form), length=256)
    pairs = pairs.take(pairs.second_length > 0)
    ends = pairs.first + pairs.first_length, pairs.second + pairs.second_length
    np.testing.assert_array_equal(pairs.wrong, pairs.second < pairs.first)
    gap = np.where(pairs.wrong, pairs.first - ends[1], pairs.second - ends[0])
    assert (gap >= 0).all()
    assert (gap[pairs.first_length + pairs.second_length < 256 - 3] == 0).all()
    assert abs(pairs.wrong.mean() - 0.5) < 4 * 0.5 / np.sqrt(len(pairs.wrong))


@pytest.mark.parametrize("form", ["segment_pair", "sentence_pair"])
def test_a_last_sentence_without_a_neighbour_has_no_order(form):
    source = store([[30] * 3] * 20)
    pairs = _every_example(source, Objective("mlm", "sop", form, 0.0), length=66)
    low = np.minimum(pairs.first, pairs.second)
    assert sorted(low // 30 % 3) == [0] * 20 + [2] * 20
    np.testing.assert_array_equal(pairs.second_length, np.where(low // 30 % 3, 0, 30))
    assert (pairs.first_length == 30).all()


@pytest.mark.parametrize(
    "sentences", [[60] * 2, [60] * 9, [20] * 9, [5_000], [400, 7] * 9, [1] * 30]
)
def test_form_does_not_tell_the_order(sentences):
    source = store([sentences] * (20_000 // sum(sentences)))
    pairs = _every_example(source, Objective("mlm", "sop"), length=48)
    pairs = pairs.take(pairs.second_length > 0)
    assert len(pairs.first) > 80 and 0.35 < pairs.wrong.mean() < 0.65
    ends = pairs.first + pairs.first_length, pairs.second + pairs.second_length
    inside = [~np.isin(v, source.sentences) for v in (pairs.first, ends[0])]
    np.testing.assert_array_equal(inside[0], ~np.isin(pairs.second, source.sentences))
    np.testing.assert_array_equal(inside[1], ~np.isin(ends[1], source.sentences))
    np.testing.assert_array_equal(*inside)
    # Neither do lengths: the mean difference of the sides, within four errors.
    longer = pairs.first_length - pairs.second_length
    means = [longer[pairs.wrong == swapped].mean() for swapped in (True, False)]
    assert abs(means[0] - means[1]) < 4 * (longer.std() + 1) * 2 / len(longer) ** 0.5


def test_a_document_of_one_token_has_no_order():
    batch = _batches(store([[1]] * 50), Objective("mlm", "sop")).batch(0)
    assert batch["nsp_weight"].sum() == 0 and batch["nsp_label"].sum() == 0
    assert batch["mlm_weight"].sum() > 0 and batch["segment"].sum() == 0
    ends = (batch["token"] == SOURCE.vocabulary.sep).sum(1)
    np.testing.assert_array_equal(ends, batch["example"].max(1))
    assert ends.max() == 5


def test_pairs_of_sentences_are_single_sentences_and_half_are_random():
    pairs = _every_example(SOURCE, Objective("mlm", "nsp", "sentence_pair"), length=512)
    sides = (pairs.first, pairs.first_length), (pairs.second, pairs.second_length)
    whole = np.ones(len(pairs.first), bool)
    for first, size in sides:
        begin, end = np.searchsorted(SOURCE.sentences, (first, first + size))
        whole &= (end == begin + 1) & (SOURCE.sentences[begin] == first)
    # But of a last sentence, of which some are divided, or of a last token.
    last = np.isin(pairs.first, SOURCE.sentences[SOURCE.documents[1:] - 1])
    assert whole[~last].mean() > 0.95 and whole.mean() > 0.9
    assert abs(pairs.wrong.mean() - 0.5) < 4 * 0.5 / np.sqrt(len(pairs.wrong))


def test_pairs_of_sentences_are_planned_in_smaller_chapters(monkeypatch):
    monkeypatch.setattr("bert_jax.data.plan.CHAPTER_TOKENS", 30_000)
    plans = [
        _batches(SOURCE, Objective("mlm", "nsp", form)).plan
        for form in ("auto", "sentence_pair")
    ]
    several = [plan.epoch_rows // plan.rows_per_chapter for plan in plans]
    assert several[1] >= 3 * several[0]


def test_the_order_has_a_majority_of_its_own():
    data = Data(eval_share=0.5, eval_rows=64)
    config = Config(
        data=data, objective=Objective("mlm", "sop"), phases=(Phase(length=64),)
    )
    facts = held_out(SOURCE, config, 0).facts
    assert 0.5 <= facts["eval_sop_majority"] < 0.7
    assert "eval_nsp_majority" not in facts


@pytest.mark.parametrize(
    ("mask", "random"), [(0.8, 0.1), (1, 0), (0.8, 0), (0.8, 0.2), (0, 0.8), (0, 1)]
)
@pytest.mark.parametrize("masking", ["token", "span"])
def test_every_split_of_table_8(mask, random, masking):
    """Devlin et al. 2019, appendix C.2."""
    objective = Objective(
        mask_token_share=mask, random_token_share=random, masking=masking
    )
    batch = _batches(SOURCE, objective, length=512, batch=400).batch(0)
    shown = _masked(batch)[3]
    same = (shown == batch["mlm_label"][batch["mlm_weight"] > 0]).mean()
    hidden = (shown == SOURCE.vocabulary.mask).mean()
    # 30,000 tokens, or 6,000 spans that are not all as long.
    bound = 0.012 if masking == "token" else 0.04
    for share, wanted in ((hidden, mask), (same, 1 - mask - random)):
        assert abs(share - wanted) < (bound if 0 < wanted < 0.999 else 1e-3)


DOCUMENTS = st.lists(
    st.lists(st.integers(1, 70), min_size=1, max_size=12), min_size=1, max_size=12
)
FORMS = [("nsp", "auto"), ("sop", "auto"), ("none", "auto"), ("none", "full_sentences")]


@settings(max_examples=60)
@given(
    DOCUMENTS,
    st.sampled_from(FORMS),
    st.sampled_from([0.15, 0.5, 0.9]),
    st.sampled_from(["unbiased", "nearest"]),
    st.integers(0, 50),
)
def test_spans_are_whole_words_between_two_other_tokens(
    documents, form, rate, count, number
):
    source = store(documents)
    pair, way = form
    objective = dataclasses.replace(
        SPANS, pair=pair, input=way, mask_rate=rate, mask_count=count
    )
    batch = _batches(source, objective).batch(number)
    rows, slots, places, _ = _masked(batch)
    assert batch["mlm_position"].shape[1] == max_masked(objective, 64)
    token = batch["token"].copy()
    token[rows, places] = batch["mlm_label"][rows, slots]
    real = token >= SPECIALS
    opens = opening(source, token) & real
    opens[:, 1:] |= ~real[:, :-1]
    spans = {}
    left, right, offset = (
        batch[f"sbo_{name}"][rows, slots] for name in ("left", "right", "offset")
    )
    for row, place, *span in zip(rows, places, left, right, offset, strict=True):
        spans.setdefault((row, span[0], span[1]), []).append((place, span[2]))
    owners, parts = set(), collections.Counter()
    for (row, before, after), inside in spans.items():
        # Each token between the two, once, counted from the left one.
        wanted = [(before + 1 + i, i) for i in range(after - before - 1)]
        assert sorted(inside) == wanted
        here = slice(before + 1, after)
        assert real[row, here].all()
        assert len(set(batch["example"][row, before : after + 1])) == 1
        ends = opens[row, after] or not real[row, after]
        if not (opens[row, before + 1] and ends):
            parts[row, batch["example"][row, after - 1]] += 1
        assert opens[row, here].sum() <= 10
        owners |= {(row, place) for place, _ in inside}
    assert len(owners) == len(rows)  # no token is in two spans
    # Where no whole word fits into what is left to mask, a part of one is masked.
    assert all(count <= 2 for count in parts.values())
    unused = batch["mlm_weight"] == 0
    assert not any(batch[f"sbo_{n}"][unused].any() for n in ("left", "right", "offset"))


def _span_lengths(batch, source):
    """[words] of every span; what a span shows of [MASK] and of its own tokens."""
    rows, slots, places, shown = _masked(batch)
    token = batch["token"].copy()
    token[rows, places] = batch["mlm_label"][rows, slots]
    opens = opening(source, token)
    before = np.cumsum(opens, 1) - opens
    left, right = (batch[f"sbo_{side}"][rows, slots] for side in ("left", "right"))
    head = batch["sbo_offset"][rows, slots] == 0
    words = before[rows, right] - before[rows, left + 1]
    words += ~opens[rows, left + 1]  # a text that begins within a word
    span = np.cumsum(head) - 1
    hidden = np.bincount(span, shown == source.vocabulary.mask)
    same = np.bincount(span, shown == batch["mlm_label"][rows, slots])
    return words[head], hidden, same, np.bincount(span)


def test_lengths_of_spans_are_geometric():
    """Joshi et al. 2020, section 3.1 and figure 2."""
    source = random_store(300_000)
    objective = dataclasses.replace(SPANS, pair="none", input="full_sentences")
    batches = _batches(source, objective, length=4096, batch=64, max_packed=64)
    batch = batches.batch(0)
    words, hidden, same, size = _span_lengths(batch, source)
    wanted = 0.2 * 0.8 ** np.arange(10)
    wanted /= wanted.sum()
    assert wanted @ np.arange(1, 11) == pytest.approx(3.8, abs=0.01)
    found = np.bincount(words, minlength=11)[1:] / len(words)
    # The last span of an example is cut, and so is the last one of a text.
    assert np.abs(found - wanted).sum() / 2 < 0.03
    assert words.mean() == pytest.approx(3.8, rel=0.04)
    # All of a span has one fate; a few of the random tokens are right by chance.
    assert set(hidden / size) == {0, 1}
    whole = np.isin(same / size, (0, 1)).mean()
    assert whole > 0.999
    deviation = 4 * np.sqrt(0.25 / len(words))
    assert abs((hidden == size).mean() - 0.8) < deviation
    assert abs((same == size).mean() - 0.1) < deviation


@pytest.mark.parametrize("length", [128, 512])
@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_spans_spend_the_budget(length, rate):
    objective = Objective(masking="span", mask_rate=rate)
    batches = _batches(SOURCE, objective, length=length, batch=256, max_packed=8)
    real = masked = 0
    for number in range(4):
        batch = batches.batch(number)
        real += np.count_nonzero(batch["example"])
        masked += np.count_nonzero(batch["mlm_weight"])
    assert 0.993 * rate < masked / real < 1.007 * rate
