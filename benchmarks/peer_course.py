"""The class-conditional U-Net of the diffusers course on MNIST, as the course trains it: the peer of `networks.py`.

    python benchmarks/peer_course.py train --data ../shared/data/mnist --images 78000 --out runs/course
    python benchmarks/peer_course.py judge --data ../shared/data/mnist --out runs/course/78080
    python benchmarks/peer_course.py speed --data ../shared/data/mnist

Needs `diffusers` (0.42 was used) in an environment of one's own; it is no dependency of Calotype. Network, noise
schedule, loss, optimizer and batch are the course's (unit 2, class-conditioned diffusion): `UNet2DModel` of widths 32,
64, 64 with attention at the two lower levels, the class as four more input channels, epsilon-prediction on 1,000 steps
of the cosine schedule, Adam at 1e-3, batches of 128. The course keeps no averaged weights; an average is kept beside
the raw ones here, so that both can be judged, by the measures of `networks.py`: samples of its own loop of 1,000 steps,
and of the solver and the number of calls that Calotype has by default, on the course's schedule. `speed` times its
training step and that of the preset tiny in turn. Prints JSON lines.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from networks import OPTIONS, SAMPLES, trainer_of
from safetensors.torch import load_file, save_file
from scoring import distance, errors, reader_of, share_read
from torch import Tensor, nn

from calotype.core.images import grid, to_bytes, to_unit, write_png
from calotype.core.model import Batch
from calotype.core.rng import Noise, fold, seeded
from calotype.data import DataConfig, PackedDataset, prepare
from calotype.data.packs.batches import Batches
from calotype.families.diffusion.schedules import FARTHEST, SCHEDULES
from calotype.families.diffusion.solvers import SOLVERS

BATCH = 128
STEPS = 1000
CLASS_CHANNELS = 4
AVERAGE = 0.999


class CourseUNet(nn.Module):
    """UNet2DModel with the class as further input channels; (x, t, labels) -> the noise in x."""

    def __init__(self, **changes: Any) -> None:
        super().__init__()
        from diffusers import UNet2DModel

        self.classes = nn.Embedding(10, CLASS_CHANNELS)
        settings = {
            "sample_size": 28,
            "in_channels": 1 + CLASS_CHANNELS,
            "out_channels": 1,
            "layers_per_block": 2,
            "block_out_channels": (32, 64, 64),
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        }
        self.model = UNet2DModel(**settings | changes)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """The noise in x."""
        rows, columns = x.shape[2:]
        maps = self.classes(labels)[:, :, None, None].expand(-1, -1, rows, columns)
        return self.model(torch.cat([x, maps], 1), t).sample


def schedule() -> Tensor:
    """Cumulative alphas of the cosine schedule, as diffusers makes them: (1000,)."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(num_train_timesteps=STEPS, beta_schedule="squaredcos_cap_v2").alphas_cumprod


def load_course(path: Path, weights: str, device: str) -> CourseUNet:
    """A trained course network, with raw or averaged weights."""
    model = CourseUNet()
    model.load_state_dict(load_file(path / f"{weights}.safetensors"))
    return model.requires_grad_(False).eval().to(device)


def course_denoiser(model: CourseUNet) -> Any:
    """(x, sigma, labels) -> the estimate of the clean image, at the nearest step, clipped as its scheduler does."""
    kept = schedule().double()
    sigmas = ((1 - kept) / kept).sqrt()

    def denoise(x: Tensor, sigma: float, labels: Tensor) -> Tensor:
        t = (sigmas.log() - math.log(sigma)).abs().argmin().to(x.device)
        return (x - sigma * model(x / (1 + sigma**2) ** 0.5, t.expand(len(x)), labels)).clamp(-1, 1)

    return denoise


def course_step(model: CourseUNet, batches: Batches, device: str = "cpu") -> Callable[[int], Tensor]:
    """The course's training step, by its number; returns the loss."""
    optimizer, kept = torch.optim.Adam(model.parameters(), lr=1e-3), schedule().to(device)

    def take(step: int) -> Tensor:
        batch, noise = batches.at(step), Noise.shared(fold(0, "course", step), BATCH, "cpu")
        assert batch.labels is not None
        x, t, n = to_unit(batch.images), (noise.uniform() * STEPS).long(), noise.normal(*batch.images.shape[1:])
        x, t, n, labels = x.to(device), t.to(device), n.to(device), batch.labels.to(device)
        share = kept[t].reshape(-1, 1, 1, 1)
        loss = F.mse_loss(model(share.sqrt() * x + (1 - share).sqrt() * n, t, labels), n)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return take


def speed(packed: PackedDataset, threads: int) -> None:
    """Print the images/s of the preset tiny as a multiple of the course's."""
    with seeded(0):
        theirs = course_step(CourseUNet(), Batches(packed, packed.train, BATCH, seed=0))
    trainer = trainer_of(packed, "tiny", 10**9, threads)
    steps, per_step = trainer.run(), trainer.config.batch_size
    ratios, rates = [], []
    for k in range(12):
        started = time.perf_counter()
        theirs(k)
        middle = time.perf_counter()
        for _ in range(4):
            next(steps)
        ended = time.perf_counter()
        if k:  # the first warms up
            rates.append((BATCH / (middle - started), 4 * per_step / (ended - middle)))
            ratios.append(rates[-1][1] / rates[-1][0])
    figures = {
        "benchmark": "peer/course/speed",
        "value": round(statistics.median(ratios), 2),
        "unit": "times the images/s of the course's network in training",
        "target": 8,
        "repeats": [round(r, 2) for r in ratios],
        "course_images_per_second": round(statistics.median(r for r, _ in rates), 1),
        "images_per_second": round(statistics.median(r for _, r in rates), 1),
        "threads": threads,
    }
    print(json.dumps(figures), flush=True)


