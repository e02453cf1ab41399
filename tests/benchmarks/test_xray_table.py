"""First answers on a set of faults: asked once, read by a judge, counted by mark."""

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import correct_kernels
import oracle_results
import xray_table

SET = """
import numpy as np
import refattn

def build(wrong=True):
    def kernel(*arrays, causal=False):
        return refattn.attention_with_lse(*arrays, causal=causal and not wrong)

    rng = np.random.default_rng(0)
    return kernel, tuple(rng.standard_normal((1, 2, n, 4)) for n in (5, 9, 9)), {"causal": True}

def crash(wrong=True):
    def kernel(*arrays):
        raise RuntimeError("no device")

    return kernel, build()[1], {}

TAGS = {"form": "dense", "dtype": "float64", "lse": True}
FAULTS = [
    ("no_causal", "Keys after the row are seen.", TAGS, build),
    ("no_device", "It crashes.", {**TAGS, "dtype": "float32"}, crash),
]
"""


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """A function that asks in one way, about a set of one wrong kernel and one that raises."""
    monkeypatch.setattr(xray_table, "FOLDER", tmp_path / "held_out")
    path = tmp_path / "faults.py"
    path.write_text(SET)

    def ask(way, only=()):
        xray_table.run(path, "new", way, only)
        return xray_table.read_results("new", way)[1]

    return ask


def judge(way, marks):
    xray_table.marks_file("new", way).write_text(json.dumps(marks))


@pytest.mark.parametrize("way", xray_table.WAYS)
def test_every_fault_is_asked_once(asked, way):
    assert [row["name"] for row in asked(way, ["no_causal"])] == ["no_causal"]
    first, crashed = asked(way)
    assert asked(way) == [first, crashed]
    assert first["verdict"] in ("described", "explained") and first["first"] in " ".join(
        first["text"].split()
    )
    # 9 keys, 4 columns
    assert first["calls"] >= 1 and first["least calls"] == 3
    assert crashed["verdict"] == "crash" and crashed["first"] == "RuntimeError: no device"


def test_a_judge_reads_the_fault_beside_the_first_answer(asked):
    first = asked("diagnose", ["no_causal"])[0]["first"]
    sheet = xray_table.sheet("new", "diagnose")
    assert sheet.endswith(f"no_causal\n  fault:  Keys after the row are seen.\n  answer: {first}")
    assert all(rule in sheet for rule in oracle_results.MARKS.values())


def test_marks_become_a_table(asked):
    asked("outputs")
    judge("outputs", {"no_causal": "right", "no_device": "none"})
    rows = xray_table.table()
    assert [row["group"] for row in rows] == ["all", "float32", "float64", "dense"]
    page = oracle_results.page({"xray": rows})
    assert "| new | outputs | 2 | 1 (50 %) | 0 (0 %) | 0 (0 %) | 0 (0 %) | 1 (50 %) | 1 |" in page
    assert "| new, float64 | outputs | 1 | 1 (100 %) |" in page
    assert page.count("- new, outputs: ") == 1


@pytest.mark.parametrize(
    "marks, message",
    [
        ({"no_causal": "right"}, "no_device"),
        ({"no_causal": "right", "no_device": "none", "other": "none"}, "other"),
        ({"no_causal": "right", "no_device": "good"}, "good"),
    ],
)
def test_marks_that_do_not_fit_are_refused(asked, marks, message):
    asked("outputs")
    judge("outputs", marks)
    with pytest.raises(ValueError, match=message):
        xray_table.table()


def test_correct_kernels_are_drawn_again_from_their_seed():
    first, again = ([run.inputs.name for run in correct_kernels.runs(6, seed=3)] for _ in range(2))
    assert first == again and len({*first}) > 1


def test_a_wrong_kernel_among_the_correct_ones_is_told(monkeypatch, capsys):
    (run,) = correct_kernels.runs(1, only="refattn packed float32")
    wrong = run._replace(kernel=lambda *arrays, **options: run.kernel(*arrays, **options)[0] + 1)
    monkeypatch.setattr(correct_kernels, "runs", lambda *_: [run, wrong])
    (row,) = correct_kernels.xray_alarms(2)
    assert (row["calls"], row["accused"]) == (2, 1)
    assert "accused: refattn packed" in capsys.readouterr().out


def test_the_page_counts_correct_kernels_by_origin():
    row = {"calls": 3, "accused": 0, "not judged": 1, "crashes": 0, "unsupported": 2}
    rows = [{"kernel": name} | row for name in ("torch math float32", "torch math float16", "jax float32")]
    rows[0]["accused"] = 1
    page = oracle_results.page({"xray alarms": {"rows": rows, "host": xray_table.host()}})
    assert "| torch | 2 | 6 | 1 | 2 | 0 |" in page and "| all | 3 | 9 | 1 | 3 | 0 |" in page
    assert "Accused: torch math float32." in page
