"""Calls in the middle of a call: signal handlers, finalizers and exit handlers may call cpu_kernels, wait
for a thread that does, raise, or fork.

Python runs them between any two of its instructions, so a trace function plays each of them at one
instruction of the pool after the other.
"""

import os
import subprocess
import sys

import pytest

pytest.importorskip("numba")

from package_copy import ROOT, PackageCopy

from cpu_kernels.compiler.jit import INTERPRETED

pytestmark = [
    pytest.mark.skipif(INTERPRETED, reason="plain Python stays in the calling thread"),
    pytest.mark.skipif(os.name != "posix", reason="signals of POSIX"),
]


@pytest.fixture
def copy(tmp_path):
    return PackageCopy(tmp_path)


CALLS = """
import contextlib, faulthandler, gc, os, signal, sys, threading, time, weakref
import numpy as np
from cpu_kernels import sample
from cpu_kernels.machine import thread_pool as pool

def cubes(count=3, np=np, pool=pool, sample=sample):  # globals are gone when the process ends
    out = np.empty(300)
    with pool.num_threads(count):
        pool.run(sample.powers, 300, np.full(300, 2.0), 3, out, cost=1e9)
    assert set(out.tolist()) == {8.0}, out

class Last:
    def help(self):
        raise SystemExit

def fresh_pool():
    for _ in pool._pool.threads:
        pool._pool.jobs.put(Last())
    pool._pool = pool._Pool()

cubes()
"""

EVERY_MOMENT = (
    CALLS
    + """
HELPERS, OPCODES, STEP, CROWD = SETTINGS
moment = seen = 0
main = threading.get_ident()

def enter(frame, event, argument):
    if frame.f_code.co_filename == pool.__file__ and (threading.get_ident() != main) == HELPERS:
        frame.f_trace_opcodes = OPCODES
        return inside

def inside(frame, event, argument):
    global seen
    if event == ("opcode" if OPCODES else "line"):
        seen += 1
        if seen == moment:
            interrupt()
    return inside

def where_python_looks_for_signals(frame, event, argument):
    # At the start of a function and after a call; nested calls do no harm in between, exceptions would.
    global seen
    if event in ("call", "c_return") and frame.f_code.co_filename == pool.__file__:
        seen += 1
        if seen == moment:
            sys.setprofile(None)
            interrupt()

class Cycle:
    def __init__(self):
        self.itself = self

    def __del__(self):
        cubes(5)

def in_another_thread(*_):
    thread = threading.Thread(target=cubes, args=(5,))
    thread.start()
    thread.join()

def fail(*_):
    raise KeyboardInterrupt

def forked(*_):
    global child
    child = os.fork()

def by_signal(handler):
    signal.signal(signal.SIGUSR1, handler)
    return lambda: signal.raise_signal(signal.SIGUSR1)

def by_collection():
    Cycle()
    gc.collect()

def by_weakref():
    thing = Cycle.__new__(type("Thing", (), {}))
    reference = weakref.ref(thing, lambda _: cubes(5))
    del thing

KIND

going = True

def crowd():
    while going:
        cubes(4)

others = [threading.Thread(target=crowd) for _ in range(CROWD)]
for other in others:
    other.start()
while True:
    faulthandler.dump_traceback_later(30, exit=True)
    moment += STEP
    seen = 0
    if not CROWD:
        fresh_pool()
    child = None
    if failing:
        sys.setprofile(where_python_looks_for_signals)
    else:
        (threading if HELPERS else sys).settrace(enter)
    try:
        cubes()
        raised = None
    except (KeyboardInterrupt, RuntimeError) as error:
        raised = error
    (threading if HELPERS else sys).settrace(None)
    sys.setprofile(None)
    if child == 0:
        cubes()
        os._exit(0 if raised is None or "fork" in str(raised) else 3)
    if child:
        assert os.waitpid(child, 0)[1] == 0
    assert raised is None or failing and type(raised) is KeyboardInterrupt, raised
    cubes()  # as before
    patience = 1000
    while not CROWD and pool._open_jobs and patience:  # of a helper that still runs what interrupted it
        patience -= 1
        time.sleep(0.01)
    assert CROWD or not pool._open_jobs
    for number in range(0 if CROWD else 2):
        assert pool._pool.threads[number]._started.wait(10) and pool._pool.threads[number].is_alive()
    if seen < moment:
        break
going = False
for other in others:
    other.join()
print("moments", moment // STEP > LEAST)
"""
)

# (instructions of helpers instead of the caller, every instruction or every line, every how manyth, threads
# that call meanwhile), least number
CALLER, IN_A_CROWD, IN_A_HELPER = (
    ((False, True, 3, 0), 100),
    ((False, True, 11, 3), 20),
    ((True, False, 1, 0), 5),
)
KINDS = {
    "signal handler": ("interrupt = by_signal(lambda *_: cubes(5))", CALLER),
    "signal handler among other callers": ("interrupt = by_signal(lambda *_: cubes(5))", IN_A_CROWD),
    "signal handler that waits for a thread": ("interrupt = by_signal(in_another_thread)", CALLER),
    "signal handler that raises": ("interrupt = failing = by_signal(fail)", ((False, False, 1, 0), 30)),
    "signal handler that forks": ("interrupt = by_signal(forked)", ((False, False, 1, 0), 30)),
    "__del__": ("interrupt = by_collection", ((False, False, 1, 0), 30)),
    "__del__ in a helper": ("interrupt = by_collection", IN_A_HELPER),
    "weakref callback": ("interrupt = by_weakref", CALLER),
    "weakref callback in a helper": ("interrupt = by_weakref", IN_A_HELPER),
}


