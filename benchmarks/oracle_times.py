"""How long `check` and `diagnose` take at the sizes kernels really have, beside attention in NumPy.

    python benchmarks/oracle_times.py                     every case
    python benchmarks/oracle_times.py --only "small"      cases whose name contains this
    python benchmarks/oracle_times.py --diagnose          also `diagnose` of a right and of a wrong result
    python benchmarks/oracle_times.py --no-numba          as where Numba is not installed
    python benchmarks/oracle_times.py --threads 2 --write also into oracle_results.json and .md

Every case runs in a process of its own: one call to warm up, then the one that is timed. What is judged is
attention in float32, rounded to bfloat16: at least as exact as a flash kernel in bfloat16, which `check`
takes it for, as it is given arrays and options only. The wrong result misses the last key of every row.
NumPy: attention of whole matrices in float64, by head where the scores would take more than 512 MiB.
Memory: the largest resident size during the call above that before it.
"""

import argparse
import dataclasses
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import hosts
import oracle_results

WHOLE_BYTES = 2**29  # scores that NumPy's attention holds at once
DIAGNOSE_TARGET = 30.0


@dataclass(frozen=True)
class Case:
    """A call of bfloat16 arrays, and the seconds that its check should take on two quiet cores."""

    name: str
    form: str  # "dense", "packed", "paged", "absorb", "expand"
    batch: int
    heads: int
    kv_heads: int
    q_len: int
    kv_len: int
    target: float
    causal: bool = False
    dim: int = 128
    page_size: int = 16
    rows: int | None = None

    def shrunk(self, by):
        """The same with shorter sequences."""
        shorter = lambda length: length if length == 1 else max(2, length // by)
        return dataclasses.replace(self, q_len=shorter(self.q_len), kv_len=shorter(self.kv_len))


CASES = (
    Case("dense, causal", "dense", 2, 32, 8, 4096, 4096, 30.0, causal=True),
    Case("dense, causal, rows=64", "dense", 2, 32, 8, 4096, 4096, 2.0, causal=True, rows=64),
    Case("one row, long", "dense", 1, 32, 8, 1, 32768, 1.0),
    Case("paged decode", "paged", 64, 32, 8, 1, 4096, 3.0),
    Case("packed decode", "packed", 64, 32, 8, 1, 4096, 3.0),
    Case("latent decode, absorbed", "absorb", 1, 128, 1, 1, 8192, 4.0),
    Case("latent decode, expanded", "expand", 1, 128, 1, 1, 8192, 10.0),
    Case("small", "dense", 2, 8, 2, 128, 200, 0.03, dim=64),
)
RANK, ROPE = 512, 64  # of latent attention, with `dim` as nope and value width


def call_of(case, seed=0):
    """(arrays, options) of a case: N(0, 1) in bfloat16."""
    import ml_dtypes

    rng = np.random.default_rng(seed)
    drawn = lambda *shape: rng.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16)
    c = case
    if c.form == "dense":
        sides = (c.heads, c.q_len), (c.kv_heads, c.kv_len), (c.kv_heads, c.kv_len)
        return [drawn(c.batch, *side, c.dim) for side in sides], {"causal": True} if c.causal else {}
    if c.form == "packed":
        lengths = {"cu_q": c.q_len, "cu_kv": c.kv_len}
        sides = (c.heads, c.q_len), (c.kv_heads, c.kv_len), (c.kv_heads, c.kv_len)
        arrays = [drawn(heads, c.batch * length, c.dim) for heads, length in sides]
        return arrays, {name: np.arange(c.batch + 1) * length for name, length in lengths.items()}
    if c.form == "paged":
        each = -(-c.kv_len // c.page_size)
        pages = rng.permutation(c.batch * each).reshape(c.batch, each)
        pools = [drawn(pages.size, c.kv_heads, c.page_size, c.dim) for _ in range(2)]
        lengths = np.full(c.batch, c.kv_len)
        return [drawn(c.batch, c.heads, c.q_len, c.dim), *pools], {
            "block_table": pages,
            "kv_lengths": lengths,
        }
    weight = lambda: (drawn(c.heads, c.dim, RANK) / np.float32(math.sqrt(RANK))).astype(ml_dtypes.bfloat16)
    queries = [drawn(c.heads, c.q_len, width) for width in (c.dim, ROPE)]
    return [*queries, drawn(c.kv_len, RANK), drawn(c.kv_len, ROPE), weight(), weight()], {"form": c.form}


FUNCTIONS = {
    "dense": "attention",
    "packed": "packed_attention",
    "paged": "paged_attention",
    "absorb": "latent_attention",
    "expand": "latent_attention",
}


# attention in NumPy


def numpy_attention(case, arrays, options, dtype, missing=0):
    """(output, lse) in `dtype`; every row misses its last `missing` keys."""
    if case.form in ("absorb", "expand"):
        return _latent(case, arrays, dtype, missing)
    if case.form == "dense":
        return _dense(*arrays, dtype, case.causal, missing)
    if case.form == "paged":
        query, *pools = arrays
        joined = lambda pool, pages: np.moveaxis(pool[pages], 1, 0).reshape(case.kv_heads, -1, case.dim)
        parts = [
            (query[b], *(joined(pool, pages)[:, : case.kv_len] for pool in pools))
            for b, pages in enumerate(options["block_table"])
        ]
    else:
        cuts = zip(
            *(np.split(np.arange(x[-1]), x[1:-1]) for x in (options["cu_q"], options["cu_kv"])), strict=True
        )
        query, key, value = arrays
        at = lambda array, rows: array[:, rows[0] : rows[-1] + 1]
        parts = [(at(query, q), at(key, k), at(value, k)) for q, k in cuts]
    results = [_dense(*part, dtype, False, missing) for part in parts]
    join = np.stack if case.form == "paged" else lambda parts: np.concatenate(parts, axis=1)
    return tuple(join(result) for result in zip(*results, strict=True))


def _dense(query, key, value, dtype, causal, missing):
    if query.ndim == 4:
        parts = [_dense(*part, dtype, causal, missing) for part in zip(query, key, value, strict=True)]
        return tuple(np.stack(result) for result in zip(*parts, strict=True))
    heads, q_len, dim = query.shape
    group, kv_len = heads // len(key), key.shape[1]
    at_once = heads if heads * q_len * kv_len * np.dtype(dtype).itemsize <= WHOLE_BYTES else 1
    last = np.full(q_len, kv_len - 1) if not causal else kv_len - q_len + np.arange(q_len)
    hidden = np.arange(kv_len) > last[:, None] - missing
    hidden = hidden if hidden.any() else None
    output, lse = np.empty((heads, q_len, value.shape[2]), dtype), np.empty((heads, q_len), dtype)
    for first in range(0, heads, at_once):
        of = slice(first, first + at_once)
        kv = slice(first // group, (first + at_once - 1) // group + 1)
        keys, values = (side[kv].astype(dtype) for side in (key, value))
        queries = query[of].astype(dtype).reshape(len(keys), -1, q_len, dim)
        scores = queries @ (keys.swapaxes(-1, -2) / np.sqrt(dtype(dim)))[:, None]
        lse[of] = _softmax(scores, hidden).reshape(-1, q_len)
        output[of] = (scores @ values[:, None]).reshape(-1, q_len, value.shape[2])
    return output, lse


def _softmax(scores, hidden):
    """Turn scores into weights where they stand; returns the lse."""
    if hidden is not None:
        np.copyto(scores, -np.inf, where=hidden)
    top = scores.max(axis=-1, keepdims=True)
    top[top == -np.inf] = 0
    scores -= top
    np.exp(scores, out=scores)
    total = scores.sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = (np.log(total) + top)[..., 0]
    scores /= np.where(total == 0, 1, total)
    return lse


def _latent(case, arrays, dtype, missing):
    q_nope, q_rope, latent, rope, w_uk, w_uv = (array.astype(dtype) for array in arrays)
    scale = 1 / np.sqrt(dtype(q_nope.shape[-1] + q_rope.shape[-1]))
    hidden = np.arange(len(latent)) >= len(latent) - missing if missing else None
    output, lse = np.empty((*q_nope.shape[:2], w_uv.shape[1]), dtype), np.empty(q_nope.shape[:2], dtype)
    if case.form == "absorb":
        scores = ((q_nope @ w_uk) @ latent.T + q_rope @ rope.T) * scale
        lse[:] = _softmax(scores, hidden)
        output[:] = (scores @ latent) @ w_uv.swapaxes(-1, -2)
        return output, lse
    for head in range(len(q_nope)):
        scores = (q_nope[head] @ (latent @ w_uk[head].T).T + q_rope[head] @ rope.T) * scale
        lse[head] = _softmax(scores, hidden)
        output[head] = scores @ (latent @ w_uv[head].T)
    return output, lse


# measuring, in a process of its own


def timed(call):
    """(result, figures) of a call: seconds on the clock and of all cores, MiB above what was resident."""
    forget_peak()
    before, started, busy = status("VmRSS"), time.perf_counter(), time.process_time()
    result = call()
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    peak = status("VmHWM")
    return result, {
        "seconds": seconds,
        "core seconds": busy,
        "MiB": None if peak is None else (peak - before) / 1024,
    }


def forget_peak():
    """Let the largest resident size count from now on (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def status(name):
    """A size of this process in KiB, None where the system does not tell."""
    file = Path("/proc/self/status")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)


def measure(case, with_diagnosis=False, warm=True):
    """The row of one case, as plain values."""
    import ml_dtypes

    from refattn.oracle import check, diagnose

    arrays, options = call_of(case)
    as_kernel = lambda output, lse: (output.astype(ml_dtypes.bfloat16), lse.astype(np.float32))
    right = as_kernel(*numpy_attention(case, arrays, options, np.float32))
    own = {"lse": right[1], "rows": case.rows, "function": FUNCTIONS[case.form], "progress": False}
    judge = lambda: check(right[0], *arrays, **own, **options)
    if warm:
        judge()
    report, figures = timed(judge)
    row = {"case": case.name, "target": case.target, "check": figures, "verdict": report.summary}
    row["reference"] = report.reference
    if with_diagnosis:
        wrong = as_kernel(*numpy_attention(case, arrays, options, np.float32, missing=1))
        for name, (output, lse) in (("diagnose right", right), ("diagnose wrong", wrong)):
            found, row[name] = timed(
                lambda output=output, lse=lse: diagnose(output, *arrays, lse=lse, **options)
            )
            first = f": {found.findings[0]}" if found.findings else ""
            row[name]["answer"] = found.verdict + first
    row["NumPy"] = timed(lambda: numpy_attention(case, arrays, options, np.float64))[1]
    return row


def without_numba():
    """As where Numba is not installed."""
    sys.modules["numba"] = sys.modules["llvmlite"] = None


def run(case, options):
    """`measure` in a fresh interpreter."""
    command = [sys.executable, __file__, "--worker", case.name, "--shrink", str(options.shrink)]
    command += ["--diagnose"] * options.diagnose + ["--no-numba"] * options.no_numba
    command += ["--no-warm-up"] * options.no_warm_up
    environment = dict(os.environ)
    if options.threads:
        names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
        environment |= dict.fromkeys(names, str(options.threads))
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def in_words(row):
    """One line of the table on the terminal."""
    words = [
        f"{row['case']:26s} {_seconds(row['check'])} {row['target']:7.2f} {row['NumPy']['seconds']:8.3f}"
    ]
    words += [_seconds(row[name]) for name in ("diagnose right", "diagnose wrong") if name in row]
    answers = [f"  {row[name]['answer']}" for name in ("diagnose right", "diagnose wrong") if name in row]
    return "\n".join([f"{' '.join(words)}  {row['verdict']}, {row['reference']}", *answers])


def _seconds(figures):
    memory = "" if figures["MiB"] is None else f"{figures['MiB']:.0f}"
    return f"{figures['seconds']:8.3f} {figures['core seconds']:8.3f} {memory:>6s}"


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--diagnose", action="store_true", help="time `diagnose` too")
    parser.add_argument("--no-numba", action="store_true", help="as where Numba is not installed")
    parser.add_argument("--no-warm-up", action="store_true", help="time the first call")
    parser.add_argument("--threads", type=int, help="of NumPy's products and of Numba")
    parser.add_argument("--shrink", type=int, default=1, metavar="N", help="lengths over N, for a try")
    parser.add_argument("--write", action="store_true", help="also into oracle_results.json and .md")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        if options.no_numba:
            without_numba()
        (case,) = (case for case in CASES if case.name == options.worker)
        print(json.dumps(measure(case.shrunk(options.shrink), options.diagnose, not options.no_warm_up)))
        return 0
    cases = [case for case in CASES if options.only in case.name]
    if not cases:
        parser.error(f"--only must be part of the name of a case; got {options.only!r}")
    if options.write and options.shrink != 1:
        parser.error("--write must come without --shrink")
    head = f"{'case':26s} {'check s':>8s} {'core s':>8s} {'MiB':>6s} {'target':>7s} {'NumPy s':>8s}"
    if options.diagnose:
        head += f" {'right s':>8s} {'core s':>8s} {'MiB':>6s} {'wrong s':>8s} {'core s':>8s} {'MiB':>6s}"
    print(f"{head}  verdict, reference")
    rows = []
    for case in cases:
        rows.append(run(case, options))
        print(in_words(rows[-1]), flush=True)
    if options.write:
        write(rows, options)
    return 0


def write(rows, options):
    """Keep rows under the machine and the way they were run; those of other cases stay."""
    folder = Path(__file__).resolve().parent
    known = json.loads((folder / "oracle_results.json").read_text()).get("times", {})
    about = hosts.cpu()
    way = f"{about['cpus']} CPUs" + (f", {options.threads} threads" if options.threads else "")
    way += ", without Numba" if options.no_numba else ""
    key = f"{about['name']}, {way}"
    kept = {row["case"]: row for row in known.get(key, {}).get("rows", [])} | {
        row["case"]: row for row in rows
    }
    ordered = [kept[case.name] for case in CASES if case.name in kept]
    known[key] = {"rows": ordered, "versions": hosts.versions(), "commit": hosts.commit()}
    oracle_results.write({"times": known}, folder)


if __name__ == "__main__":
    sys.exit(main())
