"""The official evaluation scores of the tasks that BERT is fine-tuned on.

Classification and similarity as GLUE scores them, entities as CoNLL-2003 does, answers
as SQuAD 1.1, SQuAD 2.0 and KorQuAD 1.0 do. Fractions throughout, never percent.
Nothing to score, or lists of different lengths, raise ValueError.
"""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bert_jax.errors import UserError

Numbers = np.ndarray | Sequence[Any]
Tags = Sequence[Sequence[str] | np.ndarray]

_ARTICLE = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
# KorQuAD takes these for spaces before it drops ASCII punctuation, so that a title in
# brackets does not grow into the word beside it. 「」 are not among them.
_KOREAN_MARKS = str.maketrans(dict.fromkeys("'\"()<>〈〉《》‘’", " "))


def accuracy(gold: Numbers, predicted: Numbers) -> float:
    """The share of items whose class is right.

    Args:
      gold: the right classes [n].
      predicted: the classes to score [n].

    Returns:
      In [0, 1]; GLUE's score of MNLI, QNLI, RTE, SST-2 and WNLI, and SWAG's.
    """
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(*_paired(gold, predicted)))


def f1(gold: Numbers, predicted: Numbers, positive: int = 1) -> float:
    """F1 of one class against all others.

    Args:
      gold: the right classes [n].
      predicted: the classes to score [n].
      positive: the class that counts.

    Returns:
      In [0, 1], 0 if no item is rightly called positive; GLUE's score of MRPC and QQP.
    """
    from sklearn.metrics import f1_score

    gold, predicted = (x == positive for x in _paired(gold, predicted))
    # Without any 1 the score is 0 by default too, but with a warning.
    return float(f1_score(gold, predicted, zero_division=0))  # pyright: ignore


def matthews(gold: Numbers, predicted: Numbers) -> float:
    """Matthews' correlation of two lists of classes.

    Args:
      gold: the right classes [n].
      predicted: the classes to score [n].

    Returns:
      In [-1, 1], 0 if either list holds one class only; GLUE's score of CoLA.
    """
    from sklearn.metrics import matthews_corrcoef

    return _correlation(matthews_corrcoef, *_paired(gold, predicted))


def pearson(gold: Numbers, predicted: Numbers) -> float:
    """Pearson's correlation of two lists of numbers.

    Args:
      gold: the right values [n].
      predicted: the values to score [n].

    Returns:
      In [-1, 1], 0 if either list is constant; GLUE's first score of STS-B.
    """
    from scipy.stats import pearsonr

    # float64 first: pearsonr computes in the dtype that it is given.
    gold, predicted = (x.astype(np.float64) for x in _paired(gold, predicted))
    return _correlation(lambda a, b: pearsonr(a, b)[0], gold, predicted)


def spearman(gold: Numbers, predicted: Numbers) -> float:
    """Spearman's correlation: Pearson's of the ranks, ties sharing their mean rank.

    Args:
      gold: the right values [n].
      predicted: the values to score [n].

    Returns:
      In [-1, 1], 0 if either list is constant; GLUE's second score of STS-B.
    """
    from scipy.stats import spearmanr

    gold, predicted = _paired(gold, predicted)
    return _correlation(lambda a, b: spearmanr(a, b)[0], gold, predicted)


def _paired(gold: Numbers, predicted: Numbers) -> tuple[np.ndarray, np.ndarray]:
    gold, predicted = np.asarray(gold), np.asarray(predicted)
    if gold.ndim != 1 or gold.shape != predicted.shape or not gold.size:
        shapes = f"gold {gold.shape} and predicted {predicted.shape}"
        raise ValueError(f"{shapes}: expected two lists of one length, not empty")
    return gold, predicted


def _correlation(method: Any, gold: np.ndarray, predicted: np.ndarray) -> float:
    # Undefined for a constant, where the libraries warn: a model that always says the
    # same has learned nothing.
    if (gold == gold[0]).all() or (predicted == predicted[0]).all():
        return 0.0
    return float(np.clip(method(gold, predicted), -1, 1))  # rounding may exceed 1


