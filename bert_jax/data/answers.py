"""Questions on a text as windows over it, and answers from their scores.

Devlin et al. 2019, section 4.2: [CLS] question [SEP] text [SEP], the text cut into
windows that overlap; an answer runs from the best start to the best end.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bert_jax.data import hashing
from bert_jax.data.sequences import Sequences
from bert_jax.data.squad import Question
from bert_jax.data.tokenizer import TextTokenizer

_QUESTION = 64  # [tokens] of a question; the rest is cut off
_PURPOSE = 17  # of the draw of windows
# Reasons for which tokens do not stand for an answer as it is written.
INSIDE = "begin or end inside a token and are trained on with all of it"
TOO_LONG = "are longer than a window allows and are left out"
NO_TOKEN = "have no token, being white space or the like, and are left out"
_BEST = 20  # starts and ends of a window that are tried, and answers kept


class Windows(NamedTuple):
    """One sequence for each window over each question's text."""

    sequences: Sequences  # `span` holds characters of the text, [0, 0] elsewhere
    label: NDArray[np.int32]  # [S, 2] first and last token of the answer; 0 is [CLS]
    owner: NDArray[np.int64]  # [S] number of the question


class Answer(NamedTuple):
    """A candidate."""

    text: str
    score: float  # sum of its start's and its end's logit


class _Piece(NamedTuple):
    """A window, before it is put together."""

    owner: int
    asked: NDArray[np.int32]  # tokens of the question
    text: NDArray[np.int32]  # and of its part of the text
    chars: NDArray[np.int32]  # [T, 2] of that part
    answer: tuple[int, int] | None  # first and last token in that part


def encode(
    tokenizer: TextTokenizer,
    questions: Sequence[Question],
    limit: int,
    stride: int,
    share: float = 1.0,
    unusable: Counter[str] | None = None,
) -> Windows:
    """The windows of every question.

    Args:
      tokenizer: of the model.
      questions: whose first answer, if it has one, is the label.
      limit: [tokens] of a sequence.
      stride: [tokens] from the beginning of a window to that of the next, at most half
        of the text that a window holds, so that windows overlap.
      share: of the windows beside the answer that are kept, of questions that have
        one in their text. On long texts nearly all windows are such.
      unusable: to train, leaves out the questions whose answer no window holds and
        counts them by reason; also counts answers that begin or end inside a token,
        which are trained on with the whole token. None keeps all questions.

    Returns:
      The windows; one that does not hold the whole answer is labelled [CLS].
    """
    vocabulary = tokenizer.vocabulary()
    token, segment, where, label, owner = [], [], [], [], []
    size = [0]
    for piece in _cut(tokenizer, questions, limit, stride, share, unusable):
        head = [vocabulary.cls, *piece.asked, *[vocabulary.sep] * tokenizer.separators]
        body = [*piece.text, vocabulary.sep]
        token += [*head, *body]
        segment += [0] * len(head) + [1] * len(body)
        where += [np.zeros((len(head), 2), np.int32), piece.chars]
        where.append(np.zeros((1, 2), np.int32))
        size.append(len(head) + len(body))
        owner.append(piece.owner)
        label.append([end + len(head) for end in piece.answer or (-len(head),) * 2])
    sequences = Sequences(
        np.array(token, np.int32),
        np.array(segment, np.int32),
        np.cumsum(size),
        np.concatenate(where),
        0,
    )
    return Windows(sequences, np.array(label, np.int32), np.array(owner))


def count(
    tokenizer: TextTokenizer,
    questions: Sequence[Question],
    limit: int,
    stride: int,
    share: float = 1.0,
) -> int:
    """How many windows `encode` makes of the same arguments, to train."""
    shape = limit, stride, share
    return sum(1 for _ in _cut(tokenizer, questions, *shape, Counter()))


