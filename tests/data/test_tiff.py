"""TIFF of all kinds, pixel by pixel: against what was written, and against a second decoder, tifffile."""

from __future__ import annotations

import contextlib
import io
import itertools
import struct
import time
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from calotype.data.config import ValueRange
from calotype.data.decode import decode_bytes, pages, quiet_pillow, read_facts
from calotype.data.records import BadPicture
from tests.faults import FAULTS
from tests.pictures import encode_image, noise, smooth
from tests.project.test_hostile import little_memory
from tests.tiffs import (
    BITS,
    COMPRESSION,
    COUNTS,
    DNG,
    EXTRA,
    FORMAT,
    HEIGHT,
    KIND,
    MAKE,
    OFFSETS,
    PHOTOMETRIC,
    PLANAR,
    ROWS,
    SAMPLES,
    WIDTH,
    page,
    tiff,
)

SIZE = (19, 37)  # neither whole tiles nor whole strips
TYPES = {  # name: type in memory, bits in the file
    **{"bit": ("?", 1), "2 bits": ("u1", 2), "4 bits": ("u1", 4), "uint8": ("u1", 8)},
    **{"10 bits": ("u2", 10), "12 bits": ("u2", 12), "14 bits": ("u2", 14), "uint16": ("u2", 16)},
    **{"uint32": ("u4", 32), "int16": ("i2", 16), "int32": ("i4", 32)},
    **{"float16": ("f2", 16), "float32": ("f4", 32), "float64": ("f8", 64)},
}
PHOTOMETRICS = {"minisblack": 1, "miniswhite": 1, "rgb": 3}  # with samples of colour
EXTRAS: dict[str, tuple[int, ...]] = {"opaque": (), "alpha": (2,), "premultiplied": (1,), "unspecified": (0,)}
EACH = 400 if FAULTS else 8  # files of each type and photometric interpretation


def written(values: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, metadata=None, **options)
    return file.getvalue()


def random_values(rng: np.random.Generator, dtype: str, bits: int, shape: tuple[int, ...]) -> np.ndarray:
    if dtype[0] == "f":
        return rng.random(shape).astype(dtype)
    return rng.integers(0, 1 << min(bits, 15 if dtype[0] == "i" else 16), shape).astype(dtype)


def is_written(dtype: str, bits: int, options: dict[str, Any], extra: tuple[int, ...]) -> bool:
    """Whether tifffile writes such a file, and as the specification says."""
    if bits in (1, 2, 4, 10, 12, 14):
        plain = options["compression"] is None or bits == 1
        several = bits == 1 and (extra or options["photometric"] == "rgb") and options.get("planarconfig") != "separate"
        return plain and not options.get("predictor") and not several and (bits < 8 or options["byteorder"] == "<")
    return True


def layouts(rng: np.random.Generator, dtype: str, bits: int, photometric: str) -> list[tuple[dict[str, Any], str]]:
    """Some of all layouts of a type that are written: each time others, by the seed."""
    predictors = [None, 3] if dtype[0] == "f" else [None, 2]
    every = itertools.product(
        EXTRAS,
        ["contig", "separate"],
        [None, "lzw", "deflate", "packbits", "zstd", "lzma"],
        ["<", ">"],
        [{}, {"tile": (16, 32)}, {"rowsperstrip": 5}],
        predictors,
        [False, True],
    )
    found = []
    for extra, planar, compression, order, shape, predictor, big in every:
        samples = PHOTOMETRICS[photometric] + len(EXTRAS[extra])
        options = {"photometric": photometric, "compression": compression, "byteorder": order, "bigtiff": big, **shape}
        options |= {"planarconfig": planar} if samples > 1 else {}
        options |= {"extrasamples": EXTRAS[extra]} if EXTRAS[extra] else {}
        options |= {"predictor": predictor} if predictor and compression not in (None, "packbits") else {}
        options |= {"bitspersample": bits} if bits in (2, 4, 10, 12, 14) else {}
        if is_written(dtype, bits, options, EXTRAS[extra]) and not (samples == 1 and planar == "separate"):
            found.append((options, extra))
    return [found[k] for k in rng.permutation(len(found))[:EACH]]


