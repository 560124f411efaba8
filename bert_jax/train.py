"""The training loop, from top to bottom: evaluate, save, next batch, step, log."""

import collections
import gc
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bert_jax import (
    __version__,
    curves,
    distributed,
    evaluate,
    goodput,
    initial,
    labelled,
    log,
    metrics,
    owner,
    remote,
    rundir,
    sharding,
    step,
    teacher,
    tree,
)
from bert_jax.checkpoint import Checkpoints
from bert_jax.config import Config
from bert_jax.data import device
from bert_jax.data.pipeline import iterate
from bert_jax.data.tokenizer import load_tokenizer
from bert_jax.errors import Stopped, UserError
from bert_jax.model.attention import in_training
from bert_jax.resolve import labelled_files, resolve
from bert_jax.run import Run, assemble
from bert_jax.rundir import finished
from bert_jax.watch import Watch

_IN_FLIGHT = 2  # steps handed to the devices before their results are awaited


def train(config: Config, workdir: str, watch: Watch | None = None) -> dict[str, Any]:
    """Trains, or continues, the run in `workdir`.

    Args:
      config: of the run; the same config continues from the newest checkpoint.
      workdir: the run directory; holds all that the run leaves. All processes of the
        run must see the same one.
      watch: over signals and other processes, already entered; None: nobody watches.

    Returns:
      The contents of `summary.json`.

    Raises:
      UserError: input that the user can mend, or a loss that is not finite.
      Stopped: by a signal; what was done is saved.
    """
    began = time.monotonic()
    watch = watch or Watch(0)
    directory = remote.where(workdir, remote.CHECKPOINTS)
    if (directory / "0" / "params").is_dir():
        raise UserError(
            f"--workdir={workdir} holds an imported model, which is never changed; "
            f"train it in another one with --config.init={workdir}"
        )
    asked, done = config, finished(workdir)
    known = rundir.continued(asked, workdir)
    if known is None:
        config, files = resolve(asked)
    else:
        config, files = (known, None) if done else labelled_files(known)
    tutor = config.distill.teacher
    if known and done is None and tutor and not Path(tutor).is_dir():
        raise UserError(
            f"config.distill.teacher={tutor}: not there any more, and the run needs "
            "its teacher to continue; name its new place with "
            "--config.distill.teacher=DIR"
        )
    facts = {**tree.flatten({"config": asdict(config)}), **_versions()}
    if known:  # whose tokenizer is this process's copy
        facts.pop("config/tokenizer/path")
    distributed.agree("start", facts)
    if done is None:
        with owner.hold(workdir, _say):
            if distributed.index() == 0:  # all have agreed on the config
                rundir.claim(config, workdir)
            done = finished(workdir)  # by an owner that was awaited
            if done is None:
                return _train(asked, config, files, workdir, watch, began)
    if known is None:
        rundir.claim(config, workdir, write=False)
    return done


