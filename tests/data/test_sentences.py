"""Sentences of long lines are those of the splitter, found in linear time."""

import random
import time

import pytest
import sentencex
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.data.sentences import split

WORDS = "the cat Dr. sat e.g. on 3.5 mats in Paris café U.S. naïve it I".split()
HAN = "我去了北京天气很好看长城是的人在这里上海，、"
HANGUL = "나는어제친구와함께학교에갔다가돌아왔다"


def english(draw: random.Random) -> str:
    words = " ".join(draw.choices(WORDS, k=draw.randint(2, 25)))
    sentence = words[0].upper() + words[1:] + draw.choice(".!?")
    quoted = f'"{sentence} {sentence}" he said.', f"“{sentence} {sentence}” he said."
    return draw.choice([sentence] * 20 + [*quoted, f"({sentence})"])


def chinese(draw: random.Random) -> str:
    sentence = "".join(draw.choices(HAN, k=draw.randint(2, 40))) + draw.choice("。！？")
    return draw.choice([sentence] * 9 + [f"他说「{sentence}{sentence}」。"])


def korean(draw: random.Random) -> str:
    sizes = [draw.randint(1, 5) for _ in range(draw.randint(2, 20))]
    return " ".join("".join(draw.choices(HANGUL, k=n)) for n in sizes) + "."


@pytest.mark.parametrize(
    ("language", "make", "space"),
    [("en", english, " "), ("zh", chinese, ""), ("ko", korean, " ")],
)
def test_a_long_line_has_the_sentences_of_the_splitter(language, make, space):
    draw = random.Random(1)
    line = space.join(make(draw) for _ in range(400))
    assert len(line) > 8_000
    assert split(language, line) == sentencex.segment(language, line)


@given(st.lists(st.text("aé. \"'(“。字\u0301\n", min_size=400), max_size=40))
@settings(max_examples=30, deadline=None)
def test_sentences_are_the_line_when_joined(parts):
    line = "".join(parts)
    assert "".join(split("en", line)) == line


@pytest.mark.parametrize("text", ["acgt", "word ", "字", "字。", "é. ", "가나 "])
def test_time_is_linear_and_sentences_are_bounded(text):
    def seconds(count):
        line = text * (count // len(text))
        start = time.process_time()
        found = split("en", line)
        assert max(map(len, found)) <= 4096
        return time.process_time() - start

    few = min(seconds(20_000) for _ in range(3))
    assert seconds(200_000) < 40 * few + 0.05
