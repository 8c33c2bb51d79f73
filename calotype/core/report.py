"""What a command found, where that is more than the places of what it wrote."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Report(Protocol):
    """Findings that a terminal prints, and a program reads."""

    def text(self) -> str:
        """The findings for people."""

    def as_dict(self) -> dict[str, Any]:
        """All findings as values that JSON has."""

    @property
    def exit_status(self) -> int:
        """Of a command that finds this: 0 where nothing is in the way."""
