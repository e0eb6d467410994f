"""Launch scripts that create an environment, with stand-ins that record calls."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.launch_scripts import FAKE_PYTHON, ROOT, LaunchScripts

from cellclr_jax import default_config

SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))


@pytest.fixture
def scripts(tmp_path: Path) -> LaunchScripts:
    return LaunchScripts(tmp_path)


@pytest.fixture
def python(scripts: LaunchScripts) -> LaunchScripts:
    scripts.put("python3.12", FAKE_PYTHON)
    scripts.put("shellcheck", '#!/usr/bin/env bash\necho "shellcheck $*" >>"$CALLS"\n')
    return scripts


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_settings_in_the_header_exist(script: Path) -> None:
    known = set(dotted(default_config.get_config().to_dict()))
    header = script.read_text().split("\nset -euo")[0]
    for name in re.findall(r"--config\.([\w.]+)=", header):
        assert name in known, f"{script.name}: {name}"


def dotted(settings: dict, prefix: str = "") -> Iterator[str]:
    """Dotted names of all settings of a config."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from dotted(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_old_python_is_reported(scripts: LaunchScripts) -> None:
    scripts.put("python3", FAKE_PYTHON)
    done = scripts.run("demo.sh", FAKE_VERSION="3.10.4")
    assert done.returncode == 2
    assert "3.11 or newer" in done.stderr
    assert "python3 is 3.10.4" in done.stderr
    assert scripts.calls() == []


def test_missing_python_or_venv_is_reported(scripts: LaunchScripts) -> None:
    assert "none that runs" in scripts.run("test.sh").stderr
    scripts.put("python3", FAKE_PYTHON)
    done = scripts.run("test.sh", FAKE_NO_VENV="1")
    assert done.returncode == 2
    assert "apt install python3.12-venv" in done.stderr


def test_stamp_skips_the_second_installation_until_setup_changes(python: LaunchScripts) -> None:
    install = "pip install --quiet --disable-pip-version-check --no-compile -e .[test]"
    assert python.run("test.sh").returncode == 0
    assert python.calls()[:2] == ["venv", install]
    assert python.run("test.sh").returncode == 0
    assert python.calls()[0] == "ruff check ."
    assert python.run("demo.sh").returncode == 0, "the package is installed along with an extra"
    assert not any("pip" in call for call in python.calls())
    (python.root / "setup.py").write_text("two\n")
    assert python.run("test.sh").returncode == 0
    assert python.calls()[0] == install


def test_failed_installation_is_reported_and_repeated(python: LaunchScripts) -> None:
    done = python.run("demo.sh", FAIL_MODULE="pip")
    assert done.returncode == 1
    assert "the installation failed" in done.stderr
    assert python.run("demo.sh").returncode == 0
    assert "pip install" in python.calls()[0]


@pytest.mark.parametrize("left", ["nothing runs", "no pip"])
def test_broken_environment_is_replaced(python: LaunchScripts, left: str) -> None:
    program = python.root / ".venv" / "bin" / "python"
    program.parent.mkdir(parents=True)
    if left == "no pip":
        shutil.copy(python.bin / "python3.12", program)
    else:
        program.write_text("")
    done = python.run("demo.sh")
    assert done.returncode == 0, done.stderr
    assert "making it again" in done.stdout
    assert python.calls()[0] == "venv"


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX"])
def test_active_environment_is_used(python: LaunchScripts, tmp_path: Path, variable: str) -> None:
    own = tmp_path / "own"
    (own / "bin").mkdir(parents=True)
    shutil.copy(python.bin / "python3.12", own / "bin" / "python")
    (own / "bin" / "pip").touch()
    assert python.run("demo.sh", **{variable: str(own)}).returncode == 0
    assert "venv" not in python.calls()
    assert not (python.root / ".venv").exists()
    done = python.run("demo.sh", FAKE_VERSION="3.9.1", **{variable: str(own)})
    assert done.returncode == 2
    assert f"{own} has 3.9.1" in done.stderr


def test_demo_builds_trains_evaluates_and_prints_the_report(python: LaunchScripts) -> None:
    done = python.run("demo.sh", "--config.epochs=3", RUN="my run")
    run, data = python.elsewhere / "my run", python.root / "data"
    assert done.returncode == 0, done.stderr
    build, train, evaluate = python.calls()[2:]
    assert build == f"cellclr_jax.build --source=simulated --data_dir={data}"
    assert train.startswith("cellclr_jax.main --config=configs/simclr_demo.py ")
    assert train.endswith(f" --workdir={run} --config.data_dir={data} --config.epochs=3")
    assert f"cellclr_jax.eval --workdir={run} " in evaluate
    assert f"report: {run}/eval/7/report.html" in done.stdout


@pytest.mark.parametrize(
    ("module", "stage"), [("build", "dataset"), ("main", "training"), ("eval", "evaluation")]
)
def test_demo_stops_at_a_failed_stage(python: LaunchScripts, module: str, stage: str) -> None:
    done = python.run("demo.sh", FAIL_MODULE=f"cellclr_jax.{module}")
    assert done.returncode == 1
    assert f"({stage}) failed" in done.stderr
    assert python.calls()[-1].startswith(f"cellclr_jax.{module}")


@pytest.mark.parametrize("argument", ["--workdir=x", "--config.data_dir=x", "steps=3"])
def test_demo_refuses_wrong_arguments(python: LaunchScripts, argument: str) -> None:
    assert python.run("demo.sh", argument).returncode == 2
    assert python.calls() == []


def test_test_script_runs_all_stages(python: LaunchScripts) -> None:
    done = python.run("test.sh", "-k", "two words")
    assert done.returncode == 0, done.stderr
    stages = ["ruff", "ruff", "mypy", "shellcheck", "pytest"]
    assert [call.split()[0] for call in python.calls()[2:]] == stages
    assert python.calls()[-1] == "pytest -k two words"
    done = python.run("test.sh", FAIL_MODULE="mypy")
    assert done.returncode == 1
    assert "stage 4 (mypy) failed" in done.stderr
    assert python.calls()[-1] == "mypy"


def test_xla_knows_its_flags() -> None:
    text = "".join(path.read_text() for path in SCRIPTS)
    flags = set(re.findall(r"--xla_\w+", text))
    assert len(flags) == 2
    environment = os.environ | {"XLA_FLAGS": " ".join(f"{flag}=true" for flag in flags)}
    command = [sys.executable, "-c", "import jax; jax.devices()"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr  # unknown flags end the process
