"""The optimizers of the trainer: AdamW, and Muon for the matrices of a network with AdamW for the rest of it.

Muon moves a matrix along its momentum made orthogonal, so that every direction of the matrix moves alike, instead of
mostly the few that dominate its gradient. A convolution is the matrix of its output channels against all it sees; the
order of those columns does not matter, so they stand as in memory.

    b <- b + (1 - momentum) (g - b)                              g the gradient, b the momentum
    u  = g + momentum (b - g)                                    Nesterov's look ahead
    W <- W - lr * 0.2 sqrt(max(rows, columns)) * orthogonal(u)   as large, in the mean square, as a step of AdamW

Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; Liu et al. 2025, arXiv:2502.16982, eq. 4, for the
factor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from calotype.distributed.sharding import divided_as, whole

SMALLEST = 32  # rows and columns of a matrix for Muon; first and last layers see and make a few channels only
MOMENTUM = 0.95
SHARE = 0.2  # the root mean square of an update of AdamW, about
# Of x -> a x + b x^3 + c x^5, which carries singular values from (0, 1] to about 1 in five rounds; they end between 0.7
# and 1.2, which does as well as 1, in fewer rounds.
QUINTIC = (3.4445, -4.7750, 2.0315)
ROUNDS = 5


def orthogonalised(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Matrices, float (rows, columns), with their singular vectors kept and their singular values about 1.

    A round takes X to P X, where P = a + b A + c A^2 and A = X X^T. As P commutes with A, the next A is P^2 A: all
    but the first and the last product are of small square matrices, and those of one size are done together.
    """
    wide = [m if m.shape[0] <= m.shape[1] else m.T for m in matrices]
    xs = [m / m.norm().clamp(min=1e-12) for m in wide]
    done: list[Tensor] = [*xs]
    for rows in {x.shape[0] for x in xs}:
        places = [i for i, x in enumerate(xs) if x.shape[0] == rows]
        factors = _factors(torch.stack([xs[i] @ xs[i].T for i in places]))
        for i, factor in zip(places, factors, strict=True):
            done[i] = factor @ xs[i]
    return [x if m.shape[0] <= m.shape[1] else x.T for m, x in zip(matrices, done, strict=True)]


def _factors(grams: Tensor) -> Tensor:
    """The products of P over all rounds, (N, rows, rows), for the A that the first begins with."""
    a, b, c = QUINTIC
    total: Tensor | None = None
    for k in range(ROUNDS):
        p = torch.baddbmm(grams, grams, grams, beta=b, alpha=c)
        p.diagonal(dim1=1, dim2=2).add_(a)
        total = p if total is None else torch.bmm(p, total)
        if k + 1 < ROUNDS:
            grams = torch.bmm(p, torch.bmm(p, grams))
    assert total is not None
    return total


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum, for parameters of two dimensions and more."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            updates = []
            for p in params:
                assert p.grad is not None
                momentum = self._momentum(p)
                momentum.lerp_(p.grad, 1 - MOMENTUM)
                updates.append(whole(p.grad.lerp(momentum, MOMENTUM)).movedim(1, -1).flatten(1))
            for p, update in zip(params, orthogonalised(updates), strict=True):
                size = SHARE * max(update.shape) ** 0.5
                if group["weight_decay"]:
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                move = update.unflatten(1, (*p.shape[2:], p.shape[1])).movedim(-1, 1)
                p.sub_(divided_as(move, p), alpha=group["lr"] * size)
        return None

    def _momentum(self, p: nn.Parameter) -> Tensor:
        if not self.state[p]:
            self.state[p]["momentum"] = torch.zeros_like(p)
        return self.state[p]["momentum"]


Betas = tuple[float, float]
Make = Callable[[nn.Module, float, Betas, float], Sequence[torch.optim.Optimizer]]
"""(player, learning rate, betas of AdamW, weight decay) -> the optimizers that share the player's parameters."""


def adamw(player: nn.Module, rate: float, betas: Betas, decay: float) -> Sequence[torch.optim.Optimizer]:
    """AdamW for everything."""
    return [torch.optim.AdamW(player.parameters(), rate, betas, weight_decay=decay, fused=True)]


def muon(player: nn.Module, rate: float, betas: Betas, decay: float) -> Sequence[torch.optim.Optimizer]:
    """Muon for matrices and convolutions, AdamW for embeddings, biases, norms, and first and last layers."""
    tables = {id(module.weight) for module in player.modules() if isinstance(module, nn.Embedding)}
    large = [p for p in player.parameters() if p.ndim > 1 and min(p.shape[0], p.numel() // p.shape[0]) >= SMALLEST]
    chosen = {id(p): p for p in large if id(p) not in tables}
    rest = [p for p in player.parameters() if id(p) not in chosen]
    parts: list[torch.optim.Optimizer] = [Muon(chosen.values(), rate, decay)] if chosen else []
    return [*parts, torch.optim.AdamW(rest, rate, betas, weight_decay=decay, fused=True)] if rest else parts


OPTIMIZERS: Mapping[str, Make] = {"adamw": adamw, "muon": muon}

MOMENTS: Mapping[type[torch.optim.Optimizer], frozenset[str]] = {
    torch.optim.AdamW: frozenset({"step", "exp_avg", "exp_avg_sq"}),
    Muon: frozenset({"momentum"}),
}
"""The state of each optimizer per parameter, by name."""
