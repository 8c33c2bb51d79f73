"""What a stranger may send: runs, packs, recipes, reports and arrays. Nothing in them is run, and whatever they say,
the answer is what they hold, or an error that says what is wrong.

`make faults` tries ten times as many.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import pickle
import resource
import shutil
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import calotype
from calotype.applications.comparison.job import kept
from calotype.applications.comparison.job import read as read_comparison
from calotype.applications.latents import read
from calotype.core.config import plain
from calotype.core.images import read_png
from calotype.data import DataConfig, PackedDataset, prepare
from calotype.errors import CalotypeError, ConfigError, DataError, RunError
from calotype.evaluation import features
from calotype.evaluation.comparison import Comparison
from calotype.evaluation.report import Report
from calotype.evaluation.training_curves import points
from calotype.families import FAMILIES
from calotype.optimization.trainer import Trainer
from calotype.runs import checkpoints
from calotype.runs.run import FIRST, Run
from calotype.training import setup
from calotype.training.recipe import request
from tests.conftest import Survived
from tests.evaluation.test_comparison import comparison, report
from tests.faults import FAULTS
from tests.pictures import folder_of, png_header
from tests.runs.test_resume import Quiet

EXAMPLES = 25 * max(1, FAULTS // 5)
ROOM = 2 << 30  # bytes of memory that no hostile file may take in one piece

fuzz = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),  # shrinking would take minutes: the file is in the message
    suppress_health_check=list(HealthCheck),
)


# -- what is done to a file

ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    1,
    2**31,
    2**62,
    2**64,
    10**400,
    0.5,
    -1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "..",
    "../../../etc/passwd",
    "/etc/passwd",
    "\0",
    "\x1b[2J",
    "\ud800",
    "x" * 100_000,
    [],
    {},
    [1],
    ["x"],
    {"x": 1},
    [[[]]],
    [1e308] * 1000,
]


def deep(levels: int) -> Any:
    found: Any = 1
    for _ in range(levels):
        found = [found]
    return found


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to all values within a value."""
    yield at
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inside:
        yield from places(part, (*at, key))


def changed(value: Any, at: tuple[Any, ...], other: Any) -> Any:
    """A value with another at one place of it; DROP leaves that out, MORE adds to it."""
    if not at:
        return other
    copy = dict(value) if isinstance(value, dict) else list(value)
    if len(at) == 1 and other is DROP:
        del copy[at[0]]
    elif len(at) == 1 and other is MORE and isinstance(copy, dict):
        copy["unheard of"] = 1
    else:
        copy[at[0]] = changed(copy[at[0]], at[1:], None if other in (DROP, MORE) else other)
    return copy


class _Mark(str):
    """A thing to do that is no value."""


DROP, MORE = _Mark("drop"), _Mark("more")


def mutated(data: st.DataObject, value: Any) -> Any:
    """A value of which one to three places are others."""
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.sampled_from(list(places(value))))
        value = changed(value, at, data.draw(st.sampled_from([*ODD, DROP, MORE])))
    if data.draw(st.integers(0, 9)) == 0:
        value = changed(value, data.draw(st.sampled_from(list(places(value)))), deep(data.draw(st.integers(30, 300))))
    return value


