"""check, assert_attention_close and diagnose on calls and results as libraries write them: every library, and every
call of it that the table has.
"""

import re

import numpy as np
import pytest

import refattn
from refattn.oracle import EmulatedKernel, KernelSpec, assert_attention_close, check, diagnose
from refattn.oracle.arithmetic.other_specs import other_specs
from refattn.oracle.bounds.results import LSE, OUTPUT
from refattn.oracle.dialects.foreign_call import read_call
from refattn.oracle.dialects.other_calls import CALLS
from refattn.oracle.dialects.results import result_from_ours
from refattn.oracle.dialects.translate import from_ours

CACHE_WITHOUT_TABLE = "flash_attn_with_kvcache"
NAMES = [(d.name, d.call) for d in CALLS if d.name != "refattn"]
RECORDS = {(d.name, d.call): d for d in CALLS}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def call_of_ours(d):
    """Arrays and options of `refattn` that the call can say."""
    causal = {} if "causal" not in d.arguments and not d.always_causal else {"causal": True}
    if d.function == "packed_attention":
        arrays = normal(4, 12, 8), normal(2, 20, 8, seed=1), normal(2, 20, 8, seed=2)
        return arrays, {"cu_q": np.array([0, 5, 12]), "cu_kv": np.array([0, 9, 20]), **causal}
    if d.function == "paged_attention":
        keys = normal(6, 2, 4, 8, seed=1) if "value" in d.arguments else normal(6, 1, 4, 8, seed=1)
        values = normal(6, 2, 4, 8, seed=2) if "value" in d.arguments else keys[..., :6]
        query = normal(2, 4, 1 if "T" not in d.layout else 3, 8)
        table = np.array([[5, 1, 3], [0, 4, 2]])
        return (query, keys, values), {"block_table": table, "kv_lengths": np.array([9, 7]), **causal}
    arrays = normal(2, 4, 5, 8), normal(2, 2, 9, 8, seed=1), normal(2, 2, 9, 8, seed=2)
    arrays = arrays if "B" in d.layout else tuple(array[0] for array in arrays)
    if d.call == CACHE_WITHOUT_TABLE:
        return arrays, {"kv_lengths": np.array([9, 7]), **causal}
    own = {"top_left": {"q_offset": 0}}.get(d.alignment, {}) if causal else {}
    return arrays, causal | own


def written(d, wrong=None):
    """(call, output, lse) as the library writes them, right or computed with the options `wrong`."""
    arrays, options = call_of_ours(d)
    if d.call == CACHE_WITHOUT_TABLE:
        plain = {name: value for name, value in options.items() if name != "kv_lengths"}
        call = from_ours(d.name, *arrays, **plain)
        call |= {"k_cache": call.pop("k"), "v_cache": call.pop("v"), "cache_seqlens": options["kv_lengths"]}
    else:
        call = from_ours(d.name, *arrays, **options)
    output, lse = getattr(refattn, f"{d.function}_with_lse")(*arrays, **{**options, **(wrong or {})})
    output, lse = result_from_ours(
        d.name, output.astype(np.float32), lse if d.lse_base else None, function=d.function
    )
    return call, output, None if lse is None else lse.astype(np.float32)


