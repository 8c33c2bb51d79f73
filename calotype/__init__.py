"""Calotype trains image generators of four families on your own pictures, and says how good they are."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from calotype.commands.check import check
    from calotype.commands.compare import compare
    from calotype.commands.complete import complete
    from calotype.commands.decode import decode
    from calotype.commands.demo import demo
    from calotype.commands.encode import encode
    from calotype.commands.evaluate import evaluate
    from calotype.commands.interpolate import interpolate
    from calotype.commands.invert import invert
    from calotype.commands.launch import launch
    from calotype.commands.plan import plan
    from calotype.commands.reconstruct import reconstruct
    from calotype.commands.sample import sample
    from calotype.commands.train import train
    from calotype.errors import CalotypeError, ConfigError, DataError, RunError, TrainingDiverged
    from calotype.runs.run import load

__version__ = "0.1.0"
_ERRORS = ("CalotypeError", "ConfigError", "DataError", "RunError", "TrainingDiverged")
_HOME = dict.fromkeys(_ERRORS, "calotype.errors") | {"load": "calotype.runs.run"}
__all__ = [
    "CalotypeError",
    "ConfigError",
    "DataError",
    "RunError",
    "TrainingDiverged",
    "check",
    "compare",
    "complete",
    "decode",
    "demo",
    "encode",
    "evaluate",
    "interpolate",
    "invert",
    "launch",
    "load",
    "plan",
    "reconstruct",
    "sample",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: `import calotype` alone does not import torch."""
    if name not in __all__:
        raise AttributeError(f"module 'calotype' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME.get(name, f"calotype.commands.{name}")), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
