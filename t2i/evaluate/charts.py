"""Charts: curves as SVG that takes the colours of the page it stands on."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, float | int]]

_INK = "#0a0b0c"
"""Stands for the page's text colour."""
_COLOURS = ("#d9652b", "#2f8fbd", "#5a9e4b", "#a06cc8")
"""Legible on a light and on a dark ground."""


def lines(rows: Rows, x: str, ys: Mapping[str, str], y_label: str) -> str:
    """Returns curves over one axis; the other is logarithmic where values differ much. Few points are marked.

    Args:
        rows: a mapping a point.
        x: key of the horizontal axis.
        ys: keys of the curves, with the names that the legend gives them.
        y_label: name of the vertical axis.
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
        axes.legend(frameon=False, labelcolor=_INK)

    return _svg(plot)


def path(rows: Rows, axes_labels: Mapping[str, str], label: str) -> str:
    """Returns one curve through points that each bear a value.

    Args:
        rows: a mapping a point.
        axes_labels: keys of the horizontal and of the vertical axis, with their names.
        label: key of the value.
    """
    (x, x_label), (y, y_label) = axes_labels.items()

    def plot(axes: Any) -> None:
        axes.plot([row[x] for row in rows], [row[y] for row in rows], color=_COLOURS[1], marker="o")
        for row in rows:
            at = (row[x], row[y])
            axes.annotate(f"{row[label]:g}", at, xytext=(6, 5), textcoords="offset points", color=_INK, fontsize=9)
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.margins(0.12)

    return _svg(plot)


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
