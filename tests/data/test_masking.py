"""The mask rate holds for words of any length, as scripts without spaces have them."""

import numpy as np
import pytest

from bert_jax.config import Config, Data, Objective, Phase
from bert_jax.data.masking import WORD
from bert_jax.data.pipeline import Batches
from tests.data.synthetic import SPECIALS, store

TEXTS = {  # sentence lengths of documents
    "sentences": [[20] * 20] * 60,
    "lines of 2,000 tokens": [[2_000]] * 12,
    "short texts": [[5]] * 600,
}
WORDS = [1, 2, 3, 5, 7, 9, 16, 10**9]  # [tokens] of every word; the last: of a line


def _words_of(source, size):
    continues = np.arange(source.vocabulary.size) % size > 0
    continues[:SPECIALS] = False
    return source._replace(vocabulary=source.vocabulary._replace(continues=continues))


def _batches(text, size, objective, length=128):
    data, phase = Data(eval_share=0.0), Phase(length=length, batch=128)
    config = Config(data=data, objective=objective, phases=(phase,))
    return Batches(_words_of(store(TEXTS[text]), size), config, 0)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("size", WORDS)
def test_15_percent_are_masked_and_no_row_has_none(text, size):
    for masking in ("whole_word", "span"):
        for pair in ("nsp", "none"):
            batches = _batches(text, size, Objective("mlm", pair, masking=masking))
            made = [batches.batch(number) for number in range(6)]
            masked = np.concatenate([x["mlm_weight"].sum(1) for x in made])
            real = sum(np.count_nonzero(x["example"]) for x in made)
            assert masked.min() > 0
            assert masked.sum() / real == pytest.approx(0.15, abs=0.003)


def test_long_words_are_masked_in_parts_all_over_the_row():
    batches = _batches("lines of 2,000 tokens", 10**9, Objective(masking="whole_word"))
    batch = batches.batch(0)
    used = batch["mlm_weight"] > 0
    count = np.bincount(batch["mlm_position"][used], minlength=128)
    inside = count[8:-8]
    assert inside.min() > 0.3 * inside.mean()
    run = np.diff(batch["mlm_position"], axis=1) == 1
    assert WORD / 2 < used.sum() / (~run[used[:, 1:]]).sum() <= 2 * WORD


@pytest.mark.parametrize("masking", ["token", "whole_word", "span"])
def test_a_short_row_has_a_mask(masking):
    source = store([[1]] * 64)
    data, phase = Data(eval_share=0.0), Phase(length=64, batch=64, max_packed=1)
    objective = Objective("mlm", "none", masking=masking)
    config = Config(data=data, objective=objective, phases=(phase,))
    batch = Batches(source, config, 0).batch(0)
    assert (batch["mlm_weight"].sum(1) == 1).all()
