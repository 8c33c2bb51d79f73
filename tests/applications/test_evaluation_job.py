"""`calotype evaluate` end to end, with a small network of features in place of the large one."""

from __future__ import annotations

import errno
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import calotype
from calotype import cli
from calotype.data import DataConfig, prepare
from calotype.errors import ConfigError, DataError
from calotype.evaluation import classifier, controls, features, measured_runs
from calotype.evaluation.evaluate import DISTANCES, METRICS
from calotype.evaluation.protocol import Subject
from calotype.evaluation.report import Report
from calotype.runs.log import training_seconds

SETTINGS = {"model": {"widths": [16], "blocks": 1, "attention": []}, "training": {"batch_size": 16}}
LETTERS = "glyphs:gray:1200"


def small() -> features.FeatureNetwork:
    """Means over a grid of 5 x 5, and edges: enough to tell letters from noise."""

    def run(values: Tensor) -> Tensor:
        gray = values.mean(1, keepdim=True) / 255
        edges = (gray[:, :, 1:] - gray[:, :, :-1]).abs()
        return torch.cat([torch.nn.functional.adaptive_avg_pool2d(x, 5).flatten(1) for x in (gray, edges)], 1)

    return features.FeatureNetwork("small", "0123", 20, run)


@pytest.fixture(autouse=True)
def _small_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "network", lambda name: small())
    monkeypatch.setattr(classifier, "IMAGES", 64)  # how well it learns is not tested here


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, trained a little."""
    out = tmp_path_factory.mktemp("runs") / "letters"
    calotype.train("diffusion", LETTERS, size="16", budget="64img", out=out, settings=SETTINGS)
    return out


def test_a_report_is_written_by_one_command(
    letters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second is refused before any work; with another place it is not."""
    words, place = ["evaluate", str(letters), "-n", "16", "--set", "steps=2"], tmp_path / "reports" / "one.json"
    drawn, seen = measured_runs.subject, list[int]()

    def meanwhile(*arguments: Any) -> Subject:
        monkeypatch.setattr(measured_runs, "subject", drawn)
        seen.append(cli.main([*words, "--out", str(place)]))
        seen.append(cli.main([*words, "--out", str(place.with_name("other.json"))]))
        return drawn(*arguments)

    monkeypatch.setattr(measured_runs, "subject", meanwhile)
    assert cli.main([*words, "--out", str(place)]) == 0
    assert seen == [2, 0]
    said = capsys.readouterr().err
    assert "one.json is being written by another process: wait for it or stop it, or choose another --out" in said
    assert Report.open(place).protocol.n == Report.open(place.with_name("other.json")).protocol.n == 16


