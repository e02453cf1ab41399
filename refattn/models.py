"""Attention dimensions of published models: what decides the size of their key/value cache.

Every row says where its numbers can be read.
"""

import difflib
import re
from dataclasses import dataclass

from refattn.calls.checks import checked_integer

LITGPT = "Lightning-AI/litgpt litgpt/config.py at 2685705"
DEEPSEEK_V2 = "DeepSeek-V2 report (arXiv 2405.04434), sec. 3.1.2 and app. B.1"
DEEPSEEK_V3 = "deepseek-ai/DeepSeek-V3 inference/configs/config_671B.json at 9b4e978"
GPT_OSS = "openai/gpt-oss gpt_oss/torch/model.py at 7b58334"
GPT2 = "karpathy/nanoGPT model.py, table of the released GPT-2 checkpoints"
LLAMA = "LLaMA paper (arXiv 2302.13971), table 2"


@dataclass(frozen=True)
class AttentionShape:
    """The dimensions of one model's attention that decide what it caches and computes.

    Either `num_kv_heads` and `head_dim` are given (MHA, GQA, MQA), or `kv_lora_rank` and the per-head
    dimensions of multi-head latent attention (MLA), whose cache holds one latent and one rotary key per
    token and nothing per head.

    Parameters
    ----------
    num_layers, num_heads : int
        Layers, and query heads per layer.
    num_kv_heads, head_dim : int or None
        Key/value heads and the width of one key; `num_heads` must be a multiple of `num_kv_heads`.
    v_head_dim : int or None
        Width of one value; `head_dim` (for MLA `qk_nope_head_dim`) unless given.
    kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim : int or None
        MLA: width of the latent, and of the two parts of a query or key.
    window, window_layers : int or None
        `window_layers` of the layers attend to at most `window` keys, the current one included, and cache
        no more; all layers do unless `window_layers` is given.
    source : str
        Where the numbers were read.

    Raises
    ------
    TypeError
        A dimension is missing or not an integer.
    ValueError
        A dimension is too small or belongs to the other kind of cache, or `num_heads` is no multiple of
        `num_kv_heads`.

    Examples
    --------
    >>> AttentionShape(num_layers=32, num_heads=32, num_kv_heads=8, head_dim=128).variant
    'GQA'
    >>> widths = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64}
    >>> AttentionShape(num_layers=61, num_heads=128, **widths).variant
    'MLA'
    """

    num_layers: int
    num_heads: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    v_head_dim: int | None = None
    kv_lora_rank: int | None = None
    qk_nope_head_dim: int | None = None
    qk_rope_head_dim: int | None = None
    window: int | None = None
    window_layers: int | None = None
    source: str = ""

    def __post_init__(self) -> None:
        latent = self.kv_lora_rank is not None
        least = dict.fromkeys(
            ["num_layers", "num_heads"]
            + (["kv_lora_rank", "qk_nope_head_dim"] if latent else ["num_kv_heads", "head_dim"]),
            1,
        )
        if latent:
            if self.num_kv_heads is not None or self.head_dim is not None:
                raise ValueError(
                    "num_kv_heads and head_dim must be left out for a latent cache; "
                    f"got num_kv_heads={self.num_kv_heads!r} and head_dim={self.head_dim!r}."
                )
            if self.qk_rope_head_dim is None:
                object.__setattr__(self, "qk_rope_head_dim", 0)
            least["qk_rope_head_dim"] = 0
        elif self.qk_nope_head_dim is not None or self.qk_rope_head_dim is not None:
            raise ValueError(
                "qk_nope_head_dim and qk_rope_head_dim must be left out without kv_lora_rank; "
                f"got qk_nope_head_dim={self.qk_nope_head_dim!r} and "
                f"qk_rope_head_dim={self.qk_rope_head_dim!r}."
            )
        if self.v_head_dim is None:
            object.__setattr__(self, "v_head_dim", self.qk_nope_head_dim if latent else self.head_dim)
        if self.window is None and self.window_layers is not None:
            raise ValueError(
                "window must be given with window_layers; got window=None and "
                f"window_layers={self.window_layers!r}."
            )
        if self.window is not None and self.window_layers is None:
            object.__setattr__(self, "window_layers", self.num_layers)
        for name in ("v_head_dim", "window", "window_layers"):
            if getattr(self, name) is not None:
                least[name] = 1
        for name, smallest in least.items():
            object.__setattr__(self, name, checked_integer(getattr(self, name), name, smallest))
        if not latent and self.num_heads % self.num_kv_heads:
            raise ValueError(
                "num_heads must be a multiple of num_kv_heads; "
                f"got num_heads={self.num_heads} and num_kv_heads={self.num_kv_heads}."
            )
        if self.window_layers is not None and self.window_layers > self.num_layers:
            raise ValueError(
                "window_layers must be at most num_layers; "
                f"got window_layers={self.window_layers} and num_layers={self.num_layers}."
            )

    @property
    def variant(self) -> str:
        """'MHA', 'GQA', 'MQA' or 'MLA'."""
        if self.kv_lora_rank is not None:
            return "MLA"
        if self.num_kv_heads == self.num_heads:
            return "MHA"
        return "MQA" if self.num_kv_heads == 1 else "GQA"

    @property
    def cached_per_token(self) -> int:
        """Elements one layer caches for one token."""
        if self.kv_lora_rank is not None:
            return self.kv_lora_rank + self.qk_rope_head_dim
        return self.num_kv_heads * (self.head_dim + self.v_head_dim)


