"""`decode`: the images of latents."""

from __future__ import annotations

from pathlib import Path

from calotype.commands.arguments import Labels, MaybePath, Shown
from calotype.commands.command import command


@command
def decode(
    run: Path,
    latents: Path,
    /,
    out: MaybePath = None,
    folder: MaybePath = None,
    labels: Labels = (),
    checkpoint: str = "last",
    device: str = "auto",
    display: Shown = None,
) -> tuple[Path, ...]:
    """Draw the images of latents, by a vae or a gan.

    Example: calotype decode runs/photos latents.npz --folder decoded/

    Args:
        run: a run directory.
        latents: an npz file as `calotype encode` writes it; its `latents` may have been changed.
        out: a PNG file with the first 64; by default decoded.png in the run.
        folder: a folder for all, as single PNG files.
        labels: classes by name or number, separated by commas, taken in turn; by default those in the file.
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
    from calotype.core.display import for_process
    from calotype.data.classes import check_seen
    from calotype.errors import ConfigError

    with for_process(display, True) as shown:
        model, out = latents_of.opened(
            "decode",
            run,
            (latents,),
            "decoded.png",
            out=out,
            folder=folder,
            checkpoint=checkpoint,
            device=device,
            display=shown,
        )
        values, classes = latents_of.read(latents)
        asked = model.labels(labels or None) if labels or classes is None else None
        if asked is not None:
            classes = torch.tensor([asked(i) for i in range(len(values))])
        elif classes is not None and model.class_names:
            highest = len(model.class_names) - 1
            if classes.shape != values.shape[:1] or int(classes.min()) < 0 or int(classes.max()) > highest:
                raise ConfigError(f"labels in {latents} are not one of 0 to {highest} for each picture: give --labels")
            check_seen(classes.tolist(), model.class_names, model.spec.unseen)
        if not model.class_names:
            classes = None
        with latents_of.writing(model, "decode", folder, values, classes):
            images = torch.cat(list(latents_of.decoded(model, values, classes, shown)))
            return latents_of.write(images[: latents_of.MOST], 8, out, folder, images, shown, "decode")
