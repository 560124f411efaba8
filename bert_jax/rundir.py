"""What a run directory remembers, so that it is whole wherever it is used from.

`config.json` is the resolved config, with absolute paths. `origin.json` holds what the
run began with: the config as given, and fingerprints of data, vocabulary and teacher.
To continue, nothing is decided anew: the same config as given continues with the
resolved one, and fingerprints decide whether the data are the same, not their paths.
"""

import contextlib
import dataclasses
import glob
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bert_jax import log, remote
from bert_jax.config import Config, load, to_json
from bert_jax.data import corpus, prepare, tfds
from bert_jax.data.tokenizer import load_tokenizer
from bert_jax.errors import UserError
from bert_jax.initial import as_trained

ORIGIN = "origin.json"

# Fields that change no result, beyond rounding: they may differ when a run continues.
FREE = (
    *("log_every", "eval_every", "save_every", "keep_last", "keep_best"),
    *("hang_after", "mesh", "data.num_workers", "data.dtype"),
    *("model.attention", "model.scan", "model.remat"),
)
# Places of data whose fingerprints are compared instead.
MOVABLE = ("data.store", "task.train_file", "task.dev_file", "distill.teacher")

_TITLES = {
    "store": "token store (--config.data.store=DIR names its place)",
    "train": "training examples (--config.task.train_file=FILE names their place)",
    "dev": "dev examples (--config.task.dev_file=FILE names their place)",
    "labels": "labels, in order (config.task.labels)",
    "vocabulary": "vocabulary",
    "teacher": "teacher (--config.distill.teacher=DIR names its place)",
}


def absolute(config: Config) -> Config:
    """The config with all its paths on this disk absolute, for other directories."""

    def path(text: str) -> str:
        named = not text or remote.is_remote(text) or tfds.is_named(text)
        return text if named else os.path.abspath(text)

    def source(text: str) -> str:
        expanded = os.path.expanduser(text)
        if not corpus.is_files(text) or os.path.isabs(expanded):
            return expanded
        if os.path.lexists(expanded) or not glob.has_magic(expanded):
            return os.path.abspath(expanded)
        return os.path.join(glob.escape(os.getcwd()), expanded)

    none = "none:" if config.init.startswith("none:") else ""
    data, task, distill = config.data, config.task, config.distill
    return dataclasses.replace(
        config,
        init=none + path(config.init.removeprefix(none)),
        data=dataclasses.replace(
            data, source=tuple(map(source, data.source)), store=path(data.store)
        ),
        tokenizer=dataclasses.replace(
            config.tokenizer, path=path(config.tokenizer.path)
        ),
        task=dataclasses.replace(
            task, train_file=path(task.train_file), dev_file=path(task.dev_file)
        ),
        distill=dataclasses.replace(distill, teacher=path(distill.teacher)),
    )


def origin(workdir: str) -> dict[str, Any]:
    """What the run began with; {} of a run of an older version.

    Raises:
      UserError: the file is damaged.
    """
    path = Path(workdir, ORIGIN)
    try:
        found = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise UserError(
            f"--workdir={workdir}: cannot be read ({error.strerror}); choose another "
            "directory or change its permissions"
        ) from error
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({error}); without it the run's data cannot be "
            "checked: remove the file to go on unchecked"
        ) from error
    return found if isinstance(found, dict) else {}


def continued(asked: Config, workdir: str) -> Config | None:
    """The resolved config of a run that has begun with the config as given.

    Args:
      asked: the config as given, not resolved.
      workdir: the run directory.

    Returns:
      The run's own config, with those fields of `asked` that may differ; None if the
      run has not begun, or under a version that kept no record of it.

    Raises:
      UserError: the run began with another config.
    """
    began = origin(workdir).get("asked")
    if began is None or not Path(workdir, "config.json").is_file():
        return None
    known = _known(workdir)
    defaults, new = _values(Config()), _values(absolute(asked))
    olds = _filled(began, defaults), _values(known)
    faults = min((_faults(old, new, workdir, known) for old in olds), key=len)
    if faults:
        raise _other_config(workdir, faults)
    for field in (*FREE, *MOVABLE):
        known = _with(known, asked, field.split("."))
    own = Path(workdir, "tokenizer")
    if known.tokenizer.path and own.is_dir():  # the one that it came from may be gone
        settings = dataclasses.replace(known.tokenizer, path=str(own))
        known = dataclasses.replace(known, tokenizer=settings)
    return known


def claim(config: Config, workdir: str, write: bool = True) -> None:
    """Makes the run directory this config's own.

    Args:
      config: resolved.
      workdir: the run directory.
      write: make `config.json` where the run has not begun.

    Raises:
      UserError: it cannot be written, or belongs to a run with another config.
    """
    path = Path(workdir, "config.json")
    saved = remote.where(workdir, remote.CHECKPOINTS)
    if not path.exists() or not (origin(workdir) or saved.is_dir()):
        if write:  # as there is nothing that depends on it yet
            log.write_text(path, to_json(absolute(config)))
        return
    known = _known(workdir)
    if known.tokenizer.path and Path(workdir, "tokenizer").is_dir():
        size = as_trained(known, workdir).model.vocab_size  # of an older version
        model = dataclasses.replace(known.model, vocab_size=size)
        known = dataclasses.replace(known, model=model)
    new = _values(absolute(config))
    faults = _faults(_values(absolute(known)), new, workdir, known)
    if faults:
        raise _other_config(workdir, faults)


