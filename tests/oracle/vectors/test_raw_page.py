"""The page on the raw format: its example is what is written, and a reader that knows nothing but the page
understands every file. `python tests/oracle/vectors/test_raw_page.py`, with this checkout on PYTHONPATH,
writes the example.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

import refattn
from refattn.oracle.inputs.families import AttentionInputs
from refattn.oracle.vectors.case_file import VERSIONS, save_case
from refattn.oracle.vectors.golden import EXPECTED, LAYOUTS, make_case
from refattn.oracle.vectors.packs import make_cases
from refattn.oracle.vectors.untrusted import DTYPES

PAGE = Path(refattn.__file__).parent / "oracle" / "vectors" / "README.md"
BEGIN, END = (
    "<!-- example:begin, written by tests/oracle/vectors/test_raw_page.py -->\n",
    "<!-- example:end -->",
)


def example(directory):
    """A call whose numbers are short in binary, in its directory, as the page shows it."""
    count = lambda *shape: np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    arrays = count(1, 2, 3, 2) / 4 - 1, count(1, 1, 3, 2) / 2, 1 - count(1, 1, 3, 1)
    inputs = AttentionInputs("example", "own", "attention", arrays, {"causal": True})
    save_case(make_case(inputs, rows=[0, 2], layout="BTHD"), directory, "raw")
    dumps = [
        f"{name}.bin\n{hexdump((directory / f'{name}.bin').read_bytes())}"
        for name in ("query", "expected_rows")
    ]
    return "```text\n" + "\n".join(["case.txt", (directory / "case.txt").read_text(), *dumps]) + "```\n"


def hexdump(data):
    lines = (data[at : at + 16].hex(" ", 4) for at in range(0, len(data), 16))
    return "".join(f"{16 * n:08x}  {line}\n" for n, line in enumerate(lines))


def test_the_example_of_the_page_is_what_is_written(tmp_path):
    page = PAGE.read_text(encoding="utf-8")
    assert page.partition(BEGIN)[2].partition(END)[0] == example(tmp_path / "case")


def test_the_page_names_every_dtype_layout_array_and_version():
    page = PAGE.read_text(encoding="utf-8")
    kinds = {name for name in DTYPES if not name.startswith("uint")}
    assert all(f"`{word}`" in page for word in {*kinds, *EXPECTED, *LAYOUTS} - {""})
    assert all(
        f" {version}" in page.partition("refattn-case VERSION")[2].partition("\n")[0] for version in VERSIONS
    )


def read_by_the_page(directory):
    """Facts and arrays, from bytes and lines alone."""
    assert (directory / "case.txt").read_bytes().isascii()
    facts, arrays = {}, {}
    for line in (directory / "case.txt").read_text().split("\n")[:-1]:
        word, *words = line.split(" ")
        if word != "array":
            facts[word] = words
            continue
        name, dtype, rank, *sizes = words
        assert len(sizes) == int(rank)
        data = (directory / f"{name}.bin").read_bytes()
        if dtype == "bfloat16":
            halves = np.frombuffer(data, "<u2").astype("<u4")
            numbers = np.left_shift(halves, 16).view("<f4")
        else:
            numbers = np.frombuffer(
                data,
                {"float64": "<f8", "float32": "<f4", "float16": "<f2", "int64": "<i8", "bool": "u1"}[dtype],
            )
        arrays[name] = numbers.reshape([*map(int, sizes)])
    assert {path.name for path in directory.iterdir()} == {
        "case.txt",
        "case.json",
        *(f"{name}.bin" for name in arrays),
    }
    return facts, arrays


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_reader_that_knows_the_page_computes_the_results(tmp_path, dtype):
    pytest.importorskip("ml_dtypes")
    for case in make_cases(["gqa"], dtype=dtype):
        save_case(case, tmp_path / case.name, "raw")
        facts, arrays = read_by_the_page(tmp_path / case.name)
        assert facts.pop("refattn-case") == ["1"] and facts.pop("name") == [case.name]
        assert facts.pop("function") == ["attention"]
        options = {"scale": float(facts.pop("scale")[0]), "causal": facts.pop("causal") == ["1"]}
        for name, words in facts.items():
            numbers = [
                None if word == "none" else float(word) if "." in word else int(word)
                for word in words
                if word != "array"
            ]
            options[name] = (
                arrays[name] if words == ["array"] else tuple(numbers) if len(numbers) > 1 else numbers[0]
            )
        if "mask" in options:
            options["mask"] = options["mask"].astype(bool)
        if "dropout_mask" in options:
            options["dropout_mask"] = options["dropout_mask"].astype(bool)
        output, lse = refattn.attention_with_lse(
            *(arrays[name] for name in ("query", "key", "value")), **options
        )
        assert np.array_equal(output, arrays["expected_output"]) and np.array_equal(
            lse, arrays["expected_lse"]
        ), case.name


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        PAGE.write_text(before + BEGIN + example(Path(place) / "case") + END + after, encoding="utf-8")
    sys.exit()
