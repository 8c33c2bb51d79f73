"""What training costs elsewhere: the model of it against counts and closed forms."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from calotype import cli
from calotype.core.model import ImageSpec
from calotype.core.rng import seeded
from calotype.distributed.cost_model import (
    Cluster,
    Device,
    Operation,
    Recorded,
    Turn,
    Work,
    cost,
    recording,
    summing,
    volume,
)
from calotype.families import FAMILIES
from calotype.optimization.config import TrainConfig
from calotype.training import cluster_cost

SPEC = ImageSpec(3, 16, 16, num_classes=3)
EDM = str(Path(__file__).parents[2] / "recipes" / "cifar10-edm.toml")
SLOW = Device(
    flops32=1e9, flops16=4e9, bandwidth=1e6, memory=1e6, launch=1e-3, link=1e5, network=1e4, latency=0.0, reached=0.5
)


def work(*operations: Operation, kept: int = 0, weights: int = 1000, half: bool = False, sums: int = 0) -> Work:
    """A step of one image that does these operations, and of two that does each twice as large."""
    twice = [Operation(2 * a.flops, 2 * a.bytes) for a in operations]
    turns = (Turn(weights, 1),)
    return Work(Recorded([*operations], kept), Recorded(twice, 2 * kept), 1, turns, 2 * weights, sums, half)


def test_an_operation_takes_its_arithmetic_its_memory_or_its_start() -> None:
    assert work(Operation(1e9, 0)).seconds(SLOW, 1) == 2.0
    assert work(Operation(1e9, 0), half=True).seconds(SLOW, 1) == 0.5
    assert work(Operation(0, 3e6)).seconds(SLOW, 2) == 6.0
    assert work(Operation(0, 0), Operation(1, 8)).seconds(SLOW, 100) == 2e-3
    both = work(Operation(1e9, 5e6), Operation(0, 1e6))
    assert both.seconds(SLOW, 3) == pytest.approx(15 + 3)


def test_sums_over_devices_in_closed_form() -> None:
    size = 4 * 1000
    assert summing(SLOW, Cluster(1, 1), 1000) == volume(Cluster(1, 1), 1000) == 0
    assert summing(SLOW, Cluster(1, 4), 1000) == pytest.approx(2 * 3 / 4 * size / 1e5)
    assert summing(SLOW, Cluster(2, 1), 1000) == pytest.approx(2 * 1 / 2 * size / 1e4)
    within, between = 2 * 3 / 4 * size / 1e5, 2 * 1 / 2 * (size / 4) / 1e4
    assert summing(SLOW, Cluster(2, 4), 1000) == pytest.approx(within + between)
    assert volume(Cluster(2, 4), 1000) == pytest.approx(2 * 7 / 8 * size)
    # Of eight, four hold the weights: three times fetched or scattered among four, and a quarter summed over two nodes.
    divided = 3 * 3 / 4 * size / 1e5 + 2 * 1 / 2 * (size / 4) / 1e4
    assert summing(SLOW, Cluster(2, 4, 4), 1000) == pytest.approx(divided)
    assert volume(Cluster(2, 4, 4), 1000) == pytest.approx(3 * 3 / 4 * size + 2 * 1 / 2 * size / 4)
    late = SLOW._replace(latency=1.0)
    assert summing(late, Cluster(2, 4), 0) == 2 * math.log2(8)
    assert cost(work(sums=3), late, Cluster(1, 2), 2).summing == pytest.approx(2 * 4 + 4000 / 1e5)


def test_memory_of_a_device() -> None:
    found = cost(work(Operation(1, 1), kept=10), SLOW, Cluster(1, 4), 40)
    known = {"weights": 4000, "gradients": 4000, "moments": 8000, "averages": 4000, "activations": 100}
    assert found.memory == pytest.approx(known)
    assert (found.images, found.micro_batch) == (10, 10)
    divided = cost(work(Operation(1, 1), kept=10), SLOW, Cluster(1, 4, 4), 40).memory
    assert [divided[name] for name in ("weights", "gradients", "moments", "averages")] == [1000, 1000, 2000, 1000]


def test_images_are_taken_in_parts_where_memory_is_short() -> None:
    found = cost(work(Operation(0, 1e6), kept=300_000), SLOW, Cluster(1, 1), 10)
    assert found.micro_batch == 3  # of the megabyte 20 kB are taken
    assert found.memory["activations"] == 900_000
    assert found.computing == pytest.approx(4 * 3.0)


def test_recorded_arithmetic_is_that_of_the_layers() -> None:
    layer = nn.Linear(5, 7)
    x = torch.zeros(3, 5)
    with recording([*layer.parameters()]) as found:
        layer(x).sum().backward()
    (recorded,) = found
    assert sum(op.flops for op in recorded.operations) == 2 * 3 * 5 * 7 * 2  # forward, and the gradient of the weight
    assert recorded.kept == x.nbytes
    assert all(op.bytes > 0 for op in recorded.operations)


@pytest.mark.parametrize("name", FAMILIES)
def test_more_images_are_foretold(name: str) -> None:
    """Arithmetic and activations of eight images, from steps of two and four."""
    family = FAMILIES[name]
    preset = next(iter(family.presets(SPEC).values()))
    config = family.measured(preset.model, torch.randint(256, (64, *SPEC.shape), dtype=torch.uint8))
    with seeded(0):
        model: Any = family(SPEC, config)
    training = TrainConfig(images=100, optimizer=preset.optimizer)
    found = cluster_cost.recorded(model, training, half=False)
    trainer = cluster_cost._trainer(model, training, 8, precision="fp32")
    list(trainer.run(1))
    with recording([*model.parameters()]) as direct:
        list(trainer.run(2))
    pairs = zip(found.few.operations, found.more.operations, strict=True)
    foretold = sum(a.flops + 3 * (b.flops - a.flops) for a, b in pairs)
    assert foretold == pytest.approx(sum(op.flops for op in direct[0].operations), rel=1e-9)
    assert found.activations(8) == pytest.approx(direct[0].kept, rel=0.01)
    assert found.weights == sum(p.numel() for p in model.parameters())


def test_arithmetic_agrees_with_torchs_counter() -> None:
    family = FAMILIES["diffusion"]
    preset = next(iter(family.presets(SPEC).values()))
    with seeded(0):
        model: Any = family(SPEC, family.measured(preset.model, torch.zeros(64, *SPEC.shape, dtype=torch.uint8)))
    training = TrainConfig(images=100)
    found = cluster_cost.recorded(model, training, half=False)
    trainer = cluster_cost._trainer(model, training, 2, precision="fp32")
    list(trainer.run(1))
    with FlopCounterMode(display=False) as counter:
        list(trainer.run(2))
    assert sum(op.flops for op in found.few.operations) == counter.get_total_flops()


def plan(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    status = cli.main(["plan", *words])
    captured = capsys.readouterr()
    return status, captured.out if status == 0 else captured.err


def test_a_recipe_is_planned(capsys: pytest.CaptureFixture[str]) -> None:
    small = ("--set", "model.widths=[16,32]", "--set", "model.blocks=1", "--size", "32")
    status, alone = plan(capsys, EDM, *small)
    assert status == 0
    assert re.search(r"diffusion \(ddpm\+\+ network\) on 32x32, 3 channel\(s\), [\d,]+ weights, batches of 512", alone)
    assert "1 x h100: at most 512 images each" in alone
    assert "200,000,000 images in" in alone
    status, many = plan(capsys, EDM, *small, "--nodes", "2", "--gpus", "8", "--shard", "8", "--device", "h200")
    assert status == 0
    assert "16 x h200 in 2 nodes, of which 8 hold the weights between them: at most 32 images each" in many


def test_processes_of_this_machine_are_planned(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    recipe = tmp_path / "config.toml"
    recipe.write_text('family = "vae"\npreset = "tiny"\n[dataset]\nchannels = 1\nheight = 8\nwidth = 8\n')
    status, told = plan(capsys, str(recipe), "--device", "cpu", "--gpus", "2", "--budget", "1Mimg")
    assert status == 0
    assert "2 x cpu" in told
    assert torch.get_num_threads() >= 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "does not say how large pictures are: give --size"),
        (["--size", "32", "--device", "h1000"], "--device is 'h1000'"),
        (["--size", "32", "--gpus", "8", "--shard", "3"], "--shard is 3, but there are 8 devices"),
        (["--size", "32", "--nodes", "0"], "--nodes is 0: give at least 1"),
        (["--size", "32", "--budget", "2h"], "the budget is 2h, a time"),
        (["--size", "32", "--nodes", "100", "--gpus", "8"], "800 devices for batches of 512"),
        (["--size", "32", "--preset", "auto"], "preset 'auto' is not a size of network here"),
        (["--size", "32", "--set", "training.batch=3"], "training.batch is unknown"),
    ],
)
def test_what_cannot_be_planned_is_said(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    status, told = plan(capsys, EDM, *words)
    assert status == 2
    assert message in told
