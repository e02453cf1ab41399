"""Identities of attention: what must be equal to what, whatever the numbers.

Two computations of the same thing by refattn may differ by twice what each is promised to be off
(rounding.py); where no rounding is involved, or the same one, they are equal bit for bit.
"""

import math
from itertools import permutations

import naive
import numpy as np
import pytest
from cases import BY_FUNCTION, LAYOUTS
from rounding import UNIT, gauge_bound, lse_bound

import refattn
from refattn.calls.options import WORDS, Sizes

DENSE = [case for case in BY_FUNCTION["attention"] if case.layout == "contiguous"]
PLAIN = [case for case in DENSE if case.sizes.q_len and case.sizes.kv_len and math.prod(case.sizes.batch)]
SOFT = [
    case
    for case in PLAIN
    if "big" not in str(case.options.get("bias"))
    and case.family not in ("large_positive", "large_negative", "large_mixed")
]


def without(cases, *names):
    """The cases that use none of these options."""
    return [case for case in cases if not set(names) & set(case.options)]


def find(case_id):
    return next(case for case in DENSE if case.id == case_id)


def both(arrays, options):
    """(output, lse, gauge = sum of weight times |value|)."""
    query, key, value = arrays.values()
    output, lse = refattn.attention_with_lse(query, key, value, **options)
    return output, lse, refattn.attention(query, key, np.abs(value), **options)


def assert_equal_within(actual, expected, kv_len):
    """(output, lse, gauge) of two ways to compute the same; bound from the second."""
    infinite = np.isinf(expected[1])
    assert (np.abs(actual[0] - expected[0]) <= gauge_bound(expected[2])).all()
    np.testing.assert_array_equal(actual[1][infinite], expected[1][infinite])
    assert (
        np.abs(actual[1][~infinite] - expected[1][~infinite]) <= lse_bound(expected[1], kv_len)[~infinite]
    ).all()


def same_bits(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, b)


# ---- heads ------------------------------------------------------------------------------------------------


@pytest.mark.sample(3)
@pytest.mark.parametrize("case", PLAIN[::2], ids=str)
def test_shared_heads_equal_repeated_heads(case):
    """GQA is MHA over repeated key/value heads; with one head MQA, with as many as queries MHA itself."""
    arrays, options = case.build()
    repeated = {
        name: x if name == "query" else np.repeat(x, case.sizes.group_size, axis=-3)
        for name, x in arrays.items()
    }
    assert_equal_within(both(repeated, options), both(arrays, options), case.sizes.kv_len)


@pytest.mark.parametrize("case", [c for c in PLAIN if c.id.startswith("heads-")], ids=str)
def test_permuting_groups_permutes_heads(case):
    arrays, options = case.build()
    expected = both(arrays, options)
    for order in permutations(range(case.sizes.num_kv_heads)):
        heads = np.concatenate(
            [np.arange(g * case.sizes.group_size, (g + 1) * case.sizes.group_size) for g in order]
        )
        moved = {name: x[..., heads if name == "query" else list(order), :, :] for name, x in arrays.items()}
        same_bits(both(moved, options), [expected[0][heads], expected[1][heads], expected[2][heads]])


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    "case", without(PLAIN, "bias", "mask", "alibi_slopes", "sinks", "dropout")[::3], ids=str
)
def test_equal_queries_of_a_group_have_equal_heads(case):
    """Where no option tells the heads apart."""
    arrays, options = case.build()
    z = case.sizes
    grouped = arrays["query"].reshape(*z.batch, z.num_kv_heads, z.group_size, z.q_len, z.head_dim)
    query = np.broadcast_to(grouped[..., :1, :, :], grouped.shape).reshape(arrays["query"].shape)
    output, lse = refattn.attention_with_lse(query, arrays["key"], arrays["value"], **options)
    for result in (output.reshape(*grouped.shape[:-1], z.v_head_dim), lse.reshape(*grouped.shape[:-1], 1)):
        np.testing.assert_array_equal(result, np.broadcast_to(result[..., :1, :, :], result.shape))


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    "case",
    [c for c in PLAIN if len(c.sizes.batch) and not {"kv_lengths", "q_offset"} & set(c.options)][::3],
    ids=str,
)
def test_batch_entries_are_independent(case):
    arrays, options = case.build()
    full = (*case.sizes.batch, case.sizes.num_heads, case.sizes.q_len, case.sizes.kv_len)
    output, lse = refattn.attention_with_lse(*arrays.values(), **options)
    at = tuple(n - 1 for n in case.sizes.batch)
    own = dict(options)
    for name in {"bias", "mask", "dropout_mask"} & set(options):
        own[name] = np.broadcast_to(options[name], full)[at]
    if np.ndim(options.get("alibi_slopes")) > 1:
        own["alibi_slopes"] = options["alibi_slopes"][at]
    same_bits(refattn.attention_with_lse(*(x[at] for x in arrays.values()), **own), [output[at], lse[at]])


