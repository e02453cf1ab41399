"""The lean tier: a bias that the roundings of the spec do not make fails with its direction, one that
they do make does not.
"""

import json

import numpy as np
import pytest

from refattn.oracle import EmulatedKernel, KernelSpec, assert_attention_close, check, error_bound
from refattn.oracle.arithmetic.formats import round_to
from refattn.oracle.arithmetic.spec import kernel_spec
from refattn.oracle.simulated.emulated import _Numerics

SPECS = ["float32", "float16", "bfloat16", "float8_e4m3fn", "eager bfloat16", "cpu_kernels bfloat16"]
SIGNS = {
    "upward": lambda o: 1.0,
    "downward": lambda o: -1.0,
    "away from zero": np.sign,
    "toward zero": lambda o: -np.sign(o),
}


def draw(spec, *shapes, seed=0):
    form = kernel_spec(spec).input
    rng = np.random.default_rng(seed)
    return [
        round_to(rng.normal(size=shape), "float8_e4m3fn" if form.name == "exact" else form)
        for shape in shapes
    ]


def square(spec, heads, rows, dim=64, seed=0):
    return draw(spec, *[(heads, rows, dim)] * 3, seed=seed)


@pytest.fixture(scope="module")
def bounds():
    """Inputs of 25,600 results and their error bound, by spec."""
    found = {}

    def of(spec):
        if spec not in found:
            arrays = square(spec, 4, 100)
            found[spec] = arrays, error_bound(*arrays, spec=spec)
        return found[spec]

    return of


@pytest.mark.sample(5)
@pytest.mark.parametrize("size", [1.3, 0.5])
@pytest.mark.parametrize("direction", SIGNS)
@pytest.mark.parametrize("spec", SPECS)
def test_errors_that_all_lean_to_one_side(bounds, spec, direction, size):
    arrays, bound = bounds(spec)
    actual = bound.output + size * bound.output_sigma * SIGNS[direction](bound.output)
    report = check(actual, *arrays, spec=spec)
    # of a kernel whose one error is the last rounding, 1.3 sigma may be more than half a step
    assert "output lean" in report.failed or (size > 1 and "output hard" in report.failed), report.text()
    assert report.output.bias_words.startswith(f"errors lean {direction}: mean "), report.output.bias_words
    assert abs(report.output.bias) == pytest.approx(size, rel=0.1)


@pytest.mark.parametrize("spec", ["float32", "float16", "bfloat16", "eager bfloat16", "cpu_kernels float32"])
def test_three_tenths_of_a_sigma_of_25600(bounds, spec):
    arrays, bound = bounds(spec)
    report = check(bound.output + 0.3 * bound.output_sigma, *arrays, spec=spec)
    assert report.failed == ("output lean",), report.text()


@pytest.mark.sample(4)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("spec", ["float32", "bfloat16", "eager float16"])
def test_one_sigma_from_100_independent_errors_and_less_from_more(spec, seed):
    """A bias beside the kernel's own errors, from as many rows as make the errors independent; a
    kernel without one passes.
    """
    smallest = []
    for rows in (16, 64, 256):
        arrays = square(spec, 1, rows, seed=seed)
        output, _ = EmulatedKernel(kernel_spec(spec), seed=seed)(*arrays)
        sigma = error_bound(*arrays, spec=spec).output_sigma
        right = check(output, *arrays, spec=spec)
        assert right.passed, right.text()
        smallest.append(right.output.bias_limit)
        leaning = check(output + sigma, *arrays, spec=spec)
        assert "output lean" in leaning.failed, leaning.text()
    assert smallest[2] < 0.5 * smallest[0]


@pytest.mark.sample(3)
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("spec", ["float32", "bfloat16", "eager float16", "cpu_kernels float32"])
def test_only_the_lse_leans(bounds, spec, sign):
    arrays, bound = bounds(spec)
    output, _ = EmulatedKernel(kernel_spec(spec))(*arrays)
    report = check(output, *arrays, lse=bound.lse + sign * bound.lse_sigma, spec=spec)
    assert (
        report.failed == ("lse lean",)
        and "errors lean " + ("upward" if sign > 0 else "downward") in report.summary
    ), report.text()


