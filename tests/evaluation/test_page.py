"""The page of a report: whole, quiet about the network, and with every number in it."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from calotype.errors import DataError
from calotype.evaluation.page import PIXELS, Pictures, page
from calotype.evaluation.report import Copying, Protocol, Report, Value, number, shown
from calotype.evaluation.views import Views

VOID = {"meta", "img", "br"}
PROTOCOL = Protocol(
    n=60, seeds=(3, 4), data="d1", reference="train", reference_n=512, features="toy", features_digest="f1", k=5
)
CURVES = {"loss/model": [(64, 2.0), (128, 1.0), (192, 0.1)], "held_out/model": [(128, 1.1)]}


class Read(HTMLParser):
    """A page taken apart; fails where tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def sections(self) -> set[str]:
        return {section["id"] for section in self.of("section") if "id" in section}

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


def noise(n: int, channels: int = 3, size: int = 6) -> Tensor:
    rng = np.random.Generator(np.random.Philox(key=n + 100 * channels))
    return torch.from_numpy(rng.integers(0, 256, (n, channels, size, size), dtype=np.uint8))


def pictures(channels: int = 3) -> Pictures:
    pairs = list(zip(noise(2, channels), noise(2, channels), strict=True))
    views = Views(pairs, [("latent 3", noise(3, channels))])
    return Pictures(noise(5, channels), noise(4, channels), pairs, [("6,400 images", noise(1, channels)[0])], views)


NO_PICTURES = Pictures(torch.zeros(0, 3, 6, 6, dtype=torch.uint8), torch.zeros(0, 3, 6, 6, dtype=torch.uint8), (), ())


def report() -> Report:
    rng, values = np.random.Generator(np.random.Philox(key=1)), []
    for name in ("FD-toy", "KID-toy", "precision", "recall", "density", "coverage"):
        for of in ("samples", "held_out", "train", "gaussian", "patches"):
            value = float(rng.uniform(0.5, 0.9))
            values.append(Value(name, of, value, value - float(rng.uniform(0, 0.1)), value + 0.0123456789, 60))
    values.append(Value("FD∞-toy", "samples", None, None, None, 60, "needs 200 images, there are 60"))
    values.append(Value("FD∞-toy", "held_out", 1e-7 / 3, None, 2e-7, 61, "fewer images than the 80 features"))
    values.append(Value("bits/dim (bound)", "samples", 3.123456789, 3.0123456789, 3.3123456789, 32))
    classes = (
        Value("precision", "bars", 0.7123456, 0.6123456, 0.8123456, 31),
        Value("precision", "dots", None, None, None, 29, "needs 50 images, there are 29"),
    )
    suspects = (
        {"sample": 17, "train": 4711, "distance": 0.123456789},
        {"sample": 19, "train": 4713, "distance": 1234567.89},
    )
    return Report(
        {"kind": "run", "path": "runs/stripes", "options": {"steps": 18, "sigma": 79.987654, "parts": [{"a": 0.125}]}},
        {"source": "photos/stripes", "images": 123456, "held_out": 789, "width": 6, "height": 6, "classes": None},
        PROTOCOL,
        tuple(values),
        Copying(False, "No sign of copying.", suspects),
        {"samples per second": 84.3123456, "parameters": 3912345, "device": "cpu", "averaged": True},
        (),
        "calotype evaluate runs/stripes",
        classes,
        (
            Value("KID-toy", "640", 0.71234567, 0.61234567, 0.81234567, 16),
            Value("KID-toy", "1280", 0.03, -0.02, 0.08, 16),
        ),
    )


BARE = replace(report(), values=(), copying=None, cost={}, subject={}, data={}, per_class=(), over_training=())


def numbers(told: object) -> Iterator[float]:
    if isinstance(told, dict):
        for value in told.values():
            yield from numbers(value)
    elif isinstance(told, list | tuple):
        for value in told:
            yield from numbers(value)
    elif isinstance(told, int | float) and not isinstance(told, bool):
        yield told


