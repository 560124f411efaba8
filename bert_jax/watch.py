"""Noticing what a loop cannot: signals, the others' ends, and standing still.

Everything here runs in threads, which also work while the main thread is inside the
compiler or waits for a device.
"""

import contextlib
import ctypes
import faulthandler
import os
import signal
import sys
import threading
import time
from typing import Any

from bert_jax import distributed
from bert_jax.errors import Hung, Stopped

_FIRST = 900  # [s] for start-up and the first step
_ANSWER = 60  # [s] for the threads of all processes to say where they are
_LAST_WORDS = 1.5  # [s] for the others to hear why process 0 ends
_ending = threading.Lock()


class Watch:
    """Watches over a loop that runs alike in all processes; a context manager.

    Signals: SIGTERM, or a first Ctrl-C, in any process makes `poll` raise at the same
    call in all of them, so that they save the same step. Before there is anything to
    save they end the process at once.

    Standing still: with no `poll` or `doing` for `patience` seconds, in any process,
    all of them say which one is behind, dump their stacks and exit with 42.

    Args:
      patience: longest time between two signs of life; 900 until the first
        step is done, since compilation gives none. 0: any. [s]
    """

    def __init__(self, patience: float):
        self._patience = patience
        self._lock = threading.Lock()
        self._decided = threading.Event()
        self._over = threading.Event()
        self._polls = 0  # calls of `poll`, the same in all processes
        self._signs = 0  # of life: calls of `poll` and `doing`
        self._stop: int | None = None  # the call that raises; None: not known
        self._news: dict[str, Any] | None = None  # why it does
        self._answered = False
        self._begun = False  # there is something to save
        self._life = time.monotonic()
        self._doing = "starting"

    def __enter__(self) -> "Watch":
        os.register_at_fork(after_in_child=self._restore_signals)
        self._read, write = os.pipe()
        os.set_blocking(write, False)
        # Python's own handlers run between two lines of the main thread, which may
        # be minutes away; the number written to this pipe arrives at once.
        self._old_wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        self._write = write
        self._old = {
            number: signal.signal(number, lambda *_: None)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        threads = [self._signals, self._clock]
        if distributed.count() > 1:
            threads.append(lambda: distributed.listen(self._hear))
        for run in threads:
            threading.Thread(target=run, daemon=True, name="watch").start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore_signals()
        os.write(self._write, b"\0")
        os.close(self._write)

    def _restore_signals(self) -> None:
        """Once; a forked process has to, or its signals would count as this one's."""
        if not self._over.is_set():
            self._over.set()
            for number, old in self._old.items():
                signal.signal(number, old)
            signal.set_wakeup_fd(self._old_wakeup)

    def doing(self, what: str, begun: bool = False, within: float = 0) -> None:
        """A sign of life of this process alone.

        Args:
          what: it does from now on, for messages.
          begun: from now on there is something that a signal has to save.
          within: time that it may take in which nobody loses patience. [s]
        """
        with self._lock:
            self._sign(what)
            self._life += within
            self._begun = self._begun or begun

    def poll(self, what: str) -> None:
        """A sign of life at a place that all processes pass equally often.

        Args:
          what: they do from now on, for messages.

        Raises:
          Stopped: all processes do so at this call; save, and end.
          Hung: the others did not say where they are.
        """
        with self._lock:
            self._polls += 1
            self._sign(what)
            answered = self._answered
        if not answered:
            return
        if not self._decided.wait(_ANSWER):
            raise Hung("stopping: the other processes do not say where they are")
        assert self._stop is not None and self._news is not None
        if self._polls >= self._stop:
            raise Stopped(self._news["text"], self._news["status"])

    def _sign(self, what: str) -> None:
        self._signs += 1
        self._doing, self._life = what, time.monotonic()

    def _signals(self) -> None:
        """Turns signals into news."""
        names = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}
        times = 0
        with contextlib.closing(os.fdopen(self._read, "rb", buffering=0)) as pipe:
            while (number := pipe.read(1)) and not self._over.is_set():
                name = names.get(signal.Signals(number[0]))
                if name is None:
                    continue
                times += 1
                status = 75 if name == "SIGTERM" else 130
                if times > 1 and name == "Ctrl-C":
                    _end(status, _line(f"{name} again: not saved"))
                where = f" (process {distributed.index()})" * (distributed.count() > 1)
                news = {"kind": "stop", "status": status, "text": f"{name}{where}"}
                if distributed.count() > 1:
                    distributed.tell(news)
                else:
                    self._hear(news)

    def _hear(self, news: dict[str, Any]) -> None:
        if news["kind"] == "end":  # of a process, with its cause
            if news["process"] != distributed.index():
                cause = f"process {news['process']} ended: {news['text']}"
                _end(news["status"], _line(cause))
        elif news["kind"] == "hang":
            _end(Hung.status, _line(news["text"]), stacks=True)
        elif self._news is None and not self._over.is_set():
            self._news = news
            with self._lock:
                self._answered = True
                mine = self._polls, self._begun
            board = distributed.Board("stop")
            board.put(mine)
            notes = board.all(_ANSWER) if distributed.count() > 1 else [mine]
            if not any(begun for _, begun in notes):
                _end(news["status"], _line(f"{news['text']}: nothing to save yet"))
            self._stop = max(polls for polls, _ in notes) + 1
            self._decided.set()
            _say(f"{news['text']}: saving before the next step")

    def _clock(self) -> None:
        """Compares the time of the last sign of life with the clock."""
        board, warned = distributed.Board("life"), False
        while self._patience and not self._over.wait(min(self._patience / 20, 10)):
            with self._lock:
                note = self._signs, self._doing, self._begun
                still = time.monotonic() - self._life
            notes = {0: note}
            try:
                board.put(note, again=True)
                if still > self._patience / 4:
                    notes = board.now() or notes
                late = _late(notes)
            except Exception as error:  # process 0 may be the one that stands still
                late = f"{note[1]}, and {type(error).__name__} from process 0"
            begun = all(begun for _, _, begun in notes.values())
            patience = self._patience if begun else max(self._patience, _FIRST)
            if still > patience:
                news = {
                    "kind": "hang",
                    "text": f"no progress for {still:.0f} s: {late}",
                }
                with contextlib.suppress(Exception):
                    if distributed.count() > 1:
                        distributed.tell(news)
                        time.sleep(_LAST_WORDS)
                self._hear(news)
            if still > patience / 4 and not warned:
                _say(f"waiting for {still:.0f} s: {late}")
            warned = still > patience / 4


