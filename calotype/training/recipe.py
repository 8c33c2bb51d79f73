"""Training requests: the arguments of `train`, a recipe and single settings, merged and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from calotype.core.config import build, nearest
from calotype.core.untrusted import brief
from calotype.data import DataConfig, parse_size
from calotype.errors import ConfigError
from calotype.optimization.config import TrainConfig
from calotype.runs.config import family
from calotype.runs.portable_paths import read_config
from calotype.training.planner import OF_THE_PRESET, Budget

DEFAULT_BUDGET = "30m"
OF_THE_BUDGET = ("images", "checkpoint_every", "preview_every")  # what a budget decides in [training]
# Of a config.toml, besides the sections.
NOT_SETTINGS = ("calotype", "family", "preset", "budget", "dataset", "latents")


class Request(NamedTuple):
    """A request for a run: the family, its settings and the budget."""

    family: str
    data: DataConfig
    budget: Budget
    preset: str
    settings: Mapping[str, Mapping[str, Any]]  # by section "model" and "training": what is not to be chosen


def request(
    family_name: str,
    data: str | Path | DataConfig,
    *,
    budget: str | None,
    preset: str | None,
    size: str | None,
    settings: Mapping[str, Mapping[str, Any]],
    recipe: str | Path | None,
    on_latents: bool = False,
    source: str = "",
) -> Request:
    """Merge a request: arguments override settings, settings the recipe, and the recipe the defaults.

    Args:
        on_latents: whether the model is trained on latents of a first stage.
        source: of the pictures, if neither argument nor setting nor recipe names one.

    Raises:
        ConfigError: a value is unknown, missing or contradictory.
    """
    base = read_config(Path(recipe)) if recipe is not None else {}
    if "latents" in base and not on_latents:
        run = base["latents"].get("run", "RUN") if isinstance(base["latents"], Mapping) else "RUN"
        raise ConfigError(f"{recipe} is of a model of latents: say of which run, by --latents {run}")
    family_name = family_of(family_name, recipe)
    for name in base:
        known = [*sections(family_name), *NOT_SETTINGS]
        if name not in known:
            raise ConfigError(f"{recipe} has an entry {name!r}, which is unknown{nearest(name, known)}")
        if name in sections(family_name) and not isinstance(base[name], Mapping):
            raise ConfigError(
                f"{recipe}: {name} is {brief(base[name])}, but it is a section: write [{name}] and its entries"
            )
    for name in ("preset", "budget"):
        if not isinstance(base.get(name, ""), str):
            raise ConfigError(f"{recipe}: {name} is {brief(base[name])}, but it is a text: write it in quotes")
    kept = {name: dict(base.get(name, {})) for name in sections(family_name)}
    if "images" in settings.get("training", {}):
        images = settings["training"]["images"]
        raise ConfigError(f"training.images is {images}, but the budget decides it: use --budget {images}img")
    if preset is not None and preset != base.get("preset"):  # another size: the recipe's own has no say in it
        kept["model"] = {}
        kept["training"] = {k: v for k, v in kept["training"].items() if k not in OF_THE_PRESET}
    if budget is not None:
        kept["training"] = {k: v for k, v in kept["training"].items() if k not in OF_THE_BUDGET}
    elif "images" in kept["training"]:
        budget = f"{kept['training']['images']}img"  # a run is repeated without a clock
    else:
        budget = base.get("budget")
    values = {name: kept[name] | dict(settings.get(name, {})) for name in kept}
    return Request(
        family_name,
        data_config(data, size, {"source": source} | values["data"] if source else values["data"]),
        Budget.parse(budget or DEFAULT_BUDGET),
        preset or base.get("preset", "auto"),
        {name: values[name] for name in ("model", "training")},
    )


def family_of(family_name: str, recipe: str | Path | None) -> str:
    """The requested family, or that of the recipe. Raises ConfigError if neither names one."""
    name = family_name or (read_config(Path(recipe)).get("family", "") if recipe is not None else "")
    if not isinstance(name, str):
        raise ConfigError(f"{recipe}: family is {brief(name)}, but it is a text: write it in quotes")
    if not name:
        raise ConfigError("no family is named: calotype train FAMILY DATA, such as calotype train diffusion photos/")
    return name


def sections(family_name: str) -> dict[str, type]:
    """The dataclasses that define the settings of each section. Raises ConfigError."""
    return {"data": DataConfig, "model": family(family_name).Config, "training": TrainConfig}


def data_config(data: str | Path | DataConfig, size: str | None, values: Mapping[str, Any]) -> DataConfig:
    """The data config from the source argument, a size such as "32", and entries of the section "data"."""
    if not isinstance(data, DataConfig):
        named = {"source": str(data)} if str(data) else {}
        if not named and "source" not in values:
            raise ConfigError("no pictures are named: give a folder, an archive, a Parquet or NumPy file, or glyphs")
        data = build(DataConfig, dict(values) | named, "data")
    if size is None:
        return data
    width, height = parse_size(size)
    return replace(data, width=width, height=height)


def check_job(given: Mapping[str, Any], settings: Mapping[str, Mapping[str, Any]], processes: int) -> None:
    """Check, without reading pictures, the arguments of a job before it waits for hours in a queue.

    Args:
        given: the arguments of `train`.
        settings: those arguments that are entries of config.toml.
        processes: processes of the job.

    Raises:
        ConfigError: as `calotype train` would.
    """
    asked = request(
        given["family"],
        given["data"],
        budget=given["budget"] or None,
        preset=given["preset"] or None,
        size=given["size"] or None,
        settings=settings,
        recipe=given["recipe"],
        on_latents=bool(given["latents"]),
        source=given["latents"],
    )
    kinds = sections(asked.family)
    build(kinds["model"], asked.settings["model"], "model")
    build(kinds["training"], {"images": 1, **asked.settings["training"]}, "training")
    batch = asked.settings["training"].get("batch_size")
    if batch is not None and batch < processes:
        raise ConfigError(
            f"training.batch_size is {batch}, but the job has {processes} processes: give one image for each"
        )
