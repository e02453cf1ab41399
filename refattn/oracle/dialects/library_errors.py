"""Errors in the code that other libraries publish as their reference, one row an error, each with a minimal
call that shows it.

What such code computes, another call of ours computes too: `does` and `right` are the options of the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

import refattn


@dataclass(frozen=True)
class LibraryError:
    """One error, on a call of `heads` heads, `rows` rows and `keys` keys."""

    # library, version, where: `where` is the function, and whether it was measured on the library or only
    # read
    library: str
    version: str
    where: str
    says: str  # what it does wrong, as a sentence
    mistake: str  # id by which `diagnose` names it
    shape: tuple[int, int, int]  # heads, rows and keys of the minimal call; one sequence, random numbers
    # right, does: options of `refattn.attention_with_lse`: what the call means, and what the library
    # computes
    right: Mapping[str, Any]
    does: Mapping[str, Any]
    wrong_rows: tuple[int, ...]  # rows in which the two differ
    dialects: tuple[str, ...]  # names of `DIALECTS` whose `explain_difference` shows it
    lse_only: bool = False  # only the lse is that of `does`; the output is right

    def arrays(self, dtype=np.float64) -> tuple[np.ndarray, ...]:
        """Query, key and value of the minimal call."""
        heads, rows, keys = self.shape
        rng = np.random.default_rng(11)
        return tuple(
            rng.standard_normal((1, heads, length, 8)).astype(dtype) for length in (rows, keys, keys)
        )

    def results(self) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        """(output, lse) as it should be, and as the library has it."""
        right, does = (
            refattn.attention_with_lse(*self.arrays(), **options) for options in (self.right, self.does)
        )
        return right, ((right if self.lse_only else does)[0], does[1])

    def __str__(self):
        heads, rows, keys = self.shape
        what = "lse" if self.lse_only else "output"
        call = (
            f"{heads} heads, {rows} rows, {keys} keys, {_words(self.right)}: its {what} is that of "
            f"{_words(self.does)}"
        )
        return (
            f"{self.library} {self.version}, {self.where}: {self.says} Minimal call: {call}, wrong in "
            f"rows {', '.join(map(str, self.wrong_rows))}."
        )


def _words(options):
    return ", ".join(f"{name}={value!r}" for name, value in options.items()) or "no options"


SLOPES, SINKS = (0.5, 0.25), (0.5, -1.0)

LIBRARY_ERRORS = (
    LibraryError(
        "FlashAttention",
        "2.8 and 3",
        "attention_ref of its tests (read)",
        "A right side of -1, which means unlimited, is taken literally beside a left side: a row sees no "
        "key from its own on.",
        "window_right_minus_one",
        (2, 3, 4),
        {"window": (2, None)},
        {"window": (1, 0), "q_offset": 0},
        (0, 1, 2),
        ("flash_attn",),
    ),
    LibraryError(
        "Transformer Engine",
        "2.x",
        "get_full_mask of the unfused path (read)",
        "An unlimited left side is replaced by max_seqlen_kv, so rows further than that from key 0 lose "
        "keys: top-left causal 6 x 3 hides key 0 from row 4.",
        "window_left_is_kv_len",
        (2, 6, 3),
        {"causal": True, "q_offset": 0},
        {"causal": True, "q_offset": 0, "window": (3, None)},
        (4, 5),
        ("cudnn", "flash_attn"),
    ),
    LibraryError(
        "FlashInfer",
        "0.6.18",
        "reference of its trace templates (read)",
        "Where there are more rows than keys the alignment falls back from bottom-right to top-left.",
        "causal_top_left",
        (2, 5, 3),
        {"causal": True},
        {"causal": True, "q_offset": 0},
        (0, 1, 2, 3),
        ("flashinfer",),
    ),
    LibraryError(
        "FlashInfer",
        "0.6.18",
        "attention_ref of its tests (read)",
        "The sink takes part in the output but not in the lse; the lse of the kernel includes it.",
        "sinks_not_in_lse",
        (2, 3, 4),
        {"causal": True, "sinks": SINKS},
        {"causal": True},
        (0, 1, 2),
        ("flashinfer",),
        lse_only=True,
    ),
    LibraryError(
        "transformers",
        "5.24",
        "FalconAttention, attn_implementation='eager' (measured)",
        "ALiBi is in the attention mask already and is added once more; 'sdpa' adds it once.",
        "alibi_twice",
        (2, 3, 3),
        {"causal": True, "alibi_slopes": SLOPES},
        {"causal": True, "alibi_slopes": (1.0, 0.5)},
        (1, 2),
        ("transformers",),
    ),
    LibraryError(
        "transformers",
        "5.24",
        "AttentionInterface.register without AttentionMaskInterface.register (measured)",
        "The registered function is called with attention_mask=None: causality, window and padding are "
        "lost unless it adds them itself.",
        "causal_dropped",
        (2, 3, 3),
        {"causal": True},
        {},
        (0, 1),
        ("transformers",),
    ),
)


def errors_of(*dialects: str) -> tuple[LibraryError, ...]:
    """The errors that concern one of these dialects.

    Examples
    --------
    >>> [error.mistake for error in errors_of("flashinfer")]
    ['causal_top_left', 'sinks_not_in_lse']
    """
    return tuple(error for error in LIBRARY_ERRORS if {*error.dialects} & {*dialects})
