"""Autoregressive models: order, exact probabilities, and samples that are those of the full network."""

from __future__ import annotations

import itertools
import math
import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from calotype.core.model import Batch, ImageSpec
from calotype.core.rng import Noise, seeded
from calotype.errors import ConfigError
from calotype.families.autoregressive import Autoregressive, AutoregressiveConfig, AutoregressiveOptions
from calotype.families.autoregressive.config import GUIDANCE, NETWORKS
from calotype.families.autoregressive.drawing import Guide, draw, draw_naively
from calotype.nn.causal_unet import NEARBY, CausalUNet
from calotype.nn.distributions import AS_LEARNED, Taste
from calotype.nn.native import loop

SMALL: dict[str, dict[str, Any]] = {
    "causal-unet": {"widths": (16, 16, 32), "blocks": (1, 2, 1), "attention": (2,)},
    "pixelcnn++": {"widths": (16, 16), "blocks": (1, 1)},
    "gated-pixelcnn": {"widths": (16,), "blocks": (2,)},
    "pixelcnn": {"widths": (16,), "blocks": (2,)},
    "row-lstm": {"widths": (16,), "blocks": (2,)},
    "diagonal-bilstm": {"widths": (16,), "blocks": (2,)},
}


def model_of(network: str, spec: ImageSpec, likelihood: str = "", seed: int = 0, **more: Any) -> Autoregressive:
    """A float64 model with random weights, so that no layer is idle."""
    if not likelihood:
        likelihood = "logistics" if spec.channels > 1 and not NETWORKS[network].ordered else "categorical"
    config = AutoregressiveConfig(
        **({"network": network, "likelihood": likelihood, "attention": ()} | SMALL[network] | more)
    )
    with seeded(seed):
        model = Autoregressive(spec, config).double()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * torch.randn_like(p))
    return model.to_eval()


