"""`refattn kv`: the size of a model's key/value cache, next to the other kinds of attention."""

import json
import re
import sys
from dataclasses import asdict
from fractions import Fraction

from refattn.calls.checks import checked_integer
from refattn.commands.text import aligned
from refattn.costs import decode_intensity
from refattn.models import MODELS, AttentionShape, find_model
from refattn.sizes import alternatives, cache_bytes, cache_elements, elements_per_token

DTYPE_BITS = {"float64": 64, "float32": 32, "float16": 16, "bfloat16": 16, "float8": 8, "int8": 8, "int4": 4}
DIMENSIONS = {  # command-line option -> field of AttentionShape
    "layers": "num_layers",
    "heads": "num_heads",
    "kv_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "v_head_dim": "v_head_dim",
    "kv_lora_rank": "kv_lora_rank",
    "nope_dim": "qk_nope_head_dim",
    "rope_dim": "qk_rope_head_dim",
    "window": "window",
    "window_layers": "window_layers",
}
HELP = {
    "layers": "layers with a cache (default 1)",
    "heads": "query heads",
    "kv_heads": "key/value heads",
    "head_dim": "size of a key",
    "v_head_dim": "size of a value (default: that of a key)",
    "kv_lora_rank": "width of the latent: the model has latent attention",
    "nope_dim": "latent attention: part of a key without rotation",
    "rope_dim": "latent attention: rotary part of a key",
    "window": "tokens that layers with a window keep",
    "window_layers": "how many layers have one (default: all)",
}
_DTYPE_ALIASES = {
    "fp64": "float64",
    "fp32": "float32",
    "fp16": "float16",
    "half": "float16",
    "bf16": "bfloat16",
    "fp8": "float8",
}


SUFFIXES = {"": 1, "K": 2**10, "M": 2**20}  # models that are said to read "128k tokens" read 131,072


def add_parser(subparsers) -> None:
    """Add `kv` to the subcommands of `refattn`."""
    parser = subparsers.add_parser(
        "kv",
        help="size of a model's key/value cache",
        description="Size of a key/value cache, per token and at a context length, next to the other kinds "
        "of attention.",
        epilog="example: refattn kv --model llama3-8b --context 128k --batch 1 --dtype bfloat16; exit "
        "code: 0 done, 2 bad usage",
    )
    parser.add_argument("--model", help="a model of the table, in any case and punctuation")
    parser.add_argument("--list", action="store_true", help="all models of the table")
    for option in DIMENSIONS:
        parser.add_argument("--" + option.replace("_", "-"), type=int, metavar="N", help=HELP[option])
    parser.add_argument(
        "--context",
        default="8192",
        metavar="TOKENS",
        help="tokens per sequence; k means times 1024, M times 1024 * 1024: 128k is 131,072 (default 8192)",
    )
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="sequences (default 1)")
    parser.add_argument(
        "--dtype", default="bfloat16", help="of the cache: " + ", ".join(DTYPE_BITS) + " (default bfloat16)"
    )
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.set_defaults(run=run)


def run(args) -> int:
    """Print what `refattn kv` was asked for; 0 when done, 2 when the request makes no sense."""
    try:
        dtype = _dtype(args.dtype)
        if args.list:
            report = [_summary(name, shape, dtype) for name, shape in MODELS.items()]
            print(json.dumps(report, indent=2) if args.json else _listing(report, dtype))
            return 0
        context, batch = _tokens(args.context), checked_integer(args.batch, "batch", 1)
        name, shape = _requested(args)
    except (KeyError, TypeError, ValueError) as error:
        print(f"refattn kv: {error.args[0]}", file=sys.stderr)
        return 2
    report = _report(name, shape, context, batch, dtype)
    print(json.dumps(report, indent=2) if args.json else _page(report, shape))
    return 0


def _tokens(text: str) -> int:
    """A number of tokens as people write it.

    >>> _tokens("8192"), _tokens("128k"), _tokens("1.5M")
    (8192, 131072, 1572864)
    """
    found = re.fullmatch(r"([+-]?\d{1,15}(?:\.\d{1,15})?)([kKmM]?)", text.replace("_", ""), re.ASCII)
    count = Fraction(found[1]) * SUFFIXES[found[2].upper()] if found else None
    if count is None or count.denominator != 1:
        raise ValueError(
            "context must be a whole number of tokens, such as 8192, 128k (times 1024) or 1M (times 1024 * "
            f"1024); got context={text!r}."
        )
    return checked_integer(count.numerator, "context", 0)


def _dtype(name: str) -> str:
    dtype = _DTYPE_ALIASES.get(name.lower(), name.lower())
    if dtype not in DTYPE_BITS:
        raise ValueError(f"dtype must be one of {', '.join(DTYPE_BITS)}; got {name!r}.")
    return dtype


def _requested(args) -> tuple[str, AttentionShape]:
    given = {
        field: getattr(args, option)
        for option, field in DIMENSIONS.items()
        if getattr(args, option) is not None
    }
    if args.model is not None:
        if given:
            raise ValueError("model must come alone; got --model and dimensions. Leave one of them out.")
        return find_model(args.model)
    latent = "kv_lora_rank" in given
    if not latent and not {"num_heads", "num_kv_heads", "head_dim"} <= given.keys():
        raise ValueError(
            "model must be given, or --heads, --kv-heads and --head-dim, or --kv-lora-rank; "
            f"got {', '.join(given) or 'nothing'}. See refattn kv --list."
        )
    assumed = {"num_layers": 1}
    if latent:  # neither enters the size of a latent cache; DeepSeek's choice, for the other kinds
        assumed |= {"num_heads": 128, "qk_nope_head_dim": 128}
    assumed = {field: value for field, value in assumed.items() if field not in given}
    source = "the command line" + "".join(f", assuming {field}={value}" for field, value in assumed.items())
    return "custom", AttentionShape(**assumed, **given, source=source)


