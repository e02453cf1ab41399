"""Mistakes that predict the same numbers on the caller's inputs: other inputs on which they differ,
and what the kernel does there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from refattn.calls.dense import DENSE, Problem
from refattn.calls.options import OPTIONS, PER_ENTRY, PER_SCORE, WORDS
from refattn.oracle.diagnosis.axis_order import shapes_agree
from refattn.oracle.diagnosis.budget import Budget
from refattn.oracle.diagnosis.evidence import Evidence
from refattn.oracle.diagnosis.hypotheses import Hypothesis
from refattn.oracle.diagnosis.ranking import CLEARLY
from refattn.oracle.diagnosis.samples import choose_samples
from refattn.oracle.inputs.families import AttentionInputs, Sizes, attention_inputs
from refattn.oracle.inputs.suites import default_suite
from refattn.oracle.mistakes.record import NEEDS
from refattn.oracle.mistakes.wrong_kernel import checked_call

APART = 10.0  # bounds by which two predictions must differ somewhere
DECIDING = 6  # runs of the caller's kernel that rule something out, at most
LONGEST, MOST_ROWS, WIDEST = 300, 24, 256  # of a probe


@dataclass(frozen=True, eq=False)
class Probe:
    """A call to try, and how it differs from the caller's, as in "with alibi_slopes"."""

    words: str
    inputs: AttentionInputs


TELLING = "telling apart what predicts the same"


def suggestion(checked, hypotheses: list[Hypothesis], spec, results, budget: Budget) -> str:
    """Words for the call that tells most of these apart; "" if none does."""
    best, most = "", 1
    for probe in probes(checked):
        groups = len(budget.attempt("probe", TELLING, _groups, probe, hypotheses, spec, results) or ())
        if groups > most:
            best, most = probe.words, groups
        if most == len(hypotheses):
            break
    return f"call the kernel {best}" if best else ""


def told_apart(
    checked, hypotheses: list[Hypothesis], kernel: Callable, spec, results, budget: Budget
) -> tuple[list[Hypothesis], list[str]]:
    """Run the kernel where the hypotheses differ: those that stay, in their order, and the calls that
    decided.
    """
    left, calls = list(hypotheses), []
    for probe in probes(checked):
        if len(left) < 2 or len(calls) >= DECIDING:
            break
        if len(budget.attempt("probe", TELLING, _groups, probe, left, spec, results) or ()) < 2:
            continue
        if not budget.allows("run"):
            budget.ends(TELLING)
            break
        try:
            given = budget.run("run", kernel, probe.inputs.arrays, probe.inputs.options)
        except Exception:
            continue
        form = checked_call(*probe.inputs.arrays, **probe.inputs.options)
        if not shapes_agree(given, form.output_shape):
            continue
        staying = _explaining(Evidence(form, given, spec, choose_samples(form)), left, budget)
        if 0 < len(staying) < len(left):
            left, calls = staying, [*calls, probe.words]
    return left, calls


def _explaining(evidence, hypotheses, budget):
    """Those that leave about as little as the best one does, and those that predict nothing here."""
    fits = [evidence.fit(hypothesis) for hypothesis in hypotheses]
    sizes = [None if fit is None else fit.left for fit in fits]
    least = min((size for size in sizes if size is not None), default=np.inf)
    if least > 1.0 and not least < CLEARLY * evidence.floor(budget):
        return []  # the kernel does something else here
    return [
        hypothesis
        for size, hypothesis in zip(sizes, hypotheses, strict=True)
        if size is None or size <= max(2.0 * least, 1.0)
    ]


def _groups(probe, hypotheses, spec, results):
    """Classes of hypotheses that predict the same on a probe: one member of each."""
    checked = checked_call(*probe.inputs.arrays, **probe.inputs.options)
    nothing = {result: np.zeros(result.shape(checked.output_shape)) for result in results}
    evidence = Evidence(checked, nothing, spec, choose_samples(checked))
    found = []
    for hypothesis in hypotheses:
        predicted = evidence.predicted(hypothesis)
        if predicted is not None and not any(_alike(evidence, predicted, other) for other in found):
            found.append(predicted)
    return found


