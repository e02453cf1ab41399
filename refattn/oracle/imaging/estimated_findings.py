"""What `Estimated` adds to the ledgers: explanations in words, and rows that nothing explains."""

from __future__ import annotations

import re

import numpy as np

from refattn.oracle.imaging.extra_keys import in_words as extra_in_words
from refattn.oracle.imaging.findings import Finding
from refattn.oracle.imaging.located import leaning
from refattn.oracle.imaging.maps import ranges
from refattn.oracle.imaging.moved_outputs import added_in_words, orders_in_words
from refattn.oracle.imaging.sources import Pages, page_rule

# explanations that are wholly in the weights, so that the ledgers tell them
OF_THE_LEDGERS = (
    "stop",
    "start",
    "shift (",
    "one key",
    "any set",
    "any weights",
    "factors of",
    "factor",
    "rows that are",
)
NUMBER = r"[+-]?\d+"
MOST_PAIRS, MOST_STEPS = 6, 4
MOST_ROWS, IMPRECISE = 0.8, 0.01  # of all; a smaller difference is a matter of bits


def findings(reading, regions):
    """Findings that the ledgers do not make, the most rows first."""
    families = {}
    for name, rows in reading.explained.items():
        if not name.startswith(OF_THE_LEDGERS):
            families.setdefault(family_of(name), {})[name] = rows
    found = []
    for names in sorted(families.values(), key=lambda names: -sum(rows.sum() for rows in names.values())):
        if len(names) > 1:
            found.append(_of_several(reading, regions, names))
            continue
        [(name, rows)] = names.items()
        kind, nature, note = _words(reading, name, rows)
        pairs = _pairs_of(reading, name, rows)
        found.append(_of_rows(reading, regions, rows, kind, nature, note, pairs, verified=True))
    if reading.unknown.any():
        found += _unknown(reading, regions)
    return found


def _pairs_of(reading, name, rows):
    """Pairs for which an explanation holds, and those of which nothing is known; None for one of rows."""
    if name not in reading.pairs:
        return None
    applied, unclear = reading.pairs[name]
    # rows that another fit of the same name explains have it for all keys
    return applied | (rows & ~applied.any(-1))[..., None] & reading.view.visible, unclear


def family_of(name):
    """A name without its numbers: what differs in a number only is one cause."""
    return re.sub(NUMBER, "#", name)


def _of_several(reading, regions, names):
    """One finding of explanations that differ in a number: where each number holds."""
    names = dict(sorted(names.items(), key=lambda item: -item[1].sum()))
    rows = np.logical_or.reduce([*names.values()])
    kind, nature, _ = _words(reading, next(iter(names)), names[next(iter(names))])
    several = [re.findall(NUMBER, name) for name in names]
    differs = [n for n, of in enumerate(zip(*several, strict=True)) if len(set(of)) > 1]
    places = []
    for numbers, of in zip(several, names.values(), strict=True):
        rule = regions.find(of[..., None], rows[..., None], True)
        places.append(f"{' and '.join(numbers[n] for n in differs)} where {rule}")
    counted = iter(range(len(several[0])))
    some = re.sub(NUMBER, lambda m: "N" if next(counted) in differs else m[0], next(iter(names)))
    nature = nature.replace(next(iter(names)), some)
    pairs = [_pairs_of(reading, name, of) for name, of in names.items() if name in reading.pairs]
    pairs = tuple(map(np.logical_or.reduce, zip(*pairs, strict=True))) if len(pairs) == len(names) else None
    note = f"N is {'; '.join(places[:MOST_PAIRS])}{'; ...' * (len(places) > MOST_PAIRS)}."
    return _of_rows(reading, regions, rows, kind, nature, note, pairs, verified=True)


def _of_rows(reading, regions, rows, kind, nature, note="", pairs=None, **more):
    """A finding of rows, or of the pairs of their keys for which an explanation holds."""
    right = np.broadcast_to(reading.view.row_exists, rows.shape)
    if pairs is None:
        rule = regions.find_places(rows[..., None], right[..., None], True)
    else:
        applied, unclear = pairs
        # of rows that are right all pairs are
        seen = reading.view.visible & ~unclear & (rows | ~reading.wrong_rows)[..., None]
        rule = regions.find_places(applied & ~unclear, seen)
    place = str(rule) if rule.statements else ""
    return Finding(
        kind, nature, place, note, rule.wrong, rule.hit, rule.right_inside, region=rule.inside, **more
    )


