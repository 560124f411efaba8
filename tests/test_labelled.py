"""What is decided of labelled files before they are encoded."""

import json

import pytest

from bert_jax import labelled
from bert_jax.config import TaskSettings

COUNT = 3000


def _tables(path, order):
    lines = [f"a text {n % 1000}\tits pair {n}\t{n % 3}\n" for n in order]
    path.write_text("text\tpair\tlabel\n" + "".join(lines))
    return TaskSettings(kind="classify", pair_column="pair", train_file=str(path))


def _words(path, order):
    path.write_text("\n".join(f"w{n % 1000} O\nx B-p\n" for n in order))
    names = {"text_column": "0", "label_column": "-1"}
    return TaskSettings(kind="tag", train_file=str(path), **names)


def _answers(path, order):
    def question(n):
        answer = {"text": "here", "answer_start": 0}
        return {"id": str(n), "question": f"where {n}?", "answers": [answer]}

    paragraphs = [{"context": f"here {n % 1000}", "qas": [question(n)]} for n in order]
    path.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    return TaskSettings(kind="span", train_file=str(path))


@pytest.mark.parametrize("write", [_tables, _words, _answers])
def test_a_share_is_held_out_where_there_is_no_dev_file(tmp_path, write):
    def split(order):
        # A tag file's sentences and a table's texts come first in their tuples.
        files = labelled.read(write(tmp_path / "train.tsv", order))
        texts = [
            {item.context if write is _answers else str(item[0]) for item in side}
            for side in files
        ]
        assert len(files.train) + len(files.dev) == COUNT
        assert not texts[0] & texts[1]
        assert 0.07 < len(texts[1]) / 1000 < 0.13
        return texts

    # Which text lies where does not depend on its place in the file.
    assert split(range(COUNT)) == split(reversed(range(COUNT)))
