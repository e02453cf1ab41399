"""Weights told from the output of one call: what it shows is found, what it does not show is not claimed."""

import numpy as np
import pytest

from refattn.oracle.arithmetic.formats import round_to
from refattn.oracle.arithmetic.spec import kernel_spec
from refattn.oracle.bounds.results import OUTPUT
from refattn.oracle.imaging.compare import UNJUDGED, Ledgers
from refattn.oracle.imaging.estimate import Estimated
from refattn.oracle.imaging.region import Regions
from refattn.oracle.imaging.view import View

H, K, T, S, D = 4, 2, 40, 96, 32
HEAD, ROW, KEY = np.ogrid[:H, :T, :S]
SEEN = np.broadcast_to(KEY <= ROW + S - T, (H, T, S))


def arrays(seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in ((H, T, D), (K, S, D), (K, S, D))]


def scores(q, k, scale=D**-0.5):
    return np.float64(q) @ np.swapaxes(np.repeat(np.float64(k), H // K, 0), -1, -2) * scale


def softmax(score, times):
    """Weights of keys that count `times`, 0 for hidden ones."""
    score = np.where(times > 0, score, -np.inf)
    p = np.exp(score - score.max(-1, keepdims=True)) * times
    return p / p.sum(-1, keepdims=True)


def applied(weights, v):
    return weights @ np.repeat(np.float64(v), H // K, 0)


def estimated(call, output, spec="float32", **options):
    view = View(call, {"causal": True, **options})
    output = np.asarray(output, call[0].dtype).astype(np.float64)[None]
    return Estimated(view, output, None, kernel_spec(spec), seconds=60.0)


SETS = {
    "one key too many at the diagonal": SEEN | (ROW + S - T + 1 == KEY),
    "the last key of the row is missing": SEEN & (ROW + S - T != KEY),
    "no causal limit": np.ones((H, T, S)),
    "causal limit of the last of 16 rows": KEY <= ROW // 16 * 16 + 15 + S - T,
    "first keys missing": SEEN & (KEY >= 5),
    "a tile is missing": SEEN & (KEY // 16 != 2),
    "a tile counts twice": SEEN * np.where(KEY // 16 == 1, 2.0, 1.0),
    "one key counts 7 times": SEEN * np.where(KEY == 50, 7.0, 1.0),
    "every fifth key is missing": SEEN & (KEY % 5 != 2),
    "another limit in one head": np.where(HEAD == 2, KEY <= ROW + S - T - 3, SEEN),
    "keys of some rows": np.where(ROW % 8 == 3, SEEN & (KEY != 20) & (KEY != 31), SEEN),
}


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("seed", [0, 1])
def test_set_of_keys(name, seed):
    call = arrays(seed)
    true = softmax(scores(*call[:2]), np.broadcast_to(SETS[name], (H, T, S)).astype(float))
    reading = estimated(call, applied(true, call[2]))
    assert reading.wrong_rows.any() and not reading.unknown.any()
    known = reading.determined[0]
    assert known.mean() > 0.95
    assert np.abs(np.where(known, reading.weights[0] - true, 0)).max() < 1e-5
    # the ledgers find the pairs that are wrong, and only those
    wrong = np.abs(true - softmax(scores(*call[:2]), SEEN.astype(float))) > 0
    labels = Ledgers(reading).labels[0]
    assert not (labels[(true > 0) == SEEN] == 1).any()
    assert (labels[wrong & ((true > 0) != SEEN) & known] != 0).all()


def another_head(call):
    return softmax(scores(call[0], call[1][::-1]), SEEN.astype(float)), call[2][::-1]


SCORES = {
    "scaled products are 0.8": lambda call: (softmax(0.8 * scores(*call[:2]), SEEN.astype(float)), call[2]),
    "keys and values of another head": another_head,
    "components 16 and above": lambda call: (
        softmax(scores(call[0][..., :16], call[1][..., :16]), SEEN.astype(float)),
        call[2],
    ),
    "keys rounded to bfloat16": lambda call: (
        softmax(scores(call[0], round_to(call[1], "bfloat16")), SEEN.astype(float)),
        call[2],
    ),
    "values rounded to float8_e4m3fn": lambda call: (
        softmax(scores(*call[:2]), SEEN.astype(float)),
        round_to(call[2], "float8_e4m3fn"),
    ),
    "values of the key 1 before": lambda call: (
        softmax(scores(*call[:2]), SEEN.astype(float)),
        np.roll(call[2], 1, axis=1),
    ),
}


@pytest.mark.parametrize("words", SCORES)
def test_scores_and_sources(words):
    call = arrays(3)
    weights, value = SCORES[words](call)
    reading = estimated(call, applied(weights, value))
    assert reading.unknown.mean() < 0.05
    first = reading.findings(Regions(reading.view))[0]
    assert words in first.says and first.confident and first.verified


def test_factor_of_rows():
    call = arrays()
    times = np.where(ROW >= 30, 0.5, 1.0)
    reading = estimated(call, applied(softmax(scores(*call[:2]), SEEN.astype(float)) * times, call[2]))
    assert np.array_equal(reading.wrong_rows[0], np.broadcast_to(ROW[..., 0] >= 30, (H, T)))
    assert not reading.unknown.any()
    assert np.allclose(Ledgers(reading).sum[0], times[..., 0])


@pytest.mark.parametrize("form", ["float8_e4m3fn", "float8_e5m2", "bfloat16"])
def test_format_of_the_output(form):
    call = arrays()
    right = applied(softmax(scores(*call[:2]), SEEN.astype(float)), call[2])
    reading = estimated(call, round_to(np.float32(right), form))
    assert form in reading.findings(Regions(reading.view))[0].says
    assert not reading.unknown.any()


@pytest.mark.parametrize("size", [1e-3, 1.0])
def test_nothing_is_claimed_of_noise(size):
    call = arrays()
    right = applied(softmax(scores(*call[:2]), SEEN.astype(float)), call[2])
    rows = ROW[..., 0] // 10 == 1
    noise = size * np.random.default_rng(5).standard_normal(right.shape)
    reading = estimated(call, right + np.where(rows[..., None], noise, 0))
    assert np.array_equal(reading.unknown, reading.wrong_rows)
    assert np.array_equal(reading.unknown[0], np.broadcast_to(rows, (H, T)))
    assert np.array_equal(reading.weights, reading.view.weights)
    found = reading.findings(Regions(reading.view))
    assert found and not any(finding.confident for finding in found)
    assert found[-1].hit == found[-1].wrong == reading.unknown.sum() and found[-1].right_inside == 0


def test_right_result():
    call = arrays()
    reading = estimated(call, applied(softmax(scores(*call[:2]), SEEN.astype(float)), call[2]))
    assert not reading.wrong_rows.any() and not reading.explained


def test_weights_below_rounding_are_not_judged():
    call = arrays()
    call[1][:, 40] = call[1][:, 40] / np.abs(call[1][:, 40]).max() * 1e-3
    score = scores(*call[:2])
    bias = np.zeros((H, T, S), np.float32)
    bias[..., 40] = -60.0
    lost = softmax(score + bias, SEEN & (KEY != 40))
    reading = estimated(call, applied(lost, call[2]), bias=bias)
    assert not reading.wrong_rows.any()
    seen = SEEN[0, :, 40]
    assert not reading.determined[0, :, seen, 40].any()
    assert (Ledgers(reading).labels[0][:, seen, 40] == UNJUDGED).all()


def test_unknown_rows_are_located():
    """Keys whose weights are off by factors that no explanation gives: the keys are still named."""
    call = arrays()
    right = softmax(scores(*call[:2]), SEEN.astype(float))
    away = np.where(KEY % 4 == 3, np.random.default_rng(1).uniform(1.5, 3, (H, T, S)), 1.0)
    p = right * away
    reading = estimated(call, applied(p / p.sum(-1, keepdims=True), call[2]))
    assert reading.unknown.mean() > 0.9
    first = reading.findings(Regions(reading.view))[0]
    assert not first.confident and "tile of 4 keys" in first.place
    assert np.array_equal(first.region.any((0, 1, 2)), np.arange(S) % 4 == 3)


ELSEWHERE = {
    "the key is that of": lambda s, near: np.where(KEY >= 32, near, s),
    "scores with the products of query and key multiplied by ln 2": lambda s, near: np.where(
        KEY >= 48, s * np.log(2), s
    ),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_scores_of_some_keys(name):
    """Scores that are others from a key on: what they are, and which keys."""
    call = arrays()
    near = scores(call[0], np.roll(call[1], 16, axis=1))
    score = ELSEWHERE[name](scores(*call[:2]), near)
    reading = estimated(call, applied(softmax(score, SEEN.astype(float)), call[2]))
    [first, *_] = reading.findings(Regions(reading.view))
    assert not reading.unknown.any()
    assert name in first.nature.replace("The", "the") or name in first.nature
    assert first.hit == first.wrong and first.right_inside == 0


def test_one_cause_of_several_numbers():
    """A bias that is read further on, by another number of keys in each tile of rows: one finding."""
    call, rng = arrays(), np.random.default_rng(3)
    bias = rng.standard_normal((H, T, S)).astype(np.float32)
    back = np.where(ROW < 16, 0, np.where(ROW < 32, 8, 24))
    moved = np.take_along_axis(bias, np.broadcast_to(np.maximum(KEY - back, 0), bias.shape), -1)
    reading = estimated(
        call, applied(softmax(scores(*call[:2]) + moved, SEEN.astype(float)), call[2]), bias=bias
    )
    found = reading.findings(Regions(reading.view))
    assert not reading.unknown.any() and len(found) == 1
    assert "8 before" not in found[0].nature and "24" in found[0].note


def told(call, output, **options):
    """The only finding on an output."""
    reading = estimated(call, output, **options)
    [found] = reading.findings(Regions(reading.view))
    assert not reading.unknown.any() and found.confident
    return found


def test_columns_in_another_order():
    call = arrays()
    out = applied(softmax(scores(*call[:2]), SEEN.astype(float)), call[2])
    moved = np.where(ROW % 8 >= 4, np.roll(out, -8, axis=-1), out)
    found = told(call, moved)
    assert "(c + 8) % 32" in found.nature and "second half of its tile of 8 rows" in found.place


def test_result_of_another_row_is_added():
    call = arrays()
    out = applied(softmax(scores(*call[:2]), SEEN.astype(float)), call[2])
    out[:, 16:] += 0.5 * out[:, :-16]
    assert "another row beside its own, times 0.5" in told(call, out).nature


@pytest.mark.parametrize("what", ["keys", "values", "keys and values"])
def test_heads_that_start_elsewhere_in_memory(what):
    call = arrays()
    stored = [
        np.concatenate([array.reshape(K * S, -1)[7:], np.zeros((7, D), np.float32)]) for array in call[1:]
    ]
    k, v = (array.copy() for array in call[1:])
    for array, own, name in ((k, stored[0], "keys"), (v, stored[1], "values")):
        if name in what:
            array[0] = own.reshape(K, S, -1)[0]
    found = told(call, applied(softmax(scores(call[0], k), SEEN.astype(float)), v))
    assert f"the {what} of rows stored 7 further" in found.nature
    assert np.array_equal(np.flatnonzero(found.region[0].any((-1, -2))), [0, 1])


def test_products_of_few_bits():
    call = arrays()
    score = scores(*call[:2])
    score = score * (1 + 4e-4 * np.random.default_rng(0).standard_normal(score.shape))
    reading = estimated(call, applied(softmax(score, SEEN.astype(float)), call[2]))
    [first, *_] = reading.findings(Regions(reading.view))
    assert first.kind == "precision" and first.confident


def test_a_function_of_the_score():
    call = arrays()
    score = scores(*call[:2])
    found = told(call, applied(softmax(score + 0.1 * score**3, SEEN.astype(float)), call[2]))
    assert "a function of the score" in found.nature and " at " in found.nature


def exchanged(k, times):
    """Keys whose two halves are exchanged where `times` is odd."""
    half = np.concatenate([k[..., D // 2 :], k[..., : D // 2]], -1)
    return np.where((times % 2 == 1)[:, None], half, k)


CLASSES = {
    "a tile in the middle": lambda q, k: np.where(
        KEY // 16 == 2, scores(q, np.roll(k, 16, axis=1)), scores(q, k)
    ),
    "every second key": lambda q, k: np.where(KEY % 2 == 1, np.log(2), 1.0) * scores(q, k),
    "halves of some keys": lambda q, k: scores(q, exchanged(k, np.arange(S) // 4)),
}
SAID = {
    "a tile in the middle": "The key is that of the key 16 before",
    "every second key": "multiplied by ln 2",
    "halves of some keys": "chunk c of 16 is read at c ^ x, x = 0, 0, 0, 0, 1, 1, 1, 1 by key % 8",
}


@pytest.mark.parametrize("name", CLASSES)
def test_scores_of_classes_of_keys(name):
    call = arrays()
    found = told(call, applied(softmax(CLASSES[name](*call[:2]), SEEN.astype(float)), call[2]))
    assert SAID[name] in found.says and found.hit == found.wrong and not found.right_inside


def test_keys_before_the_sequence():
    """A packed call whose second sequence also sees the last keys of the first."""
    rng = np.random.default_rng(5)
    q, k, v = (
        rng.standard_normal(shape).astype(np.float32) for shape in ((H, 20, D), (K, 44, D), (K, 44, D))
    )
    starts = np.array([0, 8, 20]), np.array([0, 20, 44])
    more = np.where(np.arange(20) < 8, 0, 4)
    seen = (np.arange(44) >= np.where(np.arange(20) < 8, 0, 20)[:, None] - more[:, None]) & (
        np.arange(44) < np.where(np.arange(20) < 8, 20, 44)[:, None]
    )
    out = applied(softmax(scores(q, k), np.broadcast_to(seen, (H, 20, 44)).astype(float)), v)
    view = View([q, k, v], {"cu_q": starts[0], "cu_kv": starts[1]})
    reading = Estimated(view, view.cut(OUTPUT, out.astype(np.float32)), None, kernel_spec("float32"), 60.0)
    [found] = reading.findings(Regions(view))
    assert "right before their own" in found.nature and "sequence 1 sees 4 keys" in found.note


def test_merged_with_another_row():
    call = arrays()
    weights = softmax(scores(*call[:2]), SEEN.astype(float))
    other = np.roll(weights, 8, axis=1)
    weights[:, 16:] = 0.7 * weights[:, 16:] + 0.3 * other[:, 16:]
    found = told(call, applied(weights, call[2]))
    assert "merged" in found.nature and "row -8" in found.note


def test_another_softcap():
    call = arrays()
    capped = 3.0 * np.tanh(scores(*call[:2]) / 3.0)
    found = told(call, applied(softmax(capped, SEEN.astype(float)), call[2]), softcap=2.0)
    assert "the softcap is 3, it should be 2" in found.nature


def paged(seed=2, dims=(D, 24)):
    """A paged call of two sequences in pages of 8 keys, and the softmax of one of them over other pools."""
    rng = np.random.default_rng(seed)
    query = rng.standard_normal((2, H, 2, D)).astype(np.float32)
    pools = [rng.standard_normal((10, K, 8, dim)).astype(np.float32) for dim in dims]
    table = np.array([[3, 8, 1, 4], [7, 2, 9, 0]])

    def output(keys, values):
        k, v = (np.swapaxes(pool[table], 1, 2).reshape(2, K, 32, -1) for pool in (keys, values))
        score = np.float64(query) @ np.swapaxes(np.repeat(np.float64(k), H // K, 1), -1, -2) * D**-0.5
        return softmax(score, np.ones(score.shape)) @ np.repeat(np.float64(v), H // K, 1)

    return [query, *pools], {"block_table": table, "kv_lengths": np.array([32, 32])}, output


def told_of_pages(call, options, output):
    view = View(call, options)
    reading = Estimated(
        view, view.cut(OUTPUT, output.astype(np.float32)), None, kernel_spec("float32"), 60.0
    )
    assert not reading.unknown.any()
    return reading.findings(Regions(view))[0].says


def test_layouts_of_pages():
    call, options, output = paged()
    keys, values = call[1:]
    vectors = np.swapaxes(keys.reshape(10, K, 8, D // 4, 4), 2, 3).reshape(10, K, -1)
    read = np.swapaxes(vectors.reshape(10, K, D // 8, 8, 8), 2, 3).reshape(keys.shape)
    says = told_of_pages(call, options, output(read, values))
    assert "keys are read from memory" in says and "read with 8 instead" in says
    at = np.arange(10)[:, None, None, None] * K * 8 * D + np.arange(K)[:, None, None] * 8 * 24
    at = at + np.arange(8)[:, None] * 24 + np.arange(24)
    says = told_of_pages(call, options, output(keys, values.reshape(-1)[at % values.size]))
    assert "strides of pages as if they had 32 columns in place of 24" in says
