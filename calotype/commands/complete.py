"""`complete`: the rest of pictures whose top is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from calotype.commands.arguments import Assignments, Labels, MaybeNumber, MaybePath, Pictures, Shown
from calotype.commands.command import command


@command
def complete(
    run: Path,
    pictures: Pictures,
    /,
    rows: MaybeNumber = None,
    pixels: MaybeNumber = None,
    n: Annotated[int, arg(aliases=["-n"])] = 4,
    seed: int = 0,
    out: MaybePath = None,
    folder: MaybePath = None,
    labels: Labels = (),
    set: Assignments = (),
    checkpoint: str = "last",
    device: str = "auto",
    display: Shown = None,
) -> tuple[Path, ...]:
    """Keep the top of pictures, and draw the rest anew by an autoregressive run.

    Example: calotype complete runs/pixels photos/ --rows 16

    Args:
        run: a run directory.
        pictures: a source of pictures as for train, of which the first 64 are completed, or one picture.
        rows: how many rows are kept; by default half of them.
        pixels: how many pixels are kept, row by row from the left, instead of whole rows.
        n: completions of each picture.
        seed: of the completions.
        out: a PNG file: a row for each picture, with itself, what was kept, and its completions; by default
            completions-SEED.png in the run.
        folder: a folder for the completions as single PNG files.
        labels: classes by name, separated by commas, taken in turn, or by number where no class has that name; by
            default those of the pictures.
        set: KEY=VALUE for an option of sampling, such as temperature=0.9; may be given several times.
        checkpoint: last, best, or images seen.
        device: auto, cpu, cuda or mps.
        display: of Python: where to show progress; by default plain lines.

    Returns:
        The places of what was written.

    Raises:
        CalotypeError: for anything the user can mend; the message says how.
    """
    from calotype.applications import completion
    from calotype.core.display import for_process

    with for_process(display, True) as shown:
        return completion.run(
            run,
            pictures,
            rows=rows,
            pixels=pixels,
            n=n,
            seed=seed,
            out=out,
            folder=folder,
            labels=labels or None,
            options=set,
            checkpoint=checkpoint,
            device=device,
            display=shown,
        )