@pytest.mark.parametrize("name", NAMES, ids=" ".join)
class TestEveryCall:
    def test_a_right_result_passes(self, name):
        call, output, lse = written(RECORDS[name])
        report = check(output, lse=lse, dialect=name[0], **call)
        assert report.passed and report.dialect.record is RECORDS[name], report.text()
        assert (
            report.dialect.axes(OUTPUT) in report.text() and report.to_dict()["dialect"]["name"] == name[0]
        )
        assert_attention_close(output, lse=lse, dialect=name[0], **call)

    def test_arrays_may_be_given_in_order(self, name):
        d = RECORDS[name]
        call, output, lse = written(d)
        arrays = [call.pop(d.arguments[role]) for role in ("query", "key", "value") if role in d.arguments]
        assert check(output, *arrays, lse=lse, dialect=name[0], **call).passed

    def test_one_wrong_element_fails_and_is_named_in_the_librarys_order(self, name):
        call, output, lse = written(RECORDS[name])
        at = tuple(size - 1 for size in output.shape)
        output[at] += 1
        report = check(output, lse=lse, dialect=name[0], **call)
        assert report.output.failed and report.dialect.index(OUTPUT, report.output.worst) == at
        assert f"output[{', '.join(map(str, at))}] of {name[0]}" in report.summary
        with pytest.raises(AssertionError, match=r"output\["):
            assert_attention_close(output, lse=lse, dialect=name[0], **call)

    def test_a_wrong_lse_fails(self, name):
        d = RECORDS[name]
        call, output, lse = written(d)
        if lse is None:
            report = check(output, lse=output[..., 0], dialect=name[0], **call)
            assert report.failed == ("lse shape",) and "returns none" in report.summary
            return
        at = tuple(size - 1 for size in lse.shape)
        lse[at] += 0.01
        report = check(output, lse=lse, dialect=name[0], **call)
        assert report.lse.failed and not report.output.failed
        assert report.dialect.index(LSE, report.lse.worst) == at
        assert not check(output, lse=lse * 1.5, dialect=name[0], **call).passed

    def test_diagnose_names_the_mistake(self, name):
        d = RECORDS[name]
        if d.function == "attention" and d.layout in {"BHTD", "BTHD"} and d.name != "jax":
            return  # one for each order of axes: the search takes seconds
        call, output, lse = written(d, wrong={"scale": 1.0})
        assert not check(output, lse=lse, dialect=name[0], **call).passed
        found = diagnose(output, lse=lse, dialect=name[0], pairs=False, **call)
        assert found.verdict == "explained" and "scale" in found.best.id, str(found)
        assert f"read as those of {name[0]}" in str(found)

    def test_results_of_another_shape_are_refused_in_the_librarys_words(self, name):
        call, output, lse = written(RECORDS[name])
        report = check(output[..., :-1], lse=lse, dialect=name[0], **call)
        assert report.failed == ("output shape",), report.text()
        assert str(output.shape) in report.summary and f"as {name[0]} writes it" in report.summary
        with pytest.raises(ValueError, match=f"output must have shape .* as {name[0]} writes it"):
            diagnose(output[..., :-1], dialect=name[0], **call)

    def test_arrays_that_do_not_fit_are_named(self, name):
        d = RECORDS[name]
        call, output, _ = written(d)
        for role in ("query", "key"):
            argument = d.arguments[role]
            given = call[argument]
            with pytest.raises(ValueError, match=rf"\b{argument}\b|query, key and value"):
                check(output, dialect=name[0], **{**call, argument: given[0, ..., 0]})
            with pytest.raises((TypeError, ValueError), match=rf"\b{argument} must be given"):
                check(output, dialect=name[0], **{**call, argument: None})
        with pytest.raises(ValueError, match=r"must use the arguments of .*; got 'nothing'"):
            check(output, dialect=name[0], **call, nothing=1)
        with pytest.raises(TypeError, match="arrays must be"):
            check(output, *[output] * 5, dialect=name[0], **call)
        with pytest.raises(TypeError, match="must be given once"):
            arrays = [call[d.arguments[role]] for role in ("query", "key", "value") if role in d.arguments]
            check(output, *arrays, dialect=name[0], **call)


