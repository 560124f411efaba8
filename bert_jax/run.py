"""What a run is made of: its directory, its data and its compiled parts."""

import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import optax
from jax.sharding import Mesh

from bert_jax import distributed, labelled, log, optim, remote, sharding, teacher
from bert_jax.config import Config, Model, load, to_json
from bert_jax.data import prepare
from bert_jax.data.pipeline import Batches
from bert_jax.data.store import Store, open_store
from bert_jax.data.tokenizer import TextTokenizer, load_tokenizer
from bert_jax.errors import UserError
from bert_jax.evaluate import HeldOut, held_out
from bert_jax.initial import as_trained, fit_vocabulary
from bert_jax.resolve import own_tokenizer
from bert_jax.tasks import Task, frozen
from bert_jax.tasks.classify import classify, untrained
from bert_jax.tasks.distill import distill
from bert_jax.tasks.pretrain import pretrain
from bert_jax.tasks.span import span

# Settings that may differ when a run is continued: they change no result.
_FREE = (
    *("log_every", "eval_every", "save_every", "keep_last", "keep_best"),
    *("mesh", "hang_after"),
)


@runtime_checkable
class Data(Protocol):
    """Where batches come from."""

    def batches(self, phase: int) -> Any:
        """Training batches of a phase, with `batch(number, part)`."""
        ...

    def held_out(self, phase: int) -> HeldOut:
        """What the model is scored on."""
        ...

    def borders(self) -> list[int]:
        """Steps at which the held-out set becomes another one, so do its scores."""
        ...

    def fingerprint(self) -> str:
        """Equal in two processes that have the same examples."""
        ...


class Stored(NamedTuple):
    """Pretraining examples of a token store."""

    store: Store
    config: Config

    def batches(self, phase: int) -> Batches:
        """Training batches of a phase."""
        return Batches(self.store, self.config, phase)

    def held_out(self, phase: int) -> HeldOut:
        """The held-out documents, with fixed masks."""
        return held_out(self.store, self.config, phase)

    def borders(self) -> list[int]:
        """Starts of the phases whose rows differ from those of the phase before."""
        phases, starts = self.config.phases, self.config.phase_starts()
        rows = [(phase.length, phase.max_packed) for phase in phases]
        return [starts[i] for i in range(1, len(rows)) if rows[i] != rows[i - 1]]

    def fingerprint(self) -> str:
        """Sizes, vocabulary and, of all but old stores, checksums."""
        names = "documents", "sentences", "tokens", "vocabulary", "checksums"
        return json.dumps({name: self.store.manifest.get(name) for name in names})


class Run(NamedTuple):
    """The parts of a run that do not change while it lasts."""

    config: Config  # model.vocab_size is that of the tokenizer
    tokenizer: TextTokenizer
    data: Data
    mesh: Mesh
    task: Task
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    teacher: Model | None = None  # its sizes, where one is distilled


def store_directory(config: Config, workdir: str) -> str:
    """Where the token store of a run lies."""
    return config.data.store or str(remote.where(workdir, remote.STORE))


def assemble(
    config: Config,
    workdir: str,
    note: Callable[[str], None],
    files: labelled.Files | None = None,
    teach: bool = False,
) -> Run:
    """Opens or prepares the data and builds the parts, checking them together.

    Args:
      config: of the run, from `resolve`.
      workdir: the run directory.
      note: is told what takes long.
      files: from `resolve`.
      teach: the run is to be trained, by `config.distill.teacher` if that is set.

    Returns:
      The run; nothing but a teacher is on the devices yet.

    Raises:
      UserError: whatever in config, data or devices does not fit.
    """
    mesh = sharding.make_mesh(config.mesh)
    if config.task.kind in labelled.KINDS:
        files = files or labelled.read(config.task, encoding=config.data.encoding)
        return _labelled(config, mesh, files, note, teach)
    if config.task.kind != "pretrain":
        raise UserError(
            f"config.task.kind={config.task.kind}: cannot be trained or scored; use "
            f"pretrain, {', '.join(labelled.KINDS)}"
        )
    for i, phase in enumerate(config.phases):
        sharding.check_batch(mesh, phase, i)
    directory = store_directory(config, workdir)
    if not (config.data.store and remote.exists(directory, remote.MANIFEST)):

        def prepared() -> None:
            # The text need not be on the other hosts, if the store will come to them.
            if distributed.index() == 0 or not remote.is_remote(directory):
                workers = config.data.num_workers
                prepare.prepare_store(config, directory, workers, note)

        distributed.primary_first("store", prepared)
    store = open_store(directory, note)
    size, limit = store.vocabulary.size, config.model.vocab_size
    if size > limit:
        raise UserError(
            f"{directory} holds a vocabulary of {size} tokens, more than "
            f"config.model.vocab_size={limit}; set --config.model.vocab_size={size}"
        )
    if config.tokenizer.path:
        wanted = load_tokenizer(config.tokenizer.path, config.tokenizer).vocabulary()
        if wanted.hash != store.vocabulary.hash:
            raise UserError(
                f"{directory} was made with another tokenizer than "
                f"config.tokenizer.path={config.tokenizer.path}; name its own "
                "tokenizer, or prepare another store with --config.data.store=DIR"
            )
    config = fit_vocabulary(config, size)
    tokenizer = load_tokenizer(store.path, config.tokenizer)
    return _run(config, tokenizer, Stored(store, config), mesh, note, teach)


