"""The one home of Numba options: every compiled function of the package is a `driver`, a `leaf` or an
`intrinsic` from here.

Nothing compiles on import. No decorator takes a signature; the first call compiles (or loads, see
`cpu_kernels.compiler.cache`). Each array dtype, rank, layout and read-only flag among a driver's arguments
is another signature and another compilation of seconds, so drivers take flat arrays with explicit strides
rather than whatever view the caller has.

Floating-point freedoms
-----------------------
`contract` alone is granted. Which of LLVM's flags a kernel may have is decided by two promises: bitwise
equal results for any number of threads, and NaN and infinity exactly where IEEE arithmetic puts them.

=========  =======  ====================================================================================
flag       granted  reason
=========  =======  ====================================================================================
contract   yes      a*b + c becomes one fused instruction: one rounding fewer, the same for every thread
                    because it is chosen at compile time; NaN and infinite operands give what the
                    two-step form gives.
reassoc    no       lets LLVM turn one sum into as many partial sums as the vector is wide, and choose
                    between that and the scalar loop by a run-time overlap check, so the bits depend on
                    the CPU and on addresses. A sum that should be vectorised is written with explicit
                    vectors, where its order is visible.
nsz        no       changes the sign of zero, which `output == value` tests see; gains nothing in
                    explicit vector code.
arcp       no       x / y becomes x * (1 / y): a second rounding, and 1 / y overflows to infinity for a
                    subnormal y.
afn        no       replaces functions by approximations of unknown error; ours have a proven one.
nnan ninf  never    delete the very comparisons that keep hidden NaNs out, and turn (0 - inf) + inf from
                    NaN into 0.
=========  =======  ====================================================================================

Switches (Numba's own, read when Numba is first imported)
---------------------------------------------------------
NUMBA_DISABLE_JIT=1    everything here returns plain Python, intrinsics their twins; `thread_pool.run` then
                       stays in the calling thread
NUMBA_BOUNDSCHECK=1    array accesses raise IndexError; the compiled code is cached apart
NUMBA_CPU_NAME, NUMBA_CPU_FEATURES    compile for less than this machine; `cpu_features` reports what is left
"""

import platform
from functools import cache, wraps
from types import FunctionType

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import njit
from numba.core import config, types
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic as numba_intrinsic

from cpu_kernels.compiler.cache import CodeCache
from cpu_kernels.compiler.numba_internals import UNCOUNTED, compile_leaf, refuse_reentrance

INTERPRETED = bool(config.DISABLE_JIT)

# error_model "numpy": x / 0 is an infinity, not an exception - and no branch per division. nogil: Python
# threads run drivers side by side.
OPTIONS = dict(fastmath={"contract"}, error_model="numpy", nogil=True, no_cfunc_wrapper=True, **UNCOUNTED)


def leaf(function):
    """A function that drivers and other leaves call, inlined into them by LLVM. Not cached: its callers'
    code contains it. Python cannot call it.
    """
    return compile_leaf(function, dict(forceinline=True, **OPTIONS))


def driver(function=None, *, variant=()):
    """A compiled entry, called from Python through `thread_pool.run`; its machine code is kept on disk.

    Parameters
    ----------
    variant : tuple of int, float, str, bool or None
        What tells this function from others made by the same factory (say dtype name and tile sizes).
        Required when the function closes over anything but such plain values, because the cache must name
        the variant without pickling dispatchers, whose pickles differ in every process.

    Notes
    -----
    A driver must not raise and must not allocate: it receives outputs, scratch and the work counter (see
    `thread_pool.run`).
    """
    if function is None:
        return lambda wrapped: driver(wrapped, variant=variant)
    variant = (*variant, *_closed_over(function, required=not variant))
    if INTERPRETED:
        return _with_record_attributes(function)
    dispatcher = njit(**OPTIONS)(function)
    dispatcher._cache = CodeCache(function, variant)
    refuse_reentrance(dispatcher)
    return dispatcher


