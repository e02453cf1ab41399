"""Numba options in one place: nothing compiles on import, floating-point freedoms stay bounded, every
switch works.
"""

import ast
import os
import re
import sys

import numpy as np
import pytest

pytest.importorskip("numba")

from package_copy import FIRST_CALL, ROOT, PackageCopy

from cpu_kernels.compiler.jit import (
    COUNTER_LIMIT,
    COUNTER_SIZE,
    INTERPRETED,
    OPTIONS,
    cpu_features,
    cpu_name,
    driver,
    intrinsic,
    leaf,
    next_item,
    vector_bytes,
)

compiled_only = pytest.mark.skipif(INTERPRETED, reason="looks at compiled code")
SOURCES = sorted((ROOT / "cpu_kernels").rglob("*.py"))


@pytest.fixture
def copy(tmp_path):
    return PackageCopy(tmp_path)


def test_nothing_compiles_on_import(tmp_path):
    """Not on import of any module, neither in memory nor from the cache; and importing opens no cache
    folder.
    """
    code = """
import importlib, pkgutil
import numba.core.event as event
compiled = []

class Listener(event.Listener):
    def on_start(self, event):
        compiled.append(event.data)
    def on_end(self, event):
        pass

with event.install_listener("numba:compile", Listener()):
    import cpu_kernels
    names = ["cpu_kernels"] + [module.name for module in pkgutil.walk_packages(cpu_kernels.__path__, "cpu_kernels.")]
    for name in names:
        importlib.import_module(name)

from numba.core.dispatcher import Dispatcher
dispatchers = [value for name in names for value in vars(importlib.import_module(name)).values() if isinstance(value, Dispatcher)]
assert dispatchers and not any(dispatcher.overloads for dispatcher in dispatchers)
from cpu_kernels.compiler import cache
print(compiled, cache._place, len(names) > 8)
"""
    copy = PackageCopy(tmp_path, whole=True)
    assert copy.python(code)[0] == "[] None True"
    assert not copy.cache.exists()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_numba_options_live_in_one_file(path):
    """Elsewhere no jit decorator of Numba's, no parallel loop, no fast-math flag."""
    tree = ast.parse(path.read_text())
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} | {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)
    }
    keywords = {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword)}
    assert not names & {"prange"}
    assert "parallel" not in keywords
    if path.name not in ("jit.py", "numba_internals.py"):
        assert not names & {"njit", "jit", "vectorize", "guvectorize", "stencil", "cfunc"}
    if path.name != "jit.py":
        assert not keywords & {"fastmath", "boundscheck", "nogil", "error_model"}


def test_floating_point_freedoms():
    assert OPTIONS["fastmath"] == {"contract"}
    assert OPTIONS["error_model"] == "numpy"


@leaf
def nan_rules(x, y):
    """(0 - inf) + inf, comparisons with NaN, a difference of equal products, division by zero."""
    return (0.0 - x) + x, x != x, y != y, y == y, x * x - x * x, 1.0 / (y - y + 0.0 * 0.0), max(x, y)


@driver
def nan_rules_driver(x, y, out):
    a, b, c, d, e, f, _ = nan_rules(x, y)
    out[0], out[1], out[2], out[3], out[4], out[5] = a, b, c, d, e, f


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_nan_and_infinity_survive_the_options():
    out = np.empty(6)
    nan_rules_driver(np.float64(np.inf), np.float64(np.nan), out)
    assert (
        np.isnan(out[0])
        and out[1] == 0
        and out[2] == 1
        and out[3] == 0
        and np.isnan(out[4])
        and np.isnan(out[5])
    )


@driver
def quotient(x, y):
    return x / y


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
def test_division_by_zero_gives_infinity():
    assert quotient(np.float64(1), np.float64(0)) == np.inf
    assert quotient(np.float64(-1), np.float64(0)) == -np.inf


@driver
def sums_of_products(x, y, out):
    for i in range(x.size):
        out[i] = x[i] * y[i] + out[i]


@driver
def plain_sum(x):
    total = np.float32(0)
    for i in range(x.size):
        total += x[i]
    return total


@compiled_only
def test_contraction_is_used_and_sums_are_not_reordered():
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    out = np.zeros_like(x)
    sums_of_products(x, x, out)
    if {"fma", "neon"} & cpu_features():
        code = "".join(sums_of_products.inspect_asm().values())
        assert re.search(r"vfmadd|fmla|fmadd", code)
    expected = np.float32(0)
    for value in x:
        expected += value
    assert plain_sum(x) == expected


@driver
def handed_out(counter, items):
    count = 0
    item = next_item(counter)
    while item >= 0:
        items[count] = item
        count += 1
        item = next_item(counter)
    return count


@pytest.mark.parametrize("limit", [0, 1, 5])
def test_next_item_counts_to_the_limit_then_stays_negative(limit):
    counter = np.zeros(COUNTER_SIZE, np.int64)
    counter[COUNTER_LIMIT] = limit
    items = np.zeros(10, np.int64)
    assert handed_out(counter, items) == limit
    assert items[:limit].tolist() == list(range(limit))
    assert handed_out(counter, items) == 0


