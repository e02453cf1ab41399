"""Building blocks: the linker merges functions of one name, so a name belongs to one emitter."""

from typing import NamedTuple

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


class Scaled(NamedTuple):
    memory: tuple
    factors: tuple


def _add_scaled(sizes, x, y):
    (count, twice), (y, (factor, again)) = sizes, y
    x[0][x[1] : x[1] + count] += y[0][y[1] : y[1] + count] * factor * again * (2 if twice else 1)


@building_block(python=_add_scaled)
def add_scaled(emit, sizes, x, y):
    """x += y, times all factors."""
    count, twice = sizes
    factor, again = y.factors
    doubling = emit.select(emit.builder.icmp_signed("!=", twice, emit.integer(0)), 2.0, 1.0)
    with emit.loop(count, step=emit.lanes) as i:
        scaled = emit.load(y.memory, i) * emit.splat(factor) * emit.splat(again) * doubling
        emit.store(emit.load(x, i) + scaled, x, i)


@driver
def add_scaled_part(x, y, at, twice, factor, again):
    add_scaled((x.size - at, twice), (x, at), Scaled((y, at), (factor, again)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("twice", [0, 1])
def test_tuples_within_tuples_reach_a_block_as_such(dtype, twice):
    x, y = np.ones(64, dtype), np.arange(64, dtype=dtype)
    add_scaled_part(x, y, 32, twice, dtype(3), dtype(5))
    assert np.array_equal(x, np.where(np.arange(64) < 32, 1, 1 + y * 15 * (1 + twice)))


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
