"""Networks whose weights the user brings: their form, what they are fed, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from calotype.core.rng import Noise, seeded
from calotype.errors import ConfigError
from calotype.evaluation import features
from calotype.evaluation.evaluate import metric_of, titled
from calotype.nn.dinov2 import DinoV2, dinov2
from calotype.nn.inception import POOLS, InceptionV3, inception


def images(n: int, side: int) -> Tensor:
    return (Noise.shared(3, n, "cpu").uniform(3, side, side) * 256).to(torch.uint8)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    with seeded(0):
        return InceptionV3().state_dict()


def small() -> DinoV2:
    """With random weights everywhere, as those of layer scale and of positions begin as constants."""
    with seeded(0):
        network = DinoV2(64, 2, 128)
        for p in network.parameters():
            torch.nn.init.normal_(p, std=0.1)
    return network


def test_inception_is_of_the_published_size(weights: dict[str, Tensor]) -> None:
    assert sum(p.numel() for p in InceptionV3().parameters()) == 21_785_568  # of pytorch-fid's without its classes
    assert weights["Mixed_7c.branch3x3dbl_3b.conv.weight"].shape == (384, 384, 3, 1)
    network = inception(weights | {"fc.weight": torch.zeros(1008, 2048), "AuxLogits.fc.bias": torch.zeros(1)}).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 299, 299)).shape == (1, 2048)


def test_pools_do_not_count_what_is_outside() -> None:
    ones = torch.ones(1, 1, 5, 5)
    assert torch.equal(POOLS["average"](ones), ones)
    assert POOLS["halved"](ones).shape == (1, 1, 2, 2)


def test_weights_of_something_else_are_refused(weights: dict[str, Tensor]) -> None:
    name = "Mixed_5b.branch1x1.conv.weight"
    with pytest.raises(ConfigError, match=f"have no {re.escape(name)}"):
        inception({k: v for k, v in weights.items() if k != name})
    with pytest.raises(ConfigError, match=r"is \(1,\) in the weights, but InceptionV3 has \(64, 192, 1, 1\)"):
        inception(weights | {name: torch.zeros(1)})
    with pytest.raises(ConfigError, match="weights have another, which"):
        inception(weights | {"another": torch.zeros(1)})
    with pytest.raises(ConfigError, match="no weights of DINOv2"):
        dinov2(weights)
    with pytest.raises(ConfigError, match="registers"):
        dinov2({"register_tokens": torch.zeros(1)})


def test_dinov2_is_read_off_its_weights() -> None:
    network = small()
    again = dinov2(network.state_dict() | {"mask_token": torch.zeros(1, 64)})
    x = Noise.shared(1, 2, "cpu").normal(3, 224, 224)
    with torch.no_grad():
        assert torch.equal(again(x), network(x))
        # With residuals scaled by 0 nothing is left but the class token and its position.
        for block in network.blocks:
            block.ls1.gamma.zero_()
            block.ls2.gamma.zero_()
        alone = network.norm(network.cls_token[0] + network.pos_embed[0, :1]).expand(2, -1)
        torch.testing.assert_close(network(x), alone)


def test_positions_of_dinov2_are_stretched() -> None:
    """A ramp stays one but for its border: (k + 1/2) 37 / 16.1 - 1/2.

    Cubic interpolation with a = -3/4 errs on a ramp by at most 1/4 max of 2 t (1 - t) (1 - 2 t), which is 0.0482.
    """
    network = small()
    ramp = torch.arange(37.0).repeat(37)  # by columns
    with torch.no_grad():
        network.pos_embed[0, 1:] = ramp[:, None]
        found = network.positions()[0, 1:].unflatten(0, (16, 16))[:, 2:-2, 0]
    expected = (torch.arange(16.0) + 0.5) * 37 / 16.1 - 0.5
    torch.testing.assert_close(found, expected[2:-2].expand(16, -1), atol=0.05, rtol=0)


def test_they_are_measured_as_in_papers(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    torch.save(weights, tmp_path / "inception.pth")
    network = features.network(f"Inception:{tmp_path / 'inception.pth'}")
    assert re.fullmatch(r"Inception@[0-9a-f]{8}", network.name)  # not the published weights: not called FID
    assert not network.standardised
    assert network.whole
    some = images(2, 32)
    by_hand = F.interpolate(some.float() / 255, (299, 299), mode="bilinear", align_corners=False)
    with torch.no_grad():
        expected = inception(weights).eval()(2 * by_hand - 1).double()
    torch.testing.assert_close(network.features(some), expected, rtol=1e-3, atol=1e-5)
    assert titled("FD", "Inception") == "FID"
    assert titled("FD∞", "Inception") == "FID∞"
    assert titled("FD", network.name) == f"FD-{network.name}"
    assert [metric_of(name) for name in ("FID", "FID∞", f"FD-{network.name}")] == ["FD", "FD∞", "FD"]


def test_dinov2_is_fed_by_its_path(tmp_path: Path) -> None:
    torch.save(small().state_dict(), tmp_path / "vit.pth")
    network = features.network(f"DINOv2:{tmp_path / 'vit.pth'}")
    assert network.name == "DINOv264"  # a size that is not published
    assert network.features(images(3, 40)).shape == (3, 64)
    assert torch.equal(features.bicubic(torch.full((1, 3, 9, 9), 7.0), 224), torch.full((1, 3, 224, 224), 7.0))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Inception", "Inception needs a file of weights: download https://github.com/mseitzer"),
        ("DINOv2:none.pth", r"the weights none\.pth of DINOv2 are not there: download https"),
        ("Inception:{}/text.pth", "cannot be read as weights"),
        ("Inception:{}/list.pth", "holds no weights by name"),
    ],
)
def test_what_is_missing_is_said_with_where_it_is(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "text.pth").write_text("no weights")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(ConfigError, match=said):
        features.network(name.format(tmp_path))
