"""What `check_kernel` runs on dense attention, and what hides where."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from refattn.oracle.inputs.corners import corner_cases
from refattn.oracle.inputs.dense_tiles import tile_cases
from refattn.oracle.inputs.families import OPTION_NAMES, AttentionInputs, Sizes, attention_inputs
from refattn.oracle.inputs.pairs import option_pair_cases
from refattn.oracle.inputs.published import published_cases
from refattn.oracle.inputs.suites import DENSE_SUITE, SHAPED_SUITE, exact_cases
from refattn.oracle.inputs.tiles import TILES
from refattn.oracle.inputs.variants import FULL_SEEDS, hidden_pair, named

QUICK_SHAPES = 7  # of SHAPED_SUITE
RANDOM_CALLS = 100

# one of everything, sizes around a tile, more rows than keys, uncommon dims and head ratios
EDGES = {
    "one row": Sizes(q_len=1),
    "one key": Sizes(kv_len=1, q_len=1),
    "one head": Sizes(num_heads=1, num_kv_heads=1),
    "head_dim 1": Sizes(head_dim=1, v_head_dim=1),
    "63 keys": Sizes(kv_len=63),
    "64 keys": Sizes(kv_len=64),
    "65 keys": Sizes(kv_len=65),
    "more rows than keys": Sizes(q_len=37, kv_len=23),
    "head_dim 128": Sizes(batch=1, head_dim=128, v_head_dim=128),
    "odd head_dim": Sizes(head_dim=33, v_head_dim=7),
    "multi-query": Sizes(num_heads=8, num_kv_heads=1),
    "multi-head": Sizes(num_heads=3, num_kv_heads=3),
}
# nothing of it, sizes around larger tiles, large dims
FULL_EDGES = {
    "no rows": Sizes(q_len=0),
    "no keys": Sizes(kv_len=0),
    "no sequences": Sizes(batch=0),
    "127 keys": Sizes(kv_len=127),
    "128 keys": Sizes(kv_len=128),
    "129 keys": Sizes(kv_len=129),
    "129 rows": Sizes(batch=1, q_len=129, kv_len=131),
    "1031 keys": Sizes(batch=1, q_len=3, kv_len=1031),
    "head_dim 192 and 128": Sizes(batch=1, head_dim=192, v_head_dim=128),
    "head_dim 256": Sizes(batch=1, head_dim=256, v_head_dim=256),
}


SIZES = Sizes().of_call()


def with_options(names, dtype=np.float32, seed=0) -> AttentionInputs:
    """With options by name, of `OPTION_NAMES`."""
    return attention_inputs("normal", names, dtype=dtype, seed=seed)


def suite(dtype=np.float32, seed=0) -> list[AttentionInputs]:
    """Calls that together show every mistake of dense attention that data can show."""
    plain = [(family, names, Sizes()) for family, names in DENSE_SUITE]
    cases = [
        attention_inputs(family, names, sizes=sizes, dtype=dtype, seed=seed)
        for family, names, sizes in (*plain, *SHAPED_SUITE)
    ]
    return [*cases, *exact_cases(dtype, seed)]


def cases(dtype, seed, level, call, tiles=TILES) -> Iterator[AttentionInputs]:
    for family, names in DENSE_SUITE:
        yield attention_inputs(family, names, dtype=dtype, seed=seed)
    shaped = SHAPED_SUITE[:QUICK_SHAPES] if level == "quick" else SHAPED_SUITE
    for i, (family, names, sizes) in enumerate(shaped):
        yield named(attention_inputs(family, names, sizes=sizes, dtype=dtype, seed=seed), f"shape {i + 1}")
    edges = EDGES if level == "quick" else EDGES | FULL_EDGES
    for name, sizes in edges.items():
        for options in ((), ("causal",)):
            yield named(attention_inputs("normal", options, sizes=sizes, dtype=dtype, seed=seed), name)
    yield from corner_cases(dtype, seed, level)
    yield from option_pair_cases(dtype, seed, call)
    yield from tile_cases(dtype, seed, tiles)
    if level == "full":
        yield from published_cases(dtype, seed, batch_axes=call.dialect.name == "refattn")
        for more in range(1, FULL_SEEDS):
            for family, names in DENSE_SUITE:
                yield named(
                    attention_inputs(family, names, dtype=dtype, seed=seed + more), f"seed {seed + more}"
                )
        yield from _random(dtype, seed, call)


def _random(dtype, seed, call):
    """Random options and sizes, of what the kernel supports."""
    allowed = [
        name for name in OPTION_NAMES if not call.unsupported(attention_inputs("normal", (name,)).options)
    ]
    rng = np.random.default_rng([seed, 7])
    for n in range(RANDOM_CALLS):
        heads = int(rng.integers(1, 4))
        sizes = Sizes(
            int(rng.integers(1, 4)),
            heads * int(rng.integers(1, 5)),
            heads,
            int(rng.integers(1, 40)),
            int(rng.integers(1, 200)),
            int(rng.integers(1, 80)),
            int(rng.integers(1, 80)),
        )
        names = [name for name in allowed if rng.random() < 0.25]
        yield named(
            attention_inputs("normal", names, sizes=sizes, dtype=dtype, seed=seed + n), f"random {n}"
        )


def exact(dtype, seed):
    """Calls whose answer is known bit for bit."""
    return exact_cases(dtype, seed)


def hidden_pairs(dtype, seed, call):
    """(name, inputs with 0 in the hidden slots, the same with NaN)."""
    yield from hidden_in_dense(dtype, seed, "attention_with_lse", Sizes())
    sizes = Sizes()
    case = _maker(dtype, seed, "attention_with_lse", sizes)
    causal, window = case(causal=True, q_offset=11), case("causal", window=(4, 0))
    yield hidden_pair(
        "keys and values after the last causal row", causal, [(n, np.s_[..., 30:, :]) for n in (1, 2)]
    )
    yield hidden_pair(
        "keys and values left of every window", window, [(n, np.s_[..., :60, :]) for n in (1, 2)]
    )


def hidden_in_dense(dtype, seed, function, sizes, **structure):
    """What lengths and masks hide in dense arrays."""
    case = _maker(dtype, seed, function, sizes, **structure)
    inputs = case("lengths")
    slots = [
        (n, np.s_[b, :, length:]) for b, length in enumerate(inputs.options["kv_lengths"]) for n in (1, 2)
    ]
    yield hidden_pair("keys and values past kv_lengths", inputs, slots)
    mask = np.ones((1, sizes.kv_len), bool)
    mask[:, 3::5] = False
    holes = [(n, np.s_[..., 3::5, :]) for n in (1, 2)]
    yield hidden_pair("keys and values the mask hides from all rows", case(mask=mask), holes)


def _maker(dtype, seed, function, sizes, **structure):
    def case(*names, **options):
        inputs = attention_inputs("normal", names, sizes=sizes, dtype=dtype, seed=seed)
        return replace(inputs, function=function, options={**structure, **inputs.options, **options})

    return case
