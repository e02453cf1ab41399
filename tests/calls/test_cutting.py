"""Attention cut into pieces and put together again: chunks of rows, parts of the keys, packed
sequences, pages, blocks, decode steps.
"""

import itertools

import naive
import numpy as np
import pytest
from cases import BY_FUNCTION
from rounding import LSE_ULPS, OUTPUT_UNITS, SECOND_ORDER, UNIT, gauge_bound, lse_bound

import refattn

DENSE = [case for case in BY_FUNCTION["attention"] if case.layout == "contiguous"]
FULL = [case for case in DENSE if case.sizes.q_len and case.sizes.kv_len and all(case.sizes.batch)]
CAUSAL = [case for case in FULL if "causal" in case.id or case.options.get("causal")]


def both(arrays, options):
    query, key, value = arrays.values()
    output, lse = refattn.attention_with_lse(query, key, value, **options)
    return output, lse, refattn.attention(query, key, np.abs(value), **options)


def spelled_out(case, options):
    """The options with lengths and offsets given for each sequence and everything that broadcasts at
    full size, ready to be cut.
    """
    z = case.sizes
    full = (*z.batch, z.num_heads, z.q_len, z.kv_len)
    length = np.broadcast_to(options.get("kv_lengths", z.kv_len), z.batch)
    spelled = dict(
        options,
        kv_lengths=length,
        q_offset=np.broadcast_to(options.get("q_offset", length - z.q_len), z.batch),
    )
    for name in {"bias", "mask", "dropout_mask"} & set(options):
        spelled[name] = np.broadcast_to(options[name], full)
    return spelled


def within_bounds(actual, expected, gauge, kv_len):
    assert (np.abs(actual[0] - expected[0]) <= gauge_bound(gauge)).all()
    close_lse(actual[1], expected[1], lse_bound(expected[1], kv_len))


def close_lse(actual, expected, slack):
    seen = np.isfinite(expected)
    np.testing.assert_array_equal(actual[~seen], expected[~seen])
    assert (np.abs(actual[seen] - expected[seen]) <= np.broadcast_to(slack, seen.shape)[seen]).all()


