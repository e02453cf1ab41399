"""Wrong kernels by kind, each one stage of a tiled kernel: the first answer must say what is wrong and where.

Words separated by | are alternatives. `KNOWN_GAPS` holds what is said today of those that are not described
rightly; a test fails when that changes, so that the row moves to the others.
"""

import re
from typing import NamedTuple

import numpy as np
import pytest
from tiled_calls import tiled_call
from tiled_kernel import TiledKernel

from refattn.oracle.arithmetic.formats import round_to
from refattn.oracle.imaging.xray import xray

FAULTS, KNOWN_GAPS = {}, {}


class Fault(NamedTuple):
    """A kernel with a fault, the call that shows it, and words of the answer."""

    words: tuple
    kernel: dict
    call: dict
    options: dict
    today: str | None = None  # what a known gap is answered with

    @property
    def function(self):
        """The form of the call: the default run has every one, and every option (`default_run.py`)."""
        return self.call["form"]


def fault(name, *words, form="dense", size=None, dtype="float32", query_times=1.0, today=None, **stages):
    """One row; options of the call stand beside the stages of the kernel."""
    options = stages.pop("options", {})
    kernel = {name: stages.pop(name) for name in list(stages) if hasattr(TiledKernel, name)}
    kernel |= {name: stages.pop(name) for name in ("tile", "row_tile", "splits") if name in stages}
    call = {"form": form, "size": size, "dtype": dtype, "query_times": query_times}
    assert name not in FAULTS | KNOWN_GAPS
    rows = FAULTS if today is None else KNOWN_GAPS
    rows[name] = Fault(words, kernel, call, stages | options, today)


def mask_of(heads, rows, keys, seed=1, share=0.7):
    return np.random.default_rng(seed).random((1, heads, rows, keys)) < share


def bias_of(heads, rows, keys, seed=2):
    return np.random.default_rng(seed).standard_normal((1, heads, rows, keys)).astype(np.float32)


def only(where, changed, plain):
    return np.where(where, changed, plain)


def of_array(name, change):
    """A `load` that changes one array."""
    return lambda loaded, x, at: change(x) if loaded == name else x


def in_levels(x, levels, axes=-1):
    step = np.abs(x).max(axes, keepdims=True) / levels
    return np.rint(x / np.where(step == 0, 1, step)) * step


def skip_far_tiles(s, at):
    """Scores (H, rows, keys) of a tile that is skipped where any row has seen scores 12 above."""
    top = s.max(-1, keepdims=True)
    before = np.full_like(top, -np.inf) if at.tile == 0 else at.peak
    at.peak = np.maximum(before, top)
    return np.where((top < before - 12).any(1, keepdims=True), -np.inf, s)


