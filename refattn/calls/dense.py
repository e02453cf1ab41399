"""Dense attention: query (..., H, T, D), key (..., K, S, D), value (..., K, S, E)."""

import math
from dataclasses import dataclass

import numpy as np

from refattn.calls.arrays import as_float_array
from refattn.calls.form import Checked, Form
from refattn.calls.memory import ensure_allocatable
from refattn.calls.options import Options, Sizes, checked_options


@dataclass(frozen=True, eq=False)
class Problem(Options, Checked):
    """A checked dense call. Nothing is copied: arrays keep the caller's dtype and strides."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    block_size = None  # only uncut block-local problems have blocks
    query_low: np.ndarray | None = (
        None  # what float64 drops of arrays that are computed; never of a caller's
    )
    key_low: np.ndarray | None = None
    value_low: np.ndarray | None = None

    @property
    def form(self):
        return DENSE

    @property
    def batch_shape(self):
        return self.query.shape[:-3]

    @property
    def num_heads(self):
        return self.query.shape[-3]

    @property
    def num_kv_heads(self):
        return self.key.shape[-3]

    @property
    def group_size(self):
        return self.num_heads // self.num_kv_heads

    @property
    def q_len(self):
        return self.query.shape[-2]

    @property
    def kv_len(self):
        return self.key.shape[-2]

    @property
    def position(self):
        """The key positions of the rows, (*batch, T)."""
        return np.asarray(self.q_offset)[..., None] + np.arange(self.q_len)

    @property
    def head_dim(self):
        return self.query.shape[-1]

    @property
    def v_head_dim(self):
        return self.value.shape[-1]

    @property
    def largest_group(self):
        return self.group_size, int(self.kv_lengths.max(initial=0)), self.head_dim, self.v_head_dim

    @property
    def output_shape(self):
        return (*self.query.shape[:-1], self.v_head_dim)

    @property
    def input_dtype(self):
        return self.query.dtype

    def part(self, n):
        return self

    def drawn(self):
        """The problem with every rule of visibility drawn into its mask; only `uncut` problems have
        such a rule.
        """
        return self


def attention_problem(query, key, value, **options):
    """Check the arguments of `refattn.attention`."""
    query, key, value = floating(query=query, key=key, value=value)
    at_least_axes(3, "(heads, length, dim)", query=query, key=key, value=value)
    require_same_axes(query, key, value)
    if not query.shape[:-3] == key.shape[:-3] == value.shape[:-3]:
        raise ValueError(
            "query, key and value must have the same batch axes; "
            f"got query.shape={query.shape}, key.shape={key.shape}, value.shape={value.shape}."
        )
    num_heads, q_len, head_dim = query.shape[-3:]
    kv_len = key.shape[-2]
    require_head_ratio(num_heads, key.shape[-3])
    require_head_dim(head_dim, key.shape[-1])
    if value.shape[:-1] != key.shape[:-1]:
        expected = ", ".join(str(size) for size in key.shape[:-1])
        hint = (
            " The layout is (..., heads, length, dim)." if value.shape[-3:-1] == key.shape[-2:-4:-1] else ""
        )
        raise ValueError(
            f"value must have shape ({expected}, any) to match key; got value.shape={value.shape}.{hint}"
        )
    require_memory(query.shape[:-3], num_heads, q_len, value.shape[-1])
    sizes = Sizes(query.shape[:-3], num_heads, q_len, kv_len, head_dim)
    return Problem(query=query, key=key, value=value, **checked_options(sizes, **options))


def multi_head_problem(query, key, value, **options):
    """Check the arguments of `refattn.multi_head_attention`."""
    problem = attention_problem(query, key, value, **options)
    if problem.num_kv_heads != problem.num_heads:
        raise ValueError(
            "multi_head_attention must have num_kv_heads equal to num_heads; "
            f"got query heads {problem.num_heads}, key heads {problem.num_kv_heads}."
        )
    return problem


def multi_query_problem(query, key, value, **options):
    """Check the arguments of `refattn.multi_query_attention`."""
    problem = attention_problem(query, key, value, **options)
    if problem.num_kv_heads != 1:
        raise ValueError(
            f"multi_query_attention must have num_kv_heads equal to 1; got key heads {problem.num_kv_heads}."
        )
    return problem


def require_memory(batch_shape, num_heads, q_len, v_head_dim):
    """Output and lse, and the length and offset of every batch entry, must fit."""
    ensure_allocatable(
        8 * math.prod(batch_shape) * (num_heads * q_len * (v_head_dim + 1) + 2), "output and lse"
    )


def floating(**arrays):
    return [as_float_array(array, name) for name, array in arrays.items()]


def at_least_axes(count, layout, **arrays):
    for name, array in arrays.items():
        if array.ndim < count:
            raise ValueError(
                f"{name} must have at least {count} axes, the last ones {layout}; got "
                f"{name}.shape={array.shape}."
            )


def exactly_axes(count, layout, **arrays):
    for name, array in arrays.items():
        if array.ndim != count:
            raise ValueError(f"{name} must have {count} axes {layout}; got {name}.shape={array.shape}.")


def require_same_axes(query, key, value):
    if not query.ndim == key.ndim == value.ndim:
        raise ValueError(
            "query, key and value must have the same number of axes; "
            f"got query.ndim={query.ndim}, key.ndim={key.ndim}, value.ndim={value.ndim}."
        )


def require_head_ratio(num_heads, num_kv_heads):
    if num_heads < 1 or num_kv_heads < 1 or num_heads % num_kv_heads:
        raise ValueError(
            "num_heads must be a multiple of num_kv_heads, both at least 1; got query heads "
            f"{num_heads}, key heads {num_kv_heads}."
        )


def require_head_dim(head_dim, key_head_dim):
    if head_dim < 1 or key_head_dim != head_dim:
        raise ValueError(
            f"query and key must have the same head_dim >= 1; got query head_dim {head_dim}, "
            f"key head_dim {key_head_dim}."
        )


DENSE = Form(
    name="dense",
    function="attention",
    arrays={
        "query": "batch head row head_dim",
        "key": "batch kv_head key head_dim",
        "value": "batch kv_head key v_head_dim",
    },
    results={"output": "batch head row v_head_dim", "lse": "batch head row"},
    check=attention_problem,
)
