"""The run directory: plain files that record what was done, hold its results, and let training continue.

config.toml     all values that determine the run: data, model, training; enough to repeat it without a clock
local.toml      where the pictures are, if config.toml must not reveal it, see `portable_paths`
log.jsonl       one JSON object per line, append-only
checkpoints/    the newest ones and the best, see `checkpoints`
previews/       grids of the same seeds at stages of training
first/          of a latent model: the run of its first stage, with one checkpoint
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

from torch import Tensor

from calotype.core import devices
from calotype.core.config import build
from calotype.core.files import LEFTOVER, check_contained, copy_file, make_folder, open_append
from calotype.core.model import GenerativeModel
from calotype.core.paths import named
from calotype.data import PackedDataset, prepare
from calotype.data.classes import Choice, choose
from calotype.data.packs.packing import find_same, is_gone
from calotype.data.packs.survey import Progress
from calotype.distributed import processes
from calotype.distributed.locks import locked
from calotype.errors import ConfigError, DataError, RunError
from calotype.families.latents import check_map, latent_model
from calotype.optimization.trainer import Trainer
from calotype.runs import changes, checkpoints
from calotype.runs.changes import Change
from calotype.runs.config import RunConfig
from calotype.runs.log import read_records, training_seconds
from calotype.sampling import sampler

CONFIG = "config.toml"
FIRST = "first"  # in the run directory, the first of two stages
KEPT = 3  # newest checkpoints, besides the best: one may be damaged, one may be from after things went wrong

LOOKS = 20  # for a checkpoint, while training removes the oldest

_PREVIEW = re.compile(r"[0-9]{12,18}\.png")

Report = Callable[[str], None]


class Weights(NamedTuple):
    """The weights of a checkpoint."""

    path: Path  # of the checkpoint
    digest: str  # SHA-256
    tensors: Mapping[str, Tensor]


class Run:
    """A run directory with its config."""

    def __init__(self, path: Path, config: RunConfig) -> None:
        self.path, self.config = path, config
        self._opened = time.monotonic()

    def __fspath__(self) -> str:
        """Its directory, so that a run can be given where a path can."""
        return str(self.path)

    @classmethod
    def create(cls, path: Path, config: RunConfig, first: TrainedModel | None = None) -> Run:
        """Make a run directory. Raises RunError if it exists or cannot be made.

        Args:
            first: the first stage, if any, which is copied into the run.
        """
        refuse_existing(path)
        try:
            make_folder(path)
            if first is not None:
                first.copy(path / FIRST)
            config.write(path / CONFIG)
        except OSError as error:
            raise RunError(f"{path} cannot be made a run directory ({error}): choose another with --out") from error
        return cls(path, config)

    @classmethod
    def open(cls, path: Path) -> Run:
        """Open a run directory. Raises RunError, ConfigError, or PlaceError where a link in it leads out."""
        if not (path / CONFIG).is_file():
            what = "has no config.toml" if path.is_dir() else "does not exist"
            raise RunError(f"{path} is not a run: it {what}. Give the directory that `calotype train` printed")
        check_contained(path)
        return cls(path, RunConfig.read(path / CONFIG))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the run against a second trainer. Raises RunError if another process holds it.

        Of several processes that train together, the first holds the lock.
        """
        with locked(self.path, "trained"):
            yield

    # -- what training writes

    def check_data(self, packed: PackedDataset) -> None:
        """Raise DataError if a data set differs from the one that the run was trained on."""
        known, source = self.config.dataset.digest, packed.config.source
        if packed.digest == known:
            return
        digests = f"(digest {packed.digest[:12]}, was {known[:12]})"
        if source != self.config.data.source:
            raise DataError(
                f"{source} has other pictures than {self.path} was trained on {digests}: give the same pictures, or "
                f"start a new run with these: calotype train {self.config.family} {quote(source)}"
            )
        raise DataError(
            f"{source} has changed since {self.path} began {digests}: restore the pictures, give another copy of them "
            "with --data, or start a new run"
        )

    def pictures(self, data: str = "", progress: Progress | None = None) -> PackedDataset:
        """The pictures that the run was trained on, packed.

        Args:
            data: where the pictures are now, if they have moved; by default as in config.toml, or in the cache alone.
            progress: called with the number of packed pictures.

        Raises:
            DataError: the pictures are missing or differ.
        """
        config = replace(self.config.data, source=data or self.config.data.source)
        if is_gone(config):
            found = None if data else find_same(config, self.config.dataset.digest)
            if found is not None:
                return found
            raise DataError(
                f"{config.source} does not exist, where the pictures of {self.path} were to be: give the place where "
                "they are now with --data"
            )
        packed = prepare(config, progress=progress)
        self.check_data(packed)
        return packed

    def rewrite(self, config: RunConfig) -> None:
        """Replace the config, and write it. Only for the process that holds the run. Raises RunError."""
        try:
            config.write(self.path / CONFIG)
        except OSError as error:
            raise RunError(f"{self.path} cannot be written ({error}): make room, then repeat the command") from error
        self.config = config

    def changed(self) -> list[Change]:
        """The settings that differ from the newest checkpoint, all of them permitted changes.

        Empty for a run of an earlier version, whose checkpoints do not record settings.

        Raises:
            ConfigError: a setting has changed that may not.
        """
        for path in reversed(self.checkpoints()):
            try:
                before = checkpoints.facts(path).get("settings")
            except checkpoints.DamagedCheckpoint:  # said, and put aside, when it is to be loaded
                continue
            return [] if before is None else changes.check(before, self.config.settings(), self.config.defaults())
        return []

    def log(self, event: str, **values: Any) -> None:
        """Append a line to log.jsonl, by the first of several processes. Raises RunError."""
        if not processes.is_first():
            return
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        at = {"time": round(time.time(), 3), "elapsed": round(time.monotonic() - self._opened, 3)}
        record = {"event": event} | at | finite  # JSON has no NaN
        path = self.path / "log.jsonl"
        try:
            with open_append(path) as file:
                cut_off = file.tell() > 0 and file.seek(-1, os.SEEK_END) >= 0 and file.read() != b"\n"
                file.write(b"\n" * cut_off + json.dumps(record).encode() + b"\n")
        except OSError as error:
            raise RunError(f"{path} cannot be written ({error}): make room, then continue with --resume") from error

    def read_log(self) -> list[dict[str, Any]]:
        """The records of log.jsonl, without incomplete lines, such as one that a killed process left."""
        return read_records(self.path / "log.jsonl")

    def save(self, trainer: Trainer, facts: Mapping[str, Any]) -> None:
        """Write a checkpoint and remove those that are neither among the newest nor the best; of several processes the
        first does, of divided weights each its slices. Raises RunError.

        Args:
            facts: plain values to store with it, besides the settings of the run.
        """
        facts = {**facts, "settings": self.config.settings()}
        if trainer.division is not None:
            checkpoints.write_divided(self.path / "checkpoints", trainer.images_seen, trainer.state_dict(), facts)
        elif processes.is_first():
            checkpoints.write(self.path / "checkpoints", trainer.images_seen, trainer.state_dict(), facts)
        if not processes.is_first():
            return
        present = self.checkpoints()
        keep = {*present[-KEPT:], self.best()}
        for old in present:
            if old not in keep:
                checkpoints.remove(old)

    def restore(self, trainer: Trainer, report: Report) -> bool:
        """Load the newest sound checkpoint into a trainer; False where there is none yet.

        All processes load the checkpoint that the first has verified.

        Raises:
            RunError: its number of images is not what the config makes of its steps: then what comes after would be
                saved below it.
        """
        name = processes.by_first(lambda: self._soundest(trainer.model.state_dict(), report))
        path = self.path / "checkpoints" / name
        if name and trainer.division is None:
            trainer.load_state_dict(checkpoints.read(path))
        elif name:
            weights = trainer.model.state_dict()
            trainer.load_state_dict(checkpoints.read_divided(path, weights, trainer.averages, trainer.params))
        if name and trainer.images_seen != int(name):
            raise RunError(
                f"{path} is of {int(name):,} images, but its {trainer.step:,} steps come to {trainer.images_seen:,} "
                f"with training.batch_size = {trainer.config.batch_size}: restore the batch size in config.toml"
            )
        return bool(name)

    def _soundest(self, wanted: Mapping[str, Tensor], report: Report) -> str:
        """The name of the newest checkpoint that verifies, or an empty text; damaged ones are renamed."""
        present = self.checkpoints()
        for path in reversed(present):
            try:
                checkpoints.verify(path, wanted)
            except checkpoints.DamagedCheckpoint as error:
                aside = checkpoints.put_aside(path)
                report(f"{error}; put aside as {aside.name}, trying the checkpoint before it")
                continue
            return path.name
        if present:
            report("no sound checkpoint is left: training begins again")
        return ""

    # -- what others read

    def checkpoints(self) -> list[Path]:
        """Finished checkpoints, oldest first."""
        return checkpoints.found(self.path / "checkpoints")

    def previews(self) -> list[Path]:
        """The preview grids, named by images seen, oldest first; other files are ignored."""
        found = sorted((self.path / "previews").glob("*.png"))
        return [path for path in found if _PREVIEW.fullmatch(path.name) and path.is_file()]

    def images_seen(self) -> int:
        """Images seen at the newest checkpoint."""
        return max((int(path.name) for path in self.checkpoints()), default=0)

    def seconds(self) -> float:
        """How long training has taken so far, by its log."""
        return training_seconds(self.read_log())

    def best(self) -> Path | None:
        """The checkpoint with the lowest score, the newest of equals; None where none has one.

        The score is the held-out loss, or the distance from samples to held-out pictures if the loss does not rank.
        """
        scored = []
        for path in self.checkpoints():
            try:
                facts = checkpoints.facts(path)
            except checkpoints.DamagedCheckpoint:
                continue
            score = next((facts[name] for name in checkpoints.SCORES if name in facts), None)
            if score is not None and math.isfinite(score):
                scored.append((score, -int(path.name), path))
        return min(scored)[2] if scored else None

    def model(self, checkpoint: str = "last", ema: bool = True, report: Report = print) -> tuple[Path, GenerativeModel]:
        """The checkpoint used and the trained model, ready to sample from, on the CPU.

        Args:
            checkpoint: "last", "best", or images seen, as in the names of the checkpoints.
            ema: the averaged weights instead of the last ones.
            report: called with checkpoints that were skipped.

        Raises:
            RunError: there is no such checkpoint, or no sound one.
        """
        found = self.weights(checkpoint, ema, report)
        return found.path, self.built(found, report)

    def weights(self, checkpoint: str, ema: bool, report: Report) -> Weights:
        """The weights of a checkpoint. Arguments and errors as of `model`.

        The run may be training meanwhile: if a checkpoint is deleted while it is read, the search is repeated.
        """
        wanted, name = self.config.outline().state_dict(), "ema" if ema else "model"
        for _ in range(LOOKS):
            for path in self._candidates(checkpoint):
                try:
                    return Weights(path, *checkpoints.read_weights(path, name, wanted))
                except checkpoints.DamagedCheckpoint as error:
                    if not path.exists():
                        break
                    report(f"{error}; trying the checkpoint before it")
            else:
                break
        raise RunError(
            f"{self.path} has no sound checkpoint: continue it with `calotype train --resume {quote(str(self.path))}`"
        )

    def built(self, weights: Weights, report: Report = print) -> GenerativeModel:
        """The model with weights of a checkpoint, ready to sample from, on the CPU."""
        model = self.config.new_model()
        model.load_state_dict(weights.tensors)
        return self.whole(model, report).to_eval().to_channels_last()

    def first_stage(self, report: Report = print, device: str = "cpu") -> TrainedModel:
        """The first stage of a latent model. Raises RunError if it is missing or another one."""
        latents = self.config.latents
        assert latents is not None
        opened = Run.open(self.path / FIRST)
        if opened.config.latents is not None:  # or a run could be its own first stage
            raise RunError(f"{opened.path} is itself a model of latents: restore the first stage from {latents.run}")
        first = load(opened, device=device, report=report)
        if first.digest != latents.weights:
            raise RunError(
                f"{self.path / FIRST} is not the model on whose latents the run was trained: restore it from "
                f"{latents.run}"
            )
        check_map(first.model, latents)
        return first

    def whole(self, model: GenerativeModel, report: Report = print) -> GenerativeModel:
        """The trained model as a model of pictures: together with the first stage, if there is one."""
        if self.config.latents is None:
            return model
        return latent_model(self.first_stage(report).model, model, self.config.latents)

    def _candidates(self, checkpoint: str) -> list[Path]:
        present = self.checkpoints()
        if checkpoint == "last":
            return present[::-1]
        if checkpoint == "best":
            best = self.best()
            return [best] if best else present[::-1]
        chosen = [path for path in present if path.name == checkpoint.zfill(12)]
        if not chosen:
            names = ", ".join(str(int(path.name)) for path in present) or "none yet"
            raise RunError(f"{self.path} has no checkpoint {checkpoint}: give last, best, or one of {names}")
        return chosen


