"""Free memory is what the machine has, or what a container leaves of it."""

import pytest

from cellclr_jax.data import unpacked_images

GIB = 1 << 30


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with 16 GiB free and a process in a group within a group."""
    (tmp_path / "meminfo").write_text("MemTotal: 33554432 kB\nMemAvailable: 16777216 kB\n")
    (tmp_path / "own").write_text("0::/slice/job\n")
    monkeypatch.setattr(unpacked_images, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(unpacked_images, "_OWN_GROUPS", tmp_path / "own")
    version = (tmp_path / "groups", "memory.max", "memory.current", "")
    monkeypatch.setattr(unpacked_images, "_VERSIONS", {"": version})
    return tmp_path


def group(folder, limit, used, cached=0):
    folder.mkdir(parents=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\nactive_file {cached}\ninactive_file 0\n")


def test_without_limits_the_machine_decides(machine):
    assert unpacked_images.available_bytes() == 16 * GIB
    group(machine / "groups" / "slice" / "job", "max", 3 * GIB)
    assert unpacked_images.available_bytes() == 16 * GIB


def test_the_narrowest_group_decides_and_cached_files_are_no_use(machine):
    group(machine / "groups" / "slice" / "job", 8 * GIB, 7 * GIB, cached=2 * GIB)
    assert unpacked_images.available_bytes() == 3 * GIB
    (machine / "groups" / "slice" / "memory.max").write_text(f"{4 * GIB}")
    (machine / "groups" / "slice" / "memory.current").write_text(f"{3 * GIB}")
    (machine / "groups" / "slice" / "memory.stat").write_text("")
    assert unpacked_images.available_bytes() == GIB


def test_where_nothing_tells_a_number_is_assumed(machine, monkeypatch):
    monkeypatch.setattr(unpacked_images, "_MEMINFO", machine / "absent")
    assert unpacked_images.available_bytes() == 8 * GIB
