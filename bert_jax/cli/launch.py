"""`bert-jax launch`: runs a command as several processes, or on a cluster."""

import difflib
import os
import shutil
import sys
from collections.abc import Sequence

from bert_jax.config import shipped
from bert_jax.errors import UserError

LAUNCHERS = {
    "local": "several processes of this machine",
    "slurm": "a SLURM job; the flags are those of sbatch",
    "tpu_pod": "a TPU pod slice, by gcloud",
    "gke": "prints a JobSet for GKE, to be applied with kubectl",
}
EXAMPLE = (
    "bert-jax launch local --processes=2 --devices=4 -- \\\n"
    "      train --config=bert_tiny:smoke --workdir=runs/two\n"
    "  bert-jax launch slurm --nodes=4 --gpus-per-node=8 --time=24:00:00 -- \\\n"
    "      train --config=bert_base --workdir=/shared/runs/base"
)


def main(argv: Sequence[str]) -> int:
    """Replace this process by a launcher.

    Args:
      argv: name of the launcher, its flags, `--` and the command to run.

    Returns:
      0 after `--help`, 2 without arguments.

    Raises:
      UserError: an unknown launcher, or one that cannot start here.
    """
    name, *words = argv or ["--help"]
    if name in ("-h", "--help"):
        print(_help())
        return 0 if argv else 2
    if name not in LAUNCHERS:
        near = difflib.get_close_matches(name, LAUNCHERS, 1, 0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"use {', '.join(LAUNCHERS)}"
        raise UserError(f"no launcher {name!r}; {hint}")
    command = _slurm(words) if name == "slurm" else _script(name, words)
    # The Python of SLURM's nodes, unless the user names another one.
    os.execvpe(command[0], command, {"PYTHON": sys.executable, **os.environ})


def _script(name: str, words: Sequence[str]) -> list[str]:
    """Return the command line of a launcher that reads its own flags."""
    shell = name == "tpu_pod"
    path = shipped.folder("launch") / f"{name}.{'sh' if shell else 'py'}"
    return ["bash" if shell else sys.executable, str(path), *words]


def _slurm(words: Sequence[str]) -> list[str]:
    """Return the command line of sbatch."""
    if "--" not in words:
        raise UserError(
            "launch slurm: put -- between the flags of sbatch and the command: "
            "launch slurm --nodes=2 -- train --config=..."
        )
    if not shutil.which("sbatch"):
        raise UserError("launch slurm: no sbatch here; submit where SLURM is")
    cut = list(words).index("--")
    script = str(shipped.folder("launch") / "slurm.sbatch")
    return ["sbatch", *words[:cut], script, *words[cut + 1 :]]


def _help() -> str:
    rows = "\n".join(f"  {name:10}{line}" for name, line in LAUNCHERS.items())
    return (
        "usage: bert-jax launch LAUNCHER [FLAGS] -- COMMAND [FLAGS]\n\n"
        "Run a command as several processes, or on a cluster.\n\n"
        f"{rows}\n\n"
        f"Guide: {shipped.folder('launch') / 'README.md'}\n\n"
        f"example:\n  {EXAMPLE}"
    )
