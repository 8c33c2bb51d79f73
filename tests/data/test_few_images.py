"""What is measured with next to nothing: numbers are finite or left out with a reason, and no sentence is wrong."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from calotype import cli
from calotype.applications.evaluation import unlike
from calotype.core.display import PlainDisplay
from calotype.core.model import Batch, Bits
from calotype.core.rng import Noise
from calotype.data import DataConfig, PackedDataset, prepare
from calotype.errors import ConfigError
from calotype.evaluation import classifier, features
from calotype.evaluation.copying import FEWEST_TO_COMPARE
from calotype.evaluation.evaluate import METRICS
from calotype.evaluation.features import FeatureNetwork
from calotype.evaluation.likelihood import asked, likelihoods
from calotype.evaluation.page import Pictures, page
from calotype.evaluation.protocol import Outcome, Subject, evaluated
from calotype.evaluation.report import Report
from calotype.evaluation.views import NOTHING

SAMPLES = (0, 1, 2, 3, 5, 19)
HELD_OUT = (1, 2, 5, 20)
TRAINING = 24
CLASSES = ("none", "one", "rare", "gaps")
QUIET = PlainDisplay(write=lambda text: None)


def network() -> FeatureNetwork:
    """Pixels as they are."""
    return FeatureNetwork("pixels", "0", 6, lambda values: values.mean(1).flatten(1) / 255)


def labels_of(kind: str, n: int) -> np.ndarray:
    """Class numbers of n pictures."""
    counts = np.arange(n)
    return {"one": counts * 0, "two": counts % 2, "rare": (counts == 0) * 1, "gaps": 1 + 3 * (counts % 2)}[kind]


def data_set(folder: Path, held_out: int, kind: str, training: int = TRAINING, alike: bool = False) -> PackedDataset:
    """Pictures of 6 x 6 with a split of their own."""
    pixels = np.random.default_rng(held_out).integers(0, 256, (training + held_out, 6, 6), dtype=np.uint8)
    if alike:
        pixels[:] = 100
    arrays = {"x_train": pixels[:training], "x_test": pixels[training:]}
    if kind != "none":
        arrays |= {"y_train": labels_of(kind, training), "y_test": labels_of(kind, held_out)}
    np.savez(folder / "data.npz", **arrays)
    return prepare(DataConfig(source=str(folder / "data.npz")))


def bits(batch: Batch, noise: Noise) -> Bits:
    """A likelihood of anything."""
    return Bits(batch.images.double().flatten(1).mean(1) / 50, "exact", 0)


def noise(n: int, seed: int) -> Tensor:
    """Images that are like nothing."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 1, 6, 6), dtype=torch.uint8, generator=generator)


def measured(packed: PackedDataset, images: Tensor) -> Outcome:
    """A report on images, asked for in the proportions of the classes, twice."""
    labels = None
    if packed.labels is not None:
        labels = torch.from_numpy(packed.labels[packed.train])[torch.arange(len(images)) % len(packed.train)]
    ask = asked(bits, packed, 0)
    bound = likelihoods(lambda parts: map(ask, parts), packed, 0, QUIET)
    subject = Subject(
        [images, noise(len(images), seed=99) if len(images) < 20 else images.flip(0)],
        labels,
        (0, 1),
        {"kind": "images"},
        {},
        bound,
        (),
    )
    return evaluated(subject, packed, network(), 0, "calotype evaluate", QUIET)


def check(outcome: Outcome, folder: Path) -> None:
    """Each value is a number within its range and its interval, or missing with a reason; the same is written."""
    report = outcome.report
    for value in (*report.values, *report.per_class):
        if value.value is None:
            assert value.note, value
            assert value.low is None, value
            continue
        assert math.isfinite(value.value), value
        if value.low is None or value.high is None:
            assert value.note, value
            continue
        assert -math.inf < value.low <= value.value + 1e-9, value
        assert value.value - 1e-9 <= value.high < math.inf, value
        metric = METRICS.get(value.name.partition("-")[0])
        if metric is not None:
            assert metric.least <= value.value <= metric.most, value
            assert value.n >= metric.needs, value
    report.save(folder / "evaluation.json")  # refuses what is not finite
    assert Report.open(folder / "evaluation.json").as_dict() == report.as_dict()
    shown = Pictures(outcome.samples, outcome.real, outcome.suspects, [], NOTHING)
    for text in (report.text(), page(report, shown, {})):
        words = set(text.lower().replace(",", " ").replace("(", " ").replace(")", " ").split())
        assert not {"nan", "inf", "-inf", "none", "infinity"} & words


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "IMAGES", 64)
    monkeypatch.setattr(features, "network", lambda name: network())