@pytest.mark.sample(3)
@pytest.mark.parametrize("case", FULL[::2], ids=str)
@pytest.mark.parametrize("chunk", [1, 4])
def test_chunked_prefill(case, chunk):
    """Rows in chunks, each told where it starts."""
    arrays, options = case.build()
    output, lse, gauge = both(arrays, options)
    spelled = spelled_out(case, options)
    for start in range(0, case.sizes.q_len, chunk * (1 + case.sizes.q_len // 20)):
        rows = slice(start, start + chunk)
        piece = {**naive.cut(spelled, rows=rows), "q_offset": spelled["q_offset"] + start}
        actual = refattn.attention_with_lse(
            arrays["query"][..., rows, :], arrays["key"], arrays["value"], **piece
        )
        within_bounds(actual, (output[..., rows, :], lse[..., rows]), gauge[..., rows, :], case.sizes.kv_len)


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    "case",
    [
        case
        for case in CAUSAL
        if not {"q_offset", "kv_lengths"} & set(case.options) and case.sizes.q_len <= case.sizes.kv_len
    ],
    ids=str,
)
def test_decode_step_equals_row_of_prefill(case):
    """Step t knows the keys up to its own position and nothing else; the default offset puts its row
    on the last of them.
    """
    arrays, options = case.build()
    output, lse, gauge = both(arrays, options)
    spelled = spelled_out(case, options)
    del spelled["q_offset"], spelled["kv_lengths"]
    for t in sorted({0, case.sizes.q_len // 2, case.sizes.q_len - 1}):
        known = case.sizes.kv_len - case.sizes.q_len + t + 1
        rows, keys = slice(t, t + 1), slice(0, known)
        step = [arrays["query"][..., rows, :], arrays["key"][..., keys, :], arrays["value"][..., keys, :]]
        piece = naive.cut(spelled, rows, keys)
        for causal in (True, False) if options.get("window") is None else (True,):
            actual = refattn.attention_with_lse(*step, **{**piece, "causal": causal})
            within_bounds(
                actual, (output[..., rows, :], lse[..., rows]), gauge[..., rows, :], case.sizes.kv_len
            )


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    "case",
    [case for case in CAUSAL if not {"bias", "mask", "dropout", "q_offset"} & set(case.options)],
    ids=str,
)
def test_causal_rows_ignore_later_keys(case):
    """Keys appended behind the last row's position change nothing."""
    arrays, options = case.build()
    expected = refattn.attention_with_lse(*arrays.values(), **options)
    spelled = spelled_out(case, options)
    grown = {
        name: x if name == "query" else np.concatenate([x, np.repeat(x[..., -1:, :], 3, axis=-2)], axis=-2)
        for name, x in arrays.items()
    }
    whole = spelled["kv_lengths"] == case.sizes.kv_len
    actual = refattn.attention_with_lse(
        *grown.values(), **{**spelled, "causal": True, "kv_lengths": spelled["kv_lengths"] + 3 * whole}
    )
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def merge_bound(states, gauges, lse, kv_len):
    """What merging n states may add to their own errors.

    A state's share exp(lse_n - lse) is off by the error of its lse (8 ulp of its largest term) and by the
    rounding of the exponent and the exponential; the same once more in the total. Products, sums and the
    quotient add n + 4 roundings.
    """
    lses = np.stack([state[1] for state in states])
    seen = np.isfinite(lses)
    distance = np.zeros_like(lses)
    np.subtract(lse, lses, out=distance, where=seen)
    share_error = np.where(seen, lse_bound(lses, kv_len, times=0) + UNIT * (np.abs(distance) + 4), 0.0).max(
        axis=0
    )
    shares = np.where(seen, np.exp(-distance), 0.0)
    gauge = (shares[..., None] * np.stack(gauges)).sum(axis=0)
    output = (
        (OUTPUT_UNITS * UNIT + 2 * share_error[..., None] + (len(states) + 4) * UNIT) * gauge * SECOND_ORDER
    )
    return output, 2 * share_error + LSE_ULPS * UNIT * (np.where(np.isfinite(lse), np.abs(lse), 0.0) + 1)


@pytest.mark.sample(3)
@pytest.mark.parametrize("case", [case for case in FULL if "dropout" not in case.options], ids=str)
def test_keys_in_parts_merge_to_the_whole(case):
    """Any cut of the keys, with empty parts and the sink in the first part only."""
    arrays, options = case.build()
    output, lse, gauge = both(arrays, options)
    spelled = spelled_out(case, options)
    z = case.sizes
    rng = np.random.default_rng(case.seed)
    edges = np.sort([0, z.kv_len, *rng.integers(0, z.kv_len + 1, size=3)])
    states, gauges = [], []
    for first, last in itertools.pairwise(edges):
        piece = naive.of_keys((*output.shape[:-1], z.kv_len), spelled, first, last)
        if states:
            piece.pop("sinks", None)
        part = {name: x if name == "query" else x[..., first:last, :] for name, x in arrays.items()}
        *state, part_gauge = both(part, piece)
        states.append(state)
        gauges.append(part_gauge)
    output_slack, lse_slack = merge_bound(states, gauges, lse, z.kv_len)
    for order in (range(4), rng.permutation(4)):
        merged, merged_lse = refattn.merge_states(
            [states[n][0] for n in order], [states[n][1] for n in order]
        )
        assert (np.abs(merged - output) <= output_slack + gauge_bound(gauge, times=0)).all()
        close_lse(merged_lse, lse, lse_slack + lse_bound(lse, z.kv_len, times=0))


def random_states(rng, parts):
    outputs, lses = rng.normal(size=(parts, 2, 5, 3)), 5 * rng.normal(size=(parts, 2, 5))
    empty = rng.random(lses.shape) < 0.2
    outputs[empty], lses[empty] = 0, -np.inf
    return outputs, lses


def close_states(actual, expected, gauge, steps):
    """`steps` merges, each: exponent, exponential, product, sum, quotient, and an lse that later
    becomes an exponent.
    """
    units = steps * (6 * (2 * np.abs(expected[1][np.isfinite(expected[1])]).max() + 4) + 10)
    assert (np.abs(actual[0] - expected[0]) <= units * UNIT * gauge).all()
    close_lse(actual[1], expected[1], units * UNIT)


@pytest.mark.parametrize("seed", range(5))
def test_merging_is_associative_and_commutative(seed):
    outputs, lses = random_states(np.random.default_rng(seed), 3)
    a, b, c = zip(outputs, lses)

    def merge(*states):
        return refattn.merge_states(*zip(*states))

    whole = merge(a, b, c)
    gauge = np.abs(outputs).max(axis=0)
    for other in (merge(merge(a, b), c), merge(a, merge(b, c)), merge(c, a, b), merge(merge(c, a), b)):
        close_states(other, whole, gauge, steps=4)


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_the_identity_of_merging(seed):
    outputs, lses = random_states(np.random.default_rng(seed), 1)
    nothing = np.zeros_like(outputs[0]), np.full_like(lses[0], -np.inf)
    for states in (
        [(outputs[0], lses[0])],
        [(outputs[0], lses[0]), nothing],
        [nothing, (outputs[0], lses[0]), nothing],
    ):
        output, lse = refattn.merge_states(*zip(*states))
        np.testing.assert_array_equal(output, outputs[0])
        np.testing.assert_array_equal(lse, lses[0])
    output, lse = refattn.merge_states(*zip(nothing, nothing))
    np.testing.assert_array_equal(output, 0.0)
    np.testing.assert_array_equal(lse, -np.inf)


def test_merging_a_state_with_itself():
    outputs, lses = random_states(np.random.default_rng(9), 1)
    output, lse = refattn.merge_states([outputs[0]] * 2, [lses[0]] * 2)
    np.testing.assert_array_equal(output, outputs[0])
    close_lse(lse, lses[0] + np.log(2), 2 * np.spacing(np.where(np.isfinite(lse), np.abs(lse), 0.0) + 1))


@pytest.mark.parametrize("case", BY_FUNCTION["packed_attention"], ids=str)
def test_packed_sequences_are_separate_calls(case):
    arrays, options = case.build()
    cu_q, cu_kv = options.pop("cu_q"), options.pop("cu_kv")
    output, lse = refattn.packed_attention_with_lse(*arrays.values(), cu_q=cu_q, cu_kv=cu_kv, **options)
    for n in range(len(cu_q) - 1):
        rows, keys = slice(cu_q[n], cu_q[n + 1]), slice(cu_kv[n], cu_kv[n + 1])
        alone = refattn.attention_with_lse(
            arrays["query"][:, rows], arrays["key"][:, keys], arrays["value"][:, keys], **options
        )
        np.testing.assert_array_equal(output[:, rows], alone[0])
        np.testing.assert_array_equal(lse[:, rows], alone[1])


def test_packed_bias_and_masks_are_cut_to_their_tiles():
    arrays, options = next(c for c in BY_FUNCTION["packed_attention"] if c.id == "packed-11x17-0").build()
    cu_q, cu_kv = options["cu_q"], options["cu_kv"]
    rng = np.random.default_rng(0)
    shape = (6, cu_q[-1], cu_kv[-1])
    extra = {
        "bias": rng.normal(size=shape),
        "mask": rng.random(shape[1:]) < 0.7,
        "dropout_mask": rng.random(shape) < 0.6,
    }
    lengths = np.maximum(np.diff(cu_kv) - 1, 0)
    offsets = rng.integers(-3, 5, size=len(lengths))
    output = refattn.packed_attention(
        *arrays.values(),
        **options,
        **extra,
        dropout_rate=0.4,
        kv_lengths=lengths,
        q_offset=offsets,
        causal=True,
    )
    for n in range(len(cu_q) - 1):
        rows, keys = slice(cu_q[n], cu_q[n + 1]), slice(cu_kv[n], cu_kv[n + 1])
        own = {name: x[..., rows, keys] for name, x in extra.items()}
        alone = refattn.attention(
            arrays["query"][:, rows],
            arrays["key"][:, keys],
            arrays["value"][:, keys],
            **own,
            dropout_rate=0.4,
            kv_lengths=int(lengths[n]),
            q_offset=int(offsets[n]),
            causal=True,
        )
        np.testing.assert_array_equal(output[:, rows], alone)


@pytest.mark.parametrize("case", BY_FUNCTION["paged_attention"], ids=str)
def test_paged_equals_contiguous_under_any_order_of_pages(case):
    arrays, options = case.build()
    query, key_pages, value_pages = arrays.values()
    table = options.pop("block_table")
    contiguous = [
        pages[table].swapaxes(1, 2).reshape(len(table), case.sizes.num_kv_heads, -1, pages.shape[-1])
        for pages in (key_pages, value_pages)
    ]
    expected = refattn.attention_with_lse(query, *contiguous, **options)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(key_pages))
        place = np.argsort(order)
        actual = refattn.paged_attention_with_lse(
            query, key_pages[order], value_pages[order], block_table=place[table], **options
        )
        for a, b in zip(actual, expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_sequences_may_share_pages():
    """A common prefix stored once."""
    rng = np.random.default_rng(0)
    key_pages, value_pages = rng.normal(size=(4, 2, 4, 3)), rng.normal(size=(4, 2, 4, 5))
    query = rng.normal(size=(2, 4, 1, 3))
    table = np.array([[2, 0], [2, 3]])
    output = refattn.paged_attention(query, key_pages, value_pages, block_table=table, kv_lengths=[7, 6])
    for b, length in enumerate((7, 6)):
        key, value = (
            pages[table[b]].swapaxes(0, 1).reshape(2, 8, -1)[:, :length]
            for pages in (key_pages, value_pages)
        )
        np.testing.assert_array_equal(output[b], refattn.attention(query[b], key, value))


@pytest.mark.parametrize("case", BY_FUNCTION["block_local_attention"], ids=str)
def test_block_local_equals_a_block_diagonal_mask(case):
    arrays, options = case.build()
    block_size = options.pop("block_size")
    block = np.arange(case.sizes.q_len) // block_size
    same = np.broadcast_to(block[:, None] == block, (*case.sizes.batch, 1, *[case.sizes.q_len] * 2))
    dense = dict(options, mask=same & options["mask"] if "mask" in options else same, q_offset=0)
    expected = both(arrays, dense)
    actual = refattn.block_local_attention_with_lse(*arrays.values(), block_size=block_size, **options)
    within_bounds(actual, expected[:2], expected[2], case.sizes.kv_len)


def test_block_local_limits():
    """Blocks of one copy the values; one block is plain attention."""
    arrays, _ = next(c for c in BY_FUNCTION["block_local_attention"] if c.id == "block-1-0").build()
    output = refattn.block_local_attention(*arrays.values(), block_size=1)
    np.testing.assert_array_equal(output, np.repeat(arrays["value"], 2, axis=-3))
    for size in (13, 14, 1000):
        np.testing.assert_array_equal(
            refattn.block_local_attention(*arrays.values(), block_size=size),
            refattn.attention(*arrays.values(), q_offset=0),
        )


def test_the_published_snippet_sums_the_values_of_its_group():
    """einsum('bgqk,bgvd->bgqd') sums weights and values apart: a row gets the sum of the values of its
    group, whatever query and key are.

    The product over 'bgkd' instead is block-local attention without a scale.
    """
    rng = np.random.default_rng(0)
    query, key, value = rng.normal(size=(3, 2, 12, 5))

    def grouped(x):
        return x.reshape(2, 3, 4, 5)

    scores = grouped(query) @ grouped(key).swapaxes(-1, -2)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    sums = np.repeat(grouped(value).sum(axis=2), 4, axis=1)
    slack = 20 * UNIT * np.repeat(np.abs(grouped(value)).sum(axis=2), 4, axis=1)
    assert (
        np.abs(np.einsum("bgqk,bgvd->bgqd", weights, grouped(value)).reshape(2, 12, 5) - sums) <= slack
    ).all()
    intended = np.einsum("bgqk,bgkd->bgqd", weights, grouped(value)).reshape(2, 12, 5)
    output = refattn.block_local_attention(
        query[:, None], key[:, None], value[:, None], block_size=4, scale=1.0
    )[:, 0]
    scale = np.abs(grouped(query)) @ np.abs(grouped(key)).swapaxes(-1, -2)
    assert (np.abs(output - intended) <= (20 + 2 * 7 * scale.max()) * UNIT * np.abs(value).max()).all()
    assert np.abs(output - sums).max() > 1


def test_pages_of_values_without_columns():
    pages = np.zeros((2, 1, 4, 8)), np.zeros((2, 1, 4, 0))
    output, lse = refattn.paged_attention_with_lse(
        np.zeros((1, 1, 1, 8)), *pages, block_table=[[0, 1]], kv_lengths=[5]
    )
    assert output.shape == (1, 1, 1, 0) and lse[0, 0, 0] == np.log(5)
