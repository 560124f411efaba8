"""Sweeps: what they run, what stops them, and the table that they leave."""

import csv
import fcntl
import io
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax import grid, sweep
from bert_jax.__main__ import main
from tests import random_run
from tests.cli import corpus

ROOT = Path(__file__).parents[2]
VALUES = st.integers(-999, 999) | st.text("x/.%=ä", max_size=3)
FIELDS = st.dictionaries(
    st.sampled_from(["c", "a.c", "b.c", "a.d"]),
    st.lists(VALUES, min_size=1, max_size=3, unique=True),
    max_size=3,
)
VARIANTS = st.dictionaries(
    st.text("x/.%=,ä ", min_size=1, max_size=3),
    st.sampled_from([[], ["f=1"], ["f=1", "g=2"]]),
    max_size=3,
)


def _flags(fields):
    return [f"{field}={','.join(map(str, v))}" for field, v in fields.items()]


def _axes(variants):
    return {"variant": variants} if variants else {}


@settings(max_examples=40)
@given(FIELDS, VARIANTS)
def test_a_grid_is_complete_and_its_names_are_good(fields, variants):
    cells = grid.expand(_flags(fields), _axes(variants))
    pairs = [[f"{f}={v}" for v in values] for f, values in sorted(fields.items())]
    wanted = [
        (*own, *chosen)
        for own in (variants.values() if variants else [[]])
        for chosen in itertools.product(*pairs)
    ]
    assert sorted(cell.overrides for cell in cells) == sorted(wanted)
    names = [cell.name for cell in cells]
    assert len(set(names)) == len(names)
    assert not any(re.search(r"[/ ]|^\.", name) for name in names)
    assert len({tuple(cell.settings.items()) for cell in cells}) == len(cells)


@settings(max_examples=40)
@given(FIELDS, VARIANTS, st.randoms())
def test_names_stay_when_the_grid_changes(fields, variants, random):
    before = {c.name: c.overrides for c in grid.expand(_flags(fields), _axes(variants))}
    flags = _flags({f: random.sample(v, len(v)) for f, v in fields.items()})
    random.shuffle(flags)
    more = {**variants, "one more": []} if variants else variants
    after = {c.name: c.overrides for c in grid.expand(flags, _axes(more))}
    assert before.items() <= after.items()


@pytest.mark.parametrize(
    ("vary", "name"),
    [
        (["optim.peak_rate=0.00005"], "peak_rate=5e-05"),
        (["phases[0].batch=16", "optim.peak_rate=5e-5"], "peak_rate=5e-05,batch=16"),
        (["phases[1].batch=16", "phases[0].batch=8"], "phases[0].batch=8,phases[1]"),
        (["init=runs/a"], "init=runs%2Fa"),
    ],
)
def test_names_are_short_and_tell_the_values(vary, name):
    assert grid.expand(vary, {})[0].name.startswith(name)


RUNS = sweep.Runs(Path("runs"), (grid.Stage("", "config.py"),))


def _result(cell, seed, score, metric):
    speed = {"seconds": seed + 1.0, "examples_per_second": None}
    found = {"metric": metric, "score": score, "best_step": 1, **speed}
    path = grid.Trial(cell, seed).name
    return {**cell.settings, "seed": seed, **found, "path": path}


@given(
    st.lists(st.lists(st.floats(-1, 9), max_size=4), min_size=1, max_size=4),
    st.sampled_from(["f1", "eval_mlm_loss"]),
)
def test_the_table_is_that_of_numpy(scores, metric):
    cells = grid.expand([f"steps={','.join(map(str, range(len(scores))))}"], {})
    results = [
        _result(cell, seed, score, metric)
        for cell, own in zip(cells, scores, strict=True)
        for seed, score in enumerate(own)
    ]
    rows = sweep.summarize(cells, RUNS, results)
    best = np.min if metric == "eval_mlm_loss" else np.max
    for row in rows:
        own = scores[int(row["settings"]["steps"])]
        assert row["n"] == len(own)
        if own:
            assert row["mean"] == pytest.approx(np.mean(own))
            assert row["best"] == best(own) == own[row["best_seed"]]
            assert row["seconds"] == pytest.approx(np.mean(range(1, len(own) + 1)))
        if len(own) > 1:
            assert row["std"] == pytest.approx(np.std(own, ddof=1))
    means = [row["mean"] for row in rows if row["n"]]
    assert means == sorted(means, reverse=best is np.max)
    assert [row["n"] > 0 for row in rows] == sorted([bool(s) for s in scores])[::-1]
    lines = sweep.markdown(rows).splitlines()
    assert len({len(line) for line in lines}) == 1 and len(lines) == len(rows) + 2
    assert ["±" in line for line in lines[2:]] == [row["n"] > 1 for row in rows]
    read = list(csv.DictReader(io.StringIO(sweep.to_csv(results))))
    assert [float(line["score"]) for line in read] == list(itertools.chain(*scores))


