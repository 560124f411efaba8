"""Grids: named settings times seeds, from flags or from a TOML file.

A grid file names variants of one study and, for each size of it, the runs of a trial:

    title = "Next-sentence prediction"
    source = "Devlin et al. 2019, table 5"
    seeds = 3                      # from 0; or a list: [3, 5, 8]

    [variants]                     # each with its overrides, as after --config.
    nsp = []
    no_nsp = ["objective.pair=none", "sst2:task.epochs=2"]

    [tiny]
    set = ["model.dtype=float32"]  # for all stages
    [tiny.pretrain]                # the first stage, and those that start from it
    config = "bert_tiny:cpu"
    [tiny.sst2]
    config = "glue:sst2"
    set = ["task.train_file=train.tsv"]

`STAGE:` before a field keeps an override from the other stages. `[tiny.variants]` takes
the place of `[variants]`. Of tables in it, `[variants.norm]` and `[variants.warmup]`,
all combinations are made. A file without sizes only names variants.
"""

import contextlib
import difflib
import itertools
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from bert_jax.config import shipped
from bert_jax.errors import UserError

Axes = Mapping[str, Mapping[str, Sequence[str]]]  # column, name: `a.b=value` texts


class Cell(NamedTuple):
    """One combination of settings, to be run with every seed."""

    name: str  # of its directory; "" where nothing varies
    settings: dict[str, str]  # what sets it apart, by column of the table
    overrides: tuple[str, ...]  # `a.b=value`


class Trial(NamedTuple):
    """All stages of a cell with one seed."""

    cell: Cell
    seed: int

    @property
    def name(self) -> str:
        """Its directory, from that of the sweep."""
        return "/".join(filter(None, [self.cell.name, f"seed={self.seed}"]))


class Stage(NamedTuple):
    """One run of a trial; the first one's weights are where the others start."""

    name: str  # "" where the command line names the config
    config: str  # NAME[:VARIANT] or FILE[:VARIANT]
    overrides: tuple[str, ...] = ()


class Grid(NamedTuple):
    """The contents of a grid file, for one of its sizes."""

    title: str = ""
    seeds: str | None = None  # as after --seeds=
    axes: Axes = {}
    stages: tuple[Stage, ...] = ()


def expand(vary: Sequence[str], axes: Axes) -> list[Cell]:
    """The product of all values and all variants.

    Names depend neither on the order of the fields nor on how a number is spelt, so
    that a command finds its runs again.

    Args:
      vary: `a.b=value,value` texts, one for each field.
      axes: of the table's columns, named variants with their `a.b=value` overrides.

    Raises:
      UserError: a text has no values, a field or a value comes twice, or a seed is set.
    """
    fields: dict[str, list[str]] = {}
    for text in sorted(vary):
        field, equals, values = text.partition("=")
        if not equals:
            raise UserError(f"--vary={text} needs values: --vary={field}=VALUE,VALUE")
        if field in fields:
            raise UserError(f"--vary={field}: given twice; put all its values into one")
        fields[field] = [value.strip() for value in values.split(",")]
        if len(set(map(_plain, fields[field]))) < len(fields[field]):
            raise UserError(f"--vary={text}: holds a value twice")
    variants = [texts for axis in axes.values() for texts in axis.values()]
    for text in (*fields, *itertools.chain(*variants)):
        if text.partition("=")[0].rpartition(":")[2] == "seed":
            raise UserError(f"{text}: seeds are set by --seeds, for all settings alike")
    tails = [field.rpartition(".")[2] for field in fields]
    short = {
        field: tail if tails.count(tail) == 1 else field
        for field, tail in zip(fields, tails, strict=True)
    }
    cells = []
    for names in itertools.product(*axes.values()):
        named = dict(zip(axes, names, strict=True))
        own = [text for axis, name in named.items() for text in axes[axis][name]]
        for values in itertools.product(*fields.values()):
            chosen = dict(zip(fields, values, strict=True))
            plain = {field: _plain(value) for field, value in chosen.items()}
            parts = [f"{short[f]}={quote(value)}" for f, value in plain.items()]
            texts = [f"{field}={value}" for field, value in chosen.items()]
            directory = ",".join([*map(quote, names), *parts])
            cells.append(Cell(directory, named | plain, (*own, *texts)))
    return cells


def _plain(value: str) -> str:
    """One spelling of a number: 5e-5 and 0.00005 are the same run."""
    try:
        return repr(float(value)).removesuffix(".0")
    except ValueError:
        return value


def quote(text: str) -> str:
    """Part of a file name without commas, not the same for any two texts."""

    def code(found: re.Match[str]) -> str:
        return "".join(f"%{byte:02X}" for byte in found[0].encode())

    return re.sub(r"^\.|[^\w.=+-]", code, text)


def seeds(text: str) -> Sequence[int]:
    """Seeds from their number, or from a list: `3,5,8`.

    Raises:
      UserError: it is neither, or a seed comes twice.
    """
    with contextlib.suppress(ValueError):
        listed = [int(part) for part in text.split(",") if part]
        found = listed if "," in text else range(int(text))
        if found and len(set(found)) == len(found):
            return found
    raise UserError(
        f"--seeds={text}: needs their number, or a list of different ones: 3,5,8"
    )


