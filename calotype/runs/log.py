"""Reading the log of a run: complete records of the form that training writes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from calotype.core.untrusted import check_regular, parse_json
from calotype.errors import RunError

TEXTS = ("event", "player", "reason", "text")
COURSES = ("loss/", "held_out/", "seen/", "grad_norm/", "samples/")  # what is told of so many images seen


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a log, an empty list without a log. Raises RunError if it cannot be read."""
    try:
        check_regular(path)
        with path.open("rb") as file:
            return [record for line in file if (record := _record(line)) is not None]
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({error}): restore it, or remove it") from error


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = parse_json(line.decode())
    except ValueError:
        return None
    return record if isinstance(record, dict) and _is_record(record) else None


def _is_record(record: dict[str, Any]) -> bool:
    """Whether a record has an event, a time, and values of the types that training writes."""
    texts = [name for name in TEXTS if name in record]
    numbers = [value for name, value in record.items() if name not in TEXTS and value is not None]
    return (
        {"event", "time"} <= record.keys()
        and all(isinstance(record[name], str) for name in texts)
        and all(type(value) in (int, float) and math.isfinite(value) for value in numbers)
        and all(isinstance(record.get(name, 0), int | float) for name in ("time", "elapsed", "images_seen"))
        and ("images_seen" in record or not any(name.startswith(COURSES) for name in record))
    )


def training_seconds(log: Sequence[Mapping[str, Any]]) -> float:
    """Seconds of training by the log, without the time between a stop and the next resume."""
    elapsed = [(record["event"], record.get("elapsed", record["time"])) for record in log]
    return sum(max(0.0, after - before) for (_, before), (event, after) in pairwise(elapsed) if event != "resumed")
