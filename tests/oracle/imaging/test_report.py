"""What an X-ray says: its text, its JSON and its picture, over verdicts and kinds of findings."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

import refattn
from refattn.oracle import xray
from refattn.oracle.imaging.describe import of_columns
from refattn.oracle.imaging.factors_in_words import changed_pairs, same_here, sentence_case, span
from refattn.oracle.imaging.findings import Finding
from refattn.oracle.imaging.report import XRay, counted


def arrays(rows=40, keys=70, heads=4, batch=2, dim=8):
    rng = np.random.default_rng(0)
    shapes = (batch, heads, rows, dim), (batch, heads // 2, keys, dim), (batch, heads // 2, keys, dim)
    return tuple(rng.standard_normal(shape, dtype=np.float32) for shape in shapes)


def right(query, key, value, **options):
    output, lse = refattn.attention_with_lse(query, key, value, **options)
    return output.astype(np.float32), lse.astype(np.float32)


def loses_the_last_tile(query, key, value, causal=False):
    whole = key.shape[2] // 32 * 32
    return right(query, key[:, :, :whole], value[:, :, :whole])


def top_left(query, key, value, causal=False):
    return right(query, key, value, causal=causal, q_offset=0)


def doubled_scale(query, key, value, causal=False):
    return right(query, key, value, causal=causal, scale=2 * query.shape[-1] ** -0.5)


def with_rows_of(number, query, key, value, causal=False):
    output, lse = right(query, key, value, causal=causal)
    output[:, 1, 3::8] = number
    return output, lse


def nan_rows(*arrays, **options):
    return with_rows_of(np.nan, *arrays, **options)


def zero_rows(*arrays, **options):
    return with_rows_of(0.0, *arrays, **options)


def lse_in_base_2(query, key, value, causal=False):
    output, lse = right(query, key, value, causal=causal)
    return output, lse * np.float32(np.log2(np.e))


def half_sum(query, key, value, causal=False):
    output, lse = right(query, key, value, causal=causal)
    output[:, :, ::2] *= 0.5
    return output, lse


def scaled_columns(query, key, value, causal=False):
    output, lse = right(query, key, value, causal=causal)
    output[..., 5:] *= 0.5
    return output, lse


KERNELS = (
    loses_the_last_tile,
    top_left,
    doubled_scale,
    nan_rows,
    zero_rows,
    lse_in_base_2,
    half_sum,
    scaled_columns,
)
SHAPES = {
    "prefill": {},
    "decode": {"rows": 1, "keys": 150},
    "few rows": {"rows": 3},
    "one sequence": {"batch": 1},
}


def causal_of(kernel):
    return {} if kernel is loses_the_last_tile else {"causal": True}


def test_agreement_is_said_and_has_nothing_to_draw(tmp_path):
    found = xray(right, *arrays(), causal=True)
    assert (found.verdict, found.findings, found.best, found.calls) == ("agrees", (), None, 1)
    assert str(found).startswith("The result agrees") and "1 call of the kernel" in str(found)
    assert found.to_dict()["counts"] == {} and found.weights is None
    with pytest.raises(ValueError, match="picture must have measured weights to draw.*The result agrees"):
        found.picture(tmp_path / "x.png")


@pytest.mark.parametrize("kernel", KERNELS)
def test_text_begins_with_the_best_finding_and_ends_with_the_calls(kernel):
    found = xray(kernel, *arrays(), **causal_of(kernel))
    assert found.verdict == "described" and found.best.confident
    text = " ".join(str(found).split())
    assert text.startswith(" ".join(found.best.says.split()))
    assert text.endswith(f"{found.calls} calls of the kernel")
    assert all(" ".join(also.says.split()) in text for also in found.findings[1:4])
    assert max(map(len, str(found).splitlines())) <= 109
    assert repr(found).startswith("<XRay described: ")


@pytest.mark.parametrize("kernel", KERNELS)
def test_json_holds_plain_values(kernel):
    found = xray(kernel, *arrays(), **causal_of(kernel))
    plain = json.loads(found.to_json())
    assert plain["sentence"] == found.sentence and plain["calls"] == sum(plain["called"].values())
    assert plain["shapes"]["weights"] == list(found.weights.shape) == list(found.expected_weights.shape)
    assert [finding["says"] for finding in plain["findings"]] == [finding.says for finding in found.findings]


def test_counts_are_those_of_the_weights():
    found = xray(loses_the_last_tile, *arrays())
    counts, (batch, heads, rows, keys) = found.counts, found.weights.shape
    lost = batch * heads * rows * (keys % 32)
    assert (counts["missing"], counts["extra"], counts["nan_rows"]) == (lost, 0, 0)
    assert f"{lost:,} pairs are wrong" in str(found)
    assert xray(nan_rows, *arrays(), causal=True).counts["nan_rows"] == 10


@pytest.mark.parametrize(
    ("finding", "words"),
    [
        ({}, ""),
        ({"wrong": 7, "hit": 7, "region": 4}, "7 of 7 wrong pairs lie there, no right one does"),
        ({"wrong": 1, "hit": 1, "region": 3}, "1 of 1 wrong row lies there, no right one does"),
        (
            {"wrong": 9, "hit": 7, "right_inside": 1, "region": 4},
            "7 of 9 wrong pairs lie there, and so does 1 right one",
        ),
        (
            {"wrong": 9, "hit": 7, "right_inside": 1200, "region": 3},
            "7 of 9 wrong rows lie there, and so do 1,200 right ones",
        ),
        ({"wrong": 9, "hit": 7, "region": 4, "place": ""}, "9 pairs are wrong"),
    ],
)
def test_counts_in_words(finding, words):
    axes = finding.pop("region", None)
    region = None if axes is None else np.ones((2,) * axes, bool)
    assert (
        counted(Finding("kind", "nature", finding.pop("place", "somewhere"), **finding, region=region))
        == words
    )


def test_what_is_only_located_says_so():
    known, unknown = Finding("a", "this happens"), Finding("b", "that differs", "there", confident=False)
    assert (
        XRay("located", (unknown,)).text().startswith("Located, nature unknown. That differs, where there.")
    )
    text = XRay("described", (known, unknown, known, known, known)).text()
    assert text.startswith("This happens.") and "also: located, nature unknown: That differs" in text
    assert text.count("also:") == 3 and "and 1 more" in text
    assert "verified" in XRay("described", (Finding("a", "this happens", verified=True),)).text()
    assert "not judged" in XRay("not judged").text() and "neither place nor nature" in XRay("located").text()


def test_located_is_said_only_with_a_place():
    region = np.ones((1, 1, 2, 3), bool)
    everywhere = Finding("a", "this differs", wrong=6, hit=6, region=region, confident=False)
    scattered = Finding("a", "this differs", wrong=2, hit=2, right_inside=4, region=region, confident=False)
    assert XRay("located", (everywhere,)).sentence == (
        "Located, nature unknown. This differs, in all rows and heads."
    )
    assert XRay("located", (scattered,)).sentence == "Nature unknown. This differs."


def test_the_text_counts_the_calls_and_json_lists_them():
    found = XRay("described", (Finding("a", "this happens"),), called={"one-hot values": 7, "the call": 2})
    assert found.text().splitlines()[-1] == "  9 calls of the kernel" and "one-hot" not in found.text()
    assert found.to_dict()["called"] == {"one-hot values": 7, "the call": 2}


def test_what_was_told_is_not_told_again_of_other_columns():
    again, other = Finding("race", "results differ"), Finding("scale", "the scale is another")
    measured = SimpleNamespace(wrong_columns=np.ones(4, bool))
    told = of_columns([again, other], np.array([1, 2]), measured, {("race", "results differ")})
    assert [finding.nature for finding in told] == [
        "in columns 1 to 2 of 4 of the output, the scale is another"
    ]


@pytest.mark.parametrize(
    ("got", "words"),
    [
        (span([1.0, 1.00000001]), "1"),
        (span([0.5, 0.25]), "0.25 to 0.5"),
        (changed_pairs(0, 760), "760 pairs gain weight."),
        (changed_pairs(1200, 0), "1,200 pairs lose their weight."),
        (changed_pairs(1, 2), "1 pair loses its weight and 2 gain weight."),
        (same_here("it is one", ["two"]), "it is one; or, which is the same here, two"),
        (same_here("it is one", ["it is one (and more)"]), "it is one"),
        (same_here("it is one", ["two " * 40, "three"]), "it is one; or, which is the same here, three"),
        (sentence_case("q_rope is left out"), "q_rope is left out"),
        (sentence_case("rows are 0"), "Rows are 0"),
    ],
)
def test_words_that_findings_share(got, words):
    assert got == words


def test_the_title_of_a_picture_fits_into_it():
    pytest.importorskip("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from refattn.oracle.imaging.picture import WIDTH, _Page, _words

    nature = "WWWWWWWWWWWW of WWWWWWWWWWWW are WWWWWWWWWW, " * 12
    long = Finding("a", nature, "MMMMMM MMMMM " * 40, note="WWWWWWW WWWWWW " * 40)
    page = _Page(Figure, *_words(XRay("described", (long,))))
    FigureCanvasAgg(page.figure)
    renderer = page.figure.canvas.get_renderer()
    ends = [text.get_window_extent(renderer).x1 / page.figure.dpi for text in page.figure.texts]
    assert len(ends) > 3 and 0.8 * WIDTH < max(ends) <= WIDTH


def test_what_cannot_be_seen_is_said_where_it_applies():
    all_seen, unseen = arrays(), "what shifts all scores of a row alike"
    with_lse = xray(loses_the_last_tile, *all_seen)
    without = xray(lambda *a, **o: loses_the_last_tile(*a, **o)[0], *all_seen)
    assert unseen not in str(with_lse) and unseen in str(without)
    assert "keys and values that are moved together" in str(with_lse)
    assert xray(top_left, *all_seen, causal=True).unseen() == []
    half = tuple(array.astype(np.float16) for array in all_seen)
    rounded = xray(lambda *a, **o: loses_the_last_tile(*a, **o)[0].astype(np.float16), *half)
    assert "smaller than the rounding of the output, float16" in " ".join(str(rounded).split())


def test_an_lse_from_elsewhere_is_compared_too():
    query, key, value = arrays()
    output_of = lambda *a, **o: right(*a, **o)[0]
    lse = right(query, key, value, causal=True)[1]
    assert xray(output_of, query, key, value, lse=lse, causal=True).verdict == "agrees"
    assert xray(output_of, query, key, value, lse=lse + 1, causal=True).best.kind == "lse"


def test_a_result_in_place_of_a_kernel_is_refused():
    with pytest.raises(TypeError, match="kernel must be callable"):
        xray(arrays()[0], *arrays())


ELSEWHERE = (loses_the_last_tile, zero_rows, lse_in_base_2, scaled_columns)


@pytest.mark.sample(6)
@pytest.mark.parametrize(
    ("kernel", "shape"),
    [(kernel, shape) for kernel in KERNELS for shape in SHAPES if shape == "prefill" or kernel in ELSEWHERE],
)
def test_picture(kernel, shape, tmp_path):
    image = pytest.importorskip("matplotlib.image")
    found = xray(kernel, *arrays(**SHAPES[shape]), **causal_of(kernel))
    if found.verdict == "agrees":  # one row is aligned either way
        assert kernel in (top_left, nan_rows, zero_rows)
        return
    found.picture(path := tmp_path / "x.png")
    pixels = image.imread(path)[..., :3]
    assert pixels.shape[1] == 1650 and 400 < pixels.shape[0] < 560
    panels = pixels[-350:-100]
    columns = (panels != 1).any(-1)[:, 80:1450].mean(0)
    assert (columns > 0.03).mean() > 0.6  # panels over the whole width, with gaps and white ground in some


def pixels_of(path, colour):
    """How many pixels have a colour."""
    from matplotlib.colors import to_rgb
    from matplotlib.image import imread

    return int((np.abs(imread(path)[..., :3] - to_rgb(colour)) < 1 / 255).all(-1).sum())


@pytest.mark.parametrize(
    ("kernel", "name"),
    [(loses_the_last_tile, "missing"), (top_left, "missing"), (nan_rows, "lost"), (zero_rows, "lost")],
)
def test_the_picture_shows_what_is_wrong_in_its_colour(kernel, name, tmp_path):
    pytest.importorskip("matplotlib")
    from refattn.oracle.imaging.picture import COLOURS

    xray(kernel, *arrays(), **causal_of(kernel)).picture(path := tmp_path / "x.png")
    assert pixels_of(path, COLOURS[name]) > 1000


def test_large_calls_are_cut_to_what_is_wrong():
    from refattn.oracle.imaging.picture import MOST, cut_of

    query, key, value = arrays(rows=400, keys=700, heads=2, batch=1)

    def kernel(query, key, value, causal=False):
        mask = np.ones((400, 700), bool)
        mask[350:370, 600:620] = False
        return right(query, key, value, causal=causal, mask=mask)

    found = xray(kernel, query, key, value, causal=True)
    cut = cut_of(found, found.ledgers.wrong)
    assert cut.rows.stop - cut.rows.start <= MOST and cut.keys.stop - cut.keys.start <= MOST
    assert cut.rows.start <= 350 and cut.rows.stop >= 370 and cut.keys.start <= 600 and cut.keys.stop >= 620
    assert cut.of(found.ledgers.wrong).sum() == 400 == found.ledgers.wrong[0, cut.h].sum()


def test_picture_without_matplotlib_says_so(monkeypatch):
    found = xray(loses_the_last_tile, *arrays())
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="picture must have matplotlib"):
        found.picture("unused.png")


@pytest.mark.parametrize(
    ("words", "tiles"),
    [
        ("keys get no weight, where the tile of 32 keys is the last", [32, None]),
        ("the length is rounded down to a multiple of 48", [48, None]),
        ("the causal limit is taken once for every 16 rows, from the last of them", [None, 16]),
        ("in tiles of 64 keys, seen by the last row of the tile of 8 rows, nothing is rescaled", [64, 8]),
        ("this; or, which is the same here, that of tiles of 64 keys", [None, None]),
    ],
)
def test_tile_edges_are_those_that_the_words_name(words, tiles):
    from refattn.oracle.imaging.picture import _tiles

    assert _tiles(Finding("kind", words)) == tiles


def test_the_picture_says_how_large_an_error_is_beyond_its_scale(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from refattn.oracle.imaging import picture

    titles = []
    panel = picture._Page.panel
    monkeypatch.setattr(
        picture._Page, "panel", lambda self, x, width, title, *a, **k: titles.append(title) or panel(
            self, x, width, title, *a, **k)
    )  # fmt: skip

    def kernel(query, key, value):
        output, lse = right(query, key, value)
        output[..., 3] += 1e9
        return output, lse

    xray(kernel, *arrays()).picture(tmp_path / "x.png")
    assert "measured output (up to 1e+09)" in titles
    error = next(title for title in titles if title.startswith("error over what rounding allows, up to "))
    assert float(error.split()[-1]) > 1e6
