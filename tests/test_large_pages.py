"""A program gets large pages by starting anew, once, with all that it was given."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAM = """
import os, pathlib, sys
from cellclr_jax.startup import large_pages
large_pages._SYSTEM = pathlib.Path(sys.argv[1])
print("started", flush=True)
large_pages.go_on_with_large_pages()
print(os.getpid(), os.environ.get("GLIBC_TUNABLES"), sys.argv[2:], sys.flags.optimize)
"""
CHECKS = "glibc.malloc.check=1"
ASKED = "glibc.malloc.hugetlb=1"

pytestmark = pytest.mark.skipif(
    not (sys.platform == "linux" and (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")),
    reason="the C library is not glibc",
)


def run(tmp_path, system, tunables, program=PROGRAM):
    """(starts, the process that was started, what the last start printed)."""
    enabled = tmp_path / "enabled"
    if system is not None:
        enabled.write_text(system)
    environment = {name: text for name, text in os.environ.items() if name != "GLIBC_TUNABLES"}
    if tunables is not None:
        environment["GLIBC_TUNABLES"] = tunables
    process = subprocess.Popen(
        [sys.executable, "-O", "-c", program, str(enabled), "a b", "--c="],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    out = process.communicate()[0].splitlines()
    assert process.returncode == 0
    return out.count("started"), process.pid, out[-1]


@pytest.mark.parametrize(
    ("tunables", "then"), [(None, ASKED), ("", ASKED), (CHECKS, f"{CHECKS}:{ASKED}")]
)
def test_it_starts_once_more_with_the_same_arguments(tmp_path, tunables, then):
    starts, pid, told = run(tmp_path, "always [madvise] never\n", tunables)
    assert starts == 2
    assert told == f"{pid} {then} ['a b', '--c='] 1"


def test_it_starts_no_third_time_where_its_wish_is_taken_from_it(tmp_path):
    """As glibc does with programs that have privileges."""
    program = "import os; os.environ.pop('GLIBC_TUNABLES', None)\n" + PROGRAM
    starts, pid, told = run(tmp_path, "always [madvise] never\n", None, program)
    assert starts == 2
    assert told == f"{pid} None ['a b', '--c='] 1"


@pytest.mark.parametrize(
    ("system", "tunables"),
    [
        ("[always] madvise never\n", None),
        ("always madvise [never]\n", None),
        (None, None),
        ("always [madvise] never\n", "glibc.malloc.hugetlb=0"),
        ("always [madvise] never\n", ASKED),
    ],
)
def test_it_goes_on_where_that_would_change_nothing(tmp_path, system, tunables):
    starts, pid, told = run(tmp_path, system, tunables)
    assert starts == 1
    assert told == f"{pid} {tunables} ['a b', '--c='] 1"
