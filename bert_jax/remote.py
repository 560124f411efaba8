"""Run directories and token stores in a bucket, such as gs://BUCKET/PATH.

Of a run there, each process has a folder of its own for the small files: filled from
the bucket at the start, copied back where they have changed. The bucket is always
right, so the folder is a temporary one. Checkpoints never pass through it: Orbax
writes them to the bucket. A token store is copied to the disk once for each host.
"""

import atexit
import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import xxhash
from etils import epath

from bert_jax.errors import UserError

# Orbax reaches a bucket through epath, which would load TensorFlow for that.
os.environ.setdefault("EPATH_USE_TF", "0")

CHECKPOINTS = "checkpoints"
STORE = "store"
MANIFEST = "manifest.json"
SUMMARY = "summary.json"
_CACHE = "BERT_JAX_CACHE", "~/.cache/bert_jax"  # variable, and folder if it is not set
_BLOCK = 1 << 24  # bytes
_EVERY = 2.0  # [s] between two reports of progress
_STRANGERS = "gcsfs", "aiohttp", "requests", "google", "fsspec"

_Stamps = dict[str, tuple[int, int]]  # of files: time of change [ns] and bytes
_folders: dict[str, tuple[str, _Stamps]] = {}  # of runs: their URL, files as pushed


def is_remote(path: object) -> bool:
    """Whether a path is a URL."""
    return "://" in str(path)


