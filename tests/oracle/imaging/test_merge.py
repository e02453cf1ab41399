"""`xray` of kernels that merge states: what it says of wrong ones, and that right ones agree."""

import ml_dtypes
import numpy as np
import pytest

import cpu_kernels
import refattn
from refattn.oracle.harness.merge_bench import hidden_states, merge_cases
from refattn.oracle.imaging.xray import xray
from refattn.oracle.inputs.merge import merge_inputs, suite
from refattn.oracle.mistakes.merge import MERGES, merged

DTYPES = (np.float32, ml_dtypes.bfloat16)


def states(dtype=np.float32, count=6, shape=(2, 3, 37, 8), empty=0.15, middle=0.0, spread=2.0):
    """States of which some are empty, and row 3 in all of them."""
    rng = np.random.default_rng(7)
    outputs = rng.standard_normal((count, *shape)).astype(dtype)
    lses = (middle + spread * rng.standard_normal((count, *shape[:-1]))).astype(np.float32)
    hidden = rng.random(lses.shape) < empty
    if empty:
        hidden[..., 3] = True
    outputs[hidden], lses[hidden] = 0, -np.inf
    return outputs, lses


def in_dtype(merge, dtype=np.float32):
    def kernel(outputs, lses):
        with np.errstate(all="ignore"):
            output, lse = merge(outputs.astype(np.float64), lses.astype(np.float64))
            return output.astype(dtype), lse.astype(np.float64 if dtype == np.float64 else np.float32)

    return kernel


def softmax(lses):
    top = lses.max(0)
    w = np.exp(lses - np.where(np.isneginf(top), 0, top))
    return w / np.where(w.sum(0) == 0, 1, w.sum(0))


def applied(weights, outputs):
    return (weights[..., None] * outputs).sum(0)


