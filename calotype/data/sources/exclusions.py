"""Files beside pictures that are excluded from training: system folders, thumbnails, masks, label files and others.

There is one table each for folders, for files by name, and for files by suffix. Everything excluded is listed by name,
with the reason and the remedy.
"""

from __future__ import annotations

import os.path
import re
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from pathlib import PurePosixPath
from typing import NamedTuple

from calotype.core.outputs import MANIFEST
from calotype.data.records import Skipped


class Why(NamedTuple):
    """The reason for an exclusion, and how to include the files nevertheless."""

    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.reason}: {self.remedy}"


def _each(groups: Mapping[str, Why], separator: str = " ") -> dict[str, Why]:
    """A table with an entry for each name of its keys."""
    return {name: why for names, why in groups.items() for name in names.split(separator)}


_RENAME = "rename it, or give it by itself, to learn from what is in it"

HIDDEN = Why("hidden, since its name begins with a dot", _RENAME)

SYSTEM_FOLDERS = _each(
    {
        "__macosx|network trash folder|temporary items": Why("a system folder of macOS", _RENAME),
        "$recycle.bin|recycler|recycled|#recycle|@recycle": Why("a recycle bin", _RENAME),
        "system volume information|found.000|$windows.~bt": Why("a system folder of Windows", _RENAME),
        "lost+found": Why("what a check of the disk recovered", _RENAME),
        "@eadir|@__thumb|@tmp|#snapshot|@recently-snapshot": Why("previews and data of a network drive", _RENAME),
        "_vti_cnf|_vti_pvt|_notes": Why("data of a web editor", _RENAME),
        "__pycache__|node_modules|site-packages|cvs": Why("a folder of programs", _RENAME),
    },
    "|",
)
"""Never looked into, at any depth, whatever the case of their names."""

SYSTEM_FILES = _each(
    {
        "thumbs.db ehthumbs.db ehthumbs_vista.db": Why("thumbnails of Windows", "nothing has to be done"),
        "desktop.ini folder.ini picasa.ini": Why("settings of a folder", "nothing has to be done"),
    }
)

# Folders and files with a second version of each picture. Such words are also names of classes: what is so named is
# left out only where it has the same names as other pictures.
_BY_ITSELF = "give it by itself, or rename it, to learn from it"
COMPANION_FOLDERS = _each(
    {
        "mask masks binary_masks masks_png seg segs segmentation segmentations segmentation_mask segmentation_masks "
        "segmentationclass segmentationclassaug segmentationclassraw segmentationobject semantic instances label "
        "labels label_images labels_png annotation annotations annots ground_truth groundtruth ground-truth gt gts "
        "gtfine gtcoarse trimap trimaps matte mattes depth depths depth_maps edges train_masks test_masks val_masks "
        "train_labels test_labels val_labels image_masks img_masks": Why("masks", _BY_ITSELF),
        "thumbnail thumbnails thumb thumbs _thumbs _thumb previews preview @2x @3x": Why(
            "other versions of pictures", _BY_ITSELF
        ),
    }
)
# Of these, words that may well be a class beside another: left out only beside a folder that is named as pictures are.
_WORDS = frozenset("mask label depth edges seg matte semantic instances annotation thumb preview".split())
_PICTURE_FOLDERS = frozenset(
    (
        "image images img imgs jpegimages picture pictures photo photos input inputs rgb original originals orig "
        "source data frames color colour leftimg8bit train test val valid validation jpg jpeg png"
    ).split()
)
COMPANION_ENDINGS = _each(
    {
        "_mask -mask .mask _masks _seg -seg .seg _segmentation .segmentation _gt -gt .gt _groundtruth _ground_truth "
        "_label .label _labels _trimap .trimap _matte .matte _depth .depth": Why(
            "a mask, going by its name and by a picture of the same name without the ending",
            "move such files into a folder of their own, and give that, to learn from them",
        ),
        "_thumb -thumb .thumb _thumbnail -thumbnail .thumbnail @2x @3x": Why(
            "another version of a picture of the same name without the ending",
            "move such files into a folder of their own, and give that, to learn from them",
        ),
    }
)

_ENDING = re.compile(
    "(?<=[^/])(?:" + "|".join(re.escape(ending) for ending in sorted(COMPANION_ENDINGS, key=len, reverse=True)) + ")$",
    re.IGNORECASE,
)

_LABELS = "make a metadata.csv with the columns file_name and label of it, and give --labels-from metadata.csv:label"
_ARCHIVE = Why("an archive beside pictures, which is not opened", "unpack it, or give it by itself")

