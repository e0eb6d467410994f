"""`--help`, paths and configs on the command line, folders that cannot be written to."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from cellclr_jax import cli, default_config
from cellclr_jax.errors import BadUse
from cellclr_jax.files import atomic_write, make_writable

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs/simclr_demo.py"


def call(binary, *arguments):
    command = [sys.executable, "-m", f"cellclr_jax.{binary}", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("binary", ["main", "embed", "convert"])
def test_help_lists_every_flag_under_a_heading(binary):
    done = call(binary, "--help")
    assert done.returncode == 0
    headings, others = done.stdout.split("Other flags:\n")
    assert re.findall(r"^  --(\w+)", others, re.MULTILINE) == ["debug", "help"]
    assert "--workdir" in headings


def test_help_of_main_shows_the_defaults_of_settings():
    settings = re.findall(r"^  --config\.([\w.]+)=(\S*)", call("main", "--help").stdout, re.M)
    assert len(settings) > 10
    config = default_config.get_config()
    for path, default in settings:
        value = config
        for name in path.split("."):
            value = value[name]
        assert str(value) == default, path


@pytest.mark.parametrize("override", [(), ("--config.epochs=3", "--config.seed=1")])
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("missing.py", "[Errno 2] No such file or directory: 'missing.py'"),
        ("README.md", "SyntaxError: "),
        ("configs/simclr_paper.py:vit", "ValueError: unknown encoder 'vit'"),
    ],
)
def test_a_config_that_cannot_be_loaded_is_explained_in_one_line(config, message, override):
    done = call("main", f"--config={config}", *override)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: --config cannot be loaded: {message}")
    assert done.stderr.count("\n") == 1


@pytest.fixture
def own_flags(monkeypatch):
    """The flags of a small binary."""
    values = flags.FlagValues()
    monkeypatch.setattr(cli, "FLAGS", values)
    monkeypatch.setenv("HOME", "/home/me")
    flags.DEFINE_string("out", None, "", flag_values=values)
    flags.DEFINE_list("input", [], "", flag_values=values)
    flags.DEFINE_list("compare", None, "", flag_values=values)
    config_flags.DEFINE_config_file("config", None, "", flag_values=values)
    return values


def parse(monkeypatch, *argv, arguments=None):
    monkeypatch.setattr("sys.argv", ["binary", *argv])
    cli._parse(["binary", *argv], "", arguments, {})


def test_a_tilde_is_the_home_in_every_flag_list_argument_and_setting(own_flags, monkeypatch):
    given = ["--out=~/a~b", "--input=~,x/~,~/c", "--compare=~/a", "~/run", f"--config={CONFIG}"]
    given += ["--config.data_dir=~/data", "--config.init.workdir=~nobody-has-this-name/x"]
    parse(monkeypatch, *given, arguments="compare")
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
def test_a_temporary_file_has_the_suffix_of_the_final_one(tmp_path, name):
    with atomic_write(tmp_path / name) as part:
        assert part.suffix == Path(name).suffix
        assert part.name != name
        part.write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == [name]
