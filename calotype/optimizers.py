"""The optimizers of the trainer: AdamW, and Muon for the matrices of a network with AdamW for the rest of it.

Muon moves a matrix along its momentum made orthogonal, so that every direction of the matrix moves alike, instead of
mostly the few that dominate its gradient. A convolution is the matrix of its output channels against all it sees.

    b <- b + (1 - momentum) (g - b)                              g the gradient, b the momentum
    u  = g + momentum (b - g)                                    Nesterov's look ahead
    W <- W - lr * 0.2 sqrt(max(rows, columns)) * orthogonal(u)   as large, in the mean square, as a step of AdamW

Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; Liu et al. 2025, arXiv:2502.16982, eq. 4, for the
factor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

SMALLEST = 32  # rows and columns of a matrix for Muon; first and last layers see and make a few channels only
MOMENTUM = 0.95
SHARE = 0.2  # the root mean square of an update of AdamW, about
# Of x -> a x + b x^3 + c x^5, which carries singular values from (0, 1] to about 1 in five rounds; they end between 0.7
# and 1.2, which does as well as 1, in fewer rounds.
QUINTIC = (3.4445, -4.7750, 2.0315)
ROUNDS = 5


def orthogonalised(matrix: Tensor) -> Tensor:
    """A matrix, float (rows, columns), with its singular vectors kept and its singular values about 1."""
    a, b, c = QUINTIC
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = x / x.norm().clamp(min=1e-12)
    for _ in range(ROUNDS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x if wide else x.T


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum, for parameters of two dimensions and more."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].lerp_(p.grad, 1 - MOMENTUM)
                update = orthogonalised(p.grad.lerp(state["momentum"], MOMENTUM).flatten(1))
                size = SHARE * max(update.shape) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(update.reshape(p.shape), alpha=group["lr"] * size)
        return None


def adamw(player: nn.Module, config: Any) -> Sequence[torch.optim.Optimizer]:
    """AdamW for everything."""
    return [_adamw(player.parameters(), config)]


def muon(player: nn.Module, config: Any) -> Sequence[torch.optim.Optimizer]:
    """Muon for matrices and convolutions, AdamW for embeddings, biases, norms, and first and last layers."""
    tables = {id(module.weight) for module in player.modules() if isinstance(module, nn.Embedding)}
    large = [p for p in player.parameters() if p.ndim > 1 and min(p.shape[0], p[0].numel()) >= SMALLEST]
    chosen = [p for p in large if id(p) not in tables]
    rest = [p for p in player.parameters() if not any(p is q for q in chosen)]
    parts = [Muon(chosen, config.learning_rate, config.weight_decay)] if chosen else []
    return [*parts, *([_adamw(rest, config)] if rest else [])]


def _adamw(params: Iterable[nn.Parameter], config: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        params,
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        weight_decay=config.weight_decay,
        fused=True,
    )


OPTIMIZERS: Mapping[str, Callable[[nn.Module, Any], Sequence[torch.optim.Optimizer]]] = {"adamw": adamw, "muon": muon}