LABEL_FILES = _each(
    {
        "classes.txt obj.names names.txt labels.txt label.txt categories.txt": Why("names of classes", _LABELS),
        "data.yaml dataset.yaml data.yml": Why("classes of a detector's data set", _LABELS),
        "instances.json annotations.json _annotations.coco.json instances_train2017.json instances_val2017.json "
        "captions.json": Why("annotations, such as COCO's", _LABELS),
        "_classes.csv _annotations.csv annotations.csv": Why("annotations", _LABELS),
    }
)
"""Files that say something about pictures, and are not understood, by name."""

SUFFIXES = _each(
    {
        ".csv .tsv .json .jsonl": Why(
            "a table or JSON, which is not read", "give --labels-from FILE:COLUMN if a column of it is the classes"
        ),
        ".xml": Why("XML, such as annotations of Pascal VOC, which are not read", _LABELS),
        ".cls": Why("a class of WebDataset, and no picture is named so", "give it the name of its picture"),
        ".mat .h5 .hdf5": Why(
            "arrays of MATLAB or HDF5, which are not read", "save them as .npz with images and labels"
        ),
        ".npy .npz": Why("an array beside pictures, which is not read", "give it by itself"),
        ".parquet": Why("a Parquet file beside pictures, which is not read", "give it by itself"),
        ".tar .tgz .tbz .tbz2 .txz .zip .gz .bz2 .xz .7z .rar .zst": _ARCHIVE,
        ".pt .pth .pkl .safetensors .ckpt .onnx": Why("weights or data of a program", "nothing has to be done"),
        ".mov .mp4 .avi .mkv .webm .m4v .wmv .mpg .mpeg": Why(
            "a film", "save its frames as pictures, such as by ffmpeg -i FILM frames/%06d.png"
        ),
        ".wav .mp3 .ogg .flac .m4a": Why("sound", "nothing has to be done"),
        ".pdf .doc .docx .odt .ppt .pptx": Why(
            "a document", "save its pages as pictures, such as by pdftoppm -png DOCUMENT pages"
        ),
        ".txt .md .rst .tex .log .htm .html .ini .toml .yaml .yml .cfg .db .sqlite .xls .xlsx": Why(
            "text or data, no picture", "nothing has to be done, unless classes are in it: see --labels-from"
        ),
        ".py .ipynb .sh .bat .js .css .exe .dll": Why("a program", "nothing has to be done"),
        ".xmp .aae .thm .lrv .pp3 .dop .on1": Why("settings of an editor or a camera", "nothing has to be done"),
    }
)
"""Files so named are never opened to see whether they are pictures: they often lie beside each one."""

UNKNOWN = Why(
    "unknown, by name and by its first bytes", "save it as PNG if it is a picture; nothing has to be done if it is none"
)

_LOOKED_AT = 100  # pictures of a folder whose names are compared, spread over it


def why_system(name: str, folder: bool) -> Why | None:
    """The reason to exclude a file or folder by its own name; None if there is none."""
    if name.startswith("."):
        return HIDDEN
    return (SYSTEM_FOLDERS if folder else SYSTEM_FILES).get(name.lower())


def why_made(names: Set[str]) -> Why | None:
    """The reason to exclude a folder among pictures by the files in it; None if there is none."""
    if "compare.toml" in names or ("config.toml" in names and names & {"checkpoints", "log.jsonl"}):
        return Why("a run or a comparison of Calotype", "nothing has to be done")
    return (
        Why("images that Calotype drew", "give the folder by itself to learn from them") if MANIFEST in names else None
    )


def system_part(name: str) -> Skipped | None:
    """The outermost excluded part of a relative name, with the reason; a folder ends in "/"."""
    parts = name.split("/")
    for k, part in enumerate(parts):
        folder = k < len(parts) - 1
        why = why_system(part, folder)
        if why is not None:
            return Skipped("/".join(parts[: k + 1]) + ("/" if folder else ""), str(why))
    return None


def why_other(name: str) -> Why:
    """The reason to exclude a file that is not a picture."""
    path = PurePosixPath(name)
    return LABEL_FILES.get(path.name.lower()) or SUFFIXES.get(path.suffix.lower(), UNKNOWN)


class Companions(NamedTuple):
    """Companions of pictures, such as masks and thumbnails, and notes on uncertain ones."""

    names: frozenset[str]
    ignored: tuple[Skipped, ...]
    notes: tuple[str, ...]