def damaged(data: st.DataObject, content: bytes) -> bytes:
    """Bytes cut off, with bits flipped, with a stretch doubled, or altogether others."""
    kind = data.draw(st.sampled_from(["cut", "flip", "double", "other"]))
    if kind == "other" or not content:
        return data.draw(st.sampled_from([b"", b"\0" * 64, b"[" * 100_000, b'{"a":' * 100_000, PICKLE, b"\xff\xfe"]))
    at = data.draw(st.integers(0, len(content) - 1))
    if kind == "cut":
        return content[:at]
    if kind == "double":
        return content[:at] + content[at // 2 :]
    changes = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        changes[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    return bytes(changes)


class Trap:
    """What creates a file where it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return open, (TRAP, "w")


TRAP = str(Path(tempfile.gettempdir()) / f"calotype-test-{os.getpid()}-unpickled")  # of these tests alone
PICKLE = pickle.dumps(Trap())


@pytest.fixture(autouse=True)
def _nothing_is_unpickled() -> Iterator[None]:
    Path(TRAP).unlink(missing_ok=True)
    yield
    assert not Path(TRAP).exists()


@contextmanager
def little_memory(more: int = ROOM) -> Iterator[None]:
    """Refuse this process more memory than it has and some."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def refused(action: Callable[[], object]) -> bool:
    """Whether there is an error that says why; any other is a failure of the test."""
    try:
        with little_memory():
            action()
    except CalotypeError as error:
        assert 10 < len(str(error)) < 50_000  # noqa: PT017
        return True
    return False


def fuzzed(action: Callable[[st.DataObject], bool], survived: Survived) -> None:
    """Try an action with many choices; some of them are to be refused, or nothing was tried."""
    results: list[bool] = []

    @fuzz
    @given(st.data())
    def run(data: st.DataObject) -> None:
        results.append(action(data))

    run()
    assert sum(results) > len(results) // 10
    survived(len(results))


def toml(value: Any) -> str:
    """Any value on one line of TOML; what has no form there becomes a text."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{json.dumps(key)} = {toml(part)}' for key, part in value.items())} }}"
    return json.dumps(str(value), ensure_ascii=False)


def write_config(path: Path, values: Any) -> None:
    """A TOML file of any values."""
    lines = (
        [f"{json.dumps(key)} = {toml(value)}" for key, value in values.items()]
        if isinstance(values, dict)
        else [toml(values)]
    )
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))


# -- runs

LEVELS = {"widths": [16, 16], "blocks": [1, 1], "latents": [0, 1], "point": False, "patch": 1, "latent_width": 3}
SECOND = {"model": {"widths": [16], "blocks": 1, "attention": []}, "training": {"batch_size": 8}}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a vae, and one of a diffusion model of its latents."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("calotype.training.session.FINAL_GRID", 4)
        told: dict[str, Any] = {"budget": "32img", "display": Quiet()}
        first = {"model": LEVELS, "training": {"batch_size": 8, "threads": 1}}
        setup.train("vae", "glyphs:gray:60", size="8", out=home / "first", settings=first, **told)
        setup.train("diffusion", latents=home / "first", out=home / "second", settings=SECOND, **told)
    for run in (home / "first", home / "second"):
        for old in checkpoints.found(run / "checkpoints")[:-1]:
            shutil.rmtree(old)
    return home


def use(path: Path) -> None:
    """All that reads a run: its log, its model, its place in training."""
    run = Run.open(path)
    points(run.read_log())
    run.best()
    calotype.load(run, device="cpu", report=lambda _: None).sample(1)
    trainer = Trainer(run.config.new_model(), Nothing(run.config.training.batch_size), run.config.training)  # type: ignore[arg-type]
    run.restore(trainer, lambda _: None)


class Nothing:
    """Batches that are never asked for."""

    def __init__(self, size: int) -> None:
        self.size = size


def copied(run: Path, folder: Path) -> Path:
    """A copy of a run, in the place of the last one."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    return shutil.copytree(run, folder / "run")


def signed(checkpoint: Path, content: dict[str, Any]) -> None:
    """Write a state.json with the checksums that belong to it and to the files beside it."""
    content = {key: value for key, value in content.items() if key != "sha256_state"}
    if isinstance(content.get("sha256"), dict):
        for name in content["sha256"]:
            with contextlib.suppress(OSError, ValueError):
                content["sha256"][name] = hashlib.sha256((checkpoint / name).read_bytes()).hexdigest()
    mark = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (checkpoint / "state.json").write_text(json.dumps(content | {"sha256_state": mark}))


def newest(run: Path) -> Path:
    return checkpoints.found(run / "checkpoints")[-1]


@pytest.mark.parametrize("name", ["first", "second"])
@pytest.mark.fault(
    "a run from a stranger: config.toml", "it is refused with the entry and the rule, or is used as it says"
)
def test_a_hostile_config(home: Path, name: str, tmp_path: Path, survived: Survived) -> None:
    config = tomllib.loads((home / name / "config.toml").read_text())
    path = copied(home / name, tmp_path)

    def action(data: st.DataObject) -> bool:
        write_config(path / "config.toml", mutated(data, config))
        return refused(lambda: use(path))

    fuzzed(action, survived)


@pytest.mark.fault(
    "a run from a stranger: a checkpoint whose checksums are right", "it is refused, or is used as it says"
)
def test_a_hostile_checkpoint(home: Path, tmp_path: Path, survived: Survived) -> None:
    def action(data: st.DataObject) -> bool:
        path = copied(home / "first", tmp_path)
        checkpoint = newest(path)
        content = json.loads((checkpoint / "state.json").read_text())
        if data.draw(st.booleans()):
            content = mutated(data, content)
            if not isinstance(content, dict):
                (checkpoint / "state.json").write_text(json.dumps(content))
                return refused(lambda: use(path))
        else:
            spoil_tensors(checkpoint, data)
        signed(checkpoint, content)
        return refused(lambda: use(path))

    fuzzed(action, survived)


def spoil_tensors(checkpoint: Path, data: st.DataObject) -> None:
    """Change what a file of tensors holds: one less, one more, another shape, another type, another name."""
    file = checkpoint / data.draw(st.sampled_from(["model.safetensors", "ema.safetensors", "optimizers.safetensors"]))
    tensors = load_file(file)
    name = data.draw(st.sampled_from(sorted(tensors)))
    value = tensors.pop(name)
    others: list[dict[str, torch.Tensor]] = [
        {},
        {f"{name}x": value},
        {"a|b": value},
        {"model|99999999999999999999|step": value},
        {"model|5000|step": value},
        {name: value[None]},
        {name: value.to(torch.int64)},
        {name: value * math.nan},
        {name: torch.zeros(0)},
    ]
    save_file({key: part.contiguous() for key, part in (tensors | data.draw(st.sampled_from(others))).items()}, file)


FILES = ["config.toml", "log.jsonl", "state.json", "model.safetensors", "ema.safetensors", "optimizers.safetensors"]


@pytest.mark.parametrize("name", ["first", "second"])
@pytest.mark.fault("a run from a stranger: bytes of any file", "it is refused; log lines that are none are passed over")
def test_hostile_bytes(home: Path, name: str, tmp_path: Path, survived: Survived) -> None:
    def action(data: st.DataObject) -> bool:
        path = copied(home / name, tmp_path)
        below = path / FIRST if name == "second" and data.draw(st.booleans()) else path
        file = data.draw(st.sampled_from(FILES))
        place = newest(below) / file if (newest(below) / file).exists() else below / file
        place.write_bytes(damaged(data, place.read_bytes() if place.exists() else b""))
        if place.suffix == ".safetensors" and place.parent != below and data.draw(st.booleans()):
            signed(place.parent, json.loads((place.parent / "state.json").read_text()))
        return refused(lambda: use(path))

    fuzzed(action, survived)


@pytest.mark.fault("a run from a stranger: lines of the log", "lines that are no records are passed over")
def test_a_hostile_log(home: Path, tmp_path: Path, survived: Survived) -> None:
    path = copied(home / "first", tmp_path)
    lines = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
    tried = []

    @fuzz
    @given(st.data())
    def run(data: st.DataObject) -> None:
        changes = [mutated(data, data.draw(st.sampled_from(lines))) for _ in range(3)]
        told = "".join(f"{json.dumps(line)}\n" for line in [*lines, *changes, lines[0]])
        (path / "log.jsonl").write_text(told)
        assert not refused(lambda: points(Run.open(path).read_log()))
        assert len(Run.open(path).read_log()) > len(lines)
        tried.append(told)

    run()
    assert len(Run.open(home / "first").read_log()) == len(lines)
    survived(len(tried))


@pytest.mark.parametrize("name", ["state.json", "ema.safetensors", "config.toml", "log.jsonl"])
@pytest.mark.parametrize("what", ["pipe", "device", "folder", "nothing", "huge"])
@pytest.mark.fault(
    "a run from a stranger: pipes, devices and files of terabytes", "they are not read; nothing waits for ever"
)
def test_files_that_never_end(home: Path, tmp_path: Path, name: str, what: str) -> None:
    path = copied(home / "first", tmp_path)
    file = path / name if (path / name).exists() else newest(path) / name
    file.unlink()
    if what == "pipe":
        os.mkfifo(file)
    elif what == "device":
        file.symlink_to("/dev/zero")
    elif what == "folder":
        file.mkdir()
    elif what == "huge":
        with file.open("wb") as sparse:
            sparse.truncate(1 << 38)
        if name in ("log.jsonl", "ema.safetensors"):  # a line, or tensors, that long
            file.unlink()
            file.write_bytes(b"\xff" * 8 + b"{")
    assert refused(lambda: use(path)) == (name != "log.jsonl" or what not in ("nothing", "huge"))


def test_a_run_that_is_its_own_first_stage(home: Path, tmp_path: Path) -> None:
    path = copied(home / "second", tmp_path)
    shutil.rmtree(path / FIRST)
    (path / FIRST).symlink_to(path)
    with pytest.raises(RunError, match="is itself a model of latents"):
        use(path)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("model", "widths", [2**40, 2**40], "parameters, which take|multiples of 16|fit"),
        ("model", "blocks", [2**31, 1], "has more than 20,000 parts"),
        ("dataset", "height", 2**40, "pixels"),
        ("training", "batch_size", 2**40, "at most"),
        ("training", "threads", 2**31, "at most"),
        ("data", "width", 2**31, "pixels"),
        ("data", "source", f"glyphs:gray:{10**12}", "at most"),
    ],
)
@pytest.mark.fault("a run from a stranger: sizes that no machine has", "they are refused before memory is asked for")
def test_sizes_that_no_machine_has(
    home: Path, tmp_path: Path, section: str, key: str, value: Any, message: str
) -> None:
    path = copied(home / "first", tmp_path)
    config = tomllib.loads((path / "config.toml").read_text())
    config[section][key] = value
    if key == "width":
        config[section]["height"] = value
    write_config(path / "config.toml", config)
    with little_memory(), pytest.raises(ConfigError, match=rf"{message}|cannot change on the way"):
        setup.resume(path, display=Quiet())
    if section == "model":  # where there is no checkpoint of another network to compare with
        with little_memory(), pytest.raises(ConfigError, match=message):
            Run.open(path).config.new_model()


