"""The forms of attention that calls can have, in the order in which a call is tried for the mark of a
form.
"""

from refattn.calls.dense import DENSE
from refattn.calls.latent import LATENT
from refattn.calls.local import BLOCK_LOCAL
from refattn.calls.merge import MERGE
from refattn.calls.packed import PACKED
from refattn.calls.paged import PAGED
from refattn.calls.rotary import ROTARY

FORMS = (DENSE, PACKED, PAGED, LATENT, BLOCK_LOCAL, ROTARY, MERGE)
ATTENTION = tuple(form for form in FORMS if form.public and not form.joins)  # what the oracle's bounds know


def form_called(function, forms=FORMS):
    """The form of a function, with or without "_with_lse", among some forms.

    Raises
    ------
    ValueError
        No form has a function of that name.
    """
    for form in forms:
        if function in (form.function, form.with_lse):
            return form
    names = ", ".join(form.function for form in forms if form.public)
    raise ValueError(f"function must be one of {names}; got function={function!r}.")


def form_of(arrays, arguments):
    """The form of a call, read off its keyword arguments, else off the number of its arrays.

    Raises
    ------
    TypeError
        No form has so many arrays.
    """
    for form in FORMS:
        if form.structure and next(iter(form.structure)) in arguments:
            return form
    for form in FORMS:
        if not form.structure and len(form.arrays) == len(arrays):
            return form
    raise TypeError(
        f"arrays must be query, key, value or the six of latent_attention; got {len(arrays)} arrays."
    )