def pictures(spec: ImageSpec, n: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (n, *spec.shape), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def labels_of(spec: ImageSpec, n: int) -> Tensor | None:
    return torch.arange(n) % spec.num_classes if spec.num_classes else None


def influences(model: Autoregressive, dropout: bool = False) -> Tensor:
    """Which values of an image change the probability of which: bool (dims, dims), in raster order, channels last.

    Where channels are given at once, they are one; of several random images, so that no unit is idle in all.
    """
    spec, network = model.spec, model.network
    pixels = spec.height * spec.width
    parts = spec.channels if network.ordered else 1
    found = torch.zeros(pixels * parts, pixels * parts)
    for seed in range(3):
        noise = Noise.shared(seed, 1, "cpu") if dropout else None

        def numbers(x: Tensor, noise: Noise | None = noise) -> Tensor:
            given = network.numbers(x, labels_of(spec, 1), noise)
            return given.unflatten(-1, (parts, -1)).sin().sum(-1)

        encoded = network.encode(pictures(spec, 1, seed).permute(0, 2, 3, 1))
        derivative = torch.autograd.functional.jacobian(numbers, encoded)
        found += derivative.reshape(pixels * parts, pixels * parts, -1).abs().sum(-1)
    return found > 0


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("classes", [0, 2])
@pytest.mark.parametrize("channels", [1, 3])
def test_no_pixel_depends_on_itself_or_a_later_one(network: str, channels: int, classes: int) -> None:
    model = model_of(network, ImageSpec(channels, 5, 6, classes), dropout=0.3)
    for dropout in (False, True):
        assert not influences(model, dropout).triu().any()


@pytest.mark.parametrize(("network", "channels"), [*((name, 1) for name in NETWORKS), ("causal-unet", 3)])
def test_other_values_later_change_nothing(network: str, channels: int) -> None:
    """Of bytes, since what is looked up by value has no derivative; in steps of pixels, or of channels in order."""
    model = model_of(network, ImageSpec(channels, 6, 5))
    parts = channels if model.network.ordered else 1
    pixels = pictures(model.spec, 2).permute(0, 2, 3, 1)
    before = model.network(pixels).reshape(2, 30 * parts, -1)
    for place in range(30 * parts):
        other = pixels.reshape(2, 30 * parts, -1).clone()
        other[:, place:] += 77
        after = model.network(other.reshape(pixels.shape)).reshape(2, 30 * parts, -1)
        torch.testing.assert_close(after[:, : place + 1], before[:, : place + 1], rtol=0, atol=1e-12)
        if place // parts % 5 < 4:  # the next one is in the same row
            assert not torch.allclose(after[:, place + 1], before[:, place + 1], atol=1e-6)


WIDE = {
    "causal-unet": {"widths": (16, 16), "blocks": (2, 2), "attention": (0,)},
    "pixelcnn++": {"widths": (16, 16), "blocks": (2, 2)},
    "gated-pixelcnn": {"widths": (16,), "blocks": (4,)},
    "diagonal-bilstm": {"widths": (64,), "blocks": (2,)},
}


@pytest.mark.parametrize("network", WIDE)
def test_networks_without_a_blind_spot_see_all_that_is_before(network: str) -> None:
    """But for one pixel, the last of the row above: in networks of one stack it enters a map three columns before."""
    high, wide = 5, 7
    seen = influences(model_of(network, ImageSpec(1, high, wide), **WIDE[network]))
    expected = torch.ones_like(seen).tril(-1).reshape(high, wide, high, wide)
    if network in ("causal-unet", "diagonal-bilstm"):
        for row in range(1, high):
            expected[row, : wide - 4, row - 1, wide - 1] = False
    assert torch.equal(seen, expected.reshape(seen.shape))


def test_the_plain_network_has_its_known_blind_spot() -> None:
    """What n blocks of masked 3 x 3 convolutions reach from a masked 7 x 7 one, counted by hand."""
    first = {(dy, dx) for dy in range(-3, 1) for dx in range(-3, 4) if (dy, dx) < (0, 0)}
    step = {(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 0)}
    reach = first
    for _ in range(2):
        reach = {(a + c, b + d) for a, b in reach for c, d in step}
    high, wide = 7, 9
    seen = influences(model_of("pixelcnn", ImageSpec(1, high, wide), widths=(64,)))
    places = list(itertools.product(range(high), range(wide)))
    expected = torch.tensor([[(c - a, d - b) in reach for c, d in places] for a, b in places])
    assert torch.equal(seen, expected)
    assert expected.sum() < high * wide * (high * wide - 1) / 2  # there is a blind spot


@pytest.mark.parametrize(
    ("network", "spec"),
    [(name, ImageSpec(1, 3, 4, 2)) for name in NETWORKS]
    + [(name, ImageSpec(3, 2, 2, 2)) for name in NETWORKS if NETWORKS[name].ordered],
    ids=str,
)
def test_probabilities_of_all_images_sum_to_one(network: str, spec: ImageSpec) -> None:
    more = (
        {"widths": (16, 16), "blocks": (1, 1), "attention": (1,)}
        if network == "causal-unet" and spec.height < 3
        else {}
    )
    model = model_of(network, spec, "bernoulli", **more)
    bits = (torch.arange(4096)[:, None] >> torch.arange(12)) & 1
    images = (bits * 255).to(torch.uint8).reshape(4096, *spec.shape)
    for label in range(2):
        batch = Batch(images, torch.full((4096,), label))
        found = model.bits_per_dim(batch, Noise.shared(0, 4096, "cpu"))
        assert found.kind == "exact"
        assert float(torch.exp2(-found.per_image * 12).sum()) == pytest.approx(1, abs=1e-12)


def test_probabilities_of_channels_in_order_sum_to_one() -> None:
    """All images of 2 x 2 pixels with 3 channels of two values."""
    model = model_of("gated-pixelcnn", ImageSpec(3, 2, 2), "bernoulli")
    bits = (torch.arange(4096)[:, None] >> torch.arange(12)) & 1
    images = (bits * 255).to(torch.uint8).reshape(4096, 3, 2, 2)
    found = model.bits_per_dim(Batch(images, None), Noise.shared(0, 4096, "cpu")).per_image
    assert float(torch.exp2(-found * 12).sum()) == pytest.approx(1, abs=1e-12)


def test_samples_come_as_often_as_they_are_probable() -> None:
    """Chi-square of 20,000 images of 2 x 2 against their 16 probabilities: 99.9 % of them below 37.7."""
    spec = ImageSpec(1, 2, 2)
    model = model_of("causal-unet", spec, "bernoulli", widths=(16,), blocks=(1,), attention=())
    bits = (torch.arange(16)[:, None] >> torch.arange(4)) & 1
    images = (bits * 255).to(torch.uint8).reshape(16, 1, 2, 2)
    expected = torch.exp2(-4 * model.bits_per_dim(Batch(images, None), Noise.shared(0, 16, "cpu")).per_image)
    n = 20_000
    drawn = model.sample(Noise.shared(1, n, "cpu"))
    index = ((drawn.flatten(1) > 0).long() << torch.arange(4)).sum(1)
    counts = torch.bincount(index, minlength=16).double()
    assert float(((counts - n * expected).square() / (n * expected)).sum()) < 37.7


def test_a_model_that_knows_nothing_takes_eight_bits() -> None:
    spec = ImageSpec(1, 4, 4)
    with seeded(0):
        model = Autoregressive(spec, AutoregressiveConfig(likelihood="categorical")).to_eval()
    found = model.bits_per_dim(Batch(pictures(spec, 3), None), Noise.shared(0, 3, "cpu")).per_image
    assert found.tolist() == pytest.approx([8, 8, 8], abs=1e-6)


CASES = [
    (ImageSpec(1, 6, 7, 2), 7),
    (ImageSpec(3, 5, 4, 2), 1),
    (ImageSpec(3, 5, 6), 2),
    (ImageSpec(1, 1, 6), 2),
    (ImageSpec(2, 6, 1), 2),
    (ImageSpec(1, 1, 1, 2), 2),
    (ImageSpec(4, 9, 5), 1),
]


def test_probabilities_of_all_pixels_beside_another_sum_to_one() -> None:
    """Of the 65,536 of two channels, where each is raised at the values nearby, and sees the one before."""
    model = model_of("causal-unet", ImageSpec(2, 1, 2), widths=(16,), blocks=(1,), attention=())
    total, greens = 0.0, torch.arange(256, dtype=torch.uint8)
    for red in range(256):
        pixels = torch.tensor([[[[7, 200], [red, 0]]]], dtype=torch.uint8)
        with torch.no_grad():
            numbers = model.network(pixels)[0, 0, 1]
        second = torch.stack([torch.full_like(greens, red), greens], 1)
        total += float(model.distribution.log_prob(numbers.expand(256, -1), second).exp().sum())
    assert total == pytest.approx(1, abs=1e-9)


def test_channels_are_raised_at_pixels_whose_channels_before_are_the_same() -> None:
    """Known scores: 3 at the red of the pixel before, and 5 at its green where red is the same, else 2."""
    with seeded(0):
        network = CausalUNet(2, 512, (1, 2), (16,), (1,), copies=True, ordered=True).double()
    further = network.further[0]
    with torch.no_grad():
        network.copy.bias[0] = 3
        further.copy.bias[0], further.copy.bias[len(NEARBY)] = 2, 3
    for red, score in ((7, 5), (8, 2)):
        pixels = torch.tensor([[[[7, 200], [red, 0]]]], dtype=torch.uint8)
        scores = network(pixels)[0, 0, 1].unflatten(0, (2, 256))
        expected = torch.zeros(2, 256, dtype=torch.float64)
        expected[0, 7], expected[1, 200] = 3, score
        torch.testing.assert_close(scores, expected)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("spec", "n"), CASES, ids=str)
