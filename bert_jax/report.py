"""One HTML page about some runs: their scores, settings, curves and cost.

The page is `report.html`, which draws the curves itself, with everything put into it:
it needs no network. What runs measured is text of others, and escaped wherever it goes.
"""

import base64
import collections
import contextlib
import hashlib
import importlib.resources
import itertools
import json
import math
import os
import re
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bert_jax import config as configs
from bert_jax import goodput, log
from bert_jax.curves import points
from bert_jax.errors import UserError
from bert_jax.rundir import finished

_BUCKETS = 250  # of a curve; each keeps its least and its greatest point
_KNOTS = 200  # where steps are told as tokens and hours; linear between them
_COLOURS, _DASHES = 6, 4  # that report.html has
_NONE = "–"
_SEED = re.compile(r"/seed=\d+(?=[/\"])")  # of a trial's directory
_TITLES = {  # of metrics, as held out and in training, in the order of the page
    "mlm_loss": "Masked-token loss [nats]",
    "ltr_loss": "Next-token loss [nats]",
    "rtd_loss": "Replaced-token loss [nats]",
    "loss": "Loss",
    "mlm_accuracy": "Masked-token accuracy",
    "ltr_accuracy": "Next-token accuracy",
    "rtd_accuracy": "Replaced-token accuracy",
    "accuracy": "Accuracy",
    "entity_f1": "Entity F1",
    "f1": "F1",
    "exact": "Exact match",
    "nsp_loss": "Next-sentence loss [nats]",
    "nsp_accuracy": "Next-sentence accuracy",
    "sop_loss": "Sentence-order loss [nats]",
    "sop_accuracy": "Sentence-order accuracy",
    "sbo_loss": "Span-boundary loss [nats]",
    "sbo_accuracy": "Span-boundary accuracy",
}
_TRAINING = {  # of training alone
    "learning_rate": "Learning rate",
    "useful_tokens_per_second": "Speed [useful tokens/s, all devices]",
    "grad_norm": "Gradient norm",
}
_RATES = {  # what a training report gives a second, and its sum
    "tokens": "useful_tokens_per_second",
    "padded_tokens": "padded_tokens_per_second",
    "flops": "flops_per_second",
}


class Run(NamedTuple):
    """What a run directory holds."""

    path: Path
    config: dict[str, Any]  # by dotted name, with defaults for what it does not have
    lines: list[dict[str, Any]]  # of metrics.jsonl
    summary: dict[str, Any] | None  # None: it has not done all its steps
    device: str  # kind and number, as of the last start; "" is unknown

    @property
    def step(self) -> int:
        """Updates done, as far as it has reported."""
        return self.lines[-1]["step"] if self.lines else 0

    @property
    def state(self) -> str:
        """Whether it has ended, and if not where it is."""
        if self.summary:
            return "finished"
        return f"unfinished at step {self.step:,} of {self.config['steps']:,}"


class Cell(NamedTuple):
    """Runs that differ by their seed alone."""

    name: str
    runs: list[Run]
    look: int = 0  # number of its colour and dashes

    @property
    def done(self) -> list[Run]:
        """The runs that are finished."""
        return [run for run in self.runs if run.summary]

    @property
    def state(self) -> str:
        """The states of its runs, each with its number if they are several."""
        if len(self.runs) == 1:
            return self.runs[0].state
        states = collections.Counter(run.state for run in self.runs)
        return ", ".join(f"{n} {state}" for state, n in sorted(states.items()))

    @property
    def held_out(self) -> tuple[Any, ...]:
        """Equal for cells that are scored on the same examples."""
        config, run = self.runs[0].config, (self.done or self.runs)[0]
        names = ["task.kind", "task.glue", "task.dev_file"]
        if not config["task.dev_file"]:
            names += ["task.train_file", "task.dev_share"]
        return *map(config.get, names), (run.summary or {}).get("eval_set_md5")

    @property
    def labels(self) -> list[str]:
        """What tells its runs apart; "" if there is but one."""
        seeds = [str(run.config["seed"]) for run in self.runs]
        if len(set(seeds)) == len(seeds):
            return seeds if len(seeds) > 1 else [""]
        return [
            f"{run.path.name}: {seed}"
            for run, seed in zip(self.runs, seeds, strict=True)
        ]


class Stage(NamedTuple):
    """Cells that are scored on one task, as those of one stage of a grid are."""

    name: str
    cells: list[Cell]  # by names that need only tell them apart from one another


