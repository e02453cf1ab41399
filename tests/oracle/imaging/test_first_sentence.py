"""The first sentence is true: neither a curve that proves nothing, nor a copy of itself, nor a key that there
is not.
"""

import numpy as np
import pytest

import refattn
from refattn.oracle import check
from refattn.oracle.imaging.xray import xray

F32 = np.float32
RNG = np.random.default_rng(0)
Q, K, V = (RNG.standard_normal(shape).astype(F32) for shape in ((2, 24, 16), (2, 40, 16), (2, 40, 16)))
OF_KEY = (np.random.default_rng(5).standard_normal(64) * 0.3).astype(F32)
DISTANCE = np.arange(24)[:, None] + 16 - np.arange(40)


def attention(q, k, v, change=lambda s: s, softmax_over=-1, **options):
    scores = change(q @ k.swapaxes(-1, -2) * F32(options.get("scale", q.shape[-1] ** -0.5)))
    weights = np.exp(scores - scores.max(softmax_over, keepdims=True))
    return ((weights / weights.sum(softmax_over, keepdims=True)) @ v).astype(F32)


def changed(change):
    return lambda q, k, v: attention(q, k, v, change)


def in_int8(x):
    largest = np.abs(x).max(-1, keepdims=True) / 127
    with np.errstate(all="ignore"):
        return (np.round(x / largest) * largest).astype(F32)


def in_float16(x):
    return x.astype(np.float16).astype(F32)


def columns_copied(q, k, v):
    output = attention(q, k, v)
    output[..., 8:] = output[..., :8]
    return output


def with_score(head, row, key):
    def change(s):
        s = s.copy()
        s[head, row, key] += F32(0.5)
        return s

    return changed(change)


SENTENCES = {
    "softmax over rows": (
        lambda q, k, v: attention(q, k, v, softmax_over=-2),
        ("Softmax is taken over the rows",),
        ("alone", "scores are wrong"),
    ),
    "softmax over heads": (
        lambda q, k, v: attention(q, k, v, softmax_over=0),
        ("Softmax is taken over the query heads",),
        ("alone",),
    ),
    "a number of each key": (
        changed(lambda s: s + OF_KEY[:40]),
        ("each key's score is off by a number of its own", "the same in all rows"),
        ("alone",),
    ),
    "a number of each distance": (
        changed(lambda s: s + OF_KEY[DISTANCE + 24]),
        ("depends on the distance of row and key alone",),
        ("components",),
    ),
    "a term of the distance": (
        changed(lambda s: s - F32(0.02) * np.sqrt(np.abs(DISTANCE)).astype(F32)),
        ("depends on the distance of row and key alone",),
        ("components",),
    ),
    "distances of keys that are squared": (
        lambda q, k, v: attention(q, k, v, lambda s: s - (k**2).sum(-1)[:, None, :] / F32(8)),
        ("the key's squared length",),
        (),
    ),
    "one score": (
        with_score(1, 17, 12),
        ("the score of key 12 is off by +0.5", "row 17 of query head 1"),
        ("stretch",),
    ),
    "columns that are copies": (
        columns_copied,
        ("columns 8 to 15", "0 to 7"),
        ("further on",),
    ),
    "negative output 0": (
        lambda q, k, v: np.maximum(attention(q, k, v), 0),
        ("cut off at 0", "from below"),
        ("not written",),
    ),
    "output 0": (lambda q, k, v: np.zeros_like(attention(q, k, v)), ("0",), ("cut off",)),
    "values in int8": (
        lambda q, k, v: attention(q, k, in_int8(v)),
        ("values are kept in int8, one scale a key", "also: Rows are NaN when rows of the values are all 0"),
        ("Rows are NaN. ",),
    ),
    "all in float16": (
        lambda q, k, v: attention(*map(in_float16, (q, k, v))),
        ("rounded to float16", "Values are rounded to float16"),
        ("tfloat32",),
    ),
}


@pytest.mark.parametrize("name", SENTENCES)
def test_the_sentence_is_true(name):
    kernel, words, never = SENTENCES[name]
    text = " ".join(xray(kernel, Q, K, V).text().split())
    for word in words:
        assert word.lower() in text.lower(), text
    for word in never:
        assert word.lower() not in text.lower(), text


