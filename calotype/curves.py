"""The course of training as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from calotype.images import write_atomic


def write_curves(path: Path, log: Sequence[Mapping[str, Any]]) -> None:
    """Plot losses and held-out losses of a run's log over images seen, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    log = list(
        {(record["event"], record.get("images_seen")): record for record in log}.values()
    )  # a resumed stretch once
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for prefix, style in (("loss/", {"linewidth": 0.8, "alpha": 0.7}), ("held_out/", {"marker": "."})):
        names = sorted({key for record in log for key in record if key.startswith(prefix) and key.count("/") == 1})
        for name in names:
            points = [(record["images_seen"], record[name]) for record in log if record.get(name) is not None]
            axes.plot(*zip(*points, strict=True), label=name.replace("_", " ").replace("/", ": "), **style)
    axes.set_xlabel("images seen")
    axes.set_ylabel("loss")
    if axes.lines:
        axes.legend()
    axes.grid(alpha=0.3)
    write_atomic(path, lambda file: figure.savefig(file, format="png", dpi=120))
