"""Trials of a sweep elsewhere: as a SLURM array, or as JobSets for Kubernetes.

Both run `sweep --only=TRIAL` by the launchers of the repository's launch/ folder.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import xxhash

from bert_jax import log
from bert_jax.errors import UserError
from bert_jax.grid import Trial


def slurm(
    trials: Sequence[Trial],
    left: Sequence[Trial],
    words: Sequence[str],
    flags: Sequence[str],
    root: Path,
    jobs: int | None,
) -> None:
    """Submits an array with a task for each trial that is left.

    Args:
      trials: all of them; a task's number is the place in this list.
      left: those to be run.
      words: of the sweep, after `bert-jax`.
      flags: of sbatch.
      root: of the sweep; it has to be where all nodes can reach it.
      jobs: how many run at a time; None is any number.

    Raises:
      UserError: SLURM is not there or refuses, or has trials of this sweep already.
    """
    script = _launcher("slurm.sbatch")
    if not shutil.which("sbatch"):
        raise UserError("--on=slurm: there is no sbatch on this machine")
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


def jobset(
    trials: Sequence[Trial],
    left: Sequence[Trial],
    words: Sequence[str],
    flags: Sequence[str],
    root: Path,
    jobs: int | None,
) -> None:
    """Prints a JobSet for each trial that is left, to be applied; see `slurm`.

    Raises:
      UserError: launch/gke.py refuses, or `jobs` is set.
    """
    script, manifests = _launcher("gke.py"), []
    if jobs:
        raise UserError(f"--jobs={jobs}: the cluster decides how many JobSets run")
    for trial in left:
        # Labels of RFC 1123, told apart where they are alike after that or too long.
        plain = re.sub("[^a-z0-9]+", "-", trial.name.lower())[-28:].strip("-")
        name = f"sweep-{_digest(f'{root}/{trial.name}')}-{plain}"
        command = [sys.executable, script, f"--name={name}", *flags, "--", *words]
        manifests.append(_output([*command, f"--only={trial.name}"]))
    print("\n---\n".join(manifests))


PLACES = {"slurm": slurm, "jobset": jobset}


def _launcher(name: str) -> str:
    path = Path("launch", name)
    if not path.is_file():
        raise UserError(f"{path}: not here; start in the root of the repository")
    return str(path)


def _digest(text: str) -> str:
    return xxhash.xxh3_64_hexdigest(text.encode())[:8]


def _output(command: Sequence[str], environment: Mapping[str, str] = os.environ) -> str:
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise UserError(f"{command[0]} refuses: {result.stderr.strip()}")
    return result.stdout.strip()