@pytest.mark.parametrize("likelihood", ["categorical", "logistics"])
def test_cached_samples_are_those_of_the_full_network(network: str, spec: ImageSpec, n: int, likelihood: str) -> None:
    if likelihood == "categorical" and spec.channels > 1 and not NETWORKS[network].ordered:
        pytest.skip("channels are given at once")
    model = model_of(network, spec, likelihood)
    uniforms = Noise.per_image(3, range(n), "cpu").uniform(spec.height, spec.width, model.distribution.draws).double()
    blank, labels = torch.zeros(n, *spec.shape, dtype=torch.uint8), labels_of(spec, n)
    with torch.no_grad():
        cached = draw(model.network, model.distribution, blank, 0, uniforms, labels, probable=True)
        naive = draw_naively(model.network, model.distribution, blank, 0, uniforms, labels, probable=True)
    assert torch.equal(cached.images, naive.images)
    torch.testing.assert_close(cached.log_prob, naive.log_prob, rtol=1e-9, atol=1e-9)
    exact = model.bits_per_dim(Batch(cached.images, labels), Noise.shared(0, n, "cpu")).per_image
    torch.testing.assert_close(-cached.log_prob / (spec.dims * math.log(2)), exact, rtol=1e-9, atol=1e-9)


@pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler")
@pytest.mark.parametrize("network", [name for name in NETWORKS if "lstm" not in name])
@pytest.mark.parametrize(("spec", "n"), [*CASES, (ImageSpec(1, 12, 11), 19)], ids=str)
def test_the_compiled_loop_draws_the_same(network: str, spec: ImageSpec, n: int) -> None:
    """In float32, where a value whose cumulative probability is that of its uniform number to rounding may differ."""
    possible = NETWORKS[network].ordered or spec.channels == 1
    for likelihood in ("categorical", "logistics", "bernoulli") if possible else ("logistics",):
        model = model_of(network, spec, likelihood).float()
        uniforms = Noise.per_image(3, range(n), "cpu").uniform(spec.height, spec.width, model.distribution.draws)
        assert loop.usable(model.network, model.distribution, uniforms, AS_LEARNED)
        given, labels, known = pictures(spec, n), labels_of(spec, n), spec.width * spec.height // 3
        for taste in (AS_LEARNED, Taste(temperature=0.7)):
            with torch.no_grad():
                compiled, stepped = (
                    draw(model.network, model.distribution, given, known, uniforms, labels, taste, compiled=way).images
                    for way in (True, False)
                )
            assert torch.equal(compiled, stepped)
            few = slice(0, 1)
            labels_of_few = None if labels is None else labels[few]
            with torch.no_grad():
                alone = draw(
                    model.network, model.distribution, given[few], known, uniforms[few], labels_of_few, taste
                ).images
            assert torch.equal(alone, compiled[few])


