"""Emulated correct kernels against the bounds: no hard violation, no tight violation, and a tight bound
that is used.

    python tests/oracle/bounds/campaign.py --count 10000 --jobs 2

Every case is drawn from its number alone: spec, family, form, shape up to 16k keys, options, and the
freedoms a kernel takes. Prints the use of each bound, max err / bound, and of what is allowed of a bias,
by spec and family, and exits with 1 on a violation.
"""

import argparse
import collections
import concurrent.futures
import json
import sys
import time
from pathlib import Path

import numpy as np

sys.path += [str(Path(__file__).parents[2] / "support"), str(Path(__file__).parents[3])]

from families import FAMILIES

from refattn.calls.options import OPTIONS, PER_CALL
from refattn.oracle.arithmetic.formats import FORMATS, round_to
from refattn.oracle.arithmetic.spec import KernelSpec
from refattn.oracle.simulated.emulated import EmulatedKernel

OF_CALL = tuple(
    option.name for option in OPTIONS if option.belongs_to == PER_CALL and option.name != "dropout_rate"
)


def specs():
    """Every ready-made spec and the variations a kernel may claim."""
    flash, eager, cpu = KernelSpec.flash, KernelSpec.eager, KernelSpec.cpu_kernels
    half = [flash("float16"), flash("bfloat16")]
    return {
        spec.name: spec
        for spec in [
            flash("float64"),
            flash("float32"),
            *half,
            flash("tfloat32"),
            flash("float8_e4m3fn"),
            flash("float8_e5m2"),
            eager("float64"),
            eager("float32"),
            eager("float16"),
            eager("bfloat16"),
            cpu("float64"),
            cpu("float32"),
            cpu("float16"),
            cpu("bfloat16"),
            flash("float8_e4m3fn").replace(
                name="flash e4m3 scaled, float32 accumulator",
                weight_scale=256.0,
                accumulator="float32",
                truncates=False,
            ),
            flash("float32").replace(name="flash float32 split", splits=5, sum_block=8),
            flash("bfloat16").replace(name="flash bfloat16 split", splits=4, block_size=128),
            flash("bfloat16").replace(name="flash bfloat16, rounded denominator", denominator="rounded"),
            flash("float16").replace(name="flash float16, scaled query", scaled_query="float16"),
            flash("float16").replace(
                name="flash float16, float16 accumulator", accumulator="float16", sum_block=16
            ),
            flash("bfloat16").replace(name="flash bfloat16, coarse exp", exp_error=9e-5, block_size=32),
        ]
    }


SPECS = specs()


def repeated(rng, query, key, value, dtype):
    """Four tokens over and over: equal keys have equal values, and their weights round alike."""
    token = rng.integers(0, min(4, max(key[-2], 1)), size=key[-2])
    tokens = lambda shape: rng.normal(size=(*shape[:-2], 4, shape[-1]))[..., token, :]
    return rng.normal(size=query), tokens(key), tokens(value)


def correlated(rng, query, key, value, dtype):
    """Values are a projection of their keys."""
    k = rng.normal(size=key)
    return rng.normal(size=query), k, k @ rng.normal(size=(key[-1], value[-1])) / np.sqrt(key[-1])


def narrow(rng, query, key, value, dtype):
    """Scores a thousandth apart, values with an offset: all weights round alike."""
    return 1e-3 * rng.normal(size=query), rng.normal(size=key), 1.0 + 0.1 * rng.normal(size=value)


def constant(rng, query, key, value, dtype):
    """All values equal: errors of the scores cannot show."""
    return (
        rng.normal(size=query),
        rng.normal(size=key),
        np.broadcast_to(rng.normal(size=value[-1]), value).copy(),
    )


def heavy_tails(rng, query, key, value, dtype):
    """One entry in a thousand ten times as large (Shah et al. 2024, section 4.3)."""
    draw = lambda shape: rng.normal(size=shape) + (rng.random(shape) < 1e-3) * rng.normal(size=shape) * 10
    return draw(query), draw(key), draw(value)


ALL_FAMILIES = {
    **FAMILIES,
    **{family.__name__: family for family in (repeated, correlated, narrow, constant, heavy_tails)},
}
FORM_SHARES = {
    "attention": 0.74,
    "packed_attention": 0.07,
    "paged_attention": 0.07,
    "latent_attention": 0.07,
    "block_local_attention": 0.05,
}
MOST_SCORES = 2**18


