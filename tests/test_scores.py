"""Scores against cases done by hand and against second, plainer implementations.

While this was written, `scores` also agreed with the official scripts themselves on
thousands of random cases: conlleval of 2004-01-26 run by perl (IOB1, IOB2, IOE),
evaluate-v2.0.py and KorQuAD's evaluate-v1.0.py. They are not ours to ship.
"""

import math
import string
from collections import Counter
from itertools import groupby

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bert_jax import scores
from bert_jax.errors import UserError

PAIRED = (
    scores.accuracy,
    scores.f1,
    scores.matthews,
    scores.pearson,
    scores.spearman,
)

classes = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1)
values = st.integers(-50, 50)


# --- Classification and similarity


def test_two_by_two_table_by_hand():
    # 3 right ones, 1 missed, 2 false alarms, 4 right zeros:
    # precision 3/5, recall 3/4; Matthews (3*4 - 2*1) / sqrt(5 * 4 * 6 * 5).
    gold = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    predicted = [1, 1, 1, 0, 1, 1, 0, 0, 0, 0]
    assert scores.accuracy(gold, predicted) == pytest.approx(7 / 10)
    assert scores.f1(gold, predicted) == pytest.approx(2 * 3 / (2 * 3 + 2 + 1))
    assert scores.matthews(gold, predicted) == pytest.approx(10 / math.sqrt(600))


def test_accuracy_and_matthews_take_more_classes():
    # Gorodkin (2004): 5 of 6 right; gold holds 2, 2, 2 and predicted 2, 3, 1 of the
    # classes. Products sum to 12, squares to 12 and 14.
    gold, predicted = [0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 1, 2]
    assert scores.accuracy(gold, predicted) == pytest.approx(5 / 6)
    expected = (5 * 6 - 12) / math.sqrt((36 - 14) * (36 - 12))
    assert scores.matthews(gold, predicted) == pytest.approx(expected)


def test_correlations_by_hand():
    # Deviations -1.5 -.5 .5 1.5 and -2 -1 -2 5: 10 / sqrt(5 * 34).
    # Ranks 1 2 3 4 and 1.5 3 1.5 4 (a tie): 3 / sqrt(5 * 4.5).
    gold, predicted = [1, 2, 3, 4], [0, 1, 0, 7]
    assert scores.pearson(gold, predicted) == pytest.approx(10 / math.sqrt(170))
    assert scores.spearman(gold, predicted) == pytest.approx(3 / math.sqrt(22.5))


@pytest.mark.parametrize("score", PAIRED)
@given(pairs=classes)
@settings(max_examples=30)
def test_scores_of_pairs_are_symmetric_bounded_floats(score, pairs):
    gold, predicted = zip(*pairs, strict=True)
    value = score(gold, predicted)
    assert type(value) is float
    least = -1 if score in PAIRED[2:] else 0
    assert least <= value <= 1
    # By definition each is symmetric in what is right and what is scored.
    assert score(predicted, gold) == pytest.approx(value, abs=1e-12)
    assert score(np.array(gold), np.array(predicted)) == value
    if len(set(gold)) == 2:
        assert score(gold, gold) == pytest.approx(1)


@given(pairs=st.lists(st.tuples(values, values), min_size=2))
@settings(max_examples=50)
def test_correlations_are_those_of_numpy(pairs):
    gold, predicted = np.array(pairs, np.float64).T
    assume(np.ptp(gold) and np.ptp(predicted))

    def ranks(x):  # 1 + those below + half of the others that are equal
        return [(x < y).sum() + (x == y).sum() / 2 for y in x]

    expected = np.corrcoef(gold, predicted)[0, 1]
    assert scores.pearson(gold, predicted) == pytest.approx(expected, abs=1e-9)
    expected = np.corrcoef(ranks(gold), ranks(predicted))[0, 1]
    assert scores.spearman(gold, predicted) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("score", PAIRED[2:])
def test_a_constant_correlates_with_nothing_and_warns_of_nothing(score):
    for constant in ([1, 1, 1], [0, 0, 0]):
        assert score([0, 1, 0], constant) == 0.0
        assert score(constant, [0, 1, 0]) == 0.0
        assert score(constant, constant) == 0.0
    assert score([1], [1]) == 0.0


