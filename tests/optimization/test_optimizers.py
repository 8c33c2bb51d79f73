"""Muon: what it does to a matrix, and which parameters it takes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from calotype.core.model import ImageSpec
from calotype.core.rng import Noise, seeded
from calotype.errors import ConfigError
from calotype.families.diffusion import Diffusion, DiffusionConfig
from calotype.optimization.config import TrainConfig
from calotype.optimization.optimizers import OPTIMIZERS, SHARE, Muon, orthogonalised
from calotype.optimization.trainer import Trainer
from tests.conftest import Stripes


@pytest.mark.parametrize("shape", [(32, 32), (32, 288), (100, 40)])
def test_singular_vectors_stay_and_values_become_about_one(shape: tuple[int, int]) -> None:
    matrix = Noise.shared(0, shape[0], "cpu").normal(shape[1]).double() * 7
    u, before, v = torch.linalg.svd(matrix, full_matrices=False)
    after = u.T @ orthogonalised([matrix])[0] @ v.T
    values = after.diagonal()
    # Those below a hundredth of the norm would need more rounds: there is none here but in the square matrix.
    large = before > 0.01 * before.norm()
    assert bool(((values > 0.65) & (values < 1.25))[large].all())
    torch.testing.assert_close(after - values.diag(), torch.zeros_like(after), rtol=0, atol=1e-9)


def test_the_first_step_is_the_published_one() -> None:
    weight = nn.Parameter(torch.zeros(32, 4, 3, 3))
    gradient = Noise.shared(1, 32, "cpu").normal(4, 3, 3)
    weight.grad = gradient.clone()
    Muon([weight], lr=0.1).step()
    expected = -0.1 * SHARE * 36**0.5 * orthogonalised([gradient.flatten(1)])[0].reshape(gradient.shape)
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-4, atol=1e-6)
    # As large as a step of AdamW: 32 values of about 1 on the diagonal of a 32 x 36 matrix.
    assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.1 * SHARE, rel=0.2)


def test_parameters_move_as_each_would_alone_and_in_any_layout() -> None:
    gradients = [Noise.shared(k, 32, "cpu").normal(32, 3, 3) for k in range(3)]
    together = [nn.Parameter(torch.zeros(32, 32, 3, 3)) for _ in gradients]
    alone = [nn.Parameter(torch.zeros(32, 32, 3, 3).to(memory_format=torch.channels_last)) for _ in gradients]
    for p, q, gradient in zip(together, alone, gradients, strict=True):
        p.grad, q.grad = gradient.clone(), gradient.clone()
        Muon([q], lr=0.1).step()
    Muon(together, lr=0.1).step()
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_momentum_and_decay() -> None:
    weight = nn.Parameter(torch.ones(32, 32))
    first, second = (Noise.shared(k, 32, "cpu").normal(32) for k in (1, 2))
    optimizer = Muon([weight], lr=0.1, weight_decay=0.5)
    for gradient in (first, second):
        before = weight.detach().clone()
        weight.grad = gradient.clone()
        optimizer.step()
    momentum = 0.95 * 0.05 * first + 0.05 * second
    update = 0.05 * second + 0.95 * momentum
    expected = before * (1 - 0.1 * 0.5) - 0.1 * SHARE * 32**0.5 * orthogonalised([update])[0]
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-4, atol=1e-5)


def test_muon_takes_matrices_and_adamw_the_rest() -> None:
    spec = ImageSpec(3, 16, 16, num_classes=100)
    with seeded(0):
        model = Diffusion(spec, DiffusionConfig(widths=(32, 64), attention=(1,), sigma_data=0.5))
    matrices, others = OPTIMIZERS["muon"](model, 1e-3, (0.9, 0.99), 0.0)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = [{names[id(p)] for group in o.param_groups for p in group["params"]} for o in (matrices, others)]
    assert groups[0] | groups[1] == set(names.values())
    assert not groups[0] & groups[1]
    assert "network.down.0.conv1.weight" in groups[0]
    for name in ("network.embed_label.weight", "network.stem.weight", "network.last.weight", "network.fold.bias"):
        assert name in groups[1]


def test_players_without_a_matrix_have_adamw_alone() -> None:
    assert [type(o) for o in OPTIMIZERS["muon"](nn.Linear(2, 2), 1e-3, (0.9, 0.99), 0.0)] == [torch.optim.AdamW]


def test_it_trains() -> None:
    spec = ImageSpec(1, 8, 8)
    with seeded(0):
        model = Diffusion(spec, DiffusionConfig(widths=(32,), attention=(), blocks=1, patch=1, sigma_data=0.5))
    trainer = Trainer(model, Stripes(32).batches(8), TrainConfig(images=800, batch_size=8, optimizer="muon"))
    losses = [float(progress.losses["model"]) for progress in trainer.run()]
    assert sum(losses[-20:]) < 0.6 * sum(losses[:20])


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(ConfigError, match="choose one of adamw, muon"):
        TrainConfig(images=1, optimizer="sgd")
