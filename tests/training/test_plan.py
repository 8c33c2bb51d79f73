from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calotype.core.images import to_unit
from calotype.core.model import ImageSpec
from calotype.errors import ConfigError
from calotype.families.diffusion import Diffusion, DiffusionConfig
from calotype.training import planner as planning
from calotype.training.planner import Budget, Plan, Speed, plan, preview
from tests.conftest import Stripes

SPEC = ImageSpec(1, 16, 16, 2)
DATA = Stripes(height=16, width=16)
PRESETS = Diffusion.presets(SPEC)
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("text", "seconds", "images"),
    [
        ("90s", 90, None),
        ("30m", 1800, None),
        ("2h", 7200, None),
        ("1.5h", 5400, None),
        (" 1d ", 86400, None),
        ("20000img", None, 20_000),
        ("500kimg", None, 500_000),
        ("2Mimg", None, 2_000_000),
        ("0.5kimg", None, 500),
        ("0.1img", None, 1),
    ],
)
def test_budgets(text: str, seconds: float | None, images: int | None) -> None:
    assert Budget.parse(text) == Budget(text.strip(), seconds, images)


@pytest.mark.parametrize(
    ("text", "half"), [("30m", "900s"), ("1.5h", "2700s"), ("500kimg", "250000img"), ("1img", "1img")]
)
def test_shares_of_a_budget(text: str, half: str) -> None:
    assert Budget.parse(text).part(0.5) == half
    Budget.parse(half)


