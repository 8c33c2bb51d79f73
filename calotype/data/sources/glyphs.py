"""Built-in data without end: the letters A to Z, drawn from the typefaces that matplotlib ships.

A letter is drawn once per typeface as a large mask, and then placed by a random affine map into an image of several
times the wanted size, which is averaged down. The map is chosen so that all ink lies inside the borders. With p a
point of the mask and q a point of the image,

    q = s L p + t,    L = rotation · shear · stretch,    s and t from the extents of L p over the ink.
"""

from __future__ import annotations

import importlib.util
import math
import string
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal, NamedTuple, Self, cast, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from calotype.core.rng import fold
from calotype.errors import ConfigError, DataError

Mode = Literal["gray", "rgb", "rgba"]

CHANNELS: dict[Mode, int] = {"gray": 1, "rgb": 3, "rgba": 4}
"""Channels of an image in each mode."""

CLASS_NAMES: tuple[str, ...] = tuple(string.ascii_uppercase)
"""The name of each label."""

# The text faces among matplotlib's fonts: the others hold mathematical symbols, or no letters at all.
TYPEFACES: tuple[str, ...] = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-Oblique",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "DejaVuSerif-BoldItalic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "STIXGeneralBolIta",
    "cmb10",
    "cmmi10",
    "cmr10",
    "cmss10",
    "cmti10",
    "cmtt10",
)
"""The typefaces in use, named as their files are."""

_MAX_ROTATION = math.radians(15)
_MAX_SHEAR = 0.2
_MAX_STRETCH = 1.15  # of width against height, either way
_MIN_FILL = 0.68  # of the largest size that fits between the margins
_MASK_MARGIN = 2  # empty pixels around a mask, so that interpolation at its edge finds no ink beyond it
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601: how bright a colour looks
_MULTIPLIERS = (1, 3, 5, 7, 9, 11, 15, 17, 19, 21, 23, 25)  # invertible modulo 26
MOST = 10_000_000  # images


@dataclass(frozen=True, kw_only=True, slots=True)
class GlyphsConfig:
    """The settings of the built-in letters."""

    mode: Mode = "gray"  # rgba has real transparency around the ink
    count: int = 10_000  # images in the data set; image i does not depend on it
    seed: int = 0  # another seed gives other images

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ConfigError(f"glyphs mode is {self.mode!r}, but letters are gray, rgb or rgba: choose one of these")
        if self.count < 1:
            raise ConfigError(f"glyphs count is {self.count}, but a data set has at least 1 image: give a larger count")
        if self.count > MOST:
            raise ConfigError(f"glyphs count is {self.count:,}, but a data set is packed whole: give at most {MOST:,}")
        if self.seed < 0:
            raise ConfigError(f"glyphs seed is {self.seed}, but a seed is 0 or more: give one without the minus sign")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `glyphs[:mode[:count[:seed]]]`, such as "glyphs", "glyphs:rgb" or "glyphs:gray:20000:7".

        Raises:
            ConfigError: the text has another form, or an entry is out of its range.
        """
        name, *entries = text.split(":")
        if name != "glyphs" or len(entries) > 3:
            raise ConfigError(
                f"{text!r} does not name built-in data: write glyphs:mode:count:seed, such as glyphs:rgb:20000:7"
            )
        default = cls()
        mode, count, seed = entries + [default.mode, str(default.count), str(default.seed)][len(entries) :]
        return cls(mode=cast(Mode, mode), count=_whole("count", count, text), seed=_whole("seed", seed, text))


def render(config: GlyphsConfig, index: int, width: int, height: int) -> tuple[NDArray[np.uint8], int]:
    """Draw image `index` of a seed; any index from 0, also beyond the count.

    The image is a function of its arguments, for one version of matplotlib's fonts and of Pillow. The letter, its
    typeface and its place are the same in every mode, and labels are balanced: each 26 images from a multiple of 26
    on are the 26 letters in an order of their own.

    Args:
        config: what to draw; the count is not read.
        index: position in the endless series, 0 or more.
        width: columns, at least 1.
        height: rows, at least 1.

    Returns:
        uint8 (height, width, channels), and the label in 0..25. Where alpha is 0 the colour is that of the ink.
    """
    if index < 0 or width < 1 or height < 1:
        raise ConfigError(
            f"glyph {index} at {width}x{height} cannot be drawn: the index starts at 0, and width and height at 1"
        )
    label = _label(config.seed, index)
    draws = _Draws(fold(config.seed, "glyph", index))
    ink = _ink(draws, label, width, height)
    return _paint(draws, ink, config.mode), label


def _whole(name: str, value: str, text: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) <= 18):  # 18 digits fit in 64 bits
        raise ConfigError(
            f"{name} is {value!r} in {text!r}, but it is a whole number, 0 or more: write digits only, such as 20000"
        )
    return int(value)


class _Draws:
    """The random values of one image, each by its name: adding a value does not change the others."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def uniform(self, name: str, low: float, high: float) -> float:
        return low + (high - low) * fold(self._seed, name) / 2**63

    def below(self, name: str, n: int) -> int:
        return fold(self._seed, name) % n