def _execute(folder, code, jobs=1, seeds=2):
    """Runs Python code for some trials; what was told, and how each ended."""
    trials = [grid.Trial(c, s) for s in range(seeds) for c in grid.expand([], {})]
    told, statuses = [], {}

    def ended(trial, status, seconds):
        statuses[trial.seed] = status

    def commands(trial):
        return [[sys.executable, "-c", code, str(trial.seed)]]

    stopped = sweep.execute(trials, commands, folder, jobs, told.append, ended)
    return stopped, statuses, "\n".join(told)


def test_runs_at_a_time_share_the_cores(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("XLA_FLAGS")  # of the tests: eight devices
    code = """
import json, os, jax
from bert_jax.distributed import use_all_cores
use_all_cores()
print(json.dumps([jax.device_count(), *os.sched_getaffinity(0)]))
"""
    cores = os.sched_getaffinity(0)
    assert _execute(tmp_path, code, min(2, len(cores)))[1] == {0: 0, 1: 0}
    texts = [(tmp_path / f"seed={i}" / "log.txt").read_text() for i in range(2)]
    assert all(text.startswith(f"$ {sys.executable} -c") for text in texts)
    found = [json.loads(text.splitlines()[-1]) for text in texts]
    for devices, *own in found:
        assert devices <= len(own) < 2 * devices
    if len(cores) > 1:
        assert sorted([*found[0][1:], *found[1][1:]]) == sorted(cores)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_runs_and_begins_no_other(tmp_path, number):
    def interrupt():
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    thread = threading.Thread(target=interrupt)
    thread.start()
    code = f"""
import pathlib, signal, sys, time
def end(*_):
    print("ends in peace", flush=True)
    sys.exit(3)
signal.signal({number:d}, end)
pathlib.Path({str(tmp_path / "ready")!r}).touch()
time.sleep(60)
"""
    stopped, statuses, told = _execute(tmp_path, code)
    thread.join()
    assert (stopped, statuses) == (number, {})
    assert "seed=0 was stopped" in told
    assert "ends in peace" in (tmp_path / "seed=0" / "log.txt").read_text()
    assert not (tmp_path / "seed=1").exists()
    assert signal.getsignal(number) is before


def test_a_run_left_behind_is_waited_for(tmp_path):
    (tmp_path / "seed=0").mkdir()
    with (tmp_path / "seed=0" / "log.txt").open("w") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        timer = threading.Timer(0.5, lambda: fcntl.flock(log, fcntl.LOCK_UN))
        timer.start()
        _, statuses, told = _execute(tmp_path, "pass")
        timer.join()
    assert statuses == {0: 0, 1: 0}
    assert told.count("another process") == 1


# In place of Python: "trains" at once, and fails where its rate or seed is odd.
STAND_IN = """#!{python}
import json, pathlib, sys
assert sys.argv[1:4] == ["-m", "bert_jax", "train"], sys.argv
flags = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[4:])
rate = float(flags.get("config.optim.peak_rate", "0.5"))
seed = int(flags["config.seed"])
print("about to learn")
if rate >= 1:
    sys.exit(int(rate))
summary = dict(steps=9, seconds=2.0)
if "bert_tiny" in flags["config"]:
    summary.update(eval_mlm_loss=3 - rate)
else:
    summary.update(best_step=6, score=rate + seed / 100, score_name="accuracy")
    summary.update(examples_per_second=20.0)
pathlib.Path(flags["workdir"]).mkdir(parents=True, exist_ok=True)
pathlib.Path(flags["workdir"], "summary.json").write_text(json.dumps(summary))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A vocabulary and labelled texts."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "vocab.txt").write_text("\n".join(random_run.WORDS) + "\n")
    rows = [f"w{4 + i % 2} w{i % 50}\t{('yes', 'no')[i % 2]}\n" for i in range(32)]
    (folder / "texts.tsv").write_text("text\tlabel\n" + "".join(rows))
    return folder


def _command(files, *flags):
    config = {f"task.{name}_file": files / "texts.tsv" for name in ("train", "dev")}
    config["tokenizer.path"] = files / "vocab.txt"
    given = [f"--config.{name}={value}" for name, value in config.items()]
    return ["sweep", f"--config={ROOT / 'configs/glue.py:smoke'}", *given, *flags]


@pytest.fixture
def sweeps(files, tmp_path, monkeypatch, capfd):
    """Sweeps of stand-ins: returns exit status, stdout and stderr."""
    program = tmp_path / "python"
    program.write_text(STAND_IN.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))

    def run(*flags):
        own = any(flag.startswith("--workdir") for flag in flags)
        where = [] if own else [f"--workdir={tmp_path / 'out'}"]
        status = main(_command(files, *where, *flags))
        return status, *capfd.readouterr()

    return run


def test_a_sweep_goes_on_where_it_stopped(sweeps, tmp_path):
    vary, out = "--vary=optim.peak_rate=1e-2,0.02", tmp_path / "out"
    status, told, said = sweeps(vary, "--json")
    assert status == 0
    assert "sweep: peak_rate=0.01/seed=0 begins\n" in said
    assert "peak_rate=0.02/seed=0 ends: accuracy 0.0200, " in said
    assert said.rstrip().endswith("0 left")
    result = json.loads(told.splitlines()[-1])
    rates = [cell["settings"]["optim.peak_rate"] for cell in result["cells"]]
    assert rates == ["0.02", "0.01"] and result["failed"] == {}
    status, told, said = sweeps(vary, "--seeds=0,2")
    assert status == 0
    assert "2 of 4 trials are finished already" in said and said.count("begins") == 2
    assert (out / "results.md").read_text() in told
    assert "0.0300 ± 0.0141 | 0.0400 (seed 2)" in told
    rows = list(csv.DictReader(io.StringIO((out / "runs.csv").read_text())))
    assert [row["path"] for row in rows] == [
        f"peak_rate={rate}/seed={seed}" for seed in (0, 2) for rate in ("0.01", "0.02")
    ]
    before = [(out / row["path"] / "log.txt").read_text() for row in rows]
    status, told, said = sweeps(vary, "--seeds=0,2")
    assert status == 0 and "4 of 4" in said and "begins" not in said
    assert before == [(out / row["path"] / "log.txt").read_text() for row in rows]


@pytest.mark.parametrize(("codes", "status"), [("1", 1), ("1,2", 2)])
def test_a_failing_run_stops_no_other(sweeps, tmp_path, codes, status):
    names = {**{code: code for code in codes.split(",")}, "good/one": "0.5"}
    lines = [f'"{name}" = ["optim.peak_rate={own}"]' for name, own in names.items()]
    (tmp_path / "grid.toml").write_text("\n".join(["[variants]", *lines]))
    flags = f"--grid={tmp_path / 'grid.toml'}", "--seeds=2", "--jobs=3"
    found, told, said = sweeps(*flags)
    assert found == status
    assert "1/seed=0 failed, exit status 1; " in said and "    about to learn" in said
    assert "failed: " in said.splitlines()[-1] and "1/seed=1" in said.splitlines()[-1]
    assert told.splitlines()[2].startswith("| good/one | 2 | 0.5050 ± 0.0071 ")
    assert (tmp_path / "out" / "good%2Fone" / "seed=1" / "summary.json").exists()
    assert len((tmp_path / "out" / "runs.csv").read_text().splitlines()) == 3


RATE = "--vary=optim.peak_rate=0.1"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--vary=optim.peak_rat=1", "--vary=step=2"], ["'peak_rate'?", "'steps'?"]),
        ([RATE + ",x"], ["peak_rate=x: ", "needs a number"]),
        ([RATE + ",-1", "--vary=steps=1,0"], ["peak_rate=-1.0", "steps=0: must"]),
        ([RATE + ",1e-1"], ["twice"]),
        ([RATE, RATE], ["optim.peak_rate", "into one"]),
        (["--vary=optim.peak_rate"], ["--vary=optim.peak_rate=VALUE"]),
        (["--vary=seed=1,2"], ["--seeds"]),
        (["--vary=optim.bias_correction=true,1"], ["the same settings as"]),
        (["--vary=task.train_file=no.tsv"], ["no.tsv"]),
        (["--vary=init=" + "x" * 300], ["x" * 300]),
        ([RATE, "--seeds=x"], ["--seeds=x"]),
        ([RATE, "--seeds=0"], ["--seeds=0"]),
        ([RATE, "--seeds=1,1"], ["--seeds=1,1"]),
        ([RATE, "--jobs=0"], ["--jobs=0"]),
        ([RATE, "--workdir="], ["--workdir"]),
        (["--grid=none.toml"], ["none.toml"]),
        ([RATE, "--workdir=/dev/null/x"], ["/dev/null/x"]),
    ],
)
def test_bad_input_is_one_message_before_the_first_run(sweeps, tmp_path, flags, words):
    status, _, said = sweeps(*flags)
    assert status == 2 and "begins" not in said and "Traceback" not in said
    assert said.count("bert-jax: error:") == 1
    assert all(word in said for word in words), said
    assert not list((tmp_path / "out").glob("*/seed=0"))


STAGES = """
title = "Rates"
[variants]
low = ["learn:optim.peak_rate=0.1"]
high = ["learn:optim.peak_rate=RATE"]
split = ["tokenizer.kind=bpe"]
[tiny.pretrain]
config = "configs/bert_tiny.py:smoke"
set = ["data.source=TEXT", "task.epochs=3"]
[tiny.learn]
config = "configs/glue.py:smoke"
set = ["task.train_file=TEXTS", "task.dev_file=TEXTS"]
"""


@pytest.fixture
def stages(sweeps, files, tmp_path, monkeypatch, capfd):
    """Sweeps of two stages; `rate` is that of the variant `high`."""
    monkeypatch.chdir(ROOT)

    def run(*flags, rate="0.2", source=files / "texts.tsv", text=STAGES):
        text = text.replace("TEXTS", str(source)).replace("RATE", rate)
        text = text.replace("TEXT", str(corpus.write(tmp_path / "text.txt")))
        (tmp_path / "grid.toml").write_text(text)
        out = f"--workdir={tmp_path / 'out'}"
        status = main(["sweep", f"--grid={tmp_path / 'grid.toml'}:tiny", out, *flags])
        return status, *capfd.readouterr()

    return run


def _flags_of(folder):
    """The train commands in a trial's log, each as a dict."""
    lines = (folder / "log.txt").read_text().splitlines()
    words = [shlex.split(line)[5:] for line in lines if line.startswith("$")]
    return [dict(w.removeprefix("--").split("=", 1) for w in one) for one in words]


def test_stages_follow_each_other(stages, tmp_path):
    out = tmp_path / "out"
    status, told, said = stages("--seeds=2", rate="2")
    assert status == 2 and "high/seed=0 failed, exit status 2" in said
    first, second = _flags_of(out / "low/seed=1")
    assert first["workdir"] == str(out / "low/seed=1/pretrain")
    assert second["config.init"] == first["workdir"] and "config.init" not in first
    assert second["config.optim.peak_rate"] == "0.1" and second["config.seed"] == "1"
    assert "config.optim.peak_rate" not in first
    stores = {
        name: _flags_of(out / name)[0]["config.data.store"]
        for name in ("low/seed=0", "low/seed=1", "high/seed=0", "split/seed=0")
    }
    assert Path(stores["low/seed=0"]).parent == out / "store"
    assert stores["low/seed=0"] == stores["low/seed=1"] == stores["high/seed=0"]
    assert stores["split/seed=0"] != stores["low/seed=0"]
    status, told, said = stages("--seeds=2")
    assert status == 0 and "4 of 6 trials are finished" in said
    assert [len(_flags_of(out / f"high/seed={i}")) for i in (0, 1)] == [3, 3]
    table = (out / "results.md").read_text()
    assert table in told and table.startswith("Rates\n\n| variant | pretrain: eval_mlm")
    assert re.search(
        r"\| low +\| 2.5000 ± 0.0000 \(2\) +\| 0.1050 ± 0.0071 \(2\)", table
    )
    rows = list(csv.DictReader(io.StringIO((out / "results.csv").read_text())))
    assert [(row["variant"], row["stage"], row["n"]) for row in rows] == [
        (variant, stage, "2")
        for variant in ("low", "high", "split")
        for stage in ("pretrain", "learn")
    ]
    assert {"metric", "mean", "std"} < set(rows[0])
    runs = list(csv.DictReader(io.StringIO((out / "runs.csv").read_text())))
    assert len(runs) == 12 and runs[1]["path"] == "low/seed=0/learn"


def test_the_table_alone_runs_nothing(stages, tmp_path):
    status, told, said = stages("--table", "--config.learn:task.epochs=1")
    assert status == 0 and "begins" not in said and told.count(" (0) ") == 6
    assert not list((tmp_path / "out").glob("*/seed=0"))


def test_every_fault_is_listed_with_its_variant(stages):
    text = (
        STAGES
        + """
[tiny.variants]
low = ["learn:optim.peak_rat=1", "model.layers=0"]
Low = ["learn:optim.peak_rate=0.1"]
twin = ["learn:optim.peak_rate=1e-1"]
lost = ["lern:optim.peak_rate=0.3"]
long = ["learn:phases[0].length=65", "pretrain:model.positions=64"]
ok = []
"""
    )
    status, _, said = stages(text=text, source="none.tsv")
    assert status == 2 and "begins" not in said and "Traceback" not in said
    for words in (
        "low/learn: --config.optim.peak_rat: no such field",
        "low/pretrain: the config has these faults",
        "Low: has the same directory as low",
        "lost/pretrain and 1 more: --config.lern:optim",
        "did you mean 'learn'?",
        "config.phases[0].length=65: longer than config.model.positions=64",
        "none.tsv",
    ):
        assert words in said, said
    _, _, said = stages(text=text)
    assert "twin: has the same settings as Low" in said and "ok" not in said


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--config=configs/glue.py"], ["leave out --config"]),
        (["--only=low/seed=9"], ["low/seed=9", "low/seed=0"]),
        (["--on=moon"], ["--on=moon", "slurm"]),
        (["--on=local --fast"], ["--on=local --fast"]),
        (["--on=slurm 'x"], ["--on=slurm 'x"]),
        (["--config.lern:steps=1"], ["no stage 'lern'", "'learn'?"]),
        (["--config.data.source=none.txt"], ["none.txt"]),
        (
            ["--config.pretrain:data.source=none.txt", "--config.task.text_column=txt"],
            ["pretrain and 2 more: config.data.source=none.txt", "'txt'"],
        ),
        (
            ["--config.pretrain:stepz=1", "--config.learn:optim.peak_rat=1"],
            ["'steps'", "'peak_rate'"],
        ),
    ],
)
def test_bad_flags_of_a_grid_are_one_message(stages, flags, words):
    status, _, said = stages(*flags)
    assert status == 2 and "begins" not in said and "Traceback" not in said
    assert all(word in said for word in words), said