@pytest.mark.parametrize("positive", [0, 1, 2])
def test_f1_counts_the_class_that_is_named(positive):
    gold, predicted = [0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 2, 0]
    expected = {0: 0.5, 1: 0.8, 2: 2 / 3}[positive]
    assert scores.f1(gold, predicted, positive) == pytest.approx(expected)


@pytest.mark.parametrize("scheme", ["BIESO", "BILUO", "BMESO", "BMEWO"])
def test_schemes_with_ends_and_single_words_count_alike(scheme):
    names = dict(zip("BIESO", scheme, strict=True))
    tags = "B-x I-x E-x S-x S-x O B-y E-y B-y I-y E-y".split()
    wrong = "B-x I-x E-x S-x B-x O B-y E-y B-y E-y S-y".split()
    sides = [[[names[t[0]] + t[1:] for t in side]] for side in (tags, wrong)]
    assert scores.entity_f1(sides[0], sides[0])["f1"] == 1
    assert scores.entity_f1(*sides) == scores.entity_f1([tags], [wrong])


def test_f1_without_any_positive_is_zero_without_a_warning():
    assert scores.f1([0, 0], [0, 0]) == scores.f1([0, 1], [0, 0]) == 0.0


def test_half_precision_loses_nothing():
    gold = np.linspace(0, 5, 4096)
    predicted = (1000 + gold).astype(np.float16)  # the sum alone would overflow
    expected = scores.pearson(gold, predicted.astype(np.float64))
    assert scores.pearson(gold, predicted) == expected > 0.9


@pytest.mark.parametrize("score", PAIRED)
def test_nothing_or_different_lengths_to_score(score):
    for gold, predicted in (([], []), ([1, 0], [1]), ([[1]], [[1]])):
        with pytest.raises(ValueError, match="two lists of one length"):
            score(gold, predicted)


# --- Entities


def conlleval(gold, predicted):
    """(found in gold, found in predicted, right) as the script counts: one pass over
    all tags, by tables of which prefix after which begins or ends an entity."""
    begins = {"BB", "IB", "OB", "OI", "EE", "EI", "OE"}
    ends = {"BB", "BO", "IB", "IO", "EE", "EI", "EO"}
    # Beyond the script: single-token entities, and B after E.
    begins |= {"EB"} | {f"S{x}" for x in "BIES"} | {f"{x}S" for x in "BIESO"}
    ends |= {"EB"} | {f"S{x}" for x in "BIESO"} | {f"{x}S" for x in "BIES"}

    def stream(sentences):
        tags = [tag for tags in sentences for tag in (*tags, "O")]
        tags = [tag.replace("L-", "E-").replace("U-", "S-") for tag in tags]
        tags = [tuple(tag.split("-", 1)) if "-" in tag else (tag, "") for tag in tags]
        for (prefix, kind), (after, new) in zip([("O", ""), *tags], tags, strict=False):
            both, change = prefix + after, kind != new
            end = both in ends or (prefix != "O" and change)
            yield new, end, both in begins or (after != "O" and change)

    counts, inside = [0, 0, 0], False
    for (kind, end, begin), (other, stop, start) in zip(
        stream(gold), stream(predicted), strict=True
    ):
        counts[2] += inside and end and stop
        inside = inside and not end and not stop and kind == other
        inside = inside or (begin and start and kind == other)
        counts[0] += begin
        counts[1] += start
    return tuple(counts)


def counts(result):
    types = result["types"].values()
    wanted = sum(kind["gold"] for kind in types)
    found = sum(kind["predicted"] for kind in types)
    right = sum(round(kind["recall"] * kind["gold"]) for kind in types)
    return wanted, found, right


TAGS = {
    "IOB": ["O", "B-A", "I-A", "B-B", "I-B", "B-B-x", "I-B-x", "B", "I"],
    "BIOES": ["O", *(f"{prefix}-{kind}" for prefix in "BIES" for kind in "AB")],
    "BILOU": ["O", *(f"{prefix}-{kind}" for prefix in "BILU" for kind in "AB")],
}


