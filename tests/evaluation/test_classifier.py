"""The classifier of a data set, and what it says of the classes that samples reach."""

from __future__ import annotations

import math

import pytest
import torch

from calotype.core.caches import cache_folder
from calotype.data import DataConfig, PackedDataset, prepare
from calotype.evaluation import classifier as module
from calotype.evaluation.classifier import Classifier, as_features, classifier
from calotype.evaluation.modes import divergence, modes, reached, shares

WANTED = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)


def classes(*counts: int) -> torch.Tensor:
    return torch.cat([torch.full((count,), k) for k, count in enumerate(counts)])


def test_modes_by_hand() -> None:
    assert reached(shares(classes(50, 25, 25), 3), WANTED) == 3
    assert reached(shares(classes(98, 2, 0), 3), WANTED) == 1  # 2 % is less than a tenth of a quarter
    assert reached(shares(classes(97, 3, 0), 3), WANTED) == 2
    assert divergence(shares(classes(50, 25, 25), 3), WANTED) == 0
    assert divergence(shares(classes(100, 0, 0), 3), WANTED) == pytest.approx(math.log(2))


def test_modes_have_intervals_and_say_what_was_asked() -> None:
    found = {value.name: value for value in modes("samples", [classes(40, 30, 30)] * 2, WANTED, classes(40, 30, 30), 0)}
    assert found["modes"].value == found["modes"].low == found["modes"].high == 3
    assert found["class divergence"].low < found["class divergence"].value < found["class divergence"].high
    assert found["as asked"].value == 1
    assert found["as asked"].n == 200
    wrong = modes("samples", [classes(40, 30, 30)], WANTED, classes(20, 50, 30), 0)[-1]
    assert wrong.value == 0.8


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CALOTYPE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        return prepare(DataConfig(source="glyphs:rgba:2600", width=24, height=20, channels=4))


@pytest.mark.slow
def test_it_learns(packed: PackedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IMAGES", 10_000)
    monkeypatch.setattr(module, "VERSION", "test of learning")
    found = classifier(packed, lambda *counts: None)
    batch = packed.read(packed.held_out)
    assert (found.classes(batch.images) == batch.labels).double().mean() > 0.9  # of 26 letters, in any typeface


def test_it_is_trained_once_and_kept(packed: PackedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IMAGES", 100)
    monkeypatch.setattr(module, "VERSION", "test of keeping")
    reports: list[tuple[int, int]] = []
    found = classifier(packed, lambda *counts: reports.append(counts))
    assert reports[-1] == (100, 100)
    batch = packed.read(packed.held_out)
    told = len(reports)
    again = classifier(packed, lambda *counts: reports.append(counts))
    assert len(reports) == told
    assert again.digest == found.digest
    assert torch.equal(again.classes(batch.images), found.classes(batch.images))


def test_a_damaged_one_is_trained_anew(packed: PackedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IMAGES", 64)
    monkeypatch.setattr(module, "VERSION", "test of damage")
    first = classifier(packed, lambda *counts: None)
    path = cache_folder("classifiers") / f"{packed.digest[:16]}-test of damage"
    path.write_bytes(path.read_bytes()[:100])
    assert classifier(packed, lambda *counts: None).digest == first.digest


def test_without_classes_there_is_none() -> None:
    unlabelled = prepare(DataConfig(source="glyphs:gray:100", labels=False))
    assert classifier(unlabelled, lambda *counts: None) is None


def test_its_features_are_those_that_it_decides_by() -> None:
    packed = prepare(DataConfig(source="glyphs:gray:100", width=28, height=28))
    model = Classifier(packed.spec).to_eval()
    images = packed.read(packed.train).images
    network = as_features(model)
    assert network.name == f"Classifier@{model.digest}"
    assert torch.equal(model.logits(network.features(images).float()).argmax(1), model.classes(images))
