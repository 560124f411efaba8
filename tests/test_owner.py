"""One process group owns a run directory; a dead owner is replaced."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import fsspec
import pytest

from bert_jax import owner, remote, watch
from bert_jax.errors import UserError

HOLD = """
import sys
from bert_jax import owner
with owner.hold(sys.argv[1], print):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def elsewhere(tmp_path):
    """A process that holds a directory, and the directory."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
    assert process.stdout and process.stdout.readline() == "held\n"
    yield process, tmp_path
    process.kill()
    process.communicate()


@pytest.fixture
def quick(monkeypatch):
    """All times a hundredth."""
    for name in ("SILENT", "_BEAT", "_LEAST", "_TICK"):
        monkeypatch.setattr(owner, name, getattr(owner, name) / 100)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(folder) -> str:
    with pytest.raises(UserError) as caught, owner.hold(str(folder), print):
        pass
    return str(caught.value)


def held(folder) -> list[str]:
    """Holds a directory once; returns what was reported."""
    told: list[str] = []
    with owner.hold(str(folder), told.append):
        pass
    return told


def test_the_second_is_refused_and_changes_nothing(elsewhere):
    process, folder = elsewhere
    before = files(folder)
    said = refused(folder)
    assert f"{folder} is in use by process {process.pid} on" in said
    assert files(folder) == before
    process.communicate()  # end of its input: it ends
    assert files(folder) == {} and held(folder) == []


def test_a_stopped_owner_is_alive_and_a_killed_one_is_replaced_at_once(elsewhere):
    process, folder = elsewhere
    process.send_signal(signal.SIGSTOP)
    os.utime(folder / owner.NAME, (0, 0))  # no sign of life since 1970
    assert "is in use" in refused(folder)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie from here on
    began = time.monotonic()
    assert "is gone" in held(folder)[0]
    assert time.monotonic() - began < owner.SILENT / 2
    assert files(folder) == {}


def test_a_process_of_the_same_number_is_not_the_owner(tmp_path):
    other = {**owner._self(), "started": "1", "token": "other"}
    (tmp_path / owner.NAME).write_text(json.dumps(other))
    assert "is gone" in held(tmp_path)[0]


def test_one_of_many_threads_holds_it(tmp_path, quick):
    """Also where all of them find the record of the same dead owner."""
    dead = {**owner._self(), "started": "1", "token": "dead"}
    (tmp_path / owner.NAME).write_text(json.dumps(dead))
    inside, most, lock, done = 0, [0], threading.Lock(), []

    def work():
        nonlocal inside
        while not done or len(done) < 20:
            try:
                with owner.hold(str(tmp_path), lambda text: None):
                    with lock:
                        inside += 1
                        most.append(inside)
                    time.sleep(0.001)
                    with lock:
                        inside -= 1
                        done.append(1)
            except UserError:
                continue

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert max(most) == 1 and len(done) >= 20


def stranger(place, **more):
    """A record by a process of another host."""
    found = {**owner._self(), "host": "elsewhere", "token": "other", **more}
    assert place.create(found)
    return found


@pytest.fixture(params=["disk", "bucket"])
def place(request, tmp_path, monkeypatch):
    """A run directory on a disk or in a bucket, and its record."""
    if request.param == "disk":
        yield str(tmp_path), owner._Disk(str(tmp_path))
        return
    memory = fsspec.filesystem("memory")
    folder = remote.open_run("memory://bucket/run")
    yield folder, owner._Bucket(f"memory://bucket/run/{owner.NAME}")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


def test_a_silent_owner_elsewhere_is_awaited_then_replaced(place, quick):
    folder, record = place
    stranger(record)
    told = held(folder)
    assert "on elsewhere" in told[0] and "waiting up to" in told[0]
    assert "is gone" in told[1]
    assert record.read() is None


def test_a_living_owner_elsewhere_is_respected(place, quick):
    folder, record = place
    other, over = stranger(record), threading.Event()

    def live():
        while not over.wait(owner._BEAT):
            record.beat(other)

    thread = threading.Thread(target=live)
    thread.start()
    try:
        assert "on elsewhere" in refused(folder)
    finally:
        over.set()
        thread.join()
    assert record.read().owner["token"] == "other"


def test_an_owner_that_ends_while_it_is_awaited_leaves_the_directory(place, quick):
    folder, record = place
    stranger(record)
    told = []

    def note(text):
        told.append(text)
        record.remove()

    with owner.hold(folder, note):
        pass
    assert len(told) == 1


def test_an_owner_shows_that_it_lives_and_ends_when_it_was_replaced(
    place, quick, monkeypatch
):
    folder, record = place
    ended = threading.Event()
    monkeypatch.setattr(watch, "end", lambda *cause: ended.set())
    with owner.hold(folder, print):
        first = record.read()
        deadline = time.monotonic() + 30
        while record.read().stamp == first.stamp:
            assert time.monotonic() < deadline, "no sign of life"
        record.remove()
        stranger(record)
        assert ended.wait(30)
    assert record.read().owner["token"] == "other"


def test_a_record_from_long_ago_is_not_awaited(tmp_path):
    stranger(owner._Disk(str(tmp_path)))
    os.utime(tmp_path / owner.NAME, (0, 0))
    assert len(held(tmp_path)) == 1


def test_a_record_that_was_not_written_to_its_end_blocks_for_a_while_only(
    tmp_path, quick
):
    (tmp_path / owner.NAME).write_text("")
    assert "another process" in held(tmp_path)[0]


def test_a_directory_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        held(tmp_path / "file" / "run")
