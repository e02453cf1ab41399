"""`refattn verify` and the frame of the command line: exit codes, the table, JSON, and that a wrong
golden or a wrong kernel is caught.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import refattn
from refattn import cli, goldens
from refattn.commands.verify import as_json, as_text, find_kernels
from refattn.goldens.compare import exactness_allowance, kernel_allowance
from refattn.goldens.store import BFLOAT16
from refattn.verify import verify

ROOT = Path(__file__).parents[2]
U64, U32 = 2.0**-53, 2.0**-24


@pytest.fixture(scope="module")
def store():
    """tests/goldens/store.py: the writer of golden files."""
    spec = importlib.util.spec_from_file_location("golden_store", ROOT / "tests" / "goldens" / "store.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def halves(array):
    """float64 as the bfloat16 bits that golden files hold."""
    return (np.asarray(array, np.float64).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def write(store, path, case, **changes):
    """One case as a golden file of its own, with some of its golden arrays replaced."""
    golden = {name: halves(a) if name in BFLOAT16 else a for name, a in (case.golden | changes).items()}
    bundle = store.Bundle({"script": "a test", "versions": {"torch": "none", "numpy": np.__version__}})
    bundle.add(case.name, case.variant, case.source, case.function, case.arguments, case.options, golden, {})
    bundle.write(path)


def test_corrupted_golden_exits_1_and_names_the_case(tmp_path, store, capsys):
    case = goldens.load("GQA_causal_bottom_right")
    output = case.output.copy()
    output[1, 4, 2, 3] += 1e-12
    write(store, tmp_path / "corrupted.npz", case, output=output)
    assert cli.main(["verify", "--goldens", str(tmp_path)]) == 1
    text = capsys.readouterr().out
    assert "FAILED: 1 of 1 cases" in text
    found = re.search(
        r"GQA_causal_bottom_right \(torch formula, refattn\.attention_with_lse\): output\[1, 4, 2, 3\] is (\S+), golden (\S+): off by (\S+),",
        text,
    )
    assert found, text
    assert float(found[2]) - float(found[1]) == pytest.approx(1e-12, rel=1e-3) and float(
        found[3]
    ) == pytest.approx(1e-12, rel=1e-3)


def test_corrupted_lse_exits_1_and_names_the_row(tmp_path, store, capsys):
    case = goldens.load("MLA_softcap_expand")
    lse = case.lse.copy()
    lse[1, 2, 0] *= 1 + 2**-40
    write(store, tmp_path / "corrupted.npz", case, lse=lse)
    assert cli.main(["verify", "--goldens", str(tmp_path)]) == 1
    assert re.search(r"MLA_softcap_expand .*lse\[1, 2, 0\] is", capsys.readouterr().out)


def test_remainder_cannot_excuse_a_wrong_golden(tmp_path, store, capsys):
    """A golden moved by far more than rounding, and its remainder moved back: output + output_low is
    still exact, torch's value is not.
    """
    case = goldens.load("MHA_plain")
    output, low = case.output.copy(), case.golden["output_low"].copy()
    output[0, 0, 0, 0] += 2.0**-30
    low[0, 0, 0, 0] = -(2.0**-30)
    write(store, tmp_path / "moved.npz", case, output=output, output_low=low)
    assert cli.main(["verify", "--goldens", str(tmp_path)]) == 1
    assert "golden output[0, 0, 0, 0]" in capsys.readouterr().out


def test_tampered_file_exits_1_with_one_clear_line(tmp_path, capsys):
    content = bytearray((Path(goldens.__file__).parent / "synthetic_mqa.npz").read_bytes())
    content[len(content) // 3] ^= 0x10
    (tmp_path / "synthetic_mqa.npz").write_bytes(content)
    assert cli.main(["verify", "--goldens", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"refattn verify: synthetic_mqa\.npz is damaged: .*\n", captured.err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage: refattn"),
        (["nothing"], "invalid choice: 'nothing'"),
        (["verify", "--nothing"], "unrecognized arguments: --nothing"),
        (["verify", "extra"], "unrecognized arguments: extra"),
        (["verify", "--goldens"], "expected one argument"),
        (["verify", "--goldens", "no/such/folder"], "--goldens must name a folder; got no/such/folder"),
        (["kv", "--context", "many"], "context must be a whole number of tokens"),
    ],
)
def test_bad_usage_exits_2(arguments, message, capsys):
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == ""


def test_folder_without_goldens_is_bad_usage(tmp_path, capsys):
    assert cli.main(["verify", "--goldens", str(tmp_path)]) == 2
    assert "no golden files" in capsys.readouterr().err


def test_fail_fast_stops_at_the_first():
    cases = [goldens.load("MHA_plain"), goldens.load("MHA_scale")]
    wrong = types.SimpleNamespace(
        __name__="wrong", attention_with_lse=lambda query, key, value, **options: (query, query[..., 0])
    )
    assert len(verify(cases, kernels=wrong, fail_fast=True).failures) == 1
    assert len(verify(cases, kernels=wrong).failures) == 2


def test_reference_rule_is_four_units_and_eight_ulp():
    case = goldens.load("MHA_plain")
    np.testing.assert_array_equal(
        exactness_allowance("output", case, np.float64), 4 * U64 * case.golden["gauge"]
    )
    m, lse = case.golden["row_max"].astype(float), case.lse
    np.testing.assert_array_equal(
        exactness_allowance("lse", case, np.float64), 8 * np.spacing(np.maximum(abs(m), abs(lse - m)))
    )


def package(**functions):
    return types.SimpleNamespace(__name__="kernels", **functions)


def with_attention(change):
    """A package whose attention_with_lse is the reference's, changed."""
    return package(
        attention_with_lse=lambda query, key, value, **options: change(
            *refattn.attention_with_lse(query, key, value, **options)
        )
    )


