"""Codes: as many as there should be, each reached, each its own code again, and gradients that pass."""

from __future__ import annotations

import pytest
import torch

from calotype.core.rng import seeded
from calotype.nn.quantise import FSQ, VQ

LEVELS = [(8, 6, 5), (2,), (3, 3), (7, 5, 5, 5), (4, 2)]


@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_all_codes_are_reached_and_no_others(levels: tuple[int, ...]) -> None:
    quantiser = FSQ(levels)
    far = torch.cartesian_prod(*[torch.linspace(-4, 4, 161 if len(levels) < 4 else 21)] * len(levels))
    numbers = quantiser(far.reshape(-1, len(levels), 1, 1)).numbers
    expected = 1
    for size in levels:
        expected *= size
    assert quantiser.codes == expected
    assert torch.equal(numbers.unique(), torch.arange(expected))


@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_a_number_and_its_values_are_one(levels: tuple[int, ...]) -> None:
    quantiser = FSQ(levels)
    numbers = torch.arange(quantiser.codes)[:, None, None]
    values = quantiser.values(numbers)
    assert values.shape == (quantiser.codes, len(levels), 1, 1)
    assert float(values.abs().max()) <= 1
    assert len(values.flatten(1).unique(dim=0)) == quantiser.codes
    whole = values * quantiser.scale.clamp(min=0.5)
    features = torch.atanh(whole / (quantiser.scale + 0.49))  # that are bounded to just these values
    again = quantiser(features)
    assert torch.equal(again.numbers, numbers)
    torch.testing.assert_close(again.values, values, rtol=0, atol=1e-6)


@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_the_gradient_passes_as_if_nothing_had_been_rounded(levels: tuple[int, ...]) -> None:
    quantiser = FSQ(levels)
    x = torch.randn(50, len(levels), 2, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    quantiser(x).values.sum().backward()
    y = x.detach().clone().requires_grad_()
    (torch.tanh(y) * (quantiser.scale + 0.49) / quantiser.scale.clamp(min=0.5)).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, y.grad)


def test_a_codebook_gives_the_nearest_and_learns() -> None:
    with seeded(0):
        quantiser = VQ(16, 3)
    x = torch.randn(20, 3, 2, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = quantiser(x)
    apart = (x.movedim(1, -1)[..., None, :] - quantiser.book).square().sum(-1)
    assert torch.equal(found.numbers, apart.argmin(-1))
    torch.testing.assert_close(found.values, quantiser.values(found.numbers))
    assert torch.equal(quantiser(quantiser.values(found.numbers)).numbers, found.numbers)
    found.values.sum().backward(retain_graph=True)
    assert x.grad is not None
    assert torch.equal(x.grad, torch.ones_like(x))
    assert quantiser.book.grad is None  # only the loss moves the codes
    found.loss.sum().backward()
    assert quantiser.book.grad is not None
    before = float(found.loss.detach().sum())
    with torch.no_grad():
        quantiser.book -= 0.01 * quantiser.book.grad
        assert float(quantiser(x).loss.sum()) < before
