"""The methods that came before deep learning, fitted to training images in seconds: what a deep model has to beat."""

from __future__ import annotations

from collections.abc import Mapping

from calotype.baselines.baseline import Baseline
from calotype.baselines.density import Gaussian, PrincipalComponents
from calotype.baselines.filters import Filters
from calotype.baselines.phases import Phases
from calotype.baselines.quilting import Quilting

BASELINES: Mapping[str, type[Baseline]] = {
    "phases": Phases,
    "filters": Filters,
    "quilting": Quilting,
    "gaussian": Gaussian,
    "ppca": PrincipalComponents,
}
