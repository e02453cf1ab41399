"""Run a function of cpu_kernels and hold its result against the bound that its arithmetic allows."""

import numpy as np

import cpu_kernels
from refattn.oracle import KernelSpec, check

FUNCTIONS = {
    name: getattr(cpu_kernels, f"{name}_with_lse")
    for name in (
        "attention",
        "packed_attention",
        "paged_attention",
        "latent_attention",
        "block_local_attention",
    )
}


def assert_right(function, arrays, options, dtype, tiers=("positions", "hard", "tight", "aggregate")):
    """Output and lse within the bounds, rigorous and statistical, non-finite numbers where they must be."""
    arrays = list(arrays)
    output, lse = FUNCTIONS[function](*arrays, **options)
    if output.shape[-1] == 0:  # nothing but lse to check, which values have no part in
        arrays[2] = np.ones((*arrays[2].shape[:-1], 1), arrays[2].dtype)
        one, same = FUNCTIONS[function](*arrays, **options)
        assert output.shape == (*one.shape[:-1], 0) and np.array_equal(lse, same)
        return output, lse
    report = check(
        output, *arrays, lse=lse, spec=KernelSpec.cpu_kernels(dtype), function=function, **options
    )
    failed = {tier for measure in (report.output, report.lse) for tier in measure.failed}
    assert not failed & set(tiers), str(report)
    return output, lse