@pytest.mark.sample(3)
@pytest.mark.parametrize("signs", [(1, -1, 1, -1), (0, 0, 1, 0), (0, -1, 0, 0)])
def test_heads_that_lean_apart(signs):
    arrays = square("bfloat16", 4, 256)
    bound = error_bound(*arrays, spec="bfloat16")
    output, _ = EmulatedKernel(kernel_spec("bfloat16"))(*arrays)
    report = check(output + np.reshape(signs, (4, 1, 1)) * bound.output_sigma, *arrays, spec="bfloat16")
    assert "output lean" in report.failed and "errors in head " in report.output.bias_words, report.text()


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    "function, shapes, options",
    [
        ("packed_attention", [(2, 128, 64)] * 3, {"cu_q": [0, 40, 128], "cu_kv": [0, 60, 128]}),
        (
            "paged_attention",
            [(1, 2, 128, 64), (8, 1, 16, 64), (8, 1, 16, 64)],
            {"block_table": np.arange(8)[None], "kv_lengths": [121]},
        ),
        (
            "latent_attention",
            [(2, 128, 32), (2, 128, 16), (128, 48), (128, 16), (2, 32, 48), (2, 64, 48)],
            {"form": "absorb"},
        ),
        (
            "latent_attention",
            [(2, 128, 32), (2, 128, 16), (128, 48), (128, 16), (2, 32, 48), (2, 64, 48)],
            {"form": "expand"},
        ),
        ("block_local_attention", [(2, 128, 64)] * 3, {"block_size": 64}),
        (
            "attention",
            [(2, 128, 64)] * 3,
            {"causal": True, "alibi_slopes": [0.5, 0.03], "sinks": [0.0, 1.0], "softcap": 15.0},
        ),
    ],
    ids=lambda value: (
        value if isinstance(value, str) else value.get("form", "") if isinstance(value, dict) else ""
    ),
)
@pytest.mark.parametrize("spec", ["float32", "bfloat16"])
def test_every_form(spec, function, shapes, options):
    arrays, call = draw(spec, *shapes), {"function": function, "spec": spec, **options}
    output, lse = EmulatedKernel(kernel_spec(spec))(*arrays, function=function, **options)
    right = check(output, *arrays, lse=lse, **call)
    assert right.passed and np.isfinite(right.output.bias), right.text()
    report = check(output + error_bound(*arrays, **call).output_sigma, *arrays, lse=lse, **call)
    assert "output lean" in report.failed and "lean upward" in report.output.bias_words, report.text()


# Kernels that truncate


@pytest.fixture
def truncated(monkeypatch):
    """Make the emulated kernels cut bits off the converted weights, or off every sum."""

    def weights(self, run, x):
        scale = self.kind(self.spec.weight_scale)
        return round_to(x * scale, self.spec.weight, truncate=True).astype(self.kind) / scale

    def sums(self, x, y):
        return round_to(x.astype(np.float64) + y, self.spec.accumulator, truncate=True).astype(self.kind)

    def make(what):
        if what == "weights":
            monkeypatch.setattr(_Numerics, "round_weights", weights)
        else:
            monkeypatch.setattr(_Numerics, "rounded_sum", sums)
            before = _Numerics.__init__
            monkeypatch.setattr(
                _Numerics,
                "__init__",
                lambda run, kernel: (before(run, kernel), setattr(run, "plain", False))[0],
            )

    return make


@pytest.mark.sample(3)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("spec", ["bfloat16", "float16", "eager bfloat16", "float8_e4m3fn"])
def test_weights_cut_where_the_spec_rounds(truncated, spec, causal):
    arrays = square(spec, 4, 100)
    truncated("weights")
    output, lse = EmulatedKernel(kernel_spec(spec))(*arrays, causal=causal)
    report = check(output, *arrays, lse=lse, spec=spec, causal=causal)
    assert "output lean" in report.failed and "lean toward zero" in report.summary, report.text()


def test_cut_weights_that_the_row_sum_adds_lean_in_the_lse(truncated):
    """Numerator and row sum shrink alike: the output hardly leans, the lse does."""
    spec = kernel_spec("bfloat16").replace(denominator="rounded")
    arrays = square(spec, 4, 100)
    truncated("weights")
    output, lse = EmulatedKernel(spec)(*arrays)
    report = check(output, *arrays, lse=lse, spec=spec)
    assert "lse lean" in report.failed and "downward" in report.lse.bias_words, report.text()


@pytest.mark.sample(2)
@pytest.mark.parametrize("spec", ["bfloat16", "float16", "eager bfloat16", "cpu_kernels bfloat16"])
def test_output_cut_where_the_spec_rounds(spec):
    spec = kernel_spec(spec)
    arrays = square(spec, 4, 100)
    output, lse = EmulatedKernel(spec.replace(output="float32"))(*arrays)
    report = check(round_to(output, spec.output, truncate=True), *arrays, lse=lse, spec=spec)
    assert "output lean" in report.failed and "lean toward zero" in report.summary, report.text()


def test_accumulators_that_truncate_pass_by_a_spec_that_says_so(truncated):
    spec = kernel_spec("float32")
    arrays = square(spec, 2, 64)
    truncated("sums")
    output, lse = EmulatedKernel(spec)(*arrays)
    report = check(output, *arrays, lse=lse, spec=spec)
    assert {"output lean", "lse lean"} <= {
        *report.failed
    } and "lean toward zero" in report.output.bias_words, report.text()
    assert "spec.replace(truncates=True)" in report.text()
    stated = check(output, *arrays, lse=lse, spec=spec.replace(truncates=True))
    assert stated.passed, stated.text()


