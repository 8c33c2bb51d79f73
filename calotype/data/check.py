"""`calotype check`: the contents of a source, its problems, and the next steps."""

from __future__ import annotations

import shlex
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calotype.core.display import counted
from calotype.data.config import DataConfig
from calotype.data.decoding.values import suggest_range
from calotype.data.duplicates import exact_duplicates, near_duplicates
from calotype.data.notes import all_notes, balance_notes
from calotype.data.packs.packed import PackedDataset
from calotype.data.packs.packing import TooFewPictures, prepare
from calotype.data.packs.survey import Progress, recommended_size
from calotype.data.records import Skipped, Values

_EXAMPLES = 5  # names to show of each kind of finding; --json has all
_COLUMN = 14  # where values begin
_WIDTH = 80

# What training holds: PyTorch itself (0.5 GB), and of a small network at a batch of 64 in float32 some 20 activations
# of 64 channels on its finest map, which patches keep at 48 positions a side at most, and 10 of 16 channels per pixel.
# The pack is mapped, not held.
_TORCH_BYTES = 500_000_000
_MAP_BYTES = 64 * 20 * 64 * 4  # per position of the finest map
_PIXEL_BYTES = 64 * 10 * 16 * 4  # per pixel of a picture
MEMORY_ASSUMPTION = "PyTorch, and a small network at a batch of 64 in float32"


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """Findings about a source; sizes are (width, height)."""

    source: str
    pictures: int  # usable ones
    skipped: tuple[Skipped, ...]
    other_files: int  # files that are no pictures by name and content
    ignored: tuple[Skipped, ...]  # folders and files that are left out, these among them, with reason and remedy
    formats: dict[str, int]
    modes: dict[str, int]
    sizes: dict[str, Any]  # min, median and max of width and of height, distinct, most_common
    classes: dict[str, int]  # empty: no labels
    train_classes: dict[str, int]  # training pictures of each class; a class without any cannot be learned
    imbalance: float | None  # the largest class over the smallest, of those with training pictures
    exact_duplicates: tuple[tuple[str, ...], ...]  # groups of names
    near_duplicates: tuple[tuple[str, str], ...]
    flat: int
    leaks: tuple[tuple[str, str], ...]  # (training, held-out) pictures that are equal or nearly so
    values: Values | None  # of 16-bit and float pictures
    value_range: str  # the --range to pass; "": the default fits
    channels: int
    train: int
    held_out: int
    split_rule: str
    pack_bytes: int
    memory_bytes: int
    recommended_size: tuple[int, int] | None  # without --size
    asked_size: tuple[int, int] | None  # by --size
    command: str  # what to run next; "": nothing can be trained on this
    notes: tuple[str, ...]
    problem: str  # why nothing can be trained on this; "": nothing is in the way

    @property
    def exit_status(self) -> int:
        """1 if no training on the source is possible, else 0."""
        return 1 if self.problem else 0

    def as_dict(self) -> dict[str, Any]:
        """All findings as JSON values."""
        found = asdict(self)
        for name in ("skipped", "ignored"):
            found[name] = [{"name": entry.name, "reason": entry.reason} for entry in getattr(self, name)]
        found["values"] = self.values._asdict() if self.values else None
        return found

    def text(self) -> str:
        """The findings for people, at most 80 columns wide except for names."""
        return "\n".join(_lines(self))


def check(data: str | Path | DataConfig, *, cache: Path | None = None, progress: Progress | None = None) -> CheckReport:
    """Check every picture of a source by packing it, and report the findings.

    Args:
        data: a source, or a DataConfig that also says how to read it.
        cache: the directory of packs; None: as the environment says.
        progress: called at intervals with the numbers of finished pictures and of all.

    Pictures that cannot be used are findings, not errors, and so is a lack of pictures.

    Raises:
        DataError: the source is missing or unreadable, or config.strict is on and a picture is bad.
    """
    config = data if isinstance(data, DataConfig) else DataConfig(source=str(data))
    try:
        pack = prepare(config, cache=cache, progress=progress)
    except TooFewPictures as error:
        return _report_too_few(config, error)
    return _report(config, pack)


