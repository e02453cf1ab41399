"""Bad calls of `merge_states`."""

import numpy as np
from fake_gpu import FakeGpu

from bad_calls.call import endless, real, table

GOOD = {"outputs": [real(6, 4, 7), real(6, 4, 7)], "lses": [real(6, 4), real(6, 4)]}

STATES = "outputs and lses must hold the same number of states, at least one"
SAME_SHAPE = "outputs must all have the same shape (..., length, dim)"

BAD = table(
    "merge_states",
    (
        "nothing to merge",
        {"outputs": [], "lses": []},
        ValueError,
        f"{STATES}; got len(outputs)=0, len(lses)=0.",
    ),
    ("an lse missing", {"lses": [real(6, 4)]}, ValueError, f"{STATES}; got len(outputs)=2, len(lses)=1."),
    (
        "an output missing",
        {"outputs": [real(6, 4, 7)]},
        ValueError,
        f"{STATES}; got len(outputs)=1, len(lses)=2.",
    ),
    (
        "outputs of different lengths",
        {"outputs": [real(6, 4, 7), real(6, 5, 7)]},
        ValueError,
        f"{SAME_SHAPE}; got outputs[0].shape=(6, 4, 7), outputs[1].shape=(6, 5, 7).",
    ),
    (
        "outputs of different ranks",
        {"outputs": [real(6, 4, 7), real(1, 6, 4, 7)]},
        ValueError,
        f"{SAME_SHAPE}; got outputs[0].shape=(6, 4, 7), outputs[1].shape=(1, 6, 4, 7).",
    ),
    (
        "outputs that would broadcast",
        {"outputs": [real(6, 4, 7), real(1, 4, 7)]},
        ValueError,
        f"{SAME_SHAPE}; got outputs[0].shape=(6, 4, 7), outputs[1].shape=(1, 4, 7).",
    ),
    (
        "outputs of numbers",
        {"outputs": [0.0, 1.0], "lses": [0.0, 1.0]},
        ValueError,
        f"{SAME_SHAPE}; got outputs[0].shape=(), outputs[0].shape=().",
    ),
    (
        "lse with a dim axis",
        {"lses": [real(6, 4), real(6, 4, 1)]},
        ValueError,
        "lses[1] must have shape (6, 4) to match outputs[1]; got lses[1].shape=(6, 4, 1).",
    ),
    (
        "lse of another length",
        {"lses": [real(6, 3), real(6, 4)]},
        ValueError,
        "lses[0] must have shape (6, 4) to match outputs[0]; got lses[0].shape=(6, 3).",
    ),
    (
        "lse transposed",
        {"lses": [real(6, 4), real(4, 6)]},
        ValueError,
        "lses[1] must have shape (6, 4) to match outputs[1]; got lses[1].shape=(4, 6).",
    ),
    (
        "outputs integer",
        {"outputs": [real(6, 4, 7), np.ones((6, 4, 7), int)]},
        TypeError,
        "outputs[1] must be float16, bfloat16, float32 or float64; got outputs[1].dtype=int64. Cast it "
        "with np.asarray(outputs[1], np.float32).",
    ),
    (
        "lses complex",
        {"lses": [1j * real(6, 4), real(6, 4)]},
        TypeError,
        "lses[0] must be an array of real numbers; got lses[0].dtype=complex64.",
    ),
    (
        "output none",
        {"outputs": [None, real(6, 4, 7)]},
        TypeError,
        "outputs[0] must be an array of real numbers; got outputs[0]=None.",
    ),
    (
        "outputs none",
        {"outputs": None},
        TypeError,
        "outputs must be an array of real numbers; got outputs=None.",
    ),
    (
        "lses number",
        {"lses": 1.0},
        ValueError,
        "lses must be a sequence of arrays or one stacked array; got lses.shape=().",
    ),
    (
        "outputs generator",
        {"outputs": iter([real(6, 4, 7)] * 2)},
        TypeError,
        "outputs must be an array of real numbers; got type(outputs)=list_iterator.",
    ),
    (
        "outputs text",
        {"outputs": "ab"},
        TypeError,
        "outputs must be an array of real numbers; got type(outputs)=str.",
    ),
    (
        "output on a gpu",
        {"outputs": [real(6, 4, 7), FakeGpu()]},
        TypeError,
        "outputs[1] must be in CPU memory; got outputs[1].device=cuda:0. "
        "Pass outputs[1].cpu() (cupy: outputs[1].get(), jax: jax.device_get(outputs[1])).",
    ),
    (
        "stacked outputs on a gpu",
        {"outputs": FakeGpu()},
        TypeError,
        "outputs must be in CPU memory; got outputs.device=cuda:0. Pass outputs.cpu() (cupy: "
        "outputs.get(), jax: jax.device_get(outputs)).",
    ),
    (
        "stacked outputs of one axis less",
        {"outputs": real(2, 6, 4), "lses": real(2, 6, 4)},
        ValueError,
        "lses[0] must have shape (6,) to match outputs[0]; got lses[0].shape=(6, 4).",
    ),
    (
        "states too large",
        {"outputs": [endless(2**36, 4, 8)] * 2, "lses": [endless(2**36, 4)] * 2},
        MemoryError,
        "states must fit in memory; got sizes that need 36864.0 GiB and 4.0 GiB are available.",
    ),
)
