"""Calotype trains image generators of four families on your own pictures, and says how good they are."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from calotype.applications.comparison import compare
    from calotype.applications.evaluation import evaluate
    from calotype.core.errors import CalotypeError, ConfigError, DataError, RunError, TrainingDiverged
    from calotype.data.check import check
    from calotype.runs.run import load
    from calotype.training.setup import train

__version__ = "0.1.0"
__all__ = [
    "CalotypeError",
    "ConfigError",
    "DataError",
    "RunError",
    "TrainingDiverged",
    "check",
    "compare",
    "evaluate",
    "load",
    "train",
]

_HOME = {
    "CalotypeError": "calotype.core.errors",
    "ConfigError": "calotype.core.errors",
    "DataError": "calotype.core.errors",
    "RunError": "calotype.core.errors",
    "TrainingDiverged": "calotype.core.errors",
    "check": "calotype.data",
    "compare": "calotype.applications.comparison",
    "evaluate": "calotype.applications.evaluation",
    "load": "calotype.runs.run",
    "train": "calotype.training.setup",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: `import calotype` alone does not import torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'calotype' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
