"""`check`: what is in a source of pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calotype.commands.arguments import Channels, Fit, Flag, Pages, Pictures, Range, Shown, Size, Text
from calotype.commands.command import command

if TYPE_CHECKING:
    from calotype.data.check import CheckReport


@command
def check(
    data: Pictures,
    /,
    size: Size = "",
    fit: Fit = "",
    range: Range = "",
    channels: Channels = 0,
    pages: Pages = "",
    no_labels: Flag = False,
    labels_from: Text = "",
    strict: Flag = False,
    stream: Flag = False,
    display: Shown = None,
) -> CheckReport:
    """Report what is in a source of pictures, what is wrong with it, and which size to train at.

    Example: calotype check photos/ --size 64

    Pictures that cannot be used are findings, not errors. The exit status is 1 where nothing can be trained on them.

    Args:
        data: folder, zip or tar, Parquet, npz or npy, "glyphs", or a hub name.
        size: 32 or 48x64 (width x height); by default what suits the pictures.
        fit: how pictures of another shape are made to fit; by default crop.
        range: LO:HI, the values of 16-bit and float pictures that become 0 and 255.
        channels: 1 gray, 3 RGB, 4 RGBA; 0 decides: gray without colour, RGBA if most are transparent.
        pages: of TIFF stacks and animations take the first, or all, each as a picture; by default first.
        no_labels: ignore classes, whether from subfolders or of the source.
        labels_from: FILE:COLUMN, a table beside the pictures that gives their classes, such as metadata.csv:label.
        strict: stop at the first bad file.
        stream: look at a sample of shards, Parquet files or tars, as train --stream does.
        display: of Python: where to show progress; by default plain lines.

    Raises:
        DataError: the source is not there or cannot be read at all, or `strict` is on and a picture is bad.
    """
    asked = locals()
    from calotype.commands.options import data_settings
    from calotype.core.display import for_process, packing_on
    from calotype.data.check import check as look
    from calotype.training.recipe import data_config

    config = data_config(data, size or None, data_settings(asked))
    with for_process(display, True) as shown:
        return look(config, progress=packing_on(shown))
