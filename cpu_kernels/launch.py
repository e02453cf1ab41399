"""From what a front door describes to its results: choose the dtype, find the operands, run the drivers,
deliver.
"""

import numpy as np

from cpu_kernels.call import NO_PAGES, Call, Dims, Operands, outline
from cpu_kernels.dtypes import compute_dtype, delivered, working_dtype
from cpu_kernels.kernels.attend import attend
from cpu_kernels.kernels.few_rows import most_few_rows
from cpu_kernels.kernels.join import join
from cpu_kernels.kernels.tables import Memory
from cpu_kernels.machine.thread_pool import run
from cpu_kernels.plan import FLOPS_PER_MICROSECOND, head_table, planned, portions
from cpu_kernels.simd.registers import lanes
from cpu_kernels.strided import absent, as_operand, optional, results

UINT8 = np.dtype(np.uint8)


def launch(options, arrays, sequences, wants_lse, pages=NO_PAGES):
    """Output and lse, or None, of a call that is one run of the driver.

    Parameters
    ----------
    options : refattn.calls.options.Options
    arrays : Arrays
    sequences : Sequences
    wants_lse : bool
    pages : Pages, optional
        Without, the keys of a sequence lie evenly spaced. Strides from page to page are found here.
    """
    return in_promised_dtypes(
        options, arrays[:3], lambda dtype: attention(dtype, options, arrays, sequences, wants_lse, pages)
    )


def in_promised_dtypes(options, inputs, compute):
    """Output and lse of `compute(dtype)`, a function that works in the dtype it is told, in the dtypes that
    the caller of a front door was promised.

    `inputs` are the caller's arrays, first of them the query.
    """
    lse_dtype = compute_dtype(*inputs)
    output, lse = compute(working_dtype(options, lse_dtype))
    return delivered(output, lse, inputs[0].dtype, lse_dtype)


def attention(dtype, options, arrays, sequences, wants_lse, pages=NO_PAGES):
    """Output and lse, or None, in `dtype`."""
    output, lse, written = results(arrays.query.shape, arrays.value.shape[-1], dtype, wants_lse)
    attend_into(written, options, arrays, sequences, pages)
    return output, lse


def attend_into(written, options, arrays, sequences, pages=NO_PAGES):
    """Compute results into the operands `written` (output, lse), in the dtype they have."""
    if not written[0].memory.size and not written[1].memory.size:
        return
    run_drivers(describe(written, options, arrays, sequences, pages))


def describe(written, options, arrays, sequences, pages):
    """The `Call`: every array as an operand."""
    dtype = written[0].memory.dtype
    query, key, value, query_rope, key_rope = arrays
    num_kv_heads = key.shape[-3]
    rope_dim = 0 if query_rope is None else query_rope.shape[-1]
    dims = Dims(num_kv_heads, query.shape[-3] // num_kv_heads, query.shape[-1], rope_dim, value.shape[-1])
    in_registers = widened_in_registers(dtype, arrays, dims, sequences, pages)
    key_operand = as_operand(key, dtype, in_registers)
    value_operand = key_operand if value is key else as_operand(value, dtype, in_registers)
    if pages.size:
        pages = pages._replace(key_stride=key_operand.outer[0], value_stride=value_operand.outer[0])
        key_operand, value_operand = key_operand._replace(outer=()), value_operand._replace(outer=())
    operands = Operands(
        query=as_operand(query, dtype),
        query_rope=as_operand(query_rope, dtype) if rope_dim else absent(dtype),
        key=key_operand,
        key_rope=as_operand(key_rope, dtype, in_registers) if rope_dim else absent(dtype),
        value=value_operand,
        bias=optional(options.bias, dtype),
        mask=optional(options.mask, UINT8),
        keep=optional(options.dropout_mask, UINT8),
        output=written[0],
        lse=written[1],
    )
    return Call(options, operands, dims, sequences, pages)


def widened_in_registers(dtype, arrays, dims, sequences, pages):
    """Whether kernels read 16-bit keys and values as they are stored: in pages, of which most may not be
    wanted, and where each is read for few rows.
    """
    if pages.size:
        return True
    narrow = arrays.key.itemsize == 2 or arrays.value.itemsize == 2
    return narrow and sequences.longest * dims.group_size <= most_few_rows(lanes(dtype))


def run_drivers(call):
    described, heads, table = outline(call), head_table(call.options), call.pages.table
    memory = Memory(*[operand.memory for operand in call.operands])
    for portion in portions(call.sequences, call.dims):
        plan = planned(described, portion)
        params = plan.params[0]
        scratch = int(params["scratch_end"])
        states = np.empty(plan.num_slots * int(params["state_slot"]), described.dtype)
        run(
            attend,
            len(plan.items),
            plan.params,
            plan.items,
            plan.groups,
            heads,
            table,
            tuple(memory),  # recognised sooner than one with names
            states,
            cost=plan.cost,
            scratch=scratch,
            dtype=described.dtype,
        )
        if plan.num_slots:
            run(
                join,
                len(plan.joins),
                plan.params,
                plan.joins,
                plan.groups,
                heads,
                memory.output,
                memory.lse,
                states,
                cost=states.size / FLOPS_PER_MICROSECOND,
                scratch=scratch,
                dtype=described.dtype,
            )
