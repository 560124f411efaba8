import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_jax.data.squad import Question, Report, questions, repair
from bert_jax.errors import UserError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("squad")


def put(folder, content):
    path = folder / "a.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


@st.composite
def spans(draw):
    context = draw(TEXT.filter(bool))
    start = draw(st.integers(0, len(context) - 1))
    return context, context[start : draw(st.integers(start + 1, len(context)))], start


QUESTION = st.builds(
    lambda span, number, question, title, impossible: Question(
        str(number),
        question,
        span[0],
        () if impossible else ((span[1], span[2]),) * (1 + number % 3),
        impossible,
        title,
    ),
    spans(),
    st.integers(0),
    TEXT,
    TEXT,
    st.booleans(),
)


def answers_of(question):
    return [{"text": text, "answer_start": at} for text, at in question.answers]


def nested(question):
    item = {"id": question.id, "question": question.question}
    item |= {"answers": answers_of(question), "is_impossible": question.impossible}
    paragraph = {"context": question.context, "qas": [item]}
    return {"title": question.title, "paragraphs": [paragraph]}


def flat(question):
    texts, starts = (
        zip(*question.answers, strict=True) if question.answers else ((), ())
    )
    record = question._asdict() | {"answers": {"text": texts, "answer_start": starts}}
    del record["impossible"]
    return record


@pytest.mark.parametrize("write", [nested, flat])
@given(expected=st.lists(QUESTION, min_size=1, max_size=5))
def test_questions_come_back_and_need_no_repair(folder, write, expected):
    path = put(folder, {"data": list(map(write, expected))})
    found = [one._replace(where="") for one in questions(path)]
    assert found == expected
    assert repair(found) == (expected, Report(0, 0, 0, []))


def asked(context, *answers):
    return Question("q", "What?", context, answers, False, "")


@pytest.mark.parametrize(
    ("answer", "repaired"),
    [
        (("two", 5), ("two", 4)),  # just once
        (("two", -1), ("two", 4)),
        ((" one ", 14), ("one", 14)),  # its place is right without the spaces
        (("two\n", 0), ("two", 4)),  # just once without the spaces
        (("one", 14), ("one", 14)),  # right
    ],
)
def test_answers_move_to_their_place(answer, repaired):
    (found,), report = repair([asked("one two three one.", answer)])
    assert found.answers == (repaired,)
    assert report == (int(answer != repaired), 0, 0, [])


@pytest.mark.parametrize("answer", ["one", " one  ", "four", "", " ", "e"])
def test_answers_without_a_certain_place_are_dropped(answer):
    wrong = asked("one two three one.", (answer, 1))
    kept, report = repair([wrong, asked("one two.", ("two", 4), (answer * 2, 3))])
    assert [one.answers for one in kept] == [(("two", 4),)]
    assert report[:3] == (0, 2, 1)
    assert report.messages[0].startswith(f"question q: answer {answer!r} is not at")


@given(QUESTION, st.integers(-50, 50))
def test_after_repair_every_answer_is_at_its_place(question, shift):
    moved = tuple((text, start + shift) for text, start in question.answers)
    kept, report = repair([question._replace(answers=moved)])
    for one in kept:
        assert all(one.context[at:].startswith(text) for text, at in one.answers)
    left = sum(len(one.answers) for one in kept)
    assert left + report.unrepairable == len(moved)
    assert len(kept) + report.dropped == 1


@given(st.text(st.sampled_from("ab \xe9\ud55c\U0001f600"), min_size=1), st.data())
def test_offsets_in_utf16_units_or_bytes_are_understood(context, data):
    start = data.draw(st.integers(0, len(context) - 1))
    text = context[start : data.draw(st.integers(start + 1, len(context)))]
    codec, unit = data.draw(st.sampled_from([("utf-16-le", 2), ("utf-8", 1)]))
    given_as = len(context[:start].encode(codec)) // unit
    (kept, report) = repair([asked(context, (text, given_as))])
    assert report.unrepairable == len(kept) - 1 == 0
    # Elsewhere only if the text is where the number says, as code points.
    ((found, place),) = kept[0].answers
    assert context.startswith(found, place) and found.strip() == text.strip()
    if context.count(text) == 1 or not context.startswith(text, given_as):
        bare = context[given_as:].startswith(text.strip()) and text.strip() != text
        assert place == start or bare


def one(item, **paragraph):
    paragraph = {"context": "a b", "qas": [item]} | paragraph
    good = {"id": 1, "question": "?", "answers": [{"text": "a", "answer_start": 0}]}
    first = {"paragraphs": [{"context": "a", "qas": [good]}]}
    return {"data": [first, {"paragraphs": [paragraph]}]}


