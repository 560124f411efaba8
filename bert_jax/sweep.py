"""Many runs with other settings and other seeds, and their table.

Three parts that do not need each other: `check` finds what would stop a trial,
`execute` runs the commands of each, `summarize` and what follows make the tables.
"""

import collections
import contextlib
import csv
import dataclasses
import fcntl
import functools
import io
import itertools
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash

from bert_jax import config as configs
from bert_jax import initial, labelled, remote
from bert_jax.config import Config, TaskSettings
from bert_jax.data import prepare
from bert_jax.errors import UserError
from bert_jax.grid import Cell, Stage, Trial, for_stage, quote
from bert_jax.resolve import resolve, with_weights
from bert_jax.run import store_directory
from bert_jax.rundir import claim, continued, finished

_TICK = 0.1  # [s] between two looks at the runs
# Of pretraining, should be low; the first that there is counts.
_LOSSES = ("eval_rtd_loss", "eval_mlm_loss", "eval_ltr_loss")


class Runs(NamedTuple):
    """What the trials of a sweep have in common."""

    root: Path
    stages: tuple[Stage, ...]
    overrides: tuple[str, ...] = ()  # of the command line; `STAGE:` may be in front

    def directory(self, trial: Trial, stage: Stage) -> Path:
        """The run directory of one stage."""
        folder = self.root / trial.name
        return folder / quote(stage.name) if len(self.stages) > 1 else folder

    def texts(self, trial: Trial, stage: Stage) -> list[str]:
        """The overrides of one stage's config.

        Raises:
          UserError: they do not fit the config.
        """
        names = [stage.name for stage in self.stages]
        first = self.stages[0]
        begin = str(self.directory(trial, first))
        texts = [
            *([f"init={begin}"] if stage is not first else []),
            *stage.overrides,
            *for_stage([*self.overrides, *trial.cell.overrides], stage.name, names),
            f"seed={trial.seed}",
        ]
        config = configs.load(stage.config, texts)
        if stage.name and config.task.kind == "pretrain" and not config.data.store:
            models = {config.init, config.distill.teacher} - {begin}
            name = _text_and_tokens(config, sorted(models))
            texts.append(f"data.store={self.root / 'store' / name}")
        return texts

    def own_seed(self) -> int:
        """The seed of the config, where none is asked for; 0 of one with faults."""
        names = [stage.name for stage in self.stages]
        first = self.stages[0]
        try:
            texts = [*first.overrides, *for_stage(self.overrides, first.name, names)]
            return configs.load(first.config, texts).seed
        except UserError:  # `check` tells, with those of the other stages
            return 0

    def config(self, trial: Trial, stage: Stage) -> Config:
        """The config of one stage."""
        return configs.load(stage.config, self.texts(trial, stage))

    def commands(self, trial: Trial) -> list[list[str]]:
        """A command for each stage that is not finished."""
        commands = []
        for stage in self.stages:
            directory = self.directory(trial, stage)
            if _score(directory) is None:
                program = [sys.executable, "-m", "bert_jax", "train"]
                flags = [f"--config.{text}" for text in self.texts(trial, stage)]
                words = f"--config={stage.config}", *flags, f"--workdir={directory}"
                commands.append([*program, *words])
        return commands


def _text_and_tokens(config: Config, models: Sequence[str]) -> str:
    """A name for the token store of all runs with the same text and tokenizer.

    Args:
      config: of a run.
      models: where its tokenizer may come from.
    """
    data, tokenizer = config.data, dataclasses.asdict(config.tokenizer)
    text = (data.source, data.text_key, data.language, data.dtype)
    parts = json.dumps([text, tokenizer, config.model.vocab_size, models])
    return xxhash.xxh3_64_hexdigest(parts.encode())


