"""Several processes train as one does: the same steps, and an image's noise is its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from calotype.families import FAMILIES
from calotype.model import GenerativeModel, ImageSpec
from calotype.rng import seeded
from calotype.trainer import TrainConfig, Trainer
from tests.conftest import Stripes

SPEC = ImageSpec(3, 8, 12, num_classes=2)
BATCH, STEPS = 7, 3  # a batch that two and three processes cannot divide evenly

# Of the GAN what depends on other images of the batch: batch normalisation in both networks, and changes whose
# probability follows the discriminator; and both penalties, which differentiate a gradient.
CASES: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "autoregressive": ("autoregressive", {}),
    "diffusion": ("diffusion", {"label_dropout": 0.3}),
    "vae": ("vae", {"free_bits": 0.5}),
    "gan": ("gan", {"overfit": 0.6}),
    "gan with norms": ("gan", {"network": "dcgan", "r1": 0.0, "r2": 0.0, "loss": "non-saturating"}),
    "gan of residual blocks": ("gan", {"network": "resnet", "critic_steps": 2, "gradient_penalty": 1.0}),
}


def trained(case: str) -> dict[str, Tensor]:
    """The weights, averages and buffers after some steps, in float64."""
    name, changes = CASES[case]
    family = FAMILIES[name]
    data = Stripes(32, SPEC.channels, SPEC.height, SPEC.width)
    config = family.measured(replace(next(iter(family.presets(SPEC).values())).model, **changes), data.images)
    with seeded(0):
        model: GenerativeModel = family(SPEC, config)
    training = TrainConfig(images=10_000, batch_size=BATCH, learning_rate=1e-3, optimizer="muon", precision="fp32")
    trainer = Trainer(model.double(), data.batches(BATCH), training)
    losses = [progress.losses for progress in trainer.run(STEPS)]
    told = {f"loss {player}": value for player, value in losses[-1].items()}
    return {**trainer.model.state_dict(), **{f"ema.{k}": v for k, v in trainer.ema.state_dict().items()}, **told}


PROGRAM = """
import sys, torch
from calotype import processes
from tests.test_processes import CASES, trained
torch.set_num_threads(1)
with processes.joined():
    found = {case: trained(case) for case in CASES}
    torch.save(found, f"{sys.argv[1]}/{processes.rank()}.pt")
"""


def together(count: int, folder: Path) -> list[dict[str, dict[str, Tensor]]]:
    """What each of `count` processes has."""
    (folder / "program.py").write_text(PROGRAM)
    words = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", str(folder / "program.py")]
    root = Path(__file__).parents[1]
    environment = {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, *words, str(folder)], cwd=root, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return [torch.load(folder / f"{k}.pt", weights_only=True) for k in range(count)]


@pytest.mark.parametrize("count", [2, 3])
def test_processes_train_as_one_does(count: int, tmp_path: Path) -> None:
    found = together(count, tmp_path)
    for case in CASES:
        alone = trained(case)
        assert len(alone) > 10
        for name, value in alone.items():
            first = found[0][case][name]
            torch.testing.assert_close(first, value, rtol=1e-6, atol=1e-9, msg=lambda m, n=name, c=case: f"{c} {n}: {m}")
            for other in found[1:]:
                assert torch.equal(other[case][name], first), (case, name)
