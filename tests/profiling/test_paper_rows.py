"""Rows of the paper's tables: settings as training and evaluation read them."""

import shlex
from collections import defaultdict

import pytest
from absl import flags
from ml_collections import config_flags
from support.binaries import run as run_binary
from support.launch_house import FAKE_PYTHON, ROOT, House
from support.paper_rows import BASE, ROWS

from cellclr_jax.training.setup import check_ranges


@pytest.fixture
def house(tmp_path):
    house = House(tmp_path)
    house.put("python3.12", FAKE_PYTHON)
    return house


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
    for _, row, run, training, _, _ in ROWS:
        trainings[run].add(training)
        given = [] if training == "-" else training.split(" ")
        if not given or not given[0].startswith("--config="):
            given = [BASE, *given]
        given[0] = given[0].replace("configs/", f"{ROOT}/configs/")
        config = read_as_training_does(given)
        check_ranges(config)
        assert set(config.operations) <= set(config.views), row
    assert all(len(found) == 1 for found in trainings.values())
    assert len({(row[0], row[1]) for row in ROWS}) == len(ROWS)


# The setting that the rows of a table are called by, and how a row's name tells its value.
NAMED = {
    "temperature": ("temperature", float),
    "minibatch": ("minibatch_size", lambda row: int(row.removesuffix(" cells"))),
    "projection": ("model.head.width", lambda row: int(row.removesuffix(" numbers"))),
    "DMSO share": (
        "control_fraction",
        lambda row: (
            {"none": 0.0, "all": 1.0}.get(row.split(",")[0])
            if row.startswith(("none", "all"))
            else float(row.removesuffix(" %")) / 100
        ),
    ),
}


def training_of(lines, run):
    """The arguments of a run's training, which a dry run prints once."""
    words = (shlex.split(line) for line in lines if " -m cellclr_jax.main " in line)
    return next(line[3:] for line in words if any(f"/{run}/seed0" in word for word in line))


@pytest.mark.parametrize("mode", [[], ["--small"]])
def test_rows_have_the_values_that_they_are_called_by(house, mode):
    done = house.run("reproduce_paper.sh", "--dry-run", *mode)
    lines = done.stdout.splitlines()
    base = "--config=configs/simclr_paper.py:cnn" if mode else BASE
    for table, row, run, training, *_ in ROWS:
        if table not in NAMED:
            continue
        command = training_of(lines, run if training not in ("-", base) else "base")
        flags_of_row = [flag for flag in command if not flag.startswith("--workdir")]
        flags_of_row[0] = flags_of_row[0].replace("configs/", f"{ROOT}/configs/")
        config = read_as_training_does(flags_of_row)
        name, value = NAMED[table]
        for part in name.split("."):
            config = config[part]
        assert config == value(row), (table, row)


def test_evaluation_flags_of_rows_are_those_that_eval_takes():
    given = sorted({row[5] for row in ROWS} - {"-"})
    assert len(given) == 3
    for flags_of_row in given:
        done = run_binary("eval", "--workdir=/nowhere", *flags_of_row.split(" "))
        assert done.returncode == 2
        assert "no run in /nowhere" in done.stderr  # said after flags are read
    refused = run_binary("eval", "--workdir=/nowhere", "--standardize=controlz")
    assert "controlz" in refused.stderr


def test_rows_hold_each_operation_alone_and_each_pair_of_the_published_five():
    used = {
        frozenset(read_as_training_does([BASE.replace("configs/", f"{ROOT}/configs/"),
                                         *row[3].split(" ")]).operations)
        for row in ROWS if row[0] == "augmentations" and row[3] != "-"
    }  # fmt: skip
    five = read_as_training_does([BASE.replace("configs/", f"{ROOT}/configs/")]).operations
    assert len(five) == 5
    assert {frozenset((one, other)) for one in five for other in five} <= used
