"""A run's reporting: metrics.jsonl, TensorBoard events and the terminal."""

import contextlib
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bert_jax.errors import UserError

Metrics = Mapping[str, float | int]
EVENTS = "events.jsonl"


class Reporter:
    """Writes what a run measures to every place where someone looks for it.

    `metrics.jsonl` in the run directory is the source of truth: one JSON object a
    line with `step`, `kind` ("train" or "eval"), `time` [seconds since the epoch]
    and the metrics. TensorBoard events lie under `tensorboard/`. People read
    stderr: a progress bar on a terminal, plain lines elsewhere. A context manager;
    on a host that is not primary it does nothing.

    Args:
      workdir: the run directory.
      total_steps: length of the run. [steps]
      is_primary: whether this host is the one that reports.
      start_step: the step a resumed run continues from. Lines of later steps,
        which a killed run left behind and which will be run again, are removed.
    """

    def __init__(
        self,
        workdir: str | Path,
        total_steps: int,
        is_primary: bool = True,
        start_step: int = 0,
    ) -> None:
        self._is_primary, self._workdir = is_primary, workdir
        self._total = total_steps
        self._start = start_step
        self._progress: Any = None
        # The first report: what comes before it includes compilation.
        self._first: tuple[float, int] | None = None
        if not is_primary:
            return
        # Imported only now, so that write_json serves machines without it.
        from tensorboardX import SummaryWriter

        path = Path(workdir) / "metrics.jsonl"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _truncate(path, start_step)
            self._file = path.open("a", encoding="utf-8")
            _truncate(path.parent / EVENTS, sys.maxsize)
            self._history = (path.parent / EVENTS).open("a", encoding="utf-8")
            # purge_step: TensorBoard hides the events of steps that run again.
            self._events = SummaryWriter(
                str(path.parent / "tensorboard"),
                purge_step=start_step + 1 if start_step else None,
            )
        except OSError as error:
            raise UserError(
                f"--workdir={workdir}: cannot be written to ({error}); "
                "choose another directory or mend its permissions"
            ) from error

    def __enter__(self) -> "Reporter":
        if self._is_primary and sys.stderr.isatty():
            self._progress = _progress_bar()
            self._task = self._progress.add_task(
                "", total=self._total, completed=self._start
            )
            self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if not self._is_primary:
            return
        if self._progress is not None:
            self._progress.stop()
        with contextlib.suppress(OSError):  # what was not written was told of
            self._file.close()
            self._history.close()
            self._events.close()

    def train(self, step: int, metrics: Metrics) -> None:
        """Reports training metrics, as of after `step` updates."""
        if not self._is_primary:
            return
        self._write(step, "train", metrics)
        text = _describe(metrics)
        if self._progress is not None:
            self._progress.update(self._task, completed=step, description=text)
            return
        eta = self._eta(step)
        print(
            "  ".join(filter(None, [f"step {step}/{self._total}", text, eta])),
            file=sys.stderr,
            flush=True,
        )

    def evaluation(self, step: int, metrics: Metrics) -> None:
        """Reports an evaluation of the parameters after `step` updates."""
        if not self._is_primary:
            return
        self._write(step, "eval", metrics)
        parts = [
            f"{name} {value:.4f}"
            for name, value in metrics.items()
            if isinstance(value, float)
        ]
        self.note("  ".join([f"evaluation at step {step}", *parts]))

    def event(self, kind: str, step: int, seconds: float, **more: float | str) -> None:
        """Notes in events.jsonl, which restarts only add to, what took time.

        Args:
          kind: start, compile, train, evaluate or save.
          step: updates done by then.
          seconds: it took, until now.
          **more: further figures; of a start `device`, its kind, and `devices`.
        """
        if self._is_primary:
            record = {"time": round(time.time(), 3), "event": kind, "step": step}
            record = {**record, "seconds": round(seconds, 4), **more}
            with _writing(self._workdir):
                self._history.write(to_json(record) + "\n")
                self._history.flush()

    def note(self, text: str) -> None:
        """Tells the person at the terminal something; it is stored nowhere."""
        if not self._is_primary:
            return
        if self._progress is not None:
            self._progress.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def _write(self, step: int, kind: str, metrics: Metrics) -> None:
        record = {"step": step, "kind": kind, "time": round(time.time(), 3)}
        with _writing(self._workdir):
            self._file.write(to_json({**record, **metrics}) + "\n")
            self._file.flush()
            for name, value in metrics.items():
                if isinstance(value, int | float):
                    self._events.add_scalar(f"{kind}/{name}", value, step)
            self._events.flush()

    def _eta(self, step: int) -> str:
        now = time.monotonic()
        if self._first is None or step <= self._first[1]:
            self._first = (now, step)
            return ""
        seconds = (now - self._first[0]) / (step - self._first[1])
        return f"eta {_duration(seconds * (self._total - step))}"


@contextlib.contextmanager
def _writing(workdir: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"--workdir={workdir}: cannot be written to ({error.strerror}); make room "
            "or choose another one. Checkpoints that are there stay as they are"
        ) from error


def read_metrics(workdir: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, without one that a crash cut off."""
    return _lines(Path(workdir) / "metrics.jsonl")


def read_events(workdir: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's events.jsonl, those that a crash cut off left out."""
    return _lines(Path(workdir) / EVENTS)


def _lines(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if _step_of(line) < math.inf]


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as indented JSON, whole or not at all.

    NaN and infinities, which JSON does not have, become null.

    Raises:
      UserError: the directory cannot be written to.
    """
    write_text(path, to_json(value, indent=2) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Writes a file, whole or not at all, and its directory if there is none.

    Raises:
      UserError: the directory cannot be written to.
    """
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        _replace(Path(path), text)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error})") from error


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON text in which NaN and infinities are null, so that any parser reads it."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if hasattr(value, "item"):  # a NumPy or JAX scalar
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _truncate(path: Path, step: int) -> None:
    """Keeps the lines of steps up to `step` that are whole; all in one rename."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if _step_of(line) <= step]
    if len(kept) < len(lines):
        _replace(path, "".join(kept))


def _step_of(line: str) -> int | float:
    try:
        return json.loads(line)["step"] if line.endswith("\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf  # cut off by a crash: its step was not saved either


def _replace(path: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        os.fchmod(handle, 0o644)  # mkstemp is for secrets; this is not one
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _progress_bar() -> Any:
    from rich import progress
    from rich.console import Console

    return progress.Progress(
        progress.BarColumn(bar_width=24),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.description}", markup=False),
        progress.TextColumn("eta"),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
    )


_KINDS = ("mlm", "ltr", "rtd", "nsp", "sop")  # of losses, those of most interest


def _describe(metrics: Metrics) -> str:
    """The few metrics worth a glance; the rest are in metrics.jsonl."""
    parts = [
        f"{label} {metrics[name]:.3f}"
        for name, label in (
            ("loss", "loss"),
            *((f"{kind}_accuracy", f"{kind}_acc") for kind in _KINDS),
        )
        if name in metrics
    ]
    for name in ("useful_tokens_per_second", "tokens_per_second"):
        if name in metrics:
            parts.append(f"{_short(metrics[name])} tokens/s")
            break
    return "  ".join(parts)


def _short(number: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return f"{number:.0f}"


def _duration(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minute:02d}m"
    return f"{minute}m{second:02d}s" if minute else f"{second}s"