@compiled_only
def test_next_item_takes_nothing_but_a_counter():
    from numba.core.errors import TypingError

    with pytest.raises(TypingError):
        handed_out(np.zeros(COUNTER_SIZE, np.float64), np.zeros(1, np.int64))


def _doubled(x):
    return 2 * x


@intrinsic(python=_doubled)
def doubled(typingctx, x):
    def codegen(context, builder, signature, args):
        return builder.fadd(args[0], args[0])

    return x(x), codegen


@driver
def double_all(x):
    for i in range(x.size):
        x[i] = doubled(x[i])


def test_intrinsic_and_its_twin():
    x = np.arange(4.0)
    double_all(x)
    assert x.tolist() == [0, 2, 4, 6]
    if INTERPRETED:
        assert doubled is _doubled
    else:
        assert doubled.python is _doubled


def test_driver_of_a_factory_must_name_its_variant():
    helper = leaf(lambda x: x)

    def make(width, **options):
        @driver(**options)
        def kernel(x):
            return helper(x) * width

        return kernel

    with pytest.raises(TypeError, match=r"closes over helper, a \w+; give variant="):
        make(2)
    assert make(2, variant=(2,))(1.5) == 3.0
    assert make(3, variant=(3,))(1.5) == 4.5


def test_variants_are_kept_apart(copy):
    copy.source("sample.py").write_text("""
from cpu_kernels.compiler.jit import driver, leaf
helper = leaf(lambda x: x)

def make(width):
    local = helper
    @driver(variant=(width,))
    def kernel(x):
        return local(x) * width
    return kernel

def plain(width):
    @driver
    def kernel(x):
        return x * width
    return kernel
""")
    code = """
from cpu_kernels.sample import make, plain
kernels = [make(2), make(3), plain(2), plain(3), plain(2.0), plain(True)]
print([kernel(1.5) for kernel in kernels], sum(sum(kernel.stats.cache_hits.values()) for kernel in kernels))
"""
    assert copy.python(code)[0] == "[3.0, 4.5, 3.0, 4.5, 3.0, 1.5] 0"
    assert copy.python(code)[0] == "[3.0, 4.5, 3.0, 4.5, 3.0, 1.5] 6"


# -- switches -----------------------------------------------------------------------------------------------

OUT_OF_BOUNDS = """
import numpy as np
from cpu_kernels.sample import cubes, powers
from cpu_kernels.machine.thread_pool import num_threads, run
print(cubes([1, 2, 3]))
for count in (1, 3):
    with num_threads(count):
        try:
            run(powers, 50, np.ones(50), 3, np.empty(40), cost=1e9)
        except IndexError as error:
            print("IndexError")
"""


@compiled_only
def test_bounds_checked_build(copy):
    """Array accesses raise, on one thread and on several, and the two builds are kept apart."""
    assert "[1.0, 8.0, 27.0]" in copy.python(FIRST_CALL)[0]
    for _ in range(2):
        assert copy.python(OUT_OF_BOUNDS, NUMBA_BOUNDSCHECK="1")[0].splitlines() == [
            "[1.0, 8.0, 27.0]",
            "IndexError",
            "IndexError",
        ]
    assert copy.python(FIRST_CALL)[0] == "([1.0, 8.0, 27.0], 1, 0)"


def test_interpreted_build(copy):
    code = """
from cpu_kernels.compiler.jit import INTERPRETED
from cpu_kernels.sample import cubes, powers
from cpu_kernels.sample_leaf import power
print(INTERPRETED, type(powers).__name__, type(power).__name__, cubes([1, 2, 3]))
"""
    assert copy.python(code, NUMBA_DISABLE_JIT="1")[0] == "True function function [1.0, 8.0, 27.0]"
    assert copy.entries() == []


X86 = pytest.mark.skipif(
    os.uname().machine not in ("x86_64", "AMD64") if hasattr(os, "uname") else True,
    reason="names x86-64 features",
)
AVX2 = dict(
    NUMBA_CPU_NAME="haswell",
    NUMBA_CPU_FEATURES="+sse,+sse2,+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt,+avx,+avx2,+fma,+f16c,+bmi,+bmi2",
)
PLAIN = dict(NUMBA_CPU_NAME="x86-64", NUMBA_CPU_FEATURES="+sse,+sse2")


