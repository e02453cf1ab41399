"""Factoring keys and values: what is stored, what is lost, and attention straight on the factors."""

import dataclasses
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

import refattn
from refattn.calls.options import WORDS, Sizes
from refattn.convert import factor_keys_values
from refattn.oracle.inputs.families import make_options

EPS = 2.0**-52
MODES = ("joint", "split")


def cache(*batch, heads=3, length=29, head_dim=7, v_head_dim=5, hidden=23, seed=0, head_axis=True):
    """Keys and values made, as in a model, from one hidden state per token."""
    rng = np.random.default_rng(seed)
    state = rng.standard_normal((*batch, 1, length, hidden))
    shapes = [(*batch, heads, hidden, width) for width in (head_dim, v_head_dim)]
    key, value = (state @ rng.standard_normal(shape) for shape in shapes)
    return (key, value) if head_axis else (key[..., 0, :, :], value[..., 0, :, :])


def matrix(heads):
    """(K, S, D) -> (S, K * D), written out head by head."""
    return np.concatenate(list(heads), axis=-1)


def distance(factored, key, value):
    """Frobenius norm of what reconstruction misses, per batch entry."""
    got_key, got_value = factored.reconstruct()
    axes = tuple(range(-min(3, key.ndim), 0))
    return np.sqrt(((got_key - key) ** 2).sum(axis=axes) + ((got_value - value) ** 2).sum(axis=axes))


# ---- what is lost -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2, 3, 11, 22, 23, 28, 29])
def test_joint_is_the_best_approximation_of_its_rank(rank):
    key, value = cache(hidden=40)
    whole = np.concatenate([matrix(key), matrix(value)], axis=-1)
    left, singular_values, right = np.linalg.svd(whole, full_matrices=False)
    best = (left[:, :rank] * singular_values[:rank]) @ right[:rank]
    factored = factor_keys_values(key, value, rank)
    got_key, got_value = factored.reconstruct()
    got = np.concatenate([matrix(got_key), matrix(got_value)], axis=-1)
    np.testing.assert_allclose(got, best, rtol=0, atol=200 * EPS * singular_values[0])
    tail = np.sqrt(np.sum(singular_values[rank:] ** 2))
    np.testing.assert_allclose(
        factored.truncation_error, tail, rtol=1e-12, atol=200 * EPS * singular_values[0]
    )


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rank", [2, 5, 17, 29])
def test_truncation_error_is_the_singular_value_tail_and_the_distance(mode, rank, batch):
    key, value = cache(*batch, hidden=50)
    factored = factor_keys_values(key, value, rank, mode)
    assert np.shape(factored.truncation_error) == batch
    assert isinstance(factored.truncation_error, float) or batch
    scale = np.sqrt((key**2).sum() + (value**2).sum())
    np.testing.assert_allclose(
        distance(factored, key, value), factored.truncation_error, rtol=1e-10, atol=200 * EPS * scale
    )
    assert np.all(factored.truncation_error > 1e-3) or (mode == "joint" and rank == 29)
    for index in np.ndindex(batch):
        parts = (
            [np.concatenate([matrix(key[index]), matrix(value[index])], axis=-1)]
            if mode == "joint"
            else [matrix(key[index]), matrix(value[index])]
        )
        widths = (
            [rank] if mode == "joint" else [factored.key_latent.shape[-1], factored.value_latent.shape[-1]]
        )
        tails = [
            np.linalg.svd(part, compute_uv=False)[width:] for part, width in zip(parts, widths, strict=True)
        ]
        expected = np.sqrt(sum(np.sum(tail**2) for tail in tails))
        np.testing.assert_allclose(
            np.asarray(factored.truncation_error)[index], expected, rtol=1e-10, atol=200 * EPS * scale
        )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("hidden", [3, 12, 23, 60])