# What leans without a fault


@pytest.mark.parametrize("seed", range(2))
def test_heads_that_are_copies_count_once(seed):
    """Sixteen equal heads, or heads of twice the values, repeat one head's chance."""
    spec = kernel_spec("bfloat16")
    one = square(spec, 1, 64, seed=seed)
    copies = [np.repeat(array, 16, axis=0) for array in one]
    copies[2] = copies[2] * 2.0 ** np.arange(16)[:, None, None]
    found = [check(EmulatedKernel(spec)(*arrays)[0], *arrays, spec=spec).output for arrays in (one, copies)]
    assert not found[1].failed and found[1].bias_limit > 0.8 * found[0].bias_limit


@pytest.mark.sample(6)
@pytest.mark.parametrize("level", [1.0004, 1.0018, 0.7003])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_results_that_all_round_the_same_way(dtype, level):
    """All results lie near one number that the format does not hold: a right kernel's errors have the
    sign of its rounding.
    """
    rng = np.random.default_rng(0)
    query, key = 1e-3 * rng.normal(size=(2, 200, 16)), rng.normal(size=(2, 300, 16))
    value = level + 1e-6 * rng.normal(size=(2, 300, 32))
    spec = KernelSpec.cpu_kernels(dtype).replace(input="exact")
    output, lse = EmulatedKernel(spec)(query, key, value)
    report = check(output, query, key, value, lse=lse, spec=spec)
    assert report.passed, report.text()


def test_common_errors_at_the_maximum_that_a_long_row_sum_loses():
    """A softcap saturates nearly all scores: their weights are 1 but for the same few last digits,
    all below the last digit of the row sum.
    """
    rng = np.random.default_rng(0)
    query, key, value = (
        1.0 + 1e-3 * rng.normal(size=(4, 74, 16)),
        np.sort(40 * rng.random(size=(1, 864, 1)), axis=1) + 0.1 * rng.normal(size=(1, 864, 16)),
        rng.normal(size=(1, 864, 64)),
    )
    for seed in range(4):
        output, lse = EmulatedKernel(KernelSpec.eager("float64"), seed=seed)(query, key, value, softcap=2.0)
        report = check(output, query, key, value, lse=lse, spec="eager float64", softcap=2.0)
        assert report.passed, report.text()


@pytest.mark.parametrize("seed", range(3))
def test_small_terms_of_one_sign_that_a_coarse_accumulator_loses(seed):
    rng = np.random.default_rng(seed)
    arrays = [
        round_to(x, "float16")
        for x in (
            *rng.normal(size=(2, 2, 48, 32)),
            -np.abs(rng.normal(size=(2, 48, 64))) * np.exp(2 * rng.normal(size=(2, 48, 64))),
        )
    ]
    spec = kernel_spec("float16").replace(accumulator="float16")
    output, lse = EmulatedKernel(spec, seed=seed)(*arrays)
    report = check(output, *arrays, lse=lse, spec=spec)
    assert report.passed and abs(report.output.bias) < 0.6 * report.output.bias_limit, report.text()


# The report


def test_the_report_says_it_in_words_and_numbers(bounds):
    arrays, bound = bounds("bfloat16")
    report = check(bound.output - bound.output_sigma * np.sign(bound.output), *arrays, spec="bfloat16")
    assert report.failed == ("output lean",) and not report.passed and report.wrong
    assert (
        "FAIL: errors lean toward zero: mean -1 sigma over " in report.summary
        and " independent errors (allowed 0." in report.summary
    )
    plain = json.loads(report.to_json())["output"]
    assert (
        plain["bias"] == report.output.bias < -plain["bias_limit"]
        and plain["bias_words"] == report.output.bias_words
    )
    with pytest.raises(AssertionError, match="lean toward zero"):
        assert_attention_close(
            bound.output - bound.output_sigma * np.sign(bound.output), *arrays, spec="bfloat16"
        )


def test_a_wrong_scale_is_not_put_down_to_a_lean(bounds):
    arrays, bound = bounds("float32")
    report = check(1.01 * bound.output, *arrays, spec="float32")
    assert "output hard" in report.failed and "output lean" not in report.failed


def test_too_few_errors_say_nothing():
    arrays = square("float32", 1, 1, 8)
    report = check(EmulatedKernel(kernel_spec("float32"))(*arrays)[0], *arrays, spec="float32")
    assert (
        report.passed
        and np.isnan(report.output.bias)
        and report.output.bias_words == ""
        and json.loads(report.to_json())
    )


def test_a_sample_of_rows_is_judged(bounds):
    arrays, bound = bounds("bfloat16")
    report = check(bound.output + bound.output_sigma, *arrays, spec="bfloat16", rows=40)
    assert (
        report.failed == ("output lean",)
        and check(
            EmulatedKernel(kernel_spec("bfloat16"))(*arrays)[0], *arrays, spec="bfloat16", rows=40
        ).passed
    )
