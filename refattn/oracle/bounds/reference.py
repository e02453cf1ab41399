"""What a kernel is compared with: results as exact as its arithmetic requires, and no more.

A kernel whose softmax and sums have 24 bits or fewer is judged by float64, which takes the same steps with
2**-53 in the place of its roundoff: the share of the hard bound that this reference may itself be off is
known (`README.md`, section 8) and far below one per cent. Kernels of about float64 are judged by the exact
reference.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial

import numpy as np

from refattn.calls.arrays import as_float_array
from refattn.calls.registry import ATTENTION, form_called
from refattn.exact.plain import UNIT_ROUNDOFF, PlainGroup, score_error
from refattn.exact.solve import solve
from refattn.latent import solve_latent, without_unused_slots
from refattn.oracle.arithmetic.spec import KernelSpec
from refattn.oracle.bounds.compiled_reference import available, compiled_results, latent_products, pays
from refattn.oracle.bounds.results import RESULTS
from refattn.oracle.bounds.threads import in_threads

SMALLEST_ROUNDOFF = 2.0**-30  # kernels whose own is smaller are judged by the exact reference
STEPS = 8.0  # roundoffs of float64 at most where the hard bound has one of the kernel's (README, section 8)
IN_WORDS = {
    "exact": "refattn, exact",
    "float64": "NumPy, float64",
    "cpu_kernels": "cpu_kernels, float64",
}


@dataclass(frozen=True, eq=False)
class Reference:
    """The results to compare with.

    Attributes
    ----------
    output, lse : ndarray of float64
        Of the whole call; 0 in rows that were not asked for.
    name : str
        What computed them, in words for a report.
    error : float
        Their own error is at most this share of the hard bound; 0.0 for exact results.
    """

    output: np.ndarray
    lse: np.ndarray
    name: str
    error: float = 0.0

    @property
    def results(self):
        """In the order of `RESULTS`."""
        return tuple(getattr(self, result.name) for result in RESULTS)


class JudgingGroup(PlainGroup):
    """Blocks whose scores are so large that float64 may miss them by more are computed exactly."""

    largest_score_error = 2.0**-24


def reference_results(function, arrays, options, spec, reference=None, rows=None) -> Reference:
    """The reference for a kernel with the arithmetic `spec`.

    Parameters
    ----------
    function, arrays, options
        The call, as in `refattn.oracle.check`.
    spec : KernelSpec
    reference : {None, "exact", "float64", "cpu_kernels"}, callable or Reference
        None chooses by the spec; "float64" is NumPy's. A callable is handed all arrays in float64, and the
        options; a `Reference` is returned as it is.
    rows : callable, optional
        Of the number of query rows of a dense part, the increasing numbers of those to compute. A callable
        `reference` and "cpu_kernels" compute all.

    Raises
    ------
    TypeError, ValueError
        For another `reference`, or a callable that returns something else than (output, lse); and those of
        the function.
    """
    if isinstance(reference, Reference):
        return reference
    form = form_called(function, ATTENTION)
    problem = form.check(*arrays, **options)
    if callable(reference):
        results = _called(reference, arrays, options, problem.output_shape)
        return Reference(*results, f"{reference_name(reference)} in float64")
    require_reference(reference, spec)
    name = reference or chosen(problem, spec, rows)
    if form.projects and name != "exact":
        if all(np.isfinite(array).all() for array in arrays):  # 0 * inf is NaN where a form forms it
            problem = dataclasses.replace(problem, implementation=cheaper_form(problem, rows))
        if not projections_within_range(problem):
            name = "exact"
    run = solve_latent if form.projects else partial(solve, each=in_threads)
    if name == "exact":
        return Reference(*run(problem, rows=rows), IN_WORDS[name])
    if name == "cpu_kernels":
        output, lse = compiled_results(problem, JudgingGroup)
    else:
        output, lse = run(problem, rows=rows, arithmetic=JudgingGroup)
    return Reference(output, lse, IN_WORDS[name], float64_error(spec, problem))


def projections_within_range(problem):
    """Whether float64 knows the scores of a latent problem, projections included, as blocks are required
    to."""
    terms, _, product = latent_products(without_unused_slots(problem))
    return score_error(terms, product) <= JudgingGroup.largest_score_error


def chosen(problem, spec, rows):
    """One of `IN_WORDS`, by what the spec requires and what is fastest."""
    if not float64_suffices(spec):
        return "exact"
    compiled = rows is None and not of_cpu_kernels(spec) and pays(problem) and available()
    return "cpu_kernels" if compiled else "float64"


def of_cpu_kernels(spec):
    """Whether a spec is that of kernels of `cpu_kernels`, under whatever name."""
    return spec.name.startswith("cpu_kernels") or any(
        spec == dataclasses.replace(KernelSpec.cpu_kernels(dtype), name=spec.name)
        for dtype in ("float16", "bfloat16", "float32", "float64")
    )


def require_reference(reference, spec):
    """Raise where `reference` is none of those that `reference_results` takes."""
    if reference is None or callable(reference) or isinstance(reference, Reference):
        return
    if not isinstance(reference, str) or reference not in IN_WORDS:
        kind = ValueError if isinstance(reference, str) else TypeError
        names = ", ".join(map(repr, IN_WORDS))
        raise kind(f"reference must be one of {names}, a callable or None; got reference={reference!r}.")
    if reference == "cpu_kernels" and of_cpu_kernels(spec):
        raise ValueError(
            "reference must not be 'cpu_kernels' for kernels of cpu_kernels, which would judge themselves; "
            f"got reference='cpu_kernels' with spec {spec.name!r}."
        )
    if reference == "cpu_kernels" and not available():
        raise ValueError(
            "reference must be 'cpu_kernels' only where Numba is installed; got reference='cpu_kernels'."
        )


def reference_name(reference):
    """What a report calls a reference that is a callable."""
    module = getattr(reference, "__module__", "") or ""
    return ".".join(
        part for part in (module.split(".")[0], getattr(reference, "__name__", repr(reference))) if part
    )


def float64_suffices(spec):
    """Whether float64 is so much finer than the sums and the softmax of a kernel that it can judge it."""
    return roundoff(spec) >= SMALLEST_ROUNDOFF


def float64_error(spec, problem):
    """The largest share of the hard bound that a reference in float64 can be off."""
    ratio = UNIT_ROUNDOFF / max(roundoff(spec), UNIT_ROUNDOFF)
    return ratio * STEPS * _projection_steps(problem) + 4 * JudgingGroup.largest_score_error


def roundoff(spec):
    """The smaller unit roundoff of the softmax and of the sums of a kernel."""
    return min(spec.softmax.unit_roundoff, spec.accumulator_roundoff)


def _projection_steps(problem):
    """How many more roundoffs pass where queries, keys or values are projected in another order than the
    kernel's.
    """
    if not problem.form.projects:
        return 1.0
    nope, rank = problem.w_uk.shape[1:]
    longest = nope + rank + problem.k_rope.shape[-1] + int(problem.kv_lengths.max(initial=0))
    return 1.0 + longest / max(min(nope, rank), 1)


def cheaper_form(problem, rows=None):
    """The form in which a `LatentProblem` takes fewer multiplications."""
    nope, rank = problem.w_uk.shape[1:]
    rope, v_head_dim = problem.k_rope.shape[-1], problem.w_uv.shape[1]
    q_len, kv_len = problem.q_nope.shape[-2], problem.kv_latent.shape[-2]
    q_len = q_len if rows is None else len(rows(q_len))
    projections = rank * (nope + v_head_dim)
    absorbed = q_len * (projections + kv_len * (2 * rank + rope))
    expanded = kv_len * projections + q_len * kv_len * (nope + rope + v_head_dim)
    return "absorb" if absorbed <= expanded else "expand"


def _called(reference, arrays, options, output_shape):
    """The results of a reference that is handed the arrays in float64."""
    wide = [np.asarray(as_float_array(array, "an input"), dtype=np.float64) for array in arrays]
    results = reference(*wide, **options)
    if not isinstance(results, (tuple, list)) or len(results) != len(RESULTS):
        raise TypeError(
            f"reference must return (output, lse), as attention_with_lse does; got {type(results).__name__}."
        )
    results = tuple(np.asarray(array, dtype=np.float64) for array in results)
    for result, array in zip(RESULTS, results, strict=True):
        shape = result.shape(output_shape)
        if array.shape != shape:
            raise ValueError(f"reference must return {result.name} of shape {shape}; got {array.shape}.")
    return results
