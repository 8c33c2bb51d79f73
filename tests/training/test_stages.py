"""Two stages: maps of latents as bytes, the bound by both, and a run whose model was trained on latents."""

from __future__ import annotations

import itertools
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from calotype import cli
from calotype.core.config import read_toml
from calotype.core.model import Batch, GenerativeModel, HasLikelihood, ImageSpec
from calotype.core.rng import Noise, seeded
from calotype.data import DataConfig, prepare
from calotype.errors import ConfigError, RunError
from calotype.families.autoregressive import Autoregressive, AutoregressiveConfig
from calotype.families.diffusion import Diffusion
from calotype.families.latents import Latents, latent_model, latents_of
from calotype.families.vae import VAE, VAEConfig
from calotype.runs.checkpoints import read
from calotype.runs.run import Run, load
from calotype.training import first_stage
from calotype.training.setup import resume, train

LEVELS: dict[str, Any] = {"widths": (16, 16), "blocks": (1, 1), "latents": (0, 1), "point": False, "patch": 1}
CODES = {"model": LEVELS | {"code": "fsq", "codes": [4, 3]}, "training": {"batch_size": 16}}
NUMBERS = {"model": LEVELS | {"latent_width": 3}, "training": {"batch_size": 16}}
SECOND = {"model": {"widths": [16], "blocks": [1], "attention": []}, "training": {"batch_size": 16}}
DIFFUSION = {
    "model": {"widths": [16, 16], "blocks": 1, "attention": []},
    "training": {"batch_size": 16},
}
ADVERSARIAL = {"model": {"widths": [16, 16], "blocks": [1, 1], "latents": 8}, "training": {"batch_size": 8}}


@pytest.fixture(autouse=True)
def _small_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calotype.training.session.FINAL_GRID", 4)
    monkeypatch.setattr("calotype.evaluation.classifier.IMAGES", 64)  # how well it learns is not tested here


def first_of(pictures: Path, out: Path, settings: dict[str, Any] = CODES, **more: Any) -> Path:
    """A run of a VAE with one map."""
    return train("vae", pictures, budget="32img", out=out, settings=settings, **more).path


# -- maps as bytes


def test_codes_are_bytes_as_they_are() -> None:
    latents = Latents(run="", weights="", channels=1, height=16, width=16, codes=256)
    maps = torch.arange(256.0).view(1, 1, 16, 16)
    assert torch.equal(latents.from_bytes(latents.to_bytes(maps), torch.float32), maps)


def test_numbers_come_back_within_half_a_step_and_end_at_the_range() -> None:
    latents = Latents(run="", weights="", channels=2, height=4, width=4, codes=0, low=(-1, 2), high=(1, 3))
    maps = torch.stack([torch.linspace(-1, 1, 16), torch.linspace(2, 3, 16)]).view(1, 2, 4, 4).double()
    off = (latents.from_bytes(latents.to_bytes(maps), torch.float64) - maps).abs().amax((0, 2, 3))
    assert bool((off <= torch.tensor([2, 1]) / 255 / 2 + 1e-12).all())
    far = latents.from_bytes(latents.to_bytes(100 * maps), torch.float64)
    assert far.amin((0, 2, 3)).tolist() == [-1, 3]
    assert far.amax((0, 2, 3)).tolist() == [1, 3]


def test_the_range_is_that_of_the_images_and_does_not_magnify_what_says_nothing() -> None:
    with seeded(0):
        model = VAE(ImageSpec(1, 8, 8), VAEConfig(**LEVELS, latent_width=2, likelihood="categorical"))
    values = torch.tensor([-1.0, 1.0]).repeat(50)
    maps = torch.stack([3 + values, 0.001 * values], 1)[:, :, None, None].expand(-1, -1, 4, 4)
    found = latents_of(model, maps, "run", "0")
    n = maps[:, 0].numel()
    std = (n / (n - 1)) ** 0.5
    assert found.low == pytest.approx((3 - 4 * std, -0.4), abs=1e-3)
    assert found.high == pytest.approx((3 + 4 * std, 0.4), abs=1e-3)


# -- the bound


def two(first: VAE, second: GenerativeModel) -> GenerativeModel:
    channels, height, width, codes = first.latent_map()
    latents = Latents(
        run="", weights="", channels=channels, height=height, width=width, codes=codes, low=(-4,), high=(4,)
    )
    return latent_model(first.to_eval(), second.to_eval(), latents)


