"""What a check compares with: chosen by the spec, within the error it states, never kernels by themselves."""

import dataclasses
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

import refattn
from refattn.calls.registry import ATTENTION, form_called
from refattn.oracle import EmulatedKernel, KernelSpec, assert_attention_close, check, error_bound
from refattn.oracle.bounds import compiled_reference
from refattn.oracle.bounds.compiled_reference import multiplications
from refattn.oracle.bounds.reference import (
    JudgingGroup,
    cheaper_form,
    chosen,
    float64_error,
    reference_results,
)
from refattn.oracle.inputs.families import every_option
from refattn.oracle.inputs.of_form import inputs_of

FLASH = KernelSpec.flash("float32")
HALF = KernelSpec.flash("bfloat16")
FORMS = ATTENTION
CALLS = [
    pytest.param(form, names, id=f"{form.name}: {', '.join(names) or 'nothing'}")
    for form in FORMS
    for names in every_option(form)
]
RNG = np.random.default_rng(0)


def dense(*shape, dtype=np.float32):
    return RNG.normal(size=shape).astype(dtype)


def problem_of(function, arrays, options):
    return form_called(function).check(*arrays, **options)


# As good as it says


@pytest.mark.parametrize("name", ["float64", "cpu_kernels"])
@pytest.mark.parametrize(("form", "names"), CALLS)
def test_the_error_is_the_stated_share_of_the_hard_bound(form, names, name):
    inputs = inputs_of(form).with_options(names, np.float32, 0)
    options = {key: value for key, value in inputs.options.items() if key != "function"}
    bound = error_bound(*inputs.arrays, spec=FLASH, kind="hard", function=form.function, **options)
    found = reference_results(form.function, inputs.arrays, options, FLASH, name)
    problem = problem_of(form.function, inputs.arrays, options)
    share = float64_error(FLASH, problem) - 4 * JudgingGroup.largest_score_error  # scores are small
    assert found.error == float64_error(FLASH, problem) and 0 < share < found.error < 1e-3
    for got, exact, hard in (
        (found.output, bound.output, bound.output_hard),
        (found.lse, bound.lse, bound.lse_hard),
    ):
        finite = np.isfinite(exact)
        np.testing.assert_array_equal(np.where(finite, 0.0, got), np.where(finite, 0.0, exact))
        assert (np.abs(got[finite] - exact[finite]) <= share * hard[finite]).all()


@pytest.mark.parametrize("name", ["float64", "cpu_kernels"])
def test_calls_in_pieces(monkeypatch, name):
    """As pieces of some rows of a head, whose options are cut out."""
    monkeypatch.setattr(compiled_reference, "NUMBERS_AT_ONCE", 200)
    for form, names in (case.values for case in CALLS):
        inputs = inputs_of(form).with_options(names, np.float32, 1)
        exact = reference_results(form.function, inputs.arrays, inputs.options, FLASH, "exact").results
        found = reference_results(form.function, inputs.arrays, inputs.options, FLASH, name).results
        for got, right in zip(found, exact, strict=True):
            np.testing.assert_allclose(got, right, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["float64", "cpu_kernels"])
def test_repeated_rows_count_once(name):
    """Rows of queries that repeat have equal errors, though a product in float64 gives their last bits
    anew: the verdict must not take them for many."""
    query = np.broadcast_to(dense(1, 2, 3, 16), (1, 2, 3, 16)).repeat(40, axis=2)[:, :, :97]
    key, value = dense(1, 2, 131, 16), dense(1, 2, 131, 5)
    output, lse = EmulatedKernel(FLASH)(query, key, value)
    exact = check(output, query, key, value, lse=lse, spec=FLASH, reference="exact")
    found = check(output, query, key, value, lse=lse, spec=FLASH, reference=name)
    assert exact.passed and found.passed and found.output.rms_limit == exact.output.rms_limit


