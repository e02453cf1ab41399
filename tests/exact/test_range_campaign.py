"""Random calls whose numbers come from the ends of the range, all options together, against 60-digit
arithmetic in the documented order.

`python tests/exact/test_range_campaign.py 5000 [first seed]` runs as many as wanted, with this checkout
and its tests/support on PYTHONPATH. A failure names the seed: `run_reference(seed)` repeats it.

Whatever is finite gives no NaN in `refattn`, and outputs that are means of the visible values; where
scores stay below 1e6 the promise of README holds too. `cpu_kernels` gives no NaN wherever every
intermediate of the documented order is finite in its dtype, and `check` finds nothing wrong.
"""

import os
import sys
import warnings
import zlib

import numpy as np
import pytest

pytest.importorskip("mpmath", reason="exact arithmetic needs mpmath, see the test extra")

from exact_checks import LSE_ULPS, OUTPUT_UNITS, addends, exactly, seen_keys, units_used
from mpmath import mpf

import cpu_kernels
import refattn
from refattn.oracle import KernelSpec, check

CALLS = int(os.environ.get("REFATTN_CAMPAIGN", 200))
CHUNK = 100
LARGEST_PROMISED = 1e6  # the scores up to which README promises digits

HUGE = np.finfo(np.float64).max
SIZES = [
    0.0,
    5e-324,
    1e-310,
    2.0**-1022,
    1e-300,
    1e-160,
    1e-30,
    2.0**-53,
    2.0**24,
    2.0**53,
    2.0**54,
    1e17,
    2.0**63,
    1e38,
    1e100,
    1e154,
    1e200,
    1e300,
    HUGE / 2,
    HUGE,
]


class Draw:
    """Numbers of one call; `chance` of each array to hold extreme ones."""

    def __init__(self, seed, largest=HUGE, smallest=5e-324):
        self.rng = np.random.default_rng([seed, zlib.crc32(b"range campaign")])
        self.largest, self.smallest = largest, smallest

    def pick(self, *values):
        return values[self.rng.integers(len(values))]

    def size(self):
        """A magnitude that the dtype holds: named, a power of two or its neighbour, or anything in
        between.
        """
        lowest, highest = np.log2(self.smallest), np.log2(self.largest / 2) + 1
        power = 2.0 ** self.rng.integers(int(lowest), int(highest))
        found = self.pick(
            self.pick(*SIZES),
            power,
            np.nextafter(power, self.pick(0.0, np.inf)),
            2.0 ** self.rng.uniform(lowest, highest - 1),
            self.largest,
        )
        return float(min(found, self.largest))

    def array(self, *shape):
        """Ordinary numbers, all of one extreme size, or each of its own."""
        numbers = self.rng.normal(size=shape)
        kind = self.rng.integers(5)
        if kind < 2:
            return numbers
        if kind == 2:
            size = self.size()
            return np.clip(numbers, -1, 1) * size if size > 1 else numbers * size
        extreme = np.array([self.pick(-1.0, 1.0) * self.size() for _ in range(numbers.size)]).reshape(shape)
        return extreme if kind == 3 else np.where(self.rng.random(shape) < 0.3, extreme, numbers)

    def call(self):
        heads, rows, keys, dim = 2, self.pick(1, 3), self.pick(1, 4, 7), self.pick(1, 2, 5)
        query, key, value = self.array(heads, rows, dim), self.array(1, keys, dim), self.array(1, keys, 2)
        options, maybe = {}, lambda chance: self.rng.random() < chance

        def number():
            return self.size() if maybe(0.6) else float(2.0 ** self.rng.normal())

        if maybe(0.5):
            options["scale"] = self.pick(-1.0, 1.0) * number()
        if maybe(0.3):
            options["softcap"] = max(number(), self.smallest)
        if maybe(0.4):
            options["sinks"] = np.where(self.rng.random(heads) < 0.2, -np.inf, self.array(heads))
        if maybe(0.4):
            bias = self.array(heads, rows, keys)
            options["bias"] = np.where(self.rng.random(bias.shape) < 0.1, -np.inf, bias)
        if maybe(0.3):
            options["alibi_slopes"] = self.array(heads)
        if maybe(0.3):
            options["mask"] = self.rng.random((heads, rows, keys)) < 0.7
        if maybe(0.3):
            options["q_offset"] = int(self.pick(0, -5, 40, 2**53, -(2**53), 2**40))
        if maybe(0.2):
            options["causal"] = True
        if maybe(0.2):
            options["window"] = self.pick((2, 1), (None, 3), (50, 0))
        if maybe(0.15):
            options["dropout_mask"], options["dropout_rate"] = (
                self.rng.random((heads, rows, keys)) < 0.6,
                self.pick(0.5, 0.1),
            )
        return query, key, value, options