def test_weights_of_another_network_are_told_and_kept(home: Path, tmp_path: Path) -> None:
    """Not a damaged checkpoint: it is not put aside, and no training begins anew."""
    path = copied(home / "first", tmp_path)
    text = (path / "config.toml").read_text()
    (path / "config.toml").write_text(text.replace("widths = [16, 16]", "widths = [16, 32]"))
    with pytest.raises(ConfigError, match=r"model.widths is \[16, 32\], and was \[16, 16\]"):
        setup.resume(path, display=Quiet())
    with pytest.raises(RunError, match="is not of the network that config"):
        calotype.load(path)
    assert newest(path).name == newest(home / "first").name


def test_counters_are_counters_and_nothing_else(home: Path, tmp_path: Path) -> None:
    path = copied(home / "first", tmp_path)
    content = json.loads((newest(path) / "state.json").read_text())
    content["counters"]["run"] = 1
    signed(newest(path), content)
    with pytest.raises(RunError, match="are not those of its run"):
        use(path)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.fault("a run from a stranger: settings of a network", "it is refused, or built as it says if it fits")
def test_a_hostile_network(home: Path, name: str, tmp_path: Path, survived: Survived) -> None:
    config = tomllib.loads((home / "first" / "config.toml").read_text())
    family, spec = FAMILIES[name], Run.open(home / "first").config.spec
    images = torch.zeros(4, *spec.shape, dtype=torch.uint8)
    presets = [plain(family.measured(preset.model, images)) for preset in family.presets(spec).values()]

    def action(data: st.DataObject) -> bool:
        model = mutated(data, data.draw(st.sampled_from(presets)))
        write_config(tmp_path / "config.toml", config | {"family": name, "model": model})
        return refused(lambda: Run.open(tmp_path).config.outline())

    fuzzed(action, survived)


