"""`calotype reconstruct`, `interpolate`, `encode` and `decode`: what they write, and mistakes that are told early."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from calotype import cli
from calotype.core.images import read_png
from calotype.core.model import Encodable
from calotype.data import DataConfig, prepare
from calotype.runs.run import load
from calotype.training.setup import train

SETTINGS = {
    "model": {"widths": [16, 16], "blocks": [1, 1], "latents": [1, 1], "latent_width": 2, "likelihood": "categorical"},
    "training": {"batch_size": 16},
}


@pytest.fixture
def run(picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run trained a little on the pictures of two classes."""
    monkeypatch.setattr("calotype.training.session.FINAL_GRID", 4)
    out = tmp_path / "run"
    train("vae", picture_folder, budget="32img", out=out, settings=SETTINGS)
    return out


def calotype(*arguments: str | Path) -> int:
    return cli.main([*map(str, arguments)])


def test_pictures_beside_what_came_back(run: Path, picture_folder: Path, tmp_path: Path) -> None:
    folder, sheet = tmp_path / "back", tmp_path / "sheet.png"
    assert calotype("reconstruct", run, picture_folder, "--folder", folder, "--out", sheet) == 0
    packed = prepare(DataConfig(source=str(picture_folder), width=12, height=12))
    found = packed.read(np.arange(len(packed)))
    model = load(run).model
    assert isinstance(model, Encodable)
    back = model.decode(model.encode(found.images, found.labels), found.labels)
    files = sorted(folder.glob("*.png"))
    assert len(files) == len(packed)
    assert torch.equal(torch.stack([read_png(file) for file in files]), back)
    with Image.open(sheet) as image:
        assert image.size[0] == 2 + 8 * 14
    assert calotype("reconstruct", run, next(picture_folder.rglob("*.png")), "--labels", "dots") == 0
    assert (run / "reconstructions.png").is_file()


def test_from_one_picture_to_another(run: Path, picture_folder: Path, tmp_path: Path) -> None:
    first, last = sorted(picture_folder.rglob("*.png"))[:2]
    folder = tmp_path / "between"
    assert calotype("interpolate", run, first, last, "--steps", "5", "--labels", "dots", "--folder", folder) == 0
    between = [read_png(file) for file in sorted(folder.glob("*.png"))]
    assert len(between) == 5
    for end, place in ((first, 0), (last, 4)):
        assert calotype("reconstruct", run, end, "--labels", "dots", "--folder", tmp_path / str(place)) == 0
        assert torch.equal(read_png(tmp_path / str(place) / "000000.png"), between[place])
    assert calotype("interpolate", run, first, last, "--labels", "dots") == 0
    assert (run / "interpolation.png").is_file()


def test_each_end_may_have_a_class_of_its_own(run: Path, picture_folder: Path, tmp_path: Path) -> None:
    first, last = sorted(picture_folder.rglob("*.png"))[:2]
    assert calotype("interpolate", run, first, last, "--labels", "dots,bars", "--folder", tmp_path / "between") == 0
    for end, label, place in ((first, "dots", "000000.png"), (last, "bars", "000007.png")):
        assert calotype("reconstruct", run, end, "--labels", label, "--folder", tmp_path / label) == 0
        assert torch.equal(read_png(tmp_path / label / "000000.png"), read_png(tmp_path / "between" / place))


