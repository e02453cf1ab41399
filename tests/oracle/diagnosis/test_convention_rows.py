"""Every convention that is known to bite in public has a hypothesis, and `diagnose` names it on a kernel
that has it.

The rows are those of a survey of public attention libraries; a row is a matter on which two of them
disagree, or a mistake with a public report.
"""

import numpy as np

from refattn.oracle.diagnosis.search import diagnose
from refattn.oracle.mistakes.catalogue import BY_ID
from refattn.oracle.mistakes.merge import MERGES

# row -> (matter, hypotheses); () with a reason: what no output or lse of a forward call can show
ROWS = {
    1: (
        "causal top-left against bottom-right",
        ("causal_top_left", "causal_bottom_right", "aligned_to_capacity"),
    ),
    2: ("alignment that depends on which side is longer", ("causal_top_left", "causal_bottom_right")),
    3: ("head map by repetition against tiling", ("heads_tiled",)),
    4: ("integer arithmetic of the head map", ("heads_divided_by_kv_heads", "heads_shifted_group")),
    5: ("repetition along the keys", ("heads_repeated_along_keys",)),
    6: (
        "scale of another dim, omitted, zero",
        (
            "scale_of_model_dim",
            "scale_of_num_heads",
            "scale_omitted",
            "scale_zero",
            "scale_one_over_head_dim",
        ),
    ),
    7: ("scale divides, or its argument is lost", ("scale_divides", "scale_ignored")),
    8: ("overflow before scaling", ("product_float16", "no_maximum_subtracted")),
    9: ("softcap after the mask", ("softcap_after_mask",)),
    10: (
        "softcap formula, softcap dropped",
        ("softcap_times_score", "softcap_not_multiplied_back", "softcap_clips", "softcap_dropped"),
    ),
    11: (
        "window counts keys or distance",
        ("window_left_one_more", "window_left_one_less", "window_symmetric"),
    ),
    12: ("window with or without the row's own key", ("window_left_one_less",)),
    13: (
        "exclusive left bound, left-only window sees the future",
        ("window_left_one_less", "window_frees_future", "causal_added", "window_right_dropped"),
    ),
    14: ("window ignored", ("window_dropped",)),
    15: ("ring cache with chunked prefill", ("window_ring_overwritten", "position_one_late")),
    16: (
        "lse in base 2",
        (
            "lse_base_two",
            "lse_converted_twice",
            "lse_half_converted",
            "merged_in_base_two",
            "merge_base_two",
        ),
    ),
    17: ("lse of an empty row", ("empty_row_lse_plus_inf", "empty_row_lse_zero")),
    18: ("merge of empty states", ("merge_empty_nan", "merge_plus_inf_is_empty")),
    19: ("lse layout", ("lse_heads_and_rows_swapped", "results_heads_and_rows_swapped")),
    20: (
        "sink in lse, counted twice, unscaled, with a value",
        (
            "sinks_not_in_lse",
            "sinks_counted_twice",
            "sinks_scaled",
            "sinks_dropped",
            "sinks_have_first_value",
        ),
    ),
    21: (
        "empty row: NaN, mean of values",
        ("empty_row_nan", "hidden_is_finite_minimum", "hidden_is_minus_1e9"),
    ),
    22: ("mask polarity", ("mask_inverted",)),
    23: ("boolean mask added, or multiplied by -inf", ("mask_added", "hidden_by_multiplying")),
    24: ("mask axes", ("mask_axes_swapped", "mask_of_first_head", "mask_of_first_sequence")),
    25: ("NaN in hidden slots", ("nan_of_hidden_score", "nan_of_hidden_value")),
    26: (
        "ALiBi position and sign",
        ("alibi_sign", "alibi_off_by_one", "alibi_of_key_only", "alibi_top_left", "alibi_without_abs"),
    ),
    27: ("ALiBi slopes", ("alibi_exponent_off", "alibi_slopes_geometric", "alibi_slopes_published")),
    28: ("rotary pairs", ("rope_other_pairs", "rope_layouts_mixed")),
    29: ("rotary output layout where it is mixed", ("mla_rope_layouts_mixed", "mla_rope_halves_swapped")),
    30: (
        "rotary positions with a cache",
        ("rope_rows_from_zero", "rope_query_one_late", "rope_single_angle"),
    ),
    31: (
        "MLA scale",
        (
            "mla_scale_of_latent_width",
            "mla_scale_without_mscale",
            "mla_scale_with_mscale_once",
            "mla_scale_of_nope",
            "mla_mscale_on_rope_twice",
        ),
    ),
    32: (
        "MLA order of parts, slices of w_uk and w_uv",
        (
            "mla_rope_first_in_key",
            "mla_latent_and_rope_swapped",
            "mla_value_weights_sliced_wrong",
            "mla_key_weights_sliced_wrong",
            "mla_values_of_last_dims",
        ),
    ),
    33: ("value head size", ("scale_of_value_dim",)),
    34: (
        "layout of inputs and output",
        (
            "inputs_heads_and_rows_swapped",
            "output_heads_and_rows_swapped",
            "output_heads_and_dims_swapped",
            "keys_heads_and_rows_swapped",
        ),
    ),
    35: ("a last position taken as a length", ("lengths_minus_one", "lengths_plus_one")),
    36: (
        "boundaries of packed sequences ignored",
        ("packed_boundaries_ignored", "packed_leak_before", "packed_query_boundaries"),
    ),
    37: (
        "dropout",
        ("dropout_not_rescaled", "dropout_before_softmax", "dropout_dropped", "dropout_inverted"),
    ),
    38: (
        "rounding of weights, softmax dtype",
        ("weights_bfloat16", "weights_float8", "scores_bfloat16", "rescale_bfloat16"),
    ),
    39: ("fp8 scales per head", ("output_doubled",)),  # and the fitted ones: test_fitted_numbers_per_head
    40: ("split-dependent results", ("random_order", "split_merge_unweighted")),
    41: ("strided inputs", ("partial_tile_dropped",)),
    42: ("numbering of intermediate outputs", ()),  # of an output that `diagnose` does not take
    43: ("a constant added to all scores", ("constant_added",)),
    44: ("causality dropped with or without a mask", ("causal_dropped", "mask_replaces_causal")),
}
MERGE_IDS = {mistake.id for mistake in MERGES}


def test_every_row_has_a_hypothesis():
    assert [*ROWS] == [*range(1, 45)]
    for row, (matter, ids) in ROWS.items():
        assert ids or row == 42, matter
        assert not {*ids} - BY_ID.keys() - MERGE_IDS, f"row {row}: {matter}"


def test_fitted_numbers_per_head():
    """Row 39: a key scale, and a value scale, of each head."""
    import refattn

    rng = np.random.default_rng(3)
    query, key, value = (
        rng.standard_normal((2, heads, length, 16)) for heads, length in ((4, 9), (2, 45), (2, 45))
    )
    found = diagnose(
        refattn.attention(query, key * np.array([0.5, 3.0])[:, None, None], value), query, key, value
    )
    assert found.best.id == "scale_per_key_head" and "(0.5, 3)" in found.best.says
    found = diagnose(
        refattn.attention(query, key, value * np.array([0.5, 3.0])[:, None, None]), query, key, value
    )
    assert found.best.id == "output_factor_per_head" and "(0.5, 3)" in found.best.says
