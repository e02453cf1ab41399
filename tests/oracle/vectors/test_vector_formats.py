"""bfloat16 and 8-bit floats in golden vectors and in results: one or two bytes a number in the file,
the same numbers when read.
"""

import sys
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest

from refattn.cli import main
from refattn.oracle.arithmetic.spec import KernelSpec
from refattn.oracle.inputs.families import attention_inputs
from refattn.oracle.simulated.emulated import EmulatedKernel
from refattn.oracle.vectors.case_file import load_case, save_case
from refattn.oracle.vectors.containers import read_arrays, write_arrays
from refattn.oracle.vectors.golden import make_case, quantised
from refattn.oracle.vectors.packs import make_cases, recompute

ml_dtypes = pytest.importorskip("ml_dtypes")
FLOAT8 = ("float8_e4m3fn", "float8_e5m2")
CONTAINERS = ("npz", "safetensors", "raw")


def stored_dtype(path, name):
    return read_arrays(path)[0][name].dtype.name


@pytest.fixture(scope="module")
def cases_of():
    """The cases of some packs by dtype, made once."""
    return lru_cache(
        lambda dtype: [*make_cases(["gqa", "mla", "paged", "packed", "hostile"], dtype=dtype, seed=1)]
    )


@pytest.mark.sample(12)
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("dtype", FLOAT8)
def test_cases_in_8_bits_come_back_whole(tmp_path, cases_of, container, dtype):
    for n, case in enumerate(cases_of(dtype)):
        assert (
            {*case.stored.values()} == {dtype}
            and len(case.stored) == len(case.arrays)
            and case.arrays[0].dtype == np.float32
        )
        path = tmp_path / (f"case{n}" if container == "raw" else f"case{n}.{container}")
        save_case(case, path, container)
        assert stored_dtype(path, next(iter(case.stored))) == ("uint8" if container == "npz" else dtype)
        back = load_case(path)
        assert (
            back.stored == case.stored
            and back.spec.weight.name == dtype
            and back.spec.output.name == "bfloat16"
        )
        assert all(
            np.array_equal(a, b, equal_nan=True) and a.dtype == np.float32
            for a, b in zip(back.arrays, case.arrays, strict=True)
        )
        if n % 27 == 9 * CONTAINERS.index(container):
            assert recompute(back) == ""
            output, lse = EmulatedKernel(back.spec)(*back.arrays, function=back.function, **back.options)
            assert (
                back.check(output.astype(ml_dtypes.bfloat16), lse).passed
                and back.within(output.astype(ml_dtypes.bfloat16), lse).all()
            )


def test_the_safetensors_package_reads_8_bit_cases(tmp_path):
    torch = pytest.importorskip("torch")
    load_file = pytest.importorskip("safetensors.torch").load_file
    case = next(make_cases(["gqa"], dtype="float8_e4m3fn"))
    save_case(case, tmp_path / "case.safetensors")
    query = load_file(tmp_path / "case.safetensors")["query"]
    assert query.dtype == torch.float8_e4m3fn and np.array_equal(query.float().numpy(), case.arrays[0])


@pytest.mark.parametrize("dtype", FLOAT8)
def test_results_in_8_bits(tmp_path, dtype):
    spec = KernelSpec.flash(dtype).replace(name="8 bits out", output=dtype)
    inputs = attention_inputs("normal", ["causal"])
    case = make_case(
        replace(inputs, arrays=tuple(quantised(array, dtype) for array in inputs.arrays)), spec, store=dtype
    )
    save_case(case, tmp_path / "case.npz")
    output = case.output.astype(getattr(ml_dtypes, dtype))
    np.savez(tmp_path / "o.npz", output=output)  # NumPy writes <V1, or <f1
    np.save(tmp_path / "o.npy", output)
    output.tofile(tmp_path / "o.bin")
    write_arrays(tmp_path / "o.safetensors", {"output": output}, "")
    for name in ("o.npz", "o.npy", "o.bin", "o.safetensors"):
        assert main(["check", str(tmp_path / "case.npz"), str(tmp_path / name)]) == 0, name
    wrong = (1.5 * case.output).astype(getattr(ml_dtypes, dtype))
    wrong.tofile(tmp_path / "o.bin")
    assert main(["check", str(tmp_path / "case.npz"), str(tmp_path / "o.bin")]) == 1


def test_numbers_that_do_not_fit_are_refused(tmp_path):
    case = make_case(attention_inputs("normal"), store="float8_e4m3fn")
    with pytest.raises(ValueError, match="query must hold numbers of float8_e4m3fn only"):
        save_case(case, tmp_path / "case.npz")


def test_bytes_without_a_spec_that_writes_8_bits_are_refused(tmp_path, capsys):
    case = next(make_cases(["mqa"]))
    save_case(case, tmp_path / "case.npz")
    np.savez(tmp_path / "o.npz", output=case.output.astype(ml_dtypes.float8_e4m3fn))
    assert main(["check", str(tmp_path / "case.npz"), str(tmp_path / "o.npz")]) == 2
    assert "uint8" in capsys.readouterr().out


def test_conversion_saturates():
    got = quantised([1e9, -1e9, 447.0, np.nan, 1.06], "float8_e4m3fn")
    np.testing.assert_array_equal(got, [448.0, -448.0, 448.0, np.nan, 1.0])


def test_commands_take_8_bit_dtypes(tmp_path, capsys):
    assert (
        main(
            [
                "vectors",
                "make",
                str(tmp_path / "p"),
                "--dtype",
                "float8_e5m2",
                "--pack",
                "decode",
                "--format",
                "safetensors",
            ]
        )
        == 0
    )
    assert main(["vectors", "check", str(tmp_path / "p")]) == 0
    assert "5 of 5 cases are right" in capsys.readouterr().out


def test_without_ml_dtypes_the_error_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    for dtype in (*FLOAT8, "bfloat16"):
        assert main(["vectors", "make", str(tmp_path / dtype), "--dtype", dtype]) == 2
        assert "install refattn[lowp]" in capsys.readouterr().err and not (tmp_path / dtype).exists()
