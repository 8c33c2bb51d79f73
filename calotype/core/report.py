"""The findings of a command, where it reports more than the paths of its output."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Report(Protocol):
    """Findings as text for people and as values for programs."""

    def text(self) -> str:
        """The findings for people."""

    def as_dict(self) -> dict[str, Any]:
        """All findings as JSON values."""

    @property
    def exit_status(self) -> int:
        """The exit status of the command: 0 if nothing prevents the next step."""
