"""The training loop: logging, checkpoints, previews, rollback to a sound checkpoint, and stops on request."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import NamedTuple

from calotype.core.display import Display, Status
from calotype.core.files import make_folder
from calotype.core.images import grid, write_png
from calotype.core.model import GenerativeModel, Remark
from calotype.data.packs.batches import Batches
from calotype.distributed import processes
from calotype.errors import CalotypeError, StoppedElsewhere, TrainingDiverged
from calotype.optimization.trainer import NonFinite, Progress, Trainer
from calotype.runs.run import Run
from calotype.training.monitor import Judge
from calotype.training.planner import preview
from calotype.training.tensorboard import Mirror

RETURNS_LIMIT = 3  # to a checkpoint without reaching the next one; then the settings are wrong, not the data
HELD_OUT_IMAGES = 256  # measured at each checkpoint: enough to rank checkpoints, a per cent or so of the time
BEGUN = 0.1  # share of training before which what is not there cannot have been lost
# Images seen before which the same holds however short the training is. In healthy runs of the smallest networks
# latents became active between 250 and more than 1,600 images, samples diverse between 130 and more than 500
# (benchmarks/remarks.py); the rest is for networks and pictures that take longer.
SETTLED = 10_000
LOG_SECONDS = 1.0  # between log lines


class Collapsed(Exception):
    """The model has collapsed and is to be rolled back; the message has the symptom and the settings to change."""


class Interrupted(CalotypeError):
    """Training has stopped on request, after saving a checkpoint."""

    def __init__(self, run: Path, number: int) -> None:
        super().__init__(f"stopped and saved. Continue with: calotype train --resume {quote(str(run))}")
        self.exit_status = 128 + number  # as a shell reports a process that a signal ended


@dataclass(frozen=True, slots=True)
class Context:
    """The objects that the loop works with."""

    run: Run
    trainer: Trainer[GenerativeModel]
    drawn: GenerativeModel  # of the averaged weights, what pictures are drawn from
    judge: Judge | None  # of its samples, where the loss does not say how good the model is
    held_out: Batches
    seen: Batches  # of training images, to compare with
    shown: Display
    mirror: Mirror
    stop: Callable[[], int]

    def due(self, every: int) -> bool:
        """Whether the step just done ends a stretch of `every` images, or the budget; a repeat agrees."""
        steps = max(1, round(every / self.trainer.images_per_step))
        return self.trainer.step % steps == 0 or self.trainer.step == self.trainer.steps


def until_done(context: Context) -> None:
    """Train to the end of the budget, with a rollback to the last checkpoint if updates cannot be applied."""
    trainer, run = context.trainer, context.run
    while True:
        try:
            _loop(context)
        except (NonFinite, Collapsed) as error:
            returns, reached, shift = trainer.returns + 1, trainer.step + 1, trainer.shift
            if returns > RETURNS_LIMIT:
                rate = run.config.training.learning_rate / 3
                other = f". Start again with a lower rate: --set training.learning_rate={rate:.1g}"
                run.log("diverged", images_seen=trainer.images_seen)
                raise TrainingDiverged(
                    f"{error}; this came again after {RETURNS_LIMIT} returns. The last good checkpoint of {run.path} "
                    f"is intact{other if isinstance(error, NonFinite) else ''}"
                ) from error
            if not run.restore(trainer, context.shown.message):
                raise TrainingDiverged(f"{error}, and {run.path} has no sound checkpoint to go back to") from error
            trainer.returns, trainer.shift = returns, shift
            trainer.pass_over((reached - trainer.step) * trainer.draws_per_step)
            run.log("returned", images_seen=trainer.images_seen, reason=str(error), returns=returns)
            context.shown.message(
                f"{error}: back to the checkpoint at {trainer.images_seen:,} images, going on with other data "
                f"(return {returns} of {RETURNS_LIMIT})"
            )
            continue
        return


def _loop(context: Context) -> None:
    trainer, run, config = context.trainer, context.run, context.run.config.training
    history: deque[float] = deque(maxlen=2000)
    pace = _Pace(trainer.images_seen)
    held_out: float | None = None
    remarked, told = False, ""
    micro_batch, saved = trainer.micro_batch, trainer.step
    for progress in trainer.run():
        for player in progress.skipped:
            run.log("skipped", images_seen=progress.images_seen, player=player)
            context.shown.message(
                f"step {progress.step}: the update of {player} was not applied: it is not finite, or "
                "longer than training.skip_norm"
            )
        if progress.micro_batch != micro_batch:
            micro_batch = progress.micro_batch
            run.log("micro_batch", images_seen=progress.images_seen, micro_batch=progress.micro_batch)
            context.shown.message(f"memory is short: {progress.micro_batch} images at a time from here on")
        if pace.due() or trainer.step == trainer.steps:
            history.append(_log_progress(context, progress, pace))
            rate = pace.images_per_second
            context.shown.training(
                Status(
                    progress.images_seen,
                    trainer.steps * trainer.images_per_step,
                    rate,
                    history[-1],
                    held_out,
                    tuple(history),
                    told,
                )
            )
        if context.due(config.preview_every):  # before the checkpoint: after it a kill would lose the preview for good
            with pace.pause():
                _preview(context)
        if context.due(config.checkpoint_every):
            with pace.pause():
                measured = _checkpoint(context, {name: float(value) for name, value in progress.losses.items()})
            if measured.saved:
                held_out, saved, told = measured.held_out, trainer.step, measured.told
            if measured.remark is not None:
                run.log("remark", images_seen=progress.images_seen, text=measured.remark.text)
                if not remarked:
                    context.shown.message(measured.remark.text)
                remarked = True
        number = processes.any_of(context.stop())  # what one is asked, all do, after the same step
        if number and trainer.step < trainer.steps:
            if saved != trainer.step:  # else a checkpoint with its held-out loss is there
                trainer.gather()
                run.save(trainer, {})
            run.log("stopped", images_seen=trainer.images_seen, signal=number)
            interrupted = Interrupted(run.path, number)
            raise interrupted if processes.is_first() else StoppedElsewhere.of(interrupted)


def _log_progress(context: Context, progress: Progress, pace: _Pace) -> float:
    """Write a log line; returns the sum of the players' losses."""
    values = {name: float(value) for name, value in progress.losses.items()}
    record = {f"loss/{name}": value for name, value in values.items()}
    record |= {f"grad_norm/{name}": float(value) for name, value in progress.grad_norms.items()}
    record |= {
        "learning_rate": context.trainer.learning_rate(progress.step - 1),
        "images_per_second": pace.measure(progress.images_seen),
    }
    context.run.log("progress", step=progress.step, images_seen=progress.images_seen, **record)
    context.mirror(record, progress.images_seen)
    return sum(value for name, value in values.items() if "/" not in name)


