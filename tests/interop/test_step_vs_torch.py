"""The benchmark of a step: both sides are given the same examples."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bert_jax.__main__ import main
from bert_jax.config import load
from bert_jax.data.pipeline import Batches
from bert_jax.data.store import open_store
from tests.cli import corpus
from tests.interop import hugging

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "benchmarks/step_vs_torch.py"
CONFIG = f"--config={ROOT / 'configs/bert_tiny.py'}:smoke"
EDITS = ["phases[0].length=192", "phases[0].batch=8", "model.positions=192"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Of documents that are shorter than a row."""
    folder = tmp_path_factory.mktemp("store")
    text = corpus.write(folder / "text.txt", documents=200)
    flags = [f"--config.data.source={text}", "--config.data.num_workers=1"]
    assert main(["prepare", CONFIG, f"--workdir={folder}", *flags]) == 0
    return folder / "store"


@pytest.fixture
def program(monkeypatch):
    monkeypatch.syspath_prepend(str(PROGRAM.parent))
    spec = importlib.util.spec_from_file_location("step_vs_torch", PROGRAM)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def batch(store):
    config = load(CONFIG.removeprefix("--config="), EDITS)
    return Batches(open_store(str(store)), config, 0).batch(0)


def test_examples_one_a_row_are_those_of_the_packed_rows(program, batch):
    rows = program.collate(list(program.unpacked(batch)), pad=0)
    count = int(batch["nsp_weight"].sum())
    assert count > len(batch["token"])  # some rows hold several
    real = rows["attention_mask"] > 0
    inside = batch["example"] > 0
    for theirs, ours in (("input_ids", "token"), ("token_type_ids", "segment")):
        assert rows[theirs][real].tolist() == batch[ours][inside].tolist()
        assert not rows[theirs][~real].any()
    used = batch["nsp_weight"] > 0
    assert rows["next_sentence_label"].tolist() == batch["nsp_label"][used].tolist()
    labels = rows["labels"][rows["labels"] != program.UNLABELLED]
    wanted = batch["mlm_label"][batch["mlm_weight"] > 0]
    assert sorted(labels) == sorted(wanted)
    # At the same places, too: in 4 of 5 cases the token there is hidden.
    hidden = rows["input_ids"][rows["labels"] != program.UNLABELLED] == 4
    assert 0.6 < hidden.mean() < 1


def test_full_rows_have_no_padding(program, batch):
    full = program.filled(batch)
    assert (full["example"] == 1).all() and full["nsp_weight"].shape == (8, 1)
    inside = batch["example"] > 0
    assert not inside.all()
    np.testing.assert_array_equal(full["token"][inside], batch["token"][inside])
    assert (full["token"] > 0).all()
    examples = list(program.unpacked(full))
    assert [len(one["input_ids"]) for one in examples] == [192] * 8


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--phase=7", "--phase=7"),
        ("--settings=fast:float32", "--settings=fast:float32"),
        ("--settings=eager:float32:0", "--settings=eager:float32:0"),
        ("--batches=0", "--batches=0"),
        ("--config.data.store=", "needs a token store"),
        ("--config.objective.pair=none", "config.objective.pair=nsp"),
        ("--config.model.vocab_size=9", "config.model.vocab_size=9"),
    ],
)
def test_mistakes_are_named(program, store, monkeypatch, capsys, flag, message):
    flags = [CONFIG, f"--config.data.store={store}", flag]
    monkeypatch.setattr(sys, "argv", ["step_vs_torch.py", *flags])
    with pytest.raises(SystemExit) as stopped:
        program.main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("rows", ["full", "real"])
def test_both_sides_work_on_the_same_tokens(store, rows):
    hugging.torch()
    flags = [CONFIG, f"--config.data.store={store}", f"--rows={rows}", "--pairs=1"]
    flags += ["--batches=2", "--seconds=0", "--settings=eager:float32"]
    words = [sys.executable, PROGRAM, *flags, *(f"--config.{edit}" for edit in EDITS)]
    environ = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=environ)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    ours, theirs = found["bert_jax"], found["torch"]
    assert ours["useful_tokens"] == theirs["useful_tokens"] > 0
    assert ours["first_loss"] == pytest.approx(theirs["first_loss"], rel=0.02)
    if rows == "full":
        assert ours["padded_tokens"] == theirs["padded_tokens"] == 2 * 8 * 192
    else:
        assert ours["useful_tokens"] < ours["padded_tokens"] < theirs["padded_tokens"]
    assert found["useful_ratio"] > 0 and list(found["settings"]) == ["eager:float32"]
    assert "eager:float32" in done.stderr


@pytest.mark.slow
def test_all_of_the_gpu_script_runs_and_a_failure_ends_nothing(store, tmp_path):
    variables = {"GPU_SMOKE": "1", "OUT": str(tmp_path), "STORE": str(store)}
    variables["SECONDS_LEFT"] = "450"  # sooner than the limit below
    variables["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environ = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        ["bash", str(ROOT / "benchmarks/gpu.sh")],
        env={**environ, **variables},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "gpu.json").read_text())
    assert told["device"] == "cpu" and "jax" in told["versions"]
    found = {each["name"]: each for each in told["results"]}
    assert found["tiny-64"]["useful_tokens_per_second"] > 0
    assert found["tiny-64-pallas"]["useful_tokens_per_second"] > 0
    assert found["tiny-64-full"]["useful_ratio"] > 0
    assert "config.model.heads=3" in found["tiny-64-wrong"]["error"]
    kinds = {row["kind"]: row for row in found["attention"]["rows"]}
    assert "NVIDIA GPUs" in kinds.pop("cudnn")["why"]
    assert list(kinds) == ["xla", "flash", "pallas", "splash"]
    for row in kinds.values():
        assert row["to_xla"] > 0 and row["to_floor"] > 0 and row["differs"] < 1e-5
    losses = {cell["name"]: cell for cell in found["losses"]["cells"]}
    assert losses["bfloat16-cudnn"]["n"] == 0  # said, and nothing ends
    wide, fused = losses["float32-xla"], losses["bfloat16-pallas"]
    assert wide["n"] == fused["n"] == 2 and wide["metric"] == "eval_mlm_loss"
    assert fused["mean"] == pytest.approx(wide["mean"], rel=0.02)
    for each in told["results"]:
        assert each["name"] in done.stdout
