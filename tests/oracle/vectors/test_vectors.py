"""Golden vectors: what is written comes back, the bounds in the file judge as the oracle does, and
the commands say so.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import refattn
from refattn.calls.options import OPTION_NAMES
from refattn.cli import main
from refattn.oracle.arithmetic.spec import KernelSpec
from refattn.oracle.inputs.families import AttentionInputs, Sizes, attention_inputs
from refattn.oracle.mistakes.mutants import mutants
from refattn.oracle.simulated.emulated import EmulatedKernel
from refattn.oracle.vectors.case_file import load_case, save_case
from refattn.oracle.vectors.containers import read_arrays, write_arrays
from refattn.oracle.vectors.golden import make_case
from refattn.oracle.vectors.pack_directory import read_pack, write_pack
from refattn.oracle.vectors.packs import PACKS, make_cases, recompute
from refattn.oracle.vectors.untrusted import VectorError

CONTAINERS = ("npz", "safetensors", "raw")

COUNT = {name: len([*PACKS[name].inputs(np.float32, 0)]) for name in ("gqa", "mla", "local")}
TOTAL = COUNT["gqa"] + COUNT["mla"]  # of the pack that commands read
MISPLACED = [
    "gqa-normal-own-offset-causal",
    "mla-latent-q-offset-causal-form-absorb",
    "mla-latent-q-offset-causal-form-expand",
]  # what a kernel gets wrong whose rows stand at key 0 whatever the offset


def place(directory, name, container):
    return directory / (name if container == "raw" else f"{name}.{container}")


def equal(first, second):
    return (
        first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes()
    )


@pytest.fixture(scope="module")
def cases():
    """All packs in float32."""
    return list(make_cases())


@pytest.fixture(scope="module")
def case(cases):
    return next(c for c in cases if c.pack == "gqa" and c.name == "normal-causal")


# containers


@pytest.mark.parametrize("container", CONTAINERS)
def test_arrays_of_every_dtype_come_back_bit_for_bit(tmp_path, container):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    rng = np.random.default_rng(0)
    arrays = {
        dtype: rng.integers(0, 100, (3, 2)).astype(dtype)
        for bits in (8, 16, 32, 64)
        for dtype in (f"int{bits}", f"uint{bits}")
    }
    arrays |= {
        dtype: rng.normal(size=(2, 0, 3) if dtype == "float16" else (2, 3)).astype(dtype)
        for dtype in ("float16", "float32", "float64")
    }
    arrays |= {
        "bool": np.array([True, False]),
        "scalar": np.array(3.5),
        "turned": np.arange(6.0).reshape(2, 3).T,
    }
    arrays |= {"nan": np.array([np.nan, -np.inf, -0.0]), "swapped": np.arange(3, dtype=">f8")}
    if container != "npz":  # npz has no word for it; a case says it in its manifest
        arrays["bfloat16"] = rng.normal(size=5).astype(ml_dtypes.bfloat16)
    path = place(tmp_path, "a", container)
    write_arrays(path, arrays, "text", container)
    back, text = read_arrays(path)
    assert text == "text" and {*back} == {*arrays}
    for name, array in arrays.items():
        native = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="))).reshape(array.shape)
        assert equal(np.ascontiguousarray(back[name]).reshape(array.shape), native), name
        assert not back[name].flags.writeable


def test_files_of_numpy_are_read(tmp_path):
    arrays = {
        "output": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "lse": np.arange(3, dtype=">f4"),
        "half": np.ones(2, np.float16),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays)
        back, text = read_arrays(tmp_path / "a.npz")
        assert text == "" and all(np.array_equal(back[name], arrays[name]) for name in arrays)
        assert back["lse"].dtype == np.float32


def test_numpy_reads_ours(tmp_path, case):
    save_case(case, tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as stored:
        assert equal(stored["query"], case.arrays[0]) and equal(stored["output_bound"], case.output_bound)


def test_the_safetensors_package_reads_ours_and_we_read_its(tmp_path, case):
    numpy_format = pytest.importorskip("safetensors.numpy")
    save_case(case, tmp_path / "a.safetensors")
    theirs = numpy_format.load_file(tmp_path / "a.safetensors")
    assert equal(theirs["expected_output"], case.output) and equal(theirs["query"], case.arrays[0])
    numpy_format.save_file({"output": case.output.astype(np.float32)}, tmp_path / "b.safetensors")
    assert equal(read_arrays(tmp_path / "b.safetensors")[0]["output"], case.output.astype(np.float32))


def test_equal_cases_give_equal_bytes(tmp_path, case):
    for container in ("npz", "safetensors"):
        files = [tmp_path / f"{n}.{container}" for n in "ab"]
        for file in files:
            save_case(case, file)
        assert files[0].read_bytes() == files[1].read_bytes()


# cases and packs


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_case_comes_back_whole(tmp_path, cases, container):
    for n, case in enumerate(cases):
        path = place(tmp_path, f"case{n}", container)
        save_case(case, path, container)
        back = load_case(path)
        assert (back.name, back.pack, back.function, back.scale, back.seed) == (
            case.name,
            case.pack,
            case.function,
            case.scale,
            case.seed,
        )
        assert back.spec == case.spec and {*back.options} == {*case.options}
        for name, value in case.options.items():
            assert np.array_equal(back.options[name], value) and type(back.options[name]) in (
                type(value),
                float,
                int,
            ), name
        for field in ("output", "lse", "output_bound", "lse_bound", "output_hard_bound", "lse_hard_bound"):
            assert equal(getattr(back, field), getattr(case, field)), field
        assert all(equal(*pair) for pair in zip(back.arrays, case.arrays, strict=True))


def test_packs_cover_the_forms_and_options(cases):
    assert {case.pack for case in cases} == {*PACKS}
    assert {case.function for case in cases} == {
        "attention",
        "packed_attention",
        "paged_attention",
        "latent_attention",
        "block_local_attention",
    }
    options = {option for case in cases for option in case.options}
    assert options >= {*OPTION_NAMES, "form"} - {"dropout_rate"}
    assert any(np.isneginf(case.lse).any() for case in cases) and any(
        np.isnan(case.output).any() for case in cases
    )
    assert any(
        np.isnan(case.arrays[1]).any() and np.isfinite(case.output).all() for case in cases
    )  # NaN in hidden slots only


def test_expected_results_and_bounds_are_those_of_the_oracle(cases):
    for case in cases[::7]:
        output, lse = getattr(refattn, f"{case.function}_with_lse")(*case.arrays, **case.options)
        assert np.array_equal(case.output, output, equal_nan=True) and np.array_equal(
            case.lse, lse, equal_nan=True
        )
        assert (case.output_bound <= case.output_hard_bound).all() and (
            case.output_bound[np.isfinite(output) & (output != 0)] > 0
        ).all()
        assert not np.shares_memory(case.output, output)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_correct_kernels_stay_within_the_stored_bounds(dtype):
    pytest.importorskip("ml_dtypes")
    for case in make_cases(
        ["gqa", "mla"] if dtype == "float32" else ["paged", "packed", "local"], dtype=dtype, seed=3
    ):
        output, lse = EmulatedKernel(case.spec)(*case.arrays, function=case.function, **case.options)
        assert case.within(output, lse).all(), case.name


def test_wrong_kernels_leave_the_stored_bounds(cases):
    suite = [case for case in cases if case.pack in ("gqa", "hostile")]
    names = ("causal_top_left", "softcap_after_bias", "last_key_dropped", "head_map_modulo")
    for mutant in [m for m in mutants("attention_with_lse") if m.id in names]:
        assert not all(case.within(*mutant(*case.arrays, **case.options)).all() for case in suite), mutant.id
    scaled = [case.within(1.0001 * case.output).all() for case in suite]
    assert not any(scaled[:5])


def test_within_treats_what_is_not_finite(cases):
    case = next(c for c in cases if c.pack == "hostile" and np.isnan(c.output).any())
    assert case.within(case.output, case.lse).all()
    assert not case.within(np.nan_to_num(case.output), case.lse).all()
    empty = next(c for c in cases if np.isneginf(c.lse).any())
    assert not empty.within(empty.output, np.where(np.isneginf(empty.lse), -1e30, empty.lse)).all()


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_pack_is_read_case_by_case_and_computed_again(tmp_path, cases, container):
    write_pack(
        tmp_path / "pack", [case for case in cases if case.pack in ("local", "mla")], container=container
    )
    entries = list(read_pack(tmp_path / "pack"))
    assert len(entries) == COUNT["local"] + COUNT["mla"]
    for entry in entries[CONTAINERS.index(container) :: 15]:
        assert recompute(entry.load()) == ""


def test_a_changed_case_is_noticed(tmp_path, case):
    from dataclasses import replace

    assert "output differs" in recompute(replace(case, output=case.output + 1e-6))
    assert "lse differs" in recompute(replace(case, lse=case.lse * (1 + 1e-6)))
    assert "output_bound differs" in recompute(replace(case, output_bound=2 * case.output_bound))
    assert "lse_hard_bound differs" in recompute(replace(case, lse_hard_bound=2 * case.lse_hard_bound))
    write_pack(tmp_path / "pack", [case])
    (entry,) = read_pack(tmp_path / "pack")
    save_case(replace(case, output_bound=2 * case.output_bound), entry.path)
    with pytest.raises(VectorError, match="sha256"):
        entry.load()


def test_packs_are_not_overwritten(tmp_path, case):
    write_pack(tmp_path, [case])
    with pytest.raises(FileExistsError, match="must not hold a pack"):
        write_pack(tmp_path, [case])
    with pytest.raises(ValueError, match="container must be one of"):
        write_pack(tmp_path / "x", [case], container="zip")


def test_cases_of_own_inputs(tmp_path):
    inputs = attention_inputs(
        "wide", ["softcap", "sinks"], sizes=Sizes(1, 2, 1, 3, 9, 4, 4), dtype=np.float64
    )
    case = make_case(inputs, "bfloat16", seed=9)
    save_case(case, tmp_path / "mine.safetensors")
    assert load_case(tmp_path / "mine.safetensors").spec == KernelSpec.flash("bfloat16")
    with pytest.raises(ValueError, match="inputs must be of one of"):
        from dataclasses import replace

        make_case(replace(inputs, function="merge_states"))


# commands


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    directory = tmp_path_factory.mktemp("vectors") / "gqa"
    assert (
        main(
            ["vectors", "make", str(directory), "--pack", "gqa", "--pack", "mla", "--format", "safetensors"]
        )
        == 0
    )
    return directory


@pytest.fixture(scope="module")
def results(pack, tmp_path_factory):
    """What a kernel with one mistake wrote: rows with an own offset stand at key 0."""
    directory = tmp_path_factory.mktemp("results")
    for entry in read_pack(pack):
        case = entry.load()
        options = dict(case.options)
        if "q_offset" in options:
            options["q_offset"] = 0
        output, lse = EmulatedKernel(case.spec)(*case.arrays, function=case.function, **options)
        write_arrays(
            directory / f"{entry.name}.npz",
            {"output": output.astype(np.float32), "lse": lse.astype(np.float32)},
            "",
        )
    return directory


def test_vectors_make_list_and_check(pack, tmp_path, capsys):
    assert main(["vectors", "list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [*PACKS]
    assert main(["vectors", "list", str(pack), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == TOTAL
    assert main(["vectors", "check", str(pack), "--junit", str(tmp_path / "junit.xml")]) == 0
    assert f"{TOTAL} of {TOTAL} cases are right" in capsys.readouterr().out
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot()[0]
    assert suite.attrib["tests"] == f"{TOTAL}" and suite.attrib["failures"] == "0"
    assert main(["vectors", "make", str(pack)]) == 2
    assert main(["vectors", "make", str(tmp_path / "x"), "--pack", "none"]) == 2
    assert "pack must be one of" in capsys.readouterr().err
    assert main(["vectors", "make", str(tmp_path / "x"), "--dtype", "int8"]) == 2
    assert main(["vectors"]) == 2


def test_vectors_check_finds_a_changed_file(pack, tmp_path, capsys):
    shutil.copytree(pack, tmp_path / "copy")
    file = tmp_path / "copy" / "gqa-normal.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    (tmp_path / "copy" / "gqa-normal-causal.safetensors").unlink()
    assert main(["vectors", "check", str(tmp_path / "copy"), "--digests-only", "--json"]) == 1
    found = {row["name"]: row for row in json.loads(capsys.readouterr().out)["cases"]}
    assert (
        "sha256" in found["gqa-normal"]["text"]
        and found["gqa-normal-causal"]["status"] == "fail"
        and found["gqa-normal-mask"]["status"] == "pass"
    )


def test_check_require_complete(pack, results, tmp_path, capsys):
    """Stored scores of 1e6 overflow float16: all rows but one have no bound, and pass unless
    completeness is required.
    """
    rng = np.random.default_rng(0)
    query, key = ((rng.standard_normal((2, 4, 64)) * 3000.0).astype(np.float16) for _ in range(2))
    query[0, 0] = 0.0
    arrays = query, key, rng.standard_normal((2, 4, 8)).astype(np.float16)
    case = make_case(AttentionInputs("big", "big", "attention", arrays), KernelSpec.eager("float16"))
    save_case(case, tmp_path / "case.npz")
    write_arrays(
        tmp_path / "o.npz",
        {"output": case.output.astype(np.float16), "lse": case.lse.astype(np.float32)},
        "",
    )
    words = ["check", str(tmp_path / "case.npz"), str(tmp_path / "o.npz")]
    for stored in ([], ["--stored"]):
        assert main([*words, *stored, "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)["cases"][0]
        assert (
            facts["status"] == "pass"
            and facts["complete"] is False
            and facts["unjudged"] == {"output": 56, "lse": 7}
        )
        assert main([*words, *stored, "--require-complete"]) == 1
        assert "not complete: " in capsys.readouterr().out
        whole = ["check", str(pack / "gqa-normal.safetensors"), str(results / "gqa-normal.npz"), *stored]
        assert main([*whole, "--require-complete"]) == 0 and capsys.readouterr().out


@pytest.mark.parametrize("stored", [[], ["--stored"]])
def test_check_leaves_rows_out_that_see_no_key(tmp_path, stored, capsys):
    inputs = attention_inputs("normal", ["causal"], sizes=Sizes(1, 2, 1, 9, 5, 4, 4))  # rows 0 to 3 see none
    save_case(make_case(inputs), tmp_path / "c.npz")
    case = load_case(tmp_path / "c.npz")
    output = case.output.astype(np.float32)
    output[..., 0, :] = np.nan
    write_arrays(tmp_path / "o.npz", {"output": output}, "")
    words = ["check", str(tmp_path / "c.npz"), str(tmp_path / "o.npz"), *stored]
    assert main(words) == 1 and main([*words, "--ignore-empty-rows"]) == 0
    assert stored or "only rows that see no key differ" in capsys.readouterr().out


def test_check_one_result(pack, results, capsys):
    case = str(pack / "gqa-normal.safetensors")
    assert main(["check", case, str(results / "gqa-normal.npz")]) == 0
    assert "attention: pass, bound used" in capsys.readouterr().out
    assert main(["check", case, str(results / "gqa-normal.npz"), "--stored"]) == 0
    assert "within the stored bounds" in capsys.readouterr().out
    assert (
        main(
            [
                "check",
                str(pack / "gqa-normal-own-offset-causal.safetensors"),
                str(results / "gqa-normal-own-offset-causal.npz"),
            ]
        )
        == 1
    )
    assert "worst at" in capsys.readouterr().out
    assert main(["check", case, str(results / "gqa-normal.npz"), "--spec", "float64"]) == 1
    assert main(["check", case, str(results / "gqa-normal.npz"), "--spec", "nonsense"]) == 2
    assert main(["check", case, str(results / "missing.npz")]) == 2
    assert main(["check", str(results / "missing.npz"), case]) == 2


def test_check_a_pack(pack, results, tmp_path, capsys):
    assert main(["check", str(pack), str(results), "--json", "--junit", str(tmp_path / "junit.xml")]) == 1
    report = json.loads(capsys.readouterr().out)
    wrong = [row for row in report["cases"] if row["status"] != "pass"]
    assert [row["name"] for row in wrong] == MISPLACED
    assert all(row["report"]["passed"] is False for row in wrong)
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot()[0]
    assert (
        suite.attrib["failures"] == f"{len(MISPLACED)}" and "worst at" in suite.find("testcase/failure").text
    )
    assert main(["check", str(pack), str(results), "--stored"]) == 1
    assert f"{TOTAL - len(MISPLACED)} of {TOTAL} results are right" in capsys.readouterr().out


def test_results_without_names(pack, tmp_path, capsys):
    case = load_case(pack / "gqa-normal.safetensors")
    path = str(pack / "gqa-normal.safetensors")
    output, lse = case.output.astype(np.float32), case.lse.astype(np.float32)
    np.save(tmp_path / "o.npy", output)
    output.tofile(tmp_path / "o.bin")
    lse.tofile(tmp_path / "lse.bin")
    np.savez(tmp_path / "o.npz", attention=output)
    for name in ("o.npy", "o.bin", "o.npz"):
        assert main(["check", path, str(tmp_path / name)]) == 0, name
    assert main(["check", path, str(tmp_path / "o.bin"), "--lse", str(tmp_path / "lse.bin")]) == 0
    (lse + 1).tofile(tmp_path / "lse.bin")
    assert main(["check", path, str(tmp_path / "o.bin"), "--lse", str(tmp_path / "lse.bin")]) == 1
    (tmp_path / "o.bin").write_bytes(b"123")
    capsys.readouterr()
    assert main(["check", path, str(tmp_path / "o.bin")]) == 2
    assert "must hold 720 numbers" in capsys.readouterr().out
    np.savez(tmp_path / "two.npz", a=output, b=output)
    assert main(["check", path, str(tmp_path / "two.npz")]) == 2
    np.save(tmp_path / "o.npy", output.swapaxes(1, 2))
    assert main(["check", path, str(tmp_path / "o.npy")]) == 1
    assert "swap axes" in capsys.readouterr().out
    assert main(["check", path, str(tmp_path / "o.npy"), "--stored"]) == 1


def test_bfloat16_results_as_bits(tmp_path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    case = next(make_cases(["mqa"], dtype="bfloat16"))
    save_case(case, tmp_path / "case.npz")
    output = case.output.astype(ml_dtypes.bfloat16)
    output.view(np.uint16).tofile(tmp_path / "o.bin")
    np.savez(tmp_path / "o.npz", output=output)  # NumPy writes two-byte voids
    write_arrays(tmp_path / "o.safetensors", {"output": output}, "")
    for name in ("o.bin", "o.npz", "o.safetensors"):
        assert main(["check", str(tmp_path / "case.npz"), str(tmp_path / name)]) == 0, name


def test_diagnose_names_mistakes_of_block_local_kernels(tmp_path, capsys):
    case = next(make_cases(["local"]))
    save_case(case, tmp_path / "case.npz")
    options = {name: value for name, value in case.options.items() if name != "block_size"}
    np.save(tmp_path / "out.npy", refattn.attention(*case.arrays, **options).astype(np.float32))
    assert main(["diagnose", str(tmp_path / "case.npz"), str(tmp_path / "out.npy")]) == 1
    assert "attention without block_size" in capsys.readouterr().out


def test_diagnose(pack, results, capsys):
    name = "gqa-normal-own-offset-causal"
    assert main(["diagnose", str(pack / f"{name}.safetensors"), str(results / f"{name}.npz")]) == 1
    assert "with q_offset=0 the output agrees" in capsys.readouterr().out
    assert main(["diagnose", str(pack / f"{name}.safetensors"), str(results / f"{name}.npz"), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["cases"][0]["findings"][0]["remedy"] == "q_offset=0"
    assert main(["diagnose", str(pack / "gqa-normal.safetensors"), str(results / "gqa-normal.npz")]) == 0
    assert main(["diagnose", str(pack / "gqa-normal.safetensors"), str(results / "missing.npz")]) == 2


def test_the_commands_import_nothing_heavy():
    code = (
        "import sys; from refattn.cli import main; main(['check', '--help']); "
        "print('refattn.oracle.verdict.check' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(refattn.__file__).parents[1]
    )
    assert done.stderr.strip() == "False" and "exit code" in done.stdout
