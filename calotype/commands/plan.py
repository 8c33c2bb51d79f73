"""`plan`: what training by a recipe would cost on other machines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from calotype.commands.arguments import Assignments, Channels, MaybeNumber, Number, Settings, Size, Text
from calotype.commands.command import command

if TYPE_CHECKING:
    from calotype.training.cluster_cost import Scaling


@command
def plan(
    recipe: Annotated[Path, arg(metavar="RECIPE")],
    /,
    nodes: int = 1,
    gpus: int = 1,
    device: str = "h100",
    shard: Number = 1,
    budget: Text = "",
    preset: Text = "",
    size: Size = "",
    channels: Channels = 0,
    classes: MaybeNumber = None,
    set: Assignments = (),
    settings: Settings = None,
) -> Scaling:
    """Say what training by a recipe would cost on other devices, and many: time, memory, communication.

    Example: calotype plan recipes/cifar10-edm.toml --nodes 2 --gpus 8

    Args:
        recipe: TOML with settings, such as the config.toml of a run.
        nodes: machines.
        gpus: devices in each; with --device cpu, processes.
        device: a100, h100, h200, l4, rtx4090; or cpu, for processes of one thread on this machine, which is measured.
        shard: how many devices hold the weights between them; by default each holds all.
        budget: images to see, such as 10Mimg; by default those of the recipe.
        preset: size of the network; by default that of the recipe.
        size: of the pictures, 32 or 48x64 (width x height); by default that of the run.
        channels: of the pictures; 0 for those of the run, or 3.
        classes: of the pictures; by default those of the run, or none.
        set: SECTION.KEY=VALUE for any entry of config.toml, such as training.batch_size=1024.
        settings: of Python: values by section and key of config.toml, in place of `set`.

    Raises:
        CalotypeError: for anything the user can mend; the message says how.
    """
    from calotype.core.config import override
    from calotype.training import cluster_cost
    from calotype.training.recipe import family_of, sections

    chosen: dict[str, dict[str, Any]] = {section: dict(entries) for section, entries in (settings or {}).items()}
    for assignment in set:
        override(chosen, assignment, sections(family_of("", recipe)))
    return cluster_cost.scale(
        recipe,
        device=device,
        nodes=nodes,
        gpus=gpus,
        shard=shard,
        budget=budget or None,
        preset=preset or None,
        size=size,
        channels=channels,
        classes=-1 if classes is None else classes,
        settings=chosen,
    )
