"""Number formats that attention kernels store and accumulate in, and exact rounding of float64 values
to them.
"""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass

import numpy as np

SMALLEST_FLOAT64 = 5e-324  # half of the subnormal step of float64 itself is not a float64


@dataclass(frozen=True)
class NumberFormat:
    """A binary floating-point format, described by what rounding to it costs."""

    name: str
    # largest relative error of round-to-nearest in the normal range, ``2**-precision``; 0 for exact
    # arithmetic
    unit_roundoff: float
    smallest_normal: float
    largest: float  # largest finite number
    # conversion clamps to ``largest`` instead of giving an infinity (the fp8 conversions of GPUs)
    saturates: bool = False

    @property
    def half_subnormal_step(self) -> float:
        """Largest absolute error of rounding below ``smallest_normal``."""
        if self.unit_roundoff == 0.0:
            return 0.0
        return max(self.unit_roundoff * self.smallest_normal, SMALLEST_FLOAT64)

    @property
    def overflow_threshold(self) -> float:
        """Magnitude from which round-to-nearest no longer gives a finite number (half a step above
        ``largest``).
        """
        if math.isinf(self.largest):
            return math.inf
        return self.largest + self.unit_roundoff * math.ldexp(0.5, math.frexp(self.largest)[1])

    def holds(self, other: NumberFormat) -> bool:
        """Whether every finite number of another format is one of this format, too."""
        return (
            self.unit_roundoff <= other.unit_roundoff
            and self.largest >= other.largest
            and self.half_subnormal_step <= other.half_subnormal_step
        )

    def step(self, x) -> np.ndarray:
        """Spacing of the format's numbers at each ``|x|``, in the dtype of `x`, float32 or float64."""
        x = np.asarray(x)
        power = power_of_two_below(np.abs(x if x.dtype == np.float32 else x.astype(np.float64, copy=False)))
        return 2.0 * self.unit_roundoff * np.maximum(power, self.smallest_normal)


def _format(name, precision, min_exponent, largest, saturates=False):
    return NumberFormat(name, 2.0**-precision, 2.0**min_exponent, float(largest), saturates)


# precision counts the hidden bit, so the unit roundoff is 2**-precision.
FORMATS = {
    "exact": NumberFormat("exact", 0.0, 0.0, math.inf),
    "float64": _format("float64", 53, -1022, np.finfo(np.float64).max),
    "float32": _format("float32", 24, -126, np.finfo(np.float32).max),
    "tfloat32": _format("tfloat32", 11, -126, (2 - 2.0**-10) * 2.0**127),
    "float16": _format("float16", 11, -14, 65504),
    "bfloat16": _format("bfloat16", 8, -126, (2 - 2.0**-7) * 2.0**127),
    "float8_e4m3fn": _format("float8_e4m3fn", 4, -6, 448, saturates=True),
    "float8_e5m2": _format("float8_e5m2", 3, -14, 57344, saturates=True),
    # Accumulator of the FP8 tensor cores of Hopper: 13 stored fraction bits (arXiv 2412.19437, section
    # 3.3.2: "around 14 bits").
    "e8m13": _format("e8m13", 14, -126, (2 - 2.0**-13) * 2.0**127),
}
_ALIASES = {
    "double": "float64",
    "f64": "float64",
    "fp64": "float64",
    "single": "float32",
    "f32": "float32",
    "fp32": "float32",
    "tf32": "tfloat32",
    "half": "float16",
    "f16": "float16",
    "fp16": "float16",
    "bf16": "bfloat16",
    "float8_e4m3": "float8_e4m3fn",
    "e4m3": "float8_e4m3fn",
    "e5m2": "float8_e5m2",
}


