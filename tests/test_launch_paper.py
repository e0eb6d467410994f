"""reproduce_paper.sh with stand-ins for Python and curl; its rows, as training reads them."""

import hashlib
from collections import defaultdict

import pytest
from absl import flags
from launch_house import FAKE_PYTHON, ROOT, House
from ml_collections import config_flags

from cellclr_jax.config_ranges import check_ranges
from cellclr_jax.eval_flags import FLAGS as EVAL_FLAGS

ROWS = [
    line.split("\t")
    for line in (ROOT / "launch" / "paper_tables.tsv").read_text().splitlines()
    if not line.startswith("#")
]
BASE = "--config=configs/simclr_paper.py:resnet50"
# Writes a file whose content is its own name.
FAKE_CURL = """#!/usr/bin/env bash
while [ $# -gt 1 ]; do [ "$1" = --output ] && out=$2; shift; done
echo "curl $1" >>"$CALLS"
printf '%s' "${FAKE_CONTENT-$1}" >"$out"
"""


@pytest.fixture
def house(tmp_path):
    house = House(tmp_path)
    house.put("python3.12", FAKE_PYTHON)
    house.put("curl", FAKE_CURL)
    return house


def calls(house, module):
    return [call for call in house.calls() if call.startswith(f"cellclr_jax.{module} ")]


def test_small_trains_each_run_once_and_scores_each_row(house):
    done = house.run("reproduce_paper.sh", "--small", "--tables=encoders,temperature,corrections")
    assert done.returncode == 0, done.stderr
    asked = [row for row in ROWS if row[0] in ("encoders", "temperature", "corrections")]
    # The small base is the CNN, which is a row of the encoders.
    trained = {"base" if "cnn" in row[3] else row[2] for row in asked}
    assert len(calls(house, "main")) == len(trained)
    assert len(calls(house, "eval")) == len(trained) + 3
    assert len(calls(house, "paper_tables")) == len(asked)
    assert "[4/4] train and score" in done.stdout
    assert not any(call.startswith("curl") for call in house.calls())
    written = (house.root / "runs/paper_small/rows.tsv").read_text().splitlines()
    assert written[0].split("\t")[:5] == [
        "encoders", "4-layer CNN", "0", "base/seed0", "base/seed0/scores/as_published",
    ]  # fmt: skip


def test_run_again_it_does_what_is_not_done(house):
    house.run("reproduce_paper.sh", "--small", "--tables=temperature")
    assert len(calls(house, "main")) == len(calls(house, "eval")) == 5
    (house.root / "runs/paper_small/temperature_0.5/seed0/scores/as_published/scored").unlink()
    done = house.run("reproduce_paper.sh", "--small", "--tables=temperature")
    assert done.returncode == 0, done.stderr
    assert (len(calls(house, "main")), len(calls(house, "eval"))) == (0, 1)


def test_each_seed_has_runs_of_its_own(house):
    house.run("reproduce_paper.sh", "--small", "--tables=minibatch", "--seeds=0,3")
    trained = calls(house, "main")
    assert len(trained) == 8
    assert sum("--config.seed=3 " in call and "/seed3 " in call for call in trained) == 4


def test_the_rows_flags_come_after_those_of_small(house):
    house.run("reproduce_paper.sh", "--small", "--tables=minibatch")
    (large,) = [call for call in calls(house, "main") if "minibatch_512" in call]
    assert large.index("minibatch_size=64") < large.index("minibatch_size=512")


def test_a_run_that_fails_is_told_and_the_others_go_on(house):
    done = house.run(
        "reproduce_paper.sh", "--small", "--tables=temperature", FAIL_MODULE="cellclr_jax.main"
    )
    assert done.returncode == 1
    assert done.stderr.count("failed: temperature: ") == 5
    assert calls(house, "eval") == []
    again = house.run("reproduce_paper.sh", "--small", "--tables=temperature")
    assert again.returncode == 0