def _report(config: DataConfig, pack: PackedDataset) -> CheckReport:
    survey = pack.survey()
    names = survey["names"]
    groups = exact_duplicates(pack.images)
    near = near_duplicates(np.asarray(pack.images), skip={i for group in groups for i in group[1:]})
    classes = _class_counts(pack)
    size = recommended_size(_expand(survey["sizes"]))
    value_range = _range_to_use(config, pack.values)
    notes = [*survey["notes"], *all_notes(pack), *balance_notes(pack)]
    if not near.complete:
        notes.append(
            "So many pictures are alike that not all pairs were compared: further near duplicates may be there."
        )
    return CheckReport(
        source=config.source,
        pictures=len(pack),
        skipped=pack.skipped,
        other_files=survey["other_files"],
        ignored=tuple(Skipped(*entry) for entry in survey["ignored"]),
        formats=survey["formats"],
        modes=survey["modes"],
        sizes=_size_summary(survey["sizes"]),
        classes=classes,
        train_classes=dict(zip(pack.class_names, pack.class_counts, strict=True)),
        imbalance=_imbalance(pack),
        exact_duplicates=tuple(tuple(names[i] for i in group) for group in groups),
        near_duplicates=tuple((names[i], names[j]) for i, j in near.pairs.tolist()),
        flat=near.flat,
        leaks=tuple(_leaks(pack, [*groups, *near.pairs.tolist()], names)),
        values=pack.values,
        value_range=value_range,
        channels=pack.spec.channels,
        train=pack.learned,
        held_out=len(pack.held_out),
        split_rule=pack.split_rule,
        pack_bytes=pack.images.nbytes,
        memory_bytes=_memory(pack.spec.width, pack.spec.height),
        recommended_size=size,
        asked_size=(config.width, config.height) if config.width else None,
        command=_command(config, size, value_range),
        notes=tuple(notes),
        problem="",
    )


def _memory(width: int, height: int) -> int:
    """Bytes that training holds, roughly."""
    positions = min(width, 48) * min(height, 48)
    return _TORCH_BYTES + _MAP_BYTES * positions + _PIXEL_BYTES * width * height


def _report_too_few(config: DataConfig, error: TooFewPictures) -> CheckReport:
    survey = error.found.summary()
    out_of_range = any(entry.kind == "values out of range" for entry in error.skipped)
    value_range = suggest_range(error.values) if error.values and out_of_range else ""
    size = recommended_size(_expand(survey["sizes"])) if survey["sizes"] else None
    return CheckReport(
        source=config.source,
        pictures=len(error.found.outcomes) + len(error.found.apart) - len(error.skipped),
        skipped=error.skipped,
        other_files=survey["other_files"],
        ignored=tuple(Skipped(*entry) for entry in survey["ignored"]),
        formats=survey["formats"],
        modes=survey["modes"],
        sizes=_size_summary(survey["sizes"]),
        classes={},
        train_classes={},
        imbalance=None,
        exact_duplicates=(),
        near_duplicates=(),
        flat=0,
        leaks=(),
        values=error.values,
        value_range=value_range,
        channels=0,
        train=0,
        held_out=0,
        split_rule="",
        pack_bytes=0,
        memory_bytes=0,
        recommended_size=size,
        asked_size=(config.width, config.height) if config.width else None,
        command="",
        notes=tuple(survey["notes"]),
        problem=str(error),
    )


def _class_counts(pack: PackedDataset) -> dict[str, int]:
    if pack.labels is None:
        return {}
    counts = np.bincount(pack.labels, minlength=len(pack.class_names))
    return dict(zip(pack.class_names, counts.tolist(), strict=True))


def _imbalance(pack: PackedDataset) -> float | None:
    """The ratio of the largest to the smallest class with training pictures, counting all usable pictures."""
    if pack.labels is None:
        return None
    counts = np.bincount(pack.labels, minlength=len(pack.class_names))[list(pack.spec.classes)]
    return float(counts.max() / max(1, counts.min()))


def _expand(sizes: list[list[int]]) -> list[tuple[int, int]]:
    return [(width, height) for width, height, count in sizes for _ in range(count)]


