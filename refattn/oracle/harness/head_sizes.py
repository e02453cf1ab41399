"""The head sizes with which a kernel is tested."""

from __future__ import annotations

from dataclasses import dataclass

from refattn.oracle.inputs.families import AttentionInputs
from refattn.oracle.inputs.variants import fitted

COMMON = ((64, 64), (128, 128))
ANY = "any"


@dataclass(frozen=True)
class HeadDims:
    """head_dim and v_head_dim of calls.

    Attributes
    ----------
    given : object
        What the caller said.
    pairs : tuple of (int, int)
        The sizes that calls have, in turns; empty where they stay as they are: small odd ones, different
        from each other, beside common ones.
    """

    given: object
    pairs: tuple[tuple[int, int], ...]

    def __str__(self):
        return " and ".join(str(d) if d == e else f"({d}, {e})" for d, e in self.pairs) or ANY

    def of_cases(self, cases) -> list[AttentionInputs]:
        """The cases with these sizes; those about a head_dim only where any will do."""
        if not self.pairs:
            return list(cases)
        cases = [inputs for inputs in cases if "head_dim" not in inputs.name]
        return [self.of_case(inputs, n) for n, inputs in enumerate(cases)]

    def of_case(self, inputs, turn=0) -> AttentionInputs:
        if not self.pairs or (inputs.arrays[0].shape[-1], inputs.arrays[-1].shape[-1]) in self.pairs:
            return inputs
        return fitted(inputs, self.pairs[turn % len(self.pairs)])


def checked_head_dims(head_dims, call) -> HeadDims:
    """`head_dims` of `check_kernel`, else the kernel's attribute of this name, else `COMMON`."""
    fixed = call.form.projects or call.form.joins or call.dialect.values_from_keys
    if fixed:
        if head_dims is not None:
            what = "merge_states" if call.form.joins else call.dialect.name
            what = "latent attention" if call.form.projects else what
            raise ValueError(f"head_dims must be None for {what}; got head_dims={head_dims!r}.")
        return HeadDims(None, ())
    given = getattr(call.kernel, "head_dims", None) if head_dims is None else head_dims
    if given is None:
        return HeadDims(None, COMMON)
    if isinstance(given, str) and given == ANY:
        return HeadDims(head_dims, ())
    pair = (given, given) if isinstance(given, int) else given
    if not (
        isinstance(pair, tuple | list)
        and len(pair) == 2
        and all(isinstance(size, int) and size >= 1 for size in pair)
    ):
        raise ValueError(
            f"head_dims must be one or two sizes of at least 1, or 'any'; got head_dims={given!r}."
        )
    return HeadDims(head_dims, (tuple(pair),))
