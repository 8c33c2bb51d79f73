"""What is called close to a training image, and from how many of them a model is said to copy."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from calotype.evaluation.copying import Space, apart, beyond_chance, close, examined, limit, near

D = 6


def drawn(n: int, seed: int) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("held_out", [100, 200, 1000])
def test_one_in_a_hundred_images_that_are_no_copies_is_close(held_out: int) -> None:
    """In the mean over sets. A share of one set is spread by at most twice its mean: 4 standard errors of 300 sets."""
    shares = []
    for k in range(300):
        training = drawn(400, 3 * k)
        closest = limit(near(drawn(held_out, 3 * k + 1)[: held_out // 2], training).distance)
        shares.append(close(near(drawn(300, 3 * k + 2), training), closest))
    assert abs(sum(shares) / len(shares) - 0.01) < 4 * 0.02 / len(shares) ** 0.5


@pytest.mark.parametrize(("training", "held_out"), [(24, 0), (24, 20), (60, 20), (400, 100)])
def test_few_images_are_not_said_to_copy_by_chance(training: int, held_out: int) -> None:
    flagged = 0
    for k in range(100):
        of = drawn(training, 3 * k)
        space = Space([drawn(40, 3 * k + 1)], drawn(max(held_out, 1), 3 * k + 2), of[:1], of, authentic=False)
        flagged += examined(space, "toy", 0).flagged
    assert flagged == 0


@pytest.mark.parametrize(("training", "held_out"), [(24, 20), (60, 20), (400, 100)])
def test_copies_are_said_to_be_copies_however_few_images_there_are(training: int, held_out: int) -> None:
    of = drawn(training, 0)
    space = Space([of[torch.arange(40) % training]], drawn(held_out, 1), of[:1], of, authentic=False)
    assert examined(space, "toy", 0).flagged


def test_the_share_that_is_no_chance() -> None:
    """The least of N uniform numbers is above s with probability (1 - s)^N."""
    assert (1 - beyond_chance(20)) ** 20 == pytest.approx(0.001)
    assert beyond_chance(1) == pytest.approx(0.999)
    assert beyond_chance(1000) == 0.1
    assert apart(torch.tensor([[0.0], [1.0], [3.0]]), 3, 0).sort().values.tolist() == [1.0, 1.0, 2.0]