@st.composite
def tagged(draw, tags):
    """Sentences, gold and predicted, that often agree."""
    tag = st.sampled_from(tags)
    token = st.one_of(tag.map(lambda x: (x, x)), st.tuples(tag, tag))
    sentences = draw(st.lists(st.lists(token, max_size=8), min_size=1, max_size=4))
    return [[[pair[i] for pair in tokens] for tokens in sentences] for i in (0, 1)]


@pytest.mark.parametrize("scheme", TAGS)
@given(data=st.data())
@settings(max_examples=100)
def test_entities_are_counted_as_conlleval_counts(scheme, data):
    gold, predicted = data.draw(tagged(TAGS[scheme]))
    result = scores.entity_f1(gold, predicted)
    wanted, found, right = expected = conlleval(gold, predicted)
    assert counts(result) == expected
    assert result["precision"] == pytest.approx(right / found if found else 0)
    assert result["recall"] == pytest.approx(right / wanted if wanted else 0)
    both = 2 * right / (wanted + found) if right else 0
    assert result["f1"] == pytest.approx(both)
    swapped = scores.entity_f1(predicted, gold)
    assert swapped["f1"] == pytest.approx(result["f1"])
    assert swapped["precision"] == result["recall"]
    assert scores.entity_f1(gold, gold)["f1"] == (1.0 if wanted else 0.0)


@pytest.mark.parametrize(
    ("why", "tags", "entities"),
    [
        ("I after O begins one", "O I-A I-A O", {("A", 1, 3)}),
        ("I at the start begins one", "I-A O", {("A", 0, 1)}),
        ("B after I of its type", "I-A B-A", {("A", 0, 1), ("A", 1, 2)}),
        ("B after B", "B-A B-A", {("A", 0, 1), ("A", 1, 2)}),
        ("the type changes inside", "B-A I-B I-B", {("A", 0, 1), ("B", 1, 3)}),
        ("one to the very end", "O B-A I-A", {("A", 1, 3)}),
        ("a hyphen in the type", "B-A-x I-A-x", {("A-x", 0, 2)}),
        ("two singles", "S-A S-A U-A", {("A", 0, 1), ("A", 1, 2), ("A", 2, 3)}),
        ("I after a single", "S-A I-A", {("A", 0, 1), ("A", 1, 2)}),
        ("an end ends", "B-A E-A I-A", {("A", 0, 2), ("A", 2, 3)}),
        ("a last ends", "B-A I-A L-A B-A", {("A", 0, 3), ("A", 3, 4)}),
        ("an end without a beginning", "O E-A O", {("A", 1, 2)}),
        ("nothing", "O O", set()),
    ],
)
def test_what_an_entity_is(why, tags, entities):
    tags = tags.split()
    plain = ["O"] * len(tags)
    for kind, first, end in entities:
        plain[first:end] = [f"B-{kind}"] + [f"I-{kind}"] * (end - first - 1)
    result = scores.entity_f1([tags], [plain])
    assert counts(result) == (len(entities),) * 3, why


@st.composite
def segments(draw):
    kinds = st.sampled_from(["", "A", "B"])
    return draw(st.lists(st.tuples(kinds, st.integers(1, 4)), min_size=1))


def encode(parts, scheme):
    tags, before = [], ""
    for kind, length in parts:
        prefixes = ["I"] * length
        if scheme == "IOB2" or (scheme == "IOB1" and kind == before):
            prefixes[0] = "B"
        elif scheme in ("BIOES", "BILOU"):
            prefixes[0], prefixes[-1] = "B", scheme[3 if scheme == "BIOES" else 2]
            if length == 1:
                prefixes = ["S" if scheme == "BIOES" else "U"]
        tags += [f"{prefix}-{kind}" if kind else "O" for prefix in prefixes]
        before = kind
    return tags


@given(parts=segments())
@settings(max_examples=100)
def test_every_scheme_says_the_same(parts):
    number = sum(bool(kind) for kind, _ in parts)
    gold = [encode(parts, "IOB2")]
    for scheme in ("IOB1", "BIOES", "BILOU"):
        result = scores.entity_f1(gold, [encode(parts, scheme)])
        assert counts(result) == (number,) * 3, scheme


