"""check_kernel: correct kernels pass, each kind of misbehaviour is named, and what a kernel lacks is
skipped.
"""

import numpy as np
import pytest

import refattn
from refattn.calls.options import WORDS
from refattn.calls.registry import ATTENTION
from refattn.oracle import check_kernel
from refattn.oracle.arithmetic.spec import KernelSpec
from refattn.oracle.harness.bench import Bench
from refattn.oracle.harness.callables import KernelCall
from refattn.oracle.harness.head_sizes import HeadDims
from refattn.oracle.harness.identities import IDENTITIES, State, use_of_allowance
from refattn.oracle.inputs.families import every_option
from refattn.oracle.mistakes.mutants import correct_kernel, mutants
from refattn.oracle.simulated.emulated import EmulatedKernel

FUNCTIONS = ("attention", "packed_attention", "paged_attention", "latent_attention", "block_local_attention")


def right(query, key, value, **options):
    """A correct float32 kernel."""
    return correct_kernel()(query, key, value, **options)


def status(report):
    return {outcome.id: outcome.status for outcome in report.outcomes}


# correct kernels pass


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_reference_passes(function):
    report = check_kernel(
        getattr(refattn, f"{function}_with_lse"), function=function, spec="float64", only="s: "
    )
    assert report.passed, report.text()
    assert report.count("pass", "strides") == 7


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_an_emulated_low_precision_kernel_passes(dtype):
    pytest.importorskip("ml_dtypes")
    spec = KernelSpec.flash(dtype)
    report = check_kernel(EmulatedKernel(spec), spec=spec, only="reference: normal s")
    assert report.passed, report.text()
    assert report.settings["dtype"] == dtype


def test_an_output_only_kernel_passes_and_skips_the_merge():
    def kernel(query, key, value, *, causal=False):
        return right(query, key, value, causal=causal)[0]

    report = check_kernel(kernel, only="identities")
    assert report.passed, report.text()
    found = status(report)
    assert (
        found["identities: split and merged"] == "skip"
        and found["identities: keys past the length"] == "skip"
    )
    assert "no lse" in report.text() and "no kv_lengths" in report.text()


# what is broken is found, in the section that is about it


def failing(kernel, only, **options):
    report = check_kernel(kernel, only=only, diagnose=False, **options)
    assert not report.passed
    return "\n".join(outcome.words for outcome in report.failures)


def test_a_kernel_that_changes_its_input():
    def kernel(query, key, value, **options):
        query *= 1.0 + 1e-7
        return right(query, key, value, **options)

    assert "query was changed" in failing(kernel, "guards")


def test_a_kernel_that_reads_past_the_last_row():
    def kernel(query, key, value, **options):
        longer = np.lib.stride_tricks.as_strided(
            key, (*key.shape[:-2], key.shape[-2] + 1, key.shape[-1]), key.strides
        )
        bias = (
            np.float32(1e-30) * longer[..., -1:, :1].mean()
        )  # one number past the end, with hardly any weight
        output, lse = right(query, key, value, **options)
        return output + bias, lse

    assert "positions" in failing(kernel, "strides: padded")


def test_a_kernel_that_writes_past_its_output():
    def kernel(query, key, value, *, out=None):
        result = right(query, key, value)[0].astype(np.float32)
        if out is not None:
            out[...] = result
            np.lib.stride_tricks.as_strided(out.reshape(-1), (out.size + 1,), (4,))[-1] = 0.0
            return out
        return result

    assert "guard bytes around out" in failing(kernel, "guards: out=")


def test_a_kernel_that_ignores_out():
    assert "out does not hold" in failing(
        lambda query, key, value, out=None: right(query, key, value)[0].astype(np.float32), "guards: out="
    )


def test_out_that_is_filled_and_not_returned_is_fine():
    def kernel(query, key, value, *, out=None):
        result = right(query, key, value)[0].astype(np.float32)
        if out is None:
            return result
        out[...] = result

    assert check_kernel(kernel, only="guards: out=").passed


def test_a_kernel_that_cannot_do_without_out():
    def kernel(query, key, value, out):
        out[...] = right(query, key, value)[0]

    report = check_kernel(kernel, skip=("repeatable", ": tiles", ": hidden tiles", "together"))
    assert (
        report.passed and report.count("pass", "reference") > 10 and report.count("pass", "guards") == 2
    ), report.text()

    def short(query, key, value, *, out):
        out[..., :-1] = right(query, key, value)[0][..., :-1]

    assert "positions" in failing(short, "strides: padded")


