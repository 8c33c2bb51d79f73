from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from calotype.core.model import ImageSpec
from calotype.core.rng import Noise, seeded
from calotype.families.diffusion import Diffusion
from calotype.nn.layers import SelfAttention, SinusoidalEmbedding, dropout, groups_for
from calotype.nn.unet import DESIGNS, UNet


@settings(deadline=None, max_examples=25)
@given(
    channels=st.integers(1, 4),
    height=st.integers(1, 19),
    width=st.integers(1, 19),
    patch=st.integers(1, 3),
    levels=st.integers(1, 3),
)
def test_any_size_comes_out_as_it_went_in(channels: int, height: int, width: int, patch: int, levels: int) -> None:
    net = UNet(channels, channels, (16,) * levels, 1, (levels - 1,), patch)
    x = torch.zeros(2, channels, height, width)
    assert net(x, torch.zeros(2)).shape == x.shape


def _disturbed(net: UNet) -> UNet:
    """The zero-initialised layers hide everything behind them: move all weights off zero."""
    with torch.no_grad():
        for k, p in enumerate(net.parameters()):
            p.add_(0.3 * Noise.shared(k, 1, "cpu").normal(*p.shape)[0])
    return net


@pytest.mark.parametrize(("height", "width"), [(7, 7), (8, 5), (9, 12)])
def test_every_pixel_of_the_output_sees_the_input_and_is_used(height: int, width: int) -> None:
    with seeded(0):
        net = _disturbed(UNet(1, 1, (16, 16), 1, (), patch=2)).double()
    x = Noise.shared(0, 1, "cpu").normal(1, height, width).double().requires_grad_()
    out = net(x, torch.zeros(1, dtype=torch.float64))
    for y in range(height):
        for column in range(width):
            (gradient,) = torch.autograd.grad(out[0, 0, y, column], x, retain_graph=True)
            assert gradient[0, 0, y, column] != 0  # also in the odd row and column that padding made even


def test_every_parameter_gets_a_gradient() -> None:
    with seeded(0):
        net = _disturbed(UNet(3, 3, (16, 32), 2, (1,), 2, num_classes=4, dropout_rate=0.1))
    noise = Noise.shared(0, 4, "cpu")
    net(noise.normal(3, 8, 8), torch.linspace(-1, 1, 4), torch.arange(4), noise).square().mean().backward()
    without = [name for name, p in net.named_parameters() if p.grad is None or float(p.grad.abs().sum()) == 0]
    assert without == []


@pytest.mark.parametrize("width", [16, 48, 208, 224])
def test_attention_at_any_width(width: int) -> None:
    x = Noise.shared(0, 2, "cpu").normal(width, 3, 3)
    layer = SelfAttention(nn.GroupNorm(1, width))
    assert width % layer.heads == 0
    assert torch.equal(layer(x), x)  # starts as the identity


def test_images_of_a_batch_do_not_mix() -> None:
    with seeded(0):
        net = _disturbed(UNet(1, 1, (16, 16), 1, (1,), num_classes=2)).double()
    x = Noise.shared(0, 3, "cpu").normal(1, 6, 6).double()
    scalar, labels = torch.linspace(-1, 1, 3).double(), torch.tensor([0, 1, 1])
    together = net(x, scalar, labels)
    for i in range(3):
        alone = net(x[i : i + 1], scalar[i : i + 1], labels[i : i + 1])
        torch.testing.assert_close(alone[0], together[i], rtol=1e-10, atol=1e-10)


def test_dropout_keeps_the_mean_and_follows_the_noise() -> None:
    x = torch.ones(200, 500)
    dropped = dropout(x, 0.25, Noise.shared(0, 200, "cpu"))
    assert sorted(dropped.unique().tolist()) == pytest.approx([0, 4 / 3])
    # 100,000 values of standard deviation sqrt(0.25 / 0.75) = 0.58: six deviations of the mean are 0.011.
    assert float(dropped.mean()) == pytest.approx(1, abs=0.011)
    assert torch.equal(dropped, dropout(x, 0.25, Noise.shared(0, 200, "cpu")))
    assert dropout(x, 0.25, None) is x


@pytest.mark.parametrize(("channels", "groups"), [(16, 1), (32, 2), (48, 3), (96, 6), (512, 32), (1024, 32), (17, 1)])
def test_groups(channels: int, groups: int) -> None:
    assert groups_for(channels) == groups
    assert groups_for(128, 4) == 32  # as published


def test_sinusoidal_embedding() -> None:
    embedding = SinusoidalEmbedding(4, max_period=100.0)
    value = torch.tensor([0.7])
    expected = [torch.cos(value), torch.cos(value * 0.1), torch.sin(value), torch.sin(value * 0.1)]
    torch.testing.assert_close(embedding(value)[0], torch.cat(expected))


@pytest.mark.parametrize(
    ("arguments", "parameters"),
    [
        # Ho et al. 2020, CIFAR-10: 35.7 M.
        ({"widths": (128, 256, 256, 256), "blocks": 2, "attention": (1,), "design": "ddpm"}, 35_746_307),
        # Karras et al. 2022, CIFAR-10: 55.7 M, of which 1,152 are for augmentation, which is not here.
        ({"widths": (256,) * 3, "blocks": 4, "attention": (1,), "base": 128, "design": "ddpm++"}, 55_733_891 - 1_152),
        # Dhariwal & Nichol 2021, ImageNet-64: 295.9 M as counted by Karras et al. 2022; 768 more are for no class.
        (
            {"widths": (192, 384, 576, 768), "blocks": 3, "attention": (1, 2, 3), "design": "adm", "num_classes": 1000},
            295_899_267 + 768,
        ),
    ],
    ids=["ddpm", "ddpm++", "adm"],
)
def test_published_networks_have_their_number_of_parameters(arguments: dict[str, Any], parameters: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in UNet(3, 3, **arguments).parameters()) == parameters


def test_the_published_preset_is_the_published_network() -> None:
    spec = ImageSpec(3, 32, 32)
    config = replace(Diffusion.presets(spec)["ddpm++"].model, sigma_data=0.5)
    with torch.device("meta"):
        assert sum(p.numel() for p in Diffusion(spec, config).parameters()) == 55_732_739


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 6)])
def test_every_design_uses_all_of_its_parameters(design: str, height: int, width: int) -> None:
    with seeded(0):
        net = _disturbed(UNet(2, 2, (16, 32), 1, (1,), num_classes=2, base=16, design=design))
    noise = Noise.shared(0, 3, "cpu")
    out = net(noise.normal(2, height, width), torch.linspace(-1, 1, 3), torch.arange(3))  # 2 is no class
    assert out.shape == (3, 2, height, width)
    out.square().mean().backward()
    without = [name for name, p in net.named_parameters() if p.grad is None or float(p.grad.abs().sum()) == 0]
    assert without == []
