"""Every command on a run directory, texts and models of a strange name."""

import json
import os
from pathlib import Path

import pytest

from bert_jax.__main__ import main
from tests.cli import corpus

ROOT = Path(__file__).parents[2]
NAME = "-r [x]*?%23#,='\"$a$ 한국🤗"


def last(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.slow
def test_every_command_reads_and_writes_any_name(tmp_path, monkeypatch, capsys):
    """From two working directories, with relative paths, after the text has moved."""
    home, away = tmp_path / f"{NAME} 1", tmp_path / "away"
    for place in (home, away):
        place.mkdir()
    text = corpus.write(home / f"{NAME}, b.txt")
    corpus.write(home / "plain.txt")
    monkeypatch.chdir(home)
    smoke = [f"--config={ROOT / 'configs/bert_tiny.py'}:smoke", "--config.steps=2"]
    smoke += ["--config.data.num_workers=1", "--json"]
    summaries = []
    for source, name in (("plain.txt", "plain"), (text.name, NAME)):
        source = f"--config.data.source={source}"
        assert main(["train", *smoke, source, f"--workdir={name}"]) == 0
        summaries.append(last(capsys))
    assert summaries[0]["params_digest"] == summaries[1]["params_digest"]

    text.rename(away / "moved.txt")
    monkeypatch.chdir(away)
    run = os.path.relpath(home / NAME)
    assert main(["evaluate", f"--workdir={run}", "--json"]) == 0
    found = last(capsys)
    assert found["eval_set_md5"] == summaries[0]["eval_set_md5"]
    assert found["eval_mlm_loss"] == pytest.approx(summaries[1]["eval_mlm_loss"])
    assert main(["fill", f"--workdir={run}", "a [MASK] b", "--json"]) == 0
    (away / f"{NAME}.txt").write_text("one line\nanother\n")
    files = [f"--input={NAME}.txt", f"--output={NAME}.npz"]
    assert main(["extract", f"--workdir={run}", *files, "--json"]) == 0
    assert (away / f"{NAME}.npz").is_file()
    assert main(["export", f"--workdir={run}", f"--output={NAME}.hf"]) == 0
    assert main(["import", f"--source={NAME}.hf", f"--workdir={NAME}.run"]) == 0
    rows = "".join(f"a b c {i}\t{'yn'[i % 2]}\n" for i in range(40))
    (away / f"{NAME}.tsv").write_text(f"text\tlabel\n{rows}")
    tune = [f"--config={ROOT / 'configs/glue.py'}", f"--config.init={NAME}.run"]
    tune += [f"--config.task.train_file={NAME}.tsv", "--config.task.epochs=1"]
    tune += ["--config.phases[0].length=16", "--config.phases[0].batch=8"]
    assert main(["train", *tune, f"--workdir={NAME}.tuned"]) == 0
    monkeypatch.chdir(home)
    tuned = f"--workdir={away / NAME}.tuned"
    files = [f"--input={away / NAME}.tsv", f"--output={NAME}.tsv"]
    assert main(["predict", tuned, *files]) == 0
    assert len((home / f"{NAME}.tsv").read_text().splitlines()) == 41
    monkeypatch.chdir(away)
    sweep = ["--vary=phases[0].batch=8", f"--workdir={NAME}.sweep", "--json"]
    capsys.readouterr()
    assert main(["sweep", *tune[:-1], *sweep]) == 0
    assert last(capsys)["cells"][0]["n"] == 1
