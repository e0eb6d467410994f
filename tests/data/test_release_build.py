"""A release with three faults comes from a server, is killed twice and ends in the same shards."""

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.binaries import run
from support.misbehaving_server import Served, serve
from support.tiny_release import file_name, write_release, zip_plates

from cellclr_jax.data import dataset
from cellclr_jax.data.tables.bbbc021 import IMAGE_CSV

ROOT = Path(__file__).parents[2]
PLATES = ("Week1_101", "Week1_102", "Week2_103")
CORRUPTED = file_name("B02", 3, "w2", PLATES[0])
MISSING = file_name("C03", 5, "w4", PLATES[1])
UNKNOWN = "D04_s99_w1GONE.tif"


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """Zips of three plates: one file corrupted, one missing, and a row of the table too many."""
    folder = tmp_path_factory.mktemp("faulty")
    release = write_release(folder / "release", plates=PLATES, sites=6)
    path = release / "Week1" / PLATES[0] / CORRUPTED
    path.write_bytes(path.read_bytes()[:700])
    (release / "Week1" / PLATES[1] / MISSING).unlink()
    table = release / IMAGE_CSV
    rows = list(csv.reader(table.open(newline="")))
    extra = [value.replace("_s6_", "_s99_") for value in rows[-1]]
    extra[2] = UNKNOWN
    with table.open("a", newline="") as file:
        csv.writer(file).writerow(extra)
    return zip_plates(release, folder / "zips", plates=PLATES)


def flags(url, data_dir):
    return [
        *("--source=raw", "--download", f"--url={url}", f"--data_dir={data_dir}", "--downloads=1"),
        *("--workers=1", "--config=all", "--crop_size=32", "--min_area=60", "--max_skipped=0.1"),
        "--illumination=regression",
    ]


def start(url, data_dir):
    command = [sys.executable, "-m", "cellclr_jax.build", *flags(url, data_dir)]
    return subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def kill_when(process, condition):
    deadline = time.monotonic() + 600
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def shards(folder):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in [*folder.glob("*array_record*"), folder / "cells.parquet"]
    }


def test_a_release_is_downloaded_killed_twice_and_built(faulty, tmp_path):
    with serve() as server:
        for path in faulty.iterdir():
            server.files[path.name] = Served(path.read_bytes())
        undisturbed = run("build", *flags(server.url, tmp_path / "undisturbed"))
        assert undisturbed.returncode == 0, undisturbed.stderr

        disturbed = tmp_path / "disturbed"
        last = server.files[f"BBBC021_v1_images_{PLATES[2]}.zip"]
        size = len(last.content)
        server.sent.clear()
        process = start(server.url, disturbed)
        kill_when(process, lambda: server.sent)
        process = start(server.url, disturbed)
        pieces = disturbed / "bbbc021" / "all" / "pieces"
        kill_when(process, lambda: list(pieces.glob("*/*.json")))
        disturbed = run("build", *flags(server.url, disturbed))
        told = disturbed.stdout
        assert disturbed.returncode == 0, disturbed.stderr
        assert "going on with an earlier build" in told
        # Nothing that had come was fetched again.
        assert server.sent[f"BBBC021_v1_images_{PLATES[2]}.zip"] <= size + 1
    assert len(told.splitlines()) == len(undisturbed.stdout.splitlines()) + 1
    one, two = (
        dataset.find_dataset(tmp_path / name, "all") for name in ("undisturbed", "disturbed")
    )
    assert shards(one) == shards(two)
    assert len(list(one.glob("*.array_record-*"))) == 6
    skipped = {fault["field"]: fault["reason"] for fault in dataset.read_manifest(two)["skipped"]}
    for place, fault in (("B02/s3", CORRUPTED), ("C03/s5", MISSING), ("s99", UNKNOWN)):
        (field,) = [name for name in skipped if name.endswith(place)]
        assert fault in skipped[field]
        assert f"skipped {field}: " in told
    assert json.loads((one / "manifest.json").read_text())["counts"]["plates"] == 3
    assert (two / "qc.html").stat().st_size > 0