def _heads(
    layers: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    source: str = LITGPT,
    window: int | None = None,
    window_layers: int | None = None,
) -> AttentionShape:
    return AttentionShape(
        layers, heads, kv_heads, head_dim, source=source, window=window, window_layers=window_layers
    )


def _latent(
    layers: int, heads: int, latent: int, nope: int, rope: int, v: int, source: str
) -> AttentionShape:
    return AttentionShape(
        num_layers=layers,
        num_heads=heads,
        kv_lora_rank=latent,
        qk_nope_head_dim=nope,
        qk_rope_head_dim=rope,
        v_head_dim=v,
        source=source,
    )


# columns: layers, query heads, key/value heads, head_dim [, source, window in keys, windowed layers]
MODELS: dict[str, AttentionShape] = {
    "gpt2": _heads(12, 12, 12, 64, GPT2),
    "gpt2-xl": _heads(48, 25, 25, 64, GPT2),
    # half of GPT-3's layers are locally banded; the band is not published, so they count as dense
    "gpt3-175b": _heads(96, 96, 96, 128, "GPT-3 paper (arXiv 2005.14165), table 2.1"),
    "llama-7b": _heads(32, 32, 32, 128, LLAMA),
    "llama-65b": _heads(80, 64, 64, 128, LLAMA),
    "llama2-7b": _heads(32, 32, 32, 128),
    "llama2-13b": _heads(40, 40, 40, 128),
    "llama2-70b": _heads(80, 64, 8, 128),
    "llama3-8b": _heads(32, 32, 8, 128),
    "llama3-70b": _heads(80, 64, 8, 128),
    "llama3.1-405b": _heads(126, 128, 8, 128),
    "llama3.2-1b": _heads(16, 32, 8, 64),
    "llama3.2-3b": _heads(28, 24, 8, 128),
    "mistral-7b-v0.1": _heads(32, 32, 8, 128, window=4096),
    "mistral-7b-v0.3": _heads(32, 32, 8, 128),
    "mixtral-8x7b": _heads(32, 32, 8, 128),
    "mixtral-8x22b": _heads(56, 48, 8, 128),
    "qwen2.5-0.5b": _heads(24, 14, 2, 64),
    "qwen2.5-1.5b": _heads(28, 12, 2, 128),
    "qwen2.5-7b": _heads(28, 28, 4, 128),
    "qwen2.5-72b": _heads(80, 64, 8, 128),
    "qwen3-0.6b": _heads(28, 16, 8, 128),
    "qwen3-8b": _heads(36, 32, 8, 128),
    "qwen3-14b": _heads(40, 40, 8, 128),
    "qwen3-32b": _heads(64, 64, 8, 128),
    "qwen3-30b-a3b": _heads(48, 32, 4, 128),
    "qwen3-235b-a22b": _heads(94, 64, 4, 128),
    "falcon-7b": _heads(32, 71, 1, 64),
    "falcon-40b": _heads(60, 128, 8, 64),
    "falcon-180b": _heads(80, 232, 8, 64),
    "starcoder": _heads(40, 48, 1, 128, "bigcode/starcoder config.json"),
    "palm-540b": _heads(118, 48, 1, 256, "PaLM paper (arXiv 2204.02311), sec. 2 and table 1"),
    "gemma-2b": _heads(18, 8, 1, 256),
    "gemma-7b": _heads(28, 16, 16, 256),
    "gemma2-2b": _heads(26, 8, 4, 256, window=4096, window_layers=13),
    "gemma2-9b": _heads(42, 16, 8, 256, window=4096, window_layers=21),
    "gemma2-27b": _heads(46, 32, 16, 128, window=4096, window_layers=23),
    "gemma3-1b": _heads(26, 4, 1, 256, window=512, window_layers=22),
    "gemma3-4b": _heads(34, 8, 4, 256, window=1024, window_layers=29),
    "gemma3-12b": _heads(48, 16, 8, 256, window=1024, window_layers=40),
    "gemma3-27b": _heads(62, 32, 16, 128, window=1024, window_layers=52),
    "phi2": _heads(32, 32, 32, 80),
    "phi3.5-mini": _heads(32, 32, 32, 96),
    "phi4": _heads(40, 40, 10, 128),
    "phi4-mini": _heads(32, 24, 8, 128),
    "gpt-oss-20b": _heads(24, 64, 8, 64, GPT_OSS + "; layers: openai/gpt-oss-20b config.json", 128, 12),
    "gpt-oss-120b": _heads(36, 64, 8, 64, GPT_OSS, 128, 18),
    "deepseek-67b": _heads(95, 64, 8, 128, "deepseek-ai/deepseek-llm-67b-base config.json"),
    # columns: layers, query heads, kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim, v_head_dim, source
    "deepseek-v2-lite": _latent(27, 16, 512, 128, 64, 128, DEEPSEEK_V2),
    "deepseek-v2": _latent(60, 128, 512, 128, 64, 128, DEEPSEEK_V2),
    # also R1 and V3.1, without the multi-token-prediction layer; V3.2 caches an indexer key on top of this
    "deepseek-v3": _latent(61, 128, 512, 128, 64, 128, DEEPSEEK_V3),
    "kimi-k2": _latent(61, 64, 512, 128, 64, 128, "moonshotai/Kimi-K2-Instruct config.json"),
    "minicpm3-4b": _latent(62, 40, 256, 64, 32, 64, "openbmb/MiniCPM3-4B config.json"),
}

