"""Files with several pictures, TIFF stacks and animations, as one picture per page or frame."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from calotype.data.decode import pages
from calotype.data.records import BadPicture, Facts, Loaded, Record, Skipped, Source


def every_page(source: Source) -> Source:
    """The same source with a record for each page, named FILE#1, FILE#2 and so on; a file of one page keeps its name.

    A file is opened once to count its pages; if that fails, it stays one record, whose loading reports the reason.
    """
    counted: list[list[int] | None] = []  # None: one page

    def records() -> Iterator[Record]:
        for number, record in enumerate(source.records()):
            if number == len(counted):
                counted.append(_pages(record))
            found = counted[number]
            if found is None:
                yield record
                continue
            for k, page in enumerate(found):
                yield replace(
                    record,
                    name=f"{record.name}#{k + 1}",
                    load=partial(_load, record, page),
                    file=record.name,
                    held=0 if k else record.held,  # all pages have the same bytes
                )

    return replace(source, records=records)


def count_pages(path: Path) -> int:
    """The number of pages or frames of a file; 1 if they cannot be counted."""
    try:
        with path.open("rb") as file:
            return len(pages(file))
    except (BadPicture, OSError):
        return 1


def note_on_pages(outcomes: Iterable[Facts | Skipped]) -> tuple[str, ...]:
    """A sentence on the unused pages of files with several pages; empty if there are none."""
    several = [outcome.pages for outcome in outcomes if isinstance(outcome, Facts) and outcome.pages > 1]
    if not several:
        return ()
    others = sum(several) - len(several)
    files = f"{len(several):,} files have" if len(several) > 1 else "1 file has"
    return (
        f"{files} several pages or frames: the first of each is used, and the other {others:,} are left out. To take "
        "each as a picture: --pages all.",
    )


def _pages(record: Record) -> list[int] | None:
    if record.facts is not None:  # an array, or drawn
        return None
    try:
        content = record.load().content
        if isinstance(content, np.ndarray):
            return None
        with content as file:
            found = pages(file)
    except (BadPicture, OSError):
        return None
    return found if len(found) > 1 else None


def _load(record: Record, page: int) -> Loaded:
    return record.load()._replace(page=page)