def test_an_error_of_each_key_is_no_curve():
    """Numbers that are in no order of any kind are told as what they are, in every draw."""
    for seed in range(3):
        numbers = (np.random.default_rng(seed).standard_normal(40) * 0.2).astype(F32)
        assert "alone" not in xray(changed(lambda s, n=numbers: s + n), Q, K, V).text()


def test_a_row_is_no_copy_of_itself():
    q = (6 * Q).astype(np.float16)

    def eager(q, k, v):
        scores = (q @ k.swapaxes(-1, -2)) * np.float16(0.25)
        weights = np.exp((scores - scores.max(-1, keepdims=True)).astype(F32))
        return (weights / weights.sum(-1, keepdims=True)).astype(np.float16) @ v

    arrays = (q, K.astype(np.float16), V.astype(np.float16))
    assert not check(eager(*arrays), *arrays).passed
    assert "other rows" not in xray(eager, *arrays).text()


@pytest.mark.parametrize("which", [0, 1])
def test_nan_that_belongs_in_the_output_is_no_fault(which):
    arrays = [Q.copy(), K.copy(), V]
    arrays[which][0, 3, 2] = np.nan
    found = xray(lambda q, k, v: attention(q, k, v, scale=0.3), *arrays)
    assert "scale" in found.best.nature and "NaN" not in found.best.says, found.text()
    assert "do not see" not in found.text() and "see no key" not in found.text(), found.text()


def test_dropout_in_words():
    mask, options = np.random.default_rng(1).random((2, 24, 40)) < 0.8, {"dropout_rate": 0.2}
    rated = {"dropout_mask": mask, **options}
    without = xray(lambda q, k, v, **_: attention(q, k, v), Q, K, V, **rated)
    assert without.text().startswith("Dropout is not applied") and "before the softmax" not in without.text()
    kept = lambda q, k, v, **o: refattn.attention(q, k, v, **(o | {"dropout_rate": 0.0})).astype(F32)
    assert "not divided by 1 - dropout_rate" in xray(kept, Q, K, V, **rated).sentence


def test_keys_of_another_sequence_under_a_causal_limit():
    rng = np.random.default_rng(1)
    arrays = [
        rng.standard_normal(shape).astype(F32) for shape in ((3, 4, 20, 8), (3, 2, 20, 8), (3, 2, 20, 8))
    ]

    def kernel(q, k, v, causal):
        k = k.copy()
        k[1] = k[0]
        return refattn.attention(q, k, v, causal=causal).astype(F32)

    best = xray(kernel, *arrays, causal=True).best
    assert "sequence 1 reads the keys of sequence 0" in best.nature
    assert best.wrong == 4 * 19


def test_a_limit_that_is_lost_is_no_shift():
    def kernel(q, k, v, causal):
        output = refattn.attention(q, k, v, causal=True).astype(F32)
        output[..., 16:, :] = refattn.attention(q, k, v).astype(F32)[..., 16:, :]
        return output

    arrays = [RNG.standard_normal((2, 20, 8)).astype(F32) for _ in range(3)]
    text = xray(kernel, *arrays, causal=True).text()
    assert "is not applied" in text and "+3" not in text, text


def test_weights_on_other_sequences_are_not_a_rows_own():
    cu_q, cu_kv = np.array([0, 7, 20, 30]), np.array([0, 10, 26, 36])
    arrays = [RNG.standard_normal(shape).astype(F32) for shape in ((4, 30, 16), (2, 36, 16), (2, 36, 16))]

    def kernel(q, k, v, cu_q, cu_kv, causal):
        return refattn.attention(q, k, v, causal=True).astype(F32)

    found = xray(kernel, *arrays, cu_q=cu_q, cu_kv=cu_kv, causal=True)
    right = refattn.attention_steps(*arrays, causal=True).weights[:, 20:30, 26:36]
    np.testing.assert_allclose(found.weights[2, :, :10, :10], right, atol=1e-5)
