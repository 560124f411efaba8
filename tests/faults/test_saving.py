"""Faults of the disk, and of a process that is saving."""

import random
import signal
import subprocess

import pytest

from tests.faults import group
from tests.faults.group import GONE, Group

pytestmark = pytest.mark.slow


def test_killed_while_saving(tmp_path, flags, unbroken):
    """Ten times, at random moments of one of the saves."""
    workdir, rng = tmp_path / "run", random.Random(0)
    flags = [*flags, "--config.save_every=1", "--config.eval_every=1000"]
    step = committed = 0
    for _ in range(10):
        with Group(workdir, flags) as found:
            # Saves follow each other, so that nearly any moment is within one.
            wanted = step + rng.randrange(1, 4)
            found.until_step(wanted)
            group.wait_for("a moment", lambda: rng.random() < 0.3)
            before = max(group.saved(workdir), default=0)
            found.send(0, signal.SIGKILL)
            assert found.statuses(GONE) == [-signal.SIGKILL]
        step = max(group.saved(workdir), default=0)
        assert step >= max(before, committed), "a checkpoint that was there is lost"
        committed = step
    assert group.run(workdir, flags) == [0]
    found = group.outcome(workdir)
    expected = unbroken(1)
    assert found["params"] == expected["params"]
    assert found["losses"] == expected["losses"]
    assert not list((workdir / "checkpoints").glob("*tmp*"))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB; needs the right to mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    subprocess.run(mount, check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_disk_full(small_disk, tmp_path, flags, unbroken):
    workdir = small_disk / "run"
    flags = [*flags, "--config.keep_last=40"]  # of some 1.3 MB each
    with Group(workdir, flags, logs=tmp_path / "run") as found:
        assert found.statuses() == [2]
        text = found.text(0)
    assert "has room" in text.splitlines()[-1] or "make room" in text.splitlines()[-1]
    kept = group.saved(workdir)
    assert kept, "no earlier step is left"
    # With room, the same command goes on from there.
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    with Group(workdir, flags, logs=tmp_path / "run") as found:
        assert found.statuses() == [0]
        assert f"from step {max(kept)}" in found.text(0)
    assert group.outcome(workdir) == unbroken(1)


def test_other_topologies_go_on(tmp_path, flags):
    """2 processes of 2 devices, then one of 4, then 4 of 1, without a word more."""
    workdir = tmp_path / "run"
    flags = [*flags, "--config.mesh.fsdp=2", "--config.steps=36"]
    flags.append("--config.eval_every=12")
    whole = tmp_path / "whole"
    assert group.run(whole, flags, 2, 2) == [0, 0]
    expected = group.outcome(whole)
    for count, devices in [(2, 2), (1, 4), (4, 1)]:
        with Group(workdir, flags, count, devices) as found:
            found.until_steps(5)
            found.send(count - 1, signal.SIGTERM)
            assert found.statuses(GONE) == [75] * count
    assert group.run(workdir, flags, 2, 2) == [0, 0]
    found = group.outcome(workdir)
    for name in ("losses", "evaluations"):
        steps, values = zip(*found[name], strict=True)
        wanted_steps, wanted = zip(*expected[name], strict=True)
        assert steps == wanted_steps
        assert values == pytest.approx(wanted, rel=1e-6)
