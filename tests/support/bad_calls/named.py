"""Bad calls of the functions named after a variant: each checks the ratio of heads that its name
stands for.
"""

from bad_calls.call import real, table

GOOD = {
    "multi_head_attention": {"query": real(2, 6, 4, 8), "key": real(2, 6, 5, 8), "value": real(2, 6, 5, 7)},
    "multi_query_attention": {"query": real(2, 6, 4, 8), "key": real(2, 1, 5, 8), "value": real(2, 1, 5, 7)},
    "grouped_query_attention": {
        "query": real(2, 6, 4, 8),
        "key": real(2, 3, 5, 8),
        "value": real(2, 3, 5, 7),
    },
}

BAD = [
    *table(
        "multi_head_attention",
        (
            "fewer key heads",
            {"key": real(2, 3, 5, 8), "value": real(2, 3, 5, 7)},
            ValueError,
            "multi_head_attention must have num_kv_heads equal to num_heads; got query heads 6, key heads 3.",
        ),
        (
            "one key head",
            {"key": real(2, 1, 5, 8), "value": real(2, 1, 5, 7)},
            ValueError,
            "multi_head_attention must have num_kv_heads equal to num_heads; got query heads 6, key heads 1.",
        ),
        (
            "value heads",
            {"value": real(2, 3, 5, 7)},
            ValueError,
            "value must have shape (2, 6, 5, any) to match key; got value.shape=(2, 3, 5, 7).",
        ),
        (
            "query without heads",
            {"query": real(4, 8)},
            ValueError,
            "query must have at least 3 axes, the last ones (heads, length, dim); got query.shape=(4, 8).",
        ),
    ),
    *table(
        "multi_query_attention",
        (
            "two key heads",
            {"key": real(2, 2, 5, 8), "value": real(2, 2, 5, 7)},
            ValueError,
            "multi_query_attention must have num_kv_heads equal to 1; got key heads 2.",
        ),
        (
            "as many key heads as query heads",
            {"key": real(2, 6, 5, 8), "value": real(2, 6, 5, 7)},
            ValueError,
            "multi_query_attention must have num_kv_heads equal to 1; got key heads 6.",
        ),
        (
            "key without a head axis",
            {"key": real(2, 5, 8), "value": real(2, 5, 7)},
            ValueError,
            "query, key and value must have the same number of axes; got query.ndim=4, key.ndim=3, "
            "value.ndim=3.",
        ),
    ),
    *table(
        "grouped_query_attention",
        (
            "head ratio",
            {"key": real(2, 4, 5, 8), "value": real(2, 4, 5, 7)},
            ValueError,
            "num_heads must be a multiple of num_kv_heads, both at least 1; got query heads 6, key heads 4.",
        ),
        (
            "more key heads than query heads",
            {"query": real(2, 1, 4, 8)},
            ValueError,
            "num_heads must be a multiple of num_kv_heads, both at least 1; got query heads 1, key heads 3.",
        ),
        (
            "value length",
            {"value": real(2, 3, 4, 7)},
            ValueError,
            "value must have shape (2, 3, 5, any) to match key; got value.shape=(2, 3, 4, 7).",
        ),
    ),
]