# -- packs


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    folder = folder_of(tmp_path_factory.mktemp("photos"), [f"{'ab'[i % 2]}/{i}.png" for i in range(24)])
    return prepare(DataConfig(source=str(folder)), cache=folder.parent / "packs-of-photos")


def read_all(path: Path) -> None:
    opened = PackedDataset.open(path)
    opened.survey()
    for indices in (opened.train, opened.held_out):
        opened.read(indices)


def array_of(data: st.DataObject) -> np.ndarray[Any, Any]:
    """An array that a pack may be given instead of its own."""
    shape = data.draw(st.sampled_from([(), (0,), (1,), (24,), (25,), (24, 1), (2, 12)]))
    dtype = data.draw(st.sampled_from(["u1", "i8", "f4", "c16", "U3", "M8[s]", "?"]))
    return np.zeros(shape, dtype) + np.zeros((), dtype) if dtype in ("u1", "i8", "f4") else np.zeros(shape, dtype)


def npy_head(shape: str, descr: str = "|u1") -> bytes:
    """The head of an .npy file that claims any shape."""
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


HEADS = [
    npy_head("(1000000000000,)"),
    npy_head("(-1,)"),
    npy_head("(24,)", "|O"),
    npy_head("(24, 99999999999, 99999999999)"),
    npy_head("(" * 5000),
    npy_head("(24,)", "|u99"),
    npy_head(f"({10**400},)"),
]


