"""`diagnose` of what no list explains: measured where the kernel can be called, estimated from its result where not."""

import json
import re
import time

import numpy as np
import pytest
from tiled_calls import tiled_call
from tiled_kernel import TiledKernel

from refattn.oracle import diagnose
from refattn.oracle.arithmetic.formats import round_to

FAULTS = {  # stages, options, words that a measured and an estimated answer both hold
    "one tile is lost in odd rows": (
        {"keep": lambda keep, at: keep & ((at.key // 16 != 2) | (at.row % 2 == 0))},
        {},
        "tile of 16 keys|tile of 48 keys is the first",
    ),
    "every eighth score is larger": (
        {"score": lambda s, at: np.where(at.key % 8 == 3, s + 1.0, s)},
        {},
        "tile of 8 keys|the slot in its page is 3",
    ),
    "the sum is larger in one tile of rows": (
        {"finish": lambda total, at: total * (1.37 if at.row.min() == 16 else 1.0)},
        {"causal": True},
        "rows",
    ),
    "keys in fp8 in one head": (
        {
            "load": lambda name, x, at: (
                np.stack([x[0], round_to(x[1], "float8_e4m3fn")]) if name == "key" else x
            )
        },
        {},
        "head",
    ),
}


def call_of(name, form="dense", dtype="float32"):
    stages, options, words = FAULTS[name]
    arrays, structure = tiled_call(form, None, dtype)
    return TiledKernel(form, **stages), arrays, {**structure, **options}, words


@pytest.mark.sample(6)
@pytest.mark.parametrize("form", ["dense", "packed", "paged"])
@pytest.mark.parametrize("name", FAULTS)
def test_a_kernel_is_measured(name, form):
    if form == "paged" and "one tile of rows" in name:
        pytest.skip("it has one tile of rows")
    kernel, arrays, options, words = call_of(name, form)
    found = diagnose(kernel, *arrays, pairs=False, **options)
    assert found.verdict == "described", str(found)
    assert found.xray.verdict == "described" and found.xray.calls > 5
    assert re.search(words, found.xray.best.says), str(found)


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", FAULTS)
def test_a_result_is_estimated(name):
    kernel, arrays, options, words = call_of(name)
    output, lse = kernel(*arrays, **options)
    found = diagnose(output, *arrays, lse=lse, pairs=False, **options)
    assert found.xray is not None and found.xray.calls == 0
    assert found.verdict == "described", str(found)
    assert re.search(words, found.xray.best.says), str(found)


@pytest.mark.parametrize("way", ["kernel", "result"])
def test_text_and_json_hold_the_xray(way):
    kernel, arrays, options, _ = call_of("one tile is lost in odd rows")
    given = kernel if way == "kernel" else kernel(*arrays, **options)[0]
    found = diagnose(given, *arrays, pairs=False, **options)
    text = " ".join(str(found).split())
    assert " ".join(str(found.xray).split()) in text and found.xray.best.says in text
    plain = json.loads(found.to_json())
    assert plain["verdict"] == "described" and plain["xray"] == json.loads(found.xray.to_json())
    assert plain["xray"]["findings"][0]["says"] == found.xray.best.says
    said = "the kernel was not called" if way == "result" else f"{found.xray.calls} calls"
    assert said in text


def test_what_a_list_explains_is_not_measured():
    arrays, _ = tiled_call("dense")
    doubled = TiledKernel(score=lambda s, at: s / at.scale)
    found = diagnose(doubled, *arrays)
    assert found.verdict == "explained" and found.xray is None
    assert found.to_dict()["xray"] is None


def test_a_right_kernel_is_not_measured():
    arrays, _ = tiled_call("dense")
    found = diagnose(TiledKernel(), *arrays)
    assert found.verdict == "agrees" and found.xray is None


@pytest.mark.parametrize("way", ["kernel", "result"])
@pytest.mark.parametrize("seconds", [2.0, pytest.param(5.0, marks=pytest.mark.campaign)])
def test_time_is_kept(way, seconds):
    """Also where nothing explains it: values and weights by chance."""
    arrays, options = tiled_call("dense", "long")
    factors = np.random.default_rng(0).uniform(0.5, 2.0, (2, 21, 203))
    kernel = TiledKernel(weigh=lambda p, at: p * factors[:, at.rows, at.span])
    given = kernel if way == "kernel" else kernel(*arrays, **options)[0]
    started = time.monotonic()
    found = diagnose(given, *arrays, seconds=seconds, **options)
    assert time.monotonic() - started < 2 * seconds
    assert found.verdict not in ("agrees", "explained")
