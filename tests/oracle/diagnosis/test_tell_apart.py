"""Two mistakes that predict the same numbers: both are named, the narrower first, and the kernel
itself decides.
"""

import numpy as np
import pytest
from wrong_kernels import newest_key_forgotten, textbook

import refattn
from refattn.oracle.diagnosis.ranking import breadth
from refattn.oracle.diagnosis.search import diagnose
from refattn.oracle.inputs.families import Sizes, attention_inputs
from refattn.oracle.inputs.packed import packed_inputs
from refattn.oracle.mistakes.catalogue import BY_ID
from refattn.oracle.mistakes.mutants import staged_kernel
from refattn.oracle.verdict.check import check

SIZES = Sizes(batch=2, num_heads=4, num_kv_heads=2, q_len=9, kv_len=45, head_dim=16, v_head_dim=16)
INDISTINGUISHABLE = (
    ("causal_excludes_diagonal", "position_one_early"),
    ("causal_sees_next", "position_one_late"),
    ("value_one_row_late", "key_one_row_early"),
    ("heads_next_group", "heads_reversed"),
    ("lengths_minus_one", "newest_key_dropped"),
    ("last_tile_dropped", "partial_tile_dropped"),
)


def inputs_for(pair):
    names = ("causal",) if pair[0].startswith("causal") else ()
    return attention_inputs("normal", names, sizes=SIZES, seed=77)


@pytest.mark.sample(3)
@pytest.mark.parametrize("pair", INDISTINGUISHABLE, ids=" ".join)
@pytest.mark.parametrize("which", [0, 1])
def test_numbers_alone_name_both_and_the_kernel_decides(pair, which):
    inputs, kernel = inputs_for(pair), staged_kernel(BY_ID[pair[which]])
    output, lse = inputs.call(kernel)
    found = diagnose(output, *inputs.arrays, lse=lse, seconds=300, **inputs.options)
    assert {found.best.id, *found.best.same_as} >= {*pair}
    first_line = str(found).splitlines()[0]
    assert all(BY_ID[name].says in first_line for name in pair)
    assert "to tell them apart: call the kernel " in str(found)
    decided = diagnose(kernel, *inputs.arrays, **inputs.options)
    assert decided.best.id == pair[which] and not decided.best.same_as
    assert decided.told_apart_by and "told from others by running the kernel" in str(decided)


def test_a_hand_written_kernel_decides():
    """It takes causal and nothing else: every other probe fails and is passed over."""
    inputs = attention_inputs("normal", sizes=SIZES, dtype=np.float64)
    assert (
        "newest_key_dropped"
        in diagnose(newest_key_forgotten(*inputs.arrays)[0], *inputs.arrays).best.same_as
    )

    def one_key_short(query, key, value, causal=False):
        return textbook(
            query, key[:, :, :-1], value[:, :, :-1], causal, offset=key.shape[2] - query.shape[2]
        )

    assert diagnose(one_key_short, *inputs.arrays).best.id == "lengths_minus_one"


def test_a_kernel_that_takes_no_other_call_stays_undecided():
    inputs = attention_inputs("normal", sizes=SIZES, dtype=np.float64)
    found = diagnose(newest_key_forgotten, *inputs.arrays)  # has no causal=, which would decide
    assert {found.best.id, *found.best.same_as} >= {"lengths_minus_one", "newest_key_dropped"}


def test_the_narrower_name_comes_first():
    assert breadth(BY_ID["window_frees_future"]) < breadth(BY_ID["causal_dropped"])
    assert breadth(BY_ID["causal_excludes_diagonal"]) < breadth(BY_ID["position_one_early"])
    inputs = packed_inputs(np.float32, 5)
    output, lse = inputs.call(staged_kernel(BY_ID["lengths_minus_one"]))
    assert diagnose(output, *inputs.arrays, lse=lse, **inputs.options).best.id == "packed_last_key_dropped"


SAMPLED = Sizes(2, 8, 2, 700, 900, 64, 64)


@pytest.mark.parametrize(
    "dtype, sizes",
    [
        ("float32", SIZES),
        ("float16", SIZES),
        ("bfloat16", SIZES),
        pytest.param("float32", SAMPLED, marks=pytest.mark.campaign),
        pytest.param("float16", SAMPLED, marks=pytest.mark.campaign),
        pytest.param("bfloat16", SAMPLED, marks=pytest.mark.campaign),
    ],
    ids=lambda value: value if isinstance(value, str) else "sampled" if value is SAMPLED else "whole",
)
def test_bound_used_is_that_of_check(dtype, sizes):
    import ml_dtypes

    inputs = attention_inputs(
        "normal", ("causal",), sizes=sizes, dtype=getattr(ml_dtypes, dtype, None) or np.dtype(dtype), seed=3
    )
    output, lse = staged_kernel(BY_ID["causal_top_left"])(*inputs.arrays, **inputs.options)
    found = diagnose(output, *inputs.arrays, lse=lse, seconds=300, **inputs.options)
    report = check(output, *inputs.arrays, lse=lse, causal=True, q_offset=0)
    assert found.best.remedy == "q_offset=0" and report.passed
    if found.sampled:  # the largest of the rows looked at
        assert 0.2 * report.output.use_tight < found.best.bound_used <= report.output.use_tight * (1 + 1e-6)
    else:
        assert found.best.bound_used == pytest.approx(report.output.use_tight, rel=1e-6)


def test_agreement_is_that_of_check():
    inputs = attention_inputs("normal", ("causal",), sizes=SIZES)
    output, lse = inputs.call(staged_kernel())
    found, report = (
        diagnose(output, *inputs.arrays, lse=lse, causal=True),
        check(output, *inputs.arrays, lse=lse, causal=True),
    )
    assert found.verdict == "agrees" and found.best.bound_used == report.output.use_tight
    exact = refattn.attention(*inputs.arrays, causal=True)
    worse = (exact * (1 + 4e-5 * np.random.default_rng(0).standard_normal(exact.shape))).astype(np.float32)
    assert not check(worse, *inputs.arrays, causal=True).passed
    assert diagnose(worse, *inputs.arrays, causal=True, seconds=1).verdict != "agrees"