def means_of_the_visible(output, value, seen, options):
    """Outputs lie between the smallest and the largest visible value, and 0 where a sink, dropout or
    nothing visible may pull them there.
    """
    values = value[0, seen]
    factor = 1 / (1 - options.get("dropout_rate", 0.0))
    zero = [0.0] if not len(seen) or {"sinks", "dropout_mask"} & set(options) else []

    def edge(column, pick):
        return pick([*column.tolist(), *zero]) * factor

    with np.errstate(over="ignore", under="ignore"):
        low, high = (np.array([edge(column, pick) for column in values.T]) for pick in (min, max))
        slack = 8 * 2.0**-53 * np.maximum(np.abs(low), np.abs(high)) + 4 * 5e-324
        return bool(((output >= low - slack) & (output <= high + slack)).all())


def largest_term(query, key, h, i, seen, options):
    """The largest of what makes the scores of a row: products of its elements with those of the keys,
    ALiBi and bias.
    """
    scale, (_, rows, dim) = options.get("scale", 1 / np.sqrt(query.shape[-1])), query.shape
    products = mpf(abs(query[h, i]).max()) * mpf(abs(key).max()) * mpf(abs(scale)) * dim
    position = options.get("q_offset", key.shape[1] - rows) + i
    shape = (*query.shape[:2], key.shape[1])
    return max(
        [
            products,
            *(abs(mpf(x)) for j in seen for x in addends(j, h, i, position, {**options, "shape": shape})),
        ]
    )


def run_reference(seed):
    query, key, value, options = Draw(seed).call()
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        output, lse = refattn.attention_with_lse(query, key, value, **options)
    assert not np.isnan(output).any() and not np.isnan(lse).any(), "NaN"
    for h, i in np.ndindex(query.shape[:2]):
        seen, where = seen_keys(query, key, h, i, options), f"head {h}, row {i}"
        assert means_of_the_visible(output[h, i], value, seen, options), (
            f"{where}: {output[h, i]} is no mean of {value[0, seen].tolist()}"
        )
        if not seen or largest_term(query, key, h, i, seen, options) > LARGEST_PROMISED:
            continue
        exact = exactly(query, key, value, h, i, options)
        output_units, lse_ulps = units_used(output[h, i], lse[h, i], exact)
        assert output_units <= OUTPUT_UNITS, (
            f"{where}: output off by {output_units:.3g} units, {output[h, i]} for "
            f"{[float(x) for x in exact.output]}"
        )
        assert lse_ulps <= LSE_ULPS, (
            f"{where}: lse off by {lse_ulps:.3g} ulp, {lse[h, i]} for {float(exact.lse)}"
        )


def campaign(run, first, count):
    for seed in range(first, first + count):
        try:
            run(seed)
        except Exception as error:
            raise AssertionError(f"{run.__name__}({seed}): {type(error).__name__} {error}") from error


