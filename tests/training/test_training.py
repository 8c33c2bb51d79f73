"""Starting a run: recipes and requests, what a run directory holds, TensorBoard, and compiled networks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import calotype
from calotype.core.model import Remark
from calotype.data import DataConfig
from calotype.errors import ConfigError, RunError
from calotype.families.diffusion import Diffusion
from calotype.runs.run import Run, TrainedModel
from calotype.training import loop, setup
from calotype.training.batches import training_batches
from calotype.training.recipe import request
from tests.runs.test_resume import Quiet

SMALL_UNET = {"widths": [16], "blocks": [1], "attention": []}
TINY = {"model": {"widths": [16], "blocks": 1, "attention": [], "patch": 2}, "training": {"batch_size": 8}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A short run on coloured glyphs with transparency."""
    out = tmp_path_factory.mktemp("runs") / "run"
    return setup.train(
        "diffusion", "glyphs:rgba:80", budget="160img", size="12x10", out=out, settings=TINY, display=Quiet()
    )


def test_a_run_directory_holds_what_it_says(run: Run) -> None:
    names = {path.name for path in run.path.iterdir()}
    assert names >= {"config.toml", "log.jsonl", "checkpoints", "previews", "samples.png", "curves.png"}
    with Image.open(run.path / "samples.png") as image:
        assert image.mode == "RGBA"
    assert len(list((run.path / "previews").iterdir())) == 20
    events = [json.loads(line)["event"] for line in (run.path / "log.jsonl").read_text().splitlines()]
    assert events.count("checkpoint") == 20
    assert events[-1] == "finished"
    assert Run.open(run.path).config == run.config


def test_the_held_out_images_are_not_trained_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = setup.prepare(run.config.data)
    assert set(packed.train.tolist()).isdisjoint(packed.held_out.tolist())
    batches = training_batches(packed, run.config.training)
    read: set[int] = set()
    original = type(packed).read
    monkeypatch.setattr(type(packed), "read", lambda self, i: (read.update(i.tolist()), original(self, i))[1])
    for k in range(20):
        batches.at(k)
    assert read == set(packed.train.tolist())


def test_loading_and_sampling_in_python(run: Run) -> None:
    model = calotype.load(run.path)
    images = model.sample(5, seed=7, steps=3)
    assert images.shape == (5, 4, 10, 12)
    assert images.dtype == torch.uint8
    assert torch.equal(images[2:], model.sample(3, seed=7, first=2, steps=3))
    assert torch.equal(model.sample(2, labels=["C"], steps=2), model.sample(2, labels=[2], steps=2))
    with pytest.raises(ConfigError, match="stepz is unknown: did you mean steps"):
        model.sample(1, stepz=3)
    with pytest.raises(ConfigError, match="class 'ß' is unknown"):
        model.sample(1, labels=["ß"])
    assert isinstance(model, TrainedModel)


def test_raw_weights_and_earlier_checkpoints_can_be_had(run: Run) -> None:
    names = [str(int(path.name)) for path in run.checkpoints()]
    first, last = (calotype.load(run, checkpoint=name) for name in (names[0], "last"))
    assert first.digest != last.digest
    assert calotype.load(run, ema=False).digest != last.digest
    assert calotype.load(run, checkpoint="best").digest
    with pytest.raises(RunError, match="has no checkpoint 7"):
        calotype.load(run, checkpoint="7")


def test_tensorboard_mirror(tmp_path: Path) -> None:
    made = setup.train(
        "diffusion",
        "glyphs:gray:40",
        budget="40img",
        size="8",
        out=tmp_path / "run",
        settings=TINY,
        tensorboard=True,
        display=Quiet(),
    )
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(made.path / "tensorboard")).Reload()
    assert {"loss/model", "held_out/model", "learning_rate"} <= set(events.Tags()["scalars"])


def test_a_recipe_gives_what_arguments_do_not(run: Run) -> None:
    recipe = run.path / "config.toml"
    asked = request("", "", budget=None, preset=None, size=None, settings={}, recipe=recipe)
    assert (asked.family, asked.data.source, asked.budget.images) == ("diffusion", run.config.data.source, 160)
    assert asked.settings["model"]["widths"] == [16]
    asked = request("", "", budget="1kimg", preset="tiny", size="16", settings={"model": {"blocks": 2}}, recipe=recipe)
    assert (asked.budget.images, asked.preset, asked.data.width) == (1000, "tiny", 16)
    assert asked.settings["model"]["blocks"] == 2
    assert "checkpoint_every" not in asked.settings["training"]


def test_what_a_recipe_has_no_say_in(run: Run, tmp_path: Path) -> None:
    recipe = run.path / "config.toml"
    asked = request("", "", budget=None, preset="large", size=None, settings={}, recipe=recipe)
    assert asked.preset == "large"
    assert "widths" not in asked.settings["model"]
    assert "batch_size" not in asked.settings["training"]
    (tmp_path / "short.toml").write_text('family = "diffusion"\nbudget = "2h"\n')
    asked = request("", "glyphs", budget=None, preset=None, size=None, settings={}, recipe=tmp_path / "short.toml")
    assert asked.budget.seconds == 7200
    for text, message in (("trainig = {}\n", "did you mean training"), ('data = "photos/"\n', "it is a section")):
        (tmp_path / "bad.toml").write_text('family = "diffusion"\n' + text)
        with pytest.raises(ConfigError, match=message):
            request("", "glyphs", budget=None, preset=None, size=None, settings={}, recipe=tmp_path / "bad.toml")


