"""Metrics against closed forms, brute force and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from calotype.core.rng import Noise, fold
from calotype.evaluation.evaluate import METRICS, Reference, measured
from calotype.evaluation.metrics import (
    Frechet,
    Manifolds,
    Moments,
    Streaming,
    kernel_distance,
    manifolds,
    nearest,
    reach,
    shuffled,
)


def normal(n: int, d: int, seed: int) -> Tensor:
    return Noise.shared(fold(seed, "normal"), n, "cpu").normal(d).double()


def exact(mean: Tensor, covariance: Tensor) -> Moments:
    return Moments(1000, mean, covariance)


def test_frechet_of_known_moments() -> None:
    root = normal(8, 8, 0)
    covariance, mean, shift = root @ root.T, normal(1, 8, 1)[0], normal(1, 8, 2)[0]
    here = Frechet(exact(mean, covariance))
    scale = float(covariance.trace())
    assert here.to(exact(mean, covariance)) == pytest.approx(0, abs=1e-7 * scale)
    assert here.to(exact(mean + shift, covariance)) == pytest.approx(float(shift.square().sum()), rel=1e-7)
    for c in (0.25, 9.0):  # tr S (sqrt c - 1)^2
        assert here.to(exact(mean, c * covariance)) == pytest.approx(scale * (math.sqrt(c) - 1) ** 2, rel=1e-7)
    # Matrices that do not commute, by the eigenvalues of S1 S2, which is not symmetric.
    other = normal(8, 8, 3)
    other = other @ other.T
    cross = np.sqrt(np.linalg.eigvals((covariance @ other).numpy())).sum().real
    expected = scale + float(other.trace()) - 2 * cross
    assert here.to(exact(mean, other)) == pytest.approx(expected, rel=1e-9)


def test_frechet_is_symmetric_and_works_with_fewer_images_than_features() -> None:
    few, many = Moments.of(normal(5, 20, 0)), Moments.of(normal(300, 20, 1))
    assert Frechet(few).to(many) == pytest.approx(Frechet(many).to(few), rel=1e-6)
    assert Frechet(few).to(few) == pytest.approx(0, abs=1e-6)
    one = Moments.of(normal(1, 20, 2))
    expected = float((one.mean - many.mean).square().sum() + many.covariance.trace())
    assert Frechet(many).to(one) == pytest.approx(expected, rel=1e-9)


def test_frechet_falls_as_one_over_n_and_is_extrapolated_to_nothing() -> None:
    d, reference = 24, Frechet(exact(torch.zeros(24, dtype=torch.float64), torch.eye(24, dtype=torch.float64)))
    products = [
        n * np.mean([reference.to(Moments.of(normal(n, d, fold(n, k)))) for k in range(20)]) for n in (250, 500, 1000)
    ]
    assert max(products) / min(products) < 1.1
    plain = [reference.to(Moments.of(normal(1000, d, k))) for k in range(20)]
    found = [reference.extrapolated(normal(1000, d, k), 0) for k in range(20)]
    error = float(np.std(found)) / math.sqrt(20)
    assert float(np.mean(found)) == pytest.approx(0, abs=4 * error + 0.03 * float(np.mean(plain)))


def test_streaming_moments_are_those_of_all_at_once() -> None:
    features = normal(1000, 6, 0) * 3 + 100  # far from zero: what a sum of squares would lose
    streaming = Streaming()
    for part in features.split([1, 7, 500, 492]):
        streaming.add(part)
    whole, found = Moments.of(features), streaming.moments()
    assert found.n == 1000
    torch.testing.assert_close(found.mean, whole.mean, rtol=1e-13, atol=0)
    torch.testing.assert_close(found.covariance, whole.covariance, rtol=1e-10, atol=1e-10)


def brute_kernel(x: Tensor, y: Tensor) -> float:
    n, d = x.shape

    def k(a: Tensor, b: Tensor) -> float:
        return float((a @ b / d + 1) ** 3)

    within = [sum(k(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1)) for a in (x, y)]
    return sum(within) - 2 * sum(k(a, b) for a in x for b in y) / n**2


def test_kernel_distance_against_brute_force() -> None:
    x, y = normal(12, 5, 0), normal(12, 5, 1) + 0.5
    assert kernel_distance(x, y).value == pytest.approx(brute_kernel(x, y), rel=1e-12)


@pytest.mark.parametrize("shift", [0.0, 0.2])
def test_kernel_distance_is_unbiased_and_knows_its_error(shift: float) -> None:
    """Of normal data moved by a vector: E k(x, y) is known, since x . y is a sum of products."""
    n, d, repeats = 60, 4, 300
    found = [kernel_distance(normal(n, d, 2 * k), normal(n, d, 2 * k + 1) + shift) for k in range(repeats)]
    values = np.array([f.value for f in found])

    # E (x.y / d + 1)^3 = 1 + 3 E u + 3 E u^2 + E u^3 with u = x.y / d; x ~ N(a, I), y ~ N(b, I), a and b constant
    # vectors: E u = ab, Var u = (1 + a^2 + b^2) / d, third central moment 6 ab / d^2.
    def mean_kernel(a: float, b: float) -> float:
        mean, var, third = a * b, (1 + a * a + b * b) / d, 6 * a * b / d**2
        return 1 + 3 * mean + 3 * (var + mean**2) + third + 3 * mean * var + mean**3

    expected = mean_kernel(0, 0) + mean_kernel(shift, shift) - 2 * mean_kernel(0, shift)
    assert float(values.mean()) == pytest.approx(expected, abs=4 * float(values.std()) / math.sqrt(repeats))
    if shift == 0:
        assert 0.3 < float((values < 0).mean()) < 0.8
    known = math.sqrt(float(np.mean([f.standard_error**2 for f in found])))
    assert known == pytest.approx(float(values.std()), rel=0.2)  # the spread itself is known to 1 / sqrt(600), 4 %


def whole(real: Tensor, samples: Tensor, k: int) -> Manifolds:
    return manifolds(real, samples, k, 2).whole


def brute_manifolds(real: np.ndarray, samples: np.ndarray, k: int) -> dict[str, float]:
    def radius(points: np.ndarray, i: int) -> float:
        return sorted(np.linalg.norm(points - points[i], axis=1))[k]

    far = np.linalg.norm(real[:, None] - samples[None], axis=2)
    r, s = (
        np.array([radius(real, i) for i in range(len(real))]),
        np.array([radius(samples, i) for i in range(len(samples))]),
    )
    inside = far < r[:, None]
    return {
        "precision": inside.any(0).mean(),
        "recall": (far < s[None]).any(1).mean(),
        "density": inside.sum(0).mean() / k,
        "coverage": (far.min(1) < r).mean(),
    }


@pytest.mark.parametrize(("n", "m", "k"), [(40, 40, 3), (25, 60, 5), (60, 7, 1)])
def test_manifolds_against_brute_force(n: int, m: int, k: int) -> None:
    real, samples = normal(n, 3, 0), normal(m, 3, 1) * 1.2 + 0.3
    found = whole(real, samples, k)
    for name, value in brute_manifolds(real.numpy(), samples.numpy(), k).items():
        assert float(getattr(found, name).mean()) == pytest.approx(value, abs=1e-12), name


@pytest.mark.parametrize("k", [1, 3, 5])
def test_manifolds_agree_with_the_package_of_the_paper(k: int) -> None:
    from prdc import compute_prdc

    real, samples = normal(120, 5, 1), normal(90, 5, 2) * 1.2 + 0.3
    expected = compute_prdc(real.numpy(), samples.numpy(), k)
    found = whole(real, samples, k)
    for name, value in expected.items():
        assert float(getattr(found, name).mean()) == pytest.approx(value, abs=1e-12), name


def test_kernel_distance_agrees_and_knows_its_error() -> None:
    """Over many sets of 16 its mean is the value of all of them, and its own error is what they differ by."""
    reference, sets = normal(600, 4, 0), [normal(16, 4, k + 1) * 1.4 for k in range(200)]
    found = [kernel_distance(x, reference) for x in sets]
    values = np.array([kernel.value for kernel in found])
    cubic = lambda a, b: (a @ b.T / 4 + 1) ** 3  # noqa: E731
    x, own = sets[0], cubic(sets[0], sets[0])
    among = cubic(reference, reference)
    by_hand = (own.sum() - own.trace()) / (16 * 15) + (among.sum() - among.trace()) / (600 * 599)
    assert found[0].value == pytest.approx(float(by_hand - 2 * cubic(x, reference).mean()), rel=1e-9)
    many = torch.cat(sets)
    assert values.mean() == pytest.approx(kernel_distance(many, reference).value, abs=4 * values.std() / 200**0.5)
    assert 0.7 < np.mean([kernel.standard_error for kernel in found]) / values.std() < 1.4


def test_manifolds_of_the_same_and_of_other_places() -> None:
    x = normal(50, 4, 0)
    same, apart = whole(x, x.clone(), 3), whole(x, x + 100, 3)
    assert all(float(part.mean()) == 1 for part in (same.precision, same.recall, same.coverage))
    assert all(float(part.mean()) == 0 for part in apart)


def expected_coverage(real: int, samples: int, k: int) -> float:
    """Of samples of the same distribution: 1 - prod over i = 1..k of (M - i) / (N + M - i). Source: Naeem, eq. 10."""
    return 1 - math.prod((real - i) / (samples + real - i) for i in range(1, k + 1))


def test_coverage_of_the_same_distribution_is_as_expected() -> None:
    found = [float(whole(normal(200, 3, 2 * k), normal(200, 3, 2 * k + 1), 5).coverage) for k in range(20)]
    assert float(np.mean(found)) == pytest.approx(expected_coverage(200, 200, 5), abs=4 * np.std(found) / math.sqrt(20))


def test_nothing_depends_on_the_order_of_images() -> None:
    x, y = normal(70, 5, 0), normal(70, 5, 1) + 0.2
    order = torch.randperm(70, generator=torch.Generator().manual_seed(0))
    assert Frechet(Moments.of(x)).to(Moments.of(y)) == pytest.approx(
        Frechet(Moments.of(x[order])).to(Moments.of(y[order])), rel=1e-9
    )
    for a, b in zip(manifolds(x, y, 3, 4), manifolds(x[order], y[order], 3, 4), strict=True):
        for one, other in zip(a, b, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_nearest_and_reach_against_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calotype.evaluation.metrics.AT_ONCE", 50)  # a few rows at a time
    x, y = normal(30, 4, 0), normal(20, 4, 1)
    far = torch.cdist(x, y)
    distance, place = nearest(x, y)
    torch.testing.assert_close(distance, far.min(1).values)
    assert torch.equal(place, far.min(1).indices)
    own = torch.cdist(x, x).fill_diagonal_(torch.inf)
    distance, place = nearest(x, x, but=torch.arange(30))
    torch.testing.assert_close(distance, own.min(1).values)
    assert torch.equal(place, own.min(1).indices)
    torch.testing.assert_close(reach(x, 4, torch.zeros(len(x)), 0)[0], own.sort(1).values[:, 3])


@pytest.mark.parametrize("name", METRICS)
def test_no_value_and_no_interval_depends_on_the_order_of_files(name: str) -> None:
    """Of the images, of which there are fewer than of the reference, or of the reference; but for rounding."""
    real, samples = normal(300, 5, 0), normal(220, 5, 1) + 0.2
    order, other = (torch.randperm(n, generator=torch.Generator().manual_seed(7)) for n in (300, 220))
    found = measured(name, "samples", [samples], Reference.of(real), "net")
    again = measured(name, "samples", [samples[other]], Reference.of(real[order]), "net")
    assert found.value is not None
    assert (again.value, again.low, again.high) == pytest.approx((found.value, found.low, found.high), rel=1e-9)


def test_parts_left_out_are_left_out() -> None:
    """Of each set with a part left out, the values are those of the rest alone."""
    real, samples, k, parts = normal(40, 3, 0), normal(30, 3, 1) * 1.2, 3, 4
    found = manifolds(real, samples, k, parts)
    of_real, of_samples = (shuffled(rows, 0).argsort() % parts for rows in (real, samples))
    for g in range(parts):
        for left_out, rest in (
            (found.without_real, (real[of_real != g], samples)),
            (found.without_samples, (real, samples[of_samples != g])),
        ):
            for value, expected in zip(left_out, whole(*rest, k), strict=True):
                assert float(value[g]) == pytest.approx(float(expected), abs=1e-12)


def test_neighbours_that_are_all_of_one_part_are_passed_over() -> None:
    x, part = normal(200, 2, 0), torch.zeros(200, dtype=torch.int64)
    part[100:] = 1  # half of the images are left out: of 4 k nearest hardly ever enough remain at k = 5
    own = torch.cdist(x, x).fill_diagonal_(torch.inf)
    for g in range(2):
        expected = own[:, part != g].sort(1).values[:, 4]
        torch.testing.assert_close(reach(x, 5, part, 2)[1 + g], expected)


@pytest.mark.parametrize("name", ["precision", "recall", "density", "coverage"])
def test_intervals_hold_where_the_reference_is_drawn_anew(name: str) -> None:
    """The mean of many repetitions lies within nearly all intervals; within 80 to 91 % where only images are drawn."""
    repeats, n = 100, 150
    found = [
        measured(name, "samples", [normal(n, 4, 2 * k) * 1.1], Reference.of(normal(n, 4, 2 * k + 1), False), "net")
        for k in range(repeats)
    ]
    middle = float(np.mean([value.value for value in found]))
    held = sum(value.low <= middle <= value.high for value in found)
    # Of 95 of 100, three standard deviations of the binomial are 6.5.
    assert held >= 88