def companions(names: Sequence[str]) -> Companions:
    """Find masks and thumbnails among relative names of pictures.

    A folder with a name for masks is a mask folder if more than half of its pictures have
    the names of pictures in one folder beside it, possibly with an ending such as _mask. If two folders beside it have
    those names, the names are numbers, and the folder is a class like the others. A file with such an ending is a mask
    if the picture without the ending lies beside it.
    """
    folders = _companion_folders(names)
    inside = {name for members in folders.values() for name in members}
    bares = {_bare(name) for name in names}
    ended = {
        name: ending for name in names if (ending := _ending(bare := _bare(name))) and bare[: -len(ending)] in bares
    }
    tree = _Tree.of([name for name in names if name not in inside and name not in ended] if folders else ())
    found: set[str] = set()
    ignored: list[Skipped] = []
    notes: list[str] = []
    for folder, members in folders.items():
        why, like = COMPANION_FOLDERS[PurePosixPath(folder).name.lower()], tree.like(folder, members)
        if like:
            found |= set(members)
            reason = f"{why.reason} by its name, and its pictures have the names of others, such as {like}"
            ignored.append(Skipped(f"{folder}/", str(Why(reason, why.remedy))))
        elif PurePosixPath(folder).name.lower() not in _WORDS:
            notes.append(
                f"The folder {folder} is named as {why.reason} are, but its pictures are not named as others: they are "
                "learned; take it out if they should not be."
            )
    ignored += [Skipped(name, str(COMPANION_ENDINGS[ending])) for name, ending in ended.items() if name not in found]
    return Companions(frozenset(found | set(ended)), tuple(ignored), tuple(notes))


class _Tree(NamedTuple):
    """The pictures outside folders with names for masks, without suffixes."""

    bare: dict[str, str]  # the name without its suffix: the name
    folders: dict[str, set[str]]  # of each folder, those in it
    stems: Counter[str]

    @classmethod
    def of(cls, names: Sequence[str]) -> _Tree:
        bare: dict[str, str] = {}
        folders: dict[str, set[str]] = {}
        for name in names:
            bare[_bare(name)] = name
            parts = name.split("/")
            for k in range(len(parts) - 1):
                folders.setdefault("/".join(parts[:k]), set()).add(parts[k])
        return cls(bare, folders, Counter(_bare(name).rpartition("/")[2] for name in names))

    def like(self, folder: str, members: Sequence[str]) -> str:
        """A picture whose companion is in a folder, or nothing if the folder has pictures of its own."""
        parent, _, own = folder.rpartition("/")
        looked_at = members[:: -(-len(members) // _LOOKED_AT)]
        rests = [_bare(name[len(folder) + 1 :]) for name in looked_at]
        plain = [_plain(rest) for rest in rests]
        ended = sum(a != b for a, b in zip(rests, plain, strict=True)) > len(rests) / 2
        word = own.lower() in _WORDS and not ended
        beside = sorted(self.folders.get(parent, ()))
        bases = [parent, *(f"{parent}/{name}".lstrip("/") for name in beside)]
        hits = {base: self._hits(base, list(zip(plain, rests, strict=True))) for base in bases}
        hits = {base: found for base, found in hits.items() if len(found) > len(rests) / 2}
        if len(hits) > 1 and not ended:
            return ""
        for base, found in hits.items():
            named = base == parent or PurePosixPath(base).name.lower() in _PICTURE_FOLDERS
            return found[0] if named or not word else ""
        if word or sum(self.stems[PurePosixPath(rest).name] == 1 for rest in plain) <= len(plain) / 2:
            return ""
        stem = next(PurePosixPath(rest).name for rest in plain if self.stems[PurePosixPath(rest).name] == 1)
        return next(name for bare, name in self.bare.items() if PurePosixPath(bare).name == stem)

    def _hits(self, base: str, rests: Sequence[tuple[str, str]]) -> list[str]:
        """For each pair of names, one of which is to be below a folder, the picture that is."""
        before = f"{base}/" if base else ""
        keys = [next((before + rest for rest in pair if before + rest in self.bare), "") for pair in rests]
        return [self.bare[key] for key in keys if key]


def _companion_folders(names: Sequence[str]) -> dict[str, list[str]]:
    """The outermost folders with names for masks, each with its pictures; not one around all of them."""
    found: dict[str, list[str]] = {}
    for name in names:
        parts = name.split("/")
        at = next((k for k, part in enumerate(parts[:-1]) if part.lower() in COMPANION_FOLDERS), None)
        if at is not None:
            found.setdefault("/".join(parts[: at + 1]), []).append(name)
    return {folder: members for folder, members in found.items() if len(members) < len(names)}


def _bare(name: str) -> str:
    """A name without its suffix."""
    return os.path.splitext(name)[0]


def _ending(bare: str) -> str:
    """The ending of a name without suffix that marks a companion of a picture."""
    found = _ENDING.search(bare)
    return found[0].lower() if found else ""


def _plain(bare: str) -> str:
    ending = _ending(bare)
    return bare[: -len(ending)] if ending else bare
