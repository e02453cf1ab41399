"""How often `diagnose` names the right mistake: single mistakes, from a result alone and with the kernel at
hand; pairs; hand-written kernels.

Part of oracle_table.py. A mistake counts as first when its name is the first; as equal when the first
line names it among those that predict the same numbers on these inputs.
"""

import time
from collections import Counter

import numpy as np
from wrong_kernels import CASES

from refattn.oracle.diagnosis.search import diagnose
from refattn.oracle.inputs.corners import corner_cases
from refattn.oracle.inputs.families import OPTION_NAMES, Sizes, attention_inputs
from refattn.oracle.inputs.latent import latent_inputs
from refattn.oracle.inputs.packed import packed_inputs
from refattn.oracle.inputs.paged import paged_inputs
from refattn.oracle.inputs.rotary import rotary_inputs
from refattn.oracle.inputs.suites import default_suite
from refattn.oracle.mistakes.catalogue import CATALOGUE
from refattn.oracle.mistakes.mutants import correct_kernel, mutants, staged_kernel
from refattn.oracle.mistakes.record import stages_of
from refattn.oracle.mistakes.wrong_kernel import checked_call, possible

OUTCOMES = ("first", "equal", "other", "within rounding")
PAIR_OPTIONS = [name for name in OPTION_NAMES if name not in ("empty rows", "dropout")]


def diagnosis_table(dtypes, seed=0, pairs=40):
    """Print all tables and return their rows; `dtypes` maps names to dtypes."""
    rows = []
    print(
        "\nDiagnosis of single mistakes: named first / as equal on these inputs / not named / result "
        "within rounding on all inputs"
    )
    for name, dtype in dtypes.items():
        rows.append({"dtype": name, "seed": seed, **singles(name, dtype, seed)})
    if pairs:
        rows.append({"pairs": pair_table(pairs, seed)})
    outcome = Counter("right" if hand_written(*case) else f"wrong: {case[0].__name__}" for case in CASES)
    print(
        f"hand-written wrong kernels: {outcome['right']} of {len(CASES)}",
        *(key for key in outcome if key != "right"),
    )
    return [*rows, {"hand-written": dict(outcome)}]


# single mistakes


def singles(name, dtype, seed):
    suite = [
        *default_suite(dtype, seed),
        *corner_cases(dtype, seed, level="full"),
    ]
    outcome, with_kernel, wrong, seconds = Counter(), Counter(), [], []
    for mutant in mutants(corners=True):
        if mutant.random:
            continue
        verdict, decided, took = name_mutant(mutant, suite)
        outcome[verdict.split(":")[0]] += 1
        with_kernel[decided.split(":")[0]] += 1
        seconds.append(took)
        if verdict.startswith("other"):
            wrong.append(f"{mutant.id} -> {verdict[7:]}")
        if decided.split(":")[0] not in ("first", "within rounding"):
            wrong.append(f"{mutant.id} with the kernel -> {decided}")
    total = sum(outcome[kind] for kind in OUTCOMES[:3])
    share = lambda count: f"{100 * count / max(total, 1):.1f} %"
    print(
        f"{name:10s} {' / '.join(str(outcome[kind]) for kind in OUTCOMES)}: first "
        f"{share(outcome['first'])}, first or equal "
        f"{share(outcome['first'] + outcome['equal'])}; with the kernel at hand first "
        f"{share(with_kernel['first'])}; "
        f"median {np.median(seconds):.2f} s, slowest {max(seconds):.1f} s",
        *wrong,
        sep="\n    " if wrong else "",
        flush=True,
    )
    counts = {kind: outcome[kind] for kind in OUTCOMES}
    return {
        **counts,
        "first with kernel": with_kernel["first"],
        "wrong": wrong,
        "median seconds": float(np.median(seconds)),
    }


def name_mutant(mutant, suite):
    """(outcome from the result alone, outcome with the kernel, seconds) on the first input that shows
    the mutant.
    """
    for inputs in suite:
        if (
            inputs.function != mutant.function
            or inputs.family == "exact"
            or (mutant.families and inputs.family not in mutant.families)
        ):
            continue
        output, lse = inputs.call(mutant)
        if same_bits((output, lse), inputs.call(correct_kernel(inputs.function))):
            continue
        start = time.monotonic()
        found = diagnose(output, *inputs.arrays, lse=lse, **inputs.options)
        took = time.monotonic() - start
        if found.verdict == "agrees":
            continue
        alone = outcome_of(found, mutant, inputs)
        if alone == "first" or inputs.function == "merge_states":
            return alone, alone, took
        return alone, outcome_of(diagnose(mutant, *inputs.arrays, **inputs.options), mutant, inputs), took
    return "within rounding", "within rounding", 0.0