@pytest.fixture(scope="module")
def full() -> Read:
    return Read(page(report(), pictures(), CURVES))


def test_every_number_of_the_report_is_on_the_page_as_it_is(full: Read) -> None:
    there = {data["value"] for data in full.of("data")}
    for _, attributes in full.tags:
        there |= set(attributes.get("title", "").replace(",", " ").split())
    wanted = [json.dumps(x) for x in numbers(report().as_dict())]
    assert len(wanted) > 100
    assert [x for x in wanted if x not in there] == []


def test_every_value_stands_in_its_cell(full: Read) -> None:
    titles = [cell["title"] for cell in full.of("td") if "title" in cell]
    told = report()
    assert len(titles) == len(told.values) + len(told.per_class) + len(told.over_training)
    for v in (*report().values, *report().per_class):
        value, low, high = (json.dumps(x) for x in (v.value, v.low, v.high))
        assert f"{v.name} of {v.of}: {value}, 95 % interval {low} to {high}, {v.n} images" in titles
        if v.value is not None and v.low is not None:
            assert shown(v) in full.words


def test_the_page_needs_nothing_else(full: Read) -> None:
    text = page(report(), pictures(), CURVES)
    assert {"script", "link", "iframe", "object", "base", "form"}.isdisjoint(tag for tag, _ in full.tags)
    for tag, attributes in full.tags:
        for key in ("src", "href", "xlink:href", "action", "data", "srcset"):
            assert re.match(r"data:image/png;base64,|#|$", attributes.get(key, "")), (tag, attributes)
        assert not any(key.startswith("on") for key in attributes), attributes
    assert "http:" not in text
    assert "https:" not in text
    assert re.findall(r"url\((?!#)|@import", text) == []
    assert "viewport" in [tag.get("name") for tag in full.of("meta")]


def test_references_within_the_page_are_to_something_and_names_are_given_once(full: Read) -> None:
    text = page(report(), pictures(), CURVES)
    ids = [attributes["id"] for _, attributes in full.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r"url\(#([^)]+)\)", text)) | {use["xlink:href"][1:] for use in full.of("use")}
    assert used
    assert used <= set(ids)


def test_the_same_report_gives_the_same_bytes() -> None:
    assert page(report(), pictures(), CURVES) == page(report(), pictures(), CURVES)


HOSTILE = "</td><script>alert(\"1\")</script><b onclick='x'>&amp;$x_1$\\{{ 7*7 }}"


def test_names_are_told_and_never_obeyed() -> None:
    value = Value(HOSTILE, HOSTILE, 1.0, 0.5, 1.5, 10, HOSTILE)
    told = replace(
        report(),
        subject={"path": HOSTILE, HOSTILE: HOSTILE},
        data={"source": f"a/{HOSTILE}", "names": [HOSTILE]},
        values=(value, replace(value, of="samples"), replace(value, of="x", value=None)),
        per_class=(value,),
        copying=Copying(True, HOSTILE, ({HOSTILE: 1, "distance": 2.0},)),
        cost={HOSTILE: HOSTILE},
        warnings=(HOSTILE,),
        command=HOSTILE,
    )
    shown_pictures = pictures()._replace(over_training=[(HOSTILE, noise(1)[0])])
    read = Read(page(told, shown_pictures, {f"loss/{HOSTILE}": [(1, 1.0), (2, 0.5)]}))
    assert "script" not in {tag for tag, _ in read.tags}
    assert not any(key.startswith("on") for _, attributes in read.tags for key in attributes)
    assert read.text.count(HOSTILE.replace("_", " ")) >= 3  # names of rows
    assert read.text.count(HOSTILE) >= 10
    assert any(image["alt"] == HOSTILE for image in read.of("img"))