def entity_f1(gold: Tags, predicted: Tags) -> dict[str, Any]:
    """Precision, recall and F1 of whole entities: type and both ends must be right.

    What counts as an entity follows the rules of `conlleval` (Tjong Kim Sang, version
    2004-01-26, of the CoNLL-2000 and CoNLL-2003 shared tasks), which read IOB1, IOB2
    (BIO) and IOE alike: a change of type, or I- after O, begins an entity. S- and the
    B- after an E-, which that script does not know, always begin one and S- and E- end
    one; L- and U- of BILOU, M- of BMES and W- mean E- and S-, I- and S-.

    Args:
      gold: the right tags of each sentence, as O, B-PER, I-PER.
      predicted: the tags to score, as many in each sentence.

    Returns:
      `precision`, `recall` and `f1` over all entities, in [0, 1], 0 where there are
      none; `types`, by type the same three and the numbers `gold` and `predicted`.

    Raises:
      UserError: a tag of another scheme.
    """
    if not gold:
        raise ValueError("no sentences to score")
    right, wanted, found = Counter[str](), Counter[str](), Counter[str]()
    for ours, theirs in zip(gold, predicted, strict=True):
        if len(ours) != len(theirs):
            raise ValueError(f"{len(ours)} gold tags and {len(theirs)} predicted")
        first, second = _entities(ours), _entities(theirs)
        right.update(kind for kind, _, _ in first & second)
        wanted.update(kind for kind, _, _ in first)
        found.update(kind for kind, _, _ in second)
    types = {
        kind: _ratios(right[kind], wanted[kind], found[kind])
        | {"gold": wanted[kind], "predicted": found[kind]}
        for kind in sorted(wanted | found)
    }
    return _ratios(right.total(), wanted.total(), found.total()) | {"types": types}


_PREFIXES = {"L": "E", "U": "S", "W": "S", "M": "I"}


# Not seqeval: its default mode follows the same rules, but takes L- and U- for tags
# inside an entity (joining two U- of one type) and warns at each of them.
def _entities(tags: Sequence[str] | np.ndarray) -> set[tuple[str, int, int]]:
    """(type, first, after the last) of every entity of a sentence."""
    entities = set()
    first, last, kind = 0, "O", ""
    for place, tag in enumerate((*tags, "O")):
        prefix, _, new = tag.partition("-")  # a type may contain hyphens
        prefix = _PREFIXES.get(prefix, prefix)
        if prefix not in {*"BIES"} and tag != "O":
            raise UserError(
                f"tag {tag!r}: expected O, or a type after B-, I-, E-, S-, L- or U-"
            )
        if prefix in {*"OBS"} or last in {*"OES"} or new != kind:
            if last != "O":
                entities.add((kind, first, place))
            first = place
        last, kind = prefix, new
    return entities


def _ratios(right: int, wanted: int, found: int) -> dict[str, Any]:
    precision, recall = right / max(found, 1), right / max(wanted, 1)
    # Step by step as in the scripts: the same rounding gives the same best threshold.
    both = 2 * precision * recall / (precision + recall) if right else 0.0
    return {"precision": precision, "recall": recall, "f1": both}


def normalize_answer(text: str, language: str = "en") -> str:
    """An answer in the form that is compared, words separated by single spaces.

    Args:
      text: the answer as written.
      language: "en" as the SQuAD scripts: lower case, without ASCII punctuation, then
        without the words a, an and the. "ko" as the script of KorQuAD 1.0: quotation
        marks and brackets become spaces, lower case, without ASCII punctuation.

    Returns:
      The normalized text, possibly empty.

    Raises:
      UserError: another language.
    """
    if language == "en":
        bare = text.lower().translate(_NO_PUNCTUATION)
        return " ".join(_ARTICLE.sub(" ", bare).split())
    if language == "ko":
        bare = text.translate(_KOREAN_MARKS).lower().translate(_NO_PUNCTUATION)
        return " ".join(bare.split())
    raise UserError(f"language={language!r}: answers are scored in 'en' or 'ko'")


def exact_match(prediction: str, golds: Sequence[str], language: str = "en") -> float:
    """Whether an answer equals one of the right ones, both normalized.

    Args:
      prediction: the answer to score.
      golds: the right answers; none means that the empty answer is right.
      language: see `normalize_answer`.

    Returns:
      0 or 1.
    """
    ours = normalize_answer(prediction, language)
    return float(any(ours == normalize_answer(g, language) for g in golds or [""]))


def f1_answer(prediction: str, golds: Sequence[str], language: str = "en") -> float:
    """F1 of the words shared with a right answer, the best over all of these.

    Args:
      prediction: the answer to score.
      golds: the right answers; none means that the empty answer is right.
      language: see `normalize_answer`; characters instead of words in "ko".

    Returns:
      In [0, 1]. As in SQuAD 2.0, an empty answer scores 1 against an empty one; the
      scripts of SQuAD 1.1 and KorQuAD give 0, and so does `squad` for these.
    """
    agree = not normalize_answer(prediction, language) and any(
        not normalize_answer(gold, language) for gold in golds or [""]
    )
    return 1.0 if agree else _overlap(prediction, golds, language)


