"""Distributions of pixels: bins that sum to 1, finite gradients, and draws as often as they are probable."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from calotype.nn.distributions import (
    AS_LEARNED,
    DISTRIBUTIONS,
    Bernoulli,
    Categorical,
    Distribution,
    Gaussian,
    Logistics,
    Taste,
    colours,
    flat_share,
    likelihood_for,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def every_byte() -> Tensor:
    return torch.arange(256, dtype=torch.uint8)[:, None]


def stratified(n: int) -> Tensor:
    """n values that lie evenly in [0, 1)."""
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n


@pytest.mark.parametrize("log_scale", [-30.0, -7.0, -4.0, -1.0, 0.0, 2.0, 6.0])
@pytest.mark.parametrize("mean", [-50.0, -1.0, -0.999, 0.0, 0.3, 1.0, 50.0])
def test_bins_of_a_logistic_sum_to_one(mean: float, log_scale: float) -> None:
    parameters = torch.tensor([0.0, mean, log_scale], dtype=torch.float64).expand(256, 3)
    total = Logistics(1, 1).log_prob(parameters, every_byte()).exp().sum()
    assert float(total) == pytest.approx(1, abs=1e-12)


def test_a_bin_has_the_mass_between_its_edges() -> None:
    mean, log_scale = 0.2, -2.0
    parameters = torch.tensor([0.0, mean, log_scale], dtype=torch.float64).expand(256, 3)
    edges = torch.cat([torch.tensor([-math.inf]), (torch.arange(255) + 0.5) / 127.5 - 1, torch.tensor([math.inf])])
    mass = torch.sigmoid((edges.double() - mean) / math.exp(log_scale)).diff()
    torch.testing.assert_close(Logistics(1, 1).log_prob(parameters, every_byte()).exp(), mass, atol=1e-7, rtol=0)


def test_the_mixture_sums_to_one_over_all_channels() -> None:
    """All pixels of two channels, 65,536 of them."""
    mixture = Logistics(2, 3)
    parameters = normal(mixture.parameters)
    pixels = torch.cartesian_prod(every_byte()[:, 0], every_byte()[:, 0])
    total = mixture.log_prob(parameters.expand(len(pixels), -1), pixels).exp().sum()
    assert float(total) == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [1.0, 1e3, 1e5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_at_any_parameters(channels: int, size: float, dtype: torch.dtype) -> None:
    for distribution in (Logistics(channels), Categorical(channels), Bernoulli(channels)):
        parameters = (size * normal(6, distribution.parameters)).to(dtype).requires_grad_()
        pixels = torch.tensor([0, 255, 1, 254, 128, 0], dtype=torch.uint8)[:, None].expand(6, channels)
        nats = -distribution.log_prob(parameters, pixels)
        nats.sum().backward()
        assert torch.isfinite(nats).all()
        assert torch.isfinite(parameters.grad).all()


def test_gradients_are_those_of_differences() -> None:
    mixture, pixels = Logistics(3, 4), torch.tensor([[0, 255, 7], [255, 0, 200], [10, 100, 255]], dtype=torch.uint8)
    parameters = normal(3, mixture.parameters, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: mixture.log_prob(p, pixels), parameters)


def test_the_categorical_is_a_log_softmax_however_improbable() -> None:
    pixels = torch.arange(256, dtype=torch.uint8)[:, None]
    logits = (normal(256, 256) * 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: Categorical(1).log_prob(x, pixels[:6]), logits[:6])
    far = (normal(256, 256) * 300).float().requires_grad_()  # most have probabilities that float32 does not
    expected = far.double().log_softmax(-1).gather(-1, pixels.long())[:, 0]
    assert torch.allclose(Categorical(1).log_prob(far, pixels).double(), expected, rtol=1e-6, atol=1e-6)


def test_the_gaussian_has_the_best_deviation_of_each_image() -> None:
    """log N at its own best variance: no other gives more, and it is -D/2 (log(2 pi variance) + 1)."""
    parameters = 0.5 * normal(3, 4, 5, 2)
    pixels = torch.randint(0, 256, (3, 4, 5, 2), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    apart = pixels - 127.5 * (parameters + 1)
    variance = apart.square().flatten(1).mean(1)
    found = Gaussian(2).log_prob(parameters, pixels)
    assert found.shape == (3, 4, 5)
    torch.testing.assert_close(found.flatten(1).sum(1), -20 * ((2 * math.pi * variance).log() + 1))
    for factor in (0.9, 1.1):
        deviation = (factor * variance).sqrt()[:, None, None, None]
        other = torch.distributions.Normal(0.0, deviation).log_prob(apart).flatten(1).sum(1)
        assert bool((other < found.flatten(1).sum(1)).all())
    exact = (pixels / 127.5 - 1).double()
    floor = -20 * math.log(2 * math.pi / 12)  # of what is right to the byte, the deviation is that of rounding
    assert Gaussian(2).log_prob(exact, pixels).flatten(1).sum(1).tolist() == pytest.approx([floor] * 3, abs=1e-3)


def test_no_parameters_say_nothing() -> None:
    """At 0 all bytes are equally likely, for the mixture about: 8 bits."""
    bits = lambda d: float(-d.log_prob(torch.zeros(256, d.parameters, dtype=torch.float64), every_byte()).mean())  # noqa: E731
    assert bits(Categorical(1)) / math.log(2) == pytest.approx(8, abs=1e-12)
    assert bits(Logistics(1)) / math.log(2) == pytest.approx(8, abs=0.2)


def frequencies(distribution: Distribution, parameters: Tensor, n: int, taste: Taste = AS_LEARNED) -> Tensor:
    """Of each byte of one channel, where the draws that decide it are laid out evenly."""
    drawn = distribution.sample(parameters.expand(n, -1), stratified(n)[:, None], taste)
    return torch.bincount(drawn[:, 0].long(), minlength=256).double() / n


def test_draws_have_the_probabilities_of_their_bins() -> None:
    """With evenly laid uniforms each of the bins' counts is exact up to one at either end."""
    n = 20_000
    categorical = normal(256, seed=1)
    found = frequencies(Categorical(1), categorical, n)
    assert (found - categorical.softmax(0)).abs().max() <= 2 / n
    logit = torch.tensor([0.7], dtype=torch.float64)
    assert float(frequencies(Bernoulli(1), logit, n)[255]) == pytest.approx(float(logit.sigmoid()), abs=1 / n)


