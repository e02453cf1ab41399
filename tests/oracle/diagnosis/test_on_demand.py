"""Keys and values made on demand are those that NumPy makes, and predictions do not depend on them."""

import numpy as np
import pytest

from refattn.oracle.bounds.results import LSE, OUTPUT
from refattn.oracle.diagnosis.hypotheses import single_hypotheses
from refattn.oracle.mistakes import wrong_kernel
from refattn.oracle.mistakes.wrong_kernel import checked_call, run_form
from refattn.oracle.simulated import on_demand
from refattn.oracle.simulated.on_demand import OnDemand, TooLargeError
from refattn.oracle.simulated.staged import Sample

RNG = np.random.default_rng(0)
ARRAY = RNG.standard_normal((3, 4, 5, 6))
HEADS, ROWS = np.array([[2], [0]]), np.array([[4, 4, 1], [0, 2, 3]])
CHANGES = {
    "heads in another order": lambda x: x[..., [3, 3, 0, 1], :, :],
    "slices": lambda x: x[1:, ::2, 1:-1, 2:5],
    "one sequence for all": lambda x: np.broadcast_to(x[:1], x.shape),
    "one head for all": lambda x: np.broadcast_to(x[..., 1:2, :, :], x.shape),
    "rows moved": lambda x: np.roll(x, 1, axis=-2),
    "dims moved": lambda x: np.roll(x, 2, axis=-1),
    "rows added": lambda x: np.concatenate([x, np.zeros((3, 4, 2, 6))], axis=-2),
    "dims exchanged": lambda x: np.concatenate([x[..., 2:], x[..., :2]], axis=-1),
    "factors": lambda x: x * np.arange(4.0)[:, None, None],
    "rows of each head": lambda x: x[..., HEADS, ROWS, :],
    "two changes": lambda x: np.roll(x[..., [1, 0], :, :], -1, axis=-2)[..., :3],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changes_are_those_of_numpy(change):
    lazy, want = change(OnDemand.of(ARRAY)), change(ARRAY)
    assert isinstance(lazy, OnDemand)
    assert (lazy.shape, lazy.dtype, lazy.ndim, lazy.size) == (want.shape, want.dtype, want.ndim, want.size)
    some = np.ix_([1, 0], [0, want.shape[1] - 1])
    np.testing.assert_array_equal(lazy[some], want[some])
    np.testing.assert_array_equal(np.asarray(lazy), want)
    np.testing.assert_array_equal(lazy[1], want[1])


def test_what_is_never_held_as_a_whole_is_refused():
    projected = OnDemand((3, 4, 5, 6), np.float64, lambda n, k: ARRAY[np.ix_(n, k)])
    for use in (np.asarray, np.sum, lambda x: np.repeat(x, 2, axis=-2)):
        with pytest.raises(TooLargeError, match="must be asked for by heads"):
            use(projected)
    np.testing.assert_array_equal(np.repeat(OnDemand.of(ARRAY), 2, axis=-2), np.repeat(ARRAY, 2, axis=-2))


def normal(*shape):
    return RNG.standard_normal(shape)


def dense():
    return (normal(2, 6, 3, 8), normal(2, 3, 70, 8), normal(2, 3, 70, 8)), {"causal": True}


def latent():
    rank = 10
    arrays = normal(2, 4, 3, 8), normal(2, 4, 3, 4), normal(2, 70, rank), normal(2, 70, 4)
    return (*arrays, normal(4, 8, rank), normal(4, 6, rank)), {"form": "expand", "causal": True}


@pytest.mark.parametrize("make", [dense, latent])
def test_every_mistake_is_predicted_as_with_all_heads(monkeypatch, make):
    arrays, options = make()
    checked = checked_call(*arrays, **options)
    given = {OUTPUT: np.zeros(checked.output_shape), LSE: np.zeros(checked.lse_shape)}
    heads = np.array([0, 3])
    hypotheses = list(single_hypotheses(checked, given, tiles=(16,)))
    predict = lambda: [
        run_form(
            checked_call(*arrays, **options),
            *hypothesis.mistakes,
            tile=hypothesis.tile,
            samples=[Sample(np.array([1]), heads, np.array([0, 2]))],
            with_size=True,
        )
        for hypothesis in hypotheses
    ]
    wanted = predict()
    for module in (on_demand, wrong_kernel):
        monkeypatch.setattr(module, "LARGE", 0)
    refused = 0
    for hypothesis, want, got in zip(hypotheses, wanted, predict(), strict=True):
        refused += got is None and want is not None
        if want is None or got is None:
            assert want is None or hypothesis.id.endswith("swapped"), hypothesis.id
            continue
        for one, two in zip(got[0], want[0], strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-9, err_msg=hypothesis.id)
    assert len(hypotheses) > 40 and refused <= (make is latent) * 3


def test_scores_are_shared_by_runs_that_have_the_same_ones_only():
    """The second run on a sample has other scores, values or visibility."""
    arrays, options = dense()
    sample = Sample(np.array([0]), np.array([1, 4]), np.array([1, 2]))
    kinds = (
        {},
        {"scale": 0.7},
        {"q_offset": 3},
        {"softcap": 1.5},
        {"bias": normal(3, 70)},
        {"sinks": normal(6)},
        {"kv_lengths": 31},
    )
    run = lambda own, shared: run_form(
        checked_call(*arrays, **options | own), tile=16, samples=[shared], with_size=True
    )
    for own in kinds:
        fresh = Sample(sample.sequences, sample.heads, sample.rows)
        for one, two in zip(run(own, sample)[0], run(own, fresh)[0], strict=True):
            np.testing.assert_array_equal(one, two)
