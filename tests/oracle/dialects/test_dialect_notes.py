"""What the notes and defaults of the dialects claim, on the libraries themselves."""

import numpy as np
import pytest
from real_libraries import GQA_ORDER, MODULES, onnx_model

import refattn
from refattn.calls.rotary import Rope
from refattn.oracle.diagnosis.search import diagnose
from refattn.oracle.dialects.differences import explain_difference
from refattn.oracle.dialects.layouts import array_from_ours, array_to_ours
from refattn.oracle.dialects.libraries import DIALECTS, dialect
from refattn.oracle.dialects.library_errors import LIBRARY_ERRORS
from refattn.oracle.dialects.results import result_from_ours
from refattn.oracle.dialects.translate import from_ours, to_ours

RNG = np.random.default_rng(2)
QUERY, KEY, VALUE = (
    RNG.standard_normal((2, heads, length, 8)).astype(np.float32)
    for heads, length in ((4, 5), (2, 11), (2, 11))
)


@pytest.fixture(autouse=True)
def quiet(recwarn):
    """The libraries' own warnings."""


def same(got, want, atol=3e-6):
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=0, atol=atol)


class TestTorch:
    @pytest.fixture
    def sdpa(self):
        torch = pytest.importorskip("torch")
        tensors = [torch.from_numpy(array) for array in (QUERY, KEY, VALUE)]
        return lambda **options: torch.nn.functional.scaled_dot_product_attention(
            *tensors, **{"enable_gqa": True, **options}
        ), torch

    def test_mask_with_is_causal_depends_on_the_backend(self, sdpa):
        call, torch = sdpa
        from torch.nn.attention import SDPBackend, sdpa_kernel

        mask = np.random.default_rng(0).random((5, 11)) < 0.7
        mask[:, 0] = True
        with (
            sdpa_kernel([SDPBackend.MATH]),
            pytest.raises(RuntimeError, match="attn_mask should not be set when is_causal=True"),
        ):
            call(attn_mask=torch.from_numpy(mask), is_causal=True)
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
            both = call(attn_mask=torch.from_numpy(mask), is_causal=True).numpy()
        same(both, refattn.attention(QUERY, KEY, VALUE, mask=mask, causal=True, q_offset=0))
        spoken = from_ours("torch", QUERY, KEY, VALUE, mask=mask, causal=True, q_offset=0)
        assert "is_causal" not in spoken  # drawn into the mask, which every backend takes

    def test_grouped_heads_need_enable_gqa(self, sdpa):
        call, _ = sdpa
        with pytest.raises(RuntimeError):
            call(enable_gqa=False)
        same(call().numpy(), refattn.attention(QUERY, KEY, VALUE))

    def test_dropout_is_always_applied(self, sdpa):
        call, torch = sdpa
        assert not torch.equal(call(dropout_p=0.5), call())

    def test_key_padding_mask_of_the_layer_means_ignore(self, sdpa):
        _, torch = sdpa
        layer = torch.nn.MultiheadAttention(8, 1, bias=False, batch_first=True).eval()
        x = torch.from_numpy(KEY[:1, 0])
        ignored = torch.zeros(1, 11, dtype=torch.bool)
        ignored[:, 7:] = True
        same(
            layer(x[:, :3], x, x, key_padding_mask=ignored)[0].detach(),
            layer(x[:, :3], x[:, :7], x[:, :7])[0].detach(),
        )


