"""The recipes that come with calotype can be followed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from calotype.core.config import build, plain
from calotype.core.model import ImageSpec
from calotype.families import FAMILIES
from calotype.optimization.config import TrainConfig
from calotype.training.recipe import request

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))
PARAMETERS = {
    "cifar10-ddpm": 35_746_307,
    "cifar10-edm": 55_732_739,
    "cifar10-pixelcnnpp": 53_526_340,
    "cifar10-r3gan": 42_062_464,
    "cifar10-sngan": 5_330_564,
    "cifar10-vdvae": 39_048_996,
}


def test_every_recipe_states_its_size() -> None:
    assert {path.stem for path in RECIPES} == set(PARAMETERS)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_makes_the_published_model(path: Path) -> None:
    asked = request("", "photos/", budget=None, preset=None, size="32", settings={}, recipe=path)
    family = FAMILIES[asked.family]
    spec = ImageSpec(3, 32, 32, 10 if asked.data.labels else 0)
    preset = family.presets(spec)[asked.preset]
    config = build(family.Config, plain(preset.model) | dict(asked.settings["model"]), "model")
    images = torch.arange(3 * 32 * 32).reshape(1, *spec.shape).to(torch.uint8)
    config = family.measured(config, images)
    with torch.device("meta"):
        assert sum(p.numel() for p in family(spec, config).parameters()) == PARAMETERS[path.stem]
    training = build(TrainConfig, {"images": asked.budget.images} | dict(asked.settings["training"]), "training")
    assert training.optimizer == "adamw"
    assert asked.data.labels == (path.stem == "cifar10-r3gan")  # whose published figure is with classes
