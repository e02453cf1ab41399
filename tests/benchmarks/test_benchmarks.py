"""Contenders in processes that take turns, the arithmetic of intervals, the tables of several hosts. Nothing
here depends on how long anything takes."""

import json
import os
import subprocess
import sys
import time
from math import comb
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import compare
import hosts
import inputs
import run
import tables
import turns
from grid import GRID, MAIN, Shape
from intervals import median_interval, paired

SHAPES = [Shape(2, 1, 4, 4, 8, causal=True), Shape(2, 1, 1, 8, 8), Shape(2, 1, 1, 8, 12, 8)]


@pytest.fixture
def worker(request):
    made = turns.Worker(request.param, 1)
    yield made
    made.close()


@pytest.mark.parametrize("worker", ["cpu_kernels", "numpy"], indirect=True)
def test_a_worker_loads_checks_and_takes_turns(worker, tmp_path, monkeypatch):
    monkeypatch.setattr(turns, "TURN", 0.001)
    for shape in SHAPES:
        inputs.write_inputs(shape, tmp_path)
        assert 0 < worker.load(shape, tmp_path)["bound_used"] <= 1
        answer = worker.turn()
        assert 0 < answer["seconds"] <= answer["wall"] and answer["wall"] >= 0.001
        assert stopped(worker.process.pid)
    answers, others = turns.take_turns({worker.name: worker}, 2)
    assert [set(answer) for answer in answers[worker.name]] == [
        {"seconds", "wall", "cpu"}
    ] * 2 and others >= 0


def stopped(pid, patience=60):
    """Whether a process is stopped, at once or as soon as the scheduler gets to it; true where the system
    does not say."""
    about, end = Path(f"/proc/{pid}/stat"), time.monotonic() + patience
    while about.exists() and about.read_text().rsplit(")", 1)[1].split()[0] != "T":
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.parametrize("worker", run.LIMITS, indirect=True)
def test_a_limit_tells_its_work(worker, tmp_path):
    assert worker.load(None, tmp_path)["work"] > 1e8
    assert set(worker.turn()) == {"seconds", "wall", "cpu"}


@pytest.mark.parametrize("worker", ["numpy"], indirect=True)
@pytest.mark.parametrize("spoil", [lambda x: x + 1e-3, lambda x: x * np.nan])
def test_a_wrong_result_is_not_timed(worker, spoil, tmp_path):
    inputs.write_inputs(SHAPES[0], tmp_path)
    np.save(tmp_path / "value.npy", spoil(np.load(tmp_path / "value.npy")))
    assert "of the error bound" in worker.load(SHAPES[0], tmp_path)["failed"]


@pytest.mark.parametrize("worker", ["numpy"], indirect=True)
def test_a_worker_that_died_is_told_and_replaced(worker, tmp_path):
    inputs.write_inputs(SHAPES[0], tmp_path)
    worker.load(SHAPES[0], tmp_path)
    worker.process.kill()
    answers, _ = turns.take_turns({"numpy": worker}, 3)
    assert len(answers["numpy"]) == 1 and "process ended" in answers["numpy"][0]["failed"]
    assert "bound_used" in worker.load(SHAPES[0], tmp_path)


@pytest.mark.parametrize("worker", ["no such library"], indirect=True)
def test_a_contender_that_cannot_says_why(worker, tmp_path):
    inputs.write_inputs(SHAPES[0], tmp_path)
    assert worker.load(SHAPES[0], tmp_path)["failed"].startswith("KeyError")


class Paced:
    """A worker whose every call takes the same time; notes who was asked."""

    spent = 0.0

    def __init__(self, name, seconds, asked):
        self.name, self.seconds, self.asked = name, seconds, asked

    def turn(self):
        self.asked.append(self.name)
        return {"seconds": self.seconds}


def test_a_worker_computes_with_the_packages_it_is_told(tmp_path):
    inputs.write_inputs(SHAPES[0], tmp_path)
    (tmp_path / "cpu_kernels.py").write_text(
        "def set_num_threads(count): raise OSError('of another commit')"
    )
    worker = turns.Worker("cpu_kernels", 1, tmp_path)
    assert worker.load(SHAPES[0], tmp_path)["failed"] == "OSError: of another commit"
    worker.close()


