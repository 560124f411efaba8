"""`bert-jax plan`: here on the fake devices, and for a TPU and a GPU without either."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bert_jax import topology
from bert_jax.__main__ import main

pytestmark = pytest.mark.usefixtures("as_users_compile")
ROOT = Path(__file__).parents[2]
COMMAND = ["plan", f"--config={ROOT}/configs/bert_tiny.py:smoke"]
KEYS = (
    "fits hbm_bytes hbm_used_bytes params flops_per_token collectives bound "
    "step_seconds_roofline mfu_roofline tokens_per_second chip_hours batch_per_chip"
).split()


def run(*flags):
    """In a process of its own, as a user has it: no platform is asked for."""
    environment = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
    words = [sys.executable, "-m", "bert_jax", *COMMAND, *flags]
    return subprocess.run(
        words, cwd=ROOT, env=environment, capture_output=True, text=True
    )


def test_devices_that_are_here(capsys):
    assert main([*COMMAND, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert not set(KEYS) - set(result)
    assert result["fits"] and result["chips"] == 8 and result["phase"] == 1
    assert result["collectives"]["all-reduce"]["bytes"] >= 4 * result["params"]


@pytest.mark.slow
def test_meshes_make_a_table(capsys):
    flags = ["--mesh=data=-1", "--mesh=data=2,fsdp=4", "--batch=2", "--phase=0"]
    assert main([*COMMAND, *flags]) == 0
    printed = capsys.readouterr()
    head, first, second, note = printed.out.splitlines()
    assert head.split()[:3] == ["topology", "mesh", "rows/chip"]
    assert first.split()[1:4] == ["8x1x1", "2", "1"]
    assert second.split()[1:4] == ["2x4x1", "2", "1"]
    assert "8 steps" in note
    assert all(line.startswith("plan: ") for line in printed.err.splitlines())


def test_a_page_for_a_person(capsys):
    assert main([*COMMAND, "--batch=1", "--mesh=model=2", "--phase=0"]) == 0
    printed = capsys.readouterr().out
    for word in ("mesh data 4, fsdp 1, model 2", "parameters", "all-reduce", "GB"):
        assert word in printed


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--phase=2", "--phase=2"),
        ("--batch=some", "--batch=some"),
        ("--batch=0", "--batch=0"),
        ("--mesh=rows=2", "--mesh=rows=2"),
        ("--mesh=fsdp=-1", "only one axis may be -1"),
        ("--mesh=fsdp=3", "asks for 3 devices"),
        ("--topology=v5e", "such as v5e:4x4"),
    ],
)
def test_mistakes_are_named(flag, message, capsys, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert main([*COMMAND, flag]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v5e:2x2", "h100:8"])
def test_machines_that_are_not_here(name):
    done = run(f"--topology={name}", "--batch=4", "--json")
    assert done.returncode == 0, done.stderr
    assert all(line.startswith("plan: ") for line in done.stderr.splitlines())
    result = json.loads(done.stdout)
    assert not set(KEYS) - set(result)
    assert result["fits"] and result["bound"] in result["seconds"]
    assert 0 < result["mfu_roofline"] < 1
    reduced = result["collectives"]["all-reduce"]["elements"]
    assert result["params"] <= reduced < 1.001 * result["params"]  # each once


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "attention"),
    [
        ("v5e:2x2", "splash"),
        ("h100:1", "cudnn"),
        ("h100:1", "pallas"),
        ("h100:1", "xla"),
    ],
)
def test_fused_attention_keeps_no_scores(name, attention):
    flags = "heads=2 hidden=128 positions=512 dtype=bfloat16"
    model = [f"--config.model.{flag}" for flag in flags.split()]
    rate = 0.1 if attention == "pallas" else 0.0  # it alone can drop them
    model.append(f"--config.model.attention_dropout={rate}")
    if attention in ("pallas", "xla"):
        model.append(f"--config.model.attention={attention}")
    model += ["--config.phases[1].length=512", "--batch=64", "--json"]
    done = run(f"--topology={name}", *model)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["attention"] == attention
    kept = any("64,2,512,512" in array["shape"] for array in found["largest"])
    assert kept == (attention == "xla")


def large(name, *flags):
    config = f"--config={ROOT}/configs/bert_large.py"  # the last one counts
    no_dropout = "--config.model.attention_dropout=0.0"
    done = run(config, no_dropout, f"--topology={name}", "--json", *flags)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_bert_large_keeps_much_less_with_fused_attention_on_a_gpu():
    sizes, found = {}, {}
    for attention in ("xla", "cudnn"):
        found = large("h100:1", "--batch=64", f"--config.model.attention={attention}")
        assert found["attention"] == attention and found["length"] == 512
        sizes[attention] = found["hbm_used_bytes"] - found["state_bytes"]
    assert sizes["cudnn"] <= 0.65 * sizes["xla"]
    kernel = "__cudnn$fmhaScaleBiasSoftmax"
    assert [found["calls"][kernel + part] for part in ("", "Backward")] == [24, 24]
    # It takes and gives [B, L, H, h] as the products leave and want it.
    assert all(array["bytes"] < 2 * 64 * 512 * 1024 for array in found["relaid"])


@pytest.mark.slow
def test_bert_large_on_a_tpu_gathers_parameters_alone_and_may_reach_60_percent():
    found = large("v6e:16x16", "--batch=32", "--mesh=data=-1,fsdp=16")
    assert found["attention"] == "splash" and found["fits"]
    gathered = found["collectives"]["all-gather"]["elements"]
    assert gathered <= 2.01 * found["params"]  # forward and backward
    assert found["mfu_roofline"] >= 0.6


@pytest.mark.slow
def test_a_table_of_machines_that_are_not_here(tmp_path):
    words = [sys.executable, "benchmarks/aot.py", *COMMAND[1:], "--batch=4"]
    words += ["--targets", "v5e:2x2/data=2,fsdp=2", "v9:4", "h100:1"]
    done = subprocess.run(
        [*words, f"--output={tmp_path}/plans.json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    _, _, *lines = done.stdout.splitlines()
    first, second, third = (line.split(" | ") for line in lines)
    assert first[0] == "| v5e:2x2/data=2,fsdp=2" and "all-gather" in first[5]
    assert second[:2] == [
        "| v9:4",
        "status 2: bert-jax: error: --topology=v9:4: "
        "unknown; such as " + topology.KNOWN,
    ]
    assert third[:3] == ["| h100:1", "4", "xla"] and third[5] == "none"
    plans = json.loads((tmp_path / "plans.json").read_text())
    assert plans["v5e:2x2/data=2,fsdp=2"]["mesh"]["fsdp"] == 2


@pytest.mark.slow
def test_too_large_for_a_tpu_is_mended_by_compiling():
    flags = ["--topology=v5e:2x2", "--config.model.hidden=256", "--batch=16384"]
    done = run(*flags, "--json", "--config.model.layers=12")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert not result["fits"] and result["hbm_used_bytes"] > result["hbm_bytes"]
    mended = result["remedy"]
    (field,) = mended["set"]
    assert field == "phases[1].accumulate" and mended["plan"]["fits"]


@pytest.mark.slow
def test_an_interrupt_ends_it_inside_a_compile():
    words = [sys.executable, "-m", "bert_jax", *COMMAND[:1]]
    words += [f"--config={ROOT}/configs/bert_large.py", "--topology=v5e:4x4"]
    with subprocess.Popen(
        words, cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert "compiling" in process.stderr.readline()
        time.sleep(5)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == -signal.SIGINT
        assert "Traceback" not in process.stderr.read()
