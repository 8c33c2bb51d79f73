"""`launch`: a job that trains on the nodes of a cluster."""

from __future__ import annotations

from typing import Annotated, Literal

from tyro.conf import UseAppendAction, arg

from calotype.commands.arguments import Assignments, Flag, MaybePath, Text
from calotype.commands.command import command
from calotype.commands.train import BESIDE_RESUME, train, training_settings
from calotype.errors import ConfigError

Count = Annotated[int, arg(help_behavior_hint="")]


@command
def launch(
    words: Annotated[tuple[str, ...], arg(metavar="-- train ...", help_behavior_hint="")] = (),
    /,
    on: Annotated[
        Literal["slurm", "kubernetes", "ray", ""], arg(metavar="{slurm,kubernetes,ray}", help_behavior_hint="")
    ] = "",
    nodes: int = 1,
    gpus: int = 0,
    processes: Count = 0,
    cpus: Count = 0,
    memory: Text = "",
    time: Text = "",
    partition: Text = "",
    account: Text = "",
    image: Text = "",
    namespace: Text = "",
    volume: Annotated[tuple[str, ...], UseAppendAction, arg(metavar="CLAIM:PATH", help_behavior_hint="")] = (),
    environment: Assignments = (),
    restarts: int = 3,
    name: Text = "",
    write: MaybePath = None,
    submit: Flag = False,
) -> None:
    """Write, or submit, a job that trains on the nodes of a cluster: of Slurm, Kubernetes or Ray.

    Example: calotype launch --on slurm --nodes 2 --gpus 8 -- train diffusion photos/ --out /shared/run

    Everything after -- is the command you would run on one machine. It needs --out: an absolute path on storage that
    all nodes share. The job prints to the standard output; a job that is started again continues its run.

    Args:
        words: calotype train as on one machine, with --out; or with --resume.
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

    Raises:
        ConfigError: for what the scheduler, or training, would not take.
        JobError: the job cannot be written or submitted.
    """
    options = {key: value for key, value in locals().items() if key not in ("words", "on", "write", "submit")}
    from calotype.commands.options import refuse_beside_resume
    from calotype.commands.parsing import parse
    from calotype.distributed import launching
    from calotype.training.recipe import check_job

    if not words or words[0] != "train":
        raise ConfigError(
            "no training is given: calotype launch --on slurm -- train diffusion photos/ --out /shared/run"
        )
    bound = parse(train, words[1:]).arguments
    bound.apply_defaults()
    given = bound.arguments
    if given["resume"] is not None:
        refuse_beside_resume(train, given, BESIDE_RESUME, "run")

    def check(count: int) -> None:
        if given["resume"] is None:
            check_job(given, training_settings(given), count)

    launching.launch(on, words, given, check, write=write, submit=submit, **options)
