"""A kernel that fails may only do other arithmetic than its spec says: which single change of the spec
would let it pass?

Each change is a freedom that correct kernels take and the ready-made specs do not grant. A result that
passes with one of them need not be right by accident, but its author has one question to answer instead
of a search to start.
"""

from __future__ import annotations

from collections.abc import Iterator

from refattn.oracle.arithmetic.spec import KernelSpec

# 8.8e-5 is the largest relative error of the best polynomial of degree 3 for 2^x on [0, 1), which
# FlashAttention-4 uses beside the hardware's
POLYNOMIAL_ERROR = 9e-5


def other_specs(spec: KernelSpec) -> Iterator[tuple[dict, str]]:
    """Changes of a spec, as fields and in words, the least first.

    >>> [words for _, words in other_specs(KernelSpec.flash("float32"))]
    ['an exponential of low degree', 'splits over keys joined through their lse']
    """
    narrow = spec.weight if spec.weight.unit_roundoff > spec.softmax.unit_roundoff else None
    if narrow is not None and spec.denominator == "unrounded":
        yield {"denominator": "rounded"}, "a row sum of converted weights"
    if spec.exp_error < POLYNOMIAL_ERROR and spec.softmax.unit_roundoff > 2.0**-50:
        yield {"exp_error": POLYNOMIAL_ERROR}, "an exponential of low degree"
    if narrow is not None and spec.scaled_query.unit_roundoff == 0.0:
        yield {"scaled_query": narrow}, "a query scaled and rounded before the first product"
    if spec.splits == 1 and not spec.normalises_first:
        yield {"splits": 8}, "splits over keys joined through their lse"
    if narrow is not None and spec.score.unit_roundoff == 0.0:
        yield {"score": narrow}, "stored scores"
    if narrow is not None and not spec.normalises_first:
        yield (
            {"normalises_first": True, "block_size": None},
            "weights divided by the row sum before they are converted",
        )


def in_code(changes: dict) -> str:
    """`spec.replace(denominator='rounded')`."""
    plain = {
        name: value if isinstance(value, (str, int, float, type(None))) else value.name
        for name, value in changes.items()
    }
    return f"spec.replace({', '.join(f'{name}={value!r}' for name, value in plain.items())})"
