"""Block-local attention as a dense problem whose blocks can be cut wrongly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from refattn.oracle.inputs.families import AttentionInputs
from refattn.calls.problem import Problem, block_local_problem


def same_block(rows, keys, p):
    """Whether row and key lie in the same block; rows (T, 1), keys (1, S)."""
    return rows // p.block_size == keys // p.block_size


@dataclass(frozen=True, eq=False)
class BlockLocal(Problem):
    """A dense problem with q_offset 0 and, as a rule besides the mask, which keys the block of a row has.

    `sees(rows, keys, problem)` is broadcast to (T, S) or (*batch, H, T, S).
    """

    block_size: int = 1
    sees: Callable = same_block

    def drawn(self) -> Problem:
        """The rule drawn into the mask."""
        rows, keys = np.arange(self.q_len)[:, None], np.arange(self.kv_len)[None]
        shape, seen = (*self.query.shape[:-1], self.kv_len), self.sees(rows, keys, self)
        if self.mask is not None:  # each stored number once
            seen = seen & self.mask[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in self.mask.strides)]
        return replace(self, mask=np.broadcast_to(seen, shape))


def block_local_form(query, key, value, *, block_size, **options) -> BlockLocal:
    """Check the arguments of `refattn.block_local_attention`."""
    local = block_local_problem(query, key, value, block_size, **options)
    whole = local.whole
    return BlockLocal(query=whole.query, key=whole.key, value=whole.value, block_size=local.block_size, **whole.options())


def block_local_inputs(dtype=np.float32, seed=0, *, length=45, block_size=8, bias=False, mask=False, **options) -> AttentionInputs:
    """Five whole blocks and a short one; two sequences, four heads on two key heads."""
    rng = np.random.default_rng([seed, 9])
    arrays = tuple(rng.standard_normal((2, heads, length, dim)).astype(dtype) for heads, dim in ((4, 24), (2, 24), (2, 20)))
    lengths = [f"{options['kv_lengths'].tolist()}"] if "kv_lengths" in options else []
    name = " ".join([f"block-local {block_size}", *(["bias"] if bias else []), *(["mask"] if mask else []), *options, *lengths])
    if bias:
        options["bias"] = rng.standard_normal((length, length)).astype(dtype)
    if mask:
        options["mask"] = rng.random((length, length)) < 0.7
    return AttentionInputs(name, "normal", "block_local_attention_with_lse", arrays, {"block_size": block_size, **options})


def block_local_suite(dtype=np.float32, seed=0) -> list[AttentionInputs]:
    """Calls that together show every mistake of block-local attention."""
    lengths = np.array([45, 30])
    return [block_local_inputs(dtype, seed, **options) for options in
            ({}, {"causal": True}, {"bias": True}, {"mask": True, "causal": True}, {"kv_lengths": lengths}, {"kv_lengths": np.array([5, 3])}, {"block_size": 12},
             {"block_size": 15}, {"alibi_slopes": 2.0 ** -np.arange(1.0, 5.0)})]  # fmt: skip
