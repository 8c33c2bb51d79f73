"""Weights sharded over several processes: fully sharded data parallelism by torch's FSDP2.

A process keeps a slice of each weight, its gradient and its moments, and gathers the other slices where a block needs
them. Each group of this many processes holds the whole model, and gradients are summed over the groups. Batches, losses
and noise are divided as without sharding.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from calotype.core.rng import Noise
from calotype.distributed import processes
from calotype.errors import ConfigError

CONTAINERS = (nn.ModuleList, nn.Sequential)


def check(count: int) -> None:
    """Raise ConfigError if the weights cannot be sharded over this number of processes."""
    if count < 1 or processes.size() % count:
        raise ConfigError(
            f"--shard is {count}, but there are {processes.size()} processes: give a number that divides them, or 1 to "
            "keep all weights in each"
        )


def blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The blocks of a network: the entries of its outermost module lists that have submodules."""
    for child in model.children():
        if isinstance(model, CONTAINERS) and not isinstance(child, CONTAINERS) and any(True for _ in child.children()):
            yield child
        else:
            yield from blocks(child)


def recompute(model: nn.Module) -> None:
    """Activation checkpointing: blocks drop their activations and recompute them in the backward pass.

    Except blocks with state that the forward pass updates, such as batch statistics: it would be updated twice.

    Source: Chen et al. 2016, arXiv:1604.06174; by torch's activation checkpointing.
    """
    for block in blocks(model):
        if not any(True for _ in block.buffers()):
            block.forward = _forgetful(block.forward)


def _forgetful(forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def again(*args: Any) -> Any:
        # A noise counts its draws: the second time has to begin where the first did.
        return forward(*(copy(arg) if isinstance(arg, Noise) else arg for arg in args))

    return partial(checkpoint, again, use_reentrant=False, preserve_rng_state=False)


class _Step(nn.Module):
    """The root module for FSDP2: calling it gathers the weights that are in no block."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, loss: Callable[..., Any], *args: Any) -> Any:
        return loss(*args)


class Division:
    """A model whose weights are sharded over processes.

    Args:
        model: on the device to train on, the same in all processes; its parameters are replaced by slices.
        count: processes that the weights are sharded over.
        apart: players whose turns train only their own weights; others' are then kept whole during a step, and so are
            all where gradients are differentiated.
    """

    def __init__(self, model: nn.Module, count: int, apart: bool) -> None:
        from torch.distributed.fsdp import FSDPModule, fully_shard

        check(count)
        mesh = processes.mesh(next(model.parameters()).device.type, count)
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # which slices need
        self.step = _Step(model)
        self.apart = apart
        for block in [*blocks(model)]:
            fully_shard(block, mesh=mesh, reshard_after_forward=not apart)
        fully_shard(self.step, mesh=mesh, reshard_after_forward=False)
        self._parts = [part for part in self.step.modules() if isinstance(part, FSDPModule)]
        for part in self._parts:
            part.set_gradient_divide_factor(1.0)  # losses are divided by the images of all processes already
            part.set_force_sum_reduction_for_comms(True)  # as gloo knows no other
            part.set_reshard_after_backward(not apart)

    def loss(self, loss: Callable[..., Any], *args: Any) -> Any:
        """Evaluate a loss of the model, with its weights gathered."""
        with warnings.catch_warnings():
            # What it warns of are changes in place of what a block returns, which no network here makes.
            warnings.filterwarnings("ignore", message=".*returned a view tensor")
            return self.step(loss, *args)

    def backward(self, value: Tensor, player: nn.Module) -> None:
        """Accumulate the gradients of a player, summed over the processes; those of other players do not change."""
        if not self.apart:
            value.backward()
            return
        for part in self._parts:  # differentiating gradients has left some as slices
            part.unshard()
        value.backward(inputs=[*player.parameters()])

    def settle(self) -> None:
        """Release gathered weights, at the end of a step and before any other use of parameters."""
        for part in self._parts:
            part.reshard()


def slices(tensors: Iterable[Tensor]) -> list[Tensor]:
    """This process's slices of sharded tensors."""
    return [tensor.to_local() for tensor in tensors]  # type: ignore[attr-defined]


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor, gathered from the slices of all processes, which all have to call this."""
    return tensor.full_tensor() if is_divided(tensor) else tensor  # type: ignore[attr-defined]


def divided_as(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, the same in all processes, sharded like `other`; unchanged if that is whole."""
    if not is_divided(other):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, other.device_mesh, other.placements, src_data_rank=None)  # type: ignore[attr-defined]


def divided_zeros(other: Tensor, dtype: torch.dtype) -> Tensor:
    """Zeros, sharded like another tensor."""
    return torch.zeros_like(other, dtype=dtype)


def is_divided(tensor: Tensor) -> bool:
    """Whether a tensor is sharded."""
    return type(tensor) not in (Tensor, nn.Parameter)  # the class of others takes a while to import