def test_what_is_empty_has_no_section(full: Read) -> None:
    always = {"protocol", "again"}
    assert Read(page(BARE, NO_PICTURES, {})).sections == always
    assert Read(page(BARE, NO_PICTURES, {"loss/model": []})).sections == always
    assert full.sections == always | {
        "images",
        "metrics",
        "plots",
        "latents",
        "over-training",
        "course",
        "curves",
        "classes",
        "copying",
        "cost",
        "subject",
        "data",
    }


@pytest.mark.parametrize(
    ("told", "pictures_of", "curves", "section"),
    [
        (BARE, NO_PICTURES._replace(samples=noise(2)), {}, {"images"}),
        (BARE, NO_PICTURES._replace(real=noise(2)), {}, {"images"}),
        (BARE, NO_PICTURES._replace(over_training=[("now", noise(1)[0])]), {}, {"over-training"}),
        (BARE, NO_PICTURES._replace(latents=Views([(noise(1)[0], noise(1)[0])], ())), {}, {"latents"}),
        (BARE, NO_PICTURES._replace(latents=Views((), [("latent 3", noise(3))])), {}, {"latents"}),
        (BARE, NO_PICTURES, {"loss/model": [(1, 2.0)]}, {"curves"}),
        (replace(BARE, values=report().values), NO_PICTURES, {}, {"metrics", "plots"}),
        (replace(BARE, per_class=report().per_class), NO_PICTURES, {}, {"classes"}),
        (replace(BARE, over_training=report().over_training), NO_PICTURES, {}, {"course"}),
        (replace(BARE, copying=Copying(False, "No.", ())), NO_PICTURES, {}, {"copying"}),
        (replace(BARE, cost={"seconds": 1.5}), NO_PICTURES, {}, {"cost"}),
    ],
)
def test_each_part_alone_has_its_section(
    told: Report, pictures_of: Pictures, curves: dict[str, list[tuple[float, float]]], section: set[str]
) -> None:
    assert Read(page(told, pictures_of, curves)).sections == {"protocol", "again"} | section


def test_sections_stand_in_their_order(full: Read) -> None:
    order = "images metrics plots latents over-training course curves classes copying cost protocol subject data again"
    assert [section["id"] for section in full.of("section") if "id" in section] == order.split()


def test_what_is_not_reported_is_said_with_its_reason(full: Read) -> None:
    assert "not reported needs 200 images, there are 60" in full.words.replace("reportedneeds", "reported needs")
    assert "fewer images than the 80 features" in full.words
    nothing = (Value("FD-toy", "samples", None, None, None, 5, "needs 50 images, there are 5"),)
    read = Read(page(replace(BARE, values=nothing), NO_PICTURES, {}))
    assert "No distance of the samples from the training images is reported" in read.words
    assert read.of("svg") == []


def test_the_summary_sets_samples_between_the_floor_and_the_worst_control(full: Read) -> None:
    of = report().value
    worst = max((of("FD-toy", which) for which in ("gaussian", "patches")), key=lambda v: v.value)
    start = full.words[: full.words.index("Samples beside real images")]
    for value in (of("FD-toy"), of("FD-toy", "held_out"), worst, of("bits/dim (bound)")):
        assert shown(value) in start
    for name in ("precision", "recall", "coverage"):
        assert f"{number(100 * of(name).value)} %" in start
    assert "No sign of copying." in start


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.8, 1.1, "does not tell the samples from held-out images"),
        (90.0, 110.0, "no better than that control"),
        (10.0, 12.0, "is at 100 (95 to 105)."),
    ],
)
def test_the_summary_says_where_intervals_overlap(low: float, high: float, said: str) -> None:
    values = (
        Value("FD-toy", "samples", (low + high) / 2, low, high, 60),
        Value("FD-toy", "held_out", 1.0, 0.9, 1.2, 60),
        Value("FD-toy", "train", 500.0, 490.0, 510.0, 60),  # what a copying model would give, no bad example
        Value("FD-toy", "gaussian", 100.0, 95.0, 105.0, 60),
        Value("FD-toy", "patches", 50.0, 45.0, 55.0, 60),
    )
    words = Read(page(replace(BARE, values=values), NO_PICTURES, {})).words
    assert said in words
    assert ("This measure does not" in words) + ("no better than" in words) == ("is at" not in said)


