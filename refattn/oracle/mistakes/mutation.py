"""How many broken kernels a test would let through: a tolerance and its data, scored against the mutants."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from refattn.oracle.inputs.families import AttentionInputs
from refattn.oracle.inputs.suites import default_suite, reference
from refattn.oracle.mistakes.mutants import MUTANTS, Mutant, correct_kernel
from refattn.oracle.mistakes.rules import Observation, rule
from refattn.oracle.progress import Progress


@dataclass(frozen=True)
class MutationScore:
    """What a rule finds on some inputs.

    Attributes
    ----------
    rule : str
    caught : tuple of str
        Mutants that at least one input shows and the rule rejects.
    missed : tuple of str
        Mutants whose results differ from the unbroken kernel's, and which the rule accepts everywhere:
        the tolerance is too wide.
    hidden : tuple of str
        Mutants whose results are bitwise those of the unbroken kernel on all these inputs: the data are
        too tame.
    false_alarms : tuple of str
        Inputs on which the rule rejects the unbroken kernel.
    told_apart : tuple of str
        Mutants rejected on an input on which the unbroken kernel is accepted: a rule that rejects
        everything tells nothing apart.
    inputs : int
        Inputs looked at.
    caught_by : dict
        Mutant -> names of the inputs on which it is rejected.
    """

    rule: str
    caught: tuple[str, ...]
    missed: tuple[str, ...]
    hidden: tuple[str, ...]
    false_alarms: tuple[str, ...]
    told_apart: tuple[str, ...]
    inputs: int
    caught_by: dict

    @property
    def score(self) -> float:
        """Share of all mutants that are caught."""
        total = len(self.caught) + len(self.missed) + len(self.hidden)
        return len(self.caught) / total if total else 1.0

    def __str__(self):
        total = len(self.caught) + len(self.missed) + len(self.hidden)
        lines = [
            f"{self.rule}: {len(self.caught)} of {total} mutants caught on {self.inputs} inputs, "
            f"{len(self.false_alarms)} false alarms"
        ]
        if len(self.told_apart) < len(self.caught):
            lines.append(f"  only {len(self.told_apart)} of them on inputs on which a correct kernel passes")
        for words, names in (
            ("too wide a tolerance for", self.missed),
            ("data never show", self.hidden),
            ("rejects a correct kernel on", self.false_alarms),
        ):
            if names:
                lines.append(f"  {words}: {', '.join(names)}")
        return "\n".join(lines)


class Trials:
    """The unbroken kernel and all mutants, run once on a list of inputs, to be judged by any number of
    rules.

    Parameters
    ----------
    inputs : iterable of AttentionInputs
    mutants : sequence of Mutant, optional
        Default: all that break a function among the inputs.
    progress : callable or False, optional
        As in `refattn.oracle.progress`.
    """

    def __init__(
        self, inputs: Iterable[AttentionInputs], mutants: Iterable[Mutant] | None = None, progress=None
    ):
        self.inputs = list(inputs)
        functions = {case.function for case in self.inputs}
        self.mutants = [m for m in (MUTANTS if mutants is None else mutants) if m.function in functions]
        with Progress("the right results", len(self.inputs), "inputs", progress=progress) as shown:
            self.right = [reference(case) for case in shown.over(self.inputs)]
            self.correct = [
                self._observe(correct_kernel(case.function), i) for i, case in enumerate(self.inputs)
            ]
            shown.begin("running the mutants", len(self.mutants), "mutants")
            name = lambda mutant: mutant.id
            self.shown = {mutant.id: self._shown(mutant) for mutant in shown.over(self.mutants, name)}

    def _observe(self, kernel, i) -> Observation:
        case = self.inputs[i]
        first = case.call(kernel)
        second = case.call(kernel) if getattr(kernel, "random", False) else first
        return Observation(case, np.asarray(first[0]), np.asarray(first[1]), second, self.right[i])

    def _shown(self, mutant) -> list[Observation]:
        """What the mutant does on the inputs where it differs from the unbroken kernel in any bit."""
        found = []
        for i, case in enumerate(self.inputs):
            if case.function != mutant.function:
                continue
            seen, good = self._observe(mutant, i), self.correct[i]
            if mutant.random or not (_equal(seen.output, good.output) and _equal(seen.lse, good.lse)):
                found.append(seen)
        return found

    def score(self, value, first_only=True) -> MutationScore:
        """Judge all of it by a rule; `first_only` stops at the first input that catches a mutant."""
        judge = rule(value)
        fooled = [o.inputs for o in self.correct if not judge.accepts(o)]
        alarms = tuple(f"{inputs.function} {inputs.name}" for inputs in fooled)
        fooled_ids = {id(inputs) for inputs in fooled}
        caught_by: dict[str, list[str]] = {}
        caught, missed, hidden, told_apart = [], [], [], []
        for mutant in self.mutants:
            # inputs on which the unbroken kernel passes come first: a rejection there counts
            seen = sorted(self.shown[mutant.id], key=lambda o: id(o.inputs) in fooled_ids)
            rejected = []
            for observation in seen:
                if not judge.accepts(observation):
                    if not rejected and id(observation.inputs) not in fooled_ids:
                        told_apart.append(mutant.id)
                    rejected.append(observation.inputs.name)
                    if first_only:
                        break
            caught_by[mutant.id] = rejected
            (caught if rejected else missed if seen else hidden).append(mutant.id)
        return MutationScore(
            judge.name,
            tuple(caught),
            tuple(missed),
            tuple(hidden),
            alarms,
            tuple(told_apart),
            len(self.inputs),
            caught_by,
        )


def _equal(first, second):
    return first.shape == second.shape and np.array_equal(first, second, equal_nan=True)


def mutation_score(
    value,
    inputs: Iterable[AttentionInputs] | None = None,
    *,
    dtype=np.float32,
    mutants=None,
    progress=None,
) -> MutationScore:
    """Which bugs a tolerance and data would miss.

    Parameters
    ----------
    value : str, Rule or callable
        A name of `refattn.oracle.mistakes.rules.RULES` ("numpy.allclose", "torch.testing",
        "flash_attention 2x", "fixed 1e-2", "flashmla", "onednn", ..., "refattn"), a `Rule`, or a function
        (got, want) -> bool.
    inputs : iterable of AttentionInputs, optional
        Default: `default_suite(dtype)`, which shows every mutant of `MUTANTS`. Wrap your own arrays with
        `refattn.oracle.inputs.families.as_inputs`.
    dtype : dtype
        Of the default inputs.
    mutants : iterable of Mutant, optional
    progress : callable or False, optional
        Called with a `ProgressEvent`, whose text is one line: `print`; False says nothing. Default: a line
        on a terminal, from two seconds on (`refattn.oracle.progress`).

    Returns
    -------
    MutationScore

    Examples
    --------
    >>> import numpy as np
    >>> from refattn.oracle.inputs.families import as_inputs
    >>> from refattn.oracle.mistakes.mutation import mutation_score
    >>> x = np.random.default_rng(0).random((1, 4, 16, 8), dtype=np.float32)
    >>> loose = lambda got, want: np.allclose(got, want, atol=0.1)
    >>> score = mutation_score(loose, [as_inputs(x, x, x, causal=True)])
    >>> "weights_bfloat16" in score.missed, "lengths_ignored" in score.hidden
    (True, True)
    """
    return Trials(default_suite(dtype) if inputs is None else inputs, mutants, progress).score(value)
