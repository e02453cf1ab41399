"""Vectors of a shape of one's own: which cases there are, in which bytes, and what is said before work."""

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest

from refattn.cli import main
from refattn.oracle.bounds.bound import error_bound
from refattn.oracle.inputs.families import Sizes, attention_inputs
from refattn.oracle.simulated.emulated import EmulatedKernel
from refattn.oracle.vectors.case_file import load_case, save_case
from refattn.oracle.vectors.containers import read_arrays, write_arrays
from refattn.oracle.vectors.golden import LAYOUTS, make_case
from refattn.oracle.vectors.pack_directory import read_pack
from refattn.oracle.vectors.packs import recompute
from refattn.oracle.vectors.shapes import make_shape_cases, planned_cases, shape_sizes
from refattn.oracle.vectors.untrusted import VectorError

SIZES = Sizes(1, 4, 2, 11, 17, 8, 12)


@pytest.mark.parametrize(
    "shape, head_dim, sizes",
    [
        ("2x32/8x4096", "128", (2, 32, 8, 4096, 4096, 128, 128)),
        ("8x32/8x1x4096", "64", (8, 32, 8, 1, 4096, 64, 64)),
        ("1x16x77", "192/128", (1, 16, 16, 77, 77, 192, 128)),
    ],
)
def test_a_shape_in_words(shape, head_dim, sizes):
    assert shape_sizes(shape, head_dim) == Sizes(*sizes)


@pytest.mark.parametrize(
    "shape", ["2x32", "2x32/x8", "0x4x8", "2x4/0x8", "2x4x8x0", "axbxc", "2x4x8x8x8", "-1x4x8", ""]
)
def test_other_shapes_are_refused(shape):
    with pytest.raises(
        ValueError, match=f"shape must be BATCHxHEADS/KV_HEADSxROWSxKEYS.*got shape={shape!r}"
    ):
        shape_sizes(shape)


def test_lengths_follow_from_the_tile():
    keys = lambda planned: {case.sizes.kv_len for case in planned}
    square = planned_cases(shape_sizes("1x2x1000"), tile=64)
    assert keys(square) == {63, 64, 65, 129, 193, 1000} and all(
        c.sizes.q_len == c.sizes.kv_len for c in square
    )
    decode = planned_cases(shape_sizes("4x8/2x1x500"), tile=1)
    assert keys(decode) == {1, 2, 3, 4, 500} and {c.sizes.q_len for c in decode} == {1}
    assert keys(planned_cases(shape_sizes("1x2x1000"))) == {1000}
    assert all(c.sizes.q_len <= c.sizes.kv_len for c in planned_cases(shape_sizes("1x2x40x90"), tile=16))
    assert {c.rows for c in planned_cases(shape_sizes("1x2x4096"))} == {64}
    assert {c.rows for c in planned_cases(shape_sizes("1x2x4096"), rows=5)} == {5}
    assert {c.rows for c in planned_cases(shape_sizes("1x2x100"))} == {None}
    names = [c.name for c in square]
    assert len({*names}) == len(names)


@pytest.mark.parametrize(
    "dtype, shape, rows",
    [
        ("float64", "3x4/2x1x9", None),
        ("float32", "2x2x9", 4),
        ("float16", "1x6/3x5x9", None),
        ("bfloat16", "2x2x9", 4),
        ("float8_e4m3fn", "3x4/2x1x9", None),
        ("float8_e5m2", "1x6/3x5x9", 3),
    ],
)
def test_bytes_are_those_of_the_files(tmp_path, dtype, shape, rows):
    pytest.importorskip("ml_dtypes")
    planned = planned_cases(shape_sizes(shape, "8/4"), 3, rows)
    total, cases = make_shape_cases(planned, dtype=dtype, layout="BSHD")
    for n, case in enumerate(cases):
        save_case(case, tmp_path / f"{n}", "raw")
        assert case.rows is None or len(case.rows) == planned[n].rows
    assert total == sum(path.stat().st_size for path in tmp_path.glob("*/*.bin"))


@pytest.mark.parametrize("options", [(), ("causal",), ("lengths", "causal"), ("mask",)])
def test_results_and_bounds_of_some_rows_are_those_of_all(options):
    """But for the error of the reference in float64, which the bounds of some rows allow for."""
    inputs = attention_inputs("wide", options, sizes=Sizes(2, 4, 2, 40, 90, 16, 12))
    rows = np.array([0, 3, 4, 5, 38, 39])
    some, whole = make_case(inputs, rows=rows), error_bound(*inputs.arrays, **inputs.options)
    for name, of_all in (("output", whole.output), ("lse", whole.lse)):
        axis = 2
        assert np.allclose(getattr(some, name), of_all.take(rows, axis), rtol=1e-11, atol=1e-13)
        for kind, stored in (("tight", "bound"), ("hard", "hard_bound")):
            bound = getattr(whole, f"{name}_{kind}").take(rows, axis)
            assert np.allclose(getattr(some, f"{name}_{stored}"), bound, rtol=1e-5, atol=0.0)
    output, lse = EmulatedKernel(some.spec)(*inputs.arrays, **inputs.options)
    assert some.within(output, lse).all()
    output[1, 2, 38, 7] += 0.1
    output[:, :, 6:38] = np.nan  # rows that are not judged
    assert np.argwhere(~some.within(output, lse)).tolist() == [[1, 2, 4, 7]] and some.row(4) == 38


