"""Formats other than TIFF, pixel by pixel: against what was written by hand, and against second decoders.

What is known of each file is what the specification of its format says of the bytes that are written here.
"""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pytest
from PIL import Image

from calotype.data import DataConfig, prepare
from calotype.data.check import check
from calotype.data.config import ValueRange
from calotype.data.decode import decode_array, decode_bytes, pages, quiet_pillow, read_facts
from calotype.data.decoding.formats import FORMATS, format_of_bytes, format_of_name, not_read
from calotype.data.records import BadPicture
from calotype.errors import DataError
from tests.pictures import encode, encode_image, folder_of, noise, numbered, smooth

H, W = 13, 21
RGB, ALPHA = noise(1, H, W), noise(2, H, W, 1)
RGBA = np.concatenate([RGB, ALPHA], axis=2)
GRAY = RGB[:, :, :1]


def is_decoded(data: bytes, right: np.ndarray, slack: float = 0) -> None:
    """That a file becomes these bytes (H, W, C), and that its header says so before."""
    with quiet_pillow():
        found = decode_bytes(data).pixels
        facts = read_facts(io.BytesIO(data))
    assert found.shape == right.shape
    assert np.abs(found.astype(float) - right).max() <= slack
    assert (facts.height, facts.width) == right.shape[:2]
    assert facts.alpha is None or right.shape[2] < 4
    assert facts.colour == (right.shape[2] >= 3 and not np.array_equal(right[:, :, 0], right[:, :, 1]))
    assert format_of_bytes(data[:512]) is None


# -- PNG


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def rows_of(values: np.ndarray, depth: int) -> list[bytes]:
    """The rows of samples (h, n), packed."""
    if depth == 16:
        return [row.astype(">u2").tobytes() for row in values]
    bits = (values[:, :, None] >> np.arange(depth - 1, -1, -1)) & 1
    return [np.packbits(row).tobytes() for row in bits.reshape(len(values), -1).astype(np.uint8)]


def filtered(rows: list[bytes], step: int) -> bytes:
    """Rows by the five filters in turn."""
    out, before = bytearray(), bytes(len(rows[0]))
    for number, row in enumerate(rows):
        out.append(number % 5)
        for k, value in enumerate(row):
            left, up = row[k - step] if k >= step else 0, before[k]
            corner = before[k - step] if k >= step else 0
            guess = left + up - corner
            nearest = min((abs(guess - left), 0, left), (abs(guess - up), 1, up), (abs(guess - corner), 2, corner))[2]
            out.append((value - (0, left, up, (left + up) // 2, nearest)[number % 5]) & 255)
        before = row
    return bytes(out)


PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def png(values: np.ndarray, colour_type: int, depth: int, interlaced: bool = False, more: bytes = b"") -> bytes:
    height, width, samples = values.shape
    parts = [values[y::dy, x::dx] for y, x, dy, dx in PASSES] if interlaced else [values]
    data = b"".join(
        filtered(rows_of(part.reshape(len(part), -1), depth), max(1, samples * depth // 8))
        for part in parts
        if part.size
    )
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, interlaced)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + more
    return start + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


KINDS = (
    [(0, d) for d in (1, 2, 4, 8, 16)] + [(3, d) for d in (1, 2, 4, 8)] + [(t, d) for t in (2, 4, 6) for d in (8, 16)]
)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("key", [False, True])
@pytest.mark.parametrize(("colour_type", "depth"), KINDS)
def test_png_of_every_kind(colour_type: int, depth: int, key: bool, interlaced: bool) -> None:
    rng = np.random.default_rng(depth)
    values = rng.integers(0, 1 << depth, (H, W, {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour_type]))
    values[3, 4] = values[5, 6] = values[0, 0]
    if depth == 16:
        values[1, 1] = values[0, 0] ^ 1  # of the same high byte as the key colour, and another colour
    palette, opacity = rng.integers(0, 256, (1 << depth, 3)), rng.integers(0, 256, 1 << depth)
    more = chunk(b"PLTE", palette.astype(np.uint8).tobytes()) if colour_type == 3 else b""
    if colour_type == 3:
        right = palette[values[:, :, 0]].astype(float)
        more += chunk(b"tRNS", opacity.astype(np.uint8).tobytes()) if key else b""
        alpha = opacity[values[:, :, 0]]
    else:
        right = np.rint(values * (255 / ((1 << depth) - 1)))
        more += chunk(b"tRNS", values[0, 0].astype(">u2").tobytes()) if key and colour_type < 3 else b""
        alpha = np.where((values == values[0, 0]).all(axis=2), 0, 255)
    if colour_type == 4:
        right = right[:, :, [0, 0, 0, 1]]
    elif key and colour_type < 4:
        right = np.concatenate([np.broadcast_to(right, (H, W, 3)), alpha[:, :, None]], axis=2)
    data = png(values, colour_type, depth, interlaced, more)
    is_decoded(data, right)
    if depth >= 8 and not key:  # OpenCV has its own ways with keys and with fewer bits
        second = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_ANYDEPTH)
        if second.shape[2:] in ((3,), (4,)) and colour_type in (2, 6):
            second = second[:, :, [2, 1, 0, 3][: second.shape[2]]]
            np.testing.assert_array_equal(second, values)


LARGE = b"x" * 3_000_000
TURNED = b'<x:xmpmeta xmlns:tiff="http://ns.adobe.com/tiff/1.0/"><rdf tiff:Orientation="3"/></x:xmpmeta>'
METADATA = {
    "zTXt": chunk(b"zTXt", b"a\0\0" + zlib.compress(LARGE)),
    "iTXt": chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(LARGE)),
    "many": chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(LARGE[:1_000_000])) * 70,
    "iCCP": chunk(b"iCCP", b"a\0\0" + zlib.compress(LARGE)),
    "XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"<x>" + LARGE)),
    "EXIF": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(LARGE)),
    "unknown": chunk(b"vpAg", LARGE),
    "turned": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + TURNED),
    "turned, compressed": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(TURNED)),
}


