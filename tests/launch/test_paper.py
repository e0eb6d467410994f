"""reproduce_paper.sh with stand-ins for Python and curl."""

import hashlib
import os
import signal
import time

import pytest
from support.launch_scripts import FAKE_PYTHON, LaunchScripts
from support.paper_rows import BASE, ROWS

# Writes a file whose content is its own name.
FAKE_CURL = """#!/usr/bin/env bash
while [ $# -gt 1 ]; do [ "$1" = --output ] && out=$2; shift; done
echo "curl $1" >>"$CALLS"
printf '%s' "${FAKE_CONTENT-$1}" >"$out"
"""


@pytest.fixture
def scripts(tmp_path):
    scripts = LaunchScripts(tmp_path)
    scripts.put("python3.12", FAKE_PYTHON)
    scripts.put("curl", FAKE_CURL)
    return scripts


def calls(scripts, module):
    return [call for call in scripts.calls() if call.startswith(f"cellclr_jax.{module} ")]


def test_small_trains_each_run_once_and_scores_each_row(scripts):
    done = scripts.run("reproduce_paper.sh", "--small", "--tables=encoders,temperature,corrections")
    assert done.returncode == 0, done.stderr
    rows = [row for row in ROWS if row[0] in ("encoders", "temperature", "corrections")]
    # The small base is the CNN, which is a row of the encoders.
    trained = {"base" if "cnn" in row[3] else row[2] for row in rows}
    assert len(calls(scripts, "main")) == len(trained)
    assert len(calls(scripts, "eval")) == len(trained) + 3
    assert len(calls(scripts, "paper_tables")) == len(rows)
    assert "[4/4] train and score" in done.stdout
    assert not any(call.startswith("curl") for call in scripts.calls())
    written = (scripts.root / "runs/paper_small/rows.tsv").read_text().splitlines()
    assert written[0].split("\t")[:5] == [
        "encoders", "4-layer CNN", "0", "base/seed0", "base/seed0/scores/as_published",
    ]  # fmt: skip


def small(scripts, *arguments, **settings):
    return scripts.run("reproduce_paper.sh", "--small", *arguments, **settings)


def place(scripts, path):
    return scripts.root / "runs/paper_small" / path


SCORES = "temperature_0.5/seed0/scores/as_published"


@pytest.mark.parametrize("lost", ["scored", "metrics.json"])
def test_second_call_completes_missing_rows(scripts, lost):
    small(scripts, "--tables=temperature")
    assert len(calls(scripts, "main")) == len(calls(scripts, "eval")) == 5
    place(scripts, f"{SCORES}/{lost}").unlink()
    done = small(scripts, "--tables=temperature")
    assert done.returncode == 0, done.stderr
    assert (len(calls(scripts, "main")), len(calls(scripts, "eval"))) == (0, 1)


def change(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_run_without_checkpoints_is_trained_again(scripts):
    small(scripts, "--tables=temperature")
    (place(scripts, "temperature_0.5/seed0/checkpoints") / "7").rmdir()
    done = small(scripts, "--tables=temperature")
    assert done.returncode == 0, done.stderr
    assert (len(calls(scripts, "main")), len(calls(scripts, "eval"))) == (1, 0)


def test_changed_recipe_runs_training_again(scripts):
    """Training checks whether the settings differ, and refuses the folder if so."""
    small(scripts, "--tables=temperature")
    change(scripts.root / "cellclr_jax/default_config.py", "epochs = ", "epochs = 1 + ")
    small(scripts, "--tables=temperature")
    assert (len(calls(scripts, "main")), len(calls(scripts, "eval"))) == (5, 5)


def test_output_folder_is_locked(scripts):
    small(scripts, "--tables=temperature")
    mark = place(scripts, ".running")
    assert not mark.exists()
    mark.write_text(f"{os.getpid()}\n")
    listed = place(scripts, "rows.tsv").read_text()
    done = small(scripts, "--tables=minibatch", "--seeds=5")
    assert done.returncode == 2
    assert place(scripts, "rows.tsv").read_text() == listed
    assert f"is in use by process {os.getpid()}" in done.stderr
    assert calls(scripts, "main") == []
    mark.write_text("4194305\n")  # larger than any process ID: a killed call
    assert small(scripts, "--tables=minibatch").returncode == 0
    assert not mark.exists()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("x\tno run\n", "a row has 2 columns, 6 by tabs were expected: x\tno run"),
        (
            "minibatch\tmine\ttemperature_0.5\t--config.temperature=0.6\t-\t-\n",
            "gives the run temperature_0.5/seed0 another training: mine",
        ),
    ],
)
def test_contradictory_rows_are_refused(scripts, row, message):
    path = scripts.root / "launch/paper_tables.tsv"
    path.write_text(path.read_text() + row)
    done = small(scripts, "--tables=temperature")
    assert done.returncode == 2
    assert message in done.stderr
    assert scripts.calls() == []


def test_scores_of_another_training_are_removed(scripts):
    small(scripts, "--tables=temperature")
    change(
        scripts.root / "launch/paper_tables.tsv",
        "--config.temperature=0.5",
        "--config.temperature=0.7",
    )
    done = small(scripts, "--tables=temperature", FAIL_MODULE="cellclr_jax.main", FAIL_STATUS="2")
    assert done.returncode == 1
    assert "failed: temperature: 0.5, seed 0" in done.stderr
    assert not place(scripts, f"{SCORES}/scored").exists()
    assert (len(calls(scripts, "main")), len(calls(scripts, "eval"))) == (1, 0)
    again = small(scripts, "--tables=temperature")
    assert again.returncode == 0
    assert (len(calls(scripts, "main")), len(calls(scripts, "eval"))) == (1, 1)