@pytest.mark.parametrize("container", ["npz", "safetensors", "raw"])
@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout])
@pytest.mark.parametrize("rows", [None, (0, 7, 10)])
@pytest.mark.parametrize("store", [None, "float8_e5m2", "bfloat16"])
def test_layouts_change_the_file_alone(tmp_path, layout, container, rows, store):
    from refattn.oracle.vectors.packs import as_stored_inputs, numpy_dtype

    kind = np.float32
    if store is not None:
        pytest.importorskip("ml_dtypes")
        kind = numpy_dtype("bfloat16") if store == "bfloat16" else np.float32
    store = None if store == "bfloat16" else store
    inputs = as_stored_inputs(attention_inputs("normal", ["causal"], sizes=SIZES, dtype=kind), store)
    if "B" not in layout:
        inputs = replace(inputs, arrays=tuple(array[0] for array in inputs.arrays))
    case = make_case(inputs, rows=rows, layout=layout, store=store)
    path = tmp_path / ("case" if container == "raw" else f"case.{container}")
    save_case(case, path, container)
    arrays, text = read_arrays(path)
    sizes = {"B": 1, "H": 4, "T": 11, "D": 8}
    assert arrays["query"].shape == tuple(sizes[axis] for axis in layout)
    sizes |= {"T": len(rows or range(11)), "D": 12}
    assert arrays["output_bound"].shape == tuple(sizes[axis] for axis in layout)
    manifest = json.loads(text)
    assert manifest["version"] == 2 and manifest["axis_order"] == layout
    assert manifest["layout"]["key"].split()[layout.index("T")] == "key"
    back = load_case(path)
    assert back.layout == layout and (back.rows is None) == (rows is None) and back.stored == case.stored
    for field in ("output", "lse", "output_bound", "lse_bound", "output_hard_bound", "lse_hard_bound"):
        assert np.array_equal(getattr(back, field), getattr(case, field)), field
    assert all(np.array_equal(one, other) for one, other in zip(back.arrays, case.arrays, strict=True))
    assert recompute(back) == ""


def test_a_case_without_either_is_of_version_1(tmp_path):
    save_case(make_case(attention_inputs("normal", sizes=SIZES)), tmp_path / "case", "raw")
    assert (tmp_path / "case" / "case.txt").read_text().startswith("refattn-case 1\n")
    assert json.loads((tmp_path / "case" / "case.json").read_text())["version"] == 1


@pytest.mark.parametrize(
    "change, message",
    [
        ({"axis_order": "DHTB"}, "axis_order must be one of"),
        ({"axis_order": ["BTHD"]}, "axis_order must be one of"),
        ({"axis_order": "THD"}, "query must have the layout 'THD'"),
        ({"version": 3}, "of version 1 or 2"),
    ],
)
def test_files_that_say_something_else_are_refused(tmp_path, change, message):
    save_case(
        make_case(attention_inputs("normal", sizes=SIZES), rows=[2, 5], layout="BTHD"), tmp_path / "a.npz"
    )
    arrays, text = read_arrays(tmp_path / "a.npz")
    write_arrays(tmp_path / "b.npz", arrays, json.dumps(json.loads(text) | change))
    with pytest.raises(VectorError, match=message):
        load_case(tmp_path / "b.npz")


@pytest.mark.parametrize("rows", [[5, 2], [2, 11], [-1, 3], [2, 2], [], [[2, 5]], [2.0, 5.0]])
def test_rows_that_are_none_are_refused(tmp_path, rows):
    from hashlib import sha256

    inputs = attention_inputs("normal", sizes=SIZES)
    with pytest.raises((ValueError, TypeError), match="rows must"):
        make_case(inputs, rows=rows)
    save_case(make_case(inputs, rows=[2, 5]), tmp_path / "a.npz")
    arrays, text = read_arrays(tmp_path / "a.npz")
    arrays["expected_rows"] = np.array(rows)
    manifest = json.loads(text)
    manifest["arrays"]["expected_rows"] = {
        "dtype": arrays["expected_rows"].dtype.name,
        "shape": list(arrays["expected_rows"].shape),
        "sha256": sha256(arrays["expected_rows"].tobytes()).hexdigest(),
    }
    write_arrays(tmp_path / "b.npz", arrays, json.dumps(manifest))
    with pytest.raises(VectorError):
        load_case(tmp_path / "b.npz")


def test_layouts_are_those_of_dense_attention():
    with pytest.raises(ValueError, match="layout must be of dense attention with 3 axes; got layout='THD'"):
        make_case(attention_inputs("normal", sizes=SIZES), layout="THD")
    with pytest.raises(ValueError, match="layout must be one of BHTD, BTHD, HTD, THD; got layout='DTHB'"):
        make_case(attention_inputs("normal", sizes=SIZES), layout="DTHB")


