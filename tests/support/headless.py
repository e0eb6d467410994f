"""Opens pages in a browser without a screen, and tells what it shows, says and asks for."""

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
    # No name is found: nothing leaves the machine, whatever a page or the browser asks for.
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
# Milliseconds of the page's clock until its picture is taken; it runs as fast as there is work.
PAGE_TIME = 20_000
SECONDS = 600
_CONSOLE = re.compile(r":CONSOLE[:(]\d+\)?\] (.*)")
# Who asked, in the log of the network, where the browser asks of its own accord.
_ITSELF = "not an origin"


@dataclass(frozen=True)
class Seen:
    """What came of a page.

    Attributes:
      dom: its elements as HTML, when all is drawn.
      console: what it or the browser complained of.
      requests: addresses that it asked for beside its own.
    """

    dom: str
    console: list[str]
    requests: list[str]


def find_browser() -> str:
    """The path of a browser, $CELLCLR_BROWSER or one of `NAMES`; skips the test where none is."""
    named = os.environ.get("CELLCLR_BROWSER")
    for name in [named] if named else NAMES:
        if path := shutil.which(name):
            return path
    looked = named or ", ".join(NAMES)
    pytest.skip(f"no browser ({looked}): install Chromium or name one in CELLCLR_BROWSER")


def open_page(page: Path, place: Path, script: str = "") -> Seen:
    """Opens a page.

    Args:
      page: an HTML file.
      place: a folder of this call's own, for a copy of the page and what the browser writes.
      script: runs at the end of the page, as a reader who does something.
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
    """What a page asked for by the network."""
    events = json.loads(log.read_text(encoding="utf-8"))["events"]
    asked = [event.get("params", {}) for event in events]
    return [one["url"] for one in asked if one.get("initiator", _ITSELF) != _ITSELF]