@pytest.mark.parametrize("kind", METADATA)
@pytest.mark.parametrize("depth", [8, 16])
def test_png_with_large_metadata(kind: str, depth: int) -> None:
    data = png(RGB.astype(int) * (257 if depth == 16 else 1), 2, depth, more=METADATA[kind])
    is_decoded(data, RGB[::-1, ::-1] if kind.startswith("turned") else RGB)


def test_a_frame_of_16_bits_is_not_read_as_8() -> None:
    red, blue = (Image.fromarray(np.full((4, 4), v, np.uint16)) for v in (9, 900))
    data = encode_image(red, "PNG", save_all=True, append_images=[blue])
    assert decode_bytes(data, ValueRange(0, 900)).pixels[0, 0, 0] == 3
    with pytest.raises(BadPicture, match="animation of 16 bits"):
        decode_bytes(data, page=1)


# -- BMP, TGA, PNM, SGI, PSD


def bmp(
    bits: int, rows: bytes, compression: int = 0, more: bytes = b"", palette: bytes = b"", size: int = 40, up: int = 1
):
    head = (
        struct.pack("<IiiHHIIiiII", size, W, up * H, 1, bits, compression, len(rows), 0, 0, len(palette) // 4, 0) + more
    )
    head = head.ljust(size, b"\0")
    start = 14 + len(head) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + head + palette + rows


def upwards(values: np.ndarray) -> bytes:
    return b"".join(row.tobytes() + b"\0" * (-len(row.tobytes()) % 4) for row in values[::-1])


def runs(indices: np.ndarray) -> bytes:
    """Run-length coding of BMP."""
    out = b""
    for row in indices[::-1]:
        out += b"".join(bytes([len(list(group)), value]) for value, group in itertools.groupby(row.tolist())) + b"\0\0"
    return out + b"\0\1"


WORDS = np.random.default_rng(0).integers(0, 1 << 16, (H, W)).astype("<u2")
FIVES = np.stack([WORDS >> 10 & 31, WORDS >> 5 & 31, WORDS & 31], axis=2) * (255 / 31)
SIXES = np.stack([WORDS >> 11 & 31, WORDS >> 5 & 63, WORDS & 31], axis=2) * (255 / np.array([31, 63, 31]))
INDICES = np.repeat(noise(4, H, 7, 1)[:, :, 0], 3, axis=1)
COLOURS = noise(5, 16, 16, 4).reshape(256, 4)
LOOKED_UP = COLOURS[INDICES][:, :, 2::-1]
MASKS = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)


