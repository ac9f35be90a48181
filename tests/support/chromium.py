"""Headless Chromium, for what a reader sees: opens a page at a width, light or dark, and asks it questions.

The DevTools protocol goes through a pipe, so that no package and no port are needed: JSON objects, each ended by a
zero byte.
"""

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any


EXECUTABLE = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MISSING = None if EXECUTABLE else "needs Chromium: apt-get install --no-install-recommends chromium"
"""The reason to skip a test, or `None`."""

_FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage"]
_FLAGS += [
    "--no-first-run",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-sync",
    "--mute-audio",
]
_FLAGS += ["--disable-component-update", "--no-default-browser-check"]
_FLAGS += ["--remote-debugging-pipe"]
_KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32}


class Chromium:
    """A browser with one tab: `with Chromium() as browser: browser.open(path, width=375, dark=True)`.

    What its pages log as errors is in `errors`; `open` empties it.
    """

    def __init__(self) -> None:
        self.errors: list[str] = []
        self._replies: dict[int, Any] = {}
        self._loaded = False
        self._number = 0
        self._rest = b""
        self._folder = tempfile.mkdtemp(prefix="chromium-")
        reads, self._to = os.pipe()  # Chromium reads commands from its descriptor 3 and answers on 4
        self._from, writes = os.pipe()
        command = [str(EXECUTABLE), *_FLAGS, f"--user-data-dir={self._folder}", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{reads} 4>&{writes}', "bash", *command],
            pass_fds=(reads, writes),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "HOME": self._folder},
        )
        os.close(reads)
        os.close(writes)
        target = self._send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def __enter__(self) -> "Chromium":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._to)
        os.close(self._from)
        shutil.rmtree(self._folder, ignore_errors=True)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the DevTools protocol to the tab, and its result."""
        return self._send(method, self._session, **parameters)

    def open(self, address: str | Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Load a page and wait until it is whole."""
        url = address.resolve().as_uri() if isinstance(address, Path) else address
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", **metrics)
        self.emulate(dark=dark)
        self.errors.clear()
        self._loaded = False
        self.send("Page.navigate", url=url)
        self._until(lambda: self._loaded, 30, f"{url} to load")

    def emulate(self, *, dark: bool = False, media: str = "") -> None:
        """What the reader's system prefers, and `media="print"`."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", media=media, features=[scheme])

    def evaluate(self, script: str) -> Any:
        """The value of an expression of JavaScript, a promise's where it is one."""
        done = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in done:
            raise AssertionError(done["exceptionDetails"].get("exception", {}).get("description", done))
        return done["result"].get("value")

    def wait_for(self, script: str, seconds: float = 30) -> Any:
        """The value of an expression as soon as it is true."""
        end = time.monotonic() + seconds
        while not (value := self.evaluate(script)):
            assert time.monotonic() < end, f"waited {seconds} s for {script}"
            time.sleep(0.05)
        return value

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.send("Input.insertText", text=text)

    def press(self, key: str) -> None:
        """Press and release a key: "Tab", "Enter", "Escape", " "."""
        pressed = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": _KEYS[key]}
        letter = {"Enter": "\r", " ": " "}.get(key, "")
        self.send("Input.dispatchKeyEvent", type="keyDown" if letter else "rawKeyDown", text=letter, **pressed)
        self.send("Input.dispatchKeyEvent", type="keyUp", **pressed)

    def screenshot(self, path: str | Path, *, whole: bool = True) -> None:
        """A PNG of the page, or of what is in the window."""
        chosen: dict[str, Any] = {}
        if whole:
            size = self.send("Page.getLayoutMetrics")["cssContentSize"]
            chosen["clip"] = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 8000), "scale": 1}
        shot = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole, **chosen)
        Path(path).write_bytes(base64.b64decode(shot["data"]))

    def pdf(self, path: str | Path) -> None:
        """The page as it is printed."""
        Path(path).write_bytes(base64.b64decode(self.send("Page.printToPDF", preferCSSPageSize=True)["data"]))

    def _send(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        number = self._number
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._to, data) :]
        self._until(lambda: number in self._replies, 60, method)
        reply = self._replies.pop(number)
        if "error" in reply:
            raise AssertionError(f"{method}: {reply['error']['message']}")
        return reply["result"]

    def _until(self, done: Any, seconds: float, what: str) -> None:
        """Read what the browser says until something has come."""
        end = time.monotonic() + seconds
        while not done():
            ready, _, _ = select.select([self._from], [], [], max(end - time.monotonic(), 0))
            data = os.read(self._from, 1 << 20) if ready else b""
            assert data, f"waited {seconds} s for {what}" if not ready else f"Chromium ended before {what}"
            *messages, self._rest = (self._rest + data).split(b"\0")
            for message in map(json.loads, messages):
                self._heard(message)

    def _heard(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self._replies[message["id"]] = message
            return
        said = message.get("params", {})
        if message["method"] == "Page.loadEventFired":
            self._loaded = True
        elif message["method"] == "Runtime.exceptionThrown":
            details = said["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif message["method"] == "Runtime.consoleAPICalled" and said["type"] in ("error", "assert"):
            self.errors.append(" ".join(str(part.get("value", part.get("description"))) for part in said["args"]))
        elif message["method"] == "Log.entryAdded" and said["entry"]["level"] == "error":
            self.errors.append(f"{said['entry']['text']} {said['entry'].get('url', '')}".strip())