def test_rounds_go_forth_and_back_and_slow_contenders_drop_out():
    asked = []
    workers = {"fma": 100.0, "cpu_kernels": 1.0, "numpy": 2.0, "torch": 11.0, "jax": 51.0}
    answers, _ = turns.take_turns(
        {name: Paced(name, seconds, asked) for name, seconds in workers.items()}, 4
    )
    assert asked[:9] == [*workers, "torch", "numpy", "cpu_kernels", "fma"]
    assert {name: len(told) for name, told in answers.items()} == {
        "fma": 4,
        "cpu_kernels": 4,
        "numpy": 4,
        "torch": 3,
        "jax": 1,
    }


def test_one_thread_is_one_cpu():
    cpus = turns.cpus_for(1)
    assert cpus is None or (len(cpus) == 1 and set(cpus) <= os.sched_getaffinity(0))
    everything = turns.held_to(1)
    assert {everything[f"{name}_NUM_THREADS"] for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")} == {"1"}


@pytest.mark.parametrize("count", [6, 7, 9, 12, 25, 40])
def test_the_interval_of_a_median_has_its_confidence_and_is_the_narrowest(count):
    low, middle, high = median_interval(np.random.default_rng(0).permutation(count))
    below = int(low)  # values 0 .. count - 1 are their own ranks

    def confidence(cut):
        return 1 - 2 * sum(comb(count, i) for i in range(cut + 1)) / 2**count

    assert middle == (count - 1) / 2 and high == count - 1 - low
    assert confidence(below) >= 0.95 > confidence(below + 1)


def test_pairs_are_of_the_same_round():
    assert paired([2.0, 9.0, 8.0], [1.0, 3.0]).tolist() == [2.0, 3.0]


def test_the_interval_covers_the_median_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = [
        low <= 1.0 <= high
        for low, _, high in (median_interval(np.exp(rng.standard_normal(9))) for _ in range(2000))
    ]
    assert 0.94 < np.mean(covered) < 0.98  # 0.961


@pytest.fixture
def results(tmp_path):
    """Two hosts; the second measured one shape only, without peers."""
    for name, cpus, shapes, peers in (
        ("Chip A", 2, MAIN, {"torch": 2.0, "numpy": 3.0, "jax": 60.0}),
        ("Chip B", 64, MAIN[:1], {}),
    ):
        for shape in shapes:
            for threads in (1, cpus):
                about = {"name": name, "cpus": cpus, "family": 1, "model": 2, "stepping": 3}
                came = {"time": "now", "commit": "abc", "versions": {"numpy": "2"}}
                run.keep(tmp_path / f"{name}.json", about, came, row(shape, threads, peers))
    return tmp_path


def row(shape, threads, peers):
    """We take 1, 2, 4 ms; arithmetic allows twice the speed, reading four times, by the other method 3.6
    times."""
    ours = [0.001, 0.002, 0.004]
    limits = {
        "fma": [2 * shape.flops / t for t in ours],
        "read_by_blas": [3.6 * shape.bytes / t for t in ours],
    }
    seconds = {"cpu_kernels": ours} | {
        name: [times * t for t in ours][: 1 if times > 50 else 3] for name, times in peers.items()
    }
    return {
        "shape": str(shape),
        "kind": shape.kind,
        "threads": threads,
        "flops": shape.flops,
        "bytes": shape.bytes,
        "others": 0.25,
        "limits": limits | {"read_by_loads": [4 * shape.bytes / t for t in ours]},
        "seconds": seconds,
        "cpus_used": dict.fromkeys(seconds, 1.0) | ({"numpy": 1.9} if peers else {}),
        "skipped": {},
        "bound_used": {},
    }


def test_the_summary_shows_shapes_and_hosts(results):
    lines = tables.summary(tables.load(results)).splitlines()
    assert lines[0] == "| shape | threads | Chip A, 2 CPUs | Chip B, 64 CPUs |"
    assert lines[2] == f"| {MAIN[0]} | 1 | 0.50 of FMA; 2.00x torch | 0.50 of FMA |"
    assert (
        f"| {MAIN[0]} | 64 |  | 0.50 of FMA |" in lines
        and f"| {MAIN[1]} | 2 | 0.50 of FMA; 2.00x torch |  |" in lines
    )
    assert len(lines) == 2 + 2 * len(MAIN) + 1


def test_the_page_shows_every_row_with_its_spread_and_doubts(results):
    page = tables.page(tables.load(results))
    assert (
        f"| {MAIN[0]} | 1 | 0.50 (0.50 to 0.50) | 0.25 | 2.00x torch (2.00 to 2.00) "
        "| 2 (1.5 to 3) | 4 (3 to 6) | 60 (once) | 6 (4.5 to 9) |" in page
    )
    assert page.count("numpy used 1.90 CPUs, more than its threads") == len(
        MAIN
    )  # on one thread, not on two
    assert page.count("differ by -10%") == 2 * len(MAIN) + 2
    assert "at most 5% apart in 0 of" in page and "took 0.25 CPUs" in page and "abc" in page


def test_a_row_measured_again_replaces_the_old_one_and_its_run(results):
    path = results / "Chip B.json"
    again = {"time": "later", "commit": "def", "versions": {}}
    for threads in (1, 64):
        run.keep(path, {"name": "Chip B", "cpus": 64}, again, row(MAIN[0], threads, {"numpy": 5.0}))
        stored = json.loads(path.read_text())
        assert [old["threads"] for old in stored["rows"]] == [1, 64]
    assert list(stored["runs"]) == ["later"] and all("numpy" in old["seconds"] for old in stored["rows"])


def test_no_host_is_said_so(tmp_path):
    assert tables.summary(tables.load(tmp_path)) == tables.NO_HOST and tables.NO_HOST in tables.page([])


def test_committed_pages_are_those_of_the_committed_results():
    found = tables.load(BENCHMARKS / "results")
    assert (BENCHMARKS / "results.md").read_text() == tables.page(found)
    between = (
        (BENCHMARKS.parent / "README.md").read_text().split(tables.MARKERS[0])[1].split(tables.MARKERS[1])[0]
    )
    assert between.strip() == tables.summary(found)


CPUINFO = """processor\t: 0
vendor_id\t: {}
cpu family\t: {}
model\t\t: {}
model name\t: {}
stepping\t: 1
flags\t\t: fpu {}

processor\t: 1
"""


@pytest.mark.parametrize(
    "fields, name",
    [
        (("AuthenticAMD", 25, 1, "AMD EPYC", "avx avx2"), "AMD EPYC (Zen 3, AVX2)"),
        (("AuthenticAMD", 25, 17, "AMD EPYC", "avx avx2 avx512f"), "AMD EPYC (Zen 4, AVX-512)"),
        (
            ("AuthenticAMD", 26, 2, "AMD EPYC 9B45 128-Core Processor", "avx512f"),
            "AMD EPYC 9B45 (Zen 5, AVX-512)",
        ),
        (
            ("GenuineIntel", 6, 207, "INTEL(R) XEON(R) CPU @ 2.1GHz", "avx512f amx_tile"),
            "INTEL XEON (Emerald Rapids, AMX)",
        ),
        (("GenuineIntel", 6, 1, "Some CPU", "sse2"), "Some"),
    ],
)
def test_a_cpu_has_a_speaking_name(fields, name, tmp_path):
    (tmp_path / "cpuinfo").write_text(CPUINFO.format(*fields))
    about = hosts.cpu(tmp_path / "cpuinfo")
    assert about["name"] == name and about["family"] == fields[1] and about["model"] == fields[2]
    assert set(hosts.slug(about)) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_comparing_a_commit_with_itself_sees_workers_of_that_commit(tmp_path, monkeypatch, capsys):
    if subprocess.run(["git", "rev-parse", "HEAD"], cwd=BENCHMARKS, capture_output=True).returncode:
        pytest.skip("needs the repository's history")
    monkeypatch.setattr(turns, "TURN", 0.001)
    seen = []
    monkeypatch.setattr(
        compare,
        "Worker",
        lambda name, threads, root, **cache: seen.append(root) or turns.Worker("numpy", threads, root),
    )
    compare.compare("HEAD", None, SHAPES[:1], [1], 6)
    told = capsys.readouterr().out.splitlines()
    assert (
        seen[0] != turns.ROOT == seen[1]
        and told[1].startswith(f"{SHAPES[0]}, 1 thread(s): ")
        and "other processes" in told[1]
    )
    with pytest.raises(ValueError, match="rounds must be at least 6"):
        compare.compare("HEAD", None, SHAPES[:1], [1], 5)


def test_shapes_are_listed_once():
    assert len(GRID) == len(set(GRID)) and set(MAIN) <= set(GRID)