def check(runs: Runs, cells: Sequence[Cell], seeds: Sequence[int]) -> None:
    """Finds what would stop a run, before the first one begins.

    Args:
      runs: where and what they are; those that are there must have the same configs.
      cells: from `expand`.
      seeds: of each cell's trials.

    Raises:
      UserError: with the faults of all stages of all cells.
    """
    faults: dict[str, list[str]] = {}
    seen: dict[tuple[Config | None, ...], str] = {}
    folders: dict[str, str] = {}
    read = _reader()
    for cell in cells:
        found: list[Config | None] = []
        twin = folders.setdefault(cell.name.casefold(), cell.name)
        if twin != cell.name:
            fault = f"has the same directory as {twin} where case does not count"
            faults.setdefault(fault, []).append(cell.name)
        for stage in runs.stages:
            try:
                begin = found[0] if found else None
                found.append(_check_stage(runs, cell, stage, seeds, begin, read))
            except (UserError, OSError) as error:
                found.append(None)
                where = "/".join(filter(None, [cell.name, stage.name]))
                faults.setdefault(str(error), []).append(where)
        if None not in found:
            twin = seen.setdefault(tuple(found), cell.name)
            if twin != cell.name:
                fault = f"has the same settings as {twin}"
                faults.setdefault(fault, []).append(cell.name)
    lines = []
    for fault, names in faults.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        everywhere = len(names) == len(cells) * len(runs.stages)
        lines.append(f"{'' if everywhere else f'{names[0]}{more}: '}{fault}")
    if lines:
        raise UserError("\n".join(lines))


def _reader() -> Callable[..., labelled.Files]:
    """`labelled.read`, once for all runs with the same files, of missing ones too."""

    @functools.lru_cache(8)
    def attempt(settings: TaskSettings, encoding: str) -> labelled.Files | UserError:
        try:
            return labelled.read(settings, encoding=encoding)
        except UserError as error:
            return error

    def read(settings: TaskSettings, encoding: str) -> labelled.Files:
        found = attempt(settings, encoding)
        if isinstance(found, UserError):
            raise found
        return found

    return read


def _check_stage(
    runs: Runs,
    cell: Cell,
    stage: Stage,
    seeds: Sequence[int],
    begin: Config | None,
    read: Callable[..., labelled.Files],
) -> Config:
    """Return the config of a stage with the first seed, as given, not resolved.

    Args:
      runs: as for `check`.
      cell: its settings.
      stage: the one to look at.
      seeds: whose runs may be there.
      begin: config of the first stage, if that is another one and sound.
      read: reads labelled files.

    Raises:
      UserError: it cannot be run.
    """
    trials = [Trial(cell, seed) for seed in seeds]
    first = runs.directory(trials[0], runs.stages[0])
    config = runs.config(trials[0], stage)
    follows = stage is not runs.stages[0] and config.init == str(first)
    if follows:  # that run may not be there yet
        config = dataclasses.replace(config, init="")
        coming = config
        if begin:
            coming = initial.inherit(config, with_weights(begin).model)
            named = f"config.init={first}"
            configs.check(coming, dict.fromkeys(initial.WEIGHTS_DECIDE, named))
        if config.task.kind in labelled.KINDS:
            files = read(config.task, encoding=config.data.encoding)
            labelled.settle(coming, files)
    else:
        resolve(config, read)
    store = store_directory(config, str(runs.directory(trials[0], stage)))
    if config.task.kind == "pretrain" and not remote.exists(store, remote.MANIFEST):
        prepare.recipe(config)
    for trial in trials:
        directory = runs.directory(trial, stage)
        if (directory / "config.json").exists():
            asked = runs.config(trial, stage)
            if continued(asked, str(directory)) is None:
                resolved, _ = resolve(asked, read)
                claim(resolved, str(directory), write=False)
    return config


def script(commands: Sequence[Sequence[str]]) -> list[str]:
    """One command that runs several in turn, as long as they succeed.

    The shell outlives a signal, which the command at work turns into a checkpoint.
    """
    return ["sh", "-c", f"trap : TERM INT; {' && '.join(map(shlex.join, commands))}"]


