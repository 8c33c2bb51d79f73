"""Models whose loss does not rank them: judged by samples, chosen by that, and gone back from where they collapse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from calotype import cli
from calotype.core.model import GenerativeModel, ImageSpec, Remark
from calotype.core.rng import Noise
from calotype.data import DataConfig, PackedDataset, prepare
from calotype.errors import TrainingDiverged
from calotype.families.gan import GAN
from calotype.runs import checkpoints
from calotype.runs.run import load
from calotype.training import loop
from calotype.training.monitor import SAMPLES, Judge
from calotype.training.setup import train
from tests.runs.test_resume import Quiet

TINY: dict[str, Any] = {
    "model": {"widths": [16, 16], "blocks": [1, 1], "latents": 8},
    "training": {"batch_size": 8, "checkpoint_every": 64},
}


class Drawn(GenerativeModel):
    """Draws the images that it is given."""

    def __init__(self, spec: ImageSpec, images: Tensor) -> None:
        super().__init__(spec, None)
        self.images, self.taken = images, 0
        self.weight = torch.nn.Parameter(torch.zeros(1))

    presets = turns = None  # type: ignore[assignment]

    def sample(self, noise: Noise, labels: Tensor | None = None, options: Any = None) -> Tensor:
        places = torch.arange(self.taken, self.taken + noise.n) % len(self.images)
        self.taken += noise.n
        return self.images[places]


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    return prepare(
        DataConfig(source="glyphs:gray:3000", width=12, height=12, labels=False), cache=tmp_path_factory.mktemp("cache")
    )


def test_samples_are_judged_beside_held_out_pictures(letters: PackedDataset) -> None:
    judge = Judge(letters)
    spec = letters.spec
    training = letters.read(letters.train[: 2 * SAMPLES]).images
    real = judge(Drawn(spec, training))
    assert abs(real.distance) < 0.3
    assert real.diversity == pytest.approx(1, abs=0.1)
    alike = judge(Drawn(spec, training[:1]))
    assert alike.diversity == pytest.approx(0, abs=1e-6)
    assert alike.distance > 10 * abs(real.distance)
    few = judge(Drawn(spec, training[:3]))
    assert 0 < few.diversity < 1
    noise = torch.randint(0, 256, training.shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert judge(Drawn(spec, noise)).distance > 10 * abs(real.distance)


def test_few_pictures_are_judged_beside_all_of_them(tmp_path: Path) -> None:
    """Of 16, one or two are held out, between which there is no spread to speak of."""
    data = DataConfig(source="glyphs:gray:16", labels=False)  # of 26 classes most would have one picture
    run = train("gan", data, size="12", budget="64img", out=tmp_path / "run", settings=TINY)
    found = [record for record in run.read_log() if record["event"] == "checkpoint"]
    assert np.isfinite(found[-1]["samples/distance"])
    assert 0 < found[-1]["samples/diversity"] < 10


def test_the_best_checkpoint_is_the_one_with_the_best_samples(picture_folder: Path, tmp_path: Path) -> None:
    run = train("gan", picture_folder, budget="320img", out=tmp_path / "run", settings=TINY)
    records = [record for record in run.read_log() if record["event"] == "checkpoint"]
    assert len(records) == 5
    for name in ("samples/distance", "samples/diversity", "seen/discriminator/real", "held_out/discriminator/accuracy"):
        assert all(name in record for record in records)
    kept = {path.name: checkpoints.facts(path) for path in run.checkpoints()}
    scores = {record["images_seen"]: record["samples/distance"] for record in records}
    best = run.best()
    assert best is not None
    assert int(best.name) == min(scores, key=lambda seen: (scores[seen], -seen))
    assert kept[best.name]["score"] == min(scores.values())
    assert cli.main(["sample", str(run.path), "-n", "4", "--checkpoint", "best"]) == 0
    assert cli.main(["sample", str(run.path), "-n", "4", "--set", "truncation=0.7"]) == 0
    assert load(run).sample(2).dtype == torch.uint8
    assert np.isfinite(list(scores.values())).all()


@pytest.mark.parametrize("how", ["say", "rollback"])
def test_a_collapse_is_said_or_gone_back_from(
    how: str, picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is noticed at the third checkpoint, once."""
    seen: list[Any] = []

    def remark(self: GAN, parts: Any) -> Remark | None:
        seen.append(parts)
        return Remark("all alike: raise model.r1", collapsed=True) if len(seen) == 3 else None

    monkeypatch.setattr(GAN, "remark", remark)
    monkeypatch.setattr(loop, "SETTLED", 0)
    display = Quiet()
    settings = TINY | {"training": TINY["training"] | {"on_collapse": how}}
    run = train("gan", picture_folder, budget="320img", out=tmp_path / "run", settings=settings, display=display)
    log = run.read_log()
    returned = [record for record in log if record["event"] == "returned"]
    if how == "say":
        assert display.messages.count("all alike: raise model.r1") == 1
        assert returned == []
        assert len(seen) == 5
    else:
        assert [record["images_seen"] for record in returned] == [128]
        assert returned[0]["reason"] == "all alike: raise model.r1"
        assert any("back to the checkpoint at 128 images" in text for text in display.messages)
        assert len(seen) == 6
    assert [record["images_seen"] for record in log if record["event"] == "checkpoint"][-1] == 320


def test_a_collapse_that_comes_again_ends_the_run(
    picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GAN, "remark", lambda self, parts: Remark("all alike: raise model.r1", collapsed=True))
    monkeypatch.setattr(loop, "SETTLED", 0)
    settings = TINY | {"training": TINY["training"] | {"on_collapse": "rollback"}}
    with pytest.raises(TrainingDiverged, match=r"all alike: raise model\.r1; this came again after 3 returns"):
        train("gan", picture_folder, budget="320img", out=tmp_path / "run", settings=settings)
    assert [path.name for path in load(tmp_path / "run").run.checkpoints()] == ["000000000000"]
