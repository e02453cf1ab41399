"""check_kernel reaches the sizes of published models, and every two options together."""

import itertools

import numpy as np
import pytest

from refattn.calls.dense import DENSE
from refattn.oracle import check_kernel
from refattn.oracle.harness.callables import KernelCall
from refattn.oracle.inputs.pairs import OPTIONS, option_groups, option_pair_cases
from refattn.oracle.inputs.published import published_cases
from refattn.oracle.mistakes.mutants import correct_kernel

right = correct_kernel()
PUBLISHED = [f"reference: {inputs.name}" for inputs in published_cases()]


def zeros_where(beyond):
    def kernel(query, key, value, **options):
        output, lse = right(query, key, value, **options)
        return (np.zeros_like(output), lse) if beyond(query, key, options) else (output, lse)

    return kernel


def group(query, key):
    return query.shape[-3] // key.shape[-3]


ZEROS = {
    "decode over more than 256 keys": lambda q, k, o: q.shape[-2] == 1 and k.shape[-2] > 256,
    "decode over more than 4096 keys": lambda q, k, o: q.shape[-2] == 1 and k.shape[-2] > 4096,
    **{
        f"grouped heads of {dim}": lambda q, k, o, dim=dim: q.shape[-1] == dim and group(q, k) > 1
        for dim in (64, 80, 96, 112, 128, 192, 256)
    },
    "head_dim above 256": lambda q, k, o: q.shape[-1] > 256,
    **{
        f"{n} query heads a key head": lambda q, k, o, n=n: group(q, k) == n
        for n in (3, 5, 6, 7, 8, 12, 16, 48, 71, 128)
    },
    "32 heads": lambda q, k, o: q.shape[-3] == 32,
    "64 heads": lambda q, k, o: q.shape[-3] >= 64,
    "softcap above 1.5": lambda q, k, o: (o.get("softcap") or 0) > 1.5,
    "softcap 50": lambda q, k, o: o.get("softcap") == 50,
    "window above 40": lambda q, k, o: ((o.get("window") or (0,))[0] or 0) > 40,
    "window above 4000": lambda q, k, o: ((o.get("window") or (0,))[0] or 0) > 4000,
    "more than 129 rows": lambda q, k, o: q.shape[-2] > 129,
    "more than 1024 rows": lambda q, k, o: q.shape[-2] > 1024,
    "more than 2187 keys": lambda q, k, o: k.shape[-2] > 2187,
    "more than 4096 keys and several rows": lambda q, k, o: k.shape[-2] > 4096 and q.shape[-2] > 1,
    "more than 32 sequences": lambda q, k, o: q.ndim == 4 and len(q) > 32,
    "two batch axes": lambda q, k, o: q.ndim == 5,
    "two batch axes and lengths": lambda q, k, o: np.ndim(o.get("kv_lengths")) == 2,
    "no batch axis": lambda q, k, o: q.ndim == 3,
}


@pytest.mark.sample(27)
@pytest.mark.parametrize("name", ZEROS)
def test_zeros_beyond_a_size_fail_the_full_level(name):
    report = check_kernel(
        zeros_where(ZEROS[name]),
        only=PUBLISHED,
        max_failures=1,
        level="full",
        diagnose=False,
        head_dims="any",
    )
    assert report.failures, report.text()


def without(option, where):
    def kernel(query, key, value, **options):
        lost = options.get(option) is not None and options.get(where) is not None
        return right(
            query,
            key,
            value,
            **{name: given for name, given in options.items() if name != option or not lost},
        )

    return kernel


KEYWORDS = [
    name for name in DENSE.options if name not in ("causal", "q_offset", "dropout_mask", "dropout_rate")
]
# offsets, causal and dropout: below


@pytest.mark.sample(4)
@pytest.mark.parametrize("option, where", [*itertools.permutations(KEYWORDS, 2)])
def test_an_option_dropped_beside_another_fails_the_quick_level(option, where):
    report = check_kernel(without(option, where), only="together", diagnose=False, max_failures=1)
    assert report.failures, report.text()


