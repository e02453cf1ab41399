"""check_kernel finds kernels that read an unusual option value wrongly, or stop short of a size."""

import numpy as np
import pytest

from refattn.oracle import check_kernel
from refattn.oracle.inputs.corners import corner_cases
from refattn.oracle.mistakes.mutants import CORNER_MUTANTS, correct_kernel

right = correct_kernel()


def first_offset(q, k, v, *, q_offset=None, **options):
    if np.ndim(q_offset):
        q_offset = int(np.ravel(q_offset)[0])
    return right(q, k, v, q_offset=q_offset, **options)


def first_slopes(q, k, v, *, alibi_slopes=None, **options):
    if np.ndim(alibi_slopes) == 2:
        alibi_slopes = alibi_slopes[0]
    return right(q, k, v, alibi_slopes=alibi_slopes, **options)


def positive_scale(q, k, v, *, scale=None, **options):
    return right(q, k, v, scale=None if scale is None else abs(scale), **options)


def falsy_scale(q, k, v, *, scale=None, **options):
    return right(q, k, v, scale=scale or None, **options)


def falsy_window(q, k, v, *, window=None, **options):
    return right(
        q, k, v, window=None if window is None else tuple(side or None for side in window), **options
    )


def clamped_bias(q, k, v, *, bias=None, **options):
    return right(q, k, v, bias=None if bias is None else np.maximum(bias, bias.dtype.type(-1e4)), **options)


def short_head_dim(q, k, v, *, scale=None, **options):
    return right(
        q[..., :128], k[..., :128], v, scale=q.shape[-1] ** -0.5 if scale is None else scale, **options
    )


def changed(change):
    def kernel(q, k, v, **options):
        output, lse = right(q, k, v, **options)
        output = output.copy()
        change(output, k)
        return output, lse

    return kernel


def no_long_rows(output, key):
    if output.ndim == 4:
        output[:, :, 64:] = 0


def few_heads(output, key):
    output[:, 8:] = 0


def few_keys(output, key):
    if key.shape[-2] > 2048:
        output[...] = 0


def value_columns(output, key):
    output[..., 128:] = 0


CORNERS = (first_offset, first_slopes, positive_scale, falsy_scale, falsy_window, clamped_bias)
SIZES = {
    "head_dim 161": (short_head_dim, changed(value_columns)),
    "75 rows": (changed(no_long_rows),),
    "18 heads": (changed(few_heads),),
    "2187 keys": (changed(few_keys),),
}


@pytest.mark.parametrize("kernel", CORNERS, ids=lambda kernel: kernel.__name__)
def test_an_unusual_option_value_read_wrongly(kernel):
    def all_options(q, k, v, **options):
        return kernel(q, k, v, **options)

    report = check_kernel(all_options, spec="float32", only="reference: normal", diagnose=False)
    assert not report.passed and 1 <= len(report.failures) <= 3, report.text()


CHUNK_RULES = {
    "of the last row": lambda p, j, chunk: j // chunk == p[..., -1:, :] // chunk,
    "from its own on": lambda p, j, chunk: j // chunk >= p // chunk,
    "division toward zero": lambda p, j, chunk: j // chunk == np.trunc(p / chunk),
    "edges one off": lambda p, j, chunk: (j + 1) // chunk == (p + 1) // chunk,
    "right": lambda p, j, chunk: j // chunk == p // chunk,
}


@pytest.mark.parametrize("name", CHUNK_RULES)
def test_a_wrong_rule_of_chunks_fails_the_quick_level(name):
    def kernel(query, key, value, *, causal=False, chunk=None, q_offset=None):
        rows, keys = query.shape[-2], key.shape[-2]
        position = (keys - rows if q_offset is None else q_offset) + np.arange(rows)[:, None]
        seen = None if chunk is None else CHUNK_RULES[name](position, np.arange(keys), chunk)
        mask = None if seen is None else np.broadcast_to(seen, (rows, keys))
        return right(query, key, value, causal=causal, mask=mask, q_offset=q_offset)

    report = check_kernel(kernel, spec="float32", only="reference: normal", diagnose=False)
    assert report.passed == (name == "right"), report.text()


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", SIZES)
def test_a_size_it_does_not_reach(name):
    for kernel in SIZES[name]:
        only = f"reference: normal, {name}"
        assert not check_kernel(
            kernel, spec="float32", level="full", head_dims="any", only=only, diagnose=False
        ).passed


@pytest.mark.sample(3)
@pytest.mark.parametrize("mutant", CORNER_MUTANTS, ids=lambda mutant: mutant.id)
def test_mutants_of_the_catalogue_that_only_corner_cases_show(mutant):
    names = [f"reference: {inputs.name}" for inputs in corner_cases(level="full")]
    report = check_kernel(mutant, level="full", only=names, head_dims="any", diagnose=False, max_failures=1)
    assert report.failures and len(names) == len({*names}), report.text()


@pytest.mark.parametrize(
    "level, only",
    [
        ("quick", "reference: normal,"),
        ("full", "75 rows"),
        ("full", "18 heads"),
        ("full", "reference: normal, 2187 keys"),
        ("full", "head_dim 161"),
    ],
)
def test_a_correct_kernel_passes(level, only):
    report = check_kernel(right, spec="float32", level=level, only=only, head_dims="any")
    assert report.passed and not report.count("skip"), report.text()
