"""The picture of an X-ray: expected weights, measured ones, and what differs, with the place of the finding
outlined.

What is drawn depends on the finding: weights by row and key (`_draw_weights`), one number a row such as lse
(`_draw_row_numbers`), or the output where the weights are right (`_draw_output`).
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

import numpy as np

from refattn.oracle.imaging.compare import EXTRA, MISSING, RIGHT, SCALED, UNJUDGED
from refattn.oracle.imaging.report import counted

# inches: of the picture; of its panels, up and down; of what stands below them
WIDTH, PANELS, BELOW = 16.5, 2.5, 1.0
LEFT, MARGIN_RIGHT = 0.72, 0.3  # margins of the words
HEAD_LINES, SMALL_LINES = 3, 2
DPI = 100
EVEN = 1.06  # of the mean width of lines: they are of about the same length
MOST = 300  # rows and keys shown
FEW_ROWS, BANDS = 4, 64  # up to so many, the rows of all heads are drawn, one band each
MARGIN = 0.25  # of what is wrong, shown around it
MOST_EDGES = 40  # tile edges that are drawn
WEIGHT_SHOWN = 4.0  # moved weight up to which bars are drawn; of more the picture says the largest
FAINTEST = 1e-5  # weight, beside the largest one, at which the colours end
SAME = "; or, which is the same here, "

INK, FAINT, HIDDEN, PLACE, NAN = "#1b1b1b", "#5f6368", "#eeeeee", "#f6e3b4", "#d9c7e6"
# after Okabe and Ito, who chose them for colour-blind readers; a test holds them apart in simulated vision
COLOURS = {
    "right": "#c3dcec",
    "factor": "#f3e58c",
    "less": "#e69f00",
    "more": "#009e73",
    "missing": "#b03a00",
    "extra": "#00508c",
    "lost": "#1b1b1b",
    "unknown": "#a0a0a0",
    "small": "#fafafa",
}
MARKS = {  # of cells that have room for a letter
    "right": "",
    "factor": "f",
    "less": "-",
    "more": "+",
    "missing": "m",
    "extra": "x",
    "lost": "0",
    "unknown": "?",
    "small": "",
}
ORDER = tuple(COLOURS)
SAYS = {
    "right": "right",
    "factor": "right but for a factor of the row",
    "less": "too small beside its row",
    "more": "too large",
    "missing": "missing",
    "extra": "extra (should be hidden)",
    "lost": "row of NaN or 0",
    "unknown": "wrong, weights not known",
    "small": "too small to judge",
}


def draw(xray, path):
    """Draw into a file; `XRay.picture` says what."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "picture must have matplotlib to draw with; install matplotlib, or print xray.text()."
        ) from error
    if xray.measured is None:
        raise ValueError(f"picture must have measured weights to draw, and there are none. {xray.sentence}")
    head, small = _words(xray)
    page = _Page(Figure, head, small)
    FigureCanvasAgg(page.figure)
    {"weights": _draw_weights, "rows": _draw_row_numbers, "output": _draw_output}[_subject(xray)](xray, page)
    page.figure.savefig(path, dpi=DPI)


def _subject(xray):
    """Which of the three kinds of picture shows the finding."""
    ledgers, best = xray.ledgers, xray.best
    if best is not None and not ledgers.nan.any():
        if best.kind in ("lse", "normaliser") or (best.nature.startswith("lse") and ledgers.lse_off.any()):
            return "rows"
        if best.kind in ("values", "columns", "latents") or best.nature.startswith("the output"):
            return "output"
    if ledgers.wrong.any() or ledgers.nan.any() or ledgers.zero.any():
        return "weights"
    return "rows" if _row_number(xray)[-1].any() else "output"


def _words(xray):
    """The lines of the headline and the small ones below it."""
    best = xray.best
    if best is None:
        return _lines(xray.sentence, HEAD_LINES, size=12.5, weight="bold"), []
    nature, *same = best.nature.split(SAME)
    head = dataclasses.replace(xray, findings=(dataclasses.replace(best, nature=nature, note=""),)).sentence
    more = [best.note, f"The same here: {'; '.join(same)}." if same else ""]
    return _lines(head, HEAD_LINES, size=12.5, weight="bold"), _lines(
        " ".join(filter(None, more)), SMALL_LINES, size=9
    )


