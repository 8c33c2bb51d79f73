"""Which likelihood learns flat colours, and which photographs? Bits/dim after equal time, one JSON line per row.

    python benchmarks/flat.py --seconds 60
    python benchmarks/flat.py --kinds sprites --size 24 --samples /tmp/sprites

Kinds of pictures, drawn anew: flat shapes of any colours; sprites of a palette of 16 colours, or of 256, in RGB, and
cut out of their ground, in RGBA; icons with smooth edges; letters; objects on white; photographs, and those of 16
colours each. `photos` are random phases with the spectrum of photographs. Each row is the preset tiny with the stated
settings, trained on the images that it sees in the given processor time at its speed, and judged by the bits/dim of
held-out images: exact of autoregressive models, a bound of VAEs. `flat_share` is the fact by which `auto` chooses.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from duplicates import LARGE, drawing, icon, photo
from likelihoods import bits, changed
from PIL import Image, ImageDraw

from calotype.core.config import build, plain
from calotype.core.images import grid, write_png
from calotype.core.rng import seeded
from calotype.data import DataConfig, PackedDataset, prepare
from calotype.data.packs.batches import Batches
from calotype.families import FAMILIES
from calotype.nn.distributions import flat_share
from calotype.optimization.trainer import Trainer
from calotype.sampling import sampler

GATED = {"network": "gated-pixelcnn", "widths": (32,), "blocks": (5,), "attention": ()}
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "causal-unet logistics": ("autoregressive", {"likelihood": "logistics"}),
    "causal-unet categorical": ("autoregressive", {"likelihood": "categorical"}),
    "gated-pixelcnn logistics": ("autoregressive", GATED | {"likelihood": "logistics"}),
    "gated-pixelcnn categorical": ("autoregressive", GATED | {"likelihood": "categorical"}),
    "vae logistics": ("vae", {"likelihood": "logistics"}),
    "vae categorical": ("vae", {"likelihood": "categorical"}),
}
PALETTE = np.random.Generator(np.random.Philox(key=2**32)).integers(0, 256, (256, 4)).astype(np.uint8)
HELD_OUT = 200


def sprite(rng: np.random.Generator, side: int, colours: int, transparent: bool) -> Image.Image:
    """A symmetric figure of four colours of the first of the palette, with an outline, on a ground of its own."""
    ground, outline, *body = PALETTE[rng.permutation(colours)[:4]].copy()
    half = (side + 1) // 2
    rows, columns = np.mgrid[:side, :half]
    waves = sum(
        rng.normal() * np.sin(2 * np.pi * (rng.uniform(0, 3) * rows + rng.uniform(0, 3) * columns) / side + phase)
        for phase in rng.uniform(0, 2 * np.pi, 6)
    )
    distance = np.hypot((rows - side / 2) / side, (half - 1 - columns) / side)
    inside = np.pad((distance + 0.05 * waves < 0.33)[1:-1, 1:], ((1, 1), (1, 0)))
    grown = np.pad(inside, 1)
    near = grown[:-2, 1:-1] | grown[2:, 1:-1] | grown[1:-1, :-2] | grown[1:-1, 2:]
    pixels = np.broadcast_to(ground, (side, half, 4)).copy()
    pixels[near] = outline
    pixels[inside] = np.where((waves > 0)[..., None], body[0], body[1])[inside]
    whole = np.concatenate([pixels, pixels[:, ::-1][:, side % 2 :]], 1)
    whole[..., 3] = 255
    if transparent:
        known = np.concatenate([near | inside, (near | inside)[:, ::-1][:, side % 2 :]], 1)
        whole[~known] = 0
    return Image.fromarray(whole if transparent else whole[..., :3].copy())


def product(rng: np.random.Generator) -> Image.Image:
    """An object with the texture of a photograph, on white."""
    mask = Image.new("L", (LARGE, LARGE), 0)
    (x, y), (w, h) = rng.uniform(36, 60, 2), rng.uniform(18, 34, 2)
    ImageDraw.Draw(mask).ellipse((x - w, y - h, x + w, y + h), fill=255)
    image = Image.new("RGB", (LARGE, LARGE), (255, 255, 255))
    image.paste(photo(rng), mask=mask)
    return image


def picture(kind: str, rng: np.random.Generator, side: int) -> Image.Image:
    """One of a kind, of side x side pixels."""
    if kind in ("sprites", "cutouts", "sprites256"):
        return sprite(rng, side, 256 if kind == "sprites256" else 16, kind == "cutouts")
    if kind == "drawings":
        return drawing(rng).resize((side, side), Image.Resampling.NEAREST)
    if kind == "gifs":
        return photo(rng).resize((side, side), Image.Resampling.LANCZOS).quantize(16).convert("RGB")
    draw = {"icons": icon, "products": product, "photos": photo}[kind]
    return draw(rng).resize((side, side), Image.Resampling.LANCZOS)


def pictures(kind: str, count: int, side: int, place: Path) -> PackedDataset:
    """A pack of pictures of a kind, or of a source as they are."""
    if "/" in kind:
        return prepare(DataConfig(source=kind, labels=False), cache=place / "cache")
    folder = place / kind
    source = f"glyphs:gray:{count}" if kind == "glyphs" else f"{kind}:{count}"
    if not kind.startswith("glyphs"):
        folder.mkdir()
        source = str(folder)
        for k in range(count):
            picture(kind, np.random.Generator(np.random.Philox(key=k)), side).save(folder / f"{k:05d}.png")
    config = DataConfig(source=source, width=side, height=side, labels=False)
    return prepare(config, cache=place / "cache")


def trainer_of(packed: PackedDataset, family: str, settings: dict[str, Any], images: int) -> Trainer:
    """The trainer of a row."""
    kind = FAMILIES[family]
    preset = kind.presets(packed.spec)["tiny"]
    model = plain(preset.model) | settings
    training = changed(preset, model, {}, images=images, threads=torch.get_num_threads())
    with seeded(0):
        network = kind(packed.spec, build(kind.Config, model, "model"))
    return Trainer(network, Batches(packed, packed.train, training.batch_size, seed=0), training)


def speed(trainer: Trainer, seconds: float) -> float:
    """Images a second of processor time."""
    durations, before = [], time.process_time()
    for _ in trainer.run():
        durations.append(time.process_time() - before)
        before = time.process_time()
        if len(durations) > 5 and sum(durations) > seconds:
            break
    return trainer.config.batch_size / float(np.median(durations[2:]))


def possible(name: str, packed: PackedDataset) -> bool:
    """Whether a row can be of such images."""
    return packed.spec.channels > 1 or not name.startswith("gated")


def main() -> None:
    """Draw, train, judge, print."""
    kinds = (
        *("drawings", "sprites", "sprites256", "cutouts", "icons"),
        *("glyphs", "glyphs:rgb", "products", "gifs", "photos"),
    )
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--count", type=int, default=3_000)
    parser.add_argument("--side", type=int, default=16)
    parser.add_argument("--kinds", nargs="*", default=list(kinds), help=f"of {', '.join(kinds)}, or a path of pictures")
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=list(ROWS))
    parser.add_argument("--samples", type=Path, help="a folder for a grid of samples of each row")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.kinds:
            packed = pictures(kind, options.count, options.side, Path(folder))
            share = flat_share(packed.read(packed.train).images)
            for name in [name for name in options.rows if possible(name, packed)]:
                family, settings = ROWS[name]
                fast = speed(trainer_of(packed, family, settings, 10**9), options.seconds / 10)
                trainer = trainer_of(packed, family, settings, int(fast * options.seconds))
                list(trainer.run())
                model = trainer.ema.to_eval()
                started = time.process_time()
                drawn = sampler.sample(model, range(64), seed=0)
                drawing_seconds = time.process_time() - started
                if options.samples:
                    options.samples.mkdir(parents=True, exist_ok=True)
                    write_png(
                        options.samples / f"{Path(kind).name}-{name.replace(' ', '-')}.png".replace(":", "-"),
                        grid(drawn, 8),
                    )
                how = FAMILIES[family].Options(bound_samples=8) if family == "vae" else None
                found = bits(model, packed, HELD_OUT, options=how)
                figures = {
                    "benchmark": f"flat/{kind}/{name}",
                    "value": round(float(found.mean()), 3),
                    "unit": f"bits/dim of {len(found)} held-out images",
                    "standard_error": round(float(found.std()) / len(found) ** 0.5, 3),
                    "images": trainer.config.images,
                    "seconds": options.seconds,
                    "drawing_seconds": round(drawing_seconds, 2),
                    "parameters": sum(p.numel() for p in model.parameters()),
                    "flat_share": round(share, 3),
                }
                print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
