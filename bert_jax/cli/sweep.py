"""`bert-jax sweep`: several settings and seeds, and one table of their scores."""

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from bert_jax.cli.arguments import parse
from bert_jax.errors import UserError

# The grid of Devlin et al. 2019, appendix A.3.
EXAMPLE = (
    "bert-jax sweep --config=configs/glue.py:sst2 --config.init=runs/base \\\n"
    "    --config.task.train_file=train.tsv --config.task.dev_file=dev.tsv \\\n"
    "    --vary=optim.peak_rate=5e-5,3e-5,2e-5 --vary='phases[0].batch=16,32' \\\n"
    "    --vary=task.epochs=2,3,4 --seeds=3 --workdir=runs/sst2-sweep"
)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--vary",
        metavar="FIELD=V1,V2,...",
        action="append",
        default=[],
        help="values of a config field; of several fields, all combinations",
    )
    parser.add_argument(
        "--grid",
        metavar="FILE",
        help='a JSON object of named variants: {"NAME": ["FIELD=VALUE", ...], ...}',
    )
    parser.add_argument(
        "--seeds",
        metavar="N",
        help="how many, from 0; or a list: 3,5,8 (default: the config's own)",
    )
    parser.add_argument(
        "--jobs", metavar="N", type=int, default=1, help="runs at a time (default: 1)"
    )


def main(argv: Sequence[str]) -> int:
    """Runs what is not finished yet, and keeps a table of what is."""
    about = "Train with several settings and seeds, and compare the scores."
    args = parse(argv, about, EXAMPLE, _options, remote_workdir=False)
    if not args.workdir:
        raise UserError("--workdir=DIR is missing: where the runs and the table go")
    if args.jobs < 1:
        raise UserError(f"--jobs={args.jobs}: must be above 0")
    seeds = [args.config.seed] if args.seeds is None else _seeds(args.seeds)
    variants = _variants(args.grid) if args.grid else None
    from bert_jax import log, sweep

    root = Path(args.workdir)
    cells = sweep.expand(args.vary, variants)
    sweep.check(args.config_file, args.overrides, cells, seeds, root)
    # Each seed fills the whole table before the next one begins.
    trials = [sweep.Trial(cell, seed) for seed in seeds for cell in cells]
    left = [trial for trial in trials if sweep.read(trial, root) is None]
    undone, failed = len(left), {}

    def tell(text: str) -> None:
        print(f"sweep: {text}", file=sys.stderr, flush=True)

    def command(trial: sweep.Trial) -> list[str]:
        flags = [*args.overrides, *trial.cell.overrides, f"seed={trial.seed}"]
        program = [
            sys.executable,
            "-m",
            "bert_jax",
            "train",
            f"--config={args.config_file}",
        ]
        flags = [f"--config.{flag}" for flag in flags]
        return [*program, *flags, f"--workdir={root / trial.name}"]

    def tabulate() -> list[dict]:
        found = [result for trial in trials if (result := sweep.read(trial, root))]
        rows = sweep.summarize(cells, found)
        log.write_text(root / "results.md", sweep.markdown(rows))
        log.write_text(root / "results.csv", sweep.to_csv(found))
        return rows

    def ended(trial: sweep.Trial, status: int, seconds: float) -> None:
        nonlocal undone
        undone -= 1
        result = sweep.read(trial, root)
        if result and not status:
            score = f"{result['metric']} {result['score']:.4f}"
            tell(f"{trial.name} ends: {score}, {seconds:.0f} s; {undone} left")
            tabulate()
            return
        failed[trial.name] = status
        text = (root / trial.name / "log.txt").read_text("utf-8", "replace")
        last = "".join(f"\n    {line}" for line in text.splitlines()[-5:])
        tell(f"{trial.name} failed, exit status {status}; {undone} left{last}")

    if undone < len(trials):
        tell(f"{len(trials) - undone} of {len(trials)} runs are finished already")
    tabulate()  # says at once if the directory cannot be written to
    stopped = sweep.execute(left, command, root, args.jobs, tell, ended)
    rows = tabulate()
    if args.json:
        print(log.to_json({"cells": rows, "failed": failed}))
    else:
        print(f"{sweep.markdown(rows)}in {root}: results.md; results.csv has every run")
    if stopped:
        tell("interrupted; the same command goes on")
        return 128 + stopped
    if failed:
        tell(f"failed: {', '.join(failed)}; the same command tries again")
    return 2 if 2 in failed.values() else 1 if failed else 0


def _seeds(text: str) -> Sequence[int]:
    with contextlib.suppress(ValueError):
        listed = [int(part) for part in text.split(",") if part]
        seeds = listed if "," in text else range(int(text))
        if seeds and len(set(seeds)) == len(seeds):
            return seeds
    raise UserError(
        f"--seeds={text}: needs their number, or a list of different ones: 3,5,8"
    )


def _variants(path: str) -> dict[str, list[str]]:
    try:
        grid = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--grid={path}: cannot be read ({error})") from error
    if isinstance(grid, dict) and grid and all(grid):
        lists = [own for own in grid.values() if isinstance(own, list)]
        if len(lists) == len(grid) and {type(t) for own in lists for t in own} <= {str}:
            return grid
    raise UserError(
        f'--grid={path}: needs a JSON object {{"NAME": ["FIELD=VALUE", ...], ...}}'
    )
