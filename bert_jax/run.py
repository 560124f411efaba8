"""What a run is made of: its directory, its data and its compiled parts."""

import dataclasses
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import optax
import xxhash
from jax.sharding import Mesh

from bert_jax import distributed, labelled, optim, remote, rundir, sharding, teacher
from bert_jax.config import Config, Model
from bert_jax.data import prepare
from bert_jax.data.pipeline import Batches
from bert_jax.data.store import Store, open_store
from bert_jax.data.tokenizer import TextTokenizer, load_tokenizer
from bert_jax.errors import UserError
from bert_jax.evaluate import HeldOut, held_out
from bert_jax.initial import fit_vocabulary
from bert_jax.resolve import own_tokenizer
from bert_jax.tasks import Task, frozen
from bert_jax.tasks.classify import classify, untrained
from bert_jax.tasks.distill import distill
from bert_jax.tasks.pretrain import pretrain
from bert_jax.tasks.span import span


@runtime_checkable
class Data(Protocol):
    """Where batches come from."""

    def batches(self, phase: int) -> Any:
        """Training batches of a phase, with `batch(number, part)` and `describe()`."""
        ...

    def held_out(self, phase: int) -> HeldOut | None:
        """What the model is scored on; None if nothing is held out."""
        ...

    def borders(self) -> list[int]:
        """Steps at which the held-out set becomes another one, so do its scores."""
        ...

    def facts(self) -> dict[str, Any]:
        """Fingerprints for `rundir.compare`, equal where the examples are."""
        ...


class Stored(NamedTuple):
    """Pretraining examples of a token store."""

    store: Store
    config: Config

    def batches(self, phase: int) -> Batches:
        """Training batches of a phase."""
        return Batches(self.store, self.config, phase)

    def held_out(self, phase: int) -> HeldOut | None:
        """The held-out text, with fixed masks; None with data.eval_share=0."""
        if not self.config.data.eval_share:
            return None
        return held_out(self.store, self.config, phase)

    def check(self) -> None:
        """Makes a batch of every phase, so that none fails first in mid-run."""
        for phase in range(len(self.config.phases)):
            self.batches(phase).batch(0)
            if self.config.data.eval_share:
                Batches(self.store, self.config, phase, held_out=True).batch(0)

    def borders(self) -> list[int]:
        """Starts of the phases whose rows differ from those of the phase before."""
        phases, starts = self.config.phases, self.config.phase_starts()
        rows = [(phase.length, phase.max_packed) for phase in phases]
        return [starts[i] for i in range(1, len(rows)) if rows[i] != rows[i - 1]]

    def facts(self) -> dict[str, Any]:
        """Sizes and, of all but old stores, fingerprint of the arrays; vocabulary."""
        manifest = self.store.manifest
        names = "documents", "sentences", "tokens"
        facts: dict[str, Any] = {name: manifest[name] for name in names}
        sums = manifest.get("checksums")
        if sums:
            arrays = {n: sums[n] for n in sorted(sums) if n.endswith((".npy", ".bin"))}
            facts["fingerprint"] = xxhash.xxh3_64_hexdigest(json.dumps(arrays).encode())
        return {"store": facts, "vocabulary": self.store.vocabulary.hash}


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
    other: bool = False,
    mesh: Mesh | None = None,
) -> Run:
    """Opens or prepares the data and builds the parts, checking them together.

    Args:
      config: of the run, from `resolve`.
      workdir: the run directory.
      note: is told what takes long.
      files: from `resolve`.
      teach: the run is to be trained, by `config.distill.teacher` if that is set.
      other: other data than the run's own are wanted, and of these only the
        vocabulary has to be the same.
      mesh: mesh of a run that is only scored, whose devices need not divide a batch;
        None is `config.mesh` of all devices.

    Returns:
      The run; nothing but a teacher is on the devices yet.

    Raises:
      UserError: whatever in config, data or devices does not fit.
    """
    own = sharding.make_mesh(config.mesh) if mesh is None else mesh
    if config.task.kind in labelled.KINDS:
        files = files or labelled.read(config.task, encoding=config.data.encoding)
        facts = labelled.facts(config, files)
        rundir.compare(workdir, {} if other else facts)
        return _labelled(config, own, files, note, teach)
    if config.task.kind != "pretrain":
        raise UserError(
            f"config.task.kind={config.task.kind}: cannot be trained or scored; use "
            f"pretrain, {', '.join(labelled.KINDS)}"
        )
    for i, phase in enumerate(config.phases if mesh is None else ()):
        sharding.check_batch(own, phase, i)
    store = _store(config, workdir, note, other)
    directory = store_directory(config, workdir)
    facts = Stored(store, config).facts()
    rundir.compare(workdir, {"vocabulary": facts["vocabulary"]} if other else facts)
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
    data = Stored(store, config)
    if teach:
        data.check()
    return _run(config, tokenizer, data, own, note, teach)


def _store(
    config: Config, workdir: str, note: Callable[[str], None], other: bool
) -> Store:
    """Opens the token store, prepared now if the run has not begun."""
    directory = store_directory(config, workdir)
    ready = remote.exists(directory, remote.MANIFEST)
    begun = "store" in rundir.origin(workdir) and not other
    if begun and not ready:
        flags = {
            "config": Path(workdir, "config.json"),
            "config.data.store": directory,
            "config.tokenizer.path": Path(workdir, "tokenizer"),
        }
        again = shlex.join(f"--{name}={value}" for name, value in flags.items())
        raise UserError(
            f"{directory}: the run's token store is not there any more; name its "
            "place by --config.data.store=DIR, or make it again from the same text: "
            f"bert-jax prepare {again}"
        )
    if not (ready and (begun or config.data.store)):

        def prepared() -> None:
            # The text need not be on the other hosts, if the store will come to them.
            if distributed.index() == 0 or not remote.is_remote(directory):
                workers = config.data.num_workers
                prepare.prepare_store(config, directory, workers, note)

        distributed.primary_first("store", prepared)
    return open_store(directory, note)


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