SAYS = {
    "merge_unweighted": "states are averaged: all count alike, whatever their lse",
    "merge_empty_nan": "the merge of states that are all empty (lse -inf) is nan",
    "merge_base_two": "lse is taken for a logarithm in base 2",
    "merge_drops_last": "the last state is left out",
    "merge_lse_is_maximum": "the merged lse is the largest lse of the states",
    "merge_lse_summed": "the merged lse is the sum of the lses of the states",
    "merge_not_normalised": "the weighted sum is not divided by the sum of the weights",
    "merge_weighted_by_lse": "states are weighted by lse itself, not by its exponential",
    "merge_plus_inf_is_empty": "an empty state (lse -inf) counts as one of lse 0",
    "merge_swallows_nan": "a state that is nan is swallowed",
    "merge_lse_half": "lses, or their differences, are halved",
    "merge_lse_in_base_two": "the merged lse is in base 2",
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mistake", MERGES, ids=lambda mistake: mistake.id)
def test_mistakes_of_the_catalogue_are_described_and_nothing_else(mistake, dtype):
    arrays = merge_inputs(dtype, empty="nan").arrays if mistake.id == "merge_swallows_nan" else states(dtype)
    found = xray(in_dtype(mistake.merge, dtype), *arrays)
    assert found.verdict == "described"
    assert found.best.says.lower().startswith(SAYS[mistake.id])
    assert len(found.findings) == 1


# wrong merges that no catalogue holds


def lses_of_the_next_head(outputs, lses):
    return applied(softmax(np.roll(lses, -1, 2)), outputs), merged(outputs, np.roll(lses, -1, 2))[1]


def lses_transposed(outputs, lses):
    return merged(outputs, np.swapaxes(lses, 2, 3).reshape(lses.shape))


def wrong_sign(outputs, lses):
    flipped = np.where(np.isneginf(lses), -np.inf, -lses)
    return applied(softmax(flipped), outputs), merged(outputs, lses)[1]


def first_state_dropped_in_odd_heads(outputs, lses):
    lses = lses.copy()
    lses[0, :, 1::2] = -np.inf
    return merged(outputs, lses)


def lse_carried_on_is_the_larger(outputs, lses):
    output, lse = outputs[0], lses[0]
    for new, new_lse in zip(outputs[1:], lses[1:], strict=True):
        output = applied(softmax(np.stack([lse, new_lse])), np.stack([output, new]))
        lse = np.maximum(lse, new_lse)
    return output, lse


def never_rescaled(outputs, lses):
    running = np.maximum.accumulate(lses, axis=0)
    w = np.where(np.isneginf(lses), 0, np.exp(lses - running))
    total = np.where(w.sum(0) == 0, 1, w.sum(0))
    return applied(w / total, outputs), running[-1] + np.log(total)


def outputs_of_the_next_row(outputs, lses):
    return merged(np.roll(outputs, -1, 3), lses)


def one_state_of_another_head(outputs, lses):
    outputs = outputs.copy()
    outputs[1] = np.roll(outputs[1], 1, 1)
    return merged(outputs, lses)


def partial_tile_of_rows_merges_nothing(outputs, lses):
    weights = softmax(lses)
    weights[:, :, :, 32:] = (np.arange(len(lses)) == 0).reshape(-1, 1, 1, 1)
    return applied(weights, outputs), merged(outputs, lses)[1]


def outputs_scaled(outputs, lses):
    output, lse = merged(outputs, lses)
    return 0.7 * output, lse


def lse_of_the_row_before(outputs, lses):
    output, lse = merged(outputs, lses)
    return output, np.roll(lse, 1, -1)


def lse_of_empty_rows_is_0(outputs, lses):
    output, lse = merged(outputs, lses)
    return output, np.where(np.isneginf(lse), 0, lse)


def logarithm_of_the_sum_in_base_two(outputs, lses):
    output, lse = merged(outputs, lses)
    top = lses.max(0)
    return output, np.where(np.isneginf(top), top, top + (lse - top) * np.log2(np.e))


def differences_clipped(outputs, lses):
    top = np.where(np.isneginf(lses.max(0)), 0, lses.max(0))
    clipped = np.where(np.isneginf(lses), -np.inf, np.maximum(lses - top, -3))
    return merged(outputs, clipped + top)


def pairs_averaged(outputs, lses):
    pairs = [merged(outputs[n : n + 2], lses[n : n + 2])[0] for n in range(0, len(lses), 2)]
    return np.mean(pairs, axis=0), merged(outputs, lses)[1]


def two_mistakes(outputs, lses):
    output, lse = merged(outputs[:-1], lses[:-1])
    return output, lse * np.log2(np.e)


def lses_in_bfloat16(outputs, lses):
    return merged(outputs, lses.astype(ml_dtypes.bfloat16).astype(np.float64))


def first_state_is_not_scaled(outputs, lses):
    lses = lses.copy()
    lses[0] = np.where(np.isneginf(lses.max(0)), 0, lses.max(0))
    return merged(outputs, lses)


def maximum_of_all_heads_is_not_added(outputs, lses):
    output, lse = merged(outputs, lses)
    return output, lse - lses.max((0, 2), keepdims=True)[0]


def lses_of_two_states_exchanged(outputs, lses):
    return merged(outputs, lses[[1, 0, 2, 3, 4, 5]])


def heads_at_a_wrong_stride(outputs, lses):
    distance = lses.shape[-1] + 1
    first = np.arange(lses[..., 0].size).reshape(lses.shape[:-1])[..., None]
    return merged(
        outputs, lses.ravel()[np.minimum(first * distance + np.arange(distance - 1), lses.size - 1)]
    )


def square_roots(outputs, lses):
    return applied(np.sqrt(softmax(lses)), outputs), merged(outputs, lses)[1]


def large_lses_cut_off(outputs, lses):
    return merged(outputs, np.minimum(lses, 1.5))


def columns_in_reverse(outputs, lses):
    output, lse = merged(outputs, lses)
    return output[..., ::-1], lse


WRONG = (
    (first_state_is_not_scaled, "the first state counts as if its lse were the largest"),
    (maximum_of_all_heads_is_not_added, "the largest lse of all heads is subtracted from the merged lse"),
    (
        lses_of_two_states_exchanged,
        "the lses used are those of other states: of state 1 for state 0, 0 for state 1",
    ),
    (heads_at_a_wrong_stride, "heads are 38 numbers apart, they are stored 37 apart"),
    (square_roots, "weights are the right ones to the power 0.5"),
    (large_lses_cut_off, "lses are at most 1.5"),
    (columns_in_reverse, "columns of each 8 in reverse order"),
    (lses_of_the_next_head, "the lses used are those of the next head"),
    (lses_transposed, "the lses are read with wrong strides: memory of (states, batch, rows, heads)"),
    (wrong_sign, "lse is taken with the wrong sign"),
    (
        first_state_dropped_in_odd_heads,
        "the first state is left out, where the head is 1",
    ),
    (lse_carried_on_is_the_larger, "the lse carried on is the larger of the two"),
    (
        never_rescaled,
        "outputs and weights that were added up before are not rescaled when the largest lse rises",
    ),
    (outputs_of_the_next_row, "the outputs of the states are read elsewhere: row 1 further on"),
    (one_state_of_another_head, "heads rotated by 1 within each 3 (state 1)"),
    (
        partial_tile_of_rows_merges_nothing,
        "only the first state counts, also where it is empty (lse -inf), where the tile",
    ),
    (outputs_scaled, "the output is multiplied by 0."),
    (lse_of_the_row_before, "the merged lse is that of the row before"),
    (lse_of_empty_rows_is_0, "the merged lse of rows of which every state is empty is 0 in place of -inf"),
    (logarithm_of_the_sum_in_base_two, "the logarithm of the sum is taken in base 2"),
    (differences_clipped, "differences of lses are at least -3"),
    (pairs_averaged, "groups of 2 states are merged rightly, and the groups averaged"),
    (lses_in_bfloat16, "lses are rounded to bfloat16 before the weights are made"),
)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("merge", "says"), WRONG, ids=lambda case: getattr(case, "__name__", ""))
def test_faults_of_no_catalogue_are_described_and_nothing_else(merge, says, dtype):
    found = xray(in_dtype(merge, dtype), *states(dtype))
    assert found.verdict == "described"
    assert says in found.best.says.lower()
    assert len(found.findings) == 1, found.text()


