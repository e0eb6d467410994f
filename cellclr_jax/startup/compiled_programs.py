"""Where compiled programs are kept between runs, so that a run begins at once the second time."""

import contextlib
import hashlib
import os
import platform
import tempfile
import warnings
import zlib
from pathlib import Path

import jax

from cellclr_jax.logs import say

OFF = "off"
# Programs of a second's parts add up: a run has a dozen of them.
_LEAST_SECONDS = 0.2
# A step of a large network takes some ten megabytes; older programs go first.
_MOST_BYTES = 4 << 30
_ENTRIES = "*-cache"
_CHECKED = ".checked"
_ZSTD = b"\x28\xb5\x2f\xfd"


def keep_compiled_programs(choice: str | None) -> None:
    """Has JAX keep the programs that it compiles, and take up those that it kept.

    Whatever goes wrong here costs time and nothing else.

    Args:
      choice: a folder, or `off`; None takes JAX_COMPILATION_CACHE_DIR where that is set, else a
        folder of this user.
    """
    if choice == OFF:
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)
    if choice is None and "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    # One that cannot be read or written is compiled again: no more than that is to be told.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    try:
        folder = Path(choice) if choice else _folder()
        # They are code: nobody else may put some there.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        _tidy(folder)
    except (OSError, RuntimeError) as error:  # of them the second: there is no home
        say(f"note: compiled programs are not kept: {error} (--compilation_cache=DIR|off)")
        return
    jax.config.update("jax_compilation_cache_dir", str(folder.resolve()))


def _folder() -> Path:
    """The user's own, for this kind of processor: a program of another one may end this one."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    kind = platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        told = next((line for line in lines if line.startswith(("flags", "Features"))), "")
        kind += f"-{hashlib.blake2b(told.encode(), digest_size=4).hexdigest()}"
    return Path(cache, "cellclr_jax", "xla", kind)


def _tidy(folder: Path) -> None:
    """Removes programs that were cut off while they were written, and old ones beyond a size.

    JAX writes them in place. One that another process is writing may go as well: it is compiled
    again.
    """
    files = []
    for path in folder.glob(_ENTRIES):
        with contextlib.suppress(FileNotFoundError):  # another process tidies up likewise
            files.append((path.stat().st_mtime, path.stat().st_size, path))
    total = 0
    for _, size, path in sorted(files, reverse=True):
        total += size
        with contextlib.suppress(FileNotFoundError):
            if total > _MOST_BYTES or not _whole(path):
                path.with_suffix(_CHECKED).unlink(missing_ok=True)
                path.unlink()


def _whole(path: Path) -> bool:
    """Whether a program can be unpacked; one of the size that it had is not looked at again."""
    checked = path.with_suffix(_CHECKED)
    size = str(path.stat().st_size)
    if checked.exists() and checked.read_text() == size:
        return True
    try:
        content = path.read_bytes()
        if content.startswith(_ZSTD):
            import zstandard

            zstandard.ZstdDecompressor().decompress(content)
        else:
            zlib.decompress(content)
    except ImportError:  # whoever wrote it can tell
        return True
    except Exception:  # of one of two libraries
        return False
    checked.write_text(size)
    return True
