"""Does a report look right in a real browser? Opens it headless, light and dark, wide, phone and printed.

Prints as JSON: the page's size, what the console said, what it tried to load, figures and pictures that are
there and that have no size, and whether the page scrolls sideways. Saves a screenshot of each view and a PDF.
Exits with 1 if something is wrong.

    python benchmarks/browse_report.py runs/evaluate/report/report.html --out runs/browse

Needs Chromium, Chrome or Edge, and no Python package. On Debian and Ubuntu:
apt-get install chromium-headless-shell (or chromium).
"""

from __future__ import annotations

import argparse
import base64
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

BROWSERS = (
    "chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome", "microsoft-edge",
)  # fmt: skip
VIEWS = (("light", 1200, 900), ("dark", 1200, 900), ("light", 390, 844), ("dark", 390, 844))
LIMIT_MB = 5.0
FACTS = """(() => {
  const boxes = [...document.querySelectorAll("figure svg, img")].map(e => e.getBoundingClientRect());
  const images = [...document.images];
  return {
    figures: document.querySelectorAll("figure svg").length,
    pictures: images.length,
    without_size: boxes.filter(box => !(box.width > 0 && box.height > 0)).length,
    broken_pictures: images.filter(image => !image.naturalWidth).length,
    height: document.documentElement.scrollHeight,
    scrolls_sideways: document.documentElement.scrollWidth > document.documentElement.clientWidth,
    title: document.title,
  };
})()"""


class Browser:
    """A headless browser that is spoken to through a pipe, in the DevTools protocol.

    Args:
        command: The browser's program.
        profile: An empty folder.
    """

    def __init__(self, command: str, profile: str) -> None:
        theirs, ours = os.pipe(), os.pipe()
        # Above 4: neither must be overwritten before it is copied.
        read, write = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (theirs[0], ours[1]))

        def place_pipes() -> None:
            os.dup2(read, 3)  # Browsers read commands from file 3
            os.dup2(write, 4)  # and write to file 4.

        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # It has none for root.
        options = ["--headless", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        self._process = subprocess.Popen(
            [command, *options, *sandbox, "about:blank"],
            preexec_fn=place_pipes,
            close_fds=False,  # Those of Python close by themselves, but for the two.
            stderr=subprocess.DEVNULL,
        )
        for fd in (read, write, theirs[0], ours[1]):
            os.close(fd)
        self._to, self._from = os.fdopen(theirs[1], "wb"), os.fdopen(ours[0], "rb")
        self._session, self._count, self._rest = "", 0, b""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command; events that come before it are kept."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._to.write(json.dumps(message).encode() + b"\0")
        self._to.flush()
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return dict(answer["result"])
            self.events.append(answer)

    def wait(self, method: str) -> None:
        """Until an event comes, or came since the events were last cleared."""
        while not any(event.get("method") == method for event in self.events):
            self.events.append(self._next())

    def close(self) -> None:
        self._session = ""
        self.call("Browser.close")
        self._process.wait(30)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            chunk = os.read(self._from.fileno(), 1 << 16)
            if not chunk:
                raise RuntimeError("the browser ended; try it by hand with --headless")
            self._rest += chunk
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))


def complaints(events: list[dict[str, Any]]) -> list[str]:
    """What the console said, errors, warnings and exceptions alike."""
    said = []
    for event in events:
        params = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            said.append(params["exceptionDetails"]["text"])
        elif event.get("method") == "Runtime.consoleAPICalled":
            said.append(f"{params['type']}: {[arg.get('value') for arg in params['args']]}")
        elif event.get("method") == "Log.entryAdded":
            said.append(f"{params['entry']['level']}: {params['entry']['text']}")
    return said


def loads(events: list[dict[str, Any]], own: str) -> list[str]:
    """What was asked for besides the page and what it holds itself."""
    urls = [e["params"]["request"]["url"] for e in events if e.get("method") == "Network.requestWillBeSent"]
    return [url for url in urls if url != own and not url.startswith("data:")]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("report", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/browse"))
    parser.add_argument("--browser", help="program; default: the first that is found")
    args = parser.parse_args()
    command = args.browser or next(filter(None, map(shutil.which, BROWSERS)), None)
    if command is None:
        sys.exit("no browser found; on Debian and Ubuntu: apt-get install chromium-headless-shell")
    if not args.report.is_file():
        sys.exit(f"{args.report}: no such file")
    args.out.mkdir(parents=True, exist_ok=True)
    url = args.report.absolute().as_uri()
    megabytes = args.report.stat().st_size / 1e6

    views = {}
    with tempfile.TemporaryDirectory() as profile:
        browser = Browser(command, profile)
        version = browser.call("Browser.getVersion")["product"]
        for scheme, width, height in VIEWS:
            browser.events.clear()
            browser.call(
                "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
            )
            metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
            browser.call("Emulation.setDeviceMetricsOverride", **metrics)
            browser.call("Page.navigate", url=url)
            browser.wait("Page.loadEventFired")
            facts = browser.call("Runtime.evaluate", expression=FACTS, returnByValue=True)["result"]["value"]
            name = f"{scheme}-{width}"
            shot = browser.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
            (args.out / f"{name}.png").write_bytes(base64.b64decode(shot))
            views[name] = {
                **facts,
                "console": complaints(browser.events),
                "loaded": loads(browser.events, url),
            }
        printed = browser.call("Page.printToPDF", printBackground=True)["data"]
        (args.out / "printed.pdf").write_bytes(base64.b64decode(printed))
        browser.close()

    print(json.dumps({"browser": version, "megabytes": round(megabytes, 2), "views": views}, indent=1))
    wrong = megabytes >= LIMIT_MB or any(
        view["console"]
        or view["loaded"]
        or view["without_size"]
        or view["broken_pictures"]
        or view["scrolls_sideways"]
        or not view["figures"]
        for view in views.values()
    )
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
