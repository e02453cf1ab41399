"""Every bad call raises its error: the type and the whole message, before any work, the same in both packages."""

import pytest

import cpu_kernels
import refattn
import refattn.memory
from bad_calls import BAD_CALLS, GOOD_CALLS, TWINS

PACKAGES = [refattn, cpu_kernels]

# Messages to be settled with the validation code.
PENDING = {
    "scale beyond float64", "bias bool", "alibi nan", "alibi inf", "sinks nan", "sinks inf", "form none", "form array", "nothing to merge",
    "lengths instead of boundaries", "cu_q not starting at 0", "cu_kv not ending at the total", "cu_q once around int64", "an lse missing",
    "cu_q and cu_kv of different lengths", "lengths differ", "one query row", "an output missing", "outputs none", "lses number",
    "outputs generator", "outputs text", "stacked outputs on a gpu",
}  # fmt: skip


def named_calls():
    for package in PACKAGES:
        for call in BAD_CALLS:
            for name in TWINS[call.function]:
                if hasattr(package, name):
                    pending = call.reason in PENDING or (call.function, call.reason) == ("merge_states", "output too large")
                    marks = [pytest.mark.xfail(strict=True)] if pending else []
                    yield pytest.param(getattr(package, name), call, id=f"{package.__name__}.{name}-{call.reason}", marks=marks)


@pytest.fixture(autouse=True)
def four_gib_of_memory(monkeypatch):
    """Messages about memory name what is left, which must not depend on the machine."""
    monkeypatch.setattr(refattn.memory, "available_bytes", lambda: 4 * 2**30)


@pytest.mark.parametrize("function, call", list(named_calls()))
def test_bad_call(function, call):
    with pytest.raises(Exception) as raised:
        function(**GOOD_CALLS[call.function] | call.changes)
    assert str(raised.value) == call.message
    assert type(raised.value) is call.error
