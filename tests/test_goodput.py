import json

import pytest

from bert_jax import goodput
from bert_jax.__main__ import main
from tests import random_run


def write(folder, *lines):
    fields = "time", "event", "step", "seconds", "waited", "steps"
    text = "".join(
        json.dumps(dict(zip(fields, line, strict=False))) + "\n" for line in lines
    )
    (folder / "events.jsonl").write_text(text)


def test_every_second_is_accounted_for(tmp_path):
    write(
        tmp_path,
        (110.0, "start", 0, 10.0),
        (115.0, "compile", 0, 5.0),
        (135.0, "train", 10, 19.0, 4.0, 10),  # a second that no event explains
        (137.0, "evaluate", 10, 2.0),
        (138.0, "save", 10, 1.0),
        (158.0, "train", 20, 20.0, 0.0, 10),  # then killed: half of it is lost
        (200.0, "start", 15, 12.0),
        (210.0, "train", 20, 10.0, 0.0, 5),
    )
    found = goodput.account(tmp_path)
    assert found["seconds"] == 110 and found["restarts"] == 1
    expected = {
        "training": 15 + 10 + 10,
        "waiting": 4,
        "lost": 10,
        "starting": 22,
        "compiling": 5,
        "evaluating": 2,
        "saving": 1,
        "down": 30,
        "other": 1,
    }
    assert {name: found[name] for name in goodput.KINDS} == pytest.approx(expected)
    assert sum(expected.values()) == found["seconds"]
    assert found["goodput"] == pytest.approx(35 / 110)


def test_steps_redone_twice_are_lost_twice(tmp_path):
    write(
        tmp_path,
        (1.0, "start", 0, 1.0),
        (11.0, "train", 10, 10.0, 0.0, 10),
        (21.0, "train", 20, 10.0, 0.0, 10),
        (21.0, "start", 5, 0.0),
        (31.0, "train", 15, 10.0, 0.0, 10),
        (31.0, "start", 0, 0.0),
        (51.0, "train", 20, 20.0, 0.0, 20),
    )
    found = goodput.account(tmp_path)
    assert found["lost"] == pytest.approx(10 + 10 + 10)
    assert found["training"] == pytest.approx(20)


def test_command_prints_a_table(tmp_path, capsys):
    random_run.write(tmp_path)
    write(tmp_path, (1.0, "start", 0, 1.0), (11.0, "train", 10, 10.0, 2.0, 10))
    assert main(["evaluate", "--goodput", f"--workdir={tmp_path}"]) == 0
    text = capsys.readouterr().out
    assert "training" in text and "72.7%" in text and "0 restarts" in text
    assert main(["evaluate", "--goodput", "--json", f"--workdir={tmp_path}"]) == 0
    assert json.loads(capsys.readouterr().out)["waiting"] == 2.0


def test_run_without_events_is_a_user_error(tmp_path, capsys):
    random_run.write(tmp_path)
    assert main(["evaluate", "--goodput", f"--workdir={tmp_path}"]) == 2
    assert "events.jsonl" in capsys.readouterr().err
