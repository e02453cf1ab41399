"""`refattn check --html` writes a page of every result, with the X-ray of the kernel where it is given."""

import numpy as np
import pytest

from refattn.cli import main
from refattn.oracle.inputs.families import Sizes, attention_inputs
from refattn.oracle.vectors.case_file import load_case, save_case
from refattn.oracle.vectors.containers import write_arrays
from refattn.oracle.vectors.golden import make_case

KERNEL = """
import numpy, refattn
def skips(query, key, value):
    mask = numpy.arange(key.shape[-2]) != 3
    return refattn.attention(query, key, value, mask=mask[None]).astype(numpy.float32)
"""


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_case(make_case(attention_inputs("normal", sizes=Sizes(1, 2, 1, 5, 9, 4, 4))), tmp_path / "c.npz")
    case = load_case(tmp_path / "c.npz")
    (tmp_path / "kernels.py").write_text(KERNEL)
    import refattn

    output = refattn.attention(*case.arrays, mask=(np.arange(9) != 3)[None]).astype(np.float32)
    write_arrays(tmp_path / "<img src=x>.npz", {"output": output}, "")
    write_arrays(tmp_path / "right.npz", {"output": case.output.astype(np.float32)}, "")
    return tmp_path


def test_a_wrong_result_with_its_kernel(files, capsys):
    words = ["check", "c.npz", "<img src=x>.npz", "--html", "x.html", "--kernel", "kernels.py:skips"]
    assert main(words) == 1
    page = (files / "x.html").read_text()
    assert "refattn check c.npz &#x27;&lt;img src=x&gt;.npz&#x27;</pre>" in page and "<img" not in page
    assert "X-ray" in page and "Key 3 of 9" in page and "errors of up to" in page
    assert "FAIL" in capsys.readouterr().out


@pytest.mark.parametrize("stored", [[], ["--stored"]])
def test_a_right_result(files, stored):
    assert main(["check", "c.npz", "right.npz", "--html", "x.html", *stored]) == 0
    page = (files / "x.html").read_text()
    assert "<h1>" in page and "pass" in page and ("within the stored bounds" in page) == bool(stored)


@pytest.mark.parametrize(
    "words, error",
    [
        (["--html", "x.txt"], "--html must name a .html file in a folder that exists; got 'x.txt'"),
        (["--html", "no/x.html"], "--html must name a .html file in a folder that exists; got 'no/x.html'"),
        (["--kernel", "kernels.py:skips"], "--kernel must be given with --html"),
    ],
)
def test_what_cannot_be_written_is_said_before_work(files, words, error, capsys):
    assert main(["check", "c.npz", "right.npz", *words]) == 2
    said = capsys.readouterr()
    assert error in said.err and said.out == ""


def test_a_kernel_that_raises_is_said_in_the_page(files):
    (files / "kernels.py").write_text("def skips(query, key, value):\n    raise ValueError('no <device>')\n")
    words = ["check", "c.npz", "<img src=x>.npz", "--html", "x.html", "--kernel", "kernels.py:skips"]
    assert main(words) == 1
    assert "no &lt;device&gt;" in (files / "x.html").read_text()