GUIDED = ImageSpec(1, 6, 5, 3)
WITH_CHANNELS = ImageSpec(3, 4, 3, 2)


@pytest.mark.parametrize(
    ("network", "spec"),
    [*((name, GUIDED) for name in NETWORKS), ("gated-pixelcnn", WITH_CHANNELS), ("diagonal-bilstm", WITH_CHANNELS)],
    ids=str,
)
def test_guided_samples_follow_the_logits_of_the_class_and_of_none(network: str, spec: ImageSpec) -> None:
    """In order, and as probable as log softmax(none + 3 (class - none)) of whole images says, channel by channel."""
    n, weight = 5, 3.0
    model = model_of(network, spec)
    uniforms = Noise.per_image(3, range(n), "cpu").uniform(spec.height, spec.width, model.distribution.draws).double()
    given, labels, known = pictures(spec, n), labels_of(spec, n), spec.width + 1
    asked = (given, known, uniforms, labels, AS_LEARNED, Guide(weight, spec.num_classes))
    with torch.no_grad():
        cached = draw(model.network, model.distribution, *asked, probable=True)
        naive = draw_naively(model.network, model.distribution, *asked, probable=True)
    assert cached.images.shape == given.shape
    assert torch.equal(cached.images, naive.images)
    pixels = cached.images.permute(0, 2, 3, 1)
    with torch.no_grad():
        of_class, none = (
            model.network(pixels, told).unflatten(-1, (spec.channels, 256)).log_softmax(-1)
            for told in (labels, torch.full((n,), spec.num_classes))
        )
    guided = (none + weight * (of_class - none)).log_softmax(-1).gather(-1, pixels[..., None].long())
    expected = guided.flatten(1, 2).flatten(2)[:, known:].sum((1, 2))
    torch.testing.assert_close(cached.log_prob, expected, rtol=1e-9, atol=1e-9)


def test_guidance_of_one_is_none_and_of_nought_is_no_class() -> None:
    model = model_of("causal-unet", GUIDED)
    labels, none = labels_of(GUIDED, 4), torch.full((4,), GUIDED.num_classes)

    def sampled(labels: Tensor | None, **told: Any) -> Tensor:
        return model.sample(Noise.per_image(1, range(4), "cpu"), labels, AutoregressiveOptions(**told))

    uniforms = (
        Noise.per_image(1, range(4), "cpu").uniform(GUIDED.height, GUIDED.width, model.distribution.draws).double()
    )
    blank = torch.zeros(4, *GUIDED.shape, dtype=torch.uint8)
    by_one = draw(model.network, model.distribution, blank, 0, uniforms, labels, AS_LEARNED, Guide(1.0, 3)).images
    assert torch.equal(by_one, sampled(labels, guidance=1.0))
    assert torch.equal(sampled(labels, guidance=0.0), sampled(none, guidance=1.0))
    assert torch.equal(sampled(labels), sampled(labels, guidance=GUIDANCE))
    assert not torch.equal(sampled(labels), sampled(labels, guidance=1.0))


@pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler")
@pytest.mark.parametrize("network", [name for name in NETWORKS if "lstm" not in name])
@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli"])
@pytest.mark.parametrize("n", [1, 3, 19])
def test_the_compiled_loop_guides_alike(network: str, likelihood: str, n: int) -> None:
    spec = WITH_CHANNELS if NETWORKS[network].ordered else GUIDED
    model = model_of(network, spec, likelihood).float()
    uniforms = Noise.per_image(3, range(n), "cpu").uniform(spec.height, spec.width, model.distribution.draws)
    asked = pictures(spec, n), 4, uniforms, labels_of(spec, n), Taste(temperature=0.9), Guide(2.0, spec.num_classes)
    with torch.no_grad():
        compiled, stepped = (
            draw(model.network, model.distribution, *asked, compiled=way).images for way in (True, False)
        )
    assert torch.equal(compiled, stepped)


def test_a_share_of_images_is_shown_without_its_class_in_training_only() -> None:
    n = 400
    model = model_of("pixelcnn", ImageSpec(1, 2, 2, 3), label_dropout=0.25)
    batch = Batch(pictures(model.spec, n), labels_of(model.spec, n))
    seen: list[Tensor] = []
    model.network.register_forward_pre_hook(lambda module, given: seen.append(given[1]))
    assert batch.labels is not None
    for training in (True, False):
        model.train(training)
        model.loss(batch, Noise.per_image(0, range(n), "cpu"))
        changed = seen[-1] != batch.labels
        assert (seen[-1][changed] == 3).all()
        # five standard deviations of a binomial share
        assert abs(changed.double().mean() - 0.25 * training) <= 5 * math.sqrt(0.25 * 0.75 / n) * training


def test_models_that_cannot_be_guided() -> None:
    plain = ImageSpec(1, 4, 4)
    for model, message in (
        (model_of("pixelcnn", plain), "has no classes"),
        (model_of("pixelcnn", GUIDED, label_dropout=0.0), "label_dropout 0"),
        (model_of("pixelcnn", GUIDED, "logistics"), "likelihood logistics"),
    ):
        assert not model.can_be_guided
        with pytest.raises(ConfigError, match=message):
            model.check_options(AutoregressiveOptions(guidance=2.0))
        model.check_options(AutoregressiveOptions(guidance=1.0))
        model.check_options(AutoregressiveOptions())
        usual, alone = (
            model.sample(Noise.per_image(0, range(2), "cpu"), labels_of(model.spec, 2), options)
            for options in (None, AutoregressiveOptions(guidance=1.0))
        )
        assert torch.equal(usual, alone)
    with_class = model_of("pixelcnn", plain).network, model_of("pixelcnn", GUIDED, label_dropout=0.0).network
    assert [sum(b.embed.num_embeddings for b in net.blocks if b.embed) for net in with_class] == [0, 2 * 3]


REACHING = {
    "pixelcnn": {"blocks": (3,)},
    "gated-pixelcnn": {"blocks": (2,)},
    "causal-unet": {"widths": (16,), "blocks": (3,), "attention": ()},
}


@pytest.mark.parametrize("network", REACHING)
def test_pixels_see_to_the_right_as_far_as_is_said(network: str) -> None:
    """So that in a wave all is there that they see; and one column less would not do."""
    high, wide = 5, 17
    model = model_of(network, ImageSpec(1, high, wide), **REACHING[network])
    reach, seen = model.network.reach(), influences(model).reshape(high, wide, high, wide)
    assert reach is not None
    for up in range(1, high):
        columns = [(b - a, bool(seen[high - 1, a, high - 1 - up, b])) for a in range(wide) for b in range(wide)]
        assert max(right for right, influence in columns if influence) == min(reach[up], wide - 1)
    step = loop.wave_lag(model.network) * torch.arange(high)[:, None] + torch.arange(wide)
    later = step[:, :, None, None] - step
    assert bool((later[seen] > 0).all())
    assert bool((later[seen] == 1).any())