def test_requests_that_cannot_be_met() -> None:
    none = {"budget": None, "preset": None, "size": None, "recipe": None}
    with pytest.raises(ConfigError, match="no family is named"):
        request("", "glyphs", settings={}, **none)
    with pytest.raises(ConfigError, match="no pictures are named"):
        request("diffusion", "", settings={}, **none)
    with pytest.raises(ConfigError, match="use --budget 5img"):
        request("diffusion", "glyphs", settings={"training": {"images": 5}}, **none)
    with pytest.raises(ConfigError, match="did you mean diffusion"):
        request("difusion", "glyphs", settings={}, **none)


def test_a_run_is_not_overwritten(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="already a run"):
        setup.train("diffusion", "glyphs", budget="8img", out=run.path, display=Quiet())
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="not empty"):
        setup.train("diffusion", "glyphs", budget="8img", out=tmp_path, display=Quiet())


def test_remarks_of_the_model_are_shown_once_and_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Diffusion, "remark", lambda self, parts: Remark("lower the rate") if parts["model"] > 0 else None
    )
    monkeypatch.setattr(loop, "SETTLED", 0)
    display, out = Quiet(), tmp_path / "run"
    run = setup.train("diffusion", "glyphs:gray:80", budget="80img", size="12", out=out, settings=TINY, display=display)
    assert display.messages.count("lower the rate") == 1
    logged = [line for line in run.read_log() if line["event"] == "remark"]
    assert len(logged) > 1
    assert {line["text"] for line in logged} == {"lower the rate"}


def test_remarks_wait_until_something_can_have_been_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At first no latent says anything, in a healthy run as in one that has collapsed."""
    vae = {"widths": [16, 16], "blocks": [1, 1], "latents": [0, 1], "latent_width": 4}

    def remarks(name: str) -> list[str]:
        settings = {"model": vae | {"beta": 100.0}, "training": {"batch_size": 16}}
        run = setup.train(
            "vae", "glyphs:gray:80", budget="320img", size="8", out=tmp_path / name, settings=settings, display=Quiet()
        )
        log = run.read_log()
        assert all(record["held_out/model/active"] == 0 for record in log if record["event"] == "checkpoint")
        return [record["text"] for record in log if record["event"] == "remark"]

    assert remarks("begun") == []
    monkeypatch.setattr(loop, "SETTLED", 256)
    monkeypatch.setattr("calotype.families.vae.model.AWAKE", 256)
    assert any("the posterior has collapsed" in text for text in remarks("collapsed"))


def test_balanced_needs_classes(tmp_path: Path) -> None:
    settings = {"training": {"batch_size": 4, "balanced": True}}
    data = DataConfig(source="glyphs:gray:40", width=8, height=8, labels=False)
    with pytest.raises(ConfigError, match="no classes"):
        setup.train("diffusion", data, budget="8img", out=tmp_path / "run", settings=settings, display=Quiet())


@pytest.mark.parametrize(("flat", "likelihood"), [(True, "categorical"), (False, "logistics")])
def test_the_likelihood_that_suits_the_pictures_is_said_and_recorded(
    flat: bool, likelihood: str, tmp_path: Path
) -> None:
    _colours(tmp_path / "pictures", flat)
    shown = Quiet()
    run = setup.train(
        "autoregressive",
        tmp_path / "pictures",
        budget="16img",
        out=tmp_path / "run",
        settings={"model": SMALL_UNET},
        display=shown,
    )
    assert run.config.model.likelihood == likelihood
    assert f"chosen to suit the pictures: model.likelihood = {likelihood}" in "\n".join(shown.messages)
    assert f'likelihood = "{likelihood}"' in (run.path / "config.toml").read_text(encoding="utf-8")


def test_a_likelihood_that_was_set_is_kept_and_a_run_is_resumed_with_its_own(tmp_path: Path) -> None:
    """Of flat colours, which are given a mixture of logistics."""
    _colours(tmp_path / "pictures", flat=True)
    shown, settings = Quiet(), {"model": SMALL_UNET | {"likelihood": "logistics"}}
    chosen = {"budget": "16img", "out": tmp_path / "run", "settings": settings, "display": shown}
    run = setup.train("autoregressive", tmp_path / "pictures", **chosen)
    assert "chosen to suit" not in "\n".join(shown.messages)
    resumed = setup.resume(run.path, budget="32img", display=shown)
    assert run.config.model.likelihood == resumed.config.model.likelihood == "logistics"
    assert resumed.config.model == run.config.model
    assert "chosen to suit" not in "\n".join(shown.messages)


def _colours(folder: Path, flat: bool) -> None:
    """Pictures of two plain halves, or of noise."""
    folder.mkdir()
    for k in range(24):
        pixels = torch.randint(0, 256, (8, 2 if flat else 8, 3), generator=torch.Generator().manual_seed(k))
        plain = pixels[:1].repeat_interleave(4, 1).expand(8, 8, 3) if flat else pixels
        Image.fromarray(plain.to(torch.uint8).numpy()).save(folder / f"{k}.png")


def test_new_runs_get_names_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert setup.new_place("/pictures/weld seams/", "diffusion") == Path("runs/weld seams-diffusion")
    (tmp_path / "runs" / "glyphs-diffusion").mkdir(parents=True)
    assert setup.new_place("glyphs", "diffusion") == Path("runs/glyphs-diffusion-2")
