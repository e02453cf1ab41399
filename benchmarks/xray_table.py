"""How often `xray` says where and how a kernel is wrong, on faults that were new to it.

    python benchmarks/xray_table.py run SET.py              first answers, into held_out/SET.xray.jsonl
    python benchmarks/xray_table.py run SET.py --diagnose   those of `diagnose`, which may call the kernel
    python benchmarks/xray_table.py run SET.py --outputs    those of `diagnose`, from one result
    python benchmarks/xray_table.py sheet SET               what a judge reads
    python benchmarks/xray_table.py table                   all sets and ways that were judged

A set is a Python file, in held_out or elsewhere (`--name` gives it another name), with FAULTS = [(name,
sentence, tags, build), ...]. `build()` gives a wrong kernel, arrays and options; the sentence says what is
wrong with it; tags hold its form, dtype, and whether it returns lse. A judge, who did not write the
instrument, marks each first answer in held_out/SET.WAY.marks.json, {name: mark}.
"""

import argparse
import datetime
import importlib.util
import json
import math
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import hosts
from oracle_results import MARKS, xray_table

from refattn.oracle.diagnosis.search import diagnose
from refattn.oracle.imaging.xray import xray
from refattn.oracle.mistakes.wrong_kernel import checked_call, part_outlines

FOLDER = Path(__file__).resolve().parent / "held_out"


# ways to ask: each gives (verdict, first answer, the whole text)


def ask_xray(kernel, arrays, options):
    result = xray(kernel, *arrays, **options)
    first = result.findings[0].says if result.findings else result.text()
    return result.verdict, first, result.text()


def ask_diagnose(kernel, arrays, options):
    return _answer(diagnose(kernel, *arrays, **options))


def ask_outputs(kernel, arrays, options):
    returned = kernel(*arrays, **options)
    output, lse = returned if isinstance(returned, tuple) else (returned, None)
    return _answer(diagnose(output, *arrays, lse=lse, **options))


def _answer(found):
    """The first explanation; where nothing explains it, all that is said about the place."""
    first = str(found.findings[0]) if found.verdict == "explained" else str(found)
    return found.verdict, first, str(found)


WAYS = {"xray": ask_xray, "diagnose": ask_diagnose, "outputs": ask_outputs}


# run


