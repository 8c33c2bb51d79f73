"""The layers of PixelRNN: LSTMs over the rows or the diagonals of an image, in the stack of `calotype.nn.pixelcnn`.

Of a layer's input x, with 2 h features, an LSTM makes h features, and a pointwise convolution adds them to x:

    [o, f, i, g] = K_is * x + K_ss * s',    c = sigmoid(f) c' + sigmoid(i) tanh(g),    s = sigmoid(o) tanh(c)

with state s and cell c. In a Row LSTM K_is is a masked convolution along the row, and s', c' are those of the row
above, s' seen through a convolution of three columns. In a Diagonal BiLSTM K_is is pointwise, s' are the states above
and to the left, and c' is the cell to the left; a second LSTM runs from the right, and its states, moved down by a row,
are added to those of the first: together they see all that is before.

Source: van den Oord et al. 2016, arXiv:1601.06759, sections 3.1 to 3.4.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calotype.core.rng import Noise
from calotype.nn.causal import Place
from calotype.nn.causal_layers import CausalConv
from calotype.nn.layers import dropout


class RowLSTM(nn.Module):
    """A residual layer whose state goes from row to row."""

    def __init__(self, width: int, order: int, num_classes: int, dropout_rate: float) -> None:
        super().__init__()
        hidden = width // 2
        self.dropout_rate = dropout_rate
        self.inputs = CausalConv(width, 4 * hidden, 0, 1, 1, channels=order, parts=4)
        self.states = nn.Conv1d(hidden, 4 * hidden, 3, padding=1, bias=False)
        self.leave = CausalConv(hidden, width, channels=order)
        self.embed = nn.Embedding(num_classes, 4 * hidden) if num_classes else None

    def forward(self, x: Tensor, labels: Tensor | None, at: Place | None, noise: Noise | None) -> Tensor:
        """Map features (B, H, W, width), or those of the pixel at a place (B, 1, 1, width), to the same shape."""
        gates = self.inputs(x, at)
        if self.embed is not None:
            gates = gates + self.embed(labels)[:, None, None]
        states = self._scan(gates) if at is None else self._pixel(gates, at)
        return x + self.leave(dropout(states, self.dropout_rate, noise), at)

    def _scan(self, gates: Tensor) -> Tensor:
        states: list[Tensor] = []
        cell: Tensor | None = None
        for row in gates.unbind(1):
            state, cell = _lstm(row + self._carried(states[-1]) if states else row, cell)
            states.append(state)
        return torch.stack(states, 1)

    def _carried(self, states: Tensor) -> Tensor:
        """What the states (B, W, h) of a row add to the gates of the next: (B, W, 4 h)."""
        return self.states(states.transpose(1, 2)).transpose(1, 2)

    def _pixel(self, gates: Tensor, at: Place) -> Tensor:
        assert at.column is not None
        kept: _Rows | None = at.memory.get(self)
        if kept is None:
            kept = at.memory[self] = _Rows(gates, at.width)
        if kept.enters(at.row) and at.row > 0:
            kept.carried, kept.cells_above = self._carried(kept.states), kept.cells.clone()
        j = at.column
        state, cell = _lstm(gates[:, 0, 0] + kept.carried[:, j], kept.cells_above[:, j])
        kept.states[:, j], kept.cells[:, j] = state, cell
        return state[:, None, None]


class _Rows:
    """The state of a Row LSTM between rows."""

    def __init__(self, gates: Tensor, width: int) -> None:
        hidden = gates.shape[-1] // 4
        self.states, self.cells, self.cells_above = gates.new_zeros(3, len(gates), width, hidden)
        self.carried = gates.new_zeros(len(gates), width, 4 * hidden)
        self.row = -1

    def enters(self, row: int) -> bool:
        """Whether this row is new; a pixel is visited once per channel."""
        new, self.row = row > self.row, row
        return new


class DiagonalBiLSTM(nn.Module):
    """A residual layer of two LSTMs whose states go along diagonals, from the left and from the right."""

    def __init__(self, width: int, order: int, num_classes: int, dropout_rate: float) -> None:
        super().__init__()
        hidden = width // 2
        self.dropout_rate = dropout_rate
        self.from_left = CausalConv(width, 4 * hidden, channels=order, parts=4)
        self.from_right = CausalConv(width, 4 * hidden)  # seen in rows below: no order of channels
        self.left, self.right = DiagonalStates(hidden), DiagonalStates(hidden)
        self.leave = CausalConv(hidden, width, channels=order)
        self.embed = nn.Embedding(num_classes, 8 * hidden) if num_classes else None

    def forward(self, x: Tensor, labels: Tensor | None, at: Place | None, noise: Noise | None) -> Tensor:
        """Map features (B, H, W, width), or those of the pixel at a place (B, 1, 1, width), to the same shape."""
        left, right = self.from_left(x, at), self.from_right(x, at)
        if self.embed is not None:
            biases = self.embed(labels)[:, None, None].chunk(2, -1)
            left, right = left + biases[0], right + biases[1]
        states = self._scan(left, right) if at is None else self._pixel(left, right, at)
        return x + self.leave(dropout(states, self.dropout_rate, noise), at)

    def _scan(self, left: Tensor, right: Tensor) -> Tensor:
        from_right = self.right.scan(right.flip(2)).flip(2)
        return self.left.scan(left) + F.pad(from_right, (0, 0, 0, 0, 1, -1))

    def _pixel(self, left: Tensor, right: Tensor, at: Place) -> Tensor:
        assert at.column is not None
        kept: _Diagonals | None = at.memory.get(self)
        if kept is None:
            kept = at.memory[self] = _Diagonals(left, at.width)
        if kept.row < at.row:
            kept.enter(self.right, at.row)
        j = at.column
        carried = self.left(kept.above[:, 1 + j], kept.states[:, j])
        state, cell = _lstm(left[:, 0, 0] + carried, kept.cells[:, j])
        kept.states[:, 1 + j], kept.cells[:, 1 + j], kept.inputs[:, j] = state, cell, right[:, 0, 0]
        return (state + kept.far[:, j])[:, None, None]


class _Diagonals:
    """The state of a Diagonal BiLSTM; column 0 of states and cells lies outside the image."""

    def __init__(self, gates: Tensor, width: int) -> None:
        hidden = gates.shape[-1] // 4
        self.above, self.states, self.cells = gates.new_zeros(3, len(gates), 1 + width, hidden)
        self.inputs = gates.new_zeros(len(gates), width, 4 * hidden)  # of the LSTM from the right, for this row
        self.far = gates.new_zeros(len(gates), width, hidden)  # its states of the row above
        self.row = 0

    def enter(self, right: DiagonalStates, row: int) -> None:
        """Begin a row: the LSTM from the right goes over the one that has become known."""
        self.row, self.above = row, self.states.clone()
        states, cell = [torch.zeros_like(self.far[:, 0])], torch.zeros_like(self.far[:, 0])
        for j in reversed(range(self.far.shape[1])):
            state, cell = _lstm(self.inputs[:, j] + right(self.far[:, j], states[-1]), cell)
            states.append(state)
        self.far = torch.stack(states[:0:-1], 1)


class DiagonalStates(nn.Module):
    """The state-to-state part of a diagonal LSTM."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.linear = nn.Linear(2 * hidden, 4 * hidden, bias=False)

    def forward(self, above: Tensor, before: Tensor) -> Tensor:
        """What the states (..., h) above and before add to the gates, (..., 4 h)."""
        return self.linear(torch.cat([above, before], -1))

    def scan(self, gates: Tensor) -> Tensor:
        """The states (B, H, W, h) of the inputs' gates (B, H, W, 4 h), diagonal by diagonal from the left."""
        b, high, wide, _ = gates.shape
        skewed = _skewed(gates)
        places = torch.arange(high + wide - 1, device=gates.device) - torch.arange(high, device=gates.device)[:, None]
        inside = ((places >= 0) & (places < wide)).to(gates.dtype)[..., None]  # (H, D, 1)
        state = cell = gates.new_zeros(b, high, self.hidden)
        states = []
        for d in range(skewed.shape[2]):
            state, cell = _lstm(skewed[:, :, d] + self(F.pad(state, (0, 0, 1, -1)), state), cell)
            state, cell = state * inside[:, d], cell * inside[:, d]
            states.append(state)
        return _straight(torch.stack(states, 2), wide)


def _skewed(x: Tensor) -> Tensor:
    """Row r moved right by r columns: (B, H, W, C) to (B, H, W + H - 1, C)."""
    b, high, wide, c = x.shape
    padded = F.pad(x, (0, 0, 0, high)).reshape(b, high * (wide + high), c)
    return padded[:, : high * (wide + high - 1)].reshape(b, high, wide + high - 1, c)


def _straight(x: Tensor, wide: int) -> Tensor:
    """The inverse of `_skewed`."""
    b, high, skewed, c = x.shape
    padded = F.pad(x.reshape(b, high * skewed, c), (0, 0, 0, high))
    return padded.reshape(b, high, skewed + 1, c)[:, :, :wide]


def _lstm(gates: Tensor, cell: Tensor | None) -> tuple[Tensor, Tensor]:
    """The next state and cell (..., h), of gates (..., 4 h) and the cell before; None: zeros."""
    o, f, i, g = gates.chunk(4, -1)
    cell = torch.sigmoid(i) * torch.tanh(g) + (0 if cell is None else torch.sigmoid(f) * cell)
    return torch.sigmoid(o) * torch.tanh(cell), cell