def task_of(config: Config) -> Task:
    """The task of a config, whose kind is pretrain or one of `labelled.KINDS`."""
    if config.task.kind == "pretrain":
        return pretrain(config.model, config.objective)
    if config.task.kind == "span":
        return span(config.model, config.task.lstm_hidden * config.task.lstm)
    return classify(config.model, config.task)


def _labelled(
    config: Config,
    mesh: Mesh,
    files: labelled.Files,
    note: Callable[[str], None],
    teach: bool,
) -> Run:
    tokenizer = own_tokenizer(config)
    shares = mesh.shape["data"] * mesh.shape["fsdp"]
    unit = shares * config.phases[0].accumulate
    data = labelled.Labelled(config, files, tokenizer, unit, note)
    return _run(config, tokenizer, data, mesh, note, teach)


def _run(
    config: Config,
    tokenizer: TextTokenizer,
    data: Data,
    mesh: Mesh,
    note: Callable[[str], None],
    teach: bool,
) -> Run:
    task, tutor = task_of(config), None
    if teach and config.distill.teacher:
        tutor = teacher.sizes(config)
        task = _taught(config, tutor, task, mesh, note)
    fixed = "|".join(filter(None, (config.optim.freeze, untrained(config.task))))
    settings = dataclasses.replace(config.optim, freeze=fixed)
    task = frozen(task, settings)
    optimizer = optim.optimizer(settings, config.steps)
    schedule = optim.learning_rate(config.optim, config.steps)
    sizes = tutor and tutor.model
    return Run(config, tokenizer, data, mesh, task, optimizer, schedule, sizes)


def _taught(
    config: Config,
    sizes: Config,
    task: Task,
    mesh: Mesh,
    note: Callable[[str], None],
) -> Task:
    """The task with its teacher, whose parameters are cut like any others."""
    tutor = task_of(sizes)
    shapes = jax.eval_shape(tutor.init, jax.random.key(0))
    shapes = sharding.placed(shapes, sharding.param_shardings(mesh, shapes))
    given = teacher.weights(config, shapes, note)
    return distill(task, tutor, config.distill, given)


def claim(config: Config, workdir: str) -> None:
    """Makes the run directory this config's own.

    Raises:
      UserError: it cannot be written, or belongs to a run with another config.
    """
    path = Path(workdir) / "config.json"
    text = to_json(config)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            if distributed.index() == 0:
                log.write_text(path, text)
            return
        json.loads(path.read_text())
        # As this version reads it: an older one knew fewer fields.
        there = load(str(path), stored=True)
        if there.tokenizer.path and (Path(workdir) / "tokenizer").is_dir():
            size = as_trained(there, workdir).model.vocab_size  # of an older version
            model = dataclasses.replace(there.model, vocab_size=size)
            there = dataclasses.replace(there, model=model)
        old, new = (json.loads(t) for t in (to_json(there), text))
    except OSError as error:
        raise UserError(
            f"--workdir={workdir}: cannot be written ({error.strerror}); choose "
            "another directory or mend its permissions"
        ) from error
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({error}); use another --workdir"
        ) from error
    faults = _differences(old, new, "config")
    if faults:
        raise UserError(
            f"--workdir={workdir} belongs to a run with another config:\n"
            + "\n".join(f"  {fault}" for fault in faults)
            + "\ncontinue it with its own values, or choose another --workdir"
        )


def _differences(old: object, new: object, path: str) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = [
            name for name in {**old, **new} if path != "config" or name not in _FREE
        ]
        pairs = [(old.get(n), new.get(n), f"{path}.{n}") for n in names]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [(*p, f"{path}[{i}]") for i, p in enumerate(zip(old, new, strict=True))]
    else:
        return [] if old == new else [f"{path}: {old!r} there, {new!r} now"]
    return [fault for pair in pairs for fault in _differences(*pair)]


def finished(workdir: str) -> dict | None:
    """The summary of a run that has done all its steps, or None."""
    with contextlib.suppress(OSError, ValueError):
        summary = json.loads((Path(workdir) / "summary.json").read_text())
        return summary if summary["steps"] else None  # 0: an imported model
    return None
