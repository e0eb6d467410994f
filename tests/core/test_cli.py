"""Paths on the command line, and folders that cannot be written to."""

import os
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from cellclr_jax import cli
from cellclr_jax.errors import BadUse
from cellclr_jax.files import atomic_write, make_writable

CONFIG = Path(__file__).parents[2] / "configs/simclr_demo.py"


@pytest.fixture
def own_flags(monkeypatch):
    """Flags of a binary of its own."""
    found = flags.FlagValues()
    monkeypatch.setattr(cli, "FLAGS", found)
    monkeypatch.setenv("HOME", "/home/me")
    flags.DEFINE_string("out", None, "", flag_values=found)
    flags.DEFINE_list("input", [], "", flag_values=found)
    flags.DEFINE_list("compare", None, "", flag_values=found)
    config_flags.DEFINE_config_file("config", None, "", flag_values=found)
    return found


def parse(monkeypatch, *argv, arguments=None):
    monkeypatch.setattr("sys.argv", ["binary", *argv])
    cli._parse(["binary", *argv], "", arguments, {})


def test_a_tilde_is_the_home_in_every_flag_list_argument_and_setting(own_flags, monkeypatch):
    asked = ["--out=~/a~b", "--input=~,x/~,~/c", "--compare=~/a", "~/run", f"--config={CONFIG}"]
    asked += ["--config.data_dir=~/data", "--config.init.workdir=~nobody-has-this-name/x"]
    parse(monkeypatch, *asked, arguments="compare")
    assert own_flags.out == "/home/me/a~b"
    assert own_flags.input == ["/home/me", "x/~", "/home/me/c"]
    assert own_flags.compare == ["/home/me/a", "/home/me/run"]
    config = cli.read_config()
    assert config.data_dir == "/home/me/data"
    assert config.init.workdir == "~nobody-has-this-name/x"


def test_a_tilde_in_a_config_file_is_the_home(own_flags, monkeypatch, tmp_path):
    path = tmp_path / "own.py"
    path.write_text(
        "from cellclr_jax import default_config\n"
        "def get_config():\n"
        "    config = default_config.get_config()\n"
        "    config.data_dir, config.init.workdir = '~/data', '~/runs/a'\n"
        "    return config\n"
    )
    parse(monkeypatch, f"--config={path}")
    config = cli.read_config()
    assert (config.data_dir, config.init.workdir) == ("/home/me/data", "/home/me/runs/a")


@pytest.mark.parametrize("folder", ["/proc/new", "/proc/self/new/er"])
def test_a_folder_that_cannot_be_written_to_is_named_with_its_flag(folder):
    with pytest.raises(BadUse, match=f"--out={folder} cannot be written to"):
        make_writable(Path(folder), "--out")


def test_a_writable_folder_is_created_and_stays_empty(tmp_path):
    make_writable(tmp_path / "a/b", "--out")
    make_writable(tmp_path / "a/b", "--out")
    assert os.listdir(tmp_path / "a/b") == []


@pytest.mark.parametrize("name", ["table.csv.gz", "weights.safetensors"])
def test_a_file_is_written_under_a_name_of_its_own_suffix(tmp_path, name):
    with atomic_write(tmp_path / name) as part:
        assert part.suffix == Path(name).suffix
        assert part.name != name
        part.write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == [name]
