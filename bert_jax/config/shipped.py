"""Find the presets, grids and launchers that come with bert_jax.

They are written in `configs/` and `launch/` of the repository. A wheel holds copies of
these folders inside the package, where setup.py puts them.
"""

import difflib
import os
from pathlib import Path

from bert_jax.errors import UserError

_PACKAGE = Path(__file__).parents[1]


def folder(name: str) -> Path:
    """Return a shipped folder, of the installed package or of the repository.

    Args:
      name: path from the root of the repository, such as `configs/grids`.
    """
    packed = _PACKAGE / name
    return packed if packed.is_dir() else _PACKAGE.parent / name


def names(where: str, suffix: str) -> list[str]:
    """Return the names of the shipped files of one kind, without suffix, sorted."""
    return sorted(path.stem for path in folder(where).glob(f"*{suffix}"))


def find(text: str, flag: str, where: str, suffix: str) -> tuple[str, str]:
    """Find the file that `FILE[:ARG]` or `NAME[:ARG]` stands for.

    A shipped file is found from any directory by its name (`bert_base`), or by its path
    in the repository (`configs/bert_base.py`) where no such file exists.

    Args:
      text: value of the flag; both FILE and ARG may contain colons.
      flag: name of the flag for messages, such as `--config`.
      where: shipped folder, such as `configs`.
      suffix: suffix of the shipped files, such as `.py`.

    Returns:
      The path of the file, and ARG or "".

    Raises:
      UserError: neither a file nor a shipped name.
    """
    parts = text.split(":")
    known = names(where, suffix)
    for cut in range(len(parts), 0, -1):
        file, arg = ":".join(parts[:cut]), ":".join(parts[cut:])
        if file not in known and os.path.isfile(file):
            return file, arg
        written = os.path.normpath(file).removeprefix(f"{where}/").removesuffix(suffix)
        if file in known or (written in known and file.endswith(suffix)):
            return str(folder(where) / f"{written}{suffix}"), arg
    raise UserError(_message(text, flag, where, suffix))


def _message(text: str, flag: str, where: str, suffix: str) -> str:
    """Return what is wrong with a name, the nearest one, and all shipped names."""
    file = text.partition(":")[0]
    known = names(where, suffix)
    forms = [f"{file}{suffix}", f"{where}/{file}{suffix}"]
    if suffix == ".py":
        forms.append(os.path.join(file, "config.json"))
    near = [form for form in forms if os.path.isfile(form)]
    beside = [str(path) for path in Path(file).parent.glob(f"*{suffix}")]
    near += difflib.get_close_matches(file, beside, 1, 0.8)
    stem = Path(file).stem.lower().replace("-", "_")
    near += difflib.get_close_matches(stem, known, 1, 0.6)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return (
        f"{flag}={text}: no file {file!r}, and none of this name is shipped; {hint}"
        f"Shipped are {', '.join(known)}"
    )