def test_two_mistakes_are_two_findings():
    weights, lse = xray(in_dtype(two_mistakes), *states()).findings
    assert weights.says == "The last state is left out."
    assert lse.says.startswith("The merged lse is in base 2: it is that of these weights")


def test_a_maximum_that_is_not_subtracted_is_found_by_shifting_all_lses():
    def kernel(outputs, lses):
        with np.errstate(all="ignore"):
            w = np.exp(lses)
            return applied(w, outputs) / w.sum(0)[..., None], np.log(w.sum(0))

    found = xray(kernel, *states(empty=0, middle=100, spread=2))
    assert "the largest lse is not subtracted before exp, which overflows" in found.best.says
    assert len(found.findings) == 1


def test_nan_outputs_of_empty_states_that_reach_the_result():
    outputs, lses = states()
    outputs[np.isneginf(lses)] = np.nan
    found = xray(in_dtype(merged), outputs, lses)
    assert found.best.says.startswith(
        "Outputs of empty states (lse -inf) that are NaN or infinite reach the result"
    )
    assert len(found.findings) == 1


@pytest.mark.parametrize(
    ("count", "shape"),
    [(20, (2, 3, 37, 6)), (5, (37, 8)), (5, (8,)), (3, (2, 1, 3, 9, 4)), (1, (2, 2, 9, 4))],
    ids=["more states than columns", "rows alone", "one row", "two axes of batches", "one state"],
)
def test_states_of_any_shape(count, shape):
    outputs, lses = states(count=count, shape=shape, empty=0)
    found = xray(
        lambda outputs, lses: 2 * refattn.merge_states(outputs, lses)[0].astype(np.float32), outputs, lses
    )
    assert found.best.says == "The output is multiplied by 2."


@pytest.mark.parametrize(
    "merge", [refattn.merge_states, cpu_kernels.merge_states], ids=["refattn", "cpu_kernels"]
)
@pytest.mark.parametrize("dtype", [np.float16, *DTYPES, np.float64])
def test_right_merges_agree(merge, dtype):
    for inputs in (*merge_cases(dtype, 0, "quick"), *suite(dtype), hidden_states(dtype, 0, np.nan)):
        found = xray(lambda *arrays: in_results(merge(*arrays), dtype), *inputs.arrays)
        assert found.verdict == "agrees", (inputs.name, found.text())


def in_results(results, dtype):
    return tuple(
        array.astype(kind)
        for array, kind in zip(results, (dtype, np.float64 if dtype == np.float64 else np.float32))
    )
