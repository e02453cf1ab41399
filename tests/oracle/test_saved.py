"""Every answer of the oracle is written in one shape, and read back as it was."""

import json

import numpy as np
import pytest

from refattn.oracle import check, check_kernel, diagnose, xray
from refattn.oracle.mistakes.mutants import correct_kernel

ARRAYS = tuple(np.random.default_rng(0).standard_normal((3, 2, 9, 8), dtype=np.float32))


def top_left(query, key, value, *, causal=False):
    return correct_kernel()(query, key, value, causal=causal, q_offset=3)


ANSWERS = {
    "report": lambda: check(np.full_like(ARRAYS[0], np.nan), *ARRAYS),
    "diagnosis": lambda: diagnose(top_left, *ARRAYS, causal=True, seconds=5),
    "xray": lambda: xray(top_left, *ARRAYS, causal=True, seconds=5),
    "harness": lambda: check_kernel(top_left, only=["reference: normal causal"], diagnose=False),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_round_trip(kind, tmp_path):
    answer = ANSWERS[kind]()
    plain = answer.to_dict()
    assert [*plain][:4] == ["kind", "verdict", "passed", "summary"]
    assert plain["kind"] == kind and plain["passed"] is False and plain["summary"] in answer.text()
    assert json.loads(answer.to_json(), parse_constant=pytest.fail) == plain
    answer.save(tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail) == plain
    answer.save(str(tmp_path / "x.TXT"))
    assert (tmp_path / "x.TXT").read_text() == answer.text() + "\n" == str(answer) + "\n"
    with pytest.raises(ValueError, match=r"path must end with one of .*\.json.*; got path='x.doc'"):
        answer.save("x.doc")