# ---- softmax ----------------------------------------------------------------------------------------------


@pytest.mark.sample(3)
@pytest.mark.parametrize("case", SOFT[::3], ids=str)
@pytest.mark.parametrize("shift", [1.0, -37.5, 2.0**14])
def test_a_constant_on_all_scores_moves_only_the_lse(case, shift):
    arrays, options = case.build()

    def short(x):
        return (
            np.round(np.asarray(x, dtype=float) * 2.0**20) * 2.0**-20
        )  # carries the shift without rounding

    options["bias"] = short(options.get("bias", np.zeros((1, 1))))
    shifted = dict(options, bias=options["bias"] + shift)
    if "sinks" in options:
        options["sinks"] = short(options["sinks"])
        shifted["sinks"] = options["sinks"] + shift
    expected = both(arrays, options)
    output, lse, gauge = both(arrays, shifted)
    assert (np.abs(output - expected[0]) <= gauge_bound(gauge)).all()
    seen = np.isfinite(lse)
    np.testing.assert_array_equal(seen, np.isfinite(expected[1]))
    slack = lse_bound(lse, case.sizes.kv_len) + lse_bound(expected[1], case.sizes.kv_len)
    assert (np.abs(lse[seen] - shift - expected[1][seen]) <= slack[seen]).all()


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    "case", without(PLAIN, "causal", "window", "chunk", "alibi_slopes", "kv_lengths")[::2], ids=str
)
def test_order_of_keys_does_not_matter(case):
    """Where nothing depends on positions."""
    arrays, options = case.build()
    order = np.random.default_rng(1).permutation(case.sizes.kv_len)
    moved = {name: x if name == "query" else x[..., order, :] for name, x in arrays.items()}
    own = dict(options)
    for name in {"bias", "mask", "dropout_mask"} & set(options):
        if options[name].ndim and options[name].shape[-1] > 1:
            own[name] = options[name][..., order]
    assert_equal_within(both(moved, own), both(arrays, options), case.sizes.kv_len)


