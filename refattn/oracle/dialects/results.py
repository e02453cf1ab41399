"""Results of a library's call in our conventions, and ours in the library's.

An lse to base 2 is multiplied by ln 2 in float64. That keeps relative errors, and the bound of an lse
counts the rounding of the stored number relative to it, so that the bound of an lse to base e judges one to
base 2: a float32 number x of base 2 is off by at most 2**-24 |x|, which is 2**-24 |x ln 2| in base e. What
the multiplication and the float64 ln 2 add, 2**-52 relative, is 2**-28 of that. For an lse in float64 it is
two units of rounding, which a kernel to base 2 does not spend and the bound allows: it counts the
multiplication by ln 2 that kernels to base e end with, and the logarithm, with several units of the lse.

An lse that leaves the sink out is put together with it for what wants our lse (`result_to_ours` with
`sinks`). `check` does not: where the sink outweighs all keys, nothing would be left of an error of the lse.
It judges that lse as the one of the same call without sinks.
"""

from __future__ import annotations

import math

import numpy as np

from refattn.calls.arrays import as_array
from refattn.exact.visibility import range_mask, row_bounds
from refattn.oracle.dialects.layouts import array_from_ours, array_to_ours
from refattn.oracle.dialects.libraries import dialect
from refattn.oracle.dialects.other_calls import call_of
from refattn.oracle.dialects.record import Dialect

LN2 = math.log(2.0)
BLOCK_SCORES = 2**22  # entries of a mask or bias looked at together


def _record(name, function) -> Dialect:
    return dialect(name) if function is None else call_of(name, function)


def result_to_ours(name: str, output, lse=None, *, heads=None, sinks=None, empty=None, function=None):
    """A library's output and lse in our conventions.

    Parameters
    ----------
    name : str
    output : array_like or None
        In the library's layout.
    lse : array_like, optional
    heads : int, optional
        Query heads; needed where the layout merges heads and dims.
    sinks : array_like, shape (H,), optional
        Those of the call: added to an lse that leaves them out.
    empty : array_like of bool, shape (..., H, T), optional
        Rows that see no key: set to 0 and -inf, or to the sink's lse, whatever the library left there.
    function : str, optional
        The function of `refattn` that the call is; default: that of the library's main call.

    Returns
    -------
    output : ndarray, shape (..., H, T, E), or None
    lse : ndarray, shape (..., H, T), or None
        In float64 where its numbers change.

    Examples
    --------
    >>> import numpy as np
    >>> output, lse = result_to_ours("flashinfer", np.ones((5, 4, 8)), np.ones((5, 4)))
    >>> output.shape, lse.shape, round(float(lse[0, 0]), 3)
    ((4, 5, 8), (4, 5), 0.693)
    """
    d = _record(name, function)
    sinks = None if sinks is None else as_array(sinks, "sinks").astype(np.float64)[:, None]
    output = None if output is None else array_to_ours(output, d.output_layout, heads, "output")
    if lse is not None:
        if d.lse_base is None:
            raise ValueError(f"lse must be None: {d.call} returns none.")
        lse = array_to_ours(lse, d.lse_layout, name="lse")
        lse = lse.astype(np.float64) * LN2 if d.lse_base == "2" else lse
        if d.empty_lse == "+inf":
            lse = np.where(lse == np.inf, lse.dtype.type(-np.inf), lse)
        if sinks is not None and d.sinks_in_lse is False:
            lse = np.logaddexp(lse.astype(np.float64), sinks)
    if empty is not None:
        empty = as_array(empty, "empty")
        if output is not None:
            rows = np.broadcast_to(empty, output.shape[:-1])[..., None]
            output = np.where(rows, np.zeros((), output.dtype), output)
        lse = None if lse is None else np.where(empty, -np.inf if sinks is None else sinks, lse)
    return output, lse


def result_from_ours(name: str, output, lse=None, *, sinks=None, function=None):
    """Our output and lse as the library returns them, to compare with it or to hand on.

    Rows without keys become what the library gives where it can be told (0 and its lse); "mean of values"
    stays 0. Parameters are those of `result_to_ours`.

    Examples
    --------
    >>> import numpy as np
    >>> output, lse = result_from_ours("flash_attn", np.ones((2, 4, 5, 8)), np.full((2, 4, 5), -np.inf))
    >>> output.shape, float(lse[0, 0, 0])
    ((2, 5, 4, 8), inf)
    """
    d = _record(name, function)
    if lse is not None:
        if d.lse_base is None:
            raise ValueError(f"lse must be None: {d.call} returns none.")
        lse = as_array(lse, "lse").astype(np.float64)
        if sinks is not None and d.sinks_in_lse is False:
            sink = as_array(sinks, "sinks").astype(np.float64)[:, None]
            with np.errstate(all="ignore"):
                lse = np.where(lse > sink, lse + np.log1p(-np.exp(np.minimum(sink - lse, 0.0))), -np.inf)
        if d.empty_lse == "+inf":
            lse = np.where(np.isneginf(lse), np.inf, lse)
        lse = array_from_ours(lse / (LN2 if d.lse_base == "2" else 1.0), d.lse_layout, "lse")
    return array_from_ours(output, d.output_layout, "output"), lse


def fills_empty_rows(d: Dialect) -> bool:
    """Whether rows without keys hold anything else than 0 and an infinite lse."""
    return d.empty_output != "zero" or d.empty_lse not in ("-inf", "+inf", None)


def rows_without_keys(checked) -> np.ndarray:
    """Which rows of a checked call see no key, by its options alone: bool, shape (..., H, T).

    Cost: one pass over a mask or bias, each matrix of it once.
    """
    empty = np.zeros(checked.lse_shape, dtype=bool)
    for part in checked.parts():
        p = part.problem
        start, stop = row_bounds(p, p.position, np.asarray(p.kv_lengths)[..., None])
        seen = (start < stop)[..., None, :]
        if p.mask is not None or p.bias is not None:
            seen = _seen_through_masks(p, start, stop)
        part.of_lse(empty)[...] = ~seen
    return empty


def _seen_through_masks(p, start, stop):
    """Rows that see a key, where a mask or a bias hides some: (*batch, H or 1, T)."""
    mask, bias = (None if array is None else _once(array) for array in (p.mask, p.bias))
    at_once = max(1, BLOCK_SCORES // max(p.kv_len, 1))
    blocks = []
    for first in range(0, p.q_len, at_once):
        rows = slice(first, first + at_once)
        there = range_mask(start[..., rows], stop[..., rows], 0, p.kv_len)[..., None, :, :]
        if mask is not None:
            there = there & mask[..., rows, :]
        if bias is not None:
            there = there & (bias[..., rows, :] != -np.inf)
        blocks.append(there.any(axis=-1))
    return np.concatenate(blocks, axis=-1) if blocks else (start < stop)[..., None, :]


def _once(array):
    """A broadcast array with its repeated batch entries and heads once."""
    return array[tuple(slice(0, 1 if step == 0 else None) for step in array.strides[:-2])]