def _summary(name: str, shape: AttentionShape, dtype: str) -> dict:
    fields = {field: value for field, value in asdict(shape).items() if value is not None}
    elements = elements_per_token(shape)
    return (
        {"model": name, "variant": shape.variant}
        | fields
        | {
            "elements_per_token": elements,
            "bytes_per_token": _number(Fraction(elements * DTYPE_BITS[dtype], 8)),
        }
    )


def _report(name: str, shape: AttentionShape, context: int, batch: int, dtype: str) -> dict:
    bits = DTYPE_BITS[dtype]
    own = cache_elements(shape, context, batch)
    rows = [
        {
            "variant": kind,
            "this_model": kind == shape.variant,
            "cached_per_head": _cached_per_head(other),
            "elements_per_token": elements_per_token(other),
            "bytes_per_token": _number(Fraction(elements_per_token(other) * bits, 8)),
            "bytes": _number(cache_bytes(other, context, batch, bits)),
            "ratio": elements_per_token(other) / elements_per_token(shape),
            "decode_intensity": decode_intensity(other, bytes_per_element=bits / 8),
        }
        for kind, other in alternatives(shape).items()
    ]
    return _summary(name, shape, dtype) | {
        "context": context,
        "batch": batch,
        "dtype": dtype,
        "elements": own,
        "bytes": _number(cache_bytes(shape, context, batch, bits)),
        "alternatives": rows,
    }


def _number(value: Fraction) -> int | float:
    return value.numerator if value.denominator == 1 else float(value)


def _cached_per_head(shape: AttentionShape) -> str:
    if shape.kv_lora_rank is not None:
        return f"1 latent of {shape.kv_lora_rank} + {shape.qk_rope_head_dim}"
    return f"{shape.num_kv_heads} x ({shape.head_dim} + {shape.v_head_dim})"


def _page(report: dict, shape: AttentionShape) -> str:
    cached = f"latent of {shape.kv_lora_rank} and rotary key of {shape.qk_rope_head_dim}"
    if shape.kv_lora_rank is None:
        cached = f"{_counted(shape.num_kv_heads, 'key/value head')} of {shape.head_dim}"
    lines = [
        f"{report['model']}  {shape.variant}: {_counted(shape.num_layers, 'layer')}, "
        f"{_counted(shape.num_heads, 'query head')}, {cached}",
        f"dimensions from {shape.source}",
    ]
    if shape.window:
        lines.append(
            f"{shape.window_layers} of {shape.num_layers} layers keep the newest {shape.window:,} tokens "
            "only"
        )
    lines += [
        "",
        f"per token   {report['elements_per_token']:,} elements = {_units(report['bytes_per_token'])} in "
        f"{report['dtype']}",
        f"cache       {_units(report['bytes'])} for {report['batch']} x {report['context']:,} tokens",
        "",
    ]
    table = [("", "per layer and token", "elements/token", "kB/token", "cache GiB", "ratio", "FLOP/byte")]
    table += [
        (
            row["variant"] + (" *" if row["this_model"] else ""),
            row["cached_per_head"],
            f"{row['elements_per_token']:,}",
            f"{row['bytes_per_token'] / 1e3:,.3f}",
            f"{row['bytes'] / 2**30:,.3f}",
            f"{row['ratio']:.3f}x",
            f"{row['decode_intensity']:.1f}",
        )
        for row in report["alternatives"]
    ]
    return "\n".join(
        lines
        + aligned(table)
        + [
            "",
            "* this model; the others are the same model with the other kinds of attention",
            "1 kB = 1000 bytes, 1 KiB = 1024 bytes; FLOP/byte: one decoding step over a long context (MLA "
            "absorbed)",
        ]
    )


def _listing(report: list[dict], dtype: str) -> str:
    table = [
        (
            "model",
            "kind",
            "layers",
            "heads",
            "kv heads",
            "head dim",
            "window",
            "elements/token",
            f"kB/token ({dtype})",
        )
    ]
    for row in report:
        latent = row["variant"] == "MLA"
        table.append(
            (
                row["model"],
                row["variant"],
                str(row["num_layers"]),
                str(row["num_heads"]),
                "latent" if latent else str(row["num_kv_heads"]),
                f"{row['kv_lora_rank']}+{row['qk_rope_head_dim']}" if latent else str(row["head_dim"]),
                f"{row['window']:,} in {row['window_layers']}" if "window" in row else "",
                f"{row['elements_per_token']:,}",
                f"{row['bytes_per_token'] / 1e3:,.3f}",
            )
        )
    return "\n".join([*aligned(table), "", "1 kB = 1000 bytes; window: keys kept, in how many layers"])


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("s" if count != 1 else "")


def _units(count: float) -> str:
    """131072 -> '131,072 B = 131.072 kB = 128.000 KiB', in the largest decimal and binary units that fit."""
    power = min(4, max(0, (len(str(int(count))) - 1) // 3))
    if power == 0:
        return f"{count:,} B"
    return (
        f"{count:,} B = {count / 1000**power:,.3f} {('kB', 'MB', 'GB', 'TB')[power - 1]}"
        f" = {count / 1024**power:,.3f} {('KiB', 'MiB', 'GiB', 'TiB')[power - 1]}"
    )
