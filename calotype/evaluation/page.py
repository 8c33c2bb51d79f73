"""The page of a report: one self-contained HTML file without scripts, with every number of the JSON.

Numbers are rounded for reading; `value` and `title` attributes have the exact ones.
"""

from __future__ import annotations

import base64
import importlib.resources
import io
import json
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import PurePath
from typing import NamedTuple

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template
from markupsafe import Markup
from torch import Tensor

from calotype.core.images import to_pil
from calotype.evaluation import plots
from calotype.evaluation.controls import NAMES
from calotype.evaluation.evaluate import DISTANCES, METRICS, metric_of
from calotype.evaluation.modes import TOLD
from calotype.evaluation.report import Report, Value, label, number
from calotype.evaluation.views import NOTHING, Views

TILE = 64  # CSS pixels of the longer side of a small picture; the zoom shows three times that
PIXELS = 2**21  # of the samples, and of the real images: enough for 100 of 128 x 128, and a page of about 10 MB
FEW_CLASSES = 20  # a longer table is folded


class Pictures(NamedTuple):
    """The images of the page; each field may be empty."""

    samples: Tensor  # uint8 (N, C, H, W)
    real: Tensor  # held-out images, uint8 (N, C, H, W)
    suspects: Sequence[tuple[Tensor, Tensor]]  # samples and the training images nearest to them, uint8 (C, H, W)
    over_training: Sequence[tuple[str, Tensor]]  # captions, and grids of the same seeds, uint8 (C, H, W)
    latents: Views = NOTHING  # of a model that has some


class Picture(NamedTuple):
    """An image for the page."""

    uri: str
    width: int
    height: int
    css_width: float  # of the small form

    @property
    def style(self) -> str:
        """The size of the picture, as CSS."""
        return f"--w:{self.css_width:g};--native:{self.width}"

    @property
    def kind(self) -> str:
        """Small images are enlarged with their pixels visible."""
        return "pixels" if max(self.width, self.height) <= TILE else "smooth"


class Table(NamedTuple):
    """Values in rows and columns."""

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Value | None]]]
    notes: Sequence[str]  # of values that are reported all the same, each once


class Card(NamedTuple):
    """A metric: its meaning, and the rank of the samples among the controls."""

    name: str
    told: str
    better: str  # lower, higher or nothing
    plot: Markup | None  # None where no set has a value


class Summary(NamedTuple):
    """The values in the summary; None for values that were not measured."""

    distance: Value | None  # of the samples
    floor: Value | None  # the same of held-out images
    worst: Value | None  # and of the farthest control
    standing: str  # where the samples are among these
    shares: Sequence[tuple[str, Value, Value | None]]  # what a share is of, the samples', the held-out images'
    likelihoods: Sequence[Value]