def intrinsic(python):
    """Decorate an LLVM code generator (as `numba.extending.intrinsic`) and pair it with its plain-Python
    twin.

    Parameters
    ----------
    python : function
        Does the same to the same arguments, without the typing context. It takes the intrinsic's place under
        NUMBA_DISABLE_JIT=1, so that coverage and debuggers see kernels as ordinary Python.

    Examples
    --------
    ::

        def _square(x):
            return x * x

        @intrinsic(python=_square)
        def square(typingctx, x):
            def codegen(context, builder, signature, args):
                return builder.fmul(args[0], args[0])
            return x(x), codegen
    """

    def pair(generator):
        if INTERPRETED:
            return python
        compiled = numba_intrinsic(generator)
        compiled.python = python
        return compiled

    return pair


@cache
def cpu_features():
    """The instruction set extensions that compiled code may use: names as LLVM spells them, such as
    ``"avx2"``, ``"avx512f"``, ``"fma"``, ``"neon"``.

    Follows NUMBA_CPU_FEATURES and NUMBA_CPU_NAME, which may ask for less than the machine has.
    """
    flags = config.CPU_FEATURES if config.CPU_FEATURES is not None else get_host_cpu_features()
    flags = {flag.strip() for flag in flags.split(",")}
    if platform.machine().lower() in ("aarch64", "arm64") and "-neon" not in flags:
        flags.add("+neon")  # part of every 64-bit ARM CPU, though not every system lists it
    return frozenset(flag[1:] for flag in flags if flag.startswith("+"))


def cpu_name():
    """The CPU model that code is compiled for, as LLVM spells it."""
    return config.CPU_NAME or llvmlite.binding.get_host_cpu_name()


def vector_bytes():
    """Width in bytes of the widest vector register that compiled code may use: 64, 32, or 16 (SSE2, NEON and
    anything unknown).
    """
    features = cpu_features()
    if "avx512f" in features and "prefer-256-bit" not in features:
        return 64
    return 32 if "avx" in features else 16


def _next_item(counter):
    item = int(counter[0])
    counter[0] += 1
    return item if item < counter[COUNTER_LIMIT] else -1


# The limit lives on another cache line than the count, which every thread keeps writing.
COUNTER_LIMIT = 16
COUNTER_SIZE = 17


@intrinsic(python=_next_item)
def next_item(typingctx, counter):
    """Take the next work item: 0, 1, 2, ... each handed out once over all threads, then -1 for ever."""
    if counter != types.Array(types.int64, 1, "C"):
        return None

    def codegen(context, builder, signature, args):
        array = context.make_array(signature.args[0])(context, builder, args[0])
        int64 = ir.IntType(64)
        # Relaxed order suffices: the count hands out numbers, and the pool's lock publishes what the threads
        # wrote.
        item = builder.atomic_rmw("add", array.data, int64(1), "monotonic")
        limit = builder.load(builder.gep(array.data, [int64(COUNTER_LIMIT)]))
        return builder.select(builder.icmp_signed("<", item, limit), item, int64(-1))

    return types.int64(counter), codegen


def _with_record_attributes(function):
    """The plain function, called as Numba calls it: structured arrays reach it as `np.recarray`, whose
    elements have their fields as attributes, and nothing in it gives a floating-point warning.
    """

    @wraps(function)
    def call(*args):
        records = (
            arg.view(np.recarray) if isinstance(arg, np.ndarray) and arg.dtype.names else arg for arg in args
        )
        with np.errstate(all="ignore"):  # as compiled code, which tells nobody of an infinite sum
            return function(*records)

    return call


def _closed_over(function: FunctionType, required: bool):
    """Plain values the function closes over, by name; anything else needs an explicit variant."""
    found = []
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
        try:
            value = cell.cell_contents
        except ValueError:
            continue  # the function's own name, not bound yet
        if isinstance(value, (int, float, str, bool, type(None))):
            found.append((name, value))
        elif required:
            raise TypeError(
                f"driver {function.__qualname__} closes over {name}, a {type(value).__name__}; "
                "give variant=(...) to tell its variants apart in the cache."
            )
    return tuple(found)
