"""How every binary starts: flags are parsed, an error becomes one line and an exit status.

Imports nothing heavy, so that `--help` answers at once.
"""

import ast
import contextlib
import errno
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from absl import flags

from cellclr_jax.startup.large_pages import go_on_with_large_pages
from cellclr_jax.startup.streams import keep_streams
from cellclr_jax.startup.supervise import go_on_in_child
from cellclr_jax.startup.termination import Terminated, raise_at_sigterm, stop_raising

FLAGS = flags.FLAGS
_PACKAGE = f"{__package__}."
_FULL = (errno.ENOSPC, errno.EDQUOT)
# What a process of a job does differently (see `join_job`).
_explain: Callable[[BaseException], str | None] = lambda error: None  # noqa: E731
_leave: Callable[[int], NoReturn] = sys.exit


class BadUse(Exception):
    """A wrong flag, path or setting: the binary ends with exit status 2."""


class BadData(Exception):
    """Input that cannot be used (which file, which row, what was expected): exit status 1."""


def join_job(
    explain: Callable[[BaseException], str | None], leave: Callable[[int], NoReturn]
) -> None:
    """Tells `run` that this process is one of several.

    Args:
      explain: what an error says about the others, or None.
      leave: ends a process that failed, with an exit status, when its error is printed.
    """
    global _explain, _leave
    _explain, _leave = explain, leave


def run(main: Callable[[], None], doc: str, *, arguments: str | None = None) -> NoReturn:
    """Parses the command line, calls `main` and exits the process.

    Args:
      main: what the binary does; it reads the parsed absl flags.
      doc: the binary's docstring, shown above the flags by `--help`.
      arguments: the list flag that, where it is given, takes what is no flag, too.
    """
    keep_streams()
    flags.DEFINE_bool("debug", False, "Show the traceback of an error.", module_name=sys.argv[0])
    flags.DEFINE_bool("help", False, "Show this help.", module_name=sys.argv[0], short_name="h")
    _parse(sys.argv, doc, arguments)
    go_on_with_large_pages()
    if "distributed" in FLAGS and FLAGS.distributed:
        go_on_in_child()
    raise_at_sigterm()
    if not FLAGS.debug:  # libraries' threads go on for a moment after an error, and fail likewise
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
        _fail("whoever read the output is gone", 1)
    except BadData as error:
        _fail(_explain(error) or error, 1)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        _fail(f"{error.filename}: {error.strerror}; a folder takes no file's place", 2)
    except OSError as error:
        full = error.errno in _FULL or "No space left" in str(error)
        _fail(f"{error}{'; free some space and run the same command again' if full else ''}", 1)
    except Exception as error:
        told = f"{type(error).__name__}: {error} (--debug shows the traceback)"
        _fail(_explain(error) or told, 1)
    finally:
        stop_raising()
    sys.exit(0)


def _parse(argv: list[str], doc: str, arguments: str | None) -> None:
    """Fills `FLAGS` from `argv`; a wrong flag ends the process with exit status 2."""
    if {"-h", "--help", "-help", "--helpfull"} & set(argv[1:]):
        with contextlib.suppress(BrokenPipeError):  # of `| head`
            print(f"{doc.strip()}\n\nUsage: flags as --name=value\n{_flags_help()}", flush=True)
            sys.exit(0)
        os._exit(0)
    FLAGS.set_gnu_getopt(True)  # flags may follow arguments
    try:
        rest = FLAGS(argv)
    except (AttributeError, KeyError) as error:  # of ml_collections: --config.a.b without a b
        name = str(error.args[0] if error.args else error)
        with contextlib.suppress(ValueError, SyntaxError):  # it quotes a text within a text
            name = str(ast.literal_eval(name))
        if not any(arg.startswith("--config.") and _in_flag(name, arg) for arg in argv):
            told = f"--config cannot be loaded: {type(error).__name__}: {name}"
            _fail(told, 2, debug="--debug" in argv)
        told = f"no such setting in the config: {name} (cellclr_jax/default_config.py lists them)"
        _fail(told, 2, debug="--debug" in argv)
    except (flags.Error, OSError, ImportError, LookupError, ValueError, TypeError) as error:
        told = str(error)
        if "Traceback (most recent call last)" in told:  # of ml_collections, what the config raised
            told = f"--config cannot be loaded: {told.strip().splitlines()[-1]}"
        _fail(f"{told} (--help lists the flags)", 2, debug="--debug" in argv)
    if arguments is not None and FLAGS[arguments].present:
        FLAGS[arguments].value = [*(FLAGS[arguments].value or []), *rest[1:]]
    elif len(rest) > 1:
        _fail(f"unexpected argument {rest[1]!r}: flags are written --name=value", 2, debug=False)


def _in_flag(message: str, argument: str) -> bool:
    """Whether the setting that an error names, before all advice, is one that the flag names."""
    words = re.findall(r"\w+", message.splitlines()[0] if message else "")
    return bool((set(words) - {"config"}) & set(re.findall(r"\w+", argument.partition("=")[0])))


def _flags_help() -> str:
    """The flags of the binary, and of the modules of this package that it takes flags from."""
    own = [name for name in FLAGS.flags_by_module_dict() if name.startswith(_PACKAGE)]
    return "\n".join([*(FLAGS.module_help(name) for name in own), FLAGS.main_module_help()])


def _fail(error: Exception | str, status: int, debug: bool | None = None) -> NoReturn:
    """Prints the error in one line (or its traceback with `--debug`) and exits with `status`."""
    # A library may have made something else of it on the way.
    if Terminated.came:
        error, status = "stopped by SIGTERM; the same command goes on with what is done", 143
    if FLAGS.debug if debug is None else debug:
        traceback.print_exc()
    message = " ".join(str(error).split())
    print(f"error: {message}", file=sys.stderr, flush=True)
    _leave(status)
