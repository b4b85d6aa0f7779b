"""Charts: curves as SVG in the text colour of the surrounding page."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, float | int]]

_INK = "#0a0b0c"
"""A placeholder for the text colour of the page."""
_COLOURS = ("#d9652b", "#2f8fbd", "#5a9e4b", "#a06cc8")
"""Legible on a light and on a dark background."""


def lines(rows: Rows, x: str, ys: Mapping[str, str], y_label: str) -> str:
    """Returns an SVG chart of curves over a common x axis.

    The y axis is logarithmic if the values span more than a factor of 3. Points are marked if there are fewer than 20.

    Args:
        rows: one mapping per point.
        x: the key of the x values, which is also the label of the axis.
        ys: the keys of the curves, with their names in the legend.
        y_label: the label of the y axis.
    """
    values = [row[key] for row in rows for key in ys]

    def plot(axes: Any) -> None:
        for colour, (key, name) in zip(_COLOURS, ys.items(), strict=False):
            points = [row[x] for row in rows], [row[key] for row in rows]
            axes.plot(*points, color=colour, label=name, marker="o" if len(rows) < 20 else None, markersize=4)
        axes.set(xlabel=x, ylabel=y_label)
        if min(values) > 0 and max(values) > 3 * min(values):
            from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

            axes.set_yscale("log")
            axes.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter=StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            _limit_zoom(axes, "y", values)
        axes.legend(frameon=False, labelcolor=_INK)

    return _svg(plot)


def path(rows: Rows, axes_labels: Mapping[str, str], label: str) -> str:
    """Returns an SVG chart of one curve whose points are labelled with a value.

    Args:
        rows: one mapping per point.
        axes_labels: the keys of the x and the y values, with the labels of the axes.
        label: the key of the value at each point.
    """
    (x, x_label), (y, y_label) = axes_labels.items()

    def plot(axes: Any) -> None:
        axes.plot([row[x] for row in rows], [row[y] for row in rows], color=_COLOURS[1], marker="o")
        for row in rows:
            at = (row[x], row[y])
            axes.annotate(f"{row[label]:g}", at, xytext=(6, 5), textcoords="offset points", color=_INK, fontsize=9)
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.margins(0.12)
        for axis, key in (("x", x), ("y", y)):
            _limit_zoom(axes, axis, [row[key] for row in rows])

    return _svg(plot)


def _limit_zoom(axes: Any, axis: str, values: Sequence[float]) -> None:
    """Widens an axis that shows less than a tenth of its largest value, so that values that are nearly equal look equal."""
    low, high = min(values), max(values)
    least = 0.1 * max(abs(low), abs(high)) or 1.0
    if high - low < least:
        middle = (low + high) / 2
        axes.set(**{f"{axis}lim": (middle - 0.6 * least, middle + 0.6 * least)})
    axes.ticklabel_format(axis=axis, useOffset=False)


def _svg(plot: Callable[[Any], None]) -> str:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib.figure import Figure

    style = {"svg.fonttype": "none", "svg.hashsalt": "t2i", "font.size": 11, "font.family": "sans-serif", "text.color": _INK}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(5.2, 3.2), layout="constrained")
        axes = figure.subplots()
        plot(axes)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axes.spines[side].set_color(_INK)
        axes.tick_params(which="both", colors=_INK)
        for label in (axes.xaxis.label, axes.yaxis.label):
            label.set_color(_INK)
        axes.grid(color=_INK, alpha=0.12)
        written = io.StringIO()
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = written.getvalue()
    return svg[svg.index("<svg") :].replace(_INK, "currentColor")
