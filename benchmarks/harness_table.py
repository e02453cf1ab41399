"""How many faults that its authors have not seen `check_kernel` catches at level "quick".

    python benchmarks/harness_table.py harness_2           a set of held_out/, in processes side by side
    python benchmarks/harness_table.py harness_2 --only paged
    python benchmarks/harness_table.py --table             what the results of all sets amount to

A set is a Python file with FAULTS and CORRECT, lists of dict(name, form, kernel, tile, supports, words),
written by somebody who has seen neither the harness nor the catalogue. Each kernel is run once, up to its
first failure; CORRECT holds the same kernels without their faults, of which one of each base is run. Results
go into held_out/SET.quick.jsonl: what is committed is the first run, after a freeze. Then the set is spent.
"""

import argparse
import importlib.util
import json
import multiprocessing
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path(__file__).resolve().parent / "held_out"
sys.path.insert(0, str(ROOT))

from refattn.oracle import check_kernel

PROCESSES = 2


def faults_of(name):
    """The module of a set."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def judged(job):
    """One kernel through the harness, as a line of the results."""
    name, kind, number = job
    fault = getattr(faults_of(name), kind)[number]
    form, kernel = fault["form"], fault["kernel"]
    kernel.reset()
    start = time.process_time()
    report = check_kernel(
        kernel,
        function="attention" if form == "dense" else f"{form}_attention",
        spec="float32",
        supports=set(fault["supports"]),
        diagnose=False,
        max_failures=1,
        progress=False,
    )
    return {
        "kind": kind,
        "name": fault["name"],
        "form": form,
        "tile": fault["tile"],
        "passed": report.passed,
        "found_by": next((outcome.id for outcome in report.failures), None),
        "cpu_seconds": round(time.process_time() - start, 1),
    }


def jobs_of(name, only):
    """All faults, and one correct kernel of each base."""
    module, bases = faults_of(name), set()
    jobs = [(name, "FAULTS", n) for n, fault in enumerate(module.FAULTS) if only in fault["name"]]
    for n, right in enumerate(module.CORRECT):
        if right["base"] not in bases and only in right["name"]:
            bases.add(right["base"])
            jobs.append((name, "CORRECT", n))
    return jobs


def table():
    """Lines of Markdown, a set each."""
    yield (
        "| set | " + " | ".join(("dense", "paged", "packed", "latent")) + " | all | correct kernels failed |"
    )
    yield "|---|" + "---:|" * 6
    for path in sorted(FOLDER.glob("*.quick.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        faults, right = ([row for row in rows if row["kind"] == kind] for kind in ("FAULTS", "CORRECT"))
        cells = []
        for form in ("dense", "paged", "packed", "latent", ""):
            of_form = [row for row in faults if row["form"].startswith(form)]
            cells.append(f"{sum(not row['passed'] for row in of_form)} of {len(of_form)}")
        failed = sum(not row["passed"] for row in right)
        name = path.name.removesuffix(".quick.jsonl")
        yield f"| {name} | {' | '.join(cells)} | {failed} of {len(right)} |"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("set", nargs="?", help="name of a file of held_out/, without .py")
    parser.add_argument("--only", default="", help="kernels whose name contains this")
    parser.add_argument("--table", action="store_true", help="print what the results amount to")
    arguments = parser.parse_args()
    if arguments.set is None and not arguments.table:
        parser.error("name a set, or --table")
    if arguments.set is not None:
        jobs = jobs_of(arguments.set, arguments.only)
        with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
            rows = []
            for row in pool.imap(judged, jobs):
                rows.append(row)
                words = "passes" if row["passed"] else f"fails: {row['found_by']}"
                print(f"{len(rows)} of {len(jobs)} {row['name']} {words}", flush=True)
        if not arguments.only:
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (FOLDER / f"{arguments.set}.quick.jsonl").write_text(lines)
    if arguments.table:
        print("\n".join(table()))


if __name__ == "__main__":
    main()