def _overlap(prediction: str, golds: Sequence[str], language: str) -> float:
    def pieces(text: str) -> Counter[str]:
        words = normalize_answer(text, language).split()
        return Counter("".join(words) if language == "ko" else words)

    ours = pieces(prediction)
    theirs = [pieces(gold) for gold in golds]
    best = [_ratios((ours & g).total(), g.total(), ours.total())["f1"] for g in theirs]
    return max(best, default=0.0)


def squad(
    predictions: Mapping[str, str],
    golds: Mapping[str, Sequence[str]],
    null_scores: Mapping[str, float] | None = None,
    language: str = "en",
    threshold: float = 1.0,
) -> dict[str, Any]:
    """The scores of a set of questions, by the rules of the official scripts.

    evaluate-v1.1.py, or, if there are `null_scores` or a question without answers,
    evaluate-v2.0.py (Rajpurkar et al., 2016 and 2018); in "ko" the script of KorQuAD
    1.0 (Lim et al., 2019), v1.1 with characters for words.

    Args:
      predictions: question -> answer; questions not in `golds` are left out. In v1.1
        a question without a prediction counts 0.
      golds: question -> right answers, none if it cannot be answered.
      null_scores: question -> how sure the model is that there is no answer: its
        probability, or score(null) - score(best answer).
      language: see `normalize_answer`.
      threshold: an answer whose null score is above it counts as empty in `exact` and
        `f1`. 1, the script's default, leaves probabilities alone.

    Returns:
      `exact` and `f1`, means in [0, 1], and `total` questions. In v2.0 the means also
      as `HasAns_exact`, `HasAns_f1`, `NoAns_exact` and `NoAns_f1` over the questions
      with and without answers, if any. With `null_scores`, `best_exact`, `best_f1`,
      `best_exact_threshold`, `best_f1_threshold`: what the best threshold would give,
      and which it is (0 where it is best to answer nothing).

    Raises:
      UserError: in v2.0, a question without prediction or null score.
    """
    if not golds:
        raise ValueError("no questions to score")
    nullable = null_scores is not None or not all(golds.values())
    for name, given in (("predictions", predictions), ("null_scores", null_scores)):
        missing = [q for q in golds if given is not None and q not in given]
        if nullable and missing:
            raise UserError(
                f"{name}: {len(missing)} of {len(golds)} questions are missing, the "
                f"first is {missing[0]!r}; SQuAD 2.0 needs one for each question"
            )
    result: dict[str, Any] = {"total": len(golds)}
    methods = {"exact": exact_match, "f1": f1_answer if nullable else _overlap}
    for name, method in methods.items():
        raw = dict.fromkeys(golds, 0.0)
        for question in golds.keys() & predictions.keys():
            answers = golds[question]
            if nullable:  # v2.0 drops answers such as "The"; of none left, "" is right
                answers = [text for text in answers if normalize_answer(text, language)]
            raw[question] = method(predictions[question], answers, language)
        final = dict(raw)
        if null_scores is not None:
            for question in golds:
                if null_scores[question] > threshold:
                    final[question] = float(not golds[question])
            best, place = _best_threshold(predictions, raw, golds, null_scores)
            result |= {f"best_{name}": best, f"best_{name}_threshold": place}
        result[name] = sum(final.values()) / len(final)
        for group, kind in (("HasAns", True), ("NoAns", False)):
            chosen = [final[q] for q in golds if bool(golds[q]) == kind]
            if nullable and chosen:
                result[f"{group}_{name}"] = sum(chosen) / len(chosen)
    return result


def _best_threshold(predictions, raw, golds, null_scores) -> tuple[float, float]:
    """The best mean over all thresholds, and the least that reaches it."""
    # At first nothing is answered, then one question after another, the surest first.
    # The script may stop between equal null scores, and we report what it reports.
    now = best = float(sum(not answers for answers in golds.values()))
    threshold = 0.0
    for question in sorted(null_scores, key=null_scores.__getitem__):
        if question not in golds:
            continue
        if golds[question]:
            now += raw[question]
        elif predictions[question]:
            now -= 1
        if now > best:
            best, threshold = now, float(null_scores[question])
    return best / len(golds), threshold
