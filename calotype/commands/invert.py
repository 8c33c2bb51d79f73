"""`invert`: the latents of a gan whose images are nearest to given pictures."""

from __future__ import annotations

from pathlib import Path

from calotype.commands.arguments import Labels, MaybePath, Pictures, Shown
from calotype.commands.command import command


@command
def invert(
    run: Path,
    pictures: Pictures,
    /,
    out: MaybePath = None,
    sheet: MaybePath = None,
    labels: Labels = (),
    checkpoint: str = "last",
    device: str = "auto",
    display: Shown = None,
) -> tuple[Path, ...]:
    """Find the latents of a gan whose images are the nearest to given pictures.

    Example: calotype invert runs/gan photos/ --out latents.npz

    Args:
        run: a run directory.
        pictures: a source of pictures as for train, or one picture.
        out: an npz file for the latents, as `calotype encode` writes it; without it, at most 64 pictures are inverted.
        sheet: a PNG file: each picture, and beside it the nearest image, of 64; by default inversions.png in the run.
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
    from calotype.core.outputs import check_outputs
    from calotype.runs.run import place_in

    with for_process(display, True) as shown:
        default = "" if sheet else "sheet"
        if sheet is None:
            sheet = place_in(run, "inversions.png") if out is None else run / "inversions.png"
        check_outputs("invert", (pictures,), default=default, out=out, sheet=sheet)
        model = latents_of.load(run, checkpoint, device, shown)
        found = given(model, pictures, labels or None, latents_of.MOST if out is None else None, shown, "inverted")
        latents = torch.cat(list(latents_of.encoded(model, found, "inverted", shown)))
        first = found.images[: latents_of.MOST]
        on = next(model.model.parameters()).device
        classes = None if found.labels is None else found.labels[: latents_of.MOST]
        back = latents_of.decode(model, latents[: latents_of.MOST].to(on), classes)
        off = float((back.float() - first.float()).abs().mean())
        shown.message(
            f"{counted(len(latents), 'picture', 'pictures')}; on average a value is {off:.1f} of 255 away "
            "from what was found"
        )
        both = torch.stack([first, back], 1).flatten(0, 1)
        places = latents_of.write(both, 8, sheet, None, back, shown, "invert")
        if out is not None:
            latents_of.save(model, found, latents, out, "invert")
            shown.message(f"latents: {out}")
            places = (*places, out)
        return places
