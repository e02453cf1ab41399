"""The one table of cases that tests and benchmarks read.

A case is a declaration; `Case.build(dtype)` turns it into arrays, the same ones for the same dtype on
every machine:

    arrays, options = case.build("float32")
    refattn.attention(*arrays.values(), **options)

`arrays` maps the positional argument names of the case's function, in order, to ndarrays; `options` maps
keyword names to values. How a case spells its options:

    bias, mask, dropout   "shape" or "shape:content"; a shape of up to two letters is broadcast from the right, one of four letters
                          stands for (batch axes, heads, rows, keys); the digit 1 is an axis of length one
                          and "0" the empty shape. Contents: bias "inf" sprinkles -inf, "big" is of the
                          order 1e4; mask "rows" hides whole rows, "all" hides everything. dropout is a
                          pair (shape, rate).
    kv_lengths, q_offset  an int, or "array": one value for each sequence, with 0 and the full length among the lengths
    alibi_slopes, sinks   "heads" or (slopes only) "batch"; sinks "some" turns every second one off with -inf, "off" all of them
    everything else       as the function takes it
"""

import zlib
from dataclasses import dataclass, field
from itertools import combinations, product

import numpy as np
from families import FAMILIES


@dataclass(frozen=True)
class Sizes:
    """Lengths of all axes a case may need; `batch` holds the leading axes (none, one or two)."""

    batch: tuple = (2,)
    num_kv_heads: int = 3
    group_size: int = 2
    q_len: int = 11
    kv_len: int = 17
    head_dim: int = 5
    v_head_dim: int = 7
    page_size: int = 4  # paged_attention
    block_size: int = 5  # block_local_attention
    nope_dim: int = 5  # latent_attention: head_dim without rotation, with rotation, width of the latent
    rope_dim: int = 3
    latent_dim: int = 13

    @property
    def num_heads(self):
        return self.num_kv_heads * self.group_size


@dataclass(frozen=True)
class Case:
    """One call of one public function; see the module's text for how `options` are spelled."""

    id: str
    function: str = "attention"
    sizes: Sizes = Sizes()
    options: dict = field(default_factory=dict)
    seed: int = 0
    family: str = "ordinary"
    layout: str = "contiguous"

    def build(self, dtype="float64"):
        """Arrays (positional, in order) and options (keywords) of the call; `dtype` is float64,
        float32, float16 or bfloat16.
        """
        rng = np.random.default_rng([self.seed, zlib.crc32(self.id.encode())])
        arrays, structure, shape = _BUILDERS[self.function](self, rng, _dtype(dtype))
        arrays = {name: LAYOUTS[self.layout](array.astype(_dtype(dtype))) for name, array in arrays.items()}
        return arrays, structure | _build_options(self.options, rng, shape, _dtype(dtype))

    def __str__(self):
        return self.id


def _dtype(name):
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


# ---- memory layouts: the same numbers, laid out differently -----------------------------------------------


def _sliced(x):
    """Every second element of an array that is larger by one on each side, in every axis."""
    room = np.full([2 * n + 3 for n in x.shape], 77, x.dtype)
    view = room[tuple(slice(1, 2 * n + 1, 2) for n in x.shape)]
    view[...] = x
    return view


def _transposed(x):
    """Heads and rows swapped in memory, as a (batch, length, heads, dim) projection leaves them."""
    return x if x.ndim < 3 else np.ascontiguousarray(np.swapaxes(x, -3, -2)).swapaxes(-3, -2)


LAYOUTS = {
    "contiguous": lambda x: x,
    "fortran": np.asfortranarray,
    "negative": lambda x: np.flip(np.flip(x).copy()),
    "sliced": _sliced,
    "transposed": _transposed,
    "zero": lambda x: np.broadcast_to(
        x[:1], x.shape
    ),  # stride 0 along the first axis: all its entries are the first
    "readonly": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
}


# ---- options ----------------------------------------------------------------------------------------------


