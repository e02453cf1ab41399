"""How many threads: what the user asks for, else the least of affinity, container quota and
NUMBA_NUM_THREADS.
"""

import os
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("numba")

from package_copy import PackageCopy

from cpu_kernels.compiler.jit import INTERPRETED
from cpu_kernels.machine import cpu_limits
from cpu_kernels.machine.thread_pool import get_num_threads, num_threads, run, set_num_threads


@pytest.fixture(autouse=True)
def default_threads():
    yield
    set_num_threads(None)


@pytest.fixture
def copy(tmp_path):
    return PackageCopy(tmp_path)


def test_num_threads_blocks_nest_and_belong_to_one_thread():
    usual = get_num_threads()
    seen = []
    with num_threads(5):
        with num_threads(3):
            thread = threading.Thread(target=lambda: seen.append(get_num_threads()))
            thread.start()
            thread.join()
            assert get_num_threads() == 3
        assert get_num_threads() == 5
    assert get_num_threads() == usual and seen == [usual]


def test_set_num_threads_is_for_the_process_and_none_undoes_it():
    usual = get_num_threads()
    set_num_threads(np.int64(6))
    assert get_num_threads() == 6
    with num_threads(2):
        assert get_num_threads() == 2
    set_num_threads(None)
    assert get_num_threads() == usual


@pytest.mark.parametrize(
    "count, error, message",
    [
        (0, ValueError, "count must be between 1 and 1024; got 0."),
        (-3, ValueError, "count must be between 1 and 1024; got -3."),
        (10**9, ValueError, "count must be between 1 and 1024; got 1000000000."),
        (2.0, TypeError, "count must be an integer; got float."),
        ("2", TypeError, "count must be an integer; got str."),
        (True, TypeError, "count must be an integer; got bool."),
    ],
)
def test_wrong_counts(count, error, message):
    for setter in (set_num_threads, lambda value: num_threads(value).__enter__()):
        with pytest.raises(error) as caught:
            setter(count)
        assert str(caught.value) == message


@pytest.mark.parametrize(
    "value, expected", [("1", 1), ("100000", None), ("", None), ("0", None), ("many", None)]
)
def test_numba_num_threads_is_an_upper_bound(monkeypatch, value, expected):
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    usual = get_num_threads()
    monkeypatch.setenv("NUMBA_NUM_THREADS", value)
    assert get_num_threads() == (expected or usual)


@pytest.mark.skipif(INTERPRETED, reason="plain Python stays in the calling thread")
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity")
def test_affinity_is_respected_and_left_alone(copy):
    code = """
import os
import numpy as np
from cpu_kernels import sample
from cpu_kernels.machine import thread_pool as pool
everything = os.sched_getaffinity(0)

def call(count=None):
    out = np.empty(2000)
    if count is None:
        pool.run(sample.powers, 2000, np.ones(2000), 3, out, cost=1e9)
    else:
        with pool.num_threads(count):
            pool.run(sample.powers, 2000, np.ones(2000), 3, out, cost=1e9)

call(3)
assert os.sched_getaffinity(0) == everything
one = {min(everything)}
os.sched_setaffinity(0, one)
assert pool.get_num_threads() == 1
call(3)
assert all(os.sched_getaffinity(thread.native_id) == one for thread in pool._pool.threads.values())
os.sched_setaffinity(0, everything)
call(2)
mine = os.sched_getaffinity(0)
assert mine == everything
print(all(os.sched_getaffinity(thread.native_id) <= mine for thread in pool._pool.threads.values()))
"""
    assert copy.python(code)[0] == "True"


def cgroup_tree(tmp_path, membership, mounts, files):
    """A process folder and control group file systems as Linux would show them."""
    tmp_path = tmp_path / "with space"
    proc = tmp_path / "proc"
    proc.mkdir(parents=True)
    (proc / "cgroup").write_text(membership)
    lines = [
        f"30 25 0:26 {root} {str(tmp_path).replace(' ', chr(92) + '040')}/{where} rw,nosuid - {kind} "
        f"{kind} {options}"
        for where, root, kind, options in mounts
    ]
    (proc / "mountinfo").write_text("22 1 0:21 / / rw - ext4 /dev/root rw\n" + "\n".join(lines))
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return proc


V2, V1 = ("unified", "/", "cgroup2", "rw"), ("cpu", "/", "cgroup", "rw,cpu,cpuacct")