def _unknown(reading, regions):
    lean = leaning(reading, regions, min(2.0, max(reading.left(), 0.3)))
    rows = reading.unknown
    count = f"{int(rows.sum()):,} rows"
    if lean is not None:
        rule = regions.find(lean.pairs, (reading.view.weights > 0) & rows[..., None])
        nature = f"in {count} the weights or the values of some keys are off; how is not known"
        note = (
            f"As if these weights were {lean.factor:.3g} times what they should be, which accounts for "
            f"{lean.share:.0%} of the difference."
        )
        yield Finding(
            "unknown",
            nature,
            str(rule),
            note,
            rule.wrong,
            rule.hit,
            rule.right_inside,
            confident=False,
            region=rule.inside,
        )
    if reading.view.empty[rows].all():
        nature = f"{count} that see no key hold numbers that are no weighted mean of values, instead of 0"
        yield _of_rows(reading, regions, rows, "unknown", nature, confident=False)
        return
    if nature := _less_exact(reading):
        yield _of_rows(reading, regions, rows, "precision", nature)
        return
    nature = f"{count} are wrong in a way that their output alone does not show"
    note = _how_wrong(reading) + (" Not everything was tried: the time ended." if reading.stopped else "")
    yield _of_rows(reading, regions, rows, "unknown", nature, note.strip(), confident=False)


def _less_exact(reading):
    """Words for differences that are small in all rows, of computing with too few bits; "" for others."""
    rows, view = reading.unknown, reading.view
    size = _relative_size(reading)
    if not size.size or rows.sum() < MOST_ROWS * (view.visible.sum(-1) > 1).sum():
        return ""
    if not np.percentile(size, 95) < IMPRECISE:
        return ""
    step, what = np.median(size), "scores, exponentials, weights or values"
    if reading.lse is not None:
        known = rows & np.isfinite(reading.lse) & np.isfinite(view.lse)
        off = np.abs(reading.lse - view.lse)[known]
        if off.size and np.median(off) > 4 * np.median(np.abs(view.lse[known]) + 1) * 2.0**-24:
            what = f"scores or exponentials (lse is off too, by up to {off.max():.2g})"
        else:
            what = "weights or values, since lse is right,"
    bits = round(-np.log2(step))
    return (
        f"the result is less exact than the arithmetic allows: off by about {step:.1g} of its size, as "
        f"by steps of 2^-{bits}, all over: {what} are computed or stored with fewer bits"
    )


def _relative_size(reading):
    """Differences of unknown rows, over the size of the right result."""
    rows = reading.unknown
    with np.errstate(all="ignore"):
        off = np.abs(reading.output - reading.expected_output)[rows]
        right = np.abs(reading.expected_output)[rows]
        size = np.sqrt((off**2).mean(-1) / (right**2).mean(-1))
    return size[np.isfinite(size)]


def _how_wrong(reading):
    """How large the difference is."""
    size = _relative_size(reading)
    size = np.median(size) if size.size else np.nan
    return (
        f"The difference is {size:.2g} times the size of the right result (median)."
        if np.isfinite(size)
        else ""
    )


def _words(reading, name, rows):
    """Kind, nature and note of an explanation."""
    numbers = {word: values[rows] for word, values in reading.numbers.get(name, {}).items()}
    for told in (_of_a_number, _of_other_rows, _of_sources, _of_values):
        if words := told(reading, name, rows, numbers):
            return words
    if name == "columns in another order":
        return "columns", f"the right numbers stand in other columns: {orders_in_words(reading)}", ""
    if name in reading.curves:
        return "scores", f"{name.replace('that are off', 'are off')}: {reading.curves[name]}", ""
    if "stored" in name:
        return "format", name, ""
    if name.startswith("the ") and " is " in name:
        what = name.split(" is ")[0].removeprefix("the ")
        return what, name + ("; values are those of the right keys" if "key" in what else ""), ""
    return "scores", f"the result is that of {name}", ""


