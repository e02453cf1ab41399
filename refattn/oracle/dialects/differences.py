"""Where two libraries disagree: `explain_difference`, a table made from their records."""

from __future__ import annotations

from collections.abc import Callable

from refattn.oracle.dialects.libraries import dialect
from refattn.oracle.dialects.library_errors import errors_of
from refattn.oracle.dialects.other_calls import OTHER_CALLS
from refattn.oracle.dialects.record import Dialect


def _visible(kind: str, q_len: int = 2, kv_len: int = 4) -> str:
    """Causal rows drawn as x (seen) and . (hidden)."""
    offset = 0 if kind == "top_left" else kv_len - q_len
    return " / ".join("".join("x" if j <= offset + i else "." for j in range(kv_len)) for i in range(q_len))


def _window_example(d: Dialect) -> str:
    """How the call says: this key and the two before it."""
    spelled = {
        "pair": "(2, 0)",
        "left": "2",
        "two": "2, 0",
        "count": "3",
        "cudnn": "left bound 3, right bound 0",
    }
    return spelled.get(d.window or "", "a mask")


def _sink_in_lse(d: Dialect) -> str:
    if d.sinks_in_lse is None:
        return "no lse" if "sinks" in d.arguments else "no sinks"
    return "yes" if d.sinks_in_lse else "no"


_PAIRS = {"half": "(0, 32), (1, 33), ...", "interleaved": "(0, 1), (2, 3), ..."}


def _row(words, fill, example=lambda d: "-"):
    """A row of the table: how a dialect fills it, and what shows an example of that, "-" for none."""
    return words, fill, example


ROWS: tuple[tuple[str, Callable[[Dialect], str], Callable[[Dialect], str]], ...] = (
    _row("query layout", lambda d: d.layout),
    _row("output layout", lambda d: d.output_layout),
    _row(
        "causal, 2 rows on 4 keys", lambda d: d.alignment.replace("_", "-"), lambda d: _visible(d.alignment)
    ),
    _row(
        "causality", lambda d: "always on" if d.always_causal else d.arguments.get("causal", "in the mask")
    ),
    _row(
        "window of the last 3 keys",
        lambda d: d.arguments.get("window", "in the mask") if d.window else "in the mask",
        _window_example,
    ),
    _row("no window", lambda d: str(d.window_none) if d.window else "no mask"),
    _row(
        "chunks of keys",
        lambda d: d.arguments.get(
            "chunk", "in the mask" if (d.mask_true or d.additive_mask) and not d.always_causal else "none"
        ),
    ),
    _row("boolean mask, True", lambda d: d.mask_true or "no boolean mask"),
    _row("additive mask or bias", lambda d: d.arguments.get("bias", "none")),
    _row("hidden scores", lambda d: d.hidden),
    _row("ALiBi adds", lambda d: d.alibi or "none"),
    _row(
        "softcap",
        lambda d: d.arguments.get("softcap", "none"),
        lambda d: f"off: {d.softcap_none}" if d.softcap else "-",
    ),
    _row("sink in lse", _sink_in_lse),
    _row("row without keys: output", lambda d: d.empty_output),
    _row("row without keys: lse", lambda d: d.empty_lse or "none"),
    _row(
        "lse base",
        lambda d: d.lse_base or "no lse",
        lambda d: f"lse of 8 equal scores 0: {'2.079' if d.lse_base == 'e' else '3'}" if d.lse_base else "-",
    ),
    _row("lse layout", lambda d: d.lse_layout or "no lse"),
    _row(
        "key lengths",
        lambda d: d.lengths or "none",
        lambda d: f"5 keys: {5 if d.lengths == 'count' else 4}" if d.lengths else "-",
    ),
    _row(
        "default scale, head_dim 64",
        lambda d: d.default_scale,
        lambda d: {"1/sqrt(head_dim)": "0.125", "1": "1"}.get(d.default_scale, "-"),
    ),
    _row("rotary pairs", lambda d: d.rope_pairs or "none", lambda d: _PAIRS.get(d.rope_pairs or "", "-")),
    _row("keys in pages", lambda d: "yes" if d.paged else "no"),
)


def differences(first: str, second: str) -> list[tuple[str, str, str]]:
    """Rows of the table in which two dialects differ: (matter, first, second), with an example where
    one helps.
    """
    one, two = dialect(first), dialect(second)
    found = []
    for words, fill, example in ROWS:
        cells = [fill(d) + (f"  [{example(d)}]" if example(d) != "-" else "") for d in (one, two)]
        if cells[0] != cells[1]:
            found.append((words, *cells))
    return found


# kinds of rows: a call that runs on both and gives other numbers comes first
MEANING = "Other results for what looks alike"
SPELLING = "The same thing said otherwise"
ONLY_ONE = "In one of them only"
SPELLED = (
    "causality",
    "window of the last 3 keys",
    "no window",
    "chunks of keys",
    "additive mask or bias",
    "softcap",
)
ABSENT = ("none", "no lse", "no sinks", "no boolean mask", "no mask", "in the mask", "-")


def _kind(row) -> str:
    words, *cells = row
    absent = [cell.split("  [")[0] in ABSENT for cell in cells]
    if any(absent):
        return ONLY_ONE
    return SPELLING if words in SPELLED else MEANING


def _other_calls(d: Dialect) -> str:
    """Calls of the library beside the one of the table, in words."""
    return ", ".join(f"{other.call} ({other.function})" for other in OTHER_CALLS if other.name == d.name)


def explain_difference(first: str, second: str) -> str:
    """A table of where two dialects disagree; rows in which they agree are left out.

    Rows that change results come first, then other spellings, then what only one of the two has; then
    notes, and errors in the code that their libraries publish as a reference (`library_errors`).

    Parameters
    ----------
    first, second : str
        Names of `DIALECTS`; "refattn" is ours.

    Returns
    -------
    str

    Examples
    --------
    >>> explain_difference("torch", "jax").splitlines()[7].split()
    ['query', 'layout', '|', 'BHTD', '|', 'BTHD']
    """
    one, two = dialect(first), dialect(second)
    rows = differences(first, second)
    heading = [
        f"{d.name} is {d.call}, {d.version}: "
        f"{'measured on the library' if d.measured else 'read, not run'} ({d.source})"
        for d in (one, two)
    ]
    heading.append(
        "Axes: B batch, H heads, T or S length, D and E head size, M heads and head size in one. x: the "
        "row sees the key, . it does not."
    )
    if not rows:
        return "\n".join([*heading, "They agree in every row."])
    widths = [max(len(row[i]) for row in [("", first, second), *rows]) for i in range(3)]
    line = lambda row: " | ".join(
        cell.ljust(width) for cell, width in zip(row, widths, strict=True)
    ).rstrip()
    rule = "-+-".join("-" * width for width in widths)
    lines = []
    for kind in (MEANING, SPELLING, ONLY_ONE):
        chosen = [row for row in rows if _kind(row) == kind]
        lines += ["", kind, line(("", first, second)), rule, *map(line, chosen)] if chosen else []
    notes = [f"{d.name}: {note}" for d in (one, two) for note in d.notes]
    notes += [f"{d.name}: dialect= also reads {calls}" for d in (one, two) if (calls := _other_calls(d))]
    reports = [f"{d.name}: {', '.join(d.issues[:3])}" for d in (one, two) if d.issues]
    errors = [str(error) for error in errors_of(first, second)]
    notes += ["", "Errors in code published as a reference", *errors] if errors else []
    notes += [f"Public reports  {'; '.join(reports)}"] if reports else []
    return "\n".join([*heading, *lines, "", "Besides", *notes])
