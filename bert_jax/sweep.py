"""Many runs of one config, with other settings and other seeds, and their table.

Three parts that do not need each other: `expand` names the cells of a grid, `execute`
runs a command for each of their trials, `summarize` and what follows make the tables.
"""

import collections
import contextlib
import csv
import dataclasses
import fcntl
import io
import itertools
import math
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bert_jax import config as configs
from bert_jax import initial, teacher
from bert_jax.config import Config
from bert_jax.errors import UserError
from bert_jax.run import claim, finished, settle

_TICK = 0.1  # [s] between two looks at the runs
_LOSS = "eval_mlm_loss"  # the score of pretraining, and the one that should be low


class Cell(NamedTuple):
    """One combination of settings, to be run with every seed."""

    name: str  # of its directory; "" where nothing varies
    settings: dict[str, str]  # what sets it apart, by column of the table
    overrides: tuple[str, ...]  # `a.b=value`


class Trial(NamedTuple):
    """One run of a cell."""

    cell: Cell
    seed: int

    @property
    def name(self) -> str:
        """Its directory, from that of the sweep."""
        return "/".join(filter(None, [self.cell.name, f"seed={self.seed}"]))


def expand(
    vary: Sequence[str], variants: Mapping[str, Sequence[str]] | None = None
) -> list[Cell]:
    """The product of all values and all variants.

    Names depend neither on the order of the fields nor on how a number is spelt, so
    that a command finds its runs again.

    Args:
      vary: `a.b=value,value` texts, one for each field.
      variants: names, each with its `a.b=value` overrides.

    Raises:
      UserError: a text has no values, a field or a value comes twice, or a seed is set.
    """
    fields: dict[str, list[str]] = {}
    for text in sorted(vary):
        field, equals, values = text.partition("=")
        if not equals:
            raise UserError(f"--vary={text} needs values: --vary={field}=VALUE,VALUE")
        if field in fields:
            raise UserError(f"--vary={field}: given twice; put all its values into one")
        fields[field] = [value.strip() for value in values.split(",")]
        if len(set(map(_plain, fields[field]))) < len(fields[field]):
            raise UserError(f"--vary={text}: holds a value twice")
    named = variants or {"": ()}
    for text in (*fields, *itertools.chain(*named.values())):
        if text.partition("=")[0] == "seed":
            raise UserError(f"{text}: seeds are set by --seeds, for all settings alike")
    tails = [field.rpartition(".")[2] for field in fields]
    short = {
        field: tail if tails.count(tail) == 1 else field
        for field, tail in zip(fields, tails, strict=True)
    }
    cells = []
    for variant, *values in itertools.product(named, *fields.values()):
        chosen = dict(zip(fields, values, strict=True))
        plain = {field: _plain(value) for field, value in chosen.items()}
        parts = [f"{short[f]}={_quote(value)}" for f, value in plain.items()]
        name = ",".join(filter(None, [_quote(variant), *parts]))
        settings = {"variant": variant} | plain if variant else plain
        own = [f"{field}={value}" for field, value in chosen.items()]
        cells.append(Cell(name, settings, (*named[variant], *own)))
    return cells


def _plain(value: str) -> str:
    """One spelling of a number: 5e-5 and 0.00005 are the same run."""
    try:
        return repr(float(value)).removesuffix(".0")
    except ValueError:
        return value


def _quote(text: str) -> str:
    """Part of a file name without commas, not the same for any two texts."""

    def code(found: re.Match[str]) -> str:
        return "".join(f"%{byte:02X}" for byte in found[0].encode())

    return re.sub(r"^\.|[^\w.=+-]", code, text)


