"""`encode`: the latents of pictures, as an npz file."""

from __future__ import annotations

from pathlib import Path

from calotype.commands.arguments import Labels, Pictures, Shown
from calotype.commands.command import command


@command
def encode(
    run: Path,
    pictures: Pictures,
    /,
    out: Path,
    labels: Labels = (),
    checkpoint: str = "last",
    device: str = "auto",
    display: Shown = None,
) -> tuple[Path, ...]:
    """Write the latents of pictures, as a vae or a gan encodes them.

    Example: calotype encode runs/photos photos/ --out latents.npz

    Args:
        run: a run directory.
        pictures: a source of pictures as for train, or one picture.
        out: an npz file, with `latents`, a row for each picture, and `labels` where there are classes.
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

    with for_process(display, True) as shown:
        check_outputs("encode", (pictures,), out=out)
        model = latents_of.load(run, checkpoint, device, shown)
        found = given(model, pictures, labels or None, None, shown, "encoded")
        latents = torch.cat(list(latents_of.encoded(model, found, "encoded", shown)))
        latents_of.save(model, found, latents, out, "encode")
        shown.message(f"{counted(len(found.images), 'picture', 'pictures')}, {latents.shape[1]} latents each: {out}")
        return (out,)