def test_joint_never_loses_more_than_split_at_equal_rank(seed, hidden):
    """Eckart and Young: the split approximation is one of the joint ones, with zeros in its
    up-projections.
    """
    key, value = cache(seed=seed, hidden=hidden)
    whole_norm = np.sqrt((key**2).sum() + (value**2).sum())
    strictly = 0
    for rank in range(2, 30):
        joint, split = (factor_keys_values(key, value, rank, mode) for mode in MODES)
        assert joint.rank == split.rank == rank
        assert joint.truncation_error <= split.truncation_error + 100 * EPS * whole_norm
        strictly += joint.truncation_error < 0.99 * split.truncation_error
    assert strictly >= 2


def test_joint_loses_less_at_equal_stored_size_in_a_long_cache():
    """Joint stores wider up-projections; with many tokens the latents decide, and split gets no
    further for it.
    """
    key, value = cache(length=1009, heads=2, head_dim=16, v_head_dim=16, hidden=48)
    for rank in (8, 16, 24, 32):
        joint = factor_keys_values(key, value, rank, "joint")
        near = [factor_keys_values(key, value, rank + more, "split") for more in (-1, 0, 1, 2)]
        largest = [split for split in near if split.stored_size <= joint.stored_size][-1]
        assert largest.rank in (rank, rank + 1)
        assert joint.truncation_error < largest.truncation_error


def test_a_shared_hidden_state_is_found_by_joint_and_missed_by_split():
    key, value = cache(heads=4, length=97, head_dim=13, v_head_dim=11, hidden=24)
    norm = np.sqrt((key**2).sum() + (value**2).sum())
    assert factor_keys_values(key, value, 24, "joint").truncation_error < 1e-13 * norm
    assert factor_keys_values(key, value, 24, "split").truncation_error > 0.1 * norm
    assert factor_keys_values(key, value, 48, "split").truncation_error < 1e-13 * norm


@pytest.mark.parametrize(
    "shape",
    [dict(heads=1), dict(heads=3), dict(length=5), dict(head_dim=1, v_head_dim=19), dict(head_axis=False)],
)
@pytest.mark.parametrize("mode", MODES)
def test_full_rank_is_exact_up_to_rounding(mode, shape):
    key, value = cache(hidden=60, **shape)
    heads = 1 if key.ndim == 2 else key.shape[0]
    length, key_width, value_width = key.shape[-2], heads * key.shape[-1], heads * value.shape[-1]
    full = (
        min(length, key_width + value_width)
        if mode == "joint"
        else min(length, key_width) + min(length, value_width)
    )
    factored = factor_keys_values(key, value, full, mode)
    assert factored.truncation_error == 0.0
    got_key, got_value = factored.reconstruct()
    assert got_key.shape == key.shape and got_value.shape == value.shape
    bound = 50 * EPS * np.sqrt((key**2).sum() + (value**2).sum())
    assert np.abs(got_key - key).max() < bound and np.abs(got_value - value).max() < bound


def test_split_gives_each_side_half_and_the_rest_to_the_side_that_can_use_it():
    key, value = cache(heads=1, length=29, head_dim=16, v_head_dim=3)
    widths = {
        rank: tuple(latent.shape[-1] for latent in (f.key_latent, f.value_latent))
        for rank in range(2, 20)
        for f in [factor_keys_values(key, value, rank, "split")]
    }
    assert (widths[2], widths[3], widths[6], widths[7], widths[19]) == (
        (1, 1),
        (2, 1),
        (3, 3),
        (4, 3),
        (16, 3),
    )
    assert factor_keys_values(value, key, 19, "split").key_latent.shape[-1] == 3


# ---- what is stored ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", range(1, 13))
def test_stored_size_and_pays_off_follow_the_formula(rank):
    length, head_dim, v_head_dim = 32, 12, 8
    key, value = cache(length=length, head_dim=head_dim, v_head_dim=v_head_dim, head_axis=False, heads=1)
    joint = factor_keys_values(key, value, rank)
    assert joint.stored_size == rank * (length + head_dim + v_head_dim)
    assert joint.dense_size == length * (head_dim + v_head_dim)
    assert joint.pays_off == (rank * (length + 20) < length * 20)  # up to rank 12
    if rank >= 2:
        split = factor_keys_values(key, value, rank, "split")
        rank_k, rank_v = split.key_latent.shape[-1], split.value_latent.shape[-1]
        assert split.stored_size == rank_k * (length + head_dim) + rank_v * (length + v_head_dim)


