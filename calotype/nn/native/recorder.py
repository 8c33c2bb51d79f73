"""Recording the operations of a causal network for one pixel as a program.

The network's own code is run once, at a `Place` with a `Recorder`, on `Vector`s in the place of tensors: these take
part in the functions of torch that networks use, and write down what is done to them. Layers that keep something from
pixel to pixel ask the recorder for it. The arrays that a program refers to must stay where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

FURTHEST = 256  # columns that a vector may be behind the place

OPERAND = np.dtype(
    [
        ("base", "u8"),
        ("image", "i8"),
        ("row", "i8"),
        ("column", "i8"),
        ("row_shift", "i4"),
        ("column_shift", "i4"),
        ("arena", "i4"),
        ("unused", "i4"),
    ]
)
INSTRUCTION = np.dtype(
    [
        ("op", "i4"),
        ("n", "i4"),
        ("k", "i4"),
        ("extra", "i4"),
        ("out", OPERAND),
        ("x", OPERAND),
        ("y", OPERAND),
        ("z", OPERAND),
        ("weight", "u8"),
    ]
)
OPERATIONS = (
    "copy linear add mul relu silu elu tanh sigmoid neg norm skip attend unfold raise embed".split()
)  # as numbered in loop.c


class Map(Protocol):
    """The map that a layer works on, see `calotype.nn.causal.Place`."""

    @property
    def width(self) -> int:
        """Columns of the map."""

    @property
    def level(self) -> int:
        """Halvings of the resolution."""


class Operand(NamedTuple):
    """Where a vector lies; see loop.c."""

    base: int = 0
    image: int = 0
    row: int = 0
    column: int = 0
    row_shift: int = 0
    column_shift: int = 0
    arena: int = 0
    unused: int = 0


NOWHERE = Operand()


class Recorder:
    """A program that grows.

    Args:
        images: that are drawn together.
        height: of the images.
        wave: whether it is for pixels of any row, each at a column of its own; else for those of one row after
            another, and all that depends on rows above is computed before a row.
    """

    def __init__(self, images: int, height: int, wave: bool = False) -> None:
        self.images, self.height, self.wave = images, height, wave
        self.instructions: list[tuple[Any, ...]] = []
        self.kept: list[Tensor] = []  # what the program refers to
        self.floats = 0  # of the arena
        self.before_rows: list[Callable[[int], None]] = []  # to be called at the beginning of each row

    # -- vectors

    def new(self, size: int, behind: int | None = 0) -> Vector:
        """A vector in the arena."""
        start = self.floats
        self.floats += -(-size // 16) * 16
        return Vector(self, Operand(start, arena=1), size, behind)

    def of(self, x: Any) -> Vector:
        """A vector, or a tensor (B or 1, 1, 1, C) of constants."""
        if isinstance(x, Vector):
            return x
        flat = self.keep(x.detach().reshape(-1, x.shape[-1]))
        operand = Operand(flat.data_ptr(), image=flat.shape[1] if len(flat) > 1 else 0)
        return Vector(self, operand, flat.shape[1], behind=None)

    def map(self, x: Tensor, at: Map, right: int = 0, down: int = 0) -> Vector:
        """Of a map that stays where it is the vector at the place, or so many columns and rows on.

        Args:
            x: (B or 1, columns, C) of a row, or (B or 1, rows, columns, C); one row is that of any place.
        """
        self.kept.append(x)
        size, image = x.shape[-1], x.stride(0) if len(x) > 1 else 0
        row = x.stride(1) if x.ndim == 4 and x.shape[1] > 1 else 0
        base = x.data_ptr() + 4 * (right * size + down * row)
        return Vector(self, Operand(base, image, row, size, at.level, at.level), size)

    def keep(self, x: Tensor) -> Tensor:
        """The same, contiguous, and kept as long as the program is."""
        x = x.contiguous()
        assert x.dtype == torch.float32
        self.kept.append(x)
        return x

    def room(self, *shape: int) -> Tensor:
        """A map of zeros, behind whose end there is room for what is read beyond the right edge and then not used."""
        whole = np.prod(shape, dtype=int)
        return torch.zeros(whole + FURTHEST * shape[-1])[:whole].view(shape)

    # -- instructions

    def emit(
        self,
        op: str,
        n: int,
        out: Operand,
        x: Operand = NOWHERE,
        y: Operand = NOWHERE,
        z: Operand = NOWHERE,
        weight: int = 0,
        k: int = 0,
        extra: int = 0,
    ) -> None:
        """Add an instruction."""
        self.instructions.append((OPERATIONS.index(op), n, k, extra, out, x, y, z, weight))

    def apply(self, op: str, x: Vector, y: Vector | None = None) -> Vector:
        """An operation that goes value by value."""
        out = self.new(x.size, together(x, y))
        self.emit(op, x.size, out.operand, x.operand, y.operand if y is not None else NOWHERE)
        return out

    def store(self, x: Vector, into: Vector, columns: int = 0) -> None:
        """Copy a vector to a place of a map; where `columns` are given, only if its own column is one of these."""
        self.emit("copy", x.size, into.operand, x.operand, k=columns, extra=x.behind or 0)

    def linear(self, x: Operand, weight: Tensor, start: Vector | None, behind: int | None = 0) -> Vector:
        """start + x weight, of a weight (inputs, outputs)."""
        weight = self.keep(weight)
        inputs, outputs = weight.shape
        out = self.new(outputs, behind)
        begin = start.operand if start is not None else NOWHERE
        self.emit(
            "linear", outputs, out.operand, x, begin, weight=weight.data_ptr(), k=inputs, extra=int(start is not None)
        )
        return out

    def unfold(self, x: Vector, at: Map) -> Vector:
        """One of the 2 x 2 pixels that the values of x are, by the parity of the row and column at a place."""
        out = self.new(x.size // 4)
        self.emit("unfold", out.size, out.operand, x.operand, k=at.level)
        return out

    def attend(self, q: Vector, k: Vector, v: Vector, kept: Tensor, heads: int, at: Map) -> Vector:
        """Note keys and values in `kept` (2, B, positions, C), and attend to them until now."""
        self.kept.append(kept)
        keys, values = (
            Operand(cache.data_ptr(), cache.stride(0), at.width * q.size, q.size, at.level, at.level) for cache in kept
        )
        self.store(k, Vector(self, keys, k.size))
        self.store(v, Vector(self, values, v.size))
        out = self.new(q.size)
        shifted = out.operand._replace(row_shift=at.level, column_shift=at.level)
        self.emit("attend", q.size, shifted, q.operand, keys, values, k=at.width, extra=heads)
        return out

    def embedded(self, table: Tensor, channel: int) -> Vector:
        """The row of a table (256, features) that the own pixel's value of a channel names."""
        table = self.keep(table.detach())
        out = self.new(table.shape[1])
        self.emit("embed", out.size, out.operand, weight=table.data_ptr(), k=channel)
        return out

    def raised(self, scores: Vector, by: Vector, nearby: Sequence[tuple[int, int]], channel: int = 0) -> Vector:
        """Scores raised at a channel's values of the pixels nearby: rows above, columns before.

        Of channels that are not the first, `by` has as many numbers more: what to add where those before are the same.
        """
        places = torch.tensor(nearby, dtype=torch.int32).contiguous()
        self.kept.append(places)
        out = self.apply("copy", scores)
        self.emit("raise", len(nearby), out.operand, by.operand, weight=places.data_ptr(), k=channel)
        return out

    def only_even(self, levels: int) -> Callable[[], None]:
        """From here on only at columns that a map of so many halvings has; until what is returned is called."""
        start = len(self.instructions)
        self.emit("skip", 0, NOWHERE, k=levels)

        def end() -> None:
            skip = list(self.instructions[start])
            skip[3] = len(self.instructions) - start - 1
            self.instructions[start] = tuple(skip)

        return end

    def program(self) -> np.ndarray:
        """The instructions as loop.c reads them."""
        return np.array(self.instructions, INSTRUCTION)


