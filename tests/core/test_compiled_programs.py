"""Compiled programs are stored and reused; a cache that cannot be used is never an error."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from cellclr_jax import devices
from cellclr_jax.devices import keep_compiled_programs

SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_enable_compilation_cache",
    "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture(autouse=True)
def settings(monkeypatch, tmp_path):
    """Restores JAX's settings; an empty home."""
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def folder():
    return Path(jax.config.jax_compilation_cache_dir)


def test_programs_are_stored_in_a_folder_of_this_user_only(tmp_path):
    keep_compiled_programs(None)
    assert folder().parent == tmp_path / "cache" / "cellclr_jax" / "xla"
    assert folder().stat().st_mode & 0o077 == 0
    assert 0 < jax.config.jax_persistent_cache_min_compile_time_secs < 1


def test_the_environment_and_a_flag_decide_where(tmp_path, monkeypatch):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "environment"))
    keep_compiled_programs(None)
    assert jax.config.jax_compilation_cache_dir == before  # JAX reads the variable itself
    assert not (tmp_path / "cache").exists()
    keep_compiled_programs(str(tmp_path / "flag"))
    assert folder() == tmp_path / "flag"
    keep_compiled_programs("off")
    assert not jax.config.jax_enable_compilation_cache


def no_home():
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize("obstacle", ["a file of that name", "no home"])
def test_a_folder_that_cannot_be_written_is_only_noted(tmp_path, monkeypatch, capsys, obstacle):
    before = jax.config.jax_compilation_cache_dir
    if obstacle == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", no_home)
    else:
        (tmp_path / "cache").write_text("a file")
    keep_compiled_programs(None)
    assert "note: compiled programs are not stored: " in capsys.readouterr().err
    assert jax.config.jax_compilation_cache_dir == before


def test_the_oldest_programs_are_removed_first(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "_MOST_BYTES", 2500)
    for age in range(4):
        path = tmp_path / f"jit_{age}-cache"
        path.write_bytes(bytes(1000))
        os.utime(path, (1e9 - age, 1e9 - age))
    keep_compiled_programs(str(tmp_path))
    assert sorted(path.name for path in tmp_path.glob("*-cache")) == ["jit_0-cache", "jit_1-cache"]


def test_programs_are_reused_and_a_truncated_one_is_compiled_again(tmp_path):
    keep_compiled_programs(str(tmp_path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    events = []
    jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
    for expected in ("cache_misses", "cache_hits", "cache_misses"):
        events.clear()
        compilation_cache.reset_cache()
        program = jax.jit(lambda x: jnp.sort(x @ x.T)[0, 0])  # a new function each time
        assert program(jnp.ones((50, 20))) == 20
        assert f"/jax/compilation_cache/{expected}" in events
        if expected == "cache_hits":
            for path in tmp_path.glob("*-cache"):
                os.truncate(path, path.stat().st_size // 2)
