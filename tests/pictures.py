"""Pictures of all kinds for the tests of the data: made here, so that what they should become is known."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

TRANSPOSED = 6  # EXIF: to be turned clockwise by 90 degrees to be upright


def encode(array: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    """Encode values with Pillow; (H, W, 1) counts as gray."""
    return encode_image(
        Image.fromarray(array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array), kind, **options
    )


def encode_image(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(seed: int, height: int = 8, width: int = 8, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def smooth(seed: int, height: int = 40, width: int = 40) -> np.ndarray:
    """RGB that JPEG keeps well: a coarse pattern enlarged."""
    return np.asarray(Image.fromarray(noise(seed, 4, 4)).resize((width, height), Image.Resampling.BICUBIC))


def png_header(width: int, height: int) -> bytes:
    """A PNG file that claims a size and has next to no pixels."""
    return png_chunks(struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0), zlib.compress(b"\0" * 10))


def png16(values: np.ndarray) -> bytes:
    """A PNG of 16-bit values (H, W, C), which Pillow writes only for gray."""
    height, width, channels = values.shape
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png_chunks(struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0), zlib.compress(rows))


def png_chunks(header: bytes, data: bytes) -> bytes:
    chunks = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + chunks


def folder_of(root: Path, names: list[str], start: int = 0, **shape: int) -> Path:
    """A folder with a different PNG under each name."""
    for seed, name in enumerate(names, start):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(noise(seed, **shape)))
    return root


def numbered(count: int, prefix: str = "") -> list[str]:
    return [f"{prefix}{i:03d}.png" for i in range(count)]
