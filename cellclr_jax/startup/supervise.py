"""A process that watches over one of a job and says, in one line, what ended it.

JAX ends a process whose peers are gone or silent from its C++: by a signal, after pages of its
internals, past every handler of Python. Only another process can still say what that means.
"""

import contextlib
import ctypes
import os
import signal
import sys

# prctl(2): this process gets a signal when its parent ends, even by SIGKILL.
_SIGNAL_AT_PARENTS_END = 1
_PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_MEANING = {
    signal.SIGABRT: "most likely another process of the job is gone or does not answer, which the "
    "lines above tell",
    signal.SIGKILL: "by hand, or for want of memory",
}


def go_on_in_child() -> None:
    """Returns in a child; this process waits for its end and ends likewise.

    Call it before any thread is started. SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 are passed on; SIGINT
    is left to the terminal, which sends it to both. This process's own end ends the child.
    """
    parent = os.getpid()
    # Until both are ready nothing may come through: it would end the one and orphan the other.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (*_PASSED_ON, signal.SIGINT))
    child = os.fork()
    if child == 0:
        with contextlib.suppress(OSError, AttributeError):  # of Linux alone
            ctypes.CDLL(None).prctl(_SIGNAL_AT_PARENTS_END, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before it could be told of
            os._exit(1)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return

    def pass_on(number: int, _: object) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.kill(child, number)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to both
    for number in _PASSED_ON:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    _, status = os.waitpid(child, 0)
    os._exit(_tell(os.waitstatus_to_exitcode(status)))


def _tell(code: int) -> int:
    """The exit status for that of the child; says what ended it where it could not."""
    if code >= 0:
        return code
    number = signal.Signals(-code)
    meaning = _MEANING.get(number, "by the system")
    print(
        f"error: this process was ended by {number.name} ({meaning}); when no process of the job "
        "is left, the same command on all of them goes on with what is done",
        file=sys.stderr,
        flush=True,
    )
    return 1 if number == signal.SIGABRT else 128 + number
