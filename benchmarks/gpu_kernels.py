"""The oracle on kernels of a GPU: which pass, which planted faults are found and named, in what time.

    python benchmarks/gpu_kernels.py                  on the GPU, at most 8 minutes
    python benchmarks/gpu_kernels.py --device cpu     small, on CPU tensors
    python benchmarks/gpu_kernels.py --seconds 120 --json results.json

Every backend of torch's `scaled_dot_product_attention` that this build has, and a flash kernel of our own,
whole and with faults planted, go through `check` (bfloat16, 2 x 32/8 heads x 4096 x 128, causal, 64 rows of
each head; queries, keys, values and outputs stay tensors), `diagnose` of the same result, and
`check_kernel(arrays="torch", seconds=20)`, which stops after three failures. Kernels are taken in turn until
the time is over; the table says what was left out. On a GPU our kernel is the one in Triton
(`triton_flash.py`), elsewhere its tiles are run one after another by torch (`tiled_flash.py`).
"""

import argparse
import json
import platform
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import tiled_flash

from refattn.oracle import check, check_kernel, diagnose

SECONDS = 8 * 60.0
DIAGNOSE_SECONDS = 15.0
HARNESS_SECONDS = 20.0  # for tests of `check_kernel`, those that find most for their cost first
MOST_FAILURES = 3  # after which it has seen enough
HEAD_DIM = 64  # of check_kernel


@dataclass(frozen=True)
class Size:
    """A causal call, and the rows of each head that `check` looks at."""

    batch: int
    heads: int
    kv_heads: int
    length: int
    head_dim: int
    rows: int

    def __str__(self):
        return (
            f"{self.batch} x {self.heads}/{self.kv_heads} heads x {self.length} x {self.head_dim}, "
            f"{self.rows} rows of each head"
        )


REAL = Size(2, 32, 8, 4096, 128, 64)
SMALL = Size(1, 4, 2, 700, 32, 24)


@dataclass
class Row:
    """What was found of one kernel; times in seconds."""

    kernel: str
    right: bool
    run: float | None = None
    check: str = ""
    check_seconds: float | None = None
    diagnosis: str = ""
    diagnose_seconds: float | None = None
    harness: str = ""
    harness_seconds: float | None = None
    failed_as_it_should: bool | None = None