def test_a_kernel_that_is_not_repeatable():
    rng = np.random.default_rng(0)

    def kernel(query, key, value, **options):
        output, lse = right(query, key, value, **options)
        return output * np.float32(1 + 1e-7 * rng.integers(0, 2)), lse

    assert "called again" in failing(kernel, "repeatable")


def test_a_kernel_that_reads_hidden_slots():
    def kernel(query, key, value, **options):
        output, lse = right(query, key, value, **options)
        return output + np.float32(0) * key.mean(), lse

    assert "positions" in failing(kernel, "hidden slots")


def test_a_kernel_for_contiguous_arrays_only():
    def kernel(query, key, value, **options):
        flat = np.lib.stride_tricks.as_strided(key, key.shape, np.empty(key.shape, key.dtype).strides)
        return right(query, flat, value, **options)

    found = status(check_kernel(kernel, only="strides: sliced", diagnose=False))
    assert found == {"strides: sliced": "FAIL"}


def tiled(array, heads):
    """Heads 0, 1, 0, 1, ... where they should be 0, 0, 1, 1."""
    return np.take(array, np.arange(heads) % array.shape[1], axis=1)


def one_key_more(query, key, value, kv_lengths=None, **options):
    return right(query, key, value, kv_lengths=None if kv_lengths is None else kv_lengths + 1, **options)


@pytest.mark.parametrize(
    "name, broken",
    [
        (
            "permuted keys",
            lambda q, k, v, **o: right(
                q, k, v * np.linspace(1, 1.001, k.shape[-2], dtype=v.dtype)[:, None], **o
            ),
        ),
        ("shifted logits", lambda q, k, v, **o: right(q, np.clip(k, -1, 1), v, **o)),
        ("split and merged", lambda q, k, v, **o: (lambda s: (s[0], s[1] / np.log(2)))(right(q, k, v, **o))),
        (
            "prefill and decode",
            lambda q, k, v, **o: right(q, k, v, **o, q_offset=0) if o.get("causal") else right(q, k, v, **o),
        ),
        ("causal prefix", lambda q, k, v, **o: right(q, k, v, **{**o, "causal": False})),
        (
            "group and repeated heads",
            lambda q, k, v, **o: right(q, tiled(k, q.shape[1]), tiled(v, q.shape[1]), **o),
        ),
        ("one head at a time", lambda q, k, v, **o: right(q, k, v[:, ::-1], **o)),
        ("one sequence at a time", lambda q, k, v, **o: right(q, np.broadcast_to(k[:1], k.shape), v, **o)),
        ("keys past the length", one_key_more),
        ("causal as a mask", lambda q, k, v, mask=None, **o: right(q, k, v, **o)),
    ],
)
def test_every_identity_of_attention_catches_something(name, broken):
    assert "times what their bounds allow" in failing(broken, f"identities: {name}")


def test_identities_of_the_other_forms_catch_something():
    packed, paged = correct_kernel("packed_attention_with_lse"), correct_kernel("paged_attention_with_lse")

    def joined(query, key, value, cu_q, cu_kv):
        return packed(
            query,
            key,
            value,
            cu_q=cu_q,
            cu_kv=np.minimum(cu_kv + (cu_kv > 0) * (len(cu_kv) > 2), key.shape[-2]),
        )

    def latent(*arrays, form="absorb", **options):
        return refattn.latent_attention_with_lse(
            *arrays, form=form, scale=0.1 if form == "absorb" else 0.1001, **options
        )

    def drifting(q_nope, q_rope, kv_latent, *others):
        growing = np.linspace(1, 1.01, kv_latent.shape[-2], dtype=np.float32)[:, None]
        return refattn.latent_attention_with_lse(q_nope, q_rope, kv_latent * growing, *others)

    local = refattn.block_local_attention_with_lse
    wrong = {
        "packed_attention": joined,
        "paged_attention": lambda q, k, v, block_table, kv_lengths: paged(
            q, k, v, block_table=np.sort(block_table), kv_lengths=kv_lengths
        ),
        "latent_attention": latent,
        "block_local_attention": lambda q, k, v, block_size, causal=False: local(
            q, k, v, block_size=block_size + (k.shape[-2] > 20), causal=causal
        ),
    }
    for function, kernel in wrong.items():
        name = next(i.name for i in IDENTITIES if i.function == function)
        assert "bounds allow" in failing(kernel, f"identities: {name}", function=function)
    assert "bounds allow" in failing(drifting, "permuted latents", function="latent_attention")


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    "function, word",
    [
        (form.function, names[0])
        for form in ATTENTION
        for names in every_option(form)
        if names and WORDS[names[0]][0].default is None
    ],
)
def test_every_option_is_tried_with_the_value_that_changes_nothing(function, word):
    correct = correct_kernel(f"{function}_with_lse")

    def kernel(*arrays, **options):
        output, lse = correct(*arrays, **options)
        return output + (WORDS[word][0].name in options), lse

    only = f"identities: neutral {word}"
    assert check_kernel(correct, function=function, only=only).passed
    assert "times what their bounds allow" in failing(kernel, only, function=function)


