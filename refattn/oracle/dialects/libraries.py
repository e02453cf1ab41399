"""What other attention libraries mean by the same words: one record a library, and a table of where two of
them disagree.

Facts only, each with the library version it was read or measured at. `dialect_calls` uses the records to
translate calls and results. Axes of layouts: B batch, H heads, T (or S) length, D (or E) dim.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from refattn.calls.options import OPTION_NAMES
from refattn.oracle.dialects.library_errors import errors_of


@dataclass(frozen=True)
class Dialect:
    """The conventions of one library's attention call.

    Attributes
    ----------
    name, call, version, source : str
        `call` is the function meant; `source` says where the facts come from.
    arguments : mapping
        Our option name -> theirs; an option that is missing cannot be expressed.
    layout, output_layout : str
        Axes of query and output in memory order.
    alignment : {"bottom_right", "top_left"}
        Where row 0 stands when there are fewer rows than keys.
    window : {"pair", "left", "two", "count", "cudnn", None}
        Spelling: one pair; the left side only; two arguments; a count of keys including the row's own;
        the two bounds of cuDNN, of which the left is exclusive.
    window_none : int or None
        What stands for unlimited.
    always_causal : bool
    mask_true : {"attend", None}
        What True means in a boolean mask; None: no boolean mask.
    additive_mask : bool
        Whether a mask argument may hold numbers that are added.
    float32_bias : bool
        Whether the bias may be float32 beside arrays of 16 bits.
    hidden : str
        What hidden scores become.
    alibi : str
        Formula with slope m, position i, key j; "" if there is none.
    softcap : str
        "before mask", or "" if there is none.
    softcap_none : float or None
        What stands for no softcap.
    sinks_in_lse : bool or None
        None: no sinks.
    empty_output : {"zero", "nan", "mean of values", "unknown"}
    empty_lse : {"-inf", "+inf", "finite", None}
    lse_base : {"e", "2", None}
        None: no lse is returned.
    lse_layout : str or None
    lengths : {"count", "count - 1", None}
        What a key length argument holds.
    default_scale : {"1/sqrt(head_dim)", "1", "required"}
    rope_pairs : {"half", "interleaved", None}
        Default of the library's own rotary embedding.
    paged : bool
        The call reads keys through a block table.
    measured : bool
        The facts were measured on the library itself, by tests that run wherever it is installed;
        otherwise they were only read.
    notes : tuple of str
    issues : tuple of str
    """

    name: str
    call: str
    version: str
    source: str
    arguments: Mapping[str, str] = field(default_factory=dict)
    layout: str = "BHTD"
    output_layout: str = "BHTE"
    alignment: str = "bottom_right"
    window: str | None = None
    window_none: int | None = -1
    always_causal: bool = False
    mask_true: str | None = None
    additive_mask: bool = False
    float32_bias: bool = False
    hidden: str = "-inf"
    alibi: str = ""
    softcap: str = ""
    softcap_none: float | None = 0.0
    sinks_in_lse: bool | None = None
    empty_output: str = "zero"
    empty_lse: str | None = None
    lse_base: str | None = None
    lse_layout: str | None = None
    lengths: str | None = None
    default_scale: str = "1/sqrt(head_dim)"
    rope_pairs: str | None = None
    paged: bool = False
    measured: bool = False
    notes: tuple[str, ...] = ()
    issues: tuple[str, ...] = ()


_ARRAYS = {"query": "query", "key": "key", "value": "value"}
_QKV = {"query": "q", "key": "k", "value": "v"}
_OPTIONS = [name for name in OPTION_NAMES if name != "q_offset" and "dropout" not in name]

DIALECTS: Mapping[str, Dialect] = {
    d.name: d
    for d in (
        Dialect(
            "refattn",
            "attention_with_lse",
            "this version",
            "refattn.attention",
            {name: name for name in (*_ARRAYS, *_OPTIONS)},
            window="pair",
            window_none=None,
            mask_true="attend",
            alibi="-m*|i - j|",
            softcap="before mask",
            softcap_none=None,
            sinks_in_lse=True,
            empty_lse="-inf",
            lse_base="e",
            lse_layout="BHT",
            lengths="count",
            measured=True,
        ),
        Dialect(
            "torch",
            "torch.nn.functional.scaled_dot_product_attention",
            "2.13",
            "documentation and measurement",
            {**_ARRAYS, "causal": "is_causal", "mask": "attn_mask", "bias": "attn_mask", "scale": "scale"},
            alignment="top_left",
            mask_true="attend",
            additive_mask=True,
            float32_bias=True,
            notes=(
                "attn_mask with is_causal is documented as an error; the math backend raises it, the flash "
                "backend of the CPU applies both",
                "grouped heads need enable_gqa=True",
                "dropout_p applies in eval mode too",
                "an empty row was NaN before 2.5",
                "nn.MultiheadAttention's key_padding_mask means the opposite (True = ignore)",
            ),
            issues=("pytorch/pytorch #108108", "pytorch/pytorch #103749", "pytorch/pytorch #170415"),
            measured=True,
        ),
        Dialect(
            "flash_attn",
            "flash_attn_func",
            "2.8.4",
            "docstring of flash_attn_interface.py and tests/test_flash_attn.py",
            {
                **_QKV,
                "causal": "causal",
                "window": "window_size",
                "softcap": "softcap",
                "alibi_slopes": "alibi_slopes",
                "scale": "softmax_scale",
            },
            layout="BTHD",
            output_layout="BTHE",
            window="pair",
            alibi="-m*|i - j|",
            softcap="before mask",
            empty_lse="+inf",
            lse_base="e",
            lse_layout="BHT",
            rope_pairs="interleaved",
            notes=(
                "split key ranges give lse -inf for an empty row",
                "flash_attn_with_kvcache without causal rotates all rows by one angle",
                "version 3 has neither ALiBi nor dropout; version 4 spells no window None",
            ),
            issues=(
                "Dao-AILab/flash-attention #978",
                "Dao-AILab/flash-attention #1128",
                "Dao-AILab/flash-attention #540",
            ),
        ),
        Dialect(
            "flash_attn_3",
            "flash_attn_func",
            "commit 01afd16",
            "hopper/flash_attn_interface.py, mask.h and softmax.h",
            {
                **_QKV,
                "causal": "causal",
                "window": "window_size",
                "chunk": "attention_chunk",
                "softcap": "softcap",
                "scale": "softmax_scale",
            },
            layout="BTHD",
            output_layout="BTHE",
            window="pair",
            softcap="before mask",
            empty_lse="-inf",
            lse_base="e",
            lse_layout="BHT",
            rope_pairs="interleaved",
            notes=("attention_chunk of 0 means no chunks",),
            issues=("Dao-AILab/flash-attention #1669",),
        ),
        Dialect(
            "flashinfer",
            "single_prefill_with_kv_cache",
            "0.6.18",
            "documentation and tests",
            {
                **_QKV,
                "causal": "causal",
                "window": "window_left",
                "mask": "custom_mask",
                "softcap": "logits_soft_cap",
                "scale": "sm_scale",
            },
            layout="THD",
            output_layout="THE",
            window="left",
            mask_true="attend",
            alibi="+m*j",
            softcap="before mask",
            empty_output="zero",
            empty_lse="-inf",
            lse_base="2",
            lse_layout="TH",
            rope_pairs="half",
            notes=(
                "ALiBi of +m*j has the softmax of -m*|i - j| under a causal mask only: there they differ "
                "by m*i, a shift of the row, which lse shows",
                "kv_layout HND moves the heads of key and value first",
                "the mask fills with -5e4, which real scores can be below",
            ),
            issues=("flashinfer-ai/flashinfer #2113", "flashinfer-ai/flashinfer #4484"),
        ),
        Dialect(
            "flashmla",
            "flash_mla_with_kvcache",
            "commit 9241ae3",
            "README and tests/ref.py",
            {
                "query": "q",
                "key": "k_cache",
                "causal": "causal",
                "sinks": "attn_sink",
                "kv_lengths": "cache_seqlens",
                "scale": "softmax_scale",
            },
            layout="BTHD",
            output_layout="BTHE",
            sinks_in_lse=False,
            empty_lse="+inf",
            lse_base="e",
            lse_layout="BHT",
            lengths="count",
            paged=True,
            notes=(
                "values are the first head_dim_v dims of the keys",
                "default scale 1/sqrt(576) is that of the latent width; models need 1/sqrt(192) times "
                "mscale^2",
            ),
            issues=("vllm-project/vllm #41569",),
        ),
        Dialect(
            "onnx",
            "Attention (opset 23 to 25)",
            "1.23.2",
            "onnx.reference, measured",
            {
                "query": "Q",
                "key": "K",
                "value": "V",
                "causal": "is_causal",
                "window": "left_window_size",
                "mask": "attn_mask",
                "bias": "attn_mask",
                "softcap": "softcap",
                "kv_lengths": "nonpad_kv_seqlen",
                "scale": "scale",
            },
            alignment="top_left",
            window="two",
            mask_true="attend",
            additive_mask=True,
            float32_bias=True,
            softcap="before mask",
            lengths="count",
            notes=(
                "with past_key or nonpad_kv_seqlen the alignment is bottom-right",
                "left_window_size needs opset 25",
            ),
            issues=("onnx/onnx #7274", "onnx/onnx #7865", "onnx/onnx #8068", "onnx/onnx #7913"),
            measured=True,
        ),
        Dialect(
            "onnxruntime_gqa",
            "com.microsoft.GroupQueryAttention",
            "1.31.1 (window: since 1.23)",
            "docs/contrib_ops, measured",
            {
                **_ARRAYS,
                "window": "local_window_size",
                "bias": "attention_bias",
                "softcap": "softcap",
                "sinks": "head_sink",
                "kv_lengths": "seqlens_k",
                "scale": "scale",
            },
            layout="BTM",
            output_layout="BTM",
            window="count",
            always_causal=True,
            additive_mask=True,
            softcap="before mask",
            lengths="count - 1",
            rope_pairs="half",
            notes=(
                "before 1.23 local_window_size excluded the row's own key",
                "smooth_softmax is a sink of 0",
                "past keys and values are BHTD",
            ),
            issues=(
                "microsoft/onnxruntime #25927",
                "onnxruntime/mobius #260",
                "microsoft/onnxruntime #28031",
            ),
            measured=True,
        ),
        Dialect(
            "jax",
            "jax.nn.dot_product_attention",
            "0.10.2",
            "documentation, measured",
            {
                **_ARRAYS,
                "causal": "is_causal",
                "window": "local_window_size",
                "mask": "mask",
                "bias": "bias",
                "kv_lengths": "key_value_seq_lengths",
                "scale": "scale",
            },
            layout="BTHD",
            output_layout="BTHE",
            alignment="top_left",
            window="pair",
            window_none=None,
            mask_true="attend",
            float32_bias=True,
            hidden="-0.7 * finfo.max",
            empty_output="mean of values",
            empty_lse="finite",
            lse_base="e",
            lse_layout="BTH",
            lengths="count",
            notes=(
                "rows past query_seq_lengths are 0",
                "weights are converted to the key's dtype",
                "an int local_window_size means both sides",
            ),
            issues=("jax-ml/jax #24491", "jax-ml/jax #32300", "jax-ml/jax #39576"),
            measured=True,
        ),
        Dialect(
            "mlx",
            "mlx.core.fast.scaled_dot_product_attention",
            "0.32.4",
            "documentation, measured on CPU",
            {**_QKV, "causal": "mask", "mask": "mask", "bias": "mask", "sinks": "sinks", "scale": "scale"},
            mask_true="attend",
            additive_mask=True,
            hidden="finfo.min for boolean masks",
            empty_output="mean of values",
            default_scale="required",
            sinks_in_lse=None,
            rope_pairs="half",
            notes=(
                'causal is spelled mask="causal"',
                "an additive mask of -inf in a whole row gives NaN",
                "fast.rope: traditional=True means interleaved",
            ),
            issues=("ml-explore/mlx #2835", "ml-explore/mlx #2967"),
            measured=True,
        ),
        Dialect(
            "cudnn",
            "cudnn.pygraph.sdpa",
            "frontend 1.14",
            "frontend documentation and test/python/sdpa/fp16_ref.py",
            {
                **_QKV,
                "causal": "diagonal_band_right_bound",
                "window": "diagonal_band_left_bound",
                "bias": "bias",
                "sinks": "sink_token",
                "kv_lengths": "seq_len_kv",
                "scale": "attn_scale",
            },
            alignment="top_left",
            window="cudnn",
            window_none=None,
            alibi="m*(j - i), i counted from the top left",
            sinks_in_lse=True,
            empty_output="zero",
            lse_base="e",
            lse_layout="BHT1",
            empty_lse="-inf",
            lengths="count",
            default_scale="1",
            notes=(
                "diagonal_alignment=BOTTOM_RIGHT changes the alignment",
                "the left bound is exclusive: it keeps i - j < bound",
                "memory order is the caller's strides; shapes are written BHTD",
                "0 for a row without keys is what its Python reference computes",
            ),
            issues=("jax-ml/jax #23247", "jax-ml/jax #39576"),
        ),
        Dialect(
            "ggml",
            "ggml_flash_attn_ext",
            "ggml.h, 2026",
            "header and tests/test-backend-ops.cpp",
            {
                **_QKV,
                "mask": "mask",
                "bias": "mask",
                "softcap": "logit_softcap",
                "sinks": "sinks",
                "scale": "scale",
            },
            output_layout="BTHE",
            additive_mask=True,
            alibi="m * mask, slopes from max_bias",
            softcap="before mask",
            default_scale="required",
            sinks_in_lse=None,
            rope_pairs="interleaved",
            notes=(
                "ne lists axes backwards: q is [d, length, heads, batch]",
                "the result is permuted: [d, heads, length, batch]",
                "causal is an additive F16 mask",
            ),
            issues=("ggml-org/llama.cpp #3018", "ggml-org/llama.cpp #22611"),
        ),
        Dialect(
            "xformers",
            "xformers.ops.memory_efficient_attention",
            "0.0.32",
            "fmha/attn_bias.py",
            {
                **_ARRAYS,
                "causal": "attn_bias",
                "window": "attn_bias",
                "mask": "attn_bias",
                "bias": "attn_bias",
                "scale": "scale",
            },
            layout="BTHD",
            output_layout="BTHE",
            alignment="top_left",
            additive_mask=True,
            lse_base="e",
            lse_layout="BHT",
            empty_output="unknown",
            empty_lse="-inf",
            notes=(
                "LowerTriangularMask is top-left, LowerTriangularFromBottomRightMask bottom-right",
                "LocalAttentionFromBottomRightMask has inclusive sides",
                "LowerTriangularFromBottomRightLocalAttentionMask(window_size) counts the row's own key",
                "heads are expanded by the caller",
            ),
            issues=("facebookresearch/xformers #103", "facebookresearch/xformers #923"),
        ),
        Dialect(
            "transformers",
            "eager_attention_forward",
            "5.x",
            "modeling files, measured",
            {
                **_ARRAYS,
                "mask": "attention_mask",
                "bias": "attention_mask",
                "softcap": "softcap",
                "sinks": "s_aux",
                "scale": "scaling",
            },
            output_layout="BTHE",
            additive_mask=True,
            float32_bias=True,
            hidden="finfo.min, added",
            empty_output="mean of values",
            softcap="before mask",
            softcap_none=None,
            window=None,
            default_scale="required",
            rope_pairs="half",
            notes=(
                "causality and sliding_window come in the mask; sliding_window counts the row's own key",
                "DeepSeek models rotate interleaved pairs (rope_interleave)",
            ),
            issues=(
                "huggingface/transformers #29623",
                "huggingface/transformers #40163",
                "huggingface/transformers #39687",
                "huggingface/transformers #47435",
            ),
            measured=True,
        ),
    )
}


def dialect(name: str) -> Dialect:
    """The record of a library.

    Raises
    ------
    ValueError
        The name is unknown.

    Examples
    --------
    >>> dialect("flashinfer").lse_base
    '2'
    """
    if name not in DIALECTS:
        raise ValueError(f"dialect must be one of {', '.join(DIALECTS)}; got dialect={name!r}.")
    return DIALECTS[name]


def _visible(kind: str, q_len: int = 2, kv_len: int = 4) -> str:
    """Causal rows drawn as x (seen) and . (hidden)."""
    offset = 0 if kind == "top_left" else kv_len - q_len
    return " / ".join("".join("x" if j <= offset + i else "." for j in range(kv_len)) for i in range(q_len))


def _window_example(d: Dialect) -> str:
    """How the call says: this key and the two before it."""
    spelled = {
        "pair": "(2, 0)",
        "left": "2",
        "two": "2, 0",
        "count": "3",
        "cudnn": "left bound 3, right bound 0",
    }
    return spelled.get(d.window or "", "a mask")


def _sink_in_lse(d: Dialect) -> str:
    if d.sinks_in_lse is None:
        return "no lse" if "sinks" in d.arguments else "no sinks"
    return "yes" if d.sinks_in_lse else "no"


_PAIRS = {"half": "(0, 32), (1, 33), ...", "interleaved": "(0, 1), (2, 3), ..."}


def _row(words, fill, example=lambda d: "-"):
    """A row of the table: how a dialect fills it, and what shows an example of that, "-" for none."""
    return words, fill, example


ROWS: tuple[tuple[str, Callable[[Dialect], str], Callable[[Dialect], str]], ...] = (
    _row("query layout", lambda d: d.layout),
    _row("output layout", lambda d: d.output_layout),
    _row(
        "causal, 2 rows on 4 keys", lambda d: d.alignment.replace("_", "-"), lambda d: _visible(d.alignment)
    ),
    _row(
        "causality", lambda d: "always on" if d.always_causal else d.arguments.get("causal", "in the mask")
    ),
    _row(
        "window of the last 3 keys",
        lambda d: d.arguments.get("window", "in the mask") if d.window else "in the mask",
        _window_example,
    ),
    _row("no window", lambda d: str(d.window_none) if d.window else "no mask"),
    _row(
        "chunks of keys",
        lambda d: d.arguments.get(
            "chunk", "in the mask" if (d.mask_true or d.additive_mask) and not d.always_causal else "none"
        ),
    ),
    _row("boolean mask, True", lambda d: d.mask_true or "no boolean mask"),
    _row("additive mask or bias", lambda d: d.arguments.get("bias", "none")),
    _row("hidden scores", lambda d: d.hidden),
    _row("ALiBi adds", lambda d: d.alibi or "none"),
    _row(
        "softcap",
        lambda d: d.arguments.get("softcap", "none"),
        lambda d: f"off: {d.softcap_none}" if d.softcap else "-",
    ),
    _row("sink in lse", _sink_in_lse),
    _row("row without keys: output", lambda d: d.empty_output),
    _row("row without keys: lse", lambda d: d.empty_lse or "none"),
    _row(
        "lse base",
        lambda d: d.lse_base or "no lse",
        lambda d: f"lse of 8 equal scores 0: {'2.079' if d.lse_base == 'e' else '3'}" if d.lse_base else "-",
    ),
    _row("lse layout", lambda d: d.lse_layout or "no lse"),
    _row(
        "key lengths",
        lambda d: d.lengths or "none",
        lambda d: f"5 keys: {5 if d.lengths == 'count' else 4}" if d.lengths else "-",
    ),
    _row(
        "default scale, head_dim 64",
        lambda d: d.default_scale,
        lambda d: {"1/sqrt(head_dim)": "0.125", "1": "1"}.get(d.default_scale, "-"),
    ),
    _row("rotary pairs", lambda d: d.rope_pairs or "none", lambda d: _PAIRS.get(d.rope_pairs or "", "-")),
    _row("keys in pages", lambda d: "yes" if d.paged else "no"),
)


def differences(first: str, second: str) -> list[tuple[str, str, str]]:
    """Rows of the table in which two dialects differ: (matter, first, second), with an example where
    one helps.
    """
    one, two = dialect(first), dialect(second)
    found = []
    for words, fill, example in ROWS:
        cells = [fill(d) + (f"  [{example(d)}]" if example(d) != "-" else "") for d in (one, two)]
        if cells[0] != cells[1]:
            found.append((words, *cells))
    return found


# kinds of rows: a call that runs on both and gives other numbers comes first
MEANING = "Other results for what looks alike"
SPELLING = "The same thing said otherwise"
ONLY_ONE = "In one of them only"
SPELLED = (
    "causality",
    "window of the last 3 keys",
    "no window",
    "chunks of keys",
    "additive mask or bias",
    "softcap",
)
ABSENT = ("none", "no lse", "no sinks", "no boolean mask", "no mask", "in the mask", "-")


def _kind(row) -> str:
    words, *cells = row
    absent = [cell.split("  [")[0] in ABSENT for cell in cells]
    if any(absent):
        return ONLY_ONE
    return SPELLING if words in SPELLED else MEANING


def explain_difference(first: str, second: str) -> str:
    """A table of where two dialects disagree; rows in which they agree are left out.

    Rows that change results come first, then other spellings, then what only one of the two has; then
    notes, and errors in the code that their libraries publish as a reference (`library_errors`).

    Parameters
    ----------
    first, second : str
        Names of `DIALECTS`; "refattn" is ours.

    Returns
    -------
    str

    Examples
    --------
    >>> explain_difference("torch", "jax").splitlines()[7].split()
    ['query', 'layout', '|', 'BHTD', '|', 'BTHD']
    """
    one, two = dialect(first), dialect(second)
    rows = differences(first, second)
    heading = [
        f"{d.name} is {d.call}, {d.version}: "
        f"{'measured on the library' if d.measured else 'read, not run'} ({d.source})"
        for d in (one, two)
    ]
    heading.append(
        "Axes: B batch, H heads, T or S length, D and E head size, M heads and head size in one. x: the "
        "row sees the key, . it does not."
    )
    if not rows:
        return "\n".join([*heading, "They agree in every row."])
    widths = [max(len(row[i]) for row in [("", first, second), *rows]) for i in range(3)]
    line = lambda row: " | ".join(
        cell.ljust(width) for cell, width in zip(row, widths, strict=True)
    ).rstrip()
    rule = "-+-".join("-" * width for width in widths)
    lines = []
    for kind in (MEANING, SPELLING, ONLY_ONE):
        chosen = [row for row in rows if _kind(row) == kind]
        lines += ["", kind, line(("", first, second)), rule, *map(line, chosen)] if chosen else []
    notes = [f"{d.name}: {note}" for d in (one, two) for note in d.notes]
    reports = [f"{d.name}: {', '.join(d.issues[:3])}" for d in (one, two) if d.issues]
    errors = [str(error) for error in errors_of(first, second)]
    notes += ["", "Errors in code published as a reference", *errors] if errors else []
    notes += [f"Public reports  {'; '.join(reports)}"] if reports else []
    return "\n".join([*heading, *lines, "", "Besides", *notes])
