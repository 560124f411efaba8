"""The training loop, from top to bottom: evaluate, save, next batch, step, log."""

import collections
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bert_jax import curves, evaluate, initial, log, metrics, sharding, step, tree
from bert_jax.checkpoint import Checkpoints
from bert_jax.config import Config
from bert_jax.data import device
from bert_jax.data.pipeline import iterate
from bert_jax.errors import UserError
from bert_jax.run import Run, assemble, claim, finished, settle

_IN_FLIGHT = 2  # steps handed to the devices before their results are awaited


def train(config: Config, workdir: str) -> dict[str, Any]:
    """Trains, or continues, the run in `workdir`.

    Args:
      config: of the run; the same config continues from the newest checkpoint.
      workdir: the run directory; holds all that the run leaves.

    Returns:
      The contents of `summary.json`.

    Raises:
      UserError: input that the user can mend, or a loss that is not finite.
    """
    began = time.monotonic()
    if (Path(workdir) / "checkpoints" / "0").is_dir():
        raise UserError(
            f"--workdir={workdir} holds an imported model, which is never changed; "
            f"train it in another one with --config.init={workdir}"
        )
    config, files = settle(initial.adopt(config))
    claim(config, workdir)
    done = finished(workdir)
    if done is not None:
        return done
    run = assemble(config, workdir, _say, files)
    config = run.config
    run.tokenizer.save(Path(workdir, "tokenizer"))

    # --- State: fresh, or the newest checkpoint. ---
    directory = Path(workdir) / "checkpoints"
    best = run.task.best, run.task.largest
    keep = config.keep_last, config.keep_best
    with Checkpoints(directory, *keep, *best) as checkpoints:
        start = checkpoints.latest_step() or 0
        if start:
            wanted = step.abstract_state(run.task, run.optimizer, run.mesh)
            state = checkpoints.restore(wanted, start)
        else:
            state = step.init_state(run.task, run.optimizer, run.mesh, config.seed)
            if config.init:
                state = state._replace(
                    params=initial.weights(config, state.params, _say)
                )
        primary = jax.process_index() == 0
        with log.Reporter(workdir, config.steps, primary, start) as reporter:
            if start:
                reporter.note(f"continuing {workdir} from step {start}")
            loop = _Loop(run, workdir, checkpoints, reporter, start, state)
            summary = loop.run_phases()
    summary["seconds"] = seconds = time.monotonic() - began
    if "score" in summary:
        done = (summary["steps"] - start) * config.phases[-1].batch
        summary["examples_per_second"] = done / seconds  # evaluation and all included
    if primary:
        log.write_json(Path(workdir) / "summary.json", summary)
        try:
            curves.draw([workdir], Path(workdir) / "curves.png")
        except ImportError:
            _say("curves.png is not drawn: matplotlib is not installed")
    return summary