@pytest.mark.parametrize(
    "text",
    ["", "30", "m", "30 m", "-5m", "0s", "0.0kimg", "5min", "2mimg", "1e3img", "30m30s", "1h2", "nan s", "infs"],
)
def test_budgets_that_are_not_understood(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is not understood: give a time .*30m.* or images .*500kimg"):
        Budget.parse(text)


@given(st.text(max_size=12))
def test_any_text_is_a_budget_or_a_clear_error(text: str) -> None:
    try:
        budget = Budget.parse(text)
    except ConfigError:
        return
    assert (budget.seconds is None) != (budget.images is None)
    assert (budget.seconds or 0) > 0 or (budget.images or 0) >= 1


class Machine:
    """A machine of known speed, whose clock advances only while it is measured."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.probe_seconds = 0.0, 0.0
        self.speeds = {name: Speed(1000.0, 0.5) for name in PRESETS}
        self.errors: dict[str, Exception] = {}
        self.measured: list[str] = []
        self.limits: list[float] = []
        monkeypatch.setattr(planning.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(planning, "_probe", self._probe)

    def _probe(
        self, family: Any, spec: Any, candidate: Plan, batches: Any, device: Any, limit: float, shard: int
    ) -> Speed:
        self.measured.append(candidate.preset)
        self.limits.append(limit)
        self.now += self.probe_seconds
        if candidate.preset in self.errors:
            raise self.errors[candidate.preset]
        return self.speeds[candidate.preset]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def make_plan(
    budget: str,
    preset: str = "auto",
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Plan:
    return plan(
        Diffusion,
        preset,
        Budget.parse(budget),
        SPEC,
        DATA.images,
        lambda config: DATA.batches(config.batch_size),
        CPU,
        overrides or {},
        report,
    )


def test_an_image_budget_needs_no_measurement(machine: Machine) -> None:
    made = make_plan("1000img")
    assert machine.measured == []
    assert made.images_per_second is None
    assert made.preset == next(iter(PRESETS))
    training = made.training
    assert (training.images, training.checkpoint_every, training.preview_every) == (1000, 50, 50)
    assert (training.batch_size, training.learning_rate) == (PRESETS["tiny"].batch_size, PRESETS["tiny"].learning_rate)
    assert training.threads == torch.get_num_threads()


def test_nothing_is_left_open(machine: Machine) -> None:
    made = make_plan("1000img")
    assert made.model.sigma_data == pytest.approx(float(to_unit(DATA.images, torch.float64).std()), abs=1e-4)
    assert made.training.checkpoint_every > 0
    assert made.training.preview_every > 0


@pytest.mark.parametrize("name", PRESETS)
def test_auto_takes_the_largest_network_for_which_the_images_suffice(machine: Machine, name: str) -> None:
    wanted = PRESETS[name].images_wanted
    assert make_plan(f"{max(wanted, 1)}img").preset == name
    if wanted:
        names = list(PRESETS)
        assert make_plan(f"{wanted - 1}img").preset == names[names.index(name) - 1]


def test_auto_leaves_out_what_has_to_be_asked_for(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    named = {"tiny": PRESETS["tiny"], "published": replace(PRESETS["small"], images_wanted=0, auto=False)}
    monkeypatch.setattr(Diffusion, "presets", lambda spec: named)
    machine.speeds["published"] = Speed(1000.0, 0.5)
    assert make_plan("30m").preset == "tiny"
    assert make_plan("30m", "published").preset == "published"


def test_auto_weighs_the_speed_of_each_network(machine: Machine) -> None:
    """In 1000 s: `small` sees what it wants, `medium` a little less."""
    left = 1000 - planning.CLOSING_SECONDS
    watching = 20 * 0.5  # 4 % of that is more than 20 previews take
    machine.speeds["small"] = Speed((PRESETS["small"].images_wanted + 1) / (left - watching), 0.5)
    machine.speeds["medium"] = Speed((PRESETS["medium"].images_wanted - 1) / (left - watching), 0.5)
    said: list[str] = []
    made = make_plan("1000s", report=said.append)
    assert made.preset == "small"
    assert made.images_per_second == machine.speeds["small"].images_per_second
    assert abs(made.training.images - PRESETS["small"].images_wanted) <= 1
    assert machine.measured == ["tiny", "small", "medium"]
    assert len(said) == 3


def test_networks_far_beyond_the_budget_are_not_measured(machine: Machine) -> None:
    assert make_plan("20s").preset == "tiny"
    assert machine.measured == ["tiny"]  # some 18,000 images, and `small` wants 150,000
    machine.measured.clear()
    assert make_plan("1000s").preset == "medium"
    assert machine.measured == ["tiny", "small", "medium"]  # nearly a million, and `large` wants 20 million


def test_a_named_preset_is_taken_and_no_other_measured(machine: Machine) -> None:
    assert make_plan("100s", preset="medium").preset == "medium"
    assert machine.measured == ["medium"]
    assert make_plan("100img", preset="large").preset == "large"


def test_an_unknown_preset_names_those_there_are(machine: Machine) -> None:
    with pytest.raises(ConfigError, match=r"'huge' is unknown: choose one of auto, .*small"):
        make_plan("100s", preset="huge")


def test_time_for_measuring_closing_and_previews_comes_off_the_budget(machine: Machine) -> None:
    machine.probe_seconds = 3
    machine.speeds["tiny"] = Speed(100.0, 0.5)
    made = make_plan("60s", preset="tiny")
    # 60 - 3 - 2 = 55 s are left; 4 % of them are 2.2 s, which is 4 previews of 0.5 s; 53 s of training remain.
    assert planning.CLOSING_SECONDS == 2
    assert planning.PREVIEW_SHARE == 0.04
    assert made.training.images == 5300
    assert made.training.preview_every == 5300 // 4
    assert made.training.checkpoint_every == 5300 // planning.CHECKPOINTS
    assert made.images_per_second == 100


@pytest.mark.parametrize(
    ("preview_seconds", "previews"),
    [(0.01, 20), (0.198, 20), (0.395, 10), (0.8, 4), (3.0, 4)],  # 3.96 s of 99 may go into previews
)
def test_the_number_of_previews_follows_what_they_cost(machine: Machine, preview_seconds: float, previews: int) -> None:
    machine.speeds["tiny"] = Speed(1000.0, preview_seconds)
    made = make_plan("101s", preset="tiny")
    assert made.training.images // made.training.preview_every == previews
    assert made.training.images == pytest.approx((99 - previews * preview_seconds) * 1000, abs=1)


def test_measuring_takes_a_share_of_the_budget_and_has_a_limit(machine: Machine) -> None:
    make_plan("20s", preset="tiny")
    make_plan("10h", preset="tiny")
    assert machine.limits == [pytest.approx(1.0), planning.LONGEST_PROBE]


@pytest.mark.parametrize(
    ("budget", "speed"), [("1s", Speed(1e6, 0.01)), ("10s", Speed(2.0, 0.1)), ("10s", Speed(1e6, 3.0))]
)
def test_a_budget_too_short_to_train_in(machine: Machine, budget: str, speed: Speed) -> None:
    machine.speeds["tiny"] = speed
    with pytest.raises(ConfigError, match=f"budget {budget} is too short"):
        make_plan(budget, preset="tiny")


OVERRIDES = {
    "model": {"widths": [16, 48], "attention": [], "sigma_data": 0.25, "dropout": 0.1},
    "training": {
        "learning_rate": 0.125,
        "batch_size": 10,
        "threads": 3,
        "checkpoint_every": 70,
        "preview_every": 90,
        "flips": True,
        "seed": 5,
    },
}


@pytest.mark.parametrize("budget", ["100s", "5000img", "1Mimg"])
def test_what_the_user_set_is_kept(machine: Machine, budget: str) -> None:
    made = make_plan(budget, overrides=OVERRIDES)
    set_for_model = {name: tuple(v) if isinstance(v, list) else v for name, v in OVERRIDES["model"].items()}
    assert {name: getattr(made.model, name) for name in set_for_model} == set_for_model
    assert {name: getattr(made.training, name) for name in OVERRIDES["training"]} == OVERRIDES["training"]


def test_settings_that_do_not_exist_are_refused(machine: Machine) -> None:
    with pytest.raises(ConfigError, match=r"model\.width is unknown: did you mean widths\?"):
        make_plan("100img", overrides={"model": {"width": [16]}})
    with pytest.raises(ConfigError, match=r"training\.learning_rate is 'fast'"):
        make_plan("100img", overrides={"training": {"learning_rate": "fast"}})


OUT_OF_MEMORY = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")


def test_a_network_that_does_not_fit_in_memory_is_passed_over(machine: Machine) -> None:
    machine.speeds = dict.fromkeys(PRESETS, Speed(1e9, 0.01))
    machine.errors["medium"] = OUT_OF_MEMORY
    assert make_plan("100s").preset == "small"
    assert machine.measured == ["tiny", "small", "medium"]
    with pytest.raises(ConfigError, match="memory is too short for the medium network"):
        make_plan("100s", preset="medium")


def test_other_errors_are_not_hidden(machine: Machine) -> None:
    machine.speeds = dict.fromkeys(PRESETS, Speed(1e9, 0.01))
    machine.errors["small"] = RuntimeError("shapes do not match")
    with pytest.raises(RuntimeError, match="shapes do not match"):
        make_plan("100s")


def test_a_real_measurement() -> None:
    config = DiffusionConfig(widths=(16,), blocks=1, attention=(), sigma_data=0.5)
    training = make_plan("1000img").training
    batches = DATA.batches(training.batch_size)
    speed = planning._probe(Diffusion, SPEC, Plan("tiny", config, training, None), batches, CPU, 0.01, 1)
    assert speed.images_per_second > 1
    assert 0 < speed.preview_seconds < 60


def test_previews_are_always_the_same_images() -> None:
    config = DiffusionConfig(widths=(16,), blocks=1, attention=(), sigma_data=0.5)
    for spec in (SPEC, ImageSpec(3, 9, 12)):
        model = Diffusion(spec, config).to_eval()
        first = preview(model)
        assert first.shape == (16, *spec.shape)
        assert torch.equal(preview(model), first)