def _size_summary(sizes: list[list[int]]) -> dict[str, Any]:
    if not sizes:
        return {}
    expanded = np.array(_expand(sizes))
    common = sorted(sizes, key=lambda entry: -entry[2])[:_EXAMPLES]
    return {
        "min": expanded.min(axis=0).tolist(),
        "median": np.median(expanded, axis=0).astype(int).tolist(),
        "max": expanded.max(axis=0).tolist(),
        "distinct": len(sizes),
        "most_common": {f"{width}x{height}": count for width, height, count in common},
    }


def _leaks(pack: PackedDataset, groups: list[list[int]], names: list[str]) -> Iterator[tuple[str, str]]:
    """Exact and near duplicates across the split, which a source's own split may have."""
    held_out = set(pack.held_out.tolist())
    for group in groups:
        seen = next((i for i in group if i not in held_out), None)
        if seen is not None:
            yield from ((names[seen], names[i]) for i in group if i in held_out)


def _range_to_use(config: DataConfig, values: Values | None) -> str:
    """A better value range than the stated or default one; "" if that is suitable."""
    if values is None or config.value_range:
        return ""
    suggested = suggest_range(values)
    return "" if suggested == ("0:65535" if values.integer else "0:1") else suggested


def _command(config: DataConfig, size: tuple[int, int], value_range: str) -> str:
    width, height = (config.width, config.height) if config.width else size
    words = ["calotype", "train", "diffusion", config.source]
    words += ["--size", str(width) if width == height else f"{width}x{height}"]
    if config.fit != "crop":
        words += ["--fit", config.fit]
    if config.channels:
        words += ["--channels", str(config.channels)]
    if chosen := config.value_range or value_range:
        words += ["--range", chosen]
    if config.pages != "first":
        words += ["--pages", config.pages]
    if not config.labels:
        words += ["--no-labels"]
    if config.labels_from:
        words += ["--labels-from", config.labels_from]
    if config.stream:
        words += ["--stream"]
    return shlex.join(words)


# The text for people, one function for each part that takes more than a line.


def _lines(report: CheckReport) -> Iterator[str]:
    yield from _entry("source", report.source)
    yield from _entry("pictures", f"{report.pictures:,} usable, {len(report.skipped):,} skipped")
    if report.other_files:
        yield from _entry("other files", f"{report.other_files:,}, which are no pictures")
    if report.sizes:
        yield from _entry("formats", _counted(report.formats))
        yield from _entry("modes", _counted(report.modes))
        yield from _size_lines(report.sizes)
    if report.channels:
        yield from _entry("channels", {1: "1 (gray)", 3: "3 (RGB)", 4: "4 (RGBA)"}[report.channels])
    if report.values:
        yield from _value_lines(report, report.values)
    if report.classes:
        yield from _class_lines(report)
    if not report.problem:
        yield from _duplicate_lines(report)
        yield from _entry("training", f"{report.train:,} pictures; {report.held_out:,} held out: {report.split_rule}")
        yield from _leak_lines(report)
        yield from _entry("disk", f"{report.pack_bytes / 1e6:,.1f} MB for the packed pictures")
        yield from _entry("memory", f"about {report.memory_bytes / 1e9:.1f} GB to train ({MEMORY_ASSUMPTION})")
    yield from _skipped_lines(report.skipped)
    yield from _ignored_lines(report.ignored)
    for note in report.notes:
        yield from _entry("note", note)
    if report.recommended_size:
        yield from _entry("size", _size_advice(report))
    yield ""
    if report.problem:
        yield report.problem
    else:
        yield "Next:"
        yield f"  {report.command}"


def _size_advice(report: CheckReport) -> str:
    """The recommended training size with its reason, compared with the requested one."""
    recommended, asked = _size(report.recommended_size or (0, 0)), report.asked_size
    if asked is None:
        return f"--size {recommended} is recommended"
    if asked == report.recommended_size:
        return f"--size {recommended}, as asked for, is what is recommended"
    return (
        f"--size {_size(asked)}, as asked for; without --size it is {recommended}, which suits these pictures and what "
        "a CPU trains in reasonable time"
    )


