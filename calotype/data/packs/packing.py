"""Decoding and fitting the pictures of a source once, into a pack; an existing pack is reused."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from calotype.core.caches import cache_folder
from calotype.core.files import write_new
from calotype.core.model import ImageSpec
from calotype.core.untrusted import read_json
from calotype.data.config import DataConfig
from calotype.data.decode import decode, quiet_pillow
from calotype.data.decoding.fit import fit_picture
from calotype.data.decoding.values import suggest_range
from calotype.data.duplicates import near_duplicates
from calotype.data.notes import check_names, listed
from calotype.data.packs.cache import new_pack, pack_path, slug, unusable
from calotype.data.packs.packed import (
    DATASET,
    FORMAT,
    IMAGES,
    LABELS,
    MOST_BYTES,
    SPLIT,
    SURVEY,
    PackedDataset,
    content_digest,
    facts_of,
    open_or_none,
    pixel_hash,
)
from calotype.data.packs.parallel import ordered_map
from calotype.data.packs.split import RULES, SplitResult, last_held_out, nothing_held_out, own_split, split_by_hash
from calotype.data.packs.stream import digest as stream_digest
from calotype.data.packs.stream import look
from calotype.data.packs.survey import Progress, Survey, resolve, strict_error, survey
from calotype.data.records import BadPicture, Facts, Record, Skipped, Source, Split, Values, in_memory
from calotype.data.sources.sources import Location, locate, open_source
from calotype.errors import DataError

_REASONS = 5  # why files were left out, in the error for a source without pictures

VALUE_RULE = (
    "byte = round(255 (v - low) / (high - low)) for pictures of more than 8 bits and of floats, with value_range, or "
    "0:65535 for integers and 0:1 for floats"
)


class TooFewPictures(DataError):
    """Too few pictures to train on; the error carries the findings."""

    def __init__(self, message: str, found: Survey, skipped: tuple[Skipped, ...], values: Values | None) -> None:
        super().__init__(message)
        self.found, self.skipped, self.values = found, skipped, values


class _Fitted(NamedTuple):
    """A decoded and fitted picture."""

    name: str
    pixels: NDArray[np.uint8]  # (H, W, C)
    hash: bytes  # 16, of the pixels
    label: int | None
    split: Split | None
    file: str  # of which it is a page
    values: Values | None


class _Failed(NamedTuple):
    skipped: Skipped
    values: Values | None


@dataclass(slots=True)
class _Contents:
    """The contents of a pack besides the pixels, collected picture by picture."""

    names: list[str] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    own_split: list[Split | None] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    values: Values | None = None


def prepare(config: DataConfig, *, cache: Path | None = None, progress: Progress | None = None) -> PackedDataset:
    """The pack of a source: from the cache if the source is unchanged or missing, else a new one.

    Args:
        config: the source, and the conversion of its pictures.
        cache: the directory of packs; None: as the environment says.
        progress: called in this thread at intervals, with the numbers of finished pictures and of all.

    Raises:
        DataError: the source cannot be read, has too few usable pictures, or the disk has no room.
    """
    packs = cache_folder("packs", cache)
    if config.stream:
        return _streamed(packs, cache_folder("shards", cache), config, progress)
    location = locate(config.source)
    config = replace(config, source=location.address)
    pack = _find_pack(packs, location, config)
    if pack is None:
        source = open_source(location, config)
        found = survey(source, strict=config.strict, progress=progress)
        if len(found.facts) < config.fewest:
            raise _too_few(config, len(found.facts), found, found.skipped, None)
        resolved = resolve(config, source, found)
        pack = _find_pack(packs, location, resolved) or _build(
            packs, location, config, resolved, source, found, progress
        )
    if config.strict and pack.skipped:
        raise strict_error(pack.skipped[0])
    return pack


def _streamed(packs: Path, notes: Path, config: DataConfig, progress: Progress | None) -> PackedDataset:
    """The pack of a sample of a source in shards, with the stream of the others."""
    address = config.source if "://" in config.source else str(Path(config.source).expanduser().absolute())
    config = replace(config, source=address)
    looked = look(address, config.labels, notes)
    location = Location("path", address, looked.stream.fingerprint)
    pack = _find_pack(packs, location, config)
    if pack is None:
        source = looked.source()
        found = survey(source, strict=config.strict, progress=progress)
        if len(found.facts) < config.fewest:
            raise _too_few(config, len(found.facts), found, found.skipped, None)
        resolved = resolve(config, source, found)
        pack = _find_pack(packs, location, resolved) or _build(
            packs, location, config, resolved, source, found, progress
        )
    if config.strict and pack.skipped:
        raise strict_error(pack.skipped[0])
    stream = looked.stream.fitted(replace(pack.config, strict=config.strict), pack.spec)
    return replace(pack, stream=stream, digest=stream_digest(pack.digest, stream), split_rule=looked.rule)


def _settings(config: DataConfig) -> dict[str, Any]:
    """The settings that determine the contents of a pack, without the source. Strictness is not one of them."""
    return {name: value for name, value in asdict(config).items() if name not in ("source", "strict")}


def _find_pack(packs: Path, location: Location, config: DataConfig) -> PackedDataset | None:
    """A pack with these settings, resolved or as requested, if the source is unchanged or missing."""
    fallback = None
    try:
        found = sorted(packs.glob(f"{slug(location.address)}-*"))
    except OSError as error:
        raise unusable(packs, 0, error) from None
    for path in found:
        pack = open_or_none(path)
        if pack is None or pack.config.source != location.address:
            continue
        if _settings(config) not in (_settings(pack.config), _requested(pack)):
            continue
        if location.fingerprint is not None and pack.split_rule not in RULES:
            continue
        if location.fingerprint not in (pack.fingerprint, None) or not pack.is_whole():
            continue
        if location.fingerprint is not None:
            return pack
        fallback = pack
    return fallback


def is_gone(config: DataConfig) -> bool:
    """Whether a source is a path that does not exist."""
    if config.stream:
        return "://" not in config.source and not Path(config.source).expanduser().exists()
    location = locate(config.source)
    return location.kind == "path" and location.fingerprint is None


def find_same(config: DataConfig, digest: str, *, cache: Path | None = None) -> PackedDataset | None:
    """The pack in the cache with this digest and these settings, from any source."""
    for path in sorted(cache_folder("packs", cache).glob("*")):
        pack = None if config.stream else open_or_none(path)
        if pack is not None and pack.digest == digest and _settings(pack.config) == _settings(config):
            return pack
    return None


def _requested(pack: PackedDataset) -> Any:
    """The requested settings, before open ones were resolved from the pictures."""
    try:
        return read_json(pack.path / DATASET, MOST_BYTES).get("requested")
    except (OSError, ValueError, AttributeError):  # replaced since it was opened
        return None


def _build(
    packs: Path,
    location: Location,
    asked: DataConfig,
    config: DataConfig,
    source: Source,
    found: Survey,
    progress: Progress | None,
) -> PackedDataset:
    target = pack_path(packs, location.address, _settings(config))
    spec = ImageSpec(config.channels, config.height, config.width, len(source.class_names) if config.labels else 0)
    class_names = source.class_names if config.labels else ()
    check_names(class_names)
    # Per picture also a label, a side, and about 100 bytes of name.
    with new_pack(target, needed=len(found.facts) * (spec.dims + 128)) as folder:
        contents = _write_images(folder / IMAGES, source, found, config, len(class_names), progress)
        skipped = tuple(found.skipped) + tuple(contents.skipped)
        if len(contents.names) < config.fewest:
            raise _too_few(config, len(contents.names), found, skipped, contents.values)
        split = _split(contents, folder / IMAGES, spec, config)
        _check_held_out(source, contents, split)
        _write_arrays(folder, contents, split)
        listed = _json({**found.summary(), "names": contents.names})
        write_new(folder / SURVEY, lambda file: file.write(listed))
        about = {
            "format": FORMAT,
            "spec": facts_of(spec),
            "class_names": class_names,
            **_class_counts(source, contents, split),
            "counts": _counts(contents, split, len(skipped), found.other_files),
            "split_rule": split.rule,
            "value_rule": VALUE_RULE,
            "digest": content_digest(spec, class_names, contents.hashes, contents.labels, split.held_out),
            "source": location.address,
            "fingerprint": location.fingerprint,
            "settings": asdict(replace(config, strict=False)),
            "requested": _settings(asked),
            "values": contents.values,
            "skipped": skipped,
        }
        write_new(folder / DATASET, lambda file: file.write(_json(about)))
    return PackedDataset.open(target)


def _write_images(
    path: Path, source: Source, found: Survey, config: DataConfig, num_classes: int, progress: Progress | None
) -> _Contents:
    """Decode, fit and append every usable picture, in the order of the source."""
    contents = _Contents()
    total = len(found.facts)
    pairs = zip(source.records(), found.outcomes, strict=True)
    usable = (record for record, outcome in pairs if isinstance(outcome, Facts))

    def fit(record: Record) -> _Fitted | _Failed:
        return _fit(record, config)

    def write(file: BinaryIO) -> None:
        for done, result in enumerate(ordered_map(fit, usable, in_memory), 1):
            if isinstance(result, _Failed):
                if config.strict:
                    raise strict_error(result.skipped)
                contents.skipped.append(result.skipped)
            else:
                file.write(result.pixels.data)
                _gather(contents, result, num_classes)
            if result.values:
                contents.values = result.values.union(contents.values)
            if progress and (done % 64 == 0 or done == total):
                progress(done, total)

    with quiet_pillow():
        write_new(path, write)
    return contents


def _fit(record: Record, config: DataConfig) -> _Fitted | _Failed:
    """Load, decode and fit one picture; runs in a worker thread."""
    try:
        loaded = record.load()
        # Twice the final size leaves the resize enough to do the filtering.
        decoded = decode(loaded, config.range(), min_side=2 * max(config.width, config.height))
    except BadPicture as error:
        return _Failed(Skipped(record.name, error.reason), error.values)
    except OSError as error:
        return _Failed(Skipped(record.name, f"cannot be read: {error.strerror or error}"), None)
    pixels = fit_picture(
        decoded.pixels, width=config.width, height=config.height, channels=config.channels, fit=config.fit
    )
    return _Fitted(record.name, pixels, pixel_hash(pixels), loaded.label, record.split, record.file, decoded.values)


def _gather(contents: _Contents, fitted: _Fitted, num_classes: int) -> None:
    if num_classes:
        if fitted.label is None or not 0 <= fitted.label < num_classes:
            raise DataError(
                f"{fitted.name} has the label {fitted.label}, but there are the classes 0 to {num_classes - 1}: "
                "mend the label, or pass over all labels with --no-labels (data.labels = false)"
            )
        contents.labels.append(fitted.label)
    contents.names.append(fitted.name)
    contents.hashes.append(fitted.hash)
    contents.own_split.append(fitted.split)
    contents.files.append(fitted.file)


def _split(contents: _Contents, images: Path, spec: ImageSpec, config: DataConfig) -> SplitResult:
    """The split of the packed pictures."""
    count = len(contents.names)
    if not config.to_learn:
        return nothing_held_out(count)
    if own := own_split(contents.own_split):
        return own
    if len(set(contents.files)) == 1 and contents.files[0]:
        return last_held_out(count)
    pixels = np.memmap(images, np.uint8, "r", shape=(count, spec.height, spec.width, spec.channels))
    hashes = np.frombuffer(b"".join(contents.hashes), np.uint64)[::2]
    copies = set(range(count)) - set(np.unique(hashes, return_index=True)[1].tolist())
    labels = np.array(contents.labels, np.int64) if contents.labels else None
    near = np.concatenate([near_duplicates(pixels, copies).pairs, _pages(contents.files)])
    return split_by_hash(hashes, near, labels)


def _pages(files: Sequence[str]) -> NDArray[np.int64]:
    """Pairs (P, 2) of the first and each other page of a file, which belong on the same side of the split."""
    first: dict[str, int] = {}
    pairs = [(first.setdefault(file, k), k) for k, file in enumerate(files) if file]
    return np.array([pair for pair in pairs if pair[0] != pair[1]], np.int64).reshape(-1, 2)


def _write_arrays(folder: Path, contents: _Contents, split: SplitResult) -> None:
    arrays = {SPLIT: split.held_out.astype(np.uint8)}
    if contents.labels:
        arrays[LABELS] = np.array(contents.labels, np.int64)
    for name, array in arrays.items():
        write_new(folder / name, partial(np.save, arr=array, allow_pickle=False))


def _counts(contents: _Contents, split: SplitResult, skipped: int, other_files: int) -> dict[str, int]:
    held_out = int(split.held_out.sum())
    pictures = len(contents.names)
    return {
        "pictures": pictures,
        "train": pictures - held_out,
        "held_out": held_out,
        "skipped": skipped,
        "other_files": other_files,
    }


def _class_counts(source: Source, contents: _Contents, split: SplitResult) -> dict[str, tuple[int, ...]]:
    """The number of training pictures of each class, as an entry of the pack; none without classes."""
    if not contents.labels:
        return {}
    told = np.array(contents.labels)[~split.held_out]
    return {"class_counts": source.class_counts or tuple(np.bincount(told, minlength=len(source.class_names)).tolist())}


def _check_held_out(source: Source, contents: _Contents, split: SplitResult) -> None:
    """Raise DataError if all held-out pictures belong to classes without training pictures."""
    counts = np.array(_class_counts(source, contents, split).get("class_counts", ()))
    labels = np.array(contents.labels, np.int64)
    if not len(labels) or not split.held_out.any() or (counts[labels[split.held_out]] > 0).any():
        return
    unseen = [source.class_names[k] for k in np.unique(labels[split.held_out]).tolist()]
    raise DataError(
        f"all {int(split.held_out.sum())} held-out pictures are of classes without training pictures, "
        f"{listed(unseen)}, so nothing can be measured: add training pictures of these classes or held-out ones of "
        "others, or leave classes out with --no-labels"
    )


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=True).encode()


def _too_few(
    config: DataConfig, usable: int, found: Survey, skipped: tuple[Skipped, ...], values: Values | None
) -> TooFewPictures:
    """The error for too few pictures, with the count and an example of each kind of failure."""
    needed = f"a model needs at least {config.fewest}" if config.to_learn else "there must be one to measure"
    lines = [f"{config.source} has {usable or 'no'} usable pictures, but {needed}."]
    for kind, count in Counter(entry.kind for entry in skipped).most_common():
        example = next(entry for entry in skipped if entry.kind == kind)
        lines.append(f"  {count} skipped, {kind}: such as {example.name} ({example.reason})")
    for reason, count in Counter(entry.reason for entry in found.ignored).most_common(_REASONS):
        example = next(entry for entry in found.ignored if entry.reason == reason)
        lines.append(f"  {count} left out: such as {example.name} ({reason})")
    if found.other_files and not found.ignored:
        lines.append(f"  {found.other_files} other files, which are no pictures by name and content")
    if values and any(entry.kind == "values out of range" for entry in skipped):
        lines.append(f"All values lie from {values.low:g} to {values.high:g}: pass --range {suggest_range(values)}")
    else:
        lines.append("Add pictures, or mend those above.")
    return TooFewPictures("\n".join(lines), found, skipped, values)
