"""A script that submits a job to a Ray cluster, which runs `calotype.ray_job`."""

from __future__ import annotations

import json
from shlex import quote

from calotype.distributed.launching.job import Job

SCRIPT = """#!/bin/sh
# RAY_ADDRESS says which cluster, such as http://127.0.0.1:8265.
exec ray job submit --no-wait --runtime-env-json {environment} -- python -m calotype.ray_job
"""
VARIABLE = "CALOTYPE_JOB"  # what calotype.ray_job reads: ray does not pass every word on as it is
UNITS = {"M": 2**20, "G": 2**30, "T": 2**40}


def script(job: Job) -> str:
    """The text of the script."""
    about = {
        "name": job.name,
        "place": str(job.place),
        "workers": job.nodes * job.per_node,
        "gpu": bool(job.gpus),
        "cpus": max(1, job.cpus // job.per_node),
        "memory": int(job.memory[:-1]) * UNITS[job.memory[-1]] // job.per_node if job.memory else 0,
        "restarts": job.restarts,
        "words": job.words,
    }
    variables = job.variables | {VARIABLE: json.dumps(about)}
    return SCRIPT.format(environment=quote(json.dumps({"env_vars": variables})))
