"""The only file that relies on how Numba works inside, and only for releases it was tested with; others
take Numba's own slower way.

A call from within a compilation is refused in our words instead of failing in Numba's. And four
shortcuts, measured on the attention kernels (Numba 0.68): leaves are neither optimised by themselves nor
made executable, which nearly halves the time of the first compilation; a leaf is compiled once whatever
constants it is called with, not once more for each of them, which took a sixth of the rest; loading kept
code starts the run-time system alone instead of everything a compiler needs, 0.05 s instead of 0.37 s; and
references to arrays are not counted, which took 2 % of a prefill.
"""

import numba
from numba import njit, types
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.compiler_lock import global_compiler_lock
from numba.core.runtime import rtsys

TESTED = numba.version_info.short in {(0, 68)}

# Options of functions that allocate nothing: their callers hold all arrays while they run.
UNCOUNTED = dict(_nrt=False) if TESTED else {}


def prepare_to_load(target_context):
    """Make the process ready to run kept code."""
    if TESTED:
        rtsys.initialize(target_context)
    else:
        target_context.refresh()


def refuse_reentrance(dispatcher):
    """Let no signal handler or finalizer that interrupts a compilation start another: it fails, or
    does not, by where it interrupts.
    """
    if not TESTED:
        return
    compile_for_args = dispatcher._compile_for_args

    def compile_unless_compiling(*args, **kwargs):
        if global_compiler_lock.is_locked():  # by this thread
            raise RuntimeError(
                f"cpu_kernels must have compiled {dispatcher.__name__} before a signal handler or "
                "finalizer calls it in the middle of a compilation; "
                "got a first call. Make one such call beforehand."
            )
        return compile_for_args(*args, **kwargs)

    dispatcher._compile_for_args = compile_unless_compiling


def compile_leaf(function, options):
    """njit for functions that only compiled functions call."""
    if not TESTED:
        return njit(**options)(function)
    dispatcher = njit(pipeline_class=LeafCompiler, no_cpython_wrapper=True, **options)(function)
    if dispatcher is function:  # NUMBA_DISABLE_JIT
        return function

    def refuse(*args, **kwargs):
        raise TypeError(
            f"{function.__qualname__} is a leaf, which only compiled functions can call; call a driver, or "
            f"{function.__name__}.py_func."
        )

    def add_overload(compiled):
        dispatcher.overloads[tuple(compiled.signature.args)] = compiled

    # Python must not find an entry point, because there is none.
    dispatcher.add_overload, dispatcher._compile_for_args = add_overload, refuse
    get_call_template = dispatcher.get_call_template

    def get_template_of_any_value(args, kws):
        keywords = {name: types.unliteral(kind) for name, kind in kws.items()}
        return get_call_template([types.unliteral(kind) for kind in args], keywords)

    dispatcher.get_call_template = get_template_of_any_value
    return dispatcher


class LeafCompiler(Compiler):
    """Numba's compiler, leaving its result as a module to link."""

    def compile_extra(self, function):
        self.state.library = LeafLibrary(self.state.targetctx.codegen(), function.__qualname__)
        self.state.library.enable_object_caching()
        return super().compile_extra(function)


class LeafLibrary(JITCodeLibrary):
    """Code to link into drivers. The driver's optimisation does all the work, once; machine code of
    its own would never run.
    """

    def _optimize_functions(self, ll_module):
        ll_module.data_layout = self._codegen._data_layout  # all that linking needs

    def _optimize_final_module(self):
        pass

    def _finalize_final_module(self):
        self._finalize_dynamic_globals()
        self._verify_declare_only_symbols()
        self._finalized = True

    def get_pointer_to_function(self, name):
        return 0

    @property
    def codegen(self):
        return _WithoutEnvironments(self._codegen)


class _WithoutEnvironments:
    """A code generator that keeps the environment of a function (what print and object mode need) out
    of machine code that does not exist.
    """

    def __init__(self, codegen):
        self._codegen = codegen

    def __getattr__(self, name):
        return getattr(self._codegen, name)

    def set_env(self, name, environment):
        pass
