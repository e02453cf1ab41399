"""Raw directories, packs and manifests made to harm: each is refused with a message, and nothing
outside the pack is opened.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from attack_files import MEBIBYTE, raw, refused

from refattn.cli import main
from refattn.oracle.inputs.families import Sizes, attention_inputs
from refattn.oracle.vectors.case_file import digest, load_case, save_case
from refattn.oracle.vectors.containers import read_arrays, write_arrays
from refattn.oracle.vectors.golden import make_case
from refattn.oracle.vectors.pack_directory import read_pack, write_pack
from refattn.oracle.vectors.untrusted import VectorError, parse_json


@pytest.mark.parametrize(
    "line, words",
    [
        ("array ../secret float32 1 2", "array names"),
        ("array /etc/passwd uint8 1 2", "array names"),
        ("array query float32 1 99999999999999999999", "must describe"),
        ("array query float32 2 2", "must describe"),
        ("array query float32 1 1073741824", "must hold at most"),
        ("array query object 1 2", "dtype"),
        ("array query float32 x 2", "must describe"),
        ("array query float32 1 3", "must have 12 bytes"),
        ("array query float32 1 2\narray query float32 1 2", "twice"),
    ],
)
def test_bad_raw_cases(tmp_path, line, words):
    (tmp_path / "secret.bin").write_bytes(b"\0" * 8)
    refused(raw(tmp_path / "case", [line], [("query.bin", b"\0" * 8)]), words)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_links_pipes_and_devices_are_not_opened(tmp_path):
    (tmp_path / "secret.bin").write_bytes(b"\0" * 8)
    case = raw(tmp_path / "case", ["array query float32 1 2"])
    (case / "query.bin").symlink_to(tmp_path / "secret.bin")
    refused(case, "regular file")
    (case / "query.bin").unlink()
    os.mkfifo(case / "query.bin")
    refused(case, "regular file")
    os.mkfifo(tmp_path / "a.npz")
    refused(tmp_path / "a.npz", "regular file")
    (tmp_path / "zero.safetensors").symlink_to("/dev/zero")
    refused(tmp_path / "zero.safetensors", "regular file")


@pytest.fixture(scope="module")
def case():
    return make_case(
        attention_inputs("normal", ["causal", "mask"], sizes=Sizes(1, 2, 1, 3, 5, 4, 4)), pack="own"
    )


@pytest.mark.parametrize("file", ["../case.npz", "/etc/passwd", "a/b.npz", "..", "", "case\0.npz", "con"])
def test_packs_that_name_files_elsewhere(tmp_path, case, file):
    write_pack(tmp_path / "pack", [case])
    manifest = json.loads((tmp_path / "pack" / "manifest.json").read_text())
    manifest["cases"][0]["file"] = file
    (tmp_path / "pack" / "manifest.json").write_text(json.dumps(manifest))
    refused(tmp_path / "pack", "files must lie in the directory", lambda path: list(read_pack(path)))


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda m: m.update(format="other"), "must be a refattn case"),
        (lambda m: m.update(version=99), "version 1"),
        (lambda m: m.update(function="os.system"), "function must be one of"),
        (lambda m: m.update(function="__import__"), "function must be one of"),
        (lambda m: m.update(arguments=["query"]), "arguments of attention"),
        (lambda m: m["options"].update(__class__=1), "no option"),
        (lambda m: m["options"].update(mask={"array": "nothing"}), "must name one of the arrays"),
        (
            lambda m: m["options"].update(mask={"array": "mask", "path": "/etc"}),
            "must name one of the arrays",
        ),
        (
            lambda m: m["options"].update(causal="yes"),
            "must hold a call of attention: causal must be True or False",
        ),
        (lambda m: m["options"].update(bias={"array": "key"}), "must hold a call of attention: bias must"),
        (lambda m: m["options"].update(q_offset=10**19), "64-bit integers"),
        (lambda m: m["spec"].update(block_size=10**19), "64-bit integers"),
        (lambda m: m["options"].update(window=[1, 2, 3]), "pair of integers"),
        (lambda m: m["options"].update(window=[[1], None]), "pair of integers"),
        (lambda m: m.update(name="../../x"), "must have a name"),
        (lambda m: m.update(seed="x"), "seed"),
        (lambda m: m.update(scale=None), "must have a scale"),
        (lambda m: m["spec"].update(block_size=-1), "spec"),
        (lambda m: m["spec"].update(unknown=1), "spec"),
        (lambda m: m["spec"].update(input="os"), "spec"),
        (lambda m: m["arrays"]["query"].update(sha256="0" * 64), "sha256"),
        (lambda m: m["arrays"]["query"].update(shape=[1]), "must have dtype"),
        (lambda m: m["arrays"].pop("query"), "must describe query"),
        (lambda m: m.pop("options"), "must have a options"),
    ],
)
def test_manifests_that_lie(tmp_path, case, change, words):
    save_case(case, tmp_path / "a.npz")
    arrays, text = read_arrays(tmp_path / "a.npz")
    manifest = json.loads(text)
    change(manifest)
    write_arrays(tmp_path / "a.npz", arrays, json.dumps(manifest))
    refused(tmp_path / "a.npz", words, load_case)


def test_bounds_that_lie(tmp_path, case):
    save_case(case, tmp_path / "a.npz")
    arrays, text = read_arrays(tmp_path / "a.npz")
    refused_with = {
        "output_bound": -np.ones_like(case.output),
        "lse_bound": np.full_like(case.lse, np.nan),
        "expected_output": case.output[..., :2],
    }
    for name, array in refused_with.items():
        manifest = json.loads(text)
        manifest["arrays"][name] = {"dtype": "float64", "shape": list(array.shape), "sha256": digest(array)}
        write_arrays(tmp_path / "b.npz", arrays | {name: array}, json.dumps(manifest))
        refused(tmp_path / "b.npz", "bounds must be at least 0|matching shapes", load_case)
    for name, array in {
        "value": np.array(3.0, np.float32),
        "query": np.ones(5, np.float32),
        "key": np.ones((2, 2), np.int32),
    }.items():
        manifest = json.loads(text)
        manifest["arrays"][name] = {
            "dtype": array.dtype.name,
            "shape": list(array.shape),
            "sha256": digest(array),
        }
        write_arrays(tmp_path / "b.npz", arrays | {name: array}, json.dumps(manifest))
        refused(tmp_path / "b.npz", "must hold a call of attention", load_case)
    write_arrays(tmp_path / "c.npz", {k: v for k, v in arrays.items() if k != "lse_bound"}, text)
    refused(tmp_path / "c.npz", "must hold the array lse_bound", load_case)
    write_arrays(tmp_path / "d.npz", arrays, "")
    refused(tmp_path / "d.npz", "manifest of a case", load_case)


def test_text_too_long(tmp_path):
    write_arrays(tmp_path / "a.npz", {}, "x" * (2 * MEBIBYTE))
    refused(tmp_path / "a.npz", "case.json must have at most")


def test_json_is_strict():
    assert parse_json('{"a": [1, 2.5, null]}', "it") == {"a": [1, 2.5, None]}
    for text in (
        "{",
        '{"a": Infinity}',
        '{"a":1,"a":2}',
        "1" * 30,
        str(2**63),
        "1e999",
        "[" * 10**5,
        '{"a":' * 10**5,
    ):
        with pytest.raises(VectorError):
            parse_json(text, "it")


def test_the_command_says_what_is_wrong_and_exits_with_2(tmp_path, case, capsys):
    save_case(case, tmp_path / "case.npz")
    (tmp_path / "out.npz").write_bytes(b"PK")
    assert main(["check", str(tmp_path / "case.npz"), str(tmp_path / "out.npz")]) == 2
    assert "out.npz must be a zip file" in capsys.readouterr().out
    assert main(["diagnose", str(tmp_path / "out.npz"), str(tmp_path / "out.npz")]) == 2
    assert "out.npz must be a zip file" in capsys.readouterr().err
    assert main(["vectors", "check", str(tmp_path)]) == 2


def test_reading_imports_no_pickle_machinery(tmp_path, case):
    save_case(case, tmp_path / "case.npz")
    code = (
        "import sys, pickle, builtins\n"
        "from refattn.oracle.vectors.case_file import load_case\n"
        f"load_case({str(tmp_path / 'case.npz')!r})\n"  # imports use exec
        "def no(*a, **k): raise SystemExit('called')\n"
        "pickle.loads = pickle.load = pickle.Unpickler = no\n"
        "builtins.eval = builtins.exec = no\n"
        f"print(load_case({str(tmp_path / 'case.npz')!r}).name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.strip() == case.name, done.stderr
