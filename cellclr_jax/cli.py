"""Starts every binary: parses flags, prints `--help`, reports errors in one line with a status.

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
import textwrap
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO, cast

import ml_collections
from absl import flags
from ml_collections import config_flags

from cellclr_jax.errors import BadData, BadUse

FLAGS = flags.FLAGS
STARTED = time.monotonic()
"""When the program started, on `time.monotonic`."""
# Parameters of glibc's mallopt(3) and their values: one heap that never shrinks.
_MALLOC = {"M_ARENA_MAX": (-8, 1), "M_MMAP_MAX": (-4, 0)}
_MALLOC |= {"M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_TOP_PAD": (-2, 64 << 20)}
_PACKAGE = f"{__package__}."
# ~ or ~user at the start of a flag's value or of an item of its list: shells keep that in --flag=~.
_HOME = re.compile(r"(?:^|(?<=[=,]))~[^/,]*")
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_IMPORT = "<frozen importlib._bootstrap>"
_SECONDS_BETWEEN = 0.05
# Placeholders of values in `--help`, by absl's name of the type.
_PLACEHOLDERS = {"int": "=N", "float": "=X", "bool": ""}
_HELP_COLUMNS = 96
# Set by `join_job` in a process of a job.
_explain: Callable[[BaseException], str | None] = lambda error: None  # noqa: E731
_leave: Callable[[int], NoReturn] = sys.exit


def keep_streams() -> None:
    """Opens closed standard streams, and ignores errors of writing to stderr.

    Otherwise a file could get the number of a closed stream and with it all that is printed, and a
    closed terminal, or `… 2>&1 | head`, would end hours of work because of a progress line.
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
    """A text stream that discards what it cannot write."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes text, or discards it."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flushes, if possible."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory in the process instead of returning it to the system.

    XLA's CPU backend allocates its buffers anew for each step. Returned pages would have to be
    cleared and mapped again, which takes about a seventh of the time of a small network's step.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        for parameter, value in _MALLOC.values():
            libc.mallopt(parameter, value)


class Terminated(BaseException):
    """Raised by SIGTERM."""

    came = False


def raise_at_sigterm() -> None:
    """Makes SIGTERM raise `Terminated` in the main thread, from now on.

    Python drops an asynchronous exception in some places, e.g. around imports, and one that
    interrupts the import of an extension may crash it. It is therefore raised outside of imports,
    and raised again until it is handled; after that, cleaning up is not interrupted.
    """
    signal.signal(signal.SIGALRM, _raise)
    signal.signal(signal.SIGTERM, _raise)


def stop_raising() -> None:
    """Stops raising `Terminated`: it has been handled, or the program is about to end."""
    signal.setitimer(signal.ITIMER_REAL, 0)


def _raise(number: int, frame: FrameType | None) -> None:
    Terminated.came = True
    signal.setitimer(signal.ITIMER_REAL, _SECONDS_BETWEEN, _SECONDS_BETWEEN)
    while frame is not None:
        if frame.f_code.co_filename == _IMPORT:
            return
        frame = frame.f_back
    error = sys.exception()
    while error is not None:
        if isinstance(error, Terminated):  # is being handled
            return
        error = error.__context__
    raise Terminated


def join_job(
    explain: Callable[[BaseException], str | None], leave: Callable[[int], NoReturn]
) -> None:
    """Makes `run` report errors as one of several processes.

    Args:
      explain: returns a message if another process caused an error, otherwise None.
      leave: ends a failed process with an exit status, after its error is printed.
    """
    global _explain, _leave
    _explain, _leave = explain, leave


def run(
    main: Callable[[], None],
    doc: str,
    *,
    arguments: str | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
) -> NoReturn:
    """Parses the command line, calls `main` and exits the process.

    Args:
      main: function without arguments that reads the parsed absl flags.
      doc: docstring of the binary, shown above the flags by `--help`.
      arguments: name of a list flag that also receives the positional arguments.
      groups: names of flags by their heading in `--help`; all others are listed last.
    """
    keep_streams()
    flags.DEFINE_bool("debug", False, "Show the traceback of an error.", module_name=sys.argv[0])
    flags.DEFINE_bool("help", False, "Show this help.", module_name=sys.argv[0], short_name="h")
    _parse(sys.argv, doc, arguments, groups or {})
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
        _fail("the program that reads the output has ended", 1)
    except BadData as error:
        _fail(_explain(error) or error, 1)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        _fail(f"{error.filename}: {error.strerror}: a folder cannot replace a file", 2)
    except OSError as error:
        full = error.errno in _DISK_FULL or "No space left" in str(error)
        _fail(f"{error}{'; free some space and run the same command again' if full else ''}", 1)
    except Exception as error:
        message = f"{type(error).__name__}: {error} (--debug shows the traceback)"
        _fail(_explain(error) or message, 1)
    finally:
        stop_raising()
    sys.exit(0)


def define_config() -> None:
    """Defines --config, a file in configs/ whose settings --config.name=value overrides."""
    config_flags.DEFINE_config_file(
        "config",
        None,
        "Python file with the settings of the experiment, e.g. --config=configs/simclr_demo.py. "
        "--config.NAME=VALUE changes one of them, e.g. --config.epochs=20.",
    )


def read_config() -> ml_collections.ConfigDict:
    """Returns the config that the flags describe.

    Raises:
      BadUse: there is none, or it cannot be loaded.
    """
    config: ml_collections.ConfigDict | None = FLAGS.config
    if config is None:
        raise BadUse("--config is missing, e.g. --config=configs/simclr_demo.py")
    try:
        for settings, name in ((config, "data_dir"), (config.init, "workdir")):
            settings[name] = os.path.expanduser(settings[name])
        config.lock()
    except OSError as error:  # ml_collections raises errors of loading at the first use
        raise BadUse(_not_loaded(error.__cause__ or error)) from error
    return config


def config_name() -> str:
    """Returns the name of the config's file, without its ending."""
    return Path(config_flags.get_config_filename(FLAGS["config"])).stem