def swapped(values: np.ndarray) -> np.ndarray:
    return values[:, :, [2, 1, 0, 3][: values.shape[2]]]


def tga(kind: int, bits: int, pixels: bytes, flags: int = 0, palette: bytes = b"") -> bytes:
    entries = len(palette) // 3
    return (
        struct.pack("<BBBHHBHHHHBB", 0, bool(palette), kind, 0, entries, 24 if palette else 0, 0, 0, W, H, bits, flags)
        + palette
        + pixels
    )


def psd(values: np.ndarray, mode: int, palette: bytes = b"") -> bytes:
    height, width, channels = values.shape
    head = b"8BPS" + struct.pack(">H6xHIIHH", 1, channels, height, width, 8, mode)
    planes = np.ascontiguousarray(np.moveaxis(values, -1, 0)).tobytes()
    return head + struct.pack(">I", len(palette)) + palette + struct.pack(">IIH", 0, 0, 0) + planes


def sgi(values: np.ndarray, size: int) -> bytes:
    height, width, channels = values.shape
    head = struct.pack(">hBBHHHHII", 474, 0, size, 3 if channels > 1 else 2, width, height, channels, 0, 255)
    planes = np.moveaxis(values, -1, 0)[:, ::-1].astype(f">u{size}")
    return head.ljust(512, b"\0") + planes.tobytes()


