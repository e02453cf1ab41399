"""Measure cpu_kernels beside other libraries and the limits of the machine, and write the tables.

    python benchmarks/run.py [--quick] [--peers torch,numpy] [--threads 1,2] [--clock wall|cpu] [--output benchmarks/results]

Every contender and the limits take turns in one process (A B C A B C ...), after its result was checked on some rows against refattn. Reported is the
minimum over the turns. The clock "cpu" counts, with one thread, processor time of the calling thread: what "wall" would be on a quiet machine. Peers that
compute in threads of their own cannot be measured so and are left out there.
Writes <output>.json and <output>.md, and puts the main shapes between the benchmark markers of README.md if it has them.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
MARKERS = ("<!-- benchmarks:begin -->", "<!-- benchmarks:end -->")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="the main shapes only")
    parser.add_argument("--peers", help="comma-separated; default all that are installed")
    parser.add_argument("--threads", help="comma-separated thread counts; default 1 and all")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--seconds", type=float, default=2.0, help="time spent on each shape and thread count, about")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    from grid import GRID, QUICK
    from peers import IN_CALLING_THREAD, PEERS

    from cpu_kernels import get_num_threads

    threads = [int(n) for n in arguments.threads.split(",")] if arguments.threads else sorted({1, get_num_threads()})
    peers = {name: PEERS[name] for name in (arguments.peers.split(",") if arguments.peers else PEERS)}
    report = {"machine": machine(), "clock": arguments.clock, "measured": []}
    for shape in dict.fromkeys(QUICK if arguments.quick else GRID):
        for count in threads:
            clock, present = time.perf_counter, peers
            if arguments.clock == "cpu" and count == 1:
                clock, present = time.thread_time, {name: make for name, make in peers.items() if name in IN_CALLING_THREAD}
            report["measured"].append(measure(shape, count, present, clock, arguments.seconds))
            print(line(report["measured"][-1]), flush=True)
    arguments.output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    arguments.output.with_suffix(".md").write_text(markdown(report))
    main_shapes = {str(shape) for shape in QUICK}
    into_readme(markdown({**report, "measured": [row for row in report["measured"] if row["shape"] in main_shapes]}))


def measure(shape, threads, peers, clock, seconds):
    """Best time of every contender, and the limits in the same turns."""
    from limits import run_peak, run_read

    from cpu_kernels import attention, num_threads

    rng = np.random.default_rng(0)
    draw = lambda *size: rng.standard_normal(size, dtype=np.float32)
    query = draw(shape.batch, shape.q_heads, shape.q_len, shape.head_dim)
    key = draw(shape.batch, shape.kv_heads, shape.kv_len, shape.head_dim)
    value = key[..., : shape.v_head_dim] if shape.v_head_dim else draw(shape.batch, shape.kv_heads, shape.kv_len, shape.head_dim)

    def ours():
        with num_threads(threads):
            return attention(query, key, value, causal=shape.causal)

    contenders, skipped = {"cpu_kernels": ours}, {}
    for name, make in peers.items():
        try:
            contenders[name] = make(query, key, value, shape, threads)
            contenders[name]()
        except Exception as error:  # a library that is missing or refuses the shape is left out, and said so
            contenders.pop(name, None)
            skipped[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:120]
    largest = {name: check_rows(function(), query, key, value, shape) for name, function in contenders.items()}
    times = {name: [] for name in (*contenders, "peak", "read")}
    limits = {"peak": run_peak, "read": run_read}
    work = {}
    slow = set()
    began = time.perf_counter()
    turn = 0
    while turn < 3 or (time.perf_counter() - began < seconds and turn < 200):
        for name in times:
            if name in slow and turn >= 2:
                continue
            with num_threads(threads):
                start = clock()
                work[name] = (contenders.get(name) or limits[name])()
                times[name].append(clock() - start)
            if times[name][-1] > seconds / 4:
                slow.add(name)
        turn += 1
    best = {name: min(values) for name, values in times.items()}
    return {
        "shape": str(shape), "kind": shape.kind, "threads": threads, "turns": turn, "milliseconds": {n: 1e3 * best[n] for n in contenders},
        "peak_gflops": work["peak"] / best["peak"] * 1e-9, "read_gbytes": work["read"] / best["read"] * 1e-9,
        "gflops": shape.flops / best["cpu_kernels"] * 1e-9, "gbytes": shape.bytes / best["cpu_kernels"] * 1e-9, "error": largest, "skipped": skipped,
    }  # fmt: skip


def check_rows(output, query, key, value, shape, rows=3):
    """Largest error on a few rows of the first and the last group; raises if it is beyond what float32 with reordered sums allows."""
    from refattn.oracle import KernelSpec, error_bound

    group = shape.q_heads // shape.kv_heads
    picked = np.unique(np.linspace(0, shape.q_len - 1, rows).astype(int))
    worst = 0.0
    for batch, kv_head in {(0, 0), (shape.batch - 1, shape.kv_heads - 1)}:
        heads = slice(kv_head * group, (kv_head + 1) * group)
        arrays = query[batch, heads][:, picked], key[batch, kv_head : kv_head + 1], value[batch, kv_head : kv_head + 1]
        mask = np.arange(shape.kv_len) <= picked[:, None] if shape.causal else None
        spec = KernelSpec.flash("float32").replace(scaled_query="float32", exp_error=2.0**-20)  # peers use quicker exponentials than ours
        bound = error_bound(*arrays, mask=mask, spec=spec, kind="hard")
        error = np.abs(output[batch, heads][:, picked] - bound.output)
        if not (error <= bound.output_hard).all():
            raise AssertionError(f"{shape}: error {error.max():.1e} beyond the bound {bound.output_hard.min():.1e}")
        worst = max(worst, float(error.max()))
    return worst


def best_peer(row):
    others = {name: ms for name, ms in row["milliseconds"].items() if name != "cpu_kernels"}
    name = min(others, key=others.get) if others else None
    return name, (others[name] / row["milliseconds"]["cpu_kernels"] if name else float("nan"))


def line(row):
    name, ratio = best_peer(row)
    times = ", ".join(f"{n} {ms:.2f}" for n, ms in row["milliseconds"].items())
    return (
        f"{row['shape']}, {row['threads']} thread(s): {row['gflops'] / row['peak_gflops']:.2f} of peak, "
        f"{row['gbytes'] / row['read_gbytes']:.2f} of read; {ratio:.2f}x {name}; ms: {times}"
    )


def markdown(report):
    about = report["machine"]
    text = [f"{about['cpu']}, {about['cores']} cores; {about['versions']}; commit {about['commit']}; {report['clock']} clock; float32.", ""]
    for kind, limit, reached, unit in (("prefill", "peak_gflops", "gflops", "FMA peak"), ("decode", "read_gbytes", "gbytes", "streaming read")):
        names = list(dict.fromkeys(name for row in report["measured"] if row["kind"] == kind for name in row["milliseconds"]))
        extra = ["of FMA peak"] if kind == "decode" else []
        text += [f"| {kind} | threads | of {unit} | {''.join(e + ' | ' for e in extra)}to best peer | {' | '.join(n + ', ms' for n in names)} |"]
        text += ["|" + "---|" * (4 + len(extra) + len(names))]
        for row in report["measured"]:
            if row["kind"] == kind:
                name, ratio = best_peer(row)
                more = [f"{row['gflops'] / row['peak_gflops']:.2f}"] if extra else []
                cells = [f"{row['milliseconds'][n]:.2f}" if n in row["milliseconds"] else "-" for n in names]
                fields = [row["shape"], str(row["threads"]), f"{row[reached] / row[limit]:.2f}", *more, f"{ratio:.2f}x {name}", *cells]
                text.append("| " + " | ".join(fields) + " |")
        text.append("")
    return "\n".join(text)


def machine():
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [row.split(":")[1].strip() for row in Path("/proc/cpuinfo").read_text().splitlines() if row.startswith("model name")]
        cpu = names[0] if names else cpu
    import numba

    versions = [f"Python {platform.python_version()}", f"NumPy {np.__version__}", f"Numba {numba.__version__}"]
    for name in ("torch", "onnxruntime", "openvino", "jax"):
        if name in sys.modules:
            versions.append(f"{name} {sys.modules[name].__version__}")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return {"cpu": cpu, "cores": os.cpu_count(), "versions": ", ".join(versions), "commit": commit}


def into_readme(table):
    readme = ROOT / "README.md"
    text = readme.read_text() if readme.exists() else ""
    if all(marker in text for marker in MARKERS):
        before, rest = text.split(MARKERS[0])
        readme.write_text(f"{before}{MARKERS[0]}\n{table}\n{MARKERS[1]}{rest.split(MARKERS[1])[1]}")


if __name__ == "__main__":
    main()
