"""Keys that come from elsewhere: scores of a key that are those of another key in store."""

from __future__ import annotations

import numpy as np

from refattn.oracle.imaging.compare import RIGHT, SCALED
from refattn.oracle.imaging.maps import describe_map
from refattn.oracle.imaging.view import KEY

MOST_STORED = 6000  # keys that are compared
MOST_KEYS = 160  # wrong keys that are looked for
LEAST_ROWS = 2  # rows that see a key, whose scores tell it from others
LEAST_FOUND, SHARE = 3, 0.7  # of the wrong keys that must be found


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
        score = np.log(measured.weights) - ledgers.shift[..., None] + view.lse[..., None]
        raw = score - (view.score - view.capped)
    judged = ((ledgers.labels == SCALED) | (ledgers.labels == RIGHT)) & np.isfinite(raw)
    kv = view.heads // view.group_size
    own, found = [], []
    keys = _some(_wrong_keys(wrong, kv))
    for b, k, j in keys:
        heads = np.flatnonzero(kv == k)
        h, t = np.nonzero(judged[b, heads, :, j])
        if len(h) < LEAST_ROWS:
            continue
        at = b, heads[h], t, j
        scores = part.scale * (query[at[:3]] @ flat.T)  # (rows, stored)
        near = (np.abs(scores - raw[at][:, None]) <= tolerance[at][:, None]).all(0)
        if near.sum() == 1:
            s = view.sequences[b]
            own.append(view.slots[KEY][s.part][s.entry, k, j])
            found.append(near.argmax())
    if len(own) < max(LEAST_FOUND, SHARE * len(keys)):
        return ""
    return _words(view, stored.shape[:-1], np.array(own), np.array(found))


def _wrong_keys(wrong, kv):
    """(sequence, key/value head, key) of wrong pairs (B, H, T, S), each once; `kv` (H,) are their heads."""
    b, h, j = np.nonzero(wrong.any(2))
    return np.unique(np.stack([b, kv[h], j], 1), axis=0)


def _some(keys):
    """At most MOST_KEYS of them, in order."""
    rng = np.random.default_rng(0)
    return keys[np.sort(rng.choice(len(keys), min(len(keys), MOST_KEYS), replace=False))]


def _words(view, shape, own, found):
    """What is read in place of what, along each axis of the stored keys; both are numbers of stored keys."""
    names = list(view.checked.form.arrays.values())[KEY].split()[:-1][-len(shape) :]
    if len(names) < len(shape):
        names = [f"axis {n}" for n in range(len(shape))]
    before, after = np.unravel_index(own, shape), np.unravel_index(found, shape)
    return "; ".join(
        describe_map(a[a != b], b[a != b], name.replace("_", " "))[0]
        for name, a, b in zip(names, before, after, strict=True)
        if (a != b).any()
    )