def draw_case(number):
    """Spec, kernel, function, arrays (float64 numbers of the input format) and options of one case."""
    rng = np.random.default_rng([7, number])
    pick = lambda items: items[int(rng.integers(len(items)))]
    spec = SPECS[pick(list(SPECS))]
    family = pick(list(ALL_FAMILIES))
    function = str(rng.choice(list(FORM_SHARES), p=list(FORM_SHARES.values())))
    slow = spec.accumulator.name not in ("float32", "float64")
    kv_heads, group = pick([1, 1, 2, 3]), pick([1, 1, 2, 4])
    heads = kv_heads * group
    longest = 2048 if slow else 16384
    kv_len = int(np.exp(rng.uniform(0, np.log(longest)))) if rng.random() > 0.05 else longest
    most_rows = max(1, MOST_SCORES // (heads * max(kv_len, 1)))
    q_len = 1 if rng.random() < 0.15 else int(rng.integers(1, min(most_rows, 200) + 1))
    head_dim, v_head_dim = pick([1, 3, 16, 64, 64, 128]), pick([1, 5, 16, 64, 128])
    kernel = EmulatedKernel(
        spec,
        reverse=bool(rng.random() < 0.2),
        first_block=pick([None, None, 1, 7]),
        inexact_functions=bool(rng.random() < 0.8),
        seed=number,
    )
    held = _holding(spec)
    if function == "block_local_attention":
        q_len = kv_len = min(q_len, kv_len)
    arrays = ALL_FAMILIES[family](
        rng,
        (heads, q_len, head_dim),
        (kv_heads, kv_len, head_dim),
        (kv_heads, kv_len, v_head_dim),
        _dtype_for_family(spec),
    )
    options = _options(rng, heads, q_len, kv_len, spec, batched=False)
    if function == "latent_attention":
        arrays, options, function = _latent(rng, heads, q_len, kv_len, options)
    elif function == "packed_attention":
        options = {name: options[name] for name in OF_CALL if name in options}
        inner = lambda n: np.sort(rng.integers(0, n + 1, size=3))
        options |= {
            "cu_q": np.array([0, *inner(q_len), q_len]),
            "cu_kv": np.array([0, *inner(kv_len), kv_len]),
        }
    elif function == "paged_attention":
        arrays, options = _paged(rng, arrays, options)
    elif function == "block_local_attention":
        options = {name: options[name] for name in (*OF_CALL, "mask", "bias") if name in options}
        options["block_size"] = int(rng.integers(1, q_len + 2))
    with np.errstate(all="ignore"):
        arrays = [
            np.clip(round_to(np.asarray(array, dtype=np.float64), held), -held.largest, held.largest)
            for array in arrays
        ]
    return spec, family, kernel, function, arrays, options


def _holding(spec):
    if spec.input.name == "exact":
        return FORMATS["float8_e4m3fn"]
    return spec.input


def _dtype_for_family(spec):
    name = _holding(spec).name
    return np.dtype(name) if name in ("float16", "float32", "float64") else np.dtype("float32")


def _options(rng, heads, q_len, kv_len, spec, batched):
    options = {}
    chance = lambda p: rng.random() < p
    if chance(0.4):
        options["causal"] = True
    if chance(0.12):
        options["window"] = (
            int(rng.integers(0, kv_len + 1)),
            None if chance(0.5) else int(rng.integers(0, 9)),
        )
    if chance(0.12):
        options["softcap"] = float(rng.choice([2.0, 15.0, 50.0]))
    if chance(0.12):
        options["scale"] = float(rng.choice([0.0, 1.0, -0.3, 0.07, 1.7]))
    if chance(0.15):
        options["alibi_slopes"] = 2.0 ** -rng.uniform(0.5, 8.0, size=heads)
    if chance(0.15):
        options["sinks"] = np.where(rng.random(heads) < 0.2, -np.inf, rng.normal(size=heads) * 3)
    if chance(0.15):
        bias = rng.normal(size=(heads, q_len, kv_len)) * rng.choice([0.5, 5.0])
        bias = np.where(rng.random(bias.shape) < 0.1, -np.inf, bias) if chance(0.5) else bias
        options["bias"] = round_to(
            np.rint(bias) if chance(0.2) else bias, _holding(spec) if chance(0.7) else "float32"
        )
    if chance(0.15):
        options["mask"] = rng.random((q_len, kv_len)) < rng.choice([0.05, 0.5, 0.95])
    if chance(0.1):
        options["kv_lengths"] = int(rng.integers(0, kv_len + 1))
    if chance(0.1):
        options["q_offset"] = int(rng.integers(-3, kv_len + 3))
    if chance(0.1):
        options |= {"dropout_mask": rng.random((heads, q_len, kv_len)) < 0.8, "dropout_rate": 0.2}
    return options


def _latent(rng, heads, q_len, kv_len, options):
    nope, rope, rank, v_dim = 32, 16, 48, 24
    draw = lambda *shape: rng.normal(size=shape)
    arrays = (
        draw(heads, q_len, nope),
        draw(heads, q_len, rope),
        draw(kv_len, rank),
        draw(kv_len, rope),
        draw(heads, nope, rank) / 6,
        draw(heads, v_dim, rank) / 7,
    )
    return arrays, options | {"form": str(rng.choice(["absorb", "expand"]))}, "latent_attention"


def _paged(rng, arrays, options):
    query, key, value = arrays
    size = int(rng.choice([1, 4, 16]))
    pages = -(-key.shape[1] // size)
    order = rng.permutation(pages + 2)
    pools = []
    for side in (key, value):
        pool = np.full((pages + 2, side.shape[0], size, side.shape[2]), np.nan)
        for page in range(pages):
            rows = side[:, page * size : (page + 1) * size]
            pool[order[page], :, : rows.shape[1]] = rows
        pools.append(pool)
    keep = (*OF_CALL, "alibi_slopes", "sinks", "q_offset")
    options = {name: options[name] for name in keep if name in options}
    length = key.shape[1] if rng.random() < 0.5 else int(rng.integers(0, key.shape[1] + 1))
    return (query[None], *pools), options | {
        "block_table": order[None, :pages],
        "kv_lengths": np.array([length]),
    }


def largest_use(error, bound):
    """Largest error / bound; inf where a bound of 0 is missed."""
    if not error.size:
        return 0.0
    with np.errstate(all="ignore"):
        return float(
            np.max(np.where(error == 0.0, 0.0, np.where(np.isinf(bound), 0.0, error / bound)), initial=0.0)
        )


def _use_of_bias(measure):
    """|bias| over what is allowed; 0 where too few errors are independent to tell one."""
    return 0.0 if np.isnan(measure.bias) else abs(measure.bias) / measure.bias_limit


def run_case(number):
    """One case as a dict of plain numbers."""
    from refattn.oracle.verdict.check import check

    spec, family, kernel, function, arrays, options = draw_case(number)
    started = time.perf_counter()
    output, lse = kernel(*arrays, function=function, **options)
    emulated = time.perf_counter()
    report = check(output, *arrays, lse=lse, spec=spec, function=function, **options)
    return {
        "number": number,
        "spec": spec.name,
        "family": family if function != "latent_attention" else "latent",
        "function": function,
        "passed": not report.wrong,
        "failed": list(report.failed),
        "informative": report.output.checked >= 256 and report.output.largest_error > 0,
        "hard": report.output.use_hard,
        "tight": report.output.use_tight,
        "rms": report.output.rms,
        "bias": _use_of_bias(report.output),
        "lse_bias": _use_of_bias(report.lse),
        "lse_hard": report.lse.use_hard,
        "lse_tight": report.lse.use_tight,
        "warnings": len(report.warnings),
        "elements": report.output.checked,
        "seconds": [emulated - started, time.perf_counter() - emulated],
    }


def _quantiles(uses):
    return "{:6.3f}..{:.3f}..{:.3f}".format(*np.quantile(uses, [0.05, 0.5, 1.0])) if uses else " " * 20


EXACT_FAMILIES = (
    "constant",
    "uniform",
    "ties",
    "one_hot",
)  # correct kernels are often exact there, and use nothing of the bound


def table(results, by):
    cells = collections.defaultdict(list)
    for result in results:
        cells[result[by]].append(result)
    lines = [
        f"{by:40s} {'cases':>6s} {'failed':>6s} {'hard max':>9s} {'tight 5%..50%..max':>20s} "
        f"{'rms max':>8s} {'bias max':>8s} {'lse hard':>9s} {'lse tight':>9s} {'lse bias':>9s}"
    ]
    for name, cell in sorted(cells.items()):
        most = lambda key, cell=cell: max(result[key] for result in cell)
        telling = [
            result["tight"]
            for result in cell
            if result["informative"] and result["family"] not in EXACT_FAMILIES
        ]
        lines.append(
            f"{name:40s} {len(cell):6d} {sum(not result['passed'] for result in cell):6d} "
            f"{most('hard'):9.4f} "
            f"{_quantiles(telling)} {most('rms'):9.3f} {most('bias'):8.3f} {most('lse_hard'):9.4f} "
            f"{most('lse_tight'):9.3f} {most('lse_bias'):9.3f}"
        )
    return "\n".join(lines)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write all results here")
    arguments = parser.parse_args(argv)
    numbers = range(arguments.first, arguments.first + arguments.count)
    if arguments.jobs > 1:
        with concurrent.futures.ProcessPoolExecutor(arguments.jobs) as pool:
            results = list(pool.map(run_case, numbers, chunksize=16))
    else:
        results = [run_case(number) for number in numbers]
    if arguments.json:
        arguments.json.write_text(json.dumps(results))
    for by in ("spec", "family", "function"):
        print(table(results, by), "\n")
    failures = [result for result in results if not result["passed"]]
    for result in failures[:40]:
        print("failed:", json.dumps(result))
    tiers = ("positions", "hard", "tight", "aggregate", "lean")
    total = {
        tier: sum(any(name.endswith(tier) for name in result["failed"]) for result in results)
        for tier in tiers
    }
    print(
        f"{len(results)} cases, {sum(r['elements'] for r in results)} elements, {len(failures)} failures "
        f"{total}"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
