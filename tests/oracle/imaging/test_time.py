"""The time of an X-ray bounds its calls, and what was left out is said."""

import json
import time

import numpy as np
import pytest

import refattn
from refattn.oracle import KernelSpec, xray
from refattn.oracle.imaging.compare import Ledgers
from refattn.oracle.imaging.measure import Measured
from refattn.oracle.imaging.probes import Probes
from refattn.oracle.imaging.view import View
from tests.oracle.imaging.test_report import arrays, nan_rows, right, scaled_columns, top_left

SECONDS = 0.05  # of a slow call


def slow(kernel):
    def called(*arrays, **options):
        time.sleep(SECONDS)
        return kernel(*arrays, **options)

    return called


def pages_of_the_next(query, key_pages, value_pages, block_table, kv_lengths):
    pages = (block_table + 1) % len(key_pages)
    return refattn.paged_attention(query, key_pages, value_pages, block_table=pages, kv_lengths=kv_lengths)


def doubled_latents(*arrays):
    return 2 * refattn.latent_attention(*arrays)


def call(form):
    """Arrays and options of a call."""
    rng = np.random.default_rng(0)
    normal = lambda *shapes: tuple(rng.standard_normal(shape, dtype=np.float32) for shape in shapes)
    if form == "paged":
        table = rng.permutation(12).reshape(2, 6)
        pages = normal((2, 4, 3, 8), (12, 2, 4, 8), (12, 2, 4, 8))
        return pages, {"block_table": table, "kv_lengths": np.array([22, 24])}
    if form == "latent":
        return normal((1, 2, 3, 8), (1, 2, 3, 4), (1, 9, 16), (1, 9, 4), (2, 8, 16), (2, 8, 16)), {}
    return arrays(keys=200), {"causal": True}


FORMS = (
    (top_left, "dense"),
    (nan_rows, "dense"),
    (scaled_columns, "dense"),
    (pages_of_the_next, "paged"),
    (doubled_latents, "latent"),
)


@pytest.mark.parametrize("kernel, form", FORMS, ids=lambda x: getattr(x, "__name__", x))
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_calls_end_with_the_time(kernel, form, share):
    operands, options = call(form)
    whole = xray(kernel, *operands, **options)
    assert whole.unfinished == () and "left out for want of time" not in str(whole)
    lines, seconds = [], share * SECONDS * whole.calls
    found = xray(
        slow(kernel), *operands, **options, seconds=seconds, progress=lambda event: lines.append(event.what)
    )
    assert found.calls * SECONDS <= seconds + 2 * SECONDS and found.calls < whole.calls
    assert found.unfinished and len({*found.unfinished}) == len(found.unfinished)
    assert f"left out for want of time: {'; '.join(found.unfinished)}" in " ".join(str(found).split())
    assert json.loads(found.to_json())["unfinished"] == list(found.unfinished)
    assert not any(line.startswith(part) for line in lines for part in found.unfinished)


@pytest.mark.parametrize("key", [0, 56])
def test_weights_that_were_not_measured_are_not_judged(key, monkeypatch):
    operands, options = call("dense")
    view = View(operands, options)
    enough = lambda probes, part, calls=1: part != f"one-hot values, from key {key} on"
    monkeypatch.setattr(Probes, "have_time", enough)
    measured = Measured(view, Probes(top_left, view), KernelSpec.flash(np.float32))
    known = np.broadcast_to(measured.determined, view.shape)
    assert known[..., :key].all() and not known[..., key:].any()
    assert not Ledgers(measured).judged[~known].any() and not measured.unexplained.any()
    np.testing.assert_array_equal(measured.weights[~known], view.weights[~known])
    monkeypatch.undo()
    whole = Measured(view, Probes(top_left, view), measured.spec)
    assert np.all(whole.determined) and whole.unexplained.max() <= 1
    np.testing.assert_array_equal(measured.weights[known], whole.weights[known])


def test_ctrl_c_says_what_was_being_measured():
    def stop(event):
        if event.what.startswith("one-hot values"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as stopped:
        xray(top_left, *arrays(), causal=True, progress=stop)
    found = stopped.value.partial
    assert found.interrupted and found.calls > 1 and found.unfinished[0].startswith("one-hot values")
    assert "interrupted, not finished: one-hot values" in " ".join(str(found).split())


def test_each_part_is_told_before_it_begins():
    lines = []

    def kernel(*arrays, **options):
        lines.append("called")
        return top_left(*arrays, **options)

    tell = lambda event: lines.append(event.what)
    xray(kernel, *arrays(), causal=True, progress=tell)
    assert lines.pop(0) == "xray: judging the result"
    assert lines[:2] == ["called", "called"]  # the call itself: to judge it, and among the probes
    told = [line for line in lines if line != "called"]
    assert told[0] == "the same call again, to see races: 2 calls" and lines[2] == told[0]
    assert any(line.startswith("one-hot values, from key 0 on: ") for line in told)


def test_a_right_kernel_is_called_once():
    assert xray(right, *arrays(), causal=True, seconds=0.0).unfinished == ()