def _size_lines(sizes: dict[str, Any]) -> Iterator[str]:
    if sizes["distinct"] == 1:
        yield from _entry("sizes", f"all {_size(sizes['min'])}")
        return
    yield from _entry(
        "sizes",
        f"width {sizes['min'][0]} to {sizes['max'][0]}, median {sizes['median'][0]}; "
        f"height {sizes['min'][1]} to {sizes['max'][1]}, median {sizes['median'][1]}; {sizes['distinct']:,} different",
    )
    yield from _entry("", "most often " + _counted(sizes["most_common"]))


def _value_lines(report: CheckReport, values: Values) -> Iterator[str]:
    text = f"{values.low:g} to {values.high:g} in 16-bit or float pictures"
    yield from _entry("values", text + (f"; pass --range {report.value_range}" if report.value_range else ""))


def _class_lines(report: CheckReport) -> Iterator[str]:
    ranked = sorted(report.classes.items(), key=lambda entry: -entry[1])
    shown = dict(ranked) if len(ranked) <= 12 else {**dict(ranked[:6]), "...": 0, **dict(ranked[-5:])}
    text = ", ".join(name if name == "..." else f"{name} {count:,}" for name, count in shown.items())
    unseen = sum(count == 0 for count in report.train_classes.values())
    without = f", {unseen:,} of them without training pictures" if unseen else ""
    yield from _entry(
        "classes", f"{len(report.classes):,}{without}, the largest {report.imbalance:.3g} times the smallest"
    )
    yield from _entry("", text)


def _duplicate_lines(report: CheckReport) -> Iterator[str]:
    copies = sum(len(group) - 1 for group in report.exact_duplicates)
    yield from _entry(
        "duplicates",
        f"{counted(copies, 'exact copy', 'exact copies')}, "
        f"{counted(len(report.near_duplicates), 'pair', 'pairs')} nearly equal (once packed)",
    )
    for group in (*report.exact_duplicates[:_EXAMPLES], *report.near_duplicates[:_EXAMPLES]):
        sign = " = " if group in report.exact_duplicates else " ~ "
        yield from _entry("", sign.join(group[:3]) + (" ..." if len(group) > 3 else ""))
    if report.flat:
        yield from _entry("flat", f"{counted(report.flat, 'picture is', 'pictures are')} of almost one colour")


def _leak_lines(report: CheckReport) -> Iterator[str]:
    if report.leaks:
        yield from _entry(
            "",
            f"{counted(len(report.leaks), 'held-out picture is', 'held-out pictures are')} also in the training split, "
            "or nearly so, such as",
        )
        for train, held_out in report.leaks[:_EXAMPLES]:
            sign = "=" if any({train, held_out} <= set(group) for group in report.exact_duplicates) else "~"
            yield from _entry("", f"{held_out} {sign} {train}")


def _skipped_lines(skipped: tuple[Skipped, ...]) -> Iterator[str]:
    for kind, count in Counter(entry.kind for entry in skipped).most_common():
        yield from _entry("skipped", f"{count:,} {kind}")
        chosen = [entry for entry in skipped if entry.kind == kind]
        for entry in chosen[:_EXAMPLES]:
            detail = entry.reason.partition(": ")[2]
            yield from _entry("", entry.name + (f": {detail}" if detail else ""))
        if count > _EXAMPLES:
            yield from _entry("", f"and {count - _EXAMPLES:,} more (--json lists all)")


def _ignored_lines(ignored: tuple[Skipped, ...]) -> Iterator[str]:
    """Lines about excluded files and folders, grouped by reason, with the remedy."""
    names: dict[str, list[str]] = {}
    for entry in ignored:
        names.setdefault(entry.reason, []).append(entry.name)
    for reason, several in names.items():
        more = f" and {len(several) - _EXAMPLES:,} more (--json lists all)" if several[_EXAMPLES:] else ""
        kind, _, remedy = reason.partition(": ")
        yield from _entry("left out", f"{', '.join(several[:_EXAMPLES])}{more}: {kind}; {remedy}")


def _entry(name: str, value: str) -> list[str]:
    """One aligned entry, wrapped."""
    indent = " " * _COLUMN
    return textwrap.wrap(
        value,
        _WIDTH,
        initial_indent=name.ljust(_COLUMN),
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _size(size: tuple[int, int] | list[int]) -> str:
    return str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"
