"""Rows of launch/paper_tables.tsv: their flags are valid for training and evaluation."""

import shlex
from collections import defaultdict

import pytest
from absl import flags
from ml_collections import config_flags
from support.binaries import run as run_binary
from support.launch_scripts import FAKE_PYTHON, ROOT, LaunchScripts
from support.paper_rows import BASE, ROWS

from cellclr_jax.training.setup import check_ranges


@pytest.fixture
def scripts(tmp_path):
    scripts = LaunchScripts(tmp_path)
    scripts.put("python3.12", FAKE_PYTHON)
    return scripts


def parse_config(arguments):
    """Parses the flags like the training binary."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["main", *arguments])  # config_flags reads overrides from it
        values(["main", *arguments])
    config = values.config
    config.lock()
    return config


def test_rows_have_valid_settings_and_runs_have_one_training_each():
    trainings = defaultdict(set)
    for _, row, run, training, _, _ in ROWS:
        trainings[run].add(training)
        arguments = [] if training == "-" else training.split(" ")
        if not arguments or not arguments[0].startswith("--config="):
            arguments = [BASE, *arguments]
        arguments[0] = arguments[0].replace("configs/", f"{ROOT}/configs/")
        config = parse_config(arguments)
        check_ranges(config)
        assert set(config.operations) <= set(config.views), row
    assert all(len(found) == 1 for found in trainings.values())
    assert len({(row[0], row[1]) for row in ROWS}) == len(ROWS)


# The setting that a table varies, and its value from the name of a row.
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
    """Arguments of a run's training, from the output of a dry run."""
    words = (shlex.split(line) for line in lines if " -m cellclr_jax.main " in line)
    return next(line[3:] for line in words if any(f"/{run}/seed0" in word for word in line))


@pytest.mark.parametrize("mode", [[], ["--small"]])
def test_names_of_rows_equal_their_settings(scripts, mode):
    done = scripts.run("reproduce_paper.sh", "--dry-run", *mode)
    lines = done.stdout.splitlines()
    base = "--config=configs/simclr_paper.py:cnn" if mode else BASE
    for table, row, run, training, *_ in ROWS:
        if table not in NAMED:
            continue
        command = training_of(lines, run if training not in ("-", base) else "base")
        flags_of_row = [flag for flag in command if not flag.startswith("--workdir")]
        flags_of_row[0] = flags_of_row[0].replace("configs/", f"{ROOT}/configs/")
        config = parse_config(flags_of_row)
        name, value = NAMED[table]
        for part in name.split("."):
            config = config[part]
        assert config == value(row), (table, row)


def test_evaluation_flags_of_rows_are_valid():
    arguments = sorted({row[5] for row in ROWS} - {"-"})
    assert len(arguments) == 3
    done = run_binary("eval", "--workdir=/nowhere", *" ".join(arguments).split(" "))
    assert done.returncode == 2
    assert "no run in /nowhere" in done.stderr  # after the flags were parsed


def test_augmentations_have_all_single_operations_and_pairs():
    used = {
        frozenset(parse_config([BASE.replace("configs/", f"{ROOT}/configs/"),
                                         *row[3].split(" ")]).operations)
        for row in ROWS if row[0] == "augmentations" and row[3] != "-"
    }  # fmt: skip
    five = parse_config([BASE.replace("configs/", f"{ROOT}/configs/")]).operations
    assert len(five) == 5
    assert {frozenset((one, other)) for one in five for other in five} <= used