def test_rows_are_scored_with_their_flags(scripts):
    small(scripts, "--tables=corrections")
    rows = [row for row in ROWS if row[0] == "corrections"]
    found = calls(scripts, "eval")
    assert len(found) == len(rows) == 4
    for call, row in zip(found, rows, strict=True):
        folder = "as_published" if row[4] == "-" else row[4]
        flags_of_row = "" if row[5] == "-" else f" {row[5]}"
        assert call.endswith(f"/base/seed0/scores/{folder} --measures=none{flags_of_row}")
    assert len(calls(scripts, "main")) == 1
    assert " --config.init.workdir= " in calls(scripts, "main")[0]


def test_failed_runs_are_reported_and_others_continue(scripts):
    done = scripts.run(
        "reproduce_paper.sh", "--small", "--tables=temperature", FAIL_MODULE="cellclr_jax.main"
    )
    assert done.returncode == 1
    assert done.stderr.count("failed: temperature: ") == 5
    assert calls(scripts, "eval") == []
    again = scripts.run("reproduce_paper.sh", "--small", "--tables=temperature")
    assert again.returncode == 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_are_forwarded_to_the_training(scripts, number, status):
    waiting = FAKE_PYTHON.replace(
        'case "$1 $2" in',
        """if [ "$1 $2" = "-m cellclr_jax.main" ]; then
  trap 'kill $!; sleep 0.3; echo saved >>"$CALLS"; exit 143' TERM
  echo waits >>"$CALLS"; sleep 3600 & wait
fi
case "$1 $2" in""",
        1,
    )
    scripts.put("python3.12", waiting)
    process = scripts.start("reproduce_paper.sh", "--small", "--tables=temperature")
    until = time.monotonic() + 600
    while "waits" not in scripts.calls() and time.monotonic() < until:
        time.sleep(0.05)
    for _ in range(3):  # an impatient user repeats it
        process.send_signal(number)
        time.sleep(0.05)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == status, errors
    assert scripts.calls()[-1] == "saved"
    assert "the same command resumes" in errors


def test_weights_are_checked_by_sha256(scripts):
    done = scripts.run("reproduce_paper.sh", "--tables=temperature", "--data=d", "--out=o")
    assert done.returncode == 1
    assert "resnet18-f37072fd.pth.part does not have the published SHA-256" in done.stderr
    assert not (scripts.root / "weights/resnet18-f37072fd.pth").exists()
    assert calls(scripts, "convert") == calls(scripts, "main") == []


def test_weights_are_downloaded_and_converted_once(scripts):
    # Replaces the hashes in the script by those of the fake download.
    script = scripts.root / "launch/reproduce_paper.sh"
    sum_ = hashlib.sha256(b"weights").hexdigest()[:8]
    script.write_text(script.read_text().replace("f37072fd", sum_).replace("0676ba61", sum_)
                      .replace("63fe2227", sum_))  # fmt: skip
    done = scripts.run(
        "reproduce_paper.sh", "--tables=temperature", "--data=d", "--out=o", FAKE_CONTENT="weights"
    )
    assert done.returncode == 0, done.stderr
    assert "convert --input=weights/resnet50-" in " ".join(calls(scripts, "convert"))
    assert all(BASE in call for call in calls(scripts, "main"))
    again = scripts.run("reproduce_paper.sh", "--tables=temperature", "--data=d", "--out=o")
    assert again.returncode == 0
    assert not any(call.startswith("curl") for call in scripts.calls())
    for name in ("resnet18", "resnet50", "resnet101"):
        (scripts.root / f"weights/{name}").mkdir()
        (scripts.root / f"weights/{name}/config.json").write_text("{}")
    scripts.run("reproduce_paper.sh", "--tables=temperature", "--data=d", "--out=o")
    assert calls(scripts, "convert") == []
    assert calls(scripts, "build") == [
        f"cellclr_jax.build --source=raw --download --data_dir={scripts.elsewhere}/d"
    ]


def test_dry_run_only_prints_commands(scripts):
    done = scripts.run("reproduce_paper.sh", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert scripts.calls() == []
    lines = done.stdout.splitlines()
    trained = {"base" if row[3] == BASE else row[2] for row in ROWS}
    scored = {("base" if row[3] == BASE else row[2], row[4]) for row in ROWS}
    for binary, count in (("main", len(trained)), ("eval", len(scored))):
        commands = [line for line in lines if f" -m cellclr_jax.{binary} " in line]
        assert len(commands) == len(set(commands)) == count
    assert sum(line.startswith("curl ") for line in lines) == 3


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--tables=nothing", "no table 'nothing': there are encoders, augmentations"),
        ("--seeds=a", "SEEDS is 'a'"),
        ("--out=gs://bucket/run", "--out=gs://bucket/run: expected a local folder"),
    ],
)
def test_wrong_arguments_are_refused(scripts, argument, message):
    done = scripts.run("reproduce_paper.sh", argument)
    assert done.returncode == 2
    assert message in done.stderr
