"""Runs of a version of Calotype go on and draw as they did: `written` holds one of each family, of 64 images.

Each has with it what the version that wrote it made of it: the images of seed 5, and the sums of the weights, and of
their absolute values, after it was resumed to 96 images.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import calotype
from calotype.errors import ConfigError
from calotype.runs.checkpoints import read_weights
from calotype.runs.run import Run
from tests.runs.test_resume import Quiet

WRITTEN = Path(__file__).parent / "written"
FAMILIES = sorted(path.name for path in WRITTEN.iterdir())


@pytest.fixture
def run(family: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(WRITTEN / family / "run", tmp_path / "run"))


@pytest.mark.parametrize("family", FAMILIES)
def test_it_draws_the_same_images(family: str, run: Path, tmp_path: Path) -> None:
    """To the byte on one kind of processor. Another rounds sums elsewhere: by 1 in 10^6 of a value, which moves a
    byte, or an outcome of a draw, where it lies so near to the next."""
    calotype.sample(Run.open(run), n=16, seed=5, npz=tmp_path / "drawn.npz", display=Quiet())
    found, expected = (np.load(place)["images"] for place in (tmp_path / "drawn.npz", WRITTEN / family / "drawn.npz"))
    assert (found == expected).mean() > 0.99


@pytest.mark.parametrize("family", FAMILIES)
def test_it_goes_on_to_the_same_weights(family: str, run: Path) -> None:
    """To the bit on one kind of processor. Two steps of AdamW change a weight by about the learning rate each, 0.001,
    in a direction that is rounded where a gradient is next to nothing: so far may a few weights be off."""
    calotype.train(resume=run, budget="96img", display=Quiet())
    checkpoint = Run.open(run).checkpoints()[-1]
    for name, sums in json.loads((WRITTEN / family / "resumed.json").read_text()).items():
        if name.endswith("sha256"):
            continue
        weights = read_weights(checkpoint, name).tensors
        assert set(weights) == set(sums)
        for key, (total, size) in sums.items():
            found = weights[key].double()
            slack = 1e-4 * size + 4e-3 * found.numel() ** 0.5
            assert float(found.sum()) == pytest.approx(total, abs=slack), key
            assert float(found.abs().sum()) == pytest.approx(size, abs=slack), key


@pytest.mark.parametrize("format", ["2", "99", "0", "'1'", "true", "1.0"])
@pytest.mark.parametrize("family", ["vae"])
def test_a_run_of_a_later_format_is_refused(format: str, run: Path) -> None:
    config = run / "config.toml"
    text = config.read_text()
    config.write_text(text.replace("\nfamily", f"\nformat = {format}\nnew_entry = 1\nfamily", 1))
    with pytest.raises(ConfigError, match=r"reads formats up to 1: update Calotype"):
        Run.open(run)
    config.write_text(text.replace("\nfamily", "\nformat = 1\nfamily", 1))
    assert Run.open(run).config.family == "vae"
