"""`python -m calotype.ray_job`: what `calotype launch --on ray` starts on a Ray cluster, by Ray Train.

Ray starts the workers, brings them together as the processes of one training, and starts all again where one dies;
they go on with the run. It needs the extra `ray`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calotype.cli import main
from calotype.core import environment
from calotype.distributed.launching.ray import VARIABLE
from calotype.distributed.processes import PATIENCE, joined
from calotype.errors import CalotypeError, JobError


def work(config: Mapping[str, Any]) -> None:
    """Be one of the workers. Raises JobError where the command fails: Ray then starts them again, if it may."""
    with joined():  # which Ray has done
        status = main(config["words"])
    if status:
        raise JobError(f"calotype ended with status {status}: its output says why")


def run(job: Mapping[str, Any]) -> None:
    """Train on a Ray cluster, to the end of the budget.

    Args:
        job: the words of `calotype`, and what the workers need, as `launching.ray` writes it.

    Raises:
        JobError: where Ray is not installed, or has started the workers as often as it may.
    """
    try:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.base_trainer import TrainingFailedError
        from ray.train.torch import TorchConfig, TorchTrainer
    except ImportError as error:
        raise JobError(f"Ray is missing ({error}): install it by pip install 'calotype[ray]'") from error

    place = Path(job["place"])
    wanted = {"CPU": job["cpus"], "memory": job["memory"], "GPU": int(job["gpu"])}
    patience = round(environment.seconds("CALOTYPE_PATIENCE", PATIENCE))
    trainer = TorchTrainer(
        work,
        train_loop_config={"words": list(job["words"])},
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if job["gpu"] else "gloo", timeout_s=patience),
        scaling_config=ScalingConfig(
            num_workers=job["workers"],
            use_gpu=job["gpu"],
            resources_per_worker={name: size for name, size in wanted.items() if size},
        ),
        run_config=RunConfig(
            name=f"{place.name}-ray",  # what Ray notes lies beside the run
            storage_path=str(place.parent),
            failure_config=FailureConfig(max_failures=job["restarts"]),
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise JobError(f"the workers have failed {job['restarts'] + 1} times; the run is kept: {error}") from error


def start() -> int:
    """Run the job that the environment holds; returns the exit status."""
    try:
        if VARIABLE not in os.environ:
            raise JobError(f"{VARIABLE} is not set: calotype launch --on ray writes a script that sets it")
        run(json.loads(os.environ[VARIABLE]))
    except CalotypeError as error:
        print(f"calotype: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(start())
