"""Published cache sizes, intensities and parameter counts, each recomputed from the formulas of refattn."""

import argparse
import json
import math
from fractions import Fraction

import numpy as np
import pytest

from refattn import costs, goldens, sizes
from refattn.commands import kv as kv_command
from refattn.models import ALIASES, MODELS, AttentionShape, find_model

V2, V3, LITE = MODELS["deepseek-v2"], MODELS["deepseek-v3"], MODELS["deepseek-v2-lite"]


# ---- cache sizes ------------------------------------------------------------------------------------------

# as published, or 2 * layers * kv heads * head dim worked out by hand from the source
ELEMENTS_PER_TOKEN = {
    "gpt2": 18_432,
    "gpt2-xl": 153_600,
    "gpt3-175b": 2_359_296,
    "llama-7b": 262_144,
    "llama-65b": 1_310_720,
    "llama2-7b": 262_144,
    "llama2-13b": 409_600,
    "llama2-70b": 163_840,
    "llama3-8b": 65_536,
    "llama3-70b": 163_840,
    "llama3.1-405b": 258_048,
    "llama3.2-1b": 16_384,
    "llama3.2-3b": 57_344,
    "mistral-7b-v0.1": 65_536,
    "mistral-7b-v0.3": 65_536,
    "mixtral-8x7b": 65_536,
    "mixtral-8x22b": 114_688,
    "qwen2.5-0.5b": 6_144,
    "qwen2.5-1.5b": 14_336,
    "qwen2.5-7b": 28_672,
    "qwen2.5-72b": 163_840,
    "qwen3-0.6b": 57_344,
    "qwen3-8b": 73_728,
    "qwen3-14b": 81_920,
    "qwen3-32b": 131_072,
    "qwen3-30b-a3b": 49_152,
    "qwen3-235b-a22b": 96_256,
    "falcon-7b": 4_096,
    "falcon-40b": 61_440,
    "falcon-180b": 81_920,
    "starcoder": 10_240,
    "palm-540b": 60_416,
    "gemma-2b": 9_216,
    "gemma-7b": 229_376,
    "gemma2-2b": 53_248,
    "gemma2-9b": 172_032,
    "gemma2-27b": 188_416,
    "gemma3-1b": 13_312,
    "gemma3-4b": 69_632,
    "gemma3-12b": 196_608,
    "gemma3-27b": 253_952,
    "phi2": 163_840,
    "phi3.5-mini": 196_608,
    "phi4": 102_400,
    "phi4-mini": 65_536,
    "gpt-oss-20b": 24_576,
    "gpt-oss-120b": 36_864,
    "deepseek-67b": 194_560,
    "deepseek-v2-lite": 15_552,
    "deepseek-v2": 34_560,
    "deepseek-v3": 35_136,
    "kimi-k2": 35_136,
    "minicpm3-4b": 17_856,
}


def test_elements_per_token_of_every_model():
    assert {name: sizes.elements_per_token(shape) for name, shape in MODELS.items()} == ELEMENTS_PER_TOKEN


def test_every_model_names_its_source():
    assert [name for name, shape in MODELS.items() if len(shape.source) < 10] == []


def mha(layers, heads, head_dim):
    return AttentionShape(num_layers=layers, num_heads=heads, num_kv_heads=heads, head_dim=head_dim)


