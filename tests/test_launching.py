"""Jobs for schedulers: what they hold, read as the schedulers read them, and what arrives where they run."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import calotype
from calotype import cli, ray_job
from calotype.launching.job import job_name
from calotype.launching.ray import VARIABLE
from calotype.runs import Run

TRAIN = ["train", "vae", "glyphs:gray:60", "--size", "8", "--set", "training.precision=fp32"]
TRAIN += ["--set", "training.threads=1", "--set", "training.batch_size=8", "--set", "training.checkpoint_every=32"]
SHORT, LONG = ["--budget", "96img"], ["--budget", "160000img"]
HOSTILE = [
    "/shared/a run",
    '/shared/it\'s "one"',
    "/shared/$HOME `id` $(id) $$",
    "/shared/a\nb\n#SBATCH --nodes=9\n--- # : {}",
    "/shared/%j \\ \\n ! * ~ & ; | > # é 画 😀 \x7f\x85\u2028\ufeff",
    "/shared/-",
]


def launched(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The job that a command writes."""
    assert cli.main(["launch", *words]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


# -- Slurm: the script is run, with stubs in place of what Slurm brings

STUBS = {
    "scontrol": """#!/bin/bash
if [ "$1" = show ]; then echo localhost; echo elsewhere; else echo "$@" >> "$NOTES/scontrol"; fi
""",
    # One task for each node, all here.
    "srun": """#!/bin/bash
while [[ "$1" == --* ]]; do shift; done
for ((k = 0; k < NODES; k++)); do
    SLURM_NODEID=$k SLURMD_NODENAME=localhost "$@" & pids+=($!); echo $! >> "$NOTES/tasks"
done
status=0
for pid in "${pids[@]}"; do wait "$pid" || status=1; done
exit $status
""",
    # Slurm tells all processes of the tasks, and torchrun then tells its own once more.
    "scancel": """#!/bin/bash
echo "$@" >> "$NOTES/scancel"
for task in $(cat "$NOTES/tasks"); do kill -TERM "$task" $(cat /proc/"$task"/task/*/children); done
""",
    "sbatch": """#!/bin/bash
cat > "$NOTES/sbatch"; echo "Submitted batch job 7"
""",
    "kubectl": """#!/bin/bash
echo "$@" > "$NOTES/kubectl"; cat > "$NOTES/manifest"; [ -z "$FULL" ] || { echo "quota exceeded" >&2; exit 1; }
""",
    "torchrun": """#!/bin/bash
printf '%s\\0' "$@" > "$NOTES/torchrun-$SLURM_NODEID"
env -0 > "$NOTES/environment"
""",
}


@pytest.fixture
def stubs(tmp_path: Path) -> Path:
    """A folder of commands that stand for those of schedulers, and of what they note."""
    folder = tmp_path / "stubs"
    (folder / "notes").mkdir(parents=True)
    for name, text in STUBS.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def slurm(stubs: Path, nodes: int, **more: str) -> dict[str, str]:
    """What a script finds around it as a job of Slurm."""
    known = {"PATH": f"{stubs}:/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[1])}
    known |= {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "nodes[1-2]"}
    known |= {"NOTES": str(stubs / "notes"), "NODES": str(nodes)}  # of the stubs
    return known | {k: v for k, v in os.environ.items() if k.startswith("CALOTYPE")} | more


def noted(path: Path) -> list[str]:
    return path.read_bytes().decode().split("\0")[:-1]


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
    "leave out budget": [*ON, "--", "train", "--resume", "/runs/x", "--budget", "3m"],
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
    assert "is there already" in capsys.readouterr().err
    assert path.read_text() == text
    assert cli.main(["launch", *ON, "--write", str(tmp_path / "no" / "job"), "--", *OK]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_job_is_submitted(stubs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = launched(capsys, *ON, "--", *OK)
    cluster = ["--on", "kubernetes", "--image", "a", "--volume", "a:/shared", "--submit", "--", *OK]
    monkeypatch.setenv("PATH", "/nowhere")
    assert cli.main(["launch", *ON, "--submit", "--", *OK]) == 2
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
