"""The protocol as a whole: a subject beside its controls, by every metric, in one report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from calotype.data import PackedDataset
from calotype.display import Display
from calotype.evaluation import controls, copying, features
from calotype.evaluation.evaluate import DISTANCES, METRICS, NORMAL, REFERENCE, K, Reference, measured
from calotype.evaluation.report import Copying, Protocol, Report, Value
from calotype.rng import fold, permutation

PER_CLASS = ("KID", "precision", "coverage")  # right with the few images of a class
FEWEST_TO_COMPARE = 50  # images, to say how near is near
APART = 2_000  # training images that say it where there are fewer held-out ones, at most


class Subject(NamedTuple):
    """Images to be measured, and what they are."""

    sets: Sequence[Tensor]  # per seed, uint8 (N, C, H, W)
    labels: Tensor | None  # int64 (N,), the same for every seed
    seeds: tuple[int, ...]
    facts: Mapping[str, Any]
    cost: Mapping[str, Any]
    likelihood: Value | None


class Outcome(NamedTuple):
    """A report, and the pictures that belong to it."""

    report: Report
    samples: Tensor  # of the first seed, uint8 (N, C, H, W)
    real: Tensor
    suspects: Sequence[tuple[Tensor, Tensor]]  # samples, and the training images nearest to them


def evaluated(
    subject: Subject, packed: PackedDataset, network: features.FeatureNetwork, seed: int, command: str, display: Display
) -> Outcome:
    """Measure a subject and the controls by the protocol."""
    n, warnings = len(subject.sets[0]), []
    known = features.cached(
        network,
        f"{packed.digest[:16]}-train",
        lambda: packed.read(packed.train).images,
        lambda done, total: display.count("training images compared by", done, total),
    )
    chosen = permutation(fold(seed, "reference"), len(packed.train))[:REFERENCE]
    reference = Reference.of(known[chosen])
    held = controls.chosen(packed.held_out, n, seed, "held_out")
    copied = permutation(fold(seed, "control", "train"), len(packed.train))[:n]
    others = {
        "held_out": packed.read(held).images,
        "gaussian": controls.gaussian(packed, n, seed),
        "patches": controls.shuffled_patches(packed.read(held).images, seed),
    }
    if len(held) < n:
        warnings.append(
            f"there are {len(held)} held-out images for sets of {n}: the FD of the controls held-out and patches is "
            "too large beside that of the samples; FD∞ and KID are not"
        )

    def of(name: str, images: Tensor) -> Tensor:
        return reference.scaled(network.features(images, lambda done, total: display.count(name, done, total)))

    sets = {"samples": [of(f"samples of seed {s}", images) for s, images in enumerate(subject.sets)]}
    sets |= {name: [of(f"control {name}", images)] for name, images in others.items()}
    sets["train"] = [reference.scaled(known[copied])]
    order = ("samples", *controls.NAMES)
    values = []
    for which in order:
        for k, name in enumerate(METRICS):
            display.count(f"measuring {which}", k, len(METRICS))
            values.append(measured(name, which, sets[which], reference, network.name, seed))
    values += _transparency(subject.sets, others, packed, network, chosen, copied, seed)
    if subject.likelihood is not None:
        values.append(subject.likelihood)
    per_class = _per_class(subject, packed, sets["samples"], known, reference, network.name, seed)
    display.count("looking for copies", 0, 1)
    verdict, pairs, shares = _copies(subject.sets, sets, packed, reference.scaled(known), held, copied, seed)
    values += shares + _duplicates(sets)
    protocol = Protocol(
        n=n,
        seeds=subject.seeds,
        data=packed.digest,
        reference="train",
        reference_n=len(chosen),
        features=network.name,
        features_digest=network.digest,
        k=K,
    )
    about = {
        "source": packed.config.source,
        "digest": packed.digest,
        "images": len(packed),
        "train": len(packed.train),
        "held_out": len(packed.held_out),
        "width": packed.spec.width,
        "height": packed.spec.height,
        "channels": packed.spec.channels,
        "classes": packed.spec.num_classes,
    }
    report = Report(
        dict(subject.facts),
        about,
        protocol,
        tuple(values),
        verdict,
        dict(subject.cost),
        tuple(warnings),
        command,
        per_class,
    )
    return Outcome(report, subject.sets[0], others["held_out"], pairs)


def _per_class(
    subject: Subject,
    packed: PackedDataset,
    sets: Sequence[Tensor],
    known: Tensor,
    reference: Reference,
    network: str,
    seed: int,
) -> tuple[Value, ...]:
    if subject.labels is None or packed.labels is None:
        return ()
    told, found = torch.from_numpy(packed.labels[packed.train]), []
    for k, name in enumerate(packed.class_names):
        own = reference.scaled(known[told == k])
        own = own[torch.from_numpy(permutation(fold(seed, "class", k), len(own))[:REFERENCE])]
        if len(own) < 2:
            continue
        of_class = Reference(own, reference.mean, reference.deviation, reference.frechet)
        some = [features[subject.labels == k] for features in sets]
        found += [measured(metric, name, some, of_class, network, seed) for metric in PER_CLASS]
    return tuple(found)


def _copies(
    images: Sequence[Tensor],
    sets: Mapping[str, Sequence[Tensor]],
    packed: PackedDataset,
    known: Tensor,
    held: np.ndarray,
    copied: np.ndarray,
    seed: int,
) -> tuple[Copying, list[tuple[Tensor, Tensor]], list[Value]]:
    """Whether the samples are copies, the most suspicious ones, and how many are close, beside the controls."""
    training = packed.read(packed.train).images
    half = len(held) // 2
    spaces = {
        "features": (
            [f.float() for f in sets["samples"]],
            sets["held_out"][0].float(),
            known[copied].float(),
            known.float(),
        ),
        "pixels": (
            [copying.pixels(part) for part in images],
            copying.pixels(packed.read(held).images),
            copying.pixels(training[torch.from_numpy(copied)]),
            copying.pixels(training),
        ),
    }
    values, flagged, pairs, told = [], False, [], []
    for space, (samples, real, copies, among) in spaces.items():
        if half < FEWEST_TO_COMPARE:  # what training images are from each other serves as well
            closest = copying.limit(copying.apart(among, APART, seed))
        else:
            closest = copying.limit(copying.near(real[:half], among).distance)
        near = [copying.near(rows, among) for rows in samples]
        for of, found in {
            "samples": near,
            "held_out": [copying.near(real[half if half >= FEWEST_TO_COMPARE else 0 :], among)],
            "train": [copying.near(copies, among)],
        }.items():
            shares = [copying.close(part, closest) for part in found]
            n = sum(len(part.distance) for part in found)
            values.append(_share(f"close in {space}", of, sum(s.share for s in shares) / len(shares), n))
            values.append(_share(f"authentic in {space}", of, sum(s.authentic for s in shares) / len(shares), n))
        share = next(v for v in values if (v.name, v.of) == (f"close in {space}", "samples"))
        assert share.low is not None
        assert share.value is not None
        told.append(f"{100 * share.value:.1f} % by {space}")
        flagged |= share.low > copying.FLAGGED
        if space == "features":
            for i in copying.suspects(near[0]).tolist():
                place = int(near[0].place[i])
                pairs.append((i, place, float(near[0].distance[i])))
    verdict = (
        f"{'This looks like copying' if flagged else 'No sign of copying'}: {' and '.join(told)} of the samples "
        "are nearer to a training image than 99 % of other images are; without copying it is about 1 %."
    )
    told_pairs = tuple({"sample": i, "train": int(packed.train[j]), "distance": d} for i, j, d in pairs)
    return Copying(flagged, verdict, told_pairs), [(images[0][i], training[j]) for i, j, _ in pairs], values


def _share(name: str, of: str, share: float, n: int) -> Value:
    """A share with its 95 % interval. Source: Wilson 1927."""
    z = NORMAL**2
    middle = (share + z / (2 * n)) / (1 + z / n)
    half = NORMAL * (share * (1 - share) / n + z / (4 * n * n)) ** 0.5 / (1 + z / n)
    return Value(name, of, share, middle - half, middle + half, n)


def _duplicates(sets: Mapping[str, Sequence[Tensor]]) -> list[Value]:
    """How many images have another one of their set nearer than all but one in a hundred training images have."""
    real, name = sets["train"][0], "near-duplicates"
    found = []
    for of in ("samples", "held_out", "train"):
        n = min(len(real), *map(len, sets[of]))
        if n < FEWEST_TO_COMPARE:
            note = f"needs {FEWEST_TO_COMPARE} images, there are {n}"
            found.append(Value(name, of, None, None, None, n, note))
            continue
        shares = [copying.near_duplicates(features[:n], real[:n]) for features in sets[of]]
        found.append(_share(name, of, sum(shares) / len(shares), n * len(shares)))
    return found


def _transparency(
    samples: Sequence[Tensor],
    others: Mapping[str, Tensor],
    packed: PackedDataset,
    network: features.FeatureNetwork,
    chosen: np.ndarray,
    copied: np.ndarray,
    seed: int,
) -> list[Value]:
    """The distances of the alpha channel alone, as gray images; none for images without one."""

    def of(images: Tensor) -> Tensor:
        alpha = features.transparency(images)
        assert alpha is not None
        return network.features(alpha)

    if features.transparency(samples[0]) is None:
        return []
    reference = Reference.of(of(packed.read(packed.train[chosen]).images))
    sets = {"samples": [reference.scaled(of(images)) for images in samples]}
    sets |= {name: [reference.scaled(of(images))] for name, images in others.items()}
    sets["train"] = [reference.scaled(of(packed.read(packed.train[copied]).images))]
    title = f"{network.name}, alpha"
    return [
        measured(name, which, sets[which], reference, title, seed)
        for name in DISTANCES
        for which in ("samples", *controls.NAMES)
    ]