@pytest.mark.sample(3)
@pytest.mark.parametrize("case", without(PLAIN, "dropout")[::2], ids=str)
def test_values_of_one_give_the_share_of_the_keys(case):
    """Output 1 without a sink or dropout; with a sink 1 - exp(sink - lse)."""
    arrays, options = case.build()
    output, lse = refattn.attention_with_lse(
        arrays["query"], arrays["key"], np.ones_like(arrays["value"]), **options
    )
    seen = np.isfinite(lse)
    sinks = np.broadcast_to(np.asarray(options.get("sinks", -np.inf), dtype=float)[..., None], lse.shape)
    share = 1 - np.exp(np.where(seen, sinks - np.where(seen, lse, 0), -np.inf))
    slack = (
        gauge_bound(1.0) + 2 * lse_bound(lse, case.sizes.kv_len) + 4 * UNIT
    )  # an error of the lse changes the share by at most as much
    expected = np.where(seen, share, 0.0)
    if not any(np.isfinite(options.get("sinks", [-np.inf]))):
        slack = gauge_bound(1.0, times=0)
    assert (
        np.abs(output - expected[..., None]) <= np.broadcast_to(np.asarray(slack)[..., None], output.shape)
    ).all()


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    "case", [case for case in PLAIN if case.family not in ("tiny", "subnormal")][::3], ids=str
)
def test_twice_the_values_give_twice_the_output(case):
    """And their negatives the negative, bit for bit: no rounding changes, away from the subnormal
    numbers.
    """
    arrays, options = case.build()
    output = refattn.attention(*arrays.values(), **options)
    np.testing.assert_array_equal(
        refattn.attention(arrays["query"], arrays["key"], 2 * arrays["value"], **options), 2 * output
    )
    np.testing.assert_array_equal(
        refattn.attention(arrays["query"], arrays["key"], -arrays["value"], **options), -output
    )


@pytest.mark.sample(3)
@pytest.mark.parametrize("case", PLAIN[::3], ids=str)
def test_scale_moves_to_the_query(case):
    arrays, options = case.build()
    scale = options.pop("scale", 1 / math.sqrt(case.sizes.head_dim))
    power = 2.0 ** -round(math.log2(abs(scale))) if scale else 1.0
    halved = dict(arrays, query=arrays["query"] / power)
    same_bits(both(halved, {**options, "scale": scale * power}), both(arrays, {**options, "scale": scale}))


# ---- options that do nothing, and options that are others in disguise -------------------------------------


@pytest.mark.sample(3)
@pytest.mark.parametrize("case", PLAIN, ids=str)
def test_options_that_change_nothing(case):
    arrays, options = case.build()
    z = case.sizes
    expected = refattn.attention_with_lse(*arrays.values(), **options)
    lengths = np.broadcast_to(options.get("kv_lengths", z.kv_len), z.batch)
    scores = (*z.batch, z.num_heads, z.q_len, z.kv_len)
    sizes = Sizes(z.batch, z.num_heads, z.q_len, lengths, z.head_dim, scores)
    for word, together in WORDS.items():
        neutral = {option.name: option.neutral(sizes) for option in together}
        if word == "chunk" and np.min(options.get("q_offset", 0)) < 0:
            continue  # rows before key 0 are in no chunk of a key
        if not {*neutral} & {*options} and word != "softcap":  # which rounds: below
            same_bits(refattn.attention_with_lse(*arrays.values(), **options, **neutral), expected)
    if options.get("window") is None:
        wide = (int(np.max(np.abs(options.get("q_offset", 0)))) + z.q_len + z.kv_len,) * 2
        same_bits(refattn.attention_with_lse(*arrays.values(), **{**options, "window": wide}), expected)


@pytest.mark.sample(3)
@pytest.mark.parametrize("case", PLAIN[::2], ids=str)
def test_causal_is_a_window_and_windows_and_chunks_are_masks(case):
    arrays, options = case.build()
    z = case.sizes
    if options.get("causal"):
        left, _ = options.get("window") or (None, None)
        closed = {**options, "causal": False, "window": (left, 0)}
        same_bits(
            refattn.attention_with_lse(*arrays.values(), **closed),
            refattn.attention_with_lse(*arrays.values(), **options),
        )
    length = np.broadcast_to(np.asarray(options.get("kv_lengths", z.kv_len)), z.batch)
    offset = np.broadcast_to(np.asarray(options.get("q_offset", length - z.q_len)), z.batch)
    full = (*z.batch, z.num_heads, z.q_len, z.kv_len)
    mask = naive.seen(full, {name: x for name, x in options.items() if name != "bias"})
    spelled = {
        **{k: v for k, v in options.items() if k not in ("causal", "window", "chunk")},
        "mask": mask,
        "q_offset": offset,
    }
    assert_equal_within(both(arrays, spelled), both(arrays, options), z.kv_len)
    hidden = np.where(mask, np.broadcast_to(options.get("bias", 0.0), full), -np.inf)
    by_bias = {**{k: v for k, v in spelled.items() if k != "mask"}, "bias": hidden}
    assert_equal_within(both(arrays, by_bias), both(arrays, options), z.kv_len)