class Vector:
    """What stands for a map of one pixel, (B, 1, 1, C), while a program is written down.

    Its pixel is so many columns behind the place: where a row is seen up to the right of a pixel, what is computed of
    it is known only then. None is for constants, which are the same at all places.
    """

    def __init__(self, recorder: Recorder, operand: Operand, size: int, behind: int | None = 0) -> None:
        self.recorder, self.operand, self.size, self.behind = recorder, operand, size, behind

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """As of the map; the number of images is open."""
        return -1, 1, 1, self.size

    def part(self, start: int, size: int) -> Vector:
        """Some of its values."""
        step = start if self.operand.arena else 4 * start
        return Vector(self.recorder, self.operand._replace(base=self.operand.base + step), size, self.behind)

    def chunk(self, parts: int, dim: int) -> list[Vector]:
        """Equal parts."""
        assert dim == -1
        each = self.size // parts
        return [self.part(k * each, each) for k in range(parts)]

    def __add__(self, other: Any) -> Vector:
        return self.recorder.apply("add", self, self.recorder.of(other))

    def __mul__(self, other: Any) -> Vector:
        return self.recorder.apply("mul", self, self.recorder.of(other))

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> Vector:
        return self.recorder.apply("neg", self)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, arguments: Sequence[Any] = (), settings: Any = None
    ) -> Vector:
        if function not in FUNCTIONS:
            raise NotImplementedError(f"{function} cannot be recorded: add it to FUNCTIONS of the recorder")
        return FUNCTIONS[function](*arguments, **(settings or {}))


