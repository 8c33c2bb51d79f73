from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from calotype.data.config import ValueRange
from calotype.data.decode import decode_array, decode_bytes, quiet_pillow, read_facts
from calotype.data.decoding.values import suggest_range
from calotype.data.records import BadPicture, Values
from tests.pictures import TRANSPOSED, encode, encode_image, noise, png16, png_chunks, png_header, smooth

GRAY, RGB, RGBA = noise(1, channels=1), noise(2), noise(3, channels=4)


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


@pytest.mark.parametrize("pixels", [GRAY, RGB, RGBA], ids=["gray", "rgb", "rgba"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_lossless_files_give_their_pixels(pixels, kind):
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    decoded = decode_bytes(encode(pixels, kind, **options)).pixels
    expected = np.repeat(pixels, 3, axis=2) if kind == "WEBP" and pixels is GRAY else pixels  # WebP has no gray
    np.testing.assert_array_equal(decoded, expected)


def test_one_bit_is_black_and_white():
    bits = GRAY[:, :, 0] > 127
    np.testing.assert_array_equal(decode_bytes(encode(bits)).pixels[:, :, 0], bits * 255)


def test_gray_with_alpha_becomes_rgba():
    decoded = decode_bytes(encode_image(Image.fromarray(noise(4, channels=2), "LA"))).pixels
    np.testing.assert_array_equal(decoded, noise(4, channels=2)[:, :, [0, 0, 0, 1]])


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_palette_becomes_its_colours(kind):
    indices = np.arange(64, dtype=np.uint8).reshape(8, 8) % 4
    palette = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 8, 7]], np.uint8)
    image = Image.fromarray(indices, "P")
    image.putpalette(palette.tobytes())
    np.testing.assert_array_equal(decode_bytes(encode_image(image, kind)).pixels, palette[indices])
    transparent = decode_bytes(encode_image(image, kind, transparency=2)).pixels
    np.testing.assert_array_equal(transparent[:, :, 3], np.where(indices == 2, 0, 255))
    np.testing.assert_array_equal(transparent[indices != 2][:, :3], palette[indices][indices != 2])


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_taken(kind):
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 0, 255)))
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode_image(red, kind, save_all=True, append_images=[blue], **options)
    assert (decode_bytes(data).pixels[:, :, :3] == [255, 0, 0]).all()


def test_cmyk_jpeg_has_the_colours_of_its_inks():
    for colour in [(255, 0, 0), (0, 255, 255), (255, 255, 255), (0, 0, 0)]:
        data = encode_image(Image.new("RGB", (16, 16), colour).convert("CMYK"), "JPEG", quality=95)
        assert np.abs(decode_bytes(data).pixels.astype(int) - colour).max() <= 3


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_gray_is_scaled_and_rounded(kind):
    values = np.array([[0, 128, 129, 257, 30000, 65535]], np.uint16)
    decoded = decode_bytes(encode(values, kind))
    np.testing.assert_array_equal(decoded.pixels[:, :, 0], np.rint(values / 257))
    assert decoded.values == Values(0, 65535, True)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png_is_scaled_by_the_range_but_for_alpha(channels):
    values = np.random.default_rng(0).integers(0, 4096, (4, 5, channels)).astype(np.uint16)
    alpha = channels % 2 == 0
    expected = np.rint(values * (255 / 4095))
    if alpha:
        expected[:, :, -1] = np.rint(values[:, :, -1] / 257)
    if channels == 2:
        expected = expected[:, :, [0, 0, 0, 1]]
    np.testing.assert_array_equal(decode_bytes(png16(values), ValueRange(0, 4095)).pixels, expected)


def test_floats_are_scaled_by_the_range():
    values = np.array([[-1, 0, 0.5, 1]], np.float32)
    decoded = decode_bytes(encode(values, "TIFF"), ValueRange(-1, 1)).pixels
    np.testing.assert_array_equal(decoded[:, :, 0], [[0, 128, 191, 255]])


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.array([[0, 2]], np.float32), "0 to 2 is not within 0:1; pass --range 0:255"),
        (np.array([[-0.5, 1]], np.float32), "-0.5 to 1 is not within 0:1; pass --range -1:1"),
        (np.array([[0, 70000]], np.int32), "0 to 70000 is not within 0:65535; pass --range 0:70000"),
        (np.array([[0, np.nan]], np.float32), "NaN"),
    ],
)
def test_values_outside_the_range_are_never_clipped(values, reason):
    with pytest.raises(BadPicture, match=reason):
        decode_bytes(encode(values, "TIFF"))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (Values(0, 4095, True), "0:4095"),
        (Values(3, 256, True), "0:1023"),
        (Values(-5, 9, True), "-5:9"),
        (Values(0, 1, False), "0:1"),
        (Values(0, 1.5, False), "0:255"),
        (Values(-3.5, 2.5, False), "-4:3"),
    ],
)
def test_the_suggested_range_holds_the_values(values, text):
    assert suggest_range(values) == text


