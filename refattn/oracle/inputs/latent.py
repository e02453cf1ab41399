"""Calls of MLA, and what `check_kernel` runs on them."""

from __future__ import annotations

import itertools

import numpy as np

from refattn.calls.latent import LATENT
from refattn.calls.options import Sizes
from refattn.oracle.inputs.families import AttentionInputs, every_option, make_options
from refattn.oracle.inputs.pool import Pool
from refattn.oracle.inputs.tiles import TILES, all_lengths, long_lengths
from refattn.oracle.inputs.variants import hidden_pair, numbered, seeds_of

# q_nope, q_rope, latents, values of one head: those of DeepSeek-V3, with more than one tile of each
WIDTHS = 128, 64, 512, 128
SIZES = Sizes((2,), 4, 5, 45, 24)


def latent_inputs(dtype=np.float32, seed=0, **options) -> AttentionInputs:
    """Multi-head latent attention; nope, rope, rank and value sizes all differ."""
    rng = np.random.default_rng([seed, 3])
    shapes = ((2, 4, 5, 16), (2, 4, 5, 8), (2, 45, 28), (2, 45, 8), (4, 16, 28), (4, 12, 28))
    widths = (1, 1, 1, 1, 28**-0.5, 28**-0.5)
    arrays = tuple(
        (width * rng.standard_normal(shape)).astype(dtype)
        for shape, width in zip(shapes, widths, strict=True)
    )
    return AttentionInputs(
        " ".join(["latent", *options]), "normal", "latent_attention_with_lse", arrays, options
    )


def with_options(names, dtype=np.float32, seed=0, **form) -> AttentionInputs:
    """With options by name, of `OPTION_NAMES`."""
    options = make_options(names, np.random.default_rng(seed), SIZES, dtype)
    return latent_inputs(dtype, seed, **options, **form)


def suite(dtype=np.float32, seed=0) -> list[AttentionInputs]:
    mscale = 0.1 * np.log(40.0) + 1
    options = {"causal": True}, {"scale": float(mscale**2 * 24**-0.5)}
    return [latent_inputs(dtype, seed, **more) for more in options]


def cases(dtype, seed, level, call, tiles=TILES):
    forms = ({"form": "absorb"}, {"form": "expand"}) if "form" in call.supports else ({},)
    for names in every_option(LATENT):
        for form in forms:
            for s in seeds_of(seed, level):
                yield numbered(with_options(names, dtype, s, **form), s, seed)
    for s in seeds_of(seed, level):
        for inputs in tile_cases(dtype, s, tiles, forms):
            yield numbered(inputs, s, seed)


def tile_cases(dtype=np.float32, seed=0, tiles=TILES, forms=({},)):
    """One row on every length that follows from tiles, and every option over three of each size."""
    turns = itertools.cycle(forms)
    for keys in all_lengths(tiles, 1):
        yield _of_sizes(1, keys, (), dtype, seed, **next(turns))
    rows, keys = itertools.cycle((33, 5, 129)), itertools.cycle(long_lengths(tiles))
    turns = itertools.cycle((*forms, *forms[::-1]))
    for names in (*every_option(LATENT)[1:], ("two-sided window",), ("mask", "causal")):
        yield _of_sizes(next(rows), next(keys), names, dtype, seed, **next(turns))
    yield _of_sizes(3, 1025, (), dtype, seed, lengths=(0, 1, 512, 1025))
    for heads in (1, 5, 20):  # one, and numbers that groups of 2 to 16 heads do not divide
        yield _of_sizes(2, 129, ("causal",), dtype, seed, heads=heads, **next(turns))


def _of_sizes(rows, keys, names, dtype, seed, lengths=None, heads=2, **form):
    pool = Pool(dtype, seed, rows * keys)
    nope, rope, latents, values = WIDTHS
    batch = len(lengths or (1,))
    shapes = (
        (batch, heads, rows, nope),
        (batch, heads, rows, rope),
        (batch, keys, latents),
        (batch, keys, rope),
        (heads, nope, latents),
        (heads, values, latents),
    )
    widths = (1, 1, 1, 1, latents**-0.5, latents**-0.5)
    arrays = tuple(
        pool.standard_normal(shape) if width == 1 else (width * pool.standard_normal(shape)).astype(dtype)
        for shape, width in zip(shapes, widths, strict=True)
    )
    sizes = Sizes((batch,), heads, rows, keys, nope + rope, (rows, keys))
    options = make_options(names, pool, sizes, dtype)
    if lengths is not None:
        options["kv_lengths"] = np.array(lengths)
    said = " ".join(["tiles", *names, *([f"lengths {lengths}"] if lengths else [])])
    return AttentionInputs(
        f"{said}, {rows} rows on {keys} keys{f', {heads} heads' if heads != 2 else ''}",
        "tiles",
        "latent_attention_with_lse",
        arrays,
        {**options, **form},
    )


def exact(dtype, seed):
    return []


def hidden_pairs(dtype, seed, call):
    """(name, inputs with 0 in the hidden slots, the same with NaN)."""
    inputs = latent_inputs(dtype, seed, kv_lengths=np.array([45, 17]))
    yield hidden_pair("latents past kv_lengths", inputs, [(2, np.s_[1, 17:]), (3, np.s_[1, 17:])])