def name_source(source: str, named_by: Path, message: Report) -> None:
    """Report the source that a settings file names before it is read: the file may come from another person.

    Args:
        source: of pictures; built-in ones are not reported.
        named_by: the settings file.
    """
    if source != "glyphs" and not source.startswith("glyphs:"):
        message(f"pictures: {source}, as {named_by} says")


def refuse_existing(path: Path) -> None:
    """Raise RunError if a run, or anything else, exists at `path`."""
    if (path / CONFIG).exists():
        raise RunError(
            f"{path} is already a run: continue it with `calotype train --resume {quote(str(path))}`, or choose "
            "another --out"
        )
    if path.is_file() or (path.is_dir() and not all(LEFTOVER.fullmatch(entry.name) for entry in path.iterdir())):
        raise RunError(f"{path} exists and is not empty: choose another --out")


class TrainedModel:
    """The trained model of a run, ready to sample."""

    def __init__(self, run: Run, model: GenerativeModel, digest: str, checkpoint: Path) -> None:
        self.run, self.model, self.digest, self.checkpoint = run, model, digest, checkpoint
        self.spec = model.spec
        self.class_names = run.config.dataset.class_names

    def told(self) -> dict[str, Any]:
        """The run, by its name, and the checkpoint, by images seen, for the manifest of what the model makes."""
        return {"run": named(self.run.path).name, "checkpoint": int(self.checkpoint.name)}

    def sample(
        self, n: int, *, seed: int = 0, first: int = 0, labels: Sequence[int | str] | None = None, **options: Any
    ) -> Tensor:
        """Draw n images, uint8 (n, C, H, W).

        Args:
            seed: image i of a seed is always the same.
            first: the number of the first image; the others follow.
            labels: classes by number or name, in turn; by default all with training pictures. A text is first looked
                up as a name, then as a number.
            options: of the family, such as steps=18 for diffusion.

        Raises:
            ConfigError: for labels or options that the model does not have.
        """
        chosen = build(self.model.Options, options, "option")
        return sampler.sample(self.model, range(first, first + n), seed, self.labels(labels), chosen)

    def labels(self, wanted: Sequence[int | str] | None) -> Callable[[int], int] | None:
        """The class of image i, from the requested classes. Raises ConfigError."""
        chosen = self.choices(wanted)
        return sampler.cycle([choice.number for choice in chosen]) if chosen else None

    def choices(self, wanted: Sequence[int | str] | None) -> list[Choice]:
        """The requested classes, by default all with training pictures; none without classes. Raises ConfigError."""
        if not self.class_names and wanted:
            raise ConfigError("labels were given, but the model was trained without classes: leave them out")
        return choose(wanted or self.spec.classes, self.class_names, self.spec.unseen)

    def copy(self, path: Path) -> None:
        """Make a run directory with the config and the averaged weights alone, which is what `load` needs."""
        folder = path / "checkpoints" / self.checkpoint.name
        make_folder(folder, path.parent)
        self.run.config.write(path / CONFIG)
        for name in ("ema.safetensors", "state.json"):
            copy_file(self.checkpoint / name, folder / name, path.parent)


def place_in(run: Path, name: str) -> Path:
    """The default output path in a run of a command. Errors as of `Run.open`."""
    named(run)  # where the system takes no such path
    return Run.open(run).path / name


def load(
    run: str | Path | Run,
    *,
    checkpoint: str = "last",
    ema: bool = True,
    device: str = "auto",
    report: Report = print,
) -> TrainedModel:
    """Load the model of a run. Arguments and errors as for `Run.model`; device as in `--device`."""
    run = run if isinstance(run, Run) else Run.open(Path(run))
    found = run.weights(checkpoint, ema, report)
    return TrainedModel(run, run.built(found, report).to(devices.choose(device)), found.digest, found.path)