def _train(
    asked: Config,
    config: Config,
    files: labelled.Files | None,
    workdir: str,
    watch: Watch,
    began: float,
) -> dict[str, Any]:
    """Trains the claimed run to its end; arguments and result as of `train`."""
    directory = remote.where(workdir, remote.CHECKPOINTS)
    remote.push(workdir)  # a bucket that cannot be written is noticed here
    watch.doing("preparing the data", within=distributed.PREPARE)
    run = assemble(config, workdir, _say, files, teach=True)
    config = run.config
    facts = run.data.facts()
    distributed.agree("data", facts, distributed.PREPARE)
    if run.task.given:
        facts["teacher"] = tree.params_digest(run.task.given)
    rundir.compare(workdir, facts)
    if distributed.index() == 0:
        _keep_tokenizer(run, workdir)
        rundir.remember(workdir, asked, facts)

    # --- State: fresh, or the newest checkpoint that is whole. ---
    best = run.task.best, run.task.largest
    keep = config.keep_last, config.keep_best
    borders = run.data.borders()
    with Checkpoints(directory, *keep, *best, borders=borders) as checkpoints:
        watch.doing("restoring")
        start = checkpoints.newest_whole(_say) or 0
        if start:
            wanted = step.abstract_state(run.task, run.optimizer, run.mesh)
            state = checkpoints.restore(wanted, start)
        else:
            state = _first_state(run)
        primary = distributed.index() == 0
        with log.Reporter(workdir, config.steps, primary, start) as reporter:
            kind, count = jax.devices()[0].device_kind, jax.device_count()
            spent = time.monotonic() - began
            reporter.event("start", start, spent, device=kind, devices=count)
            if start:
                where = remote.where(workdir)
                reporter.note(f"continuing {where} from step {start}")
            loop = _Loop(run, workdir, checkpoints, reporter, start, state, watch)
            try:
                summary = loop.run_phases()
            except Stopped as stopped:
                raise loop.save_and_stop(stopped) from None
            finally:
                gc.unfreeze()
    summary["seconds"] = seconds = time.monotonic() - began
    if "score" in summary:
        done = (summary["steps"] - start) * config.phases[-1].batch
        summary["examples_per_second"] = done / seconds  # evaluation and all included
    if primary:
        summary["goodput"] = goodput.account(workdir)["goodput"]
        log.write_json(Path(workdir) / "summary.json", summary)
        try:
            curves.draw([workdir], Path(workdir) / "curves.png")
        except ImportError:
            _say("curves.png is not drawn: matplotlib is not installed")
    return summary


def _keep_tokenizer(run: Run, workdir: str) -> None:
    """Saves the tokenizer in the run directory, if there is none; else compares it."""
    place = Path(workdir, "tokenizer")
    if not place.exists():
        fresh = place.with_name(".tokenizer.new")  # which a full disk may leave
        run.tokenizer.save(fresh)
        fresh.rename(place)
        return
    settings = replace(run.config.tokenizer, kind=run.tokenizer.kind)
    there = load_tokenizer(place, settings).vocabulary().hash
    now = run.tokenizer.vocabulary().hash
    if there != now:
        raise UserError(
            f"{place}: its vocabulary is {there[:12]}, that of the data {now[:12]}; "
            "use the data that it belongs to, or another --workdir"
        )


def _first_state(run: Run) -> step.TrainState:
    """Random, or with the weights that the config names."""
    config = run.config
    state = step.init_state(run.task, run.optimizer, run.mesh, config.seed)
    if config.init:
        return state._replace(params=initial.weights(config, state.params, _say))
    if config.distill.teacher and config.distill.copy:
        params = teacher.copied(config, state.params, *run.task.given, note=_say)
        return state._replace(params=params)
    return state


