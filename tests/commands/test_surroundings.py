"""Command lines and environments that nobody should give: each ends with a status and a message, and breaks nothing.

Arguments are made from the declared options of each command, with values of all kinds of wrong. `make faults` tries
five times as many.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from calotype import cli
from calotype.core import environment, process
from calotype.core.signals import Stopped, request, stop_requests, stops_raised, way_on
from calotype.errors import ConfigError
from calotype.families import FAMILIES
from calotype.training.recipe import sections
from tests.conftest import Survived
from tests.conftest import environment as variables_of
from tests.faults import FAULTS

LINES = 10_000 if FAULTS else 2_000
SECONDS = 60.0  # that one of them may take: all but a few take less than one on an idle machine
LONG = "x" * 300
NUMBERS = ["0", "1", "-1", "2", str(2**31), str(2**63), str(-(2**63) - 1), "9" * 5000, "1e400", "nan", "inf", "-inf"]
NUMBERS += ["0.5", "1e-320", "٣", "1_0", " 1", "0x10", ""]
PLACES = [
    "",
    ".",
    "/",
    "..",
    "../..",
    "~",
    "~nosuchuser/x",
    LONG,
    "a/" * 2000 + "a",
    "nul\0byte",
    "caf\udce9",
    "new\nline",
]
PLACES += ["photos", "photos/0.png", "photos/0.png/x", "dangling", "loop", "loop/x", "pipe", "/dev/null", "none", "run"]
PLACES += [
    "run/config.toml",
    "run/log.jsonl",
    "locked/x",
    "comparison",
    "report.json",
    "latents.npz",
    "-",
    "--",
    "größe 日本",
]
SOURCES = [
    *PLACES,
    "glyphs:gray:20",
    "glyphs:",
    "glyphs:gray:-1",
    "glyphs:gray:" + "9" * 5000,
    "glyphs:x",
    "hub:",
    "hub:../..",
]
SOURCES += ["http://", "file:///etc/passwd"]
TEXTS = [
    *NUMBERS,
    "x",
    LONG,
    "\0",
    "caf\udce9",
    "a,b",
    ",",
    "=",
    "größe",
    "\x1b[2J",
    "None",
    "true",
    "[1]",
    "0,0,0",
    "a:b",
]
SPECIFIC = {
    "size": ["8", "0", "8x8", "8x", "x", "-8", "9" * 5000, "100000", "8x8x8", "1x1", "٣"],
    "range": ["0:1", "1:0", ":", "nan:inf", "0:1e400", "0", "0:" + "9" * 5000],
    "budget": ["32img", "0img", "-1s", "1e9h", "nanm", "9" * 5000 + "img", "9" * 400 + "h", "1", "1 h", ""],
    "labels": ["0", "a", "9" * 5000, "-1", ",", "a,,b", "٣"],
    "checkpoint": ["last", "best", "0", "32", "-1", "9" * 5000, "x", "../..", "\0"],
    "preset": ["tiny", "auto", "x", ""],
    "device": ["cpu", "auto", "cuda", "cuda:99", "mps", "x", "", "cpu:0", "cpu:7", "meta", "cuda:" + "9" * 50],
    "features": ["EffLite0", "Inception:none", "DINOv2:photos", "x", ""],
    "families": ["vae", "x", ",", "vae,vae", ""],
    "latents": ["auto", "run", "x", ".", LONG],
}
SCALARS = [
    "0",
    "-1",
    "1",
    str(2**62),
    str(2**64),
    "1" + "0" * 400,
    "0.5",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "''",
    "'x'",
    "x",
]
SCALARS += ["true", "[]", "[1]", "['x']", "{}", "[[[[1]]]]", "[" * 2000, "2020-01-01", "'\\u0000'", "", "[-1]", "[nan]"]
ENVIRONMENT = {
    "CALOTYPE_CACHE": [
        "",
        "~nosuchuser/cache",
        LONG,
        "photos/0.png",
        "/proc/none",
        "caf\udce9",
        "loop/x",
        "dangling/x",
    ],
    "XDG_CACHE_HOME": ["", "~nosuchuser", LONG, "relative", "photos/0.png"],
    "HOME": ["", "~nosuchuser", "none", LONG],
    "WORLD_SIZE": ["", "0", "-1", "x", "1", "2", "9" * 5000, "1.5", "٣"],
    "RANK": ["", "x", "-1", "5", "9" * 5000],
    "LOCAL_RANK": ["", "x", "-1"],
    "MASTER_PORT": ["", "x", "0", "70000"],
    "TORCHELASTIC_RESTART_COUNT": ["", "x", "1"],
    "TORCHELASTIC_MAX_RESTARTS": ["x", "-1", "1"],
    "CALOTYPE_PATIENCE": ["", "x", "-1", "0", "nan", "inf", "1e400"],
    "COLUMNS": ["", "0", "-1", "1", "x", "9" * 30],
    "LINES": ["x", "0"],
    "TERM": ["", "dumb", "nonsense"],
    "NO_COLOR": ["", "1"],
    "FORCE_COLOR": ["1"],
    "TMPDIR": ["none", LONG, "photos/0.png"],
    "TZ": ["", "nonsense", "/etc/passwd", ":x"],
    "CC": ["", "none", "false"],
}
ENCODINGS = ["utf-8", "utf-8", "ascii", "latin-1", "cp1252"]
STATUSES = {0, 1, 2}
# What runs for long by itself: these options always have these values, unless the line is wrong by them.
TINY = {
    "train": {"budget": "32img", "preset": "tiny", "size": "8", "out": "new/run"},
    "compare": {"budget": "32img", "families": "vae", "size": "8", "n": "2", "out": "new/compare"},
    "demo": {"budget": "32img", "out": "new/demo"},
    "sample": {"n": "1"},
    "complete": {"n": "1"},
    "evaluate": {"n": "2"},
    "interpolate": {"steps": "3"},
}
FIRST = {  # words that a command takes by their place
    "check": ["photos"],
    "train": ["vae", "photos"],
    "compare": ["photos"],
    "plan": ["run/config.toml"],
    "interpolate": ["run", "photos/0.png", "photos/1.png"],
    "decode": ["run", "latents.npz"],
    "launch": ["--on", "slurm", "--", "train", "vae", "photos", "--out", "/shared/run"],
    "demo": [],
}
# Commands that take seconds where nothing is wrong with them: their lines have a mistake that is found before.
SLOW = ("train", "compare", "demo", "evaluate")
MISTAKES = [
    ["--device", "cuda:99"],
    ["--nothing", "x"],
    ["--seed", "9" * 5000],
    ["--out", LONG],
    ["--out", "photos/0.png/x"],
]


class Line(NamedTuple):
    """A command line, and what surrounds it."""

    words: Sequence[str]
    variables: Mapping[str, str]
    encoding: str

    def __str__(self) -> str:
        around = " ".join(f"{name}={value[:40]!r}" for name, value in self.variables.items())
        words = shlex.join(word if len(word) <= 80 else f"{word[:20]}({len(word)})" for word in self.words)
        return f"{around} [{self.encoding}] calotype {words}"


def options_of(name: str) -> list[tuple[str, Any]]:
    """The options that a command declares, with their types as text."""
    parameters = signature(cli.COMMANDS[name]).parameters.values()
    return [
        (p.name, str(p.annotation))
        for p in parameters
        if p.kind is not p.POSITIONAL_ONLY and p.name not in ("display", "settings", "baselines")  # of Python alone
    ]


def assignment(draw: random.Random, dotted: bool) -> str:
    """KEY=VALUE for any field of a config, of any type, or what is none."""
    if draw.random() < 0.1:
        return draw.choice(["", "=", "x", "x=1", "model.=1", ".x=1", "model=1", "\0=1", "model.x.y=1", "=1"])
    if not dotted:
        names = [key for family in FAMILIES.values() for key in family.Options.__dataclass_fields__]
        return f"{draw.choice(names)}={draw.choice(SCALARS)}"
    known = sections(draw.choice(sorted(FAMILIES)))
    section = draw.choice(sorted(known))
    return f"{section}.{draw.choice(sorted(known[section].__dataclass_fields__))}={draw.choice(SCALARS)}"


def value_of(draw: random.Random, command: str, option: str, kind: str) -> list[str]:
    """Words for an option: its name, and a value that is likely to be wrong."""
    word = f"--{option.replace('_', '-')}"
    if option == "set":
        return [word, assignment(draw, command in ("train", "plan"))]
    if "Flag" in kind:
        return [word]
    if option in SPECIFIC and draw.random() < 0.8:
        return [word, draw.choice(SPECIFIC[option])]
    if "Path" in kind:
        return [word, draw.choice(PLACES)]
    if any(type_ in kind for type_ in ("int", "Number", "Real", "float")):
        return [word, draw.choice(NUMBERS)]
    return [word, draw.choice(TEXTS)]


def line(seed: int) -> Line:
    """The command line of a number, always the same."""
    draw = random.Random(seed)
    name = draw.choice(sorted(cli.COMMANDS))
    first = list(FIRST.get(name, ["run", "photos"] if name not in ("sample", "evaluate") else ["run"]))
    options = {key: [f"--{key}", value] for key, value in TINY.get(name, {}).items()}
    if name == "encode":
        options["out"] = ["--out", "new-latents.npz"]
    for option, kind in draw.sample(options_of(name), k=min(draw.choice([0, 1, 1, 2, 3]), len(options_of(name)))):
        options[option] = value_of(draw, name, option, kind)
    if first and draw.random() < 0.35 and name != "launch":
        first[draw.randrange(len(first))] = draw.choice(SOURCES)
    variables = {}
    for variable in draw.sample(sorted(ENVIRONMENT), k=draw.choice([0, 0, 0, 1, 2])):
        variables[variable] = draw.choice(ENVIRONMENT[variable])
    if variables.get("WORLD_SIZE") == "2":
        variables.pop("MASTER_PORT", None)  # else it waits for the others
    words = [name, *first, *(word for pair in options.values() for word in pair)]
    if name == "launch":
        words = [name, *(word for pair in options.values() for word in pair), *first]
    if name in SLOW and (seed % 20 or name == "demo"):
        words += draw.choice(MISTAKES)
    if draw.random() < 0.05:
        words = draw.choice([[], [""], ["nothing"], ["--nothing"], [name, "--help"], ["\0"], ["caf\udce9"], words[:-1]])
    return Line(words, variables, draw.choice(ENCODINGS))


class TookTooLong(BaseException):
    """A line that goes on and on; no Exception, which the command could take for its own."""


class Answer(NamedTuple):
    """What came of a command line."""

    status: int
    errors: str
    seconds: float
    raised: str


@contextmanager
def surrounded(given: Line) -> Iterator[io.BytesIO]:
    """The environment and the streams of a line; gives what is written to standard error."""
    known = dict(os.environ)
    output, errors = io.BytesIO(), io.BytesIO()
    before = sys.stdout, sys.stderr
    os.environ.update(given.variables)
    sys.stdout = io.TextIOWrapper(output, encoding=given.encoding, errors=process.DEGRADE)
    sys.stderr = io.TextIOWrapper(errors, encoding=given.encoding, errors=process.DEGRADE, write_through=True)
    try:
        yield errors
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.detach()  # else it closes what it has written to
        sys.stdout, sys.stderr = before
        os.environ.clear()
        os.environ.update(known)


def answer(given: Line) -> Answer:
    """Run a line in this process."""
    started, raised, status = time.monotonic(), "", -1

    def stop(*_: object) -> None:
        raise TookTooLong

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    with surrounded(given) as errors:
        try:
            status = cli.main(given.words)
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 2
        except BaseException:
            raised = traceback.format_exc()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
    return Answer(status, errors.getvalue().decode(given.encoding), time.monotonic() - started, raised)


def contents(folder: Path) -> dict[str, str]:
    """Digests of the files below a folder, by their paths."""
    found = {}
    for base, _, names in os.walk(folder):
        for name in names:
            path = Path(base, name)
            if path.is_file() and not path.is_symlink():
                found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a run, pictures, latents, a report, and all kinds of odd entries; the current one.

    The folders above it and the home directory are the test's as well, and small.
    """
    above = tmp_path_factory.mktemp("surroundings")
    base = above / "a" / "b"
    (above / "home").mkdir()
    (base / "photos").mkdir(parents=True)
    for k in range(24):
        pixels = np.random.default_rng(k).integers(0, 255, (8, 8), np.uint8)
        Image.fromarray(pixels).save(base / "photos" / f"{k}.png")
    (base / "dangling").symlink_to("nowhere")
    (base / "loop").symlink_to("loop")
    os.mkfifo(base / "pipe")
    (base / "report.json").write_text("{}")
    (base / "comparison").mkdir()
    (base / "comparison" / "compare.toml").write_text("x = 1\n")
    (base / "locked").mkdir(mode=0)
    before = Path.cwd()
    os.chdir(base)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CALOTYPE_CACHE", str(base / "cache"))
        patch.setenv("HOME", str(above / "home"))
        assert cli.main(["train", "vae", "photos", "--budget", "32img", "--preset", "tiny", "--out", "run"]) == 0
        assert cli.main(["encode", "run", "photos", "--out", "latents.npz"]) == 0
        yield base
    os.chdir(before)
    (base / "locked").chmod(0o700)