def test_draws_of_a_mixture_have_the_probabilities_of_its_bins() -> None:
    mixture, n = Logistics(1, 3), 800
    parameters = normal(mixture.parameters, seed=2)
    uniforms = torch.cartesian_prod(stratified(n), stratified(n))
    drawn = mixture.sample(parameters.expand(n * n, -1), uniforms)
    found = torch.bincount(drawn[:, 0].long(), minlength=256).double() / n**2
    expected = mixture.log_prob(parameters.expand(256, -1), every_byte()).exp()
    assert (found - expected).abs().max() <= 6 / n  # a component's weight is off by 1 / n, and each of its edges


def test_later_channels_follow_earlier_ones() -> None:
    """Of two channels whose second mean is 0.9 times the first value: draws and likelihood agree on it."""
    mixture = Logistics(2, 1)
    parameters = torch.tensor([0.0, 0.0, 0.0, -1.0, -6.0, math.atanh(0.9)], dtype=torch.float64)
    uniforms = torch.rand(500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = mixture.sample(parameters.expand(500, -1), uniforms)
    x = drawn.double() / 127.5 - 1
    assert float((x[:, 1] - 0.9 * x[:, 0]).abs().median()) < 0.01
    strangers = torch.stack([drawn[:, 0], drawn[:, 1].flip(0)], 1)
    likely, unlikely = (mixture.log_prob(parameters.expand(500, -1), pixels).mean() for pixels in (drawn, strangers))
    assert likely > unlikely + 10


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_extreme_uniforms_give_bytes(name: str, channels: int) -> None:
    distribution = DISTRIBUTIONS[name](channels)
    largest = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0)).item()
    for size, u in itertools.product((0.0, 1.0, 1e4), (0.0, 0.5, largest)):
        parameters = size * normal(5, distribution.parameters).float()
        drawn = distribution.sample(parameters, torch.full((5, distribution.draws), u))
        assert drawn.dtype == torch.uint8
        assert torch.isfinite(distribution.log_prob(parameters, drawn)).all()
        if name == "categorical":
            assert (distribution.log_prob(parameters.double(), drawn) > -105).all()  # of float32's mass