def check(
    source: str,
    overrides: Sequence[str],
    cells: Sequence[Cell],
    seeds: Sequence[int],
    root: Path,
) -> None:
    """Finds what would stop a run, before the first one begins.

    Args:
      source: of the config, as for `config.load`.
      overrides: those of all runs.
      cells: from `expand`.
      seeds: of each cell's runs.
      root: of the sweep; the runs that are there must have the same configs.

    Raises:
      UserError: with the faults of all cells.
    """
    faults: dict[str, list[str]] = {}
    seen: dict[Config, str] = {}
    for cell in cells:
        try:
            config = configs.load(source, [*overrides, *cell.overrides])
            twin = seen.setdefault(config, cell.name)
            if twin != cell.name:
                raise UserError(f"has the same settings as {twin}")
            config, _ = settle(teacher.adopt(initial.adopt(config)))
            for trial in (Trial(cell, seed) for seed in seeds):
                if (root / trial.name / "config.json").exists():
                    own = dataclasses.replace(config, seed=trial.seed)
                    claim(own, str(root / trial.name))
        except (UserError, OSError) as error:
            faults.setdefault(str(error), []).append(cell.name)
    lines = []
    for fault, names in faults.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        where = f"{names[0]}{more}: " if len(names) < len(cells) else ""
        lines.append(f"{where}{fault}")
    if lines:
        raise UserError("\n".join(lines))


class _Running(NamedTuple):
    trial: Trial
    process: subprocess.Popen
    began: float
    cores: set[int]


def execute(
    trials: Sequence[Trial],
    command: Callable[[Trial], list[str]],
    root: Path,
    jobs: int,
    tell: Callable[[str], None],
    ended: Callable[[Trial, int, float], None],
) -> int:
    """Runs a command for each trial, `jobs` at a time, each on its share of the cores.

    What a command prints is added to `log.txt` in the trial's directory. SIGINT and
    SIGTERM are passed on, and awaited; a second one kills.

    Args:
      trials: in the order in which they begin.
      command: that of a trial.
      root: of the sweep.
      jobs: how many run at a time.
      tell: is told what begins, waits and is stopped.
      ended: is told of the others' exit status and seconds.

    Returns:
      The number of the signal that stopped it, or 0.

    Raises:
      UserError: a directory cannot be written to.
    """
    queue, free = collections.deque(trials), _shares(jobs)
    running: list[_Running] = []
    signals: list[int] = []
    sent, waited = 0, None
    handlers = {
        kind: signal.signal(kind, lambda number, _: signals.append(number))
        for kind in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        while running or (queue and not signals):
            if queue and free and not signals:
                trial = queue[0]
                begun = _begin(trial, command(trial), root / trial.name, free[-1])
                if begun:
                    running.append(begun)
                    queue.popleft()
                    free.pop()
                    tell(f"{trial.name} begins")
                    continue
                if waited is not trial:
                    waited = trial
                    tell(f"{trial.name} runs already, in another process; waiting")
            time.sleep(_TICK)
            for number in signals[sent:]:
                sent += 1
                for one in running:
                    one.process.send_signal(number if sent == 1 else signal.SIGKILL)
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                free.append(one.cores)
                status = one.process.returncode
                if signals and status:
                    tell(f"{one.trial.name} was stopped")
                else:
                    ended(one.trial, status, time.monotonic() - one.began)
    finally:
        for one in running:  # only after an exception
            one.process.terminate()
            one.process.wait()
        for kind, handler in handlers.items():
            signal.signal(kind, handler)
    return signals[0] if signals else 0


def _shares(jobs: int) -> list[set[int]]:
    """Disjoint sets of cores, one for each run at a time; empty ones bind to none."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if jobs == 1 or len(cores) < jobs:
        return [set()] * jobs
    ends = [len(cores) * i // jobs for i in range(jobs + 1)]
    return [set(cores[begin:end]) for begin, end in itertools.pairwise(ends)]


def _begin(
    trial: Trial, command: list[str], directory: Path, cores: set[int]
) -> _Running | None:
    """Starts a run; None while one that another sweep left behind is at it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / "log.txt").open("a", encoding="utf-8") as log:
            # The run has the lock as long as it has the file, whatever becomes of us.
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            print("$", shlex.join(command), file=log, flush=True)
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,  # Ctrl-C comes from us alone
            )
    except BlockingIOError:
        return None
    except OSError as error:
        raise UserError(f"{directory}: cannot be written ({error})") from error
    if cores:
        with contextlib.suppress(ProcessLookupError):  # ended already
            os.sched_setaffinity(process.pid, cores)
    return _Running(trial, process, time.monotonic(), cores)


