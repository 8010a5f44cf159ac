"""Headless Chromium driven through its debugging pipe, with nothing but the standard library."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
KEYS = {"ArrowDown": 40, "ArrowUp": 38, "Escape": 27, "Enter": 13, "/": 191, "End": 35}


def find() -> str | None:
    """The program, or None if it is not installed."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Browser:
    """One tab; use as a context manager. `errors` collects what the console reports, `requested` every URL asked for."""

    def __init__(self, profile: Path, width: int = 1400, height: int = 900) -> None:
        self.errors: list[str] = []
        self.requested: list[str] = []
        self.size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.profile, self.sent, self.session, self.unread = profile, 0, "", b""
        self.open = ExitStack()

    def __enter__(self) -> Self:
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        program = find()
        assert program is not None
        flags = "--headless --no-sandbox --disable-gpu --remote-debugging-pipe --no-first-run --disable-dev-shm-usage"
        command = [program, *flags.split(), f"--user-data-dir={self.profile}", "about:blank"]
        shell = ["bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "chromium", *command]
        silent = subprocess.DEVNULL
        self.process = subprocess.Popen(shell, pass_fds=(theirs_in, theirs_out), stdout=silent, stderr=silent)
        os.close(theirs_in)
        os.close(theirs_out)
        self.to = self.open.enter_context(os.fdopen(ours_out, "wb", buffering=0))
        self.came = self.open.enter_context(os.fdopen(ours_in, "rb"))
        tab = next(t for t in self.ask("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self.session = self.ask("Target.attachToTarget", {"targetId": tab["targetId"], "flatten": True})["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")
        self.ask("Emulation.setDeviceMetricsOverride", self.size)
        return self

    def __exit__(self, *failure: object) -> None:
        self.session = ""
        self.ask("Browser.close")
        self.process.wait(20)
        self.open.close()

    def ask(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """Call a method of the debugging protocol; its result."""
        self.sent += 1
        message = {"id": self.sent, "method": method, "params": params or {}}
        message |= {"sessionId": self.session} if self.session else {}
        self.to.write(json.dumps(message).encode() + b"\0")
        while (answer := self.receive()).get("id") != self.sent:
            self.note(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def receive(self) -> dict[str, Any]:
        """The next message."""
        while b"\0" not in self.unread:
            data = self.came.read1(1 << 16)
            assert data, "the browser has gone"
            self.unread += data
        message, _, self.unread = self.unread.partition(b"\0")
        return json.loads(message)

    def note(self, event: dict[str, Any]) -> None:
        """Keep errors and requests."""
        params = event.get("params", {})
        match event.get("method"):
            case "Runtime.exceptionThrown":
                self.errors.append(json.dumps(params["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                self.errors.append(json.dumps(params["args"]))
            case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                self.errors.append(json.dumps(params["entry"]))
            case "Network.requestWillBeSent":
                self.requested.append(params["request"]["url"])
            case _:
                pass

    def go(self, url: str) -> None:
        """Open an address."""
        self.ask("Page.navigate", {"url": url})

    def run(self, code: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        params = {"expression": code, "returnByValue": True, "awaitPromise": True, "userGesture": True}
        answer = self.ask("Runtime.evaluate", params)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, code: str, seconds: float = 20) -> Any:
        """The value of an expression once it is true."""
        end = time.monotonic() + seconds
        while not (value := self.run(code)):
            assert time.monotonic() < end, f"never true: {code}; console: {self.errors}"
            time.sleep(0.02)
        return value

    def press(self, *keys: str) -> None:
        """Type keys named in KEYS or of one letter."""
        for key in keys:
            code = KEYS.get(key, ord(key[0].upper()))
            event: dict[str, Any] = {"key": key, "windowsVirtualKeyCode": code}
            text = {"text": key} if len(key) == 1 else {}
            self.ask("Input.dispatchKeyEvent", {"type": "keyDown", **event, **text})
            self.ask("Input.dispatchKeyEvent", {"type": "keyUp", **event})

    def click(self, selector: str) -> None:
        """Click in the middle of the first element that a CSS selector finds."""
        box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        place = f"(({{x, y, width, height}}) => ({{x: x + width / 2, y: y + height / 2}}))({box})"
        event = {**self.run(place), "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", {"type": kind, **event})

    def scheme(self, scheme: str) -> None:
        """Prefer light or dark."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.ask("Emulation.setEmulatedMedia", {"features": features})

    def resize(self, width: int, height: int) -> None:
        """Change the size of the window."""
        self.ask("Emulation.setDeviceMetricsOverride", {**self.size, "width": width, "height": height})

    def screenshot(self, path: Path) -> None:
        """Save what is seen as PNG."""
        path.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot")["data"]))
