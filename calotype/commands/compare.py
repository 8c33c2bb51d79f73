"""`compare`: every family trained on the same pictures, and measured alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Suppress, arg

from calotype.commands.arguments import (
    Channels,
    Fit,
    Flag,
    MaybePath,
    Moved,
    Names,
    Pages,
    Pictures,
    Range,
    Shown,
    Size,
    Text,
)
from calotype.commands.command import command

if TYPE_CHECKING:
    from calotype.evaluation.comparison import Comparison


@command
def compare(
    data: Pictures = "",
    /,
    budget: Text = "",
    families: Names = (),
    out: MaybePath = None,
    resume: MaybePath = None,
    size: Size = "",
    fit: Fit = "",
    range: Range = "",
    channels: Channels = 0,
    pages: Pages = "",
    no_labels: Flag = False,
    labels_from: Text = "",
    strict: Flag = False,
    stream: Flag = False,
    n: Annotated[int, arg(aliases=["-n"], help_behavior_hint="")] = 0,
    seed: int = 0,
    features: str = "EffLite0",
    no_baselines: Flag = False,
    threads: Annotated[int, arg(help_behavior_hint="")] = 0,
    recipe: MaybePath = None,
    device: str = "auto",
    moved: Moved = "",
    settings: Annotated[Mapping[str, Any] | None, Suppress] = None,
    baselines: Annotated[tuple[str, ...] | None, Suppress] = None,
    display: Shown = None,
) -> Comparison:
    """Train every family on the same pictures, measure them alike, and say which is best for what.

    Example: calotype compare photos/ --budget 8h

    Args:
        data: folder, zip or tar, Parquet, npz or npy, "glyphs", or a hub name.
        budget: of all families together, shared equally: a time as 40m or 8h, or images as 2Mimg; by default 30m.
            Measuring comes on top.
        families: some of autoregressive, diffusion, gan and vae, separated by commas; by default all.
        out: the directory; by default a new one below runs/.
        resume: the directory of a comparison to continue; it can be combined with --data and --device only.
        size: 32 or 48x64 (width x height); by default what suits the pictures.
        fit: how pictures of another shape are made to fit; by default crop.
        range: LO:HI, the values of 16-bit and float pictures that become 0 and 255.
        channels: 1 gray, 3 RGB, 4 RGBA; 0 decides: gray without colour, RGBA if most are transparent.
        pages: of TIFF stacks and animations take the first, or all, each as a picture; by default first.
        no_labels: ignore classes, whether from subfolders or of the source.
        labels_from: FILE:COLUMN, a table beside the pictures that gives their classes, such as metadata.csv:label.
        strict: stop at the first bad file.
        stream: read shards while training, and pack only a sample, as for train.
        n: images per set; by default as many as are held out, 200 to 2000.
        seed: of weights, order, noise and samples.
        features: what images are compared by: EffLite0, or a file as for evaluate.
        no_baselines: leave out the classical methods.
        threads: of the CPU; by default as torch chooses.
        recipe: the directory of a comparison that is repeated, image for image.
        device: auto, cpu, cuda or mps; with auto and several GPUs each trains a family.
        moved: with --resume, where the pictures are now, if they have moved.
        settings: of Python: further values for the section "data" of config.toml.
        baselines: of Python: some of the classical methods; by default all.
        display: of Python: where to show progress; by default plain lines.

    Raises:
        CalotypeError: for anything the user can mend; the message says how.
    """
    asked = locals()
    from calotype.applications import comparison
    from calotype.commands.options import data_settings, refuse_beside_resume, refuse_moved

    if resume is not None:
        refuse_beside_resume(compare, asked, ("moved", "device"), "comparison")
        return comparison.resume(resume, data=moved, device=device, display=display)
    refuse_moved(moved, "calotype compare photos/")
    return comparison.compare(
        data,
        budget=budget or None,
        families=[name.strip() for name in families],
        out=out,
        size=size or None,
        settings=dict(settings or {}) | data_settings(asked),
        n=n,
        seed=seed,
        features=features,
        baselines=() if no_baselines else baselines,
        threads=threads,
        device=device,
        recipe=recipe,
        display=display,
    )
