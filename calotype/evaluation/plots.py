"""The plots of an evaluation page, as inline SVG in the colours of the page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from markupsafe import Markup

from calotype.errors import RunError
from calotype.evaluation.evaluate import DISTANCES, metric_of
from calotype.evaluation.report import Value, label, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Stand-ins for colours of the style sheet, which knows light from dark; matplotlib knows no variables.
INK, MUTED, LINE, ACCENT, PAPER = "#010203", "#010204", "#010205", "#010206", "#010207"
VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line", ACCENT: "--accent", PAPER: "--paper"}
STYLE = {
    "svg.fonttype": "none",  # text stays text: to be found, and in the typeface of the page
    "text.parse_math": False,
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}


def prepare() -> None:
    """Load what plots need, before the work whose results they show.

    NumPy's OpenBLAS takes 32 MB or more at the first product of matrices, which in many commands is that of a plot, and
    ends the process where there is no room; what it has taken serves all later products. Likewise the libraries of
    matplotlib, which Python cannot load where there is no room.

    Raises:
        RunError: they cannot be loaded.
    """

    def draw(figure: Figure) -> None:
        figure.add_subplot().plot([0, 1])

    try:
        drawn("nothing", 72, 72, draw)
    except ImportError as error:
        raise RunError(f"plots cannot be drawn ({error}): free memory, or install matplotlib again") from error


def drawn(name: str, width: float, height: float, draw: Callable[[Figure], None]) -> Markup:
    """A plot as inline SVG, its size in CSS pixels; `name` is its accessible description."""
    import matplotlib.style
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    file = io.StringIO()
    with matplotlib.style.context(["default", STYLE | {"svg.hashsalt": name}]):
        figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        FigureCanvasSVG(figure)
        draw(figure)
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = file.getvalue()
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg[svg.index("<svg") :], count=1, flags=re.DOTALL)
    svg = re.sub(r' id="[\w.]+_\d+"', "", svg)  # of groups, the same in every plot; those of marks are the plot's own
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    opening = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(f"{width:g}", f"{height:g}", name)
    return opening + Markup(svg[svg.index(">") + 1 :].strip())


def dots(name: str, values: Sequence[Value]) -> Markup:
    """Sets as dots on one scale, with bars for the 95 % intervals."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    width, left, right, top, bottom, row = 340, 84, 56, 4, 20, 24
    height = top + bottom + row * len(values)
    ends = [x for v in values for x in (v.value, v.low, v.high) if x is not None]
    low, high = min(ends), max(ends)
    # Where a bad control is far off, the good sets are told apart on a logarithmic scale only.
    logarithmic = metric_of(name) in DISTANCES and low > 0 and high / low >= 20

    def draw(figure: Figure) -> None:
        axes = figure.add_axes(
            (left / width, bottom / height, (width - left - right) / width, 1 - (top + bottom) / height)
        )
        axes.set_ylim(len(values) - 0.5, -0.5)
        axes.yaxis.set_major_locator(NullLocator())
        if logarithmic:
            axes.set_xscale("log")
            axes.set_xlim(low / 1.4, high * 1.4)
            axes.xaxis.set_major_locator(LogLocator(numticks=5))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.text(-0.04, -0.04, "log scale", transform=axes.transAxes, ha="right", va="top", color=MUTED, size=10)
        else:
            start, end = min(0.0, low), max(0.0, high)
            pad = 0.05 * (end - start or 1.0)
            axes.set_xlim(start - pad, end + pad)
            axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: number(x)))
        axes.grid(axis="x", color=LINE, linewidth=0.8)
        axes.set_axisbelow(True)
        for y, value in enumerate(values):
            main = value.of == "samples"
            colour, ink = (ACCENT, ACCENT) if main else (MUTED, INK)
            weight = "bold" if main else "normal"
            told = label(value.of)
            told = told if len(told) <= 13 else f"{told[:12]}…"
            axes.text(
                -0.04, y, told, transform=axes.get_yaxis_transform(), ha="right", va="center", color=ink, weight=weight
            )
            if value.value is None:
                axes.text(0.02, y, "not reported", transform=axes.get_yaxis_transform(), va="center", color=MUTED)
                continue
            if main and len(values) > 1:
                axes.axhspan(y - 0.5, y + 0.5, color=ACCENT, alpha=0.08, linewidth=0)
            if value.low is not None and value.high is not None:
                axes.plot([value.low, value.high], [y, y], color=colour, linewidth=3.5 if main else 1.5, alpha=0.55)
            face = colour if main else PAPER
            axes.plot([value.value], [y], "o", color=colour, markerfacecolor=face, markersize=8 if main else 6)
            axes.text(
                1.04,
                y,
                number(value.value),
                transform=axes.get_yaxis_transform(),
                va="center",
                color=ink,
                weight=weight,
            )

    return drawn(f"{name} of {', '.join(label(v.of) for v in values)}", width, height, draw)


