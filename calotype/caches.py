"""Where what can be made again is kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root(cache: Path | None) -> Path:
    """The cache: as given, else $CALOTYPE_CACHE, else calotype in $XDG_CACHE_HOME or ~/.cache."""
    if cache:
        return cache
    if stated := os.environ.get("CALOTYPE_CACHE"):
        return Path(stated).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "calotype"