def test_entities_by_type_by_hand():
    # PER: one of one found, one more imagined. LOC: found, but a word too short.
    gold = [["B-PER", "I-PER", "O", "O"], ["B-LOC", "I-LOC", "O"]]
    predicted = [["B-PER", "I-PER", "O", "B-PER"], ["B-LOC", "O", "O"]]
    result = scores.entity_f1(gold, [np.array(tags) for tags in predicted])
    types = result.pop("types")
    assert result == pytest.approx({"precision": 1 / 3, "recall": 1 / 2, "f1": 0.4})
    per = {"precision": 0.5, "recall": 1.0, "f1": 2 / 3, "gold": 1, "predicted": 2}
    loc = {"precision": 0.0, "recall": 0.0, "f1": 0.0, "gold": 1, "predicted": 1}
    assert types == {"LOC": pytest.approx(loc), "PER": pytest.approx(per)}


def test_no_entity_reaches_over_the_end_of_a_sentence():
    result = scores.entity_f1([["B-A"], ["I-A"]], [["B-A"], ["B-A"]])
    assert counts(result) == (2, 2, 2)


def test_tags_that_cannot_be_scored():
    for tag in ("PER", "X-PER", "", "-PER", "O-PER"):
        with pytest.raises(UserError, match="expected O, or a type"):
            scores.entity_f1([["O"]], [[tag]])
    for gold, predicted in (([], []), ([["O"]], []), ([["O"]], [["O", "O"]])):
        with pytest.raises(ValueError):
            scores.entity_f1(gold, predicted)


# --- Answers


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Cat, an\tAnthem!", "cat anthem"),  # whole words only
        ("U.S.", "us"),  # punctuation vanishes rather than parting words
        ("the-cat", "thecat"),  # so the article is no longer a word of its own
        ("A.", ""),  # punctuation goes before articles
        ("the — a", "—"),  # string.punctuation is ASCII
        ("THE", ""),  # lower case comes first
    ],
)
def test_normalized_english(text, normal):
    assert scores.normalize_answer(text) == normal


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("《토지》의 작가", "토지 의 작가"),  # a bracket parts words
        ("〈기생충〉", "기생충"),
        ("‘말’(馬)", "말 馬"),
        ("「시」", "「시」"),  # not among the marks of the script
        ("3,000명.", "3000명"),  # other punctuation vanishes
        ("The BTS", "the bts"),  # no articles in Korean
    ],
)
def test_normalized_korean(text, normal):
    assert scores.normalize_answer(text, "ko") == normal


PIECES = ["the", "The", "a", "an", "anthem", "Cat", "U.S.", "dog's", "—", "-", "İ", "_"]
words = st.lists(st.sampled_from(PIECES), max_size=5)
texts = st.one_of(words.map(" ".join), words.map("".join), st.text(max_size=6))


@given(text=texts)
@settings(max_examples=150)
def test_normalized_english_letter_by_letter(text):
    kept = [letter for letter in text.lower() if letter not in string.punctuation]
    runs = ("".join(run) for _, run in groupby(kept, key=str.isalnum))
    bare = "".join(" " if run in ("a", "an", "the") else run for run in runs)
    normal = scores.normalize_answer(text)
    assert normal.split(" ") == (bare.split() or [""])


@given(prediction=texts, golds=st.lists(texts, min_size=1, max_size=3))
@settings(max_examples=100)
def test_answers_score_as_counted_word_by_word(prediction, golds):
    def pairwise(gold):
        ours = scores.normalize_answer(prediction).split()
        theirs = scores.normalize_answer(gold).split()
        if not ours or not theirs:
            return float(ours == theirs)
        left, shared = list(theirs), 0
        for word in ours:
            if word in left:
                left.remove(word)
                shared += 1
        return 2 * shared / (len(ours) + len(theirs))

    score = scores.f1_answer(prediction, golds)
    assert score == pytest.approx(max(map(pairwise, golds)))
    assert scores.exact_match(prediction, golds) <= score <= 1
    assert scores.exact_match(prediction, [*golds, prediction]) == 1
    one = golds[0]
    back = scores.f1_answer(one, [prediction])
    assert scores.f1_answer(prediction, [one]) == pytest.approx(back)