DEEP = np.random.default_rng(3).integers(0, 1 << 16, (H, W, 3))
PNM_16 = DEEP.astype(">u2").tobytes()
BY_HAND: dict[str, tuple[bytes, np.ndarray, float]] = {
    "BMP 24": (bmp(24, upwards(swapped(RGB))), RGB, 0),
    "BMP downwards": (bmp(24, upwards(swapped(RGB)[::-1]), up=-1), RGB, 0),
    "BMP 32": (bmp(32, upwards(swapped(RGBA * [1, 1, 1, 0]).astype(np.uint8))), RGB, 0),
    "BMP 32, alpha": (bmp(32, upwards(swapped(RGBA)), 3, MASKS, size=124), RGBA, 0),
    "BMP 32, masks": (bmp(32, upwards(swapped(RGBA)), 3, MASKS[:12] + bytes(4), size=108), RGB, 0),
    "BMP 555": (bmp(16, upwards(WORDS)), FIVES, 1),
    "BMP 565": (bmp(16, upwards(WORDS), 3, struct.pack("<III", 0xF800, 0x7E0, 0x1F)), SIXES, 1),
    "BMP 8": (bmp(8, upwards(INDICES), palette=COLOURS.tobytes()), LOOKED_UP, 0),
    "BMP runs": (bmp(8, runs(INDICES), 1, palette=COLOURS.tobytes()), LOOKED_UP, 0),
    "BMP 1": (
        bmp(1, upwards(np.packbits(INDICES & 1, axis=1)), palette=COLOURS[:2].tobytes()),
        COLOURS[INDICES & 1][:, :, 2::-1],
        0,
    ),
    "TGA 24": (tga(2, 24, swapped(RGB)[::-1].tobytes()), RGB, 0),
    "TGA downwards": (tga(2, 24, swapped(RGB).tobytes(), 0x20), RGB, 0),
    "TGA leftwards": (tga(2, 24, swapped(RGB)[:, ::-1].tobytes(), 0x30), RGB, 0),
    "TGA 32": (tga(2, 32, swapped(RGBA)[::-1].tobytes(), 8), RGBA, 0),
    "TGA 32 without alpha": (tga(2, 32, swapped((RGBA * [1, 1, 1, 0]).astype(np.uint8))[::-1].tobytes()), RGB, 0),
    "TGA 32, alpha not counted": (tga(2, 32, swapped(RGBA)[::-1].tobytes()), RGBA, 0),
    "TGA 16": (tga(2, 16, WORDS[::-1].tobytes()), FIVES, 1),
    "TGA gray": (tga(3, 8, GRAY[::-1].tobytes()), GRAY, 0),
    "TGA palette": (tga(1, 8, INDICES[::-1].tobytes(), palette=COLOURS[:, :3].tobytes()), LOOKED_UP, 0),
    "TGA runs": (
        tga(10, 24, b"".join(b"\x80" + pixel.tobytes() for pixel in swapped(RGB)[::-1].reshape(-1, 3))),
        RGB,
        0,
    ),
    "PGM": (b"P5 21 13 255\n" + GRAY.tobytes(), GRAY, 0),
    "PGM to 100": (b"P5 21 13 100\n" + (GRAY % 101).tobytes(), (GRAY % 101) * 2.55, 0.51),
    "PGM 16": (b"P5 21 13 65535\n" + DEEP[:, :, :1].astype(">u2").tobytes(), np.rint(DEEP[:, :, :1] / 257), 0),
    "PGM 12": (
        b"P5 21 13 4095\n" + (DEEP[:, :, :1] >> 4).astype(">u2").tobytes(),
        (DEEP[:, :, :1] >> 4) / 4095 * 255,
        1,
    ),
    "PPM 16": (b"P6 21 13 65535\n" + PNM_16, np.rint(DEEP / 257), 0),
    "PPM as text": (b"P3 21 13 255\n" + " ".join(map(str, RGB.reshape(-1))).encode(), RGB, 0),
    "PBM": (b"P4 21 13\n" + np.packbits(INDICES & 1, axis=1).tobytes(), (1 - (INDICES & 1)[:, :, None]) * 255.0, 0),
    "PFM": (b"Pf\n21 13\n-1.0\n" + (GRAY[::-1] / 255).astype("<f4").tobytes(), GRAY, 0),
    "SGI 16": (sgi(DEEP, 2), DEEP / 257, 1),
    "SGI 8": (sgi(RGBA, 1), RGBA, 0),
    "PSD gray": (psd(GRAY, 1), GRAY, 0),
    "PSD RGB": (psd(RGB, 3), RGB, 0),
    "PSD RGBA": (psd(RGBA, 3), RGBA, 0),
    "PSD inks": (psd(RGBA, 4), RGBA[:, :, :3] * (RGBA[:, :, 3:] / 255), 1),
    "PSD palette": (psd(INDICES[:, :, None], 2, COLOURS[:, :3].T.tobytes()), COLOURS[INDICES][:, :, :3], 0),
    "QOI": (imagecodecs.qoi_encode(RGB), RGB, 0),
    "lossless JPEG": (imagecodecs.jpeg8_encode(RGB, lossless=True), RGB, 0),
}


@pytest.mark.parametrize("kind", BY_HAND)
def test_pixels_are_those_that_were_written(kind: str) -> None:
    is_decoded(*BY_HAND[kind])


def test_a_psd_of_one_bit_has_black_for_1() -> None:
    head = b"8BPS" + struct.pack(">H6xHIIHH", 1, 1, H, W, 1, 0) + struct.pack(">IIIH", 0, 0, 0, 0)
    data = head + np.packbits(INDICES & 1, axis=1).tobytes()
    is_decoded(data, (1 - (INDICES & 1)[:, :, None]) * 255.0)


