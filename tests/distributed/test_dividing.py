"""Weights that processes hold between them, and blocks that compute twice: the same steps as without."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from calotype import cli
from calotype.core.model import GenerativeModel
from calotype.core.rng import seeded
from calotype.distributed import sharding
from calotype.families import FAMILIES
from calotype.optimization.config import TrainConfig
from calotype.optimization.trainer import Trainer
from calotype.runs import checkpoints
from calotype.runs.run import Run
from tests.conftest import Stripes
from tests.distributed.test_processes import CASES as PROCESSES_CASES
from tests.distributed.test_processes import COMMAND, SPEC, assert_alike, launched, started, weights, worker

CASES = PROCESSES_CASES | {"gan without norms": ("gan", {"network": "normfree"})}
STEPS = 3
SIZE = replace(SPEC, height=16, width=16)  # at which all networks have blocks


def trainer(case: str, shard: int = 1, **changes: Any) -> Trainer[GenerativeModel]:
    """Of a family, in float64."""
    name, options = CASES[case]
    family = FAMILIES[name]
    data = Stripes(32, SIZE.channels, SIZE.height, SIZE.width)
    config = family.measured(replace(next(iter(family.presets(SIZE).values())).model, **options), data.images)
    with seeded(0):
        model: GenerativeModel = family(SIZE, config)
    values: dict[str, Any] = {"images": 10_000, "batch_size": 7, "optimizer": "muon", "precision": "fp32"} | changes
    training = TrainConfig(**values)
    return Trainer(model.double(), data.batches(7), training, shard)


def state(of: Trainer[GenerativeModel]) -> dict[str, Tensor]:
    """All weights, averages and moments, whole."""
    of.gather()
    found = {"model": of.model.state_dict(), "ema": of.ema.state_dict()}
    for player, moments in of.state_dict()["optimizers"].items():
        found |= {f"{player}.{i}": dict(entry) for i, entry in moments.items()}
    return {f"{part}.{name}": sharding.whole(x).clone() for part, xs in found.items() for name, x in xs.items()}


def alone(case: str, **changes: Any) -> dict[str, Tensor]:
    """What one process has after all steps."""
    by_one = trainer(case, **changes)
    list(by_one.run(STEPS))
    return state(by_one)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], case: str) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-6, atol=1e-9), (case, name)


PROGRAM = """
import glob, sys, torch
from pathlib import Path
from calotype.distributed import processes; from calotype.runs import checkpoints
from tests.distributed.test_dividing import CASES, STEPS, state, trainer
torch.set_num_threads(1)
shard = int(sys.argv[1])

def bytes_of(tensors):
    return sum(x.untyped_storage().nbytes() for x in tensors)

def trained(folder, case):
    kept = folder / case.replace(" ", "-")
    divided = trainer(case, shard)
    start = [*kept.glob("*")]
    if start:
        weights = divided.model.state_dict()
        divided.load_state_dict(checkpoints.read_divided(start[0], weights, divided.averages, divided.params))
    list(divided.run(STEPS - 1))
    if not start:
        divided.gather()
        checkpoints.write_divided(kept, divided.images_seen, divided.state_dict(), {"held_out": 0.5})
    list(divided.run(STEPS))
    params = [p.to_local() for p in divided.model.parameters()]
    moments = [m.to_local() for per in divided.state_dict()["optimizers"].values() for e in per.values()
               for m in e.values() if m.ndim]
    mine = bytes_of(params), bytes_of([a.to_local() for a in divided.averages.values()]), bytes_of(moments)
    (folder / f"{case}.{processes.rank()}.bytes").write_text(" ".join(map(str, mine)))
    return state(divided)

with processes.joined():
    for folder in map(Path, sys.argv[2:]):
        found = {case: trained(folder, case) for case in CASES}
        if processes.is_first():
            torch.save(found, folder / "found.pt")
