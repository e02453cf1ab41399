"""The script that times the oracle, on short sequences."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ml_dtypes")
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import oracle_results
import oracle_times

import refattn


@pytest.mark.parametrize("case", oracle_times.CASES, ids=lambda case: case.name)
def test_attention_in_numpy_is_attention(case, monkeypatch):
    """Whole and by head, and what the wrong result misses."""
    case = case.shrunk(256)
    arrays, options = oracle_times.call_of(case)
    expected = getattr(refattn, f"{oracle_times.FUNCTIONS[case.form]}_with_lse")(*arrays, **options)
    for most in (oracle_times.WHOLE_BYTES, 0):
        monkeypatch.setattr(oracle_times, "WHOLE_BYTES", most)
        results = oracle_times.numpy_attention(case, arrays, options, np.float64)
        for result, exact in zip(results, expected, strict=True):
            np.testing.assert_allclose(result, exact, rtol=1e-9, atol=1e-12)
    wrong = oracle_times.numpy_attention(case, arrays, options, np.float64, missing=1)
    assert (np.abs(wrong[0] - expected[0]).max(axis=-1) > 1e-9).all()


@pytest.mark.parametrize("name", ["dense, causal, rows=64", "paged decode", "latent decode, expanded"])
def test_a_row_has_all_figures(name):
    (case,) = (case for case in oracle_times.CASES if case.name == name)
    row = oracle_times.measure(case.shrunk(128))
    assert row["case"] == name and f"{oracle_times.FUNCTIONS[case.form]}: pass" in row["verdict"]
    assert row["check"]["seconds"] > 0 and row["NumPy"]["seconds"] > 0


def test_the_script_runs_every_case_in_a_process_of_its_own(capsys):
    assert oracle_times.main(["--only", "small", "--shrink", "8", "--diagnose", "--no-numba"]) == 0
    head, row, right, wrong = capsys.readouterr().out.splitlines()
    assert "target" in head and row.startswith("small ") and "attention: pass" in row
    assert "agrees" in right and "agrees" not in wrong
    with pytest.raises(SystemExit):
        oracle_times.main(["--only", "no such case"])


def test_the_page_holds_the_times():
    (case,) = (case for case in oracle_times.CASES if case.name == "small")
    row = oracle_times.measure(case.shrunk(8), with_diagnosis=True, warm=False)
    machine = {"rows": [row], "versions": {"numpy": "2"}, "commit": "abc"}
    page = oracle_results.page({"times": {"A machine": machine}})
    assert "A machine; numpy 2; commit abc:" in page
    (line,) = (line for line in page.splitlines() if line.startswith("| small |"))
    assert line.split(" | ")[3] == "0.03" and line.count("|") == 9