def option_shape(letters, shape):
    """Shape of a bias or mask: `letters` as the module's text says, `shape` = (*batch, heads, rows,
    keys).
    """
    *batch, heads, rows, keys = shape
    size = {"h": heads, "t": rows, "s": keys, "1": 1}
    if len(letters) == 4:
        return tuple(batch if letters[0] == "b" else [1] * len(batch)) + tuple(size[c] for c in letters[1:])
    return tuple(size[c] for c in letters if c != "0")


def _build_options(declared, rng, shape, dtype):
    *batch, heads, rows, keys = shape
    wide = np.float64 if dtype == np.float64 else np.float32
    options = {}
    for name, value in declared.items():
        letters, _, content = value.partition(":") if isinstance(value, str) else (None, None, None)
        if name == "bias":
            bias = rng.normal(size=option_shape(letters, shape)) * (1e4 if content == "big" else 2)
            if content == "inf":
                bias = np.where(rng.random(bias.shape) < 0.2, -np.inf, bias)
            options["bias"] = np.asarray(bias).astype(dtype)
        elif name == "mask":
            mask = np.asarray(rng.random(option_shape(letters, shape)) < (0 if content == "all" else 0.7))
            if content == "rows":
                mask &= rng.random((*mask.shape[:-1], 1)) < 0.6
            options["mask"] = mask
        elif name == "dropout":
            options["dropout_mask"] = rng.random(option_shape(value[0], shape)) >= value[1]
            options["dropout_rate"] = value[1]
        elif name == "kv_lengths" and value == "array":
            lengths = rng.integers(0, keys + 1, size=batch)
            lengths.flat[:2] = [keys, 0][: lengths.size]
            options[name] = lengths
        elif name == "q_offset" and value == "array":
            options[name] = rng.integers(-rows, keys + 1, size=batch)
        elif name == "alibi_slopes":
            options[name] = (
                rng.uniform(0.05, 1, size=[*batch, heads] if value == "batch" else heads)
            ).astype(wide)
        elif name == "sinks":
            sinks = rng.normal(size=heads) * 2
            sinks[{"heads": slice(0, 0), "some": slice(0, None, 2), "off": slice(None)}[value]] = -np.inf
            options[name] = sinks.astype(wide)
        else:
            options[name] = value
    return options


# ---- arrays of each function: (arrays, structure options, full shape of the scores) -----------------------


def _attention(case, rng, dtype):
    z = case.sizes
    query, key, value = FAMILIES[case.family](
        rng,
        (*z.batch, z.num_heads, z.q_len, z.head_dim),
        (*z.batch, z.num_kv_heads, z.kv_len, z.head_dim),
        (*z.batch, z.num_kv_heads, z.kv_len, z.v_head_dim),
        dtype,
    )
    return {"query": query, "key": key, "value": value}, {}, (*z.batch, z.num_heads, z.q_len, z.kv_len)


def _packed(case, rng, dtype):
    """Sequences of random lengths, the first one without keys, the second one without queries;
    batch[0] sequences in all.
    """
    z = case.sizes
    q_lens = rng.integers(1, z.q_len + 1, size=z.batch[0])
    kv_lens = rng.integers(1, z.kv_len + 1, size=z.batch[0])
    kv_lens[:1], q_lens[1:2] = 0, 0
    cu_q, cu_kv = (np.concatenate([[0], np.cumsum(lens)]).astype(np.int32) for lens in (q_lens, kv_lens))
    query, key, value = FAMILIES[case.family](
        rng,
        (z.num_heads, int(cu_q[-1]), z.head_dim),
        (z.num_kv_heads, int(cu_kv[-1]), z.head_dim),
        (z.num_kv_heads, int(cu_kv[-1]), z.v_head_dim),
        dtype,
    )
    return (
        {"query": query, "key": key, "value": value},
        {"cu_q": cu_q, "cu_kv": cu_kv},
        (z.num_heads, int(cu_q[-1]), int(cu_kv[-1])),
    )


