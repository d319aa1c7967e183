"""What makes a rank on CPUs fast: memory that it keeps."""

from __future__ import annotations

import ctypes

# mallopt(3), malloc.h of glibc
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_NEVER = 2**31 - 1


def keep_memory() -> bool:
    """Has the allocator keep what is freed, instead of returning it to the kernel at every step.

    By default glibc gives each large block (the gradient of an embedding, say) back when it is freed, so that the next
    step's is filled with zeros by the kernel, page by page, and then once more by PyTorch. The process stays as large
    as it ever was.

    Returns:
        Whether the C library could be told; others than glibc can't.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _NEVER))