class TestJax:
    @pytest.fixture
    def call(self):
        jax = pytest.importorskip("jax")
        arrays = [np.swapaxes(array, 1, 2) for array in (QUERY, KEY, VALUE)]
        return lambda **options: jax.nn.dot_product_attention(*arrays, **options)

    def test_an_integer_window_means_both_sides(self, call):
        want = refattn.attention(QUERY, KEY, VALUE, window=(2, 2), q_offset=0)
        same(np.swapaxes(call(local_window_size=2), 1, 2), want)

    def test_rows_past_the_query_lengths_are_zero(self, call):
        got = np.asarray(call(query_seq_lengths=np.array([3, 5])))
        assert not got[0, 3:].any() and got[0, :3].all() and got[1].all()

    def test_lse_is_natural_and_length_first(self, call):
        _, lse = call(return_residual=True)
        assert dialect("jax").lse_layout == "BTH" and dialect("jax").lse_base == "e"
        same(np.swapaxes(lse, 1, 2), refattn.attention_with_lse(QUERY, KEY, VALUE)[1])

    def test_a_row_without_keys_is_the_mean_of_all_values(self, call):
        got = np.swapaxes(call(mask=np.zeros((2, 1, 5, 11), bool)), 1, 2)
        same(got, np.broadcast_to(np.repeat(VALUE, 2, axis=1).mean(2, keepdims=True), got.shape))


class TestMlx:
    @pytest.fixture
    def mx(self):
        pytest.importorskip("mlx.core")
        import mlx.core as mx

        return mx

    def test_there_is_no_default_scale(self, mx):
        with pytest.raises(TypeError):
            mx.fast.scaled_dot_product_attention(*map(mx.array, (QUERY, KEY, VALUE)))

    def test_an_additive_row_of_minus_infinity_is_nan(self, mx):
        mask = np.zeros((5, 11), np.float32)
        mask[2] = -np.inf
        got = np.array(
            mx.fast.scaled_dot_product_attention(
                *map(mx.array, (QUERY, KEY, VALUE)), scale=0.3, mask=mx.array(mask)
            )
        )
        assert np.isnan(got[:, :, 2]).all() and np.isfinite(got[:, :, [0, 1, 3, 4]]).all()

    @pytest.mark.parametrize(("traditional", "layout"), [(False, "half"), (True, "interleaved")])
    def test_rotary_pairs(self, mx, traditional, layout):
        got = mx.fast.rope(mx.array(QUERY), 8, traditional=traditional, base=10000.0, scale=1.0, offset=3)
        same(np.array(got), Rope(10000.0, layout).rotate(QUERY, 3 + np.arange(5)), atol=1e-5)


class TestOnnx:
    def run(self, call, opset=24):
        pytest.importorskip("onnx")
        from onnx.reference import ReferenceEvaluator

        order = ("Q", "K", "V", "attn_mask", "past_key", "past_value", "nonpad_kv_seqlen")
        outputs = ["Y", "present_key", "present_value"] if "past_key" in call else ["Y"]
        model, inputs = onnx_model(call, "Attention", order, "", [("", opset)], outputs)
        return ReferenceEvaluator(model).run(None, inputs)[0]

    def test_with_a_past_the_alignment_is_bottom_right(self):
        call = {
            "Q": QUERY,
            "K": KEY[:, :, 6:],
            "V": VALUE[:, :, 6:],
            "past_key": KEY[:, :, :6],
            "past_value": VALUE[:, :, :6],
            "is_causal": 1,
        }
        same(self.run(call), refattn.attention(QUERY, KEY, VALUE, causal=True))

    def test_without_it_top_left(self):
        same(
            self.run({"Q": QUERY, "K": KEY, "V": VALUE, "is_causal": 1}),
            refattn.attention(QUERY, KEY, VALUE, causal=True, q_offset=0),
        )

    @pytest.mark.parametrize(("interleaved", "layout"), [(0, "half"), (1, "interleaved")])
    def test_rotary_embedding_operator(self, interleaved, layout):
        pytest.importorskip("onnx")
        from onnx.reference import ReferenceEvaluator

        angle = np.arange(20)[:, None] * 10000.0 ** (-2 * np.arange(4) / 8)
        call = {
            "X": QUERY,
            "cos": np.cos(angle).astype(np.float32),
            "sin": np.sin(angle).astype(np.float32),
            "positions": np.broadcast_to(3 + np.arange(5), (2, 5)).copy(),
            "interleaved": interleaved,
        }
        model, inputs = onnx_model(
            call, "RotaryEmbedding", ("X", "cos", "sin", "positions"), "", [("", 23)], ["Y"]
        )
        same(
            ReferenceEvaluator(model).run(None, inputs)[0],
            Rope(10000.0, layout).rotate(QUERY, 3 + np.arange(5)),
            atol=1e-5,
        )