def _versions() -> dict[str, str]:
    """What makes processes compute the same."""
    names = "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"
    found = {name: metadata.version(name) for name in names}
    found |= {"bert_jax": __version__, "Python": platform.python_version()}
    return {f"version of {name}": version for name, version in found.items()}


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
        watch: Watch,
    ):
        self.run, self.workdir, self.watch = run, workdir, watch
        self.checkpoints, self.reporter = checkpoints, reporter
        self.start, self.step, self.state = start, start, state
        self.eval_step = step.make_eval_step(run.task, run.mesh)
        self.score_step = step.make_score_step(run.task, run.mesh)
        self.sharding = sharding.batch_sharding(run.mesh)
        self.part = device.host_part(self.sharding)
        self.meter = _Meter(self.part)
        self.rate: dict[str, float] = {}
        self.scores = checkpoints.scores(start)
        # The step of these scores; one that was stopped in its evaluation has none.
        self.evaluated: int | None = start if self.scores else None
        self.stopped = False

    def run_phases(self) -> dict[str, Any]:
        """Runs what is left of every phase; returns the summary."""
        config = self.run.config
        starts = config.phase_starts()
        held_out, facts = None, {}
        for i, (begin, end) in enumerate(zip(starts, starts[1:], strict=False)):
            last = i == len(config.phases) - 1
            if self.step < end or last:
                held_out, batches = self.run.data.held_out(i), self.run.data.batches(i)
                facts = held_out.facts if held_out else {}
                self.reporter.note(_introduce(i, config, facts))
                for text in batches.describe():
                    self.reporter.note(text)
                self.run_phase(i, begin, end, batches, held_out)
            if self.stopped:
                break
        if held_out and self.evaluated != self.step:
            self.evaluate(held_out)
        self.save()
        self.checkpoints.wait()
        best = self.checkpoints.best() if held_out and held_out.score else None
        return {
            **self.scores,
            **facts,
            **({"best_step": best[0], "score": best[1]["eval_score"]} if best else {}),
            "steps": self.step,
            "tokens_per_second": self.rate.get("useful_tokens_per_second"),
            "params_digest": tree.params_digest(self.state.params),
        }

    def run_phase(
        self,
        index: int,
        begin: int,
        end: int,
        batches: Any,
        held_out: evaluate.HeldOut | None,
    ) -> None:
        run, config = self.run, self.run.config
        phase = config.phases[index]
        train_step = step.make_train_step(
            run.task,
            run.optimizer,
            run.schedule,
            run.mesh,
            config.seed,
            phase.accumulate,
        )

        def read(number: int) -> Any:
            return batches.batch(number, self.part)

        ready = self.meter.count(iterate(read, self.step - begin, end - begin))
        stream = device.prefetch(ready, self.sharding, self.part)
        self.meter.start()
        compiled = False
        while self.step < end:
            # A restored step was evaluated and saved, unless a signal came between.
            due = self.step > 0 and self.step % config.eval_every == 0
            if held_out and due and self.evaluated != self.step:
                self.drain(batches, begin)
                self.evaluate(held_out)
            if self.step != self.start and self.step % config.save_every == 0:
                self.drain(batches, begin)
                self.save()
            if due and self.is_stale():
                self.stopped = True
                return
            try:
                self.watch.poll("waiting for a batch")
            except Stopped:
                self.drain(batches, begin)  # reported, and not saved if not finite
                raise
            batch = self.meter.wait(stream)
            self.watch.doing("training" if compiled else "compiling")
            began = time.monotonic()
            if not compiled:
                # All that is here by now stays: collecting garbage without looking
                # through it spares some tenths of a second, now and between steps.
                gc.freeze()
            self.state, measured = train_step(self.state, batch, *run.task.given)
            if not compiled:
                compiled = True
                self.watch.doing("training", begun=True)
                seconds = time.monotonic() - began
                self.reporter.event("compile", self.step, seconds)
                self.meter.leave_out(seconds)
            self.step += 1
            self.meter.add(measured)
            if self.step % config.log_every == 0 or self.step == end:
                self.drain(batches, begin)

    def save(self) -> None:
        """Starts saving this step, with its scores if it has any."""
        self.watch.doing("saving")
        began = time.monotonic()
        scores = self.scores if self.evaluated == self.step else None
        remote.push(self.workdir)
        self.checkpoints.save(self.step, self.state, scores)
        self.reporter.event("save", self.step, time.monotonic() - began)
        self.meter.start()

    def save_and_stop(self, stopped: Stopped) -> Stopped:
        """Saves this step; returns how to say so."""
        self.save()
        self.checkpoints.wait()
        return Stopped(
            f"{stopped}: step {self.step} is saved; the same command continues "
            f"{remote.where(self.workdir)}",
            stopped.status,
        )

    def evaluate(self, held_out: evaluate.HeldOut) -> None:
        began = time.monotonic()
        self.scores = evaluate.evaluate(
            self.run.task,
            self.eval_step,
            self.score_step,
            self.state.params,
            held_out,
            self.sharding,
            self.watch.poll,
        )
        self.evaluated = self.step
        self.reporter.evaluation(self.step, self.scores)
        self.reporter.event("evaluate", self.step, time.monotonic() - began)
        remote.push(self.workdir)
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
        self.checkpoints.check()
        steps = self.meter.results()
        if not steps:
            return
        mean = {name: float(np.mean([s[name] for s in steps])) for name in steps[0]}
        mean["learning_rate"] = steps[-1]["learning_rate"]
        spent, waited = self.meter.seconds()
        done = {"waited": waited, "steps": len(steps)}
        self.reporter.event("train", self.step, spent, **done)
        self.rate = self.meter.rates(self.run, batches, len(steps))
        self.reporter.train(self.step, mean | self.rate)
        for i, values in enumerate(steps):
            if not np.isfinite([values["loss"], values["grad_norm"]]).all():
                self.stop_not_finite(self.step - len(steps) + i, values, batches, begin)

    def stop_not_finite(
        self, bad: int, values: dict[str, float], batches: Any, begin: int
    ) -> None:
        """Keeps the batch of step `bad`, which a batch's number is enough to remake."""
        path = Path(self.workdir) / f"not_finite_step_{bad}.npz"
        if distributed.index() == 0:
            arrays: dict[str, Any] = batches.batch(bad - begin)
            np.savez(path, **arrays)
        saved = self.checkpoints.latest_step()
        raise UserError(
            f"step {bad}: loss {values['loss']}, gradient norm {values['grad_norm']}; "
            f"its batch is in {remote.where(self.workdir, path.name)}, the newest "
            f"checkpoint is of step {saved}. Try a lower --config.optim.peak_rate, a "
            "longer --config.optim.warmup_share or "
            "--config.model.dtype=float32, in another --workdir"
        )


