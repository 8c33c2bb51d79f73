"""The command line as a user meets it: most of it in child processes, the user's mistakes in this one."""

from __future__ import annotations

import json
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

import calotype
from calotype import cli
from calotype.core.images import grid
from tests.conftest import environment

TINY = ["--set", "model.widths=[16]", "--set", "model.blocks=1", "--set", "model.attention=[]"]
PATIENCE = 180  # seconds, far more than anything here takes even on a busy machine


def command(*arguments: str | Path, python: Sequence[str] = ()) -> list[str]:
    return [sys.executable, *python, "-m", "calotype", *map(str, arguments)]


def calotype_cli(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    variables = environment(**variables)
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=PATIENCE, env=variables)


# -- help


def seconds(*words: str) -> float:
    """Of the processor, which other processes of this machine do not lengthen as they do those of the clock."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (done.returncode, done.stderr) == (0, "")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.fixture(scope="module")
def seconds_of_torch() -> float:
    """What importing it takes, which is what help does without."""
    return seconds("-c", "import torch")


@pytest.mark.parametrize(
    "arguments", [["--help"], [], ["-h"], ["train", "--help"], ["sample", "--help"], ["--version"]]
)
def test_help_answers_without_torch(arguments: list[str], seconds_of_torch: float) -> None:
    assert seconds("-m", "calotype.cli", *arguments) < seconds_of_torch / 2
    traced = command(*arguments, python=["-X", "importtime"])
    imported = subprocess.run(traced, capture_output=True, text=True, env=environment()).stderr
    assert "calotype.errors" in imported
    assert not re.search(r"\| +(torch|numpy|matplotlib)$", imported, re.MULTILINE)


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    listed = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert re.search(rf"^  {name} +[A-Z].*\.$", listed, re.MULTILINE)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_option_is_explained(capsys: pytest.CaptureFixture[str], name: str) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for option in re.findall(r"^│ (--[a-z-]+)(?:.*│\n)(?!│ +\S)", text, re.MULTILINE):
        line = next(line for line in text.splitlines() if line.startswith(f"│ {option} "))
        assert re.search(r"  +\S.*│$", line), f"{option} has no explanation"


# -- a whole journey


class Journey(NamedTuple):
    photos: Path
    run: Path
    variables: dict[str, str]
    said: str  # by training


def make_photos(folder: Path) -> Path:
    rng = np.random.Generator(np.random.Philox(key=2))
    for k in range(40):
        place = folder / ("dots", "bars")[k % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(place / f"{k}.png")
    return folder


@pytest.fixture(scope="module")
def journey(tmp_path_factory: pytest.TempPathFactory) -> Journey:
    """A finished run on a folder of small pictures."""
    base = tmp_path_factory.mktemp("a journey")  # with a space
    photos, run, variables = make_photos(base / "photos"), base / "run", {"CALOTYPE_CACHE": str(base / "cache")}
    rare = ["--set", "training.preview_every=256", "--set", "training.checkpoint_every=256"]
    done = calotype_cli("train", "diffusion", photos, "--budget", "512img", "--out", run, *TINY, *rare, **variables)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return Journey(photos, run, variables, done.stdout)


def test_check(journey: Journey, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(journey.photos), "--json"]) == 0
    assert "40" in json.dumps(json.loads(capsys.readouterr().out))
    assert cli.main(["check", str(journey.photos)]) == 0
    said = capsys.readouterr().out
    for word in ("40", "dots", "bars", "size 12 "):
        assert word in said


def test_training_leaves_what_it_says(journey: Journey) -> None:
    assert f"run directory: {journey.run}" in journey.said
    assert "2 classes" in journey.said
    assert f"calotype sample {shlex.quote(str(journey.run))}" in journey.said
    assert (journey.run / "config.toml").exists()
    assert (journey.run / "curves.png").exists()
    with Image.open(journey.run / "samples.png") as image:
        assert image.mode == "RGB"
    previews = sorted(path.name for path in (journey.run / "previews").iterdir())
    assert previews == ["000000000256.png", "000000000512.png"]
    events = [json.loads(line)["event"] for line in (journey.run / "log.jsonl").read_text().splitlines()]
    assert events[-1] == "finished"
    assert "checkpoint" in events
    assert sorted(path.name for path in (journey.run / "checkpoints").iterdir())[-1] == "000000000512"


def test_resuming_a_finished_run_says_so_and_changes_nothing(
    journey: Journey, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CALOTYPE_CACHE", journey.variables["CALOTYPE_CACHE"])
    before = {path: path.read_bytes() for path in journey.run.rglob("*") if path.is_file()}
    assert cli.main(["train", "--resume", str(journey.run)]) == 0
    assert "nothing to continue" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in journey.run.rglob("*") if path.is_file()} == before


def test_sampling_gives_the_same_images_everywhere(
    journey: Journey, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, sheet, packed = tmp_path / "new", tmp_path / "grid.png", tmp_path / "new.npz"
    places = ["--out", out, "--grid", sheet, "--npz", packed]
    done = calotype_cli("sample", journey.run, "-n", "5", "--seed", "7", "--steps", "4", *places)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^5 images in .*images/s$", done.stdout, re.MULTILINE)
    assert str(sheet) in done.stdout

    images = calotype.load(journey.run).sample(5, seed=7, steps=4)
    files = sorted(out.glob("*.png"))
    assert [file.name for file in files] == [f"{k:06d}.png" for k in range(5)]
    as_arrays = images.permute(0, 2, 3, 1).numpy()
    for file, array in zip(files, as_arrays, strict=True):
        assert np.array_equal(np.array(Image.open(file)), array)
    assert np.array_equal(np.array(Image.open(sheet)), grid(images).permute(1, 2, 0).numpy())
    with np.load(packed) as arrays:
        assert np.array_equal(arrays["images"], as_arrays)
        assert arrays["labels"].tolist() == [0, 1, 0, 1, 0]

    again = ["sample", str(journey.run), "-n", "2", "--first", "3", "--seed", "7", "--steps", "4"]
    assert cli.main([*again, "--out", str(out)]) == 0
    assert "2 were there already" in capsys.readouterr().out
    assert cli.main([*again, "--npz", str(tmp_path / "two.npz")]) == 0
    with np.load(tmp_path / "two.npz") as arrays:
        assert np.array_equal(arrays["images"], as_arrays[3:])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grid.png", "new", "new.npz", "two.npz"]


def test_an_option_that_does_not_fit_takes_no_place(journey: Journey, tmp_path: Path) -> None:
    out = tmp_path / "new"
    wrong = ["sample", str(journey.run), "-n", "1", "--steps", "2", "--set", "sigma_min=100", "--out", str(out)]
    assert cli.main(wrong) == 2
    assert not out.exists()


def test_sampling_without_a_place_makes_a_grid_in_the_run(journey: Journey, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--labels", "bars,0", "--set", "solver=euler", "--set", "steps=2", "--weights", "raw"]
    assert cli.main(["sample", str(journey.run), "-n", "3", "--seed", "9", *given]) == 0
    assert f"{journey.run / 'samples-9.png'}" in capsys.readouterr().out
    model = calotype.load(journey.run, ema=False)
    images = model.sample(3, seed=9, labels=["bars", 0], solver="euler", steps=2)
    expected = grid(images).permute(1, 2, 0).numpy()
    assert np.array_equal(np.array(Image.open(journey.run / "samples-9.png")), expected)
    (journey.run / "samples-9.png").unlink()


def test_every_set_counts(tmp_path: Path, journey: Journey) -> None:
    text = (journey.run / "config.toml").read_text()
    assert "widths = [16]" in text
    assert "blocks = 1" in text
    assert "attention = []" in text


# -- mistakes

MISTAKES = [
    ("check {no}", "{no}"),
    ("check {photos} --size 0x5", "48x64"),
    ("train", "family"),
    ("train diffusion {no}", "{no}"),
    ("train diffusion {photos} --budget soon", "budget 'soon' .*30m"),
    ("train difusion {photos}", "'difusion' is unknown: .*diffusion"),
    ("train diffusion {photos} --out {run}", "already a run: continue it with .*--resume"),
    ("train diffusion {photos} --out {photos}", "not empty: choose another --out"),
    ("train diffusion {photos} --device abacus", "'abacus'"),
    ("train diffusion {photos} --preset huge --budget 1kimg", "'huge' is unknown: choose one of auto, .*tiny"),
    ("train diffusion {photos} --set model.width=[16]", "model.width is unknown: did you mean widths"),
    ("train diffusion {photos} --set training.images=5", "the budget decides it: use --budget 5img"),
    ("train diffusion {photos} --set blocks=1", "SECTION.KEY=VALUE"),
    ("train diffusion {photos} --set model.widths=[20] --budget 1kimg", "multiples of 16"),
    ("train diffusion {photos} --recipe {no}", "{no} does not exist"),
    ("train diffusion {photos} --recipe {photos}", "{photos} cannot be read"),
    ("train --resume {no}", "{no} is not a run: it does not exist"),
    ("train --resume {photos}", "{photos} is not a run"),
    ("train --resume {run} --seed 2 --flips", "leave out flips, seed"),
    ("train diffusion {photos} --resume {run}", "leave out family, data"),
    ("sample {no}", "{no} is not a run: it does not exist"),
    ("sample {photos}", "{photos} is not a run: it has no config.toml"),
    ("sample {run} --labels stripes", "class 'stripes' is unknown: the model knows bars, dots"),
    ("sample {run} -n 0", "n is 0"),
    ("sample {run} --checkpoint 7", "no checkpoint 7: give last, best, or one of .*512"),
    ("sample {run} --steps 0", "steps is 0"),
    ("sample {run} --set solver=eular", "solver is 'eular': did you mean euler"),
    ("sample {run} --set stepz=3", "stepz is unknown: did you mean steps"),
    ("sample {run} --out {photos}", "not empty .*choose another --out"),
]


@pytest.mark.parametrize(("line", "words"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_gets_one_clear_line(
    journey: Journey,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    line: str,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CALOTYPE_CACHE", journey.variables["CALOTYPE_CACHE"])
    places = {"no": str(tmp_path / "nowhere"), "photos": str(journey.photos), "run": str(journey.run)}
    assert cli.main([part.format(**places) for part in line.split(" ")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("calotype: ")
    assert said.count("\n") == 1
    assert re.search(words.format(**{name: re.escape(place) for name, place in places.items()}), said), said
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_in_a_process_of_its_own(tmp_path: Path) -> None:
    done = calotype_cli("sample", tmp_path / "nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("calotype: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "'trian' is not a command: did you mean train?"),
        (["fly"], "'fly' is not a command: choose one of check, train, demo, sample"),
        (["train", "diffusion", "photos", "--bugdet", "3m"], "--budget"),
        (["train", "diffusion", "photos", "--fit", "squash"], "squash"),
        (["sample", "run", "-n", "many"], "many"),
        (["sample"], "a run directory"),
    ],
)
def test_words_that_are_no_command_or_option(arguments: list[str], words: str) -> None:
    done = calotype_cli(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert words in done.stderr
    assert "Traceback" not in done.stderr


# -- stopping


def progress(run: Path) -> list[int]:
    log = run / "log.jsonl"
    records = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return [record["images_seen"] for record in records if record["event"] == "progress"]


def stopped(number: signal.Signals, run: Path, *arguments: str | Path) -> str:
    """Start a command that trains, stop it by a signal once it has gone on, and return what it said."""
    before = len(progress(run))
    with subprocess.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment()
    ) as child:
        deadline = time.monotonic() + PATIENCE
        while len(progress(run)) == before and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        child.send_signal(number)
        said, _ = child.communicate(timeout=PATIENCE)
    assert child.returncode == 128 + number, said
    assert "Traceback" not in said
    assert re.search(
        rf"^calotype: stopped and saved.*calotype train --resume {re.escape(shlex.quote(str(run)))}$",
        said,
        re.MULTILINE,
    )
    return said


@pytest.fixture
def _no_ignored_interrupt() -> Iterator[None]:
    """A shell that starts tests in the background has them ignore Ctrl-C, and their children too."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.mark.slow
@pytest.mark.usefixtures("_no_ignored_interrupt")
def test_ctrl_c_and_sigterm_save_and_resuming_goes_on(tmp_path: Path) -> None:
    photos, run = make_photos(tmp_path / "photos"), tmp_path / "run"
    endless = ["--budget", "1000Mimg", "--out", run, *TINY, "--set", "training.batch_size=8"]
    stopped(signal.SIGINT, run, "train", "diffusion", photos, *endless)
    first = int(sorted((run / "checkpoints").iterdir())[-1].name)
    assert first >= progress(run)[-1] > 0
    said = stopped(signal.SIGTERM, run, "train", "--resume", run)
    assert f"continuing at {first:,} of 1,000,000,000 images" in said
    second = int(sorted((run / "checkpoints").iterdir())[-1].name)
    assert second > first
    seen = progress(run)
    assert seen == sorted(seen)
    assert torch.equal(calotype.load(run).sample(1, steps=2), calotype.load(run).sample(1, steps=2))