# --- What there is ---


def read(paths: Iterable[str | Path]) -> list[Cell]:
    """Finds and reads runs, and puts those of one setting together.

    Args:
      paths: of runs, or of directories such as a sweep's with runs at any depth.

    Returns:
      The cells, in the order of the paths.

    Raises:
      UserError: a path leads to no run, or a config is damaged; all are named.
    """
    runs: dict[Path, Run] = {}
    faults = []
    for path in paths:
        try:
            found = list(_below(Path(path)))
            if not found:
                raise UserError(
                    f"{path}: neither a run nor a directory with runs in it; name "
                    "directories that `bert-jax train` or `bert-jax sweep` has written"
                )
            runs |= {run.path.resolve(): run for run in found}
        except (UserError, OSError) as error:
            faults.append(str(error))
    if faults:
        raise UserError("\n".join(faults))
    alike = collections.defaultdict(list)
    for run in runs.values():
        own = {name: value for name, value in run.config.items() if name != "seed"}
        # The stages of a sweep's trial begin from one another: `init` has the seed.
        alike[_SEED.sub("", json.dumps(own, sort_keys=True))].append(run)
    groups = [
        sorted(group, key=lambda run: run.config["seed"]) for group in alike.values()
    ]
    return [Cell(*pair) for pair in zip(_names(groups), groups, strict=True)]


def _below(root: Path) -> Iterator[Run]:
    for folder, names, files in os.walk(root):
        if "config.json" in files:
            names.clear()
            if (config := _config(Path(folder, "config.json"))) is not None:
                yield _run(Path(folder), config)
        names.sort()


def _config(path: Path) -> dict[str, Any] | None:
    """By dotted name; None if it is not of a run, but say of a model to be shared."""
    try:
        own = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error})") from error
    if not isinstance(own, dict) or not {"seed", "steps", "phases"} <= own.keys():
        return None
    default = json.loads(configs.to_json(configs.Config()))
    phase = default.pop("phases")[0]
    try:
        own["phases"] = [{**phase, **given} for given in own["phases"]]
    except TypeError as error:
        raise UserError(f"{path} is damaged ({error})") from error
    return {**_flat(default), **_flat(own)}


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        parts = [(f"{name}.{key}".lstrip("."), item) for key, item in value.items()]
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        parts = [(f"{name}[{i}]", item) for i, item in enumerate(value)]
    else:
        return {name: value}
    return {
        key: leaf for part in parts for key, leaf in _flat(part[1], part[0]).items()
    }


def _run(path: Path, config: dict[str, Any]) -> Run:
    lines, device = [], ""
    with contextlib.suppress(FileNotFoundError):  # it has only just begun
        lines = log.read_metrics(path)
    with contextlib.suppress(FileNotFoundError):
        for event in log.read_events(path):
            if "device" in event:
                device = f"{event['device']} × {event['devices']}"
    score = config.get("task.score") or "score"
    for line in lines:
        if "eval_score" in line:
            line[f"eval_{score}"] = line.pop("eval_score")
        if "mlm_loss" in line or "ltr_loss" in line:
            line.pop("loss", None)  # the sum with that of the sentence pairs
    return Run(path, config, lines, finished(str(path)), device)


def _names(groups: Sequence[Sequence[Run]]) -> list[str]:
    """The shortest paths that tell the groups apart; a sweep's without the seeds."""

    def place(run: Run) -> Path:
        parts = run.path.absolute().parts
        return Path(*(part for part in parts if not part.startswith("seed=")))

    users = collections.Counter(
        at for group in groups for at in {place(run) for run in group}
    )
    places = [
        dict.fromkeys(
            place(run) if users[place(run)] == 1 else run.path.absolute()
            for run in group
        )
        for group in groups
    ]
    base = os.path.commonpath([at.parent for own in places for at in own])
    return [", ".join(os.path.relpath(at, base) for at in own) for own in places]


