"""The protocol: intervals that hold, few images, and corruptions that are told apart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from calotype.core.rng import Noise, fold
from calotype.errors import ConfigError, RunError
from calotype.evaluation.evaluate import METRICS, Reference, measured
from calotype.evaluation.report import Copying, Protocol, Report, Value, comparable

D = 6


def normal(n: int, seed: int, scale: float = 1.0) -> Tensor:
    return Noise.shared(fold(seed, "normal"), n, "cpu").normal(D).double() * scale


@pytest.mark.parametrize("name", ["FD", "FD∞", "KID", "precision", "density"])
def test_intervals_hold_the_value_of_many_repeats(name: str) -> None:
    """Of 95 % intervals of many sets, each beside a reference of its own, about 95 % hold the mean over such sets."""
    repeats = 200 if name == "KID" else 60  # its spread is estimated from heavy tails, and holds in nine of ten cases
    found = [
        measured(name, "samples", [normal(300, k + 1, 1.1)], Reference.of(normal(2000, 5000 + k)), "toy")
        for k in range(repeats)
    ]
    truth = float(np.mean([f.value for f in found]))
    held = np.mean([f.low <= truth <= f.high for f in found])
    assert 0.85 <= held  # 0.95 less 3.5 standard errors of such a share
    widths = np.mean([f.high - f.low for f in found])
    spread = 2 * 1.96 * np.std([f.value for f in found])
    # And they are not wide for nothing; a jackknife of what is not smooth is too wide (Efron and Stein 1981).
    assert widths < (2.0 if name == "precision" else 1.6) * spread


def test_two_seeds_say_no_less_than_they_differ() -> None:
    reference = Reference.of(normal(1000, 0))
    alike = measured("FD", "samples", [normal(300, 1), normal(300, 2)], reference, "toy")
    apart = measured("FD", "samples", [normal(300, 1), normal(300, 2, 1.5)], reference, "toy")
    assert apart.high - apart.low > 5 * (alike.high - alike.low)


@pytest.mark.parametrize("n", [1, 2, 16, 60, 300])
def test_few_images_give_a_number_or_a_reason(n: int) -> None:
    reference = Reference.of(normal(500, 0))
    for name, metric in METRICS.items():
        value = measured(name, "samples", [normal(n, 1)], reference, "toy")
        if n < metric.needs:
            assert value.value is None
            assert value.note == f"needs {metric.needs} images, there are {n}"
        else:
            assert value.low <= value.value <= value.high


def test_constant_images_and_features_give_numbers() -> None:
    features = normal(500, 0)
    features[:, 2] = 4.0  # a feature that never changes
    reference = Reference.of(features)
    same = reference.scaled(features[:1].expand(100, D).clone())
    for name in METRICS:
        value = measured(name, "samples", [same], reference, "toy")
        assert value.value is None or np.isfinite([value.value, value.low, value.high]).all(), name
    assert measured("recall", "samples", [same], reference, "toy").value == 0


def test_fewer_images_than_features_are_flagged() -> None:
    generator = torch.Generator().manual_seed(0)
    reference = Reference.of(torch.randn(500, 80, generator=generator, dtype=torch.float64))
    few = torch.randn(60, 80, generator=generator, dtype=torch.float64)
    assert measured("FD", "samples", [few], reference, "toy").note == "fewer images than the 80 features"


PROTOCOL = Protocol(
    n=10, seeds=(0, 1), data="d", reference="train", reference_n=5, features="toy", features_digest="f", k=5
)


def report(protocol: Protocol = PROTOCOL) -> Report:
    known, unknown = (
        Value("FD-toy", "samples", 1.5, 1.0, 2.0, 10),
        Value("FD-toy", "held_out", None, None, None, 3, "few"),
    )
    copying = Copying(False, "no sign of copying", ({"sample": 1, "train": 2, "distance": 0.5},))
    return Report({"kind": "folder"}, {"source": "x"}, protocol, (known, unknown), copying, {}, ("few",), "calotype")


def test_reports_come_back_from_their_file(tmp_path: Path) -> None:
    report().save(tmp_path / "r.json")
    again = Report.open(tmp_path / "r.json")
    assert json.dumps(again.as_dict()) == json.dumps(report().as_dict())
    assert again.value("FD-toy").value == 1.5
    assert "not reported" in again.text()
    assert "1.5 (1 to 2)" in again.text()
    (tmp_path / "r.json").write_text('{"format": 2}')
    with pytest.raises(RunError, match="no report"):
        Report.open(tmp_path / "r.json")


def test_reports_of_other_protocols_are_not_compared() -> None:
    comparable([report(), report(replace(PROTOCOL, seeds=(7,)))])
    with pytest.raises(ConfigError, match="n 10 and 20; k 5 and 3"):
        comparable([report(), report(replace(PROTOCOL, n=20, k=3))])
