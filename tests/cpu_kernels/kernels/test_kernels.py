"""cpu_kernels over the whole table of cases, within the derived bound of the reference; what holds
bit for bit.
"""

import numpy as np
import pytest
from cases import CASES, Case, Sizes
from kernel_checks import FUNCTIONS, assert_right

import refattn
from cpu_kernels import (
    attention,
    attention_with_lse,
    grouped_query_attention,
    latent_attention,
    merge_states,
    multi_head_attention,
    multi_head_latent_attention,
    multi_query_attention,
    num_threads,
)

# Long enough for several items, key splits and joins; every size a prime or off by one from a tile.
LARGE = [
    Case("long-prefill", sizes=Sizes((2,), 2, 2, 331, 331, 64, 64), options={"causal": True}),
    Case("long-decode", sizes=Sizes((1,), 1, 3, 1, 8191, 64, 80), options={"sinks": "heads"}),
    Case(
        "long-window",
        sizes=Sizes((), 1, 2, 3, 4099, 17, 33),
        options={"window": (3001, 5), "q_offset": 4000, "softcap": 5.0},
    ),
    Case("long-packed", "packed_attention", Sizes((7,), 2, 2, 211, 1999, 32, 31), {"causal": True}),
    Case(
        "long-paged",
        "paged_attention",
        Sizes((3,), 1, 4, 2, 4096, 48, 48, page_size=16),
        {"kv_lengths": "array", "causal": True},
    ),
    Case(
        "long-absorb",
        "latent_attention",
        Sizes((1,), 1, 16, 1, 4001, v_head_dim=37, nope_dim=32, rope_dim=16, latent_dim=128),
        {"form": "absorb"},
    ),
    Case(
        "long-expand",
        "latent_attention",
        Sizes((1,), 1, 5, 129, 257, v_head_dim=37, nope_dim=32, rope_dim=16, latent_dim=64),
        {"form": "expand", "causal": True},
    ),
    Case(
        "long-block",
        "block_local_attention",
        Sizes((2,), 1, 2, 499, 499, 64, 64, block_size=103),
        {"causal": True},
    ),
]


@pytest.mark.sample(4)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case, dtype):
    arrays, options = case.build(dtype)
    output, lse = assert_right(case.function, arrays.values(), options, dtype)
    assert output.dtype == lse.dtype == np.dtype(dtype)


@pytest.mark.sample(3)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_threads_give_the_same_bits(case, dtype):
    arrays, options = case.build(dtype)
    output, lse = assert_right(case.function, arrays.values(), options, dtype)
    for count in (1, 2, 3, 7):
        with num_threads(count):
            again = FUNCTIONS[case.function](*arrays.values(), **options)
        assert np.array_equal(again[0], output) and np.array_equal(again[1], lse), count


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    "id", ["plain", "causal-True", "paged-11x20-1", "latent-1-11x17-1-absorb", "block-5-3", "packed-11x17-1"]
)
def test_narrow_types_are_widened(id, name):
    case = next(case for case in CASES if case.id == id)
    arrays, options = case.build(name)
    output, lse = FUNCTIONS[case.function](*arrays.values(), **options)
    wide = [array.astype(np.float32) for array in arrays.values()]
    options = {key: value.astype(np.float32) if key == "bias" else value for key, value in options.items()}
    expected, expected_lse = FUNCTIONS[case.function](*wide, **options)
    first = next(iter(arrays.values()))
    assert output.dtype == first.dtype and lse.dtype == np.float32
    assert np.array_equal(output, expected.astype(first.dtype)) and np.array_equal(lse, expected_lse)


def test_without_lse_the_same_output():
    arrays, options = CASES[0].build("float32")
    assert np.array_equal(
        attention(*arrays.values(), **options), attention_with_lse(*arrays.values(), **options)[0]
    )


def test_named_entry_points():
    rng = np.random.default_rng(3)
    query, key = rng.normal(size=(6, 5, 4)), {heads: rng.normal(size=(heads, 7, 4)) for heads in (1, 3, 6)}
    for function, heads in (
        (multi_head_attention, 6),
        (multi_query_attention, 1),
        (grouped_query_attention, 3),
    ):
        assert np.array_equal(
            function(query, key[heads], key[heads], causal=True),
            attention(query, key[heads], key[heads], causal=True),
        )
    for function in (multi_head_attention, multi_query_attention):
        with pytest.raises(ValueError) as ours:
            function(query, key[3], key[3])
        with pytest.raises(ValueError) as theirs:
            getattr(refattn, function.__name__)(query, key[3], key[3])
        assert str(ours.value) == str(theirs.value)
    arrays, options = next(case for case in CASES if case.function == "latent_attention").build("float64")
    assert np.array_equal(
        multi_head_latent_attention(*arrays.values(), **options),
        latent_attention(*arrays.values(), **options),
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_merged_parts_are_the_whole(dtype):
    rng = np.random.default_rng(5)
    query, key, value = (rng.normal(size=(2, 3, n, d)).astype(dtype) for n, d in ((5, 8), (31, 8), (31, 11)))
    pieces = [(query, key[:, :, a:b], value[:, :, a:b]) for a, b in ((0, 7), (7, 7), (7, 31))]
    outputs, lses = zip(*(attention_with_lse(*piece) for piece in pieces))
    output, lse = merge_states(outputs, lses)
    exact, exact_lse = refattn.attention_with_lse(query, key, value)
    assert output.dtype == dtype and lse.dtype == dtype
    roundoff, size = np.finfo(dtype).eps / 2, np.abs(value).max()
    seen = [
        (part, refattn.attention_with_lse(*piece))
        for part, piece in zip(zip(outputs, lses), pieces)
        if piece[1].size
    ]
    of_output, of_lse = (
        np.max([np.abs(part[i] - exactly[i]) for part, exactly in seen], axis=0) for i in (0, 1)
    )
    # An lse off by d scales its part's weight by exp(d), and the total by as much the other way; then each
    # part is weighted and added: 2 roundings.
    assert (
        np.abs(output - exact)
        <= of_output + (np.expm1(2 * of_lse)[..., None] + 2 * len(pieces) * roundoff) * size
    ).all()
    # The lse of the whole is off by no more than the worst of its parts', and by exp, sum and log of the
    # merge.
    assert (
        np.abs(lse - exact_lse) <= of_lse + (len(pieces) + 4) * roundoff * np.maximum(1, np.abs(exact_lse))
    ).all()
    expected = refattn.merge_states(outputs, lses)
    assert (
        np.abs(output - expected[0]).max() <= 8 * roundoff * size
        and np.abs(lse - expected[1]).max() <= 4 * roundoff * np.abs(lse).max()
    )


def test_merge_of_nothing_seen():
    output, lse = merge_states(
        [np.full((1, 2, 3), np.nan, np.float32)] * 2, [np.full((1, 2), -np.inf, np.float32)] * 2
    )
    assert (output == 0).all() and (lse == -np.inf).all()
