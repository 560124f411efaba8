"""One process group at a time owns a run directory.

The owner is recorded in `.owner.json`, which is created atomically: by O_EXCL on a
disk, NFS included, and by a generation of 0 in a bucket. It names host, process and
start time, and shows a sign of life every 10 s. An owner is dead if its process is gone
from this host, or after 60 s without a sign of life on another one.
"""

import contextlib
import fcntl
import itertools
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bert_jax import distributed, remote, watch
from bert_jax.errors import UserError

NAME = ".owner.json"
SILENT = 60.0  # [s] without a sign of life after which an owner elsewhere is dead
_BEAT = 10.0  # [s] between two signs of life
_LEAST = 2.5 * _BEAT  # [s] of watching where the age could be a clock's error
_LONG = 600.0  # [s] an age that no clock's error explains
_TICK = 0.5  # [s] between two looks at the record
_TRIES = 100
_FIRST = 600  # [s] for process 0 to become the owner
_HELD = itertools.count()  # a board for each call, the same in all processes
_FIELDS = "host", "boot", "space"  # that together identify one machine's processes


class _Seen(NamedTuple):
    """A record as read at one moment."""

    owner: dict[str, Any]  # {} where it cannot be read yet
    stamp: str  # changes with each sign of life
    age: float  # [s] since the last one, by two clocks


class _Disk:
    """A record in a directory of this host or of NFS."""

    def __init__(self, folder: str):
        self._path = Path(folder, NAME)

    def create(self, owner: dict[str, Any]) -> bool:
        if not self._path.parent.is_dir():
            self._path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        try:
            handle = os.open(self._path, flags, 0o644)
        except FileExistsError:
            return False
        with open(handle, "w") as file:
            file.write(json.dumps(owner))
        return True

    def read(self) -> _Seen | None:
        try:
            with self._path.open() as file:  # NFS asks the server when a file is opened
                stat = os.fstat(file.fileno())
                owner = _parse(file.read())
        except FileNotFoundError:
            return None
        return _Seen(owner, str(stat.st_mtime_ns), time.time() - stat.st_mtime)

    def replace(self, old: _Seen, owner: dict[str, Any]) -> bool:
        try:
            with self._path.open("r+") as file:
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(file, fcntl.LOCK_EX)
                stat = os.fstat(file.fileno())
                if not stat.st_nlink or _parse(file.read()) != old.owner:
                    return False
                file.seek(0)
                file.write(json.dumps(owner))
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
        except FileNotFoundError:
            return False
        return True

    def beat(self, owner: dict[str, Any]) -> None:
        os.utime(self._path)

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


class _Bucket:
    """A record in a bucket, which compares generations."""

    def __init__(self, url: str):
        self._url = url
        self._beats = 0

    def create(self, owner: dict[str, Any]) -> bool:
        return remote.create(self._url, self._text(owner))

    def read(self) -> _Seen | None:
        found = remote.read(self._url)
        if found is None:
            return None
        owner = _parse(found.text)
        stamp = str(owner.pop("beat", ""))
        return _Seen(owner, f"{found.generation}:{stamp}", found.age)

    def replace(self, old: _Seen, owner: dict[str, Any]) -> bool:
        remote.remove(self._url, old.stamp.partition(":")[0])
        return self.create(owner)

    def beat(self, owner: dict[str, Any]) -> None:
        self._beats += 1
        remote.write(self._url, self._text(owner))

    def remove(self) -> None:
        remote.remove(self._url)

    def _text(self, owner: dict[str, Any]) -> str:
        return json.dumps({**owner, "beat": self._beats})


_Place = _Disk | _Bucket


@contextlib.contextmanager
def hold(workdir: str, note: Callable[[str], None]) -> Iterator[None]:
    """Owns a run directory for as long as the context lasts.

    Process 0 holds it for all processes of the group.

    Args:
      workdir: the run directory, or its folder from `remote.open_run`.
      note: receives a line when a dead owner is replaced or may have to be awaited.

    Raises:
      UserError: another process group owns it, or it cannot be written.
    """
    board = distributed.Board(f"owner/{next(_HELD)}")
    if distributed.index():
        board.of(0, _FIRST)
        yield
        return
    where, owner = remote.address(workdir), _self()
    place = _Bucket(f"{where}/{NAME}") if remote.is_remote(where) else _Disk(workdir)
    try:
        _acquire(place, owner, where, note)
    except OSError as error:
        raise UserError(
            f"--workdir={where}: cannot be written ({error.strerror}); choose "
            "another directory or mend its permissions"
        ) from error
    over = threading.Event()
    args = place, owner, where, over
    threading.Thread(target=_live, args=args, daemon=True, name="owner").start()
    try:
        remote.refresh(workdir)  # what an owner before has written since
        board.put(True)
        yield
    finally:
        over.set()
        with contextlib.suppress(OSError, UserError):
            seen = place.read()
            if seen and seen.owner.get("token") == owner["token"]:
                place.remove()


