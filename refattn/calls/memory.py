"""Refuse what cannot be allocated before any work starts; Linux hands out memory it does not have and kills
the process later.
"""

import os

CHECKED_FROM = 2**26  # bytes; asking the system costs more than smaller requests are worth


def available_bytes():
    """Memory this process could still get, in bytes, or None where the system does not say."""
    try:
        with open("/proc/meminfo") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def ensure_allocatable(nbytes, what):
    """Raise MemoryError, naming the size, when `nbytes` are more than the system has left."""
    if nbytes < CHECKED_FROM:
        return
    available = available_bytes()
    if nbytes >= 2**63 or (available is not None and nbytes > available):
        has = "" if available is None else f" and {available / 2**30:.1f} GiB are available"
        raise MemoryError(f"{what} must fit in memory; got sizes that need {nbytes / 2**30:.1f} GiB{has}.")


def ensure_group_allocatable(group_size, kv_len, head_dim, v_head_dim):
    """Raise MemoryError when what attention holds for the heads of one key/value head does not fit.

    Counted low, so that nothing feasible is refused: two float64 copies of the keys and the values, eight
    numbers for each score of one row.
    """
    ensure_allocatable(
        8 * kv_len * (2 * (head_dim + v_head_dim) + 8 * group_size), "keys, values and scores of one group"
    )