def in_other_vectors(key, stored, read, size=16):
    """Keys (K, S, D) stored as (D / stored, size, stored) in each tile and read as (D / read, size, read)."""
    tiles, moved = key[:, : key.shape[1] // size * size], key.copy()
    heads, count, dims = tiles.shape
    packed = tiles.reshape(heads, count // size, size, dims // stored, stored).swapaxes(2, 3)
    packed = packed.reshape(heads, count // size, dims // read, size, read).swapaxes(2, 3)
    moved[:, :count] = packed.reshape(heads, count, dims)
    return moved


def from_vectors(bias, size):
    """A bias (H, T, S) of which each row is read from the multiple of `size` before its start on."""
    starts = np.arange(bias.shape[0] * bias.shape[1]) * bias.shape[2]
    places = (starts - starts % size)[:, None] + np.arange(bias.shape[2])
    return bias.reshape(-1)[places].reshape(bias.shape)


MIDDLE_ROWS = (
    "tile of 16 rows is 1|row is 16 to 31|in the second half of its tile of 32 rows"  # 16 to 31 of 37
)
SLOPES = np.array([0.5, 0.25, 0.125, 0.0625], np.float32)

# scores

fault("scores are doubled", "scale|product", "2", score=lambda s, at: 2 * s)
fault("no scale", "scale", size="square", causal=True, score=lambda s, at: s / at.scale)
fault(
    "scale of one head",
    "scale|product",
    "query head is 1",
    "0.7",
    score=lambda s, at: only(at.head == 1, 0.7 * s, s),
)
fault(
    "scale in one tile of keys",
    "1.3",
    "tile of 16 keys is 2|keys? .*32",
    size="long",
    score=lambda s, at: 1.3 * s if at.tile == 2 else s,
)
fault(
    "scale in half precision",
    "scale|product|1.25",
    dtype="bfloat16",
    size="square",
    causal=True,
    score=lambda s, at: 1.25 * s,
)
fault(
    "components left out",
    "component",
    "16",
    load=of_array("query", lambda x: x * (np.arange(x.shape[-1]) < 16)),
)
fault("keys in bfloat16", "key", "bfloat16", load=of_array("key", lambda x: round_to(x, "bfloat16")))
fault(
    "queries in fp8",
    "query|queries",
    "float8_e4m3fn",
    size="no batch axis",
    load=of_array("query", lambda x: round_to(x, "float8_e4m3fn")),
)
fault(
    "keys in fp8, bfloat16",
    "key",
    "float8_e4m3fn",
    dtype="bfloat16",
    size="square",
    load=of_array("key", lambda x: round_to(x, "float8_e4m3fn")),
)
fault("scores in bfloat16", "score|product", "bfloat16", score=lambda s, at: round_to(s, "bfloat16"))
fault(
    "scores at most 1.5",
    "1.5",
    "(at most|not above|cut off at) 1.5(?! in size)",
    score=lambda s, at: np.minimum(s, 1.5),
)
fault(
    "negative scores are 0",
    "negative scores are|at least 0|below 0",
    score=lambda s, at: np.maximum(s, 0),
)
fault(
    "softcap that was not asked for",
    "cap|tanh",
    "2",
    score=lambda s, at: 2 * np.tanh(s / 2),
)
fault(
    "slopes of the next head",
    "alibi|slope",
    "head",
    alibi_slopes=SLOPES,
    bias=lambda s, at: s - np.roll(SLOPES, -1)[:, None, None] * np.abs(at.row + at.offset - at.key),
)
fault(
    "slope with the wrong sign",
    "alibi|slope|distance",
    "sign|-1|added|opposite",
    alibi_slopes=SLOPES,
    causal=True,
    bias=lambda s, at: s + SLOPES[:, None, None] * np.abs(at.row + at.offset - at.key),
)

fault(
    "bias is not added",
    "bias",
    "not added|left out|missing|0",
    options={"bias": bias_of(4, 37, 83)},
    bias=lambda s, at: s,
)
fault(
    "bias is scaled",
    "bias",
    "scale|0.2041",
    options={"bias": bias_of(4, 37, 83)},
    bias=lambda s, at: s + at.scale * at.bias[..., at.rows, at.span],
)
fault(
    "bias of the next head",
    "bias",
    "head",
    options={"bias": bias_of(4, 37, 83)},
    dtype="float16",
    bias=lambda s, at: s + np.roll(at.bias, -1, 0)[:, at.rows, at.span],
)
fault(
    "scale of one sequence",
    "scale|product",
    "sequence is (the first|0)",
    "1.4",
    size="two batch axes",
    score=lambda s, at: 1.4 * s if at.b == 0 else s,
)

fault(
    "bias from column 0 at the first tile of the window",
    "bias",
    "column 0.*first key tile that is visited",
    causal=True,
    window=(17, None),
    options={"bias": bias_of(4, 37, 83)},
    spans=lambda spans, at: [s for s in spans if s[1] > at.row.min() + at.offset - 17],
    bias=lambda s, at: (
        s
        + at.bias[:, at.rows, at.span.start - max(at.row.min() + at.offset - 17, 0) // 16 * 16 :][
            ..., : at.key.size
        ]
    ),
)
fault(
    "bias of the last column beyond 64",
    "bias",
    "column 63",
    options={"bias": bias_of(4, 37, 83)},
    bias=lambda s, at: s + at.bias[:, at.rows][..., np.minimum(at.key[0, 0], 63)],
)
fault(
    "ALiBi counts keys within tiles of 32",
    "alibi",
    "start of each tile of 32 keys",
    alibi_slopes=SLOPES,
    causal=True,
    bias=lambda s, at: s - SLOPES[:, None, None] * np.abs(at.row + at.offset - at.key % 32),
)
fault(
    "ALiBi distances of 16 at most",
    "alibi",
    "16 at most",
    alibi_slopes=SLOPES,
    causal=True,
    bias=lambda s, at: s - SLOPES[:, None, None] * np.minimum(np.abs(at.row + at.offset - at.key), 16),
)
fault("scores in fixed point", "scores are rounded to", "1/16", score=lambda s, at: np.rint(s * 16) / 16)
fault(
    "negative scores bend",
    "error depends on the score|multiplied by|number",
    score=lambda s, at: np.where(s < -1, -np.sqrt(np.abs(s)), s),
)
fault(
    "scales by tile of keys",
    "tile of 16 keys",
    "0.6",
    "1.3",
    score=lambda s, at: s * (1, 0.6, 1.3, 1, 0.8, 1)[at.tile],
)
fault(
    "output ends at 0.5",
    "cut off at 0.5",
    output=lambda output, at: np.clip(output, -0.5, 0.5),
)

fault(
    "keys in int4",
    "keys are kept in int4",
    "one scale a key",
    load=of_array("key", lambda x: in_levels(x, 7)),
)
fault(
    "zero point of even keys",
    "zero point",
    "one vector",
    load=of_array("key", lambda x: x + 0.3 * (np.arange(x.shape[1]) % 2 == 0)[:, None]),
)

fault(
    "keys lie in vectors of 4 and are read in vectors of 8",
    "components / 4, slots, 4",
    "components / 8, slots, 8",
    size="long",
    load=of_array("key", lambda x: in_other_vectors(x, 4, 8)),
)
fault(
    "rows of the bias are read from whole vectors of 4 on",
    "bias",
    "multiple of 4 numbers before",
    options={"bias": bias_of(4, 37, 83)},
    bias=lambda s, at: s + from_vectors(at.bias, 4)[:, at.rows, at.span],
)

# visible keys

fault(
    "limit of the last row of the tile",
    "causal limit",
    "16 rows",
    "last",
    causal=True,
    keep=lambda keep, at: (at.key <= at.row.max() + at.offset) & (at.key < at.length),
)
fault(
    "top-left",
    "top-left",
    causal=True,
    size="two batch axes",
    keep=lambda keep, at: np.broadcast_to(at.key <= at.row, keep.shape),
)
fault(
    "one key too many at the diagonal",
    "one key|1 key|one too far|too far",
    causal=True,
    size="square",
    dtype="bfloat16",
    keep=lambda keep, at: at.key <= at.row + at.offset + 1,
)
fault(
    "no diagonal",
    "diagonal",
    causal=True,
    size="no batch axis",
    keep=lambda keep, at: at.key < at.row + at.offset,
)
fault(
    "window one too wide",
    "left side of the window",
    "one|1",
    causal=True,
    window=(17, None),
    keep=lambda keep, at: (at.key <= at.row + at.offset) & (at.key >= at.row + at.offset - 18),
)
fault(
    "last partial tile is left out",
    "last|partial",
    "tile of 16|multiple of 16",
    size="long",
    spans=lambda spans, at: [span for span in spans if span[1] - span[0] == 16],
)
fault(
    "first tile is left out in odd heads",
    "no weight",
    "tile of 16 keys is the first|tile of 8 keys is one of the first 2|key is at most 15|keys 0 to 15",
    "odd|place in its group is 1|head 1 and head 3",
    keep=lambda keep, at: keep & ((at.key >= 16) | (at.head % 2 == 0)),
)
fault(
    "one tile is lost in one tile of rows",
    "no weight",
    "tile of 16 keys is 2",
    MIDDLE_ROWS,
    spans=lambda spans, at: [s for s in spans if s[0] != 32 or at.row.min() != 16],
)
fault(
    "every eighth key",
    "place in its tile of 8 keys is 3",
    "no weight",
    size="square",
    keep=lambda keep, at: keep & (at.key % 8 != 3),
)
fault(
    "keep mask with its bits in reverse order",
    "mask is (that of|read with).* (32|8) keys",
    "revers|from the end",
    size="square",
    mask=mask_of(3, 53, 53),
    keep=lambda keep, at: np.where(
        (other := at.key // 32 * 32 + 31 - at.key % 32) < 53,
        np.take(at.mask[:, at.rows], np.minimum(other, 52)[0, 0], axis=-1),
        False,
    ),
)
fault(
    "limits or mask, not both",
    "where the mask or the other rules allow it",
    causal=True,
    size="square",
    mask=mask_of(3, 53, 53),
    keep=lambda keep, at: (at.key <= at.row + at.offset) | at.mask[:, at.rows, at.span],
)
fault(
    "positions of a moved tile",
    "off by \\+3",
    "row is at least 21",
    causal=True,
    keep=lambda keep, at: at.key <= at.row + at.offset + 3 * (at.row >= 21),
)
fault(
    "keys of two tiles are masked as each other",
    "causal limit takes keys to stand at other places",
    r"n \^ 16|2 at 3",
    causal=True,
    size="square",
    keep=lambda keep, at: np.where(at.key < 32, at.key, at.key ^ 16) <= at.row + at.offset,
)
fault(
    "positions in reverse order within a tile",
    "rows are taken to stand at other positions",
    "reverse order",
    causal=True,
    keep=lambda keep, at: at.key <= at.row // 8 * 8 + 7 - at.row % 8 + at.offset,
)
fault(
    "mask of tiles with visible corners is not applied",
    "its four corners are visible",
    "tiles of 16 rows by 16 keys",
    mask=mask_of(4, 37, 83, share=0.8),
    keep=lambda keep, at: keep | keep[:, [0, 0, -1, -1], [0, -1, 0, -1]].all(-1)[:, None, None],
)
fault(
    "mask of the keys 16 before in odd tiles of 32",
    "mask is read at other keys: key - 16 for keys 32 to 52",
    size="square",
    mask=mask_of(3, 53, 53),
    keep=lambda keep, at: np.take(
        at.mask[:, at.rows], np.where(at.key // 32 == 1, at.key - 16, at.key)[0, 0], axis=-1
    ),
)
fault(
    "mask of row 20 for all later rows",
    "mask is read at another place: always row 20",
    size="square",
    mask=mask_of(3, 53, 53),
    keep=lambda keep, at: at.mask[:, np.minimum(at.row[0, :, 0], 20)][..., at.span],
)
fault(
    "start of the chunk is that of the tile's first row",
    "start of the chunk is that of the first row of the tile of (8|16) rows",  # the same on this call
    causal=True,
    options={"chunk": 20},
    keep=lambda keep, at: (at.key <= at.row + at.offset) & (at.key >= (at.row.min() + at.offset) // 20 * 20),
)
fault(
    "left side of the window is not applied in tiles taken for full",
    "count as full and are not masked",
    "its first key is not before what the first row sees",
    causal=True,
    window=(40, None),
    keep=lambda keep, at: np.where(
        at.key.min() >= at.row.min() + at.offset - 40, at.key <= at.row + at.offset, keep
    ),
)
fault(
    "tiles are skipped where any row votes",
    "tiles of 16 keys are skipped for a whole tile of rows where any row of a tile of 16 rows",
    "running maximum",
    size="square",
    query_times=6.0,
    bias=skip_far_tiles,
)
fault(
    "the last value is not added",
    "key 52 of 53 counts in the normaliser, but its value is not added",
    dtype="bfloat16",
    size="square",
    weigh=lambda p, at: p * (at.key < 52),
)
fault(
    "positions of odd heads",
    "position of a row is off by -1",
    "odd|place in its group is 1",
    causal=True,
    window=(9, None),
    keep=lambda keep, at: (
        (at.key <= at.row + at.offset - at.head % 2) & (at.key >= at.row + at.offset - at.head % 2 - 9)
    ),
)
fault(
    "no causal limit from a position on",
    "limit .*is not applied",
    "position of the row is at least 64",
    causal=True,
    keep=lambda keep, at: keep | (at.row + at.offset >= 64),
)
fault(
    "chunks by bits",
    "position & ~\\(chunk - 1\\)",
    causal=True,
    options={"chunk": 12},
    keep=lambda keep, at: (at.key <= at.row + at.offset) & (at.key & ~11 == (at.row + at.offset) & ~11),
)
fault(
    "other keys are lost in each head",
    "keys 16 to 31 in head 0; keys 48 to 52 in head 2",
    size="square",
    keep=lambda keep, at: (
        keep & ~((at.key // 16 == 1) & (at.head == 0)) & ~((at.key // 16 == 3) & (at.head == 2))
    ),
)
fault(
    "last key of every eighth row",
    "miss the last 1 key",
    "row's place in its tile of 8 rows is 5",
    causal=True,
    size="no batch axis",
    keep=lambda keep, at: keep & ((at.key != at.row + at.offset) | (at.row % 8 != 5)),
)
fault(
    "mask of the next head",
    "mask",
    "head",
    mask=mask_of(4, 37, 83),
    keep=lambda keep, at: np.roll(at.mask, -1, 0)[:, at.rows, at.span],
)
fault(
    "mask of the next row",
    "mask",
    "row",
    size="square",
    mask=mask_of(3, 53, 53),
    keep=lambda keep, at: np.roll(at.mask, -1, 1)[:, at.rows, at.span],
)
fault(
    "mask is ignored in one sequence",
    "hidden get weight",
    "sequence is 1",
    mask=mask_of(4, 37, 83),
    keep=lambda keep, at: keep | (at.b == 1),
)
fault(
    "mask by whole tiles",
    "tile of 16|blocks? of 16|16 keys",
    size="square",
    mask=mask_of(3, 53, 53, share=0.03),
    keep=lambda keep, at: np.broadcast_to(keep.any(-1, keepdims=True), keep.shape),
)
fault(
    "length is ignored",
    "length",
    "past|not looked at|behind",
    kv_lengths=np.array([61, 83]),
    spans=lambda spans, at: [(n, min(n + 16, at.S)) for n in range(0, at.S, 16)],
    keep=lambda keep, at: np.ones_like(keep),
)
fault(
    "length of the other sequence",
    "length",
    "sequence",
    kv_lengths=np.array([61, 79]),
    spans=lambda spans, at: [(n, min(n + 16, 140 - at.length)) for n in range(0, 140 - at.length, 16)],
    keep=lambda keep, at: np.ones_like(keep),
)
fault(
    "hidden keys score -5",
    "hidden",
    "-5",
    causal=True,
    hidden=lambda s, at: -5.0,
)
fault(
    "rows without keys are the mean",
    "no key",
    "mean",
    mask=np.broadcast_to((np.arange(37) % 5 != 2)[:, None], (37, 83)).copy(),
    hidden=lambda s, at: -1e4,
)

fault(
    "the offset is not looked at",
    "q_offset|bottom-right|position",
    "kv_len - q_len|stored keys",
    causal=True,
    q_offset=20,
    keep=lambda keep, at: (at.key <= at.row + at.S - at.T) & (at.key < at.length),
)
fault(
    "one tile in bfloat16",
    "no weight",
    "tile of 16 keys is 3|keys 48 to 63",
    dtype="bfloat16",
    size="long",
    spans=lambda spans, at: spans[:3] + spans[4:],
)
fault(
    "window on both sides, float16",
    "right side of the window",
    "1|one",
    dtype="float16",
    size="square",
    window=(9, 4),
    keep=lambda keep, at: (at.key <= at.row + 5) & (at.key >= at.row - 9),
)
fault(
    "mask in bfloat16",
    "hidden get weight",
    "odd|row is the last of its tile of 2 rows",
    dtype="bfloat16",
    size="square",
    mask=mask_of(3, 53, 53),
    keep=lambda keep, at: keep | (at.row % 2 == 1),
)
fault(
    "partial tile of each length",
    "rounded down|partial",
    "32",
    tile=32,
    kv_lengths=np.array([61, 75]),
    spans=lambda spans, at: [span for span in spans if span[1] - span[0] == 32],
)

# tiles, rescaling, maxima

fault(
    "a tile counts twice",
    "2|twice",
    "tile of 16 keys is 1|tile of 16 keys is the second that the row sees",
    size="long",
    spans=lambda spans, at: [*spans, spans[1]],
)
fault(
    "the loop ends after four tiles",
    "no weight|left out|not visited",
    "at least 4|at least 64|64",
    size="long",
    spans=lambda spans, at: spans[:4],
)
fault("the output is never rescaled", "rescal", causal=True, rescale=lambda f, at: 1.0)
fault(
    "the sum is not rescaled",
    "normaliser|sum",
    "rescal",
    size="long",
    rescale_sum=lambda f, at: 1.0,
)
fault(
    "small rises are not rescaled",
    "rescal",
    size="long",
    rescale=lambda f, at: only(f > np.exp(-0.5), 1.0, f),
)
fault(
    "the maximum starts at 0",
    "rows are 0",
    "maximum starts at 0",
    size="square",
    causal=True,
    query_times=600.0,
    start=lambda at: 0.0,
    weigh=lambda p, at: np.float64(np.float32(p)),
    counted=lambda p, at: np.float64(np.float32(p)),
)
fault(
    "the maximum starts at 0, a bias is far below",
    "rows are 0",
    "maximum starts at 0",
    size="square",
    options={
        "bias": np.where(np.arange(53) % 5 == 3, -150.0, 0.0).astype(np.float32)[:, None]
        * np.ones((1, 53), np.float32)
    },
    start=lambda at: 0.0,
    weigh=lambda p, at: np.float64(np.float32(p)),
    counted=lambda p, at: np.float64(np.float32(p)),
)
fault(
    "the maximum stays that of the first tile",
    "nan|infinite",
    "overflow",
    size="long",
    query_times=12.0,
    top=lambda new, old, at: new if at.tile == 0 else old,
    weigh=lambda p, at: np.float64(np.float16(p)),
    today="Rows are NaN, where the row is at least 6",
)
fault(
    "a hidden first tile gives NaN",
    "nan",
    "tile of 16 keys is wholly hidden|first .*wholly hidden|hides all of the first tile of 16 keys",
    mask=(np.arange(83) >= 20) | (np.arange(37) % 3 != 1)[:, None],
    safe=lambda top, at: top,
)


def dead_after_hidden_tile(keep, at):
    if at.tile == 0:
        at.alive = keep.any(-1, keepdims=True)
    return keep & at.alive


fault(
    "a hidden first tile gives 0",
    "rows are 0|are 0\\.",
    "first .*wholly hidden|hides all of the first",
    mask=mask_of(4, 37, 83) & ((np.arange(83) >= 20) | (np.arange(37) % 3 != 1)[:, None]),
    keep=dead_after_hidden_tile,
)

fault("never rescaled, bfloat16", "rescal", dtype="bfloat16", size="long", rescale=lambda f, at: 1.0)
fault(
    "rescaled in even heads only",
    "rescal",
    "odd|place in its group is 1",
    dtype="float16",
    rescale=lambda f, at: only(at.head % 2 == 1, 1.0, f),
)
fault(
    "rescaled twice",
    "rescaled (twice|once too often)",
    size="long",
    rescale=lambda f, at: f * f,
)

# stretches

fault(
    "factors in bfloat16",
    "factor by which what was accumulated is rescaled is rounded to bfloat16",
    size="long",
    query_times=1.5,
    rescale=lambda f, at: round_to(f, "bfloat16"),
)
fault(
    "the sum takes 16 lanes of a tile of 24",
    "keys are left out of the normaliser where the key",
    "is one of the last 8 of its tile of 24 keys|place in its tile of 24 keys is at least 16",
    size="grouped",
    tile=24,
    counted=lambda p, at: p * (at.key % 24 < 16),
)
fault(
    "the maximum is that of hidden keys too",
    "rows are 0",
    "maximum is taken over keys too that are hidden",
    size="square",
    causal=True,
    query_times=600.0,
    score=lambda s, at: s - s.max(-1, keepdims=True),
    tile=96,
    top=lambda new, old, at: np.zeros_like(new),
    weigh=lambda p, at: np.float64(np.float32(p)),
    counted=lambda p, at: np.float64(np.float32(p)),
)


def of_lanes(s, at):
    """Scores relative to the maximum of the even and of the odd keys of a row of one tile."""
    tops = np.stack([np.where(at.key % 2 == n, s, -np.inf).max(-1) for n in (0, 1)], -1)
    return s - tops[..., at.key[0, 0] % 2]


fault(
    "even and odd keys have their own maxima",
    "even and odd keys do not share a maximum",
    size="grouped",
    tile=96,
    score=of_lanes,
)
fault(
    "another factor in each tile of rows of a head",
    "normaliser is multiplied by one factor in each head and tile of 16 rows: 1.1 where head is 1 and tile",
    size="grouped",
    finish=lambda total, at: total * (1 + 0.1 * (at.row.min() // 16) * at.head),
)
fault(
    "the output is rescaled by the factor of the row beside it",
    "rescaled by the factor of the other row of its pair",
    size="long",
    query_times=1.5,
    rescale=lambda f, at: f[:, np.minimum(np.arange(f.shape[1]) ^ 1, f.shape[1] - 1)],
)
fault(
    "the output is rescaled by the smallest factor of the tile",
    "rescaled by the smallest factor of all rows of its tile of 16 rows",
    rescale=lambda f, at: np.broadcast_to(f.min(1, keepdims=True), f.shape),
)
fault(
    "the lse of splits is read transposed",
    "16 in sequence 0, 32 in sequence 1",
    "lse of other rows and heads: .* read in the order splits, rows, heads",
    form="paged",
    splits=3,
    split_lse=lambda lse, at: np.swapaxes(lse, 0, 1).reshape(lse.shape),
)
fault(
    "the last split counts with lse 0",
    "from key 192 on is joined with the others as if its lse were",
    size="long",
    splits=4,
    split_lse=lambda lse, at: lse if at.split < 3 else 0 * lse,
)
fault(
    "splits overlap",
    "multiplied by 2",
    "16 to 18, 32 to 34 in sequence 0; 32 to 34 in sequence 1",
    form="paged",
    splits=3,
    counted=(
        twice := lambda p, at: p * (1 + ((at.key < at.span.start + 3) & (at.tile == 0) & (at.split > 0)))
    ),
    weigh=twice,
)

# the state of the sum alone

fault(
    "the sum is not rescaled in the second tile",
    "normaliser is not rescaled in the second tile that the row sees .tiles of 16",
    size="long",
    query_times=1.5,
    rescale_sum=lambda f, at: 1.0 if at.tile == 1 else f,
)
fault(
    "the sum is not rescaled in tiles of the diagonal",
    "not rescaled in tiles of which some row of its tile of 16 rows sees a part only",
    options={"causal": True},
    query_times=1.5,
    rescale_sum=lambda f, at: f if at.key[0, 0, -1] <= at.row.min() + at.offset else 1.0,
)


class KeptSums:
    """The first tile of a row tile adds to the sum of the same rows, a row tile of the head before."""

    def __init__(self):
        self.left = {}

    def counted(self, p, at):
        if at.tile == 0 and (left := self.left.get((at.b, at.row.min() - 16))) is not None:
            p = p.copy()
            p[..., :1] += left[:, : p.shape[1]]
        return p

    def finish(self, total, at):
        self.left[at.b, at.row.min()] = total
        return total


fault(
    "the sum is not reset for the next tile of rows",
    "normaliser is not reset",
    "1 tile of 16 rows before",
    options={"causal": True},
    counted=(kept := KeptSums()).counted,
    finish=kept.finish,
)


class KeptAccumulators(KeptSums):
    """The accumulator of a row tile starts with that of the row tile before, in the same head."""

    def finish(self, total, at):
        self.total = total
        return total

    def output(self, output, at):
        accumulator = output * self.total
        if (left := self.left.get((at.b, at.row.min() - 16))) is not None:
            accumulator += left[:, : accumulator.shape[1]]
        self.left[at.b, at.row.min()] = accumulator
        return accumulator / self.total


fault(
    "the accumulator is not reset for the next tile of rows",
    "accumulator is not reset",
    "1 tile of 16 rows before",
    "tile of 16 rows is (not )?the first",
    form="packed",
    dtype="bfloat16",
    finish=(kept := KeptAccumulators()).finish,
    output=kept.output,
)

# normaliser

fault(
    "the sum is doubled in one tile of rows",
    "normaliser",
    "multiplied by 2|sum of row t % 32 beside its own",  # of these rows that is their own
    MIDDLE_ROWS,
    finish=lambda total, at: total * (1 + (at.row.min() == 16)),
)
fault(
    "the last tile is not counted",
    "normaliser",
    "left out",
    "last|partial|tile of 8 keys is 6",
    size="square",
    counted=lambda p, at: p * (at.tile < at.tiles - 1),
)
fault(
    "one joins the sum",
    "normaliser",
    "1",
    size="no batch axis",
    finish=lambda total, at: total + 1,
)
fault(
    "not normalised",
    "rows are not divided by the normaliser",
    dtype="bfloat16",
    size="square",
    finish=lambda total, at: 1.0,
)
fault(
    "sum of the next head",
    "normaliser",
    "head",
    size="square",
    causal=True,
    finish=lambda total, at: np.roll(total, -1, 0),
)
fault(
    "sum of the row before",
    "normaliser",
    "row",
    size="square",
    row_tile=64,
    causal=True,
    finish=lambda total, at: np.roll(total, 1, 1),
)
fault(
    "sum in float16",
    "normaliser",
    "float16",
    finish=lambda total, at: round_to(total, "float16"),
)
fault(
    "weights are kept for the sum before fp8",
    "float8_e4m3fn",
    "normaliser|weights",
    weigh=lambda p, at: round_to(p, "float8_e4m3fn"),
)

fault(
    "the sum is halved in one sequence, float16",
    "normaliser",
    "sequence is (the first|0)",
    dtype="float16",
    finish=lambda total, at: total * (0.5 if at.b == 0 else 1.0),
)

# lse

fault("lse in base 2", "lse", "base 2", size="decode", lse=lambda lse, at: lse * np.log2(np.e))
fault("lse of the next head", "lse", "head", size="square", lse=lambda lse, at: np.roll(lse, -1, 0))
fault(
    "lse is half in one tile of rows",
    "lse",
    "-0.5 times",
    MIDDLE_ROWS,
    lse=lambda lse, at: lse * (0.5 if at.row.min() == 16 else 1.0),
)
fault(
    "lse in bfloat16",
    "lse",
    "bfloat16",
    size="no batch axis",
    lse=lambda lse, at: round_to(lse, "bfloat16"),
)
fault("lse with one added", "lse", "constant 1", dtype="float16", size="square", lse=lambda lse, at: lse + 1)

fault(
    "lse of rows without keys is 0",
    "lse",
    "no key",
    mask=np.broadcast_to((np.arange(37) % 5 != 2)[:, None], (37, 83)).copy(),
    lse=lambda lse, at: np.where(np.isneginf(lse), 0, lse),
)
fault("lse with the wrong sign", "lse", "sign", dtype="bfloat16", size="long", lse=lambda lse, at: -lse)

# values and output

fault(
    "values of another head",
    "value",
    "head",
    value_head=lambda h, at: np.where(h == 2, 0, h // at.group),
)
fault(
    "values in fp8",
    "values",
    "float8_e4m3fn",
    load=of_array("value", lambda x: round_to(x, "float8_e4m3fn")),
)
fault(
    "values in int8 with one scale a head",
    "values",
    "8-bit|int8",
    size="long",
    load=of_array("value", lambda x: in_levels(x, 127, (1, 2))),
)
fault(
    "values one key late",
    "value|paired",
    "key",
    size="square",
    load=of_array("value", lambda x: np.roll(x, 1, 1)),
)
fault(
    "values of one tile come from the tile before",
    "value|paired",
    "tile of 16 keys is 2|32",
    size="long",
    load=of_array("value", lambda x: np.concatenate([x[:, :32], x[:, 16:32], x[:, 48:]], 1)),
)
fault(
    "columns that are not written",
    "columns",
    "16",
    "not written",
    output=lambda o, at: o * (np.arange(o.shape[-1]) < 16),
)
fault(
    "columns that count twice",
    "columns",
    "2",
    size="long",
    output=lambda o, at: o * np.where(np.arange(o.shape[-1]) >= 32, 2.0, 1.0),
)
fault(
    "output in bfloat16",
    "output",
    "bfloat16",
    output=lambda o, at: round_to(o, "bfloat16"),
)
fault(
    "output in fp8",
    "output",
    "float8_e5m2",
    dtype="float16",
    size="long",
    output=lambda o, at: round_to(o, "float8_e5m2"),
)
fault(
    "output in int8 with one scale a row",
    "output",
    "int8|1/127",
    output=lambda o, at: in_levels(o, 127),
)
fault(
    "weights in bfloat16",
    "weights",
    "bfloat16",
    size="no batch axis",
    weigh=lambda p, at: round_to(p, "bfloat16"),
)
fault(
    "weights in int8",
    "weights",
    "int8|127|8-bit",
    weigh=lambda p, at: np.rint(127 * p) / 127,
)
fault(
    "output of a tile of rows is not written",
    "rows are 0",
    "tile of (16|32) rows is (the last|2)|partial|tile of 4 rows is one of the last 2",
    output=lambda o, at: o * (at.row.min() < 32),
)

# heads

fault("heads by remainder", "head", "% 2|modulo|%", kv_head=lambda h, at: h % 2)
fault(
    "keys of the first head for all",
    "key",
    "head",
    kv_head=lambda h, at: 0 * h,
    value_head=lambda h, at: h // at.group,
)

fault(
    "values of another head, bfloat16",
    "value",
    "head",
    dtype="bfloat16",
    value_head=lambda h, at: np.where(h == 1, 1, h // at.group),
)
fault(
    "heads in reverse",
    "key/value head",
    "0 -> 2",
    size="square",
    dtype="float16",
    kv_head=lambda h, at: h[::-1],
)

# splits

fault(
    "an empty split counts",
    "split|empty|hidden|normaliser|extra",
    splits=3,
    causal=True,
    size="square",
    split_lse=lambda lse, at: np.where(np.isneginf(lse), 0.0, lse),
)
fault(
    "lse of a split is another head's",
    "split|keys",
    "head",
    splits=2,
    size="decode",
    split_lse=lambda lse, at: np.roll(lse, -1, 0) if at.split == 1 else lse,
    today="Located, nature unknown. Weights are off by one factor in each of the",
)
fault(
    "splits are averaged",
    "split|keys",
    "mean|average|alike",
    splits=3,
    size="long",
    split_lse=lambda lse, at: 0 * lse,
)
fault(
    "the last split is lost",
    "no weight|left out",
    "split|96|112",
    splits=2,
    size="long",
    split_lse=lambda lse, at: lse if at.split == 0 else np.full_like(lse, -np.inf),
)

# two numbers at once

fault(
    "scale and factor of the output",
    "scale|product",
    "0.8",
    "also: 1.5",
    size="square",
    causal=True,
    score=lambda s, at: 0.8 * s,
    output=lambda o, at: 1.5 * o,
)

# packed

fault(
    "packed: top-left",
    "top-left",
    form="packed",
    causal=True,
    keep=lambda keep, at: np.broadcast_to(at.key <= at.row, keep.shape),
)
fault(
    "packed: the last sequence loses its last key",
    "last",
    "sequence is (the last|2)|sequence",
    form="packed",
    keep=lambda keep, at: keep & ((at.b != 2) | (at.key != at.S - 1)),
)
fault(
    "packed: the scale of one sequence",
    "scale|product",
    "sequence",
    form="packed",
    size="with empty ones",
    score=lambda s, at: 1.5 * s if at.b == 3 else s,
)
fault(
    "packed: partial tile in bfloat16",
    "partial|multiple of 16|last",
    "16",
    form="packed",
    dtype="bfloat16",
    spans=lambda spans, at: [span for span in spans if span[1] - span[0] == 16],
    today="Keys and values are those 3 keys further back than their own",  # of one row; the length after it
)
fault(
    "packed: lse without the maximum",
    "lse",
    "maximum is not added",
    form="packed",
    lse=lambda lse, at: lse - at.top,
)

fault("packed: lse of the next head", "lse", "head", form="packed", lse=lambda lse, at: np.roll(lse, -1, 0))
fault(
    "packed: limit of the first row of the tile",
    "causal limit",
    "16 rows",
    "first",
    form="packed",
    size="with empty ones",
    causal=True,
    keep=lambda keep, at: keep & (at.key <= at.row.min() + at.offset),
)
fault(
    "packed: sum of one head, bfloat16",
    "normaliser",
    "head",
    form="packed",
    dtype="bfloat16",
    finish=lambda total, at: only(at.head == 2, 0.8 * total, total),
)

# paged

fault(
    "paged: pages one place on",
    "page",
    "place|off by|next|behind",
    form="paged",
    causal=True,
    page=lambda pages, at: np.roll(pages, -1),
    today="The causal limit takes keys to stand at other places",
)
fault(
    "paged: in order",
    "page",
    "in order|table is not used",
    form="paged",
    page=lambda pages, at: np.arange(len(pages)),
)
fault(
    "paged: the table of the next sequence",
    "page",
    "sequence",
    form="paged",
    size="decode",
    page=lambda pages, at: at.table[min(at.b + 1, len(at.table) - 1), : len(pages)],
)
fault(
    "paged: the last partial page is left out",
    "partial|last",
    "page|tile of 8|multiple of 8",
    form="paged",
    tile=8,
    spans=lambda spans, at: [span for span in spans if span[1] - span[0] == 8],
)
fault(
    "paged: whole pages count",
    "length",
    "page|multiple of 8|rounded up",
    form="paged",
    tile=8,
    spans=lambda spans, at: [(a, a + 8) for a, _ in spans],
    keep=lambda keep, at: np.ones_like(keep),
)
fault(
    "paged: page numbers are cut to 4 bits",
    "page",
    "4 bits|% 16|16",
    form="paged",
    page=lambda pages, at: pages % 16,
)
fault(
    "paged: causal from the stored keys",
    "position|causal|limit",
    form="paged",
    causal=True,
    keep=lambda keep, at: at.key <= at.row + at.S - at.T,
)

fault(
    "paged: the last split is lost",
    "no weight|left out",
    form="paged",
    size="decode",
    splits=3,
    split_lse=lambda lse, at: lse if at.split < 2 else np.full_like(lse, -np.inf),
)
fault(
    "paged: lse in base 2, float16",
    "lse",
    "base 2",
    form="paged",
    dtype="float16",
    lse=lambda l, at: l * np.log2(np.e),
)
fault(
    "paged: the first page alone",
    "read at place t % 2 of the block table",
    form="paged",
    size="decode",
    dtype="bfloat16",
    page=lambda pages, at: np.resize(pages[:2], len(pages)),
)
fault(
    "paged: scale of one head",
    "scale|product",
    "query head is the first",
    form="paged",
    score=lambda s, at: only(at.head == 0, 0.6 * s, s),
)

# latent

fault(
    "latent: no rotary part",
    "rope",
    form="latent",
    load=lambda name, x, at: x * (np.arange(x.shape[-1]) < 12) if name == "query" else x,
)
fault(
    "latent: scale without the rotary part",
    "scale|product",
    form="latent",
    score=lambda s, at: s * (18 / 12) ** 0.5,
)
fault(
    "latent: the last tile is left out",
    "last|partial|rounded down",
    "16",
    form="latent",
    spans=lambda spans, at: [span for span in spans if span[1] - span[0] == 16],
)
fault(
    "latent: top-left",
    "top-left",
    form="latent",
    size="keys > rank",
    causal=True,
    keep=lambda keep, at: np.broadcast_to(at.key <= at.row, keep.shape),
)
fault(
    "latent: values of the next head",
    "w_uv|value",
    "head",
    form="latent",
    value_head=lambda h, at: np.roll(h, -1),
    kv_head=lambda h, at: h,
)
fault(
    "latent: sum doubled in odd heads",
    "normaliser",
    "head",
    form="latent",
    dtype="bfloat16",
    finish=lambda total, at: total * (1 + at.head % 2),
)


fault(
    "latent: one tile is lost",
    "no weight",
    "keys 16 to 31",
    form="latent",
    size="keys > rank",
    spans=lambda spans, at: [spans[0], *spans[2:]],
)
fault(
    "latent: keys of the next head",
    "w_uk|key",
    "head",
    form="latent",
    kv_head=lambda h, at: np.roll(h, -1),
    value_head=lambda h, at: h,
)
fault("latent: lse in base 2", "lse", "base 2", form="latent", lse=lambda lse, at: lse * np.log2(np.e))
fault(
    "latent: scale of one head, keys > rank",
    "scale|product",
    "head",
    form="latent",
    size="keys > rank",
    score=lambda s, at: only(at.head == 2, 0.7 * s, s),
)
fault(
    "latent: never rescaled",
    "rescal",
    form="latent",
    dtype="bfloat16",
    causal=True,
    rescale=lambda f, at: 1.0,
)


def said(fault):
    kernel = TiledKernel(fault.function, **fault.kernel)
    arrays, structure = tiled_call(**fault.call)
    return xray(kernel, *arrays, **structure, **fault.options)


def missing_words(words, found):
    """Words that the first answer lacks; those after "also: " may stand in any finding."""
    first, all_of_them = found.sentence.lower(), " ".join(f.says for f in found.findings).lower()
    places = (
        (word.removeprefix("also: "), all_of_them if word.startswith("also: ") else first) for word in words
    )
    return [word for word, text in places if not re.search(word, text)]


@pytest.mark.sample(9)  # each takes 0.1 to 1.5 s
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_first_answer_says_nature_and_place(fault):
    found = said(fault)
    assert found.verdict == "described", found.text()
    assert not missing_words(fault.words, found), found.text()


@pytest.mark.sample(3)
@pytest.mark.parametrize("fault", KNOWN_GAPS.values(), ids=KNOWN_GAPS)
def test_known_gap_is_still_one(fault):
    found = said(fault)
    assert missing_words(fault.words, found) or found.verdict != "described", (
        "the gap is closed: move the row"
    )
    assert found.sentence.startswith(fault.today), found.text()
