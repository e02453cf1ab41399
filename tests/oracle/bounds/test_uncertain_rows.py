"""Rows whose scores are far less certain than their weights: the hard bound still says what must
hold, and holds for correct kernels.
"""

import numpy as np
import pytest

import refattn
from refattn.oracle import EmulatedKernel, KernelSpec, check, error_bound
from refattn.oracle.arithmetic.formats import round_to

FORMATS = {"float32": 3e5, "float16": 1e4}


def filled(dtype, *numbers, keys=1, dim=64):
    return [
        np.full((1, keys, width), number, dtype)
        for number, width in zip(numbers, (dim, dim, 2), strict=True)
    ]


@pytest.mark.parametrize(
    "dtype, query, key", [("float32", 3e5, 1.0), ("float16", 1e4, 100.0), ("float32", 3e4, 100.0)]
)
@pytest.mark.parametrize("wrong", [0.0, 1.5, -1.0])
def test_one_visible_key_gives_its_value(dtype, query, key, wrong):
    arrays = filled(dtype, query, key, 1.0)
    assert check(arrays[2], *arrays).passed
    assert not check((wrong * arrays[2]).astype(dtype), *arrays).passed


def test_the_first_causal_row():
    rng = np.random.default_rng(0)
    q, k, v = ((rng.standard_normal((2, 9, 64)) * size).astype(np.float32) for size in (3e5, 1.0, 1.0))
    output = refattn.attention(q, k, v, causal=True).astype(np.float32)
    assert check(output, q, k, v, causal=True).passed
    output[:, 0] *= 1.001
    assert check(output, q, k, v, causal=True).output.use_map[:, 0].min() > 1


def test_one_key_below_a_sink_may_be_anything_between():
    q, k, v = filled("float32", 3e5, 1.0, 1.0)
    score = 3e5 * 64 / 8
    for output in (v, 0 * v):  # the sink lies closer than the error of the score
        assert check(output, q, k, v, sinks=[score]).passed
    assert not check(2 * v, q, k, v, sinks=[score]).passed
    assert not check(0 * v, q, k, v, sinks=[score - 1e3]).passed


@pytest.mark.parametrize("factor", [0.0, 1.5])
@pytest.mark.parametrize("options", [{}, {"sinks": [1.0, -2.0]}, {"dropout": True}])
def test_one_hot_rows_by_their_gap(factor, options):
    rng = np.random.default_rng(1)
    q, k, v = ((rng.standard_normal((2, 16, 64)) * size).astype(np.float32) for size in (3e5, 1.0, 1.0))
    if options.pop("dropout", False):
        options = {"dropout_mask": np.ones((2, 16, 16), bool), "dropout_rate": 0.25}
    scores = np.sort(np.einsum("htd,hsd->hts", q.astype(float), k.astype(float)) / 8, axis=-1)
    one_hot = (scores[..., -1] - scores[..., -2] > 5e4) & (scores[..., -1] > 5e4)
    assert one_hot.sum() > 10
    output = refattn.attention(q, k, v, **options).astype(np.float32)
    assert check(output, q, k, v, **options).passed
    assert check(factor * output, q, k, v, **options).output.use_map[one_hot].min() > 1


SPECS = [
    KernelSpec.flash("float32"),
    KernelSpec.flash("float16"),
    KernelSpec.flash("bfloat16"),
    KernelSpec.eager("float32"),
    KernelSpec.eager("bfloat16"),
    KernelSpec.flash("float8_e4m3fn"),
    KernelSpec.flash("float32").replace(name="split", splits=3),
    KernelSpec.flash("bfloat16").replace(name="rounded denominator", denominator="rounded"),
    KernelSpec.cpu_kernels("float32"),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_the_hard_bound_holds_for_correct_kernels(spec):
    """Scores whose errors are from 0.01 to far more than their distances, in calls with every kind of
    option.
    """
    uncertain = 0
    for seed in range(16):
        rng = np.random.default_rng([5, seed])
        size = 10 ** rng.uniform(
            1, 3 if spec.input.name.startswith("float8") or spec.score.unit_roundoff > 1e-6 else 7
        )
        keys, dim = int(rng.integers(1, 70)), int(rng.choice([4, 64]))
        q, k = (
            rng.standard_normal((2, 8, dim)) * min(size, 400.0),
            rng.standard_normal((2, keys, dim)) * max(size / 400.0, 1.0),
        )
        if rng.random() < 0.5:
            k = k[:, :1] + rng.choice([0.0, 1e-3, 1e-1]) * k  # large scores that lie close together
        q, k, v = (
            np.clip(round_to(x, spec.input), -spec.input.largest, spec.input.largest)
            for x in (q, k, rng.standard_normal((2, keys, 5)) + 3.0 * (seed % 2))
        )
        options = {"causal": bool(rng.random() < 0.4)}
        if rng.random() < 0.3:
            options["sinks"] = (q[:, 0] * k[:, 0]).sum(axis=-1) / np.sqrt(dim)
        if rng.random() < 0.3:
            options |= {"dropout_mask": rng.random((2, 8, keys)) < 0.7, "dropout_rate": 0.3}
        if rng.random() < 0.2:
            options["bias"] = np.where(rng.random((2, 8, keys)) < 0.5, -1e9, 0.0)
        with np.errstate(all="ignore"):
            kernel = EmulatedKernel(spec, reverse=bool(rng.random() < 0.3), seed=seed)
            output, lse = kernel(q, k, v, **options)
        report = check(output, q, k, v, lse=lse, spec=spec, **options)
        assert report.output.use_hard <= 1 and report.lse.use_hard <= 1 and not report.output.misplaced, (
            seed,
            report.text(),
        )
        bound = error_bound(q, k, v, spec=spec, kind="hard", **options)
        uncertain += int((bound.output_hard[np.isfinite(bound.output_hard)] > 0.1).sum())
    assert uncertain > 30


@pytest.mark.parametrize("sink", [1e3, 2e6, 1e9])
@pytest.mark.parametrize("function", ["attention", "paged_attention"])
def test_rows_without_keys_beside_a_huge_sink(function, sink):
    """Of the second sequence no key is there: its output is 0, its lse the sink."""
    query, key = np.ones((2, 2, 1, 4), np.float32), np.ones((2, 2, 8, 4), np.float32)
    options = {"sinks": np.full(2, sink, np.float32), "kv_lengths": np.array([8, 0])}
    if function == "paged_attention":
        options["block_table"] = np.array([[1], [0]])
    output, lse = getattr(refattn, f"{function}_with_lse")(query, key, key, **options)
    given = {"lse": np.float32(lse), "function": function, **options}
    assert check(np.float32(output), query, key, key, **given).passed
    assert check(np.float32(output) + np.float32(1e-3), query, key, key, **given).wrong
