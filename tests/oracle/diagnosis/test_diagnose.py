"""diagnose: names hand-written wrong kernels, foreign libraries, mutants and pairs; finds layouts
first; admits what it does not know.
"""

import math

import ml_dtypes
import numpy as np
import pytest
from real_libraries import CALLS, MODULES
from wrong_kernels import CASES

import refattn
from refattn.oracle.bounds.results import RESULTS
from refattn.oracle.diagnosis import hypotheses
from refattn.oracle.diagnosis.hypotheses import single_hypotheses
from refattn.oracle.diagnosis.search import diagnose
from refattn.oracle.inputs.families import Sizes, attention_inputs
from refattn.oracle.inputs.latent import latent_inputs
from refattn.oracle.inputs.merge import merge_inputs
from refattn.oracle.inputs.packed import packed_inputs
from refattn.oracle.inputs.paged import paged_inputs
from refattn.oracle.inputs.rotary import rotary_inputs
from refattn.oracle.inputs.suites import default_suite
from refattn.oracle.mistakes.catalogue import BY_ID
from refattn.oracle.mistakes.mutants import MUTANTS, correct_kernel, staged_kernel
from refattn.oracle.mistakes.wrong_kernel import checked_call
from refattn.oracle.verdict.check import check

SIZES = Sizes(batch=2, num_heads=4, num_kv_heads=2, q_len=9, kv_len=45, head_dim=16, v_head_dim=16)


def names_of(diagnosis):
    best = diagnosis.best
    return {best.id, *best.same_as} if best.explains else set()