def page(report: Report, pictures: Pictures, curves: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """The page, the same bytes for the same input.

    Args:
        report: the evaluation.
        pictures: may be empty, each kind by itself; its section is then left out.
        curves: (images seen, value) points by name, such as loss/model and held_out/model.

    Raises:
        DataError: for images that have no PNG form.
    """
    told = report.as_dict()
    cards = _cards(report.values)
    suspects = report.copying.suspects if report.copying else ()
    return template("page.html").render(
        command="evaluate",
        report=report,
        subject=last_of(report.subject.get("path")) or "images",
        source=last_of(report.data.get("source")) or "the data set",
        facts=_facts(report),
        summary=_summary(report.values),
        samples=tiles_of(pictures.samples),
        real=tiles_of(pictures.real),
        sets=NAMES,
        table=_table(report.values, by_class=False),
        cards=cards,
        better={card.name: card.better for card in cards},
        alpha=any(image.shape[-3] == 4 for image in _tensors(pictures)),
        over_training=[(caption, picture_of(image)) for caption, image in pictures.over_training],
        reconstructions=[tuple(map(picture_of, pair)) for pair in pictures.latents.pairs],
        traversals=[(caption, list(map(picture_of, images))) for caption, images in pictures.latents.traversals],
        course=plots.course(report.over_training) if report.over_training else None,
        curves=plots.curves(curves),
        per_class=_table(report.per_class, by_class=True),
        few_classes=FEW_CLASSES,
        suspects=list(zip_longest(suspects, (tuple(map(picture_of, pair)) for pair in pictures.suspects))),
        cost=flat(report.cost),
        protocol=flat(told["protocol"] | {"digest": told["protocol_digest"], "format of the report": told["format"]}),
        about=flat(report.subject),
        data=flat(report.data),
    )


def template(name: str) -> Template:
    """One of the pages in this folder."""
    environment = Environment(
        loader=FunctionLoader(_text), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"exact": json.dumps, "number": number, "label": label, "words": plots.words}
    return environment.get_template(name)


def _text(name: str) -> str:
    return importlib.resources.files("calotype.evaluation").joinpath(name).read_text("utf-8")


# -- words


def last_of(path: object) -> str:
    """The last part of a path, or all of it where it has none."""
    return PurePath(str(path)).name or str(path) if path else ""


def _facts(report: Report) -> str:
    """The measured subject, in a line below the title."""
    subject = report.subject
    parts = [str(subject[key]) for key in ("family", "preset") if subject.get(key)]
    parts += [f"checkpoint {subject['checkpoint']}"] if subject.get("checkpoint") else []
    data = report.data
    if data.get("width") and data.get("height"):
        parts.append(f"{data['width']} × {data['height']} pixels")
    return " · ".join([*parts, f"{report.protocol.n:,} images per set"])


def told_of(name: str) -> tuple[str, str]:
    """The meaning of a metric, and which direction is better."""
    base = metric_of(name)
    if base in METRICS:
        return METRICS[base].told, "lower" if METRICS[base].lower_is_better else "higher"
    if base in TOLD:
        return TOLD[base]
    if base.startswith("bits/dim"):
        return "bits that the model needs for each value of a held-out image", "lower"
    if base.startswith("nats"):
        return "the same for a whole image, in nats, as is usual for binary data", "lower"
    if base.startswith("close in "):
        return "share of images nearer to a training image than 99 % of held-out images are", "lower"
    if base.startswith("authentic in "):
        return "share of images farther from the nearest training image than that is from the next; about a half", ""
    if base == "near-duplicates":
        return "share of images with a near-double in their set; about 0.01 without repetition", "lower"
    return "", ""


def _summary(values: Sequence[Value]) -> Summary:
    def of(name: str, which: str) -> Value | None:
        return next((v for v in values if (v.name, v.of) == (name, which) and v.value is not None), None)

    names = list(dict.fromkeys(v.name for v in values))
    distance = next(
        (of(name, "samples") for name in names if metric_of(name) in DISTANCES and of(name, "samples")), None
    )
    floor = worst = None
    if distance:
        floor = of(distance.name, "held_out")
        others = [of(distance.name, which) for which in NAMES if which not in ("held_out", "train")]
        worst = max((v for v in others if v), key=lambda v: v.value or 0.0, default=None)
    phrases = {
        "precision": "of the samples look like real images",
        "recall": "of the real images have their like among the samples",
        "coverage": "of the real images have a sample close by",
    }
    shares = [(told, v, of(name, "held_out")) for name, told in phrases.items() if (v := of(name, "samples"))]
    likelihoods = [v for v in values if v.name.startswith(("bits/dim", "nats")) and v.value is not None]
    return Summary(distance, floor, worst, _standing(distance, floor, worst), shares, likelihoods)


def _standing(distance: Value | None, floor: Value | None, worst: Value | None) -> str:
    """The position of the samples between the best and the worst control, judged by intervals."""
    if distance is None or distance.low is None or distance.high is None:
        return ""
    if floor and floor.high is not None and distance.low <= floor.high:
        return "This measure does not tell the samples from held-out images."
    if worst and worst.low is not None and distance.high >= worst.low:
        return "The samples are no better than that control."
    return ""


def _cards(values: Sequence[Value]) -> list[Card]:
    cards = []
    for name in dict.fromkeys(v.name for v in values):
        of_metric = [v for v in values if v.name == name]
        known = any(v.value is not None for v in of_metric)
        cards.append(Card(name, *told_of(name), plots.dots(name, of_metric) if known else None))
    return cards


# -- tables


def _table(values: Sequence[Value], by_class: bool) -> Table:
    """Metrics as rows and sets as columns; or classes as rows and metrics as columns."""
    found = {(v.of, v.name) if by_class else (v.name, v.of): v for v in values}
    rows, columns = (list(dict.fromkeys(key[i] for key in found)) for i in (0, 1))
    notes = list(dict.fromkeys(v.note for v in values if v.note and v.value is not None))
    return Table(columns, [(row, [found.get((row, column)) for column in columns]) for row in rows], notes)


def flat(value: object, key: str = "") -> list[tuple[str, object]]:
    """Nested mappings as rows, such as options.steps; a list of plain values stays one row."""
    if isinstance(value, Mapping):
        return [row for k, v in value.items() for row in flat(v, f"{key}.{k}" if key else str(k))]
    if isinstance(value, list | tuple):
        if any(isinstance(item, Mapping | list | tuple) for item in value):
            return [row for i, item in enumerate(value) for row in flat(item, f"{key}.{i}")]
        return [(key, list(value))]
    return [(key, value)]


# -- pictures


def picture_of(image: Tensor) -> Picture:
    """A uint8 image (C, H, W) for the page."""
    file, (height, width) = io.BytesIO(), image.shape[1:]
    to_pil(image).save(file, format="PNG")
    scale = TILE / max(height, width)
    scale = float(int(scale)) if scale >= 1 else scale  # pixels of one size
    uri = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return Picture(uri, width, height, width * scale)


def _tensors(pictures: Pictures) -> list[Tensor]:
    pairs = [image for pair in pictures.suspects for image in pair]
    pairs += [image for pair in pictures.latents.pairs for image in pair]
    return [pictures.samples, pictures.real, *pairs, *(image for _, image in pictures.over_training)]


def tiles_of(images: Tensor) -> list[Picture]:
    """The first of uint8 images (N, C, H, W), up to the limit of a page."""
    if len(images) == 0:
        return []
    return [picture_of(image) for image in images[: max(4, PIXELS // images[0, 0].numel())]]
