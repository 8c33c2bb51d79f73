"""`demo`: a comparison of the families on built-in pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calotype.commands.arguments import MaybePath, Shown
from calotype.commands.command import command
from calotype.commands.compare import compare

if TYPE_CHECKING:
    from calotype.evaluation.comparison import Comparison

IMAGES = 500  # per set: enough to tell the families apart


@command
def demo(budget: str = "6m", out: MaybePath = None, display: Shown = None) -> Comparison:
    """Train every family on built-in pictures of letters, measure them, and say where the page is, in ten minutes.

    Example: calotype demo

    Args:
        budget: of all families together, as for compare; measuring comes on top.
        out: the directory; by default a new one below runs/.
        display: of Python: where to show progress; by default plain lines.

    Raises:
        CalotypeError: for anything the user can mend; the message says how.
    """
    # Small letters: in the same time a CPU sees four times as many of them as at 32x32, and comes to whole letters.
    return compare("glyphs", budget=budget, out=out, size="16", n=IMAGES, display=display)
