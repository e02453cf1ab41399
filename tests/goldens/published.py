"""The snippet published on 8 July 2024 as "group-query-attention", run as it stands.

The page lost the indentation of the function body; restoring it is the only change. `examples/` shows
what the snippet computes.
"""

import torch
import torch.nn.functional as F

SEED = 20240708


def group_query_attention(queries, keys, values, group_size):
    # queries, keys, values: [batch_size, seq_len, dim]
    batch_size, seq_len, dim = queries.size()

    # Reshape inputs to group queries
    num_groups = seq_len // group_size
    queries = queries.view(batch_size, num_groups, group_size, dim)
    keys = keys.view(batch_size, num_groups, group_size, dim)
    values = values.view(batch_size, num_groups, group_size, dim)

    # Compute attention scores
    scores = torch.einsum(
        "bgqd,bgkd->bgqk", queries, keys
    )  # [batch_size, num_groups, group_size, group_size]
    attention_weights = F.softmax(scores, dim=-1)

    # Compute attention output
    output = torch.einsum(
        "bgqk,bgvd->bgqd", attention_weights, values
    )  # [batch_size, num_groups, group_size, dim]

    # Reshape output to original size
    output = output.view(batch_size, seq_len, dim)
    return output


def published_inputs():
    """The published sizes, float32 as torch.randn gives them, from a seed (the page has none)."""
    batch_size, seq_len, dim = 2, 8, 4
    random = torch.Generator().manual_seed(SEED)
    return {
        name: torch.randn(batch_size, seq_len, dim, generator=random)
        for name in ("queries", "keys", "values")
    }


def published_case():
    """name, arguments, options and the snippet's output in float32 and in float64."""
    inputs = published_inputs()
    output = group_query_attention(*inputs.values(), 2)
    exact = group_query_attention(*(x.double() for x in inputs.values()), 2)
    return (
        "published_grouping",
        {n: x.numpy() for n, x in inputs.items()},
        {"group_size": 2},
        output.numpy(),
        exact.numpy(),
    )