@pytest.mark.parametrize("rank, pays", [(8, True), (9, False), (12, False)])
def test_one_matrix_pays_below_r_s_plus_d(rank, pays):
    """32 x 12, the size the overview's formula was tried on: r (32 + 12) < 32 * 12 holds up to r = 8."""
    assert (rank * (32 + 12) < 32 * 12) == pays
    key, value = cache(length=32, head_dim=12, v_head_dim=12, head_axis=False, heads=1)
    split = factor_keys_values(key, value, 2 * rank, "split")
    assert (split.stored_size, split.dense_size, split.pays_off) == (2 * rank * 44, 2 * 384, pays)


def test_untruncated_compresses_nothing():
    key, value = cache(length=32, head_dim=12, v_head_dim=12, hidden=40, head_axis=False, heads=1)
    left, singular_values, right = np.linalg.svd(key, full_matrices=False)
    assert left.size + singular_values.size + right.size == 540 > key.size == 384
    for mode in MODES:
        whole = factor_keys_values(key, value, 24, mode)
        assert whole.truncation_error == 0.0
        assert whole.stored_size > whole.dense_size and not whole.pays_off


def test_sizes_count_every_batch_entry_and_one_joint_latent_once():
    one, three = (factor_keys_values(*cache(*batch), 4) for batch in ((), (3,)))
    assert three.stored_size == 3 * one.stored_size and three.dense_size == 3 * one.dense_size
    assert one.stored_size == 4 * (29 + 3 * (7 + 5))
    assert one.key_latent is one.value_latent


def test_heads_apart_when_they_are_a_batch_axis():
    key, value = cache(heads=3)
    together, apart = factor_keys_values(key, value, 6), factor_keys_values(key[:, None], value[:, None], 6)
    assert together.key_latent.shape == (29, 6) and apart.key_latent.shape == (3, 29, 6)
    for head in range(3):
        alone = factor_keys_values(key[head], value[head], 6)
        np.testing.assert_allclose(apart.truncation_error[head], alone.truncation_error, rtol=1e-12)


# ---- attention on the factors -----------------------------------------------------------------------------

ROWS = 13
OPTIONS = {
    "plain": {},
    **{
        word: make_options((word,), np.random.default_rng(5), Sizes((), 6, ROWS, 29, 7), np.float64)
        for word in WORDS
    },
    "offset": dict(causal=True, q_offset=-3),
    "empty": dict(kv_lengths=0),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", OPTIONS)
def test_attention_on_the_factors_is_attention_on_what_they_stand_for(name, mode):
    key, value = cache(hidden=50)
    query = np.random.default_rng(9).standard_normal((6, ROWS, 7))  # two query heads per key/value head
    factored = factor_keys_values(key, value, 10, mode)
    output, lse = factored.attention_with_lse(query, **OPTIONS[name])
    expected, expected_lse = refattn.attention_with_lse(query, *factored.reconstruct(), **OPTIONS[name])
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-12 * max(1.0, np.abs(value).max()))
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-12, atol=1e-12)
    assert output.dtype == np.float64 and output.shape == (6, ROWS, 5)
    if name == "plain":
        np.testing.assert_array_equal(factored.attention(query), output)
        assert (
            np.abs(output - refattn.attention(query, key, value)).max() > 1e-3
        )  # rank 10 does lose something
        wrong = factored.attention(query, scale=1 / np.sqrt(factored.key_latent.shape[-1]))
        assert np.abs(wrong - expected).max() > 1e-3  # the latent's width is not the head's


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_attention_at_full_rank_is_attention_on_the_cache(batch):
    key, value = cache(*batch)
    query = np.random.default_rng(9).standard_normal((*batch, 3, ROWS, 7))
    factored = factor_keys_values(key, value, 29)
    np.testing.assert_allclose(
        factored.attention(query, causal=True),
        refattn.attention(query, key, value, causal=True),
        rtol=0,
        atol=1e-11,
    )


