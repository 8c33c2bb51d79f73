from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from calotype.core.model import GenerativeModel, ImageSpec, Preset, Turn
from calotype.core.rng import Noise, seeded
from calotype.data import DataConfig
from calotype.errors import ConfigError
from calotype.families.diffusion import Diffusion, DiffusionConfig, DiffusionOptions
from calotype.optimization.config import TrainConfig
from calotype.runs.config import DatasetFacts, RunConfig
from calotype.runs.run import Run, TrainedModel
from calotype.sampling import sampler
from calotype.sampling.sampler import batch_size, cycle, sample, stream

OPTIONS = DiffusionOptions(steps=3)


def diffusion(num_classes: int) -> Diffusion:
    """A small model whose images depend on noise and label: random weights, none of them left at zero."""
    config = DiffusionConfig(widths=(16, 32), blocks=1, attention=(1,), sigma_data=0.5)
    with seeded(1):
        model = Diffusion(ImageSpec(3, 6, 10, num_classes), config)
        for p in model.parameters():
            nn.init.normal_(p, std=0.2)
    return model.to_eval()


@pytest.mark.parametrize("num_classes", [0, 3])
def test_an_image_is_the_same_in_any_selection_and_order_and_alone(num_classes: int) -> None:
    model = diffusion(num_classes)
    labels = cycle(range(num_classes)) if num_classes else None
    n = 2 * batch_size(model, torch.device("cpu")) + 5
    images = sample(model, range(n), 7, labels, OPTIONS)
    assert images.shape == (n, 3, 6, 10)
    assert images.dtype == torch.uint8
    selections: list[Sequence[int]] = [range(n - 1, -1, -1), range(4, n, 3), [16, 3, 3, 36], [0], [17], [n - 1]]
    for chosen in selections:
        assert torch.equal(sample(model, chosen, 7, labels, OPTIONS), images[list(chosen)])
    assert len({bytes(image.numpy().tobytes()) for image in images}) == n
    assert not torch.equal(sample(model, [0], 8, labels, OPTIONS), images[:1])


def test_an_image_depends_on_its_own_label_alone() -> None:
    model = diffusion(3)
    zeros, mixed = (sample(model, range(4), 7, cycle(labels), OPTIONS) for labels in ([0], [0, 1, 2]))
    assert [torch.equal(a, b) for a, b in zip(zeros, mixed, strict=True)] == [True, False, False, True]


def test_stream_gives_the_images_some_at_a_time_in_their_order() -> None:
    model = diffusion(0)
    parts = list(stream(model, range(3, 38), 7, options=OPTIONS))
    assert [len(part.indices) for part in parts] == [16, 16, 3]
    assert [i for part in parts for i in part.indices] == list(range(3, 38))
    assert torch.equal(torch.cat([part.images for part in parts]), sample(model, range(3, 38), 7, options=OPTIONS))


def test_no_images_are_no_images() -> None:
    assert sample(diffusion(0), [], 7).shape == (0, 3, 6, 10)


@pytest.mark.parametrize(
    ("num_classes", "labels", "words"),
    [
        (3, None, "3 classes, but no labels"),
        (0, [0], "trained without classes"),
        (3, [0, 3], "classes 0 to 2"),
        (3, [-1], "classes 0 to 2"),
    ],
)
def test_labels_that_the_model_lacks_are_refused(num_classes: int, labels: list[int] | None, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        sample(diffusion(num_classes), range(2), 7, None if labels is None else cycle(labels), OPTIONS)


class Recorder(GenerativeModel):
    """A model of no weights to speak of, which notes how many images each call asks for."""

    Config = Options = int

    def __init__(self, spec: ImageSpec) -> None:
        super().__init__(spec, 0)
        self.weight, self.calls = nn.Parameter(torch.zeros(1)), list[int]()

    @classmethod
    def presets(cls, spec: ImageSpec) -> dict[str, Preset]:
        return {}

    def turns(self) -> list[Turn]:
        return []

    def sample(self, noise: Noise, labels: Tensor | None = None, options: object = None) -> Tensor:
        self.calls.append(noise.n)
        return (noise.uniform(*self.spec.shape) * 256).to(torch.uint8)


@pytest.mark.parametrize(
    ("spec", "device", "size"),
    [
        (ImageSpec(1, 28, 28), "cpu", 16),
        (ImageSpec(3, 256, 256), "cpu", 16),
        (ImageSpec(4, 256, 256), "cpu", 12),
        (ImageSpec(3, 1024, 1024), "cpu", 1),
        (ImageSpec(3, 5000, 5000), "cpu", 1),
        (ImageSpec(3, 32, 32), "cuda", 64),
        (ImageSpec(3, 256, 256), "cuda", 16),
    ],
)
def test_batch_size_follows_the_image_size_and_the_device(spec: ImageSpec, device: str, size: int) -> None:
    assert batch_size(Recorder(spec), torch.device(device)) == size


@pytest.mark.parametrize("n", [1, 15, 16, 17, 40])
def test_every_call_has_the_same_shape(n: int) -> None:
    model = Recorder(ImageSpec(1, 4, 4))
    assert len(sample(model, range(n), 0)) == n
    assert model.calls == [16] * -(-n // 16)


def test_the_largest_call_bounds_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "LARGEST_CALL", 5 * 16)
    model = Recorder(ImageSpec(1, 4, 4))
    assert len(sample(model, range(7), 0)) == 7
    assert model.calls == [5, 5]


# -- the model of a run


@pytest.fixture
def trained(tmp_path: Path) -> TrainedModel:
    names = ("dots", "bars", "0")
    config = RunConfig(
        family="diffusion",
        preset="",
        budget="1img",
        data=DataConfig(source="stripes"),
        dataset=DatasetFacts(channels=3, height=6, width=10, class_names=names, train=8, held_out=1, digest="0"),
        model=DiffusionConfig(widths=(16, 32), blocks=1, attention=(1,), sigma_data=0.5),
        training=TrainConfig(images=1),
    )
    return TrainedModel(Run(tmp_path, config), diffusion(3), "0", tmp_path)


def test_first_goes_on_where_another_call_ended(trained: TrainedModel) -> None:
    together = trained.sample(7, seed=3, steps=3)
    assert torch.equal(trained.sample(3, seed=3, first=4, steps=3), together[4:])


def test_labels_by_name_and_number_are_taken_in_turn(trained: TrainedModel) -> None:
    by_number = trained.sample(4, seed=3, labels=[1, 2], steps=3)
    assert torch.equal(trained.sample(4, seed=3, labels=["bars", 2], steps=3), by_number)
    assert torch.equal(trained.sample(4, seed=3, labels=["1", "0"], steps=3), by_number)  # a name goes before a number
    all_in_turn = trained.sample(4, seed=3, steps=3)
    assert torch.equal(trained.sample(4, seed=3, labels=["dots", "bars", 2], steps=3), all_in_turn)


@pytest.mark.parametrize("label", ["stripes", "3", 3, -1, "-1", "", "²"])
def test_unknown_labels_name_those_there_are(trained: TrainedModel, label: int | str) -> None:
    with pytest.raises(ConfigError, match="the model knows dots, bars, 0, or 0 to 2"):
        trained.sample(1, labels=[label])


def test_unknown_options_name_the_nearest(trained: TrainedModel) -> None:
    with pytest.raises(ConfigError, match=r"option\.step is unknown: did you mean steps\?"):
        trained.sample(1, step=3)
    with pytest.raises(ConfigError, match="solver is 'eular'"):
        trained.sample(1, solver="eular")