def stages(cells: Sequence[Cell]) -> list[Stage]:
    """Puts cells of one task together, pretraining first.

    Args:
      cells: from `read`.

    Returns:
      Every cell once. A name is that of the directory that the runs of a stage have in
      common, or what `task` calls it; with a single stage it is "".
    """
    alike = collections.defaultdict(list)
    for cell in cells:
        alike[cell.held_out[:-1]].append(cell)
    found, looks = [], collections.defaultdict(itertools.count().__next__)
    for task, own in sorted(alike.items(), key=lambda item: item[0][0] != "pretrain"):
        name, names = task[1] or task[0], [cell.name for cell in own]
        lasts = {run.path.absolute().name for cell in own for run in cell.runs}
        end = f"/{min(lasts)}"
        if len(lasts) == 1 < len(alike) and all(each.endswith(end) for each in names):
            name = end[1:]
            names = [each.removesuffix(end).replace(f"{end}, ", ", ") for each in names]
        named = [
            cell._replace(name=each, look=looks[each])
            for cell, each in zip(own, names, strict=True)
        ]
        found.append(Stage(name if len(alike) > 1 else "", named))
    return found


# --- What it comes to ---


def differences(cells: Sequence[Cell]) -> dict[str, list[Any]]:
    """The fields whose values differ between cells, each with that of every cell."""
    every = dict.fromkeys(name for cell in cells for name in cell.runs[0].config)
    del every["seed"]
    found = {name: [cell.runs[0].config.get(name) for cell in cells] for name in every}
    return {n: own for n, own in found.items() if any(v != own[0] for v in own)}


