"""Changing the budget of a run that has begun: the new number of images, and the effect on schedules.

Learning rates, penalties and everything else that follows progress through the budget are functions of the steps done
and the steps in all. After a change they continue, from the checkpoint, with the values that a run of the new budget
has at that step: training beyond a learning rate that has fallen to 0 starts again with a rate above it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from shlex import quote

import torch

from calotype.data.packs.batches import Batches
from calotype.distributed import processes
from calotype.errors import ConfigError
from calotype.optimization.config import TrainConfig, learning_rate, steps_of
from calotype.runs.changes import Change
from calotype.runs.config import RunConfig, family
from calotype.runs.run import Run
from calotype.training.planner import CHECKPOINTS, PREVIEWS, Budget, images_in


def extended(
    run: Run, budget: Budget, batches: Batches, device: torch.device, shard: int, report: Callable[[str], None]
) -> RunConfig:
    """The config of a run with another budget; unchanged where the run has this budget already.

    Args:
        budget: of the whole run. A time is converted to images by the training time so far and the speed that
            is measured here.
        batches: the batches of training.
        report: called with what is measured.

    Raises:
        ConfigError: the budget is below the images already seen.
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
    """The effect of another number of images on the rest of training, as a sentence.

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
    """The total images of a run for a time budget: those seen, and those that fit into the remaining time."""
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
    """The config with another number of images; intervals of checkpoints and previews scale if the budget set them."""
    every, previews = training.checkpoint_every, training.preview_every
    if every == max(1, training.images // CHECKPOINTS):
        every = max(1, images // CHECKPOINTS)
    if previews and training.images // previews in (*PREVIEWS, PREVIEWS[-1] + 1):
        previews = max(1, images // min(PREVIEWS[-1], training.images // previews))
    return replace(training, images=images, checkpoint_every=every, preview_every=previews)