def curves(points_of: Mapping[str, Sequence[tuple[float, float]]]) -> list[tuple[str, Markup]]:
    """One plot for each part of a model, with its losses in training and on held-out images: names and plots."""
    parts: dict[str, dict[str, Sequence[tuple[float, float]]]] = {}
    for name, points in points_of.items():
        if points:
            kind, _, part = name.partition("/")
            parts.setdefault(part or kind, {})[kind] = points
    return [(part, _losses(part, kinds)) for part, kinds in parts.items()]


def _losses(part: str, kinds: Mapping[str, Sequence[tuple[float, float]]]) -> Markup:
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator

    width, height = 340, 230
    names = {"loss": "training", "held_out": "held-out"}
    values = [y for points in kinds.values() for _, y in points]

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((44 / width, 40 / height, 1 - 58 / width, 1 - 52 / height))
        for kind, points in sorted(kinds.items(), key=lambda item: item[0] == "held_out"):  # held-out on top
            held = kind == "held_out"
            x, y = zip(*points, strict=True)
            axes.plot(
                x,
                y,
                color=ACCENT if held else MUTED,
                linewidth=2 if held else 0.9,
                alpha=1 if held else 0.8,
                marker="o" if held or len(points) == 1 else "",
                markersize=3.5,
                label=names.get(kind, words(kind)),
            )
        if min(values) > 0 and max(values) / min(values) >= 10:
            axes.set_yscale("log")
            axes.set_ylabel("log scale", labelpad=2)
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
            axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: number(y)))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("images seen")
        axes.grid(axis="y", color=LINE, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.legend(frameon=False, fontsize=11, loc="upper right", borderaxespad=0)

    return drawn(f"loss of {part} over images seen", width, height, draw)


def course(values: Sequence[Value]) -> Markup:
    """One metric over training, with bars for the 95 % intervals; `of` of each value is the number of images seen."""
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator

    width, height = 340, 230
    stages = [(float(v.of), v.value, v.low, v.high) for v in values if v.value is not None]
    x, y, low, high = (list(column) for column in zip(*stages, strict=True))

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((44 / width, 40 / height, 1 - 58 / width, 1 - 52 / height))
        axes.vlines(x, low, high, color=ACCENT, linewidth=2.5, alpha=0.35)
        axes.plot(x, y, color=ACCENT, linewidth=1.5, marker="o", markersize=4)
        if min(y) > 0 and max(y) / min(y) >= 10:
            axes.set_yscale("log")
            axes.set_ylim(min(y) / 2, max(y) * 1.5)  # intervals of good stages reach 0 or less
            axes.set_ylabel("log scale", labelpad=2)
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
            axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: number(y)))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("images seen")
        axes.grid(axis="y", color=LINE, linewidth=0.8)
        axes.set_axisbelow(True)

    return drawn(f"{values[0].name} over images seen", width, height, draw)


def words(key: str) -> str:
    """A key as readable words."""
    return key.replace("_", " ")
