"""Pictures that Pillow decodes wrongly without an error: corrected here, or refused.

- TGA: if the header counts no alpha bits, Pillow takes the fourth channel, or the sixteenth bit, for alpha; it is
  mostly 0, and then the whole picture is transparent.
- PSD of one bit: 1 is black there.
- JPEG 2000: colour of more than 8 bits is rounded past the largest byte, so white becomes black; gray of other than 8
  or 16 bits is shifted, so white is not the largest value.

PNG and TIFF need enough corrections to have modules of their own.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops

from calotype.data.decoding.values import Samples
from calotype.data.records import BadPicture

_ATTRIBUTE_BITS = 17  # byte of a TGA's header, whose lower half counts the bits of alpha
_PIXEL_BITS = 16
_SIZ = b"\xff\x4f\xff\x51"  # where the codestream of JPEG 2000 begins
_SIZ_COMPONENTS = 40  # from there to the number of components, of three bytes each


class _Depth(NamedTuple):
    bits: int
    signed: bool


def corrected(image: Image.Image, data: bytes) -> Image.Image | Samples:
    """Correct a picture loaded by Pillow.

    Args:
        image: loaded by Pillow.
        data: the content of its file.

    Raises:
        BadPicture: what Pillow has read does not allow a correction.
    """
    if image.format == "TGA" and image.mode in ("RGBA", "LA") and not data[_ATTRIBUTE_BITS] & 15:
        return _without_alpha(image, data[_PIXEL_BITS])
    if image.format == "PSD" and image.mode == "1":
        return ImageChops.invert(image.convert("L"))
    if image.format == "JPEG2000":
        return _jpeg2000(image, data)
    return image


def _without_alpha(image: Image.Image, bits: int) -> Image.Image:
    """The picture without the unused bit of 16; with 32 bits, without an alpha channel that is 0 throughout.

    Some writers of 32 bits declare no alpha bits but write alpha.
    """
    if bits == 16 or image.getchannel("A").getextrema() == (0, 0):
        return image.convert("RGB" if image.mode == "RGBA" else "L")
    return image


def _jpeg2000(image: Image.Image, data: bytes) -> Image.Image | Samples:
    depths = set(_depths(data))
    if depths == {_Depth(8, False)}:
        return image
    gray = image.mode in ("L", "I;16") and len(depths) == 1
    bits, signed = next(iter(depths), _Depth(8, False))
    if not gray or signed or bits > 16:
        raise BadPicture(
            f"JPEG 2000 of a kind that is not read: {'signed ' if signed else ''}samples of {bits} bits; save it with "
            "8 bits of colour, or as gray of 8 to 16 bits"
        )
    found = np.asarray(image)[:, :, None] >> (8 - bits if bits < 8 else 16 - bits)  # Pillow has shifted them
    top = 255 if bits < 8 else 65535
    values = np.rint(found * (top / ((1 << bits) - 1)))
    return Samples(values.astype(np.uint8 if bits < 8 else np.uint16))


def _depths(data: bytes) -> list[_Depth]:
    """The bit depth of each component. Source: ITU-T T.800, A.5.1."""
    start = data.find(_SIZ)
    components = data[start + _SIZ_COMPONENTS :]
    if start < 0 or len(components) < 2:
        raise BadPicture("damaged: the JPEG 2000 codestream has no header")
    (count,) = struct.unpack_from(">H", components)
    return [_Depth((byte & 127) + 1, byte >= 128) for byte in components[2 : 2 + 3 * count : 3]]
