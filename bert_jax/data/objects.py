"""JSON objects of labelled sets, from files or TensorFlow Datasets."""

import difflib
import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from bert_jax.data import tfds
from bert_jax.data.decompress import SUFFIXES
from bert_jax.data.text import invalid, read
from bert_jax.errors import UserError

SUFFIXES_OF_JSON = (".json", ".jsonl")
_SHOWN = 20  # columns or keys listed in a message
_SPACE = re.compile(r"\s*")
_NEXT = re.compile(r"\s*,\s*(?=\{)|\s*\]\s*\Z")  # after an object of an array


def holds_objects(path: str) -> bool:
    """Whether `objects` reads it, by its name."""
    return tfds.is_named(path) or suffix(path) in SUFFIXES_OF_JSON


def suffix(path: str) -> str:
    """The suffix of a path, compression aside."""
    stem, end = os.path.splitext(path)
    return os.path.splitext(stem)[1] if end in SUFFIXES else end


def text(path: str, encoding: str = "utf-8") -> str:
    """Return the content of a file, decompressed, without a byte order mark.

    Args:
      path: of the file.
      encoding: codec of the file if it has no byte order mark.

    Raises:
      UserError: the file cannot be read, is damaged, is in another encoding, or holds
        no text.
    """
    content = read(path, encoding)
    if (place := content.find("\0")) >= 0:
        line = content.count("\n", 0, place) + 1
        raise invalid(f"{path}:{line}: a NUL", path, encoding, content.encode())
    if "\n" not in content and "\r" in content.rstrip("\r"):
        raise UserError(
            f"{path}:1: lines end with carriage returns alone; convert the file, for "
            "example with tr '\\r' '\\n'"
        )
    return content


def not_text(value: Any) -> str | None:
    """What is wrong with a value of JSON that should be text; None if nothing is."""
    if not isinstance(value, str):
        return f"a {type(value).__name__}, not text"
    try:
        value.encode()
    except UnicodeEncodeError as error:
        if "\udc80" <= value[error.start] <= "\udcff":
            return "text that is not UTF-8"
        return "half a character (an escape such as \\ud800 alone)"
    return None


def objects(path: str, encoding: str = "utf-8") -> Iterator[tuple[str, dict[str, Any]]]:
    """Reads JSON objects, on a line each or on several, or the records of a data set.

    Args:
      path: of the file, or `tfds:NAME[/CONFIG]:SPLIT`.
      encoding: as for `text`.

    Yields:
      Where an object begins, `file:line`, and the object.

    Raises:
      UserError: something is no JSON object.
    """
    if tfds.is_named(path):
        yield from tfds.examples(path)
        return
    content = text(path, encoding)
    decoder = json.JSONDecoder()
    line, counted, start = 1, 0, _skip_space(content, 0)
    array = content.startswith("[", start)
    if array:
        start = _skip_space(content, start + 1)
    while start < len(content):
        line += content.count("\n", counted, start)
        try:
            value, end = decoder.raw_decode(content, start)
        except (ValueError, RecursionError) as error:  # also of numbers too long
            raise UserError(
                f"{path}:{line}: the object that begins here is not JSON ({error}); "
                "mend it, or write the file anew with one object a line"
            ) from None
        if not isinstance(value, dict):
            raise UserError(
                f"{path}:{line}: a {type(value).__name__} where an object should be; "
                "write one {...} for each example, one after another"
            )
        counted, start = start, _skip_space(content, end)
        if array:
            match = _NEXT.match(content, end)
            if match is None:
                raise UserError(
                    f"{path}:{line}: neither another object nor the end of the array "
                    "follows the object that begins here; mend it, or fetch the file "
                    "again"
                )
            start = match.end()
        yield f"{path}:{line}", value


def _skip_space(content: str, start: int) -> int:
    match = _SPACE.match(content, start)
    return match.end() if match else start


def look_up(found: Any, key: str) -> Any:
    """Return what an object holds under a key, or under `outer.inner` of nested ones.

    Raises:
      KeyError: there is no such key.
    """
    if isinstance(found, dict) and key in found:
        return found[key]
    for part in key.split("."):
        if isinstance(found, list) and part.isdecimal() and int(part) < len(found):
            found = found[int(part)]
        elif isinstance(found, dict):
            found = found[part]
        else:
            raise KeyError(key)
    return found


def keys_of(found: dict[str, Any]) -> list[str]:
    """Return the keys of an object, of nested objects as `outer.inner`."""
    keys: list[str] = []
    for key, value in found.items():
        keys.append(key)
        if isinstance(value, dict):
            keys += [f"{key}.{inner}" for inner in value]
    return keys


def unknown(what: str, known: Sequence[str], name: str, remedy: str) -> UserError:
    """Return the message for a name that is not known, with the nearest one."""
    near = difflib.get_close_matches(name, known, 1, 0.5)
    hint = f"; did you mean {near[0]!r}?" if near else f"; {remedy}"
    listed = ", ".join(repr(other[:30]) for other in known[:_SHOWN])
    more = ", ..." if len(known) > _SHOWN else ""
    return UserError(f"{what} {name!r} among {listed}{more}{hint}")
