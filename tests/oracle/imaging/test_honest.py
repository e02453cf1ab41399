"""What is right is not described; what has no cause gets none; no shape makes it crash."""

import sys
import zlib
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from tiled_calls import SIZES, tiled_call

import refattn
from refattn.calls.registry import form_of
from refattn.oracle.imaging.xray import xray

sys.path.append(str(Path(__file__).parents[3] / "benchmarks"))

import correct_kernels

MAKERS = correct_kernels.emulated_makers() | correct_kernels.own_makers()
NOT_FINITE = ("poison", "nan visible")  # families whose hidden keys, or values, hold NaN
CORRECT = [
    pytest.param(
        name,
        seed,
        marks=[
            pytest.mark.xfail(reason="a weight of fp8 that underflows is called a missing key")
        ] * ((name, seed) == ("emulated float8_e4m3fn", 2)),
    )
    for name in MAKERS
    for seed in range(3)
]  # fmt: skip


def drawn(name, seed):
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    while (run := MAKERS[name](rng)).inputs.family in NOT_FINITE:
        pass
    return run


@pytest.mark.sample(5)
@pytest.mark.parametrize(("name", "seed"), CORRECT)
def test_correct_kernels_are_never_described(name, seed):
    """Measured although `check` passes them: nothing may be found, whatever the tolerance of `check` is."""
    run = drawn(name, seed)
    failed = mock.Mock(passed=False, wrong=True)
    with mock.patch.object(correct_kernels.xray_module, "check", return_value=failed):
        found = correct_kernels.xray_module.xray(run.kernel, *run.arrays, spec=run.spec, **run.options)
    assert not found.findings, f"{run.inputs.name}: {found.text()}"


@pytest.mark.parametrize("name", ["refattn paged float32", "emulated bfloat16", "cpu_kernels dense float16"])
def test_correct_kernels_agree(name):
    run = drawn(name, 7)
    found = xray(run.kernel, *run.arrays, spec=run.spec, **run.options)
    assert found.verdict == "agrees" and found.calls == 1


# kernels without a cause


def right(*arrays, **options):
    output, lse = getattr(refattn, form_of(arrays, options).with_lse)(*arrays, **options)
    return output.astype(arrays[0].dtype), lse.astype(np.float32)


def rng_of(arrays):
    return np.random.default_rng(sum(zlib.crc32(np.ascontiguousarray(x).view(np.uint8)) for x in arrays))


def noise(*arrays, **options):
    """Other noise for other arrays."""
    output, lse = right(*arrays, **options)
    rng = rng_of(arrays)
    return rng.standard_normal(output.shape).astype(output.dtype), rng.standard_normal(lse.shape)


def same_noise(*arrays, **options):
    output, lse = right(*arrays, **options)
    return np.random.default_rng(5).standard_normal(output.shape).astype(output.dtype), lse


def noise_added(*arrays, **options):
    output, lse = right(*arrays, **options)
    return (output + 0.3 * rng_of(arrays).standard_normal(output.shape)).astype(output.dtype), lse


def factors(*arrays, **options):
    output, lse = right(*arrays, **options)
    return (output * np.random.default_rng(5).uniform(0.5, 2, output.shape)).astype(output.dtype), lse


def zeros(*arrays, **options):
    output, lse = right(*arrays, **options)
    return 0 * output, 0 * lse


def ones(*arrays, **options):
    output, lse = right(*arrays, **options)
    return 0 * output + 1, lse


def nan(*arrays, **options):
    output, lse = right(*arrays, **options)
    return np.full_like(output, np.nan), np.full_like(lse, np.nan)


def infinite(*arrays, **options):
    output, lse = right(*arrays, **options)
    return np.full_like(output, np.inf), lse


FORMS = ("dense", "packed", "paged", "latent")


def of_form(form, dtype="float32"):
    arrays, options = tiled_call(form, None, dtype)
    return arrays, {**options, "causal": True}


CAUSELESS = [
    pytest.param(kernel, form, id=f"{kernel.__name__}-{form}")
    for kernel in (noise, same_noise, noise_added, factors, ones)
    for form in FORMS
]


@pytest.mark.sample(4)
@pytest.mark.parametrize(("kernel", "form"), CAUSELESS)
def test_no_cause_is_named_where_there_is_none(kernel, form):
    arrays, options = of_form(form)
    found = xray(kernel, *arrays, **options, seconds=1)
    if found.best.kind != "added":  # what does not come from the values is said, not why it is there
        assert found.verdict == "located" and not found.best.confident, found.text()


@pytest.mark.parametrize("form", FORMS)
def test_rows_that_are_all_0_are_said_to_be_0(form):
    arrays, options = of_form(form)
    found = xray(zeros, *arrays, **options)
    assert "are 0" in found.best.nature and not found.best.place, found.text()