@pytest.mark.parametrize(
    "case", [case for case in without(PLAIN, "bias") if "alibi_slopes" in case.options], ids=str
)
def test_alibi_is_a_bias(case):
    """With slopes that are short powers of two the products are exact."""
    arrays, options = case.build()
    z = case.sizes
    slopes = options["alibi_slopes"] = 2.0 ** np.round(np.log2(options["alibi_slopes"]))
    length = np.broadcast_to(np.asarray(options.get("kv_lengths", z.kv_len)), z.batch)
    offset = np.broadcast_to(np.asarray(options.get("q_offset", length - z.q_len)), z.batch)
    distance = np.abs(np.arange(z.kv_len) - (offset[..., None, None, None] + np.arange(z.q_len)[:, None]))
    spelled = {**options, "bias": -slopes[..., :, None, None] * distance}
    del spelled["alibi_slopes"]
    assert_equal_within(both(arrays, spelled), both(arrays, options), z.kv_len)


@pytest.mark.sample(3)
@pytest.mark.parametrize("case", without(SOFT, "softcap")[::2], ids=str)
def test_a_softcap_far_away_is_none(case):
    """|cap * tanh(s / cap) - s| <= |s|^3 / (3 cap^2), below 2^-60 for this cap."""
    arrays, options = case.build()
    scores = np.abs(refattn.attention_steps(*arrays.values(), **options).scores).max()
    cap = 2.0 ** math.ceil(math.log2(max(scores, 1.0) ** 1.5 * 2.0**30))
    assert_equal_within(both(arrays, {**options, "softcap": cap}), both(arrays, options), case.sizes.kv_len)


def test_a_softcap_far_below_makes_scores_equal():
    arrays, _ = find("plain").build()
    output = refattn.attention(*arrays.values(), softcap=2.0**-70)
    mean = np.repeat(arrays["value"].mean(axis=-2, keepdims=True), 2, axis=-3)
    assert (np.abs(output - mean) <= 20 * UNIT * np.abs(arrays["value"]).max()).all()


@pytest.mark.parametrize(
    "case",
    [case for case in without(PLAIN, "alibi_slopes", "dropout", "softcap") if "sinks" in case.options],
    ids=str,
)
def test_a_sink_is_a_key_with_value_zero(case):
    """Without options that would give the extra key a position, a cap or a chance to be dropped."""
    arrays, options = case.build()
    z = case.sizes
    full = (*z.batch, z.num_heads, z.q_len, z.kv_len)
    expected = both(arrays, options)
    grown = {
        name: x if name == "query" else np.concatenate([np.zeros_like(x[..., :1, :]), x], axis=-2)
        for name, x in arrays.items()
    }
    bias = np.concatenate(
        [np.zeros((*full[:-1], 1)), np.broadcast_to(options.pop("bias", 0.0), full)], axis=-1
    )
    bias[..., 0] = options.pop("sinks")[:, None]
    mask = np.ones((*full[:-1], z.kv_len + 1), bool)
    mask[..., 1:] = refattn.attention_steps(*arrays.values(), **options, bias=bias[..., 1:]).biased > -np.inf
    rest = {name: options[name] for name in ("scale",) if name in options}
    assert_equal_within(both(grown, {**rest, "bias": bias, "mask": mask}), expected, z.kv_len + 1)


def test_a_sink_grown_large_takes_everything():
    arrays, _ = find("plain").build()
    output, lse = refattn.attention_with_lse(*arrays.values(), sinks=np.full(6, 1e6))
    np.testing.assert_array_equal(output, 0.0)
    np.testing.assert_array_equal(lse, 1e6)


