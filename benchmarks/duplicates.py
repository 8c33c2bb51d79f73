"""Which copies of pictures are found, and which different pictures are taken for copies? One JSON line per kind.

    python benchmarks/duplicates.py
    python benchmarks/duplicates.py --data ../shared/data/mnist --data ../shared/data/cifar10

Of each kind, pictures are drawn or read, and pairs among them that are called near duplicates are false (or were there
before, in real data). A tenth is copied: as JPEG before and after packing, scaled, and made brighter or darker; recall
is the share of copies that are found. `at` is the recall of each change, at the stated rate of false pairs.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from calotype.data import DataConfig, prepare
from calotype.data.duplicates import exact_duplicates, near_duplicates
from calotype.data.sources.sources import locate, open_source

SIDE, LARGE = 32, 96
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSansMono", "DejaVuSansMono-Oblique")
Draw = Callable[[np.random.Generator], Image.Image]


def colour(rng: np.random.Generator) -> tuple[int, ...]:
    """Any."""
    return tuple(rng.integers(0, 256, 3).tolist())


def drawing(rng: np.random.Generator) -> Image.Image:
    """Flat shapes on a flat ground."""
    image = Image.new("RGB", (LARGE, LARGE), colour(rng))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(2, 5)):
        (x, y), (w, h) = rng.uniform(10, 86, 2), rng.uniform(8, 30, 2)
        shape = (draw.ellipse, draw.rectangle)[rng.integers(2)]
        shape((x - w, y - h, x + w, y + h), fill=colour(rng))
    return image


def line(rng: np.random.Generator) -> Image.Image:
    """A thin dark stroke on white."""
    image = Image.new("RGB", (LARGE, LARGE), (255, 255, 255))
    steps = np.concatenate([rng.uniform(20, 76, (1, 2)), rng.normal(0, 16, (6, 2))])
    points = [(x, y) for x, y in np.cumsum(steps, 0).clip(2, 94).tolist()]
    ImageDraw.Draw(image).line(points, fill=(20, 20, 20), width=4, joint="curve")
    return image


def icon(rng: np.random.Generator) -> Image.Image:
    """A white sign on one of three grounds: most of two icons is the same."""
    image = Image.new("RGB", (LARGE, LARGE), (255, 255, 255))
    draw = ImageDraw.Draw(image)
    ground = ((200, 40, 40), (40, 90, 200), (50, 160, 80))[rng.integers(3)]
    draw.rounded_rectangle((8, 8, 88, 88), 18, fill=ground)
    draw.text((48, 48), chr(rng.integers(0x21, 0x7F)), font=font(rng), fill=(255, 255, 255), anchor="mm")
    return image


def font(rng: np.random.Generator) -> ImageFont.FreeTypeFont:
    """One of few, in steps of size that differ."""
    folder = Path(matplotlib.get_data_path()) / "fonts/ttf"
    return ImageFont.truetype(
        str(folder / f"{FONTS[rng.integers(len(FONTS))]}.ttf"), int(rng.integers(36, 64, endpoint=True) // 7 * 7)
    )


def photo(rng: np.random.Generator) -> Image.Image:
    """Random phases with the spectrum of photographs, in correlated colours."""
    frequency = np.fft.fftfreq(LARGE)[:, None] ** 2 + np.fft.fftfreq(LARGE) ** 2
    frequency[0, 0] = 1
    values = np.fft.ifft2(np.fft.fft2(rng.normal(size=(3, LARGE, LARGE))) / frequency**0.6).real
    values = np.einsum("ij,jhw->hwi", np.array([[1, 0.6, 0.1], [1, 0, -0.3], [1, -0.5, 0.3]]), values)
    values = (values - values.mean()) / values.std() * rng.uniform(25, 60) + rng.uniform(80, 170)
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


KINDS: Mapping[str, Draw] = {"drawings": drawing, "lines": line, "icons": icon, "photos": photo}


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    """Through a JPEG file."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert(image.mode)