class _Running(NamedTuple):
    trial: Trial
    process: subprocess.Popen
    began: float
    cores: set[int]


def execute(
    trials: Sequence[Trial],
    commands: Callable[[Trial], list[list[str]]],
    root: Path,
    jobs: int,
    tell: Callable[[str], None],
    ended: Callable[[Trial, int, float], None],
) -> int:
    """Runs the trials, `jobs` at a time, each on its share of the cores.

    What the commands print is added to `log.txt` in the trial's directory. SIGINT and
    SIGTERM are passed on, and awaited; a second one kills.

    Args:
      trials: in the order in which they begin.
      commands: those of a trial, run in turn.
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
                begun = _begin(trial, commands(trial), root / trial.name, free[-1])
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
                    _send(one.process, number if sent == 1 else signal.SIGKILL)
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
            _send(one.process, signal.SIGTERM)
            one.process.wait()
        for kind, handler in handlers.items():
            signal.signal(kind, handler)
    return signals[0] if signals else 0


def _send(process: subprocess.Popen, number: int) -> None:
    """Signals the shell of a trial and the command in it."""
    with contextlib.suppress(ProcessLookupError):  # ended already
        os.killpg(process.pid, number)


def _shares(jobs: int) -> list[set[int]]:
    """Disjoint sets of cores, one for each run at a time; empty ones bind to none."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if jobs == 1 or len(cores) < jobs:
        return [set()] * jobs
    ends = [len(cores) * i // jobs for i in range(jobs + 1)]
    return [set(cores[begin:end]) for begin, end in itertools.pairwise(ends)]


def _begin(
    trial: Trial, commands: list[list[str]], directory: Path, cores: set[int]
) -> _Running | None:
    """Starts a trial; None while one that another sweep left behind is at it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / "log.txt").open("a", encoding="utf-8") as log:
            # The trial has the lock as long as it has the file, whatever becomes of us.
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for command in commands:
                print("$", shlex.join(command), file=log, flush=True)
            with _bound_to(cores):
                process = subprocess.Popen(
                    script(commands),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    process_group=0,  # Ctrl-C comes from us alone
                )
    except BlockingIOError:
        return None
    except OSError as error:
        raise UserError(f"{directory}: cannot be written ({error})") from error
    return _Running(trial, process, time.monotonic(), cores)


@contextlib.contextmanager
def _bound_to(cores: set[int]) -> Iterator[None]:
    """Keeps this thread, and what it starts meanwhile, on some cores."""
    if not cores:
        yield
        return
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)


def read(trial: Trial, runs: Runs) -> list[dict[str, Any]]:
    """The finished stages of a trial, each as a line of the CSV file of runs."""
    lines = []
    for stage in runs.stages:
        directory = runs.directory(trial, stage)
        if score := _score(directory):
            path = str(directory.relative_to(runs.root))
            own = {"stage": stage.name, "seed": trial.seed, **score, "path": path}
            lines.append({**trial.cell.settings, **own})
    return lines


def _score(directory: Path) -> dict[str, Any] | None:
    """What a finished run achieved; None if it is not finished."""
    summary = finished(str(directory)) or {}
    metric = next((name for name in ("score", *_LOSSES) if name in summary), None)
    if metric is None or summary[metric] is None:
        return None
    return {
        "metric": summary.get("score_name", metric),
        "score": summary[metric],
        "best_step": summary.get("best_step", summary["steps"]),
        "seconds": summary["seconds"],
        "examples_per_second": summary.get("examples_per_second"),
    }


def summarize(
    cells: Sequence[Cell], runs: Runs, results: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """One row for each cell and stage; of a single stage the best mean first.

    Args:
      cells: all of them.
      runs: with the stages.
      results: of the runs that are finished, from `read`.

    Returns:
      `name`, `settings` and `stage`, `n`, how many of its runs are finished, and of
      these `metric`, `mean` and `std` (of the sample; None if n = 1) of the score, the
      `best` one and its `best_seed`, mean `seconds` and `examples_per_second` or None.
    """
    rows = []
    for cell, stage in itertools.product(cells, runs.stages):
        found = [
            result
            for result in results
            if result["path"] == _path(runs, Trial(cell, result["seed"]), stage)
        ]
        row = {"name": cell.name, "settings": cell.settings, "stage": stage.name}
        rows.append(row | {"n": len(found)} | (_statistics(found) if found else {}))

    def rank(row: dict[str, Any]) -> float:
        return _upward(row["metric"], row["mean"]) if row["n"] else -math.inf

    return sorted(rows, key=rank, reverse=True) if len(runs.stages) == 1 else rows


def _path(runs: Runs, trial: Trial, stage: Stage) -> str:
    return str(runs.directory(trial, stage).relative_to(runs.root))


def _statistics(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    best = max(results, key=lambda run: _upward(run["metric"], run["score"]))
    scores = [run["score"] for run in results]
    speeds = [run["examples_per_second"] for run in results]
    return {
        "metric": best["metric"],
        "mean": float(np.mean(scores)),
        "std": float(np.std(scores, ddof=1)) if len(results) > 1 else None,
        "best": best["score"],
        "best_seed": best["seed"],
        "seconds": float(np.mean([run["seconds"] for run in results])),
        "examples_per_second": None if None in speeds else float(np.mean(speeds)),
    }


def _upward(metric: str, value: float) -> float:
    return -value if metric in _LOSSES else value


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `summarize` as a table, with a column for each of several stages."""
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    columns = [[row for row in rows if row["stage"] == stage] for stage in stages]
    if len(stages) == 1:
        names = ["n", _title(rows), "best seed", "seconds", "examples/s"]
        values = [[str(row["n"]), _mean(row), *_details(row)] for row in rows]
    else:
        titles = map(_title, columns)
        names = [f"{s}: {title} (n)" for s, title in zip(stages, titles, strict=True)]
        values = [
            [f"{_mean(row)} ({row['n']})".lstrip() for row in of_cell]
            for of_cell in zip(*columns, strict=True)
        ]
    settings = [row["settings"] for row in columns[0]]
    lines = [[*settings[0], *names]]
    for own, found in zip(settings, values, strict=True):
        lines.append([*own.values(), *found])
    lines = [[text.replace("|", "\\|") for text in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "".join(
        f"| {' | '.join(map(str.ljust, line, widths))} |\n" for line in lines
    )


def _title(rows: Sequence[Mapping[str, Any]]) -> str:
    metrics = dict.fromkeys(row["metric"] for row in rows if row["n"])
    lower = " (lower is better)" if metrics and metrics.keys() <= set(_LOSSES) else ""
    return f"{', '.join(metrics) or 'score'}{lower}"


def _mean(row: Mapping[str, Any]) -> str:
    if not row["n"]:
        return ""
    std = row["std"]
    return f"{row['mean']:.4f}" + ("" if std is None else f" ± {std:.4f}")


def _details(row: Mapping[str, Any]) -> list[str]:
    if not row["n"]:
        return [""] * 3
    speed = row["examples_per_second"]
    return [
        f"{row['best']:.4f} (seed {row['best_seed']})",
        f"{row['seconds']:.0f}",
        "" if speed is None else f"{speed:.1f}",
    ]


def to_csv(lines: Sequence[Mapping[str, Any]]) -> str:
    """The lines as CSV, settings in columns of their own; no text if there are none."""
    flat = [{**line.get("settings", {}), **line} for line in lines]
    for line in flat:
        line.pop("settings", None)
    out = io.StringIO()
    names = dict.fromkeys(name for line in flat for name in line)
    writer = csv.DictWriter(out, list(names), lineterminator="\n")
    if flat:
        writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()
