"""check, diagnose and xray on tensors: bfloat16, 8-bit floats, such that require gradients, such on a device."""

import numpy as np
import pytest

from refattn.oracle import assert_attention_close, check, diagnose, xray

torch = pytest.importorskip("torch")
pytest.importorskip("ml_dtypes")
ROWS = 60


def kernel(query, key, value, *, causal=False):
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=causal, enable_gqa=True
    )


@pytest.fixture(scope="module")
def call():
    numbers = torch.Generator().manual_seed(0)
    arrays = [torch.randn(2, heads, ROWS, 16, generator=numbers).bfloat16() for heads in (4, 2, 2)]
    return kernel(*arrays, causal=True), *arrays


def test_bfloat16_and_gradients(call):
    expected = check(*call, causal=True)
    assert expected.passed and expected.spec.name == "flash bfloat16"
    training = [x.clone().requires_grad_() for x in call]
    assert check(*training, causal=True).summary == expected.summary
    assert_attention_close(*training, causal=True)
    assert diagnose(*training, causal=True).verdict == "agrees"


def test_8_bit_floats(call):
    output, *arrays = call
    narrow = [x.to(torch.float8_e5m2) for x in arrays]
    right = kernel(*(x.bfloat16() for x in narrow), causal=True)
    assert check(right, *narrow, causal=True).passed and not check(output, *narrow, causal=True).passed
    written = check(right.to(torch.float8_e4m3fn), *narrow, causal=True)
    assert written.passed and written.spec.output.name == "float8_e4m3fn"
    with pytest.raises(
        TypeError, match="arrays must be float16, bfloat16, float32 or float64 where the kernel"
    ):
        diagnose(kernel, *narrow)


@pytest.fixture
def device():
    from pretend_device import pretend_device

    with pretend_device() as device:
        yield device


@pytest.mark.parametrize(
    "damage",
    [(), np.s_[1, 2, 17, 3], np.s_[0, 1, 40], np.s_[1, 0, -1]],
    ids=["none", "nan", "row", "judged"],
)
def test_of_a_result_on_a_device_the_rows_looked_at_are_copied(call, device, damage):
    output = call[0].clone()
    if damage != ():
        output[damage] = float("nan")
    there = [x.to("pretend") for x in (output, *call[1:])]
    how = {"causal": True, "rows": 8}
    device.copied.clear()
    report = check(*there, **how)
    assert report.to_json() == check(output, *call[1:], **how).to_json()  # NaN is written as null
    assert report.passed == (damage == ())
    inputs = [x.numel() for x in call[1:]]
    looked_at, flags = 8 * 8 * 16, 8 * ROWS  # rows of 8 heads; one number for each of their rows
    assert device.copied[:5] == [*inputs, 0, looked_at]
    # a row that is wrong comes as well, and of a failure the rows of another axis order
    elsewhere = [16] if report.failed and damage[2] != -1 else []
    assert device.copied[5 : 7 + len(elsewhere)] == [flags, flags, *elsewhere]
    assert report.failed or len(device.copied) == 7


def test_empty_rows_and_lse_on_a_device(call, device):
    """Rows without keys, of which a wrong one is not looked at otherwise."""
    _, query, key, value = (x.float() for x in call)
    mask = np.ones((ROWS, ROWS), bool)
    mask[20:30] = False
    scores = (query @ key.repeat_interleave(2, 1).mT / 4).masked_fill(~torch.from_numpy(mask), -torch.inf)
    output = (scores.softmax(-1).nan_to_num() @ value.repeat_interleave(2, 1)).clone()
    lse = scores.logsumexp(-1)
    for value_of_a_row in (0.0, 1.0):
        output[0, 0, 25], lse[1, 1, 26] = value_of_a_row, -torch.inf if value_of_a_row == 0 else 5.0
        given = [x.to("pretend") for x in (output, query, key, value)]
        report = check(*given, lse=lse.to("pretend"), mask=mask, rows=2)
        expected = check(output, query, key, value, lse=lse, mask=mask, rows=2)
        assert report.to_dict() == expected.to_dict() and report.passed == (value_of_a_row == 0)


def test_without_rows_a_result_on_a_device_is_judged_whole(call, device):
    there = [x.to("pretend") for x in call]
    assert check(*there, causal=True).summary == check(*call, causal=True).summary
    assert not check(2 * there[0], *there[1:], causal=True).passed
    assert diagnose(*there, causal=True).verdict == "agrees"


def test_the_kernel_gets_tensors_where_the_arrays_are_tensors(call, device):
    seen = set()

    def wrong(query, key, value, *, causal, mask):
        seen.update((x.device.type, x.dtype) for x in (query, key, value, mask))
        return kernel(query, key, value)

    arrays = [x.to("pretend") for x in call[1:]]
    mask = torch.ones(ROWS, ROWS, dtype=torch.bool)
    found = diagnose(wrong, *arrays, causal=True, mask=mask, seconds=5.0, pairs=False)
    assert found.verdict == "explained" and "causal" in found.best.says
    assert seen == {("pretend", torch.bfloat16), ("pretend", torch.bool)}


def test_xray_of_a_kernel_that_takes_tensors(call):
    def wrong(query, key, value):
        return kernel(query, key[..., :50, :], value[..., :50, :])

    small = [x[:1, :, : 20 if n == 0 else ROWS] for n, x in enumerate(call[1:])]
    found = xray(wrong, *small, seconds=30.0)
    assert "50" in found.text() and found.best.kind == "visible keys"


def test_a_kernel_that_changes_its_tensors(call):
    def wrong(query, key, value, causal):
        key *= 2
        return kernel(query, key, value, causal=causal)

    assert diagnose(wrong, *call[1:], causal=True, seconds=5.0, pairs=False).changed == ("key",)


def test_arrays_of_jax(call):
    jax = pytest.importorskip("jax")
    output, *arrays = (jax.numpy.asarray(x.float().numpy()) for x in call)

    def wrong(query, key, value):
        assert isinstance(query, jax.Array)
        return jax.nn.softmax(query @ key.mT, axis=-1) @ value

    assert check(output, *arrays, causal=True, spec="bfloat16").passed
    query, key, value = (x[:, :2] for x in arrays)
    assert diagnose(wrong, query, key, value, seconds=5.0, pairs=False).verdict == "explained"
