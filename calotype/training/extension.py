"""Another budget for a run that has begun: the images to see in all, and what schedules make of the change.

Rates, penalties and whatever else follows the share of the budget are functions of steps done and steps in all. With
another budget they go on, from the checkpoint, with the values that a run of that budget has there: training after a
rate that has fallen to 0 begins again with a rate above it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from shlex import quote

import torch

from calotype.core.errors import ConfigError
from calotype.data.packs.batches import Batches
from calotype.distributed import processes
from calotype.optimization.config import TrainConfig, learning_rate, steps_of
from calotype.runs.changes import Change
from calotype.runs.config import RunConfig, family
from calotype.runs.run import Run
from calotype.training.planner import CHECKPOINTS, PREVIEWS, Budget, images_in


def extended(
    run: Run, budget: Budget, batches: Batches, device: torch.device, shard: int, report: Callable[[str], None]
) -> RunConfig:
    """The config of a run with another budget; its own, where it has this one already.

    Args:
        budget: of the run in all. A time becomes images by the time that training has taken so far, and the speed that
            is measured here.
        batches: that training takes.
        report: told what is measured.

    Raises:
        ConfigError: the budget is less than what is done.
    """
    config = run.config
    if budget.text == config.budget:
        return config
    images = budget.images or _images(run, budget, batches, device, shard, report)
    done = run.images_seen()
    per_step = images_per_step(config)
    if steps_of(images, per_step) * per_step < done or (budget.seconds and images <= done):
        raise ConfigError(
            f"a budget of {budget.text} for the run in all is less than it has seen, {done:,} images: give a longer "
            f"one, such as {2 * done}img; or take the run as it is: calotype sample {quote(str(run.path))}"
        )
    return replace(config, budget=budget.text, training=_with_images(config.training, images))


def images_per_step(config: RunConfig) -> int:
    """Images that one training step of a run takes."""
    return sum(turn.repeats for turn in config.outline().turns()) * config.training.batch_size


def consequence(change: Change, config: TrainConfig, per_step: int, step: int) -> str:
    """What another number of images means for what comes, as a sentence.

    Args:
        change: of training.images.
        step: steps done.
    """
    before, now = (learning_rate(config, step, steps_of(images, per_step)) for images in (change.before, change.now))
    return (
        f"the budget is {change.now:,} images, and was {change.before:,}: schedules follow the share of the new budget "
        f"from here on, and the learning rate is {now:.3g}, where it was {before:.3g}"
    )


def _images(
    run: Run, budget: Budget, batches: Batches, device: torch.device, shard: int, report: Callable[[str], None]
) -> int:
    """Images of a run in all, in a time: those seen, and those that the time that is left is for."""
    spent = processes.by_first(run.seconds)
    left = (budget.seconds or 0.0) - spent
    if left <= 0:
        raise ConfigError(
            f"a budget of {budget.text} for the run in all is less than training has taken, {spent:,.0f} s: give a "
            "longer one"
        )
    report("measuring the speed of this machine")
    config = run.config
    return run.images_seen() + images_in(
        left, family(config.family), config.spec, config.model, config.training, batches, device, shard
    )


def _with_images(training: TrainConfig, images: int) -> TrainConfig:
    """With checkpoints and previews as often over the whole as before, where the budget had decided that."""
    every, previews = training.checkpoint_every, training.preview_every
    if every == max(1, training.images // CHECKPOINTS):
        every = max(1, images // CHECKPOINTS)
    if previews and training.images // previews in (*PREVIEWS, PREVIEWS[-1] + 1):
        previews = max(1, images // min(PREVIEWS[-1], training.images // previews))
    return replace(training, images=images, checkpoint_every=every, preview_every=previews)
