"""`refattn xray`: the kernel it is told, the calls it runs, and what it prints and returns."""

import json
import sys

import pytest

from refattn.cli import main
from refattn.oracle.inputs.families import Sizes, attention_inputs
from refattn.oracle.vectors.case_file import save_case
from refattn.oracle.vectors.golden import make_case

KERNELS = """
import numpy as np
import refattn

def right(query, key, value, causal=False, mask=None):
    return refattn.attention(query, key, value, causal=causal, mask=mask).astype(np.float32)

def top_left(query, key, value, causal=False):
    return refattn.attention(query, key, value, causal=causal, q_offset=0).astype(np.float32)

def like_torch(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    if attn_mask is not None and attn_mask.dtype != bool:
        raise NotImplementedError("additive masks")
    return refattn.attention(query, key, value, causal=is_causal, q_offset=0, mask=attn_mask, scale=scale).astype(np.float32)

def transposed_result(query, key, value):
    return np.swapaxes(right(query, key, value), -1, -2)[..., :-1, :]

def raises(query, key, value):
    raise RuntimeError("no device")

def takes_nothing(query, key, value):
    raise NotImplementedError("not yet")

refused = []

def narrow(query, key, value):
    print("compiling")
    refused.append(1)
    if len(refused) == 1:
        raise ValueError("head_dim must be 20")
    return right(query, key, value, causal=True)

class Holder:
    kernel = staticmethod(top_left)

number = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a module of kernels, which is the current directory."""
    monkeypatch.chdir(tmp_path)
    name = f"kernels_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(KERNELS)
    yield tmp_path, name
    sys.modules.pop(name, None)


def run(capsys, *words):
    code = main(["xray", *map(str, words)])
    return (code, *capsys.readouterr())


@pytest.mark.parametrize("spelled", ["{name}", "{name}.py", "{folder}/{name}.py"])
def test_a_kernel_is_found_by_module_and_by_file(capsys, folder, spelled):
    where = spelled.format(folder=folder[0], name=folder[1])
    code, output, _ = run(capsys, f"{where}:Holder.kernel")
    assert code == 1 and output.startswith("normal causal\nThe position of a row is counted from key 0")
    assert "calls of the kernel" in output and str(folder[0]) not in sys.path


def test_a_right_kernel_agrees_on_all_calls_that_it_takes(capsys, folder):
    code, output, _ = run(capsys, f"{folder[1]}:right")
    assert code == 0 and "calls, all right\nThe result agrees" in output
    assert "calls that the kernel does not take: no bias (" in output


def test_a_case_is_the_only_call(capsys, folder):
    for options, wrong in (((), False), (("causal",), True)):
        path = folder[0] / "case.npz"
        save_case(make_case(attention_inputs("normal", options, sizes=Sizes(2, 4, 2, 3, 7, 8, 8))), path)
        code, output, _ = run(capsys, f"{folder[1]}:top_left", "--case", path, "--json")
        plain = json.loads(output)
        assert code == wrong and plain["verdict"] == ("described" if wrong else "agrees")
        assert plain["kernel"].endswith(":top_left") and plain["skipped"] == {}


def test_json_names_the_case_and_the_reasons(capsys, folder):
    code, output, _ = run(capsys, f"{folder[1]}:top_left", "--json")
    plain = json.loads(output)
    assert code == 1 and plain["case"] == "normal causal" and plain["skipped"]["no bias"] >= 1
    assert plain["findings"][0]["kind"] == "visible keys" and plain["counts"]["missing"] > 0


def test_a_dialect_is_spoken(capsys, folder):
    code, output, _ = run(capsys, f"{folder[1]}:like_torch", "--dialect", "torch")
    assert code == 0, output  # its own alignment is what the dialect means, so that it is right there
    code, output, _ = run(capsys, f"{folder[1]}:like_torch", "--dialect", "flash_attn")
    assert code == 2


def test_a_picture_is_written_where_something_is_wrong(capsys, folder):
    pytest.importorskip("matplotlib")
    code, output, _ = run(capsys, f"{folder[1]}:top_left", "--picture", "x.png")
    assert code == 1 and output.endswith("picture: x.png\n")
    assert (folder[0] / "x.png").read_bytes().startswith(b"\x89PNG")
    code, output, _ = run(capsys, f"{folder[1]}:right", "--picture", "y.png")
    assert code == 0 and output.endswith("picture: none, nothing was measured\n")
    assert not (folder[0] / "y.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["top_left"], "kernel must be module:function or path.py:function; got 'top_left'."),
        ([":top_left"], "kernel must be module:function or path.py:function; got ':top_left'."),
        (["NAME:"], "kernel must be module:function or path.py:function"),
        (["NAME:other"], "kernel must be the name of a function in NAME; got 'other', which is not there."),
        (["NAME:number"], "kernel must be callable; NAME:number is of type int."),
        (["no_module:f"], "no_module cannot be imported: ModuleNotFoundError"),
        (["no_file.py:f"], "no_file.py must be a file that exists."),
        (["broken.py:f"], "broken.py cannot be imported: ZeroDivisionError: division by zero"),
        (["NAME:raises"], "NAME:raises raised RuntimeError: no device"),
        (["NAME:takes_nothing"], "kernel must take the arguments of at least one call; not yet"),
        (
            ["NAME:transposed_result"],
            "output must have shape (2, 6, 19, 20); the kernel returned (2, 6, 19, 19).",
        ),
        (["NAME:top_left", "--dialect", "other"], "dialect must be one of refattn, torch"),
        (["NAME:top_left", "--spec", "other"], "spec must be a KernelSpec"),
        (["NAME:top_left", "--case", "no_case.npz"], "no_case.npz"),
        (["NAME:top_left", "--picture", "no_folder/x.png"], "no_folder/x.png"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(capsys, folder, words, message):
    if "--picture" in words:
        pytest.importorskip("matplotlib")
    (folder[0] / "broken.py").write_text("1 / 0")
    code, output, error = run(capsys, *(word.replace("NAME", folder[1]) for word in words))
    assert code == 2 and output == "" and error.startswith("refattn xray: ") and error.count("\n") == 1
    assert message.replace("NAME", folder[1]) in error


def test_a_case_that_the_kernel_refuses_is_skipped_and_its_prints_are_no_part_of_json(capsys, folder):
    code, output, error = run(capsys, f"{folder[1]}:narrow", "--json")
    plain = json.loads(output)
    assert code == 1 and "compiling" in error
    assert any("head_dim must be 20" in reason for reason in plain["skipped"])


@pytest.mark.parametrize(
    "path, words", [("no/such/p.png", "a folder that exists"), ("p.xyz", "must end with")]
)
def test_a_picture_that_cannot_be_written_is_refused_at_once(capsys, folder, path, words):
    pytest.importorskip("matplotlib")
    code, output, error = run(capsys, f"{folder[1]}:raises", "--picture", path)
    assert code == 2 and output == "" and words in error
