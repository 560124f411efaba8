"""`bert-jax bench`, on full rows of random tokens; `step` is in test_commands.py."""

import json

import jax
import numpy as np
import pytest

from bert_jax import speed
from bert_jax.__main__ import main
from bert_jax.cli import bench
from bert_jax.config import load
from bert_jax.data.pipeline import shapes

CONFIG = ["--config=configs/bert_tiny.py:smoke", "--seconds=0"]
SPANS = ["masking=span", "span_boundary=true"]
HUGE = 2**22  # rows that no machine has the memory for
NONE = {"fits": False, "peak_memory_bytes": None}
SMALL = (  # soon compiled
    "model.dropout=0 model.attention_dropout=0 model.layers=1 model.scan=false "
    "objective.pair=none"
).split()


def test_a_sweep_goes_on_where_a_size_does_not_fit(monkeypatch, capsys):
    real = speed.compile_step

    def compile_step(config, phase):
        if config.phases[phase].batch == 16:  # as the compilers of TPUs do
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory")
        return real(config, phase)

    monkeypatch.setattr(speed, "compile_step", compile_step)
    flags = [*CONFIG, *(f"--config.{edit}" for edit in SMALL), "--json"]
    flags += [f"--batches={HUGE},8,16", "--lengths=32"]
    assert main(["bench", "sweep", *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    small, failed, huge = found["rows"]
    assert [row["batch"] for row in found["rows"]] == [8, 16, HUGE]
    assert [row["fits"] for row in found["rows"]] == [True, False, False]
    assert small["useful_tokens_per_second"] > 0
    assert failed["peak_memory_bytes"] is None and huge["peak_memory_bytes"] > 10**11
    best = "'--config.phases[0].length=32' '--config.phases[0].batch=8'"
    assert found["best"] == found["best_of_length"]["32"] == best
    head, first, *others, _, last = bench._table(found).splitlines()
    assert head.split()[:2] == ["length", "batch"] and first.split()[:2] == ["32", "8"]
    assert all(line.endswith("does not fit") for line in others)
    assert last == f"fastest: {best}"


def test_nothing_fits(monkeypatch, capsys):
    monkeypatch.setattr(speed, "attempt", lambda *_: dict(NONE))
    assert main(["bench", "sweep", *CONFIG, "--batches=8", "--lengths=16,32"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:-1] == [f"fastest of {n} tokens: none fits" for n in (16, 32)]
    assert lines[-1].startswith("fastest: none fits")


def test_other_failures_end_a_sweep(monkeypatch):
    def compile_step(*_):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")

    monkeypatch.setattr(speed, "compile_step", compile_step)
    with pytest.raises(jax.errors.JaxRuntimeError, match="broken"):
        main(["bench", "sweep", *CONFIG, "--batches=8", "--lengths=16"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sweep", "--batches=8,x"], "--batches=8,x"),
        (["sweep", "--lengths=0"], "--lengths=0"),
        (["sweep", "--lengths=16,4096"], "phases[0].length=4096"),
        (["sweep", "--batches=8,12"], "phases[0].batch=12"),
        (["step", "--batches=8"], "--batches: of `bench sweep` only"),
        (["sweep", "--profile=trace"], "--profile: of `bench step` only"),
        (["step", "--profile=README.md/trace"], "--profile=README.md/trace"),
        (["step", "--phase=2"], "--phase=2"),
        (["step", "--config.task.kind=classify"], "config.task.kind=classify"),
    ],
)
def test_mistakes_are_named(words, message, capsys):
    assert main(["bench", *words, *CONFIG]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("error:") == 1


@pytest.mark.parametrize("edits", [[], ["pair=none"], ["pair=sop", *SPANS]])
def test_random_rows_have_the_arrays_of_real_ones(edits):
    config = load(CONFIG[0].partition("=")[2], [f"objective.{e}" for e in edits])
    made = {n: (a.shape, a.dtype) for n, a in bench._batch(config, "", 0).items()}
    said = shapes(config, 0)
    assert made == {n: (size, np.dtype(kind)) for n, (size, kind) in said.items()}