def few_calls(model: CourseUNet, x: Tensor, labels: Tensor, noise: Noise) -> Tensor:
    """Samples by our default solver, from x ~ N(0, I)."""
    known = SCHEDULES["cosine"](0.0, 1.0, 1.0)
    ramp = torch.linspace(1, 0, OPTIONS.steps, dtype=torch.float64)
    sigmas = known.smallest * (FARTHEST / known.smallest) ** ramp
    sigmas = torch.cat([sigmas, torch.zeros(1, dtype=torch.float64)])
    denoise = partial(course_denoiser(model), labels=labels)
    return SOLVERS[OPTIONS.solver](denoise, x * float(sigmas[0]), sigmas, noise, 0.0)


def own_loop(model: CourseUNet, x: Tensor, labels: Tensor, noise: Noise) -> Tensor:
    """Samples as the course draws them, from x ~ N(0, I): 1,000 steps of its scheduler."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(num_train_timesteps=STEPS, beta_schedule="squaredcos_cap_v2")
    generator = torch.Generator(x.device).manual_seed(fold(7, "loop"))
    for t in scheduler.timesteps.to(x.device):
        x = scheduler.step(model(x, t.expand(len(x)), labels), t, x, generator=generator).prev_sample
    return x


@torch.no_grad()
def judge(
    packed: PackedDataset, place: Path, reader: nn.Sequential, weights: Sequence[str], device: str, samples: int
) -> None:
    """Print how good the raw or the averaged weights are."""
    held_out = packed.read(packed.held_out)
    assert held_out.labels is not None
    some = Batch(held_out.images[:512], held_out.labels[:512])
    asked = torch.arange(samples) % 10
    for name in weights:
        model = load_course(place, name, device)
        for way in (few_calls, own_loop):
            drawn = []
            for start in range(0, samples, 500):
                labels = asked[start:][:500]
                noise = Noise.per_image(fold(7, "sample"), range(start, start + len(labels)), device)
                drawn.append(to_bytes(way(model, noise.normal(*packed.spec.shape), labels.to(device), noise)).cpu())
            images = torch.cat(drawn)
            write_png(place / f"{name}-{way.__name__}.png", grid(images[:100], 10))
            figures = {
                "benchmark": f"peer/course/{name}/{way.__name__}",
                "value": distance(reader, images, held_out.images),
                "unit": f"Fréchet distance of {samples} samples in the reader's features",
                "read": share_read(reader, images, asked),
                "errors": errors(course_denoiser(model), some, device),
                "images_seen": int(place.name),
            }
            print(json.dumps(figures), flush=True)


def main() -> None:
    """Train, judge or time, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["train", "judge", "speed"])
    parser.add_argument("--data", default="../shared/data/mnist")
    parser.add_argument("--images", type=int, default=78_000)
    parser.add_argument("--marks", type=int, nargs="*", default=[], help="images seen at which to save as well")
    parser.add_argument("--out", type=Path, default=Path("runs/course"))
    parser.add_argument("--weights", nargs="*", default=["raw", "average"], help="to judge: raw, average")
    parser.add_argument("--reader", type=Path, default=Path("runs/networks/reader.safetensors"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--samples", type=int, default=SAMPLES, help="to judge by")
    parser.add_argument("--device", default="cpu", help="to train and judge on")
    options = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_num_threads(options.threads)
    packed = prepare(DataConfig(source=options.data))
    if options.command == "judge":
        reader = reader_of(packed, options.reader)
        judge(packed, options.out, reader, options.weights, options.device, options.samples)
        return
    if options.command == "speed":
        speed(packed, options.threads)
        return
    with seeded(0):
        model = CourseUNet().to(options.device)
        average = CourseUNet().to(options.device)
    average.load_state_dict(model.state_dict())
    step_of = course_step(model, Batches(packed, packed.train, BATCH, seed=0), options.device)
    marks = sorted({-(-m // BATCH) for m in [*options.marks, options.images]})
    started = time.process_time()
    for step in range(marks[-1]):
        loss = step_of(step)
        decay = min(AVERAGE, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        if step + 1 in marks:
            place = options.out / str((step + 1) * BATCH)
            place.mkdir(parents=True, exist_ok=True)
            save_file(model.state_dict(), place / "raw.safetensors")
            save_file(average.state_dict(), place / "average.safetensors")
            figures = {
                "benchmark": "peer/course",
                "images_seen": (step + 1) * BATCH,
                "cpu_seconds": round(time.process_time() - started, 1),
                "loss": round(loss.item(), 4),
                "parameters": sum(p.numel() for p in model.parameters()),
                "threads": options.threads,
            }
            print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
