"""Correct kernels under a spec that does not say what they do: the message names the freedom they
take. Mistakes get no such excuse.
"""

import numpy as np
import pytest

from refattn.oracle import EmulatedKernel, KernelSpec, assert_attention_close
from refattn.oracle.arithmetic.other_specs import other_specs


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    return tuple(
        rng.standard_normal(shape).astype(np.float16) for shape in ((2, 64, 32), (2, 200, 32), (2, 200, 32))
    )


def message(output, lse, spec, *inputs, **options):
    with pytest.raises(AssertionError) as caught:
        assert_attention_close(output, *inputs, lse=lse, spec=spec, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"denominator": "rounded"}, "spec.replace(denominator='rounded')"),
        ({"exp_error": 9e-5}, "spec.replace(exp_error=9e-05)"),
    ],
)
def test_the_freedom_a_kernel_takes_is_named(changes, code):
    spec = KernelSpec.flash("float16")
    output, lse = EmulatedKernel(spec.replace(**changes))(*arrays(), causal=True)
    text = message(output, lse, spec, *arrays(), causal=True)
    assert f"{code}\n" in text + "\n"


def test_stored_scores_are_named():
    spec = KernelSpec.flash("bfloat16").replace(input="float16")
    output, lse = EmulatedKernel(spec.replace(score="bfloat16"))(*arrays())
    assert "stored scores: spec.replace(score='bfloat16')" in message(output, lse, spec, *arrays())


def test_mistakes_get_no_hint():
    spec = KernelSpec.flash("float16")
    output, lse = EmulatedKernel(spec)(*arrays(), causal=True)
    assert "hint" not in message(output, lse, spec, *arrays(), causal=True, q_offset=0)
    assert "hint" not in message(1.01 * output, lse, spec, *arrays(), causal=True)
    assert "hint" not in message(np.where(output > 0, np.nan, output), lse, spec, *arrays(), causal=True)


@pytest.mark.parametrize("make", [KernelSpec.flash, KernelSpec.eager, KernelSpec.cpu_kernels])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_every_change_makes_a_spec(make, dtype):
    for changes, words in other_specs(make(dtype)):
        assert make(dtype).replace(**changes) != make(dtype) and words
