"""Comparisons of reports made by hand: what is best, what is said, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from calotype.errors import ConfigError, RunError
from calotype.evaluation.comparison import Comparison, Entry, clear, leading
from calotype.evaluation.report import Copying, Protocol, Report, Value

PROTOCOL = Protocol(
    n=200, seeds=(0, 1), data="d", reference="train", reference_n=500, features="EffLite0", features_digest="f", k=5
)


def value(name: str, x: float, half: float = 0.5, of: str = "samples") -> Value:
    return Value(name, of, x, x - half, x + half, 200)


def report(
    distance: float, *, coverage: float = 0.5, speed: float = 10.0, bits: str = "", stages: tuple[float, ...] = (),
    flagged: bool = False, **changes: Any,
) -> Report:  # fmt: skip
    values = [
        value("FD-EffLite0", distance),
        value("coverage", coverage, 0.05),
        value("FD-EffLite0", 1.0, of="held_out"),
    ]
    if bits:
        kind, x = bits.split()
        values.append(value(f"bits/dim ({kind})", float(x), 0.01))
    over = tuple(value("KID-EffLite0", x, 0.1, of=str(k + 1)) for k, x in enumerate(stages))
    told = Report(
        subject={"kind": "run"},
        data={"source": "photos"},
        protocol=PROTOCOL,
        values=tuple(values),
        copying=Copying(flagged, "copies", ()),
        cost={"samples per second": speed, "seconds of training": 60, "images seen in training": 3, "parameters": 10},
        warnings=(),
        command="calotype evaluate",
        over_training=over,
    )
    return replace(told, **changes)


def comparison(**reports: Report | str) -> Comparison:
    entries = [
        Entry(name, "model", None, failure=told) if isinstance(told, str) else Entry(name, "model", told)
        for name, told in reports.items()
    ]
    return Comparison({"source": "photos"}, entries, "calotype compare")


def said(compared: Comparison, question: str) -> tuple[str, list[str]]:
    found = [told for told in compared.verdict() if told.question == question]
    return (found[0].answer, list(found[0].names)) if found else ("", [])


def test_the_best_is_marked_only_where_intervals_are_apart() -> None:
    a, b, c = (Entry(name, "model", None) for name in "abc")
    apart: list[tuple[Entry, Value | float]] = [(a, value("x", 1)), (b, value("x", 3)), (c, value("x", 9))]
    touching: list[tuple[Entry, Value | float]] = [(a, value("x", 1)), (b, value("x", 1.9)), (c, value("x", 9))]
    assert clear(apart, lower_is_better=True) is a
    assert clear(apart, lower_is_better=False) is c
    assert clear(touching, lower_is_better=True) is None
    assert leading(touching, lower_is_better=True) == [a, b]
    assert clear(touching, lower_is_better=False) is c
    assert clear([(a, 2.0)], lower_is_better=True) is None  # of one alone nothing is the best


def test_the_verdict_names_what_is_best_for_each_purpose() -> None:
    compared = comparison(
        near=report(10, coverage=0.5, speed=2),
        varied=report(20, coverage=0.9, speed=3),
        fast=report(30, coverage=0.5, speed=500),
        likely=report(40, coverage=0.4, speed=1, bits="exact 1.2"),
        bounded=report(50, coverage=0.4, speed=1, bits="bound 1.4"),
        guessing=report(60, coverage=0.4, speed=1, bits="estimate 0.3"),
    )
    assert said(compared, "Nearest to your pictures")[1] == ["near"]
    assert said(compared, "Most varied")[1] == ["varied"]
    assert said(compared, "Fastest to draw")[1] == ["fast"]
    answer, names = said(compared, "Likelihood, and so compression")
    assert names == ["likely"]  # an estimate has no say
    assert "bounded are upper bounds" in answer


def test_of_few_images_the_kernel_distance_tells_which_is_nearest() -> None:
    def few(x: float, *more: Value) -> Report:
        values = [Value("FD-EffLite0", "samples", None, None, None, 40), value("KID-EffLite0", x)]
        return replace(report(0.0), values=(*values, *more))

    compared = comparison(gan=few(5.0), vae=few(9.0))
    assert compared.distance == "KID-EffLite0"
    answer, names = said(compared, "Nearest to your pictures")
    assert names == ["gan"]
    assert "KID-EffLite0 5 " in answer
    assert comparison(gan=few(5.0, value("KID-Classifier@f", 1.0))).distance == "KID-Classifier@f"
    assert comparison(gan=report(5.0), vae=report(9.0)).distance == "FD-EffLite0"


def test_what_cannot_be_told_apart_is_said_to_be_so() -> None:
    answer, names = said(comparison(one=report(10), other=report(10.4), far=report(30)), "Nearest to your pictures")
    assert names == ["one", "other"]
    assert "one and other cannot be told apart" in answer


def test_models_that_still_improve_are_named() -> None:
    compared = comparison(rising=report(10, stages=(9, 5, 2)), level=report(10, stages=(9, 2.05, 2)))
    answer, names = said(compared, "With more time")
    assert names == ["rising"]
    assert "level no longer came nearer" in answer


def test_a_model_no_better_than_a_classical_method_has_not_learned() -> None:
    classical = Entry("quilting", "baseline", report(20))
    good, bad = Entry("good", "model", report(10)), Entry("bad", "model", report(20.5))
    answer = said(Comparison({}, [good, bad, classical], ""), "Not learned")[0]
    assert "; bad cannot be told from it" in answer
    assert "quilting" in answer
    assert "every model" in said(Comparison({}, [good, classical], ""), "Against classical methods")[0]
    assert said(Comparison({}, [good, bad, classical], ""), "Nearest to your pictures")[1] == ["good"]


def test_editing_is_told_by_how_near_pictures_come_back() -> None:
    entries = [
        Entry("vae", "model", report(10), off=5.0),
        Entry("gan", "model", report(10), off=30.0),
        Entry("autoregressive", "model", report(10), completes=True),
    ]
    answer, names = said(Comparison({}, entries, ""), "Editing")
    assert names == ["vae"]
    assert "autoregressive can complete" in answer


def test_copies_and_failures_are_said() -> None:
    compared = comparison(copying=report(10, flagged=True), broken="memory ran out")
    assert "copying" in said(compared, "Copying")[0]
    assert said(compared, "Failed")[0] == "broken: memory ran out"
    assert "failed" in compared.text()
    assert compared.rows()[1]["failure"] == "memory ran out"


def test_reports_measured_otherwise_are_refused() -> None:
    other = replace(PROTOCOL, n=100)
    with pytest.raises(ConfigError, match="n 200 and 100"):
        comparison(one=report(10), other=report(10, protocol=other))


def test_it_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    compared = comparison(one=report(10, bits="exact 1.2", stages=(3, 2, 1)), broken="why")
    compared.save(tmp_path / "comparison.json")
    again = Comparison.open(tmp_path / "comparison.json")
    assert json.dumps(again.as_dict()) == json.dumps(compared.as_dict())
    assert again.rows()[0]["bits/dim kind"] == "exact"
    (tmp_path / "comparison.json").write_text("{}")
    with pytest.raises(RunError, match="no comparison"):
        Comparison.open(tmp_path / "comparison.json")
