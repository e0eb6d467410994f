"""Starts every binary: parses flags and turns an error into one line and an exit status.

Imports nothing heavy, so that `--help` answers at once.
"""

import ast
import contextlib
import ctypes
import errno
import logging
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO, cast

import ml_collections
from absl import flags
from ml_collections import config_flags

from cellclr_jax.errors import BadData, BadUse


def keep_streams() -> None:
    """Opens closed standard streams, and ignores errors of writing to stderr.

    A file that took the number of a closed stream would get what is printed there; a closed
    terminal, or `… 2>&1 | head`, would end hours of work because of a progress line.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w", closefd=False))
    sys.stderr = cast(TextIO, _Forgiving(sys.stderr))


class _Forgiving:
    """Discards what a stream cannot write."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes as a text stream does; discards what cannot be written."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flushes as a text stream does."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def keep_freed_memory() -> None:
    """Makes the C library keep freed memory in the process instead of returning it to the system.

    XLA's CPU backend allocates its buffers anew for each step. Returned pages would have to be
    cleared and mapped again, which takes about a seventh of the time of a small network's step.
    Only glibc has these settings; elsewhere nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        for parameter, value in _MALLOC.values():
            libc.mallopt(parameter, value)


_IMPORT = "<frozen importlib._bootstrap>"
_SECONDS_BETWEEN = 0.05


class Terminated(BaseException):
    """Raised by SIGTERM."""

    came = False


def raise_at_sigterm() -> None:
    """Makes SIGTERM raise `Terminated` in the main thread, from now on.

    Python drops an asynchronous exception in some places, e.g. around imports, and an extension
    that is being loaded may crash. So it is raised when nothing is being imported, again and again
    until it is handled; from then on, cleaning up is not interrupted.
    """
    signal.signal(signal.SIGALRM, _raise)
    signal.signal(signal.SIGTERM, _raise)


def stop_raising() -> None:
    """Stops raising `Terminated`, which was handled or cannot come any more."""
    signal.setitimer(signal.ITIMER_REAL, 0)


def _raise(number: int, frame: FrameType | None) -> None:
    Terminated.came = True
    signal.setitimer(signal.ITIMER_REAL, _SECONDS_BETWEEN, _SECONDS_BETWEEN)
    if not _is_importing(frame) and not _is_handled():
        raise Terminated


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == _IMPORT:
            return True
        frame = frame.f_back
    return False


def _is_handled() -> bool:
    error = sys.exception()
    while error is not None:
        if isinstance(error, Terminated):
            return True
        error = error.__context__
    return False


FLAGS = flags.FLAGS
STARTED = time.monotonic()
"""When the program started, on `time.monotonic`."""
# Parameters of glibc's mallopt(3) and their values: one heap that never shrinks.
_MALLOC = {"M_ARENA_MAX": (-8, 1), "M_MMAP_MAX": (-4, 0)}
_MALLOC |= {"M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_TOP_PAD": (-2, 64 << 20)}
_PACKAGE = f"{__package__}."
# ~ or ~user where a flag's value, or an item of its list, begins: shells leave that in --flag=~.
_HOME = re.compile(r"(?:^|(?<=[=,]))~[^/,]*")
_FULL = (errno.ENOSPC, errno.EDQUOT)
# Set by `join_job` in a process of a job.
_explain: Callable[[BaseException], str | None] = lambda error: None  # noqa: E731
_leave: Callable[[int], NoReturn] = sys.exit


def join_job(
    explain: Callable[[BaseException], str | None], leave: Callable[[int], NoReturn]
) -> None:
    """Makes `run` report errors as one of several processes.

    Args:
      explain: returns what an error says about the others, or None.
      leave: ends a failed process with an exit status, once its error is printed.
    """
    global _explain, _leave
    _explain, _leave = explain, leave


def run(main: Callable[[], None], doc: str, *, arguments: str | None = None) -> NoReturn:
    """Parses the command line, calls `main` and exits the process.

    Args:
      main: of the binary; it reads the parsed absl flags.
      doc: the binary's docstring, shown above the flags by `--help`.
      arguments: a list flag that, if given, also takes the positional arguments.
    """
    keep_streams()
    flags.DEFINE_bool("debug", False, "Show the traceback of an error.", module_name=sys.argv[0])
    flags.DEFINE_bool("help", False, "Show this help.", module_name=sys.argv[0], short_name="h")
    _parse(sys.argv, doc, arguments)
    keep_freed_memory()
    raise_at_sigterm()
    if not FLAGS.debug:  # threads of libraries run on for a moment after an error, and fail, too
        sys.unraisablehook = lambda unraisable: None
        logging.getLogger("asyncio").setLevel(logging.CRITICAL + 1)
    try:
        main()
    except Terminated:
        _fail("", 143)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except BadUse as error:
        _fail(error, 2)
    except BrokenPipeError:
        _fail("the reader of the output has ended", 1)
    except BadData as error:
        _fail(_explain(error) or error, 1)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        _fail(f"{error.filename}: {error.strerror}; a folder takes no file's place", 2)
    except OSError as error:
        full = error.errno in _FULL or "No space left" in str(error)
        _fail(f"{error}{'; free some space and run the same command again' if full else ''}", 1)
    except Exception as error:
        message = f"{type(error).__name__}: {error} (--debug shows the traceback)"
        _fail(_explain(error) or message, 1)
    finally:
        stop_raising()
    sys.exit(0)


def define_config() -> None:
    """Defines --config, a file in configs/ whose settings --config.name=value overrides."""
    config_flags.DEFINE_config_file("config", None, "The experiment, a file in configs/.")


def read_config() -> ml_collections.ConfigDict:
    """Returns the config that the flags describe.

    Raises:
      BadUse: there is none, or it cannot be loaded.
    """
    config: ml_collections.ConfigDict | None = FLAGS.config
    if config is None:
        raise BadUse("--config is missing, e.g. --config=configs/simclr_demo.py")
    try:
        for holder, name in ((config, "data_dir"), (config.init, "workdir")):
            holder[name] = os.path.expanduser(holder[name])
        config.lock()
    except OSError as error:  # ml_collections keeps what loading raised until the first use
        reason = str(error.__cause__ or error).strip().splitlines()[-1].strip()
        raise BadUse(f"--config cannot be loaded: {reason}") from error
    return config


def config_name() -> str:
    """Returns the name of the config's file, without its ending."""
    return Path(config_flags.get_config_filename(FLAGS["config"])).stem


