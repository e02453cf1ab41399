"""Identities a kernel must obey whatever the right answer is: two of its own results, from calls that mean
the same, are compared.

What the two may differ by is the sum of their error bounds. The reference only sets that allowance; it
says nothing about the numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

import refattn
from refattn.calls.options import WORDS
from refattn.calls.registry import ATTENTION
from refattn.oracle.bounds.bound import ErrorBound, error_bound
from refattn.oracle.harness.callables import Unsupported
from refattn.oracle.inputs.families import Sizes, attention_inputs, every_option, keywords
from refattn.oracle.inputs.latent import latent_inputs
from refattn.oracle.inputs.of_form import inputs_of
from refattn.oracle.inputs.packed import packed_inputs
from refattn.oracle.inputs.paged import paged_inputs


@dataclass
class State:
    """A result and how far it may be off."""

    output: np.ndarray
    lse: np.ndarray | None
    output_allowance: np.ndarray
    lse_allowance: np.ndarray | None

    def rows(self, index) -> State:
        """The same index of (..., H, T) of all four."""
        return State(
            *(
                None if part is None else part[index]
                for part in (self.output, self.lse, self.output_allowance, self.lse_allowance)
            )
        )


def _as_they_are(inputs):
    return inputs


@dataclass
class Run:
    """Calls the kernel and attaches the bound; `call(arrays, options)` gives an object with output
    and lse.
    """

    call: Callable
    spec: object
    function: str
    form: str | None = None
    fitted: Callable = _as_they_are  # gives inputs the head sizes the kernel is built for

    def __call__(self, *arrays, **options) -> State:
        return _Lazy(self, arrays, options)


class _Lazy(State):
    """A State whose bound is computed when it is asked for."""

    def __init__(self, run, arrays, options):
        result = run.call(arrays, options)
        self.output, self.lse = (
            np.asarray(result.output, np.float64),
            None if result.lse is None else np.asarray(result.lse, np.float64),
        )
        self._of = run, arrays, options

    @cached_property
    def _bound(self) -> ErrorBound:
        run, arrays, options = self._of
        if run.form is not None:
            options = {"form": run.form, **options}
        return error_bound(*arrays, spec=run.spec, function=run.function, **options)

    @property
    def output_allowance(self):
        return self._bound.output_tight

    @property
    def lse_allowance(self):
        return None if self.lse is None else self._bound.lse_tight


@dataclass(frozen=True)
class Identity:
    """One identity."""

    name: str
    says: str  # what must be equal
    # `pairs(run, dtype, seed)` yields pairs of State that must be equal
    pairs: Callable[..., Iterator[tuple[State, State]]]
    needs: tuple[str, ...] = ()  # options the kernel must have, and "lse"
    function: str = "attention"  # whose arguments the kernel takes


def use_of_allowance(first: State, second: State) -> float:
    """Largest difference over what the two bounds together allow; inf where one is finite and the other is
    not.

    >>> import numpy as np
    >>> a = State(np.array([1.0]), None, np.array([0.1]), None)
    >>> b = State(np.array([1.1]), None, np.array([0.1]), None)
    >>> round(use_of_allowance(a, b), 3)
    0.5
    """
    used = 0.0
    for name in ("output", "lse"):
        one, other = getattr(first, name), getattr(second, name)
        if one is None or other is None:
            continue
        if one.shape != other.shape:
            return np.inf
        same = (one == other) | np.isnan(one) & np.isnan(other)
        if same.all():  # their bounds are not computed
            continue
        allowed = getattr(first, f"{name}_allowance") + getattr(second, f"{name}_allowance")
        with np.errstate(all="ignore"):
            ratio = np.where(same, 0.0, np.abs(one - other) / allowed)
        used = max(used, float(np.max(np.where(np.isnan(ratio), np.inf, ratio), initial=0.0)))
    return used


SMALL = Sizes(batch=2, num_heads=4, num_kv_heads=2, q_len=7, kv_len=45, head_dim=16, v_head_dim=12)


def _dense(run, dtype, seed, family="normal", sizes=SMALL):
    case = run.fitted(attention_inputs(family, sizes=sizes, dtype=dtype, seed=seed))
    return case.arrays


def _permuted_keys(run, dtype, seed):
    query, key, value = _dense(run, dtype, seed, family="wide")
    order = np.random.default_rng(seed).permutation(key.shape[-2])
    yield run(query, key, value), run(query, key[..., order, :], value[..., order, :])


def _shifted_logits(run, dtype, seed):
    """Keys moved by one vector u move the scores of row i by scale * q_i . u; small multiples of 1/8
    make the move exact.
    """
    rng = np.random.default_rng(seed)
    query, key, value = _dense(run, dtype, seed)
    dyadic = lambda x: (np.clip(np.rint(np.asarray(x, np.float64) * 4), -8, 8) / 8).astype(dtype)
    query, key = dyadic(query), dyadic(key)
    u = rng.integers(-8, 9, query.shape[-1]) / 8
    whole = run(query, key, value, scale=0.5)
    moved = run(query, (np.asarray(key, np.float64) + u).astype(dtype), value, scale=0.5)
    lse = None if whole.lse is None else whole.lse + 0.5 * (np.asarray(query, np.float64) @ u)
    yield State(whole.output, lse, whole.output_allowance, whole.lse_allowance), moved


def _split_and_merged(run, dtype, seed):
    query, key, value = _dense(run, dtype, seed, family="wide")
    edges = (0, 5, 22, key.shape[-2])
    parts = [run(query, key[..., a:b, :], value[..., a:b, :]) for a, b in itertools.pairwise(edges)]
    yield run(query, key, value), merged(parts)


def merged(parts) -> State:
    """Partial states joined by `refattn.merge_states`, with the error that theirs turn into.

    Weights w_k = exp(lse_k - lse) are off by a factor within exp(+-d), d the largest error of any lse,
    twice; the output moves by that much of its distance from the partial ones.
    """
    output, lse = refattn.merge_states([p.output for p in parts], [p.lse for p in parts])
    off = np.max([p.lse_allowance for p in parts], axis=0)
    with np.errstate(all="ignore"):
        weights = [np.where(np.isneginf(p.lse), 0.0, np.exp(p.lse - lse))[..., None] for p in parts]
    growth = np.expm1(2.0 * off)[..., None]
    allowance = sum(
        w * (p.output_allowance * (1.0 + growth) + growth * np.abs(p.output - output))
        for w, p in zip(weights, parts, strict=True)
    )
    return State(output, lse, allowance, off)


def _prefill_and_decode(run, dtype, seed):
    query, key, value = _dense(run, dtype, seed)
    whole = run(query, key, value, causal=True)
    first = key.shape[-2] - query.shape[-2] + 1
    for i in range(query.shape[-2]):
        step = run(
            query[..., i : i + 1, :], key[..., : first + i, :], value[..., : first + i, :], causal=True
        )
        yield whole.rows(np.s_[:, :, i : i + 1]), step


def _prefix(run, dtype, seed):
    """Causal rows do not change when later keys and rows are cut off."""
    query, key, value = _dense(run, dtype, seed, sizes=replace(SMALL, q_len=41, kv_len=41))
    whole = run(query, key, value, causal=True)
    for count in (1, 16, 33):
        yield (
            whole.rows(np.s_[:, :, :count]),
            run(query[..., :count, :], key[..., :count, :], value[..., :count, :], causal=True),
        )


def _repeated_heads(run, dtype, seed):
    query, key, value = _dense(run, dtype, seed)
    group = query.shape[-3] // key.shape[-3]
    yield (
        run(query, key, value),
        run(query, np.repeat(key, group, axis=-3), np.repeat(value, group, axis=-3)),
    )


def _one_head_at_a_time(run, dtype, seed):
    query, key, value = _dense(run, dtype, seed)
    group = query.shape[-3] // key.shape[-3]
    whole = run(query, key, value)
    for head in range(query.shape[-3]):
        kv = slice(head // group, head // group + 1)
        yield whole.rows(np.s_[:, head : head + 1]), run(query[:, head : head + 1], key[:, kv], value[:, kv])


def _one_sequence_at_a_time(run, dtype, seed):
    query, key, value = _dense(run, dtype, seed)
    whole = run(query, key, value)
    for b in range(len(query)):
        yield whole.rows(np.s_[b : b + 1]), run(query[b : b + 1], key[b : b + 1], value[b : b + 1])


def _keys_past_the_length(run, dtype, seed):
    query, key, value = _dense(run, dtype, seed)
    lengths = np.full(len(key), key.shape[-2])
    junk = [np.concatenate([x, np.full_like(x[..., :19, :], 1e3)], axis=-2) for x in (key, value)]
    yield run(query, key, value), run(query, *junk, kv_lengths=lengths)


def _causal_as_mask(run, dtype, seed):
    query, key, value = _dense(run, dtype, seed)
    rows, keys = query.shape[-2], key.shape[-2]
    yield (
        run(query, key, value, causal=True),
        run(query, key, value, mask=np.tri(rows, keys, keys - rows, dtype=bool)),
    )


def _one_packed_sequence_at_a_time(run, dtype, seed):
    case = run.fitted(packed_inputs(dtype, seed))
    query, key, value = case.arrays
    cu_q, cu_kv = case.options["cu_q"], case.options["cu_kv"]
    whole = run(query, key, value, cu_q=cu_q, cu_kv=cu_kv)
    for n in range(len(cu_q) - 1):
        rows, keys = slice(cu_q[n], cu_q[n + 1]), slice(cu_kv[n], cu_kv[n + 1])
        ends = {
            "cu_q": np.array([0, rows.stop - rows.start]),
            "cu_kv": np.array([0, keys.stop - keys.start]),
        }
        yield whole.rows(np.s_[:, rows]), run(query[:, rows], key[:, keys], value[:, keys], **ends)


def _pages_elsewhere(run, dtype, seed):
    case = run.fitted(paged_inputs(dtype, seed))
    query, *pages = case.arrays
    table, lengths = case.options["block_table"], case.options["kv_lengths"]
    order = np.random.default_rng(seed).permutation(len(pages[0]))
    moved = [x[np.argsort(order)] for x in pages]
    yield (
        run(query, *pages, block_table=table, kv_lengths=lengths),
        run(query, *moved, block_table=order[table], kv_lengths=lengths),
    )


def _one_block_at_a_time(run, dtype, seed):
    query, key, value = _dense(run, dtype, seed, sizes=replace(SMALL, q_len=39, kv_len=39))
    whole = run(query, key, value, block_size=16, causal=True)
    for first in (0, 16, 32):
        rows = np.s_[:, :, first : first + 16]
        yield whole.rows(rows), run(query[rows], key[rows], value[rows], block_size=16, causal=True)


def _expanded_and_absorbed(run, dtype, seed):
    arrays = run.fitted(latent_inputs(dtype, seed)).arrays
    yield run(*arrays, form="expand"), run(*arrays, form="absorb")


def _latents_permuted(run, dtype, seed):
    q_nope, q_rope, latent, k_rope, *weights = run.fitted(latent_inputs(dtype, seed)).arrays
    order = np.random.default_rng(seed).permutation(latent.shape[-2])
    yield (
        run(q_nope, q_rope, latent, k_rope, *weights),
        run(q_nope, q_rope, latent[..., order, :], k_rope[..., order, :], *weights),
    )


def _neutral(form, word):
    def pairs(run, dtype, seed):
        inputs = inputs_of(form)
        case = run.fitted(inputs.with_options((), dtype, seed))
        head_dim = form.check(*case.arrays, **case.options).outline(0).head_dim  # `fitted` may change it
        sizes = replace(inputs.SIZES, head_dim=head_dim)
        neutral = keywords(word, lambda option, _: option.neutral(sizes), dtype)
        if any(isinstance(value, float) and value > run.spec.score.largest for value in neutral.values()):
            raise Unsupported("its neutral value is beyond the formats of the spec")
        yield run(*case.arrays, **case.options), run(*case.arrays, **case.options, **neutral)

    return pairs


IDENTITIES: tuple[Identity, ...] = (
    Identity("permuted keys", "keys and values in another order", _permuted_keys),
    Identity(
        "shifted logits",
        "scores of a row moved by one number: same output, lse moved",
        _shifted_logits,
        ("scale",),
    ),
    Identity("split and merged", "keys in three parts, joined through lse", _split_and_merged, ("lse",)),
    Identity(
        "prefill and decode",
        "causal rows at once, and each with its keys alone",
        _prefill_and_decode,
        ("causal",),
    ),
    Identity(
        "causal prefix", "the first causal rows, and the first rows and keys alone", _prefix, ("causal",)
    ),
    Identity("group and repeated heads", "grouped heads, and keys and values repeated", _repeated_heads),
    Identity("one head at a time", "all heads at once, and each alone", _one_head_at_a_time),
    Identity(
        "one sequence at a time", "the batch, and each of its sequences alone", _one_sequence_at_a_time
    ),
    Identity(
        "keys past the length",
        "keys appended behind kv_lengths change nothing",
        _keys_past_the_length,
        ("kv_lengths",),
    ),
    Identity(
        "causal as a mask", "causal=True, and the same drawn as a mask", _causal_as_mask, ("causal", "mask")
    ),
    Identity(
        "one packed sequence at a time",
        "the packed batch, and each sequence alone",
        _one_packed_sequence_at_a_time,
        function="packed_attention",
    ),
    Identity(
        "pages elsewhere",
        "the same pages in other places, the table changed alike",
        _pages_elsewhere,
        function="paged_attention",
    ),
    Identity(
        "one block at a time",
        "all blocks, and each alone",
        _one_block_at_a_time,
        ("causal",),
        "block_local_attention",
    ),
    Identity(
        "expanded and absorbed",
        "both forms of latent attention",
        _expanded_and_absorbed,
        ("form",),
        "latent_attention",
    ),
    Identity("permuted latents", "latents in another order", _latents_permuted, function="latent_attention"),
    *(
        Identity(
            f"neutral {names[0]}",
            f"{names[0]} of a value that changes nothing, and none",
            _neutral(form, names[0]),
            tuple(option.name for option in WORDS[names[0]]),
            form.function,
        )
        for form in ATTENTION
        for names in every_option(form)
        if names and WORDS[names[0]][0].default is None  # that of a boolean is its default, and not passed
    ),
)


def identities(function: str = "attention") -> tuple[Identity, ...]:
    """Those for kernels with the arguments of a function.

    >>> [identity.name for identity in identities("paged_attention")]  # doctest: +ELLIPSIS
    ['pages elsewhere', 'neutral bias', ...]
    """
    return tuple(identity for identity in IDENTITIES if identity.function == function)
