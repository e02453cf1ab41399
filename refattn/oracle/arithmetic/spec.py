"""What arithmetic a kernel claims to use: the only thing an error bound needs to know about it."""

from __future__ import annotations

import dataclasses
import math
import numbers
from dataclasses import dataclass

from refattn.oracle.arithmetic.formats import NumberFormat, number_format

# Relative error of an exponential, in unit roundoffs of the softmax arithmetic: ex2.approx.ftz.f32 has a
# relative error of at most 2^-22 = 4 * 2^-24 (PTX ISA, "ex2"); libm and NumPy stay below that (2 or 3 ulp at
# most, usually under 1).
EXP_ROUNDOFFS = 4.0
# tanh.approx.f32: "max relative error 2^-11" (PTX ISA, "tanh"); FlashAttention's softcap uses it.
TANH_APPROX_ERROR = 2.0**-11
LARGEST_COUNT = 2**53


@dataclass(frozen=True)
class KernelSpec:
    """The arithmetic a kernel claims.

    Formats are given as names ("bfloat16", "float8_e4m3fn", "tfloat32", "e8m13", "exact", ...), dtypes,
    or unit roundoffs as floats.

    Attributes
    ----------
    name : str
        What reports call it.
    input : format
        Query, key, value and bias are converted to it on load. Costs nothing where the arrays already
        hold such numbers.
    score : format
        Scores are stored in it between steps; "exact" means they stay in the registers of the accumulator.
    weight : format
        Softmax weights are converted to it before they multiply the values; "exact" for no conversion.
    accumulator : format
        Both matrix products add up in it.
    softmax : format
        Scaling, exponentials, row sums, rescaling, division.
    output, lse : format
        What is written.
    scaled_query : format
        The query is multiplied by the scale and rounded to it before the first product; "exact" if the
        scale is applied to the scores.
    intermediate : format
        Latent attention: the absorbed query, latent output, expanded keys and values are stored in it.
    exp_error, tanh_error : float
        Largest relative error of the exponential and of tanh, their own rounding included.
    block_size : int or None
        Keys between two updates of the running maximum (smaller is the more pessimistic claim); None for
        one pass over all scores.
    sum_block : int
        Terms added up among themselves before they reach the running accumulator: 1 for a plain loop over
        keys, the k of the matrix instruction on tensor cores, the tile for kernels that add whole tile
        products. It enters the statistical bound only.
    weight_scale : float
        Weights are multiplied by it before conversion (2**8 in fp8 kernels), which moves their underflow.
    truncates : bool
        The accumulator rounds toward zero, as tensor cores do.
    denominator : {"unrounded", "rounded"}
        Whether the row sum adds weights before or after conversion to `weight`.
    normalises_first : bool
        Weights are divided by the row sum before conversion (eager softmax) and not after the second
        product (flash kernels).
    splits : int
        Key ranges whose results are joined through their lse (flash decoding); 1 for none or for joining
        (maximum, sum) pairs.
    flushes_subnormals : bool
        Subnormals of `softmax` and `accumulator` may become 0.

    Notes
    -----
    Where the constants come from: unit roundoffs and ranges, IEEE 754-2019 (float16, float32, float64),
    the bfloat16 and tfloat32 formats of their makers (8 and 11 bits of precision with float32's
    exponents), Micikevicius et al. 2022, arXiv 2209.05433 (e4m3, e5m2); truncating accumulators, Fasi et
    al. 2021, "Numerical behavior of NVIDIA tensor cores", PeerJ CS 7:e330; 14 bits in Hopper's FP8 units,
    DeepSeek-AI 2024, arXiv 2412.19437, section 3.3.2; error of exp and tanh, PTX ISA
    ("ex2.approx.ftz.f32", "tanh.approx.f32").

    Examples
    --------
    >>> spec = KernelSpec.flash("bfloat16")
    >>> spec.weight.name, spec.accumulator.name, spec.output.name
    ('bfloat16', 'float32', 'bfloat16')
    >>> spec.replace(block_size=128, exp_error=9e-5).block_size
    128
    """

    name: str
    input: NumberFormat = "float32"
    score: NumberFormat = "exact"
    weight: NumberFormat = "exact"
    accumulator: NumberFormat = "float32"
    softmax: NumberFormat = "float32"
    output: NumberFormat = "float32"
    lse: NumberFormat = "float32"
    scaled_query: NumberFormat = "exact"
    intermediate: NumberFormat | None = None
    exp_error: float | None = None
    tanh_error: float | None = None
    block_size: int | None = 64
    sum_block: int = 1
    weight_scale: float = 1.0
    truncates: bool = False
    denominator: str = "unrounded"
    normalises_first: bool = False
    splits: int = 1
    flushes_subnormals: bool = False

    def __post_init__(self):
        if not isinstance(self.name, str):
            raise TypeError(f"name must be a string; got name={self.name!r}.")
        if self.intermediate is None:
            object.__setattr__(self, "intermediate", self.input)
        for name in FORMAT_FIELDS:
            object.__setattr__(self, name, number_format(getattr(self, name), name))
        for name in ("exp_error", "tanh_error"):
            value = getattr(self, name)
            value = EXP_ROUNDOFFS * self.softmax.unit_roundoff if value is None else _number(value, name)
            if not 0.0 <= value < 1.0:
                raise ValueError(f"{name} must be in [0, 1); got {name}={value}.")
            object.__setattr__(self, name, value)
        for name in ("block_size", "sum_block", "splits"):
            value = getattr(self, name)
            if value is None and name == "block_size":
                continue
            if isinstance(value, bool) or not isinstance(value, numbers.Integral):
                raise TypeError(f"{name} must be an integer; got {name}={value!r}.")
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {name}={value}.")
            if value > LARGEST_COUNT:
                hint = " None stands for one pass over all scores." if name == "block_size" else ""
                raise ValueError(
                    f"{name} must be at most 2**53, the counts that float64 holds; got a larger "
                    f"{name}.{hint}"
                )
        if not 0.0 < _number(self.weight_scale, "weight_scale") < math.inf:
            raise ValueError(
                f"weight_scale must be finite and above 0; got weight_scale={self.weight_scale}."
            )
        if self.weight_scale > self.weight.largest:
            raise ValueError(
                f"weight_scale must be at most the largest {self.weight.name}, {self.weight.largest}; got "
                f"weight_scale={self.weight_scale}."
            )
        if self.denominator not in ("unrounded", "rounded"):
            raise ValueError(
                f"denominator must be 'unrounded' or 'rounded'; got denominator={self.denominator!r}."
            )
        for name in ("truncates", "normalises_first", "flushes_subnormals"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be a bool; got {name}={getattr(self, name)!r}.")

    def replace(self, **changes) -> KernelSpec:
        """A spec like this one with some fields changed; the name gains them unless it is among the changes.

        >>> KernelSpec.flash("float32").replace(block_size=128).name
        'flash float32, block_size=128'
        """
        known = {field.name for field in dataclasses.fields(self)}
        for name in changes:
            if name not in known:
                raise TypeError(
                    f"replace must get fields of KernelSpec ({', '.join(sorted(known))}); got {name!r}."
                )
        if "name" not in changes and changes:
            changes["name"] = ", ".join([self.name, *(f"{name}={value}" for name, value in changes.items())])
        return dataclasses.replace(self, **changes)

    @property
    def accumulator_roundoff(self) -> float:
        """Largest relative error of one addition: the unit roundoff, twice that when the accumulator
        truncates.
        """
        return self.accumulator.unit_roundoff * (2.0 if self.truncates else 1.0)

    @property
    def weight_underflow(self) -> float:
        """Largest absolute error of converting one weight, relative to a weight of 1 at the row maximum."""
        return self.weight.half_subnormal_step / self.weight_scale

    def to_dict(self) -> dict:
        """Plain values, for reports and vector packs; `KernelSpec.from_dict` reads them back."""
        plain = dataclasses.asdict(self)
        for name in FORMAT_FIELDS:
            form = getattr(self, name)
            plain[name] = form.unit_roundoff if form.name.startswith("unit_roundoff=") else form.name
        return plain

    @classmethod
    def from_dict(cls, plain: dict) -> KernelSpec:
        """The spec that `to_dict` wrote."""
        return cls(**plain)

    @classmethod
    def flash(cls, dtype) -> KernelSpec:
        """A fused kernel with online softmax on inputs of `dtype`.

        float64 and float32 compute in their own format throughout. float16 and bfloat16 multiply on
        matrix units that accumulate in float32 by 16 terms and convert the weights to the input format
        (Dao 2022 and 2023; FlashAttention's `convert_type` of P). tfloat32 takes float32 arrays.
        float8_e4m3fn converts weights with a scale of 1, accumulates in the 14 bits of Hopper's FP8
        units, rounding toward zero, and writes bfloat16; float8_e5m2 likewise. Their inputs are given
        dequantised, so nothing is lost on load.

        >>> KernelSpec.flash("float8_e4m3fn").accumulator_roundoff == 2**-13
        True
        """
        form = number_format(dtype, "dtype")
        if form.name in ("float64", "float32"):
            return cls(
                f"flash {form.name}", input=form, accumulator=form, softmax=form, output=form, lse=form
            )
        gpu = {"tanh_error": TANH_APPROX_ERROR, "flushes_subnormals": True}
        if form.name == "tfloat32":
            return cls("flash tfloat32", input=form, weight=form, sum_block=8, **gpu)
        if form.name in ("float16", "bfloat16"):
            return cls(f"flash {form.name}", input=form, weight=form, output=form, sum_block=16, **gpu)
        if form.name in ("float8_e4m3fn", "float8_e5m2"):
            return cls(
                f"flash {form.name}",
                input="exact",
                intermediate="bfloat16",
                weight=form,
                accumulator="e8m13",
                truncates=True,
                output="bfloat16",
                sum_block=32,
                **gpu,
            )
        raise ValueError(
            "dtype must be float64, float32, tfloat32, float16, bfloat16, float8_e4m3fn or float8_e5m2; "
            f"got dtype={form.name}."
        )

    @classmethod
    def eager(cls, dtype) -> KernelSpec:
        """Attention as separate operations on whole arrays: scores, softmax and weights are stored in
        `dtype` between them.

        Each operation computes in float32 (float64 for float64) and rounds its result, as the eager paths
        of PyTorch and Transformers.
        """
        form = number_format(dtype, "dtype")
        if form.name not in ("float64", "float32", "float16", "bfloat16"):
            raise ValueError(f"dtype must be float64, float32, float16 or bfloat16; got dtype={form.name}.")
        wide = number_format("float64" if form.name == "float64" else "float32")
        stored = {} if form is wide else {"score": form, "weight": form}
        return cls(
            f"eager {form.name}",
            input=form,
            accumulator=wide,
            softmax=wide,
            output=form,
            lse=wide,
            block_size=None,
            normalises_first=True,
            **stored,
        )

    @classmethod
    def cpu_kernels(cls, dtype) -> KernelSpec:
        """The kernels of `cpu_kernels`: float64 for float64, else float32 throughout with the output
        rounded to the query's dtype.

        Weights are never converted, those below the smallest normal number dropped; the scale is folded
        into the query; a running maximum over blocks of at least 16 keys.
        """
        form = number_format(dtype, "dtype")
        if form.name not in ("float64", "float32", "float16", "bfloat16"):
            raise ValueError(f"dtype must be float64, float32, float16 or bfloat16; got dtype={form.name}.")
        wide = number_format("float64" if form.name == "float64" else "float32")
        return cls(
            f"cpu_kernels {form.name}",
            input=form,
            accumulator=wide,
            softmax=wide,
            output=form,
            lse=wide,
            scaled_query=wide,
            intermediate=wide,
            tanh_error=8 * wide.unit_roundoff,
            block_size=16,
            flushes_subnormals=True,
        )


FORMAT_FIELDS = (
    "input",
    "score",
    "weight",
    "accumulator",
    "softmax",
    "output",
    "lse",
    "scaled_query",
    "intermediate",
)


def _number(value, name):
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number; got {name}={value!r}.")
    return float(value)


EIGHT_BITS = ("float8_e4m3fn", "float8_e5m2")
MAKERS = {"flash": KernelSpec.flash, "eager": KernelSpec.eager, "cpu_kernels": KernelSpec.cpu_kernels}


def kernel_spec(spec, dtype=None) -> KernelSpec:
    """The spec meant by `spec`: a KernelSpec, words, the dtype of a flash kernel, or None for the flash
    kernel of `dtype`.

    >>> kernel_spec("bf16").name, kernel_spec("eager float16").name, kernel_spec("cpu_kernels float32").name
    ('flash bfloat16', 'eager float16', 'cpu_kernels float32')
    """
    if isinstance(spec, KernelSpec):
        return spec
    if spec is None:
        return KernelSpec.flash(dtype)
    kind, form = _kind_and_format(spec)
    try:
        return MAKERS[kind](form)
    except (KeyError, TypeError, ValueError) as error:
        hint = (
            " There are two formats of 8 bits: float8_e4m3fn and float8_e5m2."
            if str(form).lower() in ("fp8", "float8")
            else ""
        )
        raised = ValueError if isinstance(error, KeyError) else type(error)
        raise raised(
            "spec must be a KernelSpec, a dtype, or flash, eager or cpu_kernels and a dtype; got "
            f"spec={spec!r}. {_goes_with(kind)}{hint}"
        ) from None


def _kind_and_format(spec):
    """The words "eager float16" apart; a dtype alone is that of a flash kernel."""
    if not isinstance(spec, str):
        return "flash", spec
    kind, _, form = spec.strip().rpartition(" ")
    return kind.strip() or "flash", form


def _goes_with(kind):
    """Which dtypes the words go with."""
    dtypes = ["float64", "float32", "float16", "bfloat16"]
    if kind not in ("eager", "cpu_kernels"):
        kind, dtypes = "flash", [*dtypes, "tfloat32", *EIGHT_BITS]
    return f"{kind} goes with {', '.join(dtypes)}."


def spec_words(spec: KernelSpec) -> str:
    """Python that makes the spec again: words that `kernel_spec` takes where they do, else the fields that
    differ from the defaults.

    >>> spec_words(KernelSpec.eager("bfloat16")), spec_words(KernelSpec("mine", weight="float16"))
    ("'eager bfloat16'", "KernelSpec(name='mine', weight='float16')")
    """
    try:
        if kernel_spec(spec.name) == spec:
            return repr(spec.name)
    except (TypeError, ValueError):
        pass
    plain, usual = spec.to_dict(), KernelSpec("").to_dict()
    given = [f"{name}={value!r}" for name, value in plain.items() if value != usual[name]]
    return f"KernelSpec({', '.join(given)})"