def outcome_of(found, mutant, inputs):
    best = found.best
    if best is not None and best.explains and mutant.id in (best.id, *best.same_as):
        return "first" if best.id == mutant.id else "equal"
    return f"other: {best.id if best else found.verdict} on {inputs.name}"


def same_bits(first, second):
    return all(
        np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True)
        for a, b in zip(first, second, strict=True)
    )


# two mistakes at once


def pair_table(count, seed, seconds=20.0):
    rng = np.random.default_rng([seed, 12])
    outcome, lines, times = Counter(), [], []
    while outcome.total() < count:
        drawn = draw_pair(rng)
        if drawn is None:
            continue
        pair, inputs, output, lse = drawn
        found = diagnose(output, *inputs.arrays, lse=lse, seconds=seconds, **inputs.options)
        times.append(found.seconds)
        kind = pair_outcome(found, pair)
        outcome[kind] += 1
        if kind != "found":
            lines.append(
                f"{' + '.join(pair)} on {inputs.name}: {kind}, {found.best.id if found.best else '-'} "
                f"({found.seconds:.1f} s)"
            )
    print(
        f"pairs of mistakes, drawn at random, both showing: {dict(outcome)} of {count}, "
        f"median {np.median(times):.1f} s, slowest {max(times):.1f} s",
        *lines,
        sep="\n    " if lines else "",
        flush=True,
    )
    return {**outcome, "median seconds": float(np.median(times)), "not found": lines}


def draw_pair(rng):
    """Two mistakes and a call on which both show: the result differs from the right one and from
    those of each mistake alone.
    """
    inputs = random_call(rng)
    checked = checked_call(*inputs.arrays, **inputs.options)
    able = [
        m
        for m in CATALOGUE
        if not (m.random or m.rounding)
        and possible(m, checked)
        and (m.relayout is None or m.reread is not None)
    ]
    one, two = (able[i] for i in rng.choice(len(able), 2, replace=False))
    forms = [m for m in (one, two) if m.of_form]
    if stages_of(one, two) is None or len(forms) > 1:
        return None
    output, lse = inputs.call(staged_kernel(one, two))
    for kernel in (staged_kernel(), staged_kernel(one), staged_kernel(two)):
        if agree(inputs.call(kernel), (output, lse)):
            return None
    return (one.id, two.id), inputs, output, lse


def agree(first, second, tolerance=1e-3):
    return all(
        np.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)
        for a, b in zip(first, second, strict=True)
    )


def random_call(rng):
    """A dense call with up to four options, three times in four; else another form."""
    seed = int(rng.integers(2**31))
    if rng.random() < 0.25:
        make = (packed_inputs, paged_inputs, latent_inputs, rotary_inputs)[int(rng.integers(4))]
        return make(np.float32, seed, causal=True)
    names = [str(name) for name in rng.choice(PAIR_OPTIONS, int(rng.integers(5)), replace=False)]
    if "left window" in names and "two-sided window" in names:
        names.remove("left window")
    return attention_inputs(str(rng.choice(["normal", "wide", "ascending"])), names, seed=seed)


def pair_outcome(found, pair):
    if found.verdict == "agrees" or not found.best.explains:
        return found.verdict
    names = [sorted(name.split(" + ")) for name in (found.best.id, *found.best.same_as)]
    if sorted(pair) in names:
        return "found"
    return (
        "found one of the two"
        if any({*pair} & {*name} for name in names)
        else "another with the same numbers"
    )


# kernels that share no code with the catalogue


def hand_written(kernel, given, expected):
    names, extra = (sorted(given), {}) if isinstance(given, set) else ((), given)
    names = [*names, *(["causal"] if kernel.__name__ == "window_counts_keys" else [])]
    inputs = attention_inputs("wide", names, sizes=Sizes(2, 4, 2, 9, 45, 16, 16), dtype=np.float64)
    options = {**inputs.options, **extra}
    output, lse = kernel(
        *inputs.arrays,
        **{
            key: value
            for key, value in options.items()
            if key in kernel.__code__.co_varnames and key != "causal"
        },
    )
    best = diagnose(output, *inputs.arrays, lse=lse, **options).best
    return best.explains and expected in (best.id, *best.same_as)
