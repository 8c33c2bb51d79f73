"""Calotype trains image generators of four families on your own pictures, and says how good they are."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from calotype.comparison_job import compare
    from calotype.data.check import check
    from calotype.errors import CalotypeError, ConfigError, DataError, RunError, TrainingDiverged
    from calotype.evaluation_job import evaluate
    from calotype.runs import load
    from calotype.training import train

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
    "CalotypeError": "calotype.errors",
    "ConfigError": "calotype.errors",
    "DataError": "calotype.errors",
    "RunError": "calotype.errors",
    "TrainingDiverged": "calotype.errors",
    "check": "calotype.data",
    "compare": "calotype.comparison_job",
    "evaluate": "calotype.evaluation_job",
    "load": "calotype.runs",
    "train": "calotype.training",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: `import calotype` alone does not import torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'calotype' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