def test_kernels_with_float32_results_hold():
    report = verify(
        [goldens.load("GQA_causal_large")],
        kernels=with_attention(lambda o, l: (o.astype(np.float32), l.astype(np.float32))),
    )
    assert report.failures == []
    (row,) = report.rows
    assert row.kernel_cases == 1 and 0 < row.kernels.of_bound <= 1 and row.speed_up > 0
    assert "cpu_kernels" in as_text(report) and as_json(report)["rows"][0]["cpu_kernels"]["cases"] == 1


def test_kernels_that_cannot_be_imported_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cpu_kernels", None)
    kernels, note = find_kernels()
    assert kernels is None and note.startswith(
        "cpu_kernels was not verified, importing it failed: ModuleNotFoundError: import of cpu_kernels "
        "halted"
    )


def test_functions_that_kernels_lack_are_left_to_the_reference():
    report = verify([goldens.load("MHA_packed_plain")], kernels=package())
    assert report.failures == [] and report.rows[0].kernels is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o, l: (o * 1.001, l), r"output\[.*\] is .*, golden .*: off by .*, allowed"),
        (lambda o, l: (o, l / np.log(2)), r"lse\[.*\] is .*, golden"),
        (lambda o, l: (np.where(o == o.flat[7], np.nan, o), l), r"output\[0, 0, 1, 0\] is nan, golden"),
        (lambda o, l: (o[..., :-1], l), r"output\.shape is .*, golden"),
        (lambda o, l: (o, None), r"lse\.shape is \(\), golden"),
        (lambda o, l: 1 / 0, "raised ZeroDivisionError: division by zero"),
    ],
    ids=["scaled", "base_2", "nan", "shape", "no_lse", "raises"],
)
def test_wrong_kernels_are_named(change, message):
    report = verify([goldens.load("MHA_plain")], kernels=with_attention(change))
    (failure,) = report.failures
    assert (failure["case"], failure["function"]) == ("MHA_plain", "kernels.attention_with_lse")
    assert re.match(message, failure["failure"])
    json.dumps(as_json(report), allow_nan=False)
    assert "1 FAILED" in as_text(report) and "MHA_plain" in as_text(report)


def test_rows_that_see_nothing_must_be_exactly_empty():
    """Output 0 and lse -inf: no bound excuses anything else."""
    case = goldens.load("GQA_mask_hides_rows")
    for change in (
        lambda o, l: (np.where(o == 0, 1e-30, o), l),
        lambda o, l: (o, np.where(np.isneginf(l), -1e30, l)),
    ):
        assert len(verify([case], kernels=with_attention(change)).failures) == 1


def test_kernel_allowance_follows_the_arithmetic():
    narrow, wide = goldens.load("MHA_plain"), goldens.load("MHA_float64_inputs")
    assert narrow.arguments["query"].dtype == np.float32 and wide.arguments["query"].dtype == np.float64
    for name in ("output", "lse"):
        in_float32 = kernel_allowance(name, narrow, np.dtype(np.float32))
        in_float64 = kernel_allowance(name, wide, np.dtype(np.float64))
        assert (in_float32 > 1e7 * in_float64.max() / 100).all()
        at_least = narrow.error_bound(U32)[name == "lse"]
        assert (in_float32 >= at_least).all()
        assert (kernel_allowance(name, narrow, np.dtype(np.float16)) >= in_float32).all()


class Terminal:
    """A stream that claims to be a terminal of 40 columns, or not."""

    def __init__(self, live):
        self.live, self.text = live, ""

    def isatty(self):
        return self.live

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def test_version_and_help(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"refattn {refattn.__version__}\n"
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "refattn verify" in text and "refattn kv --model llama3-8b" in text and "examples:" in text
    assert cli.main(["verify", "--help"]) == 0
    assert "exit code: 0 when everything holds" in " ".join(capsys.readouterr().out.split())


def test_subcommands_load_only_what_they_need():
    code = (
        "import sys, refattn.cli; refattn.cli.main(['kv', '--list']); print({'numba', 'torch', "
        "'cpu_kernels', 'refattn.verify', 'refattn.commands.verify'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=60,
    )
    assert done.stdout.splitlines()[-1] == "set()"


def test_an_interrupted_command_prints_what_it_found(monkeypatch, capsys):
    def interrupted(argv):
        error = KeyboardInterrupt()
        error.partial = "attention: interrupted after 3 of 9 rows"
        raise error

    monkeypatch.setattr(cli, "dispatch", interrupted)
    assert cli.main(["check", "a", "b"]) == 130
    assert "interrupted after 3 of 9 rows" in capsys.readouterr().out
    assert cli.main(["check", "a", "b", "--json"]) == 130
    assert capsys.readouterr().out == ""


def test_interrupt_is_one_line(monkeypatch, capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "dispatch", interrupted)
    assert cli.main(["verify"]) == 130
    assert capsys.readouterr().err == "\nrefattn: interrupted\n"


@pytest.mark.skipif(os.name == "nt", reason="pipes behave otherwise on Windows")
def test_reader_that_goes_away_is_no_traceback():
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-m", "refattn", "kv", "--list", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    ) as process:
        process.stdout.close()
        error = process.stderr.read()
        assert process.wait(timeout=60) == 141
    assert error == b""
