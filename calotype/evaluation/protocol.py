"""The whole protocol: a subject and its controls, measured by every metric, in one report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from calotype.core.display import Display
from calotype.core.rng import fold, permutation
from calotype.data import PackedDataset
from calotype.errors import ConfigError
from calotype.evaluation import controls, copying, features
from calotype.evaluation.classifier import Classifier, as_features, classifier
from calotype.evaluation.course import Course, course
from calotype.evaluation.evaluate import DISTANCES, METRICS, REFERENCE, K, Reference, measured, share
from calotype.evaluation.metrics import shuffled
from calotype.evaluation.modes import modes, shares
from calotype.evaluation.report import Copying, Protocol, Report, Value
from calotype.runs.portable_paths import shareable

PER_CLASS = ("KID", "precision", "coverage")  # right with the few images of a class
FEWEST = 2  # images of a set, and training images: no distance has a meaning with fewer
SMALL = 64  # pixels: gray images no larger are compared by the classifier of the data set, too


class Subject(NamedTuple):
    """Images to be measured, and their description."""

    sets: Sequence[Tensor]  # per seed, uint8 (N, C, H, W)
    labels: Tensor | None  # int64 (N,), the same for every seed
    seeds: tuple[int, ...]
    facts: Mapping[str, Any]
    cost: Mapping[str, Any]
    likelihoods: Sequence[Value]
    course: Sequence[Course]  # samples as training went on
    warnings: Sequence[str] = ()  # what the images are that one may not expect


class Outcome(NamedTuple):
    """A report, and the pictures that belong to it."""

    report: Report
    samples: Tensor  # of the first seed, uint8 (N, C, H, W)
    real: Tensor
    suspects: Sequence[tuple[Tensor, Tensor]]  # samples, and the training images nearest to them


class Material(NamedTuple):
    """The reference, training and control images of an evaluation."""

    packed: PackedDataset
    sets: Mapping[str, Sequence[Tensor]]  # samples and controls, per seed uint8 (N, C, H, W)
    copied: np.ndarray  # places of the control `train` among the training images
    seed: int


class Features(NamedTuple):
    """The features of the material by one network, standardised by its reference."""

    sets: Mapping[str, Sequence[Tensor]]  # float64 (N, D)
    training: Tensor  # all training images
    reference: Reference
    network: features.FeatureNetwork


def evaluated(
    subject: Subject, packed: PackedDataset, network: features.FeatureNetwork, seed: int, command: str, display: Display
) -> Outcome:
    """Measure a subject and the controls by the protocol."""
    n, warnings = min(map(len, subject.sets)), list(subject.warnings)
    if n < FEWEST:
        raise ConfigError(f"there {'is 1 image' if n == 1 else 'are no images'} to measure: give {FEWEST} or more")
    if len(packed.train) < FEWEST:
        raise ConfigError(
            f"{packed.config.source} has {len(packed.train)} training picture, but images are compared with "
            f"{FEWEST} or more: add pictures"
        )
    if not len(packed.held_out):
        raise ConfigError(
            f"{packed.config.source} has no held-out pictures whose class has training pictures, to compare with: add "
            "some"
        )
    telling = classifier(packed, lambda done, total: display.count("training a classifier on images", done, total))
    material = _material(subject, packed, n, seed)
    held = len(material.sets["held_out"][0])
    if held < n:
        some = "is 1 held-out image" if held == 1 else f"are {held} held-out images"
        warnings.append(
            f"there {some} for sets of {n}: the FD of the controls held-out and patches is too large beside that of "
            "the samples; FD∞ and KID are not"
        )
    main = _features(material, network, display)
    values = _measured(main, METRICS, seed, display)
    if telling is not None and packed.spec.channels == 1 and max(packed.spec.height, packed.spec.width) <= SMALL:
        values += _measured(_features(material, as_features(telling), display), DISTANCES, seed, display)
    values += _transparency(material, network, len(main.reference.features))
    values += subject.likelihoods
    if telling is not None:
        display.count("telling classes apart", 0, 1)
        values += _modes(material, telling, subject.labels)
    display.count("looking for copies", 0, 1)
    verdict, pairs, close = _copies(material, main)
    values += close
    values += copying.repeated({of: main.sets[of] for of in ("samples", "held_out", "train")}, main.sets["train"][0])
    protocol = Protocol(
        n=n,
        seeds=subject.seeds,
        data=packed.digest,
        reference="train",
        reference_n=len(main.reference.features),
        features=network.name,
        features_digest=network.digest,
        k=K,
    )
    report = Report(
        subject=dict(subject.facts),
        data=_about(packed),
        protocol=protocol,
        values=tuple(values),
        copying=verdict,
        cost=dict(subject.cost),
        warnings=tuple(warnings),
        command=command,
        per_class=_per_class(subject, main, packed, telling, seed),
        over_training=course(subject.course, network, main.reference),
    )
    return Outcome(report, subject.sets[0], material.sets["held_out"][0], pairs)


def _about(packed: PackedDataset) -> dict[str, Any]:
    return {
        "source": shareable(packed.config.source),
        "digest": packed.digest,
        "images": len(packed),
        "train": len(packed.train),
        "held_out": len(packed.held_out),
        "width": packed.spec.width,
        "height": packed.spec.height,
        "channels": packed.spec.channels,
        "classes": len(packed.spec.classes),
    }


def _material(subject: Subject, packed: PackedDataset, n: int, seed: int) -> Material:
    held = packed.read(controls.chosen(packed.held_out, n, seed, "held_out")).images
    copied = permutation(fold(seed, "control", "train"), len(packed.train))[:n]
    sets = {
        "samples": subject.sets,
        "held_out": [held],
        "train": [packed.read(packed.train[copied]).images],
        "gaussian": [controls.gaussian(packed, n, seed)],
        "patches": [controls.shuffled_patches(held, seed)],
    }
    return Material(packed, {name: sets[name] for name in ("samples", *controls.NAMES)}, copied, seed)


def _features(material: Material, network: features.FeatureNetwork, display: Display) -> Features:
    packed = material.packed
    known = features.cached(
        network,
        f"{packed.digest[:16]}-train",
        lambda: packed.read(packed.train).images,
        lambda done, total: display.count("training images compared by", done, total),
    )
    chosen = shuffled(known, material.seed)[: None if network.whole else REFERENCE]
    reference = Reference.of(known[chosen], network.standardised)
    found: dict[str, list[Tensor]] = {}
    for name, sets in material.sets.items():
        if name == "train":
            found[name] = [reference.scaled(known[material.copied])]
            continue
        found[name] = []
        for k, images in enumerate(sets):
            what = f"set {k + 1} of {name}" if name == "samples" else f"control {name}"

            def report(done: int, total: int, what: str = what) -> None:
                display.count(what, done, total)

            if name == "samples":
                rows = network.features(images, report)
            else:  # the same for every model of these pictures
                key = f"{packed.digest[:16]}-{name}-{len(images)}-{material.seed}"
                rows = features.cached(network, key, lambda images=images: images, report)  # type: ignore[misc]
            found[name].append(reference.scaled(rows))
    return Features(found, reference.scaled(known), reference, network)


def _measured(found: Features, metrics: Sequence[str] | Mapping[str, Any], seed: int, display: Display) -> list[Value]:
    values = []
    for which, sets in found.sets.items():
        for k, name in enumerate(metrics):
            display.count(f"measuring {which}", k, len(metrics))
            values.append(measured(name, which, sets, found.reference, found.network.name, seed))
    return values


def _modes(material: Material, telling: Classifier, asked: Tensor | None) -> list[Value]:
    """Class coverage of the sets, and the accuracy of the classifier that measures it."""
    packed, seed = material.packed, material.seed
    assert packed.labels is not None
    wanted = shares(torch.from_numpy(packed.labels[packed.train]), len(packed.class_names))
    values: list[Value] = []
    for of, sets in material.sets.items():
        classes, told = [telling.classes(images) for images in sets], asked if of == "samples" else None
        if of == "held_out":
            chosen = controls.chosen(packed.held_out, len(classes[0]), seed, "held_out")
            told = torch.from_numpy(packed.labels[chosen])
        values += modes(of, classes, wanted, told, seed)
    return values


def _per_class(
    subject: Subject, main: Features, packed: PackedDataset, telling: Classifier | None, seed: int
) -> tuple[Value, ...]:
    if subject.labels is None or packed.labels is None:
        return ()
    told, found, reference = torch.from_numpy(packed.labels[packed.train]), [], main.reference
    seen = torch.cat([telling.classes(images) for images in subject.sets]) if telling else None
    asked = subject.labels.repeat(len(subject.sets))
    for k, name in enumerate(packed.class_names):
        own = main.training[told == k]
        own = own[shuffled(own, fold(seed, "class", k))[:REFERENCE]]
        if len(own) < 2:
            continue
        of_class = Reference(own, reference.mean, reference.deviation, reference.frechet)
        some = [rows[subject.labels == k] for rows in main.sets["samples"]]
        found += [measured(metric, name, some, of_class, main.network.name, seed) for metric in PER_CLASS]
        if seen is not None and (asked == k).any():
            right = (seen[asked == k] == k).double()
            found.append(share("as asked", name, float(right.mean()), len(right)))
    return tuple(found)


def _copies(material: Material, main: Features) -> tuple[Copying, list[tuple[Tensor, Tensor]], list[Value]]:
    """The search for copies: its result, the most suspicious samples, and shares of close images with controls."""
    packed, sets = material.packed, material.sets
    training = packed.read(packed.train).images
    spaces = {
        "features": copying.Space(
            [rows.float() for rows in main.sets["samples"]],
            main.sets["held_out"][0].float(),
            main.sets["train"][0].float(),
            main.training.float(),
            authentic=True,
        ),
        "pixels": copying.Space(
            [copying.pixels(images) for images in sets["samples"]],
            copying.pixels(sets["held_out"][0]),
            copying.pixels(sets["train"][0]),
            copying.pixels(training),
            authentic=False,
        ),
    }
    found = {name: copying.examined(space, name, material.seed) for name, space in spaces.items()}
    flagged = any(finding.flagged for finding in found.values())
    told = " and ".join(f"{100 * finding.share:.1f} % by {name}" for name, finding in found.items())
    count = sum(map(len, sets["samples"]))
    if count < copying.FEWEST_TO_COMPARE and not flagged:
        doubt = f" Of {count} images that says little: give {copying.FEWEST_TO_COMPARE} or more."
    else:
        doubt = ""
    verdict = (
        f"{'This looks like copying' if flagged else 'No sign of copying'}: {told} of the samples "
        "are nearer to a training image than 99 % of other images are; without copying it is about 1 %."
        f"{doubt}"
    )
    near = found["features"].near
    suspects = copying.suspects(near).tolist()
    pairs = [(sets["samples"][0][i], training[int(near.place[i])]) for i in suspects]
    listed = tuple(
        {"sample": i, "train": int(packed.train[int(near.place[i])]), "distance": float(near.distance[i])}
        for i in suspects
    )
    return Copying(flagged, verdict, listed), pairs, [value for finding in found.values() for value in finding.values]


def _transparency(material: Material, network: features.FeatureNetwork, count: int) -> list[Value]:
    """The distances of the alpha channel alone, as gray images; none for images without one.

    Args:
        count: training images to compare with.
    """

    def of(images: Tensor) -> Tensor:
        alpha = features.transparency(images)
        assert alpha is not None
        return network.features(alpha)

    if features.transparency(material.sets["samples"][0]) is None:
        return []
    packed, seed = material.packed, material.seed
    chosen = permutation(fold(seed, "reference"), len(packed.train))[:count]
    reference = Reference.of(of(packed.read(packed.train[chosen]).images), network.standardised)
    sets = {name: [reference.scaled(of(images)) for images in some] for name, some in material.sets.items()}
    return [
        measured(name, which, sets[which], reference, f"{network.name}, alpha", seed)
        for name in DISTANCES
        for which in sets
    ]
