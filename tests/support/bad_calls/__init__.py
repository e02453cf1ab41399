"""The table of bad calls: for every public function, a good call with one thing changed, and the exact
error it must raise.

`refattn` and `cpu_kernels` must raise the same error for the same call, so the table knows no package. A
row of `attention` also holds for `attention_with_lse` and `attention_steps`; `TWINS` says which names
share rows.
"""

from bad_calls import block_local, dense, latent, merge, named, options, packed, paged
from bad_calls.call import BadCall as BadCall

TWINS = {
    "attention": ("attention", "attention_with_lse", "attention_steps"),
    "packed_attention": ("packed_attention", "packed_attention_with_lse"),
    "paged_attention": ("paged_attention", "paged_attention_with_lse"),
    "latent_attention": ("latent_attention", "latent_attention_with_lse", "multi_head_latent_attention"),
    "block_local_attention": ("block_local_attention", "block_local_attention_with_lse"),
    "merge_states": ("merge_states",),
    "multi_head_attention": ("multi_head_attention",),
    "multi_query_attention": ("multi_query_attention",),
    "grouped_query_attention": ("grouped_query_attention",),
}

GOOD_CALLS = {
    "attention": dense.GOOD,
    "packed_attention": packed.GOOD,
    "paged_attention": paged.GOOD,
    "latent_attention": latent.GOOD,
    "block_local_attention": block_local.GOOD,
    "merge_states": merge.GOOD,
    **named.GOOD,
}

BAD_CALLS = [
    *dense.BAD,
    *packed.BAD,
    *paged.BAD,
    *latent.BAD,
    *block_local.BAD,
    *merge.BAD,
    *named.BAD,
    *(
        BadCall(function, reason, changes, error, message)
        for function in TWINS
        if function != "merge_states"
        for reason, changes, error, message in options.BAD
    ),
]
