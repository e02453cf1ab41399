"""Measure cpu_kernels beside other libraries and the limits of the machine, and write the tables.

    python benchmarks/run.py                        every shape, one thread and all; rewrites tables
    python benchmarks/run.py --main --only decode   some shapes; other rows keep what was measured before
    python benchmarks/run.py --compare COMMIT       a commit against the working tree; writes nothing
    python benchmarks/run.py --render               the tables again, from the results of all hosts

Every contender and every limit is a process of its own (worker.py) that is held to the row's threads; they
take turns while the others are stopped (turns.py), after each result was checked against refattn. Results
are kept for each kind of CPU in benchmarks/results and shown for all of them in benchmarks/results.md and
README.
"""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import hosts
import tables
from compare import compare
from grid import GRID, MAIN
from inputs import folder_for, write_inputs
from peers import CONTENDERS, OURS
from turns import Worker, take_turns

LIMITS = ("fma", "read_by_loads", "read_by_blas")
RESULTS = ROOT / "benchmarks" / "results"


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that workers, which are stopped, end too
    arguments = parse()
    shapes = [
        shape
        for shape in (MAIN if arguments.main or arguments.compare else GRID)
        if arguments.only in f"{shape.kind} {shape}"
    ]
    if arguments.list:
        print(*(f"{shape.kind} {shape}" for shape in shapes), sep="\n")
    elif arguments.compare:
        compare(*([*arguments.compare, None])[:2], shapes, arguments.threads or [1], arguments.rounds or 25)
    else:
        if not arguments.render:
            measure_all(shapes, arguments)
        if arguments.output == RESULTS:
            tables.write(RESULTS, ROOT / "benchmarks" / "results.md", ROOT / "README.md")


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--main", action="store_true", help="only the main shapes, those in README")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="only shapes whose line in --list has this text"
    )
    parser.add_argument(
        "--threads",
        type=lambda text: [int(n) for n in text.split(",")],
        metavar="1,2",
        help="default: 1 and all; comparing: 1",
    )
    parser.add_argument("--rounds", type=int, help="turns of every contender; default 9, comparing 25")
    parser.add_argument(
        "--peers",
        default=",".join(CONTENDERS),
        metavar="torch,numpy",
        help="default: all that are installed; 'none' for ours alone",
    )
    parser.add_argument(
        "--compare", nargs="+", metavar="COMMIT", help="one commit against the working tree, or two commits"
    )
    parser.add_argument("--list", action="store_true", help="print the shapes and stop")
    parser.add_argument(
        "--render", action="store_true", help="write the tables from the results there are and stop"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=RESULTS,
        metavar="FOLDER",
        help="of results; another than the default leaves the tables alone",
    )
    arguments = parser.parse_args()
    if arguments.compare and len(arguments.compare) > 2:
        parser.error("--compare takes one or two commits")
    arguments.peers = [name for name in CONTENDERS if name != OURS and name in arguments.peers.split(",")]
    return arguments


def measure_all(shapes, arguments):
    cpu = hosts.cpu()
    path = arguments.output / f"{hosts.slug(cpu)}.json"
    run = {"time": time.strftime("%Y-%m-%d %H:%M"), "commit": hosts.commit(), "versions": hosts.versions()}
    for threads in arguments.threads or sorted({1, cpu["cpus"]}):
        workers = {name: Worker(name, threads) for name in (*LIMITS, OURS, *arguments.peers)}
        try:
            for shape in shapes:
                row = measure(shape, threads, workers, arguments.rounds or 9)
                keep(path, cpu, run, row)
                print(line(row), file=sys.stderr, flush=True)
        finally:
            for worker in workers.values():
                worker.close()


def measure(shape, threads, workers, rounds, patience=20.0):
    """A row of the results: what every contender and limit took in every round."""
    with folder_for(shape) as folder:
        write_inputs(shape, Path(folder))
        for name, worker in workers.items():
            if name not in LIMITS:
                worker.load(shape, folder)
            elif worker.process is None:
                worker.load(None, folder)
    about = {name: worker.about for name, worker in workers.items()}
    present = {name: worker for name, worker in workers.items() if "failed" not in about[name]}
    answers, others = take_turns(present, rounds, patience)
    told = {**about, **{name: turns[-1] for name, turns in answers.items()}}
    skipped = {name: answer["failed"] for name, answer in told.items() if "failed" in answer}
    if {OURS, *LIMITS} & set(skipped):
        raise SystemExit(f"{shape}: {skipped}")
    times = {
        name: [rounded(turn["seconds"]) for turn in told]
        for name, told in answers.items()
        if name not in skipped
    }
    cpus = {
        name: sum(turn["cpu"] for turn in answers[name]) / sum(turn["wall"] for turn in answers[name])
        for name in times
    }
    return {
        "shape": str(shape),
        "kind": shape.kind,
        "threads": threads,
        "flops": shape.flops,
        "bytes": shape.bytes,
        "others": others,
        "limits": {name: rates(about[name]["work"], times.pop(name)) for name in LIMITS},
        "seconds": times,
        "cpus_used": {name: round(x, 2) for name, x in cpus.items()},
        "bound_used": {name: rounded(about[name]["bound_used"]) for name in times},
        "skipped": skipped,
    }


def rates(work, times):
    return [rounded(work / seconds) for seconds in times]


def rounded(x):
    return float(f"{x:.4g}")


def keep(path, cpu, run, row):
    """Put a row in place of an older one of the same shape and threads; the order is that of the grid."""
    stored = json.loads(path.read_text()) if path.exists() else {"runs": {}, "rows": []}
    rows = {(old["shape"], old["threads"]): old for old in stored["rows"]} | {
        (row["shape"], row["threads"]): {**row, "run": run["time"]}
    }
    order = [str(shape) for shape in GRID]
    rows = sorted(
        (old for old in rows.values() if old["shape"] in order),
        key=lambda old: (order.index(old["shape"]), old["threads"]),
    )
    runs = {
        time: about
        for time, about in {**stored["runs"], run["time"]: run}.items()
        if any(old["run"] == time for old in rows)
    }
    head = json.dumps({"cpu": cpu, "runs": runs}, indent=1)[:-2]
    text = head + ',\n "rows": [\n' + ",\n".join("  " + json.dumps(old) for old in rows) + "\n ]\n}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(text)
    os.replace(unfinished, path)


def line(row):
    parts = [
        f"{row['shape']}, {row['threads']} thread(s): {tables.brief(row)}",
        f"readings {tables.reading_apart(row):+.1%}",
        f"others {row['others']} CPUs",
    ]
    times = ", ".join(f"{name} {tables.milliseconds(times)}" for name, times in row["seconds"].items())
    return "; ".join(
        [
            *parts,
            f"ms: {times}",
            *(f"without {name}: {reason}" for name, reason in row["skipped"].items()),
            *tables.doubts(row),
        ]
    )


if __name__ == "__main__":
    main()
