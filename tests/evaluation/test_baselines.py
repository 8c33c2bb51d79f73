"""Classical methods: what of an image they keep, and densities against closed forms."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from calotype.core.images import to_unit
from calotype.core.model import Batch, HasLikelihood
from calotype.core.rng import Noise
from calotype.evaluation.baselines import BASELINES
from calotype.evaluation.baselines.density import Gaussian, Normal, PrincipalComponents, Spectrum
from calotype.evaluation.baselines.filters import Filters, bands, matched
from calotype.evaluation.baselines.phases import Phases
from calotype.evaluation.baselines.quilting import Quilting, _before_cut

SIZES = [(1, 16, 16), (3, 13, 18), (4, 8, 8)]


def pictures(n: int, shape: tuple[int, ...] = (1, 12, 12), seed: int = 0, low: int = 100, high: int = 156) -> Tensor:
    return (low + Noise.shared(seed, n, "cpu").uniform(*shape) * (high - low)).to(torch.uint8)


def noise(n: int, seed: int = 3) -> Noise:
    return Noise.per_image(seed, range(n), "cpu")


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_each_draws_images_of_the_right_shape_that_do_not_depend_on_their_batch(
    name: str, shape: tuple[int, ...]
) -> None:
    labels = torch.arange(30) % 3
    fitted = BASELINES[name](Batch(pictures(30, shape, low=0, high=256), labels))
    asked = torch.tensor([0, 2, 1, 2])
    images = fitted.sample(noise(4), asked)
    assert images.dtype == torch.uint8
    assert images.shape == (4, *shape)
    alone = fitted.sample(Noise.per_image(3, [2], "cpu"), asked[2:3])
    assert (alone[0].int() - images[2].int()).abs().max() <= 1  # sums may be rounded differently in other batches
    assert not torch.equal(images[1], images[3])


@pytest.mark.parametrize("name", ["phases", "filters", "quilting"])
def test_those_made_of_examples_take_them_from_the_class_asked_for(name: str) -> None:
    dark, light = pictures(10, low=10, high=30), pictures(10, low=200, high=220)
    fitted = BASELINES[name](Batch(torch.cat([dark, light]), torch.arange(20) // 10))
    images = fitted.sample(noise(6), torch.tensor([0, 1] * 3)).float().flatten(1).mean(1)
    assert (images[0::2] < 100).all()
    assert (images[1::2] > 100).all()


def test_random_phases_keep_the_mean_and_the_amplitude_of_every_frequency() -> None:
    one = pictures(1)
    drawn = to_unit(Phases(Batch(one, None)).sample(noise(5), None)).double()
    wanted, found = torch.fft.rfft2(to_unit(one).double()).abs(), torch.fft.rfft2(drawn).abs()
    # Bytes are rounded: an error of at most 1/255 of each of 144 values, of which a frequency is a sum with phases.
    assert (found - wanted).abs().max() < 144 / 255 / 2
    assert (drawn.mean((1, 2, 3)) - to_unit(one).double().mean()).abs().max() < 1 / 255


@pytest.mark.parametrize("size", [(16, 16), (13, 18), (4, 4), (64, 48)], ids=str)
def test_the_squares_of_the_masks_sum_to_one_so_that_bands_together_are_the_image(size: tuple[int, int]) -> None:
    masks = bands(*size)
    torch.testing.assert_close(masks.square().sum(0), torch.ones(size[0], size[1] // 2 + 1), atol=1e-5, rtol=0)
    fitted = Filters(Batch(pictures(2, (1, *size)), None))
    x = to_unit(pictures(2, (1, *size)))
    torch.testing.assert_close(fitted._together(fitted._apart(x)), x, atol=1e-5, rtol=0)


def test_textures_by_filters_have_the_values_of_their_example() -> None:
    one = pictures(1)
    drawn = Filters(Batch(one, None)).sample(noise(3), None)
    for image in drawn:
        assert torch.equal(image.flatten().sort().values, one.flatten().sort().values)
        assert not torch.equal(image, one[0])


def test_matched_values_are_those_wanted_in_the_order_there_was() -> None:
    x, wanted = torch.tensor([[[3.0, 1.0, 2.0]]]), torch.tensor([[[10.0, 30.0, 20.0]]])
    assert matched(x, wanted).tolist() == [[[30.0, 10.0, 20.0]]]


def test_quilting_goes_on_with_stripes_without_a_fault() -> None:
    stripes = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
    stripes[..., ::2] = 255
    drawn = Quilting(Batch(stripes, None)).sample(noise(4), None)
    assert (drawn[..., 1:].int() - drawn[..., :-1].int()).abs().eq(255).all()
    assert torch.equal(drawn[:, :, 1:], drawn[:, :, :-1])


def test_the_cut_is_the_path_of_least_difference() -> None:
    difference = Noise.shared(1, 3, "cpu").uniform(4, 3)
    for row, found in zip(difference, _before_cut(difference), strict=True):
        paths = [
            p for p in itertools.product(range(3), repeat=4) if all(abs(a - b) <= 1 for a, b in itertools.pairwise(p))
        ]
        best = min(paths, key=lambda p: sum(float(row[r, c]) for r, c in enumerate(p)))
        assert [int(r.sum()) for r in found] == list(best)


def test_the_density_is_that_of_a_normal_distribution() -> None:
    images, u = pictures(40, (2, 2, 2)), Noise.shared(5, 40, "cpu").uniform(2, 2, 2)
    spectrum = Spectrum.of(images)
    normal = Normal(spectrum, spectrum.values + 0.7, math.nan)
    x = images.flatten(1).double()
    covariance = torch.cov(x.T, correction=0) + (1 / 12 + 0.7) * torch.eye(8, dtype=torch.float64)
    exact = torch.distributions.MultivariateNormal(x.mean(0) + 0.5, covariance)
    torch.testing.assert_close(normal.log_density(images, u), exact.log_prob(x + u.flatten(1).double()))


@pytest.mark.parametrize("count", [40, 5], ids=["more images than dimensions", "fewer"])
def test_principal_components_have_the_density_of_their_covariance(count: int) -> None:
    images, u = pictures(count, (2, 2, 2)), Noise.shared(5, count, "cpu").uniform(2, 2, 2)
    spectrum = Spectrum.of(images)
    part = Spectrum(spectrum.mean, spectrum.values[:3], spectrum.vectors[:3])
    found = Normal(part, part.values, 2.5).log_density(images, u)
    across = torch.eye(8, dtype=torch.float64) - part.vectors.T @ part.vectors
    covariance = part.vectors.T @ part.values.diag() @ part.vectors + 2.5 * across
    exact = torch.distributions.MultivariateNormal(part.mean, (covariance + covariance.T) / 2)
    torch.testing.assert_close(found, exact.log_prob(images.flatten(1).double() + u.flatten(1).double()))


@pytest.mark.parametrize("kind", [Gaussian, PrincipalComponents], ids=lambda kind: kind.__name__)
def test_images_of_independent_uniform_bytes_take_the_bits_of_a_normal_distribution(kind: type[Gaussian]) -> None:
    """Of variance s^2 = (256^2 - 1) / 12 + 1 / 12: log2(2 pi e s^2) / 2 bits a byte, a little above 8."""
    images = pictures(6_000, (1, 2, 2), low=0, high=256)
    fitted = kind(Batch(images[:4_000], None))
    assert isinstance(fitted, HasLikelihood)
    bits = fitted.bits_per_dim(Batch(images[4_000:], None), Noise.shared(9, 2_000, "cpu"))
    assert bits.kind == "bound"
    expected = 0.5 * math.log2(2 * math.pi * math.e * 256**2 / 12)
    # Of 8,000 bytes, whose squared distances deviate by 0.9 of their mean: 0.9 / sqrt(8000) / 2 / ln 2 = 0.007 bits.
    assert abs(float(bits.per_image.mean()) - expected) < 4 * 0.007
    assert expected > 8


def test_samples_have_the_mean_and_the_covariance_of_the_distribution() -> None:
    some = Noise.shared(2, 3_000, "cpu").normal(3)
    mixing = torch.tensor([[9.0, 0.0, 0.0, 5.0], [0.0, 6.0, 3.0, 0.0], [1.0, 1.0, 8.0, 1.0]])
    images = (128 + some @ mixing).round().clamp(0, 255).to(torch.uint8).view(-1, 1, 2, 2)
    drawn = Gaussian(Batch(images, None)).sample(noise(4_000), None).flatten(1).double()
    wanted = images.flatten(1).double()
    spread = torch.cov(wanted.T).diagonal().sqrt()
    # Standard errors: s / sqrt(n) of a mean, s_i s_j sqrt(2 / n) of a covariance, of both sets.
    error = (1 / 3_000 + 1 / 4_000) ** 0.5
    assert ((drawn.mean(0) - wanted.mean(0)).abs() < 4 * error * spread + 0.1).all()
    apart = (torch.cov(drawn.T) - torch.cov(wanted.T)).abs()
    assert (apart < 5 * 2**0.5 * error * spread[:, None] * spread).all()