def expected(values: np.ndarray, dtype: str, bits: int, photometric: str, extra: str) -> np.ndarray:
    """The bytes of samples (H, W, C), by the rules of docs/data.md."""
    colours = PHOTOMETRICS[photometric]
    top = 1.0 if dtype[0] == "f" else float(min((1 << bits) - 1, 65535))  # the range of colour
    whole = top if dtype[0] == "f" or (bits <= 16 and dtype[0] == "u") or bits == 1 else float(np.iinfo(dtype).max)
    colour, alpha = values[:, :, :colours].astype(float), values[:, :, -1].astype(float) / whole
    if dtype[0] == "i":
        top = 65535.0
    if extra == "premultiplied":
        colour = np.divide(colour, alpha[:, :, None], out=np.zeros(colour.shape), where=alpha[:, :, None] > 0)
        colour = np.minimum(colour, whole)
    found = np.rint(colour * (255 / top))
    if photometric == "miniswhite":
        found = 255 - found
    if extra in ("opaque", "unspecified"):
        return found
    return np.concatenate([np.broadcast_to(found, (*SIZE, 3)), np.rint(alpha * 255)[:, :, None]], axis=2)


@pytest.mark.parametrize("photometric", PHOTOMETRICS)
@pytest.mark.parametrize("kind", TYPES)
def test_every_layout_gives_the_pixels_of_a_second_decoder(kind: str, photometric: str) -> None:
    dtype, bits = TYPES[kind]
    rng = np.random.default_rng([FAULTS, list(TYPES).index(kind), list(PHOTOMETRICS).index(photometric)])
    for options, extra in layouts(rng, dtype, bits, photometric):
        samples = PHOTOMETRICS[photometric] + len(EXTRAS[extra])
        separate = options.get("planarconfig") == "separate"
        values = random_values(rng, dtype, bits, (*SIZE, samples))
        if extra == "premultiplied":  # colour is at most alpha, and alpha never so small that nothing is left of colour
            values[:, :, -1] = np.maximum(values[:, :, -1], values[:, :, :-1].max(axis=2))
        if bits == 32 and dtype != "f4" and extra in ("alpha", "premultiplied"):
            continue  # alpha of 32 bits has a range that colour by default has not
        data = written(np.moveaxis(values, -1, 0) if separate else values.squeeze(), **options)
        second = tifffile.imread(io.BytesIO(data))
        second = np.moveaxis(second, 0, -1) if separate else second.reshape(*SIZE, samples)
        np.testing.assert_array_equal(second, values)
        if extra == "unspecified" and photometric != "rgb":
            with pytest.raises(BadPicture, match="TIFF of a kind that is not read: 2 channels"):
                decode_bytes(data)
            continue
        decoded = decode_bytes(data).pixels
        right = expected(second, dtype, bits, photometric, extra)
        assert decoded.shape == right.shape, options
        # Samples of 10 to 14 bits are brought to 16 first; unmultiplied ones are rounded to their type.
        slack = 1 if extra == "premultiplied" or bits in (10, 12, 14) else 0
        assert np.abs(decoded.astype(int) - right).max() <= slack, options
        facts = read_facts(io.BytesIO(data))
        assert (facts.height, facts.width, facts.pages) == (*SIZE, 1)
        assert (facts.colour, facts.alpha) == (photometric == "rgb", None if decoded.shape[2] == 4 else False)
        assert facts.deep == (bits > 8)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("planar", [1, 2])
def test_16_bits_by_hand(order: str, photometric: int, planar: int) -> None:
    colours = 3 if planar == 2 else 1
    values = np.random.default_rng(0).integers(0, 65536, (5, 7, colours)).astype(np.uint16)
    data = tiff(page(values, 2 if colours == 3 else photometric, {PLANAR: [planar]}, order), order=order)
    right = np.rint(values / 257)
    if photometric == 0 and colours == 1:
        right = 255 - right
    np.testing.assert_array_equal(decode_bytes(data).pixels, right)


def test_white_is_zero_is_turned_after_the_range() -> None:
    values = np.array([[[0], [4095]]], np.uint16)
    assert decode_bytes(tiff(page(values, 0)), ValueRange(0, 4095)).pixels.tolist() == [[[255], [0]]]


def test_big_endian_samples_of_12_bits_begin_with_the_highest_bit() -> None:
    tags = {WIDTH: [3], HEIGHT: [1], BITS: [12], COMPRESSION: [1], PHOTOMETRIC: [1], SAMPLES: [1], ROWS: [1]}
    for order in "<>":
        data = tiff((tags, [bytes([0xFF, 0xF0, 0x00, 0x80, 0x00])]), order=order)
        assert decode_bytes(data).pixels[0, :, 0].tolist() == [255, 0, 128]


def test_bits_may_be_in_reverse() -> None:
    values = np.array([[[1], [128], [7]]], np.uint8)
    assert decode_bytes(tiff(page(values, 1, {266: [2]}))).pixels[0, :, 0].tolist() == [128, 1, 224]


