"""What a run leaves in its directory and says on the terminal."""

import json
from pathlib import Path

import pytest

from bert_jax import log
from bert_jax.errors import UserError


def records(workdir: Path) -> list[dict]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def steps(workdir: Path) -> list[tuple[int, str]]:
    return [(record["step"], record["kind"]) for record in records(workdir)]


def run(workdir: Path, reports: range, start: int = 0) -> None:
    with log.Reporter(workdir, 900, start_step=start) as reporter:
        for step in reports:
            reporter.train(step, {"loss": 6.125, "grad_norm": 1 / 3})
            if step % 4 == 0:
                reporter.evaluation(step, {"eval_mlm_loss": 5.5})


def test_every_report_is_one_line_of_json(tmp_path: Path) -> None:
    run(tmp_path, range(3, 6))
    assert steps(tmp_path) == [(3, "train"), (4, "train"), (4, "eval"), (5, "train")]
    assert records(tmp_path)[0]["grad_norm"] == 1 / 3
    assert all(record["time"] > 1.6e9 for record in records(tmp_path))
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_a_resumed_run_drops_what_it_repeats(tmp_path: Path) -> None:
    run(tmp_path, range(1, 7))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "ki')  # cut off by a kill
    run(tmp_path, range(5, 8), start=4)
    unbroken = tmp_path / "unbroken"
    run(unbroken, range(1, 8))
    assert steps(tmp_path) == steps(unbroken)


def test_nan_becomes_null(tmp_path: Path) -> None:
    with log.Reporter(tmp_path, 10) as reporter:
        reporter.train(1, {"loss": float("nan"), "grad_norm": float("inf")})
    assert records(tmp_path)[0]["loss"] is None
    assert records(tmp_path)[0]["grad_norm"] is None


def test_plain_lines_tell_the_essentials(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = {
        "loss": 6.1234,
        "mlm_accuracy": 0.0811,
        "nsp_accuracy": 0.61,
        "useful_tokens_per_second": 12_345.0,
        "grad_norm": 2.0,
    }
    with log.Reporter(tmp_path, 900) as reporter:
        reporter.note("[brackets] stay")
        reporter.train(100, metrics)
        reporter.train(101, metrics)
        reporter.evaluation(101, {"eval_mlm_loss": 5.5})
    out, err = capsys.readouterr()
    note, first, second, evaluation = err.splitlines()
    assert out == ""
    assert note == "[brackets] stay"
    assert first == (
        "step 100/900  loss 6.123  mlm_acc 0.081  nsp_acc 0.610  12.3k tokens/s"
    )
    assert "  eta " in second
    assert evaluation == "evaluation at step 101  eval_mlm_loss 5.5000"


def test_a_terminal_gets_a_bar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with log.Reporter(tmp_path, 900) as reporter:
        reporter.note("[brackets] stay")
        reporter.train(900, {"loss": 6.1234})
    out, err = capsys.readouterr()
    assert out == ""
    assert "[brackets] stay" in err
    assert "900/900" in err
    assert "loss 6.123" in err


def test_a_secondary_host_is_silent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with log.Reporter(tmp_path / "run", 9, is_primary=False) as reporter:
        reporter.train(1, {"loss": 1.0})
        reporter.evaluation(1, {"eval_mlm_loss": 1.0})
        reporter.note("hello")
    assert capsys.readouterr().err == ""
    assert not (tmp_path / "run").exists()


def test_write_json_replaces_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    log.write_json(path, {"a": 1})
    log.write_json(path, {"b": [float("nan"), 2.5], "c": (1,)})
    assert json.loads(path.read_text()) == {"b": [None, 2.5], "c": [1]}
    with pytest.raises(TypeError):
        log.write_json(path, {"b": object()})
    assert json.loads(path.read_text())["c"] == [1]
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


def test_an_unwritable_workdir_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="--workdir="):
        log.Reporter(tmp_path / "file" / "run", 9)
    with pytest.raises(UserError, match=r"summary\.json"):
        log.write_json(tmp_path / "file" / "summary.json", {})


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.6, "1m00s"), (192, "3m12s"), (7_500, "2h05m")],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert log._duration(seconds) == text
