"""The plots of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from markupsafe import Markup

from calotype.evaluation.plots import ACCENT, INK, LINE, MUTED, PAPER, drawn
from calotype.evaluation.report import Value, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 520, 340


class Point(NamedTuple):
    """A model or a classical method: the cost of an image, and its quality."""

    name: str
    seconds: float
    value: Value
    is_model: bool


class Line(NamedTuple):
    """A reference level."""

    name: str
    value: float


def front(points: Sequence[Point]) -> list[Point]:
    """The Pareto front: the points that no other beats in both cost and quality, the cheapest first."""
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (p.seconds, p.value.value)):
        if not found or (point.value.value or 0.0) < (found[-1].value.value or 0.0):
            found.append(point)
    return found


def quality_and_cost(points: Sequence[Point], levels: Sequence[Line]) -> Markup:
    """A distance over the seconds that drawing an image takes, with the Pareto front of the models."""
    from matplotlib.ticker import EngFormatter

    name = points[0].value.name

    def draw(figure: Figure) -> None:
        axes = _axes(figure, [p.value for p in points], levels)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(EngFormatter(unit="s"))
        axes.set_xlabel("to draw an image")
        axes.margins(x=0.18)
        best = front([p for p in points if p.is_model])
        if len(best) > 1:
            x, y = [p.seconds for p in best], [p.value.value for p in best]
            axes.step(x, y, where="post", color=ACCENT, linewidth=1.2, linestyle=(0, (4, 3)))
        for p in points:
            colour = ACCENT if p.is_model else MUTED
            if p.value.low is not None and p.value.high is not None:
                axes.plot([p.seconds] * 2, [p.value.low, p.value.high], color=colour, linewidth=2.5, alpha=0.5)
            axes.plot([p.seconds], [p.value.value], "o", color=colour, markerfacecolor=colour if p.is_model else PAPER)
            axes.annotate(
                p.name,
                (p.seconds, p.value.value),
                (6, 5 if p.is_model else -13),
                textcoords="offset points",
                color=INK if p.is_model else MUTED,
            )

    return drawn(f"{name} over the time that an image takes", WIDTH, HEIGHT, draw)


def quality_and_time(courses: Sequence[tuple[str, Sequence[tuple[float, Value]]]], name: str) -> Markup:
    """A distance over the seconds of training, a line for each model."""
    from matplotlib.ticker import EngFormatter

    styles = ["-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2))]

    def draw(figure: Figure) -> None:
        axes = _axes(figure, [v for _, stages in courses for _, v in stages], ())
        for k, (told, stages) in enumerate(courses):
            x, y = [seconds for seconds, _ in stages], [v.value for _, v in stages]
            axes.plot(x, y, color=INK, linewidth=1.4, linestyle=styles[k % len(styles)], marker="o", markersize=3)
            axes.annotate(told, (x[-1], y[-1]), (6, 0), textcoords="offset points", va="center", color=INK)
        axes.set_xlim(0, 1.25 * max(seconds for _, stages in courses for seconds, _ in stages))
        axes.xaxis.set_major_formatter(EngFormatter(unit="s"))
        axes.set_xlabel("of training")

    return drawn(f"{name} over training", WIDTH, HEIGHT, draw)


def _axes(figure: Figure, values: Sequence[Value], levels: Sequence[Line]) -> Any:
    """Axes for a distance, on a logarithmic scale where it spans much."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes = figure.add_axes((52 / WIDTH, 44 / HEIGHT, 1 - 66 / WIDTH, 1 - 62 / HEIGHT))
    seen = [v.value for v in values if v.value is not None] + [level.value for level in levels]
    if min(seen) > 0 and max(seen) / min(seen) >= 10:
        axes.set_yscale("log")
        axes.set_ylim(min(seen) / 1.5, max(seen) * 1.5)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.text(0, 1.02, "log scale", transform=axes.transAxes, color=MUTED, size=10)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: number(y)))
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    for level in levels:
        axes.axhline(level.value, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
        axes.text(
            1, level.value, level.name, transform=axes.get_yaxis_transform(), ha="right", va="bottom", color=MUTED
        )
    return axes
