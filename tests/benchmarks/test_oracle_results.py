"""The page that benchmarks/oracle_table.py --write commits: every table from its numbers, others kept."""

import json
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import oracle_results


def rules():
    rows = []
    for rule in oracle_results.SHOWN:
        for suite, told in (("bite", 8), ("ordinary", 5)):
            mine = rule == "refattn"
            rows.append(
                {
                    "dtype": "bfloat16",
                    "rule": rule,
                    "suite": suite,
                    "mutants": 10,
                    "inputs": 70,
                    "told_apart": told if mine else told - 3,
                    "caught": 9,
                    "missed": [],
                    "hidden": ["a", "b"],
                    "false_alarms": [] if mine else ["x"],
                }
            )
    return rows


def alarms():
    counts = {"runs": 100, "judged by others": 25} | dict.fromkeys(oracle_results.SHOWN, 3) | {"refattn": 0}
    return [{"kernel": name} | counts for name in ("torch", "emulated")]


def test_the_page_holds_the_numbers():
    diagnosis = [
        {
            "dtype": "bfloat16",
            "seed": 3,
            "first": 7,
            "equal": 1,
            "other": 0,
            "first with kernel": 8,
            "wrong": ["a_id -> other: b_id"],
        },
        {
            "pairs": {
                "found": 37,
                "found one of the two": 3,
                "median seconds": 4.25,
                "not found": ["c_id + d_id on x"],
            }
        },
        {"hand-written": {"right": 4}},
    ]
    page = oracle_results.page({"rules": rules(), "alarms": alarms(), "diagnosis": diagnosis})
    assert "| rule | bfloat16, of 10 |" in page
    assert (
        "| refattn | 0 / 3 (0 of 70 / 0 of 70) |" in page
        and "| fixed 1e-2 | 3 / 6 (1 of 70 / 1 of 70) |" in page
    )
    assert (
        "200 runs of correct kernels" in page
        and "| all | 200 | 0 | 6 of 50 | 6 of 50 | 6 of 50 | 6 of 50 |" in page
    )
    assert "| mutants, bfloat16 | 7 | 1 | 0 |  | 8 | 3 |" in page and "bfloat16: a_id -> other: b_id" in page
    assert (
        "found 37, found one of the two 3, of 40; median 4.2 s. Not found: c_id + d_id on x." in page
        and "named rightly: 4 of 4" in page
    )


def test_a_table_written_alone_keeps_the_others(tmp_path):
    oracle_results.write({"rules": rules(), "mutants": 10}, tmp_path)
    oracle_results.write({"alarms": alarms()}, tmp_path)
    assert json.loads((tmp_path / "oracle_results.json").read_text()).keys() == {
        "rules",
        "mutants",
        "alarms",
    }
    page = (tmp_path / "oracle_results.md").read_text()
    assert "lets through" in page and "rejects" in page