@pytest.mark.parametrize("container", ["jp2", "j2k"])
@pytest.mark.parametrize(("channels", "bits"), [(1, 8), (3, 8), (4, 8), (1, 4), (1, 10), (1, 12), (1, 16)])
def test_jpeg_2000(container: str, channels: int, bits: int) -> None:
    values = np.random.default_rng(bits).integers(0, 1 << bits, (H, W, channels))
    values[0, 0] = (1 << bits) - 1
    stored = values.astype(np.uint8 if bits <= 8 else np.uint16)
    stored = stored[:, :, 0] if channels == 1 else stored
    options: dict[str, Any] = {"level": 0, "reversible": True, "codecformat": container, "bitspersample": bits}
    data = imagecodecs.jpeg2k_encode(stored, **options)
    np.testing.assert_array_equal(imagecodecs.jpeg2k_decode(data).reshape(values.shape), values)
    is_decoded(data, values * (255 / ((1 << bits) - 1)), 1 if bits not in (8, 16) else 0.5)


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_jpeg_2000_of_deep_colour_is_refused(bits: int) -> None:
    values = np.full((H, W, 3), (1 << bits) - 1, np.uint16)  # Pillow makes black of white
    data = imagecodecs.jpeg2k_encode(values, level=0, reversible=True, codecformat="jp2", bitspersample=bits)
    with pytest.raises(BadPicture, match=f"JPEG 2000 of a kind that is not read: samples of {bits} bits"):
        decode_bytes(data)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_jpeg_as_a_second_decoder(mode: str, progressive: bool, subsampling: int) -> None:
    image = Image.fromarray(smooth(5, 24, 40)).convert(mode)
    data = encode_image(image, "JPEG", quality=90, progressive=progressive, subsampling=subsampling)
    second = imagecodecs.jpeg8_decode(data).astype(float)
    if mode == "CMYK":  # Adobe's, inverted
        second = second[:, :, :3] * second[:, :, 3:] / 255
    is_decoded(data, second.reshape(24, 40, -1), 2)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (imagecodecs.jpeg8_encode(smooth(1).astype(np.uint16) * 16, bitspersample=12), "JPEG of a kind .* 12 bits"),
        (
            imagecodecs.jpeg8_encode(DEEP.astype(np.uint16), lossless=True, bitspersample=16),
            "JPEG of a kind .* lossless",
        ),
        (imagecodecs.jpegls_encode(smooth(1)), "JPEG of a kind .* JPEG-LS"),
        (imagecodecs.jpegxl_encode(smooth(1)), "JPEG XL, which is not read"),
        (imagecodecs.jpegxr_encode(smooth(1)), "JPEG XR, which is not read"),
        (b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, H, W, 16, 3) + bytes(99), "it begins as PSD"),
        (b"P7\nWIDTH 1\n", "PAM, or PFM of colour, which is not read"),
    ],
)
def test_what_is_not_read_is_not_called_damaged(data: bytes, reason: str) -> None:
    for read in (decode_bytes, lambda data: read_facts(io.BytesIO(data))):
        with quiet_pillow(), pytest.raises(BadPicture, match=reason):
            read(data)


# -- arrays


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "longdouble", "?"])
def test_arrays_of_every_type_and_byte_order(dtype: str, order: str) -> None:
    kind = np.dtype(dtype)
    values = (
        np.array([[0, 1], [1, 0]]).astype(kind) if kind.kind in "?bf" else np.array([[0, 100], [50, 7]]).astype(kind)
    )
    stored = values.astype(kind.newbyteorder(order))
    if kind.kind in "bf" or dtype in ("u1", "u2"):
        right = {"b": values * 255.0, "f": values * 255.0, "u": values / (257 if dtype == "u2" else 1)}[kind.kind]
        np.testing.assert_array_equal(decode_array(stored).pixels[:, :, 0], np.rint(right.astype(float)))
    else:
        with pytest.raises(BadPicture, match=f"values of type {kind}: no scale"):
            decode_array(stored)
    if dtype not in ("u1", "?"):
        right = np.rint(values.astype(float) * 2.55)
        np.testing.assert_array_equal(decode_array(stored, ValueRange(0, 100)).pixels[:, :, 0], right)


@pytest.mark.parametrize("dtype", ["c8", "M8[s]", "U3", [("a", "u1")]])
def test_arrays_that_are_no_numbers_are_refused(dtype: Any, tmp_path: Path) -> None:
    array = np.zeros((20, 8, 8), dtype)
    with pytest.raises(BadPicture, match=r"values of type .*pictures are integers"):
        decode_array(array[0])
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match="holds values of type"):
        prepare(DataConfig(source=str(tmp_path / "a.npy")), cache=tmp_path / "cache")


