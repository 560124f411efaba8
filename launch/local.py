#!/usr/bin/env python3
"""Runs one command as several processes of this machine, restarted together.

python launch/local.py --processes=2 --devices=4 -- train --config=... --workdir=...

It needs the standard library only. Processes that JAX connects live and die together:
when one fails, the others get a moment to leave, are killed, and all start again.
"""

import argparse
import contextlib
import ctypes
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

RESTARTABLE = (42, 75, 134, 137, 143)  # hang, preempted, SIGABRT, SIGKILL, SIGTERM
FRUITLESS = 3  # restarts in a row without a new checkpoint before it gives up
PR_SET_PDEATHSIG = 1  # linux/prctl.h
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class Outcome(NamedTuple):
    """How one attempt ended."""

    process: int  # the one that failed first; 0 if none did
    status: int  # its exit status, 128 + n for signal n; 0 if none failed
    signal: int  # the last signal that was passed on; 0 if none was


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the processes until they are done or are not worth another try.

    Args:
      argv: the arguments after the program's name; None is `sys.argv[1:]`.

    Returns:
      0 if every process ended with 0, else the status of the first that failed.
    """
    args = _arguments(argv)
    waker, inbox = socket.socketpair()
    waker.setblocking(False)
    inbox.setblocking(False)
    signal.set_wakeup_fd(waker.fileno())  # each signal's number becomes a byte
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    restarts = fruitless = 0
    before = _newest(args.command)
    while True:
        outcome = _attempt(args, inbox)
        if outcome.status == 0:
            return 0
        failed = f"process {outcome.process} ended with {outcome.status}"
        after = _newest(args.command)
        fruitless = 0 if after > before or not restarts else fruitless + 1
        before = after
        if outcome.signal:
            reason = f"after {signal.Signals(outcome.signal).name}"
        elif outcome.status not in RESTARTABLE:
            reason = "no restart helps"
        elif restarts == args.restarts:
            reason = f"no restart of {args.restarts} left"
        elif fruitless >= FRUITLESS:
            reason = f"{FRUITLESS} restarts made no new checkpoint"
        else:
            restarts += 1
            _tell(f"{failed}; restart {restarts} of {args.restarts}")
            continue
        _tell(f"{failed}; {reason}")
        return outcome.status


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Run `python -m bert_jax COMMAND` as several processes here.",
        epilog="example:\n  python launch/local.py --processes=2 --devices=4 -- \\\n"
        "    train --config=configs/bert_tiny.py --workdir=runs/tiny",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--processes", metavar="N", type=int, required=True, help="how many")
    add("--devices", metavar="N", type=int, help="CPU devices of each process")
    add("--gpus", metavar="N", type=int, help="GPUs of each process, in turn")
    add(
        "--restarts",
        metavar="N",
        type=int,
        default=3,
        help="how often all start again after a hang, a preemption or a kill; "
        f"{FRUITLESS} without a new checkpoint are enough (default: 3)",
    )
    add(
        "--grace",
        metavar="SECONDS",
        type=float,
        default=10.0,
        help="how long the others may stay when one has failed (default: 10)",
    )
    add("command", nargs=argparse.REMAINDER, help="train --config=... --workdir=...")
    args = parser.parse_args(argv)
    if args.command[:1] == ["--"]:
        del args.command[0]
    if not args.command:
        parser.error("the command is missing: ... -- train --config=...")
    for name, least in (("processes", 1), ("devices", 1), ("gpus", 1), ("restarts", 0)):
        if getattr(args, name) is not None and getattr(args, name) < least:
            parser.error(f"--{name}={getattr(args, name)}: must be at least {least}")
    if args.grace < 0:
        parser.error(f"--grace={args.grace}: must not be negative")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    needed = args.processes * (args.gpus or 0)
    if visible is not None and len(visible.split(",")) < needed:
        parser.error(f"--gpus: needs {needed}, CUDA_VISIBLE_DEVICES={visible}")
    return args


def _attempt(args: argparse.Namespace, inbox: socket.socket) -> Outcome:
    """Starts all processes and returns when all are gone."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    children: list[subprocess.Popen[bytes]] = []
    try:
        for index in range(args.processes):
            children.append(_start(args, index, address))
        return _watch(children, inbox, args.grace)
    finally:
        for child in children:
            _kill(child)
            child.wait()


