"""Command lines and environments that nobody should give: each ends with a status and a message, and breaks nothing.

Arguments are made from the declared options of each command, with values of all kinds of wrong. `make faults` tries five
times as many.
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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from calotype import cli, environment, terminal
from calotype.errors import ConfigError
from calotype.families import FAMILIES
from calotype.request import sections
from calotype.signals import Stopped
from tests.conftest import Survived
from tests.conftest import environment as variables_of
from tests.faults import FAULTS

INPUTS = ("photos/0.png", "run", "run/config.toml", "run/log.jsonl", "report.json", "latents.npz")
LINES = 10_000 if FAULTS else 2_000
SECONDS = 10.0  # that one of them may take on an idle machine, twice over
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
    return [(p.name, str(p.annotation)) for p in parameters if p.kind is not p.POSITIONAL_ONLY]


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
        kinds = PLACES if option in ("recipe", "resume") else [place for place in PLACES if place not in INPUTS]
        return [word, draw.choice(kinds)]
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
    if name in SLOW and seed % 20:
        words += draw.choice(MISTAKES)
    if draw.random() < 0.05:
        words = draw.choice([[], [""], ["nothing"], ["--nothing"], [name, "--help"], ["\0"], ["caf\udce9"], words[:-1]])
    return Line(words, variables, draw.choice(ENCODINGS))


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
    sys.stdout = io.TextIOWrapper(output, encoding=given.encoding, errors=terminal.DEGRADE)
    sys.stderr = io.TextIOWrapper(errors, encoding=given.encoding, errors=terminal.DEGRADE, write_through=True)
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
        raise TimeoutError

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 10 * SECONDS)
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
    """A folder with a run, pictures, latents, a report, and all kinds of odd entries; the current one."""
    base = tmp_path_factory.mktemp("surroundings")
    (base / "photos").mkdir()
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


@pytest.mark.fault("command lines and environments that nobody should give", "each is refused or done; nothing is lost")
def test_no_command_line_ends_in_a_traceback(place: Path, survived: Survived, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "XDG_CACHE_HOME", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    kept = {path.name for path in place.iterdir()}
    fixed = ("photos", "run", "comparison", "latents.npz", "report.json")
    whole = {name: digest for name, digest in contents(place).items() if name.split("/")[0] in fixed}
    failures, slowest = [], (0.0, "")
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
    print(f"the slowest took {slowest[0]:.1f} s: {slowest[1]}")
    survived(LINES)