def load_set(path):
    module_spec = importlib.util.spec_from_file_location(f"held_out_{path.stem}", path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module.FAULTS


def results_file(name, way):
    return FOLDER / f"{name}.{way}.jsonl"


def read_results(name, way):
    """The host of the run, and a row a fault."""
    path = results_file(name, way)
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return (lines[0], lines[1:]) if lines else (None, [])


def least_calls(arrays, options):
    """Calls that read every weight: S keys, E at a time."""
    checked = checked_call(*arrays, **options)
    keys = max((part.kv_len for part in part_outlines(checked)), default=0)
    return math.ceil(keys / checked.output_shape[-1])


def ask(way, fault):
    """The row of one fault."""
    name, sentence, tags, build = fault
    kernel, arrays, options = build()
    calls = 0

    def counted(*arrays, **options):
        nonlocal calls
        calls += 1
        return kernel(*arrays, **options)

    started = time.monotonic()
    try:
        verdict, first, text = WAYS[way](counted, arrays, options)
    except Exception as error:
        verdict, first, text = "crash", f"{type(error).__name__}: {error}", traceback.format_exc()
    seconds = round(time.monotonic() - started, 3)
    about = {key: tags[key] for key in ("form", "dtype", "lse")}
    row = {"name": name, "sentence": sentence} | about
    row |= {"verdict": verdict, "first": first, "text": text, "seconds": seconds}
    return row | {"calls": calls, "least calls": least_calls(arrays, options)}


def run(path, name, way, only=()):
    """Ask about every fault that has no row yet; rows are appended as they come."""
    FOLDER.mkdir(exist_ok=True)
    known = {row["name"] for row in read_results(name, way)[1]}
    faults = [fault for fault in load_set(path) if fault[0] not in known and (not only or fault[0] in only)]
    with results_file(name, way).open("a") as file:
        if file.tell() == 0:
            file.write(json.dumps(host()) + "\n")
        for n, fault in enumerate(faults, 1):
            row = ask(way, fault)
            file.write(json.dumps(row) + "\n")
            file.flush()
            about = f"{row['verdict']}, {row['calls']} calls, {row['seconds']:.1f} s"
            print(f"{n} of {len(faults)} {row['name']}: {about}", file=sys.stderr, flush=True)


def host():
    """Machine, versions and date of a run."""
    day = datetime.date.today().isoformat()
    return {"cpu": hosts.cpu()["name"], "versions": hosts.versions(), "commit": hosts.commit(), "date": day}


# judge


def sheet(name, way):
    """What a judge reads: the fault beside the first answer, nothing else."""
    rules = "\n".join(f"    {mark:8s} {rule}" for mark, rule in MARKS.items())
    file = marks_file(name, way).name
    lines = [
        f"Marks go into {file} as {{name: mark}}, one of\n\n{rules}\n\n"
        "Place: which rows, keys, heads, sequences, tiles, columns. Nature: what happens there. The "
        "first answer alone counts."
    ]
    for row in read_results(name, way)[1]:
        lines.append(f"{row['name']}\n  fault:  {row['sentence']}\n  answer: {row['first']}")
    return "\n\n".join(lines)


def marks_file(name, way):
    return FOLDER / f"{name}.{way}.marks.json"


def read_marks(name, way):
    """{fault: mark}; every one that was run has one."""
    marks = json.loads(marks_file(name, way).read_text())
    asked = [row["name"] for row in read_results(name, way)[1]]
    if unmarked := sorted({*asked} ^ {*marks}):
        raise ValueError(
            f"marks must be of the faults that were run; got {', '.join(unmarked)} in one only."
        )
    if unknown := sorted({*marks.values()} - {*MARKS}):
        raise ValueError(f"marks must be of {', '.join(MARKS)}; got {', '.join(unknown)}.")
    return marks


# table


def judged():
    """(set, way) of all that was judged."""
    files = sorted(FOLDER.glob("*.marks.json"))
    return [tuple(file.name.removesuffix(".marks.json").rsplit(".", 1)) for file in files]


def table():
    """A row a set, a way and a group of faults (all, by dtype, by form), for `oracle_results`."""
    rows = []
    for name, way in judged():
        about, results = read_results(name, way)
        marks = read_marks(name, way)
        groups = {"all": results}
        for key in ("dtype", "form"):
            for value in sorted({row[key] for row in results}):
                groups[value] = [row for row in results if row[key] == value]
        for group, members in groups.items():
            rows.append(
                {"set": name, "way": way, "group": group} | summary(members, marks) | {"host": about}
            )
    return rows


def summary(results, marks):
    """Marks, times and calls of some faults."""
    counts = Counter(marks[row["name"]] for row in results)
    seconds = [row["seconds"] for row in results]
    calls = np.array([(row["calls"], row["calls"] - row["least calls"]) for row in results])
    return {
        "faults": len(results),
        **{mark: counts[mark] for mark in MARKS},
        "crashes": sum(row["verdict"] == "crash" for row in results),
        "median seconds": float(np.median(seconds)),
        "largest seconds": max(seconds),
        "median calls": float(np.median(calls[:, 0])),
        "median calls beyond the least": float(np.median(calls[:, 1])),
    }


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("run", "sheet", "table"))
    parser.add_argument("set", nargs="?", help="file of the faults; for the sheet its name is enough")
    parser.add_argument("--name", help="of the set; default: that of its file")
    parser.add_argument("--diagnose", dest="way", action="store_const", const="diagnose", default="xray")
    parser.add_argument("--outputs", dest="way", action="store_const", const="outputs")
    parser.add_argument("--only", nargs="+", default=(), help="names of faults")
    options = parser.parse_args(arguments)
    if options.what == "table":
        print("\n".join(xray_table(table())))
        return 0
    if options.set is None:
        parser.error(f"{options.what} needs a set")
    name = options.name or Path(options.set).stem
    if options.what == "run":
        run(Path(options.set), name, options.way, options.only)
    else:
        print(sheet(name, options.way))
    return 0


if __name__ == "__main__":
    sys.exit(main())
