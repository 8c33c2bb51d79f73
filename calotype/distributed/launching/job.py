"""A job for a scheduler: the command, the resources, and the environment of its processes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from calotype.distributed.processes import OWN_STORE
from calotype.errors import ConfigError

SHARED = "an absolute path on storage that all nodes share"
GO_ON = "--go-on"
GRACE = 120  # seconds from the request to stop to the end: a step, a checkpoint and what torchrun takes
LONGEST_NAME = 50  # of 63 letters that a host name may have, with a number behind it
TIME = r"\d+(:\d\d){0,2}|\d+-\d+(:\d\d){0,2}"  # minutes, M:SS, H:MM:SS, D-HH, D-HH:MM, D-HH:MM:SS


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A training command and its resources. Raises ConfigError for values that no scheduler accepts."""

    words: tuple[str, ...]  # of `calotype`, the first is `train`
    place: Path  # the run directory
    name: str  # small letters, digits and hyphens, as host names have to be
    nodes: int = 1
    gpus: int = 0  # per node; a process for each
    processes: int = 0  # per node, where there are no GPUs
    cpus: int = 0  # per node; 0: what the scheduler gives
    memory: str = ""  # per node, as 16G, in units of 1024
    time: str = ""  # of Slurm, at once
    partition: str = ""  # of Slurm
    account: str = ""  # of Slurm
    image: str = ""  # of Kubernetes
    namespace: str = ""  # of Kubernetes
    volume: tuple[str, ...] = ()  # of Kubernetes, CLAIM:PATH
    environment: tuple[str, ...] = ()  # KEY=VALUE
    restarts: int = 3  # of processes that died

    def __post_init__(self) -> None:
        for name, least in (("nodes", 1), ("gpus", 0), ("processes", 0), ("cpus", 0), ("restarts", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"--{name} is {getattr(self, name)}: give {least} or more")
        if self.gpus and self.processes not in (0, self.gpus):
            raise ConfigError(
                f"--processes is {self.processes}, but each of the {self.gpus} GPUs of a node has a process of its "
                "own: leave it out"
            )
        self._check("name", rf"[a-z]([-a-z0-9]{{0,{LONGEST_NAME - 2}}}[a-z0-9])?", "small letters, digits and hyphens")
        self._check("memory", r"[1-9]\d*[MGT]", "a number and M, G or T, such as 16G")
        self._check("time", TIME, "minutes, or as 12:00:00 or 2-00")
        self._check("partition", r"[\w.,-]+", "the name of a partition, or several with commas")
        self._check("account", r"[\w.-]+", "the name of an account")
        self._check("image", r"[\w./:@-]+", "a container image, such as registry/calotype:1")
        self._check("namespace", r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", "small letters, digits and hyphens")
        for mount in self.volume:
            if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?:/[^:]*", mount):
                raise ConfigError(f"--volume is {mount!r}: give a claim and an absolute path, such as photos:/shared")
        for assignment in self.environment:
            if not re.fullmatch(r"[A-Za-z_]\w*=.*", assignment, re.DOTALL | re.ASCII):
                raise ConfigError(f"--environment is {assignment!r}: give KEY=VALUE, such as NCCL_DEBUG=INFO")
        for text in (*self.words, *self.environment, *self.volume):
            if "\0" in text or not _is_utf8(text):
                raise ConfigError(f"{text!r} is not UTF-8, which a job is: rename it")

    def _check(self, name: str, pattern: str, what: str) -> None:
        value = getattr(self, name)
        if value and not re.fullmatch(pattern, value, re.ASCII):
            raise ConfigError(f"--{name} is {value!r}: give {what}")

    @property
    def per_node(self) -> int:
        """Processes on each node."""
        return self.gpus or self.processes or 1

    @property
    def mounts(self) -> list[tuple[str, str]]:
        """Volume claims and their mount paths."""
        pairs = (mount.split(":", 1) for mount in self.volume)
        return [(claim, path) for claim, path in pairs]

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables to add for the processes."""
        # Each attempt gets a store of its own, since machines count attempts differently; see processes.
        own = {OWN_STORE: "1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(GRACE * 3 // 4)}
        if self.cpus:
            own["OMP_NUM_THREADS"] = str(max(1, self.cpus // self.per_node))
        return own | dict(assignment.split("=", 1) for assignment in self.environment)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def training_words(command: Sequence[str], given: Mapping[str, Any]) -> tuple[tuple[str, ...], Path]:
    """The words of a `calotype` command that can be repeated, and the run directory.

    Args:
        command: the words from the user.
        given: the parsed arguments.

    Raises:
        ConfigError: the run directory is not stated, or not by a path that is valid on all nodes.
    """
    option = "--out" if given["resume"] is None else "--resume"
    place = given["out"] if given["resume"] is None else given["resume"]
    if place is None:
        raise ConfigError(f"no --out is given after --, but all nodes have to find the run, also later: give {SHARED}")
    if not PurePosixPath(place).is_absolute():
        raise ConfigError(f"{option} is {place}, but nodes start in places of their own: give {SHARED}")
    if given["resume"] is not None or given["go_on"]:
        return tuple(command), place
    return (command[0], GO_ON, *command[1:]), place


def job_name(place: Path) -> str:
    """The default name of a job: that of the run directory, reduced to permitted characters."""
    found = re.sub(r"[^a-z0-9]+", "-", place.name.lower())[:LONGEST_NAME].strip("-")
    return found if re.match("[a-z]", found) else f"run-{found}"[:LONGEST_NAME].strip("-")


def starting(job: Job, index: str, address: str, endpoint: str, patience: int) -> str:
    """A POSIX shell line that executes torchrun on one node; its arguments are the words of `calotype`.

    Args:
        index: the variable with the number of this node; 0 keeps the rendezvous.
        address: of this node for the others, as shell text for double quotes.
        endpoint: of the rendezvous, likewise.
        patience: seconds that nodes wait for each other.
    """
    return (
        f"exec torchrun --nnodes {job.nodes} --nproc-per-node {job.per_node} --max-restarts {job.restarts} "
        f'--rdzv-backend c10d --rdzv-id {job.name} --rdzv-endpoint "{endpoint}" '
        f'--rdzv-conf "is_host=$(({index} == 0)),join_timeout={patience},read_timeout={patience}" '
        f'--local-addr "{address}" -m calotype "$@"'
    )
