"""Wrong kernels of MLA: parts of cache rows, projections or components of the accumulator that are others.

Words separated by | are alternatives; the first answer must hold them all.
"""

import re

import ml_dtypes
import numpy as np
import pytest

from refattn import latent_attention_with_lse
from refattn.oracle import diagnose
from refattn.oracle.arithmetic.formats import round_to
from refattn.oracle.imaging.xray import xray

B, H, T, S, N, R, C, E, TILE = 2, 4, 3, 70, 16, 8, 32, 24, 16
KEY = np.arange(S)


def arrays():
    rng = np.random.default_rng(0)
    of = lambda *shape, size=1.0: (rng.standard_normal(shape) * size).astype(np.float32)
    queries = of(B, H, T, N, size=1.5), of(B, H, T, R, size=1.5)
    return *queries, of(B, S, C), of(B, S, R), of(H, N, C, size=C**-0.5), of(H, E, C, size=C**-0.5)


def kernel(load=None, parts=None, factor=None, product=None, weights=None):
    """An absorbed kernel in tiles of keys, of which a stage is replaced.

    `load` changes the arrays, a dict; `parts(latent part, rope part, tile)` the scores; `factor(factor (B, H,
    T, C), tile, the factor before)` the rescaling of the accumulator; `product(product, tile)` what is added;
    `weights(weights, those of the tile before)` what the upper half of the accumulator takes.
    """

    def run(q_nope, q_rope, latent, k_rope, w_uk, w_uv):
        of = {"q_nope": q_nope, "q_rope": q_rope, "k_latent": latent, "v_latent": latent, "k_rope": k_rope}
        of |= {"w_uk": w_uk, "w_uv": w_uv}
        of |= load(of) if load else {}
        absorbed = of["q_nope"] @ of["w_uk"]
        top, total, last_p = -np.inf, 0.0, None
        context, before = np.zeros((B, H, T, C), np.float32), np.ones((B, H, T, C))
        for tile, first in enumerate(range(0, S, TILE)):
            keys = slice(first, first + TILE)
            own = absorbed @ of["k_latent"][:, None, keys].swapaxes(-1, -2)
            rope = of["q_rope"] @ of["k_rope"][:, None, keys].swapaxes(-1, -2)
            score = (own + rope if parts is None else parts(own, rope, tile)) / (N + R) ** 0.5
            new = np.maximum(top, score.max(-1, keepdims=True))
            rescale, p = np.exp(top - new) * np.ones((B, H, T, C)), np.exp(score - new)
            total = total * rescale[..., :1] + p.sum(-1, keepdims=True)
            added = p @ of["v_latent"][:, None, keys]
            if weights is not None:
                added[..., C // 2 :] = weights(p, last_p) @ of["v_latent"][:, None, keys, C // 2 :]
            last_p = p
            context = context * (rescale if factor is None else factor(rescale.copy(), tile, before))
            context = context + (added if product is None else product(added, tile))
            top, before = new, rescale
        return ((context / total) @ of["w_uv"].swapaxes(-1, -2)).astype(np.float32)

    return run


def read_at(name, key):
    """One array at other keys."""
    return {"load": lambda of: {name: of[name][:, key]}}


def changed(name, change):
    return {"load": lambda of: {name: change(of[name])}}


def rows_of(of):
    return np.concatenate([of["k_latent"], of["k_rope"]], -1).reshape(B, -1)


def value_stride(of):
    return {"v_latent": rows_of(of)[:, KEY[:, None] * C + np.arange(C)]}


def value_start(of):
    return {"v_latent": np.concatenate([of["k_rope"], of["k_latent"]], -1)[..., :C]}


def joined(first):
    def load(of):
        rows = np.concatenate([of["w_uk"], of["w_uv"]], 1)
        return {"w_uv": np.roll(rows, -first, 1)[:, :E]}

    return {"load": load}


def of_part(components, change):
    """A change of some components of what is added to the accumulator, or of its factor."""

    def stage(x, tile, *others):
        x[..., components] = change(x[..., components], tile, *others)
        return x

    return stage


LAST, UPPER = KEY >= S // TILE * TILE, slice(C // 2, C)
BEFORE_IN_LAST = np.where(LAST, KEY - TILE, KEY)
FAULTS = {
    "rope of the first tile": (read_at("k_rope", KEY % TILE), "rope", "first tile of 16"),
    "rope of sequence 0": (changed("k_rope", lambda x: x[[0, 0]]), "rope", "sequence 0"),
    "rope of the tile before in the last one": (
        read_at("k_rope", BEFORE_IN_LAST),
        "rope",
        "16 before",
        "tile of (16|64) keys is|key is at least 64",
    ),
    "latents of the keys of the tile before in the last one": (
        read_at("k_latent", BEFORE_IN_LAST),
        "keys' latents",
        "16 before",
    ),
    "values of the tile before in the last one": (
        read_at("v_latent", BEFORE_IN_LAST),
        "scores are right",
        "values",
        "16 further back",
    ),
    "values of the key before, in half of the components": (
        changed("v_latent", lambda x: np.where(np.arange(C) < C // 2, x, np.roll(x, 1, 1))),
        "components 16 to 31",
        "1 further back",
    ),
    "stride of the values": ({"load": value_stride}, "values", "stride of 32", "40"),
    "start of the values": ({"load": value_start}, "values", "column 0", "column 8"),
    "joined projection": (joined(12), "w_uv", "rows 12 to 35", "joined"),
    "w_uk transposed": (
        changed("w_uk", lambda x: x.transpose(0, 2, 1).reshape(x.shape)),
        "w_uk",
        "in memory as",
    ),
    "latents of the values in eight bits": (
        changed("v_latent", lambda x: round_to(x, "float8_e4m3fn")),
        "latents of the values",
        "rounded to float8_e4m3fn",
    ),
    "w_uv of the next head in some columns": (
        changed("w_uv", lambda x: np.concatenate([x[:, :10], np.roll(x, -1, 0)[:, 10:]], 1)),
        "w_uv",
        "next head",
        "columns 10 to 23 of 24",
    ),
    "no rope part in the last tile": (
        {"parts": lambda own, rope, tile: own if tile == 4 else own + rope},
        "rope part",
        "left out",
    ),
    "rope part scaled twice": (
        {"parts": lambda own, rope, tile: own + rope / (N + R) ** 0.5},
        "rope part",
        "scaled twice",
    ),
    "q_rope of the first row": (changed("q_rope", lambda x: x[:, :, [0, 0, 0]]), "q_rope", "first row"),
    "half of the accumulator is not rescaled": (
        {"factor": of_part(UPPER, lambda x, tile, before: 1.0)},
        "components 16 to 31",
        "not rescaled",
    ),
    "half of the accumulator has the factor of the tile before": (
        {"factor": of_part(UPPER, lambda x, tile, before: before[..., UPPER])},
        "components 16 to 31",
        "factor of the tile before",
    ),
    "half of the accumulator takes the weights of the tile before": (
        {"weights": lambda p, before: p if before is None else before[..., : p.shape[-1]]},
        "components 16 to 31",
        "weights of the tile before",
    ),
    "q_rope of memory in another order": (
        changed("q_rope", lambda x: x.transpose(0, 2, 1, 3).reshape(x.shape)),
        "q_rope",
        "memory",
    ),
    "half of the accumulator takes a tile twice": (
        {"product": of_part(slice(0, C // 2), lambda x, tile: 2 * x if tile == 2 else x)},
        "components 0 to 15",
        "multiplied by 2",
        "tile of 16 keys is 2",
    ),
}


@pytest.mark.sample(4)
@pytest.mark.parametrize("name", FAULTS)
def test_first_answer_says_what_and_where(name):
    stages, *words = FAULTS[name]
    found = xray(kernel(**stages), *arrays())
    assert found.verdict == "described", found.text()
    assert not [word for word in words if not re.search(word, found.sentence.lower())], found.text()
    assert found.calls <= 60


def test_nothing_is_said_of_the_right_kernel():
    assert xray(kernel(), *arrays()).verdict == "agrees"


@pytest.mark.parametrize("name", ["stride of the values", "joined projection"])
def test_output_alone_shows_where_arrays_are_read(name):
    stages, *words = FAULTS[name]
    call = arrays()
    found = diagnose(kernel(**stages)(*call), *call)
    assert not [word for word in words if not re.search(word, str(found).lower())], found


def test_what_is_less_than_rounding_is_said_where_all_rows_share_it():
    """Three empty splits count with lse 0."""
    call = [array.astype(ml_dtypes.bfloat16) for array in arrays()]

    def empty_splits(*given):
        output, lse = latent_attention_with_lse(*(array.astype(np.float32) for array in given))
        total = np.logaddexp(lse, np.log(3))
        return (output * np.exp(lse - total)[..., None]).astype(ml_dtypes.bfloat16), total.astype(np.float32)

    found = xray(empty_splits, *call)
    assert found.best.kind == "normaliser" and "3 empty splits" in found.sentence, found.text()
