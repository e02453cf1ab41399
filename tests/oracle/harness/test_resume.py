"""check_kernel with a given time, and from an earlier run: what it leaves out, and what a killed one leaves."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import refattn
from refattn.oracle import check_kernel
from refattn.oracle.harness.order import by_worth, expected_seconds


def merged(outputs, lses):
    return refattn.merge_states(outputs, lses)


def check_merges(kernel=merged, **options):
    return check_kernel(kernel, function="merge_states", spec="float64", diagnose=False, **options)


class Case:
    def __init__(self, name, topic):
        self.id, self.topic, self.inputs = name, topic, None


def test_the_first_of_each_topic_comes_before_the_second_of_any_alike():
    tests = [Case("a", "pages"), Case("b", "pages"), Case("c", "tiles"), Case("d", "guards")]
    assert [test.id for test in by_worth(tests)] == ["a", "b", "c", "d"]
    many = [*(Case(str(n), "pages") for n in range(9)), Case("guard", "guards")]
    assert by_worth(many).index(many[-1]) < len(many) - 1


def test_the_cost_of_a_call_follows_from_its_sizes():
    from refattn.oracle.inputs.families import Sizes, attention_inputs

    small, long = (attention_inputs(sizes=Sizes(batch=1, kv_len=keys)) for keys in (64, 4096))
    assert expected_seconds(small) < expected_seconds(long)


def test_tests_without_time_are_named_and_run_by_the_next():
    first = check_merges(seconds=1e-9)
    assert not first.outcomes and len(first.not_run) > 20 and not first.passed
    assert "not run for want of time" in first.summary and "of reference" in first.text()
    second = check_merges(resume=first)
    assert second.passed and not second.not_run and len(second.outcomes) == len(first.not_run)
    assert json.loads(second.to_json())["not_run"] == []


def test_a_file_keeps_what_has_run(tmp_path):
    path, calls = tmp_path / "table.jsonl", []

    def kernel(outputs, lses):
        calls.append(1)
        return refattn.merge_states(outputs, lses)

    first = check_merges(kernel, resume=path, only="reference")
    made = len(calls)
    again = check_merges(kernel, resume=path, only="reference")
    assert len(calls) == made and [o.id for o in again.outcomes] == [o.id for o in first.outcomes]
    assert again.passed and again.outcomes[0].use == first.outcomes[0].use
    whole = check_merges(kernel, resume=str(path))
    assert len(whole.outcomes) > len(first.outcomes) and whole.passed


def test_failures_are_kept_with_their_words(tmp_path):
    def kernel(outputs, lses):
        output, lse = refattn.merge_states(outputs, lses)
        return output * 1.01, lse

    first = check_merges(kernel, resume=tmp_path / "t", only="reference")
    again = check_merges(kernel, resume=tmp_path / "t", only="reference")
    assert first.failures and [o.words for o in again.failures] == [o.words for o in first.failures]
    assert again.failures[0].words in again.text() and not again.passed


SCRIPT = """
    import os, signal, sys
    import refattn
    from refattn.oracle import check_kernel

    calls = []

    def kernel(outputs, lses):
        calls.append(1)
        if len(outputs) == 33 - int(sys.argv[2]) or len(calls) == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return refattn.merge_states(outputs, lses)

    report = check_kernel(kernel, function="merge_states", spec="float64", diagnose=False, resume=sys.argv[1])
    print(report.summary)
"""


def run_and_die(path, states=0):
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(path), str(states)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_killed_run_leaves_its_table(tmp_path):
    path = tmp_path / "table.jsonl"
    assert run_and_die(path).returncode == -signal.SIGKILL
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    done = [line["outcome"]["name"] for line in lines if "outcome" in line]
    assert len(done) == 8 and "begun" in lines[-1]
    with path.open("a") as file:
        file.write('{"outcome": {"section": "refe')  # half a line, as a full disk leaves it

    def kernel(outputs, lses):
        return refattn.merge_states(outputs, lses)

    report = check_merges(kernel, resume=path)
    assert report.passed and [o.name for o in report.outcomes[:8]] == done
    assert check_merges(kernel, resume=path).passed


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_test_in_which_the_process_always_dies_has_failed(tmp_path):
    path = tmp_path / "table.jsonl"
    for _ in range(2):
        assert run_and_die(path, states=25).returncode == -signal.SIGKILL  # in "8 states"

    def kernel(outputs, lses):
        assert len(outputs) != 8
        return refattn.merge_states(outputs, lses)

    report = check_merges(kernel, resume=path, only="reference")
    assert [o.name for o in report.failures] == ["8 states"]
    assert "the process ended in this test, 2 times" in report.text()


def test_ctrl_c_does_not_count_as_the_death_of_a_process(tmp_path):
    def kernel(outputs, lses):
        if len(outputs) == 8:
            raise KeyboardInterrupt
        return refattn.merge_states(outputs, lses)

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            check_merges(kernel, resume=tmp_path / "t", only="reference")

    def kernel(outputs, lses):
        return refattn.merge_states(outputs, lses)

    assert check_merges(kernel, resume=tmp_path / "t", only="reference").passed


def test_another_run_is_refused(tmp_path):
    path = tmp_path / "table.jsonl"
    report = check_merges(resume=path, only="reference: 1 states")
    others = {
        "seed": 1,
        "dtype": "float32",
        "level": "full",
        "hides_nan": False,
        "skip": ["2 states"],
        "tile": 16,
    }
    for name, value in others.items():
        for earlier in (path, report):
            with pytest.raises(ValueError, match=f"resume must hold outcomes of the same run.*{name}"):
                check_merges(resume=earlier, **{name: value})
    (tmp_path / "other").write_text("not a table\n")
    with pytest.raises(ValueError, match="resume must be a file that check_kernel wrote"):
        check_merges(resume=tmp_path / "other")


def test_arguments_that_json_writes_otherwise(tmp_path):
    how = {"resume": tmp_path / "t", "only": "reference: 1 states", "tile": (16, 32), "seed": np.int64(3)}
    assert check_merges(**how).passed and check_merges(**how).passed


def test_a_test_that_another_process_is_in_has_not_failed(tmp_path):
    path = tmp_path / "t"
    check_merges(resume=path, only="reference: 1 states")
    with path.open("a") as file:
        file.write(2 * (json.dumps({"begun": "reference: 8 states", "by": os.getppid()}) + "\n"))
    assert check_merges(resume=path, only="reference: 8 states").passed


@pytest.mark.parametrize("line", [{"outcome": {}}, {"outcome": None}, {"begun": []}, {"begun": 3}])
def test_lines_that_nobody_wrote(tmp_path, line):
    path = tmp_path / "t"
    check_merges(resume=path, only="reference: 1 states")
    with path.open("a") as file:
        file.write(2 * (json.dumps(line) + "\n"))
    with pytest.raises(ValueError, match="resume must hold lines as check_kernel writes them; got"):
        check_merges(resume=path, only="reference")


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"seconds": 0}, ValueError, "seconds must be a number above 0"),
        ({"seconds": "long"}, ValueError, "seconds must be a number above 0"),
        ({"resume": 3}, TypeError, "resume must be a path or a HarnessReport"),
        ({"resume": os.path.join("no", "such", "place")}, ValueError, "resume must lie in a directory"),
    ],
)
def test_wrong_arguments(options, error, words):
    with pytest.raises(error, match=words):
        check_merges(**options)
