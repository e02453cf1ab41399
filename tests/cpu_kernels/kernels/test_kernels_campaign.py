"""Random calls of every function, each from its own seed; `python
tests/cpu_kernels/kernels/test_kernels_campaign.py 5000 [first seed]` runs as many as wanted, with this
checkout and its tests/support on PYTHONPATH.

A failure names the seed: `run(seed)` repeats it.
"""

import os
import sys
import zlib

import numpy as np
import pytest
from cases import LAYOUTS, Case, Sizes
from families import FAMILIES
from kernel_checks import FUNCTIONS, assert_right

# Options that only just fit, or do not fit float32; drawn last, so that the other draws of a seed stay what
# they were.
EDGES = [
    ("softcap", 1e39),
    ("softcap", 1e-39),
    ("softcap", 1e-300),
    ("scale", 1e25),
    ("scale", 1e-40),
    ("scale", -1e-300),
    ("q_offset", 2**53),
    ("q_offset", -(2**53)),
    ("window", (2**62, None)),
    ("window", (None, 2**62)),
]

CALLS = int(os.environ.get("REFATTN_CAMPAIGN", 200))
CHUNK = 50


def draw(seed):
    """One random case and dtype."""
    rng = np.random.default_rng([seed, zlib.crc32(b"kernel campaign")])

    def pick(*values):
        return values[rng.integers(len(values))]

    def length():
        return int(
            pick(
                rng.integers(0, 4),
                rng.integers(1, 40),
                rng.integers(1, 40),
                rng.integers(40, 150),
                pick(1, 63, 64, 65, 96, 97, 129, 193),
            )
        )

    def dim():
        return int(pick(rng.integers(1, 20), rng.integers(1, 140), pick(16, 32, 64, 80, 96, 128)))

    function = pick(*FUNCTIONS, "attention", "attention")
    batch = (
        pick((), (1,), (2,), (1, 2))
        if function != "paged_attention" and function != "packed_attention"
        else (int(rng.integers(1, 4)),)
    )
    q_len, kv_len = length(), length()
    if function == "block_local_attention":
        kv_len = q_len
    page_size = int(pick(1, 3, 8, 16, 32))
    if function == "paged_attention":
        kv_len = -(-kv_len // page_size) * page_size
    q_len, kv_len = (max(n, 1) if function == "packed_attention" else n for n in (q_len, kv_len))
    sizes = Sizes(
        batch,
        int(pick(1, 2, 3)),
        int(pick(1, 1, 2, 3, 4, 8, 17)),
        q_len,
        kv_len,
        dim(),
        dim(),
        page_size,
        int(pick(1, 7, 64, 100)),
        dim() % 40 + 1,
        dim() % 20,
        dim() % 60 + 1,
    )
    options = {}

    def maybe(name, chance, *values):
        return options.update({name: pick(*values)}) if rng.random() < chance else None

    maybe("causal", 0.5, True)
    maybe("window", 0.25, (3, 2), (50, 0), (None, 7), (20, None), (0, 0), (200, 200))
    maybe("scale", 0.2, 0.3, -0.5, 0.0)
    maybe("softcap", 0.2, 0.7, 5.0, 30.0)
    maybe("alibi_slopes", 0.2, "heads")
    maybe("sinks", 0.2, "heads", "some", "off")
    if function == "paged_attention" or rng.random() < 0.2:
        options["kv_lengths"] = "array"
    if function not in ("block_local_attention",):
        maybe("q_offset", 0.25, "array") if batch or function == "packed_attention" else maybe(
            "q_offset", 0.25, 0, -3, 11
        )
    if function != "packed_attention" or rng.random() < 0.5:
        wide = "bhts" if function != "packed_attention" else "ts"
        maybe("bias", 0.2, "ts", f"{wide}:inf", "s", "t1", f"{wide}:big")
        maybe("mask", 0.2, "ts", wide, "s", f"{wide}:rows")
        maybe("dropout", 0.15, ("ts", 0.3), (wide, 0.5))
    if function == "packed_attention" and (options.get("kv_lengths") or options.get("q_offset")):
        options.pop("kv_lengths", None)
    if function == "latent_attention":
        options["form"] = pick("absorb", "expand")
    family = pick("ordinary", *FAMILIES)
    layout = pick(*LAYOUTS)
    if rng.random() < 0.08:
        name, value = EDGES[rng.integers(len(EDGES))]
        if name != "q_offset" or function != "block_local_attention":
            options[name] = value
    return Case(f"campaign-{seed}", function, sizes, options, seed, family, layout), pick(
        "float32", "float32", "float64"
    )


def run(seed):
    case, dtype = draw(seed)
    arrays, options = case.build(dtype)
    assert_right(case.function, arrays.values(), options, dtype)


@pytest.mark.sample(4)
@pytest.mark.parametrize("first", range(0, CALLS, CHUNK))
def test_campaign(first):
    for seed in range(first, min(first + CHUNK, CALLS)):
        try:
            run(seed)
        except Exception as error:
            raise AssertionError(f"seed {seed}, {draw(seed)}: {error}") from error


if __name__ == "__main__":
    count, start = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    failed = 0
    for number in range(start, start + count):
        try:
            run(number)
        except Exception as error:
            failed += 1
            print(f"seed {number}: {draw(number)}\n{type(error).__name__}: {error}", flush=True)
    print(f"{count} calls, {failed} failed")
    sys.exit(failed > 0)
