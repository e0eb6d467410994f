"""Memory in large pages, which a program can ask of the C library only before it starts."""

import contextlib
import os
import sys
import time
from pathlib import Path

# Of glibc 2.35 and newer: its `malloc` asks the system for large pages (madvise).
TUNABLES = "GLIBC_TUNABLES"
LARGE_PAGES = "glibc.malloc.hugetlb=1"
_SINCE = (2, 35)
_SYSTEM = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_ON_REQUEST = "[madvise]"
# Hands the process's number and the time of its first start on to the second. That it came tells
# more than what it asked for: glibc takes its own variable from programs with privileges.
_FIRST_START = "CELLCLR_FIRST_START"


def _first_start() -> tuple[float, bool]:
    """(when this process was first started, on `time.monotonic`; whether it was started anew)."""
    process, _, time_then = os.environ.pop(_FIRST_START, "").partition(" ")
    if process == str(os.getpid()):
        with contextlib.suppress(ValueError):
            return float(time_then), True
    return time.monotonic(), False


STARTED, _STARTED_ANEW = _first_start()


def go_on_with_large_pages() -> None:
    """Starts this program anew, once, in the same process, where that gives it large pages.

    XLA's CPU backend allocates the buffers of a program anew for each run, and gives them back
    after it. The system clears and maps them again page by page, which takes a quarter of the time
    of a small network's step, and 512 times fewer pages take next to none of it. Nothing happens
    where the system has no large pages or gives them to everybody, where the C library is another,
    and where GLIBC_TUNABLES says something about them already.

    Call it before any thread is started.
    """
    tunables = os.environ.get(TUNABLES, "")
    if _STARTED_ANEW or "glibc.malloc.hugetlb" in tunables or not _asked_for():
        return
    os.environ[TUNABLES] = ":".join(filter(None, (tunables, LARGE_PAGES)))
    os.environ[_FIRST_START] = f"{os.getpid()} {STARTED}"
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(OSError):  # it costs speed and nothing else
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    del os.environ[_FIRST_START]


def _asked_for() -> bool:
    """Whether there are large pages for programs that ask for them, and a way to ask."""
    try:
        enabled = _SYSTEM.read_text(encoding="ascii")
        name, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
        since = tuple(int(part) for part in version.split(".")[:2])
    except (OSError, ValueError):
        return False
    return _ON_REQUEST in enabled and name == "glibc" and since >= _SINCE
