"""Several processes train, draw and measure as one does: the same steps, and an image's noise is its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import calotype
from calotype import cli
from calotype.core.model import GenerativeModel, ImageSpec
from calotype.core.rng import seeded
from calotype.families import FAMILIES
from calotype.optimization.config import TrainConfig
from calotype.optimization.trainer import Trainer
from calotype.runs import checkpoints
from calotype.runs.run import Run
from tests.conftest import Stripes
from tests.faults import FAULTS

SPEC = ImageSpec(3, 8, 12, num_classes=2)
BATCH, STEPS = 7, 3  # a batch that two and three processes cannot divide evenly

# Of the GAN what depends on other images of the batch: batch normalisation in both networks, and changes whose
# probability follows the discriminator; and both penalties, which differentiate a gradient.
CASES: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "autoregressive": ("autoregressive", {}),
    "diffusion": ("diffusion", {"label_dropout": 0.3}),
    "vae": ("vae", {"free_bits": 0.5}),
    "gan": ("gan", {"overfit": 0.6}),
    "gan with norms": ("gan", {"network": "dcgan", "r1": 0.0, "r2": 0.0, "loss": "non-saturating"}),
    "gan of residual blocks": ("gan", {"network": "resnet", "critic_steps": 2, "gradient_penalty": 1.0}),
}


def trained(case: str) -> dict[str, Tensor]:
    """The weights, averages and buffers after some steps, in float64."""
    name, changes = CASES[case]
    family = FAMILIES[name]
    data = Stripes(32, SPEC.channels, SPEC.height, SPEC.width)
    config = family.measured(replace(next(iter(family.presets(SPEC).values())).model, **changes), data.images)
    with seeded(0):
        model: GenerativeModel = family(SPEC, config)
    training = TrainConfig(images=10_000, batch_size=BATCH, learning_rate=1e-3, optimizer="muon", precision="fp32")
    trainer = Trainer(model.double(), data.batches(BATCH), training)
    losses = [progress.losses for progress in trainer.run(STEPS)]
    told = {f"loss {player}": value for player, value in losses[-1].items()}
    return {**trainer.model.state_dict(), **{f"ema.{k}": v for k, v in trainer.ema.state_dict().items()}, **told}


PROGRAM = """
import glob, sys, torch
from calotype.distributed import processes
from tests.distributed.test_processes import CASES, trained
torch.set_num_threads(1)
with processes.joined():
    found = {case: trained(case) for case in CASES}
    torch.save(found, f"{sys.argv[1]}/{processes.rank()}.pt")
threads = [open(name).read() for name in glob.glob("/proc/self/task/*/comm")]
assert not any("gloo" in name for name in threads), threads  # one that outlives Python aborts the process
"""


def launched(words: list[str], count: int, options: Sequence[str] = (), **environment: str) -> subprocess.Popen[str]:
    """`count` processes of a program or module, as torchrun starts them."""
    root = Path(__file__).parents[2]
    known = {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    known |= {k: v for k, v in os.environ.items() if k.startswith("CALOTYPE")}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", *options]
    pipe = subprocess.PIPE
    return subprocess.Popen([*torchrun, *words], cwd=root, env=known | environment, stdout=pipe, stderr=pipe, text=True)


def started(words: list[str], count: int) -> subprocess.CompletedProcess[str]:
    """The same, when they have ended."""
    process = launched(words, count)
    out, err = process.communicate()
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def together(count: int, folder: Path) -> list[dict[str, dict[str, Tensor]]]:
    """What each of `count` processes has."""
    (folder / "program.py").write_text(PROGRAM)
    done = started([str(folder / "program.py"), str(folder)], count)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{k}.pt", weights_only=True) for k in range(count)]


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_processes_train_as_one_does(count: int, tmp_path: Path) -> None:
    found = together(count, tmp_path)
    for case in CASES:
        alone = trained(case)
        assert len(alone) > 10
        for name, value in alone.items():
            first = found[0][case][name]
            assert torch.allclose(first, value, rtol=1e-6, atol=1e-9), (case, name)
            for other in found[1:]:
                assert torch.equal(other[case][name], first), (case, name)


COMMAND = ["train", "vae", "glyphs:gray:60", "--size", "8", "--budget", "96img", "--set", "training.precision=fp32"]
COMMAND += ["--set", "training.threads=1", "--set", "training.batch_size=8", "--set", "training.checkpoint_every=32"]


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run that two processes have trained, and what they said."""
    path = tmp_path_factory.mktemp("two") / "run"
    return path, started(["-m", "calotype", *COMMAND, "--out", str(path)], 2)