@pytest.mark.parametrize(
    ("kernel", "given", "expected"), CASES, ids=lambda value: getattr(value, "__name__", None)
)
def test_hand_written_wrong_kernels(kernel, given, expected):
    names, extra = (sorted(given), {}) if isinstance(given, set) else ((), given)
    inputs = attention_inputs(
        "wide",
        [*names, *(["causal"] if kernel.__name__ == "window_counts_keys" else [])],
        sizes=SIZES,
        dtype=np.float64,
    )
    options = {**inputs.options, **extra}
    taken = {
        name: value
        for name, value in options.items()
        if name in kernel.__code__.co_varnames and name != "causal"
    }
    output, lse = kernel(*inputs.arrays, **taken)
    found = diagnose(output, *inputs.arrays, lse=lse, **options)
    assert found.best.id == expected or expected in names_of(found), str(found)
    assert found.verdict == "explained"


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("torch", {"is_causal": True}, "causal_top_left"),
        ("jax", {"is_causal": True}, "causal_top_left"),
        ("onnx", {"is_causal": 1, "scale": 0.25}, "causal_top_left"),
        ("onnxruntime", {"is_causal": 1, "scale": 0.25}, "causal_top_left"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # the libraries' own
def test_a_real_library_called_with_its_own_causal_flag(name, options, expected):
    pytest.importorskip(MODULES[name])
    inputs = attention_inputs("normal", sizes=SIZES)
    arrays = [array.swapaxes(1, 2) for array in inputs.arrays] if name == "jax" else inputs.arrays
    keys = ("Q", "K", "V") if name.startswith("onnx") else ("query", "key", "value")
    output, _ = CALLS[name](**dict(zip(keys, arrays, strict=True)), **options)
    output = output.swapaxes(1, 2) if name == "jax" else output
    found = diagnose(output, *inputs.arrays, causal=True)
    assert found.best.id == expected
    assert found.best.remedy == "q_offset=0"


@pytest.mark.parametrize("name", ["jax", "mlx"])
@pytest.mark.filterwarnings("ignore")
def test_rows_without_keys_of_real_libraries_are_recognised(name):
    pytest.importorskip(MODULES[name])
    inputs = attention_inputs("empty rows", sizes=SIZES)
    swap = (lambda x: x.swapaxes(1, 2)) if name == "jax" else (lambda x: x)
    keys, scale = (("query", "key", "value"), {}) if name == "jax" else (("q", "k", "v"), {"scale": 0.25})
    output, _ = CALLS[name](
        **dict(zip(keys, map(swap, inputs.arrays), strict=True)), mask=inputs.options["mask"], **scale
    )
    assert "hidden_is_finite_minimum" in names_of(diagnose(swap(output), *inputs.arrays, **inputs.options))


# one or two of every part of the catalogue; benchmarks/oracle_table.py does them all
SOME = (
    "aligned_to_capacity",
    "window_symmetric",
    "window_right_minus_one",
    "window_left_is_kv_len",
    "alibi_twice",
    "mask_axes_swapped",
    "lengths_ignored",
    "empty_row_lse_plus_inf",
    "heads_shifted_group",
    "heads_repeated_along_keys",
    "tail_dims_dropped",
    "inputs_heads_and_rows_swapped",
    "softcap_after_mask",
    "alibi_of_key_only",
    "sinks_in_base_two",
    "dropout_before_softmax",
    "constant_added",
    "last_tile_twice",
    "tail_stale_seen",
    "merged_in_base_two",
    "nan_of_hidden_value",
    "weights_truncated",
    "output_truncated",
    "accumulator_float16",
    "packed_leak_one",
    "page_off_by_one",
    "page_tail_seen",
    "mla_scale_of_latent_width",
    "mla_scale_without_mscale",
    "mla_rope_layouts_mixed",
    "rope_other_pairs",
    "rope_rows_from_zero",
    "merge_empty_nan",
    "one_element_off",
)


@pytest.mark.sample(5)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", SOME)
def test_mutants_are_named(name, dtype):
    mutant = next(mutant for mutant in MUTANTS if mutant.id == name)
    for inputs in default_suite(dtype):
        if (
            inputs.function != mutant.function
            or inputs.family == "exact"
            or (mutant.families and inputs.family not in mutant.families)
        ):
            continue
        output, lse = inputs.call(mutant)
        right = inputs.call(correct_kernel(inputs.function))
        if all(
            np.array_equal(got, want, equal_nan=True) for got, want in zip((output, lse), right, strict=True)
        ):
            continue
        found = diagnose(output, *inputs.arrays, lse=lse, **inputs.options)
        if found.verdict == "agrees":
            continue
        assert name in names_of(found), str(found)
        return
    pytest.fail("no input shows it")


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    "pair",
    [
        ("heads_tiled", "scale_omitted"),
        ("output_heads_and_rows_swapped", "sinks_dropped"),
        ("causal_top_left", "lse_base_two"),
        ("bias_sign", "alibi_sign"),
    ],
)
def test_two_mistakes_at_once(pair):
    inputs = attention_inputs(
        "wide", ("causal", "alibi", "sinks", "bias"), sizes=Sizes(2, 6, 2, 7, 37, 24, 20)
    )
    output, lse = staged_kernel(*(BY_ID[name] for name in pair))(*inputs.arrays, **inputs.options)
    found = diagnose(output, *inputs.arrays, lse=lse, seconds=60, **inputs.options)
    assert set(found.best.id.split(" + ")) == {*pair} and found.best.explains, str(found)


def test_axis_order_is_seen_from_the_shape():
    inputs = attention_inputs("normal", sizes=Sizes(2, 6, 2, 7, 37, 24, 20))
    output = refattn.attention(*inputs.arrays)
    found = diagnose(output.transpose(0, 2, 1, 3), *inputs.arrays)
    assert (
        found.best.says
        == "the output should have shape (2, 6, 7, 20); its axes are (batch, length, heads, dim)"
    )
    assert found.best.remedy == "actual.transpose(0, 2, 1, 3)"
    merged = output.transpose(0, 2, 1, 3).reshape(2, 7, 120)
    assert "(..., length, heads, dim)" in diagnose(merged, *inputs.arrays).best.says
    lost = diagnose(output[:, :, :-1], *inputs.arrays)
    assert lost.verdict == "unexplained"
    assert "should have shape (2, 6, 7, 20), the actual one has (2, 6, 6, 20)" in str(lost)


