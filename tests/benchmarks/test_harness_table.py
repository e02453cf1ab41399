"""The table of held-out faults, and that sets can be run."""

import json
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import harness_table


def test_one_fault_and_its_right_kernel(capsys, monkeypatch, tmp_path):
    name = "paged_page_by_shift_48"
    jobs = harness_table.jobs_of("harness_1", name)
    assert [kind for _, kind, _ in jobs] == ["FAULTS", "CORRECT"]
    row = harness_table.judged(jobs[0])
    assert row["name"] == name and not row["passed"] and "pages" in row["found_by"]

    monkeypatch.setattr(harness_table, "FOLDER", tmp_path)
    right = {"kind": "CORRECT", "form": "paged", "passed": True}
    (tmp_path / "some.quick.jsonl").write_text("".join(json.dumps(r) + "\n" for r in (row, right)))
    assert [*harness_table.table()][-1] == "| some | 0 of 0 | 1 of 1 | 0 of 0 | 0 of 0 | 1 of 1 | 0 of 1 |"
