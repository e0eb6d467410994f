"""How much memory there is to take."""

from collections.abc import Iterator
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_OWN_GROUPS = Path("/proc/self/cgroup")
# Folder, limit, usage and the prefix of its statistics, by version of the kernel's control groups.
_VERSIONS = {
    "": (Path("/sys/fs/cgroup"), "memory.max", "memory.current", ""),
    "memory": (
        Path("/sys/fs/cgroup/memory"),
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_",
    ),
}
# Where nothing tells (not Linux).
_ASSUMED = 8 << 30


def available_bytes() -> int:
    """Bytes that can be taken without swapping, within the limits of a container."""
    if not _MEMINFO.exists():
        return _ASSUMED
    lines = _numbers(_MEMINFO.read_text().replace(":", ""))
    return max(0, min([lines["MemAvailable"] << 10, *_group_rooms()]))


def _group_rooms() -> Iterator[int]:
    """What each control group of this process, and each around it, has left of its limit."""
    for line in _OWN_GROUPS.read_text().splitlines() if _OWN_GROUPS.exists() else ():
        _, controllers, path = line.split(":", 2)
        for name in {"memory", ""} & set(controllers.split(",")):
            root, limit, usage, prefix = _VERSIONS[name]
            own = root / path.lstrip("/")
            for folder in (own, *own.parents):
                if folder.is_relative_to(root):
                    yield from _room(folder / limit, folder / usage, folder / "memory.stat", prefix)


def _room(limit: Path, usage: Path, statistics: Path, prefix: str) -> Iterator[int]:
    """Bytes left in one group; nothing where it has no limit."""
    try:
        room = int(limit.read_text()) - int(usage.read_text())
        held = _numbers(statistics.read_text())
    except (OSError, ValueError):  # no such group, or 'max'
        return
    # Pages of files count as taken, and are given back when they are needed.
    yield room + sum(held.get(f"{prefix}{kind}_file", 0) for kind in ("active", "inactive"))


def _numbers(text: str) -> dict[str, int]:
    """The first number of each line by its first word."""
    parts = (line.split() for line in text.splitlines())
    return {part[0]: int(part[1]) for part in parts if len(part) > 1}