def test_latents_of_a_gan_are_searched_for(
    picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calotype.training.session.FINAL_GRID", 4)
    monkeypatch.setattr("calotype.families.gan.model.SEARCH", 3)
    out, file = tmp_path / "run", tmp_path / "z.npz"
    settings = {"model": {"widths": [16, 16], "blocks": [1, 1], "latents": 4}, "training": {"batch_size": 8}}
    train("gan", picture_folder, budget="32img", out=out, settings=settings)
    assert calotype("invert", out, picture_folder, "--out", file) == 0
    assert (out / "inversions.png").is_file()
    with np.load(file) as arrays:
        assert arrays["latents"].shape == (40, 4)
        assert len(arrays["labels"]) == 40
    assert calotype("decode", out, file) == 0
    picture = next(picture_folder.rglob("*.png"))
    sheet = tmp_path / "sheet.png"
    assert calotype("invert", out, picture, "--labels", "dots", "--sheet", sheet) == 0
    assert sheet.is_file()
    assert calotype("interpolate", out, picture, picture, "--labels", "dots,bars") == 0


def test_latents_there_and_back(run: Path, picture_folder: Path, tmp_path: Path) -> None:
    file, folder, back = tmp_path / "z.npz", tmp_path / "decoded", tmp_path / "back"
    assert calotype("encode", run, picture_folder, "--out", file) == 0
    with np.load(file) as arrays:
        assert arrays["latents"].shape == (len(arrays["labels"]), 2 * (1 + 12 * 12))
        assert arrays["latents"].dtype == np.float32
        assert list(arrays["class_names"]) == list(load(run).class_names)
    assert calotype("decode", run, file, "--folder", folder) == 0
    assert calotype("reconstruct", run, picture_folder, "--folder", back) == 0
    for one, other in zip(sorted(folder.glob("*.png")), sorted(back.glob("*.png")), strict=True):
        assert torch.equal(read_png(one), read_png(other))
    assert calotype("decode", run, file, "--labels", "dots") == 0
    assert (run / "decoded.png").is_file()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"other": np.zeros((2, 2))}, "has no latents"),
        ({"latents": np.zeros(3)}, "a row for each picture"),
        ({"latents": np.full((2, 2), np.nan), "labels": np.zeros(2)}, "finite"),
        ({"latents": np.zeros((2, 5)), "labels": np.zeros(2)}, "latents are 5"),
        ({"latents": np.zeros((2, 290)), "labels": np.full(2, 2)}, "0 to 1"),
        ({"latents": np.zeros((2, 290)), "labels": np.zeros(3)}, "for each picture"),
    ],
)
def test_files_that_hold_no_latents(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arrays: dict[str, np.ndarray], message: str
) -> None:
    np.savez(tmp_path / "z.npz", **arrays)  # type: ignore[arg-type]
    assert calotype("decode", run, tmp_path / "z.npz") == 2
    assert message in capsys.readouterr().err
    assert not (run / "decoded.png").exists()


def test_mistakes_are_told(run: Path, picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = next(picture_folder.rglob("*.png"))
    (tmp_path / "text.npz").write_text("no archive")
    for arguments, message in [
        (("interpolate", run, one, one, "--steps", "1", "--labels", "dots"), "at least 2"),
        (("interpolate", run, one, one, "--labels", "dots,bars,dots"), "one for each"),
        (("interpolate", run, one, tmp_path / "none.png", "--labels", "dots"), "none.png"),
        (("reconstruct", run, one), "--labels"),
        (("reconstruct", run, one, "--labels", "cats"), "cats"),
        (
            ("encode", run, one, "--labels", "dots", "--out", tmp_path / "file" / "z.npz"),
            "(Not a directory)",
        ),
        (("decode", run, tmp_path / "none.npz"), "does not exist"),
        (("decode", run, tmp_path / "text.npz"), "calotype encode"),
    ]:
        (tmp_path / "file").touch()
        assert calotype(*arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error


def test_models_without_latents_are_refused(
    picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calotype.training.session.FINAL_GRID", 4)
    settings = {"model": {"widths": [16], "blocks": [1], "attention": []}, "training": {"batch_size": 16}}
    train("autoregressive", picture_folder, budget="16img", out=tmp_path / "ar", settings=settings)
    assert calotype("reconstruct", tmp_path / "ar", picture_folder) == 2
    assert "train a vae" in capsys.readouterr().err


def test_a_folder_mixes_no_two_makers(
    run: Path, picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = sorted(picture_folder.rglob("*.png"))[:2]
    for place, picture in (("one.npz", one), ("other.npz", other)):
        assert calotype("encode", run, picture, "--labels", "dots", "--out", tmp_path / place) == 0
    changes = {
        "reconstruct": ([one], [other]),
        "decode": ([tmp_path / "one.npz"], [tmp_path / "other.npz"]),
        "interpolate": ([one, other, "--steps", "3"], [one, other, "--steps", "2"]),
    }
    for command, (first, second) in changes.items():
        folder = tmp_path / command
        assert calotype(command, run, *first, "--labels", "dots", "--folder", folder) == 0
        assert calotype(command, run, *first, "--labels", "dots", "--folder", folder) == 0
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        capsys.readouterr()
        for words in ([*second, "--labels", "dots"], [*first, "--labels", "bars"]):
            assert calotype(command, run, *words, "--folder", folder) == 2
            said = capsys.readouterr().err
            assert f"holds pictures of `calotype {command}` from run 'run' at 32 images" in said
            assert "choose another --folder, or remove the folder" in said
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