def _start(
    args: argparse.Namespace, index: int, address: str
) -> subprocess.Popen[bytes]:
    environment = dict(
        os.environ,
        JAX_COORDINATOR_ADDRESS=address,
        JAX_PROCESS_COUNT=str(args.processes),
        JAX_PROCESS_INDEX=str(index),
    )
    if args.devices:
        environment["JAX_NUM_CPU_DEVICES"] = str(args.devices)
    if args.gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        turns = range(index * args.gpus, (index + 1) * args.gpus)
        own = [visible.split(",")[i] if visible else str(i) for i in turns]
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(own)
    launcher = os.getpid()

    def die_with_launcher() -> None:
        if LIBC:
            LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != launcher:
                os.kill(os.getpid(), signal.SIGKILL)

    # Groups of their own: the terminal's Ctrl-C reaches them once, through us.
    return subprocess.Popen(
        [sys.executable, "-m", "bert_jax", *args.command],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if index else None,
        stderr=subprocess.STDOUT if index else None,
        process_group=0,
        preexec_fn=die_with_launcher,
    )


def _watch(
    children: list[subprocess.Popen[bytes]], inbox: socket.socket, grace: float
) -> Outcome:
    """Copies output and passes signals on until every process has ended."""
    outcome = Outcome(0, 0, 0)
    deadline: float | None = None
    selector = selectors.DefaultSelector()
    selector.register(inbox, selectors.EVENT_READ)
    outputs = [_Output(child, i) for i, child in enumerate(children) if i]
    for output in outputs:
        selector.register(output.file, selectors.EVENT_READ, output)
    while any(child.poll() is None for child in children):
        left = None if deadline is None else max(0, deadline - time.monotonic())
        for key, _ in selector.select(left):
            if key.data is None:
                outcome = _pass_on(inbox.recv(4096), children, outcome)
            elif not key.data.copy():
                selector.unregister(key.fileobj)
        if deadline is None:
            outcome = _failure(children, outcome)
            deadline = time.monotonic() + grace if outcome.status else None
        elif time.monotonic() >= deadline:
            # Not SIGTERM: it asks for a checkpoint, and that takes all processes.
            for child in children:
                _kill(child)
            deadline = time.monotonic() + grace
    for output in outputs:
        output.copy()
        output.close()
    selector.close()
    return outcome if outcome.status else _failure(children, outcome)


def _pass_on(
    numbers: bytes, children: list[subprocess.Popen[bytes]], outcome: Outcome
) -> Outcome:
    """Sends the children what the launcher got; the second Ctrl-C kills them."""
    for number in numbers:
        if number == signal.SIGCHLD:
            continue
        again = number == outcome.signal == signal.SIGINT
        for child in children:
            if again:
                _kill(child)
            else:
                child.send_signal(number)
        outcome = outcome._replace(signal=number)
    return outcome


def _failure(children: list[subprocess.Popen[bytes]], outcome: Outcome) -> Outcome:
    """Adds who failed first; of several found at once, the one with its own fault."""
    ended = [(i, child.poll()) for i, child in enumerate(children)]
    failed = [(i, code if code > 0 else 128 - code) for i, code in ended if code]
    if not failed:
        return outcome
    # A peer's death shows as SIGABRT in the others.
    process, status = min(
        failed, key=lambda found: (found[1] in RESTARTABLE, found[1] == 134)
    )
    return outcome._replace(process=process, status=status)


def _kill(child: subprocess.Popen[bytes]) -> None:
    """Ends a process and what it started, also where it is stopped."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)


class _Output:
    """Copies the lines of one process to stderr with its index in front.

    Process 0 writes for itself, so stdout stays its alone, JSON included.
    """

    def __init__(self, child: subprocess.Popen[bytes], index: int):
        assert child.stdout
        self.file = child.stdout
        self.prefix = f"[{index}] ".encode()
        self.rest = b""
        os.set_blocking(self.file.fileno(), False)

    def copy(self) -> bool:
        """Copies what is there; returns whether more can come."""
        for _ in range(16):  # more than a pipe holds, and signals do not wait long
            try:
                new = os.read(self.file.fileno(), 1 << 16)
            except BlockingIOError:
                break
            if not new:
                return False
            *lines, self.rest = (self.rest + new).split(b"\n")
            self._write(lines)
        return True

    def close(self) -> None:
        """Writes a last line that has no end."""
        if self.rest:
            self._write([self.rest])
        self.file.close()

    def _write(self, lines: list[bytes]) -> None:
        text = b"".join(self.prefix + line + b"\n" for line in lines)
        sys.stderr.buffer.write(text)
        sys.stderr.buffer.flush()


def _newest(command: list[str]) -> int:
    """The last step saved in the command's --workdir, -1 without one to be seen."""
    steps = [-1]
    for word, after in zip(command, [*command[1:], ""], strict=True):
        flag, equals, value = word.partition("=")
        if flag == "--workdir":
            saved = Path(value if equals else after) / "checkpoints"
            steps += [int(p.name) for p in saved.glob("*") if p.name.isdigit()]
    return max(steps)


def _tell(text: str) -> None:
    print(f"local: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
