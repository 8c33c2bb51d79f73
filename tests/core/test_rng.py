from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calotype.core.rng import Noise, coins, fold, permutation, seeded


def test_fold_is_the_same_in_another_process() -> None:
    code = "from calotype.core.rng import fold; print(fold(3, 'a', 5))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(printed) == fold(3, "a", 5)


def test_fold_tells_paths_apart() -> None:
    children = {fold(s, *p) for s in range(10) for p in [("a",), ("b",), (1,), ("1",), (1, 2), ("a", 1)]}
    assert len(children) == 60
    assert all(0 <= c < 2**63 for c in children)


@given(n=st.integers(0, 300), seed=st.integers(0, 2**63 - 1))
def test_permutation_is_one(n: int, seed: int) -> None:
    assert sorted(permutation(seed, n).tolist()) == list(range(n))


def test_permutation_is_uniform() -> None:
    # Each of 6 orders of 3 has expectation 1000 and standard deviation sqrt(6000 * 5/36) = 29; six of them is 173.
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(6000):
        order = tuple(permutation(seed, 3).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6
    assert max(abs(c - 1000) for c in counts.values()) < 173


def test_coins_are_fair() -> None:
    assert abs(int(coins(1, 10_000).sum()) - 5000) < 300  # six standard deviations of 50


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_rows_of_shared_noise_are_cut_from_the_whole_batch(kind: str) -> None:
    whole = getattr(Noise.shared(5, 7, "cpu"), kind)(2, 3)
    parts = [getattr(Noise.shared(5, 7, "cpu").rows(a, b), kind)(2, 3) for a, b in ((0, 3), (3, 4), (4, 7))]
    assert torch.equal(torch.cat(parts), whole)


def test_rows_of_rows() -> None:
    whole = Noise.shared(5, 8, "cpu").normal(2)
    assert torch.equal(Noise.shared(5, 8, "cpu").rows(2, 7).rows(1, 3).normal(2), whole[3:5])
    each = Noise.per_image(5, range(8), "cpu").normal(2)
    assert torch.equal(Noise.per_image(5, range(8), "cpu").rows(2, 7).rows(1, 3).normal(2), each[3:5])


def test_an_image_has_its_noise_in_any_selection() -> None:
    together = Noise.per_image(7, range(6), "cpu")
    first, second = together.normal(3, 2), together.uniform()
    for i in (4, 0, 5):
        alone = Noise.per_image(7, [i], "cpu")
        assert torch.equal(alone.normal(3, 2)[0], first[i])
        assert torch.equal(alone.uniform()[0], second[i])


def test_draws_and_forks_differ_and_repeat() -> None:
    def draws() -> list[torch.Tensor]:
        noise = Noise.shared(1, 4, "cpu")
        return [noise.normal(5), noise.normal(5), noise.fork("a").normal(5), noise.fork("b").normal(5)]

    first, second = draws(), draws()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(not torch.equal(first[i], first[j]) for i in range(4) for j in range(i))


def test_normal_moments() -> None:
    x = Noise.shared(0, 1000, "cpu").normal(1000).double()
    # Of a million values: the mean has standard deviation 1e-3, the variance sqrt(2) * 1e-3; six of them.
    assert abs(float(x.mean())) < 6e-3
    assert abs(float(x.var()) - 1) < 9e-3


def test_seeded_restores_the_global_generator() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with seeded(9):
        inside = torch.rand(2)
    assert torch.equal(torch.rand(2), expected)
    with seeded(9):
        assert torch.equal(torch.rand(2), inside)
    assert isinstance(permutation(0, 3), np.ndarray)


def test_spread_values_lie_evenly_and_each_is_uniform() -> None:
    n = 64
    values = Noise.shared(3, n, "cpu").spread()
    assert values.shape == (n,)
    assert bool(((values >= 0) & (values < 1)).all())
    gaps = values.sort().values.diff()
    torch.testing.assert_close(gaps, torch.full((n - 1,), 1 / n), rtol=0, atol=1e-6)
    firsts = torch.stack([Noise.shared(seed, n, "cpu").spread()[5] for seed in range(400)])
    assert float(firsts.mean()) == pytest.approx(0.5, abs=5 * (1 / 12 / 400) ** 0.5)


def test_a_share_of_spread_values_is_cut_from_the_whole() -> None:
    whole, share = Noise.shared(3, 10, "cpu"), Noise.shared(3, 10, "cpu").rows(4, 7)
    assert torch.equal(whole.spread()[4:7], share.spread())
    assert torch.equal(whole.normal(2)[4:7], share.normal(2))  # both have drawn once


def test_streams_of_single_images_spread_nothing() -> None:
    both = Noise.per_image(0, [4, 9], "cpu").spread()
    assert float(Noise.per_image(0, [9, 1], "cpu").spread()[0]) == float(both[1])
