"""In which order `check_kernel(seconds=)` runs its tests: first what finds most for its cost.

The worth of a test is the share of mistakes that it is expected to find, over the seconds it is expected to
take. `SHARES` are estimates for one test of a section or a family of inputs, among mistakes of tiles, pages,
sequences, options and memory. Tests of one family with the same options look for the same mistakes: the n-th
of them is expected to find its share of what the n - 1 before it left. So every option is tried over several
tiles early. The seconds follow from the sizes: so much for every sequence or block, and for every score of
the rows that are judged.
"""

from __future__ import annotations

from collections import Counter

from refattn.oracle.harness.bench import ALL_ROWS
from refattn.oracle.verdict.picked_rows import score_count

SMALL_CALLS = 0.08  # of any other family
SHARES = {
    "options together": 0.20,
    "tiles": 0.15,
    "hidden tiles": 0.25,
    "pages": 0.25,
    "sequences": 0.25,
    "exact": 0.05,
    "identities": 0.05,
    "hidden slots": 0.10,
    "guards": 0.05,
    "repeatable": 0.40,
    "strides": 0.10,
}
JUDGED_ROWS = 100  # of a head with more than ALL_ROWS
SECONDS_A_PART = 0.03  # a sequence or a block
SECONDS_A_SCORE = 2.5e-7
SECONDS_WITHOUT_INPUTS = 0.3  # identities, repeated calls


def by_worth(tests) -> list:
    """The tests, those first that find most for their cost."""
    seen, worth = Counter(), {}
    for test in tests:
        share = SHARES.get(test.topic, SMALL_CALLS)
        alike = test.topic, *(() if test.inputs is None else sorted(test.inputs.options))
        worth[test.id] = share * (1.0 - share) ** seen[alike] / expected_seconds(test.inputs)
        seen[alike] += 1
    return sorted(tests, key=lambda test: -worth[test.id])


def expected_seconds(inputs) -> float:
    """What judging a call takes, from its sizes."""
    if inputs is None or inputs.function == "merge_states":
        return SECONDS_WITHOUT_INPUTS
    scores, parts = score_count(inputs.function, inputs.arrays, inputs.options)
    rows = inputs.arrays[0].shape[-2]
    judged = 1.0 if rows <= ALL_ROWS else JUDGED_ROWS / rows
    return SECONDS_A_PART * max(parts, 1) + SECONDS_A_SCORE * scores * judged