def _paged(case, rng, dtype):
    """`kv_len` is the capacity of a sequence in keys, a multiple of page_size; pages are handed out
    in random order, a few stay unused.
    """
    z = case.sizes
    (batch,) = z.batch
    max_pages = z.kv_len // z.page_size
    num_pages = batch * max_pages + 3
    block_table = rng.permutation(num_pages)[: batch * max_pages].reshape(batch, max_pages).astype(np.int32)
    query, keys, values = FAMILIES[case.family](
        rng,
        (batch, z.num_heads, z.q_len, z.head_dim),
        (batch, z.num_kv_heads, z.kv_len, z.head_dim),
        (batch, z.num_kv_heads, z.kv_len, z.v_head_dim),
        dtype,
    )
    pages = []
    for rows in (keys, values):
        paged = rng.normal(size=(num_pages, z.num_kv_heads, z.page_size, rows.shape[-1]))
        for b, p in product(range(batch), range(max_pages)):
            paged[block_table[b, p]] = rows[b, :, p * z.page_size : (p + 1) * z.page_size]
        pages.append(paged)
    arrays = {"query": query, "key_pages": pages[0], "value_pages": pages[1]}
    return arrays, {"block_table": block_table}, (batch, z.num_heads, z.q_len, max_pages * z.page_size)


def _latent(case, rng, dtype):
    z = case.sizes

    def draw(*shape):
        return rng.normal(size=shape)

    arrays = {
        "q_nope": draw(*z.batch, z.num_heads, z.q_len, z.nope_dim),
        "q_rope": draw(*z.batch, z.num_heads, z.q_len, z.rope_dim),
        "kv_latent": draw(*z.batch, z.kv_len, z.latent_dim),
        "k_rope": draw(*z.batch, z.kv_len, z.rope_dim),
        "w_uk": draw(z.num_heads, z.nope_dim, z.latent_dim) / np.sqrt(z.latent_dim),
        "w_uv": draw(z.num_heads, z.v_head_dim, z.latent_dim) / np.sqrt(z.latent_dim),
    }
    return arrays, {}, (*z.batch, z.num_heads, z.q_len, z.kv_len)


def _block_local(case, rng, dtype):
    arrays, _, shape = _attention(case, rng, dtype)
    return arrays, {"block_size": case.sizes.block_size}, shape


_BUILDERS = {
    "attention": _attention,
    "packed_attention": _packed,
    "paged_attention": _paged,
    "latent_attention": _latent,
    "block_local_attention": _block_local,
}


# ---- the table --------------------------------------------------------------------------------------------

# Values of each factor, the default first. `_pairwise` makes every pair of values of two factors meet in
# some case.
_FACTORS = {
    "sizes": [
        Sizes(),
        Sizes(batch=(), group_size=1, q_len=13, kv_len=13, head_dim=7, v_head_dim=7),
        Sizes(batch=(2, 3), num_kv_heads=1, group_size=3, q_len=7, kv_len=19, head_dim=11, v_head_dim=2),
        Sizes(batch=(5,), num_kv_heads=2, group_size=4, q_len=1, kv_len=23, head_dim=3, v_head_dim=13),
        Sizes(batch=(3,), num_kv_heads=1, group_size=8, q_len=17, kv_len=5, head_dim=2, v_head_dim=3),
    ],
    "scale": [None, 0.37, -0.6, 0.0],
    "causal": [False, True],
    "window": [None, (3, 2), (5, None), (None, 0), (0, 0)],
    "chunk": [None, 4, 1, 7],
    "softcap": [None, 5.0, 0.5],
    "bias": [None, "ts", "bhts:inf", "1h1s", "b1ts:big", "s"],
    "mask": [None, "ts", "bhts", "b11s", "1ht1:rows"],
    "alibi_slopes": [None, "heads", "batch"],
    "sinks": [None, "heads", "some"],
    "kv_lengths": [None, "array", 4],
    "q_offset": [None, 0, -3, "array", 2],
    "dropout": [None, ("bhts", 0.25), ("ts", 0.5)],
    "layout": list(LAYOUTS),
    "family": ["ordinary", "ascending", "sink_key", "ties", "cancellation"],
}