def _self() -> dict[str, Any]:
    return {
        **_machine(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "token": uuid.uuid4().hex,
    }


def _machine() -> dict[str, str]:
    """This host, its boot and its process space; containers share only the second."""
    found = {"host": socket.gethostname(), "boot": "", "space": ""}
    with contextlib.suppress(OSError):
        found["boot"] = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        found["space"] = os.readlink("/proc/self/ns/pid")
    return found


def _started(pid: int) -> str | None:
    """When a process began, in the kernel's own count; None if it is gone or dead."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else rest[18]
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)  # no /proc on this system
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""


def _is_alive(owner: dict[str, Any]) -> bool | None:
    """Whether an owner's process exists; None where this host cannot know."""
    machine = _machine()
    if any(owner.get(name) != machine[name] for name in _FIELDS):
        return None
    began = _started(int(owner.get("pid", 0)))
    return began is not None and began == owner.get("started")


def _acquire(
    place: _Place, owner: dict[str, Any], where: str, note: Callable[[str], None]
) -> None:
    for _ in range(_TRIES):
        if place.create(owner):
            return
        seen = place.read()
        if seen is None:  # given up between two lines
            continue
        alive = _is_alive(seen.owner)
        if alive is None:
            alive = _await(place, seen, where, note)
            if alive is None:
                continue
        if alive:
            raise _in_use(seen, where)
        if place.replace(seen, owner):
            note(f"{where}: {_name(seen)} is gone; this run continues in its place")
            return
    raise UserError(f"--workdir={where}: its owner keeps changing; try again")


def _await(
    place: _Place, seen: _Seen, where: str, note: Callable[[str], None]
) -> bool | None:
    """Waits for a sign of life of an owner elsewhere; None if its record changed."""
    if seen.age > _LONG:
        return False
    wait = max(SILENT - max(seen.age, 0), _LEAST)
    note(
        f"{where}: {_name(seen)} showed a sign of life {max(seen.age, 0):.0f} s ago; "
        f"waiting up to {wait:.0f} s for another one"
    )
    end = time.monotonic() + wait
    while time.monotonic() < end:
        time.sleep(_TICK)
        now = place.read()
        if now is None or now.owner.get("token") != seen.owner.get("token"):
            return None
        if now.stamp != seen.stamp:
            return True
    return False


def _name(seen: _Seen) -> str:
    owner = seen.owner
    if "pid" not in owner:
        return "another process"
    return f"process {owner['pid']} on {owner['host']} (since {owner['since']})"


def _in_use(seen: _Seen, where: str) -> UserError:
    return UserError(
        f"--workdir={where} is in use by {_name(seen)}; wait for its end or stop it, "
        "or choose another --workdir. One that dies is replaced at once on its own "
        f"host, and after {SILENT:.0f} s on another"
    )


def _live(
    place: _Place, owner: dict[str, Any], where: str, over: threading.Event
) -> None:
    """Shows a sign of life now and then; ends the process if it has been replaced."""
    while not over.wait(_BEAT):
        try:
            seen = place.read()
            if seen is None:
                place.create(owner)  # removed by hand; or with the directory
            elif seen.owner.get("token") == owner["token"]:
                place.beat(owner)
            elif seen.owner and not over.is_set():
                watch.end(
                    UserError.status,
                    f"{where} is now in use by {_name(seen)}",
                    f"bert-jax: error: {where} is now in use by {_name(seen)}, as this "
                    f"process gave no sign of life for {SILENT:.0f} s; it ends here\n",
                )
        except (OSError, UserError) as error:  # the next attempt may succeed
            print(f"bert-jax: {where}: {error}", file=sys.stderr, flush=True)


def _parse(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:  # being written
        return {}
    return found if isinstance(found, dict) else {}
