"""The directory of a comparison: the request, and the results for each model and method.

It holds compare.toml, a run directory for each family, an entry for each measured model or method, and the page.
Existing results are not computed again, so an interrupted comparison continues where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote
from typing import NamedTuple

from torch import Tensor

from calotype.core.config import build
from calotype.core.display import Display
from calotype.core.files import check_contained, make_folder, write_atomic
from calotype.core.images import grid, write_png
from calotype.core.untrusted import read_json
from calotype.data import DataConfig
from calotype.distributed import processes
from calotype.errors import CalotypeError, ConfigError, RunError, is_out_of_memory, passes
from calotype.evaluation.baselines import BASELINES
from calotype.evaluation.comparison import Entry, entry_of
from calotype.runs.config import family
from calotype.runs.portable_paths import read_config, shareable
from calotype.runs.run import Run
from calotype.training.planner import Budget

CONFIG = "compare.toml"
HELD_OUT = "held-out pictures"  # beside the samples on the page
SHOWN = 64  # samples of each


@dataclass(frozen=True, kw_only=True, slots=True)
class CompareConfig:
    """The config of a comparison: compare.toml, with the section [data]."""

    budget: str  # of all families together
    families: tuple[str, ...]
    baselines: tuple[str, ...]  # classical methods
    n: int  # images per set, 0 for as many as suit the held-out pictures
    seed: int
    features: str
    threads: int = 0  # of the CPU; 0: as torch chooses
    recipe: str = ""  # a comparison whose runs are repeated, image for image

    def __post_init__(self) -> None:
        if not self.families:
            raise ConfigError("no families are named: give some, such as --families diffusion,gan, or leave them out")
        for name in self.families:
            family(name)
        if len(set(self.families)) < len(self.families):
            raise ConfigError(f"families are {', '.join(self.families)}: name each once")
        for name in self.baselines:
            if name not in BASELINES:
                raise ConfigError(f"classical method {name!r} is unknown: choose of {', '.join(BASELINES)}")
        if self.n < 0 or self.n == 1:
            raise ConfigError(f"n is {self.n}: give at least 2 images, or leave it out")
        Budget.parse(self.budget)

    @property
    def share(self) -> str:
        """The budget of each family."""
        return Budget.parse(self.budget).part(1 / len(self.families))


class Job(NamedTuple):
    """A comparison in its directory."""

    path: Path
    config: CompareConfig
    data: DataConfig
    device: str
    shown: Display
    later: dict[str, Entry]  # what could not be done this time, and why; nothing of it is kept

    def entry(self, name: str) -> Path:
        """The path of the result of a model or method."""
        return self.path / "entries" / f"{name}.json"

    def waiting(self, names: Sequence[str]) -> list[str]:
        """The models and methods without a result that can be measured, by the first process."""
        open_ = [name for name in names if name not in self.later]
        return processes.by_first(lambda: [name for name in open_ if not self.entry(name).exists()])

    def begun(self) -> list[str]:
        """The families with a run directory, by the first process."""
        return processes.by_first(
            lambda: [name for name in self.config.families if (self.path / name / "config.toml").exists()]
        )

    @property
    def command(self) -> str:
        """The command that repeats the comparison."""
        return f"calotype compare --recipe {quote(shareable(self.path))}"

    @property
    def way_on(self) -> str:
        """The command that continues the comparison."""
        return f"calotype compare --resume {quote(str(self.path))}"


def read(path: Path) -> tuple[CompareConfig, DataConfig]:
    """The config of a comparison. Raises RunError, ConfigError, or PlaceError if a link leads out of the directory."""
    if not (path / CONFIG).is_file():
        raise RunError(f"{path} is no comparison: it has no {CONFIG}. Give the directory that `calotype compare` made")
    check_contained(path)
    values = read_config(path / CONFIG)
    values.pop("calotype", None)
    data = build(DataConfig, values.pop("data", {}), "data")
    return build(CompareConfig, values, "compare"), data


def check_begun(job: Job, begun: Sequence[Run]) -> None:
    """Raise ConfigError if existing results do not match compare.toml."""
    config = job.config
    for run in begun:
        wanted = {"seed": config.seed} | ({} if config.recipe else {"share of the budget": config.share})
        found = {"seed": run.config.training.seed, "share of the budget": run.config.budget}
        for name, value in wanted.items():
            if found[name] != value:
                raise ConfigError(
                    f"the {name} of each family is {value} by {job.path / CONFIG}, but {run.path} has {found[name]}: "
                    f"restore {CONFIG}, or the run, or start another comparison"
                )
    for name in (*config.families, *config.baselines):
        report = kept(job.entry(name)).report if job.entry(name).exists() else None
        if report is not None and config.n not in (0, report.protocol.n):
            raise ConfigError(
                f"n is {config.n} in {job.path / CONFIG}, but {name} was measured with {report.protocol.n} images: "
                f"restore it, or remove {job.entry(name).parent} to measure all again"
            )


@contextmanager
def going_on(job: Job, name: str, kind: str = "model") -> Iterator[None]:
    """Record the failure of a model or method, and continue with the others.

    Temporary errors, such as a full disk or a run locked by another command, are not recorded: the next command tries
    again. A request to stop, or the loss of other processes, ends the comparison.
    """
    try:
        yield
    except (CalotypeError, RuntimeError, MemoryError) as error:
        if isinstance(error, CalotypeError):
            if error.exit_status != CalotypeError.exit_status:
                raise
        elif not is_out_of_memory(error):
            raise
        leave(job, name, kind, str(error) or "memory ran out", passes(error))


def leave(job: Job, name: str, kind: str, why: str, passing: bool) -> None:
    """Skip a model or method, this time or permanently. Raises RunError if that cannot be written."""
    entry = Entry(name, kind, None, failure=_without_places(job, why))
    if passing:
        job.later[name] = entry
        job.shown.message(f"{name} is left for later: {why}\nthe others go on")
        return
    processes.by_first(lambda: keep(job, entry))
    again = f"to try it again, remove {job.entry(name)}, then: {job.way_on}"
    job.shown.message(f"{name} failed: {why}\nthe others go on; {again}")


def _without_places(job: Job, text: str) -> str:
    """A message for the shared page, without paths of this machine."""
    for place in (str(job.path), str(job.path.absolute()), job.data.source):
        if Path(place).is_absolute():
            text = text.replace(place, shareable(place))
    return text.replace(str(Path("~").expanduser()), "~")


def keep(job: Job, entry: Entry, samples: Tensor | None = None, real: Tensor | None = None) -> None:
    """Store a result, so that it is not computed again. Raises RunError."""
    place = job.entry(entry.name)
    told = asdict(entry) | {"report": entry.report.as_dict() if entry.report else None}
    try:
        make_folder(place.parent, job.path)
        for name, images in ((entry.name, samples), (HELD_OUT, real)):
            if images is not None:
                write_png(place.with_name(f"{name}.png"), grid(images[:SHOWN], 8), "compare", job.path)
        write_atomic(place, lambda file: file.write(json.dumps(told, allow_nan=False).encode()), job.path)
    except OSError as error:
        raise cannot_be_written(job, error) from error


def cannot_be_written(job: Job, error: OSError) -> RunError:
    """The error for a directory that cannot be written."""
    return RunError(f"{job.path} cannot be written ({error}). Make room, then continue with: {job.way_on}")


def kept(path: Path) -> Entry:
    """The entry stored in a file. Raises RunError if it is damaged."""
    try:
        return entry_of(read_json(path))
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise RunError(f"{path} is no entry of a comparison ({error!r}): remove it, to measure it again") from error
