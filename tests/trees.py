"""Trees of files as folders, and as archives the way different programs write them."""

from __future__ import annotations

import io
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

Tree = Mapping[str, bytes]  # content by relative name

WINDOWS, UNIX = 0, 3  # systems, as a zip names them


def write_folder(root: Path, tree: Tree) -> Path:
    for name, content in tree.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    root.mkdir(exist_ok=True)
    return root


def write_zip(path: Path, tree: Tree, system: int = UNIX, utf8: bool = True) -> Path:
    """A zip whose names are exactly those of the tree; without `utf8` they are UTF-8 that nothing says to be so."""
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a name is there twice
        for name, content in tree.items():
            info = zipfile.ZipInfo("x")
            info.filename, info.create_system = name, system
            archive.writestr(info, content)
    if not utf8:
        clear_utf8_flags(path)
    return path


def clear_utf8_flags(path: Path) -> None:
    """Take the flag from all entries that says that their names are UTF-8."""
    data = bytearray(path.read_bytes())
    for mark, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        place = data.find(mark)
        while place >= 0:
            data[place + at + 1] &= ~0x08
            place = data.find(mark, place + 4)
    path.write_bytes(data)


def write_tar(path: Path, tree: Tree, mode: str = "w", kind: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, mode, format=kind) as archive:  # type: ignore[call-overload]
        for name, content in tree.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def renamed(tree: Tree, rename: Callable[[str], str]) -> dict[str, bytes]:
    return {rename(name): content for name, content in tree.items()}


def backslashed(name: str) -> str:
    return name.replace("/", "\\")


# Each as: writes a tree below a folder, and gives the path.
ARCHIVES: dict[str, Callable[[Path, Tree], Path]] = {
    "zip": lambda root, tree: write_zip(root / "a.zip", tree),
    "zip in a folder": lambda root, tree: write_zip(root / "a.zip", renamed(tree, lambda n: f"my photos/{n}")),
    "zip of ./": lambda root, tree: write_zip(root / "a.zip", renamed(tree, lambda n: f"./{n}")),
    "zip of //": lambda root, tree: write_zip(root / "a.zip", renamed(tree, lambda n: "/" + n.replace("/", "//"))),
    "zip of ..": lambda root, tree: write_zip(root / "a.zip", renamed(tree, lambda n: f"../x/../{n}")),
    "zip without the flag": lambda root, tree: write_zip(root / "a.zip", tree, utf8=False),
    "zip of Windows": lambda root, tree: write_zip(root / "a.zip", renamed(tree, backslashed), WINDOWS),
    "zip of Windows, mixed": lambda root, tree: write_zip(
        root / "a.zip", renamed(tree, lambda n: "photos/" + backslashed(n)), WINDOWS
    ),
    "zip of backslashes": lambda root, tree: write_zip(root / "a.zip", renamed(tree, backslashed)),
    "zip of a drive": lambda root, tree: write_zip(
        root / "a.zip", renamed(tree, lambda n: "C:\\photos\\" + backslashed(n))
    ),
    "tar": lambda root, tree: write_tar(root / "a.tar", tree),
    "tar of ./": lambda root, tree: write_tar(root / "a.tar", renamed(tree, lambda n: f"./{n}")),
    "tar of long names": lambda root, tree: write_tar(
        root / "a.tar", renamed(tree, lambda n: f"{'long' * 60}/{n}"), kind=tarfile.GNU_FORMAT
    ),
    "tar of backslashes": lambda root, tree: write_tar(root / "a.tar", renamed(tree, backslashed)),
    "tar.gz": lambda root, tree: write_tar(root / "a.tar.gz", tree, "w:gz"),
}