@pytest.mark.parametrize(
    "change",
    [np.asfortranarray, lambda a: a.astype(">u2"), lambda a: np.asfortranarray(a.astype(">f4"))],
    ids=["columns", "big-endian", "both"],
)
def test_npy_of_every_order(change: Any, tmp_path: Path) -> None:
    values = np.stack([noise(k) for k in range(20)])
    changed = change(values)
    if changed.dtype.kind == "f":
        changed /= 255
    elif changed.dtype.itemsize == 2:
        changed *= 257
    np.save(tmp_path / "a.npy", changed)
    np.testing.assert_array_equal(prepare(DataConfig(source=str(tmp_path / "a.npy")), cache=tmp_path).images, values)


# -- formats that are not read

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)
SAMPLES = {
    "HEIC or HEIF": HEIC,
    "camera raw": b"II*\0\x10\0\0\0CR\2\0" + bytes(99),
    "video": b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + bytes(99),
    "DICOM": bytes(128) + b"DICM" + bytes(99),
    "SVG": b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>',
    "FITS": b"SIMPLE  =                    T",
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(99),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_a_format_is_told_by_its_bytes_under_the_name_of_a_picture(name: str) -> None:
    for read in (decode_bytes, lambda data: read_facts(io.BytesIO(data))):
        with pytest.raises(BadPicture, match=f"^{name}, which is not read: "):
            read(SAMPLES[name])


def test_every_format_is_told_by_each_of_its_starts_and_names() -> None:
    for format in FORMATS:
        for suffix in format.suffixes.split():
            assert format_of_name(f"folder.v2/A picture{suffix.upper()}") is format
        for at, start in format.starts:
            assert format_of_bytes(bytes(at) + start + bytes(99)) is format
        assert format.remedy
        assert ": " not in format.name


def test_bytes_count_for_more_than_names() -> None:
    assert not_read("IMG_1.HEIC", encode(smooth(1), "JPEG")[:512]) is None  # as telephones send it
    assert not_read("IMG_1.NEF", encode(smooth(1), "TIFF")[:512]) is not None  # TIFF is what raw files begin as
    assert not_read("IMG_1.HEIC", b"") is not None
    avif = encode(smooth(1), "AVIF")
    assert not_read("a.jpg", avif[:512]) is None
    assert decode_bytes(avif).pixels.shape == (40, 40, 3)


def test_formats_are_listed_by_name_with_the_remedy_and_make_no_class(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", [*numbered(10, "cat/"), *numbered(10, "dog/")])
    files = {
        **{"dog/IMG_1.HEIC": HEIC, "cat/IMG_2.jpg": HEIC, "raw/DSC_1.NEF": encode(noise(1), "TIFF"), "scan.dcm": b""},
        **{"film.R3D": b"", "volume.nii": b"", "unnamed": SAMPLES["DICOM"], "no name": b"%PDF-1.4"},
    }
    for name, content in files.items():
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(content)
    (tmp_path / "in" / "IMG_3.heic").write_bytes(encode(smooth(3, 8, 8), "JPEG"))
    (tmp_path / "in" / "IMG_3.heic").rename(tmp_path / "in" / "cat" / "IMG_3.heic")
    report = check(DataConfig(source=str(tmp_path / "in")), cache=tmp_path / "cache")
    assert report.pictures == 21
    assert report.classes == {"cat": 11, "dog": 10}
    assert {entry.name for entry in report.skipped} == set(files)
    assert all("which is not read: " in entry.reason for entry in report.skipped)


def test_a_source_of_a_format_that_is_not_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(SAMPLES["video"])
    with pytest.raises(DataError, match=r"a.mp4 is video, which is not read: export frames"):
        prepare(DataConfig(source=str(tmp_path / "a.mp4")), cache=tmp_path)


def test_a_picture_has_one_page() -> None:
    for kind in ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "AVIF"):
        assert len(pages(io.BytesIO(encode(smooth(1), kind)))) == 1
