"""A survey of the headers of all pictures, from which size and channels of the data set are chosen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from calotype.data.config import DataConfig
from calotype.data.decode import array_facts, decode, has_transparency, quiet_pillow, read_facts
from calotype.data.decoding.pages import note_on_pages
from calotype.data.packs.parallel import ordered_map
from calotype.data.records import BadPicture, Facts, Record, Skipped, Source, in_memory
from calotype.errors import DataError

RECOMMENDED_SIDES = (16, 24, 32, 48, 64)
"""Sizes to recommend for the shorter side; a mixture of sizes gets at most CPU_SIDE."""

CPU_SIDE = 32
"""What a CPU trains in the time of a coffee. Larger is the user's choice."""

_SQUARE_WITHIN = 1.25  # aspects up to this lose little by being cropped to a square
_LONG_SIDE_STEP = 8  # the longer side is a multiple, so that networks can halve it three times

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Survey:
    """The facts of each record of a source, in order, before decoding."""

    outcomes: tuple[Facts | Skipped, ...]
    apart: tuple[Skipped, ...]  # skipped by the source itself, and so no records
    other_files: int
    notes: tuple[str, ...]
    ignored: tuple[Skipped, ...] = ()

    @property
    def facts(self) -> list[Facts]:
        """The facts of the records whose headers are usable."""
        return [outcome for outcome in self.outcomes if isinstance(outcome, Facts)]

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """The skipped pictures with their reasons."""
        return (*self.apart, *(outcome for outcome in self.outcomes if isinstance(outcome, Skipped)))

    def summary(self) -> dict[str, Any]:
        """Counts for people and programs: formats, modes, and sizes as [width, height, count]."""
        facts = self.facts
        sizes = Counter((fact.width, fact.height) for fact in facts)
        return {
            "formats": dict(Counter(fact.format for fact in facts).most_common()),
            "modes": dict(Counter(fact.mode for fact in facts).most_common()),
            "sizes": [[width, height, count] for (width, height), count in sorted(sizes.items())],
            "alpha_channels": sum(fact.alpha is not False for fact in facts),
            "deep": sum(fact.deep for fact in facts),
            "other_files": self.other_files,
            "notes": list(self.notes),
            "ignored": [list(entry) for entry in self.ignored],
        }


def survey(source: Source, *, strict: bool, progress: Progress | None = None) -> Survey:
    """Read the header of every record.

    Args:
        source: the pictures.
        strict: raise at the first unusable picture.
        progress: called at intervals with 0 and the number of records seen so far.

    Raises:
        DataError: strict, and a picture cannot be used.
    """
    if strict and source.skipped:
        raise strict_error(source.skipped[0])
    outcomes: list[Facts | Skipped] = []
    with quiet_pillow():
        for outcome in ordered_map(_look, source.records(), in_memory):
            if strict and isinstance(outcome, Skipped):
                raise strict_error(outcome)
            outcomes.append(outcome)
            if progress and len(outcomes) % 256 == 0:
                progress(0, len(outcomes))
    notes = (*source.notes, *note_on_pages(outcomes))
    return Survey(tuple(outcomes), source.skipped, source.other_files, notes, source.ignored)


def strict_error(skipped: Skipped) -> DataError:
    """The error for an unusable picture in strict mode."""
    return DataError(f"{skipped.name}: {skipped.reason} (strict is on, so nothing is passed over)")


def resolve(config: DataConfig, source: Source, found: Survey) -> DataConfig:
    """Resolve the size and channels that the config leaves open, from at least one picture."""
    width, height = config.width, config.height
    if not width:
        width, height = recommended_size([(fact.width, fact.height) for fact in found.facts])
    return replace(config, width=width, height=height, channels=config.channels or _channels(source, found))


def recommended_size(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The size (width, height) to train at, from those of the pictures.

    Pictures of one size up to 64 keep it. Others get a shorter side that at least 90 % of them have, at most
    CPU_SIDE, and are square unless their median aspect is far from 1.
    """
    widths, heights = np.array(sizes).T
    if len(set(sizes)) == 1 and max(sizes[0]) <= max(RECOMMENDED_SIDES):
        return sizes[0]
    shorter = np.quantile(np.minimum(widths, heights), 0.1, method="lower")
    side = max((s for s in RECOMMENDED_SIDES if s <= min(shorter, CPU_SIDE)), default=RECOMMENDED_SIDES[0])
    aspect = float(np.median(widths / heights))
    stretch = max(aspect, 1 / aspect)
    if stretch <= _SQUARE_WITHIN:
        return side, side
    longer = _LONG_SIDE_STEP * round(side * stretch / _LONG_SIDE_STEP)
    return (longer, side) if aspect > 1 else (side, longer)


def _look(record: Record) -> Facts | Skipped:
    if record.facts:
        return record.facts
    try:
        content, _, page = record.load()
        if isinstance(content, np.ndarray):
            return array_facts(content.shape, content.dtype)
        with content as file:
            return read_facts(file, page)
    except BadPicture as error:
        return Skipped(record.name, error.reason)
    except OSError as error:
        return Skipped(record.name, f"cannot be read: {error.strerror or error}")


def _channels(source: Source, found: Survey) -> int:
    """4 if more than half of the pictures are partly transparent, else 3 if any has colour, else 1."""
    facts = found.facts
    possible = sum(fact.alpha is not False for fact in facts)
    if 2 * possible > len(facts) and _mostly_transparent(source, found):
        return 4
    return 3 if any(fact.colour for fact in facts) else 1


def _mostly_transparent(source: Source, found: Survey) -> bool:
    """Whether more than half of the pictures use alpha; decodes alpha channels until this is known."""
    facts = found.facts
    transparent = sum(fact.alpha is True for fact in facts)
    undecided = sum(fact.alpha is None for fact in facts)
    pairs = zip(source.records(), found.outcomes, strict=True)
    candidates = (record for record, fact in pairs if isinstance(fact, Facts) and fact.alpha is None)
    with quiet_pillow(), closing(ordered_map(_is_transparent, candidates, in_memory)) as results:
        while 2 * transparent <= len(facts) < 2 * (transparent + undecided):
            transparent += next(results)
            undecided -= 1
    return 2 * transparent > len(facts)


def _is_transparent(record: Record) -> bool:
    try:
        return has_transparency(decode(record.load()))
    except (BadPicture, OSError):  # it is reported when it is packed
        return False
