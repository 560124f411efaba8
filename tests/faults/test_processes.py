"""What befalls one process of a run, and what must become of all."""

import signal

import pytest

from tests.faults import group
from tests.faults.conftest import STEPS
from tests.faults.group import GONE, Group

pytestmark = pytest.mark.slow
DEAD = {-signal.SIGABRT, -signal.SIGKILL, -signal.SIGTERM, 1, 42}


def finish(workdir, flags, expected, count=2, devices=2):
    """Continues the run; it must end as if nothing had happened."""
    before = group.saved(workdir)
    assert group.run(workdir, flags, count, devices) == [0] * count
    assert group.outcome(workdir) == expected
    assert not before or max(group.saved(workdir)) >= max(before)


# Each breaks a run some steps after its start, in one of its two processes.


def killed_in_a_collective(workdir, flags, victim):
    fault = {"process": victim, "batch": 12, "do": "kill"}
    with Group(workdir, flags, 2, fault=fault) as found:
        found.until_fault()
        statuses = found.statuses(GONE)
    assert statuses[victim] == -signal.SIGKILL
    assert statuses[1 - victim] in DEAD


def killed_while_the_other_computes_nothing(workdir, flags, victim):
    fault = {"process": 1 - victim, "batch": 12, "do": "sleep", "seconds": 600}
    with Group(workdir, flags, 2, fault=fault) as found:
        found.until_fault()
        found.send(victim, signal.SIGKILL)
        statuses = found.statuses(GONE)
    assert statuses[1 - victim] in DEAD


def stopped_and_left_behind(workdir, flags, victim):
    with Group(workdir, flags, 2) as found:
        found.until_steps(9)
        found.send(victim, signal.SIGSTOP)
        other = found.processes[1 - victim]
        group.wait_for("the other ends", lambda: other.poll() is not None, GONE)
        assert other.returncode in DEAD
        found.processes[victim].kill()  # as the launcher does


def ended_by_an_exception(workdir, flags, victim):
    fault = {"process": victim, "batch": 12, "do": "raise"}
    with Group(workdir, flags, 2, fault=fault) as found:
        found.until_fault()
        assert found.statuses(5) == [1, 1]
    own = found.text(victim)
    assert "Traceback" in own and "ZeroDivisionError: planned" in own.splitlines()[-1]
    other = found.text(1 - victim).strip().splitlines()[-1]
    assert f"process {victim} ended: ZeroDivisionError: planned" in other


def stuck_and_named(workdir, flags, victim):
    fault = {"process": victim, "batch": 12, "do": "sleep", "seconds": 600}
    short = [*flags, "--config.hang_after=20"]
    with Group(workdir, short, 2, fault=fault) as found:
        found.until_fault()
        assert found.statuses(20 + GONE) == [42, 42]
    for index in (0, 1):
        last = found.text(index).strip().splitlines()[-1]
        assert f"process {victim} (waiting for a batch)" in last, last
        assert f"process {1 - victim}" not in last
    assert "in happen" in found.text(victim)  # its stack says where


def told_to_stop(workdir, flags, victim):
    """All save the same step, whoever got the signal."""
    for told in [[victim], [0, 1]][: 1 + victim]:
        with Group(workdir, flags, 2) as found:
            found.until_steps(5)
            for index in told:
                found.send(index, signal.SIGTERM)
            assert found.statuses(GONE) == [75, 75]
            texts = [found.text(i).strip().splitlines()[-1] for i in (0, 1)]
        step = max(group.saved(workdir))
        assert step < STEPS and step == group.last_step(workdir)
        for text in texts:
            assert f"step {step} is saved; the same command continues {workdir}" in text


