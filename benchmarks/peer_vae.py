"""Training throughput beside pythae's autoencoders for MNIST. Prints one JSON line per figure.

    pip install --no-deps pythae==0.1.2 && pip install pydantic imageio scikit-learn cloudpickle
    python benchmarks/peer_vae.py

On their side a step of their VAE with its own encoder and decoder and Adam, as their trainer does it, without the time
of their data loader. On ours a step of our trainer, with its data, clipping and average: of their network and loss, in
float32 and in the precision that it chooses on this machine; of a VAE of ours with as many parameters, `plain`; and of
the ladder, the preset `tiny`, beside the speed of a matrix product and of a 3 x 3 convolution, which on some processors
is the faster. Steps are interleaved, each with malloc as its program leaves it or sets it. The length of a step is the
median over rounds, and a ratio the median of ratios of one round.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from interleaved import operations, timed, yardsticks
from memory import as_it_comes

from calotype.core import devices
from calotype.core.config import build, plain
from calotype.core.model import Batch, Loss, Trainable, Turn
from calotype.core.rng import Noise, seeded
from calotype.data import DataConfig, PackedDataset, prepare
from calotype.data.packs.batches import Batches
from calotype.families.vae import VAE, VAEConfig
from calotype.optimization.config import TrainConfig
from calotype.optimization.trainer import Trainer
from calotype.training.planner import OF_THE_PRESET

PEERS = {  # module and names of encoder and decoder, and the widths of a VAE of ours of that size
    "resnet": ("resnets", "Encoder_ResNet_VAE_MNIST", "Decoder_ResNet_AE_MNIST", (32, 48, 64, 64)),
    "conv": ("convnets", "Encoder_Conv_VAE_MNIST", "Decoder_Conv_AE_MNIST", (128, 256, 320, 320)),
}


class Theirs(Trainable):
    """Their model, for our trainer."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def turns(self) -> Sequence[Turn]:
        """One."""
        return (Turn("model", self.loss),)

    def loss(self, batch: Batch, noise: Noise) -> Loss:
        """As they compute it."""
        return Loss(self.model({"data": batch.images / 255}).loss, {})


def peer(name: str) -> Any:
    """Their VAE, with 16 latents."""
    models = importlib.import_module("pythae.models")
    module, encoder, decoder, _ = PEERS[name]
    networks = importlib.import_module(f"pythae.models.nn.benchmarks.mnist.{module}")
    config = models.VAEConfig(input_dim=(1, 28, 28), latent_dim=16, reconstruction_loss="bce")
    with seeded(0):
        parts = {"encoder": getattr(networks, encoder)(config), "decoder": getattr(networks, decoder)(config)}
        return models.VAE(config, **parts)


def trainer_of(packed: PackedDataset, model: Trainable, batch: int, **training: Any) -> Trainer:
    """Our trainer."""
    values = {"images": 10**9, "batch_size": batch, "learning_rate": 1e-3, **training}
    chosen = build(TrainConfig, values, "training")
    return Trainer(model, Batches(packed, packed.train, batch, seed=0), chosen)


def ours(packed: PackedDataset, preset: str, **changes: Any) -> VAE:
    """A VAE of ours, of binary images as theirs is of gray ones by their cross entropy."""
    config = plain(VAE.presets(packed.spec)[preset].model) | {"likelihood": "bernoulli"} | changes
    with seeded(0):
        return VAE(packed.spec, build(VAEConfig, config, "model"))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    packed = prepare(DataConfig(source="glyphs:gray:2000", width=28, height=28, labels=False))
    for name in options.networks:
        measure(packed, name, options)


def measure(packed: PackedDataset, name: str, options: argparse.Namespace) -> None:
    """One of their networks beside ours."""
    batch = options.batch
    theirs = peer(name)
    optimizer = torch.optim.Adam(theirs.parameters(), lr=1e-3)
    images = Batches(packed, packed.train, batch, seed=0).at(0).images.contiguous() / 255

    def their_step() -> None:
        optimizer.zero_grad()
        theirs({"data": images}).loss.backward()
        optimizer.step()

    preset = VAE.presets(packed.spec)["tiny"]
    default = {key: getattr(preset, key) for key in OF_THE_PRESET if key != "batch_size"}
    trainers = {
        "theirs, float32": trainer_of(packed, Theirs(peer(name)), batch, precision="fp32"),
        "theirs": trainer_of(packed, Theirs(peer(name)), batch),
        "plain": trainer_of(packed, ours(packed, "plain", widths=PEERS[name][3]), batch),
        "ladder, float32": trainer_of(packed, ours(packed, "tiny"), batch, precision="fp32", **default),
        "ladder": trainer_of(packed, ours(packed, "tiny"), batch, **default),
    }
    steps = {key: trainer.run() for key, trainer in trainers.items()}
    yard, work = yardsticks()
    sides: dict[str, Callable[[], object]] = {
        "pythae": their_step,
        **{key: lambda s=s: next(s) for key, s in steps.items()},  # type: ignore[misc]
        **yard,
    }
    work |= {key: operations(sides[key]) for key in ("pythae", *trainers)}
    malloc = {"pythae": as_it_comes}
    seconds = timed(sides, options.rounds, before=lambda key: malloc.get(key, devices.keep_memory)())
    median = {key: statistics.median(found) for key, found in seconds.items()}
    speed = {key: work[key] / median[key] / 1e9 for key in sides}
    models = {"pythae": theirs} | {key: trainer.model for key, trainer in trainers.items()}
    for key, model in models.items():
        ratios = [b / a for a, b in zip(seconds[key], seconds["pythae"], strict=True)]
        figures = {
            "benchmark": f"vae-{name}/{key}",
            "value": round(batch / median[key], 1),
            "unit": "images/s",
            "times_pythae": round(statistics.median(ratios), 2),
            "share_of_gemm": round(speed[key] / speed["gemm"], 3),
            "share_of_convolution": round(speed[key] / speed["convolution"], 3),
            "gflop_per_image": round(work[key] / batch / 1e9, 4),
            "parameters": sum(p.numel() for p in model.parameters()),
            "gemm_gflops": round(speed["gemm"], 1),
            "convolution_gflops": round(speed["convolution"], 1),
            "batch": batch,
            "threads": options.threads,
        }
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
