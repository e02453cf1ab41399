"""Inputs of a shape, made once and read by every contender from files, and the check of what it returns."""

import shutil
import tempfile

import numpy as np


def folder_for(shape):
    """A temporary folder, in memory if there is room: a disk that still writes would disturb the turns."""
    needed = 2 * 4 * sum(np.prod(size) for size in shape.sizes)
    try:
        in_memory = shutil.disk_usage("/dev/shm").free > needed
    except OSError:
        in_memory = False
    return tempfile.TemporaryDirectory(dir="/dev/shm" if in_memory else None)


def write_inputs(shape, folder, rows=3):
    """Inputs of a shape, and the right output of a few rows of the first and the last group with its error
    bound, as files for the workers."""
    from refattn.oracle import KernelSpec, error_bound

    rng = np.random.default_rng(0)
    query, key, value = (rng.standard_normal(size, dtype=np.float32) for size in shape.sizes)
    if shape.v_head_dim:
        value = key[..., : shape.v_head_dim]  # workers take it from the key as well
    for name, array in (("query", query), ("key", key), ("value", value)):
        np.save(folder / f"{name}.npy", array)
    group = shape.q_heads // shape.kv_heads
    picked = np.unique(np.linspace(0, shape.q_len - 1, rows).astype(int))
    mask = np.arange(shape.kv_len) <= picked[:, None] if shape.causal else None
    # Peers use quicker exponentials than ours.
    spec = KernelSpec.flash("float32").replace(scaled_query="float32", exp_error=2.0**-20)
    batches, heads, outputs, bounds = [], [], [], []
    for batch, kv_head in sorted({(0, 0), (shape.batch - 1, shape.kv_heads - 1)}):
        own = np.arange(kv_head * group, (kv_head + 1) * group)
        arrays = (
            query[batch, own][:, picked],
            key[batch, kv_head : kv_head + 1],
            value[batch, kv_head : kv_head + 1],
        )
        bound = error_bound(*arrays, mask=mask, spec=spec, kind="hard")
        batches, heads = [*batches, *[batch] * group], [*heads, *own]
        outputs, bounds = [*outputs, *bound.output], [*bounds, *bound.output_hard]
    np.savez(
        folder / "expected.npz", rows=picked, batches=batches, heads=heads, outputs=outputs, bounds=bounds
    )


def used_of_bound(output, folder):
    """The largest share of the error bound that the rows in `expected.npz` use; raises if one is beyond."""
    worst = 0.0
    with np.load(folder / "expected.npz") as expected:
        rows = expected["rows"]
        for batch, head, right, bound in zip(
            expected["batches"], expected["heads"], expected["outputs"], expected["bounds"]
        ):
            used = np.abs(output[batch, head][rows] - right) / bound
            worst = max(worst, float(used.max()) if np.isfinite(used).all() else float("inf"))
    if not worst <= 1:
        raise ArithmeticError(f"the result uses {worst:.1f} of the error bound")
    return worst
