"""Keys that come from elsewhere: scores of a key that are those of another key in store."""

from __future__ import annotations

import numpy as np

from refattn.oracle.xray.compare import RIGHT, SCALED
from refattn.oracle.xray.maps import describe_map
from refattn.oracle.xray.view import KEY

MOST_STORED = 6000  # keys that are compared
LEAST_ROWS = 2  # rows that see a key, whose scores tell it from others
SHARE = 0.7  # of the wrong keys that must be found


def find_key_sources(ledgers, wrong):
    """Words for where keys are read whose scores are wrong (B, H, T, S); "" where that is not known."""
    view, measured = ledgers.view, ledgers.measured
    part = view.outline_of(0)
    if view.latent or part.softcap is not None or view.checked.form.joins:
        return ""
    stored = np.asarray(view.arrays[KEY])
    flat = np.nan_to_num(stored.reshape(-1, stored.shape[-1]).astype(np.float64))
    if len(flat) > MOST_STORED:
        return ""
    query = view.operand("query")
    tolerance = 2 * np.broadcast_to(measured.tolerance, view.shape)
    with np.errstate(all="ignore"):
        raw = (
            np.log(measured.weights)
            - ledgers.shift[..., None]
            + view.lse[..., None]
            - (view.score - view.capped)
        )
    judged = (ledgers.labels == SCALED) | (ledgers.labels == RIGHT)
    kv = view.heads // view.group_size
    own, found = [], []
    places = np.argwhere(wrong.any(2).reshape(len(view.sequences), -1, view.num_keys))  # (b, h, j)
    rng = np.random.default_rng(0)
    keys = (
        np.unique(np.stack([places[:, 0], kv[places[:, 1]], places[:, 2]], 1), axis=0)
        if len(places)
        else places
    )
    for b, k, j in keys[np.sort(rng.choice(len(keys), min(len(keys), 160), replace=False))]:
        heads = np.flatnonzero(kv == k)
        hh, tt = np.nonzero(judged[b, heads, :, j] & np.isfinite(raw[b, heads, :, j]))
        if len(hh) < LEAST_ROWS:
            continue
        hh = heads[hh]
        scores = part.scale * (query[b, hh, tt] @ flat.T)  # (n, stored)
        near = (np.abs(scores - raw[b, hh, tt, j][:, None]) <= tolerance[b, hh, tt, j][:, None]).all(0)
        if near.sum() == 1:
            s = view.sequences[b]
            own.append((b, k, j, int(view.slots[KEY][s.part][s.entry, k, j])))
            found.append(int(near.argmax()))
    if len(own) < max(3, SHARE * min(len(keys), 160)):
        return ""
    return _words(view, stored.shape, np.array(own), np.array(found))


def _words(view, shape, own, found):
    axes = list(view.checked.form.arrays.values())[KEY].split()[: len(shape) - 1]
    axes = (
        axes[len(axes) - (len(shape) - 1) :]
        if len(axes) >= len(shape) - 1
        else [f"axis {n}" for n in range(len(shape) - 1)]
    )
    before, after = np.unravel_index(own[:, 3], shape[:-1]), np.unravel_index(found, shape[:-1])
    told = []
    for name, a, b in zip(axes, before, after, strict=True):
        if (a != b).any():
            words, _ = describe_map(a[a != b], b[a != b], name.replace("_", " "))
            told.append(words)
    return "; ".join(told)