def test_networks_that_see_all_of_the_row_above_have_no_wave() -> None:
    attending = model_of("causal-unet", ImageSpec(1, 8, 8), widths=(16,), blocks=(1,), attention=(0,))
    assert loop.wave_lag(attending.network) is None
    for network in ("causal-unet", "pixelcnn++", "row-lstm", "diagonal-bilstm"):
        assert loop.wave_lag(model_of(network, ImageSpec(1, 8, 8)).network) is None


@pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler")
@pytest.mark.parametrize("network", REACHING)
@pytest.mark.parametrize(("spec", "n"), [*CASES, (ImageSpec(1, 12, 31), 3)], ids=str)
def test_rows_drawn_together_are_those_drawn_one_by_one(network: str, spec: ImageSpec, n: int) -> None:
    model = model_of(network, spec, **REACHING[network]).float()
    uniforms = Noise.per_image(3, range(n), "cpu").uniform(spec.height, spec.width, model.distribution.draws)
    given, labels = pictures(spec, n), labels_of(spec, n)
    for known in (0, spec.width * spec.height // 3):
        asked = model.network, model.distribution, given, known, uniforms, labels
        with torch.no_grad():
            together, one_by_one = (draw(*asked, wave=way).images for way in (True, False))
        assert torch.equal(together, one_by_one)


@pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler")
def test_the_compiled_loop_leaves_arithmetic_as_it_was() -> None:
    """Linked with -ffast-math a library makes numbers below 1e-38 zero in the whole process."""
    assert loop.built() is not None
    assert float(torch.tensor(1e-40) * torch.tensor(1.0)) > 0


def test_what_the_compiled_loop_cannot_do_is_left_to_the_other() -> None:
    model = model_of("gated-pixelcnn", ImageSpec(1, 4, 4)).float()
    uniforms = torch.zeros(1, 4, 4, 1)
    assert not loop.usable(model.network, model.distribution, uniforms, Taste(top_k=3))
    assert not loop.usable(model.network, model.distribution, uniforms.double(), AS_LEARNED)
    rnn = model_of("row-lstm", ImageSpec(1, 4, 4)).float()
    assert not loop.usable(rnn.network, rnn.distribution, uniforms, AS_LEARNED)


def test_without_a_compiler_all_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "built", lambda: None)
    spec = ImageSpec(1, 5, 5)
    model = model_of("causal-unet", spec).float()
    assert model.sample(Noise.per_image(0, range(2), "cpu")).shape == (2, 1, 5, 5)


