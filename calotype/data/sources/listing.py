"""The sorted listing of a folder or an archive: pictures with their classes and splits, and all excluded files.

A folder, a zip and a tar of the same files have the same listing. Files are added one by one, since a tar is read from
front to end; what depends on several files is decided when all are known.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from calotype.core.display import counted
from calotype.data.decoding.formats import not_read
from calotype.data.records import Skipped
from calotype.data.sources import label_files, samples
from calotype.data.sources.exclusions import LABEL_FILES, companions, system_part, why_other
from calotype.data.sources.label_files import LabelsFrom, PictureNames, Table
from calotype.data.sources.layout import (
    SNIFF_BYTES,
    Place,
    arrange,
    claims_picture,
    starts_like_picture,
    without_classes,
)
from calotype.data.sources.names import normal_names
from calotype.errors import DataError

_MOST_TABLES = 16  # that are looked at, of those that nobody asked for: more lie beside each picture
_LIKELY_TABLES = re.compile(r"(metadata|dataset|labels?|train|annotations?|data)\.(csv|tsv|jsonl|json)")
_EXAMPLES = 3  # names in a note


@dataclass(slots=True)
class _File:
    """An added file."""

    key: Any
    name: str
    windows: bool
    picture: bool
    format: str  # of one that is not read, why it is not; "": it is of no such format
    label: str | None = None  # that a label file says
    table: bytes | None = None  # content of what may be a table


class Picture(NamedTuple):
    """A picture of a source."""

    name: str  # relative, "/" between its parts
    key: Any  # as it was added


class Contents(NamedTuple):
    """The files of one folder or archive."""

    pictures: tuple[Picture, ...]  # one for each name, in the order of the source
    labels: dict[samples.Kind, dict[str, str]]  # what label files of their own say of pictures
    tables: dict[str, bytes]  # files that may be tables of labels, by name
    ignored: tuple[Skipped, ...]  # folders and files that are never looked into, and masks
    others: tuple[str, ...]  # files that are no pictures
    used: frozenset[str]  # of these, those with the label of a picture
    notes: tuple[str, ...]
    not_read: tuple[Skipped, ...]  # of formats that hold pictures and are not read


class Listing:
    """A listing under construction, to which the files of a source are added one by one.

    Args:
        labels: whether classes are wanted.
        wanted: the table of the classes, if any.
        archive: whether names are those of an archive, which may have any form.
        ignored: files that are already excluded.
    """

    def __init__(
        self, labels: bool, wanted: LabelsFrom | None = None, archive: bool = True, ignored: Iterable[Skipped] = ()
    ) -> None:
        self._labels, self._wanted, self._archive = labels, wanted, archive
        self._files: list[_File] = []
        self._ignored = list(ignored)
        self._tables = 0

    def add(self, key: Any, name: str, size: int, read: Callable[[int], bytes], windows: bool = False) -> None:
        """Add a file, reading as much of it as needed.

        Args:
            key: by which the source loads it.
            size: in bytes.
            read: returns the first bytes, none if unreadable; called before this method returns.
            windows: whether the archive marks it as written on Windows.
        """
        base = re.split(r"[/\\]", name)[-1]
        claim, format = claims_picture(base), None
        if claim is None:  # films, documents and the like are known by name alone
            start = read(SNIFF_BYTES)
            format = not_read(base, start)
            claim = format is None and starts_like_picture(start)
        file = _File(key, name, windows, claim, format.reason if format else "")
        self._files.append(file)
        if self._labels and not claim and not base.startswith("."):
            self._look_into(file, base, size, read)

    def _look_into(self, file: _File, base: str, size: int, read: Callable[[int], bytes]) -> None:
        """Read the labels in a file."""
        suffix = os.path.splitext(base)[1].lower()
        content: bytes | None = None
        if suffix in samples.LABEL_SUFFIXES and size <= samples.MOST_BYTES and self._wanted is None:
            content = read(size)
            file.label = samples.parse_label(content, suffix)
        if suffix not in label_files.SUFFIXES or file.label is not None:
            return
        asked_for = self._wanted is not None and base == self._wanted.file.rpartition("/")[2]
        likely = bool(_LIKELY_TABLES.fullmatch(base.lower()))
        if asked_for and size > label_files.MOST_BYTES:
            raise DataError(f"{file.name} has {size:,} bytes, but a table of labels at most {label_files.MOST_BYTES:,}")
        if size <= label_files.MOST_BYTES and (asked_for or likely or self._tables < _MOST_TABLES):
            self._tables += not likely
            file.table = read(size) if content is None else content

    def finish(self) -> Contents:
        """Sort the added files into the contents."""
        files, notes = self._named()
        ignored = dict.fromkeys(self._ignored)
        kept: dict[str, _File] = {}
        for name, file in files.items():
            part = system_part(name)
            if part is None:
                kept[name] = file
            else:
                ignored[part] = None
        pictures = [name for name, file in kept.items() if file.picture]
        apart = companions(pictures)
        pictures = [name for name in pictures if name not in apart.names]
        told = samples.Members({}, {})
        for name, file in kept.items():
            if file.label is not None:
                told.of("cls" if name.lower().endswith(".cls") else "json")[_bare(name)] = file.label
        matched = samples.match(pictures, told)
        used = {n for n, f in kept.items() if f.label is not None and _bare(n) in matched.used}
        lost = [n for n, f in kept.items() if f.label is not None and n not in used and n.lower().endswith(".cls")]
        if lost:
            notes = (
                *notes,
                f"{counted(len(lost), '.cls file belongs', '.cls files belong')} to no picture by name: "
                f"{_examples(lost)}.",
            )
        bare = {_bare(name) for name in pictures}
        return Contents(
            tuple(Picture(name, kept[name].key) for name in pictures),
            matched.labels,
            {n: f.table for n, f in kept.items() if f.table is not None and (self._wanted or _bare(n) not in bare)},
            (*ignored, *apart.ignored),
            tuple(name for name, file in kept.items() if not file.picture and not file.format),
            frozenset(used),
            (*notes, *apart.notes, *matched.notes),
            tuple(Skipped(name, file.format) for name, file in kept.items() if file.format),
        )

    def _named(self) -> tuple[dict[str, _File], tuple[str, ...]]:
        """Files by canonical name, the last one of each name, as unpacking would leave it."""
        if not self._archive:
            return {file.name: file for file in self._files}, ()
        names, notes = normal_names([file.name for file in self._files], [file.windows for file in self._files])
        found: dict[str, _File] = {}
        again: list[str] = []
        for name, file in zip(names, self._files, strict=True):
            if found.pop(name, None) is not None:
                again.append(name)
            if name:
                found[name] = file
        self._files = []
        if again:
            notes = (
                *notes,
                f"{counted(len(again), 'name is', 'names are')} there again in the archive, and the last file of each "
                f"is taken: {_examples(again)}.",
            )
        return found, notes


class Arranged(NamedTuple):
    """Contents with the class and split of each picture."""

    places: tuple[dict[str, Place], ...]  # of the pictures to use, by name, for each of the contents
    class_names: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    ignored: tuple[Skipped, ...]
    other_files: int
    notes: tuple[str, ...]


def arrange_contents(parts: Sequence[Contents], labels: bool, wanted: LabelsFrom | None = None) -> Arranged:
    """Determine the classes and splits of the pictures.

    Args:
        parts: one or several contents, which form one data set.
        labels: whether classes are wanted.
        wanted: the table of the classes; None: from label files beside each picture, or else from folders.

    Raises:
        DataError: the table does not contain them.
    """
    layout = arrange(dict.fromkeys(picture.name for part in parts for picture in part.pictures))
    notes = [note for part in parts for note in part.notes]
    skipped = [entry for part in parts for entry in part.not_read]
    skipped += [Skipped(name, _OUTSIDE) for name in layout.outside]
    places = [{p.name: layout.places[p.name] for p in part.pictures if p.name in layout.places} for part in parts]
    class_names = layout.class_names
    read: set[str] = set()
    if wanted is not None:
        found, read = _from_table(parts, wanted)
        layout_notes = without_classes(layout, f"those of {wanted.file}")
        class_names = found.classes.class_names
        skipped += [
            Skipped(name, f"no label: {wanted.file} has none for it") for name in places[0] if name not in found.values
        ]
        numbers = {name: found.classes.numbers[value] for name, value in found.values.items()}
        places = [{n: Place(p.split, numbers[n]) for n, p in places[0].items() if n in numbers}]
        notes += found.notes
    elif labels:
        total = sum(len(place) for place in places)
        counts = {kind: sum(len(part.labels[kind]) for part in parts) for kind in samples.KINDS}
        kind, said = samples.choose(counts, total)
        notes += said
        layout_notes = layout.notes
        if kind is not None:
            classes = samples.number(value for part in parts for value in part.labels[kind].values())
            class_names = classes.class_names
            layout_notes = without_classes(layout, f"those of the .{kind} files")
            read = {name for part in parts for name in part.used if name.lower().endswith(f".{kind}")}
            places = [
                {n: Place(p.split, _number(classes, part.labels[kind].get(n))) for n, p in place.items()}
                for part, place in zip(parts, places, strict=True)
            ]
        notes += _offers(parts)
    else:
        layout_notes = ()
    others = [name for part in parts for name in part.others if name not in read]
    ignored = [entry for part in parts for entry in part.ignored]
    ignored += [Skipped(name, str(why_other(name))) for name in others]
    return Arranged(
        tuple(places),
        class_names if labels else (),
        tuple(skipped),
        tuple(ignored),
        sum(len(part.others) for part in parts),
        tuple(dict.fromkeys((*layout_notes, *notes))),
    )


_OUTSIDE = (
    "outside the folders of the splits: move it into one of them, or rename these, such as train and test, to learn "
    "from it"
)


def _number(classes: samples.Numbered, value: str | None) -> int | None:
    return None if value is None else classes.numbers[value]


def _from_table(parts: Sequence[Contents], wanted: LabelsFrom) -> tuple[label_files.Labels, set[str]]:
    """The labels of a table, and the names of its files."""
    if len(parts) > 1:
        raise DataError("labels_from is for a folder or one archive of pictures, not for shards: leave it out")
    (part,) = parts
    names = [name for name in part.tables if wanted.means(name)]
    if not names:
        there = sorted(name for name in part.others if name.lower().endswith(label_files.SUFFIXES))
        about = f"there are {_examples(there)}" if there else "there is none"
        raise DataError(f"{wanted.file} is no file of the source: of .csv, .tsv, .jsonl and .json files {about}")
    tables: list[Table] = []
    for name in names:
        table = label_files.parse_table(name, part.tables[name])
        if table is None:
            raise DataError(f"{name} is JSON, but no table of labels: write [[NAME, CLASS], ...] as its labels")
        tables.append(table)
    return label_files.read_labels(tables, wanted, PictureNames([p.name for p in part.pictures])), set(names)


def _offers(parts: Sequence[Contents]) -> list[str]:
    """Notes on unused tables, and on other files that may contain classes."""
    notes: dict[str, str] = {}  # by the name without folders: train/metadata.csv and test/metadata.csv are one
    for part in parts:
        pictures = PictureNames([p.name for p in part.pictures]) if part.tables else None
        for name, content in part.tables.items():
            base = name.rpartition("/")[2]
            if base in notes or pictures is None:
                continue
            try:
                table = label_files.parse_table(name, content)
                said = label_files.offer(table, pictures) if table else ""
            except DataError as error:
                said = f"A table beside the pictures cannot be read: {error}."
            why = LABEL_FILES.get(base.lower(), "it has no rows for pictures")
            notes[base] = said or f"{name} is beside the pictures and is not read ({why})."
        for name in part.others:
            base = name.rpartition("/")[2]
            if base.lower() in LABEL_FILES and base not in notes:
                notes[base] = f"{name} is beside the pictures and is not read ({LABEL_FILES[base.lower()]})."
        marked = [name for name in part.others if name.lower().endswith((".xml", ".mat"))]
        if marked:
            notes.setdefault(
                ".xml",
                f"{counted(len(marked), 'file of annotations is', 'files of annotations are')} not read: "
                f"{_examples(marked)}.",
            )
    return list(notes.values())


def _bare(name: str) -> str:
    return os.path.splitext(name)[0]


def _examples(names: Sequence[str]) -> str:
    return ", ".join(names[:_EXAMPLES]) + (" ..." if len(names) > _EXAMPLES else "")
