"""What the C library does with memory that a program has given back."""

import ctypes

# Names and numbers of glibc's <malloc.h>.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Lets this process use its freed memory again instead of handing it back to the system.

    XLA's CPU backend allocates the buffers of a program anew for each run. By default, glibc maps
    large blocks and unmaps them when they are freed, and so each step of training finds all of its
    memory absent: the system clears and maps it page by page, which takes a third of the time of a
    small network's step. After this call large blocks come from one heap that does not shrink. The
    process then keeps its peak of memory until it ends.

    Call it early: threads that already allocate keep to their own heaps.

    Returns:
      Whether it took effect; False where the C library is not glibc.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # musl, macOS and Windows have no such function
        return False
    settings = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _ARENA_MAX: 1}
    taken = [set_option(option, value) for option, value in settings.items()]
    return all(taken)
