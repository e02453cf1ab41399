"""Bad calls of `paged_attention` and `paged_attention_with_lse`."""

import numpy as np
from fake_gpu import FakeGpu

from bad_calls.call import endless, real, table, yes

# The second sequence fills one page; what its other entries hold does not matter.
GOOD = {
    "query": real(2, 6, 4, 8),
    "key_pages": real(10, 3, 5, 8),
    "value_pages": real(10, 3, 5, 7),
    "block_table": [[9, 0, 3], [1, -7, 99]],
    "kv_lengths": [11, 5],
}

PAGES = "must have 4 axes (num_pages, num_kv_heads, page_size, dim)"
AXES = "key_pages must have axes (num_pages, num_kv_heads, page_size, dim)"
SWAPPED = (
    "It fits (num_pages, page_size, num_kv_heads, dim), as flash_attn has it: swap axes 1 and 2 of key_pages "
    "and value_pages."
)
SCORES = "(..., heads, q_len, kv_len)=(2, 6, 4, 15)"
TABLE = "block_table must have shape (2, max_pages), one row a sequence"
USED = "block_table must hold pages between 0 and 9 within each length"

BAD = table(
    "paged_attention",
    (
        "query of three axes",
        {"query": real(6, 4, 8)},
        ValueError,
        "query must have 4 axes (batch, heads, length, dim); got query.shape=(6, 4, 8).",
    ),
    (
        "key_pages of three axes",
        {"key_pages": real(10, 5, 8)},
        ValueError,
        f"key_pages {PAGES}; got key_pages.shape=(10, 5, 8).",
    ),
    (
        "value_pages of five axes",
        {"value_pages": real(1, 10, 3, 5, 7)},
        ValueError,
        f"value_pages {PAGES}; got value_pages.shape=(1, 10, 3, 5, 7).",
    ),
    (
        "key_pages on a gpu",
        {"key_pages": FakeGpu()},
        TypeError,
        "key_pages must be in CPU memory; got key_pages.device=cuda:0. "
        "Pass key_pages.cpu() (cupy: key_pages.get(), jax: jax.device_get(key_pages)).",
    ),
    (
        "value_pages integer",
        {"value_pages": np.ones((10, 3, 5, 7), np.int8)},
        TypeError,
        "value_pages must be float16, bfloat16, float32 or float64; got value_pages.dtype=int8. Cast it "
        "with np.asarray(value_pages, np.float32).",
    ),
    (
        "head ratio",
        {"query": real(2, 8, 4, 8)},
        ValueError,
        "num_heads must be a multiple of num_kv_heads, both at least 1; got query heads 8, key heads 3.",
    ),
    (
        "head_dim",
        {"query": real(2, 6, 4, 7)},
        ValueError,
        "query and key must have the same head_dim >= 1; got query head_dim 7, key head_dim 8.",
    ),
    (
        "pages of flash_attn by their heads",
        {"key_pages": real(10, 5, 3, 8), "value_pages": real(10, 5, 3, 7)},
        ValueError,
        f"{AXES}; got key_pages.shape=(10, 5, 3, 8): 5 heads, of which 6 is no multiple. {SWAPPED}",
    ),
    (
        "pages of flash_attn by their lengths",
        {"key_pages": real(10, 6, 2, 8), "value_pages": real(10, 6, 2, 7)},
        ValueError,
        f"{AXES}; got key_pages.shape=(10, 6, 2, 8): room for 6 keys in a row of block_table, where "
        f"kv_lengths has 11. {SWAPPED}",
    ),
    (
        "value_pages of another page size",
        {"value_pages": real(10, 3, 4, 7)},
        ValueError,
        "value_pages must have shape (10, 3, 5, any) to match key_pages; got value_pages.shape=(10, 3, 4, "
        "7).",
    ),
    (
        "value_pages of another count",
        {"value_pages": real(9, 3, 5, 7)},
        ValueError,
        "value_pages must have shape (10, 3, 5, any) to match key_pages; got value_pages.shape=(9, 3, 5, 7).",
    ),
    (
        "pages of size 0",
        {"key_pages": real(10, 3, 0, 8), "value_pages": real(10, 3, 0, 7)},
        ValueError,
        "key_pages must have a page_size of at least 1; got key_pages.shape=(10, 3, 0, 8).",
    ),
    (
        "block_table float",
        {"block_table": [[9.0, 0.0, 3.0], [1.0, 2.0, 4.0]]},
        TypeError,
        "block_table must be integer; got block_table.dtype=float64. Cast it with np.asarray(block_table, "
        "np.int64).",
    ),
    (
        "block_table none",
        {"block_table": None},
        TypeError,
        "block_table must be an array of real numbers; got block_table=None.",
    ),
    (
        "block_table ragged",
        {"block_table": [[9, 0, 3], [1]]},
        TypeError,
        "block_table must be rectangular; got nested sequences of different lengths. Pad the shorter ones.",
    ),
    (
        "block_table of one sequence",
        {"block_table": [9, 0, 3]},
        ValueError,
        f"{TABLE}; got block_table.shape=(3,).",
    ),
    (
        "block_table of another batch",
        {"block_table": [[9, 0, 3]]},
        ValueError,
        f"{TABLE}; got block_table.shape=(1, 3).",
    ),
    (
        "block_table per head",
        {"block_table": np.zeros((2, 3, 3), int)},
        ValueError,
        f"{TABLE}; got block_table.shape=(2, 3, 3).",
    ),
    (
        "page beyond the pages",
        {"block_table": [[9, 0, 10], [1, 0, 0]]},
        ValueError,
        f"{USED}; got block_table[0, 2]=10.",
    ),
    (
        "page negative",
        {"block_table": [[9, 0, 3], [-1, 0, 0]]},
        ValueError,
        f"{USED}; got block_table[1, 0]=-1.",
    ),
    ("page used for one key", {"kv_lengths": [11, 6]}, ValueError, f"{USED}; got block_table[1, 1]=-7."),
    (
        "no pages but a length",
        {"key_pages": real(0, 3, 5, 8), "value_pages": real(0, 3, 5, 7)},
        ValueError,
        "block_table must hold pages between 0 and -1 within each length; got block_table[0, 0]=9.",
    ),
    (
        "kv_lengths none",
        {"kv_lengths": None},
        TypeError,
        "kv_lengths must be given: without it the filled part of the last page is unknown; got "
        "kv_lengths=None.",
    ),
    (
        "kv_lengths beyond the table",
        {"kv_lengths": [16, 5]},
        ValueError,
        "kv_lengths must be between 0 and kv_len=15; got kv_lengths=16.",
    ),
    (
        "kv_lengths negative",
        {"kv_lengths": [11, -5]},
        ValueError,
        "kv_lengths must be between 0 and kv_len=15; got kv_lengths=-5.",
    ),
    (
        "kv_lengths per page",
        {"kv_lengths": [[5, 5, 1], [5, 0, 0]]},
        ValueError,
        "kv_lengths must be an integer or have shape (2,); got kv_lengths.shape=(2, 3).",
    ),
    (
        "mask of the filled length",
        {"mask": yes(4, 11)},
        ValueError,
        f"mask must broadcast to {SCORES}; got mask.shape=(4, 11).",
    ),
    (
        "mask of three axes",
        {"mask": yes(2, 4, 15)},
        ValueError,
        "mask must have at most 2 axes or all 4 of (..., heads, q_len, kv_len); got mask.ndim=3. "
        "Write mask[:, None] for one mask a batch entry, mask[None] for one a head.",
    ),
    (
        "q_offset per row",
        {"q_offset": [0] * 4},
        ValueError,
        "q_offset must be an integer or have shape (2,); got q_offset.shape=(4,).",
    ),
    (
        "output too large",
        {"query": endless(2, 6, 2**40, 8)},
        MemoryError,
        "output and lse must fit in memory; got sizes that need 786432.0 GiB and 4.0 GiB are available.",
    ),
)
