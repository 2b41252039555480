"""A headless Chromium for tests of pages, by the WebDriver protocol (W3C) of its own driver."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which(
    "google-chrome"
)  # fmt: skip
DRIVER = shutil.which("chromedriver")
REASON = "needs Chromium and its chromedriver"
AVAILABLE = CHROMIUM is not None and DRIVER is not None


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One for all tests of a process: it takes longer to start than a page to be looked at."""
    with Browser() as opened:
        yield opened


class Browser:
    """One session; `with Browser() as browser: browser.open(path)`."""

    def __init__(self, *, dark: bool = False, width: int = 1100, height: int = 900) -> None:
        assert DRIVER is not None
        self.process = subprocess.Popen(
            [DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self.process.stdout is not None
        port = ""
        while not port:
            line = self.process.stdout.readline()
            assert line, "chromedriver did not start"
            found = re.search(r"success\w* on port (\d+)", line)
            port = found[1] if found else ""
        self.address = f"http://127.0.0.1:{port}/session"
        switches = [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
            "--disable-component-update", "--no-first-run", "--disable-dev-shm-usage",
            "--disable-sync", "--hide-scrollbars", f"--window-size={width},{height}",
        ]  # fmt: skip
        options = {
            "goog:chromeOptions": {"args": switches, "binary": CHROMIUM},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        try:
            made = self._post("", {"capabilities": {"alwaysMatch": options}})
            self.address += f"/{made['sessionId']}"
            features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
            self.command("Emulation.setEmulatedMedia", features=features)
            self.command(
                "Emulation.setDeviceMetricsOverride", width=width, height=height,
                deviceScaleFactor=1, mobile=False,
            )  # fmt: skip
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the browser and its driver."""
        try:
            request = urllib.request.Request(self.address, method="DELETE")
            urllib.request.urlopen(request, timeout=120).close()
        except OSError:
            pass
        self.process.terminate()
        self.process.communicate(timeout=120)

    def _post(self, where: str, body: dict[str, Any]) -> Any:
        data = json.dumps(body).encode()
        request = urllib.request.Request(
            self.address + where, data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=600) as answer:
            return json.load(answer)["value"]

    def command(self, name: str, **values: Any) -> Any:
        """A command of the DevTools protocol."""
        return self._post("/goog/cdp/execute", {"cmd": name, "params": values})

    def open(self, path: Path) -> None:
        """Open a file from disk and wait until its model is ready."""
        self._post("/url", {"url": path.resolve().as_uri()})
        for _ in range(600):
            if self.run("return !!(window.rnnnas && window.rnnnas.ready)"):
                return
            time.sleep(0.1)
        raise AssertionError(f"not ready: {self.run('return document.body.innerText')[:500]}")

    def run(self, script: str, *values: Any) -> Any:
        """The value of a function's body run in the page."""
        return self._post("/execute/sync", {"script": script, "args": list(values)})

    def console(self) -> list[str]:
        """What the page wrote to the console since the last call, and its errors."""
        rows = self._post("/se/log", {"type": "browser"})
        return [row["message"] for row in rows]

    def requests(self) -> list[str]:
        """Addresses that the page asked for since the last call."""
        rows = self._post("/se/log", {"type": "performance"})
        events = [json.loads(row["message"])["message"] for row in rows]
        return [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """A PNG of the page, all of its height."""
        shot = self.command(
            "Page.captureScreenshot", format="png", captureBeyondViewport=whole
        )  # fmt: skip
        path.write_bytes(base64.b64decode(shot["data"]))
