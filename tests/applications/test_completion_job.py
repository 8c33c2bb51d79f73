"""`calotype complete`: what is kept stays, what is drawn can be repeated, and mistakes are told early."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from calotype import cli
from calotype.core.images import read_png
from calotype.core.model import ImageSpec
from calotype.core.rng import seeded
from calotype.data import DataConfig, prepare
from calotype.distributed.locks import locked
from calotype.errors import ConfigError
from calotype.families.autoregressive import Autoregressive, AutoregressiveConfig
from calotype.families.diffusion import Diffusion, DiffusionConfig
from calotype.runs.run import load
from calotype.sampling import sampler
from calotype.training.setup import train

SETTINGS = {"model": {"widths": [16], "blocks": [1], "attention": []}, "training": {"batch_size": 16}}


@pytest.fixture
def run(picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run trained a little on the pictures of two classes."""
    monkeypatch.setattr("calotype.training.session.FINAL_GRID", 4)
    out = tmp_path / "run"
    train("autoregressive", picture_folder, budget="32img", out=out, settings=SETTINGS)
    return out


def complete(*arguments: str | Path) -> int:
    return cli.main(["complete", *map(str, arguments)])


def test_rows_are_kept_and_the_rest_is_drawn(run: Path, picture_folder: Path, tmp_path: Path) -> None:
    folder, sheet = tmp_path / "completed", tmp_path / "sheet.png"
    assert complete(run, picture_folder, "--rows", "5", "-n", "2", "--folder", folder, "--out", sheet) == 0
    packed = prepare(DataConfig(source=str(picture_folder), width=12, height=12))
    files = sorted(folder.glob("*.png"))
    assert len(files) == 2 * len(packed)
    given = packed.read(np.arange(len(packed))).images
    drawn = torch.stack([torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) for file in files])
    assert torch.equal(drawn[:, :, :5], given.repeat_interleave(2, 0)[:, :, :5])
    assert not torch.equal(drawn[0::2], drawn[1::2])
    with Image.open(sheet) as image:
        assert image.size == (2 + 4 * 14, 2 + len(packed) * 14)
    trained = load(run)
    labels = packed.read(np.arange(len(packed))).labels
    assert labels is not None
    again = sampler.complete(trained.model, given.repeat_interleave(2, 0), 60, 0, lambda i: int(labels[i // 2]))
    assert torch.equal(torch.cat([part.images for part in again]), drawn)


def test_one_picture_alone(run: Path, picture_folder: Path, tmp_path: Path) -> None:
    picture = next(picture_folder.rglob("*.png"))
    folder = tmp_path / "completed"
    assert complete(run, picture, "--labels", "dots", "-n", "3", "--folder", folder) == 0
    assert len(list(folder.glob("*.png"))) == 3


def test_labels_are_taken_in_turn_over_completions(run: Path, picture_folder: Path, tmp_path: Path) -> None:
    picture, folder = next(picture_folder.rglob("*.png")), tmp_path / "completed"
    assert complete(run, picture, "--labels", "bars,dots", "-n", "2", "--rows", "0", "--folder", folder) == 0
    blank = torch.zeros(2, 3, 12, 12, dtype=torch.uint8)
    drawn = next(sampler.complete(load(run).model, blank, 0, 0, lambda i: i)).images
    files = sorted(folder.glob("*.png"))
    assert torch.equal(torch.stack([read_png(file) for file in files]), drawn)
    assert not torch.equal(drawn, next(sampler.complete(load(run).model, blank, 0, 0, lambda i: 0)).images)


def test_pixels_and_labels(run: Path, picture_folder: Path) -> None:
    assert complete(run, picture_folder, "--pixels", "30", "--labels", "dots", "-n", "1", "--seed", "3") == 0
    assert (run / "completions-3.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rows", "13"), "rows is 13, but the images have 12"),
        (("--pixels", "145"), "pixels is 145, but the images have 144"),
        (("--rows", "2", "--pixels", "2"), "give one of them"),
        (("-n", "0"), "at least 1 completion"),
        (("--labels", "cats"), "class 'cats' is unknown"),
        (("--set", "steps=3"), "steps"),
    ],
)
def test_mistakes_are_told(
    run: Path, picture_folder: Path, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert complete(run, picture_folder, *arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(run.glob("completions-*"))


def test_pictures_of_other_classes_need_labels(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "others" / "cats").mkdir(parents=True)
    (tmp_path / "others" / "dogs").mkdir()
    for k, name in enumerate(("cats", "dogs")):
        Image.fromarray(np.full((12, 12, 3), 50 * k + 9, np.uint8)).save(tmp_path / "others" / name / "0.png")
    assert complete(run, tmp_path / "others") == 2
    assert "give --labels" in capsys.readouterr().err
    assert complete(run, tmp_path / "others", "--labels", "bars,dots") == 0


def test_a_model_that_cannot_complete_says_so() -> None:
    with seeded(0):
        model = Diffusion(ImageSpec(1, 8, 8), DiffusionConfig(widths=(16,), attention=(), sigma_data=0.5)).to_eval()
    with pytest.raises(ConfigError, match="cannot complete"):
        list(sampler.complete(model, torch.zeros(1, 1, 8, 8, dtype=torch.uint8), 8, 0))


def test_beginnings_have_the_shape_of_the_images() -> None:
    config = AutoregressiveConfig(widths=(16,), blocks=(1,), attention=(), likelihood="categorical")
    with seeded(0):
        model = Autoregressive(ImageSpec(1, 8, 8), config).to_eval()
    with pytest.raises(ConfigError, match="fit them"):
        list(sampler.complete(model, torch.zeros(1, 1, 8, 9, dtype=torch.uint8), 8, 0))
    with pytest.raises(ConfigError, match="the images have 64"):
        list(sampler.complete(model, torch.zeros(1, 1, 8, 8, dtype=torch.uint8), 65, 0))
    assert list(sampler.complete(model, torch.zeros(0, 1, 8, 8, dtype=torch.uint8), 8, 0)) == []


def test_a_folder_mixes_no_two_makers(
    run: Path, picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, asked = tmp_path / "completed", ("--labels", "dots", "-n", "2")
    one, other = sorted(picture_folder.rglob("*.png"))[:2]
    assert complete(run, one, *asked, "--folder", folder) == 0
    manifest = json.loads((folder / "samples.json").read_text())
    assert (manifest["command"], manifest["run"], manifest["checkpoint"]) == ("complete", "run", 32)
    (folder / "000000-01.png").unlink()  # as where it was stopped
    assert complete(run, one, *asked, "--folder", folder) == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(before) == {".lock", "samples.json", "000000-00.png", "000000-01.png"}
    capsys.readouterr()
    another = tmp_path / "another"
    settings = SETTINGS | {"training": {"batch_size": 16, "seed": 1}}
    train("autoregressive", picture_folder, budget="16img", out=another, settings=settings)
    for words, difference in {
        (run, other, *asked): "(other pictures)",
        (run, one, *asked, "--seed", "1"): "(another 'seed')",
        (run, one, *asked, "--rows", "1"): "(another 'kept pixels')",
        (run, one, "--labels", "bars", "-n", "2"): "(another 'labels')",
        (another, one, *asked): "these would be of `calotype complete` from run 'another' at 16 images with other "
        "settings (other weights)",
    }.items():
        assert complete(*words, "--folder", folder) == 2
        said = capsys.readouterr().err
        assert "holds pictures of `calotype complete` from run 'run' at 32 images" in said
        assert f"{difference}: choose another --folder, or remove the folder" in said
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_without_a_manifest_is_not_continued(
    run: Path, picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "completed"
    assert complete(run, picture_folder, "--folder", folder) == 0
    (folder / "samples.json").unlink()
    assert complete(run, picture_folder, "--folder", folder) == 2
    assert "has no samples.json that says which model made 000000-00.png: choose another --folder" in (
        capsys.readouterr().err
    )


def test_two_commands_do_not_write_one_folder(
    run: Path, picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "completed"
    folder.mkdir()
    with locked(folder, "written"):
        assert complete(run, picture_folder, "--folder", folder) == 2
    assert "completed is being written by another process: wait for it or stop it" in capsys.readouterr().err
    assert complete(run, picture_folder, "--folder", folder) == 0
