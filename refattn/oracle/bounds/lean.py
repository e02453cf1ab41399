"""Bias: do the errors of a kernel lean to one side more than its spec's rounding makes them?

The statistic is a sum of error / sigma, each with a sign: +1 everywhere (the errors lean up or down), or the
sign of the exact result (they lean away from zero or toward it). Such a sum is one linear functional of a
row's results, so its variance is not guessed from a count of independent errors: with W = sign / sigma and
g_j = sum_c W_c v_jc, an error delta_j of the score of key j moves it by a_j delta_j, a_j = p_j (g_j - sum_k
p_k g_k). What errors have in common within a row, through the same weights and the same row sum, is then in
the numbers. `README.md` in this folder, section 4, has the rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from refattn.oracle.arithmetic.formats import round_to
from refattn.oracle.bounds.repeated_keys import MOST_GROUPS
from refattn.oracle.bounds.score_error import ROUNDING_VARIANCE
from refattn.oracle.bounds.single import COARSE_WEIGHTS
from refattn.oracle.bounds.tile_sums import row_sums, times

WORDS = {"up": ("upward", "downward"), "away": ("away from zero", "toward zero")}
FEWEST = 45.0  # independent errors of which a mean of one sigma could be told from chance
# The deviation before the output's rounding is known to a factor: between these the rounding is a known
# number or a random one.
NARROWER, WIDER = 1.0 / 3.0, 2.0
# a kernel's own weights, relative to an earlier maximum, may be rounded by as much more in the mean as the
# exact ones
KNOWN = 1.5
RUNS = 32  # places of a row at which a common factor of the keys before is looked at
SIGNATURE_BITS = 30
NOT_FINITE = np.uint64(0x7FF << 52)  # bits of float64's infinity


@dataclass
class OutputModel:
    """What the statistical bound knows of a tile's outputs, for the variance of a signed sum. Shapes (R, E)
    unless said.
    """

    error: object
    # variance of the roundings that each result makes for itself, over sigma^2; not those of its own writing
    own: np.ndarray
    # |error| / sigma that may have one sign everywhere: truncation, equal terms that lose the same, what is
    # lost below the last digit
    shared: np.ndarray
    before: np.ndarray  # deviation of the error before the result is written
    row_sum: np.ndarray  # (R, 1): variance of the relative error of the row sum
    latent: np.ndarray | None  # (R, C) or None: variance of the latent output, absorbed form
    conversion: object  # of the weights: `tight.Conversion`
    joined: object  # (R, 1) or float: deviation of one split's lse

    def sums(self, tile, spec, compared, copies):
        """(side, the sums of the rows' signed errors), one for each side of the result."""
        error, scaled, usual = compared.usual_error, compared.over_sigma, compared.usual
        middle, spread = written_mean(compared.expected, self.before, compared.result.form(spec))
        rows, copies = _Rows(tile, spec, self), copies.of(compared.expected)
        for side in compared.result.leans:
            signs = scaled * (np.sign(compared.expected) if side == "away" else 1.0)
            sums = rows.of(signs, usual)
            sums["total"] = (signs * (error - middle)).sum(axis=1)
            sums["own"] = rows.own(signs, scaled, usual, copies)
            sums["signed"] = _aligned([*sums["signed"], (signs * spread).sum(axis=1)])
            yield side, sums


@dataclass
class LseModel:
    """The same of a tile's lse, (R,): variance, |error| of one sign, and errors whose sign all rows
    share."""

    own: np.ndarray
    shared: np.ndarray
    common: list[np.ndarray]

    def sums(self, tile, spec, compared, copies):
        """As `OutputModel.sums`, one element a row."""
        form, expected = compared.result.form(spec), compared.expected[:, 0]
        error, scaled = compared.usual_error[:, 0], compared.over_sigma[:, 0]
        middle, spread = written_mean(expected, np.sqrt(self.own), form)
        writing = form.step(expected) ** 2 / 12.0
        signed = [*(scaled * part for part in self.common), scaled * spread]
        if tile.key.largest_error is not None:
            rounding = _rounding(tile.key, tile, spec)
            shift = tile.scale * row_sums(tile.weights, tile.q.exact @ rounding.T)[:, 0]
            signed.append(scaled * shift)
        yield (
            "up",
            {
                "total": scaled * (error - middle),
                "row": scaled**2 * (self.own + writing),
                "own": np.zeros_like(scaled),
                "signed": _aligned(signed),
                "shared": scaled * self.shared,
            },
        )


def written_mean(exact, before, form):
    """Mean error of rounding exact + x to a format, x of deviation `before` or a few times more or less: its
    middle, and half its range.

    The rounding of the exact number where x is small beside a step, 0 where it is not; between them the
    first harmonic, as for sigma.
    """
    step = form.step(exact)
    known = round_to(exact, form) - exact
    known = np.where((step > 0) & (np.abs(known) <= step), known, 0.0)
    most, least = (
        np.exp(-2.0 * np.pi**2 * (factor * before / np.where(step > 0, step, 1.0)) ** 2)
        for factor in (NARROWER, WIDER)
    )
    return 0.5 * (most + least) * known, 0.5 * (most - least) * known


def coarse_key(exact):
    """A number for the magnitude rounded to 40 bits, uint64; that of 0 for what is not finite."""
    bits = np.abs(exact).view(np.uint64)
    bits = np.where(bits < NOT_FINITE, bits, 0) if bits.max(initial=0) >= NOT_FINITE else bits
    return (bits + np.uint64(2**12)) >> np.uint64(13)


class Copies:
    """How often each number occurs in a result, in the rows that are looked at: copies round alike."""

    def __init__(self, exact):
        keys = np.sort(coarse_key(np.concatenate([part.ravel() for part in exact])))
        again = np.flatnonzero(keys[1:] == keys[:-1])
        # the numbers that occur more than once, and how often; few results hold any
        self._keys, times = np.unique(keys[again], return_counts=True)
        self._more = np.append(times, 0)

    def of(self, exact):
        if not len(self._keys):
            return 1
        keys = coarse_key(exact)
        at = np.searchsorted(self._keys, keys)
        found = self._keys[np.minimum(at, len(self._keys) - 1)] == keys
        return 1 + np.where(found, self._more[at], 0)


def signature(tile):
    """A number of each row, (R,), that rows share whose scores are the same, or the same but for a power of
    two, because positions, a few levels or repeated queries decide them: the fraction of the smallest step
    below the maximum."""
    drop = tile.drop.min(axis=1, initial=np.inf, where=tile.drop > 1e-9)
    return _rounded(np.frexp(drop.astype(np.float64))[0])


def _rounded(x):
    fraction, exponent = np.frexp(np.where(np.isfinite(x), x, 0.0))
    return np.where(np.isfinite(x), np.ldexp(np.round(fraction * 2.0**SIGNATURE_BITS), exponent), np.inf)


class Lean:
    """The signed sums of one result, row by row: a call's and, because a fault may have one sign in one
    head and the other in the next, a head's.

    After `judge`, `found` holds the side with the largest mean beside what is allowed (mean, limit,
    independent, direction, head (None: the call)), or None.
    """

    FIELDS = ("total", "row", "own", "signed", "shared", "count")

    def __init__(self, result, exact, looked_at=None):
        """`looked_at`: the parts of the exact result whose rows are looked at; all by default."""
        self.result, row_shape = result, result.row_shape(exact.shape)
        self.sums = {side: {field: np.zeros(row_shape) for field in self.FIELDS} for side in result.leans}
        self.signature, self.level = np.full(row_shape, np.nan), np.full(row_shape, np.nan)
        self.copies = Copies([exact] if looked_at is None else looked_at)
        self.found = None

    def update(self, tile, spec, compared):
        """Take in one tile, compared."""
        # one rounding of a projection weight reaches every result: nothing averages out
        if tile.shared_rounding or not compared.got.size:
            return
        with np.errstate(all="ignore"):
            tile.place.write_rows(self.result, self.signature, signature(tile))
            tile.place.write_rows(self.result, self.level, _rounded(tile.maximum))
            for side, sums in compared.bound.model.sums(tile, spec, compared, self.copies):
                self._add(side, tile, sums, compared.usual)

    def _add(self, side, tile, sums, usual):
        fine = np.isfinite(sum(np.abs(part) for part in sums.values()))
        for name, part in sums.items():
            tile.place.write_rows(self.result, self.sums[side][name], np.where(fine, part, 0.0))
        tile.place.write_rows(self.result, self.sums[side]["count"], np.where(fine, usual.sum(axis=1), 0))

    def judge(self, failure_probability):
        """Whether the call, or a head of it, leans; keeps the largest mean beside what is allowed in
        `found`."""
        with np.errstate(all="ignore"):
            times = _times(self.signature)
            if self.result.follows_maximum:
                times = np.maximum(times, _times(self.level))
            heads = max(math.prod(self.signature.shape[:-1]), 1)
            found = []
            for side, sums in self.sums.items():
                for axes, tests in ((None, 1), (-1, heads)):
                    multiplier = math.sqrt(
                        2.0 * math.log(4.0 * len(self.sums) * tests / failure_probability)
                    )
                    add = lambda part, axes=axes: np.asarray(part.sum(axis=axes), dtype=np.float64).ravel()
                    variance = add(times * sums["row"]) + add(sums["own"])
                    count = np.maximum(add(sums["count"]), 1.0)
                    independent = np.minimum(
                        np.where(variance > 0, count**2 / np.where(variance > 0, variance, 1.0), count),
                        count,
                    )
                    limit = (
                        multiplier * np.sqrt(variance) + np.abs(add(sums["signed"])) + add(sums["shared"])
                    ) / count
                    found += [self._finding(side, add(sums["total"]) / count, limit, independent, axes)]
            self.found = max(
                filter(None, found), key=lambda one: abs(one["mean"]) / one["limit"], default=None
            )
        return self.found is not None and abs(self.found["mean"]) > self.found["limit"]

    def _finding(self, side, mean, limit, independent, axes):
        told = (independent >= FEWEST) & (limit > 0)
        if not told.any():
            return None
        at = int(np.where(told, np.abs(mean) / np.where(told, limit, 1.0), -1.0).argmax())
        head = (
            None if axes is None else tuple(int(i) for i in np.unravel_index(at, self.signature.shape[:-1]))
        )
        direction = WORDS[side][int(mean[at] < 0)]
        return {
            "mean": float(mean[at]),
            "limit": float(limit[at]),
            "independent": float(independent[at]),
            "direction": direction,
            "head": head,
        }


def _times(signatures):
    """How often each row's signature occurs."""
    _, inverse, counts = np.unique(signatures, return_inverse=True, return_counts=True)
    return counts[inverse].reshape(signatures.shape)


def _aligned(signed):
    """The sum of errors of unknown sign that all rows share, each turned to add up to a positive number over
    the rows, (R,)."""
    return sum((part * np.where(part.sum() < 0, -1.0, 1.0) for part in signed), 0.0)


class _Rows:
    """The functional of one tile's rows: its variance, what is shared, what is signed."""

    def __init__(self, tile, spec, model):
        self.tile, self.spec, self.model = tile, spec, model
        error = model.error
        self.apart = None if not error.level.any() else ~error.level
        self.variance = self._apart(error.variance)
        self.below_top = self._apart((tile.drop > 0).astype(tile.dtype))
        self.common = [self._apart(part) for part in error.common]
        self.output = np.where(np.isfinite(tile.output), tile.output, 0.0)

    @cached_property
    def key_rounding(self):
        return _rounding(self.tile.key, self.tile, self.spec)

    @cached_property
    def value_rounding(self):
        return _rounding(self.tile.value, self.tile, self.spec)

    def _apart(self, array):
        """0 in rows whose scores all have one error."""
        return array if self.apart is None else array * self.apart.astype(array.dtype)

    def of(self, signs, usual):
        tile, model = self.tile, self.model
        centre = (signs * self.output).sum(axis=1, keepdims=True)
        # (R, E) @ (E, S): W . v_j, in a power of two that keeps squares of 1 / sigma in range
        unit = 2.0 ** np.ceil(np.log2(np.maximum(np.abs(signs).max(initial=0.0), np.finfo(float).tiny)))
        in_units = (signs / unit).astype(tile.dtype)
        moved = in_units @ tile.v.exact.T
        moved *= tile.kept
        centre = centre / unit
        both = moved - tile.weights * tile.per_row(centre)
        variance = self._square(both, self.variance) + model.row_sum[:, 0] * centre[:, 0] ** 2
        signed = [row_sums(both, part)[:, 0] for part in self.common]
        variance = variance + sum(part**2 for part in signed)
        # an exponential that errs to one side is exact at the row maximum, or errs there in all rows alike
        signed.append(self.spec.exp_error * row_sums(both, self.below_top)[:, 0])
        if model.conversion is not None:
            variance = variance + self._converted(moved, both, centre, signed)
        variance = variance + self._factors(both) + self._operands(both, in_units, signed)
        return {
            "row": variance * unit**2,
            "signed": [part * unit for part in signed],
            "shared": np.where(usual, model.shared, 0.0).sum(axis=1),
        }

    def _converted(self, moved, both, centre, signed):
        """Variance of converting the weights; what the roundings of the exact weights make is added to
        `signed`."""
        conversion = self.model.conversion
        rounded = self.spec.denominator == "rounded"
        factors = (
            [both]
            if rounded and not self.tile.dropout
            else [moved, self.tile.weights * self.tile.per_row(centre)]
            if rounded
            else [moved]
        )
        variance = 0.0
        for factor in factors:
            variance = variance + np.maximum(
                self._square(factor, conversion.step_square) / 12.0,
                self._square(factor, conversion.exact_square),
            )
            signed.append(KNOWN * row_sums(factor, conversion.exact)[:, 0])
        return variance

    def _factors(self, both):
        """One inexact factor for all keys before a place: a rescaling, the lse of a split."""
        error, spec = self.model.error, self.spec
        edges = np.unique(np.linspace(0, both.shape[1], min(RUNS, max(both.shape[1], 1)) + 1).astype(int))[
            :-1
        ]
        if not len(edges) or not both.shape[1]:
            return 0.0
        runs = np.add.reduceat(both, edges, axis=1).astype(np.float64, copy=False)
        largest = np.abs(np.cumsum(runs, axis=1)).max(axis=1) ** 2
        one = spec.exp_error**2 / 3.0 + ROUNDING_VARIANCE * 4.0 * spec.softmax.unit_roundoff**2
        return largest * (
            error.rises[:, 0] * one
            + np.broadcast_to(np.asarray(self.model.joined) ** 2, (len(both), 1))[:, 0]
        )

    def _operands(self, both, signs, signed):
        """Roundings of query, key and value on load: the query's shift one row, those of a key and a value
        all rows that see it."""
        tile, variance = self.tile, 0.0
        query, key, value = tile.query, tile.key, tile.value
        if query.largest_error is not None:
            by_dim = tile.scale * times(both, tile.k.exact)
            variance = variance + ROUNDING_VARIANCE * ((query.typical_error * by_dim) ** 2).sum(axis=1)
            signed.append((by_dim * _rounding(query, tile, self.spec)).sum(axis=1))
        rows = max(len(both), 1)
        for operand, rounding, weights, columns in (
            (key, self.key_rounding, both, tile.scale * tile.q.exact),
            (value, self.value_rounding, tile.kept, signs),
        ):
            if rounding is not None:
                shared = weights.T @ columns  # [S, R] @ [R, C] -> [S, C]
                shared *= operand.typical_error
                variance = variance + ROUNDING_VARIANCE * float(np.vdot(shared, shared)) / rows
                signed.append((columns * times(weights, rounding)).sum(axis=1))
        return variance

    def own(self, signs, scaled, usual, copies):
        """Variance of what each result rounds for itself, (R,); its copies round alike."""
        writing = np.maximum(1.0 - (self.model.before * scaled) ** 2, 0.0)
        variance = (np.where(usual, (self.model.own + writing) * copies, 0.0)).sum(axis=1)
        if self.model.latent is not None:
            variance = variance + (self.model.latent * (signs @ self.tile.w_uv) ** 2).sum(axis=1)
        return variance

    def _square(self, factor, squares):
        """Sum of factor^2 squares over the keys, (R,); the terms of equal keys also summed up first."""
        total, repeats = row_sums(factor * factor, squares)[:, 0], self.tile.repeats
        terms = lambda members: factor[:, members] * np.sqrt(squares[:, members])
        if len(repeats) > MOST_GROUPS:
            return total + sum(len(members) * (terms(members) ** 2).sum(axis=1) for members in repeats)
        return total + sum(terms(members).sum(axis=1) ** 2 for members in repeats)


def _rounding(operand, tile, spec):
    """What loading an operand, or storing it where the kernel forms it (latent attention), does to it; None
    where it is exact."""
    if operand.largest_error is None:
        return None
    form = max(spec.input, spec.intermediate, key=lambda form: form.unit_roundoff)
    # float32 shows the roundings of formats that are much coarser
    dtype = tile.dtype if form.unit_roundoff >= COARSE_WEIGHTS else np.float64
    exact = operand.exact.astype(dtype, copy=False)
    return (round_to(exact, form) - exact).astype(tile.dtype, copy=False)
