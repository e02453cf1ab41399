"""N sequences end to end: query (H, total_q, D), key (K, total_kv, D), value (K, total_kv, E)."""

from dataclasses import dataclass

import numpy as np

from refattn.calls.arrays import as_int_array
from refattn.calls.dense import (
    Problem,
    exactly_axes,
    floating,
    require_head_dim,
    require_head_ratio,
    require_memory,
)
from refattn.calls.form import Checked, Form
from refattn.calls.options import Options, Sizes, checked_options


@dataclass(frozen=True, eq=False)
class PackedProblem(Options, Checked):
    """A checked packed call; batch of the options is (N,)."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    cu_q: np.ndarray  # (N + 1,) int64
    cu_kv: np.ndarray  # (N + 1,) int64

    @property
    def form(self):
        return PACKED

    @property
    def num_parts(self):
        return len(self.cu_q) - 1

    @property
    def largest_group(self):
        group_size = self.query.shape[0] // self.key.shape[0]
        return group_size, int(self.kv_lengths.max(initial=0)), self.query.shape[-1], self.value.shape[-1]

    @property
    def output_shape(self):
        return (*self.query.shape[:-1], self.value.shape[-1])

    def part(self, n):
        """Sequence n as a dense problem without batch axes."""
        rows, keys = slice(self.cu_q[n], self.cu_q[n + 1]), slice(self.cu_kv[n], self.cu_kv[n + 1])
        options = self.options_at(per_score=(slice(None), rows, keys), per_head=n, per_entry=n)
        return Problem(
            query=self.query[:, rows], key=self.key[:, keys], value=self.value[:, keys], **options.options()
        )

    @property
    def input_dtype(self):
        return self.query.dtype

    def place(self, n):
        return slice(None), slice(self.cu_q[n], self.cu_q[n + 1])


def packed_problem(query, key, value, *, cu_q, cu_kv, **options):
    """Check the arguments of `refattn.packed_attention`."""
    query, key, value = floating(query=query, key=key, value=value)
    cu_q, cu_kv = as_int_array(cu_q, "cu_q"), as_int_array(cu_kv, "cu_kv")
    exactly_axes(3, "(heads, total_len, dim)", query=query, key=key, value=value)
    num_heads, total_q, head_dim = query.shape
    num_kv_heads, total_kv, key_head_dim = key.shape
    require_head_ratio(num_heads, num_kv_heads)
    require_head_dim(head_dim, key_head_dim)
    if value.shape[:2] != key.shape[:2]:
        raise ValueError(
            f"value must have shape ({num_kv_heads}, {total_kv}, any) to match key; got "
            f"value.shape={value.shape}."
        )
    require_memory((), num_heads, total_q, value.shape[-1])
    require_boundaries(cu_q, "cu_q", total_q, "query")
    require_boundaries(cu_kv, "cu_kv", total_kv, "key")
    if len(cu_q) != len(cu_kv):
        raise ValueError(
            "cu_q and cu_kv must have the same length, one more than there are sequences; "
            f"got len(cu_q)={len(cu_q)}, len(cu_kv)={len(cu_kv)}."
        )
    lengths = np.diff(cu_q), np.diff(cu_kv)
    sizes = Sizes((len(cu_q) - 1,), num_heads, *lengths, head_dim, (num_heads, total_q, total_kv))
    return PackedProblem(
        query=query, key=key, value=value, cu_q=cu_q, cu_kv=cu_kv, **checked_options(sizes, **options)
    )


def require_boundaries(boundaries, name, total, of):
    if boundaries.ndim != 1 or len(boundaries) < 1:
        raise ValueError(
            f"{name} must have shape (num_sequences + 1,); got {name}.shape={boundaries.shape}."
        )
    if boundaries[0] != 0 or boundaries[-1] != total:
        raise ValueError(
            f"{name} must run from 0 to the total length of {of}, {total}; got {name}[0]={boundaries[0]}, "
            f"{name}[-1]={boundaries[-1]}. "
            "Lengths become boundaries with np.cumsum([0, *lengths])."
        )
    falls = np.flatnonzero(boundaries[1:] < boundaries[:-1])  # differences could wrap around int64
    if len(falls):
        at = falls[0]
        raise ValueError(
            f"{name} must not decrease; got {name}[{at}]={boundaries[at]}, "
            f"{name}[{at + 1}]={boundaries[at + 1]}."
        )


PACKED = Form(
    name="packed",
    function="packed_attention",
    arrays={
        "query": "head packed_row head_dim",
        "key": "kv_head packed_key head_dim",
        "value": "kv_head packed_key v_head_dim",
    },
    results={"output": "head packed_row v_head_dim", "lse": "head packed_row"},
    check=packed_problem,
    structure={"cu_q": "sequence_end", "cu_kv": "sequence_end"},
)
