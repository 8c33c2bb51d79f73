"""The page of a comparison: one self-contained HTML file with verdict, pictures, table and plots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from calotype.evaluation import comparison_plots as plots
from calotype.evaluation.comparison import Column, Comparison, Entry, kind_of
from calotype.evaluation.page import flat, last_of, template, tiles_of, told_of
from calotype.evaluation.report import Value

CONTROLS = {"held_out": "held-out pictures", "patches": "shuffled patches"}  # of the evaluation, in table and plots


class Cell(NamedTuple):
    """A value in the table."""

    value: Value | None
    plain: float | None  # where it is a number without an interval
    best: bool
    kind: str = ""


class Row(NamedTuple):
    """A model, a classical method or a control."""

    name: str
    kind: str
    cells: list[Cell]
    link: str = ""


def page(comparison: Comparison, samples: Mapping[str, Tensor], links: Mapping[str, str]) -> str:
    """The page, the same bytes for the same input.

    Args:
        samples: uint8 (N, C, H, W) by the name of an entry, and of "held-out pictures".
        links: to the page of each evaluation, relative to this page.
    """
    columns = comparison.columns()
    first = next((e.report for e in comparison.entries if e.report), None)
    return template("comparison.html").render(
        command="compare",
        source=last_of(comparison.data.get("source")) or "the data set",
        comparison=comparison,
        verdict=comparison.verdict(),
        failed=[e for e in comparison.entries if e.failure],
        columns=[(c.name, told_of(c.name)[0], _better(c)) for c in columns],
        rows=_rows(comparison, columns, links),
        samples={name: tiles_of(images) for name, images in samples.items()},
        alpha=any(images.shape[1] == 4 for images in samples.values()),
        cost=_quality_and_cost(comparison),
        course=_course(comparison),
        n=first.protocol.n if first else 0,
        protocol=flat(first.as_dict()["protocol"] | {"digest": first.protocol.digest}) if first else [],
        data=flat(comparison.data),
    )


def _better(column: Column) -> str:
    return "" if column.lower_is_better is None else "lower" if column.lower_is_better else "higher"


def _rows(comparison: Comparison, columns: list[Column], links: Mapping[str, str]) -> list[Row]:
    best = {column.name: comparison.best(column) for column in columns}
    rows = []
    for entry in comparison.entries:
        cells = [_cell(column, entry, best[column.name] is entry) for column in columns]
        rows.append(Row(entry.name, entry.kind, cells, links.get(entry.name, "")))
    report = next((e.report for e in comparison.entries if e.report), None)
    if report is not None:
        for of, told in CONTROLS.items():
            values = {v.name: v for v in report.values if v.of == of}
            rows.append(Row(told, "control", [Cell(values.get(column.name), None, False) for column in columns]))
    return rows


def _cell(column: Column, entry: Entry, best: bool) -> Cell:
    x = column.of(entry)
    if isinstance(x, Value):
        return Cell(x, None, best, kind_of(x) if column.name == "bits/dim" else "")
    return Cell(None, x, best)


def _quality_and_cost(comparison: Comparison) -> str | None:
    points = [
        plots.Point(entry.name, 1 / speed, value, entry.kind == "model")
        for entry in comparison.entries
        if (value := entry.value(comparison.distance)) is not None and (speed := entry.cost("samples per second"))
    ]
    if not points:
        return None
    report = next(e.report for e in comparison.entries if e.report)
    levels = [
        plots.Line(told, v.value)
        for of, told in CONTROLS.items()
        for v in report.values
        if v.of == of and v.name == comparison.distance and v.value is not None
    ]
    return plots.quality_and_cost(points, levels)


def _course(comparison: Comparison) -> str | None:
    courses, name = [], ""
    for entry in comparison.models:
        seen, seconds = entry.cost("images seen in training"), entry.cost("seconds of training")
        stages = [v for v in (entry.report.over_training if entry.report else ()) if v.value is not None]
        if seen and seconds and len(stages) > 1:
            courses.append((entry.name, [(seconds * min(1.0, float(v.of) / seen), v) for v in stages]))
            name = stages[0].name
    return plots.quality_and_time(courses, name) if courses else None
