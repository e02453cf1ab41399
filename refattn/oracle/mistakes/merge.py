"""Wrong ways to merge attention states, as functions (outputs, lses) -> (output, lse)."""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class MergeMistake:
    """A broken `merge_states`; same words as `Mistake`."""

    id: str
    says: str
    merge: object
    issues: tuple[str, ...] = ()


def merged(outputs, lses, *, exp=np.exp, log=np.log, weights=None, safe=True):
    """Merge states with replaceable parts; correct as it stands."""
    outputs, lses = np.asarray(outputs, np.float64), np.asarray(lses, np.float64)
    with np.errstate(all="ignore"):
        top = lses.max(0)
        base = np.where(top == -np.inf, 0, top) if safe else top
        w = exp(lses - base) if weights is None else weights(lses)
        total = w.sum(0)
        output = (w[..., None] * outputs).sum(0)
        if not safe:
            return output / total[..., None], base + log(total)
        output = np.where(total[..., None] == 0, 0, output / np.where(total == 0, 1, total)[..., None])
        return output, np.where(total == 0, -np.inf, base + log(np.where(total == 0, 1, total)))


def _unweighted(outputs, lses):
    return np.mean(np.asarray(outputs, np.float64), axis=0), merged(outputs, lses)[1]


def _lse_added(outputs, lses):
    return merged(outputs, lses)[0], np.sum(np.asarray(lses, np.float64), axis=0)


def _not_normalised(outputs, lses):
    output, lse = merged(outputs, lses)
    top = np.max(np.asarray(lses, np.float64), axis=0)
    with np.errstate(all="ignore"):
        return np.where(top[..., None] == -np.inf, 0, output * np.exp(lse - top)[..., None]), lse


def _swallows_nan(outputs, lses):
    return merged(np.nan_to_num(np.asarray(outputs, np.float64)), np.where(np.isnan(lses), -np.inf, lses))


MERGES = (
    MergeMistake(
        "merge_unweighted",
        "states are averaged without their lse weights",
        _unweighted,
        ("flashinfer-ai/flashinfer #4051",),
    ),
    MergeMistake(
        "merge_empty_nan",
        "two empty states give NaN",
        lambda o, m: merged(o, m, safe=False),
        ("flashinfer-ai/flashinfer #4054", "vllm-project/vllm #28181"),
    ),
    MergeMistake(
        "merge_base_two",
        "natural lse is merged with exp2",
        lambda o, m: merged(o, m, exp=np.exp2, log=np.log2),
        ("sgl-project/sglang #35045",),
    ),
    MergeMistake("merge_drops_last", "the last state is dropped", lambda o, m: merged(o[:-1], m[:-1])),
    MergeMistake(
        "merge_lse_is_maximum",
        "the merged lse is the maximum of the parts",
        lambda o, m: (merged(o, m)[0], np.max(np.asarray(m, np.float64), axis=0)),
    ),
    MergeMistake("merge_lse_summed", "the merged lse is the sum of the parts", _lse_added),
    MergeMistake("merge_not_normalised", "the weighted sum is not divided by its weights", _not_normalised),
    MergeMistake(
        "merge_weighted_by_lse",
        "states are weighted by lse itself, not its exponential",
        lambda o, m: merged(o, m, weights=lambda lse: np.where(np.isfinite(lse), lse, 0)),
    ),
    MergeMistake(
        "merge_plus_inf_is_empty",
        "an empty state is expected to have lse +inf",
        lambda o, m: merged(o, np.where(np.isposinf(m), -np.inf, np.where(np.isneginf(m), 0, m))),
        ("Dao-AILab/flash-attention #978",),
    ),
    MergeMistake(
        "merge_swallows_nan",
        "a NaN state counts as empty",
        _swallows_nan,
        ("flashinfer-ai/flashinfer state.cuh",),
    ),
    MergeMistake(
        "merge_lse_half",
        "lse differences are halved",
        lambda o, m: (merged(o, np.asarray(m) / 2)[0], merged(o, m)[1]),
    ),
    MergeMistake(
        "merge_lse_in_base_two",
        "the merged lse is in base 2",
        lambda o, m: (merged(o, m)[0], merged(o, m)[1] / math.log(2)),
    ),
)
