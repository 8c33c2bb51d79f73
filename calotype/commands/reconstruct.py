"""`reconstruct`: pictures beside what a model keeps of them."""

from __future__ import annotations

from pathlib import Path

from calotype.commands.arguments import Labels, MaybePath, Pictures, Shown
from calotype.commands.command import command


@command
def reconstruct(
    run: Path,
    pictures: Pictures,
    /,
    out: MaybePath = None,
    folder: MaybePath = None,
    labels: Labels = (),
    checkpoint: str = "last",
    device: str = "auto",
    display: Shown = None,
) -> tuple[Path, ...]:
    """Show pictures beside what a vae, or a gan, keeps of them.

    Example: calotype reconstruct runs/photos photos/ --out reconstructions.png

    Args:
        run: a run directory.
        pictures: a source of pictures as for train, or one picture.
        out: a PNG file: each picture, and beside it its reconstruction, of 64; by default reconstructions.png in the
            run.
        folder: a folder for the reconstructions, as single PNG files.
        labels: classes by name, separated by commas, taken in turn, or by number where no class has that name; by
            default those of the pictures.
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
    from calotype.core.display import counted, for_process

    with for_process(display, True) as shown:
        model, out = latents_of.opened(
            "reconstruct",
            run,
            (pictures,),
            "reconstructions.png",
            out=out,
            folder=folder,
            checkpoint=checkpoint,
            device=device,
            display=shown,
        )
        found = given(model, pictures, labels or None, None if folder else latents_of.MOST, shown, "reconstructed")
        with latents_of.writing(model, "reconstruct", folder, found.images, found.labels):
            back = torch.cat(list(latents_of.through(model, found, shown)))
            off = float((back.float() - found.images.float()).abs().mean())
            shown.message(
                f"{counted(len(back), 'picture', 'pictures')}; on average a value comes back {off:.1f} of 255 away"
            )
            sheet = torch.stack([found.images[: latents_of.MOST], back[: latents_of.MOST]], 1).flatten(0, 1)
            return latents_of.write(sheet, 8, out, folder, back, shown, "reconstruct")