def open_run(url: str) -> str:
    """A temporary folder with the small files of a run in a bucket.

    Args:
      url: of the run directory, which need not be there yet.

    Returns:
      The folder; `push` copies what changes in it, `where` names checkpoints.

    Raises:
      UserError: the bucket cannot be read.
    """
    if re.search(r"[\[\]*?#%\s]", url):
        raise UserError(
            f"--workdir={url}: the name of a run in a bucket may not hold spaces or "
            "any of [ ] * ? # %, which are read as patterns there; choose another name"
        )
    folder = tempfile.mkdtemp(prefix="bert_jax-run-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _folders[folder] = url.rstrip("/"), {}
    refresh(folder)
    return folder


def refresh(folder: str | Path) -> None:
    """Copies the small files of a run from its bucket again, if it is in one.

    Raises:
      UserError: the bucket cannot be read.
    """
    if str(folder) not in _folders:
        return
    url, _ = _folders[str(folder)]
    for name in files(url):
        top = name.split("/")[0]
        if top not in (CHECKPOINTS, STORE) and not top.startswith("."):
            Path(folder, name).parent.mkdir(parents=True, exist_ok=True)
            with _reaching(url) as fs:
                fs.get_file(f"{url}/{name}", str(Path(folder, name)))
    _folders[str(folder)] = url, _stamps(folder)


def push(folder: str | Path) -> None:
    """Copies what has changed in a run's folder since the last time to its bucket.

    Called before a checkpoint is saved, so that the metrics in the bucket are never
    behind it. Does nothing for a run that is not in a bucket.

    Raises:
      UserError: the bucket cannot be written.
    """
    if str(folder) not in _folders:
        return
    url, pushed = _folders[str(folder)]
    # The summary says that the run is finished: last.
    for name, stamp in sorted(_stamps(folder).items(), key=lambda f: f[0] == SUMMARY):
        if pushed.get(name) != stamp:
            with _reaching(url) as fs:
                fs.put_file(str(Path(folder, name)), f"{url}/{name}")
            pushed[name] = stamp


@contextlib.contextmanager
def pushed(folder: str | Path) -> Iterator[None]:
    """Pushes at the end, however that comes."""
    try:
        yield
    finally:
        push(folder)


def where(folder: str | Path, name: str = "") -> epath.Path:
    """Where a run really lies, or something large in it."""
    return epath.Path(address(folder)) / name


def address(folder: str | Path) -> str:
    """The URL of a run in a bucket, or else the folder itself."""
    return _folders.get(str(folder), (str(folder), {}))[0]


def _stamps(folder: str | Path) -> _Stamps:
    found = {}
    for path in Path(folder).rglob("[!.]*"):  # a dot: being written
        if path.is_file():
            stat = path.stat()
            found[str(path.relative_to(folder))] = stat.st_mtime_ns, stat.st_size
    return found


def files(url: str) -> dict[str, str]:
    """The files below a URL, and a text that changes with the contents of each.

    From Google that is the CRC32C which it keeps itself: no file is read. (It is the
    same for all files that end with their own CRC32C, as some of TensorStore do.)

    Raises:
      UserError: the bucket cannot be read.
    """
    with _reaching(url) as fs:
        fs.invalidate_cache()
        root = fs._strip_protocol(url)
        if url.startswith("gs://"):  # else a missing one looks like an empty one
            fs.ls(root.split("/")[0])
        found = fs.find(root, detail=True)
    return {
        name.removeprefix(root).lstrip("/"): f"{info['size']} {info.get('crc32c')}"
        for name, info in sorted(found.items())
    }


def exists(folder: str | Path, name: str) -> bool:
    """Whether there is such a file in a folder or below a URL."""
    if not is_remote(folder):
        return Path(folder, name).is_file()
    with _reaching(str(folder)) as fs:
        fs.invalidate_cache()
        return fs.exists(f"{folder}/{name}")


class Object(NamedTuple):
    """A small file in a bucket, as read at one moment."""

    text: str
    generation: str  # changes with each write; "" where the file system has none
    age: float  # [s] since it was written, by two clocks


def create(url: str, text: str) -> bool:
    """Writes a small file if there is none; returns whether this call made it.

    Raises:
      UserError: the bucket cannot be written.
    """
    with _reaching(url) as fs:
        try:
            fs.pipe_file(url, text.encode(), mode="create")
        except FileExistsError:
            return False
    return True


def read(url: str) -> Object | None:
    """Reads a small file; None if there is none.

    Raises:
      UserError: the bucket cannot be read.
    """
    with _reaching(url) as fs:
        fs.invalidate_cache()
        try:
            generation = str(fs.info(url).get("generation", ""))
            age = time.time() - fs.modified(url).timestamp()
            return Object(fs.cat_file(url).decode(), generation, age)
        except FileNotFoundError:
            return None


def write(url: str, text: str) -> None:
    """Writes a small file, whatever is there.

    Raises:
      UserError: the bucket cannot be written.
    """
    with _reaching(url) as fs:
        fs.pipe_file(url, text.encode())


def remove(url: str, generation: str = "") -> None:
    """Removes a small file; of a generation only if it still has that one.

    Raises:
      UserError: the bucket cannot be written.
    """
    with _reaching(url) as fs, contextlib.suppress(FileNotFoundError, FileExistsError):
        if not generation:
            return fs.rm_file(url)
        bucket, key, _ = fs.split_path(url)
        place = "b/{}/o/{}", bucket, key
        fs.call("DELETE", *place, ifGenerationMatch=generation)


def fetch(url: str, note: Callable[[str], None]) -> str:
    """This host's copy of a token store, made now if there is none.

    Processes that ask at the same time wait for the first; one that was killed is
    continued by the next.

    Args:
      url: of the store.
      note: is told how far the copying is.

    Returns:
      The copy's folder; every file had the checksum that `prepare` wrote.

    Raises:
      UserError: no store there, a damaged one, no room.
    """
    url = url.rstrip("/")
    if not exists(url, MANIFEST):
        raise UserError(
            f"{url}: no token store there (no {MANIFEST}); run `python -m bert_jax "
            f"prepare` with --config.data.store={url} first"
        )
    with _reaching(url) as fs:
        text = fs.cat_file(f"{url}/{MANIFEST}")
    folder = _place(url, text)
    if folder.exists():
        return str(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(f"{folder}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                partial = Path(f"{folder}.partial")
                _copy(url, partial, json.loads(text)["checksums"], note)
                (partial / MANIFEST).write_bytes(text)
                partial.rename(folder)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror or error}); make room, or "
            f"name another folder in {_CACHE[0]}; the same command goes on from here"
        ) from error
    return str(folder)


