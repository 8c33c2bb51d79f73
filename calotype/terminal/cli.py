"""The command line: one function per command, imports inside, no logic.

`calotype --help` and the help of each command answer without importing torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, UseAppendAction, arg

from calotype.core import environment
from calotype.core.errors import CalotypeError, ConfigError, StoppedElsewhere, is_out_of_memory
from calotype.core.paths import check_word, named
from calotype.core.untrusted import LARGEST
from calotype.terminal import process

# What the help shows for options without a default of their own.
Words = Annotated[str, arg(metavar="TEXT", help_behavior_hint="")]
MaybePath = Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="")]
MaybeReal = Annotated[float | None, arg(metavar="X", help_behavior_hint="")]
Number = Annotated[int, arg(metavar="N", help_behavior_hint="")]
MaybeNumber = Annotated[int | None, arg(metavar="N", help_behavior_hint="")]
Flag = Annotated[bool, arg(help_behavior_hint="")]
Family = Annotated[str, arg(metavar="FAMILY", help_behavior_hint="")]
Data = Annotated[str, arg(metavar="DATA", help_behavior_hint="")]
NewPlace = Annotated[str, arg(name="data", metavar="DATA", help_behavior_hint="")]
Size = Annotated[str, arg(metavar="SIZE", help_behavior_hint="")]
Pages = Annotated[Literal["first", "all", ""], arg(metavar="{first,all}", help_behavior_hint="")]
Fitting = Annotated[Literal["crop", "pad", "stretch", ""], arg(metavar="{crop,pad,stretch}", help_behavior_hint="")]
Range = Annotated[str, arg(metavar="LO:HI", help_behavior_hint="")]
Assignments = Annotated[tuple[str, ...], UseAppendAction, arg(metavar="KEY=VALUE", help_behavior_hint="")]


def check(
    data: Data,
    /,
    size: Size = "",
    fit: Fitting = "",
    range: Range = "",
    channels: Literal[0, 1, 3, 4] = 0,
    pages: Pages = "",
    no_labels: Flag = False,
    labels_from: Words = "",
    strict: Flag = False,
    stream: Flag = False,
    json: Flag = False,
) -> int:
    """Say what is in a source of pictures, what is wrong with it, and what size to train at.

    Exits with 1 where nothing can be trained on it.

    Args:
        data: folder, zip or tar, Parquet, npz or npy, "glyphs", or a hub name.
        size: 32 or 48x64 (width x height); by default what suits the pictures.
        fit: how pictures of another shape are made to fit; by default crop.
        range: LO:HI, the values of 16-bit and float pictures that become 0 and 255.
        channels: 1 gray, 3 RGB, 4 RGBA; 0 decides: gray without colour, RGBA if most are transparent.
        pages: of TIFF stacks and animations take the first, or all, each as a picture; by default first.
        no_labels: pass over classes, from subfolders or of the source.
        labels_from: FILE:COLUMN, a table beside the pictures that says their classes, such as metadata.csv:label.
        strict: stop at the first bad file.
        stream: look at a sample of shards, Parquet files or tars, as train --stream does.
        json: print for programs.
    """
    asked = locals().copy()
    from json import dumps

    from calotype.core.display import for_stream, packing_on
    from calotype.data import check as check_data
    from calotype.training.recipe import data_config

    config = data_config(data, size or None, _data_settings(asked))
    if json:
        report = check_data(config)
        print(dumps(report.as_dict(), indent=1))
    else:
        with for_stream() as display:
            report = check_data(config, progress=packing_on(display))
        print(report.text())
    return 1 if report.problem else 0


def train(
    family: Family = "",
    data: Data = "",
    /,
    budget: Words = "",
    out: MaybePath = None,
    resume: MaybePath = None,
    preset: Words = "",
    size: Size = "",
    fit: Fitting = "",
    range: Range = "",
    channels: Literal[0, 1, 3, 4] = 0,
    pages: Pages = "",
    no_labels: Flag = False,
    labels_from: Words = "",
    strict: Flag = False,
    stream: Flag = False,
    flips: Flag = False,
    balanced: Flag = False,
    on_collapse: Annotated[Literal["say", "rollback", ""], arg(metavar="{say,rollback}", help_behavior_hint="")] = "",
    seed: MaybeNumber = None,
    device: str = "auto",
    compile: Flag = False,
    recipe: MaybePath = None,
    latents: Words = "",
    set: Assignments = (),
    shard: Number = 1,
    go_on: Flag = False,
    tensorboard: Flag = False,
    moved: NewPlace = "",
) -> int:
    """Train a model on pictures, or continue a run with --resume.

    Args:
        family: autoregressive, diffusion, gan or vae.
        data: folder, zip or tar, Parquet, npz or npy, "glyphs", or a hub name.
        budget: a time as 90s, 30m or 2h, or images as 20000img, 500kimg or 2Mimg; by default 30m. With --resume,
            another one for the run in all: what it has taken so far is part of it.
        out: the run directory; by default a new one below runs/.
        resume: the run directory of a run to continue exactly; only --budget, --data, --device, --shard and
            --tensorboard have a place then.
        preset: size of the network; by default auto, the largest that the budget can train.
        size: 32 or 48x64 (width x height); by default what suits the pictures.
        fit: how pictures of another shape are made to fit; by default crop.
        range: LO:HI, the values of 16-bit and float pictures that become 0 and 255.
        channels: 1 gray, 3 RGB, 4 RGBA; 0 decides: gray without colour, RGBA if most are transparent.
        pages: of TIFF stacks and animations take the first, or all, each as a picture; by default first.
        no_labels: pass over classes, from subfolders or of the source.
        labels_from: FILE:COLUMN, a table beside the pictures that says their classes, such as metadata.csv:label.
        strict: stop at the first bad file.
        stream: read shards, Parquet files or tars, while training, and pack but a sample: for more pictures than the
            disk has room for.
        flips: mirror images left to right at random.
        balanced: show every class equally often.
        on_collapse: where the model collapses, say so, or go back to the last checkpoint from before; by default say.
        seed: of initial weights, order and noise; by default 0.
        device: auto, cpu, cuda or mps.
        compile: use torch.compile: minutes at the first start, then somewhat faster.
        recipe: TOML with settings, such as the config.toml of another run, which is then repeated.
        latents: the run of a vae: the model learns its latents of the pictures, and draws pictures by both; or auto, to
            train that run first, with a third of the budget.
        set: SECTION.KEY=VALUE for any entry of config.toml, such as model.blocks=3; may be given several times.
        shard: of the processes that torchrun starts, how many hold the weights between them; by default each holds all.
        go_on: where --out is a run already, continue it: for jobs that are started again by the same command.
        tensorboard: also log for TensorBoard, below the run directory.
        moved: with --resume, where the pictures of the run are now, if they have moved.
    """
    asked = locals().copy()
    from calotype.core.display import for_stream
    from calotype.training import setup

    if resume is not None:
        _refuse_beside_resume(train, asked, BESIDE_RESUME, "run")
        setup.resume(
            resume,
            data=moved,
            budget=budget or None,
            device=device,
            shard=shard,
            tensorboard=tensorboard,
            display=for_stream(),
        )
        return 0
    _refuse_moved(moved, "calotype train diffusion photos/")
    setup.train(
        family,
        data,
        budget=budget or None,
        out=out,
        preset=preset or None,
        size=size or None,
        device=device,
        settings=_training_settings(asked),
        recipe=recipe,
        latents=latents or None,
        shard=shard,
        go_on=go_on,
        tensorboard=tensorboard,
        display=for_stream(),
    )
    return 0


def sample(
    run: Path,
    /,
    n: Annotated[int, arg(aliases=["-n"])] = 64,
    seed: int = 0,
    first: int = 0,
    out: MaybePath = None,
    grid: MaybePath = None,
    npz: MaybePath = None,
    labels: Words = "",
    steps: MaybeNumber = None,
    solver: Words = "",
    guidance: MaybeReal = None,
    set: Assignments = (),
    checkpoint: str = "last",
    weights: Literal["ema", "raw"] = "ema",
    device: str = "auto",
) -> int:
    """Draw images from a trained run. Image i of a seed is always the same; a stopped job continues.

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
        guidance: of models with classes, diffusion and autoregressive; above 1, such as 2, more typical of their class.
        set: KEY=VALUE for any other option of the family, such as spacing=time; may be given several times.
        checkpoint: last, best, or images seen.
        weights: averaged, or as of the last step.
        device: auto, cpu, cuda or mps.
    """
    from calotype.applications import sampling
    from calotype.core.display import for_stream

    sampling.run(
        run,
        n=n,
        seed=seed,
        first=first,
        out=out,
        grid=grid,
        npz=npz,
        labels=_classes(labels),
        options=[*_assignments(steps=steps, solver=solver or None, guidance=guidance), *set],
        checkpoint=checkpoint,
        ema=weights == "ema",
        device=device,
        display=for_stream(),
    )
    return 0


def complete(
    run: Path,
    pictures: Data,
    /,
    rows: MaybeNumber = None,
    pixels: MaybeNumber = None,
    n: Annotated[int, arg(aliases=["-n"])] = 4,
    seed: int = 0,
    out: MaybePath = None,
    folder: MaybePath = None,
    labels: Words = "",
    set: Assignments = (),
    checkpoint: str = "last",
    device: str = "auto",
) -> int:
    """Keep the top of pictures, and draw the rest anew by an autoregressive run.

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
    """
    from calotype.applications import completion
    from calotype.core.display import for_stream

    with for_stream() as display:
        completion.run(
            run,
            pictures,
            rows=rows,
            pixels=pixels,
            n=n,
            seed=seed,
            out=out,
            folder=folder,
            labels=_classes(labels),
            options=set,
            checkpoint=checkpoint,
            device=device,
            display=display,
        )
    return 0


def reconstruct(
    run: Path,
    pictures: Data,
    /,
    out: MaybePath = None,
    folder: MaybePath = None,
    labels: Words = "",
    checkpoint: str = "last",
    device: str = "auto",
) -> int:
    """Show pictures beside what a vae, or a gan, keeps of them.

    Args:
        run: a run directory.
        pictures: a source of pictures as for train, or one picture.
        out: a PNG file: each picture, and beside it what came back, of 64; by default reconstructions.png in the run.
        folder: a folder for what came back, as single PNG files.
        labels: classes by name, separated by commas, taken in turn, or by number where no class has that name; by
            default those of the pictures.
        checkpoint: last, best, or images seen.
        device: auto, cpu, cuda or mps.
    """
    from calotype.applications import latents
    from calotype.core.display import for_stream

    with for_stream() as display:
        latents.reconstruct(
            run,
            pictures,
            out=out,
            folder=folder,
            labels=_classes(labels),
            checkpoint=checkpoint,
            device=device,
            display=display,
        )
    return 0


def invert(
    run: Path,
    pictures: Data,
    /,
    out: MaybePath = None,
    sheet: MaybePath = None,
    labels: Words = "",
    checkpoint: str = "last",
    device: str = "auto",
) -> int:
    """Find the latents of a gan whose pictures are the nearest to given ones.

    Args:
        run: a run directory.
        pictures: a source of pictures as for train, or one picture.
        out: an npz file for the latents, as `calotype encode` writes it; without, 64 pictures at most are looked at.
        sheet: a PNG file: each picture, and beside it the nearest, of 64; by default inversions.png in the run.
        labels: classes by name, separated by commas, taken in turn, or by number where no class has that name; by
            default those of the pictures.
        checkpoint: last, best, or images seen.
        device: auto, cpu, cuda or mps.
    """
    from calotype.applications import latents
    from calotype.core.display import for_stream

    with for_stream() as display:
        latents.invert(
            run,
            pictures,
            out=out,
            sheet=sheet,
            labels=_classes(labels),
            checkpoint=checkpoint,
            device=device,
            display=display,
        )
    return 0


def interpolate(
    run: Path,
    first: Data,
    last: Data,
    /,
    steps: int = 8,
    out: MaybePath = None,
    folder: MaybePath = None,
    labels: Words = "",
    checkpoint: str = "last",
    device: str = "auto",
) -> int:
    """Draw pictures between two, by the latents of a vae or a gan.

    Args:
        run: a run directory.
        first: a picture, or a source of pictures, whose first is taken.
        last: another.
        steps: pictures from one to the other, the two as they come back among them.
        out: a PNG file with all in a row, between the two themselves; by default interpolation.png in the run.
        folder: a folder for single PNG files.
        labels: class of the two by name or number, or one for each, separated by a comma; by default those of the
            pictures.
        checkpoint: last, best, or images seen.
        device: auto, cpu, cuda or mps.
    """
    from calotype.applications import latents
    from calotype.core.display import for_stream

    with for_stream() as display:
        latents.interpolate(
            run,
            first,
            last,
            steps=steps,
            out=out,
            folder=folder,
            labels=_classes(labels),
            checkpoint=checkpoint,
            device=device,
            display=display,
        )
    return 0


def encode(
    run: Path,
    pictures: Data,
    /,
    out: Path,
    labels: Words = "",
    checkpoint: str = "last",
    device: str = "auto",
) -> int:
    """Write what a vae, or a gan, keeps of pictures as numbers.

    Args:
        run: a run directory.
        pictures: a source of pictures as for train, or one picture.
        out: an npz file, with `latents`, a row for each picture, and `labels` where there are classes.
        labels: classes by name, separated by commas, taken in turn, or by number where no class has that name; by
            default those of the pictures.
        checkpoint: last, best, or images seen.
        device: auto, cpu, cuda or mps.
    """
    from calotype.applications import latents
    from calotype.core.display import for_stream

    with for_stream() as display:
        latents.encode(
            run,
            pictures,
            out=out,
            labels=_classes(labels),
            checkpoint=checkpoint,
            device=device,
            display=display,
        )
    return 0


def decode(
    run: Path,
    latents: Path,
    /,
    out: MaybePath = None,
    folder: MaybePath = None,
    labels: Words = "",
    checkpoint: str = "last",
    device: str = "auto",
) -> int:
    """Draw the pictures of latents, of a vae or a gan.

    Args:
        run: a run directory.
        latents: an npz file as `calotype encode` writes it; its `latents` may have been changed.
        out: a PNG file with the first 64; by default decoded.png in the run.
        folder: a folder for all, as single PNG files.
        labels: classes by name or number, separated by commas, taken in turn; by default those in the file.
        checkpoint: last, best, or images seen.
        device: auto, cpu, cuda or mps.
    """
    from calotype.applications import latents
    from calotype.core.display import for_stream

    with for_stream() as display:
        latents.decode(
            run,
            latents,
            out=out,
            folder=folder,
            labels=_classes(labels),
            checkpoint=checkpoint,
            device=device,
            display=display,
        )
    return 0


def evaluate(
    subject: Path,
    /,
    data: Words = "",
    n: Annotated[MaybeNumber, arg(aliases=["-n"])] = None,
    seed: int = 0,
    features: str = "EffLite0",
    checkpoint: str = "last",
    set: Assignments = (),
    device: str = "auto",
    out: MaybePath = None,
) -> int:
    """Measure a run, or a folder of images from anywhere: distance, diversity, copying, likelihood, cost.

    Args:
        subject: a run directory; or a folder, zip, tar, Parquet or npz of images, with --data.
        data: what images from elsewhere are to be like: a source of pictures as for train. Of a run, where the pictures
            that it was trained on are now, if they have moved.
        n: images per set; by default as many as are held out, 200 to 2000, and all of a folder up to 2000.
        seed: of the samples; those of the seed after it are measured too.
        features: what images are compared by: EffLite0, Inception:FILE or DINOv2:FILE with their published weights, or
            the file of a network saved by torch.export.save.
        checkpoint: last, best, or images seen.
        set: KEY=VALUE for an option of sampling, such as steps=32; may be given several times.
        device: auto, cpu, cuda or mps.
        out: a JSON file; by default evaluation.json in the run, or in a folder beside that of the images.
    """
    from calotype.applications import evaluation
    from calotype.core.display import for_stream

    evaluation.run(
        subject,
        data=data,
        n=n or 0,
        seed=seed,
        network=features,
        checkpoint=checkpoint,
        options=set,
        device=device,
        out=out,
        display=for_stream(),
    )
    return 0


def compare(
    data: Data = "",
    /,
    budget: Words = "",
    families: Words = "",
    out: MaybePath = None,
    resume: MaybePath = None,
    size: Size = "",
    fit: Fitting = "",
    range: Range = "",
    channels: Literal[0, 1, 3, 4] = 0,
    pages: Pages = "",
    no_labels: Flag = False,
    labels_from: Words = "",
    strict: Flag = False,
    stream: Flag = False,
    n: Annotated[int, arg(aliases=["-n"], help_behavior_hint="")] = 0,
    seed: int = 0,
    features: str = "EffLite0",
    no_baselines: Flag = False,
    threads: Annotated[int, arg(help_behavior_hint="")] = 0,
    recipe: MaybePath = None,
    device: str = "auto",
    moved: NewPlace = "",
) -> int:
    """Train every family on the same pictures, measure them alike, and say which is best for what.

    Args:
        data: folder, zip or tar, Parquet, npz or npy, "glyphs", or a hub name.
        budget: of all families together, shared equally: a time as 40m or 8h, or images as 2Mimg; by default 30m.
            Measuring comes on top.
        families: some of autoregressive, diffusion, gan and vae, separated by commas; by default all.
        out: the directory; by default a new one below runs/.
        resume: the directory of a comparison to go on with; only --data and --device have a place then.
        size: 32 or 48x64 (width x height); by default what suits the pictures.
        fit: how pictures of another shape are made to fit; by default crop.
        range: LO:HI, the values of 16-bit and float pictures that become 0 and 255.
        channels: 1 gray, 3 RGB, 4 RGBA; 0 decides: gray without colour, RGBA if most are transparent.
        pages: of TIFF stacks and animations take the first, or all, each as a picture; by default first.
        no_labels: pass over classes, from subfolders or of the source.
        labels_from: FILE:COLUMN, a table beside the pictures that says their classes, such as metadata.csv:label.
        strict: stop at the first bad file.
        stream: read shards while training, and pack but a sample, as for train.
        n: images per set; by default as many as are held out, 200 to 2000.
        seed: of weights, order, noise and samples.
        features: what images are compared by: EffLite0, or a file as for evaluate.
        no_baselines: leave out the classical methods.
        threads: of the CPU; by default as torch chooses.
        recipe: the directory of a comparison that is repeated, image for image.
        device: auto, cpu, cuda or mps; with auto and several GPUs each trains a family.
        moved: with --resume, where the pictures are now, if they have moved.
    """
    asked = locals().copy()
    from calotype.applications import comparison
    from calotype.core.display import for_stream

    if resume is not None:
        _refuse_beside_resume(compare, asked, ("moved", "device"), "comparison")
        comparison.resume(resume, data=moved, device=device, display=for_stream())
        return 0
    _refuse_moved(moved, "calotype compare photos/")
    comparison.compare(
        data,
        budget=budget or None,
        families=_names(families) or (),
        out=out,
        size=size or None,
        settings=_data_settings(asked),
        n=n,
        seed=seed,
        features=features,
        baselines=() if no_baselines else None,
        threads=threads,
        device=device,
        recipe=recipe,
        display=for_stream(),
    )
    return 0


def plan(
    recipe: Annotated[Path, arg(metavar="RECIPE")],
    /,
    nodes: int = 1,
    gpus: int = 1,
    device: str = "h100",
    shard: Number = 1,
    budget: Words = "",
    preset: Words = "",
    size: Size = "",
    channels: Literal[0, 1, 3, 4] = 0,
    classes: MaybeNumber = None,
    set: Assignments = (),
) -> int:
    """Say what training by a recipe would cost on other devices, and many: time, memory, communication.

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
    """
    from calotype.core.config import override
    from calotype.training import cluster_cost
    from calotype.training.recipe import family_of, sections

    settings: dict[str, dict[str, Any]] = {}
    for assignment in set:
        override(settings, assignment, sections(family_of("", recipe)))
    print(
        cluster_cost.scale(
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
            settings=settings,
        ).text()
    )
    return 0


def launch(
    command: Annotated[tuple[str, ...], arg(metavar="-- train ...", help_behavior_hint="")] = (),
    /,
    on: Annotated[
        Literal["slurm", "kubernetes", "ray", ""], arg(metavar="{slurm,kubernetes,ray}", help_behavior_hint="")
    ] = "",
    nodes: int = 1,
    gpus: int = 0,
    processes: Annotated[int, arg(help_behavior_hint="")] = 0,
    cpus: Annotated[int, arg(help_behavior_hint="")] = 0,
    memory: Words = "",
    time: Words = "",
    partition: Words = "",
    account: Words = "",
    image: Words = "",
    namespace: Words = "",
    volume: Annotated[tuple[str, ...], UseAppendAction, arg(metavar="CLAIM:PATH", help_behavior_hint="")] = (),
    environment: Assignments = (),
    restarts: int = 3,
    name: Words = "",
    write: MaybePath = None,
    submit: Flag = False,
) -> int:
    """Write, or submit, a job that trains on the nodes of a cluster: of Slurm, Kubernetes or Ray.

    What stands after -- is the command as without a cluster. It needs --out: an absolute path on storage that all
    nodes share. The job prints to the standard output; a job that is started again goes on with its run.

    Args:
        command: calotype train as ever, with --out; or with --resume.
        on: slurm, kubernetes or ray.
        nodes: how many.
        gpus: per node, one for each process; with 0 processes share the CPUs.
        processes: per node, where there are no GPUs; by default 1.
        cpus: per node; by default what the scheduler gives.
        memory: per node, such as 16G, in units of 1024.
        time: of slurm, such as 90, 12:00:00 or 2-00: how long the job may take at once; it then queues again.
        partition: of slurm.
        account: of slurm.
        image: of kubernetes, a container image with calotype.
        namespace: of kubernetes.
        volume: of kubernetes, a claim of shared storage and where it is mounted; may be given several times.
        environment: KEY=VALUE for the processes, such as GLOO_SOCKET_IFNAME=eth0; may be given several times.
        restarts: how often processes that died are started again.
        name: of the job; by default that of the run directory.
        write: the file to write; by default the job is printed.
        submit: give the job to the scheduler.
    """
    options = {name: value for name, value in locals().items() if name not in ("command", "on", "write", "submit")}
    from calotype.distributed import launching

    given = _training_asked(command)
    settings = _training_settings(given) if given["resume"] is None else {}
    launching.launch(on, command, given, settings, write=write, submit=submit, **options)
    return 0


def demo(budget: str = "6m", out: MaybePath = None) -> int:
    """Train every family on built-in pictures of letters, measure them, and say where the page is, in ten minutes.

    Args:
        budget: of all families together, as for compare; measuring comes on top.
        out: the directory; by default a new one below runs/.
    """
    # Small letters: in the same time a CPU sees four times as many of them as at 32x32, and comes to whole letters.
    return compare("glyphs", budget=budget, out=out, size="16", n=DEMO_IMAGES)


COMMANDS: Mapping[str, Callable[..., int]] = {
    "check": check,
    "train": train,
    "sample": sample,
    "complete": complete,
    "reconstruct": reconstruct,
    "invert": invert,
    "interpolate": interpolate,
    "encode": encode,
    "decode": decode,
    "evaluate": evaluate,
    "compare": compare,
    "plan": plan,
    "launch": launch,
    "demo": demo,
}
DEMO_IMAGES = 500  # per set: enough to tell the families apart
MORE_MEMORY = "close other programs, raise the limit of this one, or give smaller pictures or fewer at a time"
BESIDE_RESUME = ("budget", "moved", "device", "shard", "tensorboard")  # arguments of train that --resume takes
TOGETHER = ("train", "sample", "evaluate", "compare", "demo")  # what several processes can do together


def _refuse_beside_resume(
    command: Callable[..., int], asked: Mapping[str, Any], allowed: Sequence[str], what: str
) -> None:
    """What was made with settings goes on with them: others are not passed over in silence."""
    from inspect import signature

    defaults = {name: parameter.default for name, parameter in signature(command).parameters.items()}
    idle = [name for name, value in asked.items() if value != defaults[name] and name not in ("resume", *allowed)]
    if idle:
        place = "; the place of pictures that have moved is --data" if "data" in idle else ""
        raise ConfigError(f"--resume takes the settings of the {what}: leave out {', '.join(idle)}{place}")


def _refuse_moved(place: str, example: str) -> None:
    """Without --resume there is nothing that could have moved."""
    if place:
        raise ConfigError(f"--data is for --resume, where pictures have moved: name pictures as in {example}")


def _training_settings(asked: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The entries of config.toml that arguments of `train` set, by section. Raises ConfigError."""
    from calotype.core.config import override
    from calotype.training.recipe import family_of, sections

    settings: dict[str, dict[str, Any]] = {
        "data": _data_settings(asked),
        "training": _given(**{name: asked[name] for name in ("flips", "balanced", "compile", "on_collapse")}),
    }
    if asked["seed"] is not None:
        settings["training"]["seed"] = asked["seed"]
    for assignment in asked["set"]:
        override(settings, assignment, sections(family_of(asked["family"], asked["recipe"])))
    return settings


