"""`evaluate`: how good the images of a run, or from anywhere, are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from calotype.commands.arguments import Assignments, MaybeNumber, MaybePath, Shown, Text
from calotype.commands.command import command

if TYPE_CHECKING:
    from calotype.evaluation.report import Report


@command
def evaluate(
    subject: Path,
    /,
    data: Text = "",
    n: Annotated[MaybeNumber, arg(aliases=["-n"])] = None,
    seed: int = 0,
    features: str = "EffLite0",
    checkpoint: str = "last",
    set: Assignments = (),
    device: str = "auto",
    out: MaybePath = None,
    display: Shown = None,
) -> Report:
    """Measure a run, or a folder of images from anywhere: distance, diversity, copying, likelihood, cost.

    Example: calotype evaluate runs/photos

    Writes a report as JSON, and a page beside it.

    Args:
        subject: a run directory; or a folder, zip, tar, Parquet or npz of images, with --data.
        data: for images from elsewhere, the pictures to compare them with: a source as for train. For a run, where the
            pictures that it was trained on are now, if they have moved.
        n: images per set; by default as many as are held out, 200 to 2000, and all of a folder up to 2000.
        seed: of the samples; those of the seed after it are measured too.
        features: what images are compared by: EffLite0, Inception:FILE or DINOv2:FILE with their published weights, or
            the file of a network saved by torch.export.save.
        checkpoint: last, best, or images seen.
        set: KEY=VALUE for an option of sampling, such as steps=32; may be given several times.
        device: auto, cpu, cuda or mps.
        out: a JSON file; by default evaluation.json in the run, or in a folder beside that of the images.
        display: of Python: where to show progress; by default plain lines.

    Raises:
        CalotypeError: for anything the user can mend; the message says how.
    """
    from calotype.applications import evaluation

    return evaluation.run(
        Path(subject),
        data=data,
        n=n or 0,
        seed=seed,
        network=features,
        checkpoint=checkpoint,
        options=set,
        device=device,
        out=None if out is None else Path(out),
        display=display,
    )
