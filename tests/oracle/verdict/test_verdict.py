"""check and assert_attention_close: correct kernels pass, each tier catches what it is for, and the
report says what is wrong and where.
"""

import ast
import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import refattn
from refattn.oracle import EmulatedKernel, KernelSpec, assert_attention_close, check
from refattn.oracle.arithmetic.formats import round_to
from refattn.oracle.bounds.operands import operands
from refattn.oracle.bounds.reference import reference_results
from refattn.oracle.bounds.results import OUTPUT, RESULTS
from refattn.oracle.bounds.row_blocks import Place, tiles
from refattn.oracle.verdict import row_map

HALF = KernelSpec.flash("bfloat16")


def sample(seed=0, batch=(), heads=4, kv_heads=2, q_len=32, kv_len=48, dim=16, v_dim=24, dtype="bfloat16"):
    rng = np.random.default_rng(seed)
    shapes = (heads, q_len, dim), (kv_heads, kv_len, dim), (kv_heads, kv_len, v_dim)
    return [round_to(rng.normal(size=(*batch, *shape)), dtype) for shape in shapes]


@pytest.fixture(scope="module")
def kernel_result():
    """Inputs, options, output and lse of a correct bfloat16 kernel."""
    arrays, options = sample(batch=(2,)), {"causal": True}
    return arrays, options, *EmulatedKernel(HALF)(*arrays, **options)


def judge(kernel_result, output=None, lse=None, **changes):
    arrays, options, right_output, right_lse = kernel_result
    output = right_output if output is None else output
    return check(
        output, *arrays, lse=right_lse if lse is None else lse, **{"spec": HALF, **options, **changes}
    )


# Passing


def test_correct_kernel_passes(kernel_result):
    report = judge(kernel_result)
    assert report and report.passed and report.failed == ()
    assert 0.05 < report.output.use_tight < 1 and report.output.use_hard <= report.output.use_tight
    assert 0.7 < report.output.rms < 1.2
    assert report.output.checked == 2 * 4 * 32 * 24 and report.lse.checked == 2 * 4 * 32
    assert report.summary.startswith("attention: pass, bound used 0.") and "worst at batch" in report.summary
    assert repr(report) == f"<Report {report.summary}>"


def test_exact_output_uses_nothing():
    arrays = sample(dtype="float64")
    output, lse = refattn.attention_with_lse(*arrays)
    report = check(output, *arrays, lse=lse)
    assert report.output.use_tight == 0 and report.output.worst is None and "nowhere" in report.summary


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_spec_is_inferred_from_the_output_and_said(dtype):
    arrays = [array.astype(dtype) for array in sample()]
    output = refattn.attention(*arrays).astype(dtype)
    report = check(output, *arrays)
    assert report.passed and report.spec == KernelSpec.flash(np.dtype(dtype)) and report.inferred
    assert "taken from the dtype of the output" in report.text()
    assert "taken from" not in check(output, *arrays, spec=np.dtype(dtype)).text()


def test_assert_passes_and_raises_the_report(kernel_result):
    arrays, options, output, lse = kernel_result
    assert assert_attention_close(output, *arrays, lse=lse, spec=HALF, **options) is None
    with pytest.raises(
        AssertionError, match=r"FAIL: errors of up to .* times the bound, in .*\(hard, tight, aggregate\)"
    ) as caught:
        assert_attention_close(1.1 * output, *arrays, spec=HALF, **options)
    assert "beyond the bound: " in str(caught.value) and "flash bfloat16" in str(caught.value)
    assert any(
        entry.name == "assert_attention_close" and entry.frame.f_locals["__tracebackhide__"]
        for entry in caught.traceback
    )


def test_torch_scaled_dot_product_attention_passes():
    torch = pytest.importorskip("torch")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        q, k, v = (torch.from_numpy(array).to(dtype) for array in sample(batch=(1,), kv_heads=4, q_len=48))
        output = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        report = check(output, q, k, v, causal=True)
        assert report.passed and report.output.use_tight > 0.05, report.text()


# Each tier catches what it is for


def test_nan_and_infinity_out_of_place(kernel_result):
    for bad in (np.nan, np.inf, -np.inf):
        output = kernel_result[2].copy()
        output[1, 2, 5, 7] = bad
        report = judge(kernel_result, output)
        assert report.failed == ("output positions",) and report.output.misplaced == 1
        assert report.output.worst == (1, 2, 5, 7) and "where finite numbers belong" in report.summary