def test_a_run_is_measured_beside_its_controls(letters: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", str(letters), "-n", "90", "--set", "steps=2"]) == 0
    report = Report.open(letters / "evaluation.json")
    assert report.protocol.n == 90
    assert report.protocol.seeds == (0, 1)
    fd = {of: report.value("FD-small", of) for of in ("samples", *controls.NAMES)}
    assert all(value.n == 90 for value in fd.values())
    assert fd["held_out"].high < fd["samples"].low  # hardly trained
    assert fd["train"].value < 2 * fd["held_out"].value
    assert fd["held_out"].high < fd["patches"].low
    assert report.value("FD∞-small").note == "needs 200 images, there are 90"
    assert report.value("bits/dim (bound)").value > 0
    assert report.cost["network calls per image"] == 2
    assert report.cost["images seen in training"] == 64
    assert {value.of for value in report.per_class} == set("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    assert report.command == f"calotype evaluate {letters.name} -n 90 --set steps=2"  # without whose folder it is in
    shown = capsys.readouterr().out
    assert "FD-small" in shown
    assert f"report: {letters / 'evaluation.json'}" in shown


def test_every_metric_is_in_the_report_of_every_set(letters: Path) -> None:
    report = calotype.evaluate(letters, n=60, set=("steps=1",))
    names = {value.name for value in report.values if value.of == "patches" and "Classifier" not in value.name}
    own = {f"{name}-small" if name in DISTANCES else name for name in METRICS}
    assert names == own | {"modes", "class divergence"}
    by_classifier = {value.name for value in report.values if "Classifier" in value.name}
    assert len(by_classifier) == 3
    assert all(re.fullmatch(r"(FD|FD∞|KID)-Classifier@[0-9a-f]{8}", name) for name in by_classifier)
    assert [value.of for value in report.over_training] == ["16", "32", "48", "64"]
    assert all(value.n == 16 and value.low < value.value < value.high for value in report.over_training)


def folder(tmp_path: Path, images: Tensor, name: str = "images") -> Path:
    (tmp_path / name).mkdir()
    for k, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy().squeeze()).save(tmp_path / name / f"{k:04}.png")
    return tmp_path / name


def test_copies_are_flagged_and_held_out_images_are_not(tmp_path: Path) -> None:
    packed = prepare(DataConfig(source=LETTERS))
    copies = folder(tmp_path, packed.read(packed.train[:120]).images, "copies")
    real = folder(tmp_path, packed.read(packed.held_out).images, "real")
    found = {path.name: calotype.evaluate(path, data=LETTERS) for path in (copies, real)}
    assert found["copies"].copying.flagged
    assert "This looks like copying" in found["copies"].copying.verdict
    assert not found["real"].copying.flagged
    for space in ("features", "pixels"):
        assert found["copies"].value(f"close in {space}").value == 1
        assert found["copies"].value(f"close in {space}", "train").value == 1
        assert found["real"].value(f"close in {space}").value < 0.05
    assert found["copies"].value("authentic in features").value == 0
    assert found["real"].value("authentic in features").value > 0.5
    assert found["real"].value("near-duplicates").value < 0.06  # 0.01, and what the letters of one typeface share
    # Of a copy the nearest training image is the one it is of.
    places = [(pair["sample"], pair["train"]) for pair in found["copies"].copying.suspects]
    assert len(places) == 16
    assert all(pair["distance"] < 0.05 for pair in found["copies"].copying.suspects)


def test_repeated_images_and_transparency_are_told(tmp_path: Path) -> None:
    packed = prepare(DataConfig(source="glyphs:rgba:800"))
    few = packed.read(packed.held_out[:20]).images.repeat(4, 1, 1, 1)
    report = calotype.evaluate(folder(tmp_path, few), data="glyphs:rgba:800")
    assert report.value("near-duplicates").value == 1
    assert not report.copying.flagged  # with 80 held-out images: near is what training images are from each other
    assert report.value("near-duplicates", "train").value < 0.1
    alpha = {of: report.value("FD-small, alpha", of).value for of in ("samples", "train", "patches")}
    assert alpha["train"] < alpha["samples"] < alpha["patches"]


def test_a_folder_of_mixed_sizes_with_a_broken_file(tmp_path: Path) -> None:
    packed = prepare(DataConfig(source=LETTERS))
    images = folder(tmp_path, packed.read(packed.held_out[:60]).images)
    Image.new("RGB", (70, 50), "white").save(images / "large.png")
    (images / "broken.png").write_bytes(b"not a picture")
    report = calotype.evaluate(images, data=LETTERS)
    assert report.subject["images"] == 61
    assert report.subject["skipped"] == 1
    assert report.value("FD-small").n == 61


@pytest.mark.parametrize("n", [16, 17])
def test_few_images(tmp_path: Path, n: int) -> None:
    packed = prepare(DataConfig(source=LETTERS))
    report = calotype.evaluate(folder(tmp_path, packed.read(packed.held_out[:n]).images), data=LETTERS)
    assert report.value("FD-small").note == f"needs 50 images, there are {n}"
    text = json.dumps(report.as_dict(), allow_nan=False)
    assert "NaN" not in text


def test_one_image_and_images_that_are_all_alike(tmp_path: Path) -> None:
    """A model that gives but one image is measured like any other; a single image has nothing to be measured by."""
    alike = torch.full((60, 1, 16, 16), 128, dtype=torch.uint8)
    report = calotype.evaluate(folder(tmp_path, alike, "alike"), data=LETTERS)
    assert report.value("recall").value == 0
    assert report.value("near-duplicates").value == 1
    assert report.value("modes").value == 1
    assert report.value("FD-small").low > report.value("FD-small", "held_out").high
    with pytest.raises(ConfigError, match="one has 1 image, but a set to measure has 2 or more"):
        calotype.evaluate(folder(tmp_path, alike[:1], "one"), data=LETTERS)
    two = calotype.evaluate(folder(tmp_path, alike[:2], "two"), data=LETTERS)
    assert two.value("KID-small").note == "needs 20 images, there are 2"
    assert "not reported: FD-small needs 50 images, there are 2" in two.text()
    json.dumps(two.as_dict(), allow_nan=False)
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="has no usable pictures, but there must be one to measure"):
        calotype.evaluate(tmp_path / "none", data=LETTERS)


def test_pictures_that_are_only_measured_are_not_learnt_from(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="to_learn is false"):
        calotype.train("diffusion", DataConfig(source=LETTERS, to_learn=False), budget="64img", out=tmp_path / "r")


def test_binary_pictures_are_told_in_nats_as_well(tmp_path: Path) -> None:
    packed = prepare(DataConfig(source=LETTERS, width=16, height=16))
    binary = (packed.read(packed.train[:100]).images > 127).to(torch.uint8) * 255
    run = tmp_path / "run"
    source = folder(tmp_path, binary)
    calotype.train("diffusion", source, size="16", budget="64img", out=run, settings=SETTINGS)
    report = calotype.evaluate(run, n=20, set=("steps=1",))
    bits, nats = (report.value(f"{unit} (bound)") for unit in ("bits/dim", "nats"))
    assert nats.value == pytest.approx(bits.value * 256 * math.log(2))