def test_answers_by_hand():
    # "cat sat" against "cat": 1 of 2 words is right, all of 1 found.
    assert scores.f1_answer("the cat sat", ["dog", "Cat."]) == pytest.approx(2 / 3)
    # A word counts as often as both sides hold it: 1 of 3, 1 of 1.
    assert scores.f1_answer("no no no", ["no"]) == pytest.approx(0.5)
    assert scores.exact_match("The Cat!", ["dog", "cat"]) == 1
    assert scores.exact_match("cats", ["cat"]) == 0
    # Korean by characters without spaces: 3 of 4, 3 of 3, where no word is equal.
    assert scores.f1_answer("이순 신은", ["이순신"], "ko") == pytest.approx(6 / 7)
    assert scores.f1_answer("이순 신은", ["이순신"]) == 0
    for empty in ([], [""], ["The"]):
        assert scores.f1_answer("", empty) == scores.exact_match("", empty) == 1
        assert scores.f1_answer("x", empty) == scores.exact_match("x", empty) == 0


def test_squad1_counts_a_missing_prediction_as_wrong():
    golds = {"q1": ["Paris", "in Paris"], "q2": ["a big dog"], "q3": ["x"]}
    result = scores.squad({"q1": "paris", "q2": "the dog", "other": "x"}, golds)
    # q2: "dog" against "big dog" is 2/3; q3 is missing.
    assert result == {
        "exact": pytest.approx(1 / 3),
        "f1": pytest.approx((1 + 2 / 3) / 3),
        "total": 3,
    }


@pytest.mark.parametrize("language", ["en", "ko"])
def test_nothing_against_nothing_is_exact_without_f1_in_squad1(language):
    # evaluate-v1.1.py finds no common word before it looks for anything else.
    result = scores.squad({"q": "!"}, {"q": ["."]}, language=language)
    assert result == {"exact": 1, "f1": 0, "total": 1}


def test_korquad_counts_characters():
    golds = {"q1": ["《토지》"], "q2": ["이순신"]}
    result = scores.squad({"q1": "토지", "q2": "이순신은"}, golds, language="ko")
    assert result == {"exact": 0.5, "f1": pytest.approx((1 + 6 / 7) / 2), "total": 2}


HAND = {
    "predictions": {"a": "cat", "b": "big dog", "c": "fish", "d": ""},
    "golds": {"a": ["cat"], "b": ["dog"], "c": [], "d": []},
    "null_scores": {"a": 0.1, "b": 0.6, "c": 0.4, "d": 0.9},
}


def test_squad2_by_hand():
    # Exact: a and d. Nothing answered: c and d, 2. Then a: 3, the best; c: 2; b: exact
    # 2, f1 2 2/3.
    assert scores.squad(**HAND) == {
        "total": 4,
        "exact": 2 / 4,
        "f1": pytest.approx((2 + 2 / 3) / 4),
        "HasAns_exact": 1 / 2,
        "HasAns_f1": pytest.approx((1 + 2 / 3) / 2),
        "NoAns_exact": 1 / 2,
        "NoAns_f1": 1 / 2,
        "best_exact": 3 / 4,
        "best_exact_threshold": 0.1,
        "best_f1": 3 / 4,
        "best_f1_threshold": 0.1,
    }


def test_a_threshold_empties_the_answers_above_it():
    # Above 0.3 are b, now wrong, and c and d, now right.
    result = scores.squad(**HAND, threshold=0.3)
    assert (result["exact"], result["HasAns_exact"], result["NoAns_f1"]) == (
        0.75,
        0.5,
        1,
    )
    assert result["best_f1"] == scores.squad(**HAND)["best_f1"]


def test_squad2_without_null_scores_or_without_a_kind_of_question():
    result = scores.squad(HAND["predictions"], HAND["golds"])
    assert result["HasAns_exact"] == 1 / 2
    assert not any(name.startswith("best") for name in result)
    result = scores.squad({"a": "x"}, {"a": ["x"]}, {"a": 0.0})
    assert not any(name.startswith("NoAns") for name in result)
    # To answer nothing is best: no threshold is reported but the script's 0.
    result = scores.squad({"a": "x"}, {"a": []}, {"a": -3.0})
    assert (result["best_f1"], result["best_f1_threshold"]) == (1, 0)


