"""diagnose: its time is kept at any size, its numbers fit any head ratio, and no warning of NumPy
leaves it.
"""

import time
import warnings
from itertools import count, product

import ml_dtypes
import numpy as np
import pytest

import refattn
from refattn.oracle.arithmetic.spec import KernelSpec, kernel_spec
from refattn.oracle.bounds.results import OUTPUT
from refattn.oracle.diagnosis import budget as budget_module
from refattn.oracle.diagnosis.budget import Budget
from refattn.oracle.diagnosis.evidence import Evidence
from refattn.oracle.diagnosis.parameter_fits import fitted_hypotheses
from refattn.oracle.diagnosis.samples import choose_samples
from refattn.oracle.diagnosis.search import Search, diagnose
from refattn.oracle.diagnosis.tell_apart import probes
from refattn.oracle.inputs.families import FAMILIES, Sizes, attention_inputs
from refattn.oracle.mistakes.catalogue import BY_ID
from refattn.oracle.mistakes.mutants import staged_kernel
from refattn.oracle.mistakes.wrong_kernel import checked_call
from refattn.oracle.simulated.staged import run_stages
from refattn.oracle.verdict.check import check

RNG = np.random.default_rng(0)


class TestBudget:
    def test_a_unit_starts_only_if_the_last_ones_like_it_fit(self):
        now = [0.0]
        budget = Budget(10, lambda: now[0])

        def work(seconds):
            now[0] += seconds
            return seconds

        assert budget.attempt("fit", "fits", work, 4.0) == 4.0
        assert budget.attempt("fit", "fits", work, 4.0) == 4.0
        assert budget.attempt("fit", "fits", work, 1.0) is None and budget.unfinished == ["fits"]
        assert budget.attempt("look", "looks", work, 1.0) == 1.0  # of another kind
        assert budget.attempt("fit", "fits", work, 0.5, size=0.25) == 0.5
        with budget.keeping(0.5):
            assert budget.left == 0.25
        assert budget.left == 0.5