def together(*vectors: Vector | None) -> int | None:
    """How far behind is what is made of vectors, all of which must be of one pixel."""
    found = {x.behind for x in vectors if x is not None and x.behind is not None}
    if len(found) > 1:
        raise ValueError(f"vectors are of different pixels, {sorted(found)} columns behind, and cannot be joined")
    return found.pop() if found else None


def _linear(x: Vector, weight: Tensor, bias: Tensor | None = None) -> Vector:
    start = None if bias is None else x.recorder.of(bias[None, None, None])
    return x.recorder.linear(x.operand, weight.detach().t(), start, x.behind)


def _layer_norm(
    x: Vector, shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Vector:
    assert weight is not None
    assert bias is not None
    constants = x.recorder.keep(torch.cat([weight.detach(), bias.detach(), weight.new_tensor([eps])]))
    out = x.recorder.new(x.size, x.behind)
    x.recorder.emit("norm", x.size, out.operand, x.operand, weight=constants.data_ptr())
    return out


def _cat(parts: Sequence[Vector], dim: int) -> Vector:
    recorder = parts[0].recorder
    vectors = [recorder.of(part) for part in parts]
    out = recorder.new(sum(vector.size for vector in vectors), together(*vectors))
    start = 0
    for vector in vectors:
        recorder.store(vector, out.part(start, vector.size))
        start += vector.size
    return out


def _glu(x: Vector, dim: int = -1) -> Vector:
    a, b = x.chunk(2, -1)
    return a * x.recorder.apply("sigmoid", b)


def _by_value(op: str) -> Callable[..., Vector]:
    return lambda x, *_, **__: x.recorder.apply(op, x)


FUNCTIONS: dict[Any, Callable[..., Vector]] = {
    F.linear: _linear,
    F.layer_norm: _layer_norm,
    torch.cat: _cat,
    F.glu: _glu,
    F.relu: _by_value("relu"),
    F.silu: _by_value("silu"),
    F.elu: _by_value("elu"),
    torch.tanh: _by_value("tanh"),
    torch.sigmoid: _by_value("sigmoid"),
    torch.Tensor.add: lambda x, y: y + x,
    torch.Tensor.__add__: lambda x, y: y + x,
    torch.Tensor.__radd__: lambda x, y: y + x,
    torch.Tensor.__mul__: lambda x, y: y * x,
}