ITEM = {"id": "1", "question": "?", "answers": [{"text": "a", "answer_start": 0}]}


def without(key, **more):
    return {name: value for name, value in ITEM.items() if name != key} | more


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"data":\n[', "a.json:2: not JSON"),
        ([], "a.json: data: no such list"),
        ({}, "a.json: data: no such list; see the format"),
        ({"data": []}, "a.json: no questions"),
        ({"data": [3]}, "a.json: data[0]: not an object"),
        ({"data": [{}]}, "a.json: data[0].paragraphs: no such list"),
        (one(ITEM, qas=None), "data[1].paragraphs[0].qas: no such list"),
        (one(ITEM, context=None), "data[1].paragraphs[0].context: a NoneType, not"),
        (one(without("id")), "a.json: data[1].paragraphs[0].qas[0].id: missing"),
        (one(without("question")), "data[1].paragraphs[0].qas[0].question: missing"),
        (one(without("answers")), "data[1].paragraphs[0].qas[0].answers: no such"),
        (one(without("", answers=[])), "qas[0].answers: empty, though"),
        (one(without("", is_impossible=True)), "qas[0]: is_impossible is true, yet"),
        (one(without("", is_impossible="no")), "qas[0].is_impossible: neither"),
        (one(without("", question="\ud800")), "qas[0].question: half a character"),
        (one(without("", answers=[{"text": "a"}])), "answers[0].answer_start: missing"),
        (one(without("", answers=[{"answer_start": 0}])), "answers[0].text: missing"),
        (one(without("", answers=["a"])), "qas[0].answers[0]: not an object"),
        ({"data": [without("id", context="a")]}, "a.json: data[0].id: missing"),
        ({"data": [ITEM]}, "a.json: data[0].context: missing"),
        (
            {"data": [without("", answers={"text": ["a"], "answer_start": []})]},
            "data[0].answers: 1 texts but 0 places",
        ),
        (
            {"data": [without("", answers={"text": ["a"]})]},
            "data[0].answers.answer_start: no such list",
        ),
    ],
)
def test_mistakes_are_named_with_their_place(tmp_path, content, message):
    with pytest.raises(UserError, match=re.escape(message)):
        questions(put(tmp_path, content))


@pytest.mark.parametrize("key", ["guid", "qid"])
def test_an_id_may_have_another_name(tmp_path, key):
    found = questions(put(tmp_path, one(without("id", **{key: "m7"}))))
    assert found[1].id == "m7"


@pytest.mark.parametrize("start", [True, "0", None, 1.0])
def test_an_offset_is_a_whole_number(tmp_path, start):
    answer = {"text": "a", "answer_start": start}
    with pytest.raises(UserError, match="answer_start: missing or not a whole number"):
        questions(put(tmp_path, one(without("", answers=[answer]))))


def test_the_format_of_korquad_2_is_named(tmp_path):
    qas = [{"id": "1", "question": "?", "answer": {"text": "a", "answer_start": 0}}]
    entry = {"title": "t", "url": "u", "context": "<p>a</p>", "qas": qas}
    with pytest.raises(UserError, match=r"a\.json: data\[0\]: .*KorQuAD 2\.0.*HTML"):
        questions(put(tmp_path, {"data": [entry]}))
    for content in ("[" * 100_000, '{"data": ' + "9" * 5000 + "}"):
        with pytest.raises(UserError, match=r"a\.json: not JSON"):
            questions(put(tmp_path, content))


def test_a_file_to_be_predicted_needs_no_answers(tmp_path):
    path = put(tmp_path, one(without("answers")))
    assert questions(path, labelled=False)[1][:6] == ("1", "?", "a b", (), False, "")


# Counted with json alone.
@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "count", "answers", "impossible", "repaired"),
    [
        ("SQuAD-format/xquad.en.json.xz", 1190, 1190, 0, 0),
        ("SQuAD-format/covidQA_200423.json.xz", 1380, 1380, 0, 234),
        ("hf_fixtures/SQUAD_sample.json", 14, 27, 6, 0),
    ],
)
def test_real_sets_are_read_whole(shared, name, count, answers, impossible, repaired):
    found = questions(str(shared / "finetune" / name))
    assert len(found) == len({question.id for question in found}) == count
    assert sum(len(question.answers) for question in found) == answers
    assert sum(question.impossible for question in found) == impossible
    kept, report = repair(found)
    assert report == (repaired, 0, 0, [])
    assert len(kept) == count
    for question in kept:
        for text, start in question.answers:
            assert question.context[start : start + len(text)] == text
