"""One panel over the keys of a tile: the scores of its rows, their running maximum and total, the weighted
sum of values.
"""

from typing import NamedTuple

from cpu_kernels.compiler.jit import leaf
from cpu_kernels.kernels.blocks import KEEP_AT, ONE, PEAK, RESCALE, SETTLED, TOTAL
from cpu_kernels.kernels.careful import add_finite, collect_infinities, settle
from cpu_kernels.kernels.few_rows import row_output, row_scores
from cpu_kernels.kernels.product import Ahead, Gathered, Sizes, product
from cpu_kernels.kernels.scores import change_scores, chunks_of, keep_where
from cpu_kernels.kernels.softmax import softmax_step


class Tile(NamedTuple):
    """The keys [first, last) for one panel, and what it asks for on the way."""

    first: int
    last: int
    at: int  # where they begin in the tables of offsets
    whole: int  # keys that all lanes compute; the second half of the lanes goes on alone
    asks: int  # 1 if the panel asks for its values and for the next keys, 0 if another has
    next_at: int  # where the next keys begin in the tables
    num_next: int


class Rectangle(NamedTuple):
    """Lanes and keys of a tile's scores that are multiplied at a time."""

    vectors: int
    lane: int  # the first
    start: int  # keys [start, stop) of the tile
    stop: int


class Summand(NamedTuple):
    """One of the products that a score is the sum of: of query and key, and of their second parts, rope."""

    dims: int
    query: int  # where it begins in the scratch
    key_rows: int  # where the tables begin
    key_dims: int
    fresh: int  # whether the sum begins with it


@leaf
def attend_tile(params, panel, tile, memory, scratch, ints, careful):
    """Scores, weights relative to the peak so far, and what they add to the output."""
    stride, chunks = panel.stride, chunks_of(panel, tile)
    compute_scores(params, panel, tile, memory, scratch, ints)
    change_scores(params, panel, tile, memory, scratch, ints)
    if careful:
        collect_infinities(params, panel, tile, memory, scratch, ints)
    if careful == SETTLED:
        settle(params, panel, chunks, scratch)
    else:
        softmax_step(
            panel.vectors,
            chunks,
            (scratch, params.scores),
            stride,
            panel.phases,
            (scratch, panel.lanes + PEAK * stride),
            (scratch, panel.lanes + TOTAL * stride),
            (scratch, panel.lanes + RESCALE * stride),
        )
    if params.has_keep:
        keep_where(params, panel, tile, memory.keep, KEEP_AT, params.keep_key, 0.0, scratch, ints)
    if careful:
        add_finite(params, panel, tile, memory.value, scratch, ints, careful)
    else:
        add_weighted_values(params, panel, tile, memory, scratch, ints)


@leaf
def num_rectangles(tile):
    return 1 if tile.whole == tile.last - tile.first else 2


@leaf
def rectangle_of(panel, tile, number):
    """All lanes over the keys that the first half of them sees some of, then the second half alone over the
    others. What stands in the first half's scores there is hidden by `hide_unseen`, and its output is
    rescaled with the first rectangle.
    """
    if number == 0:
        return Rectangle(panel.vectors, 0, 0, tile.whole)
    return Rectangle(panel.vectors // 2, panel.stride // 2, tile.whole, tile.last - tile.first)


@leaf
def compute_scores(params, panel, tile, memory, scratch, ints):
    """S = K Q^T"""
    first = Summand(params.head_dim, panel.query, params.key_rows + tile.at, params.key_dims, 1)
    rope = Summand(
        params.rope_dim,
        panel.query + params.head_dim * panel.stride,
        params.key_rope_rows + tile.at,
        params.key_rope_dims,
        0,
    )
    for number in range(num_rectangles(tile)):
        piece = rectangle_of(panel, tile, number)
        multiply_keys(params, panel, tile, piece, first, memory.key, memory.value, scratch, ints)
        if params.rope_dim:
            multiply_keys(params, panel, tile, piece, rope, memory.key_rope, memory.value, scratch, ints)


@leaf
def multiply_keys(params, panel, tile, piece, summand, key, value, scratch, ints):
    """Scores of a rectangle, or what is added to them; asks for its values the first time."""
    if panel.few_rows:
        row_scores(
            panel.few_rows,
            piece.stop,
            summand.dims,
            (scratch, params.scores),
            (scratch, summand.query),
            (key, 0),
            (ints, summand.key_rows),
            summand.fresh,
        )
    else:
        num_keys = piece.stop - piece.start
        values = (ints, params.value_rows + tile.at + piece.start)
        product(
            Sizes(panel.vectors, piece.vectors, num_keys, summand.dims),
            (scratch, params.scores + piece.start * panel.stride + piece.lane),
            Gathered((key, 0), (ints, summand.key_rows + piece.start), (ints, summand.key_dims)),
            (scratch, summand.query + piece.lane),
            (scratch, panel.lanes + ONE * panel.stride),
            summand.fresh,
            Ahead((value, 0), values, tile.asks * summand.fresh * num_keys, params.v_head_dim),
        )


@leaf
def add_weighted_values(params, panel, tile, memory, scratch, ints):
    """O^T = O^T * rescale + V^T P; asks for the next keys."""
    rescale = (scratch, panel.lanes + RESCALE * panel.stride)
    value, value_rows = (memory.value, 0), params.value_rows + tile.at
    if panel.few_rows:
        row_output(
            panel.few_rows,
            tile.last - tile.first,
            params.v_head_dim,
            (scratch, panel.aside),
            value,
            (ints, value_rows),
            (scratch, params.scores),
            rescale,
        )
    else:
        for number in range(num_rectangles(tile)):
            piece = rectangle_of(panel, tile, number)
            factor, num_ahead = rescale, tile.asks * tile.num_next
            if number:
                factor, num_ahead = (scratch, panel.lanes + ONE * panel.stride), 0
            product(
                Sizes(panel.vectors, piece.vectors, params.v_head_dim, piece.stop - piece.start),
                (scratch, panel.output + piece.lane),
                Gathered(value, (ints, params.value_dims), (ints, value_rows + piece.start)),
                (scratch, params.scores + piece.start * panel.stride + piece.lane),
                factor,
                0,
                Ahead((memory.key, 0), (ints, params.key_rows + tile.next_at), num_ahead, params.head_dim),
            )
