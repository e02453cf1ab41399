"""What is hidden does not exist: whatever it holds, outputs are the same, bit for bit.

One exception in kind: where the keys and values of a group cross to the ends of the float64 range, the
whole group changes to wider numbers. A masked key of 1e300 may do that, and so may any poison among tiny
values; then outputs are the same within the promised error. Past the length of a sequence, where memory
is not initialised, and in unused pages even that is bit for bit.
"""

import naive
import numpy as np
import pytest
from cases import BY_FUNCTION
from rounding import gauge_bound, lse_bound

import refattn

POISON = [np.nan, np.inf, -np.inf, 3e4, 1e-300]
GARBAGE = [*POISON, 1e300]
DENSE = [case for case in BY_FUNCTION["attention"] if case.layout == "contiguous"]
HIDING = [
    c
    for c in DENSE
    if {"mask", "causal", "window", "kv_lengths", "bias"} & set(c.options) or "causal" in c.id
]
NOT_EMPTY = [c for c in HIDING if c.sizes.q_len and c.sizes.kv_len and all(c.sizes.batch)]


def seen_by(case, arrays, options):
    return naive.seen((*arrays["query"].shape[:-1], arrays["key"].shape[-2]), options)


def per_key(seen, num_kv_heads):
    """(*batch, K, S): some row of some head of the group sees the key."""
    *batch, heads, rows, keys = seen.shape
    return seen.reshape(*batch, num_kv_heads, heads // num_kv_heads, rows, keys).any(axis=(-3, -2))


def assert_same_bits(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a.view(np.int64), b.view(np.int64))


def poison_at(arrays, options, where):
    """(poison, output and lse) for every poison at the keys and values that `where` (*batch, K, S)
    points out.
    """
    for poison in GARBAGE:
        poisoned = {
            name: x if name == "query" else np.where(where[..., None], poison, x)
            for name, x in arrays.items()
        }
        yield poison, refattn.attention_with_lse(*poisoned.values(), **options)


@pytest.mark.sample(3)
@pytest.mark.parametrize("case", HIDING, ids=str)
def test_keys_and_values_no_row_sees(case):
    arrays, options = case.build()
    expected = refattn.attention_with_lse(*arrays.values(), **options)
    gauge = refattn.attention(arrays["query"], arrays["key"], np.abs(arrays["value"]), **options)
    hidden = ~per_key(seen_by(case, arrays, options), case.sizes.num_kv_heads)
    for poison, actual in poison_at(arrays, options, hidden):
        if poison in POISON:
            assert_same_bits(actual, expected)
        else:
            assert (np.abs(actual[0] - expected[0]) <= gauge_bound(gauge)).all()
            assert (
                np.isclose(actual[1], expected[1], rtol=0, atol=lse_bound(expected[1], case.sizes.kv_len))
            ).all()


@pytest.mark.sample(3)
@pytest.mark.parametrize("case", NOT_EMPTY[::2], ids=str)
def test_each_row_ignores_the_keys_it_does_not_see(case):
    """Poison what one row does not see, although other rows do: that row stays as it is."""
    arrays, options = case.build()
    seen = seen_by(case, arrays, options)
    expected = refattn.attention_with_lse(*arrays.values(), **options)
    gauge = refattn.attention(arrays["query"], arrays["key"], np.abs(arrays["value"]), **options)
    row = tuple(np.random.default_rng(case.seed).integers(seen.shape[:-1]))
    where = np.zeros(arrays["key"].shape[:-1], bool)
    where[(*row[:-2], row[-2] // case.sizes.group_size)] = ~seen[row]
    for poison, actual in poison_at(arrays, options, where):
        if poison in POISON and case.family not in ("tiny", "subnormal"):
            assert_same_bits([x[row] for x in actual], [x[row] for x in expected])
        else:
            assert (np.abs(actual[0][row] - expected[0][row]) <= gauge_bound(gauge[row])).all()


@pytest.mark.parametrize("poison", GARBAGE)
def test_other_steps_do_not_meet_hidden_keys(poison):
    case = next(c for c in DENSE if c.id == "kv_lengths-array")
    arrays, options = case.build()
    expected = refattn.attention_steps(*arrays.values(), **options)
    hidden = ~per_key(seen_by(case, arrays, options), case.sizes.num_kv_heads)
    arrays["key"][hidden] = arrays["value"][hidden] = poison
    actual = refattn.attention_steps(*arrays.values(), **options)
    assert_same_bits(actual[2:], expected[2:])


@pytest.mark.sample(4)
@pytest.mark.parametrize("content", [np.nan, np.inf, 1e300])
@pytest.mark.parametrize("case", HIDING, ids=str)
def test_rows_that_see_nothing(case, content):
    """Output exactly 0 and lse -inf (or the sink), also when key, value and query of the row hold
    anything.
    """
    arrays, options = case.build()
    empty = ~seen_by(case, arrays, options).any(axis=-1)
    arrays["query"][empty] = content
    output, lse = refattn.attention_with_lse(*arrays.values(), **options)
    sinks = np.broadcast_to(
        np.asarray(options.get("sinks", -np.inf), dtype=float)[..., None], empty.shape[-2:]
    )
    np.testing.assert_array_equal(output[empty], 0.0)
    assert not np.signbit(output[empty]).any()
    np.testing.assert_array_equal(lse[empty], np.broadcast_to(sinks, empty.shape)[empty])
    assert np.isfinite(output[~empty]).all()


def test_table_has_empty_rows():
    empty = [not seen_by(c, *c.build()).any(axis=-1).all() for c in HIDING if "mask" in c.options]
    assert sum(empty) >= 5


@pytest.mark.sample(4)
@pytest.mark.parametrize("poison, entry", [*zip(GARBAGE, [2147480000, -7, 2**31 - 1] * 2, strict=True)])
@pytest.mark.parametrize("case", BY_FUNCTION["paged_attention"], ids=str)
def test_pages(case, entry, poison):
    """Unused pages, slots past the length and table entries past the length are never touched."""
    arrays, options = case.build()
    expected = refattn.paged_attention_with_lse(*arrays.values(), **options)
    table, lengths, page_size = options["block_table"], options["kv_lengths"], case.sizes.page_size
    used = np.zeros((arrays["key_pages"].shape[0], page_size), bool)
    for b, length in enumerate(lengths):
        for j in range(length):
            used[table[b, j // page_size], j % page_size] = True
    for name in ("key_pages", "value_pages"):
        pages = np.array(arrays[name])
        pages.transpose(0, 2, 1, 3)[~used] = poison
        arrays[name] = pages
    bogus = np.where(np.arange(table.shape[1]) * page_size < lengths[:, None], table, entry)
    assert (bogus != table).any()
    assert_same_bits(
        refattn.paged_attention_with_lse(*arrays.values(), **{**options, "block_table": bogus}), expected
    )


@pytest.mark.parametrize("poison", GARBAGE)
@pytest.mark.parametrize("form", ["absorb", "expand"])
def test_latents_past_the_length(form, poison):
    case = next(
        c
        for c in BY_FUNCTION["latent_attention"]
        if "kv_lengths" in c.options and c.options["form"] == form and len(c.sizes.batch) == 1
    )
    arrays, options = case.build()
    expected = refattn.latent_attention_with_lse(*arrays.values(), **options)
    past = np.arange(case.sizes.kv_len) >= options["kv_lengths"][:, None]
    assert past.any()
    arrays["kv_latent"][past] = arrays["k_rope"][past] = poison
    assert_same_bits(refattn.latent_attention_with_lse(*arrays.values(), **options), expected)


@pytest.mark.parametrize("poison", GARBAGE)
def test_other_blocks_and_other_sequences(poison):
    """Block-local and packed attention: poison in one block or sequence stays there."""
    case = next(c for c in BY_FUNCTION["block_local_attention"] if c.id == "block-3-1")
    arrays, options = case.build()
    expected = refattn.block_local_attention_with_lse(*arrays.values(), **options)
    for name in ("query", "key", "value"):
        arrays[name][..., 3:6, :] = poison
    actual = refattn.block_local_attention_with_lse(*arrays.values(), **options)
    kept = np.r_[0:3, 6:13]
    assert_same_bits([x[:, :, kept] for x in actual], [x[:, :, kept] for x in expected])

    case = next(c for c in BY_FUNCTION["packed_attention"] if c.id == "packed-11x17-1")
    arrays, options = case.build()
    expected = refattn.packed_attention_with_lse(*arrays.values(), **options)
    rows, keys = options["cu_q"][2:4], options["cu_kv"][2:4]
    arrays["query"][:, slice(*rows)] = arrays["key"][:, slice(*keys)] = arrays["value"][:, slice(*keys)] = (
        poison
    )
    actual = refattn.packed_attention_with_lse(*arrays.values(), **options)
    kept = np.delete(np.arange(arrays["query"].shape[1]), np.arange(*rows))
    assert 0 < kept.size < arrays["query"].shape[1]
    assert_same_bits([x[:, kept] for x in actual], [x[:, kept] for x in expected])


@pytest.mark.sample(3)
@pytest.mark.parametrize("case", NOT_EMPTY[::2], ids=str)
def test_nan_in_a_visible_key_poisons_exactly_the_rows_that_see_it(case):
    arrays, options = case.build()
    expected = refattn.attention_with_lse(*arrays.values(), **options)
    seen = seen_by(case, arrays, options)
    rng = np.random.default_rng(case.seed)
    at = tuple(rng.integers(arrays["key"].shape[:-1]))
    arrays["key"] = arrays["key"].copy()
    arrays["key"][at][rng.integers(case.sizes.head_dim)] = np.nan
    sees = np.zeros(seen.shape[:-1], bool)
    heads = slice(at[-2] * case.sizes.group_size, (at[-2] + 1) * case.sizes.group_size)
    sees[at[:-2]][heads] = seen[at[:-2]][heads][..., at[-1]]
    output, lse = refattn.attention_with_lse(*arrays.values(), **options)
    assert np.isnan(output[sees]).all() and np.isnan(lse[sees]).all()
    assert_same_bits([output[~sees], lse[~sees]], [x[~sees] for x in expected])


@pytest.mark.parametrize("content", [np.nan, np.inf, -np.inf])
def test_a_visible_value_that_is_not_finite(content):
    """It reaches its column of the rows that see it; their other columns keep the promised error, all
    other rows their bits.
    """
    case = next(c for c in DENSE if c.id == "causal-True")
    arrays, options = case.build()
    expected = refattn.attention(*arrays.values(), **options)
    gauge = refattn.attention(arrays["query"], arrays["key"], np.abs(arrays["value"]), **options)
    seen = seen_by(case, arrays, options)
    arrays["value"][1, 2, 9, 4] = content
    output = refattn.attention(*arrays.values(), **options)
    rows = np.zeros(output.shape[:-1], bool)
    rows[1, 4:6] = seen[1, 4:6, :, 9]
    assert 0 < rows.sum() < rows[1, 4:6].size
    np.testing.assert_array_equal(output[rows][:, 4], content)
    assert_same_bits([output[~rows]], [expected[~rows]])
    others = np.arange(output.shape[-1]) != 4
    assert (np.abs(output - expected)[rows][:, others] <= gauge_bound(gauge)[rows][:, others]).all()


@pytest.mark.parametrize("content", [np.inf, -np.inf, np.nan])
def test_values_of_opposite_infinities_make_nan(content):
    query, key, value = np.zeros((1, 2, 3)), np.zeros((1, 4, 3)), np.ones((1, 4, 2))
    value[0, 1, 0], value[0, 2, 0] = np.inf, content
    output = refattn.attention(query, key, value)
    np.testing.assert_array_equal(output[0], [[np.inf + content, 1.0]] * 2)


def test_infinite_scores():
    """A score of -inf is a weight of zero; one of +inf makes the output NaN, and an lse that is not
    finite.
    """
    query, key, value = np.ones((1, 2, 2)), np.ones((1, 3, 2)), np.array([[[1.0], [2.0], [4.0]]])
    key[0, 1] = -np.inf
    output, lse = refattn.attention_with_lse(query, key, value, scale=1.0)
    np.testing.assert_array_equal(output[0], [[2.5], [2.5]])
    key[0, 1] = np.inf
    output, lse = refattn.attention_with_lse(
        query, key, value, mask=np.array([[True, True, True], [True, False, True]])
    )
    assert np.isnan(output[0, 0]).all() and not lse[0, 0] < np.inf
    np.testing.assert_array_equal(output[0, 1], 2.5)


def test_all_scores_minus_infinity_is_an_empty_row():
    key = np.full((1, 3, 2), -np.inf)
    output, lse = refattn.attention_with_lse(np.ones((1, 2, 2)), key, np.ones((1, 3, 1)))
    np.testing.assert_array_equal(output, 0.0)
    np.testing.assert_array_equal(lse, -np.inf)


def test_nan_and_infinity_in_bias():
    rng = np.random.default_rng(0)
    query, key, value = rng.normal(size=(2, 3, 4)), rng.normal(size=(1, 5, 4)), rng.normal(size=(1, 5, 2))
    bias = np.zeros((2, 3, 5))
    expected = refattn.attention_with_lse(query, key, value, bias=bias, causal=True)
    bias[0, 0, 4] = np.nan  # hidden by causality
    bias[1, 2, 0] = np.nan
    bias[1, 1, 0] = np.inf
    output, lse = refattn.attention_with_lse(query, key, value, bias=bias, causal=True)
    poisoned = np.zeros((2, 3), bool)
    poisoned[1, 1:] = True
    assert np.isnan(output[poisoned]).all() and not (lse[poisoned] < np.inf).any()
    assert_same_bits([output[~poisoned], lse[~poisoned]], [x[~poisoned] for x in expected])


def test_merge_ignores_what_an_empty_part_holds():
    outputs, lses = np.ones((2, 1, 3, 2)), np.zeros((2, 1, 3))
    lses[1] = -np.inf
    outputs[1] = np.nan
    output, lse = refattn.merge_states(outputs, lses)
    np.testing.assert_array_equal(output, 1.0)
    np.testing.assert_array_equal(lse, 0.0)