def test_offsets_causality_and_dropout_beside_others():
    def at_the_end(where):
        return lambda *arrays, q_offset=None, **o: right(
            *arrays, **o, q_offset=None if o.get(where) is not None else q_offset
        )

    def not_causal(where):
        return lambda *arrays, causal=False, **o: right(*arrays, **o, causal=causal and o.get(where) is None)

    def no_dropout(where):
        def kernel(*arrays, dropout_mask=None, dropout_rate=None, **options):
            if dropout_mask is not None and options.get(where) is None:
                options |= {"dropout_mask": dropout_mask, "dropout_rate": dropout_rate}
            return right(*arrays, **options)

        return kernel

    for broken, where in itertools.product((at_the_end, not_causal, no_dropout), KEYWORDS):
        assert not check_kernel(broken(where), only="together", diagnose=False, max_failures=1).passed, (
            broken.__name__,
            where,
        )


def test_an_lse_off_where_two_options_meet():
    def kernel(*arrays, **options):
        output, lse = right(*arrays, **options)
        return output, lse + np.float32(
            0.01 * (options.get("alibi_slopes") is not None and options.get("q_offset") is not None)
        )

    report = check_kernel(kernel, only="reference: normal", diagnose=False)
    assert 1 <= len(report.failures) <= 3 and all("together" in outcome.id for outcome in report.failures), (
        report.text()
    )


def test_every_two_options_meet_twice():
    groups = option_groups()
    assert len(groups) <= 11
    assert all(
        sum({*pair} <= {*names} for names in groups) >= 2 for pair in itertools.combinations(OPTIONS, 2)
    )
    assert {"causal" in names for names in groups if "left window" in names} == {True, False}


@pytest.mark.parametrize("lacking", OPTIONS)
def test_what_is_left_of_the_options_still_meets(lacking):
    allowed = [name for name in OPTIONS if name not in (lacking, "bias")]
    groups = option_groups(allowed)
    assert all(any({*pair} <= {*names} for names in groups) for pair in itertools.combinations(allowed, 2))


def test_calls_of_what_the_kernel_and_its_dialect_have():
    def kernel(query, key, value, causal=False, softcap=None):
        return right(query, key, value, causal=causal, softcap=softcap)

    assert [[*inputs.options] for inputs in option_pair_cases(np.float32, 0, KernelCall(kernel))] == [
        ["causal", "softcap"]
    ]
    assert not [*option_pair_cases(np.float32, 0, KernelCall(lambda query, key, value, causal=False: None))]
    torch = [*option_pair_cases(np.float32, 0, KernelCall(right, dialect="torch"))]
    assert torch and not any({"sinks", "softcap", "dropout_mask"} & {*inputs.options} for inputs in torch)
    gqa = [*option_pair_cases(np.float32, 0, KernelCall(right, dialect="onnxruntime_gqa"))]
    assert gqa and all(inputs.options["causal"] for inputs in gqa)
    report = check_kernel(kernel, only="together")
    assert report.passed and report.count("pass", "reference") == 1


def test_a_correct_kernel_passes_them():
    report = check_kernel(right, only=PUBLISHED, level="full", head_dims="any")
    assert report.passed and report.count("pass") == len(PUBLISHED) == len({*PUBLISHED}), report.text()


def test_a_kernel_of_four_axes_skips_the_others_with_a_word():
    def kernel(query, key, value, *, causal=False, kv_lengths=None):
        batch, heads, rows, dim = query.shape
        return right(
            query.reshape(batch, heads, rows, dim), key, value, causal=causal, kv_lengths=kv_lengths
        )

    report = check_kernel(kernel, level="full", only="batch ax")
    found = {outcome.id: outcome.status for outcome in report.outcomes if outcome.section == "reference"}
    assert (
        len(found) == 3
        and {*found.values()} == {"skip"}
        and "two batch axes: raised ValueError" in report.text()
    ), report.text()

    def of_four(query, key, value):
        raise ValueError("no")

    assert (
        check_kernel(of_four, only="reference: normal").count("FAIL") > 3
    )  # an exception on four axes stays a failure
