"""What is known of one call of a library: `Dialect`. Axes of layouts: B batch, P page, H heads, T (or S)
length, or the places of a page, D (or E) dim, M heads and dim in one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Dialect:
    """The conventions of one library's attention call.

    Attributes
    ----------
    name, call, version, source : str
        `call` is the function meant; `source` says where the facts come from.
    arguments : mapping
        Our option name -> theirs; an option that is missing cannot be expressed.
    layout, output_layout : str
        Axes of query and output in memory order.
    alignment : {"bottom_right", "top_left"}
        Where row 0 stands when there are fewer rows than keys.
    window : {"pair", "left", "two", "count", "cudnn", None}
        Spelling: one pair; the left side only; two arguments; a count of keys including the row's own;
        the two bounds of cuDNN, of which the left is exclusive.
    window_none : int or None
        What stands for unlimited.
    always_causal : bool
    mask_true : {"attend", None}
        What True means in a boolean mask; None: no boolean mask.
    additive_mask : bool
        Whether a mask argument may hold numbers that are added.
    float32_bias : bool
        Whether the bias may be float32 beside arrays of 16 bits.
    hidden : str
        What hidden scores become.
    alibi : str
        Formula with slope m, position i, key j; "" if there is none.
    softcap : str
        "before mask", or "" if there is none.
    softcap_none : float or None
        What stands for no softcap.
    sinks_in_lse : bool or None
        None: no sinks.
    empty_output : {"zero", "nan", "mean of values", "unknown"}
    empty_lse : {"-inf", "+inf", "finite", None}
    lse_base : {"e", "2", None}
        None: no lse is returned.
    lse_layout : str or None
    lengths : {"count", "count - 1", None}
        What a key length argument holds.
    default_scale : {"1/sqrt(head_dim)", "1", "required"}
    rope_pairs : {"half", "interleaved", None}
        Default of the library's own rotary embedding.
    function : str
        The function of `refattn` that the call is.
    page_layout : str
        Axes of key and value in memory order where those are pages; "" where they have the axes of query.
    measured : bool
        The facts were measured on the library itself, by tests that run wherever it is installed;
        otherwise they were only read.
    notes : tuple of str
    issues : tuple of str
    """

    name: str
    call: str
    version: str
    source: str
    arguments: Mapping[str, str] = field(default_factory=dict)
    layout: str = "BHTD"
    output_layout: str = "BHTE"
    alignment: str = "bottom_right"
    window: str | None = None
    window_none: int | None = -1
    always_causal: bool = False
    mask_true: str | None = None
    additive_mask: bool = False
    float32_bias: bool = False
    hidden: str = "-inf"
    alibi: str = ""
    softcap: str = ""
    softcap_none: float | None = 0.0
    sinks_in_lse: bool | None = None
    empty_output: str = "zero"
    empty_lse: str | None = None
    lse_base: str | None = None
    lse_layout: str | None = None
    lengths: str | None = None
    default_scale: str = "1/sqrt(head_dim)"
    rope_pairs: str | None = None
    function: str = "attention"
    page_layout: str = ""
    measured: bool = False
    notes: tuple[str, ...] = ()
    issues: tuple[str, ...] = ()

    @property
    def values_from_keys(self) -> bool:
        """Whether a paged call takes no values: they are the first dims of the keys."""
        return self.paged and "value" not in self.arguments

    @property
    def paged(self) -> bool:
        """Whether the call reads keys through a block table."""
        return bool(self.page_layout)