def _training_asked(words: Sequence[str]) -> dict[str, Any]:
    """The arguments of `train` that words mean; one that it does not know ends the program, as it would.

    Raises:
        ConfigError: for the words of another command, or none.
    """
    from functools import wraps
    from inspect import signature

    import tyro

    if not words or words[0] != "train":
        raise ConfigError(
            "no training is given: calotype launch --on slurm -- train diffusion photos/ --out /shared/run"
        )

    @wraps(train)
    def asked(*values: Any, **options: Any) -> dict[str, Any]:
        return dict(signature(train).bind(*values, **options).arguments)

    found: dict[str, Any] = tyro.cli(asked, prog="calotype train", args=words[1:], config=(FlagCreatePairsOff,))
    if found["resume"] is not None:
        _refuse_beside_resume(train, found, BESIDE_RESUME, "run")
    return found


def _names(text: str) -> list[str] | None:
    return [name.strip() for name in text.split(",")] if text else None


def _classes(text: str) -> list[str] | None:
    """Pieces of names of classes, which may have commas and spaces in them: a model knows which."""
    return text.split(",") if text else None


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value}


def _assignments(**values: Any) -> list[str]:
    return [f"{name}={value}" for name, value in values.items() if value is not None]


# Options of check, train and compare about pictures, and the entries of [data] that they set.
DATA_OPTIONS: Mapping[str, str] = {
    "fit": "fit",
    "range": "value_range",
    "channels": "channels",
    "pages": "pages",
    "no_labels": "labels",
    "labels_from": "labels_from",
    "strict": "strict",
    "stream": "stream",
}