# Chosen by the spec


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("float64", "refattn, exact"),
        ("eager float64", "refattn, exact"),
        ("cpu_kernels float64", "refattn, exact"),
        (FLASH.replace(softmax="float64"), "refattn, exact"),
        (FLASH.replace(accumulator="exact"), "refattn, exact"),
        (FLASH.replace(accumulator=2.0**-31), "refattn, exact"),
        ("float32", "NumPy, float64"),
        ("bfloat16", "NumPy, float64"),
        ("eager float16", "NumPy, float64"),
        ("cpu_kernels float32", "NumPy, float64"),
        ("float8_e4m3fn", "NumPy, float64"),
        (FLASH.replace(output="float64", lse="float64"), "NumPy, float64"),
    ],
    ids=str,
)
def test_the_spec_decides(spec, name):
    x = dense(2, 5, 4)
    report = check(refattn.attention(x, x, x).astype(np.float32), x, x, x, spec=spec)
    assert report.reference == name and f"  reference  {name}\n" in report.text()
    asked = check(refattn.attention(x, x, x), x, x, x, spec=spec, reference="exact")
    assert asked.reference == "refattn, exact"


def test_bounds_are_those_of_exact_results_unless_asked():
    x = dense(2, 5, 4)
    bound = error_bound(x, x, x, spec="bfloat16")
    np.testing.assert_array_equal(bound.output, refattn.attention(x, x, x))
    bound = error_bound(x, x, x, spec="bfloat16", reference="float64")
    np.testing.assert_array_equal(bound.output, refattn.attention(x, x, x, precision="float64"))


def test_large_calls_take_cpu_kernels_where_they_may(monkeypatch):
    arrays = [np.broadcast_to(np.float32(0), (2, heads, 4096, 128)) for heads in (32, 8, 8)]
    large = problem_of("attention", arrays, {"causal": True})
    small = problem_of("attention", [x[:, :, :512] for x in arrays], {"causal": True})
    some = lambda q_len: np.arange(2)
    assert chosen(large, HALF, None) == "cpu_kernels"
    assert chosen(small, HALF, None) == chosen(large, HALF, some) == "float64"
    assert chosen(large, KernelSpec.flash("float64"), None) == "exact"
    for dtype in ("float32", "bfloat16"):
        own = KernelSpec.cpu_kernels(dtype)
        for spec in (own, own.replace(block_size=32), dataclasses.replace(own, name="mine")):
            assert chosen(large, spec, None) == "float64"
    monkeypatch.setattr(compiled_reference.importlib.util, "find_spec", lambda name: None)
    assert chosen(large, HALF, None) == "float64"


def test_multiplications_are_those_of_visible_pairs():
    query, key, value = dense(2, 4, 8, 3), dense(2, 2, 12, 3), dense(2, 2, 12, 5)
    for options, pairs in (
        ({}, 2 * 4 * 8 * 12),
        ({"causal": True, "q_offset": 0}, 2 * 4 * 36),
        ({"kv_lengths": [3, 12]}, 4 * 8 * 15),
    ):
        assert multiplications(problem_of("attention", (query, key, value), options)) == 8 * pairs


SMALL_CHECK = """
import sys
import numpy as np
import refattn
from refattn.oracle import check
x = np.ones((1, 8, 4), dtype=np.float32)
report = check(x, x, x, x)
assert report.passed and report.reference == "NumPy, float64", report.text()
assert "numba" not in sys.modules and "cpu_kernels" not in sys.modules
"""
LARGE_CHECK = """
import sys
import numpy as np
from refattn.oracle.bounds import compiled_reference
from refattn.oracle import check
compiled_reference.PAYS_FROM = 1.0
x = np.ones((1, 8, 4), dtype=np.float32)
assert check(x, x, x, x).reference == "cpu_kernels, float64"
assert "numba" in sys.modules
sys.modules["numba"] = None  # as where it is not installed
assert check(x, x, x, x, spec="cpu_kernels float32").reference == "NumPy, float64"
"""