def _parse(argv: list[str], doc: str, arguments: str | None) -> None:
    """Fills `FLAGS` from `argv`; a wrong flag ends the process with exit status 2."""
    if {"-h", "--help", "-help", "--helpfull"} & set(argv[1:]):
        with contextlib.suppress(BrokenPipeError):  # of `| head`
            print(f"{doc.strip()}\n\nUsage: flags as --name=value\n{_flags_help()}", flush=True)
            sys.exit(0)
        os._exit(0)
    argv = [_HOME.sub(lambda found: os.path.expanduser(found[0]), arg) for arg in argv]
    FLAGS.set_gnu_getopt(True)  # flags may follow arguments
    try:
        rest = FLAGS(argv)
    except (AttributeError, KeyError) as error:  # of ml_collections: --config.a.b without a b
        name = str(error.args[0] if error.args else error)
        with contextlib.suppress(ValueError, SyntaxError):  # it quotes a text within a text
            name = str(ast.literal_eval(name))
        reason = f"no such setting in the config: {name} (cellclr_jax/default_config.py lists them)"
        if not any(arg.startswith("--config.") and _in_flag(name, arg) for arg in argv):
            reason = f"--config cannot be loaded: {type(error).__name__}: {name}"
        _fail(reason, 2, debug="--debug" in argv)
    except (flags.Error, OSError, ImportError, LookupError, ValueError, TypeError) as error:
        reason = str(error)
        if "Traceback (most recent call last)" in reason:  # ml_collections': the config raised
            reason = f"--config cannot be loaded: {reason.strip().splitlines()[-1]}"
        _fail(f"{reason} (--help lists the flags)", 2, debug="--debug" in argv)
    if arguments is not None and FLAGS[arguments].present:
        FLAGS[arguments].value = [*(FLAGS[arguments].value or []), *rest[1:]]
    elif len(rest) > 1:
        _fail(f"unexpected argument {rest[1]!r}: flags are written --name=value", 2, debug=False)


def _in_flag(message: str, argument: str) -> bool:
    """Whether the setting that an error names in its first line is one that the flag names."""
    words = re.findall(r"\w+", message.splitlines()[0] if message else "")
    return bool((set(words) - {"config"}) & set(re.findall(r"\w+", argument.partition("=")[0])))


def _flags_help() -> str:
    """Lists the flags of the binary and of the modules of this package that it imports."""
    own = [name for name in FLAGS.flags_by_module_dict() if name.startswith(_PACKAGE)]
    return "\n".join([*(FLAGS.module_help(name) for name in own), FLAGS.main_module_help()])


def _fail(error: Exception | str, status: int, debug: bool | None = None) -> NoReturn:
    """Prints the error in one line (or its traceback with `--debug`) and exits with `status`."""
    # A library may have made something else of it on the way.
    if Terminated.came:
        error, status = "stopped by SIGTERM; the same command resumes", 143
    if FLAGS.debug if debug is None else debug:
        traceback.print_exc()
    message = " ".join(str(error).split())
    print(f"error: {message}", file=sys.stderr, flush=True)
    _leave(status)
