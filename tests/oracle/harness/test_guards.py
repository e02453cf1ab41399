"""Guard bands: layouts keep the numbers, and every write outside an array is noticed."""

import numpy as np
import pytest

from refattn.oracle.harness.guards import LAYOUTS, damage, guard_all, guarded, guarded_output


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (5,), (3, 0, 2), ()])
def test_layouts_keep_the_numbers_and_the_guards_notice_every_write(layout, shape):
    array = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
    g = guarded(array, "query", layout)
    assert np.array_equal(g.view, array) and g.damage() == ""
    outside = g.buffer.copy()
    g.buffer[3] ^= 1
    assert "1 guard bytes around query" in g.damage()
    g.buffer[:] = outside
    g.buffer[-1] ^= 1
    assert "guard bytes" in g.damage()
    g.buffer[:] = outside
    if array.size and layout != "read-only":
        g.view[(0,) * array.ndim] += 1
        assert g.damage() == "query was changed"


def test_everything_around_an_array_is_nan():
    g = guarded(np.zeros((2, 3, 4), np.float32), "key", "padded")
    everything = g.buffer.view(np.float32)
    assert np.count_nonzero(np.isfinite(everything)) == 24
    assert g.view.__array_interface__["data"][0] % 64 == 0
    shifted = guarded(np.zeros((2, 3), np.float32), "key", "shifted")
    assert shifted.view.__array_interface__["data"][0] % 64 == 4


def test_arrays_among_the_options_are_guarded():
    mask = np.ones((3, 5), bool)
    _, options, guards = guard_all((np.ones((1, 3, 2)),), {"mask": mask, "causal": True}, ["query"])
    assert options["mask"] is not mask and options["causal"] is True
    options["mask"][0, 0] = False
    assert damage(guards) == ["mask was changed"]


def test_output_guards_allow_writes_inside_only():
    out = guarded_output((2, 3), np.float32)
    out.view[...] = 1
    assert out.overwritten_guards() == 0
    beyond = np.ndarray(
        (7,),
        np.float32,
        out.buffer,
        out.view.__array_interface__["data"][0] - out.buffer.__array_interface__["data"][0],
    )
    beyond[6] = 1.0
    assert out.overwritten_guards() > 0


def test_unknown_layout_is_refused():
    with pytest.raises(ValueError, match="layout must be one of"):
        guarded(np.zeros(3), "x", "diagonal")
