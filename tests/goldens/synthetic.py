"""The table of synthetic calls: four variants x the options x sizes that are all different primes.

Every call is (name, variant, function, arguments, options). Inputs come from NumPy's PCG64 one stream per
label, standard normal, cast to the dtype they are stored in before anything is computed from them.
"""

import numpy as np

SEED = 20240708
HEADS = {"MHA": (3, 3), "MQA": (3, 1), "GQA": (6, 2)}  # query heads, key/value heads
SMALL = {"batch": 2, "q_len": 5, "kv_len": 11, "dim": 13, "v_dim": 7}
LARGE = {"batch": 1, "q_len": 13, "kv_len": 37, "dim": 19, "v_dim": 5}
LATENT = {"heads": 3, "nope": 11, "rope": 2, "rank": 17}


def generator(label):
    """A random stream of its own for each label, so that adding a call changes no other."""
    return np.random.default_rng([SEED, *label.encode()])


def normal(rng, *shape, dtype=np.float32, factor=1.0):
    return (factor * rng.standard_normal(shape)).astype(dtype)


def hide_some(rng, *shape, rows=()):
    """A keep mask with about a third hidden, key 0 visible in every row, and the given rows hidden
    altogether.
    """
    mask = rng.random(shape) > 0.35
    mask[..., 0] = True
    for row in rows:
        mask[..., row, :] = False
    return mask


# name -> (size changes, options made from (rng, sizes)). Sizes hold batch, heads, kv_heads, q_len, kv_len,
# dim, v_dim.
OPTIONS = {
    "plain": ({}, lambda rng, n: {}),
    "no_batch": ({"batch": None}, lambda rng, n: {}),
    "large": (LARGE, lambda rng, n: {}),
    "float64_inputs": ({"dtype": np.float64}, lambda rng, n: {}),
    "float16_inputs": ({"dtype": np.float16}, lambda rng, n: {"causal": True}),
    "scores_of_1e4": ({"factor": 100.0}, lambda rng, n: {}),
    "tiny_values": ({"value_factor": 1e-20}, lambda rng, n: {}),
    "no_keys": ({"kv_len": 0}, lambda rng, n: {}),
    "one_key": ({"kv_len": 1}, lambda rng, n: {}),
    "decode": ({"q_len": 1, "kv_len": 41}, lambda rng, n: {"causal": True}),
    "scale": ({}, lambda rng, n: {"scale": 0.375}),
    "scale_negative": ({}, lambda rng, n: {"scale": -1.25}),
    "scale_zero": ({}, lambda rng, n: {"scale": 0.0}),
    "causal_square": ({"q_len": 11}, lambda rng, n: {"causal": True}),
    "causal_bottom_right": ({}, lambda rng, n: {"causal": True}),
    "causal_empty_rows": ({"q_len": 13}, lambda rng, n: {"causal": True}),
    "causal_top_left": ({}, lambda rng, n: {"causal": True, "q_offset": 0}),
    "causal_large": (LARGE, lambda rng, n: {"causal": True}),
    "q_offset_per_batch": ({}, lambda rng, n: {"causal": True, "q_offset": np.array([-3, 7])}),
    "window": ({}, lambda rng, n: {"window": (3, 2)}),
    "window_left_only": (LARGE, lambda rng, n: {"window": (7, None)}),
    "window_causal": (LARGE, lambda rng, n: {"causal": True, "window": (5, 3)}),
    "window_of_one": ({}, lambda rng, n: {"window": (0, 0)}),
    "softcap": ({"factor": 3.0}, lambda rng, n: {"softcap": 2.5}),
    "softcap_causal": (LARGE | {"factor": 3.0}, lambda rng, n: {"softcap": 30.0, "causal": True}),
    "bias": ({}, lambda rng, n: {"bias": normal(rng, n["batch"], n["heads"], n["q_len"], n["kv_len"])}),
    "bias_per_key": ({}, lambda rng, n: {"bias": normal(rng, 1, n["kv_len"])}),
    "bias_hides": (
        {},
        lambda rng, n: {
            "bias": np.where(
                hide_some(rng, n["q_len"], n["kv_len"], rows=(2,)),
                normal(rng, n["q_len"], n["kv_len"]),
                -np.inf,
            )
        },
    ),
    "mask": ({}, lambda rng, n: {"mask": hide_some(rng, n["batch"], n["heads"], n["q_len"], n["kv_len"])}),
    "mask_per_batch": ({}, lambda rng, n: {"mask": hide_some(rng, n["batch"], 1, n["q_len"], n["kv_len"])}),
    "mask_hides_rows": ({}, lambda rng, n: {"mask": hide_some(rng, n["q_len"], n["kv_len"], rows=(0, 3))}),
    "mask_hides_nan": ({"poison": 4}, lambda rng, n: {"mask": np.arange(n["kv_len"])[None, :] != 4}),
    "alibi": ({}, lambda rng, n: {"alibi_slopes": 2.0 ** -np.arange(1, n["heads"] + 1), "causal": True}),
    "alibi_per_batch": ({}, lambda rng, n: {"alibi_slopes": normal(rng, n["batch"], n["heads"])}),
    "sinks": ({}, lambda rng, n: {"sinks": normal(rng, n["heads"])}),
    "sinks_and_none": (
        {"q_len": 13},
        lambda rng, n: {"sinks": np.r_[-np.inf, normal(rng, n["heads"] - 1)], "causal": True},
    ),
    "kv_lengths": ({"poison_past": (3, 8)}, lambda rng, n: {"kv_lengths": np.array([3, 8])}),
    "kv_lengths_zero": (
        {"poison_past": (0, 11)},
        lambda rng, n: {"kv_lengths": np.array([0, 11]), "causal": True},
    ),
    "dropout": (
        {},
        lambda rng, n: {
            "dropout_mask": rng.random((n["heads"], n["q_len"], n["kv_len"]))[None] > 0.25,
            "dropout_rate": 0.25,
        },
    ),
    "everything": (
        {"q_len": 7, "poison_past": (9, 11)},
        lambda rng, n: {
            "scale": 0.5,
            "softcap": 4.0,
            "causal": True,
            "window": (8, None),
            "q_offset": np.array([3, 5]),
            "kv_lengths": np.array([9, 11]),
            "bias": normal(rng, n["heads"], 1, n["kv_len"])[None],
            "mask": hide_some(rng, n["q_len"], n["kv_len"], rows=(1,)),
            "alibi_slopes": 2.0 ** -np.arange(1, n["heads"] + 1),
            "sinks": normal(rng, n["heads"]),
            "dropout_mask": rng.random((n["batch"], n["heads"], n["q_len"], n["kv_len"])) > 0.125,
            "dropout_rate": 0.125,
        },
    ),
}
LATENT_SKIPS = {"mask_hides_nan", "tiny_values", "window_left_only", "causal_large"}


