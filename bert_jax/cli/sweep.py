"""`bert-jax sweep`: several settings and seeds, and one table of their scores."""

import argparse
import contextlib
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from bert_jax import cluster, grid, log, sweep
from bert_jax.cli.arguments import parse
from bert_jax.config import shipped
from bert_jax.errors import UserError

# The grid of Devlin et al. 2019, appendix A.3.
EXAMPLE = (
    "bert-jax sweep --config=glue:sst2 --config.init=runs/base \\\n"
    "    --config.task.train_file=train.tsv --config.task.dev_file=dev.tsv \\\n"
    "    --vary=optim.peak_rate=5e-5,3e-5,2e-5 --vary='phases[0].batch=16,32' \\\n"
    "    --vary=task.epochs=2,3,4 --seeds=3 --workdir=runs/sst2-sweep\n"
    "  bert-jax sweep --grid=table5:tiny --workdir=runs/table5"
)


def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--vary",
        metavar="FIELD=V1,V2,...",
        action="append",
        default=[],
        help="values of a config field; of several fields, all combinations",
    )
    add(
        "--grid",
        metavar="NAME[:SIZE]",
        help=f"shipped grid ({', '.join(shipped.names('configs/grids', '.toml'))}) or "
        ".toml file of named variants; with a SIZE it names its configs too, and "
        "--config.STAGE:a.b=VALUE is for one stage",
    )
    add(
        "--seeds",
        metavar="N",
        help="how many, from 0; or a list: 3,5,8 (default: the grid's or config's)",
    )
    add("--jobs", metavar="N", type=int, help="trials at a time (default here: 1)")
    add(
        "--on",
        metavar="PLACE",
        default="local",
        help="local, or 'slurm FLAGS' with flags of sbatch: submits what is left as an "
        "array; or 'jobset FLAGS' with flags of launch/gke.py: prints JobSets",
    )
    add("--only", metavar="TRIAL", help="run one trial, by its name, and exit")
    add("--table", action="store_true", help="make the table, and run nothing")


def main(argv: Sequence[str]) -> int:
    """Runs what is not finished yet, and keeps a table of what is."""
    about = "Train with several settings and seeds, and compare the scores."
    args = parse(argv, about, EXAMPLE, _options, remote_workdir=False, load=False)
    place, flags = _place(args.on)
    if not args.workdir:
        raise UserError("--workdir=DIR is missing: where the runs and the table go")
    if args.jobs is not None and args.jobs < 1:
        raise UserError(f"--jobs={args.jobs}: must be above 0")
    found = grid.read(args.grid) if args.grid else grid.Grid()
    if found.stages and args.config:
        raise UserError(f"--grid={args.grid} names its configs: leave out --config")
    if not (found.stages or args.config):
        grids = ", ".join(shipped.names("configs/grids", ".toml"))
        raise UserError(
            f"--config=NAME or --grid=NAME:SIZE is missing; shipped grids are {grids}"
        )
    cells = grid.expand(args.vary, found.axes)
    stages = found.stages or (grid.Stage("", args.config),)
    runs = sweep.Runs(Path(args.workdir), stages, tuple(args.overrides))
    text = args.seeds or found.seeds
    seeds = grid.seeds(text) if text else [runs.own_seed()]
    # Each seed fills the whole table before the next one begins.
    trials = [grid.Trial(cell, seed) for seed in seeds for cell in cells]
    if args.only is not None:
        return _only(args.only, trials, runs)
    sweep.check(runs, cells, seeds)
    work = _Work(found.title, runs, cells, trials)
    work.tabulate()  # says at once if the directory cannot be written to
    left = [] if args.table else work.left
    if left and place != "local":
        words = _words(args)
        parts = trials, left, words, flags, runs.root, args.jobs
        cluster.PLACES[place](cluster.Order(*parts))
        table = shlex.join(["bert-jax", *words, "--table"])
        _tell(f"when they have ended, this makes the table: {table}")
        return 0
    stopped = sweep.execute(
        left, runs.commands, runs.root, args.jobs or 1, _tell, work.ended
    )
    work.show(args.json)
    if stopped:
        _tell("interrupted; the same command goes on")
        return 128 + stopped
    if work.failed:
        _tell(f"failed: {', '.join(work.failed)}; the same command tries again")
    return 2 if 2 in work.failed.values() else 1 if work.failed else 0


