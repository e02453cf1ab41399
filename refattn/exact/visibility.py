"""Which keys a query row may see: causality, window, chunk and lengths, drawn as one half-open range of
keys a row.

Row i stands at key position `q_offset + i` and sees key j iff all of these hold:

    0 <= j < kv_length
    j >= q_offset + i - left        (left None: no limit)
    j <= q_offset + i + right       (right None: no limit; causal: right = 0)
    j // chunk == (q_offset + i) // chunk       (chunk None: one for all)

so the keys of a row are one range [start, stop), whatever the options. Only `mask` and -inf in `bias`
make holes in it.
"""

import numpy as np


def row_bounds(rules, position, kv_length):
    """The visible keys [start, stop) of rows, before masks.

    Parameters
    ----------
    rules : refattn.calls.options.Visibility, or Options
    position : ndarray of int64
        Key positions of the rows.
    kv_length : int or ndarray of int64 that broadcasts to `position`

    Returns
    -------
    start, stop : ndarray of int64, shape of position
        0 <= start <= stop <= kv_length; a row that sees nothing has start == stop. Neither falls where
        the position rises.

    Examples
    --------
    Three rows on five keys, bottom-right causal with one key to the left:

    >>> from refattn.calls.options import Visibility
    >>> start, stop = row_bounds(Visibility(left=1, right=0), np.array([2, 3, 4]), 5)
    >>> [list(range(a, b)) for a, b in zip(start.tolist(), stop.tolist())]
    [[1, 2], [2, 3], [3, 4]]
    """
    length = np.broadcast_to(np.asarray(kv_length, dtype=np.int64), position.shape)
    start = np.zeros_like(position) if rules.left is None else np.clip(position - rules.left, 0, length)
    stop = length if rules.right is None else np.clip(position + rules.right + 1, 0, length)
    if rules.chunk is not None:
        first = position - position % rules.chunk
        start, stop = np.clip(first, start, length), np.clip(first + rules.chunk, 0, stop)
    return start, np.maximum(start, stop)


def range_mask(start, stop, first, last):
    """The ranges drawn as booleans over the keys [first, last): True = visible, shape (*start.shape,
    last - first).
    """
    keys = np.arange(first, last)
    return (start[..., None] <= keys) & (keys < stop[..., None])
