"""The commands: one function in one file each.

Its signature and docstring are the function of Python (`calotype.sample`), and the command line (`calotype sample`). No
module here imports torch before its function is called. May import everything but `cli`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from calotype.commands.check import check
from calotype.commands.compare import compare
from calotype.commands.complete import complete
from calotype.commands.decode import decode
from calotype.commands.demo import demo
from calotype.commands.encode import encode
from calotype.commands.evaluate import evaluate
from calotype.commands.interpolate import interpolate
from calotype.commands.invert import invert
from calotype.commands.launch import launch
from calotype.commands.plan import plan
from calotype.commands.reconstruct import reconstruct
from calotype.commands.sample import sample
from calotype.commands.train import train

Command = Callable[..., Any]

GROUPS: Mapping[str, tuple[Command, ...]] = {
    "pictures": (check,),
    "train": (train, demo),
    "draw": (sample, complete, interpolate),
    "measure": (evaluate, compare),
    "latents": (reconstruct, encode, decode, invert),
    "clusters": (plan, launch),
}
COMMANDS: Mapping[str, Command] = {command.__name__: command for group in GROUPS.values() for command in group}
REPORTS = frozenset({"check", "plan"})  # these return a Report, which the terminal prints
TOGETHER = frozenset({"train", "sample", "evaluate", "compare", "demo"})  # what several processes can do together