def _of_a_number(reading, name, rows, numbers):
    """Explanations by scores with one number in them."""
    if name == "hidden keys of one score":
        return (
            "extra keys",
            "hidden keys get weight, all of them the same score in place of -inf",
            f"The score is {_middle(numbers['score'])}.",
        )
    if name.startswith("another scale"):
        factor = (
            f"; and the output is {_middle(numbers['factor'])} times what it should be"
            if "factor" in numbers
            else ""
        )
        return (
            "scale",
            f"the scaled products are {_middle(1 + numbers['number'])} times what they should be{factor}",
            "",
        )
    if name == "another softcap":
        cap = reading.view.options["softcap"]
        words = f"the softcap is {_middle(cap * (1 + numbers['number']))}, it should be {cap:.4g}"
        return "softcap", words, ""
    if name == "part of softcap":
        return "softcap", f"{_middle(100 * numbers['number'])} percent of softcap are missing", ""
    if name == "bias or ALiBi times a number":
        return (
            "bias",
            f"the bias and ALiBi terms are {_middle(1 + numbers['number'])} times what they should be",
            "",
        )
    if name == "a slope along the keys":
        return "slope", f"the scores rise by {_middle(numbers['number'])} with each key", ""
    return None


def _of_other_rows(reading, name, rows, numbers):
    """Explanations by results of other rows, or by more keys than the row's own."""
    if name == "results of other rows added":
        if (np.abs(numbers["own"] + numbers["other"] - 1) < 1e-3).mean() > MOST_ROWS:
            nature = (
                "the row holds the merged result of its own keys and of another row's: the softmax state "
                "(maximum, sum and accumulator) of that row is not cleared, or is joined with it"
            )
            return "other row", nature, _places(reading, rows, numbers)
        own, times = _middle(numbers["own"]), f"times {_middle(numbers['other'])}"
        own = "" if own == "1" else f" (times {own})"
        what = added_in_words(reading, rows, numbers)
        other = f"namely {what} ({times})" if what else times
        nature = (
            f"the row holds the result of another row beside its own{own}, {other}: it is added to it, or "
            "not cleared before"
        )
        return "other row", nature, _places(reading, rows, numbers)
    if name.startswith("more keys, "):
        nature = f"the row sees more keys than its own: those {name.removeprefix('more keys, ')}"
        return "extra keys", nature, extra_in_words(reading, rows, numbers)
    if name == "results of other rows":
        return "other row", "rows hold the right result of another row", _places(reading, rows, numbers)
    return None


def _of_sources(reading, name, rows, numbers):
    """Explanations by keys and values from elsewhere."""
    if name.endswith("of another head or sequence"):
        if reading.view.latent and (numbers["of sequence"] == np.nonzero(rows)[0]).all():
            what = {
                "keys": "up-projection of the keys (w_uk)",
                "values": "up-projection of the values (w_uv)",
            }
            name = f"{what.get(name.split(' of ')[0], 'up-projections (w_uk, w_uv)')} of another head"
            return "source", f"the {name} is used", _heads(reading, rows, numbers)
        return "source", f"the {name} are used", _heads(reading, rows, numbers)
    if " of memory: " in name:
        what, words = name.split(" of memory: ")
        right = "weights" if what == "values" else "values"
        return "source", f"the {what} are read from memory with {words}; the {right} are right", ""
    if name.startswith(("keys and values", "keys of", "values of memory", "values of rows")):
        beside = "with the right values" if name.startswith("keys of") else ""
        beside = "with the right weights" if name.startswith("values of") else beside
        return "source", f"the {name} are used {beside}".rstrip(), ""
    if name == "other pages":
        nature = "other pages are read than the block table names"
        rule = _page_rule(reading)
        return "pages", f"{nature}: {rule}" if rule else nature, _pages(reading, rows)
    return None


def _of_values(reading, name, rows, numbers):
    """Explanations by right weights on other values."""
    if name.startswith("rows of"):
        return "values", f"the weights are right, but values are {name}", ""
    if name.startswith("values of other"):
        return "values", f"the weights are right, but multiply the {name}", _moves(reading, name)
    if name == "other values":
        return "values", "the weights are right, but other values are multiplied", _values(reading)
    if name.startswith("values of"):
        way = "from key {} on" if " from a key" in name else "up to (not with) key {}"
        of = name.split(" from a key")[0].split(" up to a key")[0]
        return (
            "values",
            f"the weights are right, but multiply the {of}, {way.format(_middle(numbers['choice']))}",
            "",
        )
    if name.startswith("values rounded"):
        return "format", f"the weights are right, but multiply {name}", ""
    return None


def _middle(values):
    """The median of numbers, and their range where they differ."""
    low, middle, high = np.percentile(values, (5, 50, 95))
    if abs(high - low) <= 2e-2 * max(abs(middle), 1e-9):
        return f"{middle:.4g}"
    return f"{middle:.4g} ({low:.4g} to {high:.4g})"