def facts(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """What the page's tables say, for JSON.

    Args:
      cells: from `read`.

    Returns:
      Of each cell `name`, `runs` (paths), `state`, `steps` (of each run), `settings`
      (those of `differences`), `scores` and `cost`. Scores hold for each held-out
      metric the `final` and the `best` value as `mean`, `sd` (of the sample; None if
      n = 1) and `n`: of the finished runs, or of all if none is finished. Costs are
      those of each run: `flops`, `tokens`, `padded_tokens`, `step_hours` (of the steps
      that the result is made of), `hours` (of its processes, repeated steps included)
      and `device`; None is unknown.
    """
    differ = differences(cells)
    rows = []
    for number, cell in enumerate(cells):
        rows.append(
            {
                "name": cell.name,
                "runs": [str(run.path) for run in cell.runs],
                "state": cell.state,
                "steps": [run.step for run in cell.runs],
                "settings": {name: own[number] for name, own in differ.items()},
                "scores": _scores(cell),
                "cost": [_cost(run) for run in cell.runs],
            }
        )
    return rows


def _scores(cell: Cell) -> dict[str, dict[str, Any]]:
    runs = cell.done or cell.runs
    scores = {}
    for name in _metrics(cell.runs):
        series = [own for run in runs if (own := points(run.lines, f"eval_{name}")[1])]
        if series:
            best = min if _is_low(name) else max
            scores[name] = {
                "final": _spread([own[-1] for own in series]),
                "best": _spread([best(own) for own in series]),
            }
    return scores


def _spread(values: Sequence[float]) -> dict[str, Any]:
    several = len(values) > 1
    return {
        "mean": statistics.mean(values),
        "sd": statistics.stdev(values) if several else None,
        "n": len(values),
    }


def _metrics(runs: Iterable[Run]) -> list[str]:
    """The held-out metrics of some runs, those of `_TITLES` first."""
    names = {name for run in runs for line in run.lines for name in line}
    held_out = sorted(n.removeprefix("eval_") for n in names if n.startswith("eval_"))
    known = list(_TITLES)
    return sorted(held_out, key=lambda n: known.index(n) if n in known else len(known))


def _is_low(name: str) -> bool:
    """Whether a metric should be low."""
    return "loss" in name


def _title(name: str) -> str:
    """Of a metric; of one that is a known one's part, with what is left of its name."""
    for known, title in {**_TITLES, **_TRAINING}.items():
        if name.startswith(known):
            return " · ".join(filter(None, [title, name[len(known) :].strip("/_. ")]))
    return name.replace("_", " ").capitalize()


def _progress(run: Run) -> dict[str, list[float]]:
    """Sums from the start up to each training report; NaN once one did not tell."""
    sums = {name: [0.0] for name in ("step", "hours", *_RATES)}
    for line in run.lines:
        if line["kind"] != "train":
            continue
        steps = line["step"] - sums["step"][-1]
        seconds = steps / (line.get("steps_per_second") or math.nan)
        more = {n: seconds * (line.get(r) or math.nan) for n, r in _RATES.items()}
        more |= {"step": steps, "hours": seconds / 3600}
        for name, own in sums.items():
            own.append(own[-1] + more[name])
    return sums


def _cost(run: Run) -> dict[str, Any]:
    sums = {name: own[-1] for name, own in _progress(run).items()}
    hours = None
    with contextlib.suppress(UserError, KeyError):  # of another version
        account = goodput.account(run.path)
        hours = (account["seconds"] - account["down"]) / 3600
    known = {n: None if math.isnan(sums[n]) else sums[n] for n in ("hours", *_RATES)}
    known["step_hours"] = known.pop("hours")
    return {**known, "hours": hours, "device": run.device or None}


def thin(
    x: Sequence[float], y: Sequence[float], buckets: int = _BUCKETS
) -> tuple[list[float], list[float]]:
    """Fewer points that look the same: the least and the greatest of each bucket.

    Args:
      x: ascending.
      y: a value for each.
      buckets: of about the same number of points; up to twice as many points stay.

    Returns:
      The points that are left, the first and the last always among them.
    """
    if len(x) <= 2 * buckets:
        return list(x), list(y)
    keep = {0, len(x) - 1}
    for part in np.array_split(np.arange(len(x)), buckets - 1):
        values = np.asarray(y)[part]
        keep |= {int(part[values.argmin()]), int(part[values.argmax()])}
    return [x[i] for i in sorted(keep)], [y[i] for i in sorted(keep)]


# --- The page ---


def page(cells: Sequence[Cell]) -> str:
    """The whole page.

    Args:
      cells: from `read`.

    Returns:
      HTML that refers to nothing outside itself.
    """
    runs = [run for cell in cells for run in cell.runs]
    found = stages(cells)
    head = Path(os.path.commonpath([run.path.absolute() for run in runs])).name
    name = cells[0].name if len(cells) == 1 else head or "runs"
    count = f"{_count(len(runs), 'run')} of {_count(len(cells), 'setting')}"
    latest = max((run.lines[-1].get("time", 0) for run in runs if run.lines), default=0)
    if latest:
        count += time.strftime(
            "; measured until %Y-%m-%d %H:%M UTC", time.gmtime(latest)
        )
    parts = {
        "title": escape(f"{name}: {count.partition(';')[0]}"),
        "name": escape(name),
        "about": escape(count),
        "scores": _each(found, _score_table),
        "settings": _each(found, _setting_tables),
        "legend": _legend(found),
        "cost": _cost_table(found),
        # `<` would end the element that holds it.
        "data": log.to_json(_curves(found)).replace("<", "\\u003c"),
    }
    text = (
        importlib.resources.files("bert_jax").joinpath("report.html").read_text("utf-8")
    )
    script = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    for place, own in {"digest": digest, **parts}.items():
        text = text.replace(f"<!--{place}-->", own)
    return text.encode(errors="replace").decode()  # a file's name may be no Unicode


def _each(found: Sequence[Stage], table: Callable[[Sequence[Cell], int], str]) -> str:
    return "".join(
        _heading(stage) + table(stage.cells, number)
        for number, stage in enumerate(found)
    )


def _heading(stage: Stage) -> str:
    return f"<h3>{escape(stage.name)}</h3>" if stage.name else ""


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _table(
    kind: str,
    caption: str,
    heads: Sequence[tuple[str, Sequence[str]]],
    rows: Iterable[str],
    number: int = 0,
) -> str:
    """A table in a box that scrolls by itself.

    Args:
      kind: its CSS class.
      caption: text.
      heads: of columns, HTML, with those of the columns below; none are one column.
      rows: from `_row`.
      number: of this table among those of its kind.
    """
    name = f"of-{kind}{number or ''}"
    deep = any(below for _, below in heads)
    first = "".join(
        f'<th scope="colgroup" colspan="{len(below)}">{head}</th>'
        if below
        else f'<th scope="col" rowspan="{1 + deep}">{head}</th>'
        for head, below in heads
    )
    second = "".join(f'<th scope="col">{b}</th>' for _, below in heads for b in below)
    lines = "".join(f"<tr>{line}</tr>" for line in (first, second) if line)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-labelledby="{name}">'
        f'<table class="{kind}">'
        f'<caption><span id="{name}">{escape(caption)}</span></caption>'
        f"<thead>{lines}</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _row(head: str, values: Iterable[str]) -> str:
    cells = "".join(f"<td>{value}</td>" for value in values)
    return f'<tr><th scope="row">{head}</th>{cells}</tr>'


def _label(cell: Cell) -> str:
    name = escape(cell.name)
    return f'<span class="name">{_swatch(cell.look)}<span>{name}</span></span>'


def _swatch(number: int) -> str:
    return (
        f'<svg class="swatch {_look(number)}" viewBox="0 0 26 8" aria-hidden="true">'
        '<path d="M1 4H25"/></svg>'
    )


def _look(number: int) -> str:
    """CSS classes of the lines of a cell."""
    return f"c{number % _COLOURS} d{number // _COLOURS % _DASHES}"


def _score_table(cells: Sequence[Cell], stage: int) -> str:
    metrics = _metrics(run for cell in cells for run in cell.runs)
    columns = list(itertools.product(metrics, ("final", "best")))
    scores = [_scores(cell) for cell in cells]
    means = collections.defaultdict(list)
    for cell, own in zip(cells, scores, strict=True):
        for name, kinds in own.items() if cell.done else ():
            for kind, found in kinds.items():
                means[cell.held_out, name, kind].append(found["mean"])
    lines = []
    for cell, own in zip(cells, scores, strict=True):
        steps = [run.step for run in cell.runs]
        least, most = min(steps), max(steps)
        told = f"{least:,}" if least == most else f"{least:,}–{most:,}"
        values = [escape(cell.state), told]
        for name, kind in columns:
            found = own.get(name, {}).get(kind)
            text = _mean(found)
            if found and cell.done:
                rivals = means[cell.held_out, name, kind]
                best = min(rivals) if _is_low(name) else max(rivals)
                if len(rivals) > 1 and found["mean"] == best:
                    text = f"<b>{text}</b>"
            elif found:
                text = f"<i>{text}</i>"
            values.append(text)
        lines.append(_row(_label(cell), values))
    heads: list[tuple[str, Sequence[str]]] = [
        (n, ()) for n in ("setting", "state", "steps")
    ]
    for name in metrics:
        title = f"{escape(_title(name))} <span>{'↓' if _is_low(name) else '↑'}</span>"
        heads.append((title, ("final", "best")))
    caption = (
        "Held-out scores at the last evaluation and at the best one: mean ± standard "
        "deviation of the seeds (their number). ↓ lower is better, ↑ higher is; of "
        "settings with the same held-out set the best mean is bold. Unfinished runs "
        "count only where none is finished, and are in italics there."
    )
    return _table("scores", "As above" if stage else caption, heads, lines, stage)


def _mean(found: dict[str, Any] | None) -> str:
    if not found:
        return _NONE
    if found["sd"] is None:
        return f"{found['mean']:.4f}"
    return f"{found['mean']:.4f} ± {found['sd']:.4f} <small>({found['n']})</small>"


def _setting_tables(cells: Sequence[Cell], stage: int) -> str:
    """What differs, the longer way down, and below it what does not."""
    differ = differences(cells)
    common = {
        name: _value(value)
        for name, value in cells[0].runs[0].config.items()
        if name not in differ and name != "seed"
    }
    text = "<p>Nothing but the seed.</p>"
    if differ:
        caption = "Fields of config.json whose values differ between the settings"
        labels = list(map(_label, cells))
        fields = [f"<code>{escape(name)}</code>" for name in differ]
        values = [[_value(value) for value in own] for own in differ.values()]
        if len(differ) > len(cells):
            rows, heads, first = map(_row, fields, values), labels, "field"
        else:
            turned = zip(*values, strict=True)
            rows, heads, first = map(_row, labels, turned), fields, "setting"
        text = _table(
            "settings", caption, [(head, ()) for head in (first, *heads)], rows, stage
        )
    rows = (_row(f"<code>{escape(n)}</code>", [own]) for n, own in common.items())
    heads = [("field", ()), ("value", ())]
    table = _table("common", "Fields that all settings share", heads, rows, stage)
    count = _count(len(common), "field")
    return f"{text}<details><summary>{count} in common</summary>{table}</details>"


def _value(value: Any) -> str:
    if value is None:
        return _NONE
    if isinstance(value, list) and value:
        return ", ".join(map(_value, value))
    if isinstance(value, str) and value:
        return escape(value)
    return escape(json.dumps(value, ensure_ascii=False))


def _legend(found: Sequence[Stage]) -> str:
    """A box to tick for each cell, and for each of its runs if they are several."""
    text, number = "", 0
    for stage in found:
        items = _boxes(stage.cells, number)
        number += sum(len(cell.runs) for cell in stage.cells)
        text += f"{_heading(stage)}<ul>{''.join(items)}</ul>"
    return text


def _boxes(cells: Sequence[Cell], number: int) -> Iterator[str]:
    for cell in cells:
        numbers = range(number, number + len(cell.runs))
        number = numbers.stop
        runs = " ".join(map(str, numbers))
        item = (
            f'<label><input type="checkbox" checked data-runs="{runs}">'
            f"{_label(cell)}</label>"
        )
        if len(cell.runs) > 1:
            seeds = "".join(
                f'<label><input type="checkbox" checked data-runs="{n}">'
                f"{escape(label)}</label>"
                for n, label in zip(numbers, cell.labels, strict=True)
            )
            item += f'<span class="seeds">seed {seeds}</span>'
        yield f"<li>{item}</li>"


def _cost_table(found: Sequence[Stage]) -> str:
    shown: dict[str, tuple[str, Callable[[float], str]]] = {
        "flops": ("model FLOPs", lambda x: f"{x:.2e}".replace("e+", "e")),
        "tokens": ("useful tokens [10⁶]", lambda x: _digits(x / 1e6)),
        "padded_tokens": ("with padding [10⁶]", lambda x: _digits(x / 1e6)),
        "step_hours": ("hours of steps", _digits),
        "hours": ("hours in all", _digits),
    }

    def sums(costs: Sequence[dict[str, Any]]) -> list[str]:
        texts = []
        for name, (_, form) in shown.items():
            own = [cost[name] for cost in costs]
            texts.append(_NONE if None in own else form(sum(own)))
        devices = dict.fromkeys(cost["device"] or _NONE for cost in costs)
        return [*texts, escape(", ".join(devices))]

    lines, every = [], []
    for stage in found:
        for cell in stage.cells:
            own = [_cost(run) for run in cell.runs]
            name = ": ".join(filter(None, [stage.name, cell.name]))
            head = _label(cell._replace(name=name))
            lines.append(_row(head, [str(len(own)), *sums(own)]))
            every += own
    if len(lines) > 1:
        lines.append(_row("all", [str(len(every)), *sums(every)]))
    heads = ["setting", "runs", *(head for head, _ in shown.values()), "device"]
    caption = (
        "What all runs of a setting took together. Model FLOPs are those of the matrix "
        "products for useful tokens, without padding and rematerialisation. Hours of "
        "steps are those that the result is made of; hours in all have starting, "
        "compiling, evaluating, saving and repeated steps too."
    )
    return _table("cost", caption, [(head, ()) for head in heads], lines)


def _digits(number: float) -> str:
    """Three digits, or all those before the point."""
    if number >= 100 or not number:
        return f"{number:,.0f}"
    return f"{number:.{2 - math.floor(math.log10(number))}f}"


def _curves(found: Sequence[Stage]) -> dict[str, Any]:
    """What the script of the page draws."""
    runs: list[dict[str, Any]] = []
    return {
        "charts": [chart for stage in found for chart in _charts(stage, runs)],
        "runs": runs,
    }


def _charts(stage: Stage, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Charts of a stage, whose runs are appended to `runs`."""
    charts: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    every = [run for cell in stage.cells for run in cell.runs]
    metrics = dict.fromkeys([*_TITLES, *_metrics(every), *_TRAINING])
    for cell in stage.cells:
        for run, label in zip(cell.runs, cell.labels, strict=True):
            seed = label and f", seed {label}"
            sums = _progress(run)
            count = len(sums["step"])
            knots = np.unique(np.linspace(0, count - 1, min(count, _KNOTS)).astype(int))
            axes = {
                name: None
                if math.isnan(sums[name][-1])
                else [_rounded(sums[name][k], 7) for k in knots]
                for name in ("step", "tokens", "hours")
            }
            for name in metrics:
                for prefix in ("", "eval_"):
                    x, y = points(run.lines, prefix + name)
                    if x:
                        x, y = thin(x, y)
                        curve = {"run": len(runs), "heldOut": bool(prefix), "x": x}
                        curve["y"] = [_rounded(value, 5) for value in y]
                        charts[name].append(curve)
            runs.append(
                {"name": cell.name + seed, "look": _look(cell.look), "axes": axes}
            )
    return [
        {
            "stage": stage.name,
            "title": _title(name),
            "fromZero": name in ("learning_rate", "useful_tokens_per_second"),
            "curves": charts[name],
        }
        for name in metrics
        if charts[name]
    ]


def _rounded(number: float, digits: int) -> float | int:
    short = float(f"{number:.{digits}g}")
    return int(short) if short == int(short) else short
