"""The number of frames of an animation: GIF, PNG, WebP and AVIF."""

from __future__ import annotations

import io
import os
from typing import BinaryIO

from PIL import Image

from calotype.data.decoding import png

MOST_FRAMES = 10_000
"""Of one file that are counted: an hour of film has ten times as many, and is no set of pictures."""

_ANIMATED = ("GIF", "WEBP", "AVIF")
_IMAGE, _EXTENSION = b",", b"!"  # what a block of a GIF begins with


def count_frames(file: BinaryIO, head: bytes) -> int:
    """The number of frames of an encoded picture: 1 without animation, at most MOST_FRAMES.

    Args:
        file: may be read to its end.
        head: the first bytes of the file.

    Raises:
        OSError, ValueError, SyntaxError: from Pillow, for a damaged file.
    """
    if head.startswith(png.START):
        return png.count_frames(file, MOST_FRAMES)
    if head.startswith((b"GIF87a", b"GIF89a")):
        return max(1, _gif_frames(file))
    if head[8:12] == b"WEBP" or head[4:8] == b"ftyp":
        file.seek(0)
        with Image.open(file, formats=[name for name in _ANIMATED if name in Image.OPEN]) as image:
            return min(MOST_FRAMES, int(getattr(image, "n_frames", 1)))
    return 1


def _gif_frames(file: BinaryIO) -> int:
    """The image blocks of a GIF. Source: GIF89a Specification, CompuServe 1990."""
    file.seek(10)
    screen = file.read(3)
    if not screen:
        return 0
    file.seek(_palette_bytes(screen[0]), os.SEEK_CUR)
    frames = 0
    while frames < MOST_FRAMES:
        kind = file.read(1)
        if kind == _IMAGE:
            place = file.read(9)
            if len(place) < 9:
                break
            file.seek(_palette_bytes(place[8]) + 1, os.SEEK_CUR)
            frames += 1
        elif kind == _EXTENSION:
            file.seek(1, os.SEEK_CUR)
        else:
            break
        _skip_blocks(file)
    return frames


def _palette_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _skip_blocks(file: BinaryIO) -> None:
    """Skip blocks with a length prefix, up to a block of length 0 or the end of the file."""
    while size := file.read(1):
        if size == b"\0":
            return
        file.seek(size[0], io.SEEK_CUR)