def test_missing_nan_is_noticed():
    q, k, v = sample()
    k = k.copy()
    k[1, 40] = np.nan  # heads 2 and 3, the rows that see key 40: position >= 40 means row >= 24
    output, lse = EmulatedKernel(HALF)(q, k, v, causal=True)
    assert check(output, q, k, v, lse=lse, spec=HALF, causal=True).passed
    swallowed = check(np.nan_to_num(output), q, k, v, spec=HALF, causal=True)
    assert swallowed.failed == ("output positions",) and swallowed.output.misplaced == 2 * 8 * 24


def test_infinite_values():
    q, k, v = sample()
    v = v.copy()
    v[0, 3, 5] = np.inf
    output, lse = EmulatedKernel(HALF)(q, k, v)
    assert check(output, q, k, v, lse=lse, spec=HALF).passed
    output[0, 0, 5] = 1.0
    assert check(output, q, k, v, spec=HALF).failed == ("output positions",)


def test_infinite_value_of_a_vanishing_weight_may_give_nan():
    q, k, v = np.ones((1, 1, 1)), np.array([[[0.0], [-200.0]]]), np.array([[[1.0], [np.inf]]])
    assert np.isinf(refattn.attention(q, k, v, scale=1.0))
    assert check(np.full((1, 1, 1), np.nan), q, k, v, spec="float32", scale=1.0).passed
    assert not check(np.full((1, 1, 1), 1.0), q, k, v, spec="float32", scale=1.0).passed
    assert not check(np.full((1, 1, 1), np.nan), q, 0.01 * k, v, spec="float32", scale=1.0).passed


@pytest.mark.parametrize("empty_lse", [np.inf, np.nan, -1e30])
def test_rows_that_see_nothing_must_be_zero_with_lse_minus_infinity(empty_lse):
    arrays = sample()
    output, lse = EmulatedKernel(HALF)(*arrays, causal=True, q_offset=-4)
    assert check(output, *arrays, lse=lse, spec=HALF, causal=True, q_offset=-4).passed
    other = np.where(np.isneginf(lse), empty_lse, lse)
    assert check(output, *arrays, lse=other, spec=HALF, causal=True, q_offset=-4).failed == (
        "lse positions",
    )
    wrong = output.copy()
    wrong[0, 0, 0] = 1e-30
    report = check(wrong, *arrays, spec=HALF, causal=True, q_offset=-4)
    assert "output hard" in report.failed and report.output.worst == (0, 0, 0)


def test_one_wrong_element_is_found_and_named(kernel_result):
    output = kernel_result[2].copy()
    output[1, 3, 17, 5] += 0.2
    report = judge(kernel_result, output)
    assert {"output hard", "output tight"} <= set(report.failed) and "lse hard" not in report.failed
    assert report.output.worst == (1, 3, 17, 5)
    assert "worst at batch 1 head 3 row 17 dim 5" in report.summary
    assert "1 of 256 rows; head 3 of 4; row 17 of 32, the first is 17; dim 5 of 24" in report.text()
    np.testing.assert_allclose(report.output.at_worst["error"], 0.2, rtol=0.2)


def test_tight_tier_catches_what_the_hard_bound_allows():
    """Output off by a few units of float32's last digits, 4096 keys: every element within the
    rigorous bound.
    """
    arrays = sample(heads=1, kv_heads=1, q_len=8, kv_len=4096, dtype="float32")
    spec = KernelSpec.flash("float32")
    output, _ = EmulatedKernel(spec)(*arrays)
    report = check(output * (1 + 5e-5), *arrays, spec=spec)
    assert "output tight" in report.failed and "output hard" not in report.failed


def test_aggregate_tier_catches_errors_that_never_stick_out():
    """Output truncated in place of rounded: no element beyond its bound, all of them a little worse."""
    arrays = sample(heads=4, kv_heads=4, q_len=256, kv_len=64, dtype="bfloat16")
    output, _ = EmulatedKernel(HALF.replace(output="float32", name="wide"))(*arrays)
    report = check(round_to(output, "bfloat16", truncate=True), *arrays, spec=HALF)
    assert report.failed == ("output aggregate", "output lean") and report.output.use_hard < 1