def sdpa_kernels(torch, device):
    """Name and kernel of each backend of scaled_dot_product_attention that runs on this device."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    names = {
        "math": "MATH",
        "flash": "FLASH_ATTENTION",
        "efficient": "EFFICIENT_ATTENTION",
        "cudnn": "CUDNN_ATTENTION",
    }
    for name, member in names.items():
        backend = getattr(SDPBackend, member, None)
        if backend is None:
            continue

        def kernel(query, key, value, *, causal=False, scale=None, backend=backend):
            if causal and query.shape[-2] != key.shape[-2]:
                raise NotImplementedError("is_causal of torch is top-left")
            if query.ndim != 4:
                raise NotImplementedError("no batch axis, or two")
            if key.shape[-3] != query.shape[-3]:
                key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
            with sdpa_kernel(backend), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns of each call that a backend does not take
                try:
                    return torch.nn.functional.scaled_dot_product_attention(
                        query, key, value, is_causal=causal, scale=scale
                    )
                except RuntimeError as error:
                    if "No available kernel" in str(error):  # what the backend does not take
                        raise NotImplementedError("no kernel of this backend") from error
                    raise

        kernel.__name__ = f"sdpa_{name}"
        probe = torch.ones(1, 1, 64, 64, dtype=torch.bfloat16, device=device)
        try:
            kernel(probe, probe, probe, causal=True)
        except (NotImplementedError, RuntimeError):
            continue
        yield f"torch SDPA, {name}", kernel


def kernels(torch, device):
    """(name, kernel, whether it is right): backends of torch, then our flash kernel, whole and faulty."""
    for name, kernel in sdpa_kernels(torch, device):
        yield name, kernel, True
    flash, where = tiled_flash.kernel, "tile by tile in torch"
    if device.type == "cuda":
        try:
            import triton_flash

            flash, where = triton_flash.kernel, "Triton"
        except ImportError as error:
            print(f"no Triton here ({error}); the flash kernel runs tile by tile in torch")
    yield f"flash, {where}", flash, True
    for fault, words in tiled_flash.FAULTS.items():
        yield f"flash, {where}: {words}", tiled_flash.with_fault(flash, fault), False


def inputs(torch, device, size):
    """query, key, value in bfloat16, from one seed whatever the device."""
    numbers = torch.Generator().manual_seed(0)
    shapes = [(size.batch, heads, size.length, size.head_dim) for heads in (size.heads, size.kv_heads)]
    arrays = [torch.randn(shapes[n], generator=numbers) for n in (0, 1, 1)]
    return [x.to(device=device, dtype=torch.bfloat16) for x in arrays]


def timed(function):
    started = time.perf_counter()
    found = function()
    return found, time.perf_counter() - started


def synchronised(torch, device, function):
    def run():
        result = function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return result

    return run


def look_at(torch, device, size, name, kernel, right, only=None):
    """All figures of one kernel; `only` is that of `check_kernel`."""
    row = Row(name, right)
    arrays = inputs(torch, device, size)
    run = synchronised(torch, device, lambda: kernel(*arrays, causal=True))
    output = run()  # a first call compiles
    output, row.run = timed(run)
    report, row.check_seconds = timed(
        lambda: check(output, *arrays, causal=True, rows=size.rows, progress=False)
    )
    row.check = report.summary
    found, row.diagnose_seconds = timed(
        lambda: diagnose(
            output, *arrays, causal=True, seconds=DIAGNOSE_SECONDS, near=report.output.worst, progress=False
        )
    )
    row.diagnosis = f"{found.verdict}: {str(found).splitlines()[0]}"
    tested, row.harness_seconds = timed(
        lambda: check_kernel(
            kernel,
            arrays="torch",
            device=device,
            spec="bfloat16",
            head_dims=HEAD_DIM,
            hides_nan=False,
            supports={"causal"},
            only=only,
            max_failures=MOST_FAILURES,
            seconds=HARNESS_SECONDS,
            diagnose=False,
            progress=False,
        )
    )
    row.harness = tested.summary.partition(": ")[2]
    row.failed_as_it_should = right == bool(report.passed and tested.passed)
    return row


def measure(torch, device, size, chosen, seconds, only=None):
    """Rows of the chosen kernels, in turn, and the names of those for which there was no time."""
    started, longest = time.perf_counter(), 0.0
    rows, left_out = [], []
    for name, kernel, right in chosen:
        before = time.perf_counter()
        if before - started + longest > seconds:
            left_out.append(name)
            continue
        row = look_at(torch, device, size, name, kernel, right, only)
        took = time.perf_counter() - before
        longest = max(longest, took)
        rows.append(row)
        print(f"{took:6.1f} s  {row.kernel}: {row.check}", flush=True)
    return rows, left_out


def table(rows, left_out, title):
    """The figures as a Markdown table."""
    lines = [
        title,
        "",
        "| kernel | runs in | check | `check` | diagnosis | `diagnose` | `check_kernel` | takes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        verdict = row.check.partition(": ")[2].partition(", worst")[0].partition("; ")[0]
        lines.append(
            f"| {row.kernel} | {1e3 * row.run:.2f} ms | {verdict} | {row.check_seconds:.1f} s | "
            f"{row.diagnosis.replace('|', '/')} | {row.diagnose_seconds:.1f} s | {row.harness} | "
            f"{row.harness_seconds:.1f} s |"
        )
    wrong = [row.kernel for row in rows if not row.failed_as_it_should]
    right, faulty = (sum(row.right == kind for row in rows) for kind in (True, False))
    lines += [
        "",
        f"{right} right kernels and {faulty} faults; judged otherwise: {', '.join(wrong) or 'none'}.",
    ]
    if left_out:
        lines.append(f"No time for: {'; '.join(left_out)}.")
    return "\n".join(lines)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", help="of torch; default: cuda where there is one, else cpu")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time for all (default: 480)")
    parser.add_argument("--only", help="tests of check_kernel whose name contains this; default: all")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    args = parser.parse_args(arguments)
    try:
        import torch
    except ImportError:
        parser.error("this needs the package torch (pip install torch)")
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    size = SMALL if device.type == "cpu" else REAL
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {platform.machine()}"
    title = f"{where}, torch {torch.__version__}, bfloat16, causal, {size}"
    rows, left_out = measure(torch, device, size, kernels(torch, device), args.seconds, args.only)
    print()
    print(table(rows, left_out, title))
    if args.json:
        figures = {"title": title, "rows": [asdict(row) for row in rows], "left out": left_out}
        Path(args.json).write_text(json.dumps(figures, indent=1))
    return 0 if all(row.failed_as_it_should for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