@pytest.mark.sample(3)
@pytest.mark.parametrize("kernel", [nan, infinite])
@pytest.mark.parametrize("form", FORMS)
def test_rows_that_are_not_finite_are_said_to_be_so(form, kernel):
    arrays, options = of_form(form)
    found = xray(kernel, *arrays, **options)
    assert found.best.kind == "NaN rows" and not found.best.place and len(found.findings) == 1
    assert not found.best.note or "does not depend on the size of the scores" in found.best.note


class Race:
    """Right, but for what each call does anew."""

    def __init__(self, change):
        self.change, self.rng = change, np.random.default_rng(0)

    def __call__(self, *arrays, **options):
        output, lse = (np.array(array) for array in right(*arrays, **options))
        return self.change(self.rng, output), lse


def jittered(rng, output):
    return (output + 0.3 * rng.standard_normal(output.shape)).astype(output.dtype)


def one_row_lost(rng, output):
    output.reshape(-1, output.shape[-1])[rng.integers(output[..., 0].size)] = 0
    return output


def some_rows_lost(rng, output):
    rows = rng.random(output.shape[:-1]) < 0.2
    output[rows] = 0
    return output


@pytest.mark.sample(3)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("change", [jittered, one_row_lost, some_rows_lost])
@pytest.mark.parametrize("form", FORMS)
def test_a_race_is_said_to_be_one(form, change, dtype):
    arrays, options = of_form(form, dtype)
    found = xray(Race(change), *arrays, **options)
    assert found.best.kind == "race" and found.measured.varies.any(), found.text()


# shapes


def scaled(*arrays, **options):
    return right(*arrays, **{**options, "scale": 3.0})


def last_column_lost(*arrays, **options):
    output, lse = (np.array(array) for array in right(*arrays, **options))
    output[..., -1:] = 0
    return output, lse


def shifted_lse(*arrays, **options):
    output, lse = right(*arrays, **options)
    return output, lse + 1


def dense(rows, keys, heads=2, kv_heads=1, dim=8, v_dim=8, batch=(2,)):
    rng = np.random.default_rng(0)
    shapes = (*batch, heads, rows, dim), (*batch, kv_heads, keys, dim), (*batch, kv_heads, keys, v_dim)
    return tuple(rng.standard_normal(shape, dtype=np.float32) for shape in shapes)


SHAPES = {
    "no keys": (dense(5, 0), {}),
    "no rows": (dense(0, 7), {}),
    "no rows, no keys": (dense(0, 0), {}),
    "no sequences": (dense(5, 7, batch=(0,)), {}),
    "one key": (dense(5, 1), {}),
    "one row": (dense(1, 33), {}),
    "one row, one key": (dense(1, 1, 1, 1, 1, 1, ()), {}),
    "one column": (dense(5, 19, v_dim=1), {}),
    "one component": (dense(5, 19, dim=1), {}),
    "more rows than keys": (dense(19, 5), {"causal": True}),
    "all hidden": (dense(5, 19), {"mask": np.zeros((5, 19), bool)}),
    "length 0": (dense(5, 19), {"kv_lengths": np.array([0, 19])}),
    "no length at all": (dense(5, 19), {"kv_lengths": 0}),
    "packed, nothing": (
        tuple(x[0] for x in dense(0, 0)),
        {"cu_q": np.array([0, 0]), "cu_kv": np.array([0, 0])},
    ),
    "packed, one empty": (
        tuple(x[0] for x in dense(7, 9)),
        {"cu_q": np.array([0, 7, 7]), "cu_kv": np.array([0, 0, 9])},
    ),
    "blocks of one": (dense(7, 7), {"block_size": 1}),
    "one block": (dense(7, 7), {"block_size": 9}),
}


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    ("shape", "kernel"),
    [
        pytest.param(
            shape,
            kernel,
            id=f"{shape}-{kernel.__name__}",
        )
        for shape in SHAPES
        for kernel in (right, zeros, ones, nan, scaled, last_column_lost, shifted_lse)
    ],
)
def test_no_shape_makes_it_crash(shape, kernel):
    arrays, options = SHAPES[shape]
    found = xray(kernel, *arrays, **options)
    assert found.verdict in ("agrees", "described", "located")
    assert found.verdict == "agrees" or kernel is not right
    assert found.text() and found.to_dict()["verdict"] == found.verdict


@pytest.mark.parametrize("form", SIZES)
def test_rows_that_see_nothing_and_are_right_are_not_mentioned(form):
    arrays, options = tiled_call(form)
    rows, keys = arrays[0].shape[-2], arrays[1].shape[-2]
    options["window"] = (0, -1 + 1)
    if form == "dense":
        options = {"mask": np.broadcast_to((np.arange(rows) % 3 != 1)[:, None], (rows, keys)).copy()}
    found = xray(scaled, *arrays, **options)
    assert not any("see no key" in finding.says for finding in found.findings)
