"""The script that plants faults: what it draws, and what it takes for noticed."""

import sys

import planted_faults
import pytest
from planted_faults import LIKELY, ROOT, Finder, Workplace, candidates, draw, likely_tests, source_files


@pytest.mark.campaign
def test_faults_are_spread_over_folders_and_kinds_and_drawn_from_the_seed_alone():
    faults = [fault for _, fault in draw(40, "a")]
    assert faults == [fault for _, fault in draw(40, "a")] and faults != [
        fault for _, fault in draw(40, "b")
    ]
    assert faults[:7] == [fault for _, fault in draw(7, "a")]
    folders = {str((ROOT / fault.path).parent.relative_to(ROOT)) for fault in faults[: len(candidates())]}
    assert len(folders) == len(candidates()) and {fault.kind for fault in faults} == {
        "operator",
        "constant",
        "order",
        "table",
        "condition",
    }


SOURCE = b'''"""A docstring with 1 + 2."""
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    NUMBER = 3
TABLE = (10, 20, 30)


def function(x: tuple[int, 4] = 0):
    """Another: 5 * 6."""
    if x is None:
        raise ValueError(f"{x + 7} " + "message")
    y = x * 1.5
    z = y - x
    warnings.warn("8" * 9, stacklevel=10)
    return z
'''


def test_what_may_be_changed():
    changes = {fault.planted(SOURCE).decode() for fault in Finder("file.py", SOURCE).faults}
    lines = {
        line
        for change in changes
        for line in change.splitlines()
        if line not in SOURCE.decode().splitlines()
    }
    assert lines == {
        "TABLE = ( 20, 30)",
        "TABLE = (10,  30)",
        "TABLE = ((20), 20, 30)",
        "TABLE = ((5), 20, 30)",
        "TABLE = (10, (40), 30)",
        "TABLE = (10, (10), 30)",
        "TABLE = (10, 20, (60))",
        "TABLE = (10, 20, (15))",
        "def function(x: tuple[int, 4] = (1)):",
        "    if ((x) is not (None)):",
        "    if (not (x is None)):",
        "    y = ((x) / (1.5))",
        "    y = x * (15.0)",
        "    y = x * (0.15)",
        "    z = ((y) + (x))",
    }
    assert any("    z = y - x\n    y = x * 1.5\n" in change for change in changes)


def test_a_copy_without_git_has_the_same_files(tmp_path):
    copy = Workplace(tmp_path, patience=60.0).copy()
    (copy / "refattn" / "__pycache__").mkdir()
    (copy / "refattn" / "__pycache__" / "made.pyc").touch()
    assert source_files(copy) == sorted(source_files())


def test_every_folder_has_likely_tests():
    for place in LIKELY:
        assert (ROOT / place).exists(), place
        named = LIKELY[place].split()
        assert [name for name in named if not [*(ROOT / "tests").rglob(f"{name}.py")]] == []
        assert likely_tests(place)


@pytest.mark.parametrize(
    "code, found",
    [
        ("print('fine')", None),
        ("print('FAILED tests/a.py::b - why'); exit(1)", "tests/a.py::b - why"),
        ("print('oh'); import os; os.abort()", "exit code -6: oh"),
        ("print('waits', flush=True); import time; time.sleep(60)", "no progress: waits"),
    ],
)
def test_what_counts_as_noticed(tmp_path, code, found):
    place = Workplace(tmp_path, patience=3.0)
    (tmp_path / "tree").mkdir()
    assert place.noticed(tmp_path / "tree", None, [sys.executable, "-c", code]) == found


def test_a_planted_fault_is_found_and_remembered(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(LIKELY, "refattn/sizes.py", "test_docs")
    monkeypatch.setattr(
        planted_faults,
        "commands",
        lambda stage, path: [[sys.executable, "-c", f"print('FAILED {stage}'); exit(1)"]],
    )
    arguments = ["--count", "1", "--only", "refattn/sizes.py", "--resume", str(tmp_path / "results")]
    assert not planted_faults.main(arguments) and "1 faults, 1 found (1 by likely" in capsys.readouterr().out
    monkeypatch.setattr(planted_faults, "commands", None)  # nothing is run again
    assert not planted_faults.main(arguments) and "1 faults, 1 found (1 by likely" in capsys.readouterr().out
