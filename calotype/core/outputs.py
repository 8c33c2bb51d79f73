"""The outputs of each command, and whether it may write them: checked by one function before any work is done.

A place is refused if it is not a file where a file is to be written, is one of the input files, holds anything that the
command did not write, has the suffix of another format, or is not writable. Earlier output of the same command is
replaced: Calotype recognises it by a note in its files.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from calotype.core.files import LEFTOVER, LOCK, kind, open_folder
from calotype.core.untrusted import LONGEST_SHOWN, NotPlain, open_regular
from calotype.errors import PlaceError

MANIFEST = "samples.json"  # in a folder of pictures: which model made them, see `manifests`
NUMBERED = re.compile(r"[0-9]{6,}(-[0-9]{2,})?\.png")  # pictures in a folder
FORMATS = (  # endings that promise a format
    ".png .jpg .jpeg .gif .bmp .webp .tif .tiff .svg .pdf .npz .npy .json .jsonl .html .htm .toml .txt .csv .md .zip "
    ".tar .gz .parquet .safetensors .pt .pth .py .sh .yaml .yml .xml .lock"
).split()
_HEAD = 1024  # bytes, among which the note of a file is


class Form(NamedTuple):
    """A kind of output: a file format or a folder."""

    what: str
    endings: tuple[str, ...] = ()  # of a file; others that promise a format are refused
    is_own: Callable[[bytes, bytes, str], bool] | None = None  # of the head and the end of a file, and a command
    is_folder: bool = False


def _is_png(head: bytes, end: bytes, command: str) -> bool:
    return head.startswith(b"\x89PNG") and f"tEXtSoftware\0calotype {command}".encode() in head


def _is_npz(head: bytes, end: bytes, command: str) -> bool:
    return head.startswith(b"PK") and end.endswith(npz_note(command))


def _is_report(head: bytes, end: bytes, command: str) -> bool:
    return head.startswith(b'{\n "format": ') and b'"protocol_digest"' in head


def _is_page(head: bytes, end: bytes, command: str) -> bool:
    return f'<meta name="generator" content="calotype {command}">'.encode() in head


def npz_note(command: str) -> bytes:
    """The note that identifies an npz file as the output of a command."""
    return f"calotype {command}".encode()


PNG = Form("a PNG file", (".png",), _is_png)
NPZ = Form("an npz file", (".npz",), _is_npz)
REPORT = Form("a JSON file", (".json",), _is_report)
PAGE = Form("an HTML page", (".html",), _is_page)
JOB = Form("a new file")
PICTURES = Form("a folder of PNG files", is_folder=True)
DIRECTORY = Form("a new directory", is_folder=True)

OUTPUTS: Mapping[str, Mapping[str, Form]] = {
    "check": {},
    "train": {"out": DIRECTORY},
    "sample": {"out": PICTURES, "grid": PNG, "npz": NPZ},
    "complete": {"out": PNG, "folder": PICTURES},
    "reconstruct": {"out": PNG, "folder": PICTURES},
    "invert": {"out": NPZ, "sheet": PNG},
    "interpolate": {"out": PNG, "folder": PICTURES},
    "encode": {"out": NPZ},
    "decode": {"out": PNG, "folder": PICTURES},
    "evaluate": {"out": REPORT},
    "compare": {"out": DIRECTORY},
    "plan": {},
    "launch": {"write": JOB},
    "demo": {"out": DIRECTORY},
}
"""Options that name a place, by command."""

INPUTS: Mapping[str, Sequence[str]] = {
    "check": ("data",),
    "train": ("data", "resume", "recipe", "latents"),
    "sample": ("run",),
    "complete": ("run", "pictures"),
    "reconstruct": ("run", "pictures"),
    "invert": ("run", "pictures"),
    "interpolate": ("run", "first", "last"),
    "encode": ("run", "pictures"),
    "decode": ("run", "latents"),
    "evaluate": ("subject", "data", "features"),
    "compare": ("data", "resume", "recipe", "features"),
    "plan": ("recipe",),
    "launch": (),
    "demo": (),
}
"""Arguments that name what is read, by command."""


def check_outputs(command: str, inputs: Sequence[str | Path], *, default: str = "", **places: Path | None) -> None:
    """Raise PlaceError if a command may not write to one of its outputs.

    Args:
        inputs: files and folders that it reads, except the run, in which it may write; other sources are ignored.
        default: the option that was not given, whose default path lies in the run.
        places: paths by option, as in OUTPUTS.
    """
    named = [(f"--{option}", path, OUTPUTS[command][option]) for option, path in places.items() if path is not None]
    for option, path, form in named:
        try:
            _check_output(command, inputs, option, path, form)
        except PlaceError as error:
            if option != f"--{default}":
                raise
            raise PlaceError(f"{error}. No {option} was given, so that it is a file in the run") from error
    for (option, path, form), (other, second, _) in combinations(named, 2):
        if os.path.abspath(path) == os.path.abspath(second):
            raise PlaceError(f"{option} and {other} both name {path}: choose two places")
        if form is PICTURES and path.absolute() == second.absolute().parent and NUMBERED.fullmatch(second.name):
            raise PlaceError(f"{other} {second} is named like a picture in {option} {path}: choose another name")


def _check_output(command: str, inputs: Sequence[str | Path], option: str, path: Path, form: Form) -> None:
    """Raise PlaceError if a command may not write to the path of an option."""
    try:
        _check_place(command, option, path, form)
        if form is REPORT:
            _check_place(command, f"the page of {option}", path.with_suffix(".html"), PAGE)
        for source in inputs if form is not DIRECTORY else ():  # which is new, or refused for what is in it
            _refuse_input(option, path, form, Path(source).expanduser())
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: ~nobody, or links in a circle
        reason = error.strerror if isinstance(error, OSError) else error
        raise PlaceError(f"{option} {_shown(path)} cannot be written ({reason}): choose another {option}") from error


def _check_place(command: str, option: str, path: Path, form: Form) -> None:
    """Check that a path is writable, and that its present content, if any, may be replaced."""
    ending = path.suffix.lower()
    if form.endings and ending in FORMATS and ending not in form.endings:
        raise PlaceError(
            f"{option} {path} is named like another format, but {form.what} is written: name it "
            f"{path.with_suffix(form.endings[0])}"
        )
    try:
        status = path.lstat()
    except FileNotFoundError:
        status = None
    if status is not None and form.is_folder:
        if not path.is_dir():
            raise PlaceError(
                f"{option} {path} is {_described(path, status)}, but {form.what} is made: choose another {option}"
            )
        if form is PICTURES:
            _check_pictures(command, option, path)
    elif status is not None:
        if not stat.S_ISREG(status.st_mode):
            such = f", such as {path / f'{command}{form.endings[0]}'}" if form.endings and path.is_dir() else ""
            what = f"{_described(path, status)}, but {form.what} is written"
            raise PlaceError(f"{option} {path} is {what}: name a file{such}")
        if not _is_own(path, form, command):
            whose = f", and `calotype {command}` did not write it" if form.is_own else " already"
            raise PlaceError(f"{option} {path} is there{whose}: remove it, or choose another {option}")
    _check_writable(path, form.is_folder and status is not None)


def _check_pictures(command: str, option: str, folder: Path) -> None:
    """Check that a folder holds nothing but earlier output; with a manifest, other files are allowed.

    The model and settings of the pictures are compared once the model is loaded, see `manifests`.
    """
    names = [entry.name for entry in os.scandir(folder) if not LEFTOVER.fullmatch(entry.name)]
    listed = MANIFEST in names
    for name in sorted(names):
        if name in (LOCK, MANIFEST):
            continue
        if NUMBERED.fullmatch(name):
            with suppress(OSError, NotPlain):
                if not (folder / name).is_symlink() and _is_own(folder / name, PNG, command):
                    continue
        elif listed:
            continue
        raise PlaceError(
            f"{option} {folder} is not empty and has {name}, which `calotype {command}` did not write: choose another "
            f"{option}"
        )


def _is_own(path: Path, form: Form, command: str) -> bool:
    """Whether the command wrote a file, by its note."""
    with open_regular(path) as file:
        head = file.read(_HEAD)
        file.seek(-min(_HEAD, os.fstat(file.fileno()).st_size), os.SEEK_END)
        return form.is_own is not None and form.is_own(head, file.read(), command)


def _check_writable(path: Path, is_there: bool) -> None:
    """Raise OSError if a path is not writable, by trying; folders above it may be missing."""
    folder, missing = (path, []) if is_there else (path.parent, [path.name])
    while not folder.is_dir() and not os.path.lexists(folder):
        missing.append(folder.name)
        folder = folder.parent
    with open_folder(folder) as opened:
        if max((len(os.fsencode(name)) for name in missing), default=0) > os.pathconf(folder, "PC_NAME_MAX"):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        opened.check_writable()


def _refuse_input(option: str, path: Path, form: Form, source: Path) -> None:
    try:
        there = source.stat()
    except (OSError, ValueError):  # a source that is no path, or is refused where it is read
        return
    if path.exists() and os.path.samestat(path.stat(), there):
        raise PlaceError(f"{option} {path} is what is read, and would be replaced: choose another {option}")
    if form is PICTURES and path.resolve().is_relative_to(source.resolve()):
        raise PlaceError(f"{option} {path} lies in {source}, whose pictures are read: choose another {option}")


def _described(path: Path, status: os.stat_result) -> str:
    return f"a link to {os.readlink(path)}" if stat.S_ISLNK(status.st_mode) else kind(status)


def _shown(path: Path) -> str:
    text = str(path)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."
