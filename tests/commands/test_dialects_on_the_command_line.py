"""`refattn explain`, and `--dialect` of `refattn check` and `refattn diagnose`."""

import json

import numpy as np
import pytest

from refattn.cli import main
from refattn.oracle.dialects.differences import explain_difference
from refattn.oracle.dialects.libraries import DIALECTS
from refattn.oracle.dialects.results import result_from_ours
from refattn.oracle.inputs.families import Sizes, attention_inputs
from refattn.oracle.vectors.case_file import save_case
from refattn.oracle.vectors.golden import make_case


def test_explain_prints_what_explain_difference_says(capsys):
    assert main(["explain", "torch", "flash_attn"]) == 0
    shown = capsys.readouterr().out
    assert shown == explain_difference("torch", "flash_attn") + "\n"
    assert "flash_attn_varlen_func (packed_attention)" in shown
    assert main(["explain", "jax"]) == 0
    assert capsys.readouterr().out == explain_difference("jax", "refattn") + "\n"


def test_explain_lists_the_libraries(capsys):
    assert main(["explain"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown] == list(DIALECTS)


def test_explain_as_json(capsys):
    assert main(["explain", "torch", "jax", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["libraries"] == ["torch", "jax"]
    assert {"matter": "query layout", "torch": "BHTD", "jax": "BTHD"} in found["differences"]


@pytest.mark.parametrize("names", [["torhc"], ["torch", "flash"]])
def test_explain_names_the_known_libraries(names, capsys):
    assert main(["explain", *names]) == 2
    error = capsys.readouterr().err
    assert f"got {names[-1]!r}" in error and all(name in error for name in DIALECTS)


class TestResultsInADialect:
    @pytest.fixture
    def case(self, tmp_path):
        sizes = Sizes(batch=2, num_heads=4, num_kv_heads=2, q_len=5, kv_len=9, head_dim=8, v_head_dim=8)
        case = make_case(attention_inputs("normal", ("causal",), sizes=sizes))
        save_case(case, tmp_path / "case.npz")
        return case

    def written(self, case, name, path, **changed):
        output, lse = result_from_ours(name, case.output, case.lse if DIALECTS[name].lse_base else None)
        results = {"output": output.astype(np.float32)} | (
            {} if lse is None else {"lse": lse.astype(np.float32)}
        )
        np.savez(path, **{**results, **changed})
        return results

    @pytest.mark.parametrize("name", ["torch", "flash_attn", "jax", "cudnn", "onnxruntime_gqa", "xformers"])
    @pytest.mark.parametrize("stored", [[], ["--stored"]])
    def test_right_and_wrong(self, case, name, stored, tmp_path, capsys):
        files = [str(tmp_path / "case.npz"), str(tmp_path / "result.npz")]
        results = self.written(case, name, files[1])
        assert main(["check", *files, "--dialect", name, *stored]) == 0, capsys.readouterr().out
        self.written(case, name, files[1], output=results["output"] + np.float32(0.01))
        assert main(["check", *files, "--dialect", name, *stored]) == 1

    def test_arrays_without_names(self, case, tmp_path):
        results = self.written(case, "jax", tmp_path / "result.npz")
        for name, array in results.items():
            np.save(tmp_path / f"{name}.npy", array)
            array.tofile(tmp_path / f"{name}.bin")
            for ending in ("npy", "bin"):
                files = [str(tmp_path / "case.npz"), str(tmp_path / f"{name}.{ending}")]
                assert main(["check", *files, "--dialect", "jax"]) == 0

    def test_without_the_dialect_it_fails_and_says_why(self, case, tmp_path, capsys):
        files = [str(tmp_path / "case.npz"), str(tmp_path / "result.npz")]
        self.written(case, "flash_attn", files[1])
        assert main(["check", *files]) == 1
        assert "(..., length, heads, dim)" in capsys.readouterr().out
        assert main(["check", *files, "--dialect", "flash"]) == 2
        assert "dialect must be one of refattn, torch, flash_attn" in capsys.readouterr().out

    def test_diagnose(self, case, tmp_path, capsys):
        files = [str(tmp_path / "case.npz"), str(tmp_path / "result.npz")]
        self.written(case, "flash_attn", files[1])
        assert main(["diagnose", *files, "--dialect", "flash_attn"]) == 0
        self.written(case, "flash_attn", files[1], output=-case.output.swapaxes(1, 2).astype(np.float32))
        assert main(["diagnose", *files, "--dialect", "flash_attn", "--seconds", "2"]) == 1
        assert main(["diagnose", *files, "--dialect", "jax", "--seconds", "2"]) == 2
        assert (
            "lse must have shape (2, 5, 4), (batch, length, heads) as jax writes it"
            in capsys.readouterr().err
        )
