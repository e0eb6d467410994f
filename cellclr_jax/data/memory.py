"""How much memory there is to take."""

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
# Of a container: its limit, and what it has taken, by version of the kernel's control groups.
_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)
# Where nothing tells (not Linux).
_ASSUMED = 8 << 30


def available_bytes() -> int:
    """Bytes that can be taken without swapping, within the limits of a container."""
    free = [_ASSUMED]
    if _MEMINFO.exists():
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        free = [int(lines["MemAvailable"].split()[0]) << 10]
    for limit, taken in _CGROUPS:
        try:
            free.append(int(Path(limit).read_text()) - int(Path(taken).read_text()))
        except (OSError, ValueError):  # no such group, or 'max': no limit
            continue
    return max(0, min(free))
