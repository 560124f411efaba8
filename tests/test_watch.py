import os
import signal
import time

import pytest

from bert_jax.errors import Stopped
from bert_jax.watch import Watch


def polls_until_stopped(watch):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        watch.poll("testing")
        time.sleep(0.01)
    pytest.fail("no poll has raised")


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)]
)
def test_signal_makes_poll_raise(number, status, capfd):
    with Watch(0) as watch:
        watch.doing("testing", begun=True)
        watch.poll("testing")
        os.kill(os.getpid(), number)
        with pytest.raises(Stopped) as stopped:
            polls_until_stopped(watch)
        with pytest.raises(Stopped):  # and all polls after it
            watch.poll("testing")
    assert stopped.value.status == status
    assert "saving before the next step" in capfd.readouterr().err


def test_signals_are_given_back():
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with Watch(0):
        pass
    after = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    assert before == after
    assert signal.set_wakeup_fd(-1) == -1


def test_signal_of_a_forked_process_is_not_ours():
    with Watch(0) as watch:
        watch.doing("testing", begun=True)
        child = os.fork()
        if not child:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)  # not reached: it has its old handler again
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        for _ in range(20):
            watch.poll("testing")
            time.sleep(0.01)


def test_without_processes_and_signals_nothing_happens():
    watch = Watch(0)  # not entered: nobody watches
    for _ in range(3):
        watch.poll("testing")
        watch.doing("more")
