"""Which inputs `check_kernel` runs for each function, and what hides where."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from refattn.oracle.inputs.corners import corner_cases
from refattn.oracle.inputs.families import OPTION_NAMES, AttentionInputs, Sizes, attention_inputs
from refattn.oracle.inputs.pairs import option_pair_cases
from refattn.oracle.inputs.published import published_cases
from refattn.oracle.inputs.suites import DENSE_SUITE, SHAPED_SUITE, exact_cases, latent_inputs, packed_inputs, paged_inputs

LEVELS = ("quick", "full")
QUICK_SHAPES = 7  # of SHAPED_SUITE
FULL_SEEDS = 3
RANDOM_CALLS = 100
JUNK = 1e3  # in hidden slots for kernels that do not hide NaN: far from every other number, and products of two fit float16

# one of everything, one more and one less than a tile, no rows, no keys, no columns
EDGES = {
    "one row": Sizes(q_len=1), "one key": Sizes(kv_len=1, q_len=1), "one head": Sizes(num_heads=1, num_kv_heads=1),
    "head_dim 1": Sizes(head_dim=1, v_head_dim=1), "63 keys": Sizes(kv_len=63), "64 keys": Sizes(kv_len=64), "65 keys": Sizes(kv_len=65),
    "more rows than keys": Sizes(q_len=37, kv_len=23), "head_dim 128": Sizes(batch=1, head_dim=128, v_head_dim=128),
    "odd head_dim": Sizes(head_dim=33, v_head_dim=7), "multi-query": Sizes(num_heads=8, num_kv_heads=1),
    "multi-head": Sizes(num_heads=3, num_kv_heads=3),
}  # fmt: skip
FULL_EDGES = {
    "no rows": Sizes(q_len=0), "no keys": Sizes(kv_len=0), "no sequences": Sizes(batch=0), "127 keys": Sizes(kv_len=127),
    "128 keys": Sizes(kv_len=128), "129 keys": Sizes(kv_len=129), "129 rows": Sizes(batch=1, q_len=129, kv_len=131),
    "1031 keys": Sizes(batch=1, q_len=3, kv_len=1031),
    "head_dim 192 and 128": Sizes(batch=1, head_dim=192, v_head_dim=128), "head_dim 256": Sizes(batch=1, head_dim=256, v_head_dim=256),
}  # fmt: skip


def _dense(dtype, seed, level, call) -> Iterator[AttentionInputs]:
    for family, names in DENSE_SUITE:
        yield attention_inputs(family, names, dtype=dtype, seed=seed)
    shaped = SHAPED_SUITE[:QUICK_SHAPES] if level == "quick" else SHAPED_SUITE
    for i, (family, names, sizes) in enumerate(shaped):
        yield _named(attention_inputs(family, names, sizes=sizes, dtype=dtype, seed=seed), f"shape {i + 1}")
    edges = EDGES if level == "quick" else EDGES | FULL_EDGES
    for name, sizes in edges.items():
        for options in ((), ("causal",)):
            yield _named(attention_inputs("normal", options, sizes=sizes, dtype=dtype, seed=seed), name)
    yield from corner_cases(dtype, seed, level)
    yield from option_pair_cases(dtype, seed, call)
    if level == "full":
        yield from published_cases(dtype, seed, batch_axes=call.dialect.name == "refattn")
        for more in range(1, FULL_SEEDS):
            for family, names in DENSE_SUITE:
                yield _named(attention_inputs(family, names, dtype=dtype, seed=seed + more), f"seed {seed + more}")
        yield from _random(dtype, seed, call)


def _random(dtype, seed, call):
    """Random options and sizes, of what the kernel supports."""
    allowed = [name for name in OPTION_NAMES if not call.unsupported(attention_inputs("normal", (name,)).options)]
    rng = np.random.default_rng([seed, 7])
    for n in range(RANDOM_CALLS):
        heads = int(rng.integers(1, 4))
        sizes = Sizes(
            int(rng.integers(1, 4)), heads * int(rng.integers(1, 5)), heads, int(rng.integers(1, 40)), int(rng.integers(1, 200)),
            int(rng.integers(1, 80)), int(rng.integers(1, 80)),
        )  # fmt: skip
        names = [name for name in allowed if rng.random() < 0.25]
        yield _named(attention_inputs("normal", names, sizes=sizes, dtype=dtype, seed=seed + n), f"random {n}")


def _named(inputs, words):
    return replace(inputs, name=f"{inputs.name}, {words}")


def _seeds(seed, level):
    return range(seed, seed + (1 if level == "quick" else 3 * FULL_SEEDS))


def _packed(dtype, seed, level, call):
    slopes, sinks = 2.0 ** -np.arange(1.0, 7.0), np.linspace(-1.0, 2.0, 6)
    for options in ({}, {"causal": True}, {"window": (5, 0)}, {"softcap": 1.5}, {"alibi_slopes": slopes}, {"sinks": sinks},
                    {"kv_lengths": np.array([9, 40, 1, 12]), "causal": True}, {"scale": 0.3}):  # fmt: skip
        for s in _seeds(seed, level):
            yield _numbered(packed_inputs(dtype, s, **options), s, seed)


def _paged(dtype, seed, level, call):
    for options in ({}, {"causal": True}, {"window": (5, 0)}, {"softcap": 1.5}, {"sinks": np.linspace(-1.0, 2.0, 6)}, {"scale": 0.3}):
        for s in _seeds(seed, level):
            inputs = paged_inputs(dtype, s, **options)
            yield _numbered(_as_flashmla(inputs) if call.dialect.paged else inputs, s, seed)


def _as_flashmla(inputs):
    """One key head, values the first dims of the keys."""
    query, keys, _ = inputs.arrays
    keys = keys[:, :1]
    return replace(inputs, arrays=(query, keys, np.ascontiguousarray(keys[..., :16])))


def _latent(dtype, seed, level, call):
    forms = ({"form": "absorb"}, {"form": "expand"}) if "form" in call.supports else ({},)
    for options in ({}, {"causal": True}, {"scale": 0.3}, {"window": (7, 0)}, {"softcap": 1.5}, {"kv_lengths": np.array([45, 17]), "causal": True},
                    {"sinks": np.linspace(-1.0, 2.0, 4)}):  # fmt: skip
        for form in forms:
            for s in _seeds(seed, level):
                yield _numbered(latent_inputs(dtype, s, **options, **form), s, seed)


def _block_local(dtype, seed, level, call):
    sizes = Sizes(q_len=53, kv_len=53)
    for names in ((), ("causal",), ("left window",), ("softcap",), ("sinks",), ("own scale",), ("alibi",), ("lengths",)):
        for block_size in (16, 53, 7):
            for s in _seeds(seed, level):
                inputs = attention_inputs("normal", names, sizes=sizes, dtype=dtype, seed=s)
                inputs = replace(inputs, function="block_local_attention_with_lse", options={"block_size": block_size, **inputs.options})
                yield _numbered(_named(inputs, f"blocks of {block_size}"), s, seed)


def _numbered(inputs, seed, first):
    names = [f"{name}={inputs.options[name]!r}" for name in ("form",) if name in inputs.options]
    inputs = _named(inputs, " ".join(names)) if names else inputs
    return inputs if seed == first else _named(inputs, f"seed {seed}")


CASES = {
    "attention": _dense,
    "packed_attention": _packed,
    "paged_attention": _paged,
    "latent_attention": _latent,
    "block_local_attention": _block_local,
}


def fitted(inputs: AttentionInputs, head_dims) -> AttentionInputs:
    """The inputs with other head sizes, for kernels built for one; None leaves them."""
    if head_dims is None:
        return inputs
    arrays = tuple(fit(array, size) for array, size in zip(inputs.arrays, (head_dims[0], *head_dims), strict=True))
    return replace(inputs, arrays=arrays, output=None if inputs.output is None else fit(inputs.output, head_dims[1]))


def fit(array, size):
    """The last axis cut, or continued by itself, each time rolled by one more place."""
    length = array.shape[-1]
    turns = [np.roll(array, turn, axis=-1) for turn in range(-(-size // length))]
    return np.ascontiguousarray(np.concatenate(turns, axis=-1)[..., :size])


def with_numbers(inputs: AttentionInputs) -> AttentionInputs:
    """Inputs whose hidden slots hold NaN or infinity, with JUNK there instead; others as they are."""
    if inputs.family != "poison":
        return inputs
    return replace(inputs, arrays=tuple(np.where(np.isfinite(array), array, np.asarray(JUNK, array.dtype)) for array in inputs.arrays))


def exact_inputs(function, dtype, seed):
    """Calls whose answer is known bit for bit; dense attention only."""
    return exact_cases(dtype, seed) if function == "attention" else []


# what no row may see, with numbers in it and with NaN in it


def _with(inputs, positions, filler):
    """The inputs with `filler` in rows of arrays: (array number, index) pairs."""
    arrays = [array.copy() for array in inputs.arrays]
    for number, index in positions:
        arrays[number][index] = filler
    return replace(inputs, arrays=tuple(arrays))


def _pair(name, inputs, positions):
    return name, _with(inputs, positions, 0), replace(_with(inputs, positions, np.nan), family="poison")


def hidden_pairs(function, dtype, seed, call) -> Iterator[tuple[str, AttentionInputs, AttentionInputs]]:
    """(name, inputs with 0 in the hidden slots, the same with NaN)."""
    if function in ("attention", "block_local_attention"):
        yield from _hidden_dense(function, dtype, seed)
    elif function == "packed_attention":
        inputs = packed_inputs(dtype, seed, kv_lengths=np.array([9, 40, 1, 12]))
        first = inputs.options["cu_kv"][:-1]
        slots = np.concatenate([np.arange(a + n, b) for a, n, b in zip(first, (9, 40, 1, 12), inputs.options["cu_kv"][1:], strict=True)])
        yield _pair("keys and values past kv_lengths", inputs, [(1, np.s_[:, slots]), (2, np.s_[:, slots])])
    elif function == "paged_attention":
        filled = _as_flashmla(paged_inputs(dtype, seed)) if call.dialect.paged else paged_inputs(dtype, seed)
        unused = np.isnan(paged_inputs(np.float32, seed, poison=True).arrays[1][:, 0, :, 0])  # (pages, slots)
        at = np.nonzero(unused)
        yield _pair("pages and slots that no sequence uses", filled, [(n, (at[0], slice(None), at[1])) for n in (1, 2)])
    else:
        inputs = latent_inputs(dtype, seed, kv_lengths=np.array([45, 17]))
        yield _pair("latents past kv_lengths", inputs, [(2, np.s_[1, 17:]), (3, np.s_[1, 17:])])


def _hidden_dense(function, dtype, seed):
    sizes = Sizes(q_len=23, kv_len=23) if function == "block_local_attention" else Sizes()
    extra = {"block_size": 23} if function == "block_local_attention" else {}

    def case(*names, **options):
        inputs = attention_inputs("normal", names, sizes=sizes, dtype=dtype, seed=seed)
        return replace(inputs, function=f"{function}_with_lse", options={**extra, **inputs.options, **options})

    inputs = case("lengths")
    slots = [(n, np.s_[b, :, length:]) for b, length in enumerate(inputs.options["kv_lengths"]) for n in (1, 2)]
    yield _pair("keys and values past kv_lengths", inputs, slots)
    mask = np.ones((1, sizes.kv_len), bool)
    mask[:, 3::5] = False
    yield _pair("keys and values the mask hides from all rows", case(mask=mask), [(n, np.s_[..., 3::5, :]) for n in (1, 2)])
    if function == "attention":
        yield _pair("keys and values after the last causal row", case(causal=True, q_offset=11), [(n, np.s_[..., 30:, :]) for n in (1, 2)])
        yield _pair("keys and values left of every window", case("causal", window=(4, 0)), [(n, np.s_[..., :60, :]) for n in (1, 2)])
