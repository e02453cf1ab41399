"""States to be merged."""

from __future__ import annotations

import numpy as np

from refattn.oracle.inputs.families import AttentionInputs


def merge_inputs(dtype=np.float32, seed=0, empty="none") -> AttentionInputs:
    """Three states; empty: "none", "one" (some rows of one state), "all" (some rows of every state)
    or "nan" (one NaN state).
    """
    rng = np.random.default_rng([seed, 5])
    outputs, lses = (
        rng.standard_normal((3, 2, 4, 7, 6)).astype(dtype),
        rng.standard_normal((3, 2, 4, 7)).astype(np.float32) * 2,
    )
    if empty in ("one", "all"):
        rows = slice(1) if empty == "one" else slice(3)
        outputs[rows, :, :, ::3], lses[rows, :, :, ::3] = 0, -np.inf
    if empty == "nan":
        outputs[1, :, :, 2], lses[1, :, :, 2] = np.nan, np.nan
    return AttentionInputs(f"merge, empty {empty}", "normal", "merge_states", (outputs, lses))


def suite(dtype=np.float32, seed=0) -> list[AttentionInputs]:
    return [merge_inputs(dtype, seed, empty) for empty in ("none", "one", "all", "nan")]