def test_mistakes_are_told_early(tmp_path: Path, letters: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = folder(tmp_path, torch.zeros(3, 1, 8, 8, dtype=torch.uint8))
    for arguments, message in [
        ([str(tmp_path / "nowhere")], "does not exist"),
        ([str(images)], "is no run: to measure images, say by --data"),
        ([str(letters), "--data", "glyphs:gray:64"], "has other pictures than"),
        ([str(letters), "-n", "1"], "at least 2 images"),
        ([str(images), "--data", LETTERS, "--set", "steps=3"], "leave out --set"),
        ([str(letters), "--set", "steps=0"], "steps is 0"),
        ([str(letters), "--out", str(images)], "name a file, such as"),
        ([str(letters), "--checkpoint", "7"], "no checkpoint 7"),
    ]:
        assert cli.main(["evaluate", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_a_report_that_cannot_be_written_is_shown(
    letters: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Report, "save", full)
    place = letters.with_name("report.json")
    assert cli.main(["evaluate", str(letters), "-n", "20", "--set", "steps=1", "--out", str(place)]) == 2
    printed = capsys.readouterr()
    assert "KID-small" in printed.out
    assert "cannot be written" in printed.err
    assert "choose another --out" in printed.err


def test_features_do_not_depend_on_company_and_are_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    network, packed = features.efficientnet_lite0(), prepare(DataConfig(source="glyphs:rgba:60"))
    images = packed.read(packed.train[:20]).images
    together = network.features(images)
    assert together.shape == (20, 320)
    torch.testing.assert_close(network.features(images[7:9]), together[7:9], rtol=1e-4, atol=1e-5)
    read: list[int] = []
    for _ in range(2):
        kept = features.cached(network, "some", lambda: read.append(1) or images, lambda done, total: None)
        torch.testing.assert_close(kept, together, rtol=1e-6, atol=1e-6)
    assert read == [1]


def test_transparency_is_laid_over_white() -> None:
    image = torch.tensor([[10, 20, 30, 0], [10, 20, 30, 255], [0, 0, 0, 51]], dtype=torch.uint8).reshape(3, 4, 1, 1)
    expected = torch.tensor([[255.0, 255, 255], [10, 20, 30], [204, 204, 204]])
    assert torch.equal(features.colours(image).flatten(1), expected)
    assert torch.equal(features.transparency(image).flatten(), torch.tensor([0, 255, 51], dtype=torch.uint8))
    with pytest.raises(ConfigError, match="5 channels"):
        features.colours(torch.zeros(1, 5, 2, 2, dtype=torch.uint8))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of torch.export itself
def test_a_network_of_ones_own(tmp_path: Path) -> None:
    class Means(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3))

    batch = torch.export.Dim("batch")
    program = torch.export.export(Means(), (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "means.pt2")
    network = features.own_network(tmp_path / "means.pt2")
    images = torch.full((5, 1, 8, 8), 40, dtype=torch.uint8)
    assert (network.name, network.side) == ("means", 8)
    assert torch.equal(network.features(images), torch.full((5, 3), 40.0, dtype=torch.float64))
    (tmp_path / "text.pt2").write_text("no network")
    with pytest.raises(ConfigError, match="cannot be used as a feature network"):
        features.own_network(tmp_path / "text.pt2")
    with pytest.raises(ConfigError, match="neither one of EffLite0, Inception:FILE, DINOv2:FILE nor a file"):
        features.own_network(tmp_path / "inception")


def test_the_normal_distribution_has_the_moments_of_the_pixels() -> None:
    packed = prepare(DataConfig(source=LETTERS, width=8, height=8))
    real = packed.read(packed.train).images.flatten(1).double()
    drawn = controls.gaussian(packed, 3000, 0).flatten(1).double()
    inside = (drawn > 0) & (drawn < 255)  # bytes cut off what lies beyond
    free = inside.double().mean(0) > 0.9
    assert torch.allclose(drawn.mean(0)[free], real.mean(0)[free], atol=12)


def test_shuffled_patches_are_the_same_pixels() -> None:
    images = torch.arange(2 * 9 * 10, dtype=torch.uint8).reshape(2, 1, 9, 10)
    moved = controls.shuffled_patches(images, 0)
    assert not torch.equal(moved, images)
    assert torch.equal(moved.flatten(1).sort(1).values, images.flatten(1).sort(1).values)
    assert torch.equal(moved[:, :, 8:], images[:, :, 8:])  # what does not come to a patch stays
    assert torch.equal(controls.shuffled_patches(images[:, :, :3, :3], 0), images[:, :, :3, :3])


def test_training_takes_as_long_as_it_takes_whatever_the_clock_says() -> None:
    log = [
        {"event": "progress", "time": 1_000.0, "elapsed": 2.0},
        {"event": "progress", "time": 87_400.0, "elapsed": 5.0},  # the clock was set by a day
        {"event": "resumed", "time": 10.0, "elapsed": 1.0},
        {"event": "finished", "time": 11.0, "elapsed": 4.0},
    ]
    assert training_seconds(log) == 3.0 + 3.0