@pytest.mark.parametrize(
    "membership, mounts, files, expected",
    [
        ("0::/app\n", [V2], {"unified/app/cpu.max": "150000 100000\n"}, 1.5),
        ("0::/app\n", [V2], {"unified/app/cpu.max": "max 100000\n"}, None),
        ("0::/app\n", [V2], {}, None),
        (
            "0::/pod/app\n",
            [V2],
            {"unified/pod/cpu.max": "200000 100000\n", "unified/pod/app/cpu.max": "max 100000\n"},
            2.0,
        ),  # the parent binds
        (
            "0::/pod/app\n",
            [V2],
            {"unified/pod/cpu.max": "300000 100000\n", "unified/pod/app/cpu.max": "100000 50000\n"},
            2.0,
        ),
        (
            "0::/\n",
            [V2],
            {"unified/cpu.max": "50000 100000\n"},
            0.5,
        ),  # a container with its own cgroup namespace
        (
            "0::/kubepods/pod1\n",
            [("unified", "/kubepods/pod1", "cgroup2", "rw")],
            {"unified/cpu.max": "400000 100000\n"},
            4.0,
        ),  # bind-mounted subtree
        (
            "4:cpu,cpuacct:/app\n2:memory:/other\n",
            [V1],
            {"cpu/app/cpu.cfs_quota_us": "250000\n", "cpu/app/cpu.cfs_period_us": "100000\n"},
            2.5,
        ),
        (
            "4:cpu,cpuacct:/app\n",
            [V1],
            {"cpu/app/cpu.cfs_quota_us": "-1\n", "cpu/app/cpu.cfs_period_us": "100000\n"},
            None,
        ),
        (
            "4:cpu:/app\n0::/\n",
            [V1, V2],
            {"cpu/app/cpu.cfs_quota_us": "100000\n", "cpu/app/cpu.cfs_period_us": "100000\n"},
            1.0,
        ),
        (
            "4:cpuset:/app\n",
            [("cpuset", "/", "cgroup", "rw,cpuset")],
            {"cpuset/app/cpu.cfs_quota_us": "1\n"},
            None,
        ),
        ("0::/app\n", [V2], {"unified/app/cpu.max": "nonsense\n"}, None),
    ],
)
def test_container_quota(tmp_path, membership, mounts, files, expected):
    assert cpu_limits.cpu_quota(cgroup_tree(tmp_path, membership, mounts, files)) == expected


def test_no_control_groups(tmp_path):
    assert cpu_limits.cpu_quota(tmp_path / "missing") is None


@pytest.mark.parametrize(
    "quota, cpus, environment, expected",
    [(1.5, 8, None, 2), (0.2, 8, None, 1), (None, 8, None, 8), (16, 8, None, 8), (4, 8, "3", 3)],
)
def test_least_limit_wins(monkeypatch, quota, cpus, environment, expected):
    monkeypatch.setattr(cpu_limits, "cpu_quota", lambda: quota)
    monkeypatch.setattr(cpu_limits, "allowed_cpus", lambda: frozenset(range(cpus)))
    monkeypatch.setenv("NUMBA_NUM_THREADS", environment or "")
    assert cpu_limits.available_threads() == expected


def test_systems_without_affinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(cpu_limits, "cpu_quota", lambda: None)
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    assert cpu_limits.allowed_cpus() is None
    assert cpu_limits.available_threads() == os.cpu_count()
    called = []
    with num_threads(2):
        run(lambda counter, scratch: called.append(counter), 10, cost=1e9)
    assert called


MACOS_INFINITY = 2**63 - 1  # positive there, -1 on Linux


@pytest.mark.parametrize(
    "system, limited",
    [
        (None, False),  # Windows has no module `resource`
        (SimpleNamespace(), False),
        (SimpleNamespace(RLIMIT_AS=9, RLIM_INFINITY=-1, limit=-1), False),
        (SimpleNamespace(RLIMIT_AS=9, RLIM_INFINITY=MACOS_INFINITY, limit=MACOS_INFINITY), False),
        (SimpleNamespace(RLIMIT_AS=9, RLIM_INFINITY=-1, limit=1 << 40), True),
        (SimpleNamespace(RLIMIT_AS=9, RLIM_INFINITY=-1, limit=0), True),
    ],
    ids=str,
)
def test_limits_on_address_space(monkeypatch, system, limited):
    if system is not None:
        system.getrlimit = lambda which: (system.limit, system.limit)
        system.getpagesize = lambda: 4096
    monkeypatch.setattr(cpu_limits, "resource", system)
    monkeypatch.setattr(Path, "read_text", lambda self: "10 5 3 1 0 4 0\n")  # pages, as /proc says
    left = cpu_limits.address_space_left()
    assert left == (system.limit - 10 * 4096 if limited else None)


if sys.platform == "linux":

    def test_this_process_reads_its_own_groups():
        quota = cpu_limits.cpu_quota(Path("/proc/self"))
        assert quota is None or quota > 0