@pytest.mark.parametrize(
    "dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16], ids=lambda dtype: np.dtype(dtype).name
)
def test_correct_results_agree(dtype):
    cases = [
        attention_inputs("wide", names, dtype=dtype)
        for names in ((), ("causal", "softcap", "alibi"), ("mask", "sinks"), ("lengths", "bias"))
    ]
    cases += [
        make(dtype, causal=True) for make in (packed_inputs, paged_inputs, latent_inputs, rotary_inputs)
    ] + [merge_inputs(dtype)]
    for inputs in cases:
        output, lse = inputs.call(correct_kernel(inputs.function))
        found = diagnose(output, *inputs.arrays, lse=lse, **inputs.options)
        assert found.verdict == "agrees", f"{inputs.name}: {found}"
        assert str(found).startswith("The result agrees with the reference")


def test_nothing_explains_noise_and_it_says_where():
    inputs = attention_inputs("normal", sizes=Sizes(2, 4, 2, 48, 45, 16, 16))
    output = refattn.attention(*inputs.arrays).astype(np.float32)
    output[1, 2, 32:] += np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32)
    found = diagnose(output, *inputs.arrays, seconds=5)
    assert found.verdict == "unexplained"
    assert found.location == (
        "4.2% of the output elements are wrong, by up to 3.11. Wrong sequences: 1. Wrong heads: 2. "
        "Wrong rows: 32-47 (starting at a multiple of 32). Every dim is affected."
    )
    assert str(found).startswith("Located, nature unknown. 16 rows are wrong") and "None of " in str(found)


def test_unnamed_numbers_are_fitted():
    inputs = attention_inputs("normal", sizes=SIZES, dtype=np.float64)
    found = diagnose(refattn.attention(*inputs.arrays, scale=72**-0.5), *inputs.arrays)
    assert found.best.says == "the scale is 0.11785 = 1/sqrt(72) instead of 0.25"
    found = diagnose(1.37 * refattn.attention(*inputs.arrays), *inputs.arrays)
    assert found.best.says == "the output is 1.37 times what it should be"
    output, lse = refattn.attention_with_lse(*inputs.arrays)
    found = diagnose(output, *inputs.arrays, lse=lse + 0.25)
    assert found.best.says == "lse is 0.25 too large everywhere"


def test_value_scale_per_head():
    inputs = attention_inputs("normal", sizes=SIZES, dtype=np.float64)
    output = refattn.attention(*inputs.arrays) * np.repeat([0.5, 3.0], 2)[:, None, None]
    found = diagnose(output, *inputs.arrays)
    assert found.best.id == "output_factor_per_head" and "(0.5, 3)" in found.best.says


def test_output_allocated_with_the_width_of_the_query():
    inputs = attention_inputs("normal", sizes=Sizes(2, 6, 2, 7, 37, 24, 20))
    found = diagnose(np.zeros((2, 6, 7, 24), np.float32), *inputs.arrays)
    assert str(found).endswith("Its last axis is that of the query, not of the values.")


@pytest.mark.sample(4)
@pytest.mark.parametrize("tile", [8, *range(16, 193, 16), 224, 256, 384, 512, 1024, 2048])
def test_tile_sizes_are_found(monkeypatch, tile):
    monkeypatch.setattr(hypotheses, "CATALOGUE", (BY_ID["never_rescaled"],))  # others take their time
    inputs = attention_inputs("ascending", sizes=Sizes(1, 1, 1, 3, 2 * tile + 13, 8, 8))
    output, lse = staged_kernel(BY_ID["never_rescaled"], tile=tile)(*inputs.arrays)
    assert f"(tile of {tile} keys)" in str(diagnose(output, *inputs.arrays, lse=lse))


@pytest.mark.parametrize("tile", [48, 72])
def test_a_measured_tile_size_lets_the_catalogue_name_the_mistake(tile):
    """72 is no size that the catalogue tries: the X-ray reads it off the weights."""
    inputs = attention_inputs("ascending", sizes=Sizes(1, 2, 1, 5, 2 * tile + 13, 16, 16))
    found = diagnose(staged_kernel(BY_ID["never_rescaled"], tile=tile), *inputs.arrays)
    assert found.best.id == "never_rescaled" and f"(tile of {tile} keys)" in found.best.says
    assert found.best.remedy


