"""Manifests for Kubernetes: a Job with a pod for each node, and the headless Service by which the pods find each other.

Texts are quoted as in JSON, which is valid YAML, so that no word can be read as another type.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from calotype.distributed.launching.job import GRACE, Job, starting
from calotype.errors import ConfigError

PORT = 29400  # of the rendezvous; each pod has all ports to itself
PATIENCE = 1_800  # seconds that pods wait for each other: nodes may have to be started, and images fetched
LABEL = "calotype-job"
CACHE = "calotype-cache"  # on the volume of the run: what one pod has packed serves all, and the next attempt
# What YAML wants escaped within quotes, besides what JSON escapes.
_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


def manifest(job: Job) -> str:
    """The text of the objects, in YAML. Raises ConfigError if the run would be lost with its pod."""
    if not job.image:
        raise ConfigError("no --image is given: name a container image that calotype is installed in")
    return "".join(f"---\n{yaml(part)}" for part in (_service(job), _job(job)))


def _meta(job: Job) -> dict[str, Any]:
    return {"name": job.name, **({"namespace": job.namespace} if job.namespace else {}), "labels": {LABEL: job.name}}


def _service(job: Job) -> dict[str, Any]:
    # Pods are found before they are ready, which they are together.
    spec = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {LABEL: job.name}}
    return {"apiVersion": "v1", "kind": "Service", "metadata": _meta(job), "spec": spec}


def _job(job: Job) -> dict[str, Any]:
    disrupted = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _meta(job),
        "spec": {
            "completionMode": "Indexed",
            "completions": job.nodes,
            "parallelism": job.nodes,
            "backoffLimit": job.restarts * job.nodes,
            "podFailurePolicy": {"rules": [disrupted]},  # a pod that is moved has not failed
            "template": {"metadata": {"labels": {LABEL: job.name}}, "spec": _pod(job)},
        },
    }


def _pod(job: Job) -> dict[str, Any]:
    volumes: list[dict[str, Any]] = []
    mounts = []
    for number, (claim, path) in enumerate(job.mounts):
        volumes.append({"name": f"shared-{number}", "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": f"shared-{number}", "mountPath": path})
    # The 64 MB of a container are too few for what the processes of several GPUs tell each other.
    volumes.append({"name": "memory", "emptyDir": {"medium": "Memory"}})
    mounts.append({"name": "memory", "mountPath": "/dev/shm"})
    sizes = {"cpu": job.cpus, "memory": f"{job.memory}i" if job.memory else "", "nvidia.com/gpu": job.gpus}
    limits = {name: str(size) for name, size in sizes.items() if size}
    own = f"{job.name}-$JOB_COMPLETION_INDEX.{job.name}"  # as Kubernetes names the pods of an indexed job
    line = starting(job, "JOB_COMPLETION_INDEX", own, f"{job.name}-0.{job.name}:{PORT}", PATIENCE)
    variables = {"CALOTYPE_CACHE": str(PurePosixPath(_shared(job)) / CACHE), "CALOTYPE_CACHE_SHARED": "1"}
    variables |= job.variables
    container = {
        "name": "calotype",
        "image": job.image,
        "command": [_literal(word) for word in ("sh", "-c", line, "calotype", *job.words)],
        "env": [{"name": name, "value": _literal(value)} for name, value in variables.items()],
        **({"resources": {"limits": limits}} if limits else {}),
        "volumeMounts": mounts,
    }
    return {
        "subdomain": job.name,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE,
        "containers": [container],
        "volumes": volumes,
    }


def _shared(job: Job) -> str:
    """The mount path of the volume with the run."""
    for _, path in job.mounts:
        if PurePosixPath(job.place).is_relative_to(path) and ".." not in job.place.parts:
            return path
    raise ConfigError(
        f"{job.place} is on no volume, and would be lost with its pod: mount shared storage, by --volume CLAIM:PATH, "
        "and put the run on it"
    )


def _literal(text: str) -> str:
    """The text, escaped so that Kubernetes expands no $(VARIABLE) in it."""
    return text.replace("$", "$$")


def yaml(value: Mapping[str, Any] | Sequence[Any], indent: str = "") -> str:
    """Mappings and sequences of texts, numbers and truth values as YAML: names bare, and texts in quotes."""
    named = isinstance(value, Mapping)
    pairs = value.items() if isinstance(value, Mapping) else [("-", item) for item in value]
    lines = []
    for name, item in pairs:
        head = f"{indent}{name}:" if named else f"{indent}-"
        if isinstance(item, (Mapping, list)):
            inner = yaml(item, indent + "  ")
            lines.append(f"{head}\n{inner}" if named else f"{head} {inner.lstrip()}")
        else:
            lines.append(f"{head} {_scalar(item)}\n")
    return "".join(lines)


def _scalar(value: str | int | bool) -> str:
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))