@pytest.mark.parametrize("script", [SMALL_CHECK, LARGE_CHECK], ids=["small", "large"])
def test_numba_is_imported_for_large_checks_only(script):
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_kernels_do_not_promise_is_computed_by_numpy(monkeypatch):
    """Numbers that are not finite or too large, and sinks far above the scores."""
    import cpu_kernels.dense

    ran = []
    solve_dense = cpu_kernels.dense.solve_dense
    monkeypatch.setattr(
        cpu_kernels.dense, "solve_dense", lambda *args: ran.append(args) or solve_dense(*args)
    )
    ordinary = dense(1, 2, 9, 4), dense(1, 2, 11, 4), dense(1, 2, 11, 4)

    def changed(which, value):
        arrays = [array.copy() for array in ordinary]
        arrays[which][0, 1, 3, 2] = value
        return arrays

    for arrays, options, kernels in (
        (ordinary, {}, True),
        (changed(0, np.nan), {}, False),
        (changed(1, np.inf), {}, False),
        (changed(2, -np.inf), {}, False),
        (changed(0, 1e9), {}, False),
        (ordinary, {"scale": 1e9}, False),
        (ordinary, {"bias": np.full((9, 11), 1e10)}, False),
        (ordinary, {"alibi_slopes": [1e9, 0.0]}, False),
        (ordinary, {"sinks": [700.0, 0.0]}, False),
        (ordinary, {"sinks": [10.0, -np.inf], "bias": np.full((9, 11), -np.inf)}, True),
        (ordinary, {"kv_lengths": [0]}, True),
    ):
        ran.clear()
        found = reference_results("attention", arrays, options, FLASH, "cpu_kernels").results
        exact = reference_results("attention", arrays, options, FLASH, "exact").results
        assert bool(ran) == kernels, options
        for got, right in zip(found, exact, strict=True):
            np.testing.assert_allclose(got, right, rtol=1e-12, atol=1e-13)


def test_scores_that_float64_does_not_know_are_computed_exactly():
    query, key, value = dense(2, 5, 16), 1e8 * dense(2, 7, 16), dense(2, 7, 3)
    exact = reference_results("attention", (query, key, value), {}, FLASH, "exact")
    for name in (None, "float64", "cpu_kernels"):
        found = reference_results("attention", (query, key, value), {}, FLASH, name)
        np.testing.assert_array_equal(found.output, exact.output)
    arrays = [
        dense(2, 3, 4),
        dense(2, 3, 2),
        1e12 * dense(5, 6),
        dense(5, 2),
        dense(2, 4, 6),
        dense(2, 3, 6),
    ]
    found = reference_results("latent_attention", arrays, {}, FLASH)
    assert found.name == "refattn, exact" and found.error == 0.0


# Asked for


@pytest.mark.parametrize(
    ("bad", "kind"), [("double", ValueError), ("", ValueError), (3, TypeError), (np.float64(1), TypeError)]
)
def test_other_references_are_refused(bad, kind):
    x = dense(1, 3, 4)
    message = (
        r"reference must be one of 'exact', 'float64', 'cpu_kernels', a callable or None; got reference="
    )
    for judge in (
        lambda **options: check(x, x, x, x, **options),
        lambda **options: error_bound(x, x, x, **options),
    ):
        with pytest.raises(kind, match=message):
            judge(reference=bad)


def test_cpu_kernels_never_judge_themselves():
    x = dense(1, 3, 4)
    with pytest.raises(ValueError, match="reference must not be 'cpu_kernels' for kernels of cpu_kernels"):
        check(x, x, x, x, spec="cpu_kernels float32", reference="cpu_kernels")


def test_cpu_kernels_cannot_be_asked_for_without_numba(monkeypatch):
    monkeypatch.setattr(compiled_reference.importlib.util, "find_spec", lambda name: None)
    x = dense(1, 3, 4)
    with pytest.raises(ValueError, match="reference must be 'cpu_kernels' only where Numba is installed"):
        check(x, x, x, x, reference="cpu_kernels")


def test_explanations_of_a_failed_check_compute_the_reference_once(monkeypatch):
    """And in the rows that were looked at."""
    from refattn.oracle.bounds import reference

    asked = []
    solve = reference.solve
    monkeypatch.setattr(
        reference,
        "solve",
        lambda problem, rows, **rest: asked.append(rows) or solve(problem, rows=rows, **rest),
    )
    query, key, value = (dense(2, 60, 16).astype(ml_dtypes.bfloat16) for _ in range(3))
    eager = EmulatedKernel(KernelSpec.eager("bfloat16"))(query, key, value)[0]
    with pytest.raises(AssertionError, match="reference  NumPy, float64"):
        assert_attention_close(eager, query, key, value, spec=FLASH, rows=5)
    asked = [rows(60).tolist() for rows in asked if len(rows(60)) == 5]  # fewer: in another axis order
    assert len(asked) == 2 and asked[0] == asked[1]


# Of rows, and of latent attention