def scaled(image: Image.Image, factor: float) -> Image.Image:
    """Smaller or larger."""
    size = round(image.width * factor), round(image.height * factor)
    return image.resize(size, Image.Resampling.BICUBIC)


def packed(image: Image.Image) -> Image.Image:
    """As it is packed."""
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


CHANGES: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG 90": lambda image: jpeg(image, 90),
    "JPEG 60": lambda image: jpeg(image, 60),
    "JPEG 90 once packed": lambda image: jpeg(packed(image), 90),
    "JPEG 75 once packed": lambda image: jpeg(packed(image), 75),
    "70 % of the size": lambda image: scaled(image, 0.7),
    "150 % of the size": lambda image: scaled(image, 1.5),
    "brighter": lambda image: image.point(lambda v: min(255, v + 8)),
    "more contrast": lambda image: image.point(lambda v: min(255, int(1.08 * v))),
    "darker": lambda image: image.point(lambda v: int(0.92 * v)),
    "smaller and JPEG 80": lambda image: jpeg(scaled(image, 0.7), 80),
}


def array(images: list[Image.Image]) -> np.ndarray:
    """uint8 (N, H, W, C), once packed."""
    values = np.stack([np.asarray(packed(image)) for image in images])
    return values[..., None] if values.ndim == 3 else values


def glyphs(n: int) -> list[Image.Image]:
    """Built-in letters: many of one letter."""
    config = DataConfig(source=f"glyphs:gray:{n}:0", width=SIDE, height=SIDE)
    records = open_source(locate(config.source), config).records()
    return [Image.fromarray(np.asarray(record.load().content).squeeze()) for record in records]


def read(source: str, n: int) -> list[Image.Image]:
    """Training pictures of a source."""
    dataset = prepare(DataConfig(source=source, labels=False))
    return [Image.fromarray(image.squeeze()) for image in dataset.images[dataset.train[:n]]]


def judge(name: str, images: list[Image.Image], copied: int) -> None:
    """Print what is found of a kind."""
    first = array(images)
    same = {i for group in exact_duplicates(first) for i in group[1:]}
    started = time.perf_counter()
    alone = near_duplicates(first, same)
    seconds = time.perf_counter() - started
    different = len(images) - len(same)
    false = len(alone.pairs) / (different * (different - 1) / 2)
    chosen = [i for i in range(len(images)) if i not in same][:copied]
    recall = {}
    for change, made in CHANGES.items():
        copies = array([made(images[i]) for i in chosen])
        both = np.concatenate([first[chosen], copies])
        equal = (first[chosen] == copies).all((1, 2, 3))
        found = {tuple(pair) for pair in near_duplicates(both, set()).pairs.tolist()}
        recall[change] = np.mean([equal[k] or (k, k + len(chosen)) in found for k in range(len(chosen))])
    figures = {
        "benchmark": f"duplicates/{name}",
        "value": round(float(np.mean(list(recall.values()))), 4),
        "unit": "recall of copies, the mean over changes",
        "false_pairs": len(alone.pairs),
        "rate_of_false_pairs": float(f"{false:.2g}"),
        "pictures": different,
        "seconds": round(seconds, 2),
        "complete": alone.complete,
        "at": {change: round(float(value), 3) for change, value in recall.items()},
    }
    print(json.dumps(figures), flush=True)


def main() -> None:
    """Draw, copy, find, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5_000)
    parser.add_argument("--copied", type=int, default=500)
    parser.add_argument("--data", action="append", default=[], help="a source to measure too, such as CIFAR-10")
    options = parser.parse_args()
    for name, draw in KINDS.items():
        judge(name, [draw(np.random.Generator(np.random.Philox(key=k))) for k in range(options.count)], options.copied)
    judge("glyphs", glyphs(options.count), options.copied)
    for source in options.data:
        judge(source, read(source, options.count), options.copied)


if __name__ == "__main__":
    main()
