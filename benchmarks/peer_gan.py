"""Training throughput beside torch-mimicry's DCGAN-32 and SNGAN-32. Prints one JSON line per figure.

    python benchmarks/peer_gan.py PATH

PATH is a checkout of github.com/kwotsin/mimicry (its package asks for torchvision and tensorboard, of which these
networks need nothing). Both sides have the same networks of residual blocks, 4.28 and 1.05 M parameters, with and
without spectral normalisation, in batches of 64, and as many steps of the discriminator for one of the generator:
theirs their `train_step` with Adam, ours our trainer with its data, clipping and average, in float32 and in the
precision that it chooses on this machine. Then the preset `tiny`, beside a matrix product and a convolution, which
on some processors is the faster. Steps are interleaved, each with malloc as its program leaves it or sets it; images/s
are those that the discriminator sees of real ones.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from interleaved import operations, timed, yardsticks
from memory import as_it_comes

from calotype.core import devices
from calotype.core.config import build
from calotype.core.images import to_unit
from calotype.core.rng import seeded
from calotype.data import DataConfig, PackedDataset, prepare
from calotype.data.packs.batches import Batches
from calotype.families.gan import GAN, GANConfig
from calotype.families.gan.presets import SNGAN
from calotype.optimization.config import TrainConfig
from calotype.optimization.trainer import Trainer
from calotype.training.planner import OF_THE_PRESET

ROWS = {  # name -> theirs: module, names, loss; ours; steps of the discriminator
    "dcgan-32": ("dcgan.dcgan_32", "DCGAN", "ns", replace(SNGAN, loss="non-saturating", spectral=False), 1),
    "sngan-32": ("sngan.sngan_32", "SNGAN", "hinge", SNGAN, 5),
}


class Log:
    """What their steps write their figures to."""

    def add_metric(self, *_: Any, **__: Any) -> None:
        """Nothing is kept."""


def peer(path: Path, name: str) -> tuple[Any, Any]:
    """Their generator and discriminator, imported without the parts of the package that need more than torch."""
    for package in ("", ".nets", ".nets.dcgan", ".nets.sngan", ".nets.gan", ".nets.basemodel"):
        module = ModuleType(f"torch_mimicry{package}")
        module.__path__ = [str(path / f"torch_mimicry{package}".replace(".", "/"))]
        sys.modules[module.__name__] = module
    where, prefix, loss, *_ = ROWS[name]
    theirs = importlib.import_module(f"torch_mimicry.nets.{where}")
    with seeded(0):
        generator = getattr(theirs, f"{prefix}Generator32")(loss_type=loss)
        return generator, getattr(theirs, f"{prefix}Discriminator32")(loss_type=loss)


def trainer_of(packed: PackedDataset, config: GANConfig, **training: Any) -> Trainer:
    """Our trainer of a GAN."""
    values = {"images": 10**9, "learning_rate": 2e-4, "beta1": 0.0, "beta2": 0.9, **training}
    chosen = build(TrainConfig, values, "training")
    with seeded(0):
        model = GAN(packed.spec, config)
    return Trainer(model, Batches(packed, packed.train, chosen.batch_size, seed=0), chosen)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", type=Path)
    parser.add_argument("--networks", nargs="*", choices=ROWS, default=list(ROWS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    packed = prepare(DataConfig(source="glyphs:rgb:2000", width=32, height=32, labels=False))
    for name in options.networks:
        measure(packed, name, options)


def measure(packed: PackedDataset, name: str, options: argparse.Namespace) -> None:
    """One of their pairs of networks beside ours."""
    batch, (_, _, _, config, steps) = options.batch, ROWS[name]
    config = replace(config, critic_steps=steps)
    generator, discriminator = peer(options.peer, name)
    players = generator, discriminator
    optimizers = [torch.optim.Adam(player.parameters(), 2e-4, (0.0, 0.9)) for player in players]
    images = to_unit(Batches(packed, packed.train, batch, seed=0).at(0).images.contiguous(), torch.float32)
    pair, log = (images, torch.zeros(batch, dtype=torch.long)), Log()

    def their_step() -> None:
        for _ in range(steps):
            discriminator.train_step(pair, generator, optimizers[1], log, device="cpu")
        generator.train_step(pair, discriminator, optimizers[0], log, device="cpu")

    preset = GAN.presets(packed.spec)["tiny"]
    default = {key: getattr(preset, key) for key in OF_THE_PRESET}
    trainers = {
        "calotype, float32": trainer_of(packed, config, batch_size=batch, precision="fp32"),
        "calotype": trainer_of(packed, config, batch_size=batch),
        "tiny, float32": trainer_of(packed, preset.model, **default, precision="fp32"),
        "tiny": trainer_of(packed, preset.model, **default),
    }
    runs = {key: trainer.run() for key, trainer in trainers.items()}
    yard, work = yardsticks()
    sides: dict[str, Callable[[], object]] = {
        "mimicry": their_step,
        **{key: lambda r=r: next(r) for key, r in runs.items()},  # type: ignore[misc]
        **yard,
    }
    for key in ("mimicry", *trainers):
        work[key] = operations(sides[key])
    malloc = {"mimicry": as_it_comes}
    seconds = timed(sides, options.rounds, before=lambda key: malloc.get(key, devices.keep_memory)())
    median = {key: statistics.median(found) for key, found in seconds.items()}
    speed = {key: work[key] / median[key] / 1e9 for key in work}
    for key in ("mimicry", *trainers):
        own = trainers.get(key)
        seen = own.config.batch_size * own.model.config.critic_steps if own else batch * steps
        ratios = [b / a for a, b in zip(seconds[key], seconds["mimicry"], strict=True)]
        figures: dict[str, Any] = {
            "benchmark": f"gan-{name}/{key}",
            "value": round(seen / median[key], 1),
            "unit": "real images/s",
            "discriminator_steps": own.model.config.critic_steps if own else steps,
            "gemm_gflops": round(speed["gemm"], 1),
            "convolution_gflops": round(speed["convolution"], 1),
            "threads": options.threads,
        }
        if not key.startswith("tiny"):
            figures["times_mimicry"] = round(statistics.median(ratios), 2)
        figures["share_of_gemm"] = round(speed[key] / speed["gemm"], 3)
        figures["share_of_convolution"] = round(speed[key] / speed["convolution"], 3)
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