def _label(seed: int, index: int) -> int:
    """The letter of an image: each block of 26 indices is a permutation, so any interval is nearly balanced."""
    block, position = divmod(index, 26)
    key = fold(seed, "glyph labels", block)
    return (_MULTIPLIERS[key % 12] * position + key // 12) % 26


class _Mask(NamedTuple):
    """A large letter: its coverage, and points that enclose its ink."""

    image: Image.Image  # mode L, 255 where there is ink; only ever read, so threads may share it
    outline: NDArray[np.float64]  # (2, P): x and y, in pixels of the mask


def _ink(draws: _Draws, label: int, width: int, height: int) -> NDArray[np.uint8]:
    """The coverage of the letter, uint8 (height, width): 0 where there is no ink, 255 inside it."""
    oversampling = 3 if min(width, height) <= 128 else 2  # a large image has few border pixels for its size
    letter = CLASS_NAMES[label]
    # A lower-case l is an upper-case I in half of the typefaces, so L is always upper-case.
    if letter != "L" and draws.below("case", 2):
        letter = letter.lower()
    typeface = TYPEFACES[draws.below("typeface", len(TYPEFACES))]
    mask = _mask(typeface, letter, 2 * min(width, height))  # two of its pixels to one of the image

    angle = draws.uniform("rotation", -_MAX_ROTATION, _MAX_ROTATION)
    shear = draws.uniform("shear", -_MAX_SHEAR, _MAX_SHEAR)
    stretch = _MAX_STRETCH ** draws.uniform("stretch", -1, 1)
    c, s = math.cos(angle), math.sin(angle)
    linear = np.array([[c * stretch, c * shear - s], [s * stretch, s * shear + c]])
    points = linear @ mask.outline
    low = points.min(axis=1)
    extent = points.max(axis=1) - low

    # A pixel and a bit, so that the outermost pixels stay clear of ink once averaged; less in tiny images.
    size = np.array([width, height])
    margin = np.minimum(np.maximum(1.25, 0.04 * size), size / 6)
    room = size - 2 * margin
    scale = draws.uniform("scale", _MIN_FILL, 1) * float((room / extent).min())
    place = np.array([draws.uniform("left", 0, 1), draws.uniform("top", 0, 1)])
    corner = margin + place * (room - scale * extent)  # where the extents of the ink begin

    # Only the pixels that the ink may touch are drawn, one more on each side for the interpolation.
    left, top = np.maximum(np.floor(corner).astype(int) - 1, 0).tolist()
    right, bottom = np.minimum(np.ceil(corner + scale * extent).astype(int) + 1, size).tolist()
    # Pillow wants the map from the enlarged piece back to the mask.
    back = np.array([[s * shear + c, s - c * shear], [-s * stretch, c * stretch]]) / (oversampling * scale * stretch)
    start = back @ (oversampling * (np.array([left, top]) - corner + scale * low))
    piece = mask.image.transform(
        (oversampling * (right - left), oversampling * (bottom - top)),
        Image.Transform.AFFINE,
        (*back[0].tolist(), float(start[0]), *back[1].tolist(), float(start[1])),
        Image.Resampling.BILINEAR,
    )
    ink = np.zeros((height, width), np.uint8)
    ink[top:bottom, left:right] = np.asarray(piece.reduce(oversampling))
    return ink


def _paint(draws: _Draws, ink: NDArray[np.uint8], mode: Mode) -> NDArray[np.uint8]:
    """Colour a coverage: uint8 (H, W, channels)."""
    coverage = ink[:, :, None]
    if mode == "rgba":
        # Middling brightness, so that the letter shows on white and on black.
        colour = _colour(draws, "ink", draws.uniform("brightness", 70, 190))
        flat = np.broadcast_to((colour + 0.5).astype(np.uint8), (*ink.shape, 3))
        return np.concatenate([flat, coverage], axis=2)
    dark, light = draws.uniform("dark", 5, 75), draws.uniform("light", 180, 255)  # at least 105 apart
    front, back = (light, dark) if draws.below("light on dark", 2) else (dark, light)
    if mode == "gray":
        ground, colour = np.array([back]), np.array([front])
    else:
        ground, colour = _colour(draws, "background", back), _colour(draws, "ink", front)
    mixed: NDArray[np.float64] = ground + coverage * ((colour - ground) / 255)
    return (mixed + 0.5).astype(np.uint8)  # rounded: all values are in 0..255


def _colour(draws: _Draws, name: str, luma: float) -> NDArray[np.float64]:
    """A random colour of a given brightness, float (3,) in 0..255."""
    colour = np.array([draws.uniform(f"{name} {channel}", 0, 255) for channel in ("red", "green", "blue")])
    found = float(colour @ _LUMA)
    towards = 255.0 if found < luma else 0.0  # white or black: the mixture has exactly the brightness asked for
    return towards + (colour - towards) * ((luma - towards) / (found - towards))


def _mask(typeface: str, letter: str, resolution: int) -> _Mask:
    """The mask of a letter, at least as many pixels high as `resolution`."""
    size = max(32, 1 << (resolution - 1).bit_length())  # powers of two: few masks for many sizes
    # All letters in all faces take 28 MB at 128 pixels, for images of up to 64. Larger ones would fill the memory.
    return _cached_mask(typeface, letter, size) if size <= 128 else _draw_mask(typeface, letter, size)


def _draw_mask(typeface: str, letter: str, size: int) -> _Mask:
    # Font objects of its own, because threads may not share one.
    font = ImageFont.truetype(_font_file(typeface), size, layout_engine=ImageFont.Layout.BASIC)
    _, top, _, bottom = font.getbbox(letter)
    # A font's size is that of its line, and an x is half as high: enlarge the letter itself to the size wanted.
    font = font.font_variant(size=math.ceil(size * size / (bottom - top)))
    left, top, right, bottom = font.getbbox(letter)
    corner = math.floor(left) - _MASK_MARGIN, math.floor(top) - _MASK_MARGIN
    pixels = Image.new("L", (math.ceil(right) - corner[0] + _MASK_MARGIN, math.ceil(bottom) - corner[1] + _MASK_MARGIN))
    ImageDraw.Draw(pixels).text((-corner[0], -corner[1]), letter, fill=255, font=font)

    covered = np.asarray(pixels) > 0  # (H, W)
    rows = np.flatnonzero(covered.any(1))
    first = covered[rows].argmax(1)
    last = covered.shape[1] - covered[rows, ::-1].argmax(1)
    # The four corners of the stretch of ink in each row enclose all of it.
    outline = np.array([np.concatenate([first, first, last, last]), np.concatenate([rows, rows + 1] * 2)], np.float64)
    return _Mask(pixels, outline)


_cached_mask = lru_cache(maxsize=4096)(_draw_mask)


@cache
def _font_file(typeface: str) -> str:
    # find_spec does not execute matplotlib, which would take a second.
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or not spec.submodule_search_locations:
        raise DataError("glyphs need the fonts of matplotlib, which is not installed: pip install matplotlib")
    path = Path(spec.submodule_search_locations[0]) / "mpl-data" / "fonts" / "ttf" / f"{typeface}.ttf"
    if not path.is_file():
        raise DataError(f"{path} is missing, but matplotlib ships it: pip install --force-reinstall matplotlib")
    return str(path)
