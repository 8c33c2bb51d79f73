"""`interpolate`: images on the way from one picture to another."""

from __future__ import annotations

from pathlib import Path

from calotype.commands.arguments import Labels, MaybePath, Pictures, Shown
from calotype.commands.command import command


@command
def interpolate(
    run: Path,
    first: Pictures,
    last: Pictures,
    /,
    steps: int = 8,
    out: MaybePath = None,
    folder: MaybePath = None,
    labels: Labels = (),
    checkpoint: str = "last",
    device: str = "auto",
    display: Shown = None,
) -> tuple[Path, ...]:
    """Draw images between two pictures, evenly spaced between their latents, by a vae or a gan.

    Example: calotype interpolate runs/photos first.png last.png --steps 12

    Args:
        run: a run directory.
        first: a picture, or a source of pictures, whose first is taken.
        last: another.
        steps: images from one to the other, counting the reconstructions of both.
        out: a PNG file with all in a row, between the two pictures; by default interpolation.png in the run.
        folder: a folder for single PNG files.
        labels: class of the two by name or number, or one for each, separated by a comma; by default those of the
            pictures.
        checkpoint: last, best, or images seen.
        device: auto, cpu, cuda or mps.
        display: of Python: where to show progress; by default plain lines.

    Returns:
        The places of what was written.

    Raises:
        CalotypeError: for anything the user can mend; the message says how.
    """
    import torch

    from calotype.applications import latents as latents_of
    from calotype.applications.pictures import given
    from calotype.core.display import for_process
    from calotype.errors import ConfigError

    with for_process(display, True) as shown:
        if steps < 2:
            raise ConfigError(f"steps is {steps}: give at least 2, for the two ends")
        model, out = latents_of.opened(
            "interpolate",
            run,
            (first, last),
            "interpolation.png",
            out=out,
            folder=folder,
            checkpoint=checkpoint,
            device=device,
            display=shown,
        )
        named = (labels[:1], labels[1:2] or labels[:1]) if labels else (None, None)
        if labels and len(labels) > 2:
            raise ConfigError(f"labels names {len(labels)} classes: give one for both pictures, or one for each")
        ends = [given(model, *end, 1, shown, "taken") for end in zip((first, last), named, strict=True)]
        pictures = torch.cat([end.images for end in ends])
        classes = None
        if ends[0].labels is not None and ends[1].labels is not None:  # that of the nearer end
            nearer = torch.linspace(0, 1, steps) < 0.5
            classes = torch.where(nearer, ends[0].labels, ends[1].labels)
        with latents_of.writing(model, "interpolate", folder, pictures, classes, steps=steps):
            a, b = (latents_of.encode(model, end) for end in ends)
            shares = torch.linspace(0, 1, steps, device=a.device)[:, None]
            between = latents_of.decode(model, torch.lerp(a, b, shares), classes)
            sheet = torch.cat([ends[0].images, between, ends[1].images])
            return latents_of.write(sheet, len(sheet), out, folder, between, shown, "interpolate")
