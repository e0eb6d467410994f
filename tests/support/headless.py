"""Opens pages in a headless browser and returns their elements, messages and requests."""

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "chrome-headless-shell")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--window-size=1200,2600",
    # No host name is resolved, so no request leaves the machine.
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
# Virtual milliseconds until the elements are read; virtual time skips idle periods.
PAGE_TIME = 20_000
SECONDS = 600
_CONSOLE = re.compile(r":CONSOLE[:(]\d+\)?\] (.*)")
# Initiator in the network log of the browser's own requests.
_BROWSER = "not an origin"


@dataclass(frozen=True)
class Seen:
    """An opened page.

    Attributes:
      dom: its elements as HTML, after all is drawn.
      console: messages of the page or the browser.
      requests: other addresses that it requested.
    """

    dom: str
    console: list[str]
    requests: list[str]


def find_browser() -> str:
    """Finds $CELLCLR_BROWSER or one of `NAMES`; skips the test if there is no browser."""
    named = os.environ.get("CELLCLR_BROWSER")
    for name in [named] if named else NAMES:
        if path := shutil.which(name):
            return path
    tried = named or ", ".join(NAMES)
    pytest.skip(f"no browser ({tried}): install Chromium or name one in CELLCLR_BROWSER")


def open_page(page: Path, place: Path, script: str = "") -> Seen:
    """Opens a page.

    Args:
      page: an HTML file.
      place: a new folder for a copy of the page and the files of the browser.
      script: runs at the end of the page.
    """
    browser = find_browser()
    place.mkdir()
    copy, log = place / page.name, place / "network.json"
    addition = f"<script>{script}</script>" if script else ""
    copy.write_text(page.read_text(encoding="utf-8") + addition, encoding="utf-8")
    command = [browser, *FLAGS, f"--user-data-dir={place / 'profile'}"]
    command += [f"--virtual-time-budget={PAGE_TIME}", "--dump-dom", f"--log-net-log={log}"]
    done = subprocess.run(
        [*command, copy.resolve().as_uri()],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=SECONDS,
        check=True,
    )
    return Seen(done.stdout, _CONSOLE.findall(done.stderr), _requests(log))


def _requests(log: Path) -> list[str]:
    """Lists the addresses that a page requested."""
    events = json.loads(log.read_text(encoding="utf-8"))["events"]
    parameters = [event.get("params", {}) for event in events]
    return [one["url"] for one in parameters if one.get("initiator", _BROWSER) != _BROWSER]