def _lines(words, most, **font):
    """At most so many lines of words that fit into the width of the picture."""
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.font_manager import FontProperties

    font, measure = FontProperties(**font), RendererAgg(1, 1, DPI).get_text_width_height_descent
    width = lambda line: measure(line, font, ismath=False)[0] / DPI
    room, whole = WIDTH - LEFT - MARGIN_RIGHT, width(words)
    even = min(room, EVEN * whole / max(np.ceil(whole / room), 1))
    lines = [""] * bool(words)
    for word in words.split():
        longer = f"{lines[-1]} {word}".strip()
        if not lines[-1] or width(longer) <= (even if len(lines) < most else room):
            lines[-1] = longer
        elif len(lines) < most:
            lines.append(word)
        else:
            while width(f"{lines[-1]} ...") > room:
                lines[-1] = lines[-1].rsplit(" ", 1)[0]
            lines[-1] += " ..."
            break
    return lines


class _Page:
    """The figure: words on top, panels below them in inches from the left, a line of words at the bottom."""

    def __init__(self, figure, head, small):
        top = 0.16 + 0.25 * len(head) + 0.19 * len(small) + 0.34
        self.height = top + PANELS + BELOW
        self.figure = figure(figsize=(WIDTH, self.height), facecolor="white")
        y = self.height - 0.12
        for line in head:
            self.text(LEFT, y, line, fontsize=12.5, weight="bold", color=INK, va="top")
            y -= 0.25
        for line in small:
            self.text(LEFT, y, line, fontsize=9, color=FAINT, va="top")
            y -= 0.19

    def text(self, x, y, words, **how):
        return self.figure.text(x / WIDTH, y / self.height, words, **how)

    def panel(self, x, width, title, numbered="xy", **how):
        """Axes of the common height, x and width in inches; `numbered` are those that count rows, keys or
        columns.
        """
        from matplotlib.ticker import MaxNLocator

        axes = self.axes(x, BELOW, width, PANELS, **how)
        axes.set_title(title, fontsize=10.5, color=INK, pad=5)
        axes.tick_params(labelsize=8.5, color=FAINT, labelcolor=INK, length=3)
        for name in numbered:
            getattr(axes, f"{name}axis").set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
        for spine in axes.spines.values():
            spine.set(color=FAINT, linewidth=0.8)
        return axes

    def axes(self, x, y, width, height, **how):
        return self.figure.add_axes((x / WIDTH, y / self.height, width / WIDTH, height / self.height), **how)

    def bottom(self, x, legend, closing):
        """(colour, words) in a line below the panels, and a line of words below it."""
        renderer = self.figure.canvas.get_renderer()
        self.text(x, 0.14, closing, fontsize=9, color=INK, va="center")
        drawn = [self.text(x, 0.4, words, fontsize=9, color=INK, va="center") for _, words in legend]
        widths = [text.get_window_extent(renderer).width / self.figure.dpi for text in drawn]
        room = (WIDTH - 0.2 - x - 0.48 * len(legend)) / max(sum(widths), 1e-9)
        for (colour, _), text, width in zip(legend, drawn, widths, strict=True):
            self.axes(x, 0.335, 0.15, 0.13, facecolor=colour, xticks=[], yticks=[])
            text.set(x=(x + 0.21) / WIDTH, fontsize=9 * min(room, 1.0))
            x += 0.48 + width * min(room, 1.0)


# weights by row and key


