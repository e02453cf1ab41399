"""A small language for writing loops over vector registers in LLVM; `building_block.py` makes functions of
it.
"""

from contextlib import contextmanager

import numpy as np
from llvmlite import ir
from numba.core import cgutils

from cpu_kernels.simd.registers import lanes
from cpu_kernels.simd.stored import BFLOAT16, FLOAT16, widen

INT64 = ir.IntType(64)
INT32 = ir.IntType(32)
CACHE_LINE = 64


class Vec:
    """A vector register with the arithmetic operators. Comparisons are ordered (false when an operand is
    NaN) and give a mask for `Emitter.select`.
    """

    def __init__(self, emit, value):
        self.emit, self.value = emit, value

    def _binary(self, operation, other):
        return Vec(
            self.emit, getattr(self.emit.builder, operation)(self.value, self.emit.vector(other).value)
        )

    def __add__(self, other):
        return self._binary("fadd", other)

    def __sub__(self, other):
        return self._binary("fsub", other)

    def __mul__(self, other):
        return self._binary("fmul", other)

    def __truediv__(self, other):
        return self._binary("fdiv", other)

    def _compare(self, relation, other):
        return self.emit.builder.fcmp_ordered(relation, self.value, self.emit.vector(other).value)

    def __lt__(self, other):
        return self._compare("<", other)

    def __gt__(self, other):
        return self._compare(">", other)

    def __le__(self, other):
        return self._compare("<=", other)

    def equals(self, other):
        return self._compare("==", other)


