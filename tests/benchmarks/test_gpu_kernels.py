"""The script for whoever has a GPU, on CPU tensors: its kernels, their faults, its figures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("ml_dtypes")
BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")
sys.path.append(BENCHMARKS)

import gpu_kernels
import tiled_flash

from refattn.oracle import check

CPU = torch.device("cpu")
SIZE = gpu_kernels.Size(1, 4, 2, 330, 16, 24)


@pytest.fixture(scope="module")
def arrays():
    return gpu_kernels.inputs(torch, CPU, SIZE)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("q_len", [330, 70, 1])
def test_the_tiled_kernel_is_right(arrays, causal, q_len):
    query, key, value = arrays
    query = query[:, :, -q_len:]
    output = tiled_flash.kernel(query, key, value, causal=causal)
    assert check(output, query, key, value, causal=causal).passed


@pytest.mark.parametrize("fault", tiled_flash.FAULTS)
def test_every_fault_is_found(arrays, fault):
    causal = fault != "tail_not_masked"  # which a causal mask hides
    query, key, value = arrays
    if fault == "bfloat16_sum":  # it grows with the number of tiles
        query, key, value = (torch.cat([x] * 4, 2) for x in (query[:, :, :40], key, value))
    output = tiled_flash.kernel(query, key, value, causal=causal, fault=fault)
    report = check(output, query, key, value, causal=causal, progress=False)
    assert not report.passed and report.wrong


def test_the_backends_of_torch_are_those_that_run():
    backends = dict(gpu_kernels.sdpa_kernels(torch, CPU))
    assert "torch SDPA, math" in backends and "torch SDPA, cudnn" not in backends
    query, key, value = gpu_kernels.inputs(torch, CPU, SIZE)
    for kernel in backends.values():
        assert check(kernel(query, key, value, causal=True), query, key, value, causal=True).passed


def test_figures(monkeypatch, capsys, tmp_path):
    """The table of a right kernel, of one with a fault, and of one for which there is no time."""
    chosen = [
        ("flash", tiled_flash.kernel, True),
        ("flash: no rescale", tiled_flash.with_fault(tiled_flash.kernel, "no_rescale"), False),
    ]
    monkeypatch.setattr(gpu_kernels, "kernels", lambda torch, device: iter(chosen))
    monkeypatch.setattr(gpu_kernels, "SMALL", SIZE)
    monkeypatch.setattr(gpu_kernels, "DIAGNOSE_SECONDS", 60.0)
    figures = tmp_path / "figures.json"
    only = ["--only", "reference: ascending"]
    assert gpu_kernels.main(["--device", "cpu", *only, "--json", str(figures)]) == 0
    shown = capsys.readouterr().out
    assert "1 right kernels and 1 faults; judged otherwise: none." in shown
    right, wrong = json.loads(figures.read_text())["rows"]
    assert ": pass" in right["check"] and right["diagnosis"].startswith("agrees")
    assert ": FAIL" in wrong["check"] and "not rescaled" in wrong["diagnosis"]
    assert right["harness"].startswith("pass") and wrong["harness"].startswith("FAIL")
    _, left_out = gpu_kernels.measure(torch, CPU, SIZE, chosen, -1.0)
    assert left_out == ["flash", "flash: no rescale"]


def test_the_triton_kernel_in_the_interpreter(tmp_path):
    """It gives what the tiled kernel gives, whole and with every fault; in float16, since the interpreter
    multiplies no bfloat16.
    """
    pytest.importorskip("triton")
    code = f"""
import sys; sys.path.insert(0, {BENCHMARKS!r})
import torch, tiled_flash, triton_flash
numbers = torch.Generator().manual_seed(0)
shapes = [(1, heads, length, 16) for heads, length in ((4, 70), (2, 150), (2, 150))]
query, key, value = (torch.randn(shape, generator=numbers).half() for shape in shapes)
for causal in (False, True):
    for fault in ("", *tiled_flash.FAULTS):
        ours, theirs = (k(query, key, value, causal=causal, fault=fault).float()
                        for k in (tiled_flash.kernel, triton_flash.kernel))
        torch.testing.assert_close(theirs, ours, rtol=0.01, atol=0.01, msg=fault + str(causal))
print("the same")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "the same\n", done.stderr


def test_without_torch_it_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit):
        gpu_kernels.main([])
    assert "pip install torch" in capsys.readouterr().err