def test_deepseek_v2_table_1_latent_equals_2_25_groups():
    d_h = 128
    kinds = sizes.alternatives(V2)
    per_layer = {kind: shape.cached_per_token for kind, shape in kinds.items()}
    assert per_layer == {"MHA": 2 * 128 * d_h, "GQA": 2 * 8 * d_h, "MQA": 2 * d_h, "MLA": 9 * d_h // 2}
    assert sizes.equivalent_kv_heads(V2) == Fraction(9, 4)
    assert sizes.equivalent_kv_heads(MODELS["llama3-8b"]) == 8


def test_deepseek_v2_table_9():
    small_mha, small_mla = sizes.elements_per_token(mha(27, 16, 128)), sizes.elements_per_token(LITE)
    assert (small_mha, small_mla) == (110_592, 15_552)  # printed 110.6K and 15.6K
    assert round(100 * small_mla / small_mha) == 14
    # the report prints only the total 860.2K over 60 layers; 56 heads of 128 is the reading that gives it
    large_mha, large_mla = sizes.elements_per_token(mha(60, 56, 128)), sizes.elements_per_token(V2)
    assert (large_mha, large_mla) == (860_160, 34_560)
    assert round(100 * large_mla / large_mha) == 4


def test_deepseek_v2_93_3_percent_needs_the_6_bit_cache():
    baseline = sizes.cache_bytes(MODELS["deepseek-67b"], 1)
    assert (baseline, sizes.cache_bytes(V2, 1, bits=6)) == (389_120, 25_920)
    assert round(100 * float(1 - sizes.cache_bytes(V2, 1, bits=6) / baseline), 3) == 93.339
    assert round(100 * float(1 - sizes.cache_bytes(V2, 1) / baseline), 2) == 82.24  # counting elements alone


def test_deepseek_v2_against_its_own_heads():
    own_mha = sizes.elements_per_token(sizes.alternatives(V2)["MHA"])
    assert own_mha == 1_966_080
    assert round(own_mha / 34_560, 2) == 56.89
    assert round(100 * (1 - 34_560 / own_mha), 2) == 98.24


def test_insights_into_deepseek_v3_table_1():
    """arXiv 2505.09343, table 1, in decimal kB; its 4.66x is right and its 7.28x is not."""
    v3, qwen, llama = (
        sizes.cache_bytes(MODELS[name], 1) for name in ("deepseek-v3", "qwen2.5-72b", "llama3.1-405b")
    )
    assert [float(size) / 1000 for size in (v3, qwen, llama)] == [70.272, 327.680, 516.096]
    assert round(float(qwen / v3), 2) == 4.66
    assert round(float(llama / v3), 3) == 7.344


def test_flashmla_fp8_cache():
    with_mtp = AttentionShape(
        num_layers=62, num_heads=128, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64
    )
    assert sizes.cache_bytes(with_mtp, 128 * 1024) / 2**30 == Fraction(8.71875)
    token = sizes.fp8_bytes(V3.kv_lora_rank, wide=V3.qk_rope_head_dim)
    assert token == 656
    assert round(token / float(sizes.cache_bytes(V3, 1) / 61), 4) == 0.5694
    assert 61 * token == 40_016
    assert round(62 * token * 128 * 1024 / 2**30, 3) == 4.965
    assert sizes.fp8_bytes(128) == 132  # one indexer key


@pytest.mark.parametrize(
    "latent_per_head, removed, with_4_bits", [(64, 68.75, 92.1875), (32, 81.25, None), (16, 87.5, 96.875)]
)
def test_mha2mla_table_1(latent_per_head, removed, with_4_bits):
    """arXiv 2502.14837: a latent and 16 rotary dimensions per head, out of 2 * 128."""
    before = mha(32, 32, 128)
    after = AttentionShape(
        num_layers=32,
        num_heads=32,
        kv_lora_rank=32 * latent_per_head,
        qk_nope_head_dim=112,
        qk_rope_head_dim=32 * 16,
    )
    kept = Fraction(sizes.elements_per_token(after), sizes.elements_per_token(before))
    assert 100 * (1 - kept) == removed
    if with_4_bits is not None:
        assert (
            100 * (1 - sizes.cache_bytes(after, 1, bits=4) / sizes.cache_bytes(before, 1, bits=16))
            == with_4_bits
        )


@pytest.mark.parametrize("latent, kept", [(2496, 31.25), (1472, 18.75), (960, 12.5), (512, 7.03)])
def test_transmla_llama2_7b(latent, kept):
    """arXiv 2502.07864: a latent and one rotary key of 64 instead of 8192 numbers; 512 + 64 is its
    "-93%".
    """
    shape = AttentionShape(
        num_layers=32, num_heads=32, kv_lora_rank=latent, qk_nope_head_dim=128, qk_rope_head_dim=64
    )
    percent = 100 * sizes.elements_per_token(shape) / sizes.elements_per_token(MODELS["llama2-7b"])
    assert round(percent, 2) == kept
    if latent == 512:
        assert round(100 - percent, 2) == 92.97


def test_huggingface_stores_expanded_heads():
    """transformers caches every head's key of 192 and value of 128: 71 times the latent."""
    expanded = AttentionShape(num_layers=61, num_heads=128, num_kv_heads=128, head_dim=192, v_head_dim=128)
    assert expanded.cached_per_token == 40_960
    assert round(40_960 / V3.cached_per_token, 1) == 71.1


def test_windowed_layers_stop_growing():
    mistral, oss = MODELS["mistral-7b-v0.1"], MODELS["gpt-oss-20b"]
    assert sizes.cache_elements(mistral, 4096) == sizes.cache_elements(mistral, 32_768) == 4096 * 65_536
    assert sizes.cache_elements(mistral, 100) == 100 * 65_536
    assert sizes.cache_elements(oss, 1000, batch=3) == 3 * 1024 * (12 * 1000 + 12 * 128)
    assert sizes.cache_elements(oss, 0) == 0


# ---- what decoding computes and reads ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "model, intensity",
    [
        ("llama2-7b", 1),
        ("llama3-8b", 4),
        ("falcon-7b", 71),
        ("deepseek-v3", 241.78),
        ("kimi-k2", 120.89),
        ("deepseek-v2-lite", 30.22),
    ],
)
def test_decode_intensity_of_a_long_context(model, intensity):
    assert round(costs.decode_intensity(MODELS[model]), 2) == intensity
    assert (
        costs.decode_intensity(MODELS[model], bytes_per_element=4)
        == costs.decode_intensity(MODELS[model]) / 2
    )
    assert costs.decode_intensity(MODELS[model], q_len=2) == 2 * costs.decode_intensity(MODELS[model])


