"""Explicit SIMD: the decorator that makes loops over vector registers, written with an `Emitter`, callable
from kernels.

Numba's automatic vectoriser keeps no tile of accumulators in registers, has no vector exponential since
Numba 0.62, and decides anew at every edit. A *building block* is a function of an `Emitter` that writes one
such loop; the same source serves every vector width and both precisions.

    @building_block(python=_scale)
    def scale(emit, count, x, factor):
        with emit.loop(count) as i:
            emit.store(emit.load(x, i) * emit.splat(factor), x, i)

    scale(16, (array, offset), np.float32(2))

The last line stands in a kernel: memory is passed as (flat array, first element). `_scale` is the
plain-Python twin, used under NUMBA_DISABLE_JIT=1 and as the definition. Nothing here checks bounds: a block
touches exactly what its docstring says.
"""

import inspect

from llvmlite import ir
from numba.core import cgutils, types

from cpu_kernels.compiler.jit import intrinsic
from cpu_kernels.simd.emitter import Emitter
from cpu_kernels.simd.stored import FLOAT16, widen, widened

_EMITTERS = {}  # by name: the linker keeps one function of each


def building_block(python):
    """Make an emitter function callable from kernels; `python` is its twin for NUMBA_DISABLE_JIT=1, taking
    the same arguments.

    Memory arguments are pairs (flat contiguous array, first element) and reach the emitter as a pointer; the
    first array of floats decides the element type. Other tuples, named or not, reach it as tuples of such
    arguments. The code becomes one LLVM function that is called, not inlined: LLVM optimises it once however
    often kernels use it.

    Raises
    ------
    TypeError
        Another emitter has the same name in the same module: linking would merge both functions into the
        first.
    """

    def decorate(emit_body):
        full_name = f"{emit_body.__module__}.{emit_body.__qualname__}"
        if code_of(_EMITTERS.setdefault(full_name, emit_body)) != code_of(emit_body):
            raise TypeError(
                f"building_block must decorate emitters of different names; got another {full_name}, which "
                "linking would merge into the first. Give it a name of its own."
            )

        def generator(typingctx, *args):
            dtype = next(array.dtype for array in arrays_of(args) if isinstance(array.dtype, types.Float))

            def codegen(context, builder, signature, values):
                arguments = []
                for kind, value in zip(signature.args, values):
                    arguments += scalars_of(context, builder, kind, value)
                name = ".".join([full_name, *(str(x.type) for x in arguments)])
                function = builder.module.globals.get(name)
                if function is None:
                    function = ir.Function(
                        builder.module, ir.FunctionType(ir.VoidType(), [x.type for x in arguments]), name
                    )
                    function.linkage = "linkonce_odr"
                    function.attributes.add("noinline")
                    body = ir.IRBuilder(function.append_basic_block("entry"))
                    passed = iter(function.args)
                    emit_body(Emitter(body, str(dtype)), *(regrouped(kind, passed) for kind in args))
                    body.ret_void()
                builder.call(function, arguments)
                return context.get_dummy_value()

            return types.void(*args), codegen

        emit, *names = inspect.signature(emit_body).parameters.values()
        generator.__name__, generator.__doc__ = emit_body.__name__, emit_body.__doc__
        generator.__signature__ = inspect.Signature([emit.replace(name="typingctx"), *names])
        return intrinsic(python=python)(generator)

    return decorate


def code_of(function):
    """What tells emitters apart: a module that is imported again, because the first import failed, defines
    the same ones.
    """
    return (
        function.__code__,
        function.__defaults__,
        [cell.cell_contents for cell in function.__closure__ or ()],
    )


def is_memory(kind):
    return isinstance(kind, types.BaseTuple) and isinstance(kind[0], types.Array)


def arrays_of(kinds):
    """The arrays of memory arguments, also of those within other tuples."""
    for kind in kinds:
        if is_memory(kind):
            yield kind[0]
        elif isinstance(kind, types.BaseTuple):
            yield from arrays_of(kind.types)


def scalars_of(context, builder, kind, value):
    """What the LLVM function takes for an argument: the pointer that a pair (array, first element) stands
    for, the members of any other tuple, anything else as it is.
    """
    if is_memory(kind):
        return [pointer(context, builder, kind, value)]
    if not isinstance(kind, types.BaseTuple):
        return [value]
    members = zip(kind.types, cgutils.unpack_tuple(builder, value, len(kind)))
    return [scalar for member in members for scalar in scalars_of(context, builder, *member)]


def regrouped(kind, scalars):
    """The argument of an emitter that some of the scalars of its LLVM function stand for."""
    if is_memory(kind) or not isinstance(kind, types.BaseTuple):
        return next(scalars)
    members = [regrouped(member, scalars) for member in kind.types]
    return kind.instance_class(*members) if isinstance(kind, types.BaseNamedTuple) else tuple(members)


def pointer(context, builder, kind, value):
    array, first = cgutils.unpack_tuple(builder, value, 2)
    data = context.make_array(kind[0])(context, builder, array).data
    if kind[0].dtype == types.int16:
        data = builder.bitcast(data, FLOAT16.as_pointer())
    return builder.gep(data, [first])


def _element(memory, index):
    return widened(memory[index : index + 1])[0]


@intrinsic(python=_element)
def element(typingctx, memory, index):
    """memory[index], as float32 if it is stored in 16 bits."""
    result = types.float32 if memory.dtype in (types.uint16, types.int16) else memory.dtype

    def codegen(context, builder, signature, args):
        where = pointer(context, builder, (memory, index), cgutils.pack_struct(builder, args))
        return widen(builder, builder.load(where))

    return result(memory, index), codegen