def _late(notes: dict[int, tuple[int, str, bool]]) -> str:
    """Which processes are behind the others, and what they do."""
    least = min(signs for signs, _, _ in notes.values())
    behind = {i: doing for i, (signs, doing, _) in notes.items() if signs == least}
    if len(notes) == 1:
        return next(iter(behind.values()))
    return ", ".join(f"process {i} ({doing})" for i, doing in behind.items())


def end(status: int, text: str, trace: str = "") -> None:
    """Ends this process now, and the others with it.

    Args:
      status: the exit status of all.
      text: the cause, one line.
      trace: printed here before.
    """
    with contextlib.suppress(Exception):  # nobody may be left to hear it
        if distributed.count() > 1:
            news = {"kind": "end", "status": status, "text": text}
            distributed.tell({**news, "process": distributed.index()})
            time.sleep(_LAST_WORDS / 3)
    _end(status, trace)


def _end(status: int, text: str, stacks: bool = False) -> None:
    """Ends the process here and now: no exit handler may wait for the others."""
    _ending.acquire()  # for good: the first cause is the one that is told
    if stacks:
        faulthandler.dump_traceback(all_threads=True)
    if distributed.count() > 1 and sys.platform == "linux":
        # The others end too, over which XLA's threads abort. Let them wait instead:
        # the status shall be ours.
        libc = ctypes.CDLL(None)
        libc.signal(int(signal.SIGABRT), libc.pause)
    print(text, file=sys.stderr, end="", flush=True)
    sys.stdout.flush()
    if distributed.count() > 1 and distributed.index() == 0:
        time.sleep(_LAST_WORDS)  # what the others hear goes through this process
    os._exit(status)


def _say(text: str) -> None:
    print(_line(text), file=sys.stderr, end="", flush=True)


def _line(text: str) -> str:
    return f"bert-jax: {text}\n"
