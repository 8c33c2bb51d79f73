"""What is survived: which tests break something on purpose, and the table of them in docs/reliability.md.

A test says by its mark what it breaks and what happens then, and by the fixture `survived` how often it did so. `make
faults` writes the table; a test compares the table that is there with the marks.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "reliability.md"
FAULTS = int(os.environ.get("FAULTS", "0"))  # how hard to try; 0: as much as fits in the tests
HEAD = "| Fault | What happens | Times | Seconds | Test |\n|---|---|---|---|---|\n"


class Fault(NamedTuple):
    """What a test breaks."""

    kind: str
    outcome: str
    test: str


class Measured(NamedTuple):
    """How often a test has broken it, and how long that took."""

    times: int
    seconds: float


def in_the_suite() -> list[Fault]:
    """The faults that tests say they try, in the order of files and lines."""
    found = []
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for mark in getattr(node, "decorator_list", ()):
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.fault":
                    kind, outcome = (ast.literal_eval(argument) for argument in mark.args)
                    found.append(Fault(kind, outcome, f"{path.stem}.{node.name}"))
    return found


def in_the_table() -> list[Fault]:
    """The faults of the page."""
    rows = re.findall(r"^\| (.+?) \| (.+?) \| [\d,]+ \| [\d.]+ \| (.+?) \|$", PAGE.read_text(encoding="utf-8"), re.M)
    return [Fault(*row) for row in rows]


def write_table(measured: Mapping[str, Measured], faults: Iterable[Fault]) -> None:
    """Put a table of what was measured, by the names of tests, in the place of the one on the page."""
    rows = [
        f"| {fault.kind} | {fault.outcome} | {measured[fault.test].times:,} | {measured[fault.test].seconds:.1f} "
        f"| {fault.test} |\n"
        for fault in sorted(faults)
    ]
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(HEAD)
    after = re.sub(r"\A(\|.*\n)*", "", rest)
    PAGE.write_text(before + HEAD + "".join(rows) + after, encoding="utf-8")
