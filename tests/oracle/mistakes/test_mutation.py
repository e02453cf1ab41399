"""mutation_score: ours misses nothing and accuses nobody; other rules miss what they are known to
miss; data without teeth are named.
"""

import ml_dtypes
import numpy as np
import pytest

from refattn.oracle.inputs.corners import corner_cases
from refattn.oracle.inputs.families import AttentionInputs, as_inputs, attention_inputs
from refattn.oracle.inputs.merge import merge_inputs
from refattn.oracle.inputs.suites import default_suite, reference
from refattn.oracle.mistakes.mutants import MUTANTS, correct_kernel, mutants
from refattn.oracle.mistakes.mutation import Trials, mutation_score
from refattn.oracle.mistakes.rules import RULES, Observation, Rule, rule


def observe(kernel, inputs):
    """Call a kernel twice."""
    first, second = inputs.call(kernel), inputs.call(kernel)
    return Observation(inputs, np.asarray(first[0]), np.asarray(first[1]), second, reference(inputs))


SOME = (
    "causal_top_left",
    "heads_tiled",
    "softcap_after_mask",
    "lengths_minus_one",
    "weights_truncated",
    "output_half_percent_high",
    "lse_base_two",
    "nan_of_hidden_value",
    "last_tile_not_rescaled",
    "random_order",
    "page_tail_seen",
    "mla_scale_without_mscale",
    "rope_single_angle",
    "hidden_is_minus_1e4",
    "one_element_off",
    "merge_empty_nan",
)


@pytest.fixture(scope="module", params=[np.float32, ml_dtypes.bfloat16], ids=["float32", "bfloat16"])
def trials(request):
    return Trials(default_suite(request.param), [mutant for mutant in MUTANTS if mutant.id in SOME])


def test_ours_catches_them_and_accepts_correct_kernels(trials):
    score = trials.score("refattn")
    assert set(score.caught) == set(score.told_apart) == {*SOME}
    assert score.false_alarms == ()
    assert score.score == 1.0
    assert (
        str(score)
        == f"refattn: {len(SOME)} of {len(SOME)} mutants caught on {len(trials.inputs)} inputs, 0 false "
        "alarms"
    )


PARTS = 4  # each has mutants of every function
BY_FUNCTION = sorted(MUTANTS, key=lambda mutant: (mutant.function, sorted(mutant.needs), mutant.id))


@pytest.mark.parametrize(
    "dtype, part",
    [
        pytest.param(
            dtype,
            part,
            marks=() if dtype is np.float32 and part == 0 else pytest.mark.campaign,
            id=f"{np.dtype(dtype).name}-{part}",
        )
        for dtype in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)
        for part in range(PARTS)
    ],
)
def test_ours_catches_every_mutant(dtype, part):
    some = BY_FUNCTION[part::PARTS]
    score = mutation_score("refattn", dtype=dtype, mutants=some)
    not_mistakes = (
        {"weights_bfloat16", "output_bfloat16"} if dtype is ml_dtypes.bfloat16 else set()
    )  # what a bfloat16 kernel does anyway
    assert score.missed == ()
    assert {*score.hidden} == not_mistakes & {mutant.id for mutant in some}
    assert score.false_alarms == ()
    assert {*score.caught} | {*score.hidden} == {mutant.id for mutant in some}


def test_every_part_has_every_function():
    functions = {mutant.function for mutant in MUTANTS}
    assert all(
        {mutant.function for mutant in BY_FUNCTION[part::PARTS]} == functions for part in range(PARTS)
    )


