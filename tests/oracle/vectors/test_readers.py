"""The readers in C++ and Rust, compiled and run where there is a compiler: right kernels pass, and of wrong
results they say where they differ.
"""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from refattn.oracle.vectors.pack_directory import write_pack
from refattn.oracle.vectors.packs import make_cases
from refattn.oracle.vectors.shapes import make_shape_cases, planned_cases, shape_sizes

EXAMPLES = Path(__file__).parents[3] / "examples"
CPP = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-o"]
READERS = {  # source, compilers, their options before the program's name
    "cpp": ("check_vectors_cpp/check_vectors.cpp", ("c++", "g++", "clang++"), CPP),
    "rust": (
        "check_vectors_rust/check_vectors.rs",
        ("rustc",),
        ["-O", "--edition", "2021", "-Dwarnings", "-o"],
    ),
}


@pytest.fixture(scope="module", params=READERS)
def program(request, tmp_path_factory):
    source, compilers, options = READERS[request.param]
    compiler = next((found for name in compilers if (found := shutil.which(name))), None)
    if compiler is None:
        pytest.skip(f"no compiler of {request.param}")
    target = tmp_path_factory.mktemp(request.param) / "check_vectors"
    done = subprocess.run([compiler, *options, target, EXAMPLES / source], capture_output=True, text=True)
    if "rustup" in done.stderr and "default" in done.stderr:
        pytest.skip("a launcher without a Rust toolchain")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return target


@pytest.fixture(scope="module")
def packs(tmp_path_factory):
    """Raw packs by name: small calls, and shapes in other layouts, dtypes and with some rows judged."""
    pytest.importorskip("ml_dtypes")
    place = tmp_path_factory.mktemp("packs")
    write_pack(place / "small", make_cases(["mha", "mqa", "gqa", "decode", "hostile"]), container="raw")
    for name, shape, tile, rows, about in (
        ("heads-last", "2x4/2x21x37", 16, 5, {"layout": "BSHD"}),
        ("no-batch", "1x6/3x19", None, None, {"layout": "SHD", "dtype": "bfloat16"}),
        ("heads-first", "1x4/1x23", None, 3, {"layout": "HSD"}),
    ):
        planned = planned_cases(shape_sizes(shape, "8/12"), tile, rows)
        write_pack(place / name, make_shape_cases(planned, **about)[1], container="raw")
    return lambda name: sorted(path for path in (place / name).iterdir() if path.is_dir())


def run(program, directories):
    done = subprocess.run([program, *directories], capture_output=True, text=True)
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    "pack, count", [("small", 23), ("heads-last", 12), ("no-batch", 2), ("heads-first", 2)]
)
def test_a_right_kernel_passes(program, packs, pack, count):
    code, text = run(program, packs(pack))
    assert code == 0, text
    assert text.splitlines()[-1] == f"{count} of {count} cases are right"


def test_what_the_kernel_cannot_run_is_left_out_and_named(program, packs):
    _, text = run(program, packs("small"))
    assert "normal-sinks left out: it has no sinks" in text
    assert "normal-causal right" in text


def test_a_wrong_option_fails_its_case_alone(program, packs, tmp_path):
    (path,) = [path for path in packs("small") if path.name == "gqa-normal-causal"]
    shutil.copytree(path, tmp_path / "copy")
    text = tmp_path / "copy" / "case.txt"
    text.write_text(text.read_text().replace("causal 1", "causal 0"))
    code, printed = run(program, [tmp_path / "copy", *packs("small")])
    assert code == 1 and printed.splitlines()[-1] == "23 of 24 cases are right"
    assert "normal-causal WRONG" in printed.splitlines()


@pytest.mark.parametrize("pack, axes", [("heads-last", (2, 21, 4, 12)), ("heads-first", (4, 23, 12))])
def test_where_a_result_differs_is_said_in_the_rows_of_the_kernel(program, packs, tmp_path, pack, axes):
    """One expected element moved, and then another by more."""
    path = next(path for path in packs(pack) if path.name.endswith(("21x37", "1x23")))
    shutil.copytree(path, tmp_path / "copy")
    expected = np.fromfile(path / "expected_output.bin")
    rows = np.fromfile(path / "expected_rows.bin", "<i8")
    judged = expected.reshape(
        [len(rows) if size == axes[-3 if pack == "heads-last" else -2] else size for size in axes]
    )
    moved = judged.copy()
    first, worst = (0,) * judged.ndim, tuple(size - 1 for size in judged.shape)
    moved[first] += 0.5
    moved[worst] -= 20.0
    moved.tofile(tmp_path / "copy" / "expected_output.bin")
    code, printed = run(program, [tmp_path / "copy"])
    in_the_call = tuple(size - 1 for size in axes)  # the last row is judged
    assert code == 1 and rows[0] == 0 and rows[-1] + 1 in axes
    one, other, count, *_ = printed.splitlines()
    assert one.startswith(f"  output{[*first]}: got ") and other.startswith(
        f"  output{[*in_the_call]}: got "
    )
    assert f"output: 2 of {judged.size} elements differ" in count
    assert np.isclose(float(one.partition("expected ")[2].partition(",")[0]), moved[first], rtol=1e-8)


def test_nothing_read_is_a_failure(program, tmp_path):
    assert run(program, [])[0] == 1
    assert run(program, [tmp_path])[0] != 0
