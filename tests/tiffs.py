"""TIFF files written by hand, byte by byte as the specification says, so that what they hold is known."""

from __future__ import annotations

import struct

import numpy as np

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, OFFSETS = 256, 257, 258, 259, 262, 273
SAMPLES, ROWS, COUNTS = 277, 278, 279
PLANAR, KIND, MAKE, EXTRA, FORMAT, DNG = 284, 254, 271, 338, 339, 50706

Tags = dict[int, list[int]]


def tiff(*pages: tuple[Tags, list[bytes]], order: str = "<", chain: int | None = None) -> bytes:
    """A file of some pages, each with its tags and its strips.

    Args:
        order: "<" or ">", the byte order.
        chain: what the last page says of the next; None: that there is none.
    """
    out = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 0)
    directories: list[int] = []
    links = [4]
    for tags, strips in pages:
        offsets = []
        for strip in strips:
            offsets.append(len(out))
            out += strip + b"\0" * (len(strip) % 2)
        if strips:
            tags = {**tags, OFFSETS: offsets, COUNTS: [len(strip) for strip in strips]}
        entries = b""
        for tag, values in sorted(tags.items()):
            kind, code = (3, "H") if max(values, default=0) < 1 << 16 and tag not in (OFFSETS, COUNTS) else (4, "I")
            packed = struct.pack(f"{order}{len(values)}{code}", *values)
            if len(packed) > 4:
                where, out = struct.pack(order + "I", len(out)), out + packed + b"\0" * (len(packed) % 2)
            else:
                where = packed.ljust(4, b"\0")
            entries += struct.pack(order + "HHI", tag, kind, len(values)) + where
        directories.append(len(out))
        out += struct.pack(order + "H", len(tags)) + entries
        links.append(len(out))
        out += struct.pack(order + "I", 0)
    data = bytearray(out)
    for link, to in zip(links, [*directories, chain or 0], strict=True):
        struct.pack_into(order + "I", data, link, to)
    return bytes(data)


def page(
    values: np.ndarray, photometric: int = 1, more: Tags | None = None, order: str = "<"
) -> tuple[Tags, list[bytes]]:
    """A page of values (H, W, C) without compression, in one strip."""
    height, width, samples = values.shape
    tags: Tags = {
        **{WIDTH: [width], HEIGHT: [height], BITS: [8 * values.itemsize] * samples, COMPRESSION: [1]},
        **{PHOTOMETRIC: [photometric], SAMPLES: [samples], ROWS: [height]},
        **(more or {}),
    }
    stored = values.astype(values.dtype.newbyteorder(order))
    if tags.get(PLANAR) == [2]:
        return tags, [np.ascontiguousarray(stored[:, :, k]).tobytes() for k in range(samples)]
    return tags, [stored.tobytes()]
