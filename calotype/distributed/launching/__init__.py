"""Jobs for cluster schedulers, as `calotype launch` writes and submits them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from shlex import join, quote
from typing import Any, NamedTuple

from calotype.core.config import check_choice
from calotype.core.files import make_folder, write_bytes
from calotype.core.outputs import check_outputs
from calotype.distributed.launching import kubernetes, ray, slurm
from calotype.distributed.launching.job import Job, job_name, training_words
from calotype.errors import ConfigError, JobError


class Scheduler(NamedTuple):
    """A scheduler: the function that writes a job, the command that submits it, and options of its own."""

    text: Callable[[Job], str]
    submit: tuple[str, ...]
    options: frozenset[str]


SCHEDULERS: Mapping[str, Scheduler] = {
    "slurm": Scheduler(slurm.script, ("sbatch",), frozenset({"time", "partition", "account"})),
    "kubernetes": Scheduler(
        kubernetes.manifest, ("kubectl", "create", "-f", "-"), frozenset({"image", "namespace", "volume"})
    ),
    "ray": Scheduler(ray.script, ("sh",), frozenset()),
}


def launch(
    on: str,
    command: Sequence[str],
    given: Mapping[str, Any],
    check: Callable[[int], None],
    *,
    write: Path | None = None,
    submit: bool = False,
    **options: Any,
) -> None:
    """Write a job for a scheduler, or submit it, after checking everything.

    Args:
        on: a key of SCHEDULERS.
        command: the words of `calotype train`, from `train` on.
        given: the parsed arguments of that command.
        check: raises ConfigError if training with this number of processes would fail.
        write: a file for the job; without it, and without submit, the job is printed.
        submit: give the job to the scheduler.
        options: fields of Job.

    Raises:
        ConfigError: the scheduler, or training, would reject the job.
        JobError: the job cannot be written or submitted.
    """
    if not on:
        raise ConfigError(f"no scheduler is named: give --on {', '.join(SCHEDULERS)}")
    check_choice("--on", on, SCHEDULERS)
    scheduler = SCHEDULERS[on]
    words, place = training_words(command, given)
    job = Job(**options | {"words": words, "place": place, "name": options["name"] or job_name(place)})
    for other, theirs in SCHEDULERS.items():
        for option in theirs.options - scheduler.options:
            if getattr(job, option):
                raise ConfigError(f"--{option} is for {other}, and not for {on}: leave it out")
    check(job.nodes * job.per_node)
    if write is not None:
        check_outputs("launch", (), write=write)
    text = scheduler.text(job)
    if submit and shutil.which(scheduler.submit[0]) is None:
        raise JobError(
            f"{scheduler.submit[0]} is not on this machine: leave out --submit, and submit the job where it is"
        )
    if write is not None:
        _write(write, text)
    if submit:
        print(_submitted(scheduler.submit, text), end="")
    elif write is not None:
        print(f"job: {write}\nsubmit it by: {join(scheduler.submit).removesuffix(' -')} {quote(str(write))}")
    else:
        print(text, end="")
    print(f"all nodes have to find {place} under this name: it is to be on storage that they share", file=sys.stderr)


def _write(path: Path, text: str) -> None:
    try:
        make_folder(path.parent)
        write_bytes(path, text.encode())
    except OSError as error:
        raise JobError(f"{path} cannot be written ({error}): choose another file with --write") from error


def _submitted(command: Sequence[str], text: str) -> str:
    """Submit a job; returns the scheduler's answer."""
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise JobError(f"{command[0]} did not take the job: {said}")
    return done.stdout
