"""Where a result comes from: versions of what computed it, and the commit of this package."""

import contextlib
import platform
import subprocess
from importlib import metadata as packages
from pathlib import Path
from typing import Any

_PACKAGES = ("cellclr_jax", "flax", "jax", "jaxlib", "numpy", "pandas", "pyarrow", "scikit-learn")
_GIT_SECONDS = 10


def environment() -> dict[str, Any]:
    """{"versions": of Python and packages by name, "commit": see `commit`}."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(packages.PackageNotFoundError):
            versions[name] = packages.version(name)
    return {"versions": versions, "commit": commit()}


def commit() -> str | None:
    """The commit of this package, ending in -dirty where files differ; None where it is unknown."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():  # or it would be that of a repository around it
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(
            command, cwd=root, capture_output=True, text=True, timeout=_GIT_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