def _cut(
    tokenizer: TextTokenizer,
    questions: Sequence[Question],
    limit: int,
    stride: int,
    share: float,
    unusable: Counter[str] | None,
) -> Iterator[_Piece]:
    contexts = list(dict.fromkeys(question.context for question in questions))
    place = {context: i for i, context in enumerate(contexts)}
    ids, offset, span = tokenizer.encode_spans(contexts)
    asked, ends = tokenizer.encode_batch([question.question for question in questions])
    extra = tokenizer.separators - 1
    most = min(_QUESTION, limit // 2 - extra)
    for number, question in enumerate(questions):
        ask = asked[ends[number] : ends[number + 1]][:most]
        at = place[question.context]
        own = slice(offset[at], offset[at + 1])
        text, chars = ids[own], span[own]
        first, last = _tokens_of(question, chars)
        room = limit - len(ask) - 3 - extra
        begins = _begins(len(text), room, min(stride, max(room // 2, 1)))
        if unusable is not None and question.answers:
            reason = _reason(question, chars, (first, last), begins, room)
            unusable.update([reason] if reason else [])
            if reason in (NO_TOKEN, TOO_LONG):
                continue
        bits = hashing.draw(hashing.key(_PURPOSE, number), np.arange(len(begins)))
        kept = (hashing.uniform(bits) < share) | question.impossible
        for begin, keep in zip(begins, kept, strict=True):
            part, answer = slice(begin, begin + room), None
            if begin <= first and last < min(begin + room, len(text)):
                answer = first - begin, last - begin
            if keep or answer:
                yield _Piece(number, ask, text[part], chars[part], answer)


def _reason(
    question: Question,
    chars: NDArray[np.int32],
    tokens: tuple[int, int],
    begins: range,
    room: int,
) -> str | None:
    """Why the tokens are not just what the first answer says, if they are not."""
    first, last = tokens
    if first < 0:
        return NO_TOKEN
    if not any(begin <= first and last < begin + room for begin in begins):
        return TOO_LONG
    text, start = question.answers[0]
    bare = start + len(text) - len(text.lstrip()), start + len(text.rstrip())
    return INSIDE if (chars[first, 0], chars[last, 1]) != bare else None


def _begins(count: int, room: int, stride: int) -> range:
    """Where windows begin, so that together they cover all tokens."""
    steps = -(-max(count - room, 0) // stride)
    return range(0, steps * stride + 1, stride)


def _tokens_of(question: Question, chars: NDArray[np.int32]) -> tuple[int, int]:
    """First and last token that the first answer touches; -1, -1 for none."""
    if not question.answers:
        return -1, -1
    text, start = question.answers[0]
    touched = (chars[:, 1] > start) & (chars[:, 0] < start + len(text))
    found = np.flatnonzero(touched)
    return (int(found[0]), int(found[-1])) if len(found) else (-1, -1)


class Candidates(NamedTuple):
    """What a model says of one question."""

    best: list[Answer]  # best first, without the empty answer
    null: float  # score of no answer less that of the best one


def decode(
    questions: Sequence[Question],
    windows: Windows,
    logits: NDArray[np.float32],
    longest: int,
) -> list[Candidates]:
    """The best answers to each question over all its windows.

    Args:
      questions: as encoded.
      windows: from `encode`.
      logits: [T, 2] of each token of the windows: start and end.
      longest: [tokens] of an answer.
    """
    found: list[dict[str, float]] = [{} for _ in questions]
    null = np.full(len(questions), np.inf)
    offset, span = windows.sequences.offset, windows.sequences.span
    for number, owner in enumerate(windows.owner.tolist()):
        own = slice(offset[number], offset[number + 1])
        chars, (start, end) = span[own], logits[own].T
        null[owner] = min(null[owner], float(start[0] + end[0]))
        real = np.flatnonzero(chars[:, 1] > chars[:, 0])
        starts = real[np.argsort(-start[real], kind="stable")[:_BEST]]
        ends = real[np.argsort(-end[real], kind="stable")[:_BEST]]
        context, kept = questions[owner].context, found[owner]
        for a in starts:
            for b in ends[(ends >= a) & (ends < a + longest)]:
                text = context[chars[a, 0] : chars[b, 1]]
                kept[text] = max(kept.get(text, -np.inf), float(start[a] + end[b]))
    results = []
    for answers, empty in zip(found, null, strict=True):
        ranked = sorted(answers.items(), key=lambda pair: -pair[1])[:_BEST]
        best = [Answer(*pair) for pair in ranked]
        top = best[0].score if best else -np.inf
        results.append(Candidates(best, float(empty - top)))
    return results


def choose(found: Sequence[Candidates], threshold: float) -> list[str]:
    """The prediction for each question: the best answer, or "" for none.

    Args:
      found: from `decode`.
      threshold: of `null`, above which there is no answer; infinity always answers.
    """
    return [
        one.best[0].text if one.best and one.null <= threshold else "" for one in found
    ]


def nbest(found: Candidates) -> list[dict[str, Any]]:
    """The candidates with their shares of probability among themselves."""
    score = np.array([answer.score for answer in found.best])
    power = np.exp(score - score.max(initial=-np.inf))
    return [
        {"text": answer.text, "probability": float(p), "score": answer.score}
        for answer, p in zip(found.best, power / power.sum(), strict=True)
    ]