# What each EXIF orientation means: the stored picture is the upright one after this.
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG"])
def test_orientation_is_applied(kind, orientation):
    upright = smooth(5, 24, 40)
    stored = np.ascontiguousarray(STORED[orientation](upright))
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    data = encode(stored, kind, exif=exif(orientation), **options)
    decoded = decode_bytes(data).pixels
    assert np.abs(decoded.astype(int) - upright).max() <= (12 if kind == "JPEG" else 0)
    facts = read_facts(io.BytesIO(data))
    assert (facts.width, facts.height) == (40, 24)


def test_orientation_of_cmyk_and_gray_jpeg():
    for mode in ("CMYK", "L"):
        image = Image.new("RGB", (8, 32), (200, 100, 50)).convert(mode)
        assert decode_bytes(encode_image(image, "JPEG", exif=exif(TRANSPOSED))).pixels.shape[:2] == (8, 32)


def test_content_decides_not_the_name():
    assert read_facts(io.BytesIO(encode(RGB, "PNG"))).format == "PNG"
    assert read_facts(io.BytesIO(encode(smooth(1), "JPEG"))).format == "JPEG"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"just some text, and a bit more of it", "not a picture"),
        (encode(smooth(1), "JPEG")[:-200], "damaged: Premature end"),
        (encode_image(Image.fromarray(smooth(1)).convert("CMYK"), "JPEG")[:-200], "damaged"),
        (encode(noise(1, 64, 64))[:-2000], "damaged"),
        (encode(noise(1, 64, 64), "TIFF")[:-2000], "damaged"),
        (encode(noise(1, 64, 64), "WEBP")[:-200], "damaged|not a picture"),
        (png_chunks(b"", b""), "damaged|not a picture"),
        (png_header(30_000, 30_000), "too large"),
        (png_header(9_600, 10_500), "too large: 9600x10500 is more than 100 megapixels"),
    ],
)
def test_bad_files_say_why(data, reason):
    with quiet_pillow(), pytest.raises(BadPicture, match=reason):
        decode_bytes(data)


def test_a_bomb_is_refused_from_its_header():
    with quiet_pillow(), pytest.raises(BadPicture, match="too large"):
        read_facts(io.BytesIO(png_header(20_000, 20_000)))


def test_large_jpegs_are_decoded_small_but_not_too_small():
    data = encode(smooth(3, 400, 640), "JPEG")
    height, width, _ = decode_bytes(data, min_side=64).pixels.shape
    assert 64 <= height < 400
    assert width / height == pytest.approx(1.6, rel=0.02)


def test_arrays_of_bytes_and_bools_keep_their_meaning():
    np.testing.assert_array_equal(decode_array(RGB).pixels, RGB)
    np.testing.assert_array_equal(decode_array(GRAY[:, :, 0] > 9).pixels[:, :, 0], (GRAY[:, :, 0] > 9) * 255)
    with pytest.raises(BadPicture, match="int64"):
        decode_array(GRAY.astype(np.int64))
    np.testing.assert_array_equal(decode_array(GRAY.astype(np.int64), ValueRange(0, 255)).pixels, GRAY)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"]), st.data())
def test_damage_gives_a_picture_or_a_reason_and_nothing_else(kind, data):
    whole = bytearray(encode(smooth(9, 16, 16), kind))
    for _ in range(data.draw(st.integers(1, 5))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with quiet_pillow():
        try:
            pixels = decode_bytes(bytes(whole[: data.draw(st.integers(0, len(whole)))])).pixels
        except BadPicture as error:
            assert error.reason  # noqa: PT017
        else:
            assert pixels.dtype == np.uint8
            assert pixels.ndim == 3
            assert pixels.shape[2] in (1, 3, 4)


@pytest.mark.parametrize("pixels", [GRAY, RGB, RGBA, GRAY[:, :, 0] > 9], ids=["gray", "rgb", "rgba", "1-bit"])
@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_facts_are_those_of_the_decoded_picture(pixels, kind):
    facts = read_facts(io.BytesIO(encode(pixels, kind)))
    assert (facts.format, facts.width, facts.height) == (kind, 8, 8)
    assert facts.colour == (pixels.ndim == 3 and pixels.shape[2] >= 3)
    assert (facts.alpha is None) == (pixels is RGBA and kind != "BMP")


def test_facts_of_a_key_colour_and_of_a_header_cut_short():
    image = Image.fromarray(RGB)
    assert read_facts(io.BytesIO(encode_image(image, transparency=(1, 2, 3)))).alpha is None
    for length in range(1, 40):
        with quiet_pillow(), pytest.raises(BadPicture):
            read_facts(io.BytesIO((encode_image(image)[:16] + b"IDAT" * 9)[:length]))
