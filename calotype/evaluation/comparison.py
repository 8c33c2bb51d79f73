"""A comparison of several models of the same pictures: table, best values and a verdict in plain words.

A value is marked as the best of its column only if its 95 % interval is disjoint from that of every other model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from calotype.core.config import build
from calotype.core.files import write_atomic
from calotype.core.untrusted import brief, read_json
from calotype.errors import ConfigError, RunError
from calotype.evaluation.evaluate import METRICS, metric_of
from calotype.evaluation.report import Report, Value, comparable, number, shown

FORMAT = 1
STILL = 0.1  # a distance that fell by more than this share over the last third of training goes on falling


@dataclass(frozen=True, slots=True)
class Entry:
    """A model, or a classical method, in a comparison."""

    name: str
    kind: str  # model or baseline
    report: Report | None  # None where it failed
    failure: str = ""  # why there is no report
    off: float | None = None  # how far pictures are from what comes back of their latents, of 255; None: it has none
    completes: bool = False  # whether it can go on from the beginning of a picture

    @property
    def likelihood(self) -> Value | None:
        """Bits per dimension, if reported."""
        found = [v for v in self.values if v.name.startswith("bits/dim") and v.value is not None]
        return found[0] if found else None

    @property
    def values(self) -> Sequence[Value]:
        """The metrics of its samples."""
        return [v for v in self.report.values if v.of == "samples"] if self.report else []

    def value(self, name: str) -> Value | None:
        """A metric of its samples by name, if reported."""
        return next((v for v in self.values if v.name == name and v.value is not None), None)

    def cost(self, name: str) -> float | None:
        """A cost by its name in the report."""
        found = self.report.cost.get(name) if self.report else None
        return float(found) if isinstance(found, int | float) else None


class Column(NamedTuple):
    """A column of the table."""

    name: str
    lower_is_better: bool | None  # None: neither is better
    of: Callable[[Entry], Value | float | None]


class Sentence(NamedTuple):
    """A part of the verdict."""

    question: str  # what one wants
    answer: str
    names: Sequence[str]  # the entries that it recommends; several where they cannot be told apart


COSTS = {
    "samples/s": ("samples per second", False),
    "network calls": ("network calls per image", True),
    "parameters": ("parameters", None),
    "training seconds": ("seconds of training", None),
    "images seen": ("images seen in training", None),
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Models and classical methods, measured by one protocol on the same pictures."""

    data: Mapping[str, Any]
    entries: Sequence[Entry]
    command: str  # that repeats it

    def __post_init__(self) -> None:
        comparable([entry.report for entry in self.entries if entry.report])

    @property
    def models(self) -> Sequence[Entry]:
        """The entries that are trained models."""
        return [entry for entry in self.entries if entry.kind == "model" and entry.report]

    @property
    def baselines(self) -> Sequence[Entry]:
        """The classical methods."""
        return [entry for entry in self.entries if entry.kind == "baseline" and entry.report]

    @property
    def distance(self) -> str:
        """The name of the distance for ranking: by the classifier of the data set, if there is one.

        The kernel distance if there are too few images for the Fréchet distance.
        """
        known = dict.fromkeys(v.name for e in self.entries for v in e.values if v.value is not None)
        for metric in ("FD", "KID"):
            names = [name for name in known if metric_of(name) == metric]
            if names:
                return next((name for name in names if "-Classifier@" in name), names[0])
        return "FD"

    def columns(self) -> list[Column]:
        """The columns that some entry has a value for."""
        names = list(dict.fromkeys(v.name for e in self.entries for v in e.values))
        chosen: list[Column] = []
        for metric in METRICS:
            for name in names:
                if metric_of(name) == metric and metric != "FD∞" and "alpha" not in name:
                    chosen.append(Column(name, METRICS[metric].lower_is_better, _named(name)))
        chosen.append(Column("bits/dim", True, lambda entry: entry.likelihood))
        chosen += [Column(name, None, _named(name)) for name in ("modes", "as asked", "close in features")]
        chosen += [Column(name, better, _costing(key)) for name, (key, better) in COSTS.items()]
        return [column for column in chosen if any(column.of(entry) is not None for entry in self.entries)]

    def best(self, column: Column) -> Entry | None:
        """The model whose interval is disjoint from all others and better, if there are several models."""
        if column.lower_is_better is None:
            return None
        return clear([(e, x) for e in self.models if (x := column.of(e)) is not None], column.lower_is_better)

    def rows(self) -> list[dict[str, Any]]:
        """One mapping of plain values per entry, for example for a data frame."""
        found = []
        for entry in self.entries:
            row: dict[str, Any] = {"name": entry.name, "kind": entry.kind}
            for column in self.columns():
                x = column.of(entry)
                row[column.name] = x.value if isinstance(x, Value) else x
                if isinstance(x, Value):
                    row[f"{column.name} low"], row[f"{column.name} high"] = x.low, x.high
            if entry.likelihood:
                row["bits/dim kind"] = kind_of(entry.likelihood)
            found.append(row | ({"failure": entry.failure} if entry.failure else {}))
        return found

    def verdict(self) -> list[Sentence]:
        """The recommended model for each use, derived from the measurements alone."""
        return [
            *_fidelity(self),
            *_diversity(self),
            *_speed(self),
            *_likelihood(self),
            *_editing(self),
            *_more(self),
            *_learned(self),
            *_copied(self),
            *_failed(self),
        ]

    def text(self) -> str:
        """The comparison as text for the terminal."""
        columns = self.columns()
        table = [["", *(column.name for column in columns)]]
        for entry in self.entries:
            if entry.kind == "model":  # how the classical methods fare the verdict says
                table.append([entry.name, *(_cell(self, column, entry) for column in columns)])
        table = [list(row) for row in zip(*table, strict=True)]  # a model a column, since there are fewer of them
        widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in table]
        lines.append("* the best of the models, where intervals are apart")
        return "\n".join([*lines, "", *(f"{told.question}: {told.answer}" for told in self.verdict())])

    def as_dict(self) -> dict[str, Any]:
        """The comparison as plain values."""
        return {
            "format": FORMAT,
            "command": self.command,
            "data": dict(self.data),
            "rows": self.rows(),
            "verdict": [told._asdict() for told in self.verdict()],
            "entries": [
                asdict(entry) | {"report": entry.report.as_dict() if entry.report else None} for entry in self.entries
            ],
        }

    def save(self, path: Path) -> None:
        """Write the comparison as JSON, atomically."""
        text = json.dumps(self.as_dict(), indent=1, allow_nan=False)
        write_atomic(path, lambda file: file.write(text.encode()))

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read a comparison. Raises RunError if the file is not one."""
        try:
            told = read_json(path)
            if told["format"] != FORMAT:
                raise RunError(f"{path} is a comparison of another version: compare again")
            if not (isinstance(told["entries"], list) and isinstance(told["data"], dict)):
                raise TypeError("its entries are no list, or its data no table")
            return cls(told["data"], [entry_of(entry) for entry in told["entries"]], str(told["command"]))
        except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
            raise RunError(f"{path} is no comparison ({error!r}): restore it, or compare again") from error


@dataclass(frozen=True, slots=True)
class _Plain:
    """The fields of an entry that its file stores besides the report."""

    name: str
    kind: str
    failure: str = ""
    off: float | None = None
    completes: bool = False


def entry_of(plain: Mapping[str, Any]) -> Entry:
    """An entry from its stored values. Raises KeyError, TypeError or ConfigError for invalid ones."""
    if not isinstance(plain, Mapping):
        raise TypeError(f"{brief(plain)} is no entry")
    report = plain["report"]
    told = build(_Plain, {key: value for key, value in plain.items() if key != "report"}, "entry")
    return Entry(
        told.name,
        told.kind,
        Report.of(report) if report else None,
        failure=told.failure,
        off=told.off,
        completes=told.completes,
    )


def kind_of(value: Value) -> str:
    """Whether bits per dimension are exact, a bound or an estimate."""
    return value.name.partition("(")[2].rstrip(")").partition(",")[0]


def clear(found: Sequence[tuple[Entry, Value | float]], lower_is_better: bool) -> Entry | None:
    """The entry whose interval lies beyond those of all others, on the better side; None if there is none."""
    leaders = leading(found, lower_is_better)
    return leaders[0] if len(leaders) == 1 and len(found) > 1 else None


def leading(found: Sequence[tuple[Entry, Value | float]], lower_is_better: bool) -> list[Entry]:
    """The best entry and those whose intervals overlap with its own, best first."""
    sign = 1.0 if lower_is_better else -1.0
    ordered = sorted(found, key=lambda item: sign * _middle(item[1]))
    if not ordered:
        return []
    reach = _worst(ordered[0][1], sign)
    return [entry for k, (entry, x) in enumerate(ordered) if k == 0 or _optimist(x, sign) <= reach]


def _middle(x: Value | float) -> float:
    return float(x.value or 0.0) if isinstance(x, Value) else x


def _ends(x: Value | float, sign: float) -> tuple[float, float]:
    """The better and the worse end of an interval, with the sign such that less is better."""
    if not isinstance(x, Value) or x.low is None or x.high is None:
        return sign * _middle(x), sign * _middle(x)
    return min(sign * x.low, sign * x.high), max(sign * x.low, sign * x.high)


def _optimist(x: Value | float, sign: float) -> float:
    return _ends(x, sign)[0]


def _worst(x: Value | float, sign: float) -> float:
    return _ends(x, sign)[1]


def _named(name: str) -> Callable[[Entry], Value | None]:
    return lambda entry: entry.value(name)


def _costing(name: str) -> Callable[[Entry], float | None]:
    return lambda entry: entry.cost(name)


def _cell(comparison: Comparison, column: Column, entry: Entry) -> str:
    x = column.of(entry)
    if x is None:
        return "failed" if entry.failure else ""
    star = " *" if comparison.best(column) is entry else ""
    if isinstance(x, Value):
        kind = f", {kind_of(x)}" if column.name == "bits/dim" else ""
        return f"{shown(x)}{kind}{star}"
    return f"{x:,.0f}{star}" if x >= 100 else f"{number(x)}{star}"


# -- the verdict


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _of(comparison: Comparison, name: str) -> list[tuple[Entry, Value | float]]:
    return [(entry, value) for entry in comparison.models if (value := entry.value(name)) is not None]


def _recommended(
    question: str, found: Sequence[tuple[Entry, Value | float]], lower: bool, what: str, note: str = ""
) -> list[Sentence]:
    if not found:
        return []
    leaders = leading(found, lower)
    values = {entry.name: x for entry, x in found}
    told = {
        name: shown(x) if isinstance(x, Value) else (f"{x:,.0f}" if x >= 100 else number(x))
        for name, x in values.items()
    }
    names = [entry.name for entry in leaders]
    if len(leaders) == 1:
        rest = [name for name in values if name != names[0]]
        beside = f"; {', '.join(f'{name} {told[name]}' for name in rest)}" if rest else ""
        answer = f"{names[0]}, with {what} {told[names[0]]}{beside}"
    else:
        answer = f"{_list(names)} cannot be told apart: {what} {', '.join(f'{told[name]}' for name in names)}"
    return [Sentence(question, f"{answer}.{note}", names)]


def _fidelity(comparison: Comparison) -> list[Sentence]:
    name = comparison.distance
    return _recommended("Nearest to your pictures", _of(comparison, name), True, name)


def _diversity(comparison: Comparison) -> list[Sentence]:
    return _recommended("Most varied", _of(comparison, "coverage"), False, "coverage")


def _speed(comparison: Comparison) -> list[Sentence]:
    found: list[tuple[Entry, Value | float]] = [
        (entry, speed) for entry in comparison.models if (speed := entry.cost("samples per second"))
    ]
    return _recommended("Fastest to draw", found, False, "images/s")


def _likelihood(comparison: Comparison) -> list[Sentence]:
    """The verdict by bits per dimension, from exact values and upper bounds; estimates are left out."""
    found: list[tuple[Entry, Value | float]] = [
        (entry, bits)
        for entry in comparison.models
        if (bits := entry.likelihood) is not None and kind_of(bits) in ("exact", "bound")
    ]
    bounds = [entry.name for entry, x in found if isinstance(x, Value) and kind_of(x) == "bound"]
    note = f" Those of {_list(bounds)} are upper bounds." if bounds else ""
    return _recommended("Likelihood, and so compression", found, True, "bits/dim", note)


def _editing(comparison: Comparison) -> list[Sentence]:
    """The verdict by the distance between pictures and their reconstructions."""
    found = sorted((entry.off, entry.name) for entry in comparison.models if entry.off is not None)
    parts = []
    if found:
        told = ", ".join(f"{off:.1f} of 255 off from {name}" for off, name in found)
        parts.append(f"held-out pictures that are encoded and decoded come back {told}")
    completing = [entry.name for entry in comparison.models if entry.completes]
    parts += [f"{_list(completing)} can complete pictures from their upper part"] if completing else []
    names = [found[0][1]] if found else completing
    return [Sentence("Editing", f"{'; '.join(parts)}.", names)] if parts else []


def _more(comparison: Comparison) -> list[Sentence]:
    """The verdict on models that were still improving at the end of their budget."""
    rising, level = list[str](), list[str]()
    for entry in comparison.models:
        stages = list(entry.report.over_training if entry.report else ())
        if len(stages) < 3:
            continue
        before, after = stages[-max(2, 1 + len(stages) // 3)], stages[-1]
        if before.value is None or after.value is None:
            continue
        apart = after.high is None or before.value > after.high
        (rising if before.value - after.value > STILL * abs(before.value) and apart else level).append(entry.name)
    parts = []
    if rising:
        parts.append(f"{_list(rising)} {'was' if len(rising) == 1 else 'were'} still getting nearer to the pictures")
    if level:
        parts.append(f"{_list(level)} no longer came nearer, as far as the few images of a stage can tell")
    return [Sentence("With more time", f"{'; '.join(parts)}.", rising)] if parts else []


def _learned(comparison: Comparison) -> list[Sentence]:
    """The verdict on models that are no better than the classical methods."""
    name = comparison.distance
    classical = [value for entry in comparison.baselines if (value := entry.value(name)) is not None]
    if not classical:
        return []
    best = min(classical, key=_middle)
    source = next(entry.name for entry in comparison.baselines if entry.value(name) is best)
    models = _of(comparison, name)
    worse = [entry.name for entry, x in models if _worst(x, 1.0) > _optimist(best, 1.0)]
    told = f"the best classical method, {source}, is at {name} {shown(best)}"
    if worse:
        return [Sentence("Not learned", f"{told}; {_list(worse)} cannot be told from it, or are worse.", [])]
    return [Sentence("Against classical methods", f"every model is nearer to the pictures: {told}.", [])]


def _copied(comparison: Comparison) -> list[Sentence]:
    flagged = [e.name for e in comparison.models if e.report and e.report.copying and e.report.copying.flagged]
    return [Sentence("Copying", f"samples of {_list(flagged)} look like training images.", [])] if flagged else []


def _failed(comparison: Comparison) -> list[Sentence]:
    return [Sentence("Failed", f"{e.name}: {e.failure}", []) for e in comparison.entries if e.failure]