def test_samples_that_are_not_said_to_be_alpha() -> None:
    assert decode_bytes(tiff(page(noise(1, channels=4), 2))).pixels.shape[2] == 4  # as old writers leave it
    five = noise(1, channels=5)
    np.testing.assert_array_equal(decode_bytes(tiff(page(five, 2, {EXTRA: [0, 0]}))).pixels, five[:, :, :3])
    np.testing.assert_array_equal(decode_bytes(tiff(page(five, 2, {EXTRA: [0, 2]}))).pixels, five[:, :, [0, 1, 2, 4]])


@pytest.mark.parametrize("scale", [256, 257, 1])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palettes_of_all_writers(scale: int, bits: int) -> None:
    colours = np.random.default_rng(bits).integers(0, 256, (3, 1 << bits))
    indices = np.random.default_rng(0).integers(0, 1 << bits, (4, 9))
    each = (indices[:, :, None] >> np.arange(bits - 1, -1, -1)) & 1
    rows = np.packbits(each.reshape(4, -1).astype(np.uint8), axis=1)
    tags = {WIDTH: [9], HEIGHT: [4], BITS: [bits], COMPRESSION: [1], PHOTOMETRIC: [3], SAMPLES: [1], ROWS: [4]}
    data = tiff(({**tags, 320: (colours * scale).reshape(-1).tolist()}, [rows.tobytes()]))
    np.testing.assert_array_equal(decode_bytes(data).pixels, colours.T[indices])
    assert read_facts(io.BytesIO(data)).colour


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("options", [{}, {"compression": "lzw", "predictor": 2}, {"planarconfig": "separate"}])
def test_inks_by_the_simple_rule(dtype: type, options: dict[str, Any]) -> None:
    inks = noise(3, *SIZE, channels=4)
    scale = 257 if dtype is np.uint16 else 1
    values = inks.astype(dtype) * dtype(scale)
    data = written(
        np.moveaxis(values, -1, 0) if "planarconfig" in options else values, photometric="separated", **options
    )
    right = (255.0 - inks[:, :, :3]) * (255.0 - inks[:, :, 3:]) / 255
    assert np.abs(decode_bytes(data).pixels - right).max() <= 1


@pytest.mark.parametrize(
    ("mode", "tile"),
    [*((mode, False) for mode in ("L", "LA", "RGB", "RGBA", "YCbCr", "CMYK")), ("L", True), ("RGB", True)],
)
def test_jpeg_in_tiff_as_a_second_decoder(mode: str, tile: bool) -> None:
    image = Image.fromarray(smooth(5)).convert(mode[:1] if mode == "LA" else mode)
    if mode[-1] == "A":
        image = image.convert(mode)
        image.putalpha(Image.fromarray(smooth(6)[:, :, 0]))
    if tile:
        photometric = "minisblack" if mode == "L" else "ycbcr"
        data = written(np.asarray(image), photometric=photometric, compression="jpeg", tile=(16, 16))
    else:
        data = encode_image(image, "TIFF", compression="jpeg", quality=95)
    second = tifffile.imread(io.BytesIO(data))
    if mode == "LA":
        second = second[:, :, [0, 0, 0, 1]]
    if mode == "CMYK":
        second = np.rint((255.0 - second[:, :, :3]) * (255.0 - second[:, :, 3:]) / 255)
    assert np.abs(decode_bytes(data).pixels - second.reshape(40, 40, -1).astype(int)).max() <= 2


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt", "packbits", "tiff_lzw"])
def test_bits_of_all_compressions(compression: str) -> None:
    bits = noise(9, 13, 21, 1)[:, :, 0] > 200
    data = encode_image(Image.fromarray(bits), "TIFF", compression=compression)
    np.testing.assert_array_equal(decode_bytes(data).pixels[:, :, 0], bits * 255)


def test_lab_by_its_formula() -> None:
    colours = [[200, 90, 100], [90, 160, 120], [100, 110, 190], [128, 128, 128], [255, 255, 255]]
    rgb = Image.fromarray(np.array([colours], np.uint8))
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    stored = np.asarray(ImageCms.profileToProfile(rgb, *profiles, outputMode="LAB"))  # a and b signed, as in a file
    signed = stored.astype(np.int8).astype(float)
    light = (stored[:, :, 0] * (100 / 255) + 16) / 116
    a, b = signed[:, :, 1] / 500, signed[:, :, 2] / 200
    cubes = np.stack([light + a, light, light - b], axis=2)
    xyz = np.where(cubes > 6 / 29, cubes**3, 3 * (6 / 29) ** 2 * (cubes - 4 / 29)) * [0.9642, 1.0, 0.8249]
    linear = xyz @ np.array([[3.1339, -0.9788, 0.0720], [-1.6169, 1.9161, -0.2290], [-0.4906, 0.0335, 1.4057]])
    linear = linear.clip(0, 1)
    right = 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    decoded = decode_bytes(tiff(page(stored, 8))).pixels
    assert np.abs(decoded - right).max() <= 3


