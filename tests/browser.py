"""Headless Chromium for the tests, spoken to in the DevTools protocol over two pipes: no driver, no package."""

import contextlib
import fcntl
import itertools
import json
import os
import pathlib
import select
import shutil
import subprocess
import time
from collections.abc import Iterator

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 120  # seconds for an answer; machines that test are slow and shared
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # refused to root otherwise; the pages are our own
    "--disable-gpu",
    "--disable-dev-shm-usage",  # containers give 64 MB
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


def find() -> str:
    """The command of a Chromium; installs one on a machine of CI, and skips the test elsewhere if there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None and os.environ.get("CI") and os.geteuid() == 0 and shutil.which("apt-get"):
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for words in (["update"], ["install", "-y", "--no-install-recommends", "chromium"]):
            done = subprocess.run(["apt-get", *words], capture_output=True, text=True, env=environment)
            if done.returncode:
                pytest.fail(f"apt-get {' '.join(words)}: {done.stderr.strip()[-500:]}", pytrace=False)
        found = shutil.which("chromium")
    if found is None:
        pytest.skip(f"none of {', '.join(NAMES)} is in PATH: install one, e.g. with apt-get install chromium")
    return found


class Page:
    """A tab. events: (method, parameters) of all that the browser has told since the last page was opened."""

    def __init__(self, write: int, read: int):
        """write, read: ends of the pipes."""
        self._write, self._read = write, read
        self._numbers, self._session, self._rest = itertools.count(1), "", b""
        self.events: list[tuple[str, dict]] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def _receive(self, until: float) -> dict:
        while b"\0" not in self._rest:
            if not select.select([self._read], [], [], max(0, until - time.monotonic()))[0]:
                raise TimeoutError("the browser does not answer")
            chunk = os.read(self._read, 2**20)
            if not chunk:
                raise EOFError("the browser has ended")
            self._rest += chunk
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def ask(self, method: str, **parameters) -> dict:
        """Calls a method of the protocol and returns its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]
        until = time.monotonic() + PATIENCE
        while True:
            answer = self._receive(until)
            if answer.get("id") == number:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            if "method" in answer:
                self.events.append((answer["method"], answer["params"]))

    def wait_for(self, method: str) -> None:
        """Until an event has come."""
        until = time.monotonic() + PATIENCE
        while method not in [name for name, _ in self.events]:
            message = self._receive(until)
            if "method" in message:
                self.events.append((message["method"], message["params"]))

    def show(self, path: pathlib.Path, width: int, height: int = 800, *, dark: bool = False) -> None:
        """Opens a file in a window of `width` CSS pixels; up to 500 it is a phone."""
        phone = width <= 500
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.ask("Page.navigate", url=path.resolve().as_uri())
        self.wait_for("Page.loadEventFired")

    def value(self, expression: str):
        """The value of a JavaScript expression, awaited."""
        answer = self.ask("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")


@contextlib.contextmanager
def opened(profile: pathlib.Path) -> Iterator[Page]:
    """A browser with one tab. profile: a folder for what it keeps."""
    command = [find(), *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    requests, answers = os.pipe(), os.pipe()
    # The browser reads file 3 and writes file 4; bash puts ours there, which must not be in the way themselves.
    high = [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (requests[0], answers[1])]
    start = ["bash", "-c", 'exec "${@:3}" 3<&"$1" 4>&"$2"', "bash", *map(str, high), *command]
    process = subprocess.Popen(start, pass_fds=high, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for end in (requests[0], answers[1], *high):
        os.close(end)
    try:
        yield Page(requests[1], answers[0])
    finally:
        os.close(requests[1])  # which ends the browser
        os.close(answers[0])
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