def weights(run: Path) -> dict[str, Tensor]:
    return dict(calotype.load(run).model.state_dict())


def assert_alike(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    # float32, whose sums are rounded in another order: a hundredth of what twelve steps move a weight, 1e-3 each
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=0, atol=1e-4), name


def assert_without_traceback(said: str) -> None:
    """No frame is one of ours; torchrun prints its own, in an environment that may lie in a folder of our name."""
    ours = Path(calotype.__file__).parent.resolve()
    frames = [Path(name) for name in re.findall(r'File "(.+?)", line', said)]
    assert not [frame for frame in frames if frame.resolve().is_relative_to(ours)]


def test_torchrun_trains_a_run_as_any(
    by_two: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, done = by_two
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run directory:") == done.stdout.count("trained on 96 images") == 1
    assert cli.main([*COMMAND, "--out", str(tmp_path / "one")]) == 0
    assert_alike(weights(path), weights(tmp_path / "one"))
    assert (path / "config.toml").read_text() == (tmp_path / "one" / "config.toml").read_text()
    told = [record["event"] for record in Run.open(path).read_log()]
    assert [told.count(event) for event in ("checkpoint", "finished")] == [3, 1]
    assert {file.name for file in path.iterdir()} == {file.name for file in (tmp_path / "one").iterdir()}


@pytest.mark.slow
def test_another_number_of_processes_goes_on(
    by_two: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    path, _ = by_two
    for count in (1, 3):
        shutil.copytree(path, tmp_path / str(count))
        for later in sorted((tmp_path / str(count) / "checkpoints").iterdir())[1:]:
            if int(later.name) > 32:
                shutil.rmtree(later)
        done = started(["-m", "calotype", "train", "--resume", str(tmp_path / str(count))], count)
        assert done.returncode == 0, done.stderr
        assert "continuing at 32 of 96 images" in done.stdout
        assert_alike(weights(tmp_path / str(count)), weights(path))


def test_what_goes_wrong_is_said_once(by_two: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    path, _ = by_two
    done = started(["-m", "calotype", *COMMAND, "--out", str(path)], 2)
    assert done.returncode != 0
    assert done.stderr.count("is already a run") == 1
    assert_without_traceback(done.stderr)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize(
    ("count", "n"), [(2, 41), pytest.param(3, 20, marks=pytest.mark.slow)]
)  # three calls of 16 images, and two: fewer than processes
def test_processes_draw_as_one_does(
    count: int, n: int, by_two: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    def words(place: str) -> list[str]:
        new = tmp_path / place
        beside = ["--out", str(new / "images"), "--npz", str(new / "new.npz"), "--grid", str(new / "new.png")]
        return ["sample", str(by_two[0]), "-n", str(n), "--seed", "3", *beside]

    done = started(["-m", "calotype", *words("all")], count)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"{n} images in") == done.stdout.count("images: ") - 1 == 1
    assert cli.main(words("one")) == 0
    found = contents(tmp_path / "all" / "images")
    assert len(found) == n + 2  # with the manifest and the lock
    assert found == contents(tmp_path / "one" / "images")
    for name in ("new.npz", "new.png"):
        assert (tmp_path / "all" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


@pytest.mark.slow
def test_processes_measure_as_one_does(
    by_two: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def words(place: str) -> list[str]:
        return ["evaluate", str(by_two[0]), "-n", "24", "--out", str(tmp_path / place)]

    monkeypatch.setenv("CALOTYPE_CACHE", str(tmp_path / "cache of two"))  # nothing of either is left to the other
    done = started(["-m", "calotype", *words("two.json")], 2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report: ") == 1
    monkeypatch.setenv("CALOTYPE_CACHE", str(tmp_path / "cache of one"))
    assert cli.main(words("one.json")) == 0
    two, one = (json.loads((tmp_path / name).read_text()) for name in ("two.json", "one.json"))
    costs = two.pop("cost"), one.pop("cost")
    assert two == one
    assert [cost["processes"] for cost in costs] == [2, 1]
    assert costs[0]["network calls per image"] == costs[1]["network calls per image"]
    assert contents(tmp_path / "cache of two" / "features") == contents(tmp_path / "cache of one" / "features")


# Each action says which process it was done by. What goes wrong goes wrong in one of them, and all go on with the next.
LED = """
import json, sys, torch
from calotype.distributed import processes
from calotype.errors import CalotypeError, ConfigError
from calotype.distributed.work_sharing import led

def action(part):
    if 100 in part and processes.rank() == 1:
        raise ConfigError("100 in the second")
    return torch.cat([torch.tensor([processes.rank()]), part]).double()

def asked(parts, wrong=""):
    def lead(helped):
        assert processes.size() == 1
        if wrong:
            raise ConfigError(wrong)
        return [rows.tolist() for rows in helped("act", parts)]
    return lead

cases = {
    "many": asked([torch.arange(k) for k in range(1, 6)]),
    "fewer": asked([torch.arange(2)]),
    "none": asked([]),
    "in the second": asked([torch.tensor([1]), torch.tensor([100]), torch.tensor([3])]),
    "in the first": asked([], "in the first"),
    "and after": asked([torch.arange(1), torch.arange(2)]),
}
with processes.joined():
    found = {}
    for name, lead in cases.items():
        try:
            found[name] = led(lead, {"act": action})
        except CalotypeError as error:
            found[name] = [type(error).__name__, str(error), error.exit_status]
    with open(f"{sys.argv[1]}/{processes.rank()}.json", "w") as file:
        json.dump(found, file)
"""


def test_what_the_first_leads_is_shared_out(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(LED)
    done = started([str(tmp_path / "program.py"), str(tmp_path)], 3)
    assert done.returncode == 0, done.stderr
    first, *others = [json.loads((tmp_path / f"{k}.json").read_text()) for k in range(3)]
    assert first["many"] == [[k % 3, *range(k + 1)] for k in range(5)]
    assert first["fewer"] == [[0, 0, 1]]
    assert first["none"] == []
    assert first["and after"] == [[0, 0], [1, 0, 1]]
    for name in ("many", "fewer", "none", "and after"):
        assert [other[name] for other in others] == [None, None]
    stopped = ["StoppedElsewhere", "100 in the second", 2]
    assert [one["in the second"] for one in (first, *others)] == [stopped, ["ConfigError", *stopped[1:]], stopped]
    stopped = ["StoppedElsewhere", "in the first", 2]
    assert [one["in the first"] for one in (first, *others)] == [["ConfigError", *stopped[1:]], stopped, stopped]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--labels", "A,ß"], "class 'ß' is unknown"),  # found by each
        (["--out", str(Path(__file__).parent)], "is not empty and has __init__.py"),  # by the first
    ],
)
def test_a_mistake_is_said_once(
    words: list[str], told: str, by_two: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    done = started(["-m", "calotype", "sample", str(by_two[0]), *words], 2)
    assert done.stderr.count(told) == 1
    assert "exitcode  : 2 " in done.stderr
    assert "exitcode  : 1 " not in done.stderr
    assert_without_traceback(done.stderr)


def test_other_commands_are_for_one_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(["complete", "run", "photos"]) == 2
    assert "complete runs in one process: start it without torchrun" in capsys.readouterr().err


def worker(run: Path, rank: int, out: Path | None = None) -> int:
    """The process of a rank that trains a run, as soon as a checkpoint of what it has learned is there.

    Args:
        out: what its command names, where that is not the run.
    """
    for _ in range(3_000):  # five minutes, for a machine that is busy
        time.sleep(0.1)
        if len(checkpoints.found(run / "checkpoints")) > 1:
            for place in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    if str(out or run).encode() in (place / "cmdline").read_bytes():
                        told = (place / "environ").read_bytes().split(b"\0")
                        if f"RANK={rank}".encode() in told:
                            return int(place.name)
    raise AssertionError("no process trains the run")


LONGER = [word.replace("96img", "1600img") for word in COMMAND]


@pytest.mark.slow
@pytest.mark.fault(
    "kill -9 of a process of a job that torchrun starts again",
    "the job goes on by itself within a minute, to the weights of an undisturbed one",
)
@pytest.mark.parametrize("rank", [0, 1] if FAULTS else [1])
def test_a_process_that_is_killed_is_started_again(rank: int, tmp_path: Path) -> None:
    undisturbed = launched(["-m", "calotype", *LONGER, "--out", str(tmp_path / "whole")], 2)
    killed = launched(["-m", "calotype", *LONGER, "--out", str(tmp_path / "killed")], 2, ["--max-restarts=1"])
    os.kill(worker(tmp_path / "killed", rank), signal.SIGKILL)
    assert killed.wait() == undisturbed.wait() == 0, (killed.communicate()[1], undisturbed.communicate()[1])
    events = [record["event"] for record in Run.open(tmp_path / "killed").read_log()]
    assert events.count("resumed") == 1
    found, whole = weights(tmp_path / "killed"), weights(tmp_path / "whole")
    assert all(torch.equal(found[name], value) for name, value in whole.items())
    for process in (killed, undisturbed):
        process.communicate()


@pytest.mark.slow
@pytest.mark.fault(
    "kill -9 of a process that compares, where torchrun starts it again", "the comparison goes on by itself, the same"
)
def test_a_comparison_whose_process_is_killed_goes_on(tmp_path: Path) -> None:
    words = ["-m", "calotype", "compare", "glyphs:gray:60", "--size", "8", "--families", "vae", "--budget", "1600img"]
    words += ["-n", "8", "--no-baselines", "--out"]
    undisturbed = launched([*words, str(tmp_path / "whole")], 2)
    killed = launched([*words, str(tmp_path / "killed")], 2, ["--max-restarts=1"])
    os.kill(worker(tmp_path / "killed" / "vae", 1, tmp_path / "killed"), signal.SIGKILL)
    assert killed.wait() == undisturbed.wait() == 0, (killed.communicate()[1], undisturbed.communicate()[1])
    found, whole = (
        json.loads((tmp_path / name / "entries" / "vae.json").read_text())["report"]["values"]
        for name in ("killed", "whole")
    )
    assert found == whole
    events = [record["event"] for record in Run.open(tmp_path / "killed" / "vae").read_log()]
    assert events.count("resumed") == 1
    for process in (killed, undisturbed):
        process.communicate()


@pytest.mark.slow
@pytest.mark.fault("a process of a job that hangs", "the others stop when their patience is over, and name it")
def test_a_process_that_hangs_is_named(tmp_path: Path) -> None:
    words = ["-m", "calotype", *LONGER, "--out", str(tmp_path / "run")]
    process = launched(words, 3, CALOTYPE_PATIENCE="3")
    pid = worker(tmp_path / "run", 2)
    os.kill(pid, signal.SIGSTOP)
    errors = ""
    assert process.stderr is not None
    for line in process.stderr:
        errors += line
        if "no answer from" in line:
            os.kill(pid, signal.SIGCONT)
    assert process.wait() != 0
    assert "calotype: others of the 3 processes are lost (no answer from 2)" in errors
    assert "goes on with --resume" in errors
    process.communicate()


def test_a_job_that_is_started_again_needs_a_place(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    for words in (["train", "vae", "glyphs"], ["compare", "glyphs"]):
        assert cli.main(words) == 2
        assert "give its place, --out" in capsys.readouterr().err


def test_several_machines_that_start_again_need_a_store_for_each_attempt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    variables = {
        "RANK": "0",
        "WORLD_SIZE": "4",
        "GROUP_WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "1",
    }
    variables |= {"TORCHELASTIC_MAX_RESTARTS": "3", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cli.main([*COMMAND, "--out", str(tmp_path / "run")]) == 2
    assert "set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