@pytest.mark.parametrize("name", ["exact", "float64"])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_only_the_rows_asked_for_are_computed(form, name):
    inputs = inputs_of(form).with_options((), np.float32, 0)
    whole = reference_results(form.function, inputs.arrays, inputs.options, FLASH, name)
    some = reference_results(
        form.function, inputs.arrays, inputs.options, FLASH, name, lambda q_len: np.arange(0, q_len, 2)
    )
    for got, right in zip(some.results, whole.results, strict=True):
        computed = got != 0
        assert 0.2 < computed.mean() < 0.9
        np.testing.assert_allclose(got[computed], right[computed], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("form", ["absorb", "expand"])
@pytest.mark.parametrize(("rows", "cheaper"), [(1, "absorb"), (300, "expand")])
def test_latent_attention_takes_the_cheaper_form_whichever_is_judged(form, rows, cheaper):
    arrays = [
        dense(2, rows, 8),
        dense(2, rows, 4),
        dense(300, 64),
        dense(300, 4),
        dense(2, 8, 64),
        dense(2, 8, 64),
    ]
    problem = problem_of("latent_attention", arrays, {"form": form})
    assert cheaper_form(problem) == cheaper and cheaper_form(problem, lambda q_len: [0]) == "absorb"
    found = reference_results("latent_attention", arrays, {"form": form}, FLASH, "float64")
    plain = refattn.latent_attention(*arrays, form=cheaper, precision="float64")
    np.testing.assert_array_equal(found.output, plain)


# What hidden keys, padding and infinities do to a reference in float64


def padded(dtype, fill):
    """Decode in which 56 of 256 keys are padding: arrays, options."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((8, length, 64)).astype(dtype) for length in (1, 256, 256)]
    return arrays, {"bias": np.where(np.arange(256) < 200, 0.0, fill).astype(np.float32)[None]}


def poisoned(dtype):
    """Causal attention in which only the last row sees a huge value."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((2, 128, 16)).astype(dtype) for _ in range(3)]
    arrays[2][:, -1] = 1e30
    return arrays, {"causal": True}


HOSTILE = {
    "padding, -1e9": lambda dtype: padded(dtype, -1e9),
    "padding, smallest float32": lambda dtype: padded(dtype, np.finfo(np.float32).min),
    "huge value that is hidden": poisoned,
}


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("hostile", HOSTILE)
def test_float64_widens_no_bound(hostile, dtype):
    arrays, options = HOSTILE[hostile](dtype)
    spec = KernelSpec.flash(np.dtype(dtype).name)
    bounds, exact = (
        error_bound(*arrays, spec=spec, reference=reference, **options) for reference in ("float64", "exact")
    )
    for name in ("output_hard", "output_tight", "lse_hard", "lse_tight"):
        np.testing.assert_allclose(getattr(bounds, name), getattr(exact, name), rtol=1e-5)


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_wrong_lse_fails_beside_float64(hostile):
    arrays, options = HOSTILE[hostile](np.float32)
    output, lse = (np.float32(array) for array in refattn.attention_with_lse(*arrays, **options))
    assert check(output, *arrays, lse=lse, **options).passed
    for wrong in (lse / np.float32(np.log(2.0)), 0.0 * lse):
        assert check(output, *arrays, lse=wrong, **options).wrong


@pytest.mark.parametrize("form", ["absorb", "expand"])
@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("name", range(6))
def test_positions_of_what_is_not_finite_are_those_of_the_form(name, number, form):
    shapes = (1, 4, 3, 4), (1, 4, 3, 2), (1, 6, 8), (1, 6, 2), (4, 4, 8), (4, 5, 8)
    arrays = [dense(*shape) for shape in shapes]
    arrays[name].reshape(-1)[-3] = number
    options = {"form": form, "causal": True, "q_offset": -1}  # row 0 sees no key
    results = [
        reference_results("latent_attention", arrays, options, FLASH, name).results
        for name in ("float64", "exact")
    ]
    for got, wanted in zip(*results, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-12)


@pytest.mark.parametrize("shapes", [((3,), (2,)), ((1, 3, 4), (3,)), ((1, 3, 5), (1, 3))])
def test_results_of_another_shape_are_refused(shapes):
    x = dense(1, 3, 4)
    with pytest.raises(ValueError, match=r"reference must return (output|lse) of shape \(1, 3.*; got "):
        check(x, x, x, x, reference=lambda *arrays: tuple(map(np.zeros, shapes)))
