"""NumPy files, read only if their shape and type are as expected: a few bytes may claim any shape."""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from calotype.core.files import write_atomic
from calotype.core.outputs import npz_note
from calotype.core.untrusted import NotPlain, check_regular

MOST_BYTES = 1 << 30
"""Of an array that is read whole."""

DAMAGE = (OSError, ValueError, EOFError, KeyError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What reading a damaged or hostile file raises: of NumPy, of zip archives, and of a password."""


class Header(NamedTuple):
    """The claimed shape and type of an array."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """The bytes of all values."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(file: Any) -> Header:
    """The header of an .npy stream, which is left at the first value. Raises ValueError."""
    stream: BinaryIO = file
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        header = Header(*read(stream))
    except (TypeError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError, OverflowError) as error:
        raise NotPlain(f"its head cannot be read ({error})") from None
    if min(header.shape, default=0) < 0:
        raise NotPlain(f"it has the shape {header.shape}")
    return header


def read_array(path: Path, most: int = MOST_BYTES) -> NDArray[Any]:
    """An array of numbers from an .npy file. Raises one of DAMAGE."""
    check_regular(path)
    with path.open("rb") as file:
        return read_values(file, most)


def read_member(archive: zipfile.ZipFile, name: str, most: int = MOST_BYTES) -> NDArray[Any]:
    """An array of numbers from an open .npz file. Raises one of DAMAGE."""
    with archive.open(f"{name}.npy") as file:
        return read_values(file, most)


def read_values(file: Any, most: int) -> NDArray[Any]:
    """An array of numbers from an .npy stream. Raises one of DAMAGE."""
    shape, fortran_order, dtype = header = read_header(file)
    if dtype.kind not in "biufcSU":
        raise NotPlain(f"it holds values of type {dtype}, and no numbers")
    if header.nbytes > most:
        raise NotPlain(f"it claims the shape {shape}, {header.nbytes:,} bytes, and there may be {most:,}")
    data = file.read(header.nbytes)
    if len(data) < header.nbytes:
        raise NotPlain(f"it claims the shape {shape}, and ends before it")
    found = np.frombuffer(bytearray(data), dtype) if data else np.zeros(math.prod(shape), dtype)
    return found.reshape(shape, order="F" if fortran_order else "C")


def write_npz(path: Path, arrays: Mapping[str, NDArray[Any]], command: str, compress: bool = False) -> None:
    """Write arrays by name, with a note of the command that made them; errors as of `write_atomic`."""

    def write(file: BinaryIO) -> None:
        (np.savez_compressed if compress else np.savez)(file, **dict[str, Any](arrays))
        with zipfile.ZipFile(file, "a") as archive:
            archive.comment = npz_note(command)

    write_atomic(path, write)
