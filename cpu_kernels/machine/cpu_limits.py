"""What this process may use: CPUs (affinity, the container's quota, NUMBA_NUM_THREADS) and address
space (ulimit -v).
"""

import math
import os
import re
from functools import cache
from pathlib import Path

try:
    import resource
except ImportError:  # not a POSIX system
    resource = None

# Address space that compiling the largest kernel takes, and loading it, with a reserve: beyond a limit LLVM
# ends the process.
SPACE_TO_COMPILE, SPACE_TO_LOAD = 224 << 20, 96 << 20


def allowed_cpus():
    """CPUs the calling thread may run on (its affinity), or None where the system does not say."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None


def available_threads():
    """Threads worth starting: the least of the affinity, the container's CPU quota rounded up, and
    NUMBA_NUM_THREADS.
    """
    cpus = allowed_cpus()
    count = len(cpus) if cpus else os.cpu_count() or 1
    for limit in (cpu_quota(), numba_num_threads()):
        if limit is not None:
            count = min(count, math.ceil(limit))
    return max(1, count)


def numba_num_threads():
    """The user's NUMBA_NUM_THREADS as a number, or None where it is unset or no positive integer."""
    text = os.environ.get("NUMBA_NUM_THREADS", "")
    return int(text) if text.isdecimal() and int(text) > 0 else None


def require_usable_numba_num_threads():
    """Raise before Numba does, whose message names no variable. It reads the variable when it is
    first imported.
    """
    text = os.environ.get("NUMBA_NUM_THREADS", "").strip()
    if text.lstrip("+-").isdecimal() and int(text) < 1:
        raise ImportError(
            f"NUMBA_NUM_THREADS must be 1 or more; got NUMBA_NUM_THREADS={text}. Numba cannot be imported "
            "with it: unset it."
        )


def require_address_space(needed, purpose):
    """Raise MemoryError where the limit on address space leaves less than so many bytes."""
    left = address_space_left()
    if left is not None and left < needed:
        raise MemoryError(
            f"{purpose} must have {needed >> 20} MiB of address space; got {max(0, left) >> 20} MiB below "
            "the limit. "
            "Raise the limit (ulimit -v)."
        )


def address_space_left():
    """Bytes below the limit on this process's address space, or None without a limit or where the
    system does not say.
    """
    limit = resource.getrlimit(resource.RLIMIT_AS)[0] if resource and hasattr(resource, "RLIMIT_AS") else -1
    if limit < 0 or limit == resource.RLIM_INFINITY:
        return None
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return None
    return limit - pages * resource.getpagesize()


@cache
def cpu_quota(proc=Path("/proc/self")):
    """CPUs' worth of time the process's control groups allow, as a float, or None without a limit.

    Both kinds are read: version 2 (``cpu.max``) and version 1 (``cpu.cfs_quota_us`` /
    ``cpu.cfs_period_us``). A limit on a parent group binds its children, so every group from the
    process's own to the root of the hierarchy counts.
    """
    try:
        groups = (proc / "cgroup").read_text().splitlines()
        mounts = (proc / "mountinfo").read_text().splitlines()
    except OSError:
        return None
    quotas = []
    for line in groups:
        _, controllers, path = line.split(":", 2)
        version1 = "cpu" in controllers.split(",")
        if controllers and not version1:
            continue
        for root, mount_point in _cgroup_mounts(mounts, version1):
            # In a container the mount may show only the subtree below `root`, under its own name.
            inside = os.path.relpath(path, root) if path.startswith(root) else "."
            folder = mount_point / inside
            for group in (folder, *folder.parents):
                quota = _quota_v1(group) if version1 else _quota_v2(group)
                if quota is not None:
                    quotas.append(quota)
                if group == mount_point:
                    break
    return min(quotas, default=None)


def _cgroup_mounts(mounts, version1):
    for line in mounts:
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if (not version1 and kind[0] == "cgroup2") or (
            version1 and kind[0] == "cgroup" and "cpu" in kind[-1].split(",")
        ):
            yield _unescaped(fields[3]), Path(_unescaped(fields[4]))


def _unescaped(path):
    """Spaces and the like stand as octal numbers in the kernel's tables."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path)


def _quota_v2(group):
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _quota_v1(group):
    try:
        quota = int((group / "cpu.cfs_quota_us").read_text())
        return quota / int((group / "cpu.cfs_period_us").read_text()) if quota > 0 else None
    except (OSError, ValueError):
        return None
