"""Charts for the report page: SVG embedded in the page, with light and dark colours from CSS.

Matplotlib draws with placeholder colours, which are then replaced by CSS variables (`--ink`, `--series-0`, ...).
"""

import html
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SERIES = 6  # colours in the page's palette; further series reuse them
MARKERS = "osD^v"  # one fewer than colours, so that few series share both colour and marker
INK, MUTED, GRID, PAGE = "#010101", "#020202", "#030303", "#040404"
SMOOTH_FROM = 60  # curves with more points are drawn thin, with their running mean
STYLE: dict[Any, Any] = {  # matplotlib types its keys as a Literal
    "svg.hashsalt": "rlhf",
    "svg.fonttype": "none",
    "font.size": 9.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
}
Row = Mapping[str, Any]


def series_colour(index: int) -> str:
    """Return the placeholder of the CSS variable --series-INDEX."""
    return f"#0500{index % SERIES:02x}"


def curve(rows: Sequence[Row], key: str, name: str, colour: int) -> str:
    """Return an SVG of the metric `key` of metrics.jsonl by step, and of `development_KEY` if it was measured."""

    def draw(axes: "Axes") -> None:
        points = [(row["step"], row[key]) for row in rows if key in row]
        steps, values = (list(column) for column in zip(*points, strict=True))
        smooth = len(points) > SMOOTH_FROM
        axes.plot(
            steps, values, color=series_colour(colour), linewidth=1 if smooth else 1.8, alpha=0.3 if smooth else 1
        )
        if smooth:
            width = len(points) // 40
            axes.plot(steps, running_mean(values, width), color=series_colour(colour), linewidth=1.8)
        held_out = [(row["step"], row[f"development_{key}"]) for row in rows if f"development_{key}" in row]
        if held_out:
            axes.plot(*zip(*held_out, strict=True), "o", color=INK, markersize=5)
        axes.set_xlabel("step")

    return _svg(draw, f"{name}: {key} over steps", (3.7, 2.35))


def tradeoff(
    snapshots: Sequence[Row], best: Mapping[str, int | None], key: str, label: str, name_of: Callable[[str], str] = str
) -> str:
    """Return an SVG of `key` against KL for each policy in `best`, starting at the SFT model.

    Stars mark the best snapshots. `name_of` returns the name for the legend. Rows are those of
    evaluation/snapshots.jsonl. Vertical lines are 95 % intervals.
    """
    start = [row for row in snapshots if row["policy"] == "sft"]

    def draw(axes: "Axes") -> None:
        for index, (name, step) in enumerate(best.items()):
            own = sorted((row for row in snapshots if row["policy"] == name), key=lambda row: row["step"])
            if not own:
                continue  # best-of-N sampling trains nothing, so it has no snapshots
            path = [(_x(row), row[key]["value"]) for row in start + own]
            style: dict[str, Any] = {"color": series_colour(index), "linewidth": 1.8}
            marks: dict[str, Any] = {"marker": MARKERS[index % len(MARKERS)], "markersize": 5, "label": name_of(name)}
            axes.plot(*zip(*path, strict=True), **style, **marks)
            for row in own:
                axes.vlines(_x(row), row[key]["low"], row[key]["high"], color=style["color"], linewidth=1.2, alpha=0.45)
                if row["step"] == step:
                    star: dict[str, Any] = {"markersize": 15, "markeredgecolor": PAGE, "zorder": 5}
                    axes.plot(_x(row), row[key]["value"], "*", color=style["color"], **star)
        for row in start:
            axes.plot(0.0, row[key]["value"], "o", color=INK, markersize=6, zorder=6)
            axes.annotate("SFT", (0.0, row[key]["value"]), (6, -12), textcoords="offset points", fontsize=9)
        axes.set_xlabel("KL to the SFT model, nats per response")
        axes.set_ylabel(label)
        axes.margins(y=0.12)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize=9)

    return _svg(draw, f"{label} against KL", (5.2, 3.3 + 0.2 * math.ceil(len(best) / 3)))


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """Return the mean of each value and up to `width` neighbours on each side; there are fewer at the ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    first, last = np.maximum(index - width, 0), np.minimum(index + width + 1, len(values))
    means: list[float] = ((sums[last] - sums[first]) / (last - first)).tolist()
    return means


def _x(row: Row) -> float:
    """Return the KL of a snapshot. The SFT model's KL to itself is 0."""
    return 0.0 if row["policy"] == "sft" else float(row["kl"]["value"])


def _svg(draw: Callable[["Axes"], None], title: str, size: tuple[float, float]) -> str:
    """Draw on fresh axes, `size` in inches, and return an <svg> element whose ids are unique on the page."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        written = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(written, format="svg", transparent=True, metadata=nothing)
    return _for_page(written.getvalue(), title)


def _for_page(svg: str, title: str) -> str:
    """Prefix ids with the title, turn placeholder colours into CSS variables, remove declarations and addresses."""
    prefix = re.sub(r"\W+", "-", title.lower())
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"| (width|height)="[\d.]+pt"', "", svg)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    names = {INK: "ink", MUTED: "muted", GRID: "line", PAGE: "page"}
    names |= {series_colour(index): f"series-{index}" for index in range(SERIES)}
    for colour, name in names.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1)