def _few(pairs):
    pairs = list(dict.fromkeys(pairs))
    return "; ".join(pairs[:MOST_PAIRS]) + ("; ..." if len(pairs) > MOST_PAIRS else "")


def _heads(reading, rows, numbers):
    view = reading.view
    b, h, _ = np.nonzero(rows)
    pairs = []
    for sequence, head, other_sequence, other in zip(
        b, view.heads[h], numbers["of sequence"], numbers["of head"], strict=True
    ):
        source = f"head {int(other)}" + (
            f" of sequence {int(other_sequence)}" if other_sequence != sequence else ""
        )
        pairs.append(
            f"query head {head}"
            + (f" of sequence {sequence}" if len(view.sequences) > 1 else "")
            + f" takes those of {source}"
        )
    return _few(pairs) + "."


def _steps(what, at, away, steps):
    """ "-32 for rows 64 to 95, -96 for rows 96 to 99"."""
    found = [(np.unique(at[away == step]), int(step)) for step in steps]
    found.sort(key=lambda entry: entry[0][0])
    return ", ".join(f"{step:+d} for {what}s {ranges(of.tolist())}" for of, step in found)


def _places(reading, rows, numbers):
    view = reading.view
    b, h, i = np.nonzero(rows)
    own = {"of sequence": b, "of head": view.heads[h], "of row": view.row[b, 0, i, 0]}
    words = []
    for what, at in own.items():
        away = numbers[what] - at
        if (away == away[0]).all():
            words += [f"{what[3:]} {int(away[0]):+d}"] if away[0] else []
        elif what == "of row" and len(steps := np.unique(away)) <= MOST_STEPS:
            words += [f"{what[3:]} {_steps(what[3:], at, away, steps)}"]
        else:
            words.append(
                f"{what[3:]}s "
                + _few(f"{int(a)} from {int(c)}" for a, c in zip(at, numbers[what], strict=True) if a != c)
            )
    return "It is that of " + ", ".join(words) + "." if words else ""


def _page_rule(reading):
    """A rule, in words, that gives the pages that were read from those of the block table; "" for none."""
    view, found, behind = reading.view, [], True
    for n, of_rows in reading.pages_of_rows.items():
        s = view.sequences[n]
        named = view.checked.block_table[s.part].tolist()
        own = named[: -(-s.length // view.page_size)]
        read = set().union(*(pages["all"] for pages in of_rows.values()))
        missing = [(t, page) for t, page in enumerate(own) if page not in read]
        extra = sorted(read - {*own})
        if extra or missing:
            found.append(Pages(n, s.part, own, read, missing, extra))
            behind &= not missing and {*extra} <= {*named}
    if found and behind:
        return "those that it holds past the length of the sequence count too"
    return page_rule(found, view, sure=True).removesuffix(": ") if found else ""


def _pages(reading, rows):
    words = []
    for n, of_rows in reading.pages_of_rows.items():
        for pages in of_rows.values():
            if rows[n].any() and (pages["instead of"] or pages["read"]):
                some = lambda numbers: (
                    ", ".join(map(str, numbers[:6])) + ("..." if len(numbers) > 6 else "") or "none"
                )
                words.append(f"sequence {n}: {some(pages['read'])} instead of {some(pages['instead of'])}")
    away = {
        b - a
        for of_rows in reading.pages_of_rows.values()
        for pages in of_rows.values()
        if len(pages["read"]) == len(pages["instead of"])
        for a, b in zip(pages["instead of"], pages["read"], strict=True)
    }
    rule = f" Each is the right one {next(iter(away)):+d}." if len(away) == 1 else ""
    return _few(words) + "." + rule


def _moves(reading, name):
    words, away = [], set()
    for (of, n), moves in reading.tile_moves.items():
        if of == name:
            words += [
                f"{b} instead of {a}" + (f" (sequence {n})" if len(reading.view.sequences) > 1 else "")
                for a, b in moves
            ]
            away |= {b - a for a, b in moves}
    return f"Number {_few(words)}." + (
        f" Each is the right one {next(iter(away)):+d}." if len(away) == 1 else ""
    )


def _values(reading):
    words = []
    for (_, head), change in reading.value_changes.items():
        keys = np.flatnonzero((change != 0).any(-1))
        columns = np.flatnonzero((change != 0).any(0))
        words.append(
            f"key/value head {head}: {len(keys)} keys from {keys.min()} to {keys.max()}, "
            f"columns {columns.min()} to {columns.max()}"
        )
    return _few(words) + "."