def documented_order(query, key, value, options, dtype):
    """Every intermediate of README's order of operations in `dtype`: product, scale, softcap, ALiBi,
    bias, score minus the largest, weights.
    """
    real = np.dtype(dtype).type
    rows = query.shape[1]
    steps = [
        np.abs(query.astype(dtype)) @ np.abs(key[0].T.astype(dtype))
    ]  # no partial sum of a product is larger
    scores = (query.astype(dtype) @ key[0].T.astype(dtype)) * real(
        options.get("scale", 1 / np.sqrt(query.shape[-1]))
    )
    steps.append(scores)
    if "softcap" in options:
        steps.append(np.broadcast_to(real(options["softcap"]), scores.shape))
        scores = real(options["softcap"]) * np.tanh(scores / real(options["softcap"]))
    if "alibi_slopes" in options:
        position = options.get("q_offset", key.shape[1] - rows) + np.arange(rows)
        penalty = options["alibi_slopes"].astype(dtype)[:, None, None] * np.abs(
            position[:, None] - np.arange(key.shape[1])
        ).astype(dtype)
        scores = scores - penalty
        steps += [penalty, scores]
    if "bias" in options:
        bias = options["bias"].astype(dtype)
        steps.append(np.where(options["bias"] == -np.inf, 0, bias))
        scores = scores + np.where(bias == -np.inf, 0, bias)
    steps.append(scores)
    if "sinks" in options:
        steps.append(np.where(options["sinks"] == -np.inf, 0, options["sinks"]).astype(dtype))
    return steps


def run_kernels(seed, dtype):
    """No NaN where the documented order stays finite, means of the visible values there, and `check`
    finds nothing wrong.
    """
    info = np.finfo(dtype)
    query, key, value, options = Draw(seed, float(info.max), float(info.smallest_subnormal)).call()
    query, key, value = (x.astype(dtype) for x in (query, key, value))
    if "alibi_slopes" in options and np.abs(options["alibi_slopes"]).max() > 2.0**900:
        del options["alibi_slopes"]  # refused
    with np.errstate(all="raise", under="ignore"), warnings.catch_warnings():
        warnings.simplefilter("error")
        output, lse = cpu_kernels.attention_with_lse(query, key, value, **options)
    with np.errstate(all="ignore"):
        steps = documented_order(query, key, value, options, dtype)
    if not all(np.isfinite(step).all() for step in steps):
        return
    assert np.isfinite(output).all() or "dropout_mask" in options, (
        f"output {output} where every intermediate is finite"
    )
    assert not np.isnan(output).any() and not np.isnan(lse).any() and not (lse == np.inf).any(), (
        f"lse {lse} where every intermediate is finite"
    )
    report = check(output, query, key, value, lse=lse, spec=KernelSpec.cpu_kernels(dtype), **options)
    assert not report.wrong, str(report)


def run_float32(seed):
    run_kernels(seed, np.float32)


def run_float64(seed):
    run_kernels(seed, np.float64)


RUNS = {run.__name__: run for run in (run_reference, run_float32, run_float64)}


@pytest.mark.sample(3)
@pytest.mark.parametrize("first", range(0, CALLS, CHUNK))
@pytest.mark.parametrize("run", RUNS)
def test_campaign(run, first):
    campaign(RUNS[run], first, min(CHUNK, CALLS - first))


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    "run, seed",
    [
        *(("run_reference", seed) for seed in (134, 230, 430, 442, 497, 1040, 1153)),
        *(("run_float64", seed) for seed in (1125, 1298, 1334, 1436)),
    ],
)
def test_what_was_once_wrong(run, seed):
    RUNS[run](seed)


if __name__ == "__main__":
    count, start = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    failed = 0
    for run in [RUNS[sys.argv[3]]] if len(sys.argv) > 3 else RUNS.values():
        for number in range(start, start + count):
            try:
                run(number)
            except Exception as error:
                failed += 1
                print(f"{run.__name__}({number}): {type(error).__name__} {error}", flush=True)
    print(f"{count} calls, {failed} failures")
    sys.exit(failed > 0)