@pytest.mark.parametrize("network", ["causal-unet", "pixelcnn++", "gated-pixelcnn", "diagonal-bilstm"])
@pytest.mark.parametrize("likelihood", ["bernoulli", "logistics"])
def test_other_likelihoods_are_drawn_alike(network: str, likelihood: str) -> None:
    spec = ImageSpec(1, 5, 5)
    model = model_of(network, spec, likelihood)
    uniforms = Noise.per_image(3, range(2), "cpu").uniform(5, 5, model.distribution.draws).double()
    blank = torch.zeros(2, *spec.shape, dtype=torch.uint8)
    with torch.no_grad():
        cached = draw(model.network, model.distribution, blank, 0, uniforms, None, probable=True)
        naive = draw_naively(model.network, model.distribution, blank, 0, uniforms, None, probable=True)
    assert torch.equal(cached.images, naive.images)
    exact = model.bits_per_dim(Batch(cached.images, None), Noise.shared(0, 2, "cpu")).per_image
    torch.testing.assert_close(-cached.log_prob / (25 * math.log(2)), exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("network", NETWORKS)
def test_completion_keeps_what_is_known_and_draws_the_rest(network: str) -> None:
    spec = ImageSpec(3, 5, 4)
    model = model_of(network, spec)
    noise = lambda: Noise.per_image(5, range(2), "cpu")  # noqa: E731
    whole = model.sample(noise())
    for known in (1, 7, 8, 19, 20):
        mangled = whole.clone()
        mangled.flatten(2)[:, :, known:] = 99  # what is there is not looked at
        assert torch.equal(model.complete(mangled, known, noise()), whole)
    other = pictures(spec, 2)
    completed = model.complete(other, 8, noise())
    assert torch.equal(completed[:, :, :2], other[:, :, :2])
    assert not torch.equal(completed[:, :, 2:], whole[:, :, 2:])


def test_binarised_at_random_and_so_each_time_anew() -> None:
    spec = ImageSpec(1, 4, 4)
    model = model_of("causal-unet", spec, "bernoulli")
    gray, binary = torch.full((1, 1, 4, 4), 128, dtype=torch.uint8), torch.tensor([0, 255], dtype=torch.uint8)
    bits = lambda images, seed: float(model.bits_per_dim(Batch(images, None), Noise.shared(seed, 1, "cpu")).per_image)  # noqa: E731
    assert bits(gray, 0) != bits(gray, 1)
    two = binary.repeat(8).reshape(1, 1, 4, 4)
    assert bits(two, 0) == bits(two, 1)
    assert set(model.sample(Noise.per_image(0, range(4), "cpu")).unique().tolist()) == {0, 255}
    many = model.distribution.prepared(torch.full((400, 1, 4, 4), 64, dtype=torch.uint8), Noise.shared(0, 400, "cpu"))
    share = float((many > 0).double().mean())
    assert share == pytest.approx(64 / 255, abs=4 * math.sqrt(0.25 * 0.75 / 6400))


def test_the_likelihood_is_chosen_by_the_data() -> None:
    gray, binary = pictures(ImageSpec(1, 4, 4), 3), (pictures(ImageSpec(1, 4, 4), 3) > 99).to(torch.uint8) * 255
    colours, flat = pictures(ImageSpec(3, 4, 4), 3), pictures(ImageSpec(3, 4, 1), 3).expand(3, 3, 4, 4)
    chosen = lambda images, **kw: Autoregressive.measured(AutoregressiveConfig(**kw), images).likelihood  # noqa: E731
    single = {"widths": (16,), "blocks": (1,), "attention": ()}
    assert chosen(gray) == "categorical"
    assert chosen(binary) == "bernoulli"
    assert chosen(binary.expand(3, 3, 4, 4)) == "bernoulli"
    assert chosen(colours) == "logistics"
    assert chosen(flat) == "categorical"
    assert chosen(flat, network="pixelcnn++", **(single | {"widths": (16,)})) == "logistics"
    assert chosen(colours, network="gated-pixelcnn", **single) == "categorical"
    assert chosen(binary, likelihood="logistics") == "logistics"
    assert chosen(flat, likelihood="logistics") == "logistics"
    for images in (colours, flat):
        config = Autoregressive.measured(Autoregressive.presets(ImageSpec(3, 4, 4))["tiny"].model, images)
        Autoregressive(ImageSpec(3, 4, 4), config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"network": "pixelcnn+"}, "pixelcnn"),
        ({"likelihood": "gaussian"}, "likelihood"),
        ({"widths": (16, 32)}, "give each level both"),
        ({"widths": (24, 32, 64)}, "multiples of 16"),
        ({"blocks": (1, 0, 1)}, "at least 1"),
        ({"network": "gated-pixelcnn", "attention": ()}, "has one: give one width"),
        ({"network": "pixelcnn++", "attention": (2,)}, "has none"),
        ({"attention": (3,)}, "levels are 0 to 2"),
        ({"mixtures": 0}, "mixtures"),
        ({"dropout": 1.0}, "dropout"),
        ({"label_dropout": -0.1}, "label_dropout"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AutoregressiveConfig(**settings)


@pytest.mark.parametrize("options", [{"temperature": -1.0}, {"top_k": 300}, {"top_p": 0.0}, {"guidance": -2.0}])
def test_options_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        AutoregressiveOptions(**options)


def test_options_and_channels_that_a_model_cannot_follow() -> None:
    model = model_of("pixelcnn++", ImageSpec(3, 4, 4))
    with pytest.raises(ConfigError, match="top_k"):
        model.check_options(AutoregressiveOptions(top_k=3))
    model_of("gated-pixelcnn", ImageSpec(3, 4, 4)).check_options(AutoregressiveOptions(top_k=3))
    with pytest.raises(ConfigError, match="independent"):
        Autoregressive(ImageSpec(3, 4, 4), replace(model.config, likelihood="categorical"))
    with pytest.raises(ConfigError, match="measured"):
        Autoregressive(ImageSpec(3, 4, 4), AutoregressiveConfig())
