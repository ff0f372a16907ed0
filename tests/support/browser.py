"""A real browser for tests: Chromium, told what to do over its DevTools protocol."""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

from tests.support.workers import wait_for

_ANSWER_WITHIN_S = 60.0
PHONE, DESK = 390, 1280
"""Widths of windows, in CSS pixels."""


def chromium() -> str:
    """The browser's path; the test is skipped where there is none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium on this machine: the pages are not looked at in a browser")
    return found


class Tab:
    """One page. ``complaints`` is what a person would see in the browser's console, and requests that failed."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._number = 0
        self._seen: set[str] = set()
        self.complaints: list[str] = []
        self.width = DESK
        """Of the window. Scripts are told a larger one on phones, where a page does not fit."""
        self._session: str | None = None
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Audits"):
            self._call(f"{domain}.enable")

    def open(self, url: str, *, width: int = DESK, dark: bool = False, medium: str = "screen") -> None:
        """Load a page in a window of this width and wait for its pictures, lazy ones too."""
        self.complaints.clear()
        self.width = width
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", media=medium, features=[scheme])
        self._after("Page.loadEventFired", "Page.navigate", url=url)
        self.settle()

    def submit(self, selector: str) -> None:
        """Press a button that leads to another page."""
        self._after(
            "Page.loadEventFired",
            "Runtime.evaluate",
            expression=f"document.querySelector({json.dumps(selector)}).click()",
            userGesture=True,
        )
        self.settle()

    def settle(self) -> None:
        """Wait until every picture is loaded or failed."""
        self.evaluate("document.querySelectorAll('img').forEach(i => { i.loading = 'eager' })")
        wait_for(
            lambda: self.evaluate("[...document.images].every(i => i.complete)"), timeout_s=60, what="the pictures"
        )

    def evaluate(self, expression: str) -> Any:
        """A JavaScript expression's value, by the browser's own hand: the page's policy does not matter."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self, path: Path, *, height: int | None = None) -> None:
        """The page as a PNG, whole or its upper part."""
        size = self._call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": height or min(size["height"], 16_000), "scale": 1}
        data = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)["data"]
        path.write_bytes(base64.b64decode(data))

    def pdf(self, path: Path) -> None:
        """The page as it prints."""
        path.write_bytes(base64.b64decode(self._call("Page.printToPDF", printBackground=False)["data"]))

    def tree(self) -> list[dict[str, Any]]:
        """What a screen reader is told."""
        nodes: list[dict[str, Any]] = self._call("Accessibility.getFullAXTree")["nodes"]
        return [node for node in nodes if not node["ignored"]]

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        self._connection.send(json.dumps(message))
        deadline = time.monotonic() + _ANSWER_WITHIN_S
        while True:
            answer = self._receive(deadline)
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                result: dict[str, Any] = answer["result"]
                return result

    def _after(self, event: str, method: str, **params: Any) -> None:
        self._seen.discard(event)
        self._call(method, **params)
        deadline = time.monotonic() + _ANSWER_WITHIN_S
        while event not in self._seen:
            self._receive(deadline)

    def _receive(self, deadline: float) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self._connection.recv(timeout=max(0.01, deadline - time.monotonic())))
        method, params = told.get("method"), told.get("params", {})
        if method:
            self._seen.add(method)
        if method == "Log.entryAdded":
            self.complaints.append(f"{params['entry']['level']}: {params['entry']['text']}")
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(f"console.{params['type']}")
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(params["exceptionDetails"]["text"])
        elif method == "Audits.issueAdded":
            self.complaints.append(f"issue: {json.dumps(params['issue'])}")
        elif method == "Network.loadingFailed":
            self.complaints.append(f"not loaded: {params['errorText']} {params.get('blockedReason', '')}")
        return told


@contextmanager
def browser(folder: Path) -> Iterator[Tab]:
    """A browser of its own without a window; everything it keeps is in ``folder``."""
    # Tests run as root in containers, where Chromium's sandbox does not start; the pages are ours.
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                 "--hide-scrollbars", "--remote-debugging-port=0", f"--user-data-dir={folder / 'profile'}"]  # fmt: skip
    environment = {**os.environ, "HOME": str(folder)}
    with (folder / "chromium.log").open("wb") as log:
        process = subprocess.Popen([chromium(), *arguments], stdout=log, stderr=log, env=environment)
    try:
        port_file = folder / "profile" / "DevToolsActivePort"

        def address() -> str | None:
            assert process.poll() is None, (folder / "chromium.log").read_text(errors="replace")[-2000:]
            lines = port_file.read_text().splitlines() if port_file.exists() else []
            return f"ws://127.0.0.1:{lines[0]}{lines[1]}" if len(lines) == 2 else None

        url = wait_for(address, timeout_s=60, what="Chromium")
        assert url is not None
        with connect(url, max_size=None, proxy=None, open_timeout=30) as connection:
            yield Tab(connection)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
