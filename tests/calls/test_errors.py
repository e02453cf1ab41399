"""Every bad call raises its error: the type and the whole message, before any work, the same in both
packages.
"""

import copy
import inspect
import tracemalloc

import numpy as np
import pytest
from bad_calls import BAD_CALLS, GOOD_CALLS, TWINS, options
from bad_calls.call import endless, real, yes

import cpu_kernels
import refattn
import refattn.calls.memory

PACKAGES = [refattn, cpu_kernels]


def named_calls():
    for package in PACKAGES:
        for call in BAD_CALLS:
            for name in TWINS[call.function]:
                if hasattr(package, name):
                    yield pytest.param(
                        getattr(package, name), call, id=f"{package.__name__}.{name}-{call.reason}"
                    )


@pytest.fixture(autouse=True)
def four_gib_of_memory(monkeypatch):
    """Messages about memory name what is left, which must not depend on the machine."""
    monkeypatch.setattr(refattn.calls.memory, "available_bytes", lambda: 4 * 2**30)


@pytest.mark.parametrize("function, call", list(named_calls()))
def test_bad_call(function, call):
    with pytest.raises(Exception) as raised:
        function(**GOOD_CALLS[call.function] | call.changes)
    assert str(raised.value) == call.message
    assert type(raised.value) is call.error


def named_functions():
    for package in PACKAGES:
        for function, names in TWINS.items():
            for name in names:
                if hasattr(package, name):
                    yield pytest.param(getattr(package, name), function, id=f"{package.__name__}.{name}")


@pytest.mark.parametrize("function, of", list(named_functions()))
def test_good_call(function, of):
    """The call that every row changes in one place is itself accepted, on read-only arrays."""
    for array in results(function(**GOOD_CALLS[of])):
        assert np.isfinite(array).all()


@pytest.mark.parametrize("function, of", list(named_functions()))
def test_no_argument_is_modified(function, of):
    call = GOOD_CALLS[of] | OPTIONS.get(of, {})
    arguments = {name: np.array(value) if name in ARRAYS else value for name, value in call.items()}
    before = copy.deepcopy(arguments)
    for array in results(function(**arguments)):
        assert not any(
            np.shares_memory(array, given) for given in arguments.values() if isinstance(given, np.ndarray)
        )
    for name, given in arguments.items():
        assert np.array_equal(given, before[name]), name


