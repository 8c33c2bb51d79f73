"""The trainer: optimizers, precision, accumulation, clipping, the non-finite check, EMA and counters.

It is final and names no family. A step is a round of turns; a turn is one optimizer step of one player. Data and
noise are functions of (seed, draw), where draw counts the batches taken since the beginning, so the whole state is
weights, averages, moments and a few counters, and a resumed run is the run it continues.

Several processes divide each batch among them and sum their gradients, so that all take the step that one process takes
with the whole batch; how many there are may be another number after each checkpoint. They may divide the weights too.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic, NamedTuple, TypeVar, final

import torch
from torch import Tensor, nn

from calotype.core import devices
from calotype.core.caches import code_folder
from calotype.core.model import Batch, Loss, Trainable, Turn
from calotype.core.rng import Noise, fold
from calotype.core.untrusted import brief
from calotype.data.packs.batches import Batches
from calotype.distributed import processes, sharding
from calotype.errors import ConfigError, RunError, is_out_of_memory
from calotype.optimization.config import TrainConfig, learning_rate, power_exponent, steps_of
from calotype.optimization.optimizers import MOMENTS, OPTIMIZERS

# On a GPU bf16 adds small operations, and the time of smaller networks goes into starting those: of an H200's training
# steps those of 21 M parameters were slower by a third, those of 56 M faster by a quarter.
BF16_PARAMETERS = 40_000_000
COUNTERS = ("step", "shift", "returns", "bad_turns", "micro_batch")  # what a checkpoint keeps of them
NONFINITE_LIMIT = 3  # one bad batch is bad luck; three in a row are a state of the weights


class Progress(NamedTuple):
    """The result of a training step."""

    step: int
    images_seen: int
    losses: Mapping[str, Tensor]  # detached scalars: each player's loss, and its parts as player/part
    grad_norms: Mapping[str, Tensor]  # detached scalars, before clipping
    skipped: tuple[str, ...]  # players whose update was not applied: the loss is not finite, or the gradient too long
    micro_batch: int


class NonFinite(Exception):
    """Updates were skipped NONFINITE_LIMIT times in a row. The weights are as before; the caller decides."""

    def __init__(self, player: str, step: int, loss: float) -> None:
        super().__init__(f"{player}: loss {loss:.4g} or its gradient is not finite, or too long, at step {step}")
        self.player, self.step = player, step


def native_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware; emulated, it is slower than float32, up to 30 times.

    Kernels may be limited to older instructions than the processor has, as by ATEN_CPU_CAPABILITY=avx2.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        limited = not torch.backends.cpu.get_cpu_capability().startswith("AVX512")
        return not limited and bool({"avx512_bf16", "amx_bf16"} & _cpu_capabilities())
    return False


def gains_from_bf16(device: torch.device, parameters: int) -> bool:
    """Whether networks of so many parameters train faster in bfloat16 on a device."""
    return native_bf16(device) and (device.type == "cpu" or parameters >= BF16_PARAMETERS)


def _cpu_capabilities() -> set[str]:
    return {name for name, present in torch.cpu.get_capabilities().items() if present is True}


def _fit(entry: Mapping[str, Tensor], param: nn.Parameter, owner: torch.optim.Optimizer | None) -> bool:
    """Whether moments are what an optimizer remembers of a parameter."""
    if owner is None or set(entry) != MOMENTS[type(owner)]:
        return False
    return all(
        value.is_floating_point() and value.shape == (torch.Size() if key == "step" else param.shape)
        for key, value in entry.items()
    )


Model = TypeVar("Model", bound=Trainable)


@final
class Trainer(Generic[Model]):
    """Train a model on batches.

    Args:
        model: on the device to train on.
        batches: of config.batch_size images, read by position.
        config: how to train.
        shard: processes that hold the weights, averages and moments between them; 1: each holds all.
    """

    def __init__(self, model: Model, batches: Batches, config: TrainConfig, shard: int = 1) -> None:
        self.device = next(model.parameters()).device
        self.model = model.to_channels_last()
        self.batches, self.config = batches, config
        self.turns = model.turns()
        self.ema = copy.deepcopy(model).to_eval()  # of divided weights the first process's alone, see `draws`
        if config.recompute:
            sharding.recompute(model)
        self.division = sharding.Division(model, shard, apart=len(model.players()) > 1) if shard > 1 else None
        self.averages: dict[str, Tensor] = dict(self.ema.named_parameters())
        if self.division is not None:
            self.averages = {name: p.detach().clone() for name, p in model.named_parameters()}
            if not processes.is_first():
                self.ema.to("meta")
        self.draws_per_step = sum(turn.repeats for turn in self.turns)
        self.params = {name: list(player.parameters()) for name, player in model.players().items()}
        make, betas = OPTIMIZERS[config.optimizer], (config.beta1, config.beta2)
        self.optimizers = {
            name: make(player, config.learning_rate, betas, config.weight_decay)
            for name, player in model.players().items()
        }
        self._thread = devices.OwnThread(self.device)
        self._ema_exponent = power_exponent(config.ema_std)
        if config.precision == "bf16" and not native_bf16(self.device):
            raise ConfigError(f"training.precision is bf16, but this {self.device.type} only emulates it: use auto")
        parameters = sum(p.numel() for p in model.parameters())
        auto = config.precision == "auto" and gains_from_bf16(self.device, parameters)
        self._bf16 = config.precision == "bf16" or auto
        if config.compile:
            # torch's own place for it is in /tmp, where it runs what it finds
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(code_folder()))
            for network in model.children():
                network.compile()
        self.longest = config.skip_norm or math.inf
        self.step = 0  # completed training steps
        self.shift = 0  # batches passed over after returns to a checkpoint
        self.returns = 0  # how often training went back to a checkpoint
        self.bad_turns = dict.fromkeys(self.params, 0)  # updates of each player not applied, in a row
        self.micro_batch = config.micro_batch or config.batch_size
        self.rows = processes.share(config.batch_size)  # of each batch, this process's

    @property
    def images_per_step(self) -> int:
        """Images that one training step takes from the data; a model of several turns takes several batches."""
        return self.draws_per_step * self.config.batch_size

    @property
    def images_seen(self) -> int:
        """Images taken from the data in completed steps."""
        return self.step * self.images_per_step

    @property
    def steps(self) -> int:
        """Steps of the whole budget."""
        return steps_of(self.config.images, self.images_per_step)

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step, see `learning_rate`."""
        return learning_rate(self.config, step, self.steps)

    def betas(self, step: int) -> tuple[float, float]:
        """Those of AdamW at a step."""
        config = self.config
        if not config.beta2_first:
            return config.beta1, config.beta2
        done = 0.5 * (1 - math.cos(math.pi * step / self.steps))
        return config.beta1, config.beta2_first + done * (config.beta2 - config.beta2_first)

    def run(self, until: int | None = None) -> Iterator[Progress]:
        """Train to step `until`, by default to the end of the budget; yields after each step.

        Raises:
            NonFinite: when several updates in a row could not be applied.
        """
        until = self.steps if until is None else until
        self.model.train()
        while self.step < until:
            yield self._step()

    def _step(self) -> Progress:
        rate = self.learning_rate(self.step)
        self.model.images_seen, self.model.progress = self.images_seen, self.step / self.steps
        losses: dict[str, Tensor] = {}
        norms: dict[str, Tensor] = {}
        skipped: list[str] = []
        draw = self.step * self.draws_per_step + self.shift
        for turn in self.turns:
            for _ in range(turn.repeats):
                loss, norm, applied = self._turn(turn, draw, rate)
                draw += 1
                if not applied:
                    skipped.append(turn.player)
            losses |= {turn.player: loss.value} | {f"{turn.player}/{k}": v for k, v in loss.parts.items()}
            norms[turn.player] = norm
        self.step += 1
        self._average()
        return Progress(self.step, self.images_seen, losses, norms, tuple(skipped), self.micro_batch)

    def _turn(self, turn: Turn, draw: int, rate: float) -> tuple[Loss, Tensor, bool]:
        """One optimizer step of one player, unless the gradient is not finite, or too long."""
        params = self.params[turn.player]
        loss = self._backward(turn, draw, params)
        norm = self._clipped(params)
        applied = bool(torch.isfinite(norm) & torch.isfinite(loss.value) & (norm <= self.longest))
        if applied:
            for optimizer in self.optimizers[turn.player]:
                for group in optimizer.param_groups:
                    group["lr"] = rate
                    if "betas" in group:
                        group["betas"] = self.betas(self.step)
                optimizer.step()
            self.bad_turns[turn.player] = 0
        for p in params:
            p.grad = None
        if not applied:
            self.bad_turns[turn.player] += 1
            if self.bad_turns[turn.player] >= NONFINITE_LIMIT:
                raise NonFinite(turn.player, self.step, loss.value.item())
        return loss, norm, applied

    def _clipped(self, params: Sequence[nn.Parameter]) -> Tensor:
        """The norm of the gradients, which are then at most as long as they may be."""
        if self.division is None:
            return nn.utils.clip_grad_norm_(params, self.config.clip_norm)
        norm = sharding.whole(nn.utils.get_total_norm([p.grad for p in params if p.grad is not None]))
        nn.utils.clip_grads_with_norm_(params, self.config.clip_norm, norm)
        return norm

    def _backward(self, turn: Turn, draw: int, params: Sequence[nn.Parameter]) -> Loss:
        """Fill the gradients of `params` with those of the mean loss over batch `draw`, in parts that fit in memory."""
        batch = self.batches.at(draw, self.rows)
        batch = Batch(
            batch.images.to(self.device, memory_format=torch.channels_last),
            None if batch.labels is None else batch.labels.to(self.device),
        )
        before = [buffer.clone() for buffer in self.model.buffers()]
        while True:
            try:
                loss = self._thread(self._accumulate, turn, batch, draw, params)
                break
            except (RuntimeError, MemoryError) as error:
                # Of divided weights all processes would have to go back together.
                if not is_out_of_memory(error) or self.micro_batch == 1 or self.division is not None:
                    raise
            for p in params:
                p.grad = None
            for buffer, value in zip(self.model.buffers(), before, strict=True):
                buffer.data.copy_(value)  # running statistics are to see no image twice
            self._thread.renew()
            devices.give_back_memory()
            self.micro_batch = -(-self.micro_batch // 2)
        return self._over_processes(loss, [] if self.division is not None else params)

    def _accumulate(self, turn: Turn, batch: Batch, draw: int, params: Sequence[nn.Parameter]) -> Loss:
        size, rows = self.config.batch_size, len(batch.images)
        noise = Noise.shared(fold(self.config.seed, "train", draw), size, self.device)
        noise = noise.rows(self.rows.start, self.rows.stop)
        total: Tensor = torch.zeros((), device=self.device)
        parts: dict[str, Tensor] = {}
        for start in range(0, rows, self.micro_batch):
            stop = min(rows, start + self.micro_batch)
            share = (stop - start) / size
            part = batch.rows(start, stop), noise.rows(start, stop)
            if self.division is None:
                with self._autocast():
                    loss = turn.loss(*part)
                (loss.value * share).backward(inputs=params)
            else:
                with self._autocast():
                    loss = self.division.loss(turn.loss, *part)
                self.division.backward(loss.value * share, self.model.players()[turn.player])
            total = total + share * loss.value.detach()
            for name, value in loss.parts.items():
                parts[name] = parts.get(name, 0) + share * value
        if self.division is not None:
            self.division.settle()
        return Loss(total, parts)

    @staticmethod
    def _over_processes(loss: Loss, params: Sequence[nn.Parameter]) -> Loss:
        """The loss of the whole batch, whose gradients are then those of the parameters in every process.

        Args:
            params: those whose gradients are to be summed.
        """
        parts = {name: value.clone() for name, value in loss.parts.items()}  # which may be of the model's own tensors
        gradients = [p.grad for p in params if p.grad is not None]
        processes.sum_over([*gradients, loss.value, *parts.values()])
        return Loss(loss.value, parts)

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self._bf16 else nullcontext()

    @torch.no_grad()
    def _average(self) -> None:
        """Move the average by the power-function profile; at the first step it becomes the weights."""
        weight = 1 - (1 - 1 / self.step) ** (self._ema_exponent + 1)
        averages: list[Tensor] = [*self.averages.values()]
        values: list[Tensor] = [*self.model.parameters()]
        if self.division is not None:
            averages, values = sharding.slices(averages), sharding.slices(values)
        torch._foreach_lerp_(averages, values, weight)
        for average, value in zip(self.ema.buffers(), self.model.buffers(), strict=True):
            average.copy_(value)

    @torch.no_grad()
    def gather(self) -> None:
        """With sharded weights, gather the averaged ones in the first process, in `ema`. All have to call it."""
        if self.division is None:
            return
        known = dict(self.ema.named_parameters())
        for name, average in self.averages.items():
            value = sharding.whole(average)
            if processes.is_first():
                known[name].copy_(value)

    def held_out_loss(self, batches: Batches, count: int) -> dict[str, float]:
        """The losses of the averaged weights, over `count` batches of `batches` and always the same noise.

        Returns:
            Each player's loss, and its parts as player/part.
        """
        sums: dict[str, float] = {}
        for turn in self.ema.turns():
            for k in range(count):
                images, labels = batches.at(k)
                batch = Batch(images.to(self.device), None if labels is None else labels.to(self.device))
                size = len(images)
                noise = Noise.shared(fold(self.config.seed, "held out", turn.player, k), size, self.device)
                for start in range(0, size, self.micro_batch):
                    stop = min(size, start + self.micro_batch)
                    with self._autocast():
                        loss = turn.loss(batch.rows(start, stop), noise.rows(start, stop))
                    share = (stop - start) / size / count
                    found = {turn.player: loss.value} | {f"{turn.player}/{k}": v for k, v in loss.parts.items()}
                    for name, value in found.items():
                        sums[name] = sums.get(name, 0.0) + value.item() * share
        return sums

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs: counters, weights, averages and moments.

        Where weights are divided, so are they and their moments; the first process has the averages as of `gather`.
        """
        return {
            "counters": {
                "step": self.step,
                "shift": self.shift,
                "returns": self.returns,
                "bad_turns": dict(self.bad_turns),
                "micro_batch": self.micro_batch,
            },
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizers": {name: self._moments(name) for name in self.params},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state_dict of a trainer with the same config.

        Raises:
            RunError: its counters or moments are not those of such a trainer; nothing of it is taken then.
        """
        self._check(state)
        for name in COUNTERS:
            setattr(self, name, state["counters"][name])
        self.model.load_state_dict(state["model"])
        if self.division is None:
            self.ema.load_state_dict(state["ema"])
        else:
            for name, average in self.averages.items():
                average.copy_(state["ema"][name])
            for buffer, value in zip(self.ema.buffers(), self.model.buffers(), strict=True):
                buffer.copy_(value)
            self.gather()
        for name, params in self.params.items():
            for optimizer in self.optimizers[name]:
                owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
                optimizer.state.clear()
                for i, entry in state["optimizers"].get(name, {}).items():
                    if id(params[i]) in owned:
                        optimizer.state[params[i]] = self._like(params[i], entry)

    def _check(self, state: Mapping[str, Any]) -> None:
        """Raise RunError for counters and moments that no trainer of this config has."""
        counters, players = state["counters"], set(self.params)
        bad_turns = counters.get("bad_turns")
        numbers = [value for name, value in counters.items() if name != "bad_turns"]
        if (
            set(counters) != set(COUNTERS)
            or not all(isinstance(number, int) for number in numbers)
            or not (isinstance(bad_turns, dict) and set(bad_turns) == players)
            or counters["micro_batch"] < 1
        ):
            raise RunError(f"a checkpoint's counters {brief(counters)} are not those of its run: use an earlier one")
        for player, moments in state["optimizers"].items():
            params = self.params.get(player, [])
            known = {id(p): o for o in self.optimizers.get(player, ()) for g in o.param_groups for p in g["params"]}
            for i, entry in moments.items():
                if i >= len(params) or not _fit(entry, params[i], known.get(id(params[i]))):
                    raise RunError(
                        f"the moments of parameter {i} of {player} in a checkpoint are not those of its run: use an "
                        "earlier one"
                    )

    def _moments(self, player: str) -> dict[int, Mapping[str, Tensor]]:
        """The optimizer state of a player, by the index of the parameter among the player's."""
        known = [optimizer.state for optimizer in self.optimizers[player]]
        places = enumerate(self.params[player])
        return {i: state[p] for i, p in places for state in known if state.get(p)}

    @staticmethod
    def _like(param: nn.Parameter, entry: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Moments on the device and in the memory layout of their parameter: a file keeps values alone."""
        moments = {}
        for key, value in entry.items():  # a counter of steps has no shape, but has to be on the device too
            shaped = value.shape == param.shape
            moments[key] = torch.empty_like(param if shaped else value, device=param.device).copy_(value)
        return moments

    def pass_over(self, draws: int) -> None:
        """Go on with the data `draws` batches further: after a return to a checkpoint, not into the same stretch."""
        self.shift += draws
        self.bad_turns = dict.fromkeys(self.params, 0)
