import json
import shutil
import subprocess
import sys
import time

import pytest
from support import binaries
from support.tiny_release import PLATES, file_name, write_release, zip_plates

from cellclr_jax.data import dataset
from cellclr_jax.files import digest

SMALL = ("--crop_size=32", "--min_area=60")
SMALL_SIMULATION = (
    "--simulator=height=200,width=240,dmso_wells=1,compounds_per_moa=2,doses=1",
    "--weeks=2",
    "--plates_per_week=1",
)


def run(*flags):
    return binaries.run("build", *flags)


@pytest.fixture
def release(tmp_path):
    return write_release(tmp_path / "a release, of two plates")


@pytest.fixture
def flags(release, tmp_path):
    return ("--source=raw", f"--input={release}", f"--data_dir={tmp_path / 'out'}", *SMALL)


def test_help_loads_nothing_heavy():
    code = (
        "import runpy, sys\n"
        "sys.argv = ['build', '--help']\n"
        "try:\n"
        "    runpy.run_module('cellclr_jax.build', run_name='__main__', alter_sys=True)\n"
        "finally:\n"
        "    heavy = {'jax', 'tensorflow_datasets', 'pandas', 'skimage', 'numpy'}\n"
        "    print('loaded:', sorted(heavy & set(sys.modules)))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=binaries.ROOT, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr
    assert "--max_skipped" in result.stdout
    assert result.stdout.endswith("loaded: []\n")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("--source=crops", "--crop_size, --min_area: --source=crops does not use it"),
        ("--labels_csv=a.csv", "--labels_csv: --source=raw does not use it"),
        ("--image_csv=gone.csv", "--image_csv=gone.csv: no such file"),
        ("--masks=zero --centers=x", "--masks=zero needs the nuclei's outlines"),
        ("--plates=", "--plates=: a name is empty"),
        ("--cell_radius=5", "--cell_radius has no effect without --masks"),
        ("--download --input=a,b", "--download fetches into one --input folder"),
        ("--beam_option=--x=1", "--beam_option has no effect without --beam_runner"),
        ("--input=nowhere", "error: nowhere: no such folder or zip (--input)"),
        ("--channels=dna,dna", "a channel is named twice"),
        ("--z=0", "--z=0: the number of a plane, from 1, or max was expected"),
        ("--input=a,", "--input=a,: a name is empty"),
        ("--qc", "no dataset bbbc021/annotated in"),
        ("--source=simulated --simulator=hight=3", "there are seed, weeks"),
        ("--source=simulated --simulator=height=tall", "a value like 1024 was expected"),
    ],
)
def test_a_wrong_flag_is_one_line_and_status_2(flags, wrong, message):
    result = run(*flags, *wrong.split())
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_build_prints_a_summary_and_is_not_repeated(release, flags, tmp_path):
    (release / "Week1" / PLATES[0] / file_name("C03", 1, "w2", PLATES[0])).write_bytes(b"II*\0")
    first = run(*flags, "--workers=1", "--max_skipped=0.5")
    assert first.returncode == 0, first.stderr
    assert "6 fields: 0 without cells, 1 skipped" in first.stdout
    assert "taxol  0.3: 4  (Microtubule stabilizers)" in first.stdout
    assert "skipped Week1_101/C03/s1: " in first.stdout
    assert "20 cells" in first.stderr
    path = dataset.find_dataset(tmp_path / "out")
    assert len(dataset.read_cells(path)) == 20
    # A process killed at the end leaves pieces and no page; another build left pieces as well.
    settings = dataset.read_manifest(path)["settings"]
    pieces = path.parent / "pieces"
    done, other_build = pieces / digest(json.dumps(settings, sort_keys=True)), pieces / "0123"
    page = (path / "qc.html").read_text()
    (path / "qc.html").unlink()
    done.mkdir(parents=True)
    other_build.mkdir()
    again = run(*flags)
    assert again.returncode == 0
    assert again.stdout.startswith(f"already built: {path} (20 cells)")
    assert (path / "qc.html").read_text() == page
    assert list(pieces.iterdir()) == [other_build]
    assert run(*flags, "--qc").stdout == f"quality page: {path / 'qc.html'}\n"
    other = run(*flags, "--crop_size=24")
    assert other.returncode == 2
    assert "crop_size: was 32, now 24" in other.stderr
    rebuilt = run(*flags, "--crop_size=24", "--overwrite", "--workers=1")
    assert rebuilt.returncode == 1
    assert "--max_skipped=0.01" in rebuilt.stderr


