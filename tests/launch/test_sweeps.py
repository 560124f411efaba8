"""Sweeps as SLURM arrays and as JobSets; SLURM itself is in test_slurm.py."""

import shlex
import sys
from pathlib import Path

import pytest
import yaml

from bert_jax.__main__ import main
from tests.cli import corpus

ROOT = Path(__file__).parents[2]
FLAGS = (
    "--config=bert_tiny:smoke",
    "--vary=tokenizer.kind=bpe,wordpiece",
    "--seeds=2",
)
DONE = '{"steps": 8, "eval_mlm_loss": 2.5, "seconds": 1.0}'
STAND_IN = """#!{python}
import os, pathlib, sys
folder = pathlib.Path({folder!r})
with open(folder / "said.txt", "a") as file:
    print(*sys.argv[1:], os.environ.get("PYTHON"), sep="\\n", file=file)
if "refused" in " ".join(sys.argv):
    sys.exit("no such partition")
print((folder / "answer.txt").read_text())
"""


@pytest.fixture
def sweep(tmp_path, monkeypatch, capfd):
    """Sweeps in tmp_path/out; returns exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    text = corpus.write(tmp_path / "text.txt")
    first = tmp_path / "out/kind=bpe/seed=0"
    first.mkdir(parents=True)
    (first / "summary.json").write_text(DONE)

    def run(*flags):
        own = f"--config.data.source={text}", f"--workdir={tmp_path / 'out'}"
        return main(["sweep", *FLAGS, *own, *flags]), *capfd.readouterr()

    return run


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Programs in place of SLURM's; a function that returns what each was told."""
    for name, answer in (("sbatch", "77;cluster"), ("squeue", "")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "answer.txt").write_text(answer)
        text = STAND_IN.format(python=sys.executable, folder=str(folder))
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.delenv("PYTHON", raising=False)

    def told(name):
        return (tmp_path / name / "said.txt").read_text().splitlines()

    return told


def test_an_array_has_a_task_for_each_trial_left(sweep, slurm, tmp_path):
    status, told, said = sweep("--on=slurm --partition=gpu --gres=gpu:8", "--jobs=2")
    assert status == 0 and told == "submitted job 77: 3 of 4 trials\n"
    *words, python = slurm("sbatch")
    assert "--array=1,2,3%2" in words and python == sys.executable
    assert {"--partition=gpu", "--gres=gpu:8"} < set(words)
    end = words.index(str(ROOT / "launch/slurm.sbatch"))
    lines = Path(words[end + 1].removeprefix("--lines=")).read_text().splitlines()
    assert lines == [
        f"--only=kind={kind}/seed={seed}"
        for seed in (0, 1)
        for kind in ("bpe", "wordpiece")
    ]
    command = words[end + 2 :]
    assert command[0] == "sweep" and set(FLAGS) < set(command)
    assert not any(w.startswith(("--on", "--jobs")) for w in command)
    name = next(word for word in words if word.startswith("--job-name="))
    assert name.removeprefix("--job-") in " ".join(slurm("squeue"))
    table = shlex.split(said.splitlines()[-1].partition("bert-jax ")[2])
    assert table == [*command, "--table"] and main(table) == 0


def test_a_sweep_in_the_queue_is_not_submitted_again(sweep, slurm, tmp_path):
    (tmp_path / "squeue/answer.txt").write_text("41\n41")
    status, _, said = sweep("--on=slurm")
    assert status == 2 and "scancel 41" in said
    assert not (tmp_path / "sbatch/said.txt").exists()


def test_what_slurm_says_is_passed_on(sweep, slurm):
    status, _, said = sweep("--on=slurm --partition=refused")
    assert status == 2 and "sbatch refuses: no such partition" in said


def test_without_slurm_it_is_said(sweep, monkeypatch):
    monkeypatch.setenv("PATH", "")
    status, _, said = sweep("--on=slurm")
    assert status == 2 and "there is no sbatch" in said


JOBSET = "--on=jobset --topology=v6e:4x4 --image=gcr.io/me/bert --claim=runs:/runs"


def test_a_jobset_for_each_trial_left(sweep):
    status, told, said = sweep(JOBSET)
    assert status == 0 and "--table" in said
    documents = list(yaml.safe_load_all(told))
    names = [document["metadata"]["name"] for document in documents]
    assert len(set(names)) == 3
    assert [name.partition("-")[2][9:] for name in names] == [
        "kind-wordpiece-seed-0",
        "kind-bpe-seed-1",
        "kind-wordpiece-seed-1",
    ]
    (job,) = documents[0]["spec"]["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    words = container["command"]
    assert words[:4] == ["python", "-m", "bert_jax", "sweep"]
    assert words[-1] == "--only=kind=wordpiece/seed=0"
    assert {"name": "claim", "mountPath": "/runs"} in container["volumeMounts"]
    assert list(yaml.safe_load_all(sweep(JOBSET)[1])) == documents
    assert sweep(JOBSET, "--vary=data.text_key=" + "x" * 60 + ",y")[0] == 0


def test_a_jobset_that_cannot_be_is_said(sweep):
    status, told, said = sweep("--on=jobset --topology=v6e:4x4")
    assert status == 2 and not told and "--image" in said
    status, told, said = sweep(JOBSET, "--jobs=2")
    assert status == 2 and not told and "--jobs=2" in said