# the others go the same ways through the pool
SELDOM = {"signal handler", "signal handler among other callers", "__del__ in a helper", "weakref callback"}
SHARED_OUT = [pytest.param(kind, marks=pytest.mark.campaign if kind in SELDOM else ()) for kind in KINDS]


@pytest.mark.parametrize("kind", SHARED_OUT)
def test_call_inside_a_call(copy, kind):
    code, (settings, least) = KINDS[kind]
    code = (
        EVERY_MOMENT.replace("KIND", f"failing = None\n{code}")
        .replace("SETTINGS", repr(settings))
        .replace("LEAST", str(least))
    )
    assert copy.python(code)[0] == "moments True"


AT_THE_END = (
    CALLS.removesuffix("cubes()\n")
    + """
import atexit
faulthandler.dump_traceback_later(30, exit=True)

def last(name, count, cubes=cubes, write=os.write):
    cubes(count)
    write(1, f"{name}\\n".encode())

class Kept:
    def __del__(self, last=last):
        with contextlib.suppress(TypeError):  # where Python has emptied the modules, nothing of them can be called
            last("__del__", 6)

class Cycle(Kept):
    def __init__(self):
        self.itself = self

atexit.register(last, "atexit", 4)
weakref.finalize(Kept, last, "finalize", 5)
gc.disable()
Cycle()  # collected by Python at the end, before it empties the modules
kept, sys.kept = Kept(), Kept()
BEFORE
"""
)


@pytest.mark.parametrize("before", ["", "cubes()"])
def test_calls_while_the_process_ends(copy, before):
    """When no thread can start any more, with helpers asleep and without."""
    output, errors = copy.python(AT_THE_END.replace("BEFORE", before))
    assert {*output.split()} == {"__del__", "atexit", "finalize"}, errors


WHILE_COMPILING = """
import faulthandler, signal, sys
import numpy as np
from cpu_kernels import sample
from cpu_kernels.machine import thread_pool
from cpu_kernels.compiler.jit import driver
faulthandler.dump_traceback_later(100, exit=True)
warm = sample.powers
assert sample.cubes([2]) == [8.0]
count = moment = 0
seen = set()

def handler(*_):
    assert sample.cubes([3], warm) == [27.0]  # what is compiled can always be called
    try:
        assert sample.cubes([3], another) == [27.0]
        seen.add("works")
    except RuntimeError as error:
        assert "signal handler" in str(error), error
        seen.add("refused")

def profile(frame, event, argument):
    global count
    count += 1
    if count == moment:
        sys.setprofile(None)
        signal.raise_signal(signal.SIGUSR1)

signal.signal(signal.SIGUSR1, handler)
of = [driver(variant=(n,))(sample.powers.py_func) for n in range(20)]
sys.setprofile(profile)
sample.cubes([2], of.pop())
sys.setprofile(None)
total = count
for part in (0.0002, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97):
    function, another = of.pop(), of.pop() if part != 0.5 else of[-1]
    function = another if part == 0.5 else function
    count, moment = 0, max(1, int(total * part))
    sys.setprofile(profile)
    assert sample.cubes([2], function) == [8.0]
    sys.setprofile(None)
    assert sample.cubes([3], another) == [27.0]
print(sorted(seen))
"""


def test_call_inside_a_compilation(copy):
    output, _ = copy.python(WHILE_COMPILING, CPU_KERNELS_CACHE_DIR="off")
    assert "refused" in output


TIMER = """
import faulthandler, signal, sys, threading, time
import numpy as np
import cpu_kernels
sys.path.insert(0, "tests/support")
from bad_calls import GOOD_CALLS

rng = np.random.default_rng(0)
x = rng.standard_normal((4, 256, 32), dtype=np.float32)
attend = lambda: cpu_kernels.attention(x, x, x, causal=True).tobytes()
functions = [*(lambda name=name: str(getattr(cpu_kernels, name)(**GOOD_CALLS[name])) for name in GOOD_CALLS), attend]
with cpu_kernels.num_threads(3):
    expected = [function() for function in functions]  # compiled
    faulthandler.dump_traceback_later(60, exit=True)
    wrong, calls, going = [], 0, True

    def handler(*_):
        global calls
        which = calls % len(functions)
        if functions[which]() != expected[which]:
            wrong.append(which)
        calls += 1
        signal.setitimer(signal.ITIMER_REAL, 0.003 * going)

    def other():
        with cpu_kernels.num_threads(2):
            while going:
                if attend() != expected[-1]:
                    wrong.append("other")

    others = [threading.Thread(target=other) for _ in range(2)]
    for thread in others:
        thread.start()
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.003)
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        for function, right in zip(functions, expected):
            if function() != right:
                wrong.append(function)
    going = False
    signal.setitimer(signal.ITIMER_REAL, 0)
    for thread in others:
        thread.join()
print(wrong, calls > 10)
"""


def test_every_function_under_a_timer():
    """The same results to the bit, in the handler and in what it interrupts, with other threads calling."""
    ended = subprocess.run(
        [sys.executable, "-c", TIMER],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "[] True\n"
