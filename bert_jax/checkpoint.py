"""Saving the training state while training goes on, and getting it back.

Parameters lie in an item of their own (`params`), the rest of the state in another
(`rest`), so that evaluation and export read no optimizer state. A checkpoint counts as
saved once its files have been listed and compared with their checksums.
"""

import bisect
import contextlib
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import absl.logging
import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from bert_jax import checkpoint_files, distributed, remote, tree
from bert_jax.errors import UserError
from bert_jax.step import TrainState

_SHOWN = 12  # differing names in a message
_ASKED = itertools.count()  # a note for each time, as other runs are read too
_RESTORE = 1800  # [s] for process 0 to read through the checkpoints


class Checkpoints:
    """The checkpoints of one run; a context manager that waits for pending saves.

    Every process of a run must make the same calls.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        keep_last: int = 1,
        keep_best: int = 0,
        metric: str = "eval_mlm_loss",
        largest: bool = False,
        read_only: bool = False,
        borders: Sequence[int] = (),
    ) -> None:
        """Opens the directory, making it if need be.

        Args:
          directory: `checkpoints/` of the run directory, from `remote.where`.
          keep_last: newest checkpoints kept.
          keep_best: checkpoints of best `metric` kept besides.
          metric: a name in the metrics given to `save`.
          largest: the best is of the largest `metric`, not the lowest.
          read_only: change nothing there; a run may be writing to it.
          borders: steps from which on scores are of another held-out set, so that
            later ones are never compared with earlier ones. [updates]

        Raises:
          UserError: the directory cannot be made or written.
        """
        # Orbax tells every detail, warns of each save without metrics, and prints the
        # traces of errors that it also raises.
        absl.logging.set_verbosity(absl.logging.FATAL)
        self._directory = epath.Path(directory)
        if not remote.is_remote(directory):  # epath would put it below this one
            self._directory = self._directory.absolute()
        self._metric, self._read_only = metric, read_only
        self._whole: set[int] = set()  # steps whose checksums were right
        self._saving: int | None = None  # the step that is being saved [updates]
        self._open = contextlib.ExitStack()

        def rank(metrics: Mapping[str, float]) -> tuple[float, float, float]:
            """Lower is better, then earlier; what is not a number counts as worst."""
            value = metrics.get(metric, math.nan)
            value = math.inf if math.isnan(value) else value
            value = -value if largest and value != math.inf else value
            step = metrics.get("step", math.inf)
            return -bisect.bisect_right(borders, step), value, step

        self._rank = rank
        keep: list[policies.PreservationPolicy] = [policies.LatestN(keep_last)]
        if keep_best:
            keep.append(
                policies.BestN(
                    get_metric_fn=rank,  # pyright: ignore  # sorted, best last
                    reverse=True,
                    n=keep_best,
                    keep_checkpoints_without_metrics=False,
                )
            )
        options = ocp.CheckpointManagerOptions(
            # Without best_fn the metrics are not written, whatever the policy.
            best_fn=rank,  # pyright: ignore
            best_mode="min",
            preservation_policy=policies.AnyPreservationPolicy(keep),
            cleanup_tmp_directories=not read_only,
            enable_async_checkpointing=not read_only,
            create=not read_only,
            read_only=read_only,
            async_options=None
            if read_only
            else ocp.AsyncOptions(post_finalization_callback=self._seal),
        )
        with self._writing():
            if not read_only:
                self._directory.mkdir(parents=True, exist_ok=True)
                probe = self._directory / f".writable-{distributed.index()}"
                probe.touch()
                probe.unlink()
            # Named here, so that shapes can be read before anything was saved.
            handlers = {
                name: ocp.StandardCheckpointHandler() for name in ("params", "rest")
            }
            place = self._directory
            if not remote.is_remote(directory) and place.is_dir():
                place = self._open.enter_context(checkpoint_files.literal(Path(place)))
            self._manager = ocp.CheckpointManager(
                place, options=options, item_handlers=handlers
            )

    def save(
        self, step: int, state: TrainState, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Starts saving; returns once the state may be donated to the next step.

        Args:
          step: updates done. A step that is saved already is left as it is.
          state: to be saved, sharded or not.
          metrics: of the evaluation at this step, if there was one; a checkpoint
            without them is never among the best.

        Raises:
          UserError: the directory cannot be written, now or by the save before.
        """
        rest = {"step": state.step, "opt_state": state.opt_state}
        with self._writing():
            if step in self._manager.all_steps():
                return
            self._finish_saving()
            self._saving = step
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(state.params),
                    rest=ocp.args.StandardSave(rest),
                ),
                metrics=metrics and _floats({**metrics, "step": step}),
                force=True,
            )

    def save_params(self, params: Any) -> None:
        """Saves parameters alone, as step 0: a model that did not come from training.

        Raises:
          UserError: the directory cannot be written.
        """
        with self._writing():
            args = ocp.args.Composite(params=ocp.args.StandardSave(params))
            self._saving = 0
            self._manager.save(0, args=args, force=True)
        self.wait()

    def params_shapes(self, step: int) -> Any:
        """The tree of the saved parameters, as `jax.ShapeDtypeStruct`. [updates]"""
        saved = self._manager.item_metadata(step)["params"]
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), saved.tree
        )

    def latest_step(self) -> int | None:
        """The step [updates] of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def newest_whole(self, note: Callable[[str], None]) -> int | None:
        """The newest checkpoint whose files are as they were written.

        Damaged ones are moved out of the way, unless the directory is read only.

        Args:
          note: is told of them.

        Returns:
          Its step [updates], the same in all processes; None: there is none at all.

        Raises:
          UserError: there are checkpoints, all of them damaged.
        """
        board = distributed.Board(f"checkpoint/{next(_ASKED)}")
        if distributed.index():
            step = board.of(0, _RESTORE)
            self._manager.reload()
            self._whole.add(step)
            return step
        self.wait()
        there, damaged, step = self.steps(), [], None
        for step in reversed(there):
            if not (faults := self._faults(step)):
                break
            damaged.append(step)
            folder = self._directory / str(step)
            said = "; ".join(faults[:_SHOWN])
            note(f"{folder} is damaged and not used: {said}")
        else:
            step = None
            full = [s for s in there if not checkpoint_files.is_empty(self._folder(s))]
            if full:
                raise UserError(
                    f"{self._directory}: every checkpoint is damaged; use another "
                    "--workdir, or remove that directory to begin again"
                )
        if not self._read_only:
            for number in damaged:
                self._move_away(number, note)
        self._manager.reload()
        board.put(step)
        return step

    def _folder(self, step: int) -> epath.Path:
        return self._directory / str(step)

    def _move_away(self, step: int, note: Callable[[str], None]) -> None:
        """Renames a damaged checkpoint, so that its step can be saved again."""
        place = self._directory / f"damaged-{step}"
        while place.exists():
            place = place.with_name(place.name + "-again")
        self._folder(step).rename(place)
        note(f"it now lies in {place}")

    def _faults(self, step: int, sealed: bool = False) -> list[str]:
        """Faults of a checkpoint's files; see `checkpoint_files.faults`."""
        if step in self._whole:
            return []
        items = ("params", "rest") if step else ("params",)  # 0: imported
        found = checkpoint_files.faults(self._folder(step), items, sealed)
        if not found:
            self._whole.add(step)
        return found

    def _seal(self) -> None:
        """Writes the checksums of the checkpoint that is about to be complete."""
        if distributed.index() == 0:
            folders = [self._folder(self._saving or 0)]
            if not remote.is_remote(self._directory):  # where nothing is renamed
                prefix = f"{self._saving}.orbax-checkpoint-tmp"
                there = self._directory.iterdir()
                folders = [path for path in there if path.name.startswith(prefix)]
            for folder in folders:
                checkpoint_files.seal(folder)

    def _finish_saving(self) -> None:
        """Waits for the last save, and reads back what it wrote.

        Raises:
          UserError: a file is missing or differs from what was written.
        """
        self._manager.wait_until_finished()
        step, self._saving = self._saving, None
        if step is None or distributed.index():
            return
        folder = self._folder(step)
        faults = self._faults(step, True) if folder.is_dir() else ["it is not there"]
        if faults or step not in self._manager.all_steps(read=True):
            said = "; ".join(faults[:_SHOWN]) or "it is not listed"
            raise UserError(
                f"{folder} was saved and cannot be read back: {said}. Check the disk, "
                "then run the same command again; it uses the newest whole checkpoint"
            )

    def check(self) -> None:
        """Looks whether a save in the background has failed.

        Raises:
          UserError: it could not be written.
        """
        with self._writing():
            self._manager.check_for_errors()

    def scores(self, step: int) -> dict[str, float]:
        """The metrics that a step was saved with; none if it was not evaluated."""
        there = self._metrics(step) if step in self.steps() else {}
        return {k: v for k, v in there.items() if k != "step"}

    def best(
        self, note: Callable[[str], None] = lambda text: None
    ) -> tuple[int, dict[str, float]] | None:
        """The whole checkpoint of best metric: its step [updates] and its metrics.

        Args:
          note: receives a line for each better one that is damaged.
        """
        self.wait()
        scored = [(step, self._metrics(step)) for step in self.steps()]
        ranked = [pair for pair in scored if self._metric in pair[1]]
        for step, metrics in sorted(ranked, key=lambda pair: self._rank(pair[1])):
            if not (faults := self._faults(step)):
                return step, metrics
            said = "; ".join(faults[:_SHOWN])
            note(f"{self._folder(step)} is damaged and not used: {said}")
        return None

    def _metrics(self, step: int) -> dict[str, float]:
        try:
            return dict(self._manager.metrics(step) or {})
        except (OSError, ValueError, KeyError):  # of a damaged checkpoint
            return {}

    def best_step(self, note: Callable[[str], None] = lambda text: None) -> int | None:
        """The step [updates] of the checkpoint of best metric, or None; see `best`."""
        best = self.best(note)
        return best[0] if best else None

    def steps(self) -> list[int]:
        """The steps [updates] of all complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def restore(self, abstract: TrainState, step: int | None = None) -> TrainState:
        """Reads a state onto the devices that `abstract` names.

        Args:
          abstract: from `step.abstract_state`; its mesh and number of devices may
            differ from those that the state was saved on.
          step: which checkpoint; None is the newest. [updates]

        Returns:
          TrainState of arrays, bit for bit as saved.

        Raises:
          UserError: there is no such checkpoint, or its arrays have other names,
            shapes or types.
        """
        wanted = {
            "params": abstract.params,
            "rest": {"step": abstract.step, "opt_state": abstract.opt_state},
        }
        found = self._restore(wanted, step)
        rest = found["rest"]
        return TrainState(rest["step"], found["params"], rest["opt_state"])

    def restore_params(self, abstract: Any, step: int | None = None) -> Any:
        """Reads the parameters alone.

        Args:
          abstract: nested dict of `jax.ShapeDtypeStruct` with shardings.
          step: which checkpoint; None is the newest. [updates]

        Returns:
          The same tree of arrays.

        Raises:
          UserError: as `restore`.
        """
        return self._restore({"params": abstract}, step)["params"]

    def wait(self) -> None:
        """Returns when the last save is complete on disk.

        Raises:
          UserError: it could not be written.
        """
        with self._writing():
            self._finish_saving()

    def close(self) -> None:
        """Waits for the last save and lets go of the directory."""
        with self._open:
            self.wait()
            with self._writing():
                self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:  # what has failed already would be raised again
            with contextlib.suppress(Exception), self._open:
                self._manager.close()

    def _restore(self, wanted: dict[str, Any], step: int | None) -> Any:
        self.wait()
        step = self.latest_step() if step is None else step
        if step is None or step not in self.steps():
            there = ", ".join(map(str, self.steps())) or "none"
            which = "" if step is None else f" of step {step}"
            raise UserError(
                f"{self._directory}: no checkpoint{which}; complete ones: {there}"
            )
        if damage := self._faults(step):
            said = "; ".join(damage[:_SHOWN])
            raise UserError(f"{self._folder(step)} is damaged: {said}")
        saved = self._manager.item_metadata(step)
        faults = [
            fault
            for item, abstract in wanted.items()
            for fault in _differences(saved[item], abstract)
        ]
        if faults:
            lines = "\n".join(f"  {fault}" for fault in faults[:_SHOWN])
            more = f"\n  and {len(faults) - _SHOWN} more" if faults[_SHOWN:] else ""
            raise UserError(
                f"{self._folder(step)} was saved by another model or "
                f"optimizer:\n{lines}{more}\nset config.model, config.objective and "
                "config.optim (name, bias_correction) as in the "
                "config.json beside the checkpoints, or use another --workdir"
            )
        args = {name: ocp.args.StandardRestore(item) for name, item in wanted.items()}
        return self._manager.restore(step, args=ocp.args.Composite(**args))

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            if isinstance(error, ValueError) and "RESOURCE_EXHAUSTED" not in str(error):
                raise  # TensorStore has no other type for a full disk
            reason = getattr(error, "strerror", None) or "No space left on device"
            raise UserError(
                f"cannot write checkpoints to {self._directory}: {reason}; point "
                "--workdir at a directory that is writable and has room. Checkpoints "
                "that are there stay as they are"
            ) from error


def _floats(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}


def _differences(saved: Any, wanted: Any) -> list[str]:
    """One line for each array that is missing, superfluous or otherwise shaped."""
    have = {name: _text(leaf) for name, leaf in tree.flatten(saved).items()}
    want = {name: _text(leaf) for name, leaf in tree.flatten(wanted).items()}
    return [
        f"{name}: {have.get(name, 'absent')} in the checkpoint, "
        f"{want.get(name, 'absent')} in this run"
        for name in sorted({*have, *want})
        if have.get(name) != want.get(name)
    ]


def _text(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"