REFUSED = {
    "JPEG 2000": lambda: written(smooth(1), photometric="rgb", compression="jpeg2000"),
    "JPEG XL": lambda: written(smooth(1), photometric="rgb", compression="jpegxl"),
    "LERC": lambda: written(smooth(1), photometric="rgb", compression="lerc"),
    "complex": lambda: written(np.ones((8, 8), np.complex64)),
    "5 channels": lambda: written(noise(1, channels=5), photometric="minisblack", planarconfig="contig"),
    "different depths": lambda: tiff(page(noise(1), 2, {BITS: [5, 6, 5]})),
    "other inks": lambda: tiff(page(noise(1, channels=4), 5, {332: [2]})),
    "photometric interpretation 9": lambda: tiff(page(noise(1), 9)),
    "24 bits": lambda: tiff(page(noise(1), 1, {BITS: [24], SAMPLES: [1]})),
    "a volume": lambda: tiff(page(noise(1, channels=1), 1, {32997: [4]})),
    "fewer samples of colour": lambda: tiff(page(noise(1), 6)),
    "floats of 8 bits": lambda: tiff(page(noise(1, channels=1), 1, {FORMAT: [3]})),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_kind_that_is_not_read_is_named_and_not_called_damaged(what: str) -> None:
    data = REFUSED[what]()
    for read in (decode_bytes, lambda data: read_facts(io.BytesIO(data))):
        try:
            read(data)
        except BadPicture as error:
            assert error.reason.startswith("TIFF of a kind that is not read: ")  # noqa: PT017
            assert what in error.reason  # noqa: PT017
        else:
            assert what in ("fewer samples of colour",)  # which pixels tell, and not the header
            assert read is not decode_bytes


def test_signed_bytes_need_a_range() -> None:
    data = tiff(page(np.array([[[-128], [0], [127]]], np.int8), 1, {FORMAT: [2]}))
    with pytest.raises(BadPicture, match="values of type int8: no scale"):
        decode_bytes(data)
    assert decode_bytes(data, ValueRange(-128, 127)).pixels[0, :, 0].tolist() == [0, 128, 255]


# -- pages


def gray(value: int, side: int = 8) -> np.ndarray:
    return np.full((side, side, 1), value, np.uint8)


def test_pages_are_pictures_and_thumbnails_and_masks_are_not() -> None:
    data = tiff(
        page(gray(1, 16)),
        page(gray(2), 1, {KIND: [1]}),
        page(gray(3, 16)),
        page(gray(0, 16), 4, {KIND: [4]}),
        order=">",
    )
    found = pages(io.BytesIO(data))
    assert [int(decode_bytes(data, page=number).pixels[0, 0, 0]) for number in found] == [1, 3]
    assert read_facts(io.BytesIO(data)).pages == 2


def test_a_thumbnail_before_the_picture_is_passed_over() -> None:
    data = tiff(page(gray(2), 1, {KIND: [1]}), page(gray(1, 16)))
    assert decode_bytes(data).pixels.shape == (16, 16, 1)
    assert read_facts(io.BytesIO(data)).width == 16


def test_levels_of_a_pyramid_are_no_pages() -> None:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for side in (64, 32, 16):  # as scanners of slides write them: nothing says that they are smaller copies
            writer.write(noise(side, side, side), tile=(16, 16), photometric="rgb")
    assert len(pages(io.BytesIO(file.getvalue()))) == 1
    assert decode_bytes(file.getvalue()).pixels.shape == (64, 64, 3)


@pytest.mark.parametrize("big", [False, True])
def test_pages_of_a_stack_are_read_by_themselves(big: bool) -> None:
    stack = np.stack([noise(k, channels=1)[:, :, 0] for k in range(50)])
    data = written(stack, photometric="minisblack", bigtiff=big, compression="lzw")
    found = pages(io.BytesIO(data))
    assert len(found) == 50
    for k in (0, 7, 49):
        np.testing.assert_array_equal(decode_bytes(data, page=found[k]).pixels[:, :, 0], stack[k])
        assert read_facts(io.BytesIO(data), found[k]).pages == 1


def test_a_preview_of_a_camera_is_not_the_picture() -> None:
    for tags in ({KIND: [1], MAKE: [78, 73]}, {KIND: [1], 330: [8]}, {DNG: [1]}):
        data = tiff(page(noise(1), 2, tags))
        for read in (decode_bytes, lambda data: read_facts(io.BytesIO(data)), lambda data: pages(io.BytesIO(data))):
            with pytest.raises(BadPicture, match="camera raw, which is not read"):
                read(data)
    with pytest.raises(BadPicture, match="without a page but thumbnails"):
        decode_bytes(tiff(page(noise(1), 2, {KIND: [1]})))
    assert decode_bytes(tiff(page(noise(1), 2, {MAKE: [78, 73]}))).pixels.shape == (8, 8, 3)  # a camera's own TIFF


# -- damage, and files that would take the memory or the day of whoever reads them

BASE = {WIDTH: [8], HEIGHT: [8], BITS: [8], COMPRESSION: [1], PHOTOMETRIC: [1], SAMPLES: [1], ROWS: [8]}


def claims(**tags: list[int]) -> bytes:
    numbers = {"width": WIDTH, "height": HEIGHT, "rows": ROWS, "samples": SAMPLES, "bits": BITS, "codec": COMPRESSION}
    more = {number: tags[name] for name, number in numbers.items() if name in tags}
    return tiff(({**BASE, **more}, [bytes(64)]))


def chained(count: int) -> bytes:
    """A file of so many directories, of which each claims the same long list."""
    body = bytearray(b"II*\0" + struct.pack("<I", 8 + (1 << 20)) + bytes(1 << 20))
    for _ in range(count):
        at = len(body)
        entries = [(WIDTH, 4, 1, 8), (HEIGHT, 4, 1, 8), (PHOTOMETRIC, 3, 1, 1), (320, 3, 1 << 18, 8)]
        directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
        body += directory + struct.pack("<I", at + len(directory) + 4)
    return bytes(body)


def overlapping(count: int) -> bytes:
    """A file of so many strips, all of which are the same megabyte."""
    big = (1 << 20) * [0]
    tags = {**BASE, WIDTH: [1000], HEIGHT: [count], ROWS: [1], COMPRESSION: [8]}
    whole = tiff((tags, [bytes(big)] * 1))
    start = 8
    tags = {**tags, OFFSETS: [start] * count, COUNTS: [1 << 20] * count}
    return tiff((tags, [])) + whole


BOMBS = {
    "pixels": (lambda: claims(width=[100_000], height=[100_000]), "too large|damaged"),
    "megapixels": (lambda: claims(width=[10_500], height=[10_500]), "too large|damaged"),
    "samples": (lambda: claims(samples=[60_000], width=[60_000], bits=[8] * 60_000), "too large|kind that is not read"),
    "floats": (lambda: claims(width=[9_900], height=[9_900], bits=[64]), "too large|damaged"),
    "rows": (lambda: claims(rows=[1 << 30]), ""),
    "tile": (lambda: tiff(({**BASE, 322: [1 << 20], 323: [1 << 20]}, [bytes(64)])), "too large"),
    "directories": (lambda: chained(100_000 if FAULTS else 5_000), "damaged"),
    "loop": (lambda: tiff(page(noise(1, channels=1)), chain=8 + 64), ""),
    "overlap": (lambda: overlapping(5_000), "strips or tiles overlap"),
    "tags": (lambda: b"II*\0" + struct.pack("<IH", 8, 65535) + bytes(12 * 65535), "65535 tags"),
    "values": (lambda: tiff(({**BASE, 320: [0] * 300_000}, [bytes(64)])), "tag 320 of 300,000 values"),
    "nothing": (lambda: b"II*\0", "header is cut off"),
}


@pytest.mark.fault("a TIFF that is a bomb", "it is left out with the reason, or read where it is small")
@pytest.mark.parametrize("what", BOMBS)
def test_a_tiff_that_is_a_bomb(what: str) -> None:
    make, reason = BOMBS[what]
    content, started = make(), time.process_time()
    with little_memory(1 << 29), quiet_pillow():
        if reason:
            with pytest.raises(BadPicture, match=reason):
                decode_bytes(content)
        else:
            assert decode_bytes(content).pixels.shape == (8, 8, 1)
        with contextlib.suppress(BadPicture):
            assert len(pages(io.BytesIO(content))) <= 100_000
    assert time.process_time() - started < 20