def test_lse_is_judged_like_the_output(kernel_result):
    lse = kernel_result[3] / np.log(2.0)  # base 2
    report = judge(kernel_result, lse=lse)
    assert {"lse hard", "lse tight"} <= set(report.failed) and not any(
        name.startswith("output") for name in report.failed
    )
    assert (
        "FAIL: lse: errors of" in report.summary
        and report.lse.worst is not None
        and len(report.lse.worst) == 3
    )


@pytest.mark.parametrize(
    "mistake",
    [
        {"causal": False},
        {"scale": 0.26},
        {"softcap": 20.0},
        {"q_offset": 0},
        {"window": (20, 0)},
        {"sinks": [0.0] * 4},
        {"kv_lengths": 47},
    ],
    ids=str,
)
def test_mistaken_options_are_caught(kernel_result, mistake):
    arrays, options, *_ = kernel_result
    output, lse = EmulatedKernel(HALF)(*arrays, **{**options, **mistake})
    report = check(output, *arrays, lse=lse, spec=HALF, **options)
    assert not report.passed


def test_claiming_too_much_precision_is_caught(kernel_result):
    """A bfloat16 kernel whose weights are rounded to three bits of fraction."""
    arrays, options, *_ = kernel_result
    output, _ = EmulatedKernel(HALF.replace(weight="float8_e4m3fn", weight_scale=256.0))(*arrays, **options)
    assert "output aggregate" in judge(kernel_result, output).failed


# Overflow


def test_output_beyond_float16():
    q, k, v = np.zeros((1, 1, 4)), np.zeros((1, 4, 4)), np.full((1, 4, 2), 60000.0)
    v[0, :, 1] = 65504.0
    spec = KernelSpec.flash("float16").replace(output="float16")
    dropout = {"dropout_mask": np.ones((1, 4), dtype=bool), "dropout_rate": 0.5}  # doubles the output
    assert check(np.full((1, 1, 2), np.inf), q, k, v, spec=spec, **dropout).passed
    assert not check(np.full((1, 1, 2), -np.inf), q, k, v, spec=spec, **dropout).passed
    assert not check(np.full((1, 1, 2), np.nan), q, k, v, spec=spec, **dropout).passed
    assert not check(np.full((1, 1, 2), np.inf), q, k, 0.5 * v, spec=spec).passed


def test_unclaimed_elements_are_counted_not_judged():
    q, k, v = np.full((1, 1, 64), 64.0), np.full((1, 2, 64), 32.0), np.ones((1, 2, 3))
    report = check(np.full((1, 1, 3), np.nan), q, k, v, spec=KernelSpec.eager("float16"))
    assert not report.wrong and report.output.unclaimed == 3 and "not judged" in report.warnings[0]


# Shapes


@pytest.mark.parametrize(
    "change, hint",
    [
        (lambda x: x.swapaxes(1, 2), "swap axes -3 and -2"),
        (lambda x: x.swapaxes(2, 3), "last two axes fit swapped"),
        (lambda x: x.swapaxes(1, 2).reshape(2, 32, -1), "Heads and dim are joined"),
        (lambda x: x.reshape(8, 32, 24), "Two axes are joined"),
        (lambda x: x[:, None], "an axis of length 1 too many"),
        (lambda x: x[..., :-1], ""),
    ],
)
def test_wrong_shapes_are_reported_with_what_they_may_mean(kernel_result, change, hint):
    report = judge(kernel_result, change(kernel_result[2]))
    assert report.failed == ("output shape",) and report.output is None
    assert "must have shape (2, 4, 32, 24)" in report.summary and hint in report.summary
    with pytest.raises(ValueError, match="nothing was compared|shapes did not match"):
        report.picture("unused.png")


def test_wrong_lse_shape(kernel_result):
    report = judge(kernel_result, lse=kernel_result[3].swapaxes(1, 2))
    assert report.failed == ("lse shape",) and "lse must have shape (2, 4, 32)" in report.summary


# Forms, references, rows