def read(trial: Trial, root: Path) -> dict[str, Any] | None:
    """A finished run as a line of the CSV file; None if it is not finished."""
    summary = finished(str(root / trial.name)) or {}
    metric = "score" if "score" in summary else _LOSS
    if summary.get(metric) is None:
        return None
    return {
        **trial.cell.settings,
        "seed": trial.seed,
        "metric": summary.get("score_name", metric),
        "score": summary[metric],
        "best_step": summary.get("best_step", summary["steps"]),
        "seconds": summary["seconds"],
        "examples_per_second": summary.get("examples_per_second"),
        "path": trial.name,
    }


def summarize(
    cells: Sequence[Cell], results: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """One row for each cell, the best mean first.

    Args:
      cells: all of them.
      results: of the runs that are finished, from `read`.

    Returns:
      `name` and `settings` of a cell, `n`, how many of its runs are finished, and of
      these `metric`, `mean` and `std` (of the sample; None if n = 1) of the score, the
      `best` one and its `best_seed`, mean `seconds` and `examples_per_second` or None.
    """
    rows = []
    for cell in cells:
        runs = [r for r in results if r["path"] == Trial(cell, r["seed"]).name]
        row = {"name": cell.name, "settings": cell.settings, "n": len(runs)}
        if runs:
            best = max(runs, key=lambda run: _upward(run["metric"], run["score"]))
            scores = [run["score"] for run in runs]
            speeds = [run["examples_per_second"] for run in runs]
            row |= {
                "metric": best["metric"],
                "mean": float(np.mean(scores)),
                "std": float(np.std(scores, ddof=1)) if len(runs) > 1 else None,
                "best": best["score"],
                "best_seed": best["seed"],
                "seconds": float(np.mean([run["seconds"] for run in runs])),
                "examples_per_second": None
                if None in speeds
                else float(np.mean(speeds)),
            }
        rows.append(row)

    def rank(row: dict[str, Any]) -> float:
        return _upward(row["metric"], row["mean"]) if row["n"] else -math.inf

    return sorted(rows, key=rank, reverse=True)


def _upward(metric: str, value: float) -> float:
    return -value if metric == _LOSS else value


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `summarize` as a table."""
    metric = ", ".join(dict.fromkeys(row["metric"] for row in rows if row["n"]))
    lower = " (lower is better)" if metric == _LOSS else ""
    names = ["n", f"{metric or 'score'}{lower}", "best seed", "seconds", "examples/s"]
    lines = [[*rows[0]["settings"], *names]]
    for row in rows:
        found = [""] * 4
        if row["n"]:
            std, speed = row["std"], row["examples_per_second"]
            found = [
                f"{row['mean']:.4f}" + ("" if std is None else f" ± {std:.4f}"),
                f"{row['best']:.4f} (seed {row['best_seed']})",
                f"{row['seconds']:.0f}",
                "" if speed is None else f"{speed:.1f}",
            ]
        lines.append([*row["settings"].values(), str(row["n"]), *found])
    lines = [[text.replace("|", "\\|") for text in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "".join(
        f"| {' | '.join(map(str.ljust, line, widths))} |\n" for line in lines
    )


def to_csv(results: Sequence[Mapping[str, Any]]) -> str:
    """The results, from `read`, a line each; no text if there are none."""
    out = io.StringIO()
    if results:
        writer = csv.DictWriter(out, list(results[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(results)
    return out.getvalue()
