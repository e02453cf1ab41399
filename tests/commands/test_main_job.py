"""The main job: `refattn verify` over everything that ships exits 0, with a line for each variant and
source.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from refattn import cli, goldens

ROOT = Path(__file__).parents[2]


def test_everything_shipped_holds():
    """The main job: exit 0, a line for each variant and source, below a minute."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "refattn", "verify"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    rows = [line.split("  ")[0] for line in done.stdout.splitlines() if re.match(r"M[HQL]A|GQA", line)]
    assert rows.count("MHA") == rows.count("MQA") == rows.count("GQA") == rows.count("MLA") == 5
    shipped = len(list(goldens.cases()))
    assert f"All {shipped} cases hold." in done.stdout


def test_json_report(tmp_path, capsys):
    """Of a real model and one variant; the job above has all."""
    for name in ("minilm_layer0", "published_grouping", "synthetic_mqa"):
        shutil.copy(ROOT / "refattn" / "goldens" / f"{name}.npz", tmp_path)
    assert cli.main(["verify", "--json", "--goldens", str(tmp_path)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {
        "passed",
        "cases",
        "seconds",
        "versions",
        "limits",
        "rows",
        "cpu_kernels_note",
        "failures",
    }
    assert report["passed"] is True and report["failures"] == []
    assert (
        report["cases"]
        == sum(row["cases"] for row in report["rows"])
        == len(list(goldens.cases(tmp_path)))
        > 50
    )
    assert report["limits"] == {"output_units": 4, "lse_ulps": 8}
    assert report["seconds"] > 0
    for row in report["rows"]:
        assert set(row) == {"variant", "source", "cases", "failed", "refattn", "cpu_kernels"}
        assert set(row["refattn"]) == {"error", "units", "lse_ulps", "of_bound", "seconds"}
        assert 0 < row["refattn"]["units"] <= 4 and 0 < row["refattn"]["of_bound"] <= 1
        assert (row["refattn"]["lse_ulps"] is None) == (row["source"] == "torch sdpa")
