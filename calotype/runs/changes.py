"""The settings of config.toml that may change between a stop and a resume.

Checkpoints record the settings that they were trained with. The settings in CHANGEABLE may differ when training
continues; all others have determined the weights, and a difference in one of them is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from calotype.core.untrusted import brief
from calotype.errors import ConfigError

LATER = "what comes after is trained with it"
ROUNDING = "sums are rounded differently: the run does not end bit for bit as without"
SAME = "the weights stay the same"

CHANGEABLE: Mapping[str, str] = {
    "training.images": "by `--resume RUN --budget`; schedules follow the share of the new budget, see below",
    "budget": "by `--resume RUN --budget`: it says how training.images came about",
    "training.learning_rate": LATER,
    "training.clip_norm": LATER,
    "training.skip_norm": LATER,
    "training.on_collapse": LATER,
    "training.micro_batch": ROUNDING,
    "training.recompute": ROUNDING,
    "training.precision": ROUNDING,
    "training.compile": ROUNDING,
    "training.threads": ROUNDING,
    "training.checkpoint_every": SAME,
    "training.preview_every": SAME,
    "data.source": "by `--resume RUN --data`; the pictures have to be the same",
    "data.strict": SAME,
    "latents.run": SAME,
}
NOT_KEPT = ("data.source", "latents.run")  # in checkpoints: paths; what they lead to has digests


class Change(NamedTuple):
    """A setting that differs from the last checkpoint."""

    name: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.name} is {brief(self.now)}, and was {brief(self.before)}"


def settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a config by dotted name, such as training.seed, as JSON values for a checkpoint.

    Args:
        values: plain values and sections.
    """
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{key}": entry for key, entry in value.items()}
        else:
            flat[name] = value
    return {name: _plain(value) for name, value in flat.items() if name not in NOT_KEPT}


def check(before: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[Change]:
    """The permitted changes.

    Args:
        before, now: settings, of the last checkpoint and of config.toml.
        defaults: values of entries that an earlier version did not have.

    Raises:
        ConfigError: another setting has changed, or the text of the budget alone.
    """
    known = {name: defaults[name] for name in now if name in defaults} | dict(before)
    names = [*now, *(name for name in known if name not in now)]
    found = [
        Change(name, known.get(name), now.get(name))
        for name in names
        if known.get(name, now.get(name)) != now.get(name)
    ]
    fixed = [change for change in found if change.name not in CHANGEABLE]
    if fixed:
        others = f" ({len(fixed) - 1} more entries differ)" if len(fixed) > 1 else ""
        raise ConfigError(
            f"{fixed[0]} when training stopped{others}: it has decided what the weights are, so it cannot change on "
            "the way. Restore it in config.toml, or start a new run: calotype train --recipe config.toml --out ANOTHER"
        )
    changed = {change.name: change for change in found}
    if "budget" in changed and "training.images" not in changed:
        change = changed["budget"]
        raise ConfigError(
            f"{change} when training stopped, but training.images is what is trained: restore it in config.toml, and "
            f"give the new budget with --resume RUN --budget {change.now}"
        )
    return [change for change in found if change.name != "budget"]


def _plain(value: Any) -> Any:
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value
