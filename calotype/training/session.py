"""A training session of one process: set-up, loop and final samples."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from shlex import quote
from typing import NamedTuple

import torch

from calotype.core import devices
from calotype.core.display import Display
from calotype.core.images import grid, write_png
from calotype.core.model import GenerativeModel
from calotype.core.rng import fold
from calotype.core.signals import stop_requests, way_on
from calotype.data import PackedDataset
from calotype.data.packs.batches import Batches
from calotype.distributed import processes
from calotype.errors import ConfigError, RunError, is_out_of_memory
from calotype.evaluation.training_curves import write_curves
from calotype.optimization.trainer import Trainer
from calotype.runs.changes import Change
from calotype.runs.run import Run
from calotype.sampling import sampler
from calotype.training.batches import training_batches
from calotype.training.extension import consequence
from calotype.training.loop import Context, until_done
from calotype.training.monitor import Judge
from calotype.training.tensorboard import Mirror, tensorboard_mirror

SAMPLES = "samples.png"  # in the run directory; the last thing that training writes, after the curves


HELD_OUT_BATCH = 64  # images at a time


FINAL_GRID = 64  # images in the grid at the end


class Begun(NamedTuple):
    """A run directory that is ready to be trained."""

    run: Run
    pictures: PackedDataset
    packed: PackedDataset  # what is learned
    device: torch.device


def train_run(begun: Begun, changed: Sequence[Change], shown: Display, tensorboard: bool, shard: int) -> None:
    """Train to the end of the budget, with the run locked.

    Args:
        changed: settings that differ from those of the newest checkpoint.
    """
    run, pictures, packed, device = begun
    config = run.config.training
    mirror: AbstractContextManager[Mirror] = nullcontext(lambda *_: None)
    if tensorboard and processes.is_first():
        mirror = tensorboard_mirror(run.path / "tensorboard")
    go_on = f"Continue with: calotype train --resume {quote(str(run.path))}"
    with way_on(go_on), stop_requests() as stop, mirror as write:
        devices.make_repeatable()
        batches = training_batches(packed, config, shown.message)
        trainer = Trainer(run.config.new_model().to(device), batches, config, shard)
        held_out = Batches(packed, packed.held_out, _held_out_size(packed), fold(config.seed, "held out"))
        drawn = run.whole(trainer.ema, shown.message)
        if processes.is_first():
            drawn = drawn.to(device)
        judge = None if trainer.model.loss_ranks or not processes.is_first() else Judge(pictures)
        seen = Batches(packed, packed.train, held_out.size, fold(config.seed, "seen"))
        context = Context(run, trainer, drawn, judge, held_out, seen, shown, write, stop)
        if run.restore(trainer, shown.message):
            _take_changes(context, changed)
            if processes.by_first(lambda: _is_finished(run, trainer)):
                longer = f"--resume {quote(str(run.path))} --budget {2 * config.images}img"
                shown.message(f"{run.path} has used up its budget: nothing to continue. To train further: {longer}")
                return
            shown.message(f"continuing at {trainer.images_seen:,} of {config.images:,} images")
            run.log("resumed", images_seen=trainer.images_seen)
        else:
            run.save(trainer, {})
        try:
            until_done(context)
            processes.by_first(lambda: _finish(context))
        except (OSError, RuntimeError, MemoryError) as error:
            again = f"continue with: calotype train --resume {quote(str(run.path))}"
            if is_out_of_memory(error):
                raise RunError(
                    f"memory ran out ({device.type}, {trainer.micro_batch} image(s) at a time: "
                    f"{str(error).splitlines()[0] if str(error) else 'MemoryError'}); {run.path} is kept as of its "
                    f"last checkpoint. Make memory free, then {again}; or start a new run with a smaller --size or "
                    "--preset"
                ) from error
            if not isinstance(error, OSError):
                raise
            raise RunError(
                f"{run.path} cannot be written ({error}); its checkpoints are intact. Make room, then {again}"
            ) from error


def _take_changes(context: Context, changed: Sequence[Change]) -> None:
    """Report the changed settings, and apply those that a checkpoint would restore.

    Raises:
        ConfigError: the budget is below the images already seen.
    """
    run, trainer = context.run, context.trainer
    if trainer.step > trainer.steps:
        raise ConfigError(
            f"training.images is {trainer.config.images:,}, but the run has seen {trainer.images_seen:,}: give more, "
            f"by calotype train --resume {quote(str(run.path))} --budget {2 * trainer.images_seen}img"
        )
    for change in changed:
        text = str(change)
        if change.name == "training.images":
            text = consequence(change, trainer.config, trainer.images_per_step, trainer.step)
        if change.name == "training.micro_batch":  # else that of the checkpoint, which memory may have made smaller
            trainer.micro_batch = trainer.config.micro_batch or trainer.config.batch_size
        context.shown.message(f"from {trainer.images_seen:,} images on {text}")
        run.log("changed", images_seen=trainer.images_seen, text=text)


def _is_finished(run: Run, trainer: Trainer[GenerativeModel]) -> bool:
    """Whether training is complete, including the final grid of samples."""
    last = [record for record in run.read_log() if record["event"] == "finished"][-1:]
    done = trainer.step >= trainer.steps and (run.path / SAMPLES).exists()
    return done and any(record.get("images_seen") == trainer.images_seen for record in last)


def _held_out_size(packed: PackedDataset) -> int:
    return min(HELD_OUT_BATCH, len(packed.held_out))


def _finish(context: Context) -> None:
    run, trainer = context.run, context.trainer
    images = final_grid(context.drawn)
    write_curves(run.path / "curves.png", run.read_log())
    write_png(run.path / SAMPLES, images)
    run.log("finished", images_seen=trainer.images_seen)
    context.shown.message(
        f"trained on {trainer.images_seen:,} images\n"
        f"samples: {run.path / 'samples.png'}\n"
        f"run: {run.path}\n"
        f"more: calotype sample {quote(str(run.path))} -n 64 --seed 7 --out new/"
    )


def final_grid(model: GenerativeModel) -> torch.Tensor:
    """Samples of a model side by side, a column per class where there are few: uint8 (C, H, W)."""
    classes = len(model.spec.classes)
    columns = classes if 2 <= classes <= 16 else 8
    rows = max(1, round(FINAL_GRID / columns))
    drawn = sampler.sample(model, range(rows * columns), seed=0, labels=sampler.all_classes(model.spec))
    return grid(drawn, columns)