def test_warnings_and_copying_stand_out() -> None:
    alarmed = replace(report(), warnings=("few images",), copying=Copying(True, "This looks like copying.", ()))
    read = Read(page(alarmed, NO_PICTURES, {}))
    assert len([box for box in read.of("div") if box.get("role") == "alert"]) == 2
    assert "few images" in read.words
    assert not [box for box in Read(page(report(), NO_PICTURES, {})).of("div") if box.get("role") == "alert"]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_are_there_pixel_for_pixel(channels: int) -> None:
    shown_pictures = pictures(channels)
    read = Read(page(BARE, shown_pictures, {}))
    found = [np.asarray(Image.open(io.BytesIO(base64.b64decode(i["src"].split(",")[1])))) for i in read.of("img")]
    latents = [image for pair in shown_pictures.latents.pairs for image in pair]
    latents += [image for _, images in shown_pictures.latents.traversals for image in images]
    wanted = [*shown_pictures.samples, *shown_pictures.real, *latents, shown_pictures.over_training[0][1]]
    assert len(found) == len(wanted)
    for array, image in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(array.reshape(6, 6, channels), image.permute(1, 2, 0).numpy())
    behind = [section.get("class") for section in read.of("section") if section.get("id") == "images"]
    assert behind == (["alpha"] if channels == 4 else [None])


def test_two_channels_have_no_picture() -> None:
    with pytest.raises(DataError, match="2 channels"):
        page(BARE, NO_PICTURES._replace(samples=noise(1, 2)), {})


def test_pairs_stand_beside_their_distance(full: Read) -> None:
    words = full.words[full.words.index("Are these training images?") :]
    assert re.search(r"distance 0\.123 ?sample 17, train 4711", words)
    few = pictures()._replace(suspects=pictures().suspects[:1])
    assert len(Read(page(report(), few, {})).of("img")) == 5 + 4 + (4 + 3) + 1 + 2
    assert "4713" in Read(page(report(), few, {})).words


def test_large_images_are_fewer() -> None:
    big = torch.zeros(9, 1, 1024, PIXELS // 1024 // 4, dtype=torch.uint8)
    read = Read(page(BARE, NO_PICTURES._replace(samples=big), {}))
    assert len(read.of("img")) == 4
    assert "Samples 4 images" in read.words


def test_curves_of_all_kinds_are_drawn() -> None:
    curves = {
        "loss/generator": [(1, 3.0), (2, float("nan")), (3, -1.0)],
        "loss/discriminator": [(5, 0.7)],
        "held_out/discriminator": [(5, 0.0)],
        "grad_norm": [(1, 1.0), (2, 1.0)],
    }
    read = Read(page(BARE, NO_PICTURES, curves))
    labels = [svg["aria-label"] for svg in read.of("svg")]
    assert labels == [f"loss of {part} over images seen" for part in ("generator", "discriminator", "grad_norm")]


def test_values_without_spread_are_drawn() -> None:
    for x in (0.0, 2.5, -3.0):
        alike = tuple(Value("FD-toy", of, x, x, x, 60) for of in ("samples", "held_out"))
        assert len(Read(page(replace(BARE, values=alike), NO_PICTURES, {})).of("svg")) == 1


def test_long_tables_of_classes_are_folded() -> None:
    for n, opened in ((20, True), (21, False)):
        classes = tuple(Value("KID-toy", f"class {i}", 0.5, 0.4, 0.6, 60) for i in range(n))
        read = Read(page(replace(BARE, per_class=classes), NO_PICTURES, {}))
        assert ["open" in details for details in read.of("details")] == [opened]
