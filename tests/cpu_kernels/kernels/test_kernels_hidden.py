"""What is hidden never shows, whatever it holds; what is visible and not finite poisons exactly the
rows that see it.
"""

import numpy as np
import pytest
from cases import CASES, Case, Sizes
from kernel_checks import FUNCTIONS, assert_right

import cpu_kernels
import refattn
from refattn.oracle import KernelSpec, check

NOT_FINITE = [np.nan, np.inf, -np.inf]
HIDING = [
    Case("causal", sizes=Sizes((2,), 2, 2, 37, 41, 16, 19), options={"causal": True, "q_offset": 0}),
    Case("window", sizes=Sizes((2,), 1, 3, 101, 131, 8, 16), options={"window": (5, 3)}),
    Case("lengths", sizes=Sizes((3,), 1, 2, 5, 211, 8, 16), options={"kv_lengths": "array"}),
    Case("mask", sizes=Sizes((2,), 2, 2, 17, 23, 8, 7), options={"mask": "bhts"}),
    Case("bias", sizes=Sizes((2,), 2, 2, 17, 23, 8, 7), options={"bias": "bhts:inf"}),
    Case("split", sizes=Sizes((1,), 1, 2, 1, 4099, 8, 16), options={"window": (4000, 0)}),
]


def visible(case, arrays, options):
    """(batch, heads, rows, keys): where the reference gives weight to a key, every value finite."""
    flat = [np.zeros_like(arrays["query"]), np.zeros_like(arrays["key"]), arrays["value"]]
    return refattn.attention_steps(*flat, **options).weights > 0


@pytest.mark.sample(3)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("junk", NOT_FINITE, ids=str)
@pytest.mark.parametrize("case", HIDING, ids=str)
def test_hidden_keys_may_hold_anything(case, junk, dtype):
    arrays, options = case.build(dtype)
    clean = FUNCTIONS[case.function](*arrays.values(), **options)
    seen = visible(case, arrays, options)
    group = arrays["query"].shape[1] // arrays["key"].shape[1]
    unseen = ~seen.reshape(seen.shape[0], -1, group, *seen.shape[2:]).any(
        axis=(2, 3)
    )  # [batch, kv heads, keys]
    assert unseen.any() or case.id in ("mask", "bias")
    if case.id in ("mask", "bias"):  # hide a few keys from everybody
        name, hidden = case.id, np.arange(23) % 5 == 2
        options[name] = np.where(hidden, False if name == "mask" else -np.inf, options[name]).astype(
            options[name].dtype
        )
        clean, unseen = (
            FUNCTIONS[case.function](*arrays.values(), **options),
            np.broadcast_to(hidden, unseen.shape),
        )
    for name in ("key", "value"):
        arrays[name] = np.where(unseen[..., None], junk, arrays[name]).astype(dtype)
    dirty = FUNCTIONS[case.function](*arrays.values(), **options)
    assert np.array_equal(clean[0], dirty[0]) and np.array_equal(clean[1], dirty[1])


@pytest.mark.sample(3)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("junk", NOT_FINITE, ids=str)
@pytest.mark.parametrize("case", HIDING, ids=str)
def test_values_poison_the_rows_that_see_them(case, junk, dtype):
    """Some elements of some values: the columns and rows affected, and the errors elsewhere, are
    those of the reference.
    """
    arrays, options = case.build(dtype)
    rng = np.random.default_rng(1)
    value = arrays["value"]
    arrays["value"] = np.where(
        (rng.random(value.shape[:-1]) < 0.1)[..., None] & (rng.random(value.shape) < 0.3), junk, value
    ).astype(dtype)
    assert_right(case.function, arrays.values(), options, dtype)


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", ["key", "query"])
@pytest.mark.parametrize("case", HIDING, ids=str)
def test_nan_scores_poison_the_rows_that_see_them(case, name):
    arrays, options = case.build("float32")
    x = arrays[name]
    arrays[name] = np.where(
        (np.random.default_rng(2).random(x.shape[:-1]) < 0.05)[..., None], np.nan, x
    ).astype(np.float32)
    expected = refattn.attention_with_lse(*arrays.values(), **options)
    for ours, theirs in zip(FUNCTIONS[case.function](*arrays.values(), **options), expected):
        assert np.array_equal(np.isnan(ours), np.isnan(theirs))


