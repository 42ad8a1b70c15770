"""Look at HTML reports in a real browser: check that they work, and photograph them.

    python scripts/screenshots.py REPORT.html [--images FOLDER]

Each report is opened by headless Chromium, which must be installed (Debian: apt install chromium), in a light
and a dark theme, 1280 and 390 pixels wide. The exit status is 1 if a script failed or was stopped, a plot is
not drawn or its colours do not follow the theme, the page is wider than the screen, or anything was asked of
the network. With --images a PNG is written for each: the first screenful, or all of the page with --whole.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

WIDTHS = {"desktop": (1280, 900, False), "phone": (390, 844, True)}
THEMES = ("light", "dark")
PATIENCE = 60  # seconds until a page must be drawn

DRAWN = """
new Promise((resolve) => {
  const wait = () => document.documentElement.dataset.drawn ? resolve(true) : setTimeout(wait, 50);
  wait();
})
"""
LOOK = """
(() => {
  const plots = [...document.querySelectorAll(".plot")];
  const colour = (plot) => getComputedStyle(plot.querySelector(".xtick text")).fill;
  const wide = [...document.querySelectorAll("body *")].filter((e) => {
    const box = e.getBoundingClientRect();
    return box.width && box.right > innerWidth + 1 && !e.closest(".scroll, pre, .plot");
  });
  return {
    plots: plots.length,
    undrawn: plots.filter((p) => !p.querySelector("svg.main-svg") || p.clientHeight < 50).map((p) => p.id),
    colours: [...new Set(plots.filter((p) => p.querySelector(".xtick text")).map(colour))],
    text: getComputedStyle(document.body).color,
    scroll: document.documentElement.scrollWidth - innerWidth,
    wide: wide.map((e) => e.tagName + "." + e.className).slice(0, 5),
  };
})()
"""


class Browser:
    """Chromium, spoken to over a pipe: JSON messages that end with a zero byte."""

    def __init__(self, program: str, profile: str) -> None:
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()

        def arrange() -> None:
            # The browser expects its ends of the pipes as files 3 and 4; copies first, as they may be these.
            ends = os.dup(to_browser), os.dup(from_browser)
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
        self._process = subprocess.Popen(
            [program, *flags, f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"],
            preexec_fn=arrange,
            close_fds=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._number = 0
        self._rest = b""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        attached = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})
        self._session: str | None = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    _session: str | None = None

    def call(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """Have the browser do something; what it reports meanwhile is added to `events`."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params or {}}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") != self._number:
                self.events.append(answer)
            elif "error" in answer:
                raise RuntimeError(f"{method}: {answer['error']['message']}")
            else:
                return answer["result"]

    def wait_for(self, method: str) -> None:
        """Wait for a report of the browser."""
        while not any(event["method"] == method for event in self.events):
            self.events.append(self._receive())

    def evaluate(self, script: str) -> Any:
        """The value of a script, or of the promise that it gives."""
        params = {
            "expression": script,
            "awaitPromise": True,
            "returnByValue": True,
            "timeout": PATIENCE * 1000,
        }
        result = self.call("Runtime.evaluate", params)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"]["text"])
        return result["result"].get("value")

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._read, 1 << 20)
            if not more:
                raise RuntimeError("the browser has ended")
            self._rest += more
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def close(self) -> None:
        """End the browser."""
        self._session = None
        self.call("Browser.close")
        self._process.wait(timeout=20)


def look(browser: Browser, report: Path, width: str, theme: str) -> list[str]:
    """Open a report; what is wrong with it, in words."""
    columns, rows, touch = WIDTHS[width]
    browser.call(
        "Emulation.setDeviceMetricsOverride",
        {"width": columns, "height": rows, "deviceScaleFactor": 1, "mobile": touch},
    )
    browser.call("Emulation.setTouchEmulationEnabled", {"enabled": touch})
    # Opened in the other theme and switched: the plots must follow.
    _theme(browser, THEMES[1 - THEMES.index(theme)])
    browser.events.clear()
    browser.call("Page.navigate", {"url": report.resolve().as_uri()})
    browser.wait_for("Page.loadEventFired")
    browser.evaluate(DRAWN)
    _theme(browser, theme)
    browser.evaluate("new Promise((resolve) => setTimeout(resolve, 600))")
    seen = browser.evaluate(LOOK)
    problems: list[str] = []
    for event in browser.events:
        params = event.get("params", {})
        if event["method"] == "Runtime.exceptionThrown":
            problems.append(
                f"script failed: {params['exceptionDetails'].get('exception', {}).get('description')}"
            )
        elif event["method"] == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            problems.append(f"{params['entry']['level']}: {params['entry']['text']}")
        elif event["method"] == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith(("data:", "blob:")) and url != report.resolve().as_uri():
                problems.append(f"asked for {url}")
    if seen["undrawn"]:
        problems.append(f"not drawn: {', '.join(seen['undrawn'])}")
    if seen["colours"] not in ([], [seen["text"]]):
        problems.append(f"text of plots is {seen['colours']}, of the page {seen['text']}")
    if seen["scroll"] > 0 or seen["wide"]:
        problems.append(f"{seen['scroll']} pixels wider than the screen: {', '.join(seen['wide'])}")
    return problems


def _theme(browser: Browser, theme: str) -> None:
    feature = {"name": "prefers-color-scheme", "value": theme}
    browser.call("Emulation.setEmulatedMedia", {"features": [feature]})


def photograph(browser: Browser, path: Path, *, whole: bool) -> None:
    """Write what is to be seen as a PNG."""
    params: dict[str, Any] = {"format": "png", "optimizeForSpeed": False}
    if whole:
        size = browser.call("Page.getLayoutMetrics")["cssContentSize"]
        params |= {"captureBeyondViewport": True, "clip": {**size, "x": 0, "y": 0, "scale": 1}}
    path.write_bytes(base64.b64decode(browser.call("Page.captureScreenshot", params)["data"]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("reports", nargs="+", type=Path)
    parser.add_argument("--images", type=Path, help="folder for PNG files")
    parser.add_argument("--whole", action="store_true", help="photograph whole pages")
    parser.add_argument(
        "--from", dest="element", default="", help="scroll to this element first (CSS selector)"
    )
    parser.add_argument("--only", default="", help="such as desktop-light: photograph no other")
    options = parser.parse_args()
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        print("Chromium is not installed; on Debian: apt install chromium", file=sys.stderr)
        return 2
    failed = False
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(program, profile)
        for report, width, theme in product(options.reports, WIDTHS, THEMES):
            problems = look(browser, report, width, theme)
            print(f"{report.name}  {width} {theme}: {'; '.join(problems) or 'good'}", flush=True)
            failed |= bool(problems)
            if options.images and options.only in ("", f"{width}-{theme}"):
                options.images.mkdir(parents=True, exist_ok=True)
                if options.element:
                    browser.evaluate(
                        f"document.querySelector({json.dumps(options.element)}).scrollIntoView()"
                    )
                photograph(
                    browser, options.images / f"{report.stem}-{width}-{theme}.png", whole=options.whole
                )
        browser.close()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