@pytest.mark.parametrize("kind", CLASSES)
def test_every_number_of_few_images_is_finite_or_left_out_with_its_reason(kind: str, tmp_path: Path) -> None:
    for held_out in HELD_OUT:
        packed = data_set(tmp_path, held_out, kind)
        assert len(packed.held_out) == held_out
        for n in SAMPLES:
            images = noise(n, seed=n)
            if n < 2:
                with pytest.raises(ConfigError, match=r"to measure: give 2 or more"):
                    measured(packed, images)
                continue
            outcome = measured(packed, images)
            check(outcome, tmp_path)
            assert outcome.report.copying is not None
            assert not outcome.report.copying.flagged, (held_out, n)
            assert ("that says little" in outcome.report.copying.verdict) == (2 * n < FEWEST_TO_COMPARE)
            if held_out < n:
                count = "there is 1 held-out image for" if held_out == 1 else f"there are {held_out} held-out images"
                assert any(count in warning for warning in outcome.report.warnings)


def test_images_that_are_all_alike_or_those_of_training(tmp_path: Path) -> None:
    for alike, held_out in itertools.product((False, True), (1, 20)):
        packed = data_set(tmp_path, held_out, "two", alike=alike)
        for images in (packed.read(packed.train).images, packed.read(packed.train[:1]).images.expand(20, -1, -1, -1)):
            outcome = measured(packed, images)
            check(outcome, tmp_path)
            assert outcome.report.copying is not None
            assert outcome.report.copying.verdict.startswith("This looks like copying")


def test_one_training_picture_is_nothing_to_compare_with(tmp_path: Path) -> None:
    packed = data_set(tmp_path, 20, "none", training=1)
    with pytest.raises(ConfigError, match="has 1 training picture, but images are compared with 2 or more"):
        measured(packed, torch.zeros(4, 1, 6, 6, dtype=torch.uint8))
    packed = data_set(tmp_path, 20, "none", training=2)
    check(measured(packed, torch.zeros(4, 1, 6, 6, dtype=torch.uint8)), tmp_path)


def test_classes_without_training_pictures_are_not_counted(tmp_path: Path) -> None:
    packed = data_set(tmp_path, 20, "gaps")
    report = measured(packed, packed.read(packed.held_out).images).report
    for of in ("samples", "held_out", "train"):
        modes = report.value("modes", of)
        assert modes.value is not None
        assert modes.value <= 2
        assert modes.high is not None
        assert modes.high <= 2
    assert report.data["classes"] == 2
    assert {value.of for value in report.per_class} == {"1", "4"}


def test_images_that_are_not_as_the_data_are_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = data_set(tmp_path, 5, "none")

    def said(name: str, images: list[Image.Image]) -> str:
        (tmp_path / name).mkdir()
        for k, image in enumerate(images):
            image.save(tmp_path / name / f"{k}.png")
        config = DataConfig(source=str(tmp_path / name), width=6, height=6, channels=packed.spec.channels)
        return "; ".join(unlike(prepare(replace(config, labels=False, to_learn=False)), packed))

    some = np.random.default_rng(0).integers(0, 256, (4, 12, 10, 4), dtype=np.uint8)
    assert said("alike", [Image.fromarray(pixels[:6, :6, 0]) for pixels in some]) == ""
    text = said("rgb", [Image.fromarray(pixels[..., :3]) for pixels in some])
    assert "images of 10x12 were brought to the 6x6 of the data set (crop)" in text
    assert "images in colour were made gray" in text
    assert "laid over white" in said("rgba", [Image.fromarray(pixels) for pixels in some])
    (tmp_path / "alike" / "bad.png").write_bytes(b"")
    assert cli.main(["evaluate", str(tmp_path / "alike"), "--data", str(tmp_path / "data.npz"), "-n", "9"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "9 images were asked for, but there are 4: all of them are measured" in text
    assert "1 file that cannot be used is not measured, the first bad.png" in text
    assert "nan" not in text.lower().split()
    for k in range(1, 4):
        (tmp_path / "alike" / f"{k}.png").unlink()
    assert cli.main(["evaluate", str(tmp_path / "alike"), "--data", str(tmp_path / "data.npz")]) == 2
    assert "has 1 image, but a set to measure has 2 or more" in capsys.readouterr().err
