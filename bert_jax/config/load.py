"""From a config file and command-line overrides to a checked, frozen Config."""

import ast
import dataclasses
import difflib
import glob
import importlib.util
import json
import os
import re
import sys
import traceback
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from bert_jax.config import shipped
from bert_jax.config.schema import Config
from bert_jax.config.validate import problems
from bert_jax.errors import UserError


def to_config_dict(config: Config) -> ConfigDict:
    """A locked, editable copy: groups are ConfigDicts, phases a tuple of them."""

    def convert(value: typing.Any) -> typing.Any:
        if dataclasses.is_dataclass(value):
            names = [field.name for field in dataclasses.fields(value)]
            return ConfigDict({name: convert(getattr(value, name)) for name in names})
        if isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            return tuple(convert(item) for item in value)
        return value

    return convert(config).lock()


def to_json(config: Config) -> str:
    """The frozen config as indented JSON, as stored in a run directory."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def load(path: str, overrides: Sequence[str] = (), stored: bool = False) -> Config:
    """Read a config file, apply overrides, check names, types and rules.

    Args:
      path: name of a preset, such as `bert_base`, or path of a Python file that
        defines `get_config(arg)`, both with `:arg` or without; or path of the
        `config.json` of a run.
      overrides: `a.b=value` texts, phases by index: `phases[0].length=64`. Of a new
        run, `data.language=ko` brings `tokenizer.lowercase=false` along.
      stored: whether this is the config of a run that exists. Its own values are
        accepted, whatever the rules of this version; those of overrides are not.

    Returns:
      The frozen config. Where weights decide its sizes (`init`, `distill.teacher`), the
      rules are left to `bert_jax.resolve`, which knows these sizes.

    Raises:
      UserError: no such file or preset, no such field, or broken rules (all listed).
    """
    file, arg = path, ""  # of a run: its directory may have any name
    if not stored:
        file, arg = shipped.find(path, "--config", "configs", ".py")
    read = _read_json if file.endswith(".json") else _run_python
    config = read(file, arg)
    own = problems(freeze(config)) if stored else ()
    faults = []
    for text in [*([] if stored else _of_language(overrides)), *overrides]:
        try:
            override(config, text)
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserError("\n".join(faults))
    frozen = freeze(config)
    if stored or not frozen.sized_elsewhere:
        check(frozen, known=own)
    return frozen


def check(
    config: Config,
    decided: Mapping[str, str] | None = None,
    known: Collection[str] = (),
) -> None:
    """Refuse a config that breaks rules.

    Args:
      config: resolved config.
      decided: fields of `config.model` that weights decide, see `problems`.
      known: messages of broken rules to accept.

    Raises:
      UserError: with every other broken rule.
    """
    if faults := [f for f in problems(config, decided) if f not in known]:
        lines = "\n".join(f"  {fault}" for fault in faults)
        raise UserError(f"the config has these faults:\n{lines}")


def _read_json(file: str, arg: str) -> ConfigDict:
    if arg:
        raise UserError(f"--config={file}:{arg}: a .json file has no variants")
    config = to_config_dict(Config())
    try:
        values = json.loads(Path(file).read_text(encoding="utf-8"))
        config.phases = tuple(ConfigDict(phase) for phase in values.pop("phases"))
        _rename(values.get("objective", {}))
        _update(config, values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"--config={file}: not the config.json of a run of this version ({error})"
        ) from error
    return config


def _rename(objective: dict) -> None:
    """Two switches of older runs, which are choices among several now."""
    if objective.pop("whole_word", False):
        objective["masking"] = "whole_word"
    if objective.pop("cross_documents", False):
        objective["input"] = "full_sentences"


def _run_python(file: str, arg: str) -> ConfigDict:
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    if spec is None or spec.loader is None:
        raise UserError(f"--config={file}: needs a .py or .json file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config(arg)
    except UserError:
        raise
    except Exception as error:
        # A misspelt field lands here, as do all mistakes in the user's file.
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f.lineno for f in frames if f.filename == str(spec.origin)]
        where = f"{file}:{lines[-1]}" if lines else file
        raise UserError(f"{where}: {type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"{file}: get_config() must return a ConfigDict")
    return config


def _update(config: typing.Any, values: dict) -> None:
    for name, value in values.items():
        if isinstance(value, dict):
            _update(config[name], value)
        else:
            config[name] = tuple(value) if isinstance(value, list) else value


def _of_language(overrides: Sequence[str]) -> list[str]:
    """What a language brings along for a tokenizer that is trained on its text.

    Korean has no case, and the Latin letters in it are mostly names and units: its
    published encoders (KLUE, KoELECTRA, KoBERT) are cased.
    """
    pairs = (text.partition("=") for text in overrides)
    chosen = {path: value for path, _, value in pairs}
    code = chosen.get("data.language", "").lower().partition("-")[0]
    own = {"tokenizer.lowercase", "tokenizer.path", "init"} & chosen.keys()
    return ["tokenizer.lowercase=false"] if code == "ko" and not own else []


def override(config: ConfigDict, text: str) -> None:
    """Applies one `a.b[0].c=value` to a ConfigDict in place.

    Raises:
      UserError: no `=`, no such field, or a value of the wrong type.
    """
    path, equals, raw = text.partition("=")
    if not equals:
        raise UserError(f"--config.{path} needs a value: --config.{path}=VALUE")
    *parents, last = re.findall(r"[^.\[\]]+", path) or [""]
    node = config
    for i, name in enumerate(parents):
        node = _child(node, name, parents[:i])
    current = _child(node, last, parents)
    if isinstance(current, ConfigDict) or not isinstance(node, ConfigDict):
        raise UserError(f"--config.{path} is a group; set one of its fields")
    node[last] = _parse(raw, current, path)


def _child(node, name: str, parents: list[str]):
    where = ".".join(parents)
    if isinstance(node, tuple):
        if name.isdigit() and int(name) < len(node):
            return node[int(name)]
        raise UserError(
            f"--config.{where}[{name}]: indices run from 0 to {len(node) - 1}"
        )
    if isinstance(node, ConfigDict) and name in node:
        return node[name]
    known = list(node) if isinstance(node, ConfigDict) else []
    near = difflib.get_close_matches(name, known, 1, 0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"fields here: {', '.join(known)}"
    raise UserError(f"--config.{'.'.join([*parents, name])}: no such field; {hint}")


def _parse(raw: str, current, path: str):
    wanted = type(current)
    if wanted is str:
        return raw
    try:
        if wanted is bool:
            return {"true": True, "false": False, "1": True, "0": False}[raw.lower()]
        if wanted is int:
            value = float(raw.replace("_", ""))
            if value != int(value):
                raise ValueError
            return int(value) if "e" in raw.lower() else int(raw)
        if wanted is float:
            return float(raw)
        if path == "data.source" and (found := _existing(raw)):
            return found
        if raw.startswith(("(", "[")):
            value = ast.literal_eval(raw)
            return (value,) if isinstance(value, str) else tuple(value)
        return tuple(filter(None, map(str.strip, raw.split(","))))
    except (KeyError, ValueError, TypeError, SyntaxError, OverflowError):
        example = {bool: "true or false", int: "a whole number", float: "a number"}
        need = example.get(wanted, "a comma-separated list")
        raise UserError(f"--config.{path}={raw}: needs {need}") from None


def _existing(raw: str) -> tuple[str, ...]:
    """A list of sources whose names may hold commas or begin with a bracket.

    The longest run of items that is a path, or a glob of files, is one of them; ()
    where none with a comma or bracket is.
    """
    items, found, special = raw.split(","), [], False
    while items:
        for end in range(len(items), 0, -1):
            text = ",".join(items[:end])
            name = os.path.expanduser(text)
            odd = end > 1 or text.startswith(("(", "["))
            if odd and (os.path.lexists(name) or glob.glob(name)):
                special = True
                break
        found.append(text if odd else text.strip())
        items = items[end:]
    return tuple(filter(None, found)) if special else ()


def freeze(config: ConfigDict) -> Config:
    """Turn a ConfigDict into the frozen Config that the rest of the code sees.

    Raises:
      UserError: listing every unknown field and wrong type.
    """
    faults: list[str] = []
    frozen = _build(Config, config, "config", faults)
    if faults:
        lines = "\n".join(f"  {fault}" for fault in faults)
        raise UserError(f"the config has these faults:\n{lines}")
    return frozen


def _build(kind: typing.Any, node, path: str, faults: list[str]) -> typing.Any:
    """Checks `node` against `kind` and converts it, noting what does not fit."""
    if typing.get_origin(kind) is tuple and isinstance(node, tuple | list):
        item = typing.get_args(kind)[0]
        if item is int:  # the command line has texts: its parser knows no fields
            node = [int(v) if str(v).isdecimal() else v for v in node]
        parts = [_build(item, v, f"{path}[{i}]", faults) for i, v in enumerate(node)]
        return tuple(parts)
    if not dataclasses.is_dataclass(kind) or not isinstance(node, ConfigDict):
        if kind is float and type(node) is int:
            return float(node)
        if type(node) is not kind:
            wanted = getattr(typing.get_origin(kind) or kind, "__name__", str(kind))
            faults.append(f"{path}={node!r}: needs a value of type {wanted}")
        return node
    hints = typing.get_type_hints(kind, vars(sys.modules[kind.__module__]))
    for name in node:
        if name not in hints:
            near = difflib.get_close_matches(name, hints, 1, 0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            faults.append(f"{path}.{name}: no such field{hint}")
    for name in hints:
        if name not in node:
            faults.append(f"{path}.{name}: missing")
    values = {
        name: _build(hint, node[name], f"{path}.{name}", faults)
        for name, hint in hints.items()
        if name in node
    }
    return None if faults else typing.cast(type, kind)(**values)
