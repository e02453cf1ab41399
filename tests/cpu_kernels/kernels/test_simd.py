"""Building blocks: the linker merges functions of one name, so a name belongs to one emitter."""

import numpy as np
import pytest

from cpu_kernels.compiler.jit import driver
from cpu_kernels.simd.building_block import building_block


def _add(count, x):
    x[0][x[1] : x[1] + count] += 1


def define(number):
    @building_block(python=_add)
    def add(emit, count, x):
        with emit.loop(count, step=emit.lanes) as i:
            emit.store(emit.load(x, i) + emit.vector(number), x, i)

    return add


add_one = define(1.0)


@building_block(python=_add)
def add_again(emit, count, x):
    with emit.loop(count, step=emit.lanes) as i:
        emit.store(emit.load(x, i) + emit.vector(1.0), x, i)


@driver
def add_both(x):
    add_one(x.size, (x, 0))
    add_again(x.size, (x, 0))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_blocks_of_two_names(dtype):
    x = np.arange(64, dtype=dtype)
    add_both(x)
    assert np.array_equal(x, np.arange(2, 66))


def test_one_name_of_two_emitters_is_an_error():
    with pytest.raises(TypeError, match=r"different names; got another test_simd\.define\.<locals>\.add,"):
        define(2.0)

    def add_again(emit, count, x):
        emit.prefetch(x, count)

    add_again.__qualname__ = "add_again"
    with pytest.raises(TypeError, match=r"got another test_simd\.add_again,"):
        building_block(python=_add)(add_again)


def test_a_definition_may_run_again():
    define(1.0)