@pytest.mark.parametrize(
    "befall",
    [
        (killed_in_a_collective, killed_while_the_other_computes_nothing),
        (stopped_and_left_behind, ended_by_an_exception),
        (stuck_and_named, told_to_stop),
    ],
    ids=lambda befall: "-".join(fault.__name__ for fault in befall),
)
def test_a_fault_in_each_of_two_processes(tmp_path, flags, unbroken, befall):
    """One fault after the other in one run, which then ends as if unbroken."""
    workdir = tmp_path / "run"
    for fault in befall:
        for victim in (0, 1):
            before = max(group.saved(workdir), default=0)
            fault(workdir, flags, victim)
            assert max(group.saved(workdir)) >= before, fault.__name__
    finish(workdir, flags, unbroken(2))


def test_signals_to_a_single_process(tmp_path, flags, unbroken):
    workdir = tmp_path / "run"
    for number, status in [(signal.SIGTERM, 75), (signal.SIGINT, 130)]:
        with Group(workdir, flags) as found:
            found.until_steps(5)
            found.send(0, number)
            assert found.statuses(GONE) == [status]
        assert max(group.saved(workdir)) == group.last_step(workdir)
    fault = {"batch": 12, "do": "sleep", "seconds": 600}
    with Group(workdir, [*flags, "--config.hang_after=20"], fault=fault) as found:
        found.until_fault()
        assert found.statuses(20 + GONE) == [42]
    assert "in happen" in found.text(0)
    finish(workdir, flags, unbroken(1), 1)


@pytest.mark.parametrize("count", [1, 2])
def test_sigterm_outside_the_steps(tmp_path, flags, unbroken, count):
    workdir = tmp_path / "run"
    for place in ("start", "compile", "evaluate", "save"):
        fault = {"place": place, "do": "sleep", "seconds": 3, "process": count - 1}
        before = group.saved(workdir)
        with Group(workdir, flags, count, fault=fault) as found:
            found.until_fault()
            found.send(0, signal.SIGTERM)
            assert found.statuses(GONE) == [75] * count
        saved = group.saved(workdir)
        told = "is saved; the same command" if saved else "nothing to save yet"
        assert told in found.text(0)
        # While one compiles, the other may be ready, and a first step is taken.
        assert place == "compile" or bool(saved) == (place != "start")
        assert max(saved, default=0) >= max(before, default=0)
    finish(workdir, flags, unbroken(count), count)


def test_slow_loader_is_waited_for_and_named(tmp_path, flags, unbroken):
    workdir = tmp_path / "run"
    fault = {"process": 1, "batch": 20, "do": "sleep", "seconds": 30}
    slow = [*flags, "--config.hang_after=80"]
    with Group(workdir, slow, 2, fault=fault) as found:
        assert found.statuses() == [0, 0]
    assert "s: process 1 (waiting for a batch)" in found.text(0)
    assert group.outcome(workdir) == unbroken(2)


def test_batch_that_is_not_finite(tmp_path, flags, unbroken):
    workdir = tmp_path / "run"
    fault = {"batch": 20, "do": "nan"}
    with Group(workdir, flags, 2, fault=fault) as found:
        assert found.statuses() == [2, 2]
    bad = [line for line in group.lines(workdir) if line["loss"] is None]
    assert bad, "the metrics were not written first"
    assert (workdir / f"not_finite_step_{bad[0]['step'] - 1}.npz").is_file()
    assert "Traceback" not in found.text(0) + found.text(1)
    finish(workdir, flags, unbroken(2))


def test_processes_that_differ_are_named(tmp_path, flags):
    with Group(tmp_path / "run", flags, 2, fault={"do": "differ"}) as found:
        assert found.statuses() == [2, 2]
    for index in (0, 1):
        assert "config/optim/peak_rate: 0.5 in process 1" in found.text(index)
        assert "Traceback" not in found.text(index)


def test_process_that_never_comes(tmp_path, flags):
    fault = {"start_seconds": 8}
    with Group(tmp_path / "run", flags, 2, fault=fault) as found:
        found.processes[1].kill()
        assert found.statuses()[0] == 42
    last = found.text(0).strip().splitlines()[-1]
    assert "process 0 of 2 could not join the others" in last
    assert "are all 2 started" in last