PACKED = ["dataset.json", "survey.json", "split.npy", "labels.npy", "images.u8"]


@pytest.mark.fault("a pack from a stranger", "it is no whole pack, and pictures are packed again")
def test_a_hostile_pack(pack: PackedDataset, tmp_path: Path, survived: Survived) -> None:
    def action(data: st.DataObject) -> bool:
        shutil.rmtree(tmp_path / "pack", ignore_errors=True)
        path = shutil.copytree(pack.path, tmp_path / "pack")
        file = path / data.draw(
            st.sampled_from(["dataset.json", "survey.json", "split.npy", "labels.npy", "images.u8"])
        )
        kind = data.draw(st.integers(0, 2))
        if kind and file.suffix == ".json":
            file.write_text(json.dumps(mutated(data, json.loads(file.read_text()))))
        elif kind == 1 and file.suffix == ".npy":
            np.save(file, array_of(data))
        elif kind == 2 and file.suffix == ".npy":
            file.write_bytes(data.draw(st.sampled_from([*HEADS, PICKLE])))
        else:
            file.write_bytes(damaged(data, file.read_bytes()))
        return refused(lambda: read_all(path))

    fuzzed(action, survived)


def test_a_hostile_pack_is_made_again(pack: PackedDataset, tmp_path: Path) -> None:
    shutil.copytree(pack.path.parent, tmp_path / "packs")
    here = tmp_path / "packs" / pack.path.name
    for name, content in (("dataset.json", "[1]"), ("split.npy", "x"), ("labels.npy", "")):
        (here / name).write_text(content)
        assert prepare(pack.config, cache=tmp_path).digest == pack.digest


# -- recipes, comparisons and reports


@pytest.mark.fault("a recipe from a stranger", "it is refused with the entry and the rule, or asks for what it says")
def test_a_hostile_recipe(home: Path, tmp_path: Path, survived: Survived) -> None:
    config = tomllib.loads((home / "first" / "config.toml").read_text())
    (tmp_path / "compared").mkdir()
    asked = {"budget": "1h", "families": ["vae"], "baselines": [], "n": 0, "seed": 0, "features": "EffLite0"}
    asked["data"] = {"source": "glyphs"}

    def action(data: st.DataObject) -> bool:
        write_config(tmp_path / "recipe.toml", mutated(data, config))
        write_config(tmp_path / "compared" / "compare.toml", mutated(data, asked))
        nothing = {"budget": None, "preset": None, "size": None, "settings": {}}
        bad = refused(lambda: request("", "", recipe=tmp_path / "recipe.toml", **nothing))
        return refused(lambda: read_comparison(tmp_path / "compared")) or bad

    fuzzed(action, survived)