def test_temperature_top_k_and_top_p() -> None:
    categorical, logits = Categorical(1), normal(256, seed=4)
    order = logits.argsort(descending=True)
    found = frequencies(categorical, logits, 5_000, Taste(top_k=3))
    assert set(found.nonzero()[:, 0].tolist()) == set(order[:3].tolist())
    expected = logits[order[:3]].softmax(0)
    assert (found[order[:3]] - expected).abs().max() <= 2 / 5_000
    found = frequencies(categorical, logits, 5_000, Taste(top_p=0.1))
    enough = int((logits.softmax(0)[order].cumsum(0) < 0.1).sum()) + 1
    assert set(found.nonzero()[:, 0].tolist()) == set(order[:enough].tolist())
    found = frequencies(categorical, logits, 20_000, Taste(temperature=0.5))
    assert (found - (2 * logits).softmax(0)).abs().max() <= 2 / 20_000
    for distribution in (categorical, Bernoulli(1), Logistics(1)):
        parameters = normal(distribution.parameters, seed=5)
        u = torch.rand(50, distribution.draws, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        assert len(distribution.sample(parameters.expand(50, -1), u, Taste(temperature=0)).unique()) == 1


def test_channels_have_parameters_of_their_own() -> None:
    pixels = torch.tensor([[3, 200, 90]], dtype=torch.uint8)
    for kind in (Categorical, Bernoulli):
        whole, alone = kind(3), kind(1)
        parameters = normal(1, whole.parameters)
        parts = [alone.log_prob(whole.channel(parameters, c), pixels[:, c : c + 1]) for c in range(3)]
        torch.testing.assert_close(sum(parts), whole.log_prob(parameters, pixels))


def test_the_share_of_pixels_like_the_one_to_their_left() -> None:
    plain = torch.full((2, 3, 5, 4), 7, dtype=torch.uint8)
    assert flat_share(plain) == 1
    pairs = torch.tensor([1, 1, 9, 9], dtype=torch.uint8).expand(2, 3, 5, 4)
    assert flat_share(pairs) == 2 / 3  # of three neighbours in a row two are alike
    one_channel = plain.clone()
    one_channel[:, 2] = torch.arange(4)
    assert flat_share(one_channel) == 0  # the others are alike, the colour is not
    assert flat_share(torch.cat([plain, one_channel])) == 0.5
    assert flat_share(plain[..., :1]) == 0


def test_pure_grounds_say_nothing_of_what_is_before_them() -> None:
    white = torch.full((2, 3, 5, 8), 255, dtype=torch.uint8)
    assert flat_share(white) == 0
    textured = white.clone()
    textured[..., 4:] = torch.arange(4) * 9 + 20
    assert flat_share(textured) == 0  # where all pixels but the first four columns differ from the one before
    flat = white.clone()
    flat[..., 4:] = 20
    assert flat_share(flat) == 3 / 4  # of the four columns of another colour the first is unlike its neighbour
    assert flat_share(torch.cat([textured, flat])) == 3 / 8
    coloured = white.clone()
    coloured[:, 1] = 254  # not pure
    assert flat_share(coloured) == 1


def test_the_share_of_flat_colours_does_not_depend_on_the_order_of_images() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(1, 3, (700, 3, 6, 6), generator=generator).to(torch.uint8)
    share = flat_share(images)
    assert share == pytest.approx(1 / 8, abs=4 * math.sqrt(1 / 8 * 7 / 8 / (700 * 30)))
    assert flat_share(images[torch.randperm(700, generator=generator)]) == share


def test_the_likelihood_of_flat_colours_and_of_others() -> None:
    noise = torch.randint(0, 256, (20, 3, 6, 6), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    flat = noise[..., :1].expand_as(noise)
    assert likelihood_for(noise, "logistics") == "logistics"
    assert likelihood_for(flat, "logistics") == "categorical"
    assert likelihood_for((flat > 99).to(torch.uint8) * 255, "logistics") == "bernoulli"
    assert likelihood_for(torch.cat([noise, flat[:3]]), "logistics") == "categorical"  # 3 of 23 neighbours are alike
    assert likelihood_for(torch.cat([noise, flat[:1]]), "logistics") == "logistics"  # 1 of 21


def test_colours_are_counted_as_wholes() -> None:
    """Of all 256 pairs of 16 values, in images of 8 pixels, whatever their order."""
    values = torch.arange(16, dtype=torch.uint8) * 17
    images = torch.cartesian_prod(values, values).reshape(32, 4, 2, 2).permute(0, 3, 1, 2)
    assert colours(images, 1000) == colours(images.flip(0).repeat(20, 1, 1, 1), 1000) == 256
    assert colours(images, 100) > 100
    assert colours(images[:, :1], 1000) == 16


def test_flat_colours_that_are_not_of_a_palette() -> None:
    """Where a palette is asked for: 5 colours of 5 plain images are one of 5, and not of 4."""
    plain = torch.arange(10, 60, 10, dtype=torch.uint8)[:, None, None, None].expand(5, 3, 4, 4)
    assert likelihood_for(plain, "logistics", palette=5) == "categorical"
    assert likelihood_for(plain, "logistics", palette=4) == "logistics"
    assert likelihood_for(plain, "logistics") == "categorical"
