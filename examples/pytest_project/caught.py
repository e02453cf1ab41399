"""Shows a caught bug: `pytest caught.py` fails, with a report, a diagnosis and the command that runs the test again."""

import pytest
from flash_kernel import flash_attention_without_tail_mask


@pytest.mark.refattn(dtype="float32", supports={"causal", "scale"}, families={"normal"})
def test_without_tail_mask(refattn_case):
    refattn_case.check(flash_attention_without_tail_mask)