def test_odd_tile_sizes_are_found():
    flat = attention_inputs("normal", sizes=Sizes(1, 2, 1, 5, 301, 16, 16))
    output, lse = staged_kernel(BY_ID["tail_zeros_seen"], tile=112)(*flat.arrays)
    found = diagnose(output, *flat.arrays, lse=lse)
    assert found.verdict == "described"  # 35 keys of zeros fill the last tile of 112
    assert "holds about 35 terms of exp(0) = 1 too many, as of keys of score 0" in str(found)


def test_heads_are_sampled_without_a_pattern():
    """With 16 heads on 4, heads 0, 5, 10, 15 read the same key head under both maps."""
    inputs = attention_inputs("normal", sizes=Sizes(1, 16, 4, 300, 700, 32, 32))
    output, lse = staged_kernel(BY_ID["heads_tiled"])(*inputs.arrays)
    found = diagnose(output, *inputs.arrays, lse=lse)
    assert found.sampled and found.best.id == "heads_tiled"


def test_catalogue_is_large_enough():
    tried = set()
    for inputs in default_suite(np.float64):
        if inputs.function not in ("merge_states",):
            tried |= {
                hypothesis.id
                for hypothesis in single_hypotheses(checked_call(*inputs.arrays, **inputs.options), RESULTS)
            }
    assert len(tried) >= 190


def test_text_and_json():
    inputs = attention_inputs("normal", ("causal",), sizes=SIZES)
    output = refattn.attention(*inputs.arrays, causal=True, q_offset=0).astype(np.float32)
    found = diagnose(output, *inputs.arrays, causal=True)
    says = (
        "causal mask and window are top-left aligned: row 0 stands at key 0; with q_offset=0 the output "
        "agrees (bound used 0."
    )
    assert str(found).startswith(says)
    assert "pytorch/pytorch #108108" in str(found)
    plain = found.to_dict()
    assert (
        plain["verdict"] == "explained"
        and plain["findings"][0]["id"] == "causal_top_left"
        and math.isfinite(plain["seconds"])
    )


def test_lse_mistakes_need_the_lse():
    inputs = attention_inputs("normal", sizes=SIZES)
    output, lse = staged_kernel(BY_ID["lse_base_two"])(*inputs.arrays)
    assert diagnose(output, *inputs.arrays).verdict == "agrees"
    assert diagnose(output, *inputs.arrays, lse=lse).best.id == "lse_base_two"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda q: diagnose(q, q, q, q, q), TypeError, "arrays must be query, key, value or the six"),
        (lambda q: diagnose(q.astype(int), q, q, q), TypeError, "actual must"),
        (lambda q: diagnose(q, q, q[..., :2], q), ValueError, "query and key must have the same head_dim"),
        (lambda q: diagnose(q, q, q, q, spec="float7"), ValueError, "must"),
    ],
)
def test_bad_calls(call, error, message):
    with pytest.raises(error, match=message):
        call(np.ones((1, 2, 3, 4), np.float32))


def noisy(inputs, size):
    exact = refattn.attention(*inputs.arrays)
    return (exact * (1 + size * np.random.default_rng(0).standard_normal(exact.shape))).astype(np.float32)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda x: np.full_like(x, np.nan), "Rows are NaN"),
        (
            lambda x: np.where(np.arange(9)[:, None] > 6, 0, x),
            "where the row is one of the last 2 of its sequence",
        ),
        (
            lambda x: np.random.default_rng(5).standard_normal(x.shape).astype(np.float32),
            "these are other inputs, or another computation.",
        ),
    ],
)
def test_what_is_not_explained_is_described(spoil, words):
    inputs = attention_inputs("normal", sizes=SIZES)
    found = diagnose(spoil(noisy(inputs, 0)), *inputs.arrays, seconds=1)
    assert found.verdict != "explained" and words in str(found)


