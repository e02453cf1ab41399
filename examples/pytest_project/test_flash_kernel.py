"""Tests of the kernel with the refattn plugin.

    pytest                                 the kernel is right
    pytest --refattn-level full            more shapes and random options
    pytest caught.py                       the kernel without its tail mask: caught, and named
"""

import pytest
from flash_kernel import flash_attention, flash_attention_without_tail_mask

pytestmark = pytest.mark.refattn(dtype="float32", supports={"causal", "scale"})


@pytest.mark.refattn(families={"normal", "ascending", "low scores", "one-hot"})
def test_against_the_reference(refattn_case):
    refattn_case.check(flash_attention)


def test_harness(refattn_check_kernel, refattn_kernel_spec):
    report = refattn_check_kernel(flash_attention, only="identities")
    assert report.spec == refattn_kernel_spec


def test_the_missing_tail_mask_is_caught(refattn_check_kernel):
    with pytest.raises(AssertionError, match="FAIL reference: normal"):
        refattn_check_kernel(flash_attention_without_tail_mask, only="reference: normal", max_failures=1)
