"""The `refattn` command as a process: help, exit codes, and ends that are not its own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import refattn
from refattn.cli import SUBCOMMANDS, main
from refattn.oracle.inputs.families import Sizes, attention_inputs
from refattn.oracle.vectors.case_file import save_case
from refattn.oracle.vectors.containers import write_arrays
from refattn.oracle.vectors.golden import make_case

ROOT = Path(refattn.__file__).parents[1]


def command(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "refattn", *arguments], stderr=subprocess.PIPE, text=True, cwd=ROOT, **options
    )


def test_the_help_shows_every_subcommand_and_the_exit_codes():
    text = subprocess.run(
        [sys.executable, "-m", "refattn", "--help"], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout
    assert all(f"refattn {name}" in text for name in SUBCOMMANDS) and "exit codes: 0 all is well" in text
    assert max(map(len, text.splitlines())) <= 150


@pytest.mark.parametrize(
    "words", [[name] for name in SUBCOMMANDS] + [["vectors", action] for action in ("make", "check", "list")]
)
def test_every_option_has_words(words):
    text = subprocess.run(
        [sys.executable, "-m", "refattn", *words, "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    ).stdout
    assert "exit code" in text or words[-1] in ("make", "list")  # those of vectors say it once
    lines = text.splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("  -"):
            assert "  " in line.strip() or following.startswith(" " * 10), line


@pytest.mark.skipif(os.name != "posix", reason="pipes and signals of POSIX")
class TestEnds:
    def test_the_reader_goes_away(self):
        reading, writing = os.pipe()
        os.close(reading)
        process = command("vectors", "list", stdout=writing)
        os.close(writing)
        assert process.communicate()[1] == "" and process.returncode == 141

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
    def test_standard_output_is_full(self):
        with open("/dev/full", "w") as full:
            process = command("kv", "--list", stdout=full)
            error = process.communicate()[1]
        assert error.startswith("refattn: [Errno") and error.count("\n") == 1 and process.returncode == 2

    def test_interrupted(self, tmp_path):
        process = command("vectors", "make", str(tmp_path / "pack"), stdout=subprocess.DEVNULL)
        while (
            not any((tmp_path / "pack").glob("*.npz")) and process.poll() is None
        ):  # while numpy.random is imported, an interrupt is lost
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.communicate()[1] == "\nrefattn: interrupted\n" and process.returncode == 130
        assert not (tmp_path / "pack" / "manifest.json").exists()

    def test_a_report_that_cannot_be_written_does_not_hide_the_result(self, tmp_path):
        command(
            "vectors", "make", str(tmp_path / "p"), "--pack", "decode", stdout=subprocess.DEVNULL
        ).communicate()
        process = command(
            "vectors",
            "check",
            str(tmp_path / "p"),
            "--junit",
            str(tmp_path / "missing" / "x.xml"),
            stdout=subprocess.PIPE,
        )
        output, error = process.communicate()
        assert (
            "5 of 5 cases are right" in output
            and "x.xml" in error
            and "Traceback" not in error
            and process.returncode == 2
        )


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A case and its path."""
    case = make_case(attention_inputs("normal", ["causal"], sizes=Sizes(2, 4, 2, 3, 7, 8, 8)))
    path = tmp_path_factory.mktemp("cases") / "case.npz"
    save_case(case, path)
    return path, case


class TestResultFiles:
    """What `check` and `diagnose` read."""

    SUBCOMMANDS = ("check", "diagnose")

    def run(self, capsys, *words):
        code = main([*map(str, words)])
        return code, "".join(capsys.readouterr())

    def written(self, path, ending, array):
        """A file that holds nothing but an lse."""
        path = path / f"result{ending}"
        if ending == ".npy":
            np.save(path, array)
        elif ending == ".bin":
            path.write_bytes(array.tobytes())
        else:
            path.mkdir() if ending == "" else None
            write_arrays(path, {"lse": array}, "", "raw" if ending == "" else None)
        return path

    @pytest.mark.parametrize("subcommand", SUBCOMMANDS)
    @pytest.mark.parametrize(
        ("words", "name"),
        [(("CASE", ""), "result"), (("", "CASE"), "case"), (("CASE", "CASE", "--lse", ""), "--lse")],
    )
    def test_an_empty_path_is_refused_by_name(self, capsys, case, subcommand, words, name):
        code, text = self.run(
            capsys, subcommand, *(str(case[0]) if word == "CASE" else word for word in words)
        )
        assert code == 2 and f"{name} must be the path of a file or directory; got ''." in text

    @pytest.mark.parametrize("ending", [".npz", ".safetensors", "", ".npy", ".bin"])
    @pytest.mark.parametrize("stored", [(), ("--stored",)])
    def test_an_lse_alone_is_judged_alone(self, capsys, tmp_path, case, ending, stored):
        path, right = case
        lse = right.lse.astype(np.float32)
        code, text = self.run(capsys, "check", path, self.written(tmp_path, ending, lse), *stored)
        assert code == 0 and ("only the lse was given" in text or "no output given" in text), text
        (tmp_path / "wrong").mkdir()
        code, text = self.run(
            capsys, "check", path, self.written(tmp_path / "wrong", ending, lse + np.float32(0.1)), *stored
        )
        assert code == 1, text

    @pytest.mark.parametrize("ending", [".npz", ".safetensors", "", ".npy", ".bin"])
    def test_diagnose_says_that_it_needs_the_output(self, capsys, tmp_path, case, ending):
        code, text = self.run(
            capsys, "diagnose", case[0], self.written(tmp_path, ending, case[1].lse.astype(np.float32))
        )
        assert code == 2 and "must hold the output, by which mistakes are told" in text
