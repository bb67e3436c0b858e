"""How the C library treats freed memory on this host."""

import ctypes
import platform
from functools import cache

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of mallopt(3)


@cache
def keep_freed_memory() -> bool:
    """Keep what tensors free for the next ones, instead of giving it back to the system after every operation.

    By default glibc maps large tensors anew each time, and the system clears their pages, which takes a good part of a
    training step on a CPU. The process holds on to the memory of its largest step instead. It has no effect on
    results, cannot be undone, and changes nothing where another C library or allocator is used.

    Returns:
        Whether the setting was made.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    # 32 MiB is the most that glibc takes for the size from which a block gets pages of its own.
    settings = {_MMAP_THRESHOLD: 2**25, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 2**26}
    return all([library.mallopt(name, value) for name, value in settings.items()])
