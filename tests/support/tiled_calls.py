"""Calls of every form for `TiledKernel`, in sizes of which few are powers of two."""

import ml_dtypes
import numpy as np

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}

DENSE = {  # batch axes, query heads, key/value heads, rows, keys, head_dim, v_head_dim
    "grouped": ((2,), 4, 2, 37, 83, 24, 24),
    "square": ((1,), 3, 3, 53, 53, 16, 20),
    "decode": ((3,), 6, 2, 1, 141, 20, 20),
    "long": ((1,), 2, 1, 21, 203, 40, 40),
    "no batch axis": ((), 4, 1, 29, 75, 12, 12),
    "two batch axes": ((2, 2), 2, 2, 19, 51, 16, 16),
}
PACKED = {  # rows and keys of each sequence, query heads, key/value heads, head_dim
    "three": ((13, 29, 21), (35, 67, 21), 4, 2, 20),
    "with empty ones": ((0, 25, 9, 31), (11, 53, 0, 47), 2, 1, 16),
}
PAGED = {  # lengths, rows, page size, pages a sequence, query heads, key/value heads, head_dim
    "ends inside pages": ((37, 61, 50), 5, 8, 8, 4, 2, 24),
    "decode": ((91, 17, 70), 1, 16, 6, 6, 3, 16),
}
LATENT = {  # batch, heads, rows, keys, nope, rope, rank, v_head_dim
    "keys <= rank": (2, 3, 17, 43, 12, 6, 48, 12),
    "keys > rank": (1, 3, 23, 71, 10, 6, 28, 14),
}
SIZES = {"dense": DENSE, "packed": PACKED, "paged": PAGED, "latent": LATENT}


def tiled_call(form, size=None, dtype="float32", seed=0, share_pages=False, query_times=1.0):
    """Arrays and structure options of a call."""
    rng = np.random.default_rng(seed)
    sizes = SIZES[form][size or next(iter(SIZES[form]))]
    normal = lambda *shape: rng.standard_normal(shape)
    if form == "dense":
        batch, heads, kv_heads, rows, keys, dim, v_dim = sizes
        arrays = normal(*batch, heads, rows, dim), normal(*batch, kv_heads, keys, dim)
        arrays, options = (*arrays, normal(*batch, kv_heads, keys, v_dim)), {}
    elif form == "packed":
        rows, keys, heads, kv_heads, dim = sizes
        cu_q, cu_kv = (
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32) for lengths in (rows, keys)
        )
        shapes = (heads, cu_q[-1], dim), (kv_heads, cu_kv[-1], dim), (kv_heads, cu_kv[-1], dim)
        arrays, options = tuple(normal(*shape) for shape in shapes), {"cu_q": cu_q, "cu_kv": cu_kv}
    elif form == "paged":
        lengths, rows, page, places, heads, kv_heads, dim = sizes
        count = len(lengths) * places + 3
        table = rng.permutation(count)[: len(lengths) * places].reshape(-1, places).astype(np.int32)
        if share_pages:  # a common prefix
            table[1:, :2] = table[0, :2]
        pages = (normal(count, kv_heads, page, dim) for _ in range(2))
        arrays = (normal(len(lengths), heads, rows, dim), *pages)
        options = {"block_table": table, "kv_lengths": np.array(lengths)}
    else:
        batch, heads, rows, keys, nope, rope, rank, v_dim = sizes
        arrays = (
            normal(batch, heads, rows, nope),
            normal(batch, heads, rows, rope),
            normal(batch, keys, rank),
            normal(batch, keys, rope),
            normal(heads, nope, rank) / rank**0.5,
            normal(heads, v_dim, rank) / rank**0.5,
        )
        options = {}
    arrays = (query_times * arrays[0], *arrays[1:])
    return tuple(array.astype(DTYPES[dtype]) for array in arrays), options