def test_attention_of_keys_without_a_head_axis():
    key, value = cache(heads=1, head_axis=False)
    query = np.random.default_rng(9).standard_normal((4, ROWS, 7))
    factored = factor_keys_values(key, value, 12)
    np.testing.assert_allclose(
        factored.attention(query), refattn.attention(query, key[None], value[None]), rtol=0, atol=1e-11
    )


@pytest.mark.parametrize("form", ["absorb", "expand"])
def test_joint_factors_are_the_arrays_of_latent_attention(form):
    key, value = cache(heads=4)
    query = np.random.default_rng(9).standard_normal((4, ROWS, 7))
    factored = factor_keys_values(key, value, 9)
    no_rope = np.zeros((4, ROWS, 0)), np.zeros((29, 0))
    output = refattn.latent_attention(
        query,
        no_rope[0],
        factored.key_latent,
        no_rope[1],
        factored.w_uk,
        factored.w_uv,
        form=form,
        causal=True,
    )
    np.testing.assert_allclose(
        factored.attention(query, causal=True), output, rtol=0, atol=1e-12 * np.abs(value).max()
    )


def test_attention_does_not_rebuild_the_keys():
    rng = np.random.default_rng(0)
    state = rng.standard_normal((1, 1024, 4))
    key, value = (state @ rng.standard_normal((16, 4, 32)) for _ in range(2))
    factored = factor_keys_values(key, value, 4)
    query = rng.standard_normal((16, 1, 32))
    factored.attention(query)  # imports and caches out of the way
    tracemalloc.start()
    factored.attention(query)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < key.nbytes / 2


# ---- inputs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_any_float_dtype_and_strides(dtype):
    key, value = (array.astype(dtype) for array in cache())
    expected = factor_keys_values(key, value, 5).reconstruct()[0]
    odd = np.asfortranarray(key)[:, ::-1][:, ::-1]
    np.testing.assert_array_equal(factor_keys_values(odd, value, 5).reconstruct()[0], expected)
    assert expected.dtype == np.float64


def test_no_batch_entries_and_extreme_sizes_are_fine():
    empty = factor_keys_values(np.zeros((0, 3, 4, 5)), np.zeros((0, 3, 4, 5)), 2)
    assert empty.truncation_error.shape == (0,) and empty.reconstruct()[0].shape == (0, 3, 4, 5)
    key, value = (array * 1e300 for array in cache())
    assert 1e290 < factor_keys_values(key, value, 5).truncation_error < np.inf
    assert factor_keys_values(np.zeros((4, 3)), np.zeros((4, 3)), 2).truncation_error == 0.0


def test_the_result_cannot_be_reassigned():
    with pytest.raises(dataclasses.FrozenInstanceError):
        factor_keys_values(*cache(), 5).mode = "split"