class Emitter:
    """Writes vector code for one element type at the end of the function being built.

    Memory operands are (pointer, element index); loads and stores of vectors need no alignment, but run at
    half speed across cache lines.
    """

    def __init__(self, builder, dtype):
        self.builder = builder
        self.dtype = np.dtype(dtype)
        self.bits = 8 * self.dtype.itemsize
        self.lanes = lanes(dtype)
        self.element = ir.FloatType() if self.bits == 32 else ir.DoubleType()
        self.vector_type = ir.VectorType(self.element, self.lanes)
        self.integer_type = ir.VectorType(ir.IntType(self.bits), self.lanes)

    # -- integers and control flow --------------------------------------------------------------------------

    def integer(self, value):
        return value if isinstance(value, ir.Value) else INT64(value)

    def add(self, left, right):
        return self.builder.add(self.integer(left), self.integer(right))

    def multiply(self, left, right):
        return self.builder.mul(self.integer(left), self.integer(right))

    def at_least(self, value, low):
        return self.builder.select(
            self.builder.icmp_signed("<", value, self.integer(low)), self.integer(low), value
        )

    def at_most(self, value, high):
        return self.builder.select(
            self.builder.icmp_signed(">", value, self.integer(high)), self.integer(high), value
        )

    def divide_up(self, value, divisor):
        """Rounded up, of numbers >= 0 and > 0."""
        return self.builder.udiv(
            self.builder.sub(self.add(value, divisor), self.integer(1)), self.integer(divisor)
        )

    @contextmanager
    def loop(self, stop, start=0, step=1):
        """for index in range(start, stop, step)"""
        builder = self.builder
        head, body, done = (builder.append_basic_block(name) for name in ("head", "body", "done"))
        counter = self.variable(self.integer(start))
        builder.branch(head)
        builder.position_at_end(head)
        index = builder.load(counter)
        builder.cbranch(builder.icmp_signed("<", index, self.integer(stop)), body, done)
        builder.position_at_end(body)
        yield index
        builder.store(self.add(index, step), counter)
        builder.branch(head)
        builder.position_at_end(done)

    def cases(self, value, choices):
        """Emit the loop body once per choice; at run time the copy whose choice equals `value` runs. Makes a
        run-time count a compile-time one.
        """
        builder = self.builder
        after = builder.append_basic_block("after")
        switch = builder.switch(value, after)
        for choice in choices:
            block = builder.append_basic_block(f"case{choice}")
            switch.add_case(INT64(choice), block)
            builder.position_at_end(block)
            yield choice
            builder.branch(after)
        builder.position_at_end(after)

    def variable(self, initial):
        """A variable that LLVM promotes to a register; holds a Vec or an LLVM scalar."""
        initial = initial.value if isinstance(initial, Vec) else initial
        with self.builder.goto_entry_block():
            slot = self.builder.alloca(initial.type)
        self.builder.store(initial, slot)
        return slot

    def assign(self, variable, vec):
        self.builder.store(vec.value, variable)

    def value(self, variable):
        return Vec(self, self.builder.load(variable))

    # -- memory ---------------------------------------------------------------------------------------------

    def at(self, pointer, index):
        return self.builder.gep(pointer, [self.integer(index)])

    def load_scalar(self, pointer, index):
        """The element as it is; one of a 16-bit float type as float32."""
        return widen(self.builder, self.builder.load(self.at(pointer, index)))

    def load(self, pointer, index):
        """A vector of elements; those of a 16-bit float type as float32."""
        stored = pointer.type.pointee
        address = self.builder.bitcast(
            self.at(pointer, index), ir.VectorType(stored, self.lanes).as_pointer()
        )
        return Vec(
            self,
            widen(
                self.builder,
                self.builder.load(address, align=2 if stored in (BFLOAT16, FLOAT16) else self.bits // 8),
            ),
        )

    def store(self, vec, pointer, index):
        address = self.builder.bitcast(self.at(pointer, index), self.vector_type.as_pointer())
        self.builder.store(vec.value, address, align=self.bits // 8)

    def prefetch(self, pointer, index):
        """Ask for the cache line early; has no effect on results, and any address is allowed."""
        address = self.builder.bitcast(self.at(pointer, index), ir.IntType(8).as_pointer())
        signature = ir.FunctionType(ir.VoidType(), [address.type, INT32, INT32, INT32])
        prefetch = cgutils.get_or_insert_function(self.builder.module, signature, "llvm.prefetch.p0")
        self.builder.call(prefetch, [address, INT32(0), INT32(3), INT32(1)])

    def prefetch_row(self, row, count):
        """Ask for `count` contiguous elements, and perhaps some more."""
        line = CACHE_LINE * 8 // (16 if row.type.pointee in (BFLOAT16, FLOAT16) else self.bits)
        with self.loop(count, step=4 * line) as i:
            for j in range(4):
                self.prefetch(row, self.add(i, j * line))

    # -- vectors --------------------------------------------------------------------------------------------

    def vector(self, value):
        """A Vec as it is; a Python number or an LLVM scalar in every lane."""
        if isinstance(value, Vec):
            return value
        return self.splat(value if isinstance(value, ir.Value) else ir.Constant(self.element, float(value)))

    def splat(self, scalar):
        undefined = ir.Constant(self.vector_type, ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, INT32(0))
        return Vec(
            self,
            self.builder.shuffle_vector(
                first, undefined, ir.Constant(ir.VectorType(INT32, self.lanes), None)
            ),
        )

    def number(self, index):
        """An integer in every lane, as floating point."""
        return self.splat(self.builder.sitofp(index, self.element))

    def from_scalars(self, scalars):
        vector = ir.Constant(self.vector_type, ir.Undefined)
        for i, scalar in enumerate(scalars):
            vector = self.builder.insert_element(vector, scalar, INT32(i))
        return Vec(self, vector)

    def extract(self, vec, lane):
        return self.builder.extract_element(vec.value, INT32(lane))

    def fma(self, left, right, addend):
        """left * right + addend, fused where the machine can (`llvm.fmuladd`; `llvm.fma` would be a library
        call on machines without).
        """
        kind = self.vector_type
        fma = cgutils.get_or_insert_function(
            self.builder.module, ir.FunctionType(kind, [kind] * 3), f"llvm.fmuladd.v{self.lanes}f{self.bits}"
        )
        return Vec(self, self.builder.call(fma, [self.vector(x).value for x in (left, right, addend)]))

    def select(self, condition, if_true, if_false):
        return Vec(
            self, self.builder.select(condition, self.vector(if_true).value, self.vector(if_false).value)
        )

    def maximum(self, left, right):
        """The larger operand; `right` when either is NaN."""
        return self.select(left > right, left, right)

    def absolute(self, vec):
        bits = self.builder.and_(self.as_integer(vec), self.integers((1 << (self.bits - 1)) - 1))
        return self.as_float(bits)

    def copy_sign(self, magnitude, sign):
        sign_bit = self.builder.and_(self.as_integer(sign), self.integers(-1 << (self.bits - 1)))
        return self.as_float(self.builder.or_(self.as_integer(magnitude), sign_bit))

    def shuffle(self, left, right, order):
        mask = ir.Constant(ir.VectorType(INT32, self.lanes), list(order))
        return Vec(self, self.builder.shuffle_vector(left.value, right.value, mask))

    def integers(self, value):
        return ir.Constant(self.integer_type, [value] * self.lanes)

    def as_integer(self, vec):
        return self.builder.bitcast(vec.value, self.integer_type)

    def as_float(self, integer):
        return Vec(self, self.builder.bitcast(integer, self.vector_type))

    def transpose(self, rows):
        """`lanes` vectors as the rows of a square, transposed: log2(lanes) rounds of interleaving row r with
        row r + lanes / 2.
        """
        half = self.lanes // 2
        low = [i // 2 + self.lanes * (i % 2) for i in range(self.lanes)]
        high = [index + half for index in low]
        for _ in range(self.lanes.bit_length() - 1):
            rows = [
                self.shuffle(rows[r // 2], rows[r // 2 + half], high if r % 2 else low)
                for r in range(self.lanes)
            ]
        return rows

    def sum_each(self, vectors):
        """A vector whose lane i is the sum over the lanes of vectors[i]; as many vectors as lanes. Halves
        are added to halves, a fixed order.
        """
        segment = self.lanes
        while len(vectors) > 1:
            starts = range(0, 2 * self.lanes, segment)
            halves = [
                [start + i for start in starts for i in range(at, at + segment // 2)]
                for at in (0, segment // 2)
            ]
            pairs = zip(vectors[::2], vectors[1::2])
            vectors = [
                self.shuffle(left, right, halves[0]) + self.shuffle(left, right, halves[1])
                for left, right in pairs
            ]
            segment //= 2
        return vectors[0]
