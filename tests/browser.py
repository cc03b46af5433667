"""Chromium without a window, spoken to over a pipe (DevTools protocol): opens pages, clicks, drags, looks."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe",
    "--window-size=1200,900",
    "--autoplay-policy=no-user-gesture-required",
)  # fmt: skip
# it reads commands at descriptor 3 and answers at 4
_AT_3_AND_4 = (
    "import fcntl, os, sys; ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]];"
    "os.dup2(ends[0], 3); os.dup2(ends[1], 4); os.execv(sys.argv[3], sys.argv[3:])"
)


class Browser(contextlib.AbstractContextManager):
    """One page of one browser.

    Attributes:
        asked: addresses that were asked for since the beginning, the pages' own among them.
        errors: what went wrong in a page's scripts, or was said on its console as an error.
    """

    def __init__(self, profile: Path) -> None:
        from_us, to_us = os.pipe(), os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-ISc", _AT_3_AND_4, str(from_us[0]), str(to_us[1]), str(CHROMIUM), *_FLAGS,
             f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(from_us[0], to_us[1]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(from_us[0])
        os.close(to_us[1])
        self._write, self._read, self._rest, self._count = from_us[1], to_us[0], b"", 0
        self._session: dict[str, str] = {}
        self.asked: list[str] = []
        self.errors: list[str] = []
        target = next(t for t in self("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Network", "Log"):
            self(f"{domain}.enable")

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the protocol, and its answer."""
        self._count += 1
        number = self._count
        said = {"id": number, "method": method, "params": parameters, **self._session}
        os.write(self._write, json.dumps(said).encode() + b"\0")
        while True:
            message = self._next(60.0)
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self._note(message)

    def _next(self, patience: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], patience)
            found = os.read(self._read, 1 << 20) if ready else b""
            assert found, "the browser says nothing"
            self._rest += found
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        name, told = event.get("method"), event.get("params", {})
        if name == "Network.requestWillBeSent":
            self.asked.append(told["request"]["url"])
        if name == "Runtime.exceptionThrown":
            self.errors.append(told["exceptionDetails"]["text"])
        if name == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.errors.append(told["entry"]["text"])

    def open(self, path: Path) -> None:
        """A file, until it is loaded and its scripts have run."""
        self("Page.navigate", url=path.resolve().as_uri())
        self.until("document.readyState === 'complete'")

    def ask(self, script: str) -> Any:
        """The value of an expression in the page; of a promise, what it comes to."""
        told = self("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def until(self, script: str, seconds: float = 30.0) -> None:
        """Waits for an expression to be true."""
        end = time.monotonic() + seconds
        while not self.ask(script):
            assert time.monotonic() < end, script
            time.sleep(0.05)

    def box(self, selector: str) -> tuple[float, float, float, float]:
        """Left, top, width and height of an element, scrolled into view."""
        find = f"document.querySelector({json.dumps(selector)})"
        self.ask(f"{find}.scrollIntoView({{block: 'center'}})")
        x, y, width, height = self.ask(f"(r => [r.x, r.y, r.width, r.height])({find}.getBoundingClientRect())")
        return x, y, width, height

    def mouse(self, kind: str, x: float, y: float, clicks: int = 1, **more: Any) -> None:
        """Moved, pressed or released."""
        button = {} if kind == "mouseMoved" and not more else {"button": "left", "clickCount": clicks}
        self("Input.dispatchMouseEvent", type=kind, x=x, y=y, **button, **more)

    def click(self, selector: str, times: int = 1) -> None:
        """In the middle of an element."""
        left, top, width, height = self.box(selector)
        for turn in range(times):
            for kind in ("mousePressed", "mouseReleased"):
                self.mouse(kind, left + width / 2, top + height / 2, clicks=turn + 1)

    def drag(self, selector: str, start: float, end: float) -> None:
        """Across an element, between shares of its width."""
        left, top, width, height = self.box(selector)
        self.mouse("mousePressed", left + start * width, top + height / 2)
        for step in range(1, 6):
            self.mouse("mouseMoved", left + (start + (end - start) * step / 5) * width, top + height / 2, buttons=1)
        self.mouse("mouseReleased", left + end * width, top + height / 2)

    def picture(self, path: Path) -> None:
        """What is seen, as a PNG."""
        path.write_bytes(base64.b64decode(self("Page.captureScreenshot")["data"]))