def test_the_least_of_the_best_thresholds_even_between_equal_null_scores():
    golds = {"a": ["x"], "b": [], "c": ["x"]}
    right = dict.fromkeys(golds, "x")
    # 1 with nothing answered, then 2, 1, 2: the second 2 is no better than the first.
    result = scores.squad(right, golds, {"a": 1.5, "b": 2.5, "c": 3.5})
    assert (result["best_exact"], result["best_exact_threshold"]) == (2 / 3, 1.5)
    # No threshold parts a from b, but the script stops between them in their order.
    result = scores.squad(right, golds, {"a": 1.5, "b": 1.5, "c": 3.5})
    assert (result["best_exact"], result["best_exact_threshold"]) == (2 / 3, 1.5)
    result = scores.squad(right, golds, {"b": 1.5, "a": 1.5, "c": 3.5})
    assert (result["best_exact"], result["best_exact_threshold"]) == (2 / 3, 3.5)


def test_squad2_drops_right_answers_that_are_nothing():
    # "The" goes, "cat" stays: an empty prediction no longer matches.
    result = scores.squad({"a": ""}, {"a": ["The", "cat"]}, {"a": 0.0})
    assert result["exact"] == result["f1"] == 0


@st.composite
def questions(draw):
    """Predictions, answers and null scores, all null scores different."""
    answer = st.sampled_from(["cat", "big cat", "dog", "the dog"])
    number = draw(st.integers(1, 7))
    golds = [draw(st.lists(answer, max_size=2)) for _ in range(number)]
    predictions = [draw(st.one_of(answer, st.just(""))) for _ in range(number)]
    null = draw(st.lists(values, min_size=number, max_size=number, unique=True))
    names = [f"q{i}" for i in range(number)]
    columns = (predictions, golds, null)
    return [dict(zip(names, column, strict=True)) for column in columns]


@given(case=questions())
@settings(max_examples=50)
def test_the_best_threshold_is_the_best_of_all(case):
    predictions, golds, null = case
    tried = [
        scores.squad(predictions, golds, null, threshold=threshold)
        for threshold in (-math.inf, math.inf, *null.values())
    ]
    for name in ("exact", "f1"):
        best = tried[0][f"best_{name}"]
        assert best == pytest.approx(max(result[name] for result in tried))
        assert 0 <= best <= 1
        place = tried[0][f"best_{name}_threshold"]
        if best > tried[0][name] + 1e-9:  # else it is best to answer nothing
            there = scores.squad(predictions, golds, null, threshold=place)
            assert there[name] == pytest.approx(best)


@given(case=questions())
@settings(max_examples=50)
def test_right_answers_are_perfect_and_kinds_add_up(case):
    predictions, golds, null = case
    perfect = {name: (texts or [""])[0] for name, texts in golds.items()}
    result = scores.squad(perfect, golds, null, threshold=math.inf)
    assert result["exact"] == result["f1"] == 1
    result = scores.squad(predictions, golds, null)
    kinds = Counter("HasAns" if golds[name] else "NoAns" for name in golds)
    for name in ("exact", "f1"):
        whole = sum(result[f"{kind}_{name}"] * n for kind, n in kinds.items())
        assert result[name] == pytest.approx(whole / result["total"])


def test_mistakes_in_squad_are_named():
    with pytest.raises(UserError, match="predictions: 1 of 4 .* 'c'"):
        left = {"a": "", "b": "", "d": ""}
        scores.squad(left, HAND["golds"])
    with pytest.raises(UserError, match="null_scores: 3 of 4 .* 'b'"):
        scores.squad(HAND["predictions"], HAND["golds"], {"a": 0.0})
    with pytest.raises(UserError, match="language='fr'"):
        scores.exact_match("x", ["x"], "fr")
    with pytest.raises(ValueError, match="no questions"):
        scores.squad({}, {})