ALIASES = {
    "gpt2-small": "gpt2",
    "llama3.1-8b": "llama3-8b",
    "llama3.1-70b": "llama3-70b",
    "llama3.3-70b": "llama3-70b",
    "mistral-7b-v0.2": "mistral-7b-v0.3",
    "qwen2-7b": "qwen2.5-7b",
    "qwen2-72b": "qwen2.5-72b",
    "deepseek-r1": "deepseek-v3",
    "deepseek-v3.1": "deepseek-v3",
    "deepseek-llm-67b": "deepseek-67b",
    "mixtral-8x7b-v0.1": "mixtral-8x7b",
    "mixtral-8x22b-v0.1": "mixtral-8x22b",
    "kimi-k2-instruct-0905": "kimi-k2",
}
_TUNING = {"meta", "instruct", "chat", "base", "hf", "it"}


def _key(name: str) -> str:
    """`meta-llama/Meta-Llama-3-8B-Instruct` -> `llama38b`: no owner, case, punctuation or word that
    keeps the dimensions.
    """
    words = re.split(r"[^a-z0-9.]+", name.strip().lower().rsplit("/", 1)[-1])
    return re.sub(r"[^a-z0-9]", "", "".join(word for word in words if word not in _TUNING))


def find_model(name: str) -> tuple[str, AttentionShape]:
    """Row of `MODELS` for a name in any case and punctuation.

    Parameters
    ----------
    name : str
        As in `MODELS`, or as its publisher writes it, with or without the owner.

    Returns
    -------
    name : str
        The name as `MODELS` spells it.
    shape : AttentionShape

    Raises
    ------
    KeyError
        No such model; the message lists the closest names.

    Examples
    --------
    >>> find_model("meta-llama/Llama-3-8B-Instruct")[0]
    'llama3-8b'
    """
    known = {_key(row): row for row in MODELS} | {_key(alias): row for alias, row in ALIASES.items()}
    if _key(name) in known:
        row = known[_key(name)]
        return row, MODELS[row]
    close = [known[match] for match in difflib.get_close_matches(_key(name), known, n=5, cutoff=0.5)]
    hint = f"close: {', '.join(dict.fromkeys(close))}." if close else "no known name is close to it."
    raise KeyError(f"model must be a name of refattn.models.MODELS; got {name!r}; {hint}")
