"""Training the runs of a comparison: planned together, then trained in turn, or each on its own device."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

from calotype.applications.comparison.job import Job, going_on, leave
from calotype.core import devices
from calotype.core.files import open_append
from calotype.distributed import processes
from calotype.evaluation import measured_runs
from calotype.runs.run import Run
from calotype.training import cluster_cost, setup
from calotype.training.planner import Budget

GOOD_FOR = {  # before anything is measured: what is known of the families
    "autoregressive": "exact likelihood, completion; slow to draw",
    "diffusion": "quality and variety; several network calls an image",
    "gan": "sharp pictures in one call; may leave kinds of pictures out",
    "vae": "latents to edit in, fast to draw; softer pictures",
}


def planned(job: Job) -> list[Run]:
    """The run directories of all families; families without one are planned first."""
    job.shown.message(
        f"{len(job.config.families)} families, each with a budget of {job.config.share}, and "
        f"{len(job.config.baselines)} classical methods; measuring them comes on top\ndirectory: {job.path}"
    )
    begun = job.begun()
    for name in job.waiting(job.config.families):
        if name in begun:
            continue
        settings: dict[str, dict[str, Any]] = {"training": {"seed": job.config.seed}}
        if job.config.threads:
            settings["training"]["threads"] = job.config.threads
        known = Path(job.config.recipe) / name / "config.toml" if job.config.recipe else None
        with going_on(job, name):
            setup.begin(
                name,
                job.data,
                budget=None if known else job.config.share,
                out=job.path / name,
                settings={} if known else settings,
                recipe=known,
                device=job.device,
                display=job.shown,
            )
    begun = job.begun()
    runs = processes.agreed(lambda: [Run.open(job.path / name) for name in begun])
    job.shown.message(processes.by_first(lambda: _plan(runs, str(devices.choose(job.device)))))
    return runs


def _plan(runs: Sequence[Run], device: str) -> str:
    """The plan of training, for people."""
    rows = [["", "network", "parameters", "images to see", "time", "memory", "disk", "good for"]]
    for run in runs:
        model = run.config.new_model()
        count = sum(p.numel() for p in model.parameters())
        memory = f"{cluster_cost.needed(model, run.config.training, device) / 2**20:,.0f} MB"
        time = run.config.budget if Budget.parse(run.config.budget).seconds else "-"
        disk = 4 * 16 * count / 2**20  # of each parameter the value, its mean and two moments; in four checkpoints
        told = GOOD_FOR.get(run.config.family, "")
        size, images = f"{count:,}", f"{run.config.training.images:,}"
        rows.append([run.config.family, run.config.preset, size, images, time, memory, f"{disk:,.0f} MB", told])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    program = f"memory is on top of what the program takes, {measured_runs.peak_memory():,} MB so far"
    return "\n".join([*lines, program])


def train_all(job: Job, runs: Sequence[Run]) -> None:
    """Train the runs that are not finished."""
    names = job.waiting([run.path.name for run in runs])
    trained = processes.by_first(lambda: [run.path.name for run in runs if _is_trained(run)])
    waiting = [run for run in runs if run.path.name in names and run.path.name not in trained]
    several = _devices(job.device)
    if len(several) > 1 and len(waiting) > 1:
        _train_apart(job, waiting, several)
        return
    for run in waiting:
        job.shown.message(f"-- {run.path.name}")
        with going_on(job, run.path.name):
            setup.resume(run.path, device=job.device, display=job.shown)


def _is_trained(run: Run) -> bool:
    return any(record["event"] == "finished" for record in run.read_log())


def _has_diverged(run: Run) -> bool:
    """Whether training has failed in a way that a retry would repeat."""
    return [record["event"] for record in run.read_log()][-1:] == ["diverged"]


def _devices(asked: str) -> list[str]:
    if asked != "auto" or torch.cuda.device_count() < 2 or processes.size() > 1:
        return [asked]
    return [f"cuda:{k}" for k in range(torch.cuda.device_count())]


def _train_apart(job: Job, runs: Sequence[Run], several: Sequence[str]) -> None:
    """Train each run in its own process, on the next free device."""
    free: SimpleQueue[str] = SimpleQueue()
    for device in several:
        free.put(device)
    started: list[subprocess.Popen[bytes]] = []

    def trained(run: Run) -> tuple[Run, int]:
        device = free.get()
        try:
            with open_append(run.path / "train.log", job.path) as log:
                command = [sys.executable, "-m", "calotype", "train", "--resume", str(run.path), "--device", device]
                process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
                started.append(process)
                return run, process.wait()
        finally:
            free.put(device)

    with ThreadPoolExecutor(len(several)) as pool:
        try:
            for run, status in pool.map(trained, runs):
                job.shown.message(f"{run.path.name}: {'trained' if status == 0 else f'failed ({status})'}")
                if status > 0:
                    told = (run.path / "train.log").read_text(errors="replace").strip().splitlines()
                    why = told[-1].removeprefix("calotype: ") if told else f"status {status}"
                    leave(job, run.path.name, "model", why, not _has_diverged(run))
        except BaseException:
            for process in started:
                process.terminate()  # it saves where it is
            raise
