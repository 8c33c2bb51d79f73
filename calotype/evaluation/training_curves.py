"""Training curves as a PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from calotype.core.files import write_atomic

Points = list[tuple[int, float]]


def points(log: Sequence[Mapping[str, Any]]) -> dict[str, Points]:
    """(images seen, value) of each loss/PLAYER, then of each held_out/PLAYER, in a run's log."""
    records = list({(record["event"], record.get("images_seen")): record for record in log}.values())  # resumed: once
    found: dict[str, Points] = {}
    for prefix in ("loss/", "held_out/"):
        names = sorted({key for record in records for key in record if key.startswith(prefix) and key.count("/") == 1})
        for name in names:
            found[name] = [(record["images_seen"], record[name]) for record in records if record.get(name) is not None]
    return found


def write_curves(path: Path, log: Sequence[Mapping[str, Any]]) -> None:
    """Plot losses and held-out losses of a run's log over images seen, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    styles = {"loss": {"linewidth": 0.8, "alpha": 0.7}, "held_out": {"marker": "."}}
    for name, course in points(log).items():
        kind, player = name.split("/")
        axes.plot(*zip(*course, strict=True), label=f"{kind.replace('_', ' ')}: {player}", **styles[kind])  # type: ignore[arg-type]
    axes.set_xlabel("images seen")
    axes.set_ylabel("loss")
    if axes.lines:
        axes.legend()
    axes.grid(alpha=0.3)
    write_atomic(path, lambda file: figure.savefig(file, format="png", dpi=120))
