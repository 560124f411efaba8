"""The files of one checkpoint: a path that Orbax reads literally, and checksums.

`checksums.json` lies beside the files that it covers and is written before the
checkpoint counts as complete: neither Orbax nor its format notices a flipped bit. In a
bucket it holds the CRC32C values that the bucket keeps and checks itself, so a listing
is enough and nothing is read back.
"""

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from bert_jax import remote
from bert_jax.errors import UserError

CHECKSUMS = "checksums.json"
_LATER = "_CHECKPOINT_METADATA"  # Orbax adds the time of the commit, after that file
_PLAIN = re.compile(r"/(?!(?:gs|s3|az|hf)/)[\w./+=@, -]*", re.ASCII)
_TEMPORARY = "/tmp", "/var/tmp", "/dev/shm"


@contextlib.contextmanager
def literal(directory: Path) -> Iterator[Path]:
    """Gives an absolute path of a directory that Orbax cannot misread.

    Orbax passes whole paths to `glob` and TensorStore wants UTF-8: a directory named
    `a[x]` would lose its metadata. Such a directory is reached by a symbolic link of
    a plain name, which lives as long as the context.

    Args:
      directory: absolute path of an existing directory.

    Raises:
      UserError: there is no place for the link.
    """
    if _PLAIN.fullmatch(str(directory)):
        yield directory
        return
    for place in (tempfile.gettempdir(), *_TEMPORARY):
        if _PLAIN.fullmatch(place) and os.access(place, os.W_OK | os.X_OK):
            break
    else:
        raise UserError(
            f"{directory}: its name has characters that checkpoints cannot be written "
            "under without a temporary link; let TMPDIR name a writable directory with "
            "a plain name, or choose another --workdir"
        )
    with tempfile.TemporaryDirectory(prefix="bert_jax-link-", dir=place) as folder:
        link = Path(folder, "checkpoints")
        link.symlink_to(directory, target_is_directory=True)
        try:
            yield link
        finally:
            link.unlink(missing_ok=True)


def seal(folder: epath.Path) -> None:
    """Writes the checksums of a checkpoint's files."""
    text = json.dumps(_checksums(folder), indent=1)
    (folder / CHECKSUMS).write_text(text, "utf-8")


def is_empty(folder: epath.Path) -> bool:
    """Whether a folder holds no files at all, so that nothing in it can be lost."""
    return not _names(folder)


def faults(folder: epath.Path, items: tuple[str, ...], sealed: bool) -> list[str]:
    """Finds what is missing or changed among the files of a checkpoint.

    Args:
      folder: path of the checkpoint, named by its step.
      items: names of the Orbax items that it must hold.
      sealed: checksums are required; checkpoints of older versions lack them.

    Returns:
      One line for each fault; none of a whole checkpoint.
    """
    listed = folder / CHECKSUMS
    if not listed.exists():
        if sealed:
            return [f"{CHECKSUMS} is missing"]
        return _unsealed_faults(folder, items)
    try:
        wanted = json.loads(listed.read_text("utf-8"))
    except ValueError:
        return [f"{CHECKSUMS} is not JSON"]
    found = _checksums(folder)
    lacking = [item for item in items if f"{item}/_METADATA" not in wanted]
    return [f"{item}/_METADATA is missing" for item in lacking] + [
        f"{name} {'is missing' if name not in found else 'has changed'}"
        for name in wanted
        if found.get(name) != wanted[name]
        and not (name == _LATER and _is_json(folder / name))
    ]


def _unsealed_faults(folder: epath.Path, items: tuple[str, ...]) -> list[str]:
    """Faults of a checkpoint without checksums: its metadata, and every array."""
    names = _names(folder)
    if not names:
        return ["it holds no files"]
    needed = [f"{item}/_METADATA" for item in items]
    found = [f"{name} is missing" for name in needed if name not in names]
    for item in items:
        if f"{item}/_METADATA" in names and not _is_json(folder / item / "_METADATA"):
            found.append(f"{item}/_METADATA is not JSON")
    if found or remote.is_remote(folder):
        return found
    return [fault for item in items for fault in _unreadable(Path(folder, item))]


def _unreadable(item: Path) -> list[str]:
    """What TensorStore says of an item's arrays when it reads each of their parts."""
    import tensorstore

    with literal(item.absolute()) as path:
        base = {"driver": "file", "path": f"{path}/"}
        metadata = json.loads((item / "_METADATA").read_text("utf-8"))
        ocdbt = metadata.get("use_ocdbt", (item / "manifest.ocdbt").exists())
        spec = {"driver": "ocdbt", "base": base} if ocdbt else base
        try:
            store = tensorstore.KvStore.open(spec).result()
            keys = store.list().result()
            for key in keys:
                store.read(key).result()
        except ValueError as error:
            return [f"{item.name} cannot be read ({str(error).splitlines()[0][:200]})"]
    return [] if keys else [f"{item.name} holds no arrays"]


def _names(folder: epath.Path) -> set[str]:
    if remote.is_remote(folder):
        return set(remote.files(str(folder)))
    paths = Path(folder).rglob("*")
    return {str(p.relative_to(folder)) for p in paths if p.is_file()}


def _checksums(folder: epath.Path) -> dict[str, str]:
    """Checksum of each file, by its path from `folder`."""
    there = remote.is_remote(folder)
    found = remote.files(str(folder)) if there else remote.checksums(Path(folder))
    return {name: text for name, text in found.items() if name != CHECKSUMS}


def _is_json(path: epath.Path) -> bool:
    try:
        return bool(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError):
        return False