def test_dropout_is_linear_in_the_keep_mask():
    """Keeping A and keeping not-A add up to keeping all."""
    arrays, options = find("dropout-bhts___0.25").build()
    keep = options["dropout_mask"]
    parts = [
        refattn.attention(*arrays.values(), dropout_mask=mask, dropout_rate=0.25) for mask in (keep, ~keep)
    ]
    gauge = refattn.attention(arrays["query"], arrays["key"], np.abs(arrays["value"])) / 0.75
    whole = refattn.attention(*arrays.values()) / 0.75
    assert (np.abs(sum(parts) - whole) <= gauge_bound(gauge) + 4 * UNIT * gauge).all()


# ---- exact inputs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 8, 64, 512])
def test_dyadic_means_are_exact(n):
    """Equal scores over 2^k keys with whole-numbered values: the mean, bit for bit; lse = log n to an
    ulp.
    """
    value = np.random.default_rng(n).integers(-100, 100, size=(1, n, 3)).astype(float)
    output, lse = refattn.attention_with_lse(np.zeros((2, 3, 4)), np.ones((1, n, 4)), value)
    np.testing.assert_array_equal(output, np.broadcast_to(value.sum(axis=-2)[0] / n, output.shape))
    assert (np.abs(lse - math.log(n)) <= np.spacing(math.log(n))).all()


@pytest.mark.parametrize(
    "case",
    [c for c in PLAIN if c.family in ("one_hot", "ascending") and "dropout" not in c.options],
    ids=str,
)
def test_one_hot_rows_are_copies(case):
    """A key ahead of all others by more than 800 gives its value, bit for bit."""
    arrays, options = case.build()
    steps = refattn.attention_steps(*arrays.values(), **options)
    ranked = np.sort(steps.biased, axis=-1)
    second = ranked[..., -2] if ranked.shape[-1] > 1 else -np.inf
    second = np.maximum(second, np.reshape(options.get("sinks", -np.inf), (-1, 1)))
    alone = (ranked[..., -1] > -np.inf) & (second + 800 < ranked[..., -1])
    if case.family == "one_hot" and "causal" not in case.id:
        assert alone.all()
    value = np.repeat(arrays["value"], case.sizes.group_size, axis=-3)
    copies = np.take_along_axis(value, steps.biased.argmax(axis=-1)[..., None], axis=-2)
    np.testing.assert_array_equal(steps.output[alone], copies[alone])


def test_a_row_with_one_key_copies_its_value():
    arrays, _ = find("plain").build()
    output, lse = refattn.attention_with_lse(*arrays.values(), causal=True, window=(0, None))
    position = np.arange(11) + 17 - 11
    np.testing.assert_array_equal(output, np.repeat(arrays["value"][..., position, :], 2, axis=-3))
    steps = refattn.attention_steps(*arrays.values(), causal=True, window=(0, None))
    np.testing.assert_array_equal(
        lse, np.take_along_axis(steps.scores, np.broadcast_to(position[:, None], (2, 6, 11, 1)), -1)[..., 0]
    )


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_narrow_inputs_are_their_values(dtype):
    for case in DENSE[::9]:
        arrays, options = case.build(dtype)
        wide = {name: x.astype(np.float64) for name, x in arrays.items()}
        same_bits(
            refattn.attention_with_lse(*arrays.values(), **options),
            refattn.attention_with_lse(*wide.values(), **options),
        )


@pytest.mark.parametrize("layout", ["fortran", "negative", "sliced", "transposed", "readonly"])
def test_layout_in_memory_does_not_matter(layout):
    for case in DENSE[::9]:
        arrays, options = case.build()
        laid = {name: LAYOUTS[layout](x) for name, x in arrays.items()}
        same_bits(
            refattn.attention_with_lse(*laid.values(), **options),
            refattn.attention_with_lse(*arrays.values(), **options),
        )