def number_format(value, name="format") -> NumberFormat:
    """The format meant by a name, a dtype, a unit roundoff or a `NumberFormat`.

    Parameters
    ----------
    value : str, dtype, float or NumberFormat
        A float is taken as a unit roundoff with the exponent range of float32.
    name : str
        What error messages call the argument.

    Raises
    ------
    TypeError
        `value` is of another kind.
    ValueError
        The name is unknown or the unit roundoff is outside [0, 0.5].

    Examples
    --------
    >>> number_format("bf16").unit_roundoff == 2**-8
    True
    >>> number_format(2**-13).name
    'unit_roundoff=2^-13'
    """
    if isinstance(value, NumberFormat):
        return value
    if isinstance(value, str):
        key = _ALIASES.get(value, value)
        if key not in FORMATS:
            raise ValueError(f"{name} must be one of {', '.join(FORMATS)}; got {name}={value!r}.")
        return FORMATS[key]
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        unit = float(value)
        if not 0.0 <= unit <= 0.5:
            raise ValueError(f"{name} as a unit roundoff must be in [0, 0.5]; got {name}={value!r}.")
        if unit == 0.0:
            return FORMATS["exact"]
        exponent = math.log2(unit)
        label = f"2^{exponent:.0f}" if exponent == int(exponent) else f"{unit:.3g}"
        base = FORMATS["float32"]
        return NumberFormat(f"unit_roundoff={label}", unit, base.smallest_normal, base.largest)
    if type(value).__module__.partition(".")[0] in ("torch", "mlx"):
        return number_format(str(value).rpartition(".")[2], name)  # torch.bfloat16, mlx.core.bfloat16
    try:
        dtype_name = np.dtype(value).name
    except TypeError:
        raise TypeError(
            f"{name} must be a format name, a dtype or a unit roundoff; got {name}={value!r}."
        ) from None
    if dtype_name not in FORMATS:
        raise ValueError(f"{name} must be a floating-point format; got {name}={dtype_name}.")
    return FORMATS[dtype_name]


def all_held(x, target: NumberFormat) -> bool:
    """Whether every entry of x, in float64, is a number of the format."""
    return target.holds(FORMATS["float64"]) or bool((round_to(x, target) == x).all())


def power_of_two_below(x: np.ndarray) -> np.ndarray:
    """Largest power of two not above each ``x >= 0``, in its dtype; 0 for zero and subnormals."""
    x = np.asarray(x)
    if x.dtype == np.float32:
        bits = np.ascontiguousarray(x).view(np.uint32) & np.uint32(0x7F800000)
        return bits.view(np.float32).reshape(x.shape)
    x = x.astype(np.float64, copy=False)
    bits = np.ascontiguousarray(x).view(np.uint64) & np.uint64(0x7FF0000000000000)
    return bits.view(np.float64).reshape(x.shape)


def round_to(x, target, *, truncate=False) -> np.ndarray:
    """Round to a format: to nearest, ties to even, or toward zero.

    Parameters
    ----------
    x : array_like, float32 or float64
    target : str, dtype, float or NumberFormat
    truncate : bool
        Round toward zero, as the accumulators of some tensor cores do.

    Returns
    -------
    ndarray, dtype of `x`
        Every entry representable in `target`. Subnormals are kept. NaN and infinities pass through;
        overflow gives an infinity, or the largest number where the format saturates.

    Examples
    --------
    >>> round_to(np.array([1.0 + 2**-9, 3.0e5]), "float16").tolist()
    [1.001953125, inf]
    """
    target = number_format(target, "target")
    x = np.asarray(x)
    out_dtype = x.dtype if x.dtype in (np.float32, np.float64) else np.dtype(np.float64)
    if target.unit_roundoff == 0.0 or target.name == ("float32" if out_dtype == np.float32 else "float64"):
        return x.astype(out_dtype)
    if not truncate and out_dtype == np.float32 and target.name == "bfloat16":
        return _round_float32_to_bfloat16(x)
    if not truncate and target.name == "float16":
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            return x.astype(np.float16).astype(out_dtype)
    if not truncate and target.name == "float32":
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            return x.astype(np.float32).astype(out_dtype)
    wide = x.astype(np.float64)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        step = target.step(wide)
        quotient = wide / step
        rounded = (np.trunc(quotient) if truncate else np.rint(quotient)) * step
        rounded = np.where(np.isfinite(wide), rounded, wide)
        limit = target.largest if target.saturates or truncate else math.inf
        too_large = np.isfinite(wide) & (np.abs(rounded) > target.largest)
        rounded = np.where(too_large, np.copysign(limit, wide), rounded)
        return np.copysign(rounded, wide).astype(out_dtype)


def _round_float32_to_bfloat16(x: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(x).view(np.uint32)
    # Adding half a step minus one, plus the last kept bit, carries exactly when round-to-nearest-even goes
    # up.
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(x), x, rounded.view(np.float32)).reshape(x.shape)
