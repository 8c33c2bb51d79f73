"""Reports of evaluations, as JSON for programs and as a table for people."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from calotype.core.config import build
from calotype.core.files import write_atomic
from calotype.core.untrusted import brief, read_json
from calotype.errors import ConfigError, RunError

FORMAT = 2


@dataclass(frozen=True, slots=True)
class Value:
    """A number with its interval and number of images. None if it is not reported; `note` has the reason."""

    name: str  # as in METRICS, with the feature network where there is one: FD-EffLite0
    of: str  # samples, or the name of a control
    value: float | None
    low: float | None  # of the 95 % interval
    high: float | None
    n: int  # images per set
    note: str = ""


@dataclass(frozen=True, slots=True)
class Protocol:
    """The settings of a measurement. Reports are comparable if all of them agree."""

    n: int  # samples per seed, and images of each control
    seeds: tuple[int, ...]  # of the samples; empty for images from elsewhere
    data: str  # digest of the data set
    reference: str  # its split that samples are compared with
    reference_n: int
    features: str  # name of the feature network
    features_digest: str
    k: int  # neighbours of precision, recall, density and coverage
    version: int = 1  # of the code that measures

    @property
    def digest(self) -> str:
        """A digest of the settings except seeds: reports with equal digests are comparable."""
        told = {key: value for key, value in asdict(self).items() if key != "seeds"}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]

    def differences(self, other: Protocol) -> list[str]:
        """The differences between two protocols, for people."""
        mine, theirs = asdict(self), asdict(other)
        return [f"{key} {mine[key]} and {theirs[key]}" for key in mine if key != "seeds" and mine[key] != theirs[key]]


@dataclass(frozen=True, slots=True)
class Copying:
    """The results of the search for copies of training images."""

    flagged: bool
    verdict: str  # a sentence
    suspects: Sequence[Mapping[str, float]]  # sample, train (number in the data set), distance; nearest first


@dataclass(frozen=True, slots=True)
class Report:
    """An evaluation."""

    subject: Mapping[str, Any]  # what was measured: a run, or a folder of images
    data: Mapping[str, Any]  # the data set
    protocol: Protocol
    values: Sequence[Value]
    copying: Copying | None
    cost: Mapping[str, Any]
    warnings: Sequence[str]
    command: str  # that repeats it
    per_class: Sequence[Value] = field(default_factory=tuple)  # `of` is the class
    over_training: Sequence[Value] = field(default_factory=tuple)  # of few images; `of` is how many had been seen

    def value(self, name: str, of: str = "samples") -> Value:
        """The value of a name. Raises KeyError."""
        for value in self.values:
            if (value.name, value.of) == (name, of):
                return value
        raise KeyError(f"no {name} of {of}")

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values."""
        return {"format": FORMAT, "protocol_digest": self.protocol.digest} | asdict(self)

    def save(self, path: Path) -> None:
        """Write the report as JSON, atomically."""
        text = json.dumps(self.as_dict(), indent=1, allow_nan=False)
        write_atomic(path, lambda file: file.write(text.encode()))

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read a report. Raises RunError if the file is not one."""
        try:
            told = read_json(path)
            if told["format"] != FORMAT:
                raise RunError(f"{path} is a report of another version: evaluate again")
            return cls.of(told)
        except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
            raise RunError(
                f"{path} is no report of an evaluation ({error!r}): restore it, or evaluate again"
            ) from error

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Self:
        """A report from the values of `as_dict`. Raises KeyError, TypeError or ConfigError for other values."""
        copying = plain["copying"]
        return cls(
            subject=_table(plain["subject"]),
            data=_table(plain["data"]),
            protocol=build(Protocol, plain["protocol"], "protocol"),
            values=_values(plain, "values"),
            copying=_copying(copying) if copying else None,
            cost=_table(plain["cost"]),
            warnings=_typed(plain["warnings"], str),
            command=_typed([plain["command"]], str)[0],
            per_class=_values(plain, "per_class"),
            over_training=_values(plain, "over_training"),
        )

    def text(self) -> str:
        """For the terminal: one line per metric, the samples beside the controls."""
        sets = list(dict.fromkeys(value.of for value in self.values))
        names = list(dict.fromkeys(value.name for value in self.values))
        table = [["", *map(label, sets)]]
        for name in names:
            row = [name]
            for of in sets:
                found = [value for value in self.values if (value.name, value.of) == (name, of)]
                row.append(shown(found[0]) if found else "")
            table.append(row)
        widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in table]
        missing = {f"{value.name} {value.note}": None for value in self.values if value.value is None}
        lines += ["", *(f"not reported: {reason}" for reason in missing)] if missing else []
        if self.copying:
            lines += ["", self.copying.verdict]
        return "\n".join([*lines, *(f"note: {warning}" for warning in self.warnings)])


def _values(plain: Mapping[str, Any], name: str) -> tuple[Value, ...]:
    told = _typed(plain[name], dict)
    for value in told:
        build(Value, value, name)  # whole numbers stay what they are, and are not taken from there
    return tuple(Value(**value) for value in told)


def _copying(plain: Mapping[str, Any]) -> Copying:
    suspects = _typed(_table(plain)["suspects"], dict)
    for suspect in suspects:
        _typed([suspect["sample"], suspect["train"]], int)
        _typed([suspect["distance"]], (int, float))
    flagged, verdict = _typed([plain["flagged"]], bool)[0], _typed([plain["verdict"]], str)[0]
    return Copying(flagged, verdict, suspects)


def _table(value: Any) -> Mapping[str, Any]:
    return _typed([value], dict)[0]


def _typed(values: Any, kind: type | tuple[type, ...]) -> tuple[Any, ...]:
    """A list of values of one type as a tuple. Raises TypeError for anything else."""
    if not isinstance(values, (list, tuple)):
        raise TypeError(f"{brief(values)} is no list")
    for value in values:
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise TypeError(f"{brief(value)} is of type {type(value).__name__}")
    return tuple(values)


def label(of: str) -> str:
    """The short name of a set, for people."""
    return of.replace("_", "-")


def shown(value: Value) -> str:
    """A value with its interval, as 12.3 (11.9 to 12.8)."""
    if value.value is None:
        return "not reported"
    if value.low is None or value.high is None:
        return number(value.value)
    return f"{number(value.value)} ({number(value.low)} to {number(value.high)})"


def number(x: float) -> str:
    """Three digits, or whole numbers from a hundred on."""
    if x == 0:
        return "0"
    return f"{x:.0f}" if abs(x) >= 100 else f"{x:.3g}"


def comparable(reports: Sequence[Report]) -> None:
    """Raise ConfigError, with the differences, if reports were measured with different settings."""
    for other in reports[1:]:
        if other.protocol.digest != reports[0].protocol.digest:
            differs = "; ".join(reports[0].protocol.differences(other.protocol))
            raise ConfigError(f"these reports are not comparable, since they differ in {differs}: evaluate them alike")
