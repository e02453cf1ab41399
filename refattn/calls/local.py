"""Dense attention cut into blocks along the sequence; no row sees a key of another block."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from refattn.calls.arrays import stored_once
from refattn.calls.checks import checked_integer
from refattn.calls.dense import DENSE, Problem, attention_problem
from refattn.calls.form import Checked, Form


@dataclass(frozen=True, eq=False)
class BlockLocalProblem(Checked):
    """A checked block-local call: the whole sequences, and how many positions a block has."""

    whole: Problem
    block_size: int

    @property
    def form(self):
        return BLOCK_LOCAL

    @property
    def scale(self):
        return self.whole.scale

    @property
    def largest_group(self):
        return self.whole.group_size, self.block_size, self.whole.head_dim, self.whole.v_head_dim

    @property
    def output_shape(self):
        return self.whole.output_shape

    @cached_property
    def edges(self):
        """Where the parts begin, and the end of the sequence: all edges of blocks and of chunks. A part lies
        in one chunk, so the rule of chunks still holds where its positions count from 0.
        """
        q_len, sizes = self.whole.q_len, (self.block_size, self.whole.chunk or self.block_size)
        return np.union1d(*(np.minimum(np.arange(0, q_len + size, size), q_len) for size in sizes))

    @property
    def num_parts(self):
        return len(self.edges) - 1

    def rows(self, n):
        """The positions of part n."""
        return slice(*self.edges[n : n + 2].tolist())

    def part(self, n):
        """Part n as a dense problem. Row and key move together, so offsets inside it start at 0 again."""
        whole, here = self.whole, self.rows(n)
        options = whole.options_at(per_score=(..., here, here)).options()
        options["kv_lengths"] = np.clip(whole.kv_lengths - here.start, 0, here.stop - here.start)
        options["q_offset"] = np.zeros_like(whole.q_offset)
        query, key, value = (array[..., here, :] for array in (whole.query, whole.key, whole.value))
        return Problem(query=query, key=key, value=value, **options)

    @property
    def input_dtype(self):
        return self.whole.query.dtype

    def place(self, n):
        return Ellipsis, self.rows(n)

    def uncut(self):
        whole = self.whole
        arrays = {"query": whole.query, "key": whole.key, "value": whole.value}
        return UncutBlocks(**arrays, block_size=self.block_size, **whole.options())


def same_block(rows, keys, problem):
    """Whether row and key lie in the same block; rows (T, 1), keys (1, S)."""
    return rows // problem.block_size == keys // problem.block_size


@dataclass(frozen=True, eq=False)
class UncutBlocks(Problem):
    """A block-local call as one dense problem with q_offset 0: which keys the block of a row has is a rule
    beside the mask.

    `sees(rows, keys, problem)` is broadcast to (T, S) or (*batch, H, T, S).
    """

    block_size: int = 1
    sees: Callable = same_block

    @property
    def form(self):
        return BLOCK_LOCAL

    def drawn(self) -> Problem:
        rows, keys = np.arange(self.q_len)[:, None], np.arange(self.kv_len)[None]
        shape, seen = (*self.query.shape[:-1], self.kv_len), self.sees(rows, keys, self)
        if self.mask is not None:
            seen = seen & stored_once(self.mask)
        return replace(self, mask=np.broadcast_to(seen, shape))


def block_local_problem(query, key, value, *, block_size, **options):
    """Check the arguments of `refattn.block_local_attention`."""
    if "q_offset" in options:
        raise TypeError(
            "q_offset must be left out: in block-local attention row i stands at key position i."
        )
    block_size = checked_integer(block_size, "block_size")
    whole = attention_problem(query, key, value, q_offset=0, **options)
    if whole.q_len != whole.kv_len:
        raise ValueError(
            "query and key must have the same length, both are cut at the same places; "
            f"got query.shape={whole.query.shape}, key.shape={whole.key.shape}."
        )
    # errors of the arrays come before a wrong size, behind a wrong type
    block_size = checked_integer(block_size, "block_size", 1)
    return BlockLocalProblem(whole=whole, block_size=min(block_size, max(whole.q_len, 1)))


BLOCK_LOCAL = Form(
    name="local",
    function="block_local_attention",
    arrays=DENSE.arrays,
    results=DENSE.results,
    check=block_local_problem,
    structure={"block_size": ""},
    without=("q_offset",),
)