def compare(workdir: str, facts: Mapping[str, Any]) -> None:
    """Compares data with those that the run began with.

    Args:
      workdir: the run directory.
      facts: name in `_TITLES` -> JSON value; names that either side lacks are not
        compared.

    Raises:
      UserError: they differ; the message names both sides.
    """
    began = origin(workdir)
    faults = [
        f"{title}: {_shown(began[name])} there, {_shown(facts[name])} now"
        for name, title in _TITLES.items()
        if name in began and name in facts and began[name] != facts[name]
    ]
    if faults:
        raise UserError(
            f"--workdir={workdir} belongs to a run on other data:\n"
            + "\n".join(f"  {fault}" for fault in faults)
            + "\nname the run's own data, or choose another --workdir"
        )


def remember(workdir: str, asked: Config, facts: Mapping[str, Any]) -> None:
    """Records what the run begins with; what is recorded already stays.

    Raises:
      UserError: the directory cannot be written.
    """
    began = origin(workdir)
    found = {"asked": _values(absolute(asked)), **facts, **began}
    if found != began:
        log.write_json(Path(workdir, ORIGIN), found)


def check_model(workdir: str, config: Config) -> None:
    """Compares the run's tokenizer and labels with those that it was trained with.

    Raises:
      UserError: one differs, or the tokenizer is missing.
    """
    facts: dict[str, Any] = {"labels": list(config.task.labels)}
    place = Path(workdir, "tokenizer")
    if not place.is_dir():
        raise UserError(
            f"{place}: the run's tokenizer is missing; copy it back, or that of the "
            "token store or model that it came from"
        )
    tokenizer = load_tokenizer(place, config.tokenizer)
    facts["vocabulary"] = tokenizer.vocabulary().hash
    compare(workdir, facts)


def finished(workdir: str) -> dict | None:
    """The summary of a run that has done all its steps, or None."""
    with contextlib.suppress(OSError, ValueError):
        summary = json.loads((Path(workdir) / "summary.json").read_text())
        return summary if summary["steps"] else None  # 0: an imported model
    return None


def _known(workdir: str) -> Config:
    path = Path(workdir, "config.json")
    try:
        json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is damaged ({error}); use another --workdir"
        ) from error
    return load(str(path), stored=True)  # an older version knew fewer fields


def _values(config: Config) -> dict[str, Any]:
    return json.loads(to_json(config))


def _filled(values: Any, defaults: Any) -> Any:
    """Values with the defaults of fields that a later version has added."""
    if isinstance(values, dict) and isinstance(defaults, dict):
        names = {**defaults, **values}
        return {
            n: _filled(values[n], defaults.get(n)) if n in values else defaults[n]
            for n in names
        }
    if isinstance(values, list) and isinstance(defaults, list) and defaults:
        return [_filled(value, defaults[0]) for value in values]
    return values


def _with(config: Any, other: Any, path: list[str]) -> Any:
    """A dataclass with one field, by its path, taken from another one."""
    name, *rest = path
    value = getattr(other, name)
    if rest:
        value = _with(getattr(config, name), value, rest)
    return dataclasses.replace(config, **{name: value})


def _other_config(workdir: str, faults: list[str]) -> UserError:
    return UserError(
        f"--workdir={remote.address(workdir)} belongs to a run with another config:\n"
        + "\n".join(f"  {fault}" for fault in faults)
        + "\ncontinue it with its own values, or choose another --workdir"
    )


def _faults(old: Any, new: Any, workdir: str, known: Config) -> list[str]:
    """Differences of two configs in fields that decide the result."""
    return [
        f"config.{path}: {a!r} there, {b!r} now"
        for path, a, b in _pairs(old, new, "")
        if not any(path == free or path.startswith(f"{free}.") for free in FREE)
        and path not in MOVABLE
        and not _is_same_place(path, a, b, workdir, known)
    ]


def _pairs(old: Any, new: Any, path: str) -> list[tuple[str, Any, Any]]:
    """Path and both values of each field that differs; a list of values is one."""
    if old == new:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        names = {**old, **new}
        nodes = [(old.get(n), new.get(n), f"{path}.{n}" if path else n) for n in names]
    elif path == "phases" and len(old) == len(new):
        nodes = [(*p, f"phases[{i}]") for i, p in enumerate(zip(old, new, strict=True))]
    else:
        return [(path, old, new)]
    return [pair for node in nodes for pair in _pairs(*node)]


def _is_same_place(path: str, old: Any, new: Any, workdir: str, known: Config) -> bool:
    """Whether two spellings name the same text, tokenizer or model."""
    if path == "data.source":
        plain = [
            [re.sub(r"\[([*?[])\]", r"\1", s) for s in side] for side in (old, new)
        ]
        return plain[0] == plain[1] or _is_same_text(new, workdir, known)
    if path == "tokenizer.path":
        return _is_same_vocabulary(new, workdir, known)
    if path != "init" or not (old and new):
        return False
    return os.path.realpath(old) == os.path.realpath(new)


def _is_same_text(source: list[str], workdir: str, known: Config) -> bool:
    """Whether other sources hold the text of the run's store, if they are there."""
    store = known.data.store or remote.address(os.path.join(workdir, remote.STORE))
    with contextlib.suppress(UserError, OSError, KeyError):
        manifest = json.loads(Path(store, remote.MANIFEST).read_text("utf-8"))
        data = dataclasses.replace(known.data, source=tuple(source))
        return prepare.is_same_text(data, manifest["made_from"])
    return False


def _is_same_vocabulary(path: str, workdir: str, known: Config) -> bool:
    """Whether a tokenizer has the run's vocabulary; a path that is gone has not."""
    began = origin(workdir).get("vocabulary")
    with contextlib.suppress(UserError):
        settings = dataclasses.replace(known.tokenizer, path=path)
        return bool(path) and load_tokenizer(path, settings).vocabulary().hash == began
    return False


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{_shown(v)} {k}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)[:16]