class _Measured(NamedTuple):
    """The measurements of a checkpoint."""

    saved: bool
    held_out: float
    remark: Remark | None
    told: str  # of the samples, for the display


def _checkpoint(context: Context, parts: Mapping[str, float]) -> _Measured:
    """Measure the held-out loss, and samples if the loss does not rank models, and save.

    While updates are being skipped nothing is saved except at the end of the budget: the weights have not changed.

    Args:
        parts: losses and their parts of the last step.

    Raises:
        Collapsed: instead of saving, if the run is to be rolled back.
    """
    trainer, run = context.trainer, context.run
    if any(trainer.bad_turns.values()) and trainer.step < trainer.steps:
        return _Measured(False, math.nan, None, "")  # not a state to go back to
    trainer.gather()
    total, record = processes.by_first(lambda: _held_out(context))
    facts, told = {"held_out": total}, ""
    if "samples/distance" in record:
        facts["score"] = record["samples/distance"]
        told = f"samples {facts['score']:.3g} from real, {record['samples/diversity']:.0%} as diverse"
    settled = trainer.model.progress >= BEGUN and trainer.images_seen >= SETTLED
    remark = trainer.model.remark({**parts, **record}) if settled else None
    if remark is not None and remark.collapsed and run.config.training.on_collapse == "rollback":
        raise Collapsed(remark.text)
    trainer.returns = 0
    run.save(trainer, facts)
    run.log("checkpoint", images_seen=trainer.images_seen, **record)
    context.mirror(record, trainer.images_seen)
    return _Measured(True, total, remark, told)


def _held_out(context: Context) -> tuple[float, dict[str, float]]:
    """The held-out loss, and warnings about it and about samples, for the log."""
    trainer = context.trainer
    count = -(-min(HELD_OUT_IMAGES, context.held_out.epoch_length) // context.held_out.size)
    losses = trainer.held_out_loss(context.held_out, count)
    total = sum(value for name, value in losses.items() if "/" not in name)
    record = {f"held_out/{name}": value for name, value in losses.items()}
    if context.judge is not None:
        seen = trainer.held_out_loss(context.seen, count)
        record |= {f"seen/{name}": value for name, value in seen.items()}
        judged = context.judge(context.drawn)
        record |= {"samples/distance": judged.distance, "samples/diversity": judged.diversity}
    return total, record


def _preview(context: Context) -> None:
    context.trainer.gather()
    if not processes.is_first():
        return
    run = context.run.path
    place = run / "previews" / f"{context.trainer.images_seen:012d}.png"
    make_folder(place.parent, run)
    write_png(place, grid(preview(context.drawn)), root=run)


class _Pace:
    """Images per second, without the pauses for checkpoints and previews."""

    def __init__(self, images_seen: int) -> None:
        self.images_per_second = 0.0
        self._images, self._since, self._paused = images_seen, time.perf_counter(), 0.0

    def due(self) -> bool:
        """Whether another log line is due."""
        return time.perf_counter() - self._since >= LOG_SECONDS

    def measure(self, images_seen: int) -> float:
        """The speed since the last measurement, smoothed."""
        now = time.perf_counter()
        speed = (images_seen - self._images) / max(now - self._since - self._paused, 1e-9)
        known = self.images_per_second
        self.images_per_second = speed if known == 0 else 0.8 * known + 0.2 * speed
        self._images, self._since, self._paused = images_seen, now, 0.0
        return self.images_per_second

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Exclude the time that a block takes."""
        started = time.perf_counter()
        yield
        self._paused += time.perf_counter() - started