class TestConventions:
    def test_a_float32_lse_to_base_two_stays_within_its_bound(self):
        """A kernel that works to base 2 in float32, at levels from 1e-3 to 1e4 and so that the lse comes near 0."""
        for seed, level in enumerate((1e-3, 0.1, 1.0, 30.0, 1e4)):
            query, key, value = (normal(*shape, seed=seed) for shape in ((64, 2, 8), (33, 2, 8), (33, 2, 8)))
            query = query * np.float32(level)
            scores = np.einsum("thd,shd->hts", query, key) * np.float32(np.log2(np.e) / np.sqrt(8))
            top = scores.max(-1, keepdims=True)
            weights = np.exp2(scores - top)
            total = weights.sum(-1, keepdims=True)
            lse = (top + np.log2(total))[..., 0].T
            output = np.einsum("hts,shd->thd", weights / total, value)
            assert lse.dtype == output.dtype == np.float32
            report = check(output, query, key, value, lse=lse, dialect="flashinfer")
            assert report.passed and report.lse.use_tight < 0.9, report.text()
            assert not check(
                output, query, key, value, lse=lse * np.float32(np.log(2)), dialect="flashinfer"
            ).passed

    @pytest.mark.parametrize(("name", "right"), [("flash_attn", np.inf), ("flash_attn_3", -np.inf)])
    def test_lse_of_rows_without_keys(self, name, right):
        arrays = normal(1, 5, 2, 8), normal(1, 3, 2, 8, seed=1), normal(1, 3, 2, 8, seed=2)
        ours = [array.swapaxes(1, 2) for array in arrays]
        output, lse = refattn.attention_with_lse(*ours, causal=True)
        assert np.isneginf(lse[..., :2]).all()
        output, lse = result_from_ours(name, output.astype(np.float32), lse)
        assert (lse[..., :2] == right).all()
        judged = lambda lse: check(output, *arrays, lse=lse, dialect=name, causal=True)
        assert judged(lse).passed
        wrong = lse.copy()
        wrong[..., 3] = right  # a row that sees keys
        assert "positions" in judged(wrong).lse.failed
        if name == "flash_attn_3":
            assert "positions" in judged(np.where(np.isinf(lse), np.inf, lse)).lse.failed

    def test_rows_without_keys_are_left_out_where_the_library_promises_nothing(self):
        arrays = normal(1, 5, 2, 8), normal(1, 3, 2, 8, seed=1), normal(1, 3, 2, 8, seed=2)
        mask = np.ones((1, 1, 5, 3), bool)
        mask[..., 1, :] = False
        output = refattn.attention(*[array.swapaxes(1, 2) for array in arrays], mask=mask)
        output = output.swapaxes(1, 2).astype(np.float32)
        output[:, 1] = arrays[2].mean(1)
        report = check(output, *arrays, dialect="jax", mask=mask)
        assert report.passed and "2 of 10 rows see no key and are not judged" in report.text()
        output[:, 2] += 1
        assert not check(output, *arrays, dialect="jax", mask=mask).passed

    def test_a_mask_of_the_lowest_number_hides(self):
        query, key = normal(1, 2, 5, 8), normal(1, 2, 9, 8, seed=1)
        seen = np.arange(9) < np.arange(5)[:, None] + 3
        mask = np.where(seen, np.float32(0), np.finfo(np.float32).min)[None, None]
        output = refattn.attention(query, key, key, mask=seen).swapaxes(1, 2).astype(np.float32)
        how = {"dialect": "transformers", "attention_mask": mask, "scaling": 8**-0.5}
        assert (
            check(output, query, key, key, **how).complete and check(output, query, key, key, **how).passed
        )

    def flashmla(self, sink):
        call, options = call_of_ours(RECORDS["flashmla", "flash_mla_with_kvcache"])
        options = {**options, "sinks": np.full(4, sink)}
        _, lse = refattn.paged_attention_with_lse(*call, **{**options, "sinks": None})
        with_sinks = refattn.paged_attention(*call, **options).swapaxes(1, 2).astype(np.float32)
        return from_ours("flashmla", *call, **options), with_sinks, lse.astype(np.float32)

    @pytest.mark.parametrize("sink", [0.5, 60.0])
    def test_an_lse_without_the_sink_is_judged_by_itself(self, sink):
        """Beside a sink of 60, an error of 0.01 moves the lse with the sink by 1e-25."""
        call, output, lse = self.flashmla(sink)
        assert check(output, lse=lse, dialect="flashmla", **call).passed
        assert check(None, lse=lse, dialect="flashmla", **call).passed
        report = check(output, lse=lse + np.float32(0.01), dialect="flashmla", **call)
        assert report.lse.failed and not report.output.failed
        with_sink = np.logaddexp(lse, np.float32(sink))
        assert check(output, lse=with_sink, dialect="flashmla", **call).lse.failed

    def test_a_cache_of_keys_and_values_in_one_array(self):
        call, output, lse = written(RECORDS["flashinfer", "BatchDecodeWithPagedKVCacheWrapper"])
        query, keys, values = (call.pop(name) for name in ("q", "k_cache", "v_cache"))
        for cache in (np.stack([keys, values], axis=1), (keys, values)):
            assert check(output, query, cache, lse=lse, dialect="flashinfer", **call).passed
        with pytest.raises(ValueError, match=r"paged_kv_cache must have the axes \(pages, 2, page_size"):
            check(output, query, keys, dialect="flashinfer", **call)
        with pytest.raises(ValueError, match=r"last_page_len must be between 1 and the page size, 4"):
            check(output, query, (keys, values), dialect="flashinfer", **{**call, "last_page_len": [5, 3]})

    def test_rows_and_specs_as_without_a_dialect(self):
        call, output, lse = written(RECORDS["flash_attn", "flash_attn_func"])
        report = check(output, lse=lse, dialect="flash_attn", rows=2, spec="float32", **call)
        assert report.passed and report.rows_looked_at == (2, 5)
        with pytest.raises(ValueError, match="function must be attention for flash_attn_func"):
            check(output, dialect="flash_attn", function="packed_attention", **call)

    def test_the_arithmetic_that_would_pass_is_named(self):
        call, _, _ = written(RECORDS["flash_attn", "flash_attn_func"])
        read = read_call("flash_attn", (), call)
        spec = KernelSpec.flash("float32")
        changes, words = next(iter(other_specs(spec)))
        results = EmulatedKernel(spec.replace(**changes))(*read.arrays, **read.options)
        output, lse = result_from_ours("flash_attn", *results)
        with pytest.raises(AssertionError, match=re.escape(words)):
            assert_attention_close(
                output, lse=lse.astype(np.float32), spec=spec, dialect="flash_attn", **call
            )

    def test_a_kernel_in_a_dialect_is_run_by_diagnose(self):
        def top_left(**call):
            read = read_call("flash_attn", (), call)
            return result_from_ours(
                "flash_attn", *refattn.attention_with_lse(*read.arrays, **read.options, q_offset=0)
            )

        call, _, _ = written(RECORDS["flash_attn", "flash_attn_func"])
        found = diagnose(top_left, dialect="flash_attn", **call)
        assert found.verdict == "explained" and found.best.remedy == "q_offset=0", str(found)

    def test_errors_speak_of_the_librarys_arguments(self):
        call, output, _ = written(RECORDS["flash_attn", "flash_attn_with_kvcache with block_table"])
        with pytest.raises(ValueError, match="kv_lengths is cache_seqlens"):
            check(output, dialect="flash_attn", **{**call, "cache_seqlens": np.array([9, 99])})
        with pytest.raises(ValueError, match="What refattn calls scale is softmax_scale there"):
            check(output, dialect="flash_attn", **call, scale=1.0)
        with pytest.raises(ValueError, match="dropout_p must be 0"):
            check(output, dialect="torch", query=output, key=output, value=output, dropout_p=0.5)
        with pytest.raises(ValueError, match="dialect must be one of refattn, torch, flash_attn"):
            check(output, dialect="flash", **call)


@pytest.mark.parametrize("spelled", [True, 1, np.True_, np.array(True)], ids=repr)
def test_a_causal_flag_of_any_kind_is_read(spelled):
    rng = np.random.default_rng(0)
    ours = [rng.standard_normal((1, 2, length, 8)).astype(np.float32) for length in (4, 7, 7)]
    theirs = [array.swapaxes(1, 2) for array in ours]
    for causal in (True, False):
        output = refattn.attention(*ours, causal=causal).astype(np.float32).swapaxes(1, 2)
        assert check(output, *theirs, causal=spelled, dialect="flash_attn").passed == causal
    with pytest.raises(ValueError, match="causal must be True or False; got causal=2"):
        check(output, *theirs, causal=2, dialect="flash_attn")


def test_hidden_axes_of_onnx_are_refused():
    x = np.ones((1, 5, 32), np.float32)
    with pytest.raises(
        ValueError, match=r"Q must have the axes \(batch, heads, length, dim\) here.*q_num_heads=4"
    ):
        check(x, x, x, x, q_num_heads=4, kv_num_heads=4, dialect="onnx")