class _Loop:
    """The loop's variables: what every stage of it reads and changes."""

    def __init__(
        self,
        run: Run,
        workdir: str,
        checkpoints: Checkpoints,
        reporter: log.Reporter,
        start: int,
        state: step.TrainState,
    ):
        self.run, self.workdir = run, workdir
        self.checkpoints, self.reporter = checkpoints, reporter
        self.start, self.step, self.state = start, start, state
        self.eval_step = step.make_eval_step(run.task, run.mesh)
        self.score_step = step.make_score_step(run.task, run.mesh)
        self.sharding = sharding.batch_sharding(run.mesh)
        self.meter = _Meter()
        self.rate: dict[str, float] = {}
        self.scores: dict[str, float] = {}
        self.evaluated: int | None = None  # the step of these scores
        self.stopped = False

    def run_phases(self) -> dict[str, Any]:
        """Runs what is left of every phase; returns the summary."""
        config = self.run.config
        starts = config.phase_starts()
        held_out = None
        for i, (begin, end) in enumerate(zip(starts, starts[1:], strict=False)):
            last = i == len(config.phases) - 1
            if self.step < end or last:
                held_out = self.run.data.held_out(i)
                self.reporter.note(_introduce(i, config, held_out.facts))
                self.run_phase(i, begin, end, held_out)
            if self.stopped:
                break
        assert held_out is not None
        if self.evaluated != self.step:
            self.evaluate(held_out)
        self.checkpoints.save(self.step, self.state, self.scores)
        self.checkpoints.wait()
        best = self.checkpoints.best() if held_out.score else None
        return {
            **self.scores,
            **held_out.facts,
            **({"best_step": best[0], "score": best[1]["eval_score"]} if best else {}),
            "steps": self.step,
            "tokens_per_second": self.rate.get("useful_tokens_per_second"),
            "params_digest": tree.params_digest(self.state.params),
        }

    def run_phase(
        self, index: int, begin: int, end: int, held_out: evaluate.HeldOut
    ) -> None:
        run, config = self.run, self.run.config
        phase = config.phases[index]
        batches = run.data.batches(index)
        train_step = step.make_train_step(
            run.task,
            run.optimizer,
            run.schedule,
            run.mesh,
            config.seed,
            phase.accumulate,
        )
        part = device.host_part()
        read = iterate(lambda n: batches.batch(n, part), self.step - begin, end - begin)
        stream = device.prefetch(self.meter.count(read), self.sharding)
        self.meter.start()
        while self.step < end:
            if self.step != self.start:  # what a restored step had done already
                if self.step % config.eval_every == 0:
                    self.drain(batches, begin)
                    self.evaluate(held_out)
                if self.step % config.save_every == 0:
                    self.drain(batches, begin)
                    evaluated = self.step % config.eval_every == 0
                    scores = self.scores if evaluated else None
                    self.checkpoints.save(self.step, self.state, scores)
            if self.step % config.eval_every == 0 and self.is_stale():
                self.stopped = True
                return
            batch = self.meter.wait(stream)
            self.state, measured = train_step(self.state, batch)
            self.step += 1
            self.meter.add(measured)
            if self.step % config.log_every == 0 or self.step == end:
                self.drain(batches, begin)

    def evaluate(self, held_out: evaluate.HeldOut) -> None:
        task, params = self.run.task, self.state.params
        self.scores = evaluate.evaluate(
            task,
            self.eval_step,
            self.score_step,
            params,
            held_out,
            self.sharding,
        )
        self.evaluated = self.step
        self.reporter.evaluation(self.step, self.scores)
        self.meter.start()

    def is_stale(self) -> bool:
        """Whether the best checkpoint is `patience` evaluations old."""
        config = self.run.config
        best = self.checkpoints.best_step() if config.patience else None
        if best is None or self.step - best < config.patience * config.eval_every:
            return False
        told = f"no better than at step {best} in {config.patience} evaluations"
        self.reporter.note(f"{told}: ending at step {self.step}")
        return True

    def drain(self, batches: Any, begin: int) -> None:
        """Reports the steps since the last report; stops if a loss is not finite."""
        steps = self.meter.results()
        if not steps:
            return
        mean = {name: float(np.mean([s[name] for s in steps])) for name in steps[0]}
        mean["learning_rate"] = steps[-1]["learning_rate"]
        self.rate = self.meter.rates(self.run.config, batches, len(steps))
        self.reporter.train(self.step, mean | self.rate)
        for i, values in enumerate(steps):
            if not np.isfinite([values["loss"], values["grad_norm"]]).all():
                self.stop_not_finite(self.step - len(steps) + i, values, batches, begin)

    def stop_not_finite(
        self, bad: int, values: dict[str, float], batches: Any, begin: int
    ) -> None:
        """Keeps the batch of step `bad`, which a batch's number is enough to remake."""
        path = Path(self.workdir) / f"not_finite_step_{bad}.npz"
        arrays: dict[str, Any] = batches.batch(bad - begin)
        np.savez(path, **arrays)
        saved = self.checkpoints.latest_step()
        raise UserError(
            f"step {bad}: loss {values['loss']}, gradient norm {values['grad_norm']}; "
            f"its batch is in {path}, the newest checkpoint is of step {saved}. Try a "
            "lower --config.optim.peak_rate, a longer --config.optim.warmup_share or "
            "--config.model.dtype=float32, in another --workdir"
        )


class _Meter:
    """Time, tokens and metrics of the steps since the last report."""

    def __init__(self) -> None:
        self._pending: collections.deque[Any] = collections.deque()
        self._tokens: collections.deque[tuple[int, int]] = collections.deque()
        self.start()

    def start(self) -> None:
        """Time counts from here."""
        self._began, self._waited = time.monotonic(), 0.0

    def count(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Passes batches on, noting their tokens, with padding and without."""
        for batch in batches:
            example = batch["example"]
            self._tokens.append((int(np.count_nonzero(example)), example.size))
            yield batch

    def wait(self, stream: Iterator[Any]) -> Any:
        """The next batch; waiting for it is counted."""
        if len(self._pending) >= _IN_FLIGHT:
            jax.block_until_ready(self._pending[-_IN_FLIGHT])
        began = time.monotonic()
        batch = next(stream)
        self._waited += time.monotonic() - began
        return batch

    def add(self, measured: dict[str, jax.Array]) -> None:
        """Takes the metrics of a step that may still be running."""
        self._pending.append(measured)

    def results(self) -> list[dict[str, float]]:
        """The metrics of all steps since the last call; waits for the last one."""
        found = jax.device_get(list(self._pending))
        self._pending.clear()
        return [{name: float(v) for name, v in item.items()} for item in found]

    def rates(self, config: Config, batches: Any, steps: int) -> dict[str, float]:
        """Speeds since the last report, over all devices."""
        seconds = max(time.monotonic() - self._began, 1e-9)
        counts = np.array([self._tokens.popleft() for _ in range(steps)])
        useful, padded = (counts.sum(0) * jax.process_count()).tolist()
        length = batches.phase.length
        row = metrics.train_flops(config.model, length, batches.masked)
        flops = row * useful / length / seconds
        rates = {
            "useful_tokens_per_second": useful / seconds,
            "padded_tokens_per_second": padded / seconds,
            "flops_per_second": flops,
            "input_wait_share": self._waited / seconds,
            "steps_per_second": steps / seconds,
        }
        peak = metrics.device_peak(jax.devices()[0].device_kind)
        if peak:
            rates["mfu"] = flops / (peak * jax.device_count())
        self.start()
        return rates


def _say(text: str) -> None:
    """Speaks before the run's own reporting is open."""
    if jax.process_index() == 0:
        print(text, file=sys.stderr, flush=True)


def _introduce(index: int, config: Config, facts: dict[str, Any]) -> str:
    phase, count = config.phases[index], len(config.phases)
    named = [
        f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}"
        for name, value in facts.items()
    ]
    return (
        f"phase {index + 1} of {count}: batches of {phase.batch}, {phase.length} "
        f"tokens a row; {', '.join(named)}"
    )
