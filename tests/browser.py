"""Chromium without a window, over its DevTools protocol on a pair of pipes."""

import fcntl
import itertools
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Browser:
    """One tab; `events` keeps what it told besides the answers."""

    def __init__(self, reads: int, writes: int) -> None:
        self._out, self._in, self._read = writes, reads, b""
        self._number = itertools.count(1)
        self._session: dict[str, str] = {}
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        found = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": found["sessionId"]}
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        os.close(self._out)
        os.close(self._in)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._number)
        message = {"id": number, "method": method, "params": params, **self._session}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._read:
            more = os.read(self._in, 1 << 20)
            assert more, "Chromium has gone"
            self._read += more
        text, _, self._read = self._read.partition(b"\0")
        return json.loads(text)

    def show(self, path: Path, width: int, scheme: str = "light") -> None:
        """Loads a file in a viewport of some width. [CSS pixels]"""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=844,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[feature])
        seen = len(self.events)
        self.call("Page.navigate", url=path.absolute().as_uri())
        while not any(e["method"] == "Page.loadEventFired" for e in self.events[seen:]):
            self.events.append(self._next())

    def evaluate(self, expression: str) -> Any:
        result = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def told(self, method: str) -> list[dict[str, Any]]:
        return [e["params"] for e in self.events if e.get("method") == method]


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """Starts Chromium with its profile in a folder."""
    (reads, their_out), (their_in, writes) = os.pipe(), os.pipe()
    # Chromium reads commands from 3 and answers on 4; ours must not be these.
    given = [fcntl.fcntl(own, fcntl.F_DUPFD, 10) for own in (their_in, their_out)]
    for own in (their_in, their_out):
        os.close(own)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
    flags += [f"--user-data-dir={profile}", "--no-first-run", "--disable-extensions"]
    script = f'exec chromium "$@" 3<&{given[0]} 4>&{given[1]}'
    process = subprocess.Popen(
        ["bash", "-c", script, "bash", *flags],
        pass_fds=given,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for own in given:
        os.close(own)
    timer = threading.Timer(300, process.kill)  # else a read would wait for ever
    timer.start()
    try:
        browser = Browser(reads, writes)
        yield browser
        browser.close()
    finally:
        timer.cancel()
        process.terminate()
        process.wait(30)
