"""`train`: from pictures and a budget to a trained run, or on with one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from calotype.commands.arguments import (
    Assignments,
    Channels,
    Family,
    Fit,
    Flag,
    MaybeNumber,
    MaybePath,
    Moved,
    Number,
    Pages,
    Pictures,
    Range,
    Settings,
    Shown,
    Size,
    Text,
)
from calotype.commands.command import command

if TYPE_CHECKING:
    from calotype.runs.run import Run

BESIDE_RESUME = ("budget", "moved", "device", "shard", "tensorboard")  # arguments that --resume takes


@command
def train(
    family: Family = "",
    data: Pictures = "",
    /,
    budget: Text = "",
    out: MaybePath = None,
    resume: MaybePath = None,
    preset: Text = "",
    size: Size = "",
    fit: Fit = "",
    range: Range = "",
    channels: Channels = 0,
    pages: Pages = "",
    no_labels: Flag = False,
    labels_from: Text = "",
    strict: Flag = False,
    stream: Flag = False,
    flips: Flag = False,
    balanced: Flag = False,
    on_collapse: Annotated[Literal["say", "rollback", ""], arg(metavar="{say,rollback}", help_behavior_hint="")] = "",
    seed: MaybeNumber = None,
    device: str = "auto",
    compile: Flag = False,
    recipe: MaybePath = None,
    latents: Text = "",
    set: Assignments = (),
    shard: Number = 1,
    go_on: Flag = False,
    tensorboard: Flag = False,
    moved: Moved = "",
    settings: Settings = None,
    display: Shown = None,
) -> Run:
    """Train a model on pictures, or continue a run with --resume.

    Example: calotype train diffusion photos/ --budget 30m

    Args:
        family: autoregressive, diffusion, gan or vae.
        data: folder, zip or tar, Parquet, npz or npy, "glyphs", or a hub name.
        budget: a time as 90s, 30m or 2h, or images as 20000img, 500kimg or 2Mimg; by default 30m. With --resume,
            another one for the run in all: what it has taken so far is part of it.
        out: the run directory; by default a new one below runs/.
        resume: the run directory of a run to continue exactly; it can be combined with --budget, --data, --device,
            --shard and --tensorboard only.
        preset: size of the network; by default auto, the largest that the budget can train.
        size: 32 or 48x64 (width x height); by default what suits the pictures.
        fit: how pictures of another shape are made to fit; by default crop.
        range: LO:HI, the values of 16-bit and float pictures that become 0 and 255.
        channels: 1 gray, 3 RGB, 4 RGBA; 0 decides: gray without colour, RGBA if most are transparent.
        pages: of TIFF stacks and animations take the first, or all, each as a picture; by default first.
        no_labels: ignore classes, whether from subfolders or of the source.
        labels_from: FILE:COLUMN, a table beside the pictures that gives their classes, such as metadata.csv:label.
        strict: stop at the first bad file.
        stream: read shards, Parquet files or tars, while training, and pack only a sample: for more pictures than the
            disk has room for.
        flips: mirror images left to right at random.
        balanced: show every class equally often.
        on_collapse: where the model collapses, report it, or return to the last checkpoint before the collapse; by
            default say.
        seed: of initial weights, order and noise; by default 0.
        device: auto, cpu, cuda or mps.
        compile: use torch.compile: the first start takes minutes, then training is somewhat faster.
        recipe: TOML with settings, such as the config.toml of another run, which is then repeated.
        latents: the run of a vae: the model learns its latents of the pictures, and draws pictures by both; or auto, to
            train that run first, with a third of the budget.
        set: SECTION.KEY=VALUE for any entry of config.toml, such as model.blocks=3; may be given several times.
        shard: of the processes that torchrun starts, how many hold the weights between them; by default each holds all.
        go_on: if --out is a run already, continue it: for jobs that are started again by the same command.
        tensorboard: also log for TensorBoard, below the run directory.
        moved: with --resume, where the pictures of the run are now, if they have moved.
        settings: of Python: values by section and key of config.toml, in place of `set`.
        display: of Python: where to show progress; by default plain lines.

    Raises:
        CalotypeError: for anything the user can mend; the message says how.
    """
    asked = locals()
    from calotype.commands.options import refuse_beside_resume, refuse_moved
    from calotype.training import setup

    if resume is not None:
        refuse_beside_resume(train, asked, BESIDE_RESUME, "run")
        return setup.resume(
            resume,
            data=moved,
            budget=budget or None,
            device=device,
            shard=shard,
            tensorboard=tensorboard,
            display=display,
        )
    refuse_moved(moved, "calotype train diffusion photos/")
    return setup.train(
        family,
        data,
        budget=budget or None,
        out=out,
        preset=preset or None,
        size=size or None,
        device=device,
        settings=training_settings(asked),
        recipe=recipe,
        latents=latents or None,
        shard=shard,
        go_on=go_on,
        tensorboard=tensorboard,
        display=display,
    )


def training_settings(asked: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The entries of config.toml that arguments of `train` set, by section. Raises ConfigError."""
    from calotype.commands.options import data_settings
    from calotype.core.config import override
    from calotype.training.recipe import family_of, sections

    options = {name: asked[name] for name in ("flips", "balanced", "compile", "on_collapse") if asked[name]}
    settings = {section: dict(entries) for section, entries in (asked["settings"] or {}).items()}
    settings.setdefault("data", {}).update(data_settings(asked))
    settings.setdefault("training", {}).update(options)
    if asked["seed"] is not None:
        settings["training"]["seed"] = asked["seed"]
    for assignment in asked["set"]:
        override(settings, assignment, sections(family_of(asked["family"], asked["recipe"])))
    return settings