@pytest.mark.parametrize("kv_len, intensity", [(128, 83.69), (1024, 195.6), (4096, 228.3), (32_768, 240.01)])
def test_decode_intensity_of_a_finite_context(kv_len, intensity):
    decimals = len(str(intensity).split(".")[1])
    assert round(costs.decode_intensity(V3, kv_len), decimals) == intensity


def test_decode_intensity_of_the_fp8_cache_and_flashmla_s_estimate():
    assert round(costs.decode_intensity(V3, cache_bytes_per_token=656), 2) == 424.59
    # FlashMLA's estimate 2 * q_len * heads = 256 takes (512 + 576) / 576 for 2
    assert costs.decode_intensity(V3) < 2 * V3.num_heads == 256 < 1.06 * costs.decode_intensity(V3)


def test_ridge_point_of_an_h800():
    ridge = costs.ridge_point(865e12, 3.35e12)
    assert round(ridge, 1) == 258.2
    assert 2 * 128 < ridge < 2 * 130  # hence "limited by arithmetic from 128 query rows per cached token"


def test_absorbed_attention_takes_more_flops_per_token_but_no_expansion():
    absorb = costs.latent_attention_flops(V3, 1, 1, "absorb", expanded=True)
    expand = costs.latent_attention_flops(V3, 1, 1, "expand", expanded=True)
    assert (absorb, expand, absorb / expand) == (278_528, 81_920, 3.4)
    whole = costs.latent_attention_flops(V3, 1, 1, "expand")
    assert whole - expand == 33_554_432
    assert round(whole / absorb, 2) == 120.76


@pytest.mark.parametrize("kv_len, rows", [(64, 46.5), (512, 128.0), (4096, 163.8), (None, 170.7)])
def test_crossover_of_the_two_forms(kv_len, rows):
    crossover = costs.absorb_crossover(V3, kv_len)
    assert round(crossover, 1) == rows
    for shape in (V3, LITE, MODELS["minicpm3-4b"]):
        length = kv_len or 10**9
        below, above = (
            math.floor(costs.absorb_crossover(shape, length)),
            math.ceil(costs.absorb_crossover(shape, length) + 1e-6),
        )

        def cheaper(q_len):
            return min(
                ("absorb", "expand"),
                key=lambda form: costs.latent_attention_flops(shape, q_len, length, form),
            )

        assert (cheaper(below), cheaper(above)) == ("absorb", "expand")


@pytest.mark.parametrize("length", [1, 2, 170, 171, 4096, 131_072])
def test_prefill_is_always_cheaper_expanded(length):
    expand, absorb = (
        costs.latent_attention_flops(V3, length, length, form) for form in ("expand", "absorb")
    )
    assert expand < absorb


@pytest.mark.parametrize(
    "shape, d_model, q_lora_rank, weights",
    [
        (LITE, 2048, None, 13_763_072),
        (V2, 5120, 1536, 149_227_520),
        (V3, 7168, 1536, 187_107_328),
        (MODELS["kimi-k2"], 7168, 1536, 101_124_096),
        (MODELS["minicpm3-4b"], 2560, 768, 13_517_824),
    ],
)
def test_weights_of_a_layer_of_latent_attention(shape, d_model, q_lora_rank, weights):
    assert costs.latent_attention_parameters(shape, d_model, q_lora_rank) == weights


