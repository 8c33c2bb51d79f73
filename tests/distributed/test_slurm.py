"""Jobs for Slurm: the script is run, with stubs in place of what Slurm brings, up to training."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import calotype
from calotype import cli
from calotype.runs.run import Run
from tests.schedulers import HOSTILE, LONG, SHORT, TRAIN, launched, noted, slurm, stubs_in


@pytest.fixture
def stubs(tmp_path: Path) -> Path:
    return stubs_in(tmp_path)


@pytest.mark.parametrize("place", HOSTILE)
def test_every_word_arrives_by_slurm(
    place: str, stubs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", str(stubs / "python"))  # the torchrun beside it is used
    command = ["train", "vae", place, "--out", place, "--budget", "96img"]
    options = ["--on", "slurm", "--nodes", "2", "--processes", "3", "--name", "x", "--environment", f"PLACE={place}"]
    script = launched(capsys, *options, "--", *command)
    subprocess.run(["bash", "-c", script], env=slurm(stubs, 2), check=True)
    for node, is_host in enumerate("10"):
        found = noted(stubs / "notes" / f"torchrun-{node}")
        module = found.index("-m")
        assert found[module:] == ["-m", "calotype", "train", "--go-on", *command[1:]]
        own = dict(zip(found[:module:2], found[1:module:2], strict=True))
        port = 10_000 + os.getpid() % 20_000
        assert own == {
            "--nnodes": "2",
            "--nproc-per-node": "3",
            "--max-restarts": "3",
            "--rdzv-backend": "c10d",
            "--rdzv-id": "x",
            "--rdzv-endpoint": f"localhost:{port}",
            "--rdzv-conf": f"is_host={is_host},join_timeout=600,read_timeout=600",
            "--local-addr": "localhost",
        }
    variables = noted(stubs / "notes" / "environment")
    assert f"PLACE={place}" in variables
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in variables


def test_slurm_is_told_what_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    wanted = "--nodes 2 --gpus 4 --cpus 32 --memory 64G --time 1-12:00:00 --partition long --account art".split()
    script = launched(capsys, "--on", "slurm", *wanted, "--", *TRAIN, *SHORT, "--out", "/shared/Run 1", "--flips")
    told = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", script, re.MULTILINE))
    assert told == {
        "job-name": "run-1",
        "nodes": "2",
        "ntasks-per-node": "1",
        "gpus-per-node": "4",
        "cpus-per-task": "32",
        "mem": "64G",
        "time": "1-12:00:00",
        "partition": "long",
        "account": "art",
        "open-mode": "append",
        "signal": "B:USR1@120",
        "requeue": "",
    }
    assert "--nproc-per-node 4 " in script
    assert "export OMP_NUM_THREADS=8\n" in script
    assert "srun --kill-on-bad-exit=0 --cpus-per-task=32 " in script


def weights(run: Path) -> dict[str, torch.Tensor]:
    return dict(calotype.load(run).model.state_dict())


def test_a_script_trains_as_one_process_does_and_goes_on_when_it_queues_again(
    stubs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (stubs / "torchrun").unlink()
    out = tmp_path / 'it\'s a "run"'
    options = ["--on", "slurm", "--nodes", "2", "--environment", "OMP_NUM_THREADS=1"]
    script = launched(capsys, *options, "--", *TRAIN, *SHORT, "--out", str(out))
    for told in ("trained on 96 images", "nothing to continue"):
        done = subprocess.run(["bash", "-c", script], env=slurm(stubs, 2), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert told in done.stdout
    assert not (stubs / "notes" / "scontrol").exists()
    assert cli.main([*TRAIN, *SHORT, "--out", str(tmp_path / "one")]) == 0
    # float32, whose sums are rounded in another order: a hundredth of what twelve steps move a weight, 1e-3 each
    for name, value in weights(tmp_path / "one").items():
        assert torch.allclose(weights(out)[name], value, rtol=0, atol=1e-4), name
    assert (out / "config.toml").read_text() == (tmp_path / "one" / "config.toml").read_text()


def begun(run: Path) -> None:
    """Wait until a run has a checkpoint of what it has learned."""
    for _ in range(1_200):
        if len(list((run / "checkpoints").glob("0*"))) > 1:
            return
        time.sleep(0.1)
    raise AssertionError("training does not begin")


@pytest.mark.slow
def test_a_job_whose_time_is_up_saves_and_queues_again(
    stubs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (stubs / "torchrun").unlink()
    out = tmp_path / "run"
    options = ["--on", "slurm", "--nodes", "2", "--restarts", "0", "--environment", "OMP_NUM_THREADS=1"]
    script = launched(capsys, *options, "--", *TRAIN, *LONG, "--out", str(out))
    pipe = subprocess.PIPE
    job = subprocess.Popen(["bash", "-c", script], env=slurm(stubs, 2), stdout=pipe, stderr=pipe, text=True)
    begun(out)
    job.send_signal(signal.SIGUSR1)
    said = job.communicate()[1]
    assert job.returncode != 0
    assert said.count("calotype: stopped and saved. Continue with: calotype train --resume") == 1, said
    assert (stubs / "notes" / "scancel").read_text() == f"--signal=TERM {os.getpid()}\n"
    assert (stubs / "notes" / "scontrol").read_text() == f"requeue {os.getpid()}\n"
    run = Run.open(out)
    assert int(run.checkpoints()[-1].name) >= run.read_log()[-1]["images_seen"] > 0
