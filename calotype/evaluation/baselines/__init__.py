"""Baselines: methods from before deep learning, fitted to training images in seconds."""

from __future__ import annotations

from collections.abc import Mapping

from calotype.evaluation.baselines.baseline import Baseline
from calotype.evaluation.baselines.density import Gaussian, PrincipalComponents
from calotype.evaluation.baselines.filters import Filters
from calotype.evaluation.baselines.phases import Phases
from calotype.evaluation.baselines.quilting import Quilting

BASELINES: Mapping[str, type[Baseline]] = {
    "phases": Phases,
    "filters": Filters,
    "quilting": Quilting,
    "gaussian": Gaussian,
    "ppca": PrincipalComponents,
}
