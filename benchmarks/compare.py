"""Two commits of this repository in turns on one host: A B, B A, A B, ... and the ratio of their times with
its interval."""

import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from inputs import folder_for, write_inputs
from intervals import FEWEST, median_interval, paired
from peers import OURS
from turns import ROOT, Worker, take_turns

WORKING_TREE = "working tree"


def compare(first, second, shapes, threads, rounds):
    """Print a line for each shape; `second` None stands for the working tree. A ratio above 1 means that the
    second is faster.

    Raises
    ------
    ValueError
        rounds is too few for an interval.
    """
    if rounds < FEWEST:
        raise ValueError(f"rounds must be at least {FEWEST} for an interval of 95 %; got rounds={rounds}.")
    names = first, second or WORKING_TREE
    print(
        f"time of {names[0]} / time of {names[1]}, median of {rounds} pairs and where it lies with 95 % "
        f"confidence; above 1: {names[1]} is faster"
    )
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        roots = [
            extract(commit, folder / name) if commit else ROOT for name, commit in zip("AB", (first, second))
        ]
        for count in threads:
            caches = [{"CPU_KERNELS_CACHE_DIR": str(folder / f"{name}-compiled")} for name in "AB"]
            workers = {
                name: Worker(OURS, count, root, **cache) for name, root, cache in zip("AB", roots, caches)
            }
            try:
                for shape in shapes:
                    print(f"{shape}, {count} thread(s): {verdict(shape, workers, rounds)}", flush=True)
            finally:
                for worker in workers.values():
                    worker.close()


def verdict(shape, workers, rounds):
    with folder_for(shape) as folder:
        write_inputs(shape, Path(folder))
        answers = {name: [worker.load(shape, folder)] for name, worker in workers.items()}
    others = 0.0
    if not any("failed" in told[-1] for told in answers.values()):
        answers, others = take_turns(workers, rounds)
    failed = [
        f"{name} failed: {told[-1]['failed']}" for name, told in answers.items() if "failed" in told[-1]
    ]
    if failed:
        return "; ".join(failed)
    times = {name: [turn["seconds"] for turn in told] for name, told in answers.items()}
    low, ratio, high = median_interval(paired(times["A"], times["B"]))
    sign = "faster" if low > 1 else "slower" if high < 1 else "no difference seen"
    middle = {name: 1e3 * median_interval(values)[1] for name, values in times.items()}
    absolute = f"{middle['A']:.3g} and {middle['B']:.3g} ms; other processes {others:.2f} CPUs"
    return f"{ratio:.3f} ({low:.3f} to {high:.3f}) {sign}; {absolute}"


def extract(commit, folder):
    """The packages of a commit."""
    archive = subprocess.run(
        ["git", "archive", "--format=zip", commit, "refattn", "cpu_kernels"], cwd=ROOT, capture_output=True
    )
    if archive.returncode:
        sys.exit(f"git archive {commit}: {archive.stderr.decode().strip()}")
    zipfile.ZipFile(io.BytesIO(archive.stdout)).extractall(folder)
    return folder