def _tell(text: str) -> None:
    print(f"sweep: {text}", file=sys.stderr, flush=True)


def _place(text: str) -> tuple[str, list[str]]:
    """Where to run, and the flags of what starts it there."""
    with contextlib.suppress(ValueError):  # a quote that is not closed, or no word
        place, *flags = shlex.split(text)
        if place in cluster.PLACES or (place == "local" and not flags):
            return place, flags
    raise UserError(f"--on={text}: needs local, 'slurm FLAGS' or 'jobset FLAGS'")


def _only(name: str, trials: Sequence[grid.Trial], runs: sweep.Runs) -> int:
    """Becomes the commands of one trial."""
    found = [trial for trial in trials if trial.name == name]
    if not found:
        names = ", ".join(trial.name for trial in trials)
        raise UserError(f"--only={name}: no such trial; there are {names}")
    if commands := runs.commands(found[0]):
        program = sweep.script(commands)
        os.execvp(program[0], program)
    _tell(f"{name} is finished already")
    return 0


def _words(args: argparse.Namespace) -> list[str]:
    """The command line, without where and how it runs."""
    given = {"grid": args.grid, "config": args.config_file, "seeds": args.seeds}
    given["workdir"] = args.workdir
    return [
        "sweep",
        *(f"--{flag}={value}" for flag, value in given.items() if value),
        *(f"--vary={text}" for text in args.vary),
        *(f"--config.{text}" for text in args.overrides),
    ]


class _Work:
    """What is left to do, what failed, and the table of the rest."""

    def __init__(
        self,
        title: str,
        runs: sweep.Runs,
        cells: Sequence[grid.Cell],
        trials: Sequence[grid.Trial],
    ):
        self.title, self.runs, self.cells, self.trials = title, runs, cells, trials
        stages = len(runs.stages)
        self.left = [t for t in trials if len(sweep.read(t, runs)) < stages]
        self.undone, self.failed = len(self.left), {}
        if done := len(trials) - self.undone:
            _tell(f"{done} of {len(trials)} trials are finished already")

    def ended(self, trial: grid.Trial, status: int, seconds: float) -> None:
        """Takes note of how a trial ended."""
        self.undone -= 1
        left = f"{seconds:.0f} s; {self.undone} left"
        found = sweep.read(trial, self.runs)
        if len(found) == len(self.runs.stages) and not status:
            scores = ", ".join(
                f"{one['stage']} {one['metric']}".strip() + f" {one['score']:.4f}"
                for one in found
            )
            _tell(f"{trial.name} ends: {scores}, {left}")
            self.tabulate()
            return
        self.failed[trial.name] = status
        log_file = self.runs.root / trial.name / "log.txt"
        lines = log_file.read_text("utf-8", "replace").splitlines()[-5:]
        last = "".join(f"\n    {line}" for line in lines)
        _tell(f"{trial.name} failed, exit status {status}; {left}{last}")

    def tabulate(self) -> list[dict]:
        """Writes the table of what is finished; returns its rows."""
        found = [line for trial in self.trials for line in sweep.read(trial, self.runs)]
        rows = sweep.summarize(self.cells, self.runs, found)
        title = f"{self.title}\n\n" if self.title else ""
        files = {
            "results.md": title + sweep.markdown(rows),
            "results.csv": sweep.to_csv(rows),
            "runs.csv": sweep.to_csv(found),
        }
        for name, text in files.items():
            log.write_text(self.runs.root / name, text)
        return rows

    def show(self, as_json: bool) -> None:
        """Prints the table."""
        rows = self.tabulate()
        if as_json:
            print(log.to_json({"cells": rows, "failed": self.failed}))
            return
        where = f"in {self.runs.root}: results.md, results.csv; runs.csv has every run"
        print((self.runs.root / "results.md").read_text("utf-8") + where)
