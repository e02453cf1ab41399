"""Deliberately broken kernels: one for every mistake of the catalogue, with the signature of the function
it breaks.

A test suite that a mutant passes is a test suite with a hole; `refattn.oracle.mistakes.mutation` counts
them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from refattn.calls.registry import FORMS
from refattn.oracle.mistakes.catalogue import CATALOGUE
from refattn.oracle.mistakes.corners import CORNERS
from refattn.oracle.mistakes.merge import MERGES, merged
from refattn.oracle.mistakes.record import Mistake
from refattn.oracle.mistakes.wrong_kernel import checked_call, joined_results, possible, run_form

FUNCTIONS = tuple(form.with_lse for form in FORMS)


def staged_kernel(*mistakes: Mistake, tile: int = 32) -> Callable:
    """A fused kernel in NumPy that makes these mistakes, in tiles of so many keys; none of them: a
    correct one.

    It takes the arrays and options of `attention_with_lse`, of its packed, paged or latent form, of
    `block_local_attention_with_lse`, or of `attention_with_lse` plus `rope=Rope(...)`, and returns
    output and lse. It computes in float32 for 16- and 32-bit inputs (weights rounded to the 16-bit
    dtype) and in float64 otherwise.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> q, k, v = (np.random.default_rng(0).standard_normal((2, n, 8)) for n in (3, 5, 5))
    >>> output, lse = staged_kernel()(q, k, v, causal=True)
    >>> bool(np.allclose(output, refattn.attention(q, k, v, causal=True)))
    True
    """

    def kernel(*arrays, **options):
        checked = checked_call(*arrays, **options)
        parts = run_form(checked, *mistakes, tile=tile, own=True)
        output, lse = joined_results(checked, parts)
        for mistake in mistakes:
            if mistake.relayout is not None and possible(mistake, checked):
                output, lse = _relaid(checked, mistake, output, lse)
        return output, lse

    return kernel


def _relaid(checked, mistake, output, lse):
    kept = len(checked.output_shape) - 3
    batch = (int(np.prod(output.shape[:kept], dtype=np.int64)),)
    changed, changed_lse = mistake.relayout(
        output.reshape(batch + output.shape[kept:]), lse.reshape(batch + lse.shape[kept:])
    )
    return changed.reshape(output.shape), changed_lse.reshape(lse.shape)


@dataclass(frozen=True)
class Mutant:
    """One broken kernel."""

    id: str
    description: str
    # name of the public function whose signature `kernel` has; "rotary_attention_with_lse" is
    # `attention_with_lse` on query and key that still have to be rotated (`rope=`)
    function: str
    kernel: Callable  # the broken function; calling the mutant calls it
    needs: tuple[str, ...] = ()  # what the inputs must have for it to show (`refattn.oracle.mistakes.NEEDS`)
    # input families of `refattn.oracle.inputs.families` that it takes; empty: ordinary data show it
    families: tuple[str, ...] = ()
    issues: tuple[str, ...] = ()  # where it happened in public
    random: bool = False

    def __call__(self, *arrays, **options):
        return self.kernel(*arrays, **options)


def _from_mistake(mistake: Mistake) -> Mutant:
    name = "dense" if mistake.form == "any" else mistake.form
    function = next(form.with_lse for form in FORMS if form.name == name)
    return Mutant(
        mistake.id,
        mistake.says,
        function,
        staged_kernel(mistake),
        mistake.needs,
        mistake.families,
        mistake.issues,
        mistake.random,
    )


MUTANTS: tuple[Mutant, ...] = tuple(
    _from_mistake(mistake) for mistake in CATALOGUE if mistake not in CORNERS
) + tuple(Mutant(m.id, m.says, "merge_states", m.merge, issues=m.issues) for m in MERGES)
# shown by `refattn.oracle.inputs.corners` and not by `default_suite`
CORNER_MUTANTS: tuple[Mutant, ...] = tuple(map(_from_mistake, CORNERS))


def mutants(function: str | None = None, corners: bool = False) -> tuple[Mutant, ...]:
    """All mutants, or those of one of `FUNCTIONS`; with `corners` also those that only the calls of
    `refattn.oracle.inputs.corners` show, some only at level "full". Raises ValueError where no mutant
    breaks a function of that name.

    Examples
    --------
    >>> from refattn.oracle.mistakes.mutants import mutants
    >>> len(mutants()) >= 60
    True
    >>> mutants("merge_states")[0].description
    'states are averaged without their lse weights'
    """
    chosen = MUTANTS + CORNER_MUTANTS if corners else MUTANTS
    if function is None:
        return chosen
    if function not in FUNCTIONS:
        raise ValueError(f"function must be one of {', '.join(FUNCTIONS)}; got function={function!r}.")
    return tuple(mutant for mutant in chosen if mutant.function == function)


def correct_kernel(function: str = "attention_with_lse") -> Callable:
    """The unbroken kernel that the mutants of a function differ from by one stage."""
    return merged if function == "merge_states" else staged_kernel()
