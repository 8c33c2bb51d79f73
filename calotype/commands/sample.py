"""`sample`: images of a trained run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from calotype.commands.arguments import Assignments, Labels, MaybeNumber, MaybePath, MaybeReal, Shown, Text
from calotype.commands.command import command


@command
def sample(
    run: Path,
    /,
    n: Annotated[int, arg(aliases=["-n"])] = 64,
    seed: int = 0,
    first: int = 0,
    out: MaybePath = None,
    grid: MaybePath = None,
    npz: MaybePath = None,
    labels: Labels = (),
    steps: MaybeNumber = None,
    solver: Text = "",
    guidance: MaybeReal = None,
    set: Assignments = (),
    checkpoint: str = "last",
    weights: Literal["ema", "raw"] = "ema",
    device: str = "auto",
    display: Shown = None,
) -> tuple[Path, ...]:
    """Draw images from a trained run. Image i of a seed is always the same; an interrupted job continues.

    Example: calotype sample runs/photos -n 200 --seed 1 --out new/

    Args:
        run: a run directory.
        n: how many images.
        seed: of the images.
        first: number of the first image, to draw more of the same seed.
        out: a folder for 000000.png, 000001.png, ...
        grid: a PNG file with all images side by side; by default samples-SEED.png in the run, where no place is given.
        npz: a file with all images as one array.
        labels: classes by name, separated by commas, taken in turn, or by number where no class has that name; by
            default all with training pictures.
        steps: of the solver; more is slower and finer.
        solver: of diffusion: ddpm, ddim, euler, heun, dpm2m or unipc.
        guidance: of models with classes, diffusion and autoregressive; above 1, such as 2, images are more typical of
            their class.
        set: KEY=VALUE for any other option of the family, such as spacing=time; may be given several times.
        checkpoint: last, best, or images seen.
        weights: averaged, or as of the last step.
        device: auto, cpu, cuda or mps.
        display: of Python: where to show progress; by default plain lines.

    Returns:
        The places of what was written.

    Raises:
        CalotypeError: for anything the user can mend, before the first image is drawn.
    """
    from calotype.applications import sampling
    from calotype.commands.options import assignments

    return sampling.run(
        run,
        n=n,
        seed=seed,
        first=first,
        out=out,
        grid=grid,
        npz=npz,
        labels=labels or None,
        options=[*assignments(steps=steps, solver=solver or None, guidance=guidance), *set],
        checkpoint=checkpoint,
        ema=weights == "ema",
        device=device,
        display=display,
    )
