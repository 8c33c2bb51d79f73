"""`train`, `begin` and `resume`: from pictures and a budget to a trained run.

`train` starts a run and `resume` continues one; both end in the training loop of `loop`. `begin` makes a run directory
for `resume` to train.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any

import torch

from calotype.core import devices
from calotype.core.config import build, plain
from calotype.core.display import Display, for_process, packing_on
from calotype.core.outputs import check_outputs
from calotype.core.paths import beside, shortened
from calotype.core.untrusted import brief
from calotype.data import DataConfig, PackedDataset, prepare
from calotype.data.notes import all_notes, balance_notes
from calotype.distributed import processes, sharding
from calotype.errors import ConfigError, RunError
from calotype.optimization.config import TrainConfig
from calotype.runs.config import DatasetFacts, RunConfig, family
from calotype.runs.run import CONFIG, Run, name_source, refuse_existing
from calotype.training import first_stage
from calotype.training.batches import learned, some_images, training_batches
from calotype.training.extension import extended
from calotype.training.planner import Budget, Plan, plan
from calotype.training.recipe import Request, family_of, request
from calotype.training.session import Begun, train_run

AUTO = "auto"  # of latents: train them first


def train(
    family_name: str = "",
    data: str | Path | DataConfig = "",
    *,
    budget: str | None = None,
    out: str | Path | None = None,
    preset: str | None = None,
    size: str | None = None,
    device: str = "auto",
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    recipe: str | Path | None = None,
    latents: str | Path | None = None,
    shard: int = 1,
    go_on: bool = False,
    tensorboard: bool = False,
    display: Display | None = None,
) -> Run:
    """Train a model on pictures. Arguments and errors as of `calotype.commands.train`, with these differences.

    Args:
        data: a source, or a DataConfig that also says how to read it.
        settings: values for the sections "data", "model" and "training" of config.toml, by section and key.
    """
    if processes.may_be_restarted() and out is None:
        raise ConfigError("torchrun is to start processes again, and they have to find the run: give its place, --out")
    if go_on and out is None:
        raise ConfigError("what is to go on has to be found: give its place, --out, or leave out --go-on")
    chosen = settings or {}
    with processes.joined(), for_process(display, processes.is_first()) as shown:
        # One that was started again tells the others: what is on another machine may be there for the first time.
        if processes.any_of(int(go_on or processes.is_restarted())) and out is not None and _is_run(Path(out)):
            if go_on:
                _refuse_another(Path(out), family_of(family_name, recipe), None if latents == AUTO else budget)
            return resume(out, device=device, shard=shard, tensorboard=tensorboard, display=shown)
        begun = _begun(family_name, data, budget, out, preset, size, device, chosen, recipe, latents, shown, shard)
        with begun.run.locked():
            train_run(begun, [], shown, tensorboard, shard)
    return begun.run


def begin(
    family_name: str,
    data: str | Path | DataConfig = "",
    *,
    budget: str | None = None,
    out: str | Path | None = None,
    size: str | None = None,
    device: str = "auto",
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    recipe: str | Path | None = None,
    display: Display | None = None,
) -> Run:
    """Plan a run and make its directory without training it; `resume` trains it. Arguments as for `train`."""
    with processes.joined(), for_process(display, processes.is_first()) as shown:
        return _begun(family_name, data, budget, out, None, size, device, settings or {}, recipe, None, shown).run


def _begun(
    family_name: str,
    data: str | Path | DataConfig,
    budget: str | None,
    out: str | Path | None,
    preset: str | None,
    size: str | None,
    device: str,
    chosen: Mapping[str, Mapping[str, Any]],
    recipe: str | Path | None,
    latents: str | Path | None,
    shown: Display,
    shard: int = 1,
) -> Begun:
    sharding.check(shard)
    first = None
    if latents == AUTO:
        both = request(
            family_name, data, budget=budget, preset=preset, size=size, settings=chosen, recipe=recipe, on_latents=True
        )
        first_stage.check_settings(both.settings["training"])
        out = _place(out, both)
        latents = _first_part(both, out, device, shown)
        budget, size = both.budget.part(1 - first_stage.FIRST_SHARE), None
    if latents is not None:
        name = family_of(family_name, recipe)
        first = first_stage.first_stage(Path(latents), family(name), name, device)
        chosen = first_stage.with_data_of(first, chosen, size)
    asked = request(
        family_name,
        data,
        budget=budget,
        preset=preset,
        size=size,
        settings=chosen,
        recipe=recipe,
        on_latents=first is not None,
        source="" if first is None else first.run.config.data.source,
    )
    if first is not None:
        first_stage.check_settings(asked.settings["training"])
    path = _place(out, asked)
    torch_device = devices.choose(processes.local_device(device))
    _set_up_process(build(TrainConfig, {"images": 1, **asked.settings["training"]}, "training").threads)

    if recipe is not None and not str(data) and "source" not in chosen.get("data", {}):
        name_source(asked.data.source, Path(recipe), shown.message)
    elif first is not None and not str(data):
        name_source(asked.data.source, first.run.path / "config.toml", shown.message)
    pictures = _prepare(asked.data, shown)
    told = None if first is None else first_stage.measured(first, pictures, str(latents))
    packed = learned(first, told, pictures, shown)
    planned = plan(
        family(asked.family),
        asked.preset,
        asked.budget,
        packed.spec,
        some_images(packed),
        lambda config: training_batches(packed, config),
        torch_device,
        asked.settings,
        shown.message,
        shard,
    )
    if planned.training.balanced:
        for note in balance_notes(pictures):
            shown.message(note)
    config = RunConfig(
        family=asked.family,
        preset=planned.preset,
        budget=asked.budget.text,
        data=pictures.config,
        dataset=DatasetFacts.of(pictures),
        model=planned.model,
        training=planned.training,
        latents=told,
    )
    processes.by_first(lambda: str(Run.create(path, config, first).path))
    run = Run.open(path)  # in all processes what the first has decided
    shown.message(_announcement(run, planned))
    return Begun(run, pictures, packed, torch_device)


def _first_part(both: Request, second: Path, device: str, shown: Display) -> Path:
    """Train the first stage with its share of the budget, or the rest of that share; returns its run directory.

    It lies beside the run of the second stage, so that repeating the command continues where it stopped.

    Raises:
        RunError: a run with other settings lies there.
    """
    place = beside(second, after="-first")
    preset, budget = first_stage.PRESETS[family(both.family).models_codes], both.budget.part(first_stage.FIRST_SHARE)
    if (place / "config.toml").exists():
        there = Run.open(place).config
        digest = prepare(both.data).digest
        if (there.family, there.preset, there.budget, there.dataset.digest) != ("vae", preset, budget, digest):
            raise RunError(
                f"{place} is there already, and is not the first part of this run: its {there.family} ({there.preset}, "
                f"{there.budget}) is of other pictures or another budget. Remove it, choose another --out, or go on "
                f"from it with --latents {quote(str(place))}"
            )
        resume(place, device=device, display=shown)
        return place
    settings = {key: value for key, value in both.settings["training"].items() if key in ("threads", "seed")}
    train(
        "vae",
        both.data,
        budget=budget,
        out=place,
        preset=preset,
        device=device,
        settings={"training": settings},
        display=shown,
    )
    return place


def resume(
    path: str | Path,
    *,
    data: str = "",
    budget: str | None = None,
    device: str = "auto",
    shard: int = 1,
    tensorboard: bool = False,
    display: Display | None = None,
) -> Run:
    """Continue a run from its newest sound checkpoint, as if it had never stopped.

    Args:
        path: the run directory.
        data: where the pictures are now, if they have moved; config.toml is updated.
        budget: a new budget for the whole run, see `extension`; config.toml is updated.
        device, shard, tensorboard, display: as for `train`.

    Raises:
        CalotypeError: for a path that is no run, data or settings that have changed, or anything else the user can
            mend.
    """
    asked = Budget.parse(budget) if budget else None
    with processes.joined(), for_process(display, processes.is_first()) as shown:
        sharding.check(shard)
        run = Run.open(Path(path))
        with run.locked():
            run = Run.open(run.path)  # as the last that held it has left it
            torch_device = devices.choose(processes.local_device(device))
            _set_up_process(run.config.training.threads)
            processes.agreed(run.changed)
            if not data:
                name_source(run.config.data.source, run.path / CONFIG, shown.message)
            pictures = _packed(lambda: run.pictures(data, packing_on(shown)), shown)
            processes.agreed(lambda: _check_facts(run, pictures))
            first = None if run.config.latents is None else run.first_stage(shown.message, device)
            packed = learned(first, run.config.latents, pictures, shown)
            config = _with_place(run.config, pictures) if data else run.config
            if asked is not None:
                batches = training_batches(packed, config.training)
                config = processes.agreed(
                    lambda: extended(Run(run.path, config), asked, batches, torch_device, shard, shown.message)
                )
            if config != run.config:
                processes.by_first(lambda: run.rewrite(config))
                run = Run.open(run.path)
            if data:
                shown.message(f"the pictures are at {pictures.config.source}: {run.path / CONFIG} has the new place")
            begun = Begun(run, pictures, packed, torch_device)
            train_run(begun, processes.agreed(run.changed), shown, tensorboard, shard)
    return run


def _with_place(config: RunConfig, pictures: PackedDataset) -> RunConfig:
    return replace(config, data=replace(config.data, source=pictures.config.source))


def _check_facts(run: Run, pictures: PackedDataset) -> None:
    """Raise ConfigError if the facts about the pictures in config.toml are not those of the pictures."""
    said, found = plain(run.config.dataset), plain(DatasetFacts.of(pictures))
    if not said["class_counts"]:  # as of versions before, which counted other held-out pictures as well
        found = {name: value for name, value in found.items() if name not in ("class_counts", "held_out")}
    for name, value in found.items():
        if said[name] != value:
            raise ConfigError(
                f"dataset.{name} is {brief(said[name])} in {run.path / CONFIG}, but {brief(value)} of the pictures: "
                "restore it"
            )


# -- before training


def _is_run(path: Path) -> bool:
    """Whether the run directory exists, by the first process."""
    return processes.by_first(lambda: (path / "config.toml").exists())


def _refuse_another(path: Path, family_name: str, budget: str | None) -> None:
    """Raise RunError if the existing run differs from the request."""
    there = Run.open(path).config
    if there.family != family_name or (budget is not None and there.budget != Budget.parse(budget).text):
        raise RunError(
            f"{path} is a run of {there.family} for {there.budget}, and not what was asked for: choose another --out, "
            f"or continue it with `calotype train --resume {quote(str(path))}`, which takes another --budget"
        )


def _place(out: str | Path | None, asked: Request) -> Path:
    """The path of the new run directory. Raises RunError if it exists."""

    def chosen() -> str:
        path = Path(out) if out is not None else new_place(asked.data.source, asked.family)
        check_outputs("train", (asked.data.source,), out=path)
        refuse_existing(path)
        return str(path)

    return Path(processes.by_first(chosen))


def new_place(source: str, suffix: str) -> Path:
    """A path below runs/ that does not exist yet, named after the pictures."""
    stem = source.removeprefix("hub:").rstrip("/").replace(":", "-").split("/")[-1].split(".")[0] or "pictures"
    base = Path("runs") / f"{shortened(stem)}-{suffix}"
    numbered = (base if k == 1 else base.with_name(f"{base.name}-{k}") for k in range(1, 10_000))
    return next(path for path in numbered if not path.exists())


def _set_up_process(threads: int) -> None:
    devices.keep_memory()
    if threads:
        torch.set_num_threads(threads)


def _prepare(config: DataConfig, shown: Display) -> PackedDataset:
    if not config.to_learn:
        raise ConfigError("data.to_learn is false, which is for pictures that are only measured: leave it out")
    return _packed(lambda: prepare(config, progress=packing_on(shown)), shown)


def _packed(find: Callable[[], PackedDataset], shown: Display) -> PackedDataset:
    """The packed pictures in all processes, packed by the first; unusable pictures are reported."""
    packed = processes.first_then_all(find)
    for note in packed.survey()["notes"]:
        shown.message(note)
    if packed.skipped:
        first = packed.skipped[0]
        shown.message(
            f"{len(packed.skipped)} of the files cannot be used, the first {first.name} ({first.reason}); "
            f"`calotype check {packed.config.source}` lists them"
        )
    for note in all_notes(packed):
        shown.message(note)
    return packed


def _announcement(run: Run, planned: Plan) -> str:
    config, spec, speed = run.config, run.config.dataset.spec, planned.images_per_second
    chosen = ", ".join(f"model.{name} = {value}" for name, value in planned.by_pictures.items())
    suited = f"chosen to suit the pictures: {chosen}\n" if chosen else ""
    pace = "" if speed is None else f" at about {speed:,.0f}/s"
    classes = f", {spec.num_classes} classes" if spec.num_classes else ""
    first = (
        ""
        if config.latents is None
        else (
            f"; latents of {config.latents.width}x{config.latents.height}, {config.latents.channels} channel(s), of "
            f"{config.latents.run}"
        )
    )
    return (
        f"{config.dataset.train:,} images of {spec.width}x{spec.height}, {spec.channels} channel(s){classes}; "
        f"{config.dataset.held_out:,} held out{first}\n"
        f"{config.family} ({config.preset} network): {config.training.images:,} images to see{pace}\n"
        f"{suited}run directory: {run.path}"
    )


# -- training