class TestGroupQueryAttention:
    def run(self, **extra):
        onnxruntime = pytest.importorskip("onnxruntime")
        arrays = (QUERY[:, :, :5], KEY[:, :, :5], VALUE[:, :, :5])
        call = dict(
            zip(("query", "key", "value"), (array_from_ours(array, "BTM") for array in arrays), strict=True)
        )
        call |= {
            "seqlens_k": np.full(2, 4, np.int32),
            "total_sequence_length": np.array([5], np.int32),
            "num_heads": 4,
            "kv_num_heads": 2,
            **extra,
        }
        model, inputs = onnx_model(
            call,
            "GroupQueryAttention",
            GQA_ORDER,
            "com.microsoft",
            [("", 21), ("com.microsoft", 1)],
            ["Y", "pk", "pv"],
        )
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return array_to_ours(session.run(None, inputs)[0], "BTM", 4), arrays

    def test_smooth_softmax_is_a_sink_of_zero(self):
        got, arrays = self.run(smooth_softmax=1)
        same(got, refattn.attention(*arrays, causal=True, sinks=np.zeros(4)))

    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_the_window_counts_keys_with_the_own_one(self, count):
        got, arrays = self.run(local_window_size=count)
        same(got, refattn.attention(*arrays, causal=True, window=(count - 1, None)))

    def test_scale_zero_means_the_default(self):
        got, arrays = self.run(scale=0.0)
        same(got, refattn.attention(*arrays, causal=True))

    @pytest.mark.parametrize(("interleaved", "layout"), [(0, "half"), (1, "interleaved")])
    def test_rotary_pairs(self, interleaved, layout):
        angle = np.arange(16)[:, None] * 10000.0 ** (-2 * np.arange(8) / 16)
        rng = np.random.default_rng(4)  # the operator wants a head size that is a multiple of 16
        arrays = [rng.standard_normal((2, heads, 5, 16)).astype(np.float32) for heads in (4, 2, 2)]
        call = dict(
            zip(("query", "key", "value"), (array_from_ours(array, "BTM") for array in arrays), strict=True)
        )
        tables = {
            "cos_cache": np.cos(angle).astype(np.float32),
            "sin_cache": np.sin(angle).astype(np.float32),
        }
        got, _ = self.run(**call, **tables, do_rotary=1, rotary_interleaved=interleaved)
        turned = [Rope(10000.0, layout).rotate(array, np.arange(5)) for array in arrays[:2]]
        same(got, refattn.attention(*turned, arrays[2].astype(np.float64), causal=True), atol=1e-5)


class TestTransformers:
    def test_rotary_pairs(self):
        pytest.importorskip("transformers")
        import torch
        from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

        angle = torch.arange(5)[:, None] * 10000.0 ** (-2 * torch.arange(4) / 8)
        cos, sin = (torch.cat([part, part], -1)[None] for part in (angle.cos(), angle.sin()))
        got, _ = apply_rotary_pos_emb(torch.from_numpy(QUERY), torch.from_numpy(KEY[:, :, :5]), cos, sin)
        same(got, Rope(10000.0, "half").rotate(QUERY, np.arange(5)), atol=1e-5)

    def test_deepseek_rotates_interleaved_pairs(self):
        pytest.importorskip("transformers")
        import torch
        from transformers.models.deepseek_v3.modeling_deepseek_v3 import apply_rotary_pos_emb_interleave

        angle = torch.arange(5)[:, None] * 10000.0 ** (-2 * torch.arange(4) / 8)
        cos, sin = (torch.cat([part, part], -1)[None] for part in (angle.cos(), angle.sin()))
        query, key = apply_rotary_pos_emb_interleave(
            torch.from_numpy(QUERY[:, :2]), torch.from_numpy(KEY[:, :, :5]), cos, sin
        )
        turned = [
            Rope(10000.0, "interleaved").rotate(array, np.arange(5))
            for array in (QUERY[:, :2], KEY[:, :, :5])
        ]
        same(query @ key.transpose(-1, -2), turned[0] @ turned[1].swapaxes(-1, -2), atol=1e-4)

    def test_sliding_window_counts_the_own_key(self):
        pytest.importorskip("transformers")
        import torch
        from transformers.masking_utils import sliding_window_causal_mask_function

        function, zero = sliding_window_causal_mask_function(3), torch.tensor(0)
        seen = [bool(function(zero, zero, torch.tensor(9), torch.tensor(j))) for j in range(11)]
        assert [j for j, there in enumerate(seen) if there] == [7, 8, 9]


