"""Outcomes of `check_kernel` in a file, one line of JSON each, written as they come: what a killed run
leaves, and what `resume=` goes on from.

The first line says which run it is. Before a test runs, a line names it, so that a test in which the process
ends is known: it is run once more, and where the process ends in it again it has failed.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

from refattn.oracle.harness.outcomes import HarnessReport, Outcome
from refattn.oracle.saved import json_ready

MARK = "refattn.check_kernel"
DEATHS = 2  # runs that ended in the same test


def earlier(resume, run: dict) -> dict[str, Outcome]:
    """Outcomes by name of an earlier run of the same tests: a report, or a file that need not exist yet."""
    if resume is None:
        return {}
    run = _in_json(run)
    if isinstance(resume, HarnessReport):
        _require_same(run, _in_json(_run_of(resume)), "a report")
        return {outcome.id: outcome for outcome in resume.outcomes}
    path = Path(resume)
    if not path.exists() or path.stat().st_size == 0:
        return {}
    first, *lines = _lines(path)
    if not isinstance(first.get(MARK), dict):
        raise ValueError(f"resume must be a file that check_kernel wrote; got resume={str(path)!r}.")
    _require_same(run, first[MARK], str(path))
    try:
        return _outcomes_of(lines)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"resume must hold lines as check_kernel writes them; got {str(path)!r}, with {error!r} in one."
        ) from error


def _outcomes_of(lines):
    """Outcomes by name, those of tests in which the process ended among them."""
    done, begun = {}, Counter()
    for line in lines:
        if "begun" in line:
            begun[line["begun"]] += not _alive(line["by"])
        elif "stopped" in line:
            begun[line["stopped"]] -= 1
        elif "outcome" in line:
            outcome = Outcome.from_dict(line["outcome"])
            done[outcome.id] = outcome
    for name, count in begun.items():
        if name not in done and count >= DEATHS:
            section, _, words = name.partition(": ")
            ended = f"the process ended in this test, {count} times (a new file for resume= runs it again)"
            done[name] = Outcome(section, words, "FAIL", ended)
    return done


def _alive(process):
    """Whether another process of this number runs: it may be in the middle of a test."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except OSError:
        return False
    return True


def _in_json(run):
    return json.loads(json.dumps(json_ready(run)))


def describe_run(bench) -> dict:
    """What two runs must have in common for one to go on from the other."""
    return {"kernel": bench.call.name, "spec": bench.spec.name, **bench.settings()}


class Table:
    """The file that outcomes are written to; without a path nothing is written."""

    def __init__(self, path, run: dict):
        self._file = None
        if path is None:
            return
        path = Path(path)
        whole = _ends_with_a_line(path)
        self._file = path.open("a", encoding="utf-8")
        if not path.stat().st_size:
            self._write({MARK: json_ready(run)})
        elif not whole:
            self._file.write("\n")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self._file is not None:
            self._file.close()

    def begin(self, test):
        self._write({"begun": test.id, "by": os.getpid()})

    def stopped(self, test):
        """By Ctrl-C, which says nothing of the kernel."""
        self._write({"stopped": test.id})

    def add(self, outcome):
        self._write({"outcome": json_ready(outcome.to_dict())})

    def _write(self, line):
        if self._file is not None:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()  # a process that is killed loses what Python still holds


def checked_resume(resume):
    """The file of `resume`, or None where it is a report or nothing."""
    if resume is None or isinstance(resume, HarnessReport):
        return None
    if not isinstance(resume, str | os.PathLike):
        raise TypeError(f"resume must be a path or a HarnessReport; got resume={resume!r}.")
    path = Path(resume)
    if not path.parent.is_dir():
        raise ValueError(f"resume must lie in a directory that exists; got resume={str(path)!r}.")
    return path


def _run_of(report):
    return {"kernel": report.kernel, "spec": report.spec.name, **report.settings}


def _require_same(now, before, where):
    for name in {**now, **before}:
        if now.get(name) != before.get(name):
            raise ValueError(
                f"resume must hold outcomes of the same run; got {where}, of {name} "
                f"{before.get(name)!r} and not {now.get(name)!r}."
            )


def _lines(path):
    """The lines of a file as JSON; one that a killed process left half written is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return [line for line in lines if isinstance(line, dict)] or [{}]


def _ends_with_a_line(path):
    if not path.exists() or not path.stat().st_size:
        return True
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