def test_one_trial_alone(stages, tmp_path, monkeypatch):
    def become(program, words):
        subprocess.run(words, check=True)

    monkeypatch.setattr(os, "execvp", become)
    out = tmp_path / "out"
    assert stages("--only=low/seed=0")[0] == 0
    found = sorted(path.parent for path in out.rglob("summary.json"))
    assert found == [out / "low/seed=0/learn", out / "low/seed=0/pretrain"]
    assert "finished already" in stages("--only=low/seed=0")[2]


@pytest.mark.slow
def test_a_killed_sweep_is_continued(files, tmp_path, capfd, monkeypatch):
    flags = [f"--workdir={tmp_path / 'out'}", "--config.task.epochs=1"]
    flags += ["--config.optim.clip_norm=0", "--vary=optim.peak_rate=1e-3,1e30"]
    command, good = _command(files, *flags), "peak_rate=0.001/seed=0"
    monkeypatch.chdir(ROOT)
    process = subprocess.Popen([sys.executable, "-m", "bert_jax", *command])
    deadline = time.monotonic() + 300
    while not (tmp_path / "out" / good / "config.json").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait(60)
    assert main([*command, "--json"]) == 2  # as does the run with a rate of 1e30
    told, said = capfd.readouterr()
    assert f"{good} runs already" in said and f"{good} ends: accuracy" in said
    assert "Try a lower --config.optim.peak_rate" in said
    result = json.loads(told.splitlines()[-1])
    assert [cell["n"] for cell in result["cells"]] == [1, 0]
    assert result["failed"] == {"peak_rate=1e+30/seed=0": 2}
    assert main([*command, "--config.model.layers=3"]) == 2
    assert "belongs to a run with another config" in capfd.readouterr().err
