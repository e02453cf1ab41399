"""Rows that are not finite because numbers are too large for a format: the output's, or the values'."""

from __future__ import annotations

import numpy as np

from refattn.oracle.imaging.maps import ranges

LARGEST = ((65504.0, "float16"), (448.0, "float8 e4m3"), (57344.0, "float8 e5m2"))
FEWEST, BEYOND = 4, 0.01  # numbers at the limit and beyond it; as a share of it
ENOUGH = 0.95  # of the numbers that are not finite lie beyond all that are, or all but as few


def overflow_in_words(measured, rows) -> str:
    """That what is not finite in lost rows (B, H, T) is what is large; "" where it is not."""
    view, output = measured.view, measured.output
    bad = ~np.isfinite(output) & rows[..., None]
    good = np.isfinite(output) & view.row_exists[..., None]
    if not bad.any() or not good.any():
        return ""
    for what, size in (
        ("the output is infinite or NaN where it", np.abs(measured.expected_output)),
        ("the output is infinite or NaN where a value that the row sees", _largest_seen(view)),
    ):
        if size is None:
            continue
        size = np.broadcast_to(size, output.shape)
        least = np.quantile(size[bad], 1 - ENOUGH)
        if (size[good] >= least).mean() <= 1 - ENOUGH and size[bad].min() > np.median(size[good]):
            largest = size[good].max()
            ends = (
                f" ({name} ends at {limit:.6g})" for limit, name in LARGEST if _ends(limit, size, bad, good)
            )
            columns = np.flatnonzero(bad.any((0, 1, 2))).tolist()
            return (
                f"{what} is beyond {largest:.5g} in size{next(ends, '')}: an overflow, "
                f"in columns {ranges(columns)} of {output.shape[-1]}"
            )
    return ""


def saturation(measured):
    """Rows (B, H, T) whose output is cut off at a number, and words for it; or None."""
    for words, size in (
        ("", np.abs),
        (" from above: what should be larger is that number", np.positive),
        (" from below: what should be smaller is that number", np.negative),
    ):
        if (found := _cut_off(measured, size)) is not None:
            limit, at = found
            number = float(size(limit)) + 0.0
            name = next((f", the largest number of {name}" for x, name in LARGEST if x == limit), "")
            if words and not number:
                words += (
                    f", as if {'positive' if size is np.positive else 'negative'} numbers were not allowed"
                )
            columns = np.flatnonzero(at.any((0, 1, 2))).tolist()
            where = f", in columns {ranges(columns)} of {at.shape[-1]}"
            return at.any(-1), f"the output is cut off at {number:.6g}{name}{words}{where}"
    return None


def _cut_off(measured, size):
    """The largest number of `size` of the output, and where (B, H, T, E) it stands in place of larger ones;
    or None.
    """
    output, expected = size(measured.output), size(measured.expected_output)
    known = measured.view.row_exists[..., None] & np.isfinite(output)
    limit = output[known].max(initial=-np.inf)
    if not np.isfinite(limit):
        return None
    at, slack = known & (output == limit), BEYOND * abs(limit)
    beyond, rest = known & (expected > limit + slack + measured.output_tolerance), known & ~at
    if min(at.sum(), beyond.sum()) < FEWEST or (output[beyond] < limit).any():
        return None
    if not (expected[at] > (limit - slack - measured.output_tolerance[at])).all():
        return None
    # of an output that is nothing but that number it is not said
    return (limit, at) if rest.sum() >= FEWEST and (~measured.off)[rest].mean() > ENOUGH else None


def _ends(limit, size, bad, good):
    return size[bad].min() >= 0.9 * limit and size[good].max() <= 1.1 * limit


def _largest_seen(view):
    """Largest value in size, of each column, that a row sees, (B, H, T, E)."""
    if view.latent:
        return None
    value = np.abs(np.nan_to_num(view.of_heads(view.operand("value")), posinf=0, neginf=0))
    largest = np.zeros((*view.shape[:3], value.shape[-1]))
    for j in range(view.num_keys):
        largest = np.maximum(largest, np.where(view.visible[..., j, None], value[:, :, None, j], 0))
    return largest
