"""From the ledgers to words: what differs, by the stage of the kernel that it points to, and where."""

from __future__ import annotations

import numpy as np

from refattn.oracle.xray.compare import EXTRA, MISSING, RIGHT, SCALED
from refattn.oracle.xray.findings import Finding


def describe(measured, ledgers, regions):
    found = []
    for part in (_races, _columns, _lost_rows, _zero_rows, _missing, _extra, _scaled, _sums, _lse, _values):
        found.extend(part(measured, ledgers, regions))
    return found


def _finding(rule, kind, nature, note="", **more):
    return Finding(kind, nature, str(rule) if rule.statements else "", note, rule.wrong, rule.hit, rule.right_inside, region=rule.inside, **more)


def _races(m, l, regions):
    if m.varies.any():
        rule = regions.find(m.varies[..., None], m.view.row_exists[..., None], True)
        yield _finding(rule, "race", "the same call gives different results")


def _columns(m, l, regions):
    if m.wrong_columns.any():
        bad = np.flatnonzero(m.wrong_columns)
        yield Finding("columns", f"columns {bad[0]} to {bad[-1]} of the output ({len(bad)} of {len(m.wrong_columns)}) are wrong")


def _lost_rows(m, l, regions):
    if l.nan.any():
        rule = regions.find(l.nan[..., None], m.view.row_exists[..., None], True)
        yield _finding(rule, "NaN rows", "rows are NaN")


def _zero_rows(m, l, regions):
    if l.zero.any():
        rule = regions.find(l.zero[..., None], m.view.row_exists[..., None], True)
        yield _finding(rule, "zero rows", "rows are 0")


def _missing(m, l, regions):
    wrong = l.labels == MISSING
    if wrong.any():
        rule = regions.find(wrong, l.judged & (m.view.weights > 0))
        yield _finding(rule, "missing keys", "keys that should be seen get no weight")


def _extra(m, l, regions):
    wrong = l.labels == EXTRA
    if wrong.any():
        rule = regions.find(wrong, l.judged & (m.view.weights == 0))
        yield _finding(rule, "extra keys", "keys that should be hidden get weight")


def _scaled(m, l, regions):
    wrong = l.labels == SCALED
    if wrong.any():
        rule = regions.find(wrong, l.judged & (m.view.weights > 0))
        d = (l.ratio - l.shift[..., None])[wrong]
        yield _finding(rule, "scaled", f"weights are off by factors {np.exp(np.nanmin(d)):.3g} to {np.exp(np.nanmax(d)):.3g}")


def _sums(m, l, regions):
    wrong = l.sum_off != 0
    if wrong.any():
        rule = regions.find(wrong[..., None], m.view.row_exists[..., None], True)
        d = l.sum_off[wrong]
        yield _finding(rule, "sum", f"the weights of a row sum to {np.exp(d.min()):.4g} to {np.exp(d.max()):.4g} of what they should")


def _lse(m, l, regions):
    wrong = l.lse_off != 0
    if wrong.any():
        rule = regions.find(wrong[..., None], m.view.row_exists[..., None], True)
        d = l.lse_off[wrong]
        yield _finding(rule, "lse", f"lse is off by {np.nanmin(d):.4g} to {np.nanmax(d):.4g}")


def _values(m, l, regions):
    bad = m.unexplained > 1
    if bad.any():
        rows = bad.any(-1)
        rule = regions.find(rows[..., None], m.view.row_exists[..., None], True)
        yield _finding(rule, "values", f"the output is not what the measured weights make of the values (columns {np.flatnonzero(bad.any((0,1,2)))[:5]}...)")
