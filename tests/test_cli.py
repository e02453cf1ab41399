"""The `refattn` command as a process: help, exit codes, and ends that are not its own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import refattn
from refattn.cli import SUBCOMMANDS

ROOT = Path(refattn.__file__).parents[1]


def command(*arguments, **options):
    return subprocess.Popen([sys.executable, "-m", "refattn", *arguments], stderr=subprocess.PIPE, text=True, cwd=ROOT, **options)


def test_the_help_shows_every_subcommand_and_the_exit_codes():
    text = subprocess.run([sys.executable, "-m", "refattn", "--help"], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert all(f"refattn {name}" in text for name in SUBCOMMANDS) and "exit codes: 0 all is well" in text
    assert max(map(len, text.splitlines())) <= 150


@pytest.mark.parametrize("words", [[name] for name in SUBCOMMANDS] + [["vectors", action] for action in ("make", "check", "list")])
def test_every_option_has_words(words):
    text = subprocess.run([sys.executable, "-m", "refattn", *words, "--help"], capture_output=True, text=True, cwd=ROOT, check=True).stdout
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
        while not any((tmp_path / "pack").glob("*.npz")) and process.poll() is None:  # while numpy.random is imported, an interrupt is lost
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.communicate()[1] == "\nrefattn: interrupted\n" and process.returncode == 130
        assert not (tmp_path / "pack" / "manifest.json").exists()

    def test_a_report_that_cannot_be_written_does_not_hide_the_result(self, tmp_path):
        command("vectors", "make", str(tmp_path / "p"), "--pack", "decode", stdout=subprocess.DEVNULL).communicate()
        process = command("vectors", "check", str(tmp_path / "p"), "--junit", str(tmp_path / "missing" / "x.xml"), stdout=subprocess.PIPE)
        output, error = process.communicate()
        assert "5 of 5 cases are right" in output and "x.xml" in error and "Traceback" not in error and process.returncode == 2