def test_forms():
    rng = np.random.default_rng(0)
    arrays = [
        round_to(rng.normal(size=shape), "float16")
        for shape in ((2, 9, 8), (2, 9, 4), (20, 12), (20, 4), (2, 8, 12), (2, 6, 12))
    ]
    kernel = EmulatedKernel(KernelSpec.flash("float16"))
    for form in ("absorb", "expand"):
        call = {"function": "latent_attention", "form": form, "causal": True}
        output, lse = kernel(*arrays, **call)
        report = check(output, *arrays, lse=lse, spec=kernel.spec, **call)
        assert report.passed and report.summary.startswith("latent_attention: pass")
        assert not check(1.01 * output, *arrays, spec=kernel.spec, **call).passed
    q, k, v = sample(dtype="float16")
    call = {"function": "packed_attention", "cu_q": [0, 10, 32], "cu_kv": [0, 20, 48]}
    output, lse = kernel(q, k, v, **call)
    assert check(output, q, k, v, lse=lse, spec=kernel.spec, **call).passed
    output[2, 15] *= 1.1
    report = check(output, q, k, v, spec=kernel.spec, **call)
    assert report.output.worst[:2] == (2, 15)


def test_reference_in_float64_is_used(kernel_result):
    arrays, options, output, lse = kernel_result
    calls = []

    def fast_reference(*arrays, **options):
        calls.append([array.dtype for array in arrays])
        return refattn.attention_with_lse(*arrays, **options)

    report = check(output, *arrays, lse=lse, spec=HALF, reference=fast_reference, **options)
    assert report.passed and calls == [[np.float64] * 3] and "fast_reference in float64" in report.text()


def test_a_sample_of_rows(kernel_result):
    _arrays, _options, right, _lse = kernel_result
    report = judge(kernel_result, rows=5)
    assert report.passed and report.output.rows_checked == 2 * 4 * 5
    looked_at = ~np.isnan(report.output.use_map)
    assert looked_at[..., 0].all() and looked_at[..., -1].all()
    again = judge(kernel_result, rows=5)
    np.testing.assert_array_equal(looked_at, ~np.isnan(again.output.use_map))
    row = int(np.flatnonzero(looked_at[0, 0])[1])
    wrong = right.copy()
    wrong[0, 2, row] += 1
    assert judge(kernel_result, wrong, rows=5).output.worst[:3] == (0, 2, row)
    other = int(np.flatnonzero(~looked_at[0, 0])[0])
    holes = right.copy()
    holes[1, 1, other, 3] = np.nan
    report = judge(kernel_result, holes, rows=5)  # the inputs alone say that it must be finite
    assert report.failed == ("output positions",) and report.output.worst == (1, 1, other, 3)
    assert "5 rows" not in judge(kernel_result, rows=100).text()
    for bad, kind in ((0, ValueError), (2.5, TypeError)):
        with pytest.raises(kind, match="rows must be"):
            judge(kernel_result, rows=bad)


@pytest.mark.campaign
def test_memory_stays_bounded_where_scores_would_not_fit():
    """4096 x 4096 scores are 128 MiB an array in float64; the check must hold far less than the score
    arrays it reads from.
    """
    arrays = [
        array.astype(np.float32)
        for array in sample(heads=1, kv_heads=1, q_len=4096, kv_len=4096, dim=4, v_dim=4, dtype="float32")
    ]
    output = refattn.attention(*arrays, causal=True).astype(np.float32)
    tracemalloc.start()
    try:
        assert check(output, *arrays, causal=True, rows=600).passed
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 400 * 2**20


# The report


def test_json_holds_the_numbers_and_is_valid(kernel_result):
    output = kernel_result[2].copy()
    output[0, 1, 9, 3] = np.nan
    plain = json.loads(judge(kernel_result, output).to_json(indent=1), parse_constant=pytest.fail)
    assert plain["passed"] is False and plain["failed"] == ["output positions"]
    assert plain["output"]["worst"] == [0, 1, 9, 3] and plain["output"]["at_worst"]["got"] == "nan"
    assert plain["spec"]["weight"] == "bfloat16" and np.shape(plain["output"]["use_by_head"]) == (2, 4)
    assert (
        plain["output"]["use_by_head"][0][1] == "inf"
        and sum(plain["output"]["histogram"]) == plain["output"]["checked"]
    )


