"""SIGTERM as an exception: what was begun is tidied up on the way out."""

import signal
import sys
from types import FrameType

_IMPORT = "<frozen importlib._bootstrap>"
_SECONDS_BETWEEN = 0.05


class Terminated(BaseException):
    """SIGTERM came."""

    came = False


def raise_at_sigterm() -> None:
    """Has SIGTERM raise `Terminated` in the main thread, for good.

    An exception out of nowhere gets lost where Python drops it, as it does around imports, and an
    extension that is being loaded may end by a fault. So it waits until nothing is being imported,
    and comes again until somebody handles it; from then on it leaves in peace what is tidied up.
    """
    signal.signal(signal.SIGALRM, _raise)
    signal.signal(signal.SIGTERM, _raise)


def stop_raising() -> None:
    """What came was handled, or there is no more to come."""
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
