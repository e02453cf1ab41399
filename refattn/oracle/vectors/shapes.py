"""Cases of a shape of one's own: `refattn vectors make --shape 2x32/8x4096 --head-dim 128 --tile 128`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from refattn.oracle.arithmetic.spec import EIGHT_BITS, kernel_spec
from refattn.oracle.inputs.families import Sizes, attention_inputs
from refattn.oracle.vectors.golden import LAYOUTS, VectorCase, make_case
from refattn.oracle.vectors.packs import as_stored_inputs, input_dtype
from refattn.oracle.vectors.untrusted import LARGEST
from refattn.oracle.verdict.picked_rows import AUTO_ROWS, picked_rows

PACK = "shape"
EVERY_ROW = 2**24  # scores (rows of all heads x keys) up to which results of every row are computed
PREFILL = (("normal", "causal"), ("ascending",))  # ascending: the running maximum moves in every tile
DECODE = (("normal",), ("ascending",), ("normal", "lengths"))
SHAPE = re.compile(r"(\d{1,9})x(\d{1,9})(?:/(\d{1,9}))?x(\d{1,9})(?:x(\d{1,9}))?", re.ASCII)


def shape_sizes(shape: str, head_dim: str = "128") -> Sizes:
    """Sizes from "BATCHxHEADS/KV_HEADSxROWSxKEYS", without KV_HEADS as many as heads, without KEYS as many
    as rows; and from "HEAD_DIM" or "HEAD_DIM/V_HEAD_DIM".

    Raises
    ------
    ValueError

    Examples
    --------
    >>> shape_sizes("2x32/8x4096").shapes()
    ((2, 32, 4096, 128), (2, 8, 4096, 128), (2, 8, 4096, 128))
    >>> shape_sizes("8x16x1x4096", "192/128").shapes()
    ((8, 16, 1, 192), (8, 16, 4096, 192), (8, 16, 4096, 128))
    """
    found, dims = SHAPE.fullmatch(shape), re.fullmatch(r"(\d{1,6})(?:/(\d{1,6}))?", head_dim, re.ASCII)
    numbers = [number and int(number) for number in found.groups()] if found else [0]
    if 0 in numbers:
        raise ValueError(
            "shape must be BATCHxHEADS/KV_HEADSxROWSxKEYS, each at least 1, such as 8x32/8x1x4096; without "
            f"KV_HEADS as many as heads, without KEYS as many as rows; got shape={shape!r}."
        )
    if not dims or "0" in {*map(str, map(int, filter(None, dims.groups())))}:
        raise ValueError(
            "head_dim must be HEAD_DIM or HEAD_DIM/V_HEAD_DIM, each at least 1, such as 128 or 192/128; got "
            f"head_dim={head_dim!r}."
        )
    batch, heads, kv_heads, rows, keys = numbers
    kv_heads = kv_heads or heads
    if heads % kv_heads:
        raise ValueError(
            f"shape must have a number of heads that is a multiple of KV_HEADS; got shape={shape!r}."
        )
    key_dim = int(dims[1])
    return Sizes(batch, heads, kv_heads, rows, keys or rows, key_dim, int(dims[2] or key_dim))


@dataclass(frozen=True)
class ShapeCase:
    """A case still to be made."""

    family: str
    options: tuple[str, ...]
    sizes: Sizes
    rows: int | None  # of each head, whose results are computed; None: all

    @property
    def name(self) -> str:
        z = self.sizes
        rows = f"{z.q_len}x{z.kv_len}" if z.q_len != z.kv_len else f"{z.q_len}"
        return " ".join([self.family, *self.options, f"{z.batch}x{z.num_heads}/{z.num_kv_heads}x{rows}"])

    def nbytes(self, itemsize: int) -> int:
        """Of its arrays in a file: inputs of so many bytes a number, and six results and bounds in
        float64.
        """
        z = self.sizes
        judged = z.batch * z.num_heads * min(self.rows or z.q_len, z.q_len)
        inputs = sum(math.prod(shape) for shape in z.shapes())
        lengths = 8 * z.batch * ("lengths" in self.options)
        picked = 8 * min(self.rows, z.q_len) if self.rows else 0
        return itemsize * inputs + 3 * 8 * judged * (z.v_head_dim + 1) + lengths + picked


def planned_cases(sizes: Sizes, tile: int | None = None, rows: int | None = None) -> list[ShapeCase]:
    """The cases of a shape: at its own lengths and, with a tile, at a tile of keys, one less, one more, and
    one more than 2 and 3 tiles. As many rows as keys where the shape has so; never more rows than keys.

    `rows`: compute results of so many rows of each head; default all of small calls, and 64 of large ones.
    """
    for name, number in (("tile", tile), ("rows", rows)):
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1; got {name}={number}.")
    lengths = [] if tile is None else [tile - 1, tile, tile + 1, 2 * tile + 1, 3 * tile + 1]
    square, planned = sizes.q_len == sizes.kv_len, []
    for keys in dict.fromkeys([*filter(None, lengths), sizes.kv_len]):
        own = replace(sizes, kv_len=keys, q_len=keys if square else min(sizes.q_len, keys))
        scores = own.batch * own.num_heads * own.q_len * own.kv_len
        picked = rows if rows is not None else None if scores <= EVERY_ROW else AUTO_ROWS
        for family, *options in DECODE if own.q_len == 1 else PREFILL:
            planned.append(
                ShapeCase(family, tuple(options), own, picked if picked and picked < own.q_len else None)
            )
    return planned


def make_shape_cases(
    planned, *, dtype="float32", spec=None, seed=0, layout=""
) -> tuple[int, Iterator[VectorCase]]:
    """The bytes of the arrays of planned cases together, and the cases, made one after another.

    Parameters
    ----------
    planned : sequence of ShapeCase
    dtype, spec, seed
        As in `make_cases`.
    layout : str
        One of `LAYOUTS`, or with S in the place of T.

    Raises
    ------
    ValueError, ImportError
        Before any work: an unknown dtype, spec or layout, a dtype whose package is missing, a case larger
        than files may be, a batch in a layout that has none.

    Examples
    --------
    >>> total, cases = make_shape_cases(planned_cases(shape_sizes("1x4/2x5x9", "16"), tile=4))
    >>> total, [case.name for case in cases][:2]
    (100480, ['normal-causal-1x4-2x3', 'ascending-1x4-2x3'])
    """
    named, layout = layout, layout.upper().replace("S", "T")
    if layout not in LAYOUTS:
        hint = " BTHD has the bytes of (batch, length, heads * dim)." if layout == "BTM" else ""
        raise ValueError(
            f"layout must be one of {', '.join(filter(None, LAYOUTS))}; got layout={named!r}.{hint}"
        )
    kind, store = input_dtype(dtype)
    spec = kernel_spec(spec, dtype)
    itemsize = 1 if dtype in EIGHT_BITS else kind.itemsize
    for case in planned:
        if layout and "B" not in layout and case.sizes.batch != 1:
            raise ValueError(f"layout {named} must have a shape of batch 1; got batch={case.sizes.batch}.")
        if case.nbytes(itemsize) > LARGEST:
            raise ValueError(
                f"shape must give files of at most {LARGEST:,} bytes; case {case.name!r} has "
                f"{case.nbytes(itemsize):,}. Take a smaller batch, fewer heads or keys, or rows=64."
            )
    total = sum(case.nbytes(itemsize) for case in planned)
    return total, (_made(case, kind, store, spec, seed, layout) for case in planned)


def _made(case, kind, store, spec, seed, layout):
    inputs = attention_inputs(case.family, case.options, sizes=case.sizes, dtype=kind, seed=seed)
    inputs = replace(as_stored_inputs(inputs, store), name=case.name)
    if layout and "B" not in layout:
        unbatched = lambda array: array[0] if isinstance(array, np.ndarray) and array.ndim else array
        options = {name: unbatched(value) for name, value in inputs.options.items()}
        inputs = replace(inputs, arrays=tuple(map(unbatched, inputs.arrays)), options=options)
    rows = None if case.rows is None else picked_rows(case.sizes.q_len, case.rows, seed)
    return make_case(inputs, spec, pack=PACK, seed=seed, store=store, rows=rows, layout=layout)