class TestReadNotRun:
    """Libraries that need a GPU: `to_ours` against the formulas of their documentation and reference
    code, written out.
    """

    def naive(self, scores, seen, value):
        weights = np.where(seen, np.exp(scores), 0)
        total = weights.sum(-1, keepdims=True)
        return weights / np.where(total, total, 1) @ value, np.log(np.where(total, total, 1))[..., 0]

    def problem(self, rows, keys):
        rng = np.random.default_rng(7)
        query, key, value = (rng.standard_normal((2, 4, n, 8)) for n in (rows, keys, keys))
        return query, key, value, query @ key.swapaxes(-1, -2), np.arange(rows)[:, None], np.arange(keys)

    @pytest.mark.parametrize(("rows", "keys"), [(2, 5), (5, 2), (6, 6)])
    @pytest.mark.parametrize("window", [(-1, -1), (2, 1), (0, -1)])
    def test_flash_attn(self, rows, keys, window):
        """Its docstring: keys i + S - T - left to i + S - T + right inclusive, causal at the bottom
        right, 0 for rows without keys.
        """
        query, key, value, scores, i, j = self.problem(rows, keys)
        at = i + keys - rows
        seen = (
            (j <= at) & ((window[0] < 0) | (j >= at - window[0])) & ((window[1] < 0) | (j <= at + window[1]))
        )
        slopes = 2.0 ** -np.arange(1.0, 5.0)
        want, _ = self.naive(scores / np.sqrt(8) - slopes[:, None, None] * np.abs(at - j), seen, value)
        call = dict(zip("qkv", (array.swapaxes(1, 2) for array in (query, key, value)), strict=True))
        _, arrays, options = to_ours(
            "flash_attn", **call, causal=True, window_size=window, alibi_slopes=slopes
        )
        same(refattn.attention(*arrays, **options), want, atol=1e-12)

    @pytest.mark.parametrize(("rows", "keys"), [(2, 5), (5, 2), (6, 6)])
    @pytest.mark.parametrize("window", [(-1, -1), (2, 1)])
    @pytest.mark.parametrize("chunk", [0, 1, 3])
    def test_flash_attn_3(self, rows, keys, window, chunk):
        """hopper/mask.h: columns from the row's position rounded down to a multiple of attention_chunk, and
        so many of them, beside the columns of the window; 0 is no chunk.
        """
        query, key, value, scores, i, j = self.problem(rows, keys)
        at = i + keys - rows
        seen = ((window[0] < 0) | (j >= at - window[0])) & ((window[1] < 0) | (j <= at + window[1]))
        if chunk:
            first = np.floor(at / chunk) * chunk
            seen = seen & (j >= first) & (j < first + chunk)
        want, _ = self.naive(scores / np.sqrt(8), seen, value)
        call = dict(zip("qkv", (array.swapaxes(1, 2) for array in (query, key, value)), strict=True))
        _, arrays, options = to_ours("flash_attn_3", **call, window_size=window, attention_chunk=chunk)
        same(refattn.attention(*arrays, **options), want, atol=1e-12)
        if chunk:
            assert from_ours("flash_attn_3", *arrays, **options)["attention_chunk"] == chunk

    @pytest.mark.parametrize("left", [None, 1, 3])
    @pytest.mark.parametrize("right", [None, 0, 2])
    def test_cudnn(self, left, right):
        """test/python/sdpa/fp16_ref.py: hidden where j - i > right or j - i <= -left, from the top left; no
        scale unless given; sinks in the statistics."""
        query, key, value, scores, i, j = self.problem(4, 7)
        seen = (
            ((j - i <= right) if right is not None else True)
            & ((j - i > -left) if left is not None else True)
            & np.ones((4, 7), bool)
        )
        sink = np.array([0.5, -1.0, 2.0, 0.0])[:, None, None]
        weights = np.where(seen, np.exp(0.2 * scores), 0)
        total = weights.sum(-1, keepdims=True) + np.exp(sink)
        bounds = {"diagonal_band_left_bound": left, "diagonal_band_right_bound": right}
        _, arrays, options = to_ours(
            "cudnn", q=query, k=key, v=value, attn_scale=0.2, sink_token=sink[None], **bounds
        )
        got, lse = refattn.attention_with_lse(*arrays, **options)
        same(got, weights / total @ value, atol=1e-12)
        same(lse, np.log(total)[..., 0], atol=1e-12)

    def test_flashmla(self):
        """tests/ref.py: the output times 1 / (1 + exp(sink - lse)), the lse without the sink and +inf
        for a row without keys.
        """
        rng = np.random.default_rng(8)
        query, pages, sink = (
            rng.standard_normal((2, 1, 3, 576)),
            rng.standard_normal((3, 64, 1, 576)),
            np.array([0.5, -1.0, 2.0]),
        )
        lengths = np.array([50, 0])
        call = {
            "q": query,
            "k_cache": pages,
            "block_table": np.array([[1], [2]]),
            "cache_seqlens": lengths,
            "attn_sink": sink,
        }
        function, arrays, options = to_ours("flashmla", **call)
        got, lse = result_from_ours(
            "flashmla", *getattr(refattn, function + "_with_lse")(*arrays, **options), sinks=sink
        )
        rows = pages[1, :50, 0]
        plain, norm = self.naive(576**-0.5 * query[0, 0] @ rows.T, True, rows[:, :512])
        same(got[0, 0], plain / (1 + np.exp(sink - norm))[:, None], atol=1e-12)
        same(lse[0, :, 0], norm, atol=1e-12)
        assert not got[1].any() and np.isposinf(lse[1]).all()

    def test_flashinfer_returns_lse_in_base_two(self):
        query, key, value, scores, i, j = self.problem(3, 6)
        _, norm = self.naive(scores / np.sqrt(8), j - i <= 3, value)
        _, arrays, options = to_ours(
            "flashinfer",
            q=query[0].swapaxes(0, 1),
            k=key[0].swapaxes(0, 1),
            v=value[0].swapaxes(0, 1),
            causal=True,
        )
        _, lse = result_from_ours("flashinfer", *refattn.attention_with_lse(*arrays, **options))
        same(lse, norm[0].T / np.log(2), atol=1e-12)


