import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from tiny_release import PLATES, file_name, write_release

from cellclr_jax.cli import BadUse
from cellclr_jax.data import index

ROOT = Path(__file__).parents[1]
SMALL = ("--crop_size=32", "--min_area=60")
SMALL_SIMULATION = (
    "--simulator=height=200,width=240,dmso_wells=1,compounds_per_moa=2,doses=1",
    "--weeks=2",
    "--plates_per_week=1",
)


def command(*flags):
    return [sys.executable, "-m", "cellclr_jax.build", *map(str, flags)]


def run(*flags):
    return subprocess.run(command(*flags), cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.fixture
def release(tmp_path):
    return write_release(tmp_path / "release")


@pytest.fixture
def flags(release, tmp_path):
    return ("--source=raw", f"--input={release}", f"--data_dir={tmp_path / 'out'}", *SMALL)


def test_help_answers_at_once():
    began = time.monotonic()
    result = run("--help")
    assert time.monotonic() - began < 2
    assert result.returncode == 0
    assert "--max_skipped" in result.stdout


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("--source=plates", "error: --source=plates: there are raw, crops, simulated"),
        ("--input=nowhere", "error: nowhere: no such folder or zip (--input)"),
        ("--border=wrap", "--border"),
        ("--channels=dna,dna", "a channel is named twice"),
        ("--data_dir=", "--data_dir=DIR is needed"),
        ("--simulator=hight=3", "there are seed, weeks"),
    ],
)
def test_a_wrong_flag_is_one_line_and_status_2(flags, wrong, message):
    more = ("--source=simulated",) if wrong.startswith("--simulator") else ()
    result = run(*flags, *more, wrong)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_build_is_summed_up_and_not_repeated(release, flags, tmp_path):
    (release / "Week1" / PLATES[0] / file_name("C03", 1, "w2", PLATES[0])).write_bytes(b"II*\0")
    first = run(*flags, "--workers=2", "--max_skipped=0.5")
    assert first.returncode == 0, first.stderr
    assert "6 fields: 0 without cells, 1 skipped" in first.stdout
    assert "taxol  0.3: 4  (Microtubule stabilizers)" in first.stdout
    assert "skipped Week1_101/C03/s1: " in first.stdout
    assert "20 cells" in first.stderr.splitlines()[-1]
    path = index.find_dataset(tmp_path / "out")
    assert len(index.read_cells(path)) == 20
    again = run(*flags)
    assert again.returncode == 0
    assert again.stdout.startswith(f"already built: {path} (20 cells)")
    other = run(*flags, "--crop_size=24")
    assert other.returncode == 2
    assert "crop_size is 32, not 24" in other.stderr
    rebuilt = run(*flags, "--crop_size=24", "--overwrite", "--workers=1")
    assert rebuilt.returncode == 1
    assert "--max_skipped=0.01" in rebuilt.stderr


def test_a_killed_build_leaves_nothing_and_the_next_one_works(release, flags, tmp_path):
    process = subprocess.Popen(command(*flags, "--workers=2"), cwd=ROOT, stderr=subprocess.DEVNULL)
    folder = tmp_path / "out" / "bbbc021" / "annotated"
    workers = []
    deadline = time.monotonic() + 60
    while len(workers) < 2 and time.monotonic() < deadline:
        assert process.poll() is None, "the build ended before it could be killed"
        if list(folder.glob("incomplete.*")):
            workers = psutil.Process(process.pid).children(recursive=True)
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with pytest.raises(BadUse):
        index.find_dataset(tmp_path / "out")
    # Workers end with their parent.
    assert not psutil.wait_procs(workers, timeout=20)[1]
    result = run(*flags, "--workers=1")
    assert result.returncode == 0, result.stderr
    assert len(index.read_cells(index.find_dataset(tmp_path / "out"))) == 24
    assert not list(folder.glob("incomplete.*"))


def test_simulated_plates_become_a_dataset(tmp_path):
    flags = ("--source=simulated", f"--data_dir={tmp_path}", *SMALL_SIMULATION, *SMALL)
    result = run(*flags, "--workers=1", "--seed=3")
    assert result.returncode == 0, result.stderr
    assert "sim-" in result.stdout
    path = index.find_dataset(tmp_path)
    assert index.read_manifest(path)["settings"]["simulation"]["seed"] == 3
    assert len(index.open_images(path)) > 0
    other = run(*flags, "--seed=4")
    assert other.returncode == 2
    assert "simulation is" in other.stderr