@X86
@pytest.mark.parametrize(
    "target, width, registers, forbidden",
    [
        (AVX2, 32, "ymm", "zmm"),
        (PLAIN, 16, "xmm", "ymm|zmm"),
        (dict(NUMBA_CPU_NAME="generic"), 16, "xmm", "ymm|zmm"),
    ],
    ids=["avx2", "sse2", "generic"],
)
def test_reduced_instruction_sets(copy, target, width, registers, forbidden):
    """Code for less than this machine: the width follows and no wider register is used."""
    copy.source("sample_axpy.py").write_text("""
from cpu_kernels.compiler.jit import driver

@driver
def axpy(x, y):
    for i in range(x.size):
        y[i] = 2 * x[i] + y[i]
""")
    code = """
import numpy as np
from cpu_kernels.compiler.jit import cpu_name, vector_bytes
from cpu_kernels.sample import cubes
from cpu_kernels.sample_axpy import axpy
y = np.ones(100, np.float32)
axpy(np.ones(100, np.float32), y)
assert set(y) == {3} and cubes([1, 2, 3]) == [1, 8, 27]
print(vector_bytes(), cpu_name())
print("".join(axpy.inspect_asm().values()))
"""
    output, _ = copy.python(code, **target, CPU_KERNELS_CACHE_DIR="off")
    first, assembly = output.split("\n", 1)
    assert first == f"{width} {target['NUMBA_CPU_NAME']}"
    assert re.search(registers, assembly) and not re.search(rf"%?({forbidden})\d", assembly)


def test_vector_width_of_this_machine():
    features = cpu_features()
    assert all(re.fullmatch(r"[\w.+-]+", name) for name in features)
    assert vector_bytes() in (16, 32, 64)
    assert isinstance(cpu_name(), str) and cpu_name()
    if (
        not os.environ.get("NUMBA_CPU_FEATURES")
        and not os.environ.get("NUMBA_CPU_NAME")
        and sys.platform == "linux"
        and os.uname().machine == "x86_64"
    ):
        flags = re.search(r"^flags\s*:(.*)$", open_text("/proc/cpuinfo"), re.M).group(1).split()
        assert ("avx512f" in features) == ("avx512f" in flags) and ("avx2" in features) == ("avx2" in flags)


@pytest.mark.parametrize(
    "machine, flags, neon",
    [
        ("aarch64", "", True),
        ("arm64", "+crc", True),
        ("aarch64", "+neon,+lse", True),
        ("aarch64", "+crc,-neon", False),
        ("x86_64", "+avx2", False),
    ],
)
def test_every_64_bit_arm_has_neon(machine, flags, neon, monkeypatch):
    """Some systems list no features at all."""
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("cpu_kernels.compiler.jit.config.CPU_FEATURES", flags)
    features = cpu_features.__wrapped__()
    assert ("neon" in features) == neon and "" not in features


def open_text(path):
    with open(path) as file:
        return file.read()


def test_switches_are_plain_values():
    assert INTERPRETED is bool(INTERPRETED)


# -- what is taken from Numba's inside ----------------------------------------------------------------------


@compiled_only
def test_python_cannot_call_a_leaf():
    """Neither before nor after a driver has compiled it."""
    numbers = np.float64(1), np.float64(2)
    for _ in range(2):
        with pytest.raises(TypeError, match="nan_rules is a leaf, which only compiled functions can call"):
            nan_rules(*numbers)
        nan_rules_driver(*numbers, np.empty(6))
    with np.errstate(all="ignore"):
        assert nan_rules.py_func(*numbers)[1] == 0


@leaf
def plus(x, number, negative):
    return x - number if negative else x + number


@driver
def literals_and_variables(x):
    number, negative = 0, True  # constants first, variables from the second round on
    while number < 3:
        x[0] = plus(plus(x[0], number, negative), 7, False)
        number, negative = number + 1, x[0] > 100


@compiled_only
def test_a_leaf_is_compiled_once_for_all_values_of_a_constant():
    x = np.zeros(1)
    literals_and_variables(x)
    assert x[0] == 3 * 7 + 1 + 2
    assert len(plus.overloads) == 1


ANY_RELEASE = """
import numba
numba.version_info = numba.version_info._replace(short=(0, 99))
from cpu_kernels.compiler import numba_internals
assert not numba_internals.TESTED
"""


@compiled_only
def test_other_numba_releases_take_the_slow_way(copy):
    assert copy.python(ANY_RELEASE + FIRST_CALL)[0] == "([1.0, 8.0, 27.0], 0, 1)"
    assert copy.python(ANY_RELEASE + FIRST_CALL)[0] == "([1.0, 8.0, 27.0], 1, 0)"


@compiled_only
def test_leaves_call_leaves_and_the_math_library(copy):
    copy.source("sample.py").write_text("""
import math
from cpu_kernels.compiler.jit import driver, leaf

@leaf
def inner(x):
    return math.exp(x) + math.floor(x)

@leaf
def outer(x, n):
    total = 0.0
    for i in range(n):
        total += inner(x[i])
    return total

@driver
def kernel(x):
    return outer(x, x.size) + outer(x, 1)
""")
    code = (
        "import numpy as np; from cpu_kernels.sample import kernel; print(kernel(np.array([0.5, 1.5])), "
        "sum(kernel.stats.cache_hits.values()))"
    )
    expected = 2 * np.exp(0.5) + np.exp(1.5) + 1
    for hits in (0, 1):
        value, found = copy.python(code)[0].split()
        assert float(value) == pytest.approx(expected, rel=1e-15) and int(found) == hits
