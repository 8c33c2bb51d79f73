from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calotype.core.model import Batch
from calotype.data.packs.batches import Batches
from calotype.errors import DataError
from tests.conftest import Stripes


class Numbers:
    """Image i is the number i."""

    def read(self, indices: np.ndarray) -> Batch:
        images = torch.from_numpy(indices)[:, None, None, None].expand(-1, 1, 1, 2).to(torch.uint8)
        return Batch(images, None)


def numbers(batch: Batch) -> list[int]:
    return batch.images[:, 0, 0, 0].tolist()


@given(n=st.integers(1, 40), size=st.integers(1, 50), seed=st.integers(0, 2**40))
def test_every_epoch_shows_every_image_once(n: int, size: int, seed: int) -> None:
    batches = Batches(Numbers(), np.arange(n), size, seed)
    shown = [x for k in range(-(-3 * n // size)) for x in numbers(batches.at(k))]
    for epoch in range(3):
        assert sorted(shown[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_the_order_is_a_function_of_seed_and_position() -> None:
    forward = [numbers(Batches(Numbers(), np.arange(30), 7, 3).at(k)) for k in range(20)]
    batches = Batches(Numbers(), np.arange(30), 7, 3)
    backward = [numbers(batches.at(k)) for k in reversed(range(20))][::-1]
    assert forward == backward
    assert forward != [numbers(Batches(Numbers(), np.arange(30), 7, 4).at(k)) for k in range(20)]


def test_the_order_does_not_depend_on_the_batch_size() -> None:
    a, b = (Batches(Numbers(), np.arange(30), size, 3) for size in (6, 10))
    assert [x for k in range(5) for x in numbers(a.at(k))] == [x for k in range(3) for x in numbers(b.at(k))]


def test_only_the_given_images_are_used() -> None:
    chosen = np.array([3, 8, 5])
    batches = Batches(Numbers(), chosen, 4, 0)
    assert {x for k in range(20) for x in numbers(batches.at(k))} == {3, 5, 8}


def test_balanced_epochs_show_every_class_equally_and_every_image() -> None:
    labels = np.array([0] * 50 + [1] * 7 + [2] * 3)
    batches = Batches(Numbers(), np.arange(60), 10, 1, labels=labels)
    assert batches.epoch_length == 150
    for epoch in range(2):
        shown = [x for k in range(15 * epoch, 15 * (epoch + 1)) for x in numbers(batches.at(k))]
        assert np.bincount(labels[shown]).tolist() == [50, 50, 50]
        counts = np.bincount(shown, minlength=60)
        assert counts[:50].tolist() == [1] * 50
        assert set(counts[50:57].tolist()) <= {7, 8}
        assert set(counts[57:].tolist()) <= {16, 17}


def test_flips_mirror_half_of_the_images() -> None:
    data = Stripes(64)
    plain, flipped = Batches(data, np.arange(64), 64, 2), Batches(data, np.arange(64), 64, 2, flips=True)
    mirrored = 0
    for k in range(20):
        a, b = plain.at(k).images, flipped.at(k).images
        same = (a == b).flatten(1).all(1)
        turned = (a.flip(3) == b).flatten(1).all(1)
        assert bool((same | turned).all())
        mirrored += int((turned & ~same).sum())
    symmetric = int((data.images == data.images.flip(3)).flatten(1).all(1).sum()) * 20
    free = 1280 - symmetric
    assert abs(mirrored - free / 2) < 6 * (free / 4) ** 0.5  # six standard deviations


def test_no_images() -> None:
    with pytest.raises(DataError):
        Batches(Numbers(), np.arange(0), 4, 0)