def test_a_signal_ends_all(house):
    done = house.run(
        "reproduce_paper.sh", "--small", "--tables=temperature",
        FAIL_MODULE="cellclr_jax.main", FAIL_STATUS="143",
    )  # fmt: skip
    assert done.returncode == 143
    assert len(calls(house, "main")) == 1


def test_weights_are_checked_by_their_sums(house):
    done = house.run("reproduce_paper.sh", "--tables=temperature", "--data=d", "--out=o")
    assert done.returncode == 1
    assert "resnet18-f37072fd.pth.part is not what was published" in done.stderr
    assert not (house.root / "weights/resnet18-f37072fd.pth").exists()
    assert calls(house, "convert") == calls(house, "main") == []


def test_weights_that_are_right_are_converted(house):
    # A file whose sum begins as the name says, found by trying.
    script = house.root / "launch/reproduce_paper.sh"
    sum_ = hashlib.sha256(b"weights").hexdigest()[:8]
    script.write_text(script.read_text().replace("f37072fd", sum_).replace("0676ba61", sum_)
                      .replace("63fe2227", sum_))  # fmt: skip
    done = house.run(
        "reproduce_paper.sh", "--tables=temperature", "--data=d", "--out=o", FAKE_CONTENT="weights"
    )
    assert done.returncode == 0, done.stderr
    assert "convert --input=weights/resnet50-" in " ".join(calls(house, "convert"))
    assert all(BASE in call for call in calls(house, "main"))
    assert calls(house, "build") == [
        f"cellclr_jax.build --source=raw --download --data_dir={house.elsewhere}/d"
    ]


def test_a_dry_run_prints_every_command_and_runs_none(house):
    done = house.run("reproduce_paper.sh", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert house.calls() == []
    lines = done.stdout.splitlines()
    assert sum(" -m cellclr_jax.main " in line for line in lines) == len(ROWS)
    assert sum(line.startswith("curl ") for line in lines) == 3


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--tables=nothing", "no table 'nothing': there are encoders, augmentations"),
        ("--seeds=a", "SEEDS is 'a'"),
        ("more", "unexpected argument 'more'"),
    ],
)
def test_wrong_arguments_are_told(house, argument, message):
    done = house.run("reproduce_paper.sh", argument)
    assert done.returncode == 2
    assert message in done.stderr


def read_as_training_does(arguments):
    """The config that the training binary makes of these flags."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["main", *arguments])  # where it finds what is overridden
        values(["main", *arguments])
    config = values.config
    config.lock()
    return config


def test_rows_are_settings_that_exist_and_runs_have_one_training_each():
    trainings = defaultdict(set)
    for _, row, run, training, _, evaluation in ROWS:
        trainings[run].add(training)
        given = [] if training == "-" else training.split(" ")
        if not given or not given[0].startswith("--config="):
            given = [BASE, *given]
        given[0] = given[0].replace("configs/", f"{ROOT}/configs/")
        config = read_as_training_does(given)
        check_ranges(config)
        assert set(config.operations) <= set(config.views), row
        for flag in [] if evaluation == "-" else evaluation.split(" "):
            assert flag.removeprefix("--").partition("=")[0] in EVAL_FLAGS, row
    assert all(len(found) == 1 for found in trainings.values())
    assert len({(row[0], row[1]) for row in ROWS}) == len(ROWS)


def test_rows_hold_each_operation_alone_and_each_pair_of_the_published_five():
    used = {
        frozenset(read_as_training_does([BASE.replace("configs/", f"{ROOT}/configs/"),
                                         *row[3].split(" ")]).operations)
        for row in ROWS if row[0] == "augmentations" and row[3] != "-"
    }  # fmt: skip
    five = read_as_training_does([BASE.replace("configs/", f"{ROOT}/configs/")]).operations
    assert len(five) == 5
    assert {frozenset((one, other)) for one in five for other in five} <= used