def dense_calls(variant):
    for name, (changes, make) in OPTIONS.items():
        label = f"{variant}_{name}"
        n = SMALL | {"heads": HEADS[variant][0], "kv_heads": HEADS[variant][1]} | changes
        dtype, factor = n.get("dtype", np.float32), n.get("factor", 1.0)
        rng = generator(
            f"{variant} {n}"
        )  # calls of equal sizes share their input, which keeps the files small
        lead = () if n["batch"] is None else (n["batch"],)
        query = normal(rng, *lead, n["heads"], n["q_len"], n["dim"], dtype=dtype, factor=factor)
        key = normal(rng, *lead, n["kv_heads"], n["kv_len"], n["dim"], dtype=dtype, factor=factor)
        value = normal(
            rng,
            *lead,
            n["kv_heads"],
            n["kv_len"],
            n["v_dim"],
            dtype=dtype,
            factor=n.get("value_factor", 1.0),
        )
        options = make(generator(label), n)
        for b, length in enumerate(n.get("poison_past", ())):
            key[b, :, length:] = value[b, :, length:] = np.nan
        if "poison" in n:
            key[..., n["poison"], :] = np.nan
            value[..., n["poison"], :] = np.inf
        yield label, variant, "attention_with_lse", {"query": query, "key": key, "value": value}, options


def latent_calls():
    for name, (changes, make) in OPTIONS.items():
        if name in LATENT_SKIPS:
            continue
        label = f"MLA_{name}"
        n = SMALL | LATENT | changes
        dtype, factor = n.get("dtype", np.float32), n.get("factor", 1.0)
        rng = generator(f"MLA {n}")
        lead = () if n["batch"] is None else (n["batch"],)
        arguments = {
            "q_nope": normal(rng, *lead, n["heads"], n["q_len"], n["nope"], dtype=dtype, factor=factor),
            "q_rope": normal(rng, *lead, n["heads"], n["q_len"], n["rope"], dtype=dtype, factor=factor),
            "kv_latent": normal(rng, *lead, n["kv_len"], n["rank"], dtype=dtype, factor=factor),
            "k_rope": normal(rng, *lead, n["kv_len"], n["rope"], dtype=dtype, factor=factor),
            "w_uk": normal(rng, n["heads"], n["nope"], n["rank"], dtype=dtype, factor=n["rank"] ** -0.5),
            "w_uv": normal(rng, n["heads"], n["v_dim"], n["rank"], dtype=dtype, factor=n["rank"] ** -0.5),
        }
        options = make(generator(label), n)
        for b, length in enumerate(n.get("poison_past", ())):
            arguments["kv_latent"][b, length:] = arguments["k_rope"][b, length:] = np.nan
        for form in ("absorb", "expand"):
            yield f"{label}_{form}", "MLA", "latent_attention_with_lse", arguments, options | {"form": form}