def test_ours_catches_the_mistakes_of_corner_cases():
    corners = [mutant for mutant in mutants(corners=True) if mutant not in MUTANTS]
    score = Trials(corner_cases(np.float32, 0, level="full"), corners).score("refattn")
    assert {*score.caught} == {*score.told_apart} == {mutant.id for mutant in corners}
    assert score.false_alarms == ()


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("name", "missed"),
    [
        ("fixed 1e-2", {"lse_base_two", "random_order"}),
        ("flash_attention 2x", {"lse_base_two", "random_order"}),
        ("mlir-air", {"weights_truncated", "output_half_percent_high", "lse_base_two"}),
    ],
)
def test_other_rules_miss_what_they_do_not_look_at(name, missed):
    score = mutation_score(name, mutants=[mutant for mutant in MUTANTS if mutant.id in SOME])
    assert missed <= {*score.missed}


def test_tight_defaults_reject_correct_bfloat16_kernels():
    score = mutation_score("torch.testing", dtype=ml_dtypes.bfloat16, mutants=mutants("merge_states")[:1])
    assert len(score.false_alarms) > len(default_suite()) / 2


def test_ordinary_data_hide_mutants():
    plain = [attention_inputs("normal", ("causal",))]
    hidden = {*mutation_score("refattn", plain).hidden}
    assert {"softcap_dropped", "empty_row_nan", "nan_of_hidden_value", "sinks_dropped"} <= hidden
    assert "causal_dropped" not in hidden


def test_every_published_rule_accepts_the_exact_answer():
    """A rule that rejects the reference rounded to the output dtype is transcribed wrongly."""
    for dtype in (np.float64, np.float32, ml_dtypes.bfloat16):
        inputs = attention_inputs("normal", ("causal",), dtype=dtype)
        seen = observe(correct_kernel(), inputs)
        exact = type(seen)(
            inputs,
            seen.right[0].astype(np.float64),
            seen.right[1],
            (seen.right[0].astype(np.float64), seen.right[1]),
            seen.right,
        )
        assert [name for name, judge in RULES.items() if not judge.accepts(exact)] == []


def test_every_published_rule_rejects_nonsense():
    inputs = attention_inputs("normal", ("causal",))
    seen = observe(correct_kernel(), inputs)
    broken = type(seen)(inputs, seen.output + 3, seen.lse, (seen.output + 3, seen.lse), seen.right)
    assert [name for name, judge in RULES.items() if judge.accepts(broken)] == []


def test_a_rule_that_rejects_everything_tells_nothing_apart():
    chosen = [mutant for mutant in MUTANTS if mutant.id in ("causal_dropped", "scale_omitted")]
    score = mutation_score(
        lambda got, want: False, [attention_inputs("normal", ("causal",))], mutants=chosen
    )
    assert len(score.caught) == 2 and score.told_apart == () and len(score.false_alarms) == 1
    assert "only 0 of them on inputs on which a correct kernel passes" in str(score)


def test_own_data_and_own_rule():
    x = np.random.default_rng(0).standard_normal((1, 4, 16, 8)).astype(np.float32)
    inputs = as_inputs(x, x, x, causal=True)
    assert isinstance(inputs, AttentionInputs)
    chosen = [mutant for mutant in MUTANTS if mutant.id in ("causal_dropped", "weights_bfloat16")]
    score = mutation_score(lambda got, want: np.allclose(got, want, atol=0.05), [inputs], mutants=chosen)
    assert score.caught == ("causal_dropped",) and score.missed == ("weights_bfloat16",)
    assert "too wide a tolerance for: weights_bfloat16" in str(score)


def test_merge_rule_accepts_float32_states():
    for empty in ("none", "one", "all", "nan"):
        assert RULES["refattn"].accepts(observe(correct_kernel("merge_states"), merge_inputs(empty=empty)))


def test_rules_by_name_or_function():
    assert rule("flashmla").source.startswith("FlashMLA")
    assert rule(RULES["onnx"]) is RULES["onnx"]
    assert isinstance(rule(np.allclose), Rule)
    with pytest.raises(ValueError, match="rule must be one of refattn, numpy.allclose"):
        rule("looks fine")
    with pytest.raises(TypeError, match="rule must be a name, a Rule or a function"):
        rule(3)