def test_a_dataset_of_another_input_or_version_is_refused(release, flags, tmp_path):
    hidden = release.parent / PLATES[1]
    (release / "Week2" / PLATES[1]).rename(hidden)
    first = run(*flags, "--workers=1")
    assert first.returncode == 0, first.stderr
    message = (
        f"1 of the image table's plates have no file in the input and are left out: {PLATES[1]}"
    )
    # Before the work, and in the summary.
    assert first.stdout.count(message) == 2
    assert first.stdout.startswith(message)
    hidden.rename(release / "Week2" / PLATES[1])
    record = dataset.find_dataset(tmp_path / "out") / "manifest.json"
    manifest = json.loads(record.read_text())
    older = manifest | {"made_by": manifest["made_by"] | {"cutting": 1}}
    record.write_text(json.dumps(older))
    refused = run(*flags)
    assert refused.returncode == 2
    assert (
        "its cells were extracted by another version of this software. Use --overwrite"
        in refused.stderr
    )
    record.write_text(json.dumps(manifest | {"format": 2}))
    refused = run(*flags)
    assert refused.returncode == 2
    assert "was built by an older version of this software: use another --" in refused.stderr
    record.write_text(json.dumps(manifest))
    more = run(*flags, "--workers=1")
    assert more.returncode == 0, more.stderr
    assert more.stdout.startswith("adding 1 to the 1 plate of ")
    assert "24 cells: 2 plates, 6 wells" in more.stdout
    fewer = run(*flags, f"--plates={PLATES[1]}")
    assert fewer.returncode == 2
    assert (
        f"exists with other settings or input: 1 plate fewer: {PLATES[0]}. Use --overwrite"
        in fewer.stderr
    )
    moved = release.rename(tmp_path / "moved, with commas,")
    assert run(*flags, f"--input={moved}").stdout.startswith("already built: ")
    gone = run(*flags)
    assert gone.returncode == 2
    assert f"{str(release).partition(',')[0]}: no such folder or zip (--input)" in gone.stderr
    table = moved / "BBBC021_v1_moa.csv"
    table.write_text(table.read_text().replace("Epithelial", "Other"))
    other = run(*flags, f"--input={moved}")
    assert other.returncode == 2
    assert (
        "other settings or input: 2 plates with other files or metadata: Week1_101, Week2_102."
        in other.stderr
    )


def test_a_build_from_zips_skips_faulty_fields(tmp_path):
    release = write_release(tmp_path / "release", sites=2)
    broken = release / "Week1" / PLATES[0] / file_name("B02", 1, "w2", PLATES[0])
    broken.write_bytes(broken.read_bytes()[:700])
    missing = release / "Week1" / PLATES[0] / file_name("C03", 2, "w4", PLATES[0])
    missing.unlink()
    zips = zip_plates(release, tmp_path / "zips")
    flags = ("--source=raw", f"--input={zips}", "--max_skipped=0.2", *SMALL)
    result = run(*flags, f"--data_dir={tmp_path}", "--workers=1")
    assert result.returncode == 0, result.stderr
    path = dataset.find_dataset(tmp_path)
    skipped = {one["field"]: one["reason"] for one in dataset.read_manifest(path)["skipped"]}
    for place, fault in (("B02/s1", broken), ("C03/s2", missing)):
        assert fault.name in skipped[f"{PLATES[0]}/{place}"]
        assert f"skipped {PLATES[0]}/{place}: " in result.stdout
    assert (path / "qc.html").stat().st_size > 0


@pytest.mark.slow
def test_a_killed_build_resumes_and_gives_the_same_bytes(tmp_path):
    release = write_release(tmp_path / "release", sites=10)
    flags = ("--source=raw", f"--input={release}", *SMALL)
    assert run(*flags, f"--data_dir={tmp_path / 'undisturbed'}", "--workers=1").returncode == 0
    flags += (f"--data_dir={tmp_path / 'killed'}",)
    folder = tmp_path / "killed" / "bbbc021" / "annotated"
    command = [sys.executable, "-m", "cellclr_jax.build", *flags, "--workers=2"]
    process = subprocess.Popen(command, cwd=binaries.ROOT, stderr=subprocess.DEVNULL)
    # A name without a suffix is that of a finished piece.
    while not any(not piece.suffix for piece in folder.glob("pieces/*/*")):
        assert process.poll() is None, "the build ended before it could be killed"
        time.sleep(0.005)
    process.kill()
    process.wait()
    result = run(*flags, "--workers=1")
    assert "resuming an earlier build: " in result.stdout, result.stderr
    one, other = (dataset.find_dataset(tmp_path / name) for name in ("undisturbed", "killed"))
    for path in [*one.glob("*.array_record-*"), one / "cells.parquet"]:
        assert path.read_bytes() == (other / path.name).read_bytes()


def test_simulated_plates_become_a_dataset(tmp_path):
    flags = ("--source=simulated", f"--data_dir={tmp_path}", *SMALL_SIMULATION, *SMALL)
    result = run(*flags, "--workers=1", "--seed=3")
    assert result.returncode == 0, result.stderr
    assert "sim-" in result.stdout
    path = dataset.find_dataset(tmp_path)
    assert dataset.read_manifest(path)["settings"]["simulation"]["seed"] == 3
    assert len(dataset.open_images(path)) > 0
    shutil.rmtree(tmp_path / "simulated_release")
    again = run(*flags, "--seed=3")
    assert again.stdout.startswith("already built: "), again.stderr
    assert not (tmp_path / "simulated_release").exists()
    other = run(*flags, "--seed=4")
    assert other.returncode == 2
    assert "input: simulation.seed: was 3, now 4." in other.stderr