N = 2**33
ONE_GROUP = (
    "keys, values and scores of one group must fit in memory; got sizes that need 2432.0 GiB and "
    "4.0 GiB are available."
)
TOO_LARGE = {
    "attention": (
        {"query": endless(1, 1, 1, 8), "key": endless(1, 1, N, 8), "value": endless(1, 1, N, 7)},
        ONE_GROUP,
    ),
    "packed_attention": (
        {
            "query": endless(1, 1, 8),
            "key": endless(1, N, 8),
            "value": endless(1, N, 7),
            "cu_q": [0, 1],
            "cu_kv": [0, N],
        },
        ONE_GROUP,
    ),
    "paged_attention": (
        {
            "query": endless(1, 1, 1, 8),
            "key_pages": endless(1, 1, N, 8),
            "value_pages": endless(1, 1, N, 7),
            "block_table": [[0]],
            "kv_lengths": N,
        },
        ONE_GROUP,
    ),
    "latent_attention": (
        {
            "q_nope": endless(6, 1, 8),
            "q_rope": endless(6, 1, 3),
            "kv_latent": endless(N, 16),
            "k_rope": endless(N, 3),
            "w_uk": endless(6, 8, 16),
            "w_uv": endless(6, 7, 16),
        },
        "queries, keys and outputs in the latent space must fit in memory; got sizes that need 1216.0 GiB "
        "and 4.0 GiB are available.",
    ),
    "attention_steps": (
        {"query": endless(1, 1, 2**16, 8), "key": endless(1, 1, 2**16, 8), "value": endless(1, 1, 2**16, 7)},
        "attention_steps must fit in memory; got sizes that need 128.0 GiB and 4.0 GiB are available.",
    ),
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_sizes_that_only_the_reference_cannot_hold(name):
    """It copies the keys and values of a group to float64, which the kernels do not."""
    arguments, message = TOO_LARGE[name]
    with pytest.raises(MemoryError) as raised:
        getattr(refattn, name)(**arguments)
    assert str(raised.value) == message


def test_expanded_heads_that_cannot_be_allocated():
    rule = r"keys and values of \w+ head must fit in memory; got sizes that need \d+\.\d GiB and 4\.0 GiB are available\."
    with pytest.raises(MemoryError, match=f"^{rule}$"):
        refattn.latent_attention(**TOO_LARGE["latent_attention"][0], form="expand")


@pytest.mark.parametrize("function, of", list(named_functions()))
def test_errors_come_before_any_work(function, of):
    """A bad option is refused without touching arrays so large that any pass over them would show in
    memory.
    """
    if of == "merge_states":
        large = {"outputs": [endless(6, 2**20, 7)] * 2, "lses": [endless(6, 2**20), endless(6, 2**20 - 1)]}
        changes = {"the lengths": {}}
    else:
        large = GOOD_CALLS[of] | LARGE[of]
        changes = {reason: change for reason, change, _, _ in options.BAD}
    for reason, change in changes.items():
        tracemalloc.start()
        try:
            with pytest.raises((TypeError, ValueError, OverflowError)):
                function(**large | change)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 2**20, reason


FARTHEST = {
    "softcap largest": {"softcap": 1.7e308},
    "softcap smallest": {"softcap": 5e-324},
    "scale zero": {"scale": 0},
    "scale smallest": {"scale": 5e-324},
    "window beyond int64": {"window": (10**30, 10**30)},
    "window on one side": {"window": (None, 0)},
    "window and offset": {"window": (2**53, 2**53), "q_offset": -(2**53)},
    "offset largest": {"q_offset": 2**53, "causal": True},
    "dropout nearly 1": {"dropout_mask": [[True]], "dropout_rate": 1 - 2**-53},
    "nothing to see": {"kv_lengths": 0, "sinks": [0.0] * 6},
    "all hidden": {"mask": [[False]], "sinks": [0.0] * 6},
}


@pytest.mark.parametrize("extreme", FARTHEST)
def test_farthest_values_are_accepted(extreme):
    for array in refattn.attention_with_lse(**GOOD_CALLS["attention"] | FARTHEST[extreme]):
        assert np.isfinite(array).all()


def test_a_huge_softcap_caps_nothing():
    call = GOOD_CALLS["attention"]
    difference = refattn.attention(**call, softcap=1.7e308) - refattn.attention(**call)
    assert np.abs(difference).max() <= 4 * 2**-53  # values are at most 1


def results(returned):
    return returned if isinstance(returned, tuple) else (returned,)


DENSE = {
    "bias": real(2, 6, 4, 5),
    "mask": yes(4, 5),
    "scale": 0.5,
    "causal": True,
    "window": (3, 2),
    "softcap": 5.0,
    "alibi_slopes": real(6),
    "sinks": real(6),
    "kv_lengths": [5, 3],
    "q_offset": [1, -1],
    "dropout_mask": yes(2, 1, 4, 1),
    "dropout_rate": 0.5,
}
LOCAL = DENSE | {"bias": real(2, 6, 5, 5), "mask": yes(5, 5), "dropout_mask": yes(2, 1, 5, 1)}
LOCAL.pop("q_offset")
OPTIONS = {
    "packed_attention": DENSE | {"bias": real(6, 9, 11), "mask": yes(9, 11), "dropout_mask": yes(9, 1)},
    "paged_attention": DENSE | {"bias": real(2, 6, 4, 15), "mask": yes(4, 15)},
    "block_local_attention": LOCAL,
    **dict.fromkeys(
        [
            "attention",
            "latent_attention",
            "multi_head_attention",
            "multi_query_attention",
            "grouped_query_attention",
        ],
        DENSE,
    ),
}
ARRAYS = {
    "query",
    "key",
    "value",
    "key_pages",
    "value_pages",
    "q_nope",
    "q_rope",
    "kv_latent",
    "k_rope",
    "w_uk",
    "w_uv",
    "cu_q",
    "cu_kv",
    "block_table",
    "outputs",
    "lses",
    "bias",
    "mask",
    "alibi_slopes",
    "sinks",
    "kv_lengths",
    "q_offset",
    "dropout_mask",
}

T = 2**15
LARGE = {
    "attention": {"query": endless(2, 6, T, 8), "key": endless(2, 3, T, 8), "value": endless(2, 3, T, 7)},
    "multi_head_attention": {
        "query": endless(2, 6, T, 8),
        "key": endless(2, 6, T, 8),
        "value": endless(2, 6, T, 7),
    },
    "multi_query_attention": {
        "query": endless(2, 6, T, 8),
        "key": endless(2, 1, T, 8),
        "value": endless(2, 1, T, 7),
    },
    "grouped_query_attention": {
        "query": endless(2, 6, T, 8),
        "key": endless(2, 3, T, 8),
        "value": endless(2, 3, T, 7),
    },
    "block_local_attention": {
        "query": endless(2, 6, T, 8),
        "key": endless(2, 3, T, 8),
        "value": endless(2, 3, T, 7),
        "block_size": T,
    },
    "packed_attention": {
        "query": endless(6, T, 8),
        "key": endless(3, T, 8),
        "value": endless(3, T, 7),
        "cu_q": [0, 4, T],
        "cu_kv": [0, 5, T],
    },
    "paged_attention": {
        "query": endless(2, 6, T, 8),
        "key_pages": endless(T, 3, 16, 8),
        "value_pages": endless(T, 3, 16, 7),
        "block_table": np.zeros((2, T // 16), int),
        "kv_lengths": T,
    },
    "latent_attention": {
        "q_nope": endless(2, 6, T, 8),
        "q_rope": endless(2, 6, T, 3),
        "kv_latent": endless(2, T, 16),
        "k_rope": endless(2, T, 3),
    },
}


def test_every_public_function_has_rows():
    names = {
        name for package in PACKAGES for name, value in vars(package).items() if inspect.isfunction(value)
    }
    without_arrays = {"__getattr__", "__dir__", "get_num_threads", "set_num_threads", "num_threads"}
    assert names - without_arrays == {name for names in TWINS.values() for name in names}
    assert {call.function for call in BAD_CALLS} == set(TWINS)


def test_rows_are_distinct():
    keys = [(call.function, call.reason) for call in BAD_CALLS]
    assert len(set(keys)) == len(keys) >= 120