def stirred(model: GenerativeModel, seed: int) -> GenerativeModel:
    """Weights that are not those that all begin with."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.5 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return model


def test_untrained_both_parts_cost_eight_bits_a_value() -> None:
    """256 values alike, of the 16 pixels of an image and of the 4 positions of its map."""
    first = VAE(ImageSpec(1, 4, 4), VAEConfig(**LEVELS, code="fsq", codes=(4, 3), likelihood="categorical"))
    config = AutoregressiveConfig(widths=(16,), blocks=(1,), attention=(), likelihood="categorical")
    model = two(first, Autoregressive(ImageSpec(1, 2, 2), config))
    assert isinstance(model, HasLikelihood)
    images = torch.arange(32, dtype=torch.uint8).view(2, 1, 4, 4)
    bits = model.bits_per_dim(Batch(images, None), Noise.shared(0, 2, "cpu"))
    assert bits.kind == "bound"
    assert bits.per_image.tolist() == pytest.approx([8 + 8 * 4 / 16] * 2, abs=1e-6)


@pytest.mark.parametrize("code", ["fsq", "gaussian"])
def test_all_images_together_have_no_more_than_probability_one(code: str) -> None:
    """The bound of each is p(its map) p(it | its map); over all images of 8 binary pixels that is at most 1."""
    spec = ImageSpec(1, 2, 4)
    more: dict[str, Any] = {"code": "fsq", "codes": (2, 2)} if code == "fsq" else {"latent_width": 1}
    first = stirred(VAE(spec, VAEConfig(**LEVELS, **more, likelihood="bernoulli")).double(), 1)
    config = AutoregressiveConfig(widths=(16,), blocks=(1,), attention=(), likelihood="categorical")
    second = stirred(Autoregressive(ImageSpec(1, 1, 2), config).double(), 2)
    assert isinstance(first, VAE)
    model = two(first, second)
    assert isinstance(model, HasLikelihood)
    images = 255 * torch.tensor(list(itertools.product([0, 1], repeat=8)), dtype=torch.uint8).view(-1, 1, 2, 4)
    bits = model.bits_per_dim(Batch(images, None), Noise.shared(0, 256, "cpu"))
    total = float(torch.exp2(-bits.per_image * 8).sum())
    assert 0 < total <= 1
    images = images[:16]
    maps = first.to_map(images, None)
    kept = model.latents.to_bytes(maps)  # type: ignore[union-attr]
    of_maps = second.bits_per_dim(Batch(kept, None), Noise.shared(0, 16, "cpu")).per_image * 2  # type: ignore
    given = first.map_log_prob(images, model.latents.from_bytes(kept, torch.float64), None)  # type: ignore
    assert torch.allclose(bits.per_image[:16] * 8, of_maps - given / math.log(2))


def test_images_are_those_of_the_maps_that_the_second_part_draws() -> None:
    first = VAE(ImageSpec(3, 8, 8), VAEConfig(**LEVELS, code="fsq", codes=(4, 3), likelihood="logistics"))
    config = AutoregressiveConfig(widths=(16,), blocks=(1,), attention=(), likelihood="categorical")
    second = stirred(Autoregressive(ImageSpec(1, 4, 4), config), 3)
    assert isinstance(first, VAE)
    stirred(first, 4)
    images = two(first, second).sample(Noise.per_image(0, range(5), "cpu"))
    maps = second.sample(Noise.per_image(0, range(5), "cpu"))
    assert images.shape == (5, 3, 8, 8)
    assert torch.equal(images, first.from_map(maps.float(), None))


# -- runs


@pytest.mark.parametrize(
    ("family", "settings", "first"),
    [("autoregressive", SECOND, CODES), ("diffusion", DIFFUSION, NUMBERS), ("gan", ADVERSARIAL, NUMBERS)],
)
def test_a_run_of_two_stages_is_a_run(
    picture_folder: Path, tmp_path: Path, family: str, settings: dict[str, Any], first: dict[str, Any]
) -> None:
    before = first_of(picture_folder, tmp_path / "first", first)
    run = train(family, latents=before, budget="64img", out=tmp_path / "run", settings=settings)
    shutil.rmtree(before)  # what is needed of it has gone along
    model = load(run)
    assert model.spec == ImageSpec(3, 12, 12, 2)
    images = model.sample(3, seed=1)
    assert images.shape == (3, 3, 12, 12)
    assert torch.equal(model.sample(1, seed=1, first=2), images[2:])
    place = str(run.path)
    assert cli.main(["sample", place, "-n", "4", "--grid", str(tmp_path / "grid.png")]) == 0
    assert cli.main(["reconstruct", place, str(picture_folder)]) == 0
    assert cli.main(["evaluate", place, "-n", "24"]) == 0
    assert ("bits/dim (" in (run.path / "evaluation.json").read_text()) == (family != "gan")
    assert len(list((run.path / "previews").glob("*.png"))) >= 1


def test_it_learns_the_maps_of_the_pictures(picture_folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """What is trained on is what the first stage makes of each picture, with its class and its side."""
    monkeypatch.setenv("CALOTYPE_CACHE", str(tmp_path / "cache"))
    before = first_of(picture_folder, tmp_path / "first")
    first = first_stage.first_stage(before, Autoregressive, "autoregressive", "cpu")
    packed = prepare(DataConfig(source=str(picture_folder), width=12, height=12))
    latents = first_stage.measured(first, packed, "first")
    told: list[tuple[int, int]] = []
    maps = first_stage.encoded(first, packed, latents, lambda done, total: told.append((done, total)))
    assert told[-1] == (40, 40)
    assert maps.spec == ImageSpec(1, 6, 6, 2, encoded=True)
    some = np.array([3, 17, 39])
    found, pictures = maps.read(some), packed.read(some)
    assert torch.equal(found.images, first.model.to_map(pictures.images, pictures.labels).to(torch.uint8))  # type: ignore
    assert torch.equal(found.labels, pictures.labels)
    assert np.array_equal(maps.held_out, packed.held_out)
    told.clear()
    again = first_stage.encoded(first, packed, latents, lambda done, total: told.append((done, total)))
    assert not told, "maps that are there are not made again"
    assert np.array_equal(again.images, maps.images)


def test_maps_in_the_cache_that_are_not_what_was_written_are_made_anew(
    picture_folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("CALOTYPE_CACHE", str(tmp_path / "cache"))
    first = first_stage.first_stage(
        first_of(picture_folder, tmp_path / "first"), Autoregressive, "autoregressive", "cpu"
    )
    packed = prepare(DataConfig(source=str(picture_folder), width=12, height=12))
    latents = first_stage.measured(first, packed, "first")
    expected = np.array(first_stage.encoded(first, packed, latents, lambda *_: None).images)
    (file,) = (tmp_path / "cache" / "latents").glob("*/maps.u8")
    for name, content in (("maps.u8", bytes(file.stat().st_size)), ("maps.u8", b""), ("digest", b"")):
        (file.parent / name).write_bytes(content)
        assert np.array_equal(first_stage.encoded(first, packed, latents, lambda *_: None).images, expected)


def test_resumed_it_is_the_run_it_continues(picture_folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    before = first_of(picture_folder, tmp_path / "first")
    settings = {**SECOND, "training": SECOND["training"] | {"checkpoint_every": 32}}
    whole = train("autoregressive", latents=before, budget="128img", out=tmp_path / "whole", settings=settings)
    stopped = Run.open(whole.path)
    cut = tmp_path / "cut"
    shutil.copytree(whole.path, cut)
    shutil.rmtree(cut / "previews")
    (cut / "samples.png").unlink()
    later = [path for path in sorted((cut / "checkpoints").glob("[0-9]*")) if int(path.name) > 64]
    for path in later:
        shutil.rmtree(path)
    shutil.rmtree(before)
    resume(cut)
    last = stopped.checkpoints()[-1].name
    one, other = (read(place / "checkpoints" / last) for place in (whole.path, cut))
    for name in ("model", "ema"):
        assert all(torch.equal(one[name][key], other[name][key]) for key in one[name])
    assert (cut / "samples.png").read_bytes() == (whole.path / "samples.png").read_bytes()


def test_a_run_of_two_stages_can_be_repeated_from_its_config(picture_folder: Path, tmp_path: Path) -> None:
    before = first_of(picture_folder, tmp_path / "first")
    others = tmp_path / "others"
    shutil.copytree(picture_folder, others)
    next(others.rglob("*.png")).unlink()
    run = train("autoregressive", others, latents=before, budget="32img", out=tmp_path / "run", settings=SECOND)
    recipe = run.path / "config.toml"
    with pytest.raises(ConfigError, match=f"is of a model of latents: say of which run, by --latents {before}"):
        train(recipe=recipe, out=tmp_path / "other")
    again = train(recipe=recipe, latents=before, out=tmp_path / "again")
    one, other = (read_toml(r.path / "config.toml") for r in (run, again))
    assert one == other | {"budget": one["budget"]}
    weights = [read(r.checkpoints()[-1])["model"] for r in (run, again)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_both_stages_in_one_go(picture_folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """A third of the budget for the first; and stopped within the first, the same command goes on with it."""
    out = tmp_path / "run"
    made: dict[str, Any] = {"latents": "auto", "budget": "64img", "out": out, "settings": SECOND}
    with pytest.raises(ConfigError, match=r"training.flips mirrors maps"):
        train("autoregressive", picture_folder, **made | {"settings": {"training": {"flips": True}}})
    monkeypatch.setattr("calotype.training.first_stage.encoded", None)
    with pytest.raises(TypeError):  # stopped after the first stage
        train("autoregressive", picture_folder, **made)
    monkeypatch.undo()
    monkeypatch.setattr("calotype.training.session.FINAL_GRID", 4)
    monkeypatch.setattr("calotype.evaluation.classifier.IMAGES", 64)  # how well it learns is not tested here
    first = Run.open(tmp_path / "run-first")
    assert (first.config.family, first.config.preset, first.config.training.images) == ("vae", "codes", 22)
    before = [path.stat().st_mtime_ns for path in first.checkpoints()]
    run = train("autoregressive", picture_folder, **made)
    assert [path.stat().st_mtime_ns for path in first.checkpoints()] == before
    shutil.rmtree(out)
    with pytest.raises(RunError, match=r"run-first is there already, and is not the first part of this run"):
        train("autoregressive", picture_folder, **made | {"budget": "96img"})
    assert run.config.training.images == 42
    run = train("autoregressive", picture_folder, **made)
    assert run.config.latents is not None
    assert run.config.latents.codes == 240
    assert load(run).sample(2).shape == (2, 3, 12, 12)


# -- mistakes


def test_what_cannot_be_a_first_stage_is_told(picture_folder: Path, tmp_path: Path) -> None:
    codes = first_of(picture_folder, tmp_path / "codes")
    with pytest.raises(ConfigError, match="has codes, whose numbers have no order, but diffusion needs"):
        train("diffusion", latents=codes)
    ladder = {"model": {"widths": [16, 16], "blocks": [1, 1], "latents": [1, 1], "latent_width": 2}}
    other = first_of(picture_folder, tmp_path / "ladder", ladder)
    with pytest.raises(ConfigError, match="ladder cannot be a first stage: its latents are 2 maps"):
        train("autoregressive", latents=other)
    diffusion = train("diffusion", picture_folder, budget="16img", out=tmp_path / "d", settings=DIFFUSION).path
    with pytest.raises(ConfigError, match="is a diffusion model, without maps of latents: train a vae"):
        train("autoregressive", latents=diffusion)
    second = train("autoregressive", latents=codes, budget="16img", out=tmp_path / "two", settings=SECOND).path
    with pytest.raises(ConfigError, match="without maps of latents"):
        train("autoregressive", latents=second)
    with pytest.raises(RunError, match="is not a run"):
        train("autoregressive", latents=tmp_path / "nothing")
    many = {"model": LEVELS | {"code": "fsq", "codes": [8, 8, 5]}, "training": {"batch_size": 16}}
    with pytest.raises(ConfigError, match="has 320 codes, but a second stage takes up to 256"):
        train("autoregressive", latents=first_of(picture_folder, tmp_path / "many", many))


def test_settings_that_two_stages_do_not_allow_are_told(picture_folder: Path, tmp_path: Path) -> None:
    first = first_of(picture_folder, tmp_path / "first")
    with pytest.raises(ConfigError, match="is that of the first stage, 12x12: leave out --size"):
        train("autoregressive", latents=first, size="8")
    with pytest.raises(ConfigError, match=r"data.channels is 1, but it is 3 in the first stage"):
        train("autoregressive", latents=first, settings={"data": {"channels": 1}})
    with pytest.raises(ConfigError, match=r"training.flips mirrors maps of latents"):
        train("autoregressive", latents=first, settings={"training": {"flips": True}})
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("family = 'autoregressive'\n[training]\nflips = true\n")
    with pytest.raises(ConfigError, match=r"training.flips mirrors maps of latents"):
        train(recipe=recipe, latents=first)
    with pytest.raises(ConfigError, match=r"the pictures are \(3, 8, 8\).*those of the first stage are \(3, 12, 12\)"):
        train("autoregressive", DataConfig(source=str(picture_folder), width=8, height=8), latents=first)
    with pytest.raises(ConfigError, match="the first stage has the classes bars, dots, but the pictures have none"):
        train("autoregressive", latents=first, settings={"data": {"labels": False}})


def test_a_first_stage_without_classes_serves_a_second_with_some(picture_folder: Path, tmp_path: Path) -> None:
    settings = CODES | {"data": {"labels": False}}
    first = first_of(picture_folder, tmp_path / "first", settings)
    run = train("autoregressive", latents=first, budget="32img", out=tmp_path / "run", settings=SECOND)
    model = load(run)
    assert model.spec.num_classes == 2
    assert model.sample(2, labels=["dots"]).shape == (2, 3, 12, 12)


def test_a_first_stage_that_is_gone_or_another_is_told(picture_folder: Path, tmp_path: Path) -> None:
    first = first_of(picture_folder, tmp_path / "first")
    run = train("autoregressive", latents=first, budget="32img", out=tmp_path / "run", settings=SECOND)
    other = first_of(picture_folder, tmp_path / "other", CODES | {"training": {"batch_size": 16, "seed": 1}})
    shutil.rmtree(run.path / "first")
    load(other).copy(run.path / "first")
    with pytest.raises(RunError, match="is not the model on whose latents the run was trained: restore it from"):
        load(run)
    shutil.rmtree(run.path / "first")
    with pytest.raises(RunError, match="is not a run"):
        load(run)
    assert Diffusion.models_codes is False