def _copy(
    url: str, partial: Path, wanted: dict[str, str], note: Callable[[str], None]
) -> None:
    """Copies the files that are not there yet as they should be."""
    partial.mkdir(exist_ok=True)
    with _reaching(url) as fs:
        total = sum(fs.size(f"{url}/{name}") for name in wanted)
    done, began, told = 0, time.monotonic(), -1.0
    for name, expected in wanted.items():
        target = partial / name
        if target.is_file() and checksum(target) == expected:
            done += target.stat().st_size
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with _reaching(url) as fs:
            source = fs.open(f"{url}/{name}", "rb", block_size=_BLOCK)
        digest = xxhash.xxh3_64()
        with source, target.open("wb") as file:
            while True:
                with _reaching(url):
                    block = source.read(_BLOCK)
                if not block:
                    break
                file.write(block)
                digest.update(block)
                done += len(block)
                seconds = time.monotonic() - began
                if seconds - told >= _EVERY or told < 0:
                    told = seconds
                    note(f"copying {url}: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB")
        if digest.hexdigest() != expected:
            target.unlink()
            raise UserError(
                f"{url}/{name} is damaged: its checksum is not the one in {MANIFEST}; "
                "try again, and if that does not help delete the store and run prepare"
            )
    note(f"copied {url}: {done / 1e6:,.0f} MB, {time.monotonic() - began:.0f} s")


def staging(url: str) -> Path:
    """Where a store is made that shall be uploaded."""
    return _place(url.rstrip("/"), b"")


def upload(folder: Path, url: str, note: Callable[[str], None]) -> None:
    """Moves a new token store to a bucket; what was made becomes this host's copy.

    Args:
      folder: from `staging`, with a store in it.
      url: where to; a store counts as there once its manifest is.
      note: is told how far it is.

    Raises:
      UserError: the bucket cannot be written.
    """
    url, text = url.rstrip("/"), (folder / MANIFEST).read_bytes()
    for name in [*json.loads(text)["checksums"], MANIFEST]:
        note(f"uploading {url}/{name}, {(folder / name).stat().st_size / 1e6:,.1f} MB")
        with _reaching(url) as fs:
            fs.put_file(str(folder / name), f"{url}/{name}")
    with contextlib.suppress(OSError):  # another process has fetched it
        folder.rename(_place(url, text))


def _place(url: str, manifest: bytes) -> Path:
    """The folder in the cache for a URL's contents."""
    home = os.environ.get(_CACHE[0]) or os.path.expanduser(_CACHE[1])
    name = hashlib.sha256(url.encode() + b"\n" + manifest).hexdigest()[:16]
    return Path(home, "stores", f"{url.rpartition('/')[2]}-{name}")


def checksums(folder: Path) -> dict[str, str]:
    """XXH3 of each file below a folder, by its path from there."""
    return {
        str(path.relative_to(folder)): checksum(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def checksum(path: Path) -> str:
    """XXH3 of a file."""
    digest = xxhash.xxh3_64()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def _reaching(url: str) -> Iterator[Any]:
    """A file system for a URL; what goes wrong with it becomes a UserError."""
    # It prints a traceback of what is caught here.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    try:
        import fsspec

        yield fsspec.filesystem(url.partition("://")[0])
    except Exception as error:  # each library in the way has errors of its own
        package = type(error).__module__.split(".")[0]
        if isinstance(error, OSError | ImportError) or package in _STRANGERS:
            raise UserError(f"{url}: {_reason(error)}") from error
        raise


def _reason(error: Exception) -> str:
    """What went wrong in a bucket, and what to do."""
    text = str(error) or type(error).__name__
    if isinstance(error, ImportError):
        return "needs gcsfs; pip install 'bert-jax[gcs]'"
    if isinstance(error, FileNotFoundError):
        return f"no such bucket or file ({text}); make the bucket, or mend the URL"
    refused = getattr(error, "code", None) in (401, 403, "401", "403")
    if refused or "Forbidden" in text or "credentials" in text.lower():
        return (
            f"no right to use it ({text}); `gcloud auth application-default login`, or "
            "give this machine's service account the roles storage.objectAdmin and "
            "storage.legacyBucketReader"
        )
    return f"cannot be reached ({text}); the same command goes on once it can"