def paged_problem(sequences, longest, heads=8, kv_heads=2, dim=64):
    """Query, pages, table and lengths; sequences of different lengths, none a multiple of the page."""
    lengths = np.linspace(longest // 3, longest, sequences).astype(int) | 1
    pages = -(-lengths // 16)
    table = np.zeros((sequences, pages.max()), np.int64)
    order = np.split(RNG.permutation(pages.sum()), np.cumsum(pages)[:-1])
    for row, own in zip(table, order, strict=True):
        row[: len(own)] = own
    key_pages, value_pages = (
        RNG.standard_normal((pages.sum(), kv_heads, 16, dim), dtype=np.float32) for _ in "kv"
    )
    query = RNG.standard_normal((sequences, heads, 1, dim), dtype=np.float32)
    return (query, key_pages, value_pages), {"block_table": table, "kv_lengths": lengths}


def small_problem():
    arrays = tuple(
        RNG.standard_normal((2, heads, length, 16), dtype=np.float32)
        for heads, length in ((4, 9), (2, 200), (2, 200))
    )
    return arrays, {}


PROBLEMS = {
    "small": small_problem,
    "paged": lambda: paged_problem(5, 700),
    "many": lambda: paged_problem(40, 300),
}


class TestTimeIsKept:
    """By a clock that counts runs of the staged kernel as a second each, whatever the machine does."""

    @pytest.mark.sample(3)
    @pytest.mark.parametrize("make", PROBLEMS.values(), ids=PROBLEMS)
    @pytest.mark.parametrize("seconds", [3, 40, 400])
    def test_by_a_counting_clock(self, monkeypatch, make, seconds):
        arrays, options = make()
        runs, units = [0], []

        def counted(*arguments, **named):
            runs[0] += 1
            return run_stages(*arguments, **named)

        monkeypatch.setattr("refattn.oracle.mistakes.wrong_kernel.run_stages", counted)
        function = refattn.paged_attention if options else refattn.attention
        wrong = function(*arrays, **options).astype(np.float32)
        wrong += RNG.standard_normal(wrong.shape, dtype=np.float32) / 50
        budget = Budget(seconds, lambda: float(runs[0]))
        inner = budget.run

        def measured(*arguments, **named):
            before = runs[0]
            result = inner(*arguments, **named)
            units.append(runs[0] - before)
            return result

        budget.run = measured
        found = Search(arrays, options, {OUTPUT: wrong}, None, None, None, lambda line: None, budget).run(
            True
        )
        assert runs[0] <= 1.2 * seconds + 4 * max(units), (
            runs[0],
            max(units),
        )  # a first unit of each kind may be of any size
        assert found.unfinished and "ended the search" in str(found) and found.to_dict()["unfinished"]

    def test_a_unit_of_work_is_bounded_in_the_number_of_sequences(self):
        sizes = []
        for sequences in (10, 100):
            arrays, options = paged_problem(sequences, 300)
            samples = choose_samples(checked_call(*arrays, **options), 2**15)
            sizes.append(sum(not sample.left_out for sample in samples))
        assert sizes[0] == sizes[1] < 10

    @pytest.mark.parametrize(
        ("mistake", "change"), [("page_tail_seen", {}), ("scale_other", {"scale": 1.01 / 8})]
    )
    def test_the_answer_on_a_large_problem_is_right(self, mistake, change):
        arrays, options = paged_problem(6, 2049, heads=32, kv_heads=8)
        changed = (
            {**options, **change}
            if change
            else {**options, "kv_lengths": -(-options["kv_lengths"] // 16) * 16}
        )
        found = diagnose(
            refattn.paged_attention(*arrays, **changed).astype(np.float32), *arrays, seconds=20, **options
        )
        assert found.best.explains and mistake in {found.best.id, *found.best.same_as}, str(found)

    def test_one_wrong_sequence_of_many_is_looked_at(self):
        arrays, options = paged_problem(16, 900)
        wrong = refattn.paged_attention(*arrays, **options).astype(np.float32)
        wrong[11] *= 2
        assert diagnose(wrong, *arrays, seconds=2, **options).verdict != "agrees"


RATIOS = [(3, 3), (6, 3), (12, 3), (5, 5), (10, 5), (2, 1), (8, 2), (7, 7), (28, 4)]


class TestHeadRatios:
    """Numbers fitted for each key head, on probes of other numbers of heads."""

    @pytest.mark.sample(5)
    @pytest.mark.parametrize(("heads", "kv_heads"), RATIOS)
    @pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["float32", "bfloat16"])
    @pytest.mark.parametrize("what", ["scale", "keys", "values"])
    def test_every_fit_on_every_probe(self, heads, kv_heads, dtype, what):
        lengths = ((heads, 5), (kv_heads, 17), (kv_heads, 17))
        query, key, value = (RNG.standard_normal((2, n, length, 8)).astype(dtype) for n, length in lengths)
        ratios = np.linspace(0.5, 2, kv_heads)[:, None, None]
        keys, values = (
            array * (ratios if what == name else 1.0) for name, array in (("keys", key), ("values", value))
        )
        scale = (1.01 if what == "scale" else 1.0) * 8**-0.5
        output = refattn.attention(
            query.astype(np.float64), keys.astype(np.float64), values.astype(np.float64), scale=scale
        ).astype(dtype)
        form = checked_call(query, key, value)
        spec = KernelSpec.eager(np.dtype(dtype))
        fits = fitted_hypotheses(Evidence(form, {OUTPUT: output}, spec, choose_samples(form)), Budget(1e9))
        names = {"scale": "scale_other", "keys": "scale_per_key_head", "values": "output_factor_per_head"}
        name = (
            names[what]
            if kv_heads > 1
            else {"keys": "scale_other", "values": "output_factor"}.get(what, "scale_other")
        )
        assert any(fit.hypothesis.id == name and fit.explains for fit in fits), [
            (fit.hypothesis.id, fit.used) for fit in fits
        ]
        for probe, fit in product(probes(form), fits):
            self.predict(probe, fit.hypothesis, spec, kv_heads)

    def predict(self, probe, hypothesis, spec, kv_heads):
        form = checked_call(*probe.inputs.arrays, **probe.inputs.options)
        evidence = Evidence(form, {OUTPUT: np.zeros(form.output_shape)}, spec, choose_samples(form))
        predicted = evidence.predicted(hypothesis)
        own = hypothesis.mistakes[0].fitted_kv_heads in (0, form.num_kv_heads)
        assert (predicted is not None) == own, probe.words

    @pytest.mark.parametrize(
        "other",
        ["heads_all_first", "heads_repeated_along_keys", "keys_heads_and_rows_swapped", "value_head_first"],
    )
    def test_together_with_mistakes_that_change_the_heads(self, other):
        query, key, value = (RNG.standard_normal((1, n, 6, 8)) for n in (6, 3, 3))
        form = checked_call(query, key, value)
        output = refattn.attention(query, key * np.array([1, 2, 3.0])[:, None, None], value)
        evidence = Evidence(form, {OUTPUT: output}, kernel_spec("float32"), choose_samples(form))
        for fit in fitted_hypotheses(evidence, Budget(1e9)):
            for mistakes in (
                (BY_ID[other], *fit.hypothesis.mistakes),
                (*fit.hypothesis.mistakes, BY_ID[other]),
            ):
                assert evidence.screen(type(fit.hypothesis)(mistakes)) >= 0

    def test_a_kernel_that_is_run_on_other_heads(self):
        query, key, value = (
            RNG.standard_normal((2, n, length, 8)).astype(ml_dtypes.bfloat16)
            for n, length in ((3, 5), (3, 17), (3, 17))
        )

        def kernel(query, key, value, **options):
            wide = (array.astype(np.float64) for array in (query, key, value))
            return refattn.attention(*wide, **{**options, "scale": 1.01 * query.shape[-1] ** -0.5}).astype(
                query.dtype
            )

        assert diagnose(kernel, query, key, value, spec="eager bfloat16", seconds=10).verdict in (
            "explained",
            "agrees",
        )


def hostile(arrays, options):
    """Calls with infinities and NaN where a caller may have them, by name."""
    query, key, value = arrays
    bias = np.where(RNG.random((*query.shape[:-1], key.shape[-2])) < 0.3, -np.inf, 1.0).astype(query.dtype)
    bias[..., 0] = 0
    yield "as it is", arrays, options
    yield "bias of -inf", arrays, {**options, "bias": bias}
    bias = bias.copy()
    bias[..., 1, :] = -np.inf
    yield "a row of -inf", arrays, {**options, "bias": bias}
    for name, at, fill in (
        ("infinite key", 1, np.inf),
        ("NaN in a query", 0, np.nan),
        ("infinite value", 2, -np.inf),
        ("NaN in a value", 2, np.nan),
    ):
        changed = [array.copy() for array in arrays]
        changed[at][..., 1, 0] = fill
        yield name, tuple(changed), options
    largest = 60.0 if query.dtype.itemsize == 2 else 1e12
    yield "huge scores", (query * query.dtype.type(largest), key * key.dtype.type(largest), value), options


HOSTILE_OPTIONS = (
    (),
    ("causal", "bias"),
    ("mask", "sinks"),
    ("lengths", "alibi"),
    ("softcap", "two-sided window"),
    ("dropout",),
)
WRONG = ("bias_sign", "scale_omitted", "output_doubled", "causal_top_left", "lse_base_two", "noise")


@pytest.mark.sample(3)
@pytest.mark.parametrize("family", FAMILIES)
def test_no_warning_leaves_check_and_diagnose(family):
    """Families, options, hostile arrays, dtypes and mistakes in turn; the seed of each family picks
    others.
    """
    sizes, turn = Sizes(2, 6, 3, 5, 21, 8, 8), count(len(family))
    dtypes = (np.float32, ml_dtypes.bfloat16, np.float64, np.float16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for names in HOSTILE_OPTIONS:
            dtype = dtypes[next(turn) % 4]
            with np.errstate(all="ignore"):
                inputs = attention_inputs(family, names, sizes=sizes, dtype=dtype)
                calls = [*hostile(inputs.arrays, inputs.options)]
            for _, arrays, options in (calls[next(turn) % len(calls)], calls[1]):
                wrong = WRONG[next(turn) % len(WRONG)]
                with np.errstate(all="ignore"):
                    output, lse = staged_kernel(*([] if wrong == "noise" else [BY_ID[wrong]]))(
                        *arrays, **options
                    )
                    output = (
                        output + RNG.standard_normal(output.shape).astype(output.dtype)
                        if wrong == "noise"
                        else output
                    )
                check(output, *arrays, lse=lse, **options)
                diagnose(output, *arrays, lse=lse, seconds=0.3, **options)


def test_a_biased_call_in_which_mistakes_subtract_infinities():
    bias = np.where(RNG.random((2, 4, 9, 33)) < 0.3, -np.inf, 1.0)
    bias[..., 0] = 0
    query, key, value = (RNG.standard_normal((2, n, length, 8)) for n, length in ((4, 9), (2, 33), (2, 33)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wrong = refattn.attention(query, key, value, bias=-np.where(np.isfinite(bias), bias, 0))
        diagnose(wrong, query, key, value, bias=bias, seconds=4)


def test_the_kernel_runs_under_the_callers_settings():
    seen = []

    def kernel(query, key, value, **options):
        seen.append(np.geterr())
        return refattn.attention(query, key, value, **{**options, "scale": 1.0})

    arrays = tuple(RNG.standard_normal((1, 2, 5, 8)) for _ in range(3))
    with np.errstate(over="raise", invalid="warn"):
        settings = np.geterr()
        diagnose(kernel, *arrays, seconds=3)
    assert all(own == settings for own in seen) and len(seen) > 0


def test_the_default_clock_is_monotonic():
    assert Budget(1).clock is time.monotonic and budget_module.FADING < 1