PACKED = {
    "plain": lambda rng, n: {},
    "causal": lambda rng, n: {"causal": True},
    "window_sinks": lambda rng, n: {"causal": True, "window": (4, None), "sinks": normal(rng, n["heads"])},
    "mask_softcap": lambda rng, n: {"mask": hide_some(rng, 11, 18, rows=(7,)), "softcap": 3.0},
    "bias_q_offset": lambda rng, n: {
        "bias": normal(rng, n["heads"], 11, 18),
        "q_offset": np.array([2, 0, -1, 5]),
        "causal": True,
    },
}
PAGED = {
    "plain": lambda rng, n: {},
    "causal": lambda rng, n: {"causal": True},
    "window_softcap": lambda rng, n: {"causal": True, "window": (5, None), "softcap": 2.0},
    "alibi_sinks": lambda rng, n: {
        "causal": True,
        "alibi_slopes": 2.0 ** -np.arange(1, n["heads"] + 1),
        "sinks": normal(rng, n["heads"]),
    },
}
NOT_A_PAGE = 2147480000  # what fills the block table past a sequence's pages: must never be followed


def packed_calls(variant):
    """Four sequences end to end, one without queries and one without keys."""
    for name, make in PACKED.items():
        label = f"{variant}_packed_{name}"
        heads, kv_heads, dim, v_dim = shape_of(variant)
        rng = generator(label)
        query, key = normal(rng, heads, 11, dim), normal(rng, kv_heads, 18, dim)
        value = key[..., :v_dim] if variant == "MLA" else normal(rng, kv_heads, 18, v_dim)
        options = make(rng, {"heads": heads})
        if variant == "MLA":
            options["scale"] = 0.25
        options |= {"cu_q": np.array([0, 3, 3, 10, 11]), "cu_kv": np.array([0, 5, 7, 18, 18])}
        yield (
            label,
            variant,
            "packed_attention_with_lse",
            {"query": query, "key": key, "value": value},
            options,
        )


def paged_calls(variant):
    """Pages of 3 keys in a random order; every slot that no sequence uses holds NaN."""
    lengths, page_size, num_pages = np.array([7, 0, 11]), 3, 13
    for name, make in PAGED.items():
        label = f"{variant}_paged_{name}"
        heads, kv_heads, dim, v_dim = shape_of(variant)
        rng = generator(label)
        order = rng.permutation(num_pages)
        key_pages = np.full((num_pages, kv_heads, page_size, dim), np.nan, np.float32)
        value_pages = np.full((num_pages, kv_heads, page_size, v_dim), np.nan, np.float32)
        table = np.full((len(lengths), 5), NOT_A_PAGE)
        for b, length in enumerate(lengths):
            for j in range(length):
                if j % page_size == 0:
                    table[b, j // page_size], order = order[0], order[1:]
                page = table[b, j // page_size]
                key_pages[page, :, j % page_size] = normal(rng, kv_heads, dim)
                value_pages[page, :, j % page_size] = (
                    key_pages[page, :, j % page_size, :v_dim]
                    if variant == "MLA"
                    else normal(rng, kv_heads, v_dim)
                )
        arguments = {
            "query": normal(rng, len(lengths), heads, 2, dim),
            "key_pages": key_pages,
            "value_pages": value_pages,
        }
        options = make(rng, {"heads": heads}) | {"block_table": table, "kv_lengths": lengths}
        if variant == "MLA":
            options["scale"] = 0.25
        yield label, variant, "paged_attention_with_lse", arguments, options


def shape_of(variant):
    """heads, kv_heads, head_dim, v_head_dim. Packed and paged MLA is the absorbed form: one key [latent of 5 | rope of 2], and the latent is the value."""
    if variant == "MLA":
        return LATENT["heads"], 1, 7, 5
    return *HEADS[variant], 7, 5


def block_local_calls(variant):
    heads, kv_heads = HEADS[variant]
    for name, length, block, options in [
        ("blocks", 15, 5, {}),
        ("short_last_block", 17, 5, {}),
        ("causal", 17, 7, {"causal": True}),
        ("unscaled_softcap", 13, 3, {"scale": 1.0, "softcap": 5.0}),
    ]:
        label = f"{variant}_block_local_{name}"
        rng = generator(label)
        arguments = {"query": normal(rng, 2, heads, length, 7), "key": normal(rng, 2, kv_heads, length, 7)}
        arguments["value"] = normal(rng, 2, kv_heads, length, 2)
        yield label, variant, "block_local_attention_with_lse", arguments, options | {"block_size": block}


def split_calls(variant):
    """Attention over 17 keys, to be cut at keys 0, 7, 7, 13: the maker stores the states of the parts
    as the inputs of merge_states.
    """
    heads, kv_heads = HEADS[variant]
    for name, dtype in [("splits", np.float64), ("splits_float32", np.float32)]:
        label = f"{variant}_merge_{name}"
        rng = generator(label)
        whole = [
            normal(rng, 2, h, length, dim)
            for h, length, dim in [(heads, 5, 7), (kv_heads, 17, 7), (kv_heads, 17, 3)]
        ]
        yield label, variant, whole, ((0, 7), (7, 7), (7, 13), (13, 17)), dtype
