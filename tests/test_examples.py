"""Every script in examples/ runs, and the facts it prints hold."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
ROUNDING = 1e-14


@pytest.fixture(scope="module")
def printed():
    """Output of an example by name, each script run once."""
    outputs = {}

    def run(name):
        if name not in outputs:
            paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
            done = subprocess.run(
                [sys.executable, "-W", "error", ROOT / "examples" / f"{name}.py"],
                capture_output=True,
                text=True,
                env=os.environ | {"PYTHONPATH": paths, "PYTHONIOENCODING": "utf-8"},
                timeout=120,
            )
            assert done.returncode == 0, done.stderr
            assert done.stderr == ""
            outputs[name] = done.stdout
        return outputs[name]

    return run


def fact(text, beginning):
    """The number at the end of the line that begins so."""
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith(beginning)]
    assert len(lines) == 1, f"{len(lines)} lines begin with {beginning!r}"
    return float(lines[0].split()[-1])


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs_is_short_and_is_listed(path, printed):
    assert len(printed(path.stem).splitlines()) >= 8
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 70
    assert f"`{path.name}`" in (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    assert max(len(line) for line in printed(path.stem).splitlines()) <= 140


def test_grouping_along_the_sequence(printed):
    text = printed("grouping_along_the_sequence")
    for beginning in (
        "snippet in NumPy - snippet in torch",
        "snippet - sum of the values of the chunk",
        "snippet - snippet with other queries and keys",
        "values all 1: output - chunk size",
        "repaired - refattn.block_local_attention",
        "repaired - attention with a block-diagonal mask",
        "GQA - multi-head attention with each key/value head repeated",
    ):
        assert fact(text, beginning) < ROUNDING
    assert fact(text, "repaired - published") > 0.1
    assert fact(text, "GQA: change at token 0 when the last key changes") > 0.01
    assert fact(text, "repaired snippet: change at token 0 when the last key changes") == 0
    assert "32 in chunks along the sequence (as without), 16 with GQA" in text


def test_one_key_many_queries(printed):
    text = printed("one_key_many_queries")
    assert "query (2, 2, 4)  key (1, 2, 4)  value (1, 2, 4)" in text
    assert "output (2, 2, 4)  as (tokens, heads, dim)" in text
    weights = {
        tuple(line.split()[:2]): [float(number) for number in line.split()[2:]]
        for line in text.splitlines()
        if re.search(r" Q[12] ", line)
    }
    assert set(weights) == {("Katten", "Q1"), ("Katten", "Q2"), ("spinnar", "Q1"), ("spinnar", "Q2")}
    assert all(abs(sum(row) - 1) <= 0.0015 for row in weights.values())
    assert weights["Katten", "Q1"] != weights["Katten", "Q2"]
    assert fact(text, "MQA - MHA whose heads hold the same key and value") < ROUNDING
    assert fact(text, "head 1 - head 2 when both queries are equal") < ROUNDING
    assert fact(text, "MQA - MHA with a key and value of its own per head") > 0.1
    table = {
        name: [
            int(number)
            for number in re.search(rf"^{name} +(\d+) +(\d+) +(\d+)$", text, re.MULTILINE).groups()
        ]
        for name in ("one head", "MQA, two queries", "MHA, two heads")
    }
    # d_model 8, two heads of 4: 2 * 4 cached of MQA, twice that of MHA; weights 2 * 8 * 4 * (query +
    # key/value heads)
    assert table == {
        "one head": [8, 128, 32],
        "MQA, two queries": [8, 192, 64],
        "MHA, two heads": [16, 256, 64],
    }


def test_four_formulas(printed):
    text = printed("four_formulas")
    assert fact(text, "as printed, head_i = Attention(Q, K, V)") < ROUNDING
    assert fact(text, "with projections: largest difference") > 0.1
    assert fact(text, "all heads at once - each head by itself") < ROUNDING
    assert fact(text, "MQA: largest difference between two heads") > 0.1
    assert fact(text, "with the query computed once as well") < ROUNDING
    assert fact(text, "GQA with 1 key/value head - MQA") < ROUNDING
    assert fact(text, "GQA with 8 key/value heads - MHA") < ROUNDING
    assert fact(text, "absorbed (attend over latents) - expanded") < ROUNDING
    table = {
        line[:22].strip(): [int(number) for number in line.split()[-3:]]
        for line in text.splitlines()
        if re.match(r"(MHA|GQA,|MQA|MLA,) .*\d$", line)
    }
    assert (
        table["MHA"][0]
        > table["GQA, 4 key/value heads"][0]
        > table["GQA, 2 key/value heads"][0]
        > table["MQA"][0]
        == 16
    )
    assert len({work for name, (_, work, _) in table.items() if not name.startswith("MLA")}) == 1
    assert table["MLA, latent 16 + 4"][:2] == [20, 8 * (2 * 16 + 4)]


def table_of(text):
    """(cached, mode) -> (stored, error of K and V, error of the output), for one table of a factoring
    example.
    """
    rows = re.findall(
        r"^ +(\d+)   (joint|split) +(\d+)(?: +(?:yes|no))? +([\d.]+)% +([\d.]+)%$", text, re.MULTILINE
    )
    return {
        (int(rank), mode): (int(stored), float(error), float(lost))
        for rank, mode, stored, error, lost in rows
    }


def test_low_rank_keys_values(printed):
    text = printed("low_rank_keys_values")
    assert "540 numbers for the 384 of a 32 x 12 key" in text
    assert "fewer than 384 up to r = 8" in text
    table = table_of(text)
    assert {rank for rank, _ in table} == {6, 12, 18, 24}
    for rank in (6, 12, 18):
        assert table[rank, "joint"][1] < table[rank, "split"][1]
        assert table[rank, "joint"][0] == rank * (512 + 24)
    assert table[24, "joint"] == (24 * 536, 0.0, 0.0) and table[24, "joint"][0] > 512 * 24
    assert fact(text, "On the factors - on the rebuilt K and V") < ROUNDING
    assert fact(text, "The same scaled by 1/sqrt(rank)") > 1e-3
    fitted, later = (
        float(number)
        for number in re.search(r"they miss (\d+)% of their norm, later ones (\d+)%", text).groups()
    )
    assert later > fitted


def test_factored_sentence(printed):
    sections = printed("factored_sentence").split("\nlayer ")[1:]
    assert [section[0] for section in sections] == ["0", "2", "5"]
    for section in sections:
        table = table_of(section)
        tokens = max(rank for rank, _ in table)
        assert table[tokens, "joint"][1:] == (0.0, 0.0)
        assert table[tokens, "joint"][0] > int(re.search(r"(\d+) in all", section)[1])
        assert all(table[rank, "joint"][1] < table[rank, "split"][1] for rank, _ in table)


def test_xray_real_kernels(printed):
    said = dict(
        re.findall(
            r"^(torch|numba|falcon): (.*?)\n\n", printed("xray_real_kernels"), re.MULTILINE | re.DOTALL
        )
    )
    assert set(said) == {"torch", "numba", "falcon"}
    assert re.search(r"tiles? of 32 keys", said["numba"]) and "168 pairs lose their weight." in " ".join(
        said["numba"].split()
    )
    assert "skipped" in said["torch"] or "top-left" in said["torch"]
    assert "skipped" in said["falcon"] or "ALiBi is added twice" in said["falcon"]