@dataclass
class _Cut:
    """The rows and keys that are shown: of one sequence and head, or of all heads where rows are few.

    `of(array)` cuts an array (B, H, T, S) or (B, H, T).
    """

    view: object
    b: int
    h: int | None
    rows: slice
    keys: slice

    def of(self, array):
        array = np.broadcast_to(
            array, np.broadcast_shapes(np.shape(array), self.view.shape[: np.ndim(array)])
        )
        array = array[self.b].reshape(-1, *array.shape[3:]) if self.h is None else array[self.b, self.h]
        return array[self.rows, self.keys] if array.ndim == 2 else array[self.rows]

    @property
    def sequence(self):
        return self.view.sequences[self.b]

    @property
    def extent(self):
        return (self.keys.start - 0.5, self.keys.stop - 0.5, self.rows.stop - 0.5, self.rows.start - 0.5)

    @property
    def place(self):
        """ "sequence 0, head 3"."""
        head = f"head {self.view.heads[self.h]}" if self.h is not None else "all heads"
        return f"sequence {_number(self.sequence)}, {head}" if len(self.view.sequences) > 1 else head

    def label(self, axes):
        """Row numbers as they are in the sequence, heads where all are shown."""
        rows = len(self.sequence.rows)
        if self.h is not None:
            axes.set_ylabel(f"query row ({self.place})", fontsize=9.5)
            numbers = self.sequence.rows
            axes.yaxis.set_major_formatter(
                lambda y, _: str(numbers[round(y)]) if 0 <= y < len(numbers) and y == round(y) else ""
            )
            return
        axes.set_ylabel(
            f"query head ({self.place})" if rows == 1 else f"head: row ({self.place})", fontsize=9.5
        )
        step = max(1, -(-(self.rows.stop - self.rows.start) // 16))
        shown = range(self.rows.start, self.rows.stop, step)
        name = lambda n: (
            f"{self.view.heads[n // self.view.num_rows]}"
            + (f": {n % self.view.num_rows}" if rows > 1 else "")
        )
        axes.set_yticks([*shown], [name(n) for n in shown])


def _number(sequence):
    """Of a sequence among all: its place in the batch, or among packed or paged ones."""
    return sequence.part + sequence.entry  # one of them is always 0


def cut_of(xray, wrong):
    """The rows and keys with most wrong pairs; `wrong` is (B, H, T, S)."""
    view = xray.measured.view
    by_head = wrong.sum((2, 3))
    stacked = _few(view)
    b = (
        int(by_head.sum(1).argmax())
        if stacked
        else int(np.unravel_index(by_head.argmax(), by_head.shape)[0])
    )
    h = None if stacked else int(by_head[b].argmax())
    sequence = view.sequences[b]
    of_head = wrong[b].reshape(-1, wrong.shape[-1]) if stacked else wrong[b, h]
    num_rows = len(of_head) if stacked else len(sequence.rows)
    rows = slice(0, num_rows) if stacked else _span(of_head.any(1), num_rows)
    keys = of_head[rows].any(0)
    # rows that are wrong as a whole say nothing about keys
    keys = view.visible[b, h, rows].any(0) if not stacked and keys.all() else keys
    keys = _span(keys, max(sequence.num_keys, 1))
    if not stacked and num_rows > MOST:  # rows that see none of these keys show nothing
        seen = np.flatnonzero((of_head | view.visible[b, h])[rows, keys].any(1))
        rows = slice(rows.start + int(seen[0]), rows.start + int(seen[-1]) + 1) if len(seen) else rows
    return _Cut(view, b, h, rows, keys)


def _few(view):
    return view.num_rows <= FEW_ROWS and view.num_rows * len(view.heads) <= BANDS


def _span(wrong, length):
    """At most MOST of `length` numbers, around as many wrong ones as there can be."""
    if length <= MOST:
        return slice(0, length)
    wrong = wrong[:length]
    if not wrong.any():
        return slice(0, MOST)
    first, last = np.flatnonzero(wrong)[[0, -1]]
    if last - first >= MOST:
        inside = np.convolve(wrong, np.ones(MOST, int))[MOST - 1 :]
        return slice(start := min(int(inside.argmax()), length - MOST), start + MOST)
    around = max(int(MARGIN * (last - first + 1)), (120 - (last - first)) // 2, 8)
    start, stop = max(int(first) - around, 0), min(int(last) + 1 + around, length)
    stop = min(stop, start + MOST)
    return slice(start, stop)


def kinds_of(xray):
    """Which of COLOURS every pair has, (B, H, T, S); -1 where it is hidden and is right to be."""
    ledgers, view = xray.ledgers, xray.measured.view
    number = ORDER.index
    kinds = np.full(view.shape, -1)
    visible = view.visible & view.exists
    kinds[visible & (ledgers.labels == UNJUDGED)] = number("small")
    right = visible & (ledgers.labels == RIGHT)
    factor = np.abs(ledgers.shift) > xray.measured.tolerance[..., 0]
    kinds[right] = number("right")
    kinds[right & factor[..., None] & (view.weights > 0)] = number("factor")
    with np.errstate(all="ignore"):
        more = ledgers.ratio > ledgers.shift[..., None]
    kinds[ledgers.labels == SCALED] = number("less")
    kinds[(ledgers.labels == SCALED) & more] = number("more")
    for label, name in ((MISSING, "missing"), (EXTRA, "extra")):
        kinds[ledgers.labels == label] = number(name)
    kinds[visible & (ledgers.nan | ledgers.zero)[..., None]] = number("lost")
    unknown = getattr(xray.measured, "unknown", None)  # rows of an estimate that nothing explains
    if unknown is not None:
        kinds[visible & unknown[..., None]] = number("unknown")
    return kinds


def _draw_weights(xray, page):
    from matplotlib.colors import LogNorm

    view, ledgers = xray.measured.view, xray.ledgers
    kinds = kinds_of(xray)
    lost = ledgers.nan | ledgers.zero
    wrong = (ledgers.wrong | (kinds == ORDER.index("lost"))) if lost.any() else ledgers.wrong
    region = _region(xray, wrong)
    cut = cut_of(xray, wrong & region if (wrong & region).any() else wrong)
    expected, got = cut.of(view.weights), np.nan_to_num(cut.of(xray.measured.weights))
    largest = max(expected.max(initial=0), got.max(initial=0), 1e-30)
    smallest = min(w.min() for array in (expected, got) if (w := array[array > 0]).size)
    norm = LogNorm(max(smallest, FAINTEST * largest), largest)
    tiles = _tiles(xray.best)
    left, panels = 0.72, (4.62, 0.2)
    axes = []
    outline = cut.of(region)
    difference = f"difference{', the described place outlined' if outline.any() else ''}"
    for n, title in enumerate(("expected weights", "measured weights", difference)):
        panel = page.panel(left + n * sum(panels), panels[0], title, facecolor=HIDDEN)
        axes.append(panel)
        if n < 2:
            image = _show_weights(panel, (expected, got)[n], cut, norm)
        else:
            _show_kinds(panel, cut.of(kinds), cut)
            _shade_scaled(panel, cut, ledgers)
        if n:
            panel.tick_params(labelleft=False)
            _outline(panel, outline, cut, "#c62828" if n == 1 else "black")
        _tile_edges(panel, cut, tiles)
        panel.set(xlim=cut.extent[:2], ylim=cut.extent[2:])
        panel.set_xlabel(_keys_in_words(cut), fontsize=9.5)
    cut.label(axes[0])
    _lost_rows(axes[1], cut, ledgers)
    _misplaced(page, left + 3 * sum(panels) + 0.02, xray, cut)
    colours = page.axes(0.72, 0.34, 1.35, 0.11)
    bar = page.figure.colorbar(image, cax=colours, orientation="horizontal")
    bar.ax.tick_params(labelsize=7.5, length=2, pad=1)
    bar.ax.minorticks_off()
    page.text(2.17, 0.4, "weight", fontsize=9, color=INK, va="center")
    shown = np.bincount(cut.of(kinds)[cut.of(kinds) >= 0], minlength=len(ORDER))
    legend = [
        (COLOURS[name], f"{SAYS[name]}: {count:,}{_factors(name, cut, ledgers)}")
        for name, count in zip(ORDER, shown, strict=True)
        if count
    ]
    page.bottom(2.95, legend, _closing(xray))


def _factors(name, cut, ledgers):
    """ " (0.25 to 0.5 times)" of weights of a wrong ratio."""
    if name not in ("less", "more"):
        return ""
    ratio = np.exp(
        cut.of(np.where(ledgers.labels == SCALED, ledgers.ratio - ledgers.shift[..., None], np.nan))
    )
    ratio = ratio[ratio > 1] if name == "more" else ratio[ratio < 1]
    if not ratio.size:
        return ""
    low, high = f"{ratio.min():.3g}", f"{ratio.max():.3g}"
    return f" ({low} times)" if low == high else f" ({low} to {high} times)"


def _closing(xray):
    best = xray.best
    behind = [f"in the whole call {words}" if best is not None and (words := counted(best)) else ""]
    behind += ["verified on the call itself" if best is not None and best.verified else ""]
    behind += [xray.called_in_words]
    words = "; ".join(filter(None, behind))
    return f"{words[:1].upper()}{words[1:]}."


def _region(xray, wrong):
    """The place of the best finding as pairs; where it has none, the missing and extra pairs."""
    best = xray.best
    if best is None or best.region is None or not best.place:
        return np.isin(xray.ledgers.labels, (MISSING, EXTRA))
    region = best.region if best.region.ndim == 4 else best.region[..., None]
    visible = xray.measured.view.visible | wrong
    return np.broadcast_to(region, wrong.shape) & (visible if region.shape[-1] == 1 else True)


def _show_weights(axes, weights, cut, norm):
    import matplotlib

    colours = matplotlib.colormaps["viridis"].with_extremes(
        bad=HIDDEN, under=matplotlib.colormaps["viridis"](0.0)
    )
    seen = np.where(weights > 0, weights, np.nan)
    image = axes.imshow(
        seen, norm=norm, cmap=colours, aspect="auto", interpolation="nearest", extent=cut.extent
    )
    missing = cut.of(cut.view.visible) & (cut.of(cut.view.weights) > 0) & ~(weights > 0)
    _mask(axes, missing, cut, "white")
    return image


def _mask(axes, mask, cut, colour):
    """Cells of one colour."""
    from matplotlib.colors import ListedColormap

    shown = np.where(mask, 0.0, np.nan)
    axes.imshow(
        shown, cmap=ListedColormap([colour]), aspect="auto", interpolation="nearest", extent=cut.extent
    )


def _show_kinds(axes, kinds, cut):
    from matplotlib.colors import BoundaryNorm, ListedColormap

    colours = ListedColormap([HIDDEN, *COLOURS.values()])
    norm = BoundaryNorm(np.arange(-1.5, len(ORDER)), colours.N)
    axes.imshow(kinds, cmap=colours, norm=norm, aspect="auto", interpolation="nearest", extent=cut.extent)


def _shade_scaled(axes, cut, ledgers):
    """Weights of a wrong ratio: the paler, the nearer to right."""
    scaled = cut.of(ledgers.labels) == SCALED
    if not scaled.any():
        return
    off = np.abs(np.nan_to_num(cut.of(ledgers.ratio - ledgers.shift[..., None]), nan=np.inf))
    largest = off[scaled & np.isfinite(off)].max(initial=1e-6)
    pale = np.where(scaled, 0.65 * (1 - np.minimum(off / largest, 1.0)), 0.0)
    white = np.ones((*pale.shape, 4))
    white[..., 3] = pale
    axes.imshow(white, aspect="auto", interpolation="nearest", extent=cut.extent)


def _outline(axes, inside, cut, colour):
    """A line around the cells that are inside."""
    from matplotlib.collections import LineCollection

    padded = np.pad(inside, 1)
    lines = []
    for i, j in zip(*np.nonzero(padded[:, 1:] != padded[:, :-1]), strict=True):
        x, y = cut.keys.start + j - 0.5, cut.rows.start + i - 1.5
        lines.append(((x, y), (x, y + 1)))
    for i, j in zip(*np.nonzero(padded[1:] != padded[:-1]), strict=True):
        x, y = cut.keys.start + j - 1.5, cut.rows.start + i - 0.5
        lines.append(((x, y), (x + 1, y)))
    height = 72 * PANELS / max(len(inside), 1)  # of a row, in points
    width = 0.8 if len(lines) > 2 * sum(inside.shape) else 1.8
    axes.add_collection(
        LineCollection(
            lines,
            colors=colour,
            linewidths=min(width, max(0.5 * height, 0.6)),
            capstyle="projecting",
            zorder=4,
        )
    )


def _tiles(finding):
    """(keys, rows) of the tile that the words of a finding speak of; None where they speak of none."""
    words = "" if finding is None else f"{finding.nature.split(SAME)[0]} {finding.place}"
    keys = re.search(r"tiles? of (\d+) keys|multiple of (\d+)", words)
    rows = re.search(r"(?:tiles? of|once for every) (\d+) rows", words)
    return [None if match is None else int(next(filter(None, match.groups()))) for match in (keys, rows)]


def _tile_edges(axes, cut, tiles):
    keys, rows = tiles
    if keys is not None:
        edges = np.arange(0, cut.keys.stop + keys, keys)
        inside = edges[(edges > cut.keys.start) & (edges < cut.keys.stop)]
        if len(inside) <= MOST_EDGES:
            for edge in inside:
                axes.axvline(edge - 0.5, color=INK, linewidth=0.8, linestyle=(0, (1, 2)), zorder=3)
            axes.set_xticks(
                [
                    edge
                    for edge in edges[:: -(-len(inside) // 12) or 1]
                    if cut.keys.start <= edge < cut.keys.stop
                ]
            )
    numbers = cut.sequence.rows
    if rows is not None and cut.h is not None and (numbers == np.arange(len(numbers))).all():
        edges = np.arange(0, cut.rows.stop + rows, rows)
        inside = edges[(edges > cut.rows.start) & (edges < cut.rows.stop)]
        if len(inside) <= MOST_EDGES:
            for edge in inside:
                axes.axhline(edge - 0.5, color=INK, linewidth=0.8, linestyle=(0, (1, 2)), zorder=3)


def _keys_in_words(cut):
    """ "key", and of how many where not all are shown."""
    unit = "state" if cut.view.checked.form.joins else "key"
    return unit if cut.keys == slice(0, cut.sequence.num_keys) else f"{unit} (of {cut.sequence.num_keys:,})"


def _lost_rows(axes, cut, ledgers):
    """Bands that name rows of NaN and of 0 in the panel of measured weights."""
    visible = cut.of(cut.view.visible)
    for rows, words in ((ledgers.nan, "NaN"), (ledgers.zero, "0")):
        lost = cut.of(rows)
        if not lost.any():
            continue
        _mask(axes, visible & lost[:, None], cut, NAN if words == "NaN" else "white")
        runs = np.flatnonzero(np.diff(np.concatenate([[0], lost.astype(int), [0]])))
        tallest = max(zip(runs[::2], runs[1::2], strict=True), key=lambda run: run[1] - run[0])
        middle = np.mean(tallest) + cut.rows.start - 0.5
        box = {"facecolor": "white", "edgecolor": COLOURS["lost"], "pad": 1.5, "linewidth": 0.8}
        count = int(lost.sum())
        axes.text(
            cut.keys.start + 0.5 * (cut.keys.stop - cut.keys.start),
            middle,
            f"{count} row{'s' * (count != 1)} of {words}",
            fontsize=8.5,
            color=COLOURS["lost"],
            ha="center",
            va="center",
            bbox=box,
            zorder=5,
        )


def _misplaced(page, x, xray, cut):
    """Beside the panels: the share of each row's weight that is at a wrong key."""
    ledgers, view = xray.ledgers, xray.measured.view
    with np.errstate(all="ignore"):
        change = xray.measured.weights - view.weights
        lost = cut.of(np.maximum(-change, 0).sum(-1) / ledgers.right_sum)
        gained = cut.of(np.maximum(change, 0).sum(-1) / ledgers.right_sum)
    nan = cut.of(ledgers.nan)
    lost, gained = (np.where(nan, 0, np.nan_to_num(share, posinf=1)) for share in (lost, gained))
    floor = 4 * cut.of(xray.measured.tolerance[..., 0])
    rows = np.arange(cut.rows.start, cut.rows.stop)
    most = max(lost.max(initial=0.0), gained.max(initial=0.0))
    axes = page.panel(x, 1.02, f"weight moved{_beyond(most, WEIGHT_SHOWN)}", "y")
    axes.barh(rows, np.where(lost > floor, -lost, 0), height=1.0, color=COLOURS["missing"])
    axes.barh(rows, np.where(gained > floor, gained, 0), height=1.0, color=COLOURS["extra"])
    reach = float(min(max(most, 0.02) * 1.1, WEIGHT_SHOWN)) if (lost + gained).any() else 1.1
    axes.barh(rows[nan], 2 * reach, left=-reach, height=1.0, color=NAN)
    axes.axvline(0, color=FAINT, linewidth=0.8)
    axes.set(xlim=(-reach, reach), ylim=cut.extent[2:])
    axes.set_xticks([-reach / 1.1, 0, reach / 1.1], [f"{-reach / 1.1:.2g}", "0", f"+{reach / 1.1:.2g}"])
    axes.tick_params(labelleft=False)
    axes.set_xlabel("lost | gained", fontsize=9.5)


def _beyond(largest, shown):
    """ " (up to 3e+04)" where the largest number is beyond those that a scale shows."""
    return f" (up to {largest:.3g})" if largest > shown else ""


# one number a row


def _row_number(xray):
    """Name, right, measured and difference, each (B, H, T), of the number of a row that is wrong."""
    ledgers, measured = xray.ledgers, xray.measured
    of_sums = xray.best is not None and xray.best.kind == "normaliser"
    if of_sums or not (ledgers.lse_off != 0).any():
        return "sum of a row's weights", ledgers.right_sum, ledgers.sum, ledgers.sum_off
    return "lse", measured.view.lse, measured.lse, ledgers.lse_off


def _draw_row_numbers(xray, page):
    view = xray.measured.view
    name, right, got, off = _row_number(xray)
    wrong = (off != 0) & view.row_exists
    region = xray.best.region if xray.best is not None and xray.best.region is not None else None
    place = (
        wrong
        if region is None or not xray.best.place
        else np.broadcast_to(region.reshape(*region.shape[:3], -1).any(-1), wrong.shape)
    )
    stacked = _few(view)
    b, h = np.unravel_index(
        (wrong & place if (wrong & place).any() else wrong).sum(2).argmax(), view.shape[:2]
    )
    pick = (
        (lambda array: array[b].reshape(-1))
        if stacked
        else (lambda array: array[b, h, : len(view.sequences[b].rows)])
    )
    rows = np.arange(view.num_rows * len(view.heads)) if stacked else view.sequences[b].rows
    where = f"sequence {_number(view.sequences[b])}, " * (len(view.sequences) > 1) + (
        "all heads" if stacked else f"head {view.heads[h]}"
    )
    axis = ("head" if view.num_rows == 1 else "head and row") if stacked else "query row"
    values = page.panel(0.95, 5.6, f"{name}, {where}", "x")
    marker = {"marker": "o", "markersize": 3.2} if len(rows) <= 120 else {}
    values.plot(
        rows, _finite(pick(right)), color="#4a9a4a", linewidth=3.2, alpha=0.55, label="right", **marker
    )
    values.plot(
        rows, _finite(pick(got)), color=COLOURS["missing"], linewidth=1.1, label="measured", **marker
    )
    values.legend(fontsize=8.5, frameon=False, loc="best")
    change = page.panel(7.5, 4.3, "measured minus right, the described rows shaded", "x")
    difference = _finite(pick(np.where(wrong, got - right, 0.0)))
    for panel in (values, change):
        panel.set_xlim(rows[0] - 0.5, rows[-1] + 0.5)
        _shade(panel, rows, pick(place))
        panel.set_xlabel(axis, fontsize=9.5)
        panel.grid(axis="y", color="#e3e3e3", linewidth=0.7)
        panel.set_axisbelow(True)
    change.axhline(0, color=FAINT, linewidth=0.8)
    change.bar(rows, difference, width=1.0 if len(rows) > 120 else 0.7, color=COLOURS["missing"])
    _map_of_rows(page, xray, wrong, off)
    unknown = int((wrong & ~np.isfinite(got)).sum())
    parts = [(PLACE, "described rows")] if not place[b, h].all() else []
    page.bottom(0.95, parts, f"{_closing(xray)}{f' {unknown:,} rows are not finite.' if unknown else ''}")


def _finite(numbers):
    return np.where(np.isfinite(numbers), numbers, np.nan)


def _shade(axes, rows, inside):
    edges = np.flatnonzero(np.diff(np.concatenate([[0], inside.astype(int), [0]])))
    if inside.all():
        return
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        axes.axvspan(rows[start] - 0.5, rows[stop - 1] + 0.5, color=PLACE, linewidth=0, zorder=0)


def _map_of_rows(page, xray, wrong, off):
    """Sequences and heads by rows: where the number is wrong, and by how much."""
    view = xray.measured.view
    reach = float(np.abs(off[wrong & np.isfinite(off)]).max(initial=0.0)) or 1.0
    grid = np.where(wrong & ~np.isnan(off), np.clip(off, -reach, reach), np.nan).reshape(-1, view.num_rows)
    sums = xray.best is not None and xray.best.kind == "normaliser"
    title = "log(measured / right), all heads" if sums else "measured minus right, all heads"
    axes = page.panel(12.55, 3.1, title, facecolor=COLOURS["right"])
    image = axes.imshow(
        grid,
        cmap="RdBu_r",
        vmin=-reach,
        vmax=reach,
        aspect="auto",
        interpolation="nearest",
        extent=(-0.5, view.num_rows - 0.5, len(grid) - 0.5, -0.5),
    )
    axes.set_xlabel("query row", fontsize=9.5)
    axes.set_ylabel("head" if len(view.sequences) == 1 else "sequence and head", fontsize=9.5)
    bar = page.figure.colorbar(image, cax=page.axes(15.75, BELOW, 0.12, PANELS))
    bar.ax.tick_params(labelsize=7.5, length=2)


# the output, where the weights are right


def _draw_output(xray, page):
    measured, view = xray.measured, xray.measured.view
    with np.errstate(all="ignore"):
        use = np.abs(measured.output - measured.expected_output) / np.maximum(
            measured.output_tolerance, 1e-300
        )
    use = np.where(view.row_exists[..., None], np.nan_to_num(use, nan=np.inf), 0)
    wrong = (use > 1) | (measured.varies[..., None] & np.ones(use.shape[-1], bool))
    by_head = wrong.sum((2, 3))
    b, h = np.unravel_index(by_head.argmax(), by_head.shape)
    rows = _span(wrong[b, h].any(1), len(view.sequences[b].rows))
    extent = (-0.5, wrong.shape[-1] - 0.5, rows.stop - 0.5, rows.start - 0.5)
    expected, got = measured.expected_output[b, h, rows], measured.output[b, h, rows]
    reach = np.abs(expected).max(initial=1e-30)
    how = {"aspect": "auto", "interpolation": "nearest", "extent": extent}
    left, step, width = 0.72, 4.82, 4.62
    head = f"head {view.heads[h]}"
    measured_title = f"measured output{_beyond(np.abs(got).max(initial=0.0, where=np.isfinite(got)), reach)}"
    for n, (array, title) in enumerate(((expected, "expected output"), (got, measured_title))):
        axes = page.panel(left + n * step, width, title)
        image = axes.imshow(array, cmap="RdBu_r", vmin=-reach, vmax=reach, **how)
        axes.set_xlabel("column of the output", fontsize=9.5)
        if n:
            axes.tick_params(labelleft=False)
        else:
            axes.set_ylabel(
                f"query row (sequence {_number(view.sequences[b])}, {head})"
                if len(view.sequences) > 1
                else f"query row ({head})",
                fontsize=9.5,
            )
    from matplotlib.colors import LogNorm

    error = np.where(wrong[b, h, rows], use[b, h, rows], np.nan)
    largest = max(error.max(initial=10.0, where=np.isfinite(error)), 10.0)
    title = f"error over what rounding allows, up to {np.nanmax(error, initial=1.0):.3g}"
    axes = page.panel(left + 2 * step, width, title, facecolor=COLOURS["right"])
    shown = axes.imshow(np.clip(error, 1, largest), cmap="YlOrRd", norm=LogNorm(1, largest), **how)
    axes.set_xlabel("column of the output", fontsize=9.5)
    axes.tick_params(labelleft=False)
    bar = page.figure.colorbar(shown, cax=page.axes(left + 3 * step + 0.02, BELOW, 0.14, PANELS))
    bar.ax.tick_params(labelsize=8)
    bar = page.figure.colorbar(image, cax=page.axes(0.72, 0.34, 1.35, 0.11), orientation="horizontal")
    bar.ax.tick_params(labelsize=7.5, length=2, pad=1)
    page.text(2.17, 0.4, "output", fontsize=9, color=INK, va="center")
    varies = int(measured.varies.sum())
    wrong_pairs, judged = int(xray.ledgers.wrong.sum()), int(xray.ledgers.judged.sum())
    weights = f"all {judged:,} weights are right" if judged else "no weights are known"
    weights = f"{wrong_pairs:,} of {judged:,} weights are wrong" if wrong_pairs else weights
    closing = f"{_closing(xray)}{f' {varies:,} rows differ between calls.' if varies else ''}"
    page.bottom(2.95, [(COLOURS["right"], f"right; {weights}")], closing)
