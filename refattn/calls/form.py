"""What a form of attention is: dense, packed, paged, latent, block-local or merging, behind one protocol.

Each form stands in one file beside this one, which holds

    its `Form`     how a call is written: names and axes of its arrays, and the function of both packages
    its problem    what checking a call gives: arrays and options, and how they are cut into dense problems
    its check      every rule about its arrays

Arrays of numbers are not copied: they keep the caller's dtype and strides. Integers decide addresses and
are copied before they are checked, so that no thread can change them in between.

Everything else asks the form or the problem and knows no names: the reference runs the parts of any
problem, the oracle bounds them, vector files store the arrays of any form. A new form is a new file here
and a line in `registry.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from refattn.calls.options import OPTION_NAMES


@dataclass(frozen=True)
class Form:
    """How calls of one form are written."""

    name: str  # "packed"
    function: str  # the public function of both packages: "packed_attention"
    arrays: Mapping[str, str]  # the positional arguments in order, each with its axes in words
    results: Mapping[str, str]  # the axes of output and lse in words
    # callable (*arrays, **structure, **options) -> problem: Raises the errors that a caller reads
    check: Callable[..., Any]
    # keyword arguments that say how the arrays are laid out, with their axes; the first one marks a call of
    # this form
    structure: Mapping[str, str] = field(default_factory=dict)
    # keyword arguments that choose between ways to compute the same, with what may be chosen, the default
    # first
    choices: Mapping[str, tuple] = field(default_factory=dict)
    without: tuple[str, ...] = ()  # options that the function does not take
    # keys and values are made from latents by the kernel itself, so that they carry errors of its arithmetic
    projects: bool = False
    joins: bool = False  # the arrays are results to be merged; there are no queries, keys or options
    public: bool = True  # both packages have the function; else only the oracle knows the form

    @property
    def options(self):
        """The options that its function takes."""
        return tuple(name for name in OPTION_NAMES if name not in (*self.without, *self.structure))

    @property
    def arguments(self):
        """The keyword arguments of its function: what lays the arrays out, what may be chosen, and
        the options.
        """
        return *self.structure, *self.choices, *self.options

    @property
    def with_lse(self):
        """The name of the function that returns output and lse."""
        return self.function if self.joins else f"{self.function}_with_lse"


class Checked:
    """What a problem of any form can tell; a form's own problem is a dataclass that inherits from this.

    Attributes
    ----------
    form : Form
    output_shape, lse_shape : tuple
        (..., H, T, E) and (..., H, T) of the whole call.
    """

    form: Form

    @property
    def output_shape(self):
        """The shape of the output of the whole call; that of lse has one axis less."""
        raise NotImplementedError

    @property
    def lse_shape(self):
        return self.output_shape[:-1]

    @property
    def largest_group(self):
        """(group_size, kv_len, head_dim, v_head_dim) of the largest group of heads that share keys."""
        raise NotImplementedError

    @property
    def input_dtype(self):
        """The dtype of the first array."""
        raise NotImplementedError

    @property
    def num_parts(self):
        """How many dense problems the call is made of."""
        return 1

    def part(self, n):
        """Dense problem n."""
        raise NotImplementedError

    def place(self, n):
        """Where the results of dense problem n lie: the index of the lse of the whole call that gives
        (*batch, H, T).
        """
        return Ellipsis, slice(None)

    def outline(self, n):
        """Dense problem n without its numbers: the options, and arrays of the right shapes. Costs no
        work.
        """
        return self.part(n)

    def parts(self):
        """The dense problems that the call is made of, each as a `Part`."""
        for n in range(self.num_parts):
            yield Part(self.part(n), self.place(n))

    def uncut(self):
        """The same call with what the form hides written as a rule of visibility, for mistakes that
        change the rule.
        """
        return self


@dataclass(frozen=True)
class Part:
    """A dense problem inside a call, and where its results lie.

    `rows` indexes the lse of the whole call and gives (*batch, H, T) of the part; the same with all
    channels indexes the output. Both are views.
    """

    problem: Any
    rows: tuple

    def of_output(self, array):
        """The part of a whole output, (*batch, H, T, E)."""
        return array[(*self.rows, slice(None))]

    def of_lse(self, array):
        """The part of a whole lse, (*batch, H, T)."""
        return array[self.rows]
