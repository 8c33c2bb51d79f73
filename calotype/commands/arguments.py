"""The types of the arguments of commands: what Python passes, and how a command line says it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Suppress, UseAppendAction, arg
from tyro.constructors import PrimitiveConstructorSpec

from calotype.core.display import Display


def _commas(metavar: str) -> PrimitiveConstructorSpec[tuple[str, ...]]:
    """One word with commas between its parts. Parts of names of classes may have spaces, so they stay."""
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: tuple(words[0].split(",")) if words[0] else (),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [",".join(value)],
    )


# What the help shows for options without a default of their own.
Text = Annotated[str, arg(metavar="TEXT", help_behavior_hint="")]
MaybePath = Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="")]
MaybeReal = Annotated[float | None, arg(metavar="X", help_behavior_hint="")]
Number = Annotated[int, arg(metavar="N", help_behavior_hint="")]
MaybeNumber = Annotated[int | None, arg(metavar="N", help_behavior_hint="")]
Flag = Annotated[bool, arg(help_behavior_hint="")]
Family = Annotated[str, arg(metavar="FAMILY", help_behavior_hint="")]
Pictures = Annotated[str, arg(metavar="DATA", help_behavior_hint="")]
Moved = Annotated[str, arg(name="data", metavar="DATA", help_behavior_hint="")]
Size = Annotated[str, arg(metavar="SIZE", help_behavior_hint="")]
Channels = Literal[0, 1, 3, 4]
Pages = Annotated[Literal["first", "all", ""], arg(metavar="{first,all}", help_behavior_hint="")]
Fit = Annotated[Literal["crop", "pad", "stretch", ""], arg(metavar="{crop,pad,stretch}", help_behavior_hint="")]
Range = Annotated[str, arg(metavar="LO:HI", help_behavior_hint="")]
Labels = Annotated[tuple[str, ...], _commas("A,B"), arg(help_behavior_hint="")]
Names = Annotated[tuple[str, ...], _commas("A,B"), arg(help_behavior_hint="")]
Assignments = Annotated[tuple[str, ...], UseAppendAction, arg(metavar="KEY=VALUE", help_behavior_hint="")]

# Of Python alone.
Shown = Annotated[Display | None, Suppress]
Settings = Annotated[Mapping[str, Mapping[str, Any]] | None, Suppress]
