"""Trials of a sweep elsewhere: as a SLURM array, or as JobSets for Kubernetes.

Both run `sweep --only=TRIAL` with the launchers of the shipped folder `launch`.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import xxhash

from bert_jax import log
from bert_jax.config import shipped
from bert_jax.errors import UserError
from bert_jax.grid import Trial


class Order(NamedTuple):
    """What is to be run elsewhere."""

    trials: Sequence[Trial]  # all of them
    left: Sequence[Trial]  # those to be run
    words: Sequence[str]  # of the sweep, after `bert-jax`
    flags: Sequence[str]  # of the launcher
    root: Path  # of the sweep; it has to be where all nodes can reach it
    jobs: int | None  # that run at a time; None is any number


def slurm(order: Order) -> None:
    """Submits an array with a task for each trial that is left.

    A task's number is the place of its trial among all.

    Raises:
      UserError: SLURM is not there or refuses, or has trials of this sweep already.
    """
    trials, left, words, flags, root, jobs = order
    script = str(shipped.folder("launch") / "slurm.sbatch")
    if not shutil.which("sbatch"):
        raise UserError(
            "--on=slurm: there is no sbatch on this machine; submit where SLURM is, or "
            "leave out --on"
        )
    name = f"sweep-{_digest(str(root.resolve()))}"
    if queued := _output(["squeue", "--noheader", "--format=%F", f"--name={name}"]):
        job = queued.split()[0]
        raise UserError(
            f"--on=slurm: job {job} of this sweep is in the queue; wait for it, or "
            f"end it with `scancel {job}`"
        )
    lines = "".join(shlex.join([f"--only={trial.name}"]) + "\n" for trial in trials)
    # Tasks that wait keep their lines when the sweep grows and is submitted again.
    file = root / "slurm" / f"{_digest(lines)}.txt"
    log.write_text(file, lines)
    tasks = ",".join(str(trials.index(trial)) for trial in left)
    array = f"--array={tasks}" + (f"%{jobs}" if jobs else "")
    own = [f"--job-name={name}", array, f"--output={file.parent}/%A_%a.log"]
    command = ["sbatch", "--parsable", *own, *flags, script, f"--lines={file}", *words]
    # The nodes use this Python, unless another one is named.
    job = _output(command, {"PYTHON": sys.executable, **os.environ})
    print(f"submitted job {job.split(';')[0]}: {len(left)} of {len(trials)} trials")


def jobset(order: Order) -> None:
    """Prints a JobSet for each trial that is left, to be applied.

    Raises:
      UserError: launch/gke.py refuses, or `jobs` is set.
    """
    script, manifests = str(shipped.folder("launch") / "gke.py"), []
    _, left, words, flags, root, jobs = order
    if jobs:
        raise UserError(
            f"--jobs={jobs}: the cluster decides how many JobSets run; leave it out"
        )
    for trial in left:
        # Labels of RFC 1123, told apart where they are alike after that or too long.
        plain = re.sub("[^a-z0-9]+", "-", trial.name.lower())[-28:].strip("-")
        name = f"sweep-{_digest(f'{root}/{trial.name}')}-{plain}"
        command = [sys.executable, script, f"--name={name}", *flags, "--", *words]
        manifests.append(_output([*command, f"--only={trial.name}"]))
    print("\n---\n".join(manifests))


PLACES = {"slurm": slurm, "jobset": jobset}


def _digest(text: str) -> str:
    return xxhash.xxh3_64_hexdigest(text.encode())[:8]


def _output(command: Sequence[str], environment: Mapping[str, str] = os.environ) -> str:
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise UserError(f"{command[0]} refuses: {result.stderr.strip()}")
    return result.stdout.strip()