def tidy(base: Path, kept: set[str]) -> list[str]:
    """Remove what a command made, and say what of it is half-written."""
    half = [str(path) for path in base.rglob("*.tmp")]
    for path in base.iterdir():
        if path.name not in kept and path.name != "cache":
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return half


def complaint(found: Answer) -> str:
    """What is wrong with an answer, or nothing."""
    if found.raised:
        return found.raised
    if found.status not in STATUSES:
        return f"status {found.status}"
    if found.status == 2 and not found.errors.strip():
        return "no message"
    if "Traceback" in found.errors:
        return "a traceback is printed"
    return ""


@pytest.mark.slow
@pytest.mark.fault("command lines and environments that nobody should give", "each is refused or done; nothing is lost")
def test_no_command_line_ends_in_a_traceback(place: Path, survived: Survived, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "XDG_CACHE_HOME", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    kept = {path.name for path in place.iterdir()}
    fixed = ("photos", "run", "comparison", "latents.npz", "report.json")
    whole = {name: digest for name, digest in contents(place).items() if name.split("/")[0] in fixed}
    failures, slowest = [], (0.0, "")
    began = time.monotonic()
    for seed in range(int(os.environ.get("FIRST_LINE", "0")), LINES):
        given = line(seed)
        found = answer(given)
        slowest = max(slowest, (found.seconds, f"line {seed}: {given}"))
        wrong = complaint(found)
        if half := tidy(place, kept):
            wrong += f" half-written: {half}"
        if wrong:
            failures.append(f"line {seed}: {given}\n{wrong[-1500:]}")
            if len(failures) == 10:
                break
    now = contents(place)
    lost = [name for name, digest in whole.items() if now.get(name) != digest]
    assert not failures, "\n\n".join(failures)
    assert not lost, lost
    print(f"{time.monotonic() - began:.0f} s; the slowest took {slowest[0]:.1f} s: {slowest[1]}")
    survived(LINES)


# -- signals and streams, in processes of their own

COMMAND = [sys.executable, "-m", "calotype"]


def started(*words: str, **variables: str) -> subprocess.Popen[str]:
    """A command in a process of its own."""
    return subprocess.Popen(
        [*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables_of(**variables)
    )


def shell(line: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A line of bash in which `calotype` is this one."""
    command = f"{shlex.join(COMMAND[:1])} ${{BARE:+-S}} {shlex.join(COMMAND[1:])}"
    script = f'calotype() {{ {command} "$@"; }}\nset -o pipefail\n{line}'
    return subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, env=variables_of(**variables), errors="replace"
    )


def wait_for(process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
    """Wait until a process has come somewhere."""
    began = time.monotonic()
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - began < 120
        time.sleep(0.02)


def progressed(run: Path) -> bool:
    return (run / "log.jsonl").exists() and (run / "log.jsonl").read_text().count('"progress"') >= 2


@pytest.mark.fault("SIGHUP and SIGUSR1, as where a connection is lost or time is over", "it stops, saved at its step")
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_a_lost_connection_loses_nothing(place: Path, number: signal.Signals) -> None:
    run = place / f"stopped-{number}"
    process = started("train", "vae", "photos", "--budget", "900kimg", "--preset", "tiny", "--out", str(run))
    wait_for(process, lambda: progressed(run))
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Continue with: calotype train --resume" in errors
    assert max(int(folder.name) for folder in (run / "checkpoints").glob("0*")) > 0


@pytest.mark.slow
@pytest.mark.fault("a reader of the output that goes away, in training", "it stops, saved at its step, with status 141")
def test_a_broken_pipe_stops_training_and_loses_nothing(place: Path) -> None:
    run = place / "piped"
    process = started("train", "vae", "photos", "--budget", "900kimg", "--preset", "tiny", "--out", str(run))
    wait_for(process, lambda: progressed(run))
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGPIPE, errors
    assert max(int(folder.name) for folder in (run / "checkpoints").glob("0*")) > 0
    assert '"stopped"' in (run / "log.jsonl").read_text()


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("calotype check photos >&-", 0, ""),
        ("calotype check photos >/dev/full", 1, "standard output cannot be written (No space left on device)"),
        ("calotype check photos | true", 141, ""),
        ("calotype --help | true", 141, ""),
        ("calotype check none 2>/dev/full", 2, ""),
        ("calotype check none 2>&- >&- <&-", 2, ""),
    ],
)
def test_streams_that_fail(place: Path, line: str, status: int, said: str) -> None:
    done = shell(line)  # in the folder of the fixture
    assert (done.returncode, "Traceback" in done.stderr) == (status, False), done.stderr
    assert said in done.stderr
    assert said or not done.stderr


# With an ASCII locale, Python 3.11 does not start at all from an environment that says in a .pth file that its packages
# lie below letters outside ASCII: here it is told so in another way.
ANYWHERE = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "BARE": "1"}


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"} | ANYWHERE,
        {"OMP_NUM_THREADS": "x", "COLUMNS": "0", "TERM": "nonsense", "TMPDIR": "/nowhere", "HOME": "/nowhere"},
    ],
)
def test_output_without_unicode(place: Path, variables: dict[str, str]) -> None:
    shutil.copytree(place / "photos", place / "größe", dirs_exist_ok=True)
    (place / "größe" / "Äpfel.png").write_bytes(b"none")
    done = shell("calotype check größe; calotype check --help >/dev/null", **variables)
    assert "Traceback" not in done.stderr
    assert done.stdout if "PYTHONUTF8" not in variables else "PYTHONUTF8=1" in done.stderr


def test_any_text_can_be_written_in_any_encoding() -> None:
    for encoding in ("ascii", "latin-1", "cp437", "shift-jis", "utf-8"):
        text = "".join(map(chr, [*range(1, 0x3000), *range(0xD800, 0xE000), 0x1F600])).encode(encoding, process.DEGRADE)
        assert text.decode(encoding)
    assert "FD∞ 8×8 │━ é caf\udce9".encode("ascii", process.DEGRADE) == rb"FDinf 8x8 |- \xe9 caf\xe9"


@pytest.mark.parametrize("words", [["check"], ["train", "vae"], ["compare"], ["evaluate", "run", "--data"]])
def test_names_that_are_not_utf8_are_refused_by_name(
    words: list[str], place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = os.fsdecode(b"caf\xe9")
    shutil.copytree(place / "photos", place / odd, dirs_exist_ok=True)
    assert cli.main([*words, odd]) == 2
    assert "caf\\xe9' is not UTF-8" in capsys.readouterr().err
    monkeypatch.chdir(place / odd)
    assert cli.main(["check", "."]) == 2  # and where the current folder has such a name
    assert "caf\\xe9' is not UTF-8" in capsys.readouterr().err


def test_classes_whose_names_are_not_utf8_are_learned_under_escaped_names(place: Path) -> None:
    folder = place / "classes"
    for name in (b"caf\xe9", b"tea"):
        shutil.copytree(place / "photos", folder / os.fsdecode(name))
    words = ["--budget", "32img", "--preset", "tiny", "--out", "odd-classes"]
    assert cli.main(["train", "vae", "classes", *words]) == 0
    assert cli.main(["sample", "odd-classes", "-n", "2", "--labels", "caf\\xe9", "--grid", "odd.png"]) == 0


def test_the_current_folder_is_a_path_like_others(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("here", "new"):
        (place / name).mkdir(exist_ok=True)
    monkeypatch.chdir(place / "here")
    words = ["../photos", "--budget", "96img", "--size", "8"]
    assert cli.main(["train", "diffusion", *words, "--out", ".", "--latents", "auto"]) == 0
    assert (place / "here-first" / "config.toml").exists()
    assert cli.main(["sample", ".", "-n", "1"]) == 0
    assert cli.main(["train", "--resume", "."]) == 0
    monkeypatch.chdir(place / "photos")
    assert cli.main(["evaluate", ".", "--data", "../photos", "-n", "2"]) == 0
    assert (place / "photos-evaluation" / "evaluation.json").exists()
    shutil.rmtree(place / "photos-evaluation")
    assert cli.main(["evaluate", "/", "--data", "../photos", "-n", "2"]) == 2


def test_a_recipe_may_be_a_run(place: Path) -> None:
    assert cli.main(["train", "--recipe", "run", "--out", "again"]) == 0
    assert (place / "again" / "config.toml").read_text() == (place / "run" / "config.toml").read_text()


# -- signals, in this process


@pytest.fixture
def _handlers() -> Iterator[None]:
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number in previous:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in previous.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_handlers")
def test_a_stop_says_the_way_on_of_the_outermost_block(capfd: pytest.CaptureFixture[str]) -> None:
    def command() -> int:
        with way_on("Continue with: calotype compare --resume X"), way_on("Continue with: calotype train --resume Y"):
            signal.raise_signal(signal.SIGTERM)
        return 0

    assert process.run(command) == 128 + signal.SIGTERM
    assert capfd.readouterr().err == "calotype: stopped. Continue with: calotype compare --resume X\n"


@pytest.mark.usefixtures("_handlers")
def test_a_signal_that_is_ignored_stays_so() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as by nohup
    with stops_raised():
        signal.raise_signal(signal.SIGHUP)
        with stop_requests() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop() == 0
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_what_is_no_signal_can_ask_a_loop_to_stop() -> None:
    assert not request(signal.SIGPIPE)
    with stop_requests() as stop:
        assert request(signal.SIGPIPE)
        assert stop() == signal.SIGPIPE


@pytest.mark.usefixtures("_handlers")
def test_a_mistake_of_calotype_asks_for_a_report(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def command() -> int:
        raise KeyError("x")

    monkeypatch.delenv("CALOTYPE_TRACEBACK", raising=False)
    assert process.run(command) == process.BUG
    said = capfd.readouterr().err
    assert "this is a bug in Calotype: KeyError at test_surroundings.py" in said
    assert "Traceback" not in said
    monkeypatch.setenv("CALOTYPE_TRACEBACK", "1")
    process.run(command)
    assert "Traceback" in capfd.readouterr().err


# -- environment variables


@pytest.mark.parametrize("value", ["x", "-1", "1.5", "9" * 5000, "٣", "3"])
def test_a_number_of_the_environment_is_one_or_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", value)
    with pytest.raises(ConfigError, match="RANK is"):
        environment.whole("RANK", 0, most=2)
    monkeypatch.setenv("RANK", "")
    assert environment.whole("RANK", 2) == 2


def test_processes_that_nobody_brings_together(
    capsys: pytest.CaptureFixture[str], monkeypatch: Any, place: Path
) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = ["train", "vae", "photos", "--budget", "32img", "--out", "never"]
    assert cli.main(words) == 2
    assert "RANK is not set" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "0")
    assert cli.main(words) == 2
    assert "MASTER_ADDR is not set" in capsys.readouterr().err