def _alike(evidence, first, second):
    for result, unit in evidence.yardstick.items():
        a, b = first[result], second[result]
        fine = np.isfinite(a) & np.isfinite(b)
        if not np.array_equal(np.where(fine, 0, a), np.where(fine, 0, b), equal_nan=True):
            return False
        with np.errstate(all="ignore"):
            if (np.abs(a - b)[fine] > APART * unit[fine]).any():
                return False
    return True


def probes(checked) -> Iterator[Probe]:
    """Calls of the same form, nearest to the caller's first."""
    if checked.form is DENSE and len(checked.batch_shape) <= 1:
        yield from _dense_probes(checked)
        return
    for inputs in default_suite(checked.input_dtype):
        if inputs.function == checked.form.with_lse and inputs.family != "exact":
            yield Probe(f"on {inputs.name!r} of {default_suite.__module__}.default_suite()", inputs)


def _option_names(p: Problem) -> list[str]:
    """The options of a problem in the words of `attention_inputs`."""
    names = [word for word in WORDS if NEEDS[word](p)]
    return [name for name in names if not (name == "left window" and p.right)]


def _said(word: str) -> str:
    """What a word of inputs asks for: by the name of the option where it has that word only."""
    option = WORDS[word][0]
    return option.name if len(option.examples) == 1 else f"a {word}"


FAMILY_WORDS = {
    "poison": "with NaN in hidden keys and values",
    "low scores": "on scores below -1e4",
    "empty rows": "with rows that see no key",
    "large scores": "on scores around 200",
    "nan visible": "with NaN in a visible key",
    "normal": "on N(0, 1) data",
}


def _dense_probes(p: Problem) -> Iterator[Probe]:
    names = _option_names(p)
    groups = p.group_size
    size = Sizes(
        min(p.query.shape[0], 2) if p.batch_shape else 1,
        min(p.num_kv_heads, 4) * groups,
        min(p.num_kv_heads, 4),
        min(p.q_len, MOST_ROWS),
        min(p.kv_len, LONGEST),
        min(p.head_dim, WIDEST),
        min(p.v_head_dim, WIDEST),
    )

    def probe(words, family="wide", options=names, sizes=size):
        inputs = attention_inputs(family, options, sizes=sizes, dtype=p.query.dtype, seed=1)
        if not p.batch_shape:
            inputs = _without_batch(inputs)
        return Probe(words, inputs)

    yield probe("on other data (standard deviation 2)")
    yield probe("on scores that rise along the keys", "ascending")
    for name in names:
        yield probe(f"without {_said(name)}", options=[other for other in names if other != name])
    yield probe(
        "on 4 keys for each row",
        sizes=replace(size, q_len=min(size.kv_len, 31), kv_len=4 * min(size.kv_len, 31)),
    )
    yield probe("on a multiple of 256 keys", sizes=replace(size, kv_len=512))
    yield probe("on 299 keys", sizes=replace(size, kv_len=299))
    yield probe("on scores that rise along 299 keys", "ascending", sizes=replace(size, kv_len=299))
    kv_heads = 3 if p.num_kv_heads != 3 else 5
    yield probe(
        f"on {kv_heads} key heads", sizes=replace(size, num_kv_heads=kv_heads, num_heads=kv_heads * groups)
    )
    for name, options in WORDS.items():
        if not any(WORDS[other] == options for other in names):
            yield probe(f"with {_said(name)}", options=[*names, name])
    yield probe(
        "on several sequences and heads", sizes=replace(size, batch=4, num_heads=4 * groups, num_kv_heads=4)
    )
    for family, words in FAMILY_WORDS.items():
        yield probe(words, family)


def _without_batch(inputs):
    kinds = {option.name: option.belongs_to for option in OPTIONS}
    options = {
        name: value[0] if np.ndim(value) and kinds[name] in (PER_SCORE, PER_ENTRY) else value
        for name, value in inputs.options.items()
    }
    return replace(inputs, arrays=tuple(array[0] for array in inputs.arrays), options=options)
