"""The picture of a report: the use of the tight bound of every row, drawn with matplotlib.

Colours of one hue run from white to dark blue, so that every reader tells them apart by their lightness, in
powers of ten up to the largest use, which the scale names. What no number says is drawn as a mark: a cross
where NaN, an infinity or an error stands where none may, hatching where rows were not looked at, a dot
where they see no key and are left out.
"""

from __future__ import annotations

import numpy as np

from refattn.oracle.verdict.row_map import LEFT_OUT, NOT_LOOKED_AT, binned, grid_of, head_name

FAINTEST = 0.1  # of the bound: smaller uses look alike
MOST = 400  # heads, and rows, that are drawn; of more the worst of each bin
PAPER, INK = "#ffffff", "#1b1b1b"
MARKS = (
    (np.inf, "x", "NaN, an infinity, or an error where none is allowed"),
    (LEFT_OUT, ".", "sees no key, left out"),
)


def draw(report, path):
    """Draw into a file; `Report.picture` says what."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "picture must have matplotlib to draw with; install matplotlib, or print "
            "report.output.heat_map(), or report.save('x.html')."
        ) from error
    if not report.measures:
        raise ValueError("picture must have a comparison to draw; the shapes did not match.")
    measure = report.output or report.measures[0]
    grid = grid_of(measure)
    figure = Figure(figsize=(9, 2.2 + min(6.0, 0.25 * len(grid))), layout="constrained", facecolor=PAPER)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    heads = "head" if measure.use_map.ndim == 2 else "batch.head"
    axes.set(xlabel="row", ylabel=heads)
    axes.set_title(report.summary.replace("; ", "\n"), fontsize="small", color=INK, wrap=True)
    if grid.size:
        _draw_grid(figure, axes, grid, measure)
    figure.savefig(path)


def _draw_grid(figure, axes, grid, measure):
    import matplotlib
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    drawn, _ = binned(grid, MOST, MOST)
    finite = np.where((drawn >= 0) & np.isfinite(drawn), drawn, np.nan)
    largest = max(float(np.nanmax(finite, initial=1.0)), 10.0)
    extent = (-0.5, grid.shape[1] - 0.5, grid.shape[0] - 0.5, -0.5)
    norm = LogNorm(FAINTEST, largest)
    colours = matplotlib.colormaps["Blues"].with_extremes(bad=PAPER)
    clipped = np.where(np.isnan(finite), np.nan, np.maximum(finite, FAINTEST))
    image = axes.imshow(
        clipped, norm=norm, cmap=colours, aspect="auto", interpolation="nearest", extent=extent
    )
    bar = figure.colorbar(image, label="error / tight bound")
    bar.ax.axhline(1.0, color=INK, linewidth=2)
    ticks = [FAINTEST, 1.0, *([largest] if largest > 10 else [])]
    bar.set_ticks(
        ticks, labels=["0.1 or less", "1: the bound", *([f"{largest:.3g}: largest"] * (largest > 10))]
    )
    bar.ax.minorticks_on()
    across, down = (
        np.linspace(-0.5, size - 0.5, 2 * count + 1)[1::2]
        for size, count in zip(grid.shape[::-1], drawn.shape[::-1], strict=True)
    )
    for value, mark, words in MARKS:
        rows, columns = np.nonzero(drawn == value)
        if len(rows):
            style = {"s": 18, "color": INK, "linewidths": 1.0}
            axes.scatter(across[columns], down[rows], marker=mark, label=words, **style)
    unseen = drawn == NOT_LOOKED_AT
    if unseen.any():
        axes.set_facecolor("#dddddd")
        axes.patch.set(hatch="///", edgecolor="#888888")
        image.set_data(np.ma.masked_array(clipped, unseen | np.isnan(clipped)))
        image.set_cmap(colours.with_extremes(bad=(0, 0, 0, 0)))
    axes.yaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    name = head_name(measure.use_map.shape)
    axes.yaxis.set_major_formatter(
        lambda y, _: name(int(y)) if 0 <= y < grid.shape[0] and y == int(y) else ""
    )
    axes.set(xlim=extent[:2], ylim=extent[2:])
    handles = axes.get_legend_handles_labels()[0]
    if unseen.any():
        handles.append(Patch(facecolor="#dddddd", edgecolor="#888888", hatch="///", label="not looked at"))
    if handles:
        figure.legend(handles=handles, loc="outside lower center", fontsize="small", ncols=3)