@pytest.mark.parametrize("make", [KernelSpec.flash, KernelSpec.eager])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_neutral_values_that_the_formats_hold(make, dtype):
    """A softcap that caps nothing is infinite in float16."""
    spec = make(dtype)
    report = check_kernel(EmulatedKernel(spec), spec=spec, dtype=dtype, only="identities: neutral")
    skipped = [id for id, word in status(report).items() if word == "skip"]
    narrow = dtype == "float16" and make == KernelSpec.eager
    assert report.passed and skipped == ["identities: neutral softcap"] * narrow, report.text()


def test_mutants_of_every_form_are_caught_by_the_quick_level():
    missed = []
    for function in FUNCTIONS[:4]:
        for mutant in mutants(f"{function}_with_lse")[::20]:
            if (
                not mutant.random
                and check_kernel(
                    mutant, function=function, only="reference", diagnose=False, max_failures=1
                ).passed
            ):
                missed.append(mutant.id)
    assert missed == []


def test_large_numbers_stand_in_for_nan_where_the_kernel_does_not_hide_it():
    def multiplies(query, key, value, **options):
        output, lse = right(query, key, value, **options)
        return output + np.float32(0) * value.sum(), lse

    strict = check_kernel(multiplies, only="hidden slots", diagnose=False)
    assert strict.count("FAIL") == 4 and "hides_nan=False" in strict.text()
    assert check_kernel(multiplies, only="hidden slots", hides_nan=False).count("pass") == 4
    one_past = lambda query, key, value, kv_lengths=None, **options: right(
        query,
        key,
        value,
        kv_lengths=None if kv_lengths is None else np.minimum(kv_lengths + 1, key.shape[-2]),
        **options,
    )
    assert "hard" in failing(one_past, "past kv_lengths", hides_nan=False)


def test_max_failures_stops_the_run():
    report = check_kernel(
        lambda query, key, value: 1.01 * right(query, key, value)[0],
        only="reference",
        max_failures=2,
        diagnose=False,
    )
    assert len(report.failures) == 2 and report.outcomes[-1].status == "FAIL"


def test_an_exception_is_a_failure_and_not_implemented_is_a_skip():
    def kernel(query, key, value, *, window=None, softcap=None):
        if window is not None:
            raise NotImplementedError("windows come next year")
        if softcap is not None:
            raise RuntimeError("kernel image is invalid")
        return right(query, key, value)

    report = check_kernel(kernel, only="reference", diagnose=False)
    found = status(report)
    assert found["reference: normal left window"] == "skip" and found["reference: wide softcap"] == "FAIL"
    assert found["reference: normal"] == "pass" and found["reference: normal bias"] == "skip"
    assert "windows come next year" in report.text() and "kernel image is invalid" in report.text()


def test_supports_is_taken_from_the_argument_the_attribute_or_the_signature():
    def kernel(query, key, value, causal=False, softcap=None):
        return right(query, key, value, causal=causal, softcap=softcap)

    assert KernelCall(kernel).supports == {"causal", "softcap"}
    assert KernelCall(kernel, supports=["causal"]).supports == {"causal"}
    kernel.supports = {"softcap"}
    assert KernelCall(kernel).supports == {"softcap"}
    assert "window" in KernelCall(right).supports
    assert (
        KernelCall(kernel, supports={"dropout"}).unsupported({"dropout_mask": 1, "dropout_rate": 0.1}) == ""
    )
    with pytest.raises(ValueError, match="supports must hold names"):
        check_kernel(kernel, supports={"rope"})