def _pairwise(factors, seed=7):
    """Rows of factor values in which every pair of values of any two factors occurs (greedy: best of
    some random rows, again and again).
    """
    names = list(factors)
    missing = {
        ((a, i), (b, j))
        for a, b in combinations(names, 2)
        for i in range(len(factors[a]))
        for j in range(len(factors[b]))
    }
    rng = np.random.default_rng(seed)

    def pairs_of(row):
        return set(combinations(row, 2))

    rows = []
    while missing:
        first = min(missing)
        candidates = []
        for _ in range(30):
            picks = {name: int(rng.integers(len(factors[name]))) for name in names} | dict(first)
            candidates.append([(name, picks[name]) for name in names])
        row = max(candidates, key=lambda row: len(pairs_of(row) & missing))
        missing -= pairs_of(row)
        rows.append({name: factors[name][i] for name, i in row})
    return rows


def _table():
    def add(id, function="attention", sizes=Sizes(), family="ordinary", layout="contiguous", **options):
        cases.append(Case(id, function, sizes, options, len(cases), family, layout))

    cases = []
    add("plain")
    for name, values in _FACTORS.items():
        if name not in ("sizes", "layout", "family"):
            for value in values[1:]:
                add(f"{name}-{_word(value)}", **{name: value})
    add("q_offset-far", q_offset=10**6, alibi_slopes="heads")
    add("q_offset-far-left", q_offset=-(10**6), alibi_slopes="heads", bias="ts")
    add("bias-0d", bias="0")
    add("mask-0d", mask="0")
    add("mask-all", mask="ts:all")
    add("mask-all-sinks", mask="ts:all", sinks="some")
    add("sinks-off", sinks="off")
    add("causal-window", causal=True, window=(4, 3))
    add("kv_lengths-0", kv_lengths=0)
    for family in FAMILIES:
        add(f"family-{family}", family=family, sizes=Sizes(q_len=5, kv_len=67, head_dim=13))
        add(
            f"family-{family}-causal",
            family=family,
            sizes=Sizes(batch=(), q_len=37, kv_len=37, head_dim=2),
            causal=True,
        )
    for layout in LAYOUTS:
        add(f"layout-{layout}", layout=layout)
    for batch in ((), (3,), (2, 3), (1, 1)):
        add(f"batch-{len(batch)}-{_word(batch)}", sizes=Sizes(batch=batch), causal=True)
    for group_size in (1, 2, 3, 4, 8):
        for num_kv_heads in (1, 2, 3):
            add(
                f"heads-{num_kv_heads * group_size}-{num_kv_heads}",
                sizes=Sizes((), num_kv_heads, group_size),
                causal=True,
            )
    for q_len, kv_len in [
        (1, 1),
        (1, 2),
        (1, 31),
        (2, 31),
        (31, 1),
        (31, 29),
        (29, 31),
        (0, 7),
        (7, 0),
        (0, 0),
        (1, 257),
        (3, 509),
    ]:
        add(f"lengths-{q_len}x{kv_len}", sizes=Sizes((2,), 1, 2, q_len, kv_len, 3, 5))
        add(
            f"lengths-{q_len}x{kv_len}-causal-sinks",
            sizes=Sizes((2,), 1, 2, q_len, kv_len, 3, 5),
            causal=True,
            sinks="some",
        )
    for tile in (4, 8, 16, 32, 64, 128):
        for length in (tile - 1, tile, tile + 1):
            add(f"tile-{length}", sizes=Sizes((), 1, 1, length, length, 3, 2), causal=True)
            add(f"tile-keys-{length}", sizes=Sizes((2,), 1, 3, 2, length, 3, 2), kv_lengths="array")
            add(f"tile-rows-{length}", sizes=Sizes((), 1, 2, length, 5, 3, 2), window=(2, 1))
    for dim in (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 80, 96, 127, 128, 129, 192, 256):
        add(f"head_dim-{dim}", sizes=Sizes((), 1, 2, 3, 7, dim, dim))
    for head_dim, v_head_dim in [(192, 128), (576, 512), (1, 64), (64, 1), (7, 0), (128, 257)]:
        add(f"head_dims-{head_dim}-{v_head_dim}", sizes=Sizes((1,), 1, 4, 2, 11, head_dim, v_head_dim))
    add("batch-empty", sizes=Sizes(batch=(0,)))
    add("batch-empty-inner", sizes=Sizes(batch=(2, 0)), kv_lengths=3)
    for number, row in enumerate(_pairwise(_FACTORS)):
        sizes, layout, family = (row.pop(name) for name in ("sizes", "layout", "family"))
        add(
            f"pair-{number:03}",
            "attention",
            sizes,
            family,
            layout,
            **{name: value for name, value in row.items() if value is not None},
        )

    shared = [
        {},
        {"causal": True},
        {"window": (3, 1)},
        {"softcap": 2.0, "scale": 0.8},
        {"alibi_slopes": "heads", "causal": True},
        {"sinks": "some", "window": (2, 0), "chunk": 4},
    ]
    for number, options in enumerate(shared):
        for sizes in (Sizes(batch=(5,)), Sizes((3,), 2, 4, 1, 19, 7, 3), Sizes((7,), 1, 3, 23, 13, 2, 11)):
            shape = f"{sizes.q_len}x{sizes.kv_len}"
            add(f"packed-{shape}-{number}", "packed_attention", sizes, **options)
    for number, options in enumerate(
        [
            *shared,
            {"mask": "bhts", "bias": "1h1s:inf"},
            {"q_offset": "array", "causal": True, "dropout": ("b1ts", 0.3)},
        ]
    ):
        for sizes in (
            Sizes((3,), kv_len=20),
            Sizes((5,), 2, 4, 1, 24, 7, 3, page_size=8),
            Sizes((2,), 1, 3, 7, 13, 2, 11, page_size=1),
        ):
            shape = f"{sizes.q_len}x{sizes.kv_len}"
            add(f"paged-{shape}-{number}", "paged_attention", sizes, kv_lengths="array", **options)
    add(
        "paged-sliced",
        "paged_attention",
        Sizes((3,), kv_len=20),
        layout="sliced",
        kv_lengths="array",
        causal=True,
    )
    for number, options in enumerate(
        [
            *shared,
            {"mask": "b1ts", "bias": "bhts"},
            {"kv_lengths": "array", "q_offset": "array", "causal": True},
        ]
    ):
        for sizes in (
            Sizes((2,), 1, 3),
            Sizes((), 1, 5, 1, 23, v_head_dim=2, nope_dim=11, latent_dim=3),
            Sizes((2, 2), 1, 2, 13, 13),
        ):
            for form in ("absorb", "expand"):
                add(
                    f"latent-{len(sizes.batch)}-{sizes.q_len}x{sizes.kv_len}-{number}-{form}",
                    "latent_attention",
                    sizes,
                    form=form,
                    **options,
                )
    add("latent-transposed", "latent_attention", Sizes((2,), 1, 3), layout="transposed", causal=True)
    for number, options in enumerate(
        [*shared, {"mask": "bhts", "bias": "ts"}, {"kv_lengths": "array", "dropout": ("bhts", 0.4)}]
    ):
        for block_size in (1, 3, 13, 5, 50):
            sizes = Sizes(q_len=13, kv_len=13, block_size=block_size)
            add(f"block-{block_size}-{number}", "block_local_attention", sizes, **options)
    return cases


def _word(value):
    return "".join(c if c.isalnum() or c in ".-" else "_" for c in str(value)).strip("_")


CASES = _table()
BY_FUNCTION = {function: [case for case in CASES if case.function == function] for function in _BUILDERS}
assert len({case.id for case in CASES}) == len(CASES)