def test_a_latent_too_narrow_to_save_work_never_crosses_over():
    narrow = AttentionShape(
        num_layers=1, num_heads=4, kv_lora_rank=8, qk_nope_head_dim=128, qk_rope_head_dim=64
    )
    assert costs.absorb_crossover(narrow) == math.inf
    assert costs.absorb_crossover(narrow, 4096) == math.inf


# ---- Shazeer 2019 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "heads, kv_heads, head_dim, wmt, lm",
    [
        (8, 8, 128, 4096, 8192),
        (8, 1, 128, 5440, 9088),
        (1, 1, 128, 6784, 9984),
        (2, 2, 64, 6784, 9984),
        (4, 4, 32, 6784, 9984),
        (8, 8, 16, 6784, 9984),
    ],
)
def test_shazeer_2019_parameter_matched_feed_forward(heads, kv_heads, head_dim, wmt, lm):
    assert (
        costs.matched_d_ff(1024, 4096, heads, kv_heads, head_dim, attention_layers=18, ffn_layers=12) == wmt
    )
    assert costs.matched_d_ff(1024, 8192, heads, kv_heads, head_dim, attention_layers=6, ffn_layers=6) == lm


def test_shazeer_2019_incremental_memory_per_flop():
    mha_ratio, mqa_ratio = (costs.incremental_memory_ratio(128, 128, 1024, 8, kv) for kv in (8, 1))
    assert (round(mha_ratio, 4), round(mqa_ratio, 4)) == (0.0379, 0.0140)


# ---- shapes and names -------------------------------------------------------------------------------------

HEADS = dict(num_layers=2, num_heads=8, num_kv_heads=8, head_dim=4)
LATENT = dict(num_layers=2, num_heads=8, kv_lora_rank=16, qk_nope_head_dim=4)


@pytest.mark.parametrize(
    "dimensions, error, message",
    [
        (
            dict(num_layers=1, num_heads=8),
            TypeError,
            "num_kv_heads must be an integer; got num_kv_heads=None of type NoneType.",
        ),
        (
            dict(num_layers=1, num_heads=8, kv_lora_rank=16),
            TypeError,
            "qk_nope_head_dim must be an integer; got qk_nope_head_dim=None of type NoneType.",
        ),
        (
            HEADS | dict(head_dim=1.5),
            TypeError,
            "head_dim must be an integer; got head_dim=1.5 of type float.",
        ),
        (HEADS | dict(num_layers=0), ValueError, "num_layers must be at least 1; got num_layers=0."),
        (
            HEADS | dict(num_kv_heads=3),
            ValueError,
            "num_heads must be a multiple of num_kv_heads; got num_heads=8 and num_kv_heads=3.",
        ),
        (HEADS | dict(v_head_dim=0), ValueError, "v_head_dim must be at least 1; got v_head_dim=0."),
        (HEADS | dict(window=0), ValueError, "window must be at least 1; got window=0."),
        (
            HEADS | dict(window=9, window_layers=3),
            ValueError,
            "window_layers must be at most num_layers; got window_layers=3 and num_layers=2.",
        ),
        (
            HEADS | dict(window_layers=1),
            ValueError,
            "window must be given with window_layers; got window=None and window_layers=1.",
        ),
        (
            HEADS | dict(num_layers=True),
            TypeError,
            "num_layers must be an integer; got num_layers=True of type bool.",
        ),
        (
            HEADS | dict(qk_nope_head_dim=4),
            ValueError,
            "qk_nope_head_dim and qk_rope_head_dim must be left out without kv_lora_rank; got "
            "qk_nope_head_dim=4 and qk_rope_head_dim=None.",
        ),
        (
            HEADS | dict(qk_rope_head_dim=2),
            ValueError,
            "qk_nope_head_dim and qk_rope_head_dim must be left out without kv_lora_rank; got "
            "qk_nope_head_dim=None and qk_rope_head_dim=2.",
        ),
        (
            LATENT | dict(qk_rope_head_dim=False),
            TypeError,
            "qk_rope_head_dim must be an integer; got qk_rope_head_dim=False of type bool.",
        ),
        (
            LATENT | dict(qk_rope_head_dim=-1),
            ValueError,
            "qk_rope_head_dim must be at least 0; got qk_rope_head_dim=-1.",
        ),
        (
            LATENT | dict(num_kv_heads=8),
            ValueError,
            "num_kv_heads and head_dim must be left out for a latent cache; got num_kv_heads=8 and "
            "head_dim=None.",
        ),
    ],
)
def test_impossible_shapes_are_refused(dimensions, error, message):
    with pytest.raises(error) as caught:
        AttentionShape(**dimensions)
    assert str(caught.value) == message