# the command

MAKE = ["--shape", "2x4/2x21x37", "--head-dim", "8/12", "--layout", "BSHD"]


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    directory = tmp_path_factory.mktemp("shape") / "pack"
    assert main(["vectors", "make", str(directory), *MAKE, "--rows", "5", "--format", "raw"]) == 0
    return directory


def test_the_command_makes_and_checks(pack, tmp_path, capsys):
    assert main(["vectors", "make", str(tmp_path / "x"), *MAKE, "--tile", "16"]) == 0
    total, _ = make_shape_cases(planned_cases(shape_sizes("2x4/2x21x37", "8/12"), 16))
    assert capsys.readouterr().out.splitlines()[0] == f"12 cases of {total:,} bytes together"
    assert main(["vectors", "check", str(pack)]) == 0
    assert "2 of 2 cases are right" in capsys.readouterr().out
    manifest = json.loads((pack / "manifest.json").read_text())
    assert manifest["shape"]["shape"] == "2x4/2x21x37" and manifest["shape"]["rows"] == 5


def test_results_are_read_in_the_layout_of_the_case(pack, tmp_path, capsys):
    entry = next(read_pack(pack))
    case = entry.load()
    output, lse = EmulatedKernel(case.spec)(*case.arrays, **case.options)
    output, lse = output.astype(np.float32), lse.astype(np.float32)
    theirs = np.ascontiguousarray(output.swapaxes(1, 2))
    theirs.tofile(tmp_path / "o.bin")
    lse.tofile(tmp_path / "lse.bin")
    np.save(tmp_path / "o.npy", theirs)
    write_arrays(tmp_path / "o.npz", {"output": theirs, "lse": lse}, "")
    for words in (["o.bin", "--lse", str(tmp_path / "lse.bin")], ["o.npy"], ["o.npz"]):
        for stored in ([], ["--stored"]):
            assert main(["check", str(entry.path), str(tmp_path / words[0]), *words[1:], *stored]) == 0, (
                words
            )
    capsys.readouterr()
    row = int(case.rows[1])
    theirs[1, row, 3, 2] += 0.1
    theirs.tofile(tmp_path / "o.bin")
    assert main(["check", str(entry.path), str(tmp_path / "o.bin"), "--stored"]) == 1
    assert (
        f"1 of {case.output.size} elements beyond the stored bounds, the first at (1, 3, {row}, 2)"
        in capsys.readouterr().out
    )
    output.tofile(tmp_path / "o.bin")  # heads first
    assert main(["check", str(entry.path), str(tmp_path / "o.bin"), "--stored"]) == 1
    np.save(tmp_path / "o.npy", output[0])
    capsys.readouterr()
    assert main(["check", str(entry.path), str(tmp_path / "o.npy")]) == 2
    assert (
        "output must have the 4 axes BTHD of this case; got output.shape=(4, 21, 12)"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    "words, message",
    [
        (["--shape", "2x4x8", "--pack", "gqa"], "pack must not be given with shape; got pack='gqa'."),
        (["--tile", "16"], "shape must be given with tile; got tile=16 alone."),
        (["--shape", "2x4x8", "--tile", "0"], "tile must be at least 1; got tile=0."),
        (["--shape", "2x4x8", "--rows", "-3"], "rows must be at least 1; got rows=-3."),
        (["--shape", "2x4/3x8"], "a multiple of KV_HEADS; got shape='2x4/3x8'."),
        (["--shape", "2x4x8", "--head-dim", "0"], "head_dim must be HEAD_DIM or HEAD_DIM/V_HEAD_DIM"),
        (["--shape", "2x4x8", "--layout", "SHD"], "layout SHD must have a shape of batch 1; got batch=2."),
        (["--shape", "2x4x8", "--layout", "BTM"], "BTHD has the bytes of (batch, length, heads * dim)."),
        (["--shape", "2x4x8", "--dtype", "int4"], "dtype must be one of float64"),
        (
            ["--shape", "8x128x65536"],
            "shape must give files of at most 1,073,741,824 bytes; case 'normal causal",
        ),
    ],
)
def test_bad_usage_is_named_before_work(tmp_path, capsys, words, message):
    assert main(["vectors", "make", str(tmp_path / "x"), *words]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.out == "" and not (tmp_path / "x").exists()


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn"])
def test_a_missing_extra_is_named_before_work(tmp_path, capsys, monkeypatch, dtype):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    assert main(["vectors", "make", str(tmp_path / "x"), *MAKE, "--dtype", dtype]) == 2
    printed = capsys.readouterr()
    assert "install refattn[lowp]" in printed.err and printed.out == "" and not (tmp_path / "x").exists()


def test_too_little_room_is_said_before_work(tmp_path, capsys, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert main(["vectors", "make", str(tmp_path / "x"), *MAKE]) == 2
    printed = capsys.readouterr()
    assert (
        "directory must have " in printed.err
        and "has 1,000." in printed.err
        and not (tmp_path / "x").exists()
    )
