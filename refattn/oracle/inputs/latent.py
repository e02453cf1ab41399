"""Calls of MLA, and what `check_kernel` runs on them."""

from __future__ import annotations

import numpy as np

from refattn.calls.latent import LATENT
from refattn.calls.options import Sizes
from refattn.oracle.inputs.families import AttentionInputs, every_option, make_options
from refattn.oracle.inputs.variants import hidden_pair, numbered, seeds_of

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


def cases(dtype, seed, level, call):
    forms = ({"form": "absorb"}, {"form": "expand"}) if "form" in call.supports else ({},)
    for names in every_option(LATENT):
        for form in forms:
            for s in seeds_of(seed, level):
                yield numbered(with_options(names, dtype, s, **form), s, seed)


def exact(dtype, seed):
    return []


def hidden_pairs(dtype, seed, call):
    """(name, inputs with 0 in the hidden slots, the same with NaN)."""
    inputs = latent_inputs(dtype, seed, kv_lengths=np.array([45, 17]))
    yield hidden_pair("latents past kv_lengths", inputs, [(2, np.s_[1, 17:]), (3, np.s_[1, 17:])])