def test_numpy_integers_are_integers():
    assert AttentionShape(**{name: np.int64(value) for name, value in HEADS.items()}) == AttentionShape(
        **HEADS
    )


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: sizes.cache_elements(V3, -1), "context must be at least 0; got context=-1."),
        (lambda: sizes.cache_elements(V3, 1, -1), "batch must be at least 0; got batch=-1."),
        (lambda: sizes.cache_bytes(V3, 1, bits=0), "bits must be at least 1; got bits=0."),
        (lambda: costs.decode_intensity(V3, 0), "kv_len must be at least 1; got kv_len=0."),
        (lambda: costs.decode_intensity(V3, q_len=0), "q_len must be at least 1; got q_len=0."),
        (lambda: costs.absorb_crossover(V3, 0), "kv_len must be at least 1; got kv_len=0."),
        (lambda: costs.latent_attention_flops(V3, -1, 1), "q_len must be at least 0; got q_len=-1."),
    ],
)
def test_impossible_lengths_are_refused(call, message):
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value) == message


def test_costs_refuse_what_they_cannot_answer():
    with pytest.raises(
        ValueError, match=r"^shape must have a latent \(kv_lora_rank\); got shape.variant='GQA'.$"
    ):
        costs.absorb_crossover(MODELS["llama3-8b"])
    with pytest.raises(ValueError, match='^form must be "absorb" or "expand"; got \'naive\'.$'):
        costs.latent_attention_flops(V3, 1, 1, "naive")


@pytest.mark.parametrize(
    "written, name",
    [
        ("llama3-8b", "llama3-8b"),
        ("Llama 3 8B", "llama3-8b"),
        ("LLAMA_3_8B", "llama3-8b"),
        ("llama-3.1-8b", "llama3-8b"),
        ("meta-llama/Meta-Llama-3.1-405B", "llama3.1-405b"),
        ("Llama-2-7b-chat-hf", "llama2-7b"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistral-7b-v0.3"),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mixtral-8x7b"),
        ("meta-llama/Llama-3.1-405B-Instruct", "llama3.1-405b"),
        ("DeepSeek-R1", "deepseek-v3"),
        ("deepseek-ai/DeepSeek-V2-Lite", "deepseek-v2-lite"),
        ("Gemma 2 9B it", "gemma2-9b"),
        ("google/gemma-3-27b-it", "gemma3-27b"),
        ("Qwen/Qwen2.5-72B-Instruct", "qwen2.5-72b"),
        ("llama", None),
        ("", None),
        ("no such model at all", None),
    ],
)
def test_names_in_any_case_and_punctuation(written, name):
    if name is None:
        with pytest.raises(KeyError, match="model must be a name of refattn.models.MODELS"):
            find_model(written)
    else:
        assert find_model(written) == (name, MODELS[name])


def test_every_name_and_alias_finds_its_own_row():
    assert all(find_model(name.upper())[0] == name for name in MODELS)
    assert all(find_model(alias)[0] == name for alias, name in ALIASES.items())


# ---- refattn kv -------------------------------------------------------------------------------------------


@pytest.fixture
def kv(capsys):
    def call(*arguments):
        parser = argparse.ArgumentParser()
        kv_command.add_parser(parser.add_subparsers())
        args = parser.parse_args(["kv", *arguments])
        code = args.run(args)
        return code, *capsys.readouterr()

    return call


def test_kv_prints_a_model(kv):
    code, out, err = kv("--model", "Llama-3 8B")
    assert (code, err) == (0, "")
    assert "llama3-8b  GQA: 32 layers, 32 query heads, 8 key/value heads of 128" in out
    assert "65,536 elements = 131,072 B = 131.072 kB = 128.000 KiB in bfloat16" in out
    assert "1,073,741,824 B = 1.074 GB = 1.000 GiB for 1 x 8,192 tokens" in out
    rows = {
        line.split()[0]: line.split()[-5:]
        for line in out.splitlines()
        if line.startswith(("MHA", "GQA", "MLA", "MQA"))
    }
    assert rows["MHA"] == ["262,144", "524.288", "4.000", "4.000x", "1.0"]
    assert rows["MLA"][:2] == ["18,432", "36.864"]


