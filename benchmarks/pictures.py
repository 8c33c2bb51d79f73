"""Make folders of pictures to try Calotype on: gray cells, coloured landscapes, sprites on transparency, and a mixture.

python benchmarks/pictures.py OUT --kind sprites --count 600
"""

from __future__ import annotations

import argparse
import colorsys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SCALE = 4  # drawn larger, then reduced, for soft edges


def cells(rng: np.random.Generator) -> Image.Image:
    """Bright cells with darker nuclei on a dark ground, as under a microscope: gray."""
    side = 40 * SCALE
    image = Image.new("L", (side, side), int(rng.integers(20, 45)))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(3, 7)):
        x, y, r = rng.uniform(0, side), rng.uniform(0, side), rng.uniform(0.1, 0.2) * side
        stretch = rng.uniform(0.7, 1.3)
        draw.ellipse((x - r * stretch, y - r, x + r * stretch, y + r), fill=int(rng.integers(130, 200)))
        draw.ellipse((x - r * 0.4, y - r * 0.4, x + r * 0.4, y + r * 0.4), fill=int(rng.integers(70, 100)))
    return image.filter(ImageFilter.GaussianBlur(SCALE)).resize((40, 40), Image.Resampling.BOX)


def landscape(rng: np.random.Generator) -> Image.Image:
    """A sky that fades, a sun and two hills that run out of the picture on both sides: RGB, wider than high."""
    width, height = 56 * SCALE, 40 * SCALE
    hue = rng.uniform(0.5, 0.68)
    top, bottom = (np.array(colorsys.hsv_to_rgb(hue, s, v)) for s, v in ((0.8, 0.75), (0.25, 1.0)))
    fade = np.linspace(0, 1, height)[:, None, None]
    sky = ((1 - fade) * top + fade * bottom) * 255
    image = Image.fromarray(np.broadcast_to(sky, (height, width, 3)).astype(np.uint8).copy())
    draw = ImageDraw.Draw(image)
    x, y, r = rng.uniform(0.2, 0.8) * width, rng.uniform(0.12, 0.4) * height, rng.uniform(0.07, 0.12) * height
    draw.ellipse((x - r, y - r, x + r, y + r), fill=(255, 225, 90))
    for base, colour in ((0.62, (70, 120, 80)), (0.78, (35, 80, 45))):
        phase, swing = rng.uniform(0, 6.28), rng.uniform(0.04, 0.1)
        xs = np.arange(-SCALE, width + SCALE, SCALE)
        ys = height * (base + swing * np.sin(xs / width * rng.uniform(3, 7) + phase))
        draw.polygon([(-SCALE, height), *zip(xs, ys, strict=True), (width + SCALE, height)], fill=colour)
    return image.resize((56, 40), Image.Resampling.BOX)


def sprite(rng: np.random.Generator) -> Image.Image:
    """A toadstool in a strong colour on transparency: RGBA."""
    side = 36 * SCALE
    image = Image.new("RGBA", (side, side))
    draw = ImageDraw.Draw(image)
    colour = tuple(int(255 * c) for c in colorsys.hsv_to_rgb(rng.choice([0.0, 0.08, 0.33, 0.6, 0.8]), 0.85, 0.9))
    middle, width, cap = rng.uniform(0.45, 0.55) * side, rng.uniform(0.1, 0.16) * side, rng.uniform(0.28, 0.4) * side
    top = rng.uniform(0.15, 0.3) * side
    draw.rounded_rectangle(
        (middle - width, top + cap * 0.6, middle + width, side * 0.92), width, fill=(240, 225, 200, 255)
    )
    draw.chord((middle - cap, top, middle + cap, top + cap * 1.6), 180, 360, fill=(*colour, 255))
    for _ in range(3):
        x, y, r = middle + rng.uniform(-0.6, 0.6) * cap, top + rng.uniform(0.25, 0.65) * cap, 0.1 * cap
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(255, 255, 255, 255))
    return image.resize((36, 36), Image.Resampling.LANCZOS)


KINDS: Mapping[str, tuple[Callable[[np.random.Generator], Image.Image], ...]] = {
    "cells": (cells,),
    "landscapes": (landscape,),
    "sprites": (sprite,),
    "mixed": (cells, landscape, sprite),
}


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kind", choices=KINDS, default="mixed")
    parser.add_argument("--count", type=int, default=600)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    makers = KINDS[options.kind]
    for k in range(options.count):
        image = makers[k % len(makers)](np.random.Generator(np.random.Philox(key=k)))
        kind = "jpg" if image.mode == "RGB" and k % 2 else "png"
        image.save(options.out / f"{k:05d}.{kind}", quality=92)


if __name__ == "__main__":
    main()