@pytest.mark.fault("a report or a comparison from a stranger", "it is refused, or shown as it says")
def test_a_hostile_report(tmp_path: Path, survived: Survived) -> None:
    one = comparison(
        one=report(10, bits="exact 1.2", stages=(3, 2, 1), flagged=True), two=report(20), broken="memory ran out"
    )
    plain = json.loads(json.dumps(one.as_dict()))

    def show(path: Path) -> None:
        found = Comparison.open(path)
        assert found.text().encode()
        json.dumps(found.as_dict())

    def action(data: st.DataObject) -> bool:
        (tmp_path / "comparison.json").write_text(json.dumps(mutated(data, plain)))
        (tmp_path / "report.json").write_text(json.dumps(mutated(data, plain["entries"][0]["report"])))
        (tmp_path / "entry.json").write_text(json.dumps(mutated(data, plain["entries"][1])))
        bad = [
            refused(lambda: show(tmp_path / "comparison.json")),
            refused(lambda: Report.open(tmp_path / "report.json").text().encode()),
            refused(lambda: kept(tmp_path / "entry.json")),
        ]
        return any(bad)

    fuzzed(action, survived)


# -- arrays and pictures


@pytest.mark.fault("latents from a stranger", "they are refused, whatever shape they claim")
def test_hostile_latents(tmp_path: Path, survived: Survived) -> None:
    np.savez(tmp_path / "good.npz", latents=np.zeros((4, 3), np.float32), labels=np.zeros(4, np.int64))
    whole = (tmp_path / "good.npz").read_bytes()

    def action(data: st.DataObject) -> bool:
        path = tmp_path / "z.npz"
        kind = data.draw(st.integers(0, 2))
        if kind == 0:
            path.write_bytes(damaged(data, whole))
        elif kind == 1:
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("latents.npy", data.draw(st.sampled_from([*HEADS, PICKLE])) + b"\0" * 1000)
        else:
            np.savez(path, latents=array_of(data), labels=array_of(data))
        return refused(lambda: read(path))

    fuzzed(action, survived)


@pytest.mark.parametrize("head", HEADS)
def test_pictures_of_a_claimed_shape(tmp_path: Path, head: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(head + b"\0" * 100)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", head + b"\0" * 100)
        archive.writestr("labels.npy", head)
    for name in ("a.npy", "a.npz"):
        with little_memory(), pytest.raises(DataError, match=r"cannot be read as|has shape|none has|holds values"):
            prepare(DataConfig(source=str(tmp_path / name)), cache=tmp_path / "cache")


def test_more_pictures_without_pixels_than_can_be_counted(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(npy_head("(1000000000000, 0, 8)"))
    with pytest.raises(DataError, match="has shape"):
        prepare(DataConfig(source=str(tmp_path / "a.npy")), cache=tmp_path / "cache")


def test_a_preview_that_is_a_bomb(tmp_path: Path) -> None:
    (tmp_path / "000000000032.png").write_bytes(png_header(30_000, 30_000))
    with little_memory(), pytest.raises(DataError, match="cannot be read"):
        read_png(tmp_path / "000000000032.png")


# -- networks of features, which are programs


class Means(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("trick", ["pickled", "compiled", "evaluated"])
@pytest.mark.fault("a feature network that pickles, brings compiled code or has it evaluated", "nothing of it is run")
def test_a_hostile_feature_network(tmp_path: Path, trick: str) -> None:
    batch = torch.export.Dim("batch")
    program = torch.export.export(Means(), (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "means.pt2")
    with zipfile.ZipFile(tmp_path / "means.pt2") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(members)).partition("/")[0]
    if trick == "pickled":
        torch.save({"x": Trap()}, tmp_path / "trap.pt")
        members[f"{root}/data/sample_inputs/model.pt"] = (tmp_path / "trap.pt").read_bytes()
    elif trick == "compiled":
        members[f"{root}/data/aotinductor/model/model.so"] = b"\x7fELF"
    else:
        name = f"{root}/models/model.json"
        told = json.loads(members[name])
        evil = f"open({TRAP!r}, 'w')"
        text = json.dumps(told).replace(json.dumps("Symbol('s77', positive=True, integer=True)"), json.dumps(evil))
        assert evil in text
        members[name] = text.encode()
    with zipfile.ZipFile(tmp_path / "evil.pt2", "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(ConfigError, match="cannot be used as a feature network"):
        features.own_network(tmp_path / "evil.pt2")


def test_torch_itself_is_told_to_unpickle_weights_alone(tmp_path: Path) -> None:
    """Where this fails, `weights_only` of the feature networks does nothing any more."""
    torch.save({"x": Trap()}, tmp_path / "trap.pt")
    with features.weights_only(), pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "trap.pt", weights_only=False)
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