threads = [open(name).read() for name in glob.glob("/proc/self/task/*/comm")]
assert not any("gloo" in name for name in threads), threads
"""


def together(count: int, shard: int, *folders: Path) -> list[dict[str, dict[str, Tensor]]]:
    """What `count` processes have, of which `shard` hold the weights between them; they go on from what is there."""
    for folder in folders:
        folder.mkdir(exist_ok=True)
    (folders[0] / "program.py").write_text(PROGRAM)
    done = started([str(folders[0] / "program.py"), str(shard), *map(str, folders)], count)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / "found.pt", weights_only=True) for folder in folders]


@pytest.fixture(scope="module")
def by_one() -> dict[str, dict[str, Tensor]]:
    return {case: alone(case) for case in CASES}


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Tensor]]]:
    """Where two processes keep what they hold between them, and what that was in the end."""
    folder = tmp_path_factory.mktemp("two")
    return folder, together(2, 2, folder)[0]


def test_divided_weights_are_trained_as_whole_ones(
    by_two: tuple[Path, dict[str, dict[str, Tensor]]], by_one: dict[str, dict[str, Tensor]]
) -> None:
    for case in CASES:
        assert_same(by_two[1][case], by_one[case], case)


def test_each_process_holds_its_part_alone(
    by_two: tuple[Path, dict[str, dict[str, Tensor]]], by_one: dict[str, dict[str, Tensor]]
) -> None:
    for case in CASES:
        for part, prefix in ((0, "model."), (1, "ema.")):
            size = sum(x.nbytes for name, x in by_one[case].items() if name.startswith(prefix))
            held = [int((by_two[0] / f"{case}.{k}.bytes").read_text().split()[part]) for k in range(2)]
            # Half, and of tensors with an odd number of rows the first has one more; buffers are in each.
            assert max(held) < 0.62 * size, (case, held, size)


@pytest.mark.slow
def test_groups_that_hold_a_model_sum_over_each_other(tmp_path: Path, by_one: dict[str, dict[str, Tensor]]) -> None:
    (found,) = together(4, 2, tmp_path / "four")
    for case in CASES:
        assert_same(found[case], by_one[case], case)


@pytest.mark.slow
def test_any_number_of_processes_goes_on_from_slices(
    by_two: tuple[Path, dict[str, dict[str, Tensor]]], by_one: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    """One with all weights, and three with a third each; and those from what one has written."""
    folder, _ = by_two
    for case in CASES:
        (kept,) = (folder / case.replace(" ", "-")).glob("*")
        assert checkpoints.facts(kept) == {"held_out": 0.5}
        checkpoints.verify(kept)
        goes_on = trainer(case)
        goes_on.load_state_dict(checkpoints.read(kept))
        assert goes_on.step == STEPS - 1
        list(goes_on.run(STEPS))
        assert_same(state(goes_on), by_one[case], case)

        begun = trainer(case)
        list(begun.run(1))
        place = tmp_path / "whole" / case.replace(" ", "-")
        checkpoints.write(place, begun.images_seen, begun.state_dict(), {})
        shutil.copytree(kept, tmp_path / "slices" / place.name / kept.name)
    for found in together(3, 3, tmp_path / "whole", tmp_path / "slices"):
        for case in CASES:
            assert_same(found[case], by_one[case], case)


@pytest.mark.fault("damage to slices of weights that processes have divided", "it is found when the checkpoint is read")
def test_damage_to_slices_is_found(by_two: tuple[Path, dict[str, dict[str, Tensor]]], tmp_path: Path) -> None:
    (kept,) = (by_two[0] / "vae").glob("*")
    for k, name in enumerate(sorted(str(p.relative_to(kept)) for p in kept.rglob("*.safetensors"))):
        damaged = shutil.copytree(kept, tmp_path / str(k))
        content = bytearray((damaged / name).read_bytes())
        content[-1] ^= 1
        (damaged / name).write_bytes(content)
        for read in (checkpoints.verify, checkpoints.read):
            with pytest.raises(checkpoints.DamagedCheckpoint, match="checksum"):
                read(damaged)
    (damaged / name).unlink()
    with pytest.raises(checkpoints.DamagedCheckpoint, match="cannot be read"):
        checkpoints.read(damaged)


@pytest.mark.slow
@pytest.mark.fault("kill -9 of a job with divided weights", "one process goes on from its slices")
def test_a_run_with_divided_weights_goes_on_after_a_kill_and_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*COMMAND, "--shard", "2", "--out"]
    longer = [word.replace("96img", "480img") for word in words]
    undisturbed = launched(["-m", "calotype", *longer, str(tmp_path / "whole")], 2)
    killed = launched(["-m", "calotype", *longer, str(tmp_path / "killed")], 2, ["--max-restarts=1"])
    os.kill(worker(tmp_path / "killed", 1), signal.SIGKILL)
    outputs = [process.communicate() for process in (killed, undisturbed)]
    assert killed.returncode == undisturbed.returncode == 0, outputs
    events = [record["event"] for record in Run.open(tmp_path / "killed").read_log()]
    assert events.count("resumed") == 1
    found, whole = weights(tmp_path / "killed"), weights(tmp_path / "whole")
    assert all(torch.equal(found[name], value) for name, value in whole.items())
    assert not [*(tmp_path / "killed" / "checkpoints").glob(".*")]

    half = tmp_path / "half"
    shutil.copytree(tmp_path / "whole", half)
    for later in checkpoints.found(half / "checkpoints")[-1:]:
        shutil.rmtree(later)
    assert cli.main(["train", "--resume", str(half)]) == 0
    assert "continuing at" in capsys.readouterr().out
    assert_alike(weights(half), whole)


def test_a_number_that_does_not_divide_the_processes_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*COMMAND, "--shard", "2", "--out", str(tmp_path / "run")]) == 2
    assert "--shard is 2, but there are 1 processes" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# -- blocks that compute twice


def saved(case: str, recompute: bool) -> int:
    """Bytes that the steps of a round keep for making gradients, at the most."""
    made = trainer(case, recompute=recompute)
    most = 0

    def counted(turn: Callable[..., Any]) -> Callable[..., Any]:
        def loss(*args: Any) -> Any:
            nonlocal most
            kept: dict[int, int] = {}

            def pack(x: Tensor) -> Tensor:
                kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
                return x

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
                found = turn(*args)
            most = max(most, sum(kept.values()))
            return found

        return loss

    made.turns = tuple(replace(turn, loss=counted(turn.loss)) for turn in made.turns)
    list(made.run(1))
    return most


@pytest.mark.parametrize("case", CASES)
def test_blocks_that_compute_twice_train_the_same(case: str, by_one: dict[str, dict[str, Tensor]]) -> None:
    assert_same(alone(case, recompute=True), by_one[case], case)


def test_blocks_that_compute_twice_keep_less() -> None:
    for case in ("diffusion", "vae"):
        assert saved(case, True) < 0.7 * saved(case, False), case


def test_blocks_are_the_outermost_parts_of_lists() -> None:
    inner = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))
    block = nn.ModuleDict({"a": nn.ModuleList([nn.Sequential(inner)])})
    network = nn.ModuleDict({"list": nn.ModuleList([block, nn.Linear(2, 2)]), "other": block})
    assert [*sharding.blocks(network)] == [block]
