"""Options that every attention function refuses alike, whatever its arrays are."""

import math

import numpy as np
from fake_gpu import FakeGpu

CAUSAL_WINDOW = "A causal window of the last n keys is causal=True, window=(n - 1, None)."
CPU = "Pass bias.cpu() (cupy: bias.get(), jax: jax.device_get(bias))."

NAMES = (
    "bias, mask, scale, causal, window, chunk, softcap, alibi_slopes, sinks, kv_lengths, q_offset, "
    "dropout_mask, dropout_rate"
)

BAD = [
    (
        "option of another library",
        {"is_causal": True},
        TypeError,
        f"options must be among {NAMES}; got is_causal.",
    ),
    ("size as an option", {"num_heads": 6}, TypeError, f"options must be among {NAMES}; got num_heads."),
    (
        "internal name",
        {"scores_shape": (6, 4, 5)},
        TypeError,
        f"options must be among {NAMES}; got scores_shape.",
    ),
    ("scale nan", {"scale": math.nan}, ValueError, "scale must be finite; got scale=nan."),
    ("scale inf", {"scale": math.inf}, ValueError, "scale must be finite; got scale=inf."),
    (
        "scale float32 inf",
        {"scale": np.float32(-math.inf)},
        ValueError,
        "scale must be finite; got scale=-inf.",
    ),
    ("scale beyond float64", {"scale": 10**400}, ValueError, "scale must be finite; got scale=inf."),
    ("scale text", {"scale": "0.5"}, TypeError, "scale must be a real number; got scale='0.5' of type str."),
    (
        "scale complex",
        {"scale": 1j},
        TypeError,
        "scale must be a real number; got scale=1j of type complex.",
    ),
    ("scale bool", {"scale": True}, TypeError, "scale must be a real number; got scale=True of type bool."),
    (
        "scale array",
        {"scale": np.array([0.5])},
        TypeError,
        "scale must be a real number; got scale=array([0.5]) of type ndarray.",
    ),
    ("causal integer", {"causal": 1}, TypeError, "causal must be True or False; got causal=1 of type int."),
    (
        "causal text",
        {"causal": "yes"},
        TypeError,
        "causal must be True or False; got causal='yes' of type str.",
    ),
    (
        "causal none",
        {"causal": None},
        TypeError,
        "causal must be True or False; got causal=None of type NoneType.",
    ),
    (
        "window integer",
        {"window": 4},
        TypeError,
        f"window must be a pair (left, right); got window=4. {CAUSAL_WINDOW}",
    ),
    (
        "window of three",
        {"window": (1, 2, 3)},
        TypeError,
        f"window must be a pair (left, right); got window=(1, 2, 3). {CAUSAL_WINDOW}",
    ),
    (
        "window empty",
        {"window": ()},
        TypeError,
        f"window must be a pair (left, right); got window=(). {CAUSAL_WINDOW}",
    ),
    (
        "window -1 for unlimited",
        {"window": (-1, 0)},
        ValueError,
        "window must hold integers >= 0 or None; got window left=-1. None means unlimited.",
    ),
    (
        "window negative",
        {"window": (2, -3)},
        ValueError,
        "window must hold integers >= 0 or None; got window right=-3. None means unlimited.",
    ),
    (
        "window float",
        {"window": (2.0, 0)},
        TypeError,
        "window must hold integers or None; got window left=2.0 of type float.",
    ),
    (
        "window bool",
        {"window": (1, True)},
        TypeError,
        "window must hold integers or None; got window right=True of type bool.",
    ),
    ("chunk zero", {"chunk": 0}, ValueError, "chunk must be at least 1; got chunk=0."),
    ("chunk negative", {"chunk": -4}, ValueError, "chunk must be at least 1; got chunk=-4."),
    ("chunk float", {"chunk": 4.0}, TypeError, "chunk must be an integer; got chunk=4.0 of type float."),
    ("chunk bool", {"chunk": True}, TypeError, "chunk must be an integer; got chunk=True of type bool."),
    ("chunk list", {"chunk": [4]}, TypeError, "chunk must be an integer; got chunk=[4] of type list."),
    (
        "softcap zero",
        {"softcap": 0},
        ValueError,
        "softcap must be greater than 0; got softcap=0.0. Pass None to leave scores uncapped.",
    ),
    (
        "softcap negative",
        {"softcap": -2.5},
        ValueError,
        "softcap must be greater than 0; got softcap=-2.5. Pass None to leave scores uncapped.",
    ),
    ("softcap nan", {"softcap": math.nan}, ValueError, "softcap must be finite; got softcap=nan."),
    ("softcap inf", {"softcap": math.inf}, ValueError, "softcap must be finite; got softcap=inf."),
    (
        "softcap text",
        {"softcap": "30"},
        TypeError,
        "softcap must be a real number; got softcap='30' of type str.",
    ),
    (
        "softcap list",
        {"softcap": [30.0]},
        TypeError,
        "softcap must be a real number; got softcap=[30.0] of type list.",
    ),
    (
        "bias bool",
        {"bias": np.ones((1, 1), bool)},
        TypeError,
        "bias must be float16, bfloat16, float32 or float64; got bias.dtype=bool. Pass boolean masks as "
        "mask.",
    ),
    (
        "bias integer",
        {"bias": np.ones((1, 1), np.int64)},
        TypeError,
        "bias must be float16, bfloat16, float32 or float64; got bias.dtype=int64. Cast it with "
        "np.asarray(bias, np.float32).",
    ),
    (
        "bias complex",
        {"bias": np.ones((1, 1), np.complex64)},
        TypeError,
        "bias must be an array of real numbers; got bias.dtype=complex64.",
    ),
    (
        "bias on a gpu",
        {"bias": FakeGpu()},
        TypeError,
        f"bias must be in CPU memory; got bias.device=cuda:0. {CPU}",
    ),
    (
        "mask float",
        {"mask": np.zeros((1, 1))},
        TypeError,
        "mask must be bool; got mask.dtype=float64. Pass additive masks as bias.",
    ),
    (
        "mask 0/1",
        {"mask": np.ones((1, 1), np.int64)},
        TypeError,
        "mask must be bool; got mask.dtype=int64. Cast 0/1 values with mask.astype(bool).",
    ),
    (
        "mask uint8",
        {"mask": np.ones((1, 1), np.uint8)},
        TypeError,
        "mask must be bool; got mask.dtype=uint8. Cast 0/1 values with mask.astype(bool).",
    ),
    (
        "mask object",
        {"mask": [[None]]},
        TypeError,
        "mask must be an array of real numbers; got mask.dtype=object.",
    ),
    (
        "mask text",
        {"mask": "causal"},
        TypeError,
        "mask must be an array of real numbers; got type(mask)=str.",
    ),
    (
        "mask masked",
        {"mask": np.ma.array([[True]])},
        TypeError,
        "mask must be a plain array; got type(mask)=MaskedArray, whose mask would be lost. Pass "
        "mask.filled(0) and say what may be attended with mask=.",
    ),
    (
        "alibi integer",
        {"alibi_slopes": [1, 1, 1, 1, 1, 1]},
        TypeError,
        "alibi_slopes must be float16, bfloat16, float32 or float64; got alibi_slopes.dtype=int64. "
        "Cast it with np.asarray(alibi_slopes, np.float32).",
    ),
    (
        "alibi text",
        {"alibi_slopes": "auto"},
        TypeError,
        "alibi_slopes must be an array of real numbers; got type(alibi_slopes)=str.",
    ),
    (
        "sinks integer",
        {"sinks": [0] * 6},
        TypeError,
        "sinks must be float16, bfloat16, float32 or float64; got sinks.dtype=int64. Cast it with "
        "np.asarray(sinks, np.float32).",
    ),
    (
        "kv_lengths float",
        {"kv_lengths": 3.0},
        TypeError,
        "kv_lengths must be integer; got kv_lengths.dtype=float64. Cast it with np.asarray(kv_lengths, "
        "np.int64).",
    ),
    (
        "kv_lengths bool",
        {"kv_lengths": True},
        TypeError,
        "kv_lengths must be integer; got kv_lengths.dtype=bool. Cast it with np.asarray(kv_lengths, "
        "np.int64).",
    ),
    (
        "kv_lengths beyond int64",
        {"kv_lengths": 2**63},
        ValueError,
        f"kv_lengths must fit in int64; got kv_lengths={2**63}.",
    ),
    (
        "dropout rate alone",
        {"dropout_rate": 0.1},
        ValueError,
        "dropout_mask must be given with dropout_rate; got dropout_rate=0.1 alone. True keeps a weight.",
    ),
    (
        "dropout mask alone",
        {"dropout_mask": [[True]]},
        ValueError,
        "dropout_rate must be given with dropout_mask; got dropout_mask alone. Kept weights are divided by "
        "1 - dropout_rate.",
    ),
    (
        "dropout mask float",
        {"dropout_mask": [[1.0]], "dropout_rate": 0.1},
        TypeError,
        "dropout_mask must be bool; got dropout_mask.dtype=float64. Cast 0/1 values with "
        "dropout_mask.astype(bool).",
    ),
    (
        "dropout everything",
        {"dropout_mask": [[True]], "dropout_rate": 1},
        ValueError,
        "dropout_rate must be at least 0 and less than 1; got dropout_rate=1.0.",
    ),
    (
        "dropout negative",
        {"dropout_mask": [[True]], "dropout_rate": -0.1},
        ValueError,
        "dropout_rate must be at least 0 and less than 1; got dropout_rate=-0.1.",
    ),
    (
        "dropout nan",
        {"dropout_mask": [[True]], "dropout_rate": math.nan},
        ValueError,
        "dropout_rate must be finite; got dropout_rate=nan.",
    ),
    (
        "dropout rate text",
        {"dropout_mask": [[True]], "dropout_rate": "10%"},
        TypeError,
        "dropout_rate must be a real number; got dropout_rate='10%' of type str.",
    ),
]
