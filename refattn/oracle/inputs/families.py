"""Inputs that bring mistakes out: families that each aim at one mechanism, and cases whose answer is
known bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refattn.calls.arrays import as_array
from refattn.calls.options import PER_ENTRY, WORDS
from refattn.calls.options import Sizes as CallSizes

OPTION_NAMES = (*WORDS, "empty rows")


@dataclass(frozen=True, eq=False)
class AttentionInputs:
    """One call: which function, its arrays, its options.

    Attributes
    ----------
    name : str
        Family and options, unique within a suite.
    family : str
        Of `FAMILIES`, or what else the call is about: "exact", "tiles", "pages".
    function : str
        As `Mutant.function`.
    arrays : tuple of ndarray
    options : dict
    output, lse : ndarray or None
        The exact answer where it is known without a reference.
    """

    name: str
    family: str
    function: str
    arrays: tuple[np.ndarray, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    output: np.ndarray | None = None
    lse: np.ndarray | None = None

    def call(self, kernel: Callable):
        """`kernel(*arrays, **options)`."""
        return kernel(*self.arrays, **self.options)


@dataclass(frozen=True)
class Sizes:
    """Array sizes; the defaults are different primes or odd numbers, so that no two axes can be
    confused unseen.
    """

    batch: int = 2
    num_heads: int = 6
    num_kv_heads: int = 2
    q_len: int = 19
    kv_len: int = 83
    head_dim: int = 24
    v_head_dim: int = 20

    def shapes(self):
        return (
            (self.batch, self.num_heads, self.q_len, self.head_dim),
            (self.batch, self.num_kv_heads, self.kv_len, self.head_dim),
            (self.batch, self.num_kv_heads, self.kv_len, self.v_head_dim),
        )

    def of_call(self):
        """The sizes that options are drawn for and checked against."""
        return CallSizes((self.batch,), self.num_heads, self.q_len, self.kv_len, self.head_dim)


def _normal(rng, sizes):
    return tuple(rng.standard_normal(shape) for shape in sizes.shapes())


def _leaning(rng, sizes, scores, noise=0.5):
    """query, key, value whose scores (scaled by 1/sqrt(D)) are about `scores[j]`, the same for every row."""
    query, key, value = _normal(rng, sizes)
    direction = np.full(sizes.head_dim, sizes.head_dim**-0.25)
    query = noise * query + direction * 4
    key = noise * key + direction * (np.asarray(scores)[:, None] / 4)
    return query, key, value


def _ramp(sizes):
    return np.arange(sizes.kv_len) / max(sizes.kv_len - 1, 1)


def _one_key(sizes, at, height):
    scores = np.zeros(sizes.kv_len)
    if sizes.kv_len:
        scores[at * sizes.kv_len // 8] = height
    return scores


def _one_hot(rng, sizes):
    query, key, value = _normal(rng, sizes)
    return 60 * np.sign(query), np.sign(key), value


def _heavy(rng, sizes):
    query, key, value = _normal(rng, sizes)
    return tuple(
        x + 10 * rng.standard_normal(x.shape) * (rng.random(x.shape) < 0.01) for x in (query, key, value)
    )


def _repeated(rng, sizes):
    query, key, value = _normal(rng, sizes)
    return query, np.repeat(key[..., ::7, :], 7, axis=-2)[..., : sizes.kv_len, :], value


def _values(change):
    def make(rng, sizes):
        query, key, value = _normal(rng, sizes)
        return query, key, change(value, sizes)

    return make


def _alternating(value, sizes):
    signs = 1 - 2 * (np.arange(sizes.kv_len) % 2)
    return (4 + 0.1 * value) * signs[:, None]


FAMILIES: Mapping[str, tuple[str, Callable]] = {
    "normal": ("ordinary data", _normal),
    "wide": (
        "standard deviation 2, so that weights are far from uniform",
        lambda rng, s: tuple(2 * x for x in _normal(rng, s)),
    ),
    "ascending": (
        "scores rise along the keys: the running maximum moves in every tile",
        lambda rng, s: _leaning(rng, s, 24 * _ramp(s)),
    ),
    "descending": (
        "scores fall: the running maximum never moves",
        lambda rng, s: _leaning(rng, s, -24 * _ramp(s)),
    ),
    "early sink": (
        "key 0 takes almost all weight: later weights underflow",
        lambda rng, s: _leaning(rng, s, _one_key(s, 0, 14.0)),
    ),
    "late sink": (
        "one late key takes almost all weight",
        lambda rng, s: _leaning(rng, s, _one_key(s, 7, 14.0)),
    ),
    "low scores": (
        "all scores below -1e4: finite stand-ins for -inf come back",
        lambda rng, s: _leaning(rng, s, np.full(s.kv_len, -2.0e4)),
    ),
    "large scores": (
        "scores around 200: exp overflows without the maximum, softcap saturates",
        lambda rng, s: _leaning(rng, s, 200 + 8 * _ramp(s), 1.0),
    ),
    "one-hot": ("one key per row takes all weight", _one_hot),
    "uniform": (
        "query 0: every visible key has the same weight",
        lambda rng, s: (0 * _normal(rng, s)[0], *_normal(rng, s)[1:]),
    ),
    "offset values": ("values around 100: no cancellation, bias shows", _values(lambda v, s: v + 100)),
    "alternating values": (
        "values of alternating sign: the output is much smaller than its terms",
        _values(_alternating),
    ),
    "heavy tails": ("one number in a hundred is ten times larger", _heavy),
    "repeated keys": ("runs of seven equal keys: ties in the maximum", _repeated),
    "subnormal values": ("values near the smallest normal number", _values(lambda v, s: v * 2.0**-13)),
    "poison": ("hidden keys and values hold NaN", _normal),
    "nan visible": ("one visible key and one visible value hold NaN or Inf", _normal),
    "empty rows": ("some rows see no key", _normal),
}


def keywords(word, value_of, dtype) -> dict[str, Any]:
    """The options that a word asks for, each of `value_of(option, word)`; a bias has the dtype of the
    arrays.
    """
    values = {option.name: value_of(option, word) for option in WORDS[word]}
    return {name: value.astype(dtype) if name == "bias" else value for name, value in values.items()}


def make_options(names, rng, sizes: CallSizes, dtype=np.float32) -> dict[str, Any]:
    """Options by name, of `OPTION_NAMES`, as arrays of the right shapes; a bias in `dtype`. Raises
    ValueError for an unknown name.
    """
    options: dict[str, Any] = {}
    for name in names:
        if name not in OPTION_NAMES:
            raise ValueError(f"names must be of {', '.join(OPTION_NAMES)}; got {name!r}.")
        if name == "empty rows":
            hidden = np.ones(sizes.scores_shape, bool)
            hidden[..., 1::4, :] = False
            options["mask"] = hidden & options.get("mask", True)
        else:
            options |= keywords(name, lambda option, word: option.examples[word](sizes, rng), dtype)
    return options


def every_option(form) -> list[tuple[str, ...]]:
    """Groups of `OPTION_NAMES`: nothing, and each option that a form takes; those that move the edge of
    the keys come with a causal edge.
    """
    groups = {}
    for word, (option, *_) in WORDS.items():
        if option.name in form.options:
            groups.setdefault(option.name, (word, "causal") if option.belongs_to == PER_ENTRY else (word,))
    return [(), *groups.values()]


def _poisoned(arrays, options, rng):
    """Past the lengths NaN in keys and infinity in values; a mask, if given, also hides one key from all
    rows, which holds NaN in both.
    """
    query, key, value = arrays
    lengths = np.broadcast_to(options.get("kv_lengths", key.shape[-2]), key.shape[:1])
    key, value = key.copy(), value.copy()
    for b, length in enumerate(lengths):
        key[b, :, length:], value[b, :, length:] = np.nan, np.inf
    if "mask" in options:
        column = int(rng.integers(key.shape[-2]))
        mask = options["mask"].copy()
        mask[..., column] = False
        options = {**options, "mask": mask}
        key[..., column, :], value[..., column, :] = np.nan, np.nan
    return (query, key, value), options


def _with_visible_nan(arrays, rng):
    query, key, value = (array.copy() for array in arrays)
    length = key.shape[-2]
    if length and key.size and value.size:
        key[0, 0, length // 2, 0] = np.nan
        value[-1, -1, length // 3, 0] = np.inf
        value[-1, -1, length // 3, -1] = np.nan
    return query, key, value


def attention_inputs(
    family="normal", names=(), *, sizes: Sizes | None = None, dtype=np.float32, seed=0
) -> AttentionInputs:
    """One dense call of a family with options by name.

    Parameters
    ----------
    family : str
        Key of `FAMILIES`.
    names : sequence of str
        Of `OPTION_NAMES`.
    sizes : Sizes, optional
    dtype : dtype
        float32, float64, float16 or ml_dtypes.bfloat16.
    seed : int
        The same seed gives the same numbers on every machine.

    Examples
    --------
    >>> case = attention_inputs("ascending", ["causal"])
    >>> case.name, case.arrays[0].shape
    ('ascending causal', (2, 6, 19, 24))
    """
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}; got family={family!r}.")
    sizes = sizes or Sizes()
    rng = np.random.default_rng([seed, *family.encode()])
    names = [*names]
    if family == "empty rows" and "empty rows" not in names:
        names.append("empty rows")
    if family == "poison" and not {"lengths", "mask"} & {*names}:
        names.append("lengths")
    arrays = tuple(x.astype(dtype) for x in FAMILIES[family][1](rng, sizes))
    options = make_options(names, rng, sizes.of_call(), dtype)
    if family == "poison":
        arrays, options = _poisoned(arrays, options, rng)
    if family == "nan visible":
        arrays = _with_visible_nan(arrays, rng)
    return AttentionInputs(" ".join([family, *names]), family, "attention_with_lse", arrays, options)


def adversarial_inputs(
    *, families=None, options=((), ("causal",)), sizes: Sizes | None = None, dtype=np.float32, seed=0
) -> Iterator[AttentionInputs]:
    """Dense calls of every family, each with every group of options.

    Parameters
    ----------
    families : sequence of str, optional
        Default: all of `FAMILIES`.
    options : sequence of sequences of str
        Groups of `OPTION_NAMES`.
    sizes, dtype, seed
        As `attention_inputs`.

    Yields
    ------
    AttentionInputs

    Examples
    --------
    >>> sum(1 for _ in adversarial_inputs()) == 2 * len(FAMILIES)
    True
    """
    for family in families or FAMILIES:
        for names in options:
            yield attention_inputs(family, names, sizes=sizes, dtype=dtype, seed=seed)


def as_inputs(query, key, value, /, **options) -> AttentionInputs:
    """A caller's own data as `AttentionInputs`, for `mutation_score`."""
    arrays = tuple(
        as_array(array, name) for array, name in ((query, "query"), (key, "key"), (value, "value"))
    )
    return AttentionInputs("own data", "own data", "attention_with_lse", arrays, options)
