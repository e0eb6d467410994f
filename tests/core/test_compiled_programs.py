"""Compiled programs are stored, reused, and never a reason to fail."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from cellclr_jax import devices
from cellclr_jax.devices import keep_compiled_programs

ROOT = Path(__file__).parents[2]
SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_enable_compilation_cache",
    "jax_persistent_cache_min_compile_time_secs",
)
PROGRAM = """
import sys, jax, jax.numpy as jnp
from cellclr_jax.devices import keep_compiled_programs
keep_compiled_programs(sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
found = []
jax.monitoring.register_event_listener(lambda name, **_: found.append(name))
print(float(jax.jit(lambda x: jnp.sort(x @ x.T)[0, 0])(jnp.ones((50, 20)))))
print(*found)
"""


@pytest.fixture(autouse=True)
def settings(monkeypatch, tmp_path):
    """JAX's own settings, as they were; a home of its own."""
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def folder():
    return Path(jax.config.jax_compilation_cache_dir)


def start(*arguments):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_they_are_kept_in_a_folder_of_this_user_alone(tmp_path):
    keep_compiled_programs(None)
    assert folder().parent == tmp_path / "cache" / "cellclr_jax" / "xla"
    assert folder().stat().st_mode & 0o077 == 0
    assert 0 < jax.config.jax_persistent_cache_min_compile_time_secs < 1


def test_the_environment_and_a_flag_decide_where(tmp_path, monkeypatch):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "theirs"))
    keep_compiled_programs(None)
    assert jax.config.jax_compilation_cache_dir == before  # JAX has read it itself
    assert not (tmp_path / "cache").exists()
    keep_compiled_programs(str(tmp_path / "here"))
    assert folder() == tmp_path / "here"
    keep_compiled_programs("off")
    assert not jax.config.jax_enable_compilation_cache


@pytest.mark.parametrize("obstacle", ["a file in the way", "no home"])
def test_a_folder_that_cannot_be_written_is_noted_and_no_more(
    tmp_path, monkeypatch, capsys, obstacle
):
    before = jax.config.jax_compilation_cache_dir
    if obstacle == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", no_home)
    else:
        (tmp_path / "cache").write_text("in the way")
    keep_compiled_programs(None)
    assert "note: compiled programs are not stored: " in capsys.readouterr().err
    assert jax.config.jax_compilation_cache_dir == before


def no_home():
    raise RuntimeError("Could not determine home directory.")


def test_the_oldest_go_first(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "_MOST_BYTES", 2500)
    for age in range(4):
        path = tmp_path / f"jit_{age}-cache"
        path.write_bytes(bytes(1000))
        os.utime(path, (1e9 - age, 1e9 - age))
    keep_compiled_programs(str(tmp_path))
    assert sorted(path.name for path in tmp_path.glob("*-cache")) == ["jit_0-cache", "jit_1-cache"]


def test_programs_are_found_again_and_a_half_written_one_does_no_harm(tmp_path):
    for events in ("cache_misses", "cache_hits", "cache_misses"):
        value, found = start(tmp_path).communicate(timeout=600)[0].splitlines()
        assert value == "20.0"
        assert events in found
        if events == "cache_hits":
            for program in tmp_path.glob("*-cache"):
                os.truncate(program, program.stat().st_size // 2)