def for_stage(texts: Sequence[str], stage: str, stages: Sequence[str]) -> list[str]:
    """The overrides for one stage: those with its name in front, and with none.

    Raises:
      UserError: some are for a stage that there is not (all listed).
    """
    found, faults = [], []
    for text in texts:
        field, equals, value = text.partition("=")
        name, colon, rest = field.rpartition(":")
        if colon and name not in stages:
            faults.append(f"--config.{text}: no stage {name!r}; {_hint(name, stages)}")
        if name in ("", stage):
            found.append(f"{rest}{equals}{value}")
    if faults:
        raise UserError("\n".join(faults))
    return found


def read(text: str) -> Grid:
    """Reads one size of a grid file.

    Args:
      text: path of a grid file or name of a shipped one, such as `table5`, with
        `:SIZE` where the grid has sizes.

    Raises:
      UserError: it cannot be read, or breaks the rules of this module (all listed).
    """
    path, size = shipped.find(text, "--grid", "configs/grids", ".toml")
    try:
        with open(path, "rb") as file:
            found = tomllib.load(file)
    except (OSError, ValueError) as error:
        raise UserError(f"--grid={path}: cannot be read ({error})") from error
    sizes = {
        name: table
        for name, table in found.items()
        if isinstance(table, dict) and not _near(name, _FILE, 0.75)
    }
    if size not in sizes and (sizes or size):
        raise UserError(f"--grid={text}: no size {size!r}; {_hint(size, sizes)}")
    top = {name: value for name, value in found.items() if name not in sizes}
    faults = _faults(top, _FILE, "")
    here = {name: part for name, part in sizes.get(size, {}).items() if name in _SIZE}
    stages = {n: part for n, part in sizes.get(size, {}).items() if n not in _SIZE}
    faults += _faults(here, _SIZE, f"{size}.")
    for name, stage in stages.items():
        where = f"{size}.{name}"
        if not isinstance(stage, dict):
            faults.append(f"{where}: no such key; {_hint(name, _SIZE)}")
        else:
            faults += _faults(stage, _STAGE, f"{where}.")
            if "config" not in stage:
                faults.append(f"{where}.config: missing; name a preset or a file")
    if size and not stages:
        faults.append(f"{size}: has no stage; [{size}.pretrain] would be one")
    if faults:
        lines = "\n".join(f"  {fault}" for fault in faults)
        raise UserError(f"--grid={text} has these faults:\n{lines}")
    title = " - ".join(top[name] for name in ("title", "source") if name in top)
    variants = here.get("variants", top.get("variants", {}))
    nested = any(isinstance(part, dict) for part in variants.values())
    axes = variants if nested else {"variant": variants} if variants else {}
    number = top.get("seeds")
    if isinstance(number, list):
        number = "".join(f"{seed}," for seed in number)
    shared = tuple(here.get("set", ()))
    return Grid(
        title,
        None if number is None else str(number),
        axes,
        tuple(
            Stage(name, stage["config"], (*shared, *stage.get("set", ())))
            for name, stage in stages.items()
        ),
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_axis(value: Any) -> bool:
    named = isinstance(value, dict) and bool(value) and all(value)
    return named and all(map(_is_texts, value.values()))


def _is_variants(value: Any) -> bool:
    nested = isinstance(value, dict) and bool(value) and all(value)
    return _is_axis(value) or (nested and all(map(_is_axis, value.values())))


def _is_seeds(value: Any) -> bool:
    if not isinstance(value, list):
        return type(value) is int and value > 0
    different = len(set(map(str, value))) == len(value) > 0
    return different and all(type(seed) is int for seed in value)


class _Need(NamedTuple):
    holds: Callable[[Any], bool]
    words: str


_TEXT = _Need(_is_text, "a text")
_SET = _Need(_is_texts, 'a list of overrides: ["FIELD=VALUE"]')
_VARIANTS = _Need(
    _is_variants,
    'names, each with a list: NAME = ["FIELD=VALUE"]; or tables of such names alone',
)
_SEEDS = _Need(_is_seeds, "their number, or a list of different whole numbers")
_FILE = {"title": _TEXT, "source": _TEXT, "seeds": _SEEDS, "variants": _VARIANTS}
_SIZE = {"set": _SET, "variants": _VARIANTS}
_STAGE = {"config": _TEXT, "set": _SET}


def _faults(table: Mapping[str, Any], known: dict[str, _Need], where: str) -> list[str]:
    unknown = [name for name in table if name not in known]
    wrong = [
        n for n, value in table.items() if n in known and not known[n].holds(value)
    ]
    return [
        *(f"{where}{name}: no such key; {_hint(name, known)}" for name in unknown),
        *(f"{where}{name}: needs {known[name].words}" for name in wrong),
    ]


def _near(name: str, known: Any, cutoff: float) -> list[str]:
    return difflib.get_close_matches(name, list(known), 1, cutoff)


def _hint(name: str, known: Any) -> str:
    near = _near(name, known, 0.5)
    names = ", ".join(filter(None, known))
    return f"did you mean {near[0]!r}?" if near else f"there are {names or 'none'}"
