"""Jobs for Kubernetes and Ray, and what holds for all: what is refused, written and submitted."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

import calotype
from calotype import cli, ray_job
from calotype.distributed.launching.job import job_name
from calotype.distributed.launching.ray import VARIABLE
from calotype.runs.run import Run
from tests.schedulers import HOSTILE, SHORT, STUBS, TRAIN, launched, noted, slurm, stubs_in


@pytest.fixture
def stubs(tmp_path: Path) -> Path:
    return stubs_in(tmp_path)


# -- Kubernetes: the objects are read, and their variables replaced, as there


def objects(text: str) -> list[Any]:
    return list(yaml.safe_load_all(text))


def replaced(text: str, variables: Mapping[str, str]) -> str:
    """A text of a container with its references to variables replaced, by the rule of Kubernetes."""
    return re.sub(r"\$(\$|\((\w+)\))", lambda m: "$" if m[1] == "$" else variables.get(m[2], m[0]), text)


def kubernetes(capsys: pytest.CaptureFixture[str], *words: str, nodes: int = 2) -> list[Any]:
    options = ["--on", "kubernetes", "--image", "art/calotype:1", "--volume", "photos:/shared", "--nodes", str(nodes)]
    return objects(launched(capsys, *options, *words))


@pytest.mark.parametrize("place", HOSTILE)
def test_every_word_arrives_by_kubernetes(place: str, stubs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "vae", place, "--out", place, "--budget", "96img"]
    _, job = kubernetes(capsys, "--name", "x", "--environment", f"PLACE={place}", "--", *command)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    variables = {"HOME": "/root", "id": "7"}
    environment = {entry["name"]: replaced(entry["value"], variables) for entry in container["env"]}
    assert environment["PLACE"] == place
    words = [replaced(word, variables) for word in container["command"]]
    for index, is_host in enumerate("10"):
        known = slurm(stubs, 2, JOB_COMPLETION_INDEX=str(index), SLURM_NODEID=str(index))
        subprocess.run(words, env=known, check=True)
        found = noted(stubs / "notes" / f"torchrun-{index}")
        assert found[found.index("-m") :] == ["-m", "calotype", "train", "--go-on", *command[1:]]
        assert found[found.index("--rdzv-conf") + 1].startswith(f"is_host={is_host},")
        assert found[found.index("--local-addr") + 1] == f"x-{index}.x"
        assert found[found.index("--rdzv-endpoint") + 1] == "x-0.x:29400"


def test_kubernetes_is_told_what_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    wanted = "--gpus 2 --cpus 16 --memory 64G --namespace art --restarts 5".split()
    service, job = kubernetes(capsys, *wanted, "--", *TRAIN, *SHORT, "--out", "/shared/Run 1", nodes=3)
    assert (service["apiVersion"], service["kind"]) == ("v1", "Service")
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    pods = job["spec"]["template"]
    assert service["metadata"]["name"] == job["metadata"]["name"] == pods["spec"]["subdomain"] == "run-1"
    assert service["metadata"]["namespace"] == job["metadata"]["namespace"] == "art"
    assert service["spec"]["clusterIP"] == "None"  # a word, and not nothing
    assert service["spec"]["selector"].items() <= pods["metadata"]["labels"].items()
    spec = job["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 3, 3)
    assert spec["backoffLimit"] == 15
    assert pods["spec"]["restartPolicy"] == "Never"  # which a podFailurePolicy asks for
    (container,) = pods["spec"]["containers"]
    assert container["resources"]["limits"] == {"cpu": "16", "memory": "64Gi", "nvidia.com/gpu": "2"}
    volumes = {entry["name"]: entry for entry in pods["spec"]["volumes"]}
    mounts = {entry["name"]: entry for entry in container["volumeMounts"]}
    assert set(volumes) == set(mounts)
    assert volumes["shared-0"]["persistentVolumeClaim"] == {"claimName": "photos"}
    assert mounts["shared-0"]["mountPath"] == "/shared"
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    assert variables["CALOTYPE_CACHE"] == "/shared/calotype-cache"
    assert variables["OMP_NUM_THREADS"] == "8"
    # Between a request to stop and the end torchrun waits for its processes, and then has some time left.
    assert int(variables["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < pods["spec"]["terminationGracePeriodSeconds"]


# -- Ray


def test_every_word_arrives_by_ray(stubs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (stubs / "ray").write_text(STUBS["torchrun"])
    (stubs / "ray").chmod(0o755)
    command = ["train", "vae", *HOSTILE[:1], "--out", HOSTILE[3], "--budget", "96img", "--set", "data.fit=pad"]
    options = ["--nodes", "2", "--gpus", "2", "--cpus", "8", "--memory", "4G", "--environment", f"A={HOSTILE[2]}"]
    script = launched(capsys, "--on", "ray", *options, "--", *command)
    subprocess.run(["sh", "-c", script], env=slurm(stubs, 2, SLURM_NODEID="0"), check=True)
    found = noted(stubs / "notes" / "torchrun-0")
    assert found[:2] == ["job", "submit"]
    assert found[-4:] == ["--", "python", "-m", "calotype.ray_job"]
    variables = json.loads(found[found.index("--runtime-env-json") + 1])["env_vars"]
    assert variables["A"] == HOSTILE[2]
    job = json.loads(variables[VARIABLE])
    assert job["words"] == ["train", "--go-on", *command[1:]]
    assert (job["workers"], job["gpu"], job["cpus"], job["memory"]) == (4, True, 4, 2 * 2**30)


def test_ray_is_asked_for_where_it_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.train", None)
    monkeypatch.setenv(VARIABLE, json.dumps({"place": "/shared/run", "words": TRAIN}))
    assert ray_job.start() == 2
    assert "pip install 'calotype[ray]'" in capsys.readouterr().err
    monkeypatch.delenv(VARIABLE)
    assert ray_job.start() == 2
    assert f"{VARIABLE} is not set" in capsys.readouterr().err


def test_a_worker_does_what_the_words_say(tmp_path: Path) -> None:
    out = tmp_path / "run"
    ray_job.work({"words": [*TRAIN, *SHORT, "--out", str(out)]})
    assert Run.open(out).read_log()[-1]["event"] == "finished"
    with pytest.raises(calotype.CalotypeError, match="status 2"):
        ray_job.work({"words": [*TRAIN, *SHORT, "--out", str(out)]})


# -- what is refused, what is written and what is submitted

OK = [*TRAIN, *SHORT, "--out", "/shared/run"]
ON = ["--on", "slurm"]
REFUSED = {
    "no scheduler is named: give --on slurm, kubernetes, ray": ["--", *OK],
    "no training is given": ON,
    "no training is given:": [*ON, "--", "sample", "/shared/run"],
    "no --out is given after --.*an absolute path on storage that all nodes share": [*ON, "--", *TRAIN],
    "--out is runs/x, but nodes .* an absolute path on storage": [*ON, "--", *TRAIN, "--out", "runs/x"],
    "--resume is runs/x, but nodes": [*ON, "--", "train", "--resume", "runs/x"],
    "leave out seed": [*ON, "--", "train", "--resume", "/runs/x", "--seed", "3"],
    "family 'diffusoin' is unknown: did you mean diffusion": [*ON, "--", "train", "diffusoin", "p", "--out", "/x"],
    "did you mean learning_rate": [*ON, "--", *OK, "--set", "training.learning_rat=0.1"],
    "has to be of type": [*ON, "--", *OK, "--set", "training.flips=often"],
    "budget '3x' is not understood": [*ON, "--", "train", "vae", "p", "--out", "/x", "--budget", "3x"],
    "no pictures are named": [*ON, "--", "train", "vae", "--out", "/x"],
    "batch_size is 8, but the job has 16 processes": [*ON, "--nodes", "4", "--processes", "4", "--", *OK],
    "--nodes is 0: give 1 or more": [*ON, "--nodes", "0", "--", *OK],
    "each of the 2 GPUs": [*ON, "--gpus", "2", "--processes", "3", "--", *OK],
    "--memory is '16 GB': give": [*ON, "--memory", "16 GB", "--", *OK],
    "--time is '2h': give": [*ON, "--time", "2h", "--", *OK],
    "--partition is .*: give": [*ON, "--partition", "a\n#SBATCH --nodes=9", "--", *OK],
    "--environment is '2=3': give KEY=VALUE": [*ON, "--environment", "2=3", "--", *OK],
    "--name is 'My run': give": [*ON, "--name", "My run", "--", *OK],
    "--image is for kubernetes, and not for slurm": [*ON, "--image", "a", "--", *OK],
    "--partition is for slurm, and not for ray": ["--on", "ray", "--partition", "a", "--", *OK],
    "no --image is given": ["--on", "kubernetes", "--volume", "a:/shared", "--", *OK],
    "/shared/run is on no volume": ["--on", "kubernetes", "--image", "a", "--volume", "a:/share", "--", *OK],
    "--volume is '/shared': give a claim": ["--on", "kubernetes", "--image", "a", "--volume", "/shared", "--", *OK],
    "is not UTF-8": [*ON, "--", "train", "vae", "p", "--out", "/shared/\udcff"],
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_no_scheduler_would_take_is_refused(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["launch", "--write", str(tmp_path / "job"), *REFUSED[words]]) == 2
    said = capsys.readouterr()
    assert re.search(words, said.err, re.DOTALL), said.err
    assert (said.out, list(tmp_path.iterdir())) == ("", [])


def test_a_word_that_train_does_not_know_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["launch", *ON, "--write", str(tmp_path / "job"), "--", *OK, "--bugdet", "3m"])
    assert ended.value.code == 2
    assert "--bugdet" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_job_is_written_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a job"
    said = launched(capsys, *ON, "--write", str(path), "--", *OK)
    assert said == f"job: {path}\nsubmit it by: sbatch {shlex.quote(str(path))}\n"
    text = path.read_text()
    assert text == launched(capsys, *ON, "--", *OK)
    assert cli.main(["launch", *ON, "--write", str(path), "--", *OK, "--flips"]) == 2
    assert "is there already: remove it" in capsys.readouterr().err
    assert path.read_text() == text
    assert cli.main(["launch", *ON, "--write", str(path / "job"), "--", *OK]) == 2
    assert "cannot be used (Not a directory)" in capsys.readouterr().err


def test_a_job_is_submitted(stubs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = launched(capsys, *ON, "--", *OK)
    cluster = ["--on", "kubernetes", "--image", "a", "--volume", "a:/shared", "--submit", "--", *OK]
    monkeypatch.setenv("PATH", "/nowhere")
    assert cli.main(["launch", *ON, "--submit", "--write", str(stubs / "job"), "--", *OK]) == 2
    assert not (stubs / "job").exists()
    assert "sbatch is not on this machine" in capsys.readouterr().err
    monkeypatch.setenv("PATH", f"{stubs}:/usr/bin:/bin")
    monkeypatch.setenv("NOTES", str(stubs / "notes"))
    assert launched(capsys, *ON, "--submit", "--", *OK) == "Submitted batch job 7\n"
    assert (stubs / "notes" / "sbatch").read_text() == text
    monkeypatch.setenv("FULL", "1")
    assert cli.main(["launch", *cluster]) == 2
    assert "kubectl did not take the job: quota exceeded" in capsys.readouterr().err
    assert (stubs / "notes" / "kubectl").read_text() == "create -f -\n"
    assert [part["kind"] for part in objects((stubs / "notes" / "manifest").read_text())] == ["Service", "Job"]


@pytest.mark.parametrize(
    ("place", "name"),
    [("/a/My Run_2", "my-run-2"), ("/a/2nd", "run-2nd"), ("/a/画", "run"), ("/a/" + "x-" * 40, "x-" * 24 + "x")],
)
def test_a_job_is_named_for_its_run(place: str, name: str) -> None:
    assert job_name(Path(place)) == name


def test_what_goes_on_is_the_run_that_was_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words: Sequence[str] = [*TRAIN, *SHORT, "--out", str(tmp_path / "run"), "--go-on"]
    assert cli.main([*words]) == 0
    assert cli.main([*words]) == 0
    assert "nothing to continue" in capsys.readouterr().out
    for other in (["train", "gan", *words[2:]], [word.replace("96img", "97img") for word in words]):
        assert cli.main(other) == 2
        assert "is a run of vae for 96img, and not what was asked for" in capsys.readouterr().err
    assert cli.main([*TRAIN, "--go-on"]) == 2
    assert "give its place, --out" in capsys.readouterr().err