def test_kv_json_of_any_configuration(kv):
    code, out, _ = kv(
        "--layers",
        "32",
        "--heads",
        "32",
        "--kv-heads",
        "8",
        "--head-dim",
        "128",
        "--context",
        "100",
        "--batch",
        "3",
        "--dtype",
        "fp32",
        "--json",
    )
    report = json.loads(out)
    assert code == 0
    assert (report["variant"], report["elements_per_token"], report["bytes"], report["dtype"]) == (
        "GQA",
        65_536,
        3 * 100 * 262_144,
        "float32",
    )
    assert [(row["variant"], row["elements_per_token"]) for row in report["alternatives"]] == [
        ("MHA", 262_144),
        ("GQA", 65_536),
        ("MLA", 18_432),
        ("MQA", 8_192),
    ]


def test_kv_of_a_latent_says_what_it_assumes(kv):
    code, out, _ = kv("--kv-lora-rank", "512", "--rope-dim", "64")
    assert code == 0
    assert "assuming num_layers=1, assuming num_heads=128, assuming qk_nope_head_dim=128" in out
    assert "576 elements = 1,152 B" in out


def test_kv_counts_the_window(kv):
    _, out, _ = kv("--model", "gpt-oss-20b")
    assert "12 of 24 layers keep the newest 128 tokens only" in out
    assert "195.000 MiB" in out


@pytest.mark.parametrize(
    "words, tokens", [("131072", 131_072), ("128k", 131_072), ("1.5K", 1_536), ("1M", 1_048_576), ("0", 0)]
)
def test_kv_context_with_a_suffix(kv, words, tokens):
    code, out, _ = kv("--model", "llama3-8b", "--context", words, "--json")
    assert code == 0 and json.loads(out)["context"] == tokens
    assert json.loads(out)["bytes"] == tokens * 131_072


def test_kv_list_has_every_model(kv):
    code, out, _ = kv("--list")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:-2]] == list(MODELS)
    code, out, _ = kv("--list", "--json")
    assert [row["model"] for row in json.loads(out)] == list(MODELS)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model", "lama-8b"], "close: llama3-8b, "),
        ([], "model must be given, or --heads, --kv-heads and --head-dim, or --kv-lora-rank; got nothing."),
        (["--layers", "4"], "got num_layers."),
        (["--model", "gpt2", "--layers", "3"], "Leave one of them out."),
        (
            ["--heads", "8", "--kv-heads", "3", "--head-dim", "4"],
            "num_heads must be a multiple of num_kv_heads",
        ),
        (["--heads", "8", "--kv-heads", "8", "--head-dim", "0"], "head_dim must be at least 1"),
        (["--model", "gpt2", "--context", "-1"], "context must be at least 0; got context=-1."),
        (["--model", "gpt2", "--context=-1k"], "context must be at least 0; got context=-1024."),
        (["--model", "gpt2", "--context", "128kk"], "or 1M (times 1024 * 1024); got context='128kk'."),
        (["--model", "gpt2", "--context", "0.3k"], "must be a whole number of tokens, such as 8192, 128k"),
        (["--model", "gpt2", "--context", ""], "must be a whole number of tokens, such as 8192, 128k"),
        (["--model", "gpt2", "--batch", "0"], "batch must be at least 1; got batch=0."),
        (["--model", "gpt2", "--dtype", "float17"], "dtype must be one of"),
    ],
)
def test_kv_refuses_with_exit_code_2(kv, arguments, message):
    code, out, err = kv(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("refattn kv: ") and message in err
    assert "Traceback" not in err


# ---- formulas against arrays ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, kv_heads",
    [("MHA_minilm_layer0", 12), ("GQA_minilm_layer0_12to4", 4), ("MQA_minilm_layer0_12to1", 1)],
)
def test_cache_elements_count_real_keys_and_values(name, kv_heads):
    arrays = goldens.load(name).arguments
    shape = AttentionShape(num_layers=1, num_heads=12, num_kv_heads=kv_heads, head_dim=32)
    assert sizes.cache_elements(shape, arrays["key"].shape[-2]) == arrays["key"].size + arrays["value"].size


def test_cache_elements_count_real_latents():
    arrays = goldens.load("MLA_minilm_layer0_absorb").arguments
    shape = AttentionShape(
        num_layers=1, num_heads=12, kv_lora_rank=32, qk_nope_head_dim=24, qk_rope_head_dim=8, v_head_dim=32
    )
    assert sizes.cache_elements(shape, 14) == arrays["kv_latent"].size + arrays["k_rope"].size