def test_heat_map_shows_where(kernel_result):
    output = kernel_result[2].copy()
    output[1, 2, 20:] += 1.0
    title, *lines, legend = judge(kernel_result, output).output.heat_map().splitlines()
    drawn = dict(line.strip().split(" |") for line in lines)
    beyond = [label for label, line in drawn.items() if any(c in "123456789X" for c in line)]
    assert beyond == ["1.2"] and set(drawn["1.2"][20:32]) == {"3"} and not drawn["1.2"][:20].strip(" .:")
    assert "batch.head" in title and "3 up to 1,000 times" in legend and "?" not in legend


def test_heads_that_look_alike_are_one_line():
    query, key, value = np.zeros((3, 6, 8, 4), np.float32)
    output = np.zeros_like(query)
    output[2] = np.nan
    lines = check(output, query, key, value).output.heat_map().splitlines()
    assert [line.split(" |")[0].strip() for line in lines[1:-1]] == ["0-1", "2", "3-5"]


@pytest.mark.parametrize("size", [1e-5, 1e-3, 1.0, 1e9])
def test_no_size_of_an_error_is_hidden(size):
    arrays = sample(heads=2, kv_heads=2, q_len=9, kv_len=5, dtype="float32")
    output = refattn.attention(*arrays)
    output[0, 3] += size
    measure = check(output, *arrays, spec="float32").output
    _, line, *_, legend = measure.heat_map().splitlines()
    power = min(int(np.ceil(np.log10(measure.use_tight))), 9)
    assert line.split("|")[1][3] == str(power) and row_map.LEGEND[str(power)] in legend


def test_every_symbol_has_a_legend():
    uses = [row_map.LEFT_OUT, row_map.NOT_LOOKED_AT, 0.0, 0.3, 0.9, *10.0 ** np.arange(0.5, 12), np.inf]
    assert {row_map.symbol(use) for use in uses} == {*row_map.LEGEND}
    assert all(mark == words[0] or mark == " " for mark, words in row_map.LEGEND.items())


def test_heat_map_of_long_rows_is_pooled():
    arrays = sample(heads=40, kv_heads=40, q_len=500, kv_len=4, dim=2, v_dim=2, dtype="float32")
    output = refattn.attention(*arrays)
    output[39, 499] += 1
    *lines, _ = check(output, *arrays, spec="float32").output.heat_map().splitlines()
    label, line = lines[-1].rstrip("|").split(" |")
    assert label == "38-39" and len(line) == 64 and line[-1] in "123456789" and not line[:-1].strip(" .:")


