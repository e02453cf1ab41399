"""Options at the edge of float32 and float64, and shapes beyond any memory: computed as the reference
reads them, or refused in words.
"""

import warnings

import numpy as np
import pytest
from kernel_checks import FUNCTIONS, assert_right

import cpu_kernels
import refattn
from cpu_kernels.compiler.jit import INTERPRETED
from cpu_kernels.dtypes import working_dtype
from refattn.calls import memory
from refattn.calls.dense import attention_problem

HEADS, ROWS, KEYS = 2, 5, 200
LOWEST = {name: float(np.finfo(name).min) for name in ("float32", "float64")}
DTYPES = ("float32", "float64", "float16", "bfloat16")


def arrays(dtype, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (HEADS, ROWS, 16), (HEADS, KEYS, 16), (HEADS, KEYS, 24)
    return [
        rng.standard_normal(shape).astype(np.dtype(dtype) if dtype != "bfloat16" else bfloat16())
        for shape in shapes
    ]


def bfloat16():
    return pytest.importorskip("ml_dtypes").bfloat16


FACTORS = {
    **{
        f"softcap-{cap}": dict(softcap=cap)
        for cap in (3.5e38, 1e39, 1e300, 1e308, 2.0**60, 2.0**61, 1e-30, 1e-39, 1e-45, 1e-300, 1e-310)
    },
    **{
        f"scale-{scale}": dict(scale=scale)
        for scale in (1e30, -1e30, 1e37, 1e-30, 1e-40, -1e-45, 1e-300, 5e-324)
    },
    "both-large": dict(scale=1e30, softcap=1e30),
    "both-small": dict(scale=1e-40, softcap=1e-40),
    "small-scale": dict(scale=1e-30, softcap=1e30),
    "large-scale": dict(scale=1e30, softcap=1e-30),
    "capped-to-nothing": dict(scale=1e100, softcap=1e-250, causal=True),
}
SLOPES = {
    f"slopes-{slope}-{name}": dict(alibi_slopes=np.array([slope, 0.5]), **options)
    for slope in (1e12, 1e13, 1e30, -1e30, 1e38, 1e200)
    for name, options in {
        "near": {},
        "hidden-neighbours": dict(q_offset=10, window=(None, 3), mask=np.arange(KEYS) % 7 == 3),
        "sinks": dict(sinks=np.array([0.0, 1.0])),
    }.items()
}
ADDED = {
    **{
        f"sinks-{sink}": dict(sinks=np.array([sink, 0.0]))
        for sink in (-1e30, LOWEST["float32"], LOWEST["float32"] / 1.3, -1e300, LOWEST["float64"])
    },
    **{
        f"bias-of-half-{low}": dict(bias=np.where(np.arange(KEYS) < 100, 0, low)[None])
        for low in (-1e30, LOWEST["float32"], -1e300)
    },
    "bias-float32": dict(
        bias=np.where(np.arange(KEYS) < 100, 0, LOWEST["float32"])[None].astype(np.float32), causal=True
    ),
    "slopes-and-bias": dict(
        bias=np.where(np.arange(KEYS) % 3, 0, LOWEST["float32"])[None], alibi_slopes=np.array([0.5, 2.0])
    ),
}


@pytest.mark.sample(2)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("id", [*FACTORS, *SLOPES, *ADDED])
def test_options_at_the_edge(id, dtype):
    options = {**FACTORS, **SLOPES, **ADDED}[id]
    query, key, value = arrays(dtype)
    with np.errstate(
        all="ignore" if INTERPRETED else "raise"
    ):  # NumPy does the arithmetic of interpreted kernels
        output, lse = assert_right("attention", (query, key, value), options, dtype)
    assert np.isfinite(output.astype(float)).all() and output.dtype == query.dtype
    assert lse.dtype == (np.float64 if dtype == "float64" else np.float32)
    _, expected = refattn.attention_with_lse(query, key, value, **options)
    with np.errstate(over="ignore"):
        expected = expected.astype(lse.dtype)
    # However large a score, lse follows it; capped or scaled to nothing, it is the logarithm of a count.
    assert np.allclose(
        lse,
        expected,
        rtol=1e-5 if lse.dtype == np.float32 else 1e-13,
        atol=1e-5 if lse.dtype == np.float32 else 1e-13,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", ["float32", "float64"])
def test_a_row_of_extreme_biases_goes_by_the_biases(name, sign, dtype):
    """finfo.min as a mask that is added: a row that sees nothing else attends to all alike, and to
    the highest where they differ.
    """
    query, key, value = arrays(dtype)
    bias = np.zeros((ROWS, KEYS), name)
    extreme = sign * LOWEST[name]
    lower, higher = sorted((extreme, extreme * (1 - 2.0**-6)))
    bias[1] = extreme
    bias[2], bias[2, 7] = lower, higher
    bias[3], bias[3, 50:60] = lower / 1.375, higher / 1.375
    bias[4], bias[4, 150:] = -np.inf, extreme
    output, lse = cpu_kernels.attention_with_lse(query, key, value, bias=bias)
    roundoff = {"float32": 2.0**-24, "float64": 2.0**-53, "float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    wide = value.astype(float)

    def close(row, keys):
        return np.allclose(output[:, row].astype(float), wide[:, keys].mean(1), rtol=0, atol=8 * roundoff)

    highest = [np.flatnonzero(row == row.max()) for row in bias]
    for row in range(1, ROWS):
        assert close(row, highest[row]), row
    expected = np.array([row.max() for row in bias[1:]])
    with np.errstate(over="ignore"):
        expected = expected.astype(lse.dtype)
    assert np.allclose(lse[:, 1:], expected, rtol=8 * float(np.finfo(lse.dtype).eps), atol=0)
    assert_right(
        "attention",
        (query, key, value),
        dict(bias=bias),
        dtype,
        tiers=("positions", "hard") if name == dtype else ("hard",),
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_extreme_sinks_and_biases_are_compared(dtype):
    """A sink as low as the bias takes part as one more key, a higher one takes everything."""
    query, key, value = arrays(dtype)
    bias = np.full((1, KEYS), LOWEST[dtype], dtype)
    for sinks, kept in (
        ([LOWEST[dtype]] * 2, KEYS / (KEYS + 1)),
        ([LOWEST[dtype] / 1.25] * 2, 0),
        ([-np.inf] * 2, 1),
    ):
        output, lse = cpu_kernels.attention_with_lse(
            query, key, value, bias=bias, sinks=np.array(sinks, dtype)
        )
        assert np.allclose(output, kept * value.mean(1, keepdims=True), atol=1e-6)
        assert np.allclose(lse, max(LOWEST[dtype], sinks[0]), rtol=1e-6)


@pytest.mark.parametrize("heads, rows", [(2, 1), (4, 3), (1, 40)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_extreme_biases_where_keys_are_split(dtype, heads, rows):
    rng = np.random.default_rng(3)
    lowest, length = LOWEST[dtype], 4096
    query, key, value = (
        rng.standard_normal(shape).astype(dtype)
        for shape in ((heads, rows, 64), (1, length, 64), (1, length, 64))
    )
    late = np.arange(length) >= 3500
    for bias in (
        np.full(length, lowest),
        np.where(late, lowest * 0.875, lowest),
        np.where(late, lowest, -np.inf),
    ):
        kept = bias == bias.max()
        output, lse = cpu_kernels.attention_with_lse(query, key, value, bias=bias[None].astype(dtype))
        assert np.allclose(output, value[:, kept].mean(1, dtype=float), atol=1e-6) and np.allclose(
            lse, bias.max(), rtol=1e-6
        )
        output, lse = cpu_kernels.attention_with_lse(
            query, key, value, bias=bias[None].astype(dtype), sinks=np.full(heads, bias.max())
        )
        share = kept.sum() / (kept.sum() + 1)
        assert np.allclose(output, share * value[:, kept].mean(1, dtype=float), atol=1e-6) and np.allclose(
            lse, bias.max(), rtol=1e-6
        )


EDGE_PAIRS = [  # query and key whose product float32 holds, though a scaled query may not fit
    (3e38, 0.26),
    (-3e38, 0.7),
    (3.4e38, 1e-38),
    (3e38, 1e-45),
    (1e-45, 3e38),
    (1e-40, 3.4e38),
    (1e-38, 1e-7),
    (2.0**126, 1.5),
    (1.8e19, 1.8e19),
    (1.0, 3.4e38),
]
EDGE_OPTIONS = {
    **{f"scale-{scale}": dict(scale=scale) for scale in (1.0, -0.9, 0.5, 1e-3, 1e-18, 1e-40, 1e38)},
    "sinks": dict(scale=1.0, sinks=np.array([3e38, -np.inf])),
    "low sinks": dict(scale=0.3, sinks=np.array([-3.4e38, 1e-45])),
    **{f"softcap-{cap}": dict(scale=0.7, softcap=cap) for cap in (1e-45, 1e-18, 50.0, 1e18, 3e38)},
    "softcap, large scale": dict(scale=1e17, softcap=30.0),
    "bias": dict(scale=0.5, bias=np.array([[0.0, -1.6e38, 1.6e38]], np.float32)),
}


@pytest.mark.sample(5)
@pytest.mark.parametrize("options", EDGE_OPTIONS.values(), ids=EDGE_OPTIONS)
@pytest.mark.parametrize("head_dim", [1, 2, 16])
@pytest.mark.parametrize("rows", [1, 33])
def test_what_the_order_of_operations_computes_in_float32_is_computed(rows, head_dim, options):
    """Product, scale, cap, sums: where all are finite, ours are, and right."""
    judged = 0
    for query_size, key_size in EDGE_PAIRS:
        query = np.full((2, rows, head_dim), query_size / head_dim, np.float32)
        key = np.full((1, 3, head_dim), key_size, np.float32) * np.array([[1.0], [0.5], [-1.0]], np.float32)
        value = np.array([[[1.0, 3e38], [2.0, 3e38], [4.0, 1e-38]]], np.float32)
        with np.errstate(all="ignore"):
            product = query @ key[0].T
            scaled = product * np.float32(options["scale"])
            scores = scaled + options.get("bias", np.float32(0))
        if not all(np.isfinite(step).all() for step in (product, scaled, scores)):
            continue
        output, lse = assert_right(
            "attention", (query, key, value), options, "float32", tiers=("positions", "range", "hard")
        )
        expected, expected_lse = refattn.attention_with_lse(query, key, value, **options)
        assert np.isfinite(output).all() and np.allclose(lse, expected_lse, rtol=1e-5, atol=1e-4), (
            query_size,
            key_size,
        )
        certain = np.abs(scores).max() < 1e2  # beyond it float32 decides weights by the last digit of scores
        assert not certain or np.allclose(output, expected, rtol=1e-4), (query_size, key_size)
        judged += 1
    assert judged >= 2


@pytest.mark.sample(2)
@pytest.mark.parametrize("function", [name for name in FUNCTIONS if name != "attention"])
@pytest.mark.parametrize(
    "options",
    [dict(softcap=1e39), dict(softcap=1e-39), dict(scale=1e-40), dict(sinks=np.array([-1e300, 0.0]))],
    ids=str,
)
def test_every_function_at_the_edge(function, options):
    rng = np.random.default_rng(1)

    def draw(*shape):
        return rng.standard_normal(shape, dtype=np.float32)

    given, more = {
        "packed_attention": (
            (draw(2, 5, 8), draw(2, 9, 8), draw(2, 9, 6)),
            dict(cu_q=[0, 2, 5], cu_kv=[0, 4, 9]),
        ),
        "paged_attention": (
            (draw(1, 2, 3, 8), draw(3, 2, 4, 8), draw(3, 2, 4, 6)),
            dict(block_table=[[2, 0]], kv_lengths=[7]),
        ),
        "latent_attention": (
            (draw(2, 3, 4), draw(2, 3, 2), draw(9, 5), draw(9, 2), draw(2, 4, 5), draw(2, 6, 5)),
            {},
        ),
        "block_local_attention": ((draw(2, 9, 8), draw(2, 9, 8), draw(2, 9, 6)), dict(block_size=4)),
    }[function]
    with np.errstate(all="raise"):
        output, lse = assert_right(function, given, {**more, **options}, "float32")
    assert np.isfinite(output).all() and output.dtype == lse.dtype == np.float32


def test_distances_that_only_float64_holds():
    query, key, value = arrays("float32")
    options = dict(alibi_slopes=np.array([1e20, 1.0]), q_offset=2**53)
    output, lse = cpu_kernels.attention_with_lse(query, key, value, **options)
    near = refattn.attention(
        query, key, value, **{**options, "q_offset": KEYS}
    )  # beyond the last key all distances grow alike
    assert np.allclose(output, near, atol=1e-6) and np.allclose(
        lse, -(2.0**53) * options["alibi_slopes"][:, None], rtol=1e-6
    )


def test_no_warnings_for_what_rounds_to_infinity_or_zero():
    query, key, value = arrays("float16")
    large = [query, key, np.full(value.shape, 1e30, np.float32)]
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        assert (cpu_kernels.attention(*large) == np.inf).all()
        assert np.isfinite(
            cpu_kernels.attention(query, key, value, bias=np.full((1, KEYS), 1e-300)).astype(float)
        ).all()


def test_ordinary_options_stay_in_float32():
    query, key, value = arrays("float32")
    rng = np.random.default_rng(2)
    bias = np.where(rng.random((ROWS, KEYS)) < 0.5, LOWEST["float32"], rng.standard_normal((ROWS, KEYS)))
    bias[:, 3] = -np.inf
    options = dict(
        bias=bias,
        softcap=50.0,
        alibi_slopes=np.ones(HEADS),
        sinks=np.full(HEADS, LOWEST["float32"]),
        scale=0.0,
    )
    assert working_dtype(attention_problem(query, key, value, **options), np.dtype(np.float32)) == np.float32


@pytest.mark.parametrize(
    "options, message",
    [
        (
            dict(alibi_slopes=np.array([1.0, -1e300])),
            "alibi_slopes must be at most 2**900 in magnitude for cpu_kernels; got alibi_slopes with "
            "-1e+300.",
        ),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_float64_does_not_hold_is_refused(options, message, dtype):
    with pytest.raises(ValueError) as raised:
        cpu_kernels.attention(*arrays(dtype), **options)
    assert str(raised.value) == message


# -- shapes beyond any memory -------------------------------------------------------------------------------

ENDLESS = 2**33


def repeated(*shape, dtype=np.float32):
    return np.broadcast_to(np.ones(1, dtype), shape)


@pytest.mark.parametrize(
    "function, given, options",
    [
        ("attention", (repeated(1, 1, 64), repeated(1, ENDLESS, 64), repeated(1, ENDLESS, 64)), {}),
        (
            "attention",
            (
                repeated(1, 1, 64),
                np.broadcast_to(np.ones(64, np.float32), (1, ENDLESS, 64)),
                repeated(1, ENDLESS, 1),
            ),
            {},
        ),
        (
            "attention",
            (repeated(1, 1, 64, dtype=np.float16), *[repeated(1, ENDLESS, 64, dtype=np.float16)] * 2),
            {},
        ),
        (
            "packed_attention",
            (repeated(1, 1, 64), *[repeated(1, ENDLESS, 64)] * 2),
            dict(cu_q=[0, 1], cu_kv=[0, ENDLESS]),
        ),
        (
            "paged_attention",
            (repeated(1, 1, 1, 64), *[repeated(1, 1, ENDLESS, 64)] * 2),
            dict(block_table=[[0]], kv_lengths=ENDLESS),
        ),
        (
            "latent_attention",
            (
                repeated(1, 1, 8),
                repeated(1, 1, 4),
                repeated(ENDLESS, 16),
                repeated(ENDLESS, 4),
                repeated(1, 8, 16),
                repeated(1, 5, 16),
            ),
            {},
        ),
        (
            "latent_attention",
            (
                repeated(1, 1, 8),
                repeated(1, 1, 4),
                repeated(ENDLESS, 16),
                repeated(ENDLESS, 4),
                repeated(1, 8, 16),
                repeated(1, 5, 16),
            ),
            dict(form="expand"),
        ),
    ],
)
def test_keys_that_repeat_beyond_any_memory_are_refused(function, given, options):
    for module in (cpu_kernels, refattn):
        with pytest.raises(MemoryError, match="must fit in memory; got sizes that need"):
            getattr(module, function)(*given, **options)


def test_repeated_keys_that_could_be_held_are_computed():
    query, key, value = arrays("float32")
    few = cpu_kernels.attention(
        query, repeated(HEADS, ENDLESS, 16), repeated(HEADS, ENDLESS, 24), kv_lengths=1000
    )
    assert np.allclose(few, 1, atol=1e-6)
    shared = [np.broadcast_to(x[None], (3, *x.shape)) for x in (query, key, value)]
    assert np.array_equal(cpu_kernels.attention(*shared)[2], cpu_kernels.attention(query, key, value))


def test_arrays_that_lie_in_memory_are_never_refused(monkeypatch):
    """They may lie in a file of any size; only what a view repeats counts."""
    monkeypatch.setattr(memory, "available_bytes", lambda: 0)
    monkeypatch.setattr(memory, "CHECKED_FROM", 2**17)
    query, _key, _value = arrays("float32")
    long = [
        np.ones((4, HEADS, 3000, 16), np.float32),
        np.ones((4, HEADS, 16, 3000), np.float32).swapaxes(-1, -2),
    ]
    query = np.ones((4, HEADS, 1, 16), np.float32)
    assert np.allclose(cpu_kernels.attention(query, *long), 1)
    with pytest.raises(
        MemoryError,
        match="^the keys and values of one head, views that repeat their elements, must fit in memory; ",
    ):
        cpu_kernels.attention(query, np.broadcast_to(long[0][:, :, :1], long[0].shape), long[1])
    with pytest.raises(
        MemoryError, match="^a copy of an operand in the dtype of the computation must fit in memory; "
    ):
        cpu_kernels.attention(
            query.repeat(40, axis=2).astype(np.float16), long[0].astype(np.float16), long[1]
        )


def test_nothing_to_compute_takes_no_memory():
    none = cpu_kernels.attention(*[repeated(1, ENDLESS, 0, 8)] * 3)
    assert none.shape == (1, ENDLESS, 0, 8)