def _data_settings(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of [data] that arguments of a command set."""
    found = {entry: asked[option] for option, entry in DATA_OPTIONS.items() if asked[option]}
    if "labels" in found:
        found["labels"] = False
    return found


def _overview() -> str:
    lines = ["Train an image generator on your own pictures, and put it to work.", ""]
    lines += ["usage: calotype COMMAND ...", "", "commands:"]
    lines += [f"  {name:11} {(command.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items()]
    return "\n".join([*lines, "", "`calotype COMMAND --help` says more; `calotype --version` the version."])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status.

    Args:
        arguments: by default those of this process, whose streams and signals are then taken care of.
    """
    if arguments is None:
        return process.run(lambda: main(sys.argv[1:]))
    arguments = list(arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if arguments[0] == "--version":
        from calotype import __version__

        print(__version__)
        return 0
    if arguments[0] not in COMMANDS:
        from difflib import get_close_matches

        close = get_close_matches(arguments[0], COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(COMMANDS)}"
        print(f"calotype: {arguments[0]!r} is no command: {hint}", file=sys.stderr)
        return 2
    return _run(arguments[0], arguments[1:])


def _run(name: str, arguments: Sequence[str]) -> int:
    import tyro

    try:
        for word in arguments:
            check_word(word)
        if name not in TOGETHER and environment.whole("WORLD_SIZE", 1, least=1) > 1:
            raise ConfigError(f"{name} runs in one process: start it without torchrun")
        prog, config = f"calotype {name}", (FlagCreatePairsOff,)
        return tyro.cli(_with_checks(COMMANDS[name]), prog=prog, args=arguments, config=config)
    except StoppedElsewhere as error:
        return error.exit_status
    except CalotypeError as error:
        rank = environment.text("RANK", "0")
        print(f"calotype: {'' if rank == '0' else f'process {rank}: '}{error}", file=sys.stderr)
        return error.exit_status
    except (MemoryError, RuntimeError, OSError) as error:
        if is_out_of_memory(error):
            reason, remedy = f"memory ran out ({error!r})", MORE_MEMORY
        elif isinstance(error, OSError) and isinstance(error.filename, str) and error.errno:
            reason, remedy = f"{error.filename} cannot be used ({error.strerror})", "mend that, and repeat the command"
        else:
            raise
        print(f"calotype: {reason}: {remedy}", file=sys.stderr)
        return CalotypeError.exit_status


def _with_checks(command: Callable[..., int]) -> Callable[..., int]:
    """The command, which refuses paths that the system does not take, and numbers that nothing means."""
    from functools import wraps
    from inspect import signature

    @wraps(command)
    def checked(*values: Any, **options: Any) -> int:
        bound = signature(command).bind(*values, **options)
        bound.arguments = {key: _check_value(key, value) for key, value in bound.arguments.items()}
        return command(*bound.args, **bound.kwargs)

    return checked


def _check_value(name: str, value: Any) -> Any:
    """A value of an argument, a path with a name. Raises ConfigError."""
    option = f"--{name.replace('_', '-')}"
    if isinstance(value, Path):
        return named(value)
    if isinstance(value, int) and not -LARGEST <= value < LARGEST:
        raise ConfigError(f"{option} is {str(value)[:20]}..., but numbers have at most 64 bits: give a smaller one")
    if isinstance(value, float) and not isfinite(value):
        raise ConfigError(f"{option} is {value}, but it has to be a finite number: give one, or leave it out")
    return value


if __name__ == "__main__":
    sys.exit(main())