def test_coarser_arithmetic_is_suggested():
    inputs = attention_inputs("normal", sizes=SIZES)
    found = diagnose(noisy(inputs, 3e-6), *inputs.arrays, seconds=10)
    assert "It passes as a kernel that multiplies in tfloat32: spec='tfloat32', if that is meant." in str(
        found
    )


def test_what_the_result_itself_shows():
    inputs = attention_inputs("normal", sizes=SIZES)
    assert str(diagnose(0 * noisy(inputs, 0), *inputs.arrays)) == "all zeros: was the output ever written?"
    broken = noisy(inputs, 0)
    broken[1, 2, 3, 4] = np.nan
    assert (
        str(diagnose(broken, *inputs.arrays))
        == "one element is wrong (sequence 1 head 2 row 3 dim 4) and everything else agrees"
    )


def test_progress_is_told():
    inputs, lines = attention_inputs("normal", sizes=SIZES), []
    diagnose(
        np.random.default_rng(5).standard_normal((2, 4, 9, 16)).astype(np.float32),
        *inputs.arrays,
        seconds=1,
        progress=lambda event: lines.append(event.what),
    )
    assert lines[:3] == ["diagnose", "other axis orders", "every mistake of the catalogue alone"]
    assert "two mistakes together" in lines and lines[-1] == "where the error lives"


@pytest.mark.parametrize("part", ["every mistake of the catalogue alone", "other tile sizes"])
def test_ctrl_c_leaves_the_explanations_found(part):
    def stop(event):
        if event.what == part:
            raise KeyboardInterrupt

    inputs = attention_inputs("normal", sizes=SIZES)
    wrong = np.random.default_rng(5).standard_normal((2, 4, 9, 16)).astype(np.float32)
    with pytest.raises(KeyboardInterrupt) as stopped:
        diagnose(wrong, *inputs.arrays, progress=stop)
    found = stopped.value.partial
    assert found.interrupted and found.unfinished[-1] == part and found.verdict == "unexplained"
    assert bool(found.findings) == (part == "other tile sizes")
    assert f"Ctrl-C ended the search; not finished: {part}." in str(found)


def test_block_local_attention():
    from refattn.oracle.inputs.local import block_local_inputs

    inputs = block_local_inputs(seed=8, causal=True)
    output, lse = inputs.call(refattn.block_local_attention_with_lse)
    options = {**inputs.options}
    assert (
        diagnose(output.astype(np.float32), *inputs.arrays, lse=lse.astype(np.float32), **options).verdict
        == "agrees"
    )
    shifted = refattn.block_local_attention(*inputs.arrays, causal=True, block_size=9)
    assert diagnose(shifted.astype(np.float32), *inputs.arrays, **options).best.id == "block_size_one_more"
    everything = refattn.attention(*inputs.arrays, causal=True)
    assert diagnose(everything.astype(np.float32), *inputs.arrays, **options).best.id == "blocks_ignored"


def test_near_looks_where_check_found_the_error():
    inputs = attention_inputs("normal", ("causal",), sizes=Sizes(2, 8, 2, 600, 900, 64, 64))
    output, _ = staged_kernel()(*inputs.arrays, causal=True)
    output[1, 5, 300:320] += 0.01
    report = check(output, *inputs.arrays, causal=True, spec="float32")
    assert report.output.worst[:2] == (1, 5)
    found = diagnose(output, *inputs.arrays, causal=True, near=report.output.worst, seconds=1)
    assert (
        found.sampled
        and found.verdict == "unexplained"
        and "5" in str(found).partition("Wrong heads: ")[2][:3]
    )
    with pytest.raises(ValueError, match="near must be an index of the output"):
        diagnose(output, *inputs.arrays, causal=True, near=(2, 0, 0))


def test_states_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match="actual must have the shape of one state"):
        diagnose(np.ones((2, 3, 4)), np.ones((2, 2, 3, 5)), np.ones((2, 2, 3)))