def test_infinite_score():
    query, key = np.ones((1, 2, 1), np.float32), np.array([[[1.0], [np.inf], [2.0]]], np.float32)
    output, lse = FUNCTIONS["attention"](query, key, np.ones((1, 3, 2), np.float32), causal=True, q_offset=0)
    assert (output[0, 0] == 1).all() and np.isnan(output[0, 1]).all() and np.isnan(lse[0, 1])
    output, lse = FUNCTIONS["attention"](-query, key, np.ones((1, 3, 2), np.float32))
    assert (output == 1).all() and np.isfinite(lse).all()


def test_unused_pages_are_never_followed():
    case = next(case for case in CASES if case.id == "paged-11x20-1")
    arrays, options = case.build("float32")
    clean = FUNCTIONS["paged_attention"](*arrays.values(), **options)
    size = arrays["key_pages"].shape[2]
    used = -(-np.asarray(options["kv_lengths"]) // size)
    table = np.array(options["block_table"], np.int64)
    table[np.arange(table.shape[1]) >= used[:, None]] = 2**62
    live = np.unique(np.concatenate([row[:count] for row, count in zip(options["block_table"], used)]))
    for name in ("key_pages", "value_pages"):
        pages = np.full_like(arrays[name], np.nan)
        pages[live] = arrays[name][live]
        for row, length in zip(options["block_table"], options["kv_lengths"]):
            if length % size:
                pages[row[length // size], :, length % size :] = np.nan
        arrays[name] = pages
    dirty = FUNCTIONS["paged_attention"](*arrays.values(), **(options | {"block_table": table}))
    assert np.array_equal(clean[0], dirty[0]) and np.array_equal(clean[1], dirty[1])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kv_len", [2047, 2048, 4099])  # from 2048 keys on they are split
def test_infinities_stay_however_small_their_weight(kv_len, dtype):
    rng = np.random.default_rng(3)
    query, key, value = (rng.normal(size=(8, n, 16)).astype(dtype) for n in (1, kv_len, kv_len))
    value[:, 0, 0], value[:, 3, 1], value[:, 5, 2] = np.nan, np.inf, -np.inf
    output = cpu_kernels.attention(query, key, value, alibi_slopes=2.0 ** np.arange(-6, 2))
    expected = np.broadcast_to(np.array([np.nan, np.inf, -np.inf], dtype), (8, 1, 3))
    assert np.array_equal(output[..., :3], expected, equal_nan=True)
    assert np.isfinite(output[..., 3:]).all()


# -- infinite values: one contract for both packages --------------------------------------------------------

LARGEST = {"float32": 3e38, "float64": 1.7e308, "float16": 6e4}
COLUMNS = {  # elements of keys 1 and 2, and what they make of their column
    "inf": (np.inf, 1.0, np.inf),
    "-inf": (-np.inf, 1.0, -np.inf),
    "both": (np.inf, -np.inf, np.nan),
    "twice": (np.inf, np.inf, np.inf),
    "nan": (np.nan, 1.0, np.nan),
    "nan and inf": (np.inf, np.nan, np.nan),
}


def with_infinite_values(function, dtype, level, rows, keys, hidden):
    """Call of `function` in which keys 1 and 2 have values that are not finite and scores about
    `level` below the others; all other values are huge.
    """
    size = LARGEST[dtype]
    query, key, value = np.ones((2, rows, 16)), np.zeros((2, keys, 16)), np.full((2, keys, 16), size)
    key[:, 1:3, 0] = -level / 0.25
    for column, (first, second, _) in enumerate(COLUMNS.values()):
        value[:, 1, column], value[:, 2, column] = first, second
    options = {"scale": 0.25}
    if hidden == "mask":
        options["mask"] = ~np.isin(np.arange(keys), [1, 2])[None]
    elif hidden == "bias":
        options["bias"] = np.where(np.isin(np.arange(keys), [1, 2]), -np.inf, 0.0)[None]
    elif hidden == "dropout":
        options |= {
            "dropout_mask": np.broadcast_to(~np.isin(np.arange(keys), [1, 2]), (rows, keys)),
            "dropout_rate": 0.0,
        }
    elif hidden == "key":
        key[:, 1:3, 0] = -np.inf
    arrays = [x.astype(dtype) for x in (query, key, value)]
    if function == "packed_attention":
        options |= {"cu_q": [0, rows], "cu_kv": [0, keys]}
    elif function == "block_local_attention":
        options["block_size"] = keys
    elif function == "paged_attention":
        arrays = [arrays[0][None], *(x.reshape(2, keys // 8, 8, 16).swapaxes(0, 1) for x in arrays[1:])]
        options |= {"block_table": np.arange(keys // 8)[None], "kv_lengths": [keys]}
    return arrays, options


@pytest.mark.sample(5)
@pytest.mark.parametrize("hidden", [None, "mask", "bias", "dropout", "key"])
@pytest.mark.parametrize("level", [0.0, 50.0, 1.5e4])
@pytest.mark.parametrize("rows, keys", [(1, 8), (40, 40), (3, 2048)])  # 2048 keys are split
@pytest.mark.parametrize("dtype", LARGEST)
@pytest.mark.parametrize(
    "function", ["attention", "packed_attention", "paged_attention", "block_local_attention"]
)
def test_infinite_values_decide_their_column(function, dtype, rows, keys, level, hidden):
    """However small the weight, beside the largest finite values; not where the key is hidden, its
    score -inf, or its weight dropped.
    """
    if function == "block_local_attention" and rows != keys:
        pytest.skip("as many rows as keys")
    arrays, options = with_infinite_values(function, dtype, level, rows, keys, hidden)
    expected = np.full(16, LARGEST[dtype])
    if hidden is None:
        expected[: len(COLUMNS)] = [result for *_, result in COLUMNS.values()]
    if hidden == "dropout" and level == 0:
        expected *= (keys - 2) / keys
    with np.errstate(all="ignore"):
        theirs = getattr(refattn, f"{function}_with_lse")(*arrays, **options)
        ours = FUNCTIONS[function](*arrays, **options)
    for output, lse in (ours, theirs):
        assert (
            np.allclose(output.astype(float), expected, rtol=2e-3, equal_nan=True) and np.isfinite(lse).all()
        )
    if keys > 40:
        return
    verdicts = [
        check(
            output.astype(dtype), *arrays, spec=KernelSpec.cpu_kernels(dtype), function=function, **options
        )
        for output, _ in (ours, theirs)
    ]
    assert verdicts[0].failed == verdicts[1].failed and not verdicts[0].wrong, str(verdicts[0])


@pytest.mark.parametrize("module", [refattn, cpu_kernels], ids=lambda module: module.__name__)
@pytest.mark.parametrize("level", [0.0, 50.0, 1e4, 1e300])
def test_infinite_values_of_merged_states(module, level):
    lses = np.array([[0.0], [-level], [-level], [-np.inf]])
    outputs = np.full((4, 1, 8), 1.7e308)
    for column, (first, second, _) in enumerate(COLUMNS.values()):
        outputs[1, 0, column], outputs[2, 0, column], outputs[3, 0, column] = first, second, np.nan
    output, lse = module.merge_states(outputs, lses)
    expected = [*(result for *_, result in COLUMNS.values()), 1.7e308, 1.7e308]
    assert np.allclose(output[0], expected, rtol=1e-12, equal_nan=True) and np.isfinite(lse).all()
    lses[0] = np.nan
    assert np.isnan(module.merge_states(outputs, lses)[0]).all()


def test_infinite_latents_poison_alike():
    """A latent is part of the key, too: a score of +inf or NaN poisons its row, one of -inf hides the
    key.
    """
    rng = np.random.default_rng(7)
    shapes = ((2, 3, 4), (2, 3, 2), (9, 5), (9, 2), (2, 4, 5), (2, 6, 5))
    for junk in NOT_FINITE:
        arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
        arrays[2][4, 1] = junk
        for form in ("absorb", "expand"):
            options = {"form": form, "mask": np.array([[True] * 9, [True] * 9, [True] * 4 + [False] * 5])}
            ours, theirs = (
                FUNCTIONS["latent_attention"](*arrays, **options),
                refattn.latent_attention_with_lse(*arrays, **options),
            )
            for a, b in zip(ours, theirs):
                assert np.array_equal(np.isfinite(a), np.isfinite(b)) and np.isfinite(a[:, 2]).all()
