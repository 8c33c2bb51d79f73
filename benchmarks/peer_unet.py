"""Training throughput beside diffusers' UNet2DModel of the same architecture. Prints one JSON line per figure.

    python benchmarks/peer_unet.py

Needs `diffusers` (0.42 was used) in an environment of one's own; it is no dependency of Calotype. Both networks have
the widths, blocks, attention and parameters of the diffusers course (32, 64, 64 at 28x28), and both sides are a
training loop as it is written for them: diffusers' with its scheduler's noising, AdamW and its default layout, as its
training example has it; ours the trainer. Steps are interleaved, and a matrix product is timed in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics

import torch
import torch.nn.functional as F
from interleaved import operations, timed, yardsticks
from torch.nn.attention import SDPBackend, sdpa_kernel

from calotype.core.images import to_unit
from calotype.core.rng import Noise, seeded
from calotype.data import DataConfig, prepare
from calotype.data.packs.batches import Batches
from calotype.families.diffusion import Diffusion, DiffusionConfig
from calotype.optimization.config import TrainConfig
from calotype.optimization.trainer import Trainer


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    from diffusers import DDPMScheduler, UNet2DModel

    packed = prepare(DataConfig(source="glyphs:gray:2000", width=28, height=28, labels=False))
    batches = Batches(packed, packed.train, options.batch, seed=0)
    config = DiffusionConfig(
        widths=(32, 64, 64), blocks=2, attention=(1, 2), patch=1, design="ddpm", sigma_data=0.5, label_dropout=0
    )
    with seeded(0):
        ours = Diffusion(packed.spec, config)
        theirs = UNet2DModel(
            sample_size=28,
            in_channels=1,
            out_channels=1,
            layers_per_block=2,
            block_out_channels=(32, 64, 64),
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        )
    steps = Trainer(ours, batches, TrainConfig(images=10**9, batch_size=options.batch, learning_rate=1e-4)).run()
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-4)
    batch = to_unit(batches.at(0).images)

    def their_step() -> None:
        noise = Noise.shared(0, len(batch), "cpu")
        t, n = (noise.uniform() * 1000).long(), noise.normal(*batch.shape[1:])
        loss = F.mse_loss(theirs(scheduler.add_noise(batch, n, t), t).sample, n)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    yard, work = yardsticks()
    sides = {"calotype": lambda: next(steps), "diffusers": their_step, "gemm": yard["gemm"]}
    for name in ("calotype", "diffusers"):
        with sdpa_kernel(SDPBackend.MATH):  # fused attention counts as 0
            work[name] = operations(sides[name])
    seconds = timed(sides, options.rounds)
    speed = {name: work[name] / statistics.median(seconds[name]) / 1e9 for name in sides}
    ratios = [b / a for a, b in zip(seconds["calotype"], seconds["diffusers"], strict=True)]
    shared = {"threads": options.threads, "batch": options.batch, "gemm_gflops": round(speed["gemm"], 1)}
    for name, model in (("calotype", ours), ("diffusers", theirs)):
        figures = {
            "benchmark": f"unet/{name}",
            "value": round(options.batch / statistics.median(seconds[name]), 1),
            "unit": "images/s",
            "parameters": sum(p.numel() for p in model.parameters()),
            "gflop_per_image": round(work[name] / options.batch / 1e9, 3),
            "share_of_gemm": round(speed[name] / speed["gemm"], 3),
        }
        print(json.dumps(figures | shared))
    figures = {
        "benchmark": "unet/ratio",
        "value": round(statistics.median(ratios), 3),
        "unit": "times the images/s of diffusers",
        "target": 1.2,
        "repeats": [round(r, 3) for r in ratios],
    }
    print(json.dumps(figures | shared))


if __name__ == "__main__":
    main()
