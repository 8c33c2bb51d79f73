"""A batch script for Slurm.

Slurm requeues the job if a node fails or a job of higher priority preempts it, and the script requeues it shortly
before its time limit. The requeued job continues its run.
"""

from __future__ import annotations

import sys
from pathlib import Path
from shlex import join, quote

from calotype.distributed.launching.job import GRACE, Job, starting

PATIENCE = 600  # seconds that nodes wait for each other; Slurm starts them together

SCRIPT = """#!/bin/bash
{directives}

export PATH={path}:"$PATH"
{exports}
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export RENDEZVOUS="$first:$((10000 + SLURM_JOB_ID % 20000))"

# Slurm says by USR1 that time is nearly up: all save, and the job queues again.
again=
trap 'again=1; scancel --signal=TERM "$SLURM_JOB_ID"' USR1

srun {options} sh -c {starting} \\
  calotype {words} &
training=$!
while wait "$training"; status=$?; kill -0 "$training" 2>/dev/null; do :; done

if [ -n "$again" ] && [ "$status" -ne 0 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$status"
"""


def script(job: Job) -> str:
    """The text of the script. Words are quoted for the shell."""
    wanted = {
        "job-name": job.name,
        "nodes": job.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": job.gpus,
        "cpus-per-task": job.cpus,
        "mem": job.memory,
        "time": job.time,
        "partition": job.partition,
        "account": job.account,
        "open-mode": "append",  # what the job says after it has queued again follows what it said before
        "signal": f"B:USR1@{GRACE}",
    }
    directives = [f"#SBATCH --{name}={value}" for name, value in wanted.items() if value]
    # A task that ends early, because it was asked to, is no reason to kill the one that still saves.
    options = ["--kill-on-bad-exit=0", *([f"--cpus-per-task={job.cpus}"] if job.cpus else [])]
    return SCRIPT.format(
        directives="\n".join([*directives, "#SBATCH --requeue"]),
        path=quote(str(Path(sys.executable).parent)),
        exports="\n".join(f"export {name}={quote(value)}" for name, value in job.variables.items()),
        options=join(options),
        starting=quote(starting(job, "SLURM_NODEID", "$SLURMD_NODENAME", "$RENDEZVOUS", PATIENCE)),
        words=join(job.words),
    )