def _parse(
    argv: list[str], doc: str, arguments: str | None, groups: Mapping[str, Sequence[str]]
) -> None:
    """Fills `FLAGS` from `argv`; a wrong flag ends the process with exit status 2."""
    if {"-h", "--help", "-help", "--helpfull"} & set(argv[1:]):
        with contextlib.suppress(BrokenPipeError):  # of `| head`
            print(f"{doc.strip()}\n\n{_flags_help(groups)}", flush=True)
            sys.exit(0)
        os._exit(0)
    argv = [_HOME.sub(lambda found: os.path.expanduser(found[0]), arg) for arg in argv]
    FLAGS.set_gnu_getopt(True)  # flags may follow arguments
    try:
        rest = FLAGS(argv)
    except Exception as error:  # a config is a program, which may raise anything
        _fail(_parse_error(error, argv), 2, debug="--debug" in argv)
    if arguments is not None and FLAGS[arguments].present:
        FLAGS[arguments].value = [*(FLAGS[arguments].value or []), *rest[1:]]
    elif len(rest) > 1:
        _fail(f"unexpected argument {rest[1]!r}: flags are written --name=value", 2, debug=False)


def _parse_error(error: Exception, argv: Sequence[str]) -> str:
    """Explains in one line why flags or the config cannot be parsed."""
    message = str(error.args[0] if error.args else error)
    if isinstance(error, AttributeError | KeyError):  # --config.a.b without a setting a.b
        with contextlib.suppress(ValueError, SyntaxError):  # ml_collections quotes it twice
            message = str(ast.literal_eval(message))
        words = set(re.findall(r"\w+", message.partition("\n")[0])) - {"config"}
        names = [arg.partition("=")[0] for arg in argv if arg.startswith("--config.")]
        if any(words & set(re.findall(r"\w+", name)) for name in names):
            return (
                f"no such setting in the config: {message} "
                "(cellclr_jax/default_config.py lists them)"
            )
    failed = "Traceback (most recent call last)", "earlier failure to load"  # of the config
    if isinstance(error, flags.Error) and not any(text in message for text in failed):
        return f"{message} (--help lists the flags)"
    return _not_loaded(error)


def _not_loaded(error: BaseException) -> str:
    """Explains in one line why the config cannot be loaded: ml_collections puts that last."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
    kind = "" if isinstance(error, OSError | flags.Error) else f"{type(error).__name__}: "
    return f"--config cannot be loaded: {kind}{reason}"


def _flags_help(groups: Mapping[str, Sequence[str]]) -> str:
    """Lists the flags of the binary and of the imported modules of this package, by heading."""
    modules = FLAGS.flags_by_module_dict()
    defined = {
        flag.name: flag
        for module, found in modules.items()
        if module.startswith(_PACKAGE) or module == sys.argv[0]
        for flag in found
    }
    others = [name for name in defined if not any(name in names for names in groups.values())]
    sections = [*groups.items(), ("Other flags" if groups else "Flags", others)]
    return "\n\n".join(
        "\n".join([f"{heading}:", *(_flag_help(defined[name]) for name in names)])
        for heading, names in sections
    )


def _flag_help(flag: flags.Flag[Any]) -> str:
    """One flag: name, values, text, limits and default."""
    values = filter(None, getattr(flag.parser, "enum_values", ()))
    kind = flag.parser.flag_type()
    # absl puts the values of an enum before its text, and a remark after that of a repeated flag.
    text = re.sub(r"^<[^>]*>: |;\n.*", "", flag.help or "", flags=re.DOTALL)
    placeholder = "=" + "|".join(values) if kind == "string enum" else _PLACEHOLDERS.get(kind, "=…")
    limits = flag.parser.syntactic_help if kind in ("int", "float") else ""
    facts = [] if limits in ("an integer", "a number") else [limits]
    if flag.boolean:
        facts.append(f"default: {'on' if flag.default else 'off'}")
    elif flag.default not in (None, "", []):
        default = flag.default
        facts.append(f"default: {','.join(default) if isinstance(default, list) else default}")
    elif "default" not in text.lower():
        facts.append("default: none")
    details = "; ".join(filter(None, facts))
    text += f" ({details})" if details else ""
    indent = " " * 6
    return f"  --{flag.name}{placeholder}\n" + textwrap.fill(
        text, _HELP_COLUMNS, initial_indent=indent, subsequent_indent=indent
    )


def _fail(error: Exception | str, status: int, debug: bool | None = None) -> NoReturn:
    """Prints the error in one line (or its traceback with `--debug`) and exits with `status`."""
    if Terminated.came:  # a library may have raised another exception because of it
        error, status = "stopped by SIGTERM; the same command resumes", 143
    if FLAGS.debug if debug is None else debug:
        traceback.print_exc()
    message = " ".join(str(error).split())
    print(f"error: {message}", file=sys.stderr, flush=True)
    _leave(status)