class _Meter:
    """Time, tokens and metrics of the steps since the last report."""

    def __init__(self, part: device.Part) -> None:
        self._hosts = part[1]  # with rows of their own
        self._pending: collections.deque[Any] = collections.deque()
        self._tokens: collections.deque[tuple[int, int]] = collections.deque()
        self.start()

    def start(self) -> None:
        """Time counts from here."""
        self._began, self._waited = time.monotonic(), 0.0

    def leave_out(self, seconds: float) -> None:
        """Does not count these seconds."""
        self._began += seconds

    def seconds(self) -> tuple[float, float]:
        """Since the last report, and those of them waited for batches."""
        return max(time.monotonic() - self._began, 1e-9), self._waited

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

    def rates(self, run: Run, batches: Any, steps: int) -> dict[str, float]:
        """Speeds since the last report, over all devices."""
        seconds, waited = self.seconds()
        counts = np.array([self._tokens.popleft() for _ in range(steps)])
        useful, padded = (counts.sum(0) * self._hosts).tolist()
        length = batches.phase.length
        config, masked = run.config, batches.masked
        objective = config.objective if config.task.kind == "pretrain" else None
        sizes = config.model, length, masked
        row = metrics.train_flops(*sizes, objective, run.teacher)
        flops = row * useful / length / seconds
        rates = {
            "useful_tokens_per_second": useful / seconds,
            "padded_tokens_per_second": padded / seconds,
            "flops_per_second": flops,
            "input_wait_share": waited / seconds,
            "steps_per_second": steps / seconds,
        }
        peak = metrics.device_peak(jax.devices()[0].device_kind)
        if peak:
            rates["mfu"] = flops / (peak * jax.device_count())
        self.start()
        return rates


def _say(text: str) -> None:
    """Speaks before the run's own reporting is open."""
    if distributed.index() == 0:
        print(text, file=sys.stderr, flush=True)


def _introduce(index: int, config: Config, facts: dict[str, Any]) -> str:
    phase, count = config.phases[index], len(config.phases)
    named = [
        f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}"
        for name, value in facts.items()
    ]
    kind = jax.devices()[0].device_kind
    using, faster = in_training(config.model, phase.length, kind)
    if faster:
        named.append(
            f"attention {using} ({faster} with config.model.attention_dropout=0)"
        )
    return (
        f"phase {index + 1} of {count}: batches of {phase.batch}, {phase.length} "
        f"tokens a row; {', '.join(named) or 'no evaluation, as no text is held out'}"
    )