def test_level_full_adds_random_calls_of_what_is_supported():
    def kernel(query, key, value, *, causal=False):
        return right(query, key, value, causal=causal)

    benches = [
        Bench(
            KernelCall(kernel),
            KernelSpec.flash("float32"),
            np.dtype(np.float32),
            None,
            HeadDims(None, ()),
            (),
            0,
            level,
        )
        for level in ("quick", "full")
    ]
    quick, full = ([test.id for test in bench.tests()] for bench in benches)
    assert {*quick} <= {*full} and len(full) > 1.5 * len(quick) and len({*full}) == len(full)
    report = check_kernel(kernel, level="full", only=", random 1")
    assert report.passed and report.count("skip") == 0 and report.count("pass", "reference") == 11


def test_a_kernel_built_for_one_head_size():
    def kernel(query, key, value, *, causal=False, scale=None):
        if query.shape[-1] != 64 or value.shape[-1] != 64:
            raise RuntimeError("built for 64")
        return right(query, key, value, causal=causal, scale=scale)

    report = check_kernel(kernel, head_dims=64, max_failures=1, skip=(": tiles", ": hidden tiles"))
    assert report.passed and report.count("pass") > 50, report.text()
    assert not check_kernel(kernel, head_dims="any", max_failures=1, diagnose=False, only="e: normal").passed
    for function in ("packed_attention", "paged_attention"):
        sized = getattr(refattn, f"{function}_with_lse")
        assert check_kernel(sized, function=function, head_dims=(32, 16), spec="float64", only="s: ").passed
    ignoring = lambda query, key, value: right(
        query, np.concatenate([key[..., :63], key[..., :1]], axis=-1), value
    )
    assert "hard" in failing(ignoring, "strides: padded", head_dims=64)


def test_what_is_asked_to_be_skipped_is_listed():
    report = check_kernel(right, only="strides", skip=("reversed", "read-only"))
    assert report.count("skip") == 2 and "skipped 2: as asked" in report.text() and report.passed


def test_no_rows_and_no_keys():
    report = check_kernel(right, level="full", only=", no ")
    assert report.passed and report.count("pass", "reference") == 6, report.text()


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ({"level": "slow"}, ValueError, "level must be one of quick, full"),
        ({"function": "conv"}, ValueError, "function must be one of"),
        ({"dialect": "tensorrt"}, ValueError, "dialect must be one of"),
        (
            {"dialect": "torch", "function": "packed_attention"},
            ValueError,
            "function must be attention for dialect torch",
        ),
        ({"form": "both"}, ValueError, "form must be"),
        ({"only": "nothing like it"}, ValueError, "only must be part of"),
        ({"only": ["reference: norma"]}, ValueError, "or a list of names"),
        ({"only": 3}, TypeError, "only must be a string or a list"),
        ({"skip": "hidden"}, TypeError, "skip must be a sequence"),
        ({"head_dims": 0}, ValueError, "head_dims must be"),
        ({"head_dims": 64, "function": "latent_attention"}, ValueError, "head_dims must be None"),
        ({"supports": "causal"}, TypeError, "supports must be a set"),
    ],
)
def test_wrong_arguments(arguments, error, words):
    with pytest.raises(error, match=words):
        check_kernel(right, **arguments)


def test_a_kernel_must_be_callable():
    with pytest.raises(TypeError, match="kernel must be callable"):
        check_kernel(3)


def test_progress_names_the_tests():
    events = []
    check_kernel(right, only="strides: padded", progress=events.append)
    assert events[0].unit == "tests" and events[-1].done == events[-1].total
    assert events[-1].now.startswith("strides: padded")


def test_ctrl_c_leaves_the_tests_that_have_run():
    names = []

    def kernel(query, key, value, *, causal=False):
        names.append(1)
        if len(names) > 3:
            raise KeyboardInterrupt
        return refattn.attention_with_lse(query, key, value, causal=causal)

    with pytest.raises(KeyboardInterrupt) as stopped:
        check_kernel(kernel, only="reference")
    report = stopped.value.partial
    done, total = report.interrupted
    assert 0 < done == len(report.outcomes) < total and not report.passed
    assert f"interrupted after {done} of {total} tests, nothing wrong so far" in report.summary


def test_use_of_allowance_counts_positions():
    state = lambda x: State(np.array([x, 1.0]), None, np.full(2, 0.5), None)
    assert use_of_allowance(state(np.nan), state(np.nan)) == 0.0
    assert use_of_allowance(state(np.nan), state(1.0)) == np.inf
    assert use_of_allowance(state(np.inf), state(1.0)) == np.inf
    assert use_of_allowance(state(1.5), state(1.0)) == 0.5
