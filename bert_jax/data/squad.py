"""Questions on a context, from JSON files in the format of SQuAD 1.1 and 2.0.

Rajpurkar et al., 2016, https://arxiv.org/abs/1606.05250 and 2018,
https://arxiv.org/abs/1806.03822; KorQuAD 1.0, XQuAD and COVID-QA have it too. The
flat form in which Hugging Face and TensorFlow Datasets keep them is read as well.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from bert_jax.data import tfds
from bert_jax.data.objects import not_text, objects, text
from bert_jax.errors import UserError

Answer = tuple[str, int]  # the text, and its first character in the context


class Question(NamedTuple):
    """A question, its context and the answers that people gave."""

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...]
    impossible: bool  # the context does not hold the answer
    title: str  # empty if the file has none
    where: str = ""  # its place in the file


class Report(NamedTuple):
    """What `repair` did."""

    repaired: int  # answers
    unrepairable: int  # answers, dropped
    dropped: int  # questions, because no answer was left
    messages: list[str]  # one for each unrepairable answer


def questions(
    path: str, labelled: bool = True, encoding: str = "utf-8"
) -> list[Question]:
    """Reads every question of a file.

    Args:
      path: .json, also compressed; or `tfds:NAME[/CONFIG]:SPLIT`.
      labelled: each question must have answers or be impossible; False for a file that
        is to be predicted, whose answers may be missing.
      encoding: of the characters of the file.

    Returns:
      One or more questions in the order of the file. Answers are as in the file: for
      training, `repair` them.

    Raises:
      UserError: naming the file and the place in it, of whatever is wrong.
    """
    if tfds.is_named(path):
        found = [_question(one, one, one, at, labelled) for at, one in objects(path)]
    else:
        found = list(_from_json(path, labelled, encoding))
    if not found:
        raise UserError(f"{path}: no questions in it; give a file with at least one")
    return found


def _from_json(path: str, labelled: bool, encoding: str) -> Iterator[Question]:
    content = text(path, encoding)
    try:
        root = json.loads(content)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}:{error.lineno}: not JSON ({error}); fetch the file again, or "
            "correct it"
        ) from None
    except (ValueError, RecursionError) as error:  # numbers too long, nested too deep
        raise UserError(f"{path}: not JSON ({error}); fetch the file again") from None
    for entry, at in _each(root, "data", path + ": "):
        if "paragraphs" not in entry and "question" in entry:
            yield _question(entry, entry, entry, at, labelled)
            continue
        if "paragraphs" not in entry and "qas" in entry:
            raise UserError(
                f"{at}: qas without paragraphs, as in KorQuAD 2.0, whose answers are "
                "parts of HTML; only the format of SQuAD and KorQuAD 1.0 is read"
            )
        for paragraph, inside in _each(entry, "paragraphs", at + "."):
            for item, place in _each(paragraph, "qas", inside + "."):
                yield _question(item, paragraph, entry, place, labelled)


def repeated(questions: Sequence[Question]) -> str | None:
    """Describe the first id that two questions have, if there is one."""
    places: dict[str, str] = {}
    for question in questions:
        if question.id in places:
            return f"{question.where}: id {question.id!r} is also that of " + (
                places[question.id].partition(": ")[2] or places[question.id]
            )
        places[question.id] = question.where
    return None


def repair(questions: Sequence[Question]) -> tuple[list[Question], Report]:
    """Moves answers that are not where they are said to be, if their place is certain.

    It is, in this order: if the context holds the text just once; if without the white
    space around it the text is at its place; if so it is held just once; if the text is
    where the number leads as one of UTF-16 units, as JavaScript counts, or of bytes.
    Other answers are dropped, and the questions that they leave without any: those are
    not impossible, but cannot be trained on. To score, take all questions instead: that
    needs the texts only.

    Args:
      questions: of `questions`.

    Returns:
      Questions all of whose answers are at their places, and a report.
    """
    kept: list[Question] = []
    messages: list[str] = []
    repaired = 0
    for question in questions:
        answers: list[Answer] = []
        for answer in question.answers:
            found = _locate(answer, question.context)
            if found is None:
                messages.append(
                    f"question {question.id}: answer {answer[0][:50]!r} is not at "
                    f"character {answer[1]} of its context, and not just once elsewhere"
                )
            else:
                repaired += found != answer
                answers.append(found)
        if answers or not question.answers:
            kept.append(question._replace(answers=tuple(answers)))
    report = Report(repaired, len(messages), len(questions) - len(kept), messages)
    return kept, report


def _locate(answer: Answer, context: str) -> Answer | None:
    string, start = answer
    if _is_at(string, start, context):
        return answer
    bare = string.strip()
    if (place := _only_place(string, context)) is not None:
        return string, place
    if _is_at(bare, start, context):
        return bare, start
    if (place := _only_place(bare, context)) is not None:
        return bare, place
    for codec, size in (("utf-16-le", 2), ("utf-8", 1)):
        before = context.encode(codec)[: max(start, 0) * size]
        place = len(before.decode(codec, "ignore"))
        if place != start and _is_at(string, place, context):
            return string, place
    return None


def _is_at(string: str, start: int, context: str) -> bool:
    return bool(string) and start >= 0 and context.startswith(string, start)


def _only_place(string: str, context: str) -> int | None:
    place = context.find(string) if string else -1
    again = context.find(string, place + 1) if place >= 0 else -1
    return place if place >= 0 and again < 0 else None


def _question(
    item: dict[str, Any],
    paragraph: dict[str, Any],
    entry: dict[str, Any],
    at: str,
    labelled: bool,
) -> Question:
    flat = item is paragraph
    answers = _answers(item, at, labelled)
    impossible = item.get("is_impossible", flat and labelled and not answers)
    if not isinstance(impossible, bool):
        raise UserError(f"{at}.is_impossible: neither true nor false; make it one")
    if impossible and answers:
        raise UserError(
            f"{at}: is_impossible is true, yet there are answers; call them "
            "plausible_answers, or make it false"
        )
    if labelled and not impossible and not answers:
        raise UserError(
            f"{at}.answers: empty, though is_impossible is not true; give an answer, "
            "or set is_impossible"
        )
    key = next((key for key in ("id", "guid", "qid") if key in item), "id")
    number = item.get(key)
    paragraph_at, entry_at = (
        (at, at) if flat else (at.rsplit(".", 1)[0], at.rsplit(".", 2)[0])
    )
    return Question(
        str(number) if isinstance(number, int) else _string(item, key, at),
        _string(item, "question", at),
        _string(paragraph, "context", paragraph_at),
        answers,
        impossible,
        _string(entry, "title", entry_at) if entry.get("title") is not None else "",
        at,
    )


def _answers(item: dict[str, Any], at: str, labelled: bool) -> tuple[Answer, ...]:
    if "answers" not in item and not labelled:
        return ()
    given = item.get("answers")
    if isinstance(given, dict):  # the flat form: a list for each key
        texts, starts = (
            [value for value, _ in _items(given, key, at + ".answers.")]
            for key in ("text", "answer_start")
        )
        if len(texts) != len(starts):
            raise UserError(
                f"{at}.answers: {len(texts)} texts but {len(starts)} places; give each "
                "answer both"
            )
        pairs = zip(texts, starts, strict=True)
        answers = [{"text": one, "answer_start": start} for one, start in pairs]
        listed = [(answer, f"{at}.answers[{n}]") for n, answer in enumerate(answers)]
    else:
        listed = list(_each(item, "answers", at + "."))
    found: list[Answer] = []
    for answer, where in listed:
        start = answer.get("answer_start")
        if not isinstance(start, int) or isinstance(start, bool):
            raise UserError(
                f"{where}.answer_start: missing or not a whole number; give the "
                "answer's first character in the context"
            )
        found.append((_string(answer, "text", where), start))
    return tuple(found)


def _each(node: Any, key: str, prefix: str) -> Iterator[tuple[dict[str, Any], str]]:
    """The objects in a list, and where each of them is."""
    for value, where in _items(node, key, prefix):
        if not isinstance(value, dict):
            raise UserError(f"{where}: not an object; see the format of SQuAD")
        yield value, where


def _items(node: Any, key: str, prefix: str) -> Iterator[tuple[Any, str]]:
    values = node.get(key) if isinstance(node, dict) else None
    if not isinstance(values, list):
        raise UserError(f"{prefix}{key}: no such list; see the format of SQuAD")
    for number, value in enumerate(values):
        yield value, f"{prefix}{key}[{number}]"


def _string(node: dict[str, Any], key: str, at: str) -> str:
    value = node.get(key)
    if wrong := not_text(value):
        what = wrong if key in node else "missing"
        raise UserError(f"{at}.{key}: {what}; see the format of SQuAD")
    return str(value)
