"""Windows over texts: with perfect scores every answer comes back."""

import math
from collections import Counter

import numpy as np
import pytest

from bert_jax.config import Tokenizer
from bert_jax.data import answers
from bert_jax.data.squad import Question, questions, repair
from bert_jax.data.tokenizer import load_tokenizer


def _perfect(windows):
    """Logits that say what the labels say."""
    logits = np.zeros((len(windows.sequences.token), 2), np.float32)
    begin = windows.sequences.offset[:-1]
    for side in range(2):
        logits[begin + windows.label[:, side], side] = 9
    return logits


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "limit", "repaired", "inside"),
    [("xquad.en", 384, 0, 1), ("xquad.en", 96, 0, 1), ("covidQA_200423", 384, 234, 2)],
)
def test_every_answer_is_recovered(shared, name, limit, repaired, inside):
    """Of 37 of COVID-QA's 300 that differed, 35 did by white space at their ends."""
    vocabulary = shared / "reference" / "vocab" / "bert-base-uncased.txt"
    tokenizer = load_tokenizer(vocabulary, Tokenizer())
    file = shared / "finetune" / "SQuAD-format" / f"{name}.json.xz"
    asked, report = repair(questions(str(file)))
    assert (report.repaired, report.unrepairable) == (repaired, 0)
    if name.startswith("covid"):
        asked = asked[:300]  # texts of 6,000 tokens
    unusable = Counter()
    windows = answers.encode(tokenizer, asked, limit, 128, 0.1, unusable)
    assert np.diff(windows.sequences.offset).max() <= limit
    assert unusable == {answers.INSIDE: inside}
    found = answers.decode(asked, windows, _perfect(windows), 10**6)
    wrong = []
    for question, text in zip(asked, answers.choose(found, math.inf), strict=True):
        gold, start = question.answers[0]
        if text != gold.strip():
            wrong.append(question)
            assert gold.strip() in text
            around = (  # the answer begins or ends in a word
                question.context[start - 1 : start + 1],
                question.context[start + len(gold) - 1 : start + len(gold) + 1],
            )
            assert any(len(pair) == 2 and pair.isalnum() for pair in around), gold
    assert len(wrong) == inside


def _question(**more):
    base = {"id": "a", "question": "what ?", "context": "one two three four"}
    rest = {"answers": (("two three", 4),), "impossible": False, "title": ""}
    return Question(**{**base, **rest, **more})


@pytest.fixture
def tokenizer(tmp_path):
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] what ? one two three four".split()
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    return load_tokenizer(tmp_path, Tokenizer())


def test_windows_overlap_and_cover(tokenizer):
    windows = answers.encode(tokenizer, [_question()], 7, 1)
    rows = np.split(windows.sequences.token, windows.sequences.offset[1:-1])
    assert [row.tolist() for row in rows] == [
        [2, 5, 6, 3, 7 + i, 8 + i, 3] for i in range(3)
    ]
    # Only the window that holds the whole answer is labelled with it.
    assert windows.label.tolist() == [[0, 0], [4, 5], [0, 0]]
    assert windows.owner.tolist() == [0, 0, 0]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_of_the_windows_beside_the_answer_is_kept(tokenizer, share):
    asked = [_question(id=str(n)) for n in range(300)]
    asked += [_question(answers=(), impossible=True)]
    windows = answers.encode(tokenizer, asked, 7, 1, share)
    assert len(windows.owner) == answers.count(tokenizer, asked, 7, 1, share)
    holds = windows.label[:, 1] > 0
    assert windows.owner[holds].tolist() == list(range(300))
    beside = (~holds & (windows.owner < 300)).sum() / 600
    assert beside == pytest.approx(share, abs=0.06) and (beside == share or 0 < share)
    assert (windows.owner == 300).sum() == 3  # no window of it has an answer


def test_no_answer_wins_above_the_threshold(tokenizer):
    asked = [_question()]
    windows = answers.encode(tokenizer, asked, 12, 4)
    logits = np.zeros((len(windows.sequences.token), 2), np.float32)
    logits[0] = 3  # [CLS]
    logits[5, 0], logits[6, 1] = 2, 2.5
    (found,) = answers.decode(asked, windows, logits, 30)
    assert found.null == pytest.approx(6 - 4.5)
    assert found.best[0] == answers.Answer("two three", 4.5)
    assert answers.choose([found], 1.4) == [""]
    assert answers.choose([found], 1.6) == ["two three"]
    shares = [item["probability"] for item in answers.nbest(found)]
    assert sum(shares) == pytest.approx(1) and shares == sorted(shares, reverse=True)


def test_an_answer_has_at_most_so_many_tokens(tokenizer):
    asked = [_question()]
    windows = answers.encode(tokenizer, asked, 12, 4)
    logits = np.zeros((len(windows.sequences.token), 2), np.float32)
    logits[4, 0] = logits[7, 1] = 5
    (found,) = answers.decode(asked, windows, logits, 2)
    assert all(len(answer.text.split()) <= 2 for answer in found.best)
