"""The page of a report: one file without network, whose numbers are those of the report, and in which no name
becomes markup. It was looked at in Chromium; what a test can hold of that stands here."""

import base64
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

import refattn
from refattn.oracle import check, check_kernel, xray
from refattn.oracle.harness.outcomes import HarnessReport, Outcome
from refattn.oracle.verdict import page as pages
from refattn.oracle.verdict.row_map import LEFT_OUT, NOT_LOOKED_AT, binned

RNG = np.random.default_rng(0)
ARRAYS = tuple(RNG.standard_normal((2, 4, 12, 8)).astype(np.float32) for _ in range(3))
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> & \" ' <!--"


class Page(HTMLParser):
    """Tags in order, attributes, and the text."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.attributes, self.words, self.data, self._in = [], [], [], "", ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        self._in = tag if ("id", "maps") not in attributes else "maps"

    def handle_endtag(self, tag):
        self._in = ""

    def handle_data(self, data):
        if self._in == "maps":
            self.data += data
        elif self._in not in ("script", "style"):
            self.words.append(data)

    @property
    def maps(self):
        return json.loads(self.data, parse_constant=pytest.fail)

    @property
    def text(self):
        return " ".join(self.words)


def wrong():
    output = refattn.attention(*ARRAYS, causal=True).astype(np.float32)
    output[1, 2, 5:] += 1.0
    output[0, 1, 3] = np.nan
    return output


def values_of(drawn):
    values = np.frombuffer(base64.b64decode(drawn["values"]), "<f4")
    return values.reshape(len(drawn["tops"]), len(drawn["lefts"]))


def test_the_page_says_what_the_report_says(tmp_path):
    report = check(wrong(), *ARRAYS, causal=True)
    report.save(tmp_path / "x.html")
    page = Page((tmp_path / "x.html").read_text(encoding="utf-8"))
    assert page.text.index("8 NaN where finite numbers belong") < page.text.index("worst of the output")
    for words in (*report.summary.split(": FAIL: ")[1].split(", in "), report.reproduce, report.text()):
        assert words[1:] in page.text
    assert f"{report.output.at_worst['expected']:.9g}" in page.text
    rows, dims = page.maps
    np.testing.assert_array_equal(values_of(rows), report.output.use_map.reshape(8, 12).astype(np.float32))
    assert rows["batch"] == [2] and rows["heads"] == 4 and values_of(rows)[1, 3] == np.inf
    assert dims["across"] == "dim" and rows["largest"] == pytest.approx(report.output.use_tight)


def test_a_page_needs_no_network():
    source = check(wrong(), *ARRAYS, causal=True).page()
    assert not re.search(r"https?:|//[a-z]|@import|url\(", source)
    page = Page(source)
    assert not {"link", "img", "iframe", "object", "base"} & {*page.tags}
    assert not {"src", "href", "onload", "onclick"} & {name for name, _ in page.attributes}
    assert source.startswith("<!DOCTYPE html>") and page.tags.count("script") == 2


def test_no_name_becomes_markup():
    report = check(wrong(), *ARRAYS, causal=True)
    usual = Page(report.page())
    report.function, report.reproduce = HOSTILE, HOSTILE
    report.warn(HOSTILE)
    hostile = Page(report.page())
    assert {*hostile.tags} == {*usual.tags} and hostile.tags.count("script") == 2
    assert hostile.text.count("alert(2)") >= 3 and hostile.maps == usual.maps

    failures = [Outcome(HOSTILE, HOSTILE, "FAIL", HOSTILE, raised=raised) for raised in ("", HOSTILE)]
    failures.append(Outcome(HOSTILE, HOSTILE, "FAIL", HOSTILE, report=report, reproduce=HOSTILE))
    harness = HarnessReport(HOSTILE, {"dialect": HOSTILE}, report.spec, failures, remedies=[HOSTILE])
    page = Page(harness.page())
    assert {*page.tags} <= {*usual.tags, "table", "thead", "tbody", "tr", "th", "td"}
    assert page.tags.count("script") == 2 and not [name for name, _ in page.attributes if name[:2] == "on"]


def test_names_in_maps_end_no_script():
    drawn = {"title": HOSTILE, "kind": "use", "names": [HOSTILE]}
    source = pages.page(HOSTILE, "FAIL", HOSTILE, [pages.Section(HOSTILE, "FAIL", [HOSTILE], maps=[drawn])])
    page = Page(source)
    assert page.maps == [drawn] and page.tags.count("script") == 2 and "img" not in page.tags


def test_words_of_the_template_in_a_report_are_left_alone():
    report = check(wrong(), *ARRAYS, causal=True)
    report.warn("BODY DATA TITLE")
    assert "BODY DATA TITLE" in Page(report.page()).text


def test_large_maps_are_binned_and_show_the_worst():
    grid = RNG.random((700, 1100))
    grid[699, 1099], grid[3, 5] = np.inf, 77.0
    drawn = pages._numbers(grid)
    values = values_of(drawn)
    places = np.frombuffer(base64.b64decode(drawn["places"]), "<u4").reshape(values.shape)
    assert values.shape == (pages.MOST_HEADS, pages.MOST_ROWS) and values[-1, -1] == np.inf
    np.testing.assert_array_equal(values, grid.ravel()[places].astype(np.float32))
    row, column = (
        np.searchsorted(drawn["tops"], 3, "right") - 1,
        np.searchsorted(drawn["lefts"], 5, "right") - 1,
    )
    assert values[row, column] == 77.0 and places[row, column] == 3 * 1100 + 5
    small, at = binned(grid[:5, :7], 10, 10)
    assert small.shape == (5, 7) and (at.ravel() == np.arange(35)).all()


def test_rows_that_were_not_looked_at_or_left_out_are_marked():
    output = refattn.attention(*ARRAYS, causal=True, q_offset=-2).astype(np.float32)
    how = {"causal": True, "q_offset": -2, "rows": 5, "ignore_empty_rows": True}
    values = values_of(Page(check(output, *ARRAYS, **how).page()).maps[0])
    assert (values == LEFT_OUT).all(axis=0).sum() == 2 and (values == NOT_LOOKED_AT).any()


def test_a_page_of_a_harness_shows_the_xray_of_a_failure():
    def kernel(query, key, value, *, causal=False):
        mask = np.arange(key.shape[-2]) % 5 != 3
        return refattn.attention(query, key, value, causal=causal, mask=mask[None]).astype(np.float32)

    report = check_kernel(kernel, only=["reference: normal"])
    page = Page(report.page())
    kinds = [drawn["kind"] for drawn in page.maps]
    assert kinds[-3:] == ["weight", "weight", "kinds"] and "use" in kinds
    assert "X-ray" in page.text and report.failures[0].reproduce in page.text
    found = xray(kernel, *ARRAYS)
    *_, expected, measured, differs = Page(found.page()).maps
    np.testing.assert_array_less(0, values_of(expected))
    assert (values_of(measured)[:, 3::5] == 0).all()
    names = [entry[2] for entry in differs["legend"]]
    assert (values_of(differs)[:, 3::5] == names.index("m")).all()


def test_right_results_and_wrong_shapes_have_a_page():
    right = refattn.attention(*ARRAYS).astype(np.float32)
    assert len(Page(check(right, *ARRAYS).page()).maps) == 1
    page = Page(check(right[..., :3], *ARRAYS).page())
    assert "must have shape (2, 4, 12, 8)" in page.text and page.maps == []
    assert Page(check(right[:, :, :0], ARRAYS[0][:, :, :0], *ARRAYS[1:]).page()).maps == []