KEY, VALUE = np.ones((2, 5, 4)), np.ones((2, 5, 3))


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (
            (KEY, VALUE, 0),
            ValueError,
            "rank must be from 1 to 5 for mode='joint' and these shapes; got rank=0.",
        ),
        (
            (KEY, VALUE, -1),
            ValueError,
            "rank must be from 1 to 5 for mode='joint' and these shapes; got rank=-1.",
        ),
        (
            (KEY, VALUE, 6),
            ValueError,
            "rank must be from 1 to 5 for mode='joint' and these shapes; got rank=6.",
        ),
        (
            (KEY, VALUE, 1, "split"),
            ValueError,
            "rank must be from 2 to 10 for mode='split' and these shapes; got rank=1.",
        ),
        (
            (KEY, VALUE, 11, "split"),
            ValueError,
            "rank must be from 2 to 10 for mode='split' and these shapes; got rank=11.",
        ),
        ((KEY, VALUE, 2.0), TypeError, "rank must be an integer; got rank=2.0 of type float."),
        ((KEY, VALUE, True), TypeError, "rank must be an integer; got rank=True of type bool."),
        ((KEY, VALUE, None), TypeError, "rank must be an integer; got rank=None of type NoneType."),
        ((KEY, VALUE, 2, "both"), ValueError, "mode must be 'joint' or 'split'; got mode='both'."),
        (
            (KEY.astype(int), VALUE, 2),
            TypeError,
            "key must be float16, bfloat16, float32 or float64; got key.dtype=int64.",
        ),
        (
            (KEY, VALUE > 0, 2),
            TypeError,
            "value must be float16, bfloat16, float32 or float64; got value.dtype=bool.",
        ),
        ((KEY, "value", 2), TypeError, "value must be"),
        (
            (KEY[0, 0], VALUE[0, 0], 1),
            ValueError,
            "key must have at least 2 axes, the last ones (length, dim); got key.shape=(4,).",
        ),
        (
            (KEY, VALUE[0], 2),
            ValueError,
            "key and value must have the same shape up to their last axis; got key.shape=(2, 5, 4), "
            "value.shape=(5, 3).",
        ),
        (
            (KEY, VALUE[:1], 2),
            ValueError,
            "key and value must have the same shape up to their last axis; got key.shape=(2, 5, 4), "
            "value.shape=(1, 5, 3).",
        ),
        (
            (KEY, VALUE.transpose(1, 0, 2), 2),
            ValueError,
            "key and value must have the same shape up to their last axis; got key.shape=(2, 5, 4), "
            "value.shape=(5, 2, 3). The layout is (..., heads, length, dim).",
        ),
        (
            (KEY[:, :0], VALUE[:, :0], 1),
            ValueError,
            "key must have at least one head, token and column to factor; got key.shape=(2, 0, 4).",
        ),
        (
            (KEY, VALUE[..., :0], 1),
            ValueError,
            "value must have at least one head, token and column to factor; got value.shape=(2, 5, 0).",
        ),
        (
            (KEY * np.nan, VALUE, 2),
            ValueError,
            "key must be finite to be factored; got NaN or infinity. Cut a cache at its length first.",
        ),
        (
            (KEY, VALUE * np.inf, 2),
            ValueError,
            "value must be finite to be factored; got NaN or infinity. Cut a cache at its length first.",
        ),
    ],
)
def test_bad_input_is_refused(arguments, error, message):
    with pytest.raises(error) as caught:
        factor_keys_values(*arguments)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "query, error, message",
    [
        (
            np.ones((2, 4)),
            ValueError,
            "query must have at least 3 axes, the last ones (heads, length, dim); got query.shape=(2, 4).",
        ),
        (
            np.ones((1, 2, 3, 4)),
            ValueError,
            "query must have the batch axes of the factored keys and values; got query.shape=(1, 2, 3, 4), "
            "batch axes ().",
        ),
        (
            np.ones((3, 1, 4)),
            ValueError,
            "num_heads must be a multiple of num_kv_heads, both at least 1; got query heads 3, key heads 2.",
        ),
        (
            np.ones((2, 1, 3)),
            ValueError,
            "query and key must have the same head_dim >= 1; got query head_dim 3, key head_dim 4.",
        ),
        (
            np.ones((2, 1, 4), int),
            TypeError,
            "query must be float16, bfloat16, float32 or float64; got query.dtype=int64.",
        ),
    ],
)
def test_bad_queries_are_refused(query, error, message):
    with pytest.raises(error) as caught:
        factor_keys_values(KEY, VALUE, 2).attention(query)
    assert str(caught.value).startswith(message)


def test_scipy_is_imported_by_the_call_only():
    program = (
        "import sys, refattn.convert\n"
        "print('scipy' in sys.modules)\n"
        "import numpy; refattn.convert.factor_keys_values(numpy.ones((3, 2)), numpy.ones((3, 2)), 1)\n"
        "print('scipy' in sys.modules)"
    )
    assert subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split() == ["False", "True"]