def test_what_is_only_read_says_so():
    measured = {name for name, record in DIALECTS.items() if record.measured}
    assert measured == {"refattn", *MODULES} - {"onnxruntime"}


class TestErrorsOfReferenceCode:
    """`library_errors`: the two calls differ where the row says, `diagnose` names the error and
    `explain_difference` shows it.
    """

    @pytest.mark.parametrize("error", LIBRARY_ERRORS, ids=lambda error: error.mistake)
    def test_the_minimal_call_shows_it(self, error):
        right, wrong = error.results()
        differs = (
            ~np.isclose(wrong[1], right[1]) if error.lse_only else ~np.isclose(wrong[0], right[0]).all(-1)
        )
        assert (np.flatnonzero(differs.any(axis=(0, 1))) == error.wrong_rows).all() and differs[
            :, :, error.wrong_rows
        ].all()
        assert not error.lse_only or np.array_equal(wrong[0], right[0])

    @pytest.mark.parametrize("error", LIBRARY_ERRORS, ids=lambda error: error.mistake)
    def test_diagnose_names_it(self, error):
        _, (output, lse) = error.results()
        best = diagnose(output, *error.arrays(), lse=lse, **error.right).best
        assert best.explains and error.mistake in {best.id, *best.same_as}, str(best)

    @pytest.mark.parametrize("name", DIALECTS)
    def test_explain_difference_shows_it(self, name):
        shown = explain_difference("refattn", name)
        for error in LIBRARY_ERRORS:
            assert (str(error) in shown) == (name in error.dialects)
        assert all({*error.dialects} <= DIALECTS.keys() for error in LIBRARY_ERRORS)

    def test_flash_attn_takes_a_right_side_of_minus_one_literally(self):
        """Its construct_local_mask hides a key past row + keys - rows + right, or before row + keys -
        rows - left.
        """
        error = next(error for error in LIBRARY_ERRORS if error.library == "FlashAttention")
        self.same_as_mask(error, lambda i, j, at: (j <= at - 1) & (j >= at - error.right["window"][0]))

    def test_transformer_engine_counts_an_unlimited_left_side(self):
        error = next(error for error in LIBRARY_ERRORS if error.library == "Transformer Engine")
        self.same_as_mask(error, lambda i, j, at: (j <= i) & (j >= i - error.shape[2]))

    def same_as_mask(self, error, seen):
        _, rows, keys = error.shape
        i, j = np.arange(rows)[:, None], np.arange(keys)
        same(
            error.results()[1][0],
            refattn.attention(*error.arrays(), mask=seen(i, j, i + keys - rows)),
            atol=1e-12,
        )

    def test_falcon_adds_alibi_twice_in_eager(self, monkeypatch):
        pytest.importorskip("transformers")
        import torch
        from transformers import FalconConfig, FalconModel
        from transformers.models.falcon import modeling_falcon

        sizes = {
            "vocab_size": 50,
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "multi_query": False,
            "parallel_attn": False,
        }

        def run(implementation):
            torch.manual_seed(0)
            model = FalconModel(
                FalconConfig(**sizes, alibi=True, bias=False, attn_implementation=implementation)
            ).eval()
            with torch.no_grad():
                return model(torch.arange(7)[None]).last_hidden_state.numpy()

        eager, once = run("eager"), run("sdpa")
        build = modeling_falcon.build_alibi_tensor
        monkeypatch.setattr(
            modeling_falcon, "build_alibi_tensor", lambda *arguments, **named: 2 * build(*arguments, **named)
        )
        assert np.abs(eager - once)[:, 1:].max() > 1e-3
        same(eager, run("sdpa"), atol=1e-5)

    def test_a_registered_attention_function_gets_no_mask(self):
        pytest.importorskip("transformers")
        import torch
        from transformers import AttentionInterface, LlamaConfig, LlamaModel

        masks = []

        def kernel(module, query, key, value, attention_mask, **others):
            masks.append(attention_mask)
            return value.transpose(1, 2), None

        AttentionInterface.register("refattn_without_mask", kernel)
        sizes = {
            "vocab_size": 50,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
        }
        model = LlamaModel(LlamaConfig(**sizes, attn_implementation="refattn_without_mask")).eval()
        model(torch.arange(7)[None], attention_mask=torch.tensor([[0, 1, 1, 1, 1, 1, 1]]))
        assert masks == [None]


def test_alibi_of_the_key_alone_is_ours_under_causal_only():
    """FlashInfer adds +m*j."""
    slopes = np.array([0.5, 0.25, 0.125, 0.0625])
    added = (slopes[:, None, None] * np.arange(11))[None]
    for causal in (True, False):
        there, ours = (
            refattn.attention(QUERY, KEY, VALUE, bias=added, causal=causal),
            refattn.attention(QUERY, KEY, VALUE, alibi_slopes=slopes, causal=causal),
        )
        assert np.allclose(there, ours, atol=1e-6) == causal
    assert dialect("flashinfer").alibi == "+m*j" and dialect("ggml").empty_output == "zero"