def test_picture(kernel_result, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "report.png"
    judge(kernel_result).picture(path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_picture_without_matplotlib_says_so(kernel_result, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="picture must have matplotlib"):
        judge(kernel_result).picture("unused.png")


def test_narrower_output_than_claimed_is_mentioned(kernel_result):
    arrays, options, output, _ = kernel_result
    report = check(output.astype(ml_dtypes.bfloat16), *arrays, spec="float32", **options)
    assert any("narrower than the float32" in warning for warning in report.warnings)


@pytest.mark.parametrize("shape", [(0, 5, 4, 3), (5, 0, 4, 3), (5, 5, 4, 0)])
def test_empty_sizes(shape):
    q_len, kv_len, dim, v_dim = shape
    arrays = sample(heads=2, kv_heads=1, q_len=q_len, kv_len=kv_len, dim=dim, v_dim=v_dim)
    report = check(np.zeros((2, q_len, v_dim)), *arrays, lse=refattn.attention_with_lse(*arrays)[1])
    assert report.passed and report.text() and report.to_json()


def test_errors_are_those_of_the_function(kernel_result):
    (q, k, v), _options, output, _ = kernel_result
    with pytest.raises(ValueError, match="query and key must have the same head_dim"):
        check(output, q, k[..., :-1], v)
    with pytest.raises(TypeError, match="actual must be float16, bfloat16"):
        check(output.astype(int), q, k, v)
    with pytest.raises(ValueError, match="function must be one of"):
        check(output, q, k, v, function="attn")


# What is particular about a result is data on its record


@pytest.mark.parametrize("room", ["oracle", "goldens", "commands"])
def test_nothing_compares_the_name_of_a_result(room):
    names = {result.name for result in RESULTS}
    asking = []
    for path in sorted((Path(refattn.__file__).parent / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Eq | ast.NotEq):
                sides = [
                    side.value for side in (node.left, *node.comparators) if isinstance(side, ast.Constant)
                ]
                asking += [f"{path.name}:{node.lineno}" for side in sides if side in names]
    assert not asking


@pytest.mark.parametrize("rows", [None, lambda q_len: np.array([0, q_len - 1])], ids=["all", "picked"])
@pytest.mark.parametrize("function", ["attention", "packed_attention"])
def test_rows_cut_from_a_result_are_written_back_where_they_were(monkeypatch, function, rows):
    monkeypatch.setattr("refattn.oracle.bounds.row_blocks.BLOCK_SCORES", 20)
    query, key, value = sample(q_len=7, kv_len=7)
    cuts = {"cu_q": [0, 3, 7], "cu_kv": [0, 3, 7]} if function == "packed_attention" else {}
    exact = reference_results(function, (query, key, value), cuts, HALF, "exact").results
    call = operands(function, (query, key, value), cuts, HALF)
    copies = [np.full_like(array, np.nan) for array in exact]
    for tile in tiles(call, exact, rows):
        for result, array, copy in zip(RESULTS, exact, copies, strict=True):
            assert tile.exact(result).tolist() == tile.place.cut(result, array).tolist()
            tile.place.write(result, copy, tile.exact(result))
    for result, array, copy in zip(RESULTS, exact, copies, strict=True):
        assert array.shape == result.shape(call.output_shape)
        assert (np.isnan(copy) | (copy == array)).all() and np.isnan(copy).any() == (rows is not None)


@pytest.mark.parametrize("axes", [("head", "row"), ("head", "key"), ("head", "key", "dim")])
def test_a_place_cuts_along_the_axes_of_the_record(axes):
    """A gradient of keys has rows of keys."""
    query, key, value = sample(q_len=7, kv_len=9)
    part = next(operands("attention", (query, key, value), {}, HALF).parts)
    numbers = {"head": slice(0, 1), "row": slice(2, 5), "key": np.array([0, 4, 8])}
    place, result = Place(part, (), numbers), replace(OUTPUT, axes=axes)
    array = np.random.default_rng(0).standard_normal((2, 9, 3) if "dim" in axes else (2, 9))
    cut = array[numbers["head"]][:, numbers[axes[1]]]
    assert place.cut(result, array).tolist() == cut.reshape(3, -1).tolist()
    copy = np.full_like(array, np.nan)
    place.write(result, copy, place.cut(result, array))
    assert np.array_equal(copy[numbers["head"]][:, numbers[axes[1]]], cut)
    assert np.isfinite(copy).sum() == cut.size
    of_rows = np.zeros(result.row_shape(array.shape))
    place.write_rows(result, of_rows, np.ones(3))
    assert of_rows.sum() == 3 and (of_rows[numbers["head"]][:, numbers[axes[1]]] == 1).all()


def one_channel(*numbers, dtype=np.float64):
    return np.array(numbers, dtype=dtype).reshape(1, -1, 1)


# calls whose exact result is finite although float64, step by step, meets NaN or infinity on the way
BEYOND = {
    "a NaN key that a bias hides": (
        one_channel(1.0),
        one_channel(np.nan, 1.0),
        one_channel(7.0, 0.6),
        {"bias": np.array([[-np.inf, 0.0]])},
    ),
    "an infinite key that a bias hides": (
        one_channel(1.0),
        one_channel(np.inf, 1.0),
        one_channel(7.0, 0.6),
        {"bias": np.array([[-np.inf, 0.0]])},
    ),
    "a product beyond float64": (
        one_channel(1e200),
        one_channel(1e200),
        one_channel(3.0),
        {"scale": 1e-300},
    ),
    "a score below float64": (one_channel(1e200), one_channel(-1e200), one_channel(3.0), {}),
}


@pytest.mark.parametrize("query, key, value, options", BEYOND.values(), ids=BEYOND)
def test_no_right_result_is_wrong_where_float64_leaves_its_range_on_the_way(query, key, value, options):
    """Nothing is claimed there, but a mean of the visible values is not called wrong, and what is
    none still is.
    """
    output, lse = refattn.attention_with_lse(query, key, value, **options)
    assert not check(output, query, key, value, lse=lse, **options).wrong
    assert check(output + 10.0, query, key, value, lse=lse, **options).wrong
