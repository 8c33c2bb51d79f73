"""The layers of networks in which a pixel is computed from the pixels before it: convolutions and attention.

Each gives for a row or a pixel at a Place what it gives for whole images, see `calotype.nn.causal`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calotype.nn.causal import Own, Place, Reach
from calotype.nn.layers import full, full_precision, zeroed
from calotype.nn.native.recorder import Operand, Recorder, Vector


def groups(channels: int, of: int, parts: int = 1) -> Tensor:
    """To which of `of` ordered channels of a pixel each feature belongs: int64 (channels,), in `parts` like parts."""
    each = channels // parts
    return (torch.arange(each, device="cpu") * of // each).repeat(parts)


def _mask(size: Sequence[int], place: tuple[int, int], own: Own, inputs: Tensor, outputs: Tensor) -> Tensor | None:
    """Which weights (outputs, inputs, rows, columns) count, where `place` is the tap of the own position."""
    if own == "all":
        return None
    mask = torch.ones(len(outputs), len(inputs), *size, device="cpu")
    row, column = place
    mask[:, :, row, column + 1 :] = 0
    if column < size[1]:
        seen = inputs[None] < outputs[:, None] if own == "A" else inputs[None] <= outputs[:, None]
        mask[:, :, row, column] = seen.float()
    return None if bool(mask.all()) else mask


class _Masked(nn.Module):
    """Weights and bias of a convolution, of which some are held at 0."""

    mask: Tensor | None

    def __init__(self, conv: nn.Conv2d, mask: Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.register_buffer("mask", mask, persistent=False)
        if mask is not None:
            with torch.no_grad():  # the outputs vary as they would if nothing were masked
                self.weight.mul_(float(mask.mean()) ** -0.5)

    def effective(self) -> Tensor:
        """(outputs, inputs, rows, columns)."""
        return self.weight if self.mask is None else self.weight * self.mask


class FirstConv(nn.Module):
    """The convolution that looks at the canvas: at a rectangle of pixels, all of them before the own one.

    Args:
        inputs: features of a pixel on the canvas; where they are ordered, the channels of the image.
        outputs: features.
        rows: first and last, relative to the own one, such as (-3, -1), or (-3, 0), where the own row counts up to
            the own pixel.
        columns: first and last.
        ordered: whether groups of outputs see the channels of the own pixel that are before theirs.
        parts: of the features, that are grouped alike.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        rows: tuple[int, int],
        columns: tuple[int, int],
        ordered: bool = False,
        parts: int = 1,
    ) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns
        size = rows[1] - rows[0] + 1, columns[1] - columns[0] + 1
        seen = torch.arange(inputs + 1, device="cpu")  # last the mark, which is 0 inside
        group = groups(outputs, inputs if ordered else 1, parts)
        mask = None
        if rows[1] == 0:
            mask = _mask(size, (size[0] - 1, -columns[0]), "A", seen, group)
        self.conv = _Masked(nn.Conv2d(inputs + 1, outputs, size), mask)

    @property
    def reach(self) -> Reach:
        """How far to the right it sees."""
        return {-row: self.columns[1] if row else 0 for row in range(self.rows[0], self.rows[1] + 1)}

    def forward(self, canvas: Tensor, margin: int, at: Place | None = None) -> Tensor:
        """The features of all pixels, or of the row or pixel at a place."""
        if at is not None and at.recorder is not None:
            return cast(Tensor, self._record(canvas, margin, at.recorder))
        top, bottom = margin + self.rows[0], self.rows[1] + 1
        left, right = margin + self.columns[0], self.columns[1] + 1
        high, wide = canvas.shape[1] - margin, canvas.shape[2] - 2 * margin
        if at is None:
            seen = canvas[:, top : margin + high + bottom - 1, left : margin + wide + right - 1]
        else:
            seen = canvas[:, top + at.row : margin + at.row + bottom]
            if at.column is None:
                seen = seen[:, :, left : margin + wide + right - 1]
            else:
                seen = seen[:, :, left + at.column : margin + at.column + right]
                weight = _once(at, self, lambda: self.conv.effective().permute(2, 3, 1, 0).flatten(0, 2))
                return (seen.flatten(1) @ weight + self.conv.bias)[:, None, None]
        return _conv(seen, self.conv.effective(), self.conv.bias)

    def _record(self, canvas: Tensor, margin: int, recorder: Recorder) -> Vector:
        weight = self.conv.effective().detach()
        assert self.conv.bias is not None
        total = recorder.of(self.conv.bias[None, None, None])
        stride, features = canvas.stride(1), canvas.shape[3]
        for k, row in enumerate(range(self.rows[0], self.rows[1] + 1)):
            last = min(0, self.columns[1]) if row == 0 else self.columns[1]
            first = canvas.data_ptr() + 4 * ((margin + row) * stride + (margin + self.columns[0]) * features)
            seen = Operand(first, canvas.stride(0), stride, features)
            taps = weight[:, :, k, : last - self.columns[0] + 1]
            total = recorder.linear(seen, taps.permute(2, 1, 0).flatten(0, 1), total)
        return total


def _once(at: Place, key: nn.Module, make: Any) -> Any:
    """The value computed at the first place, kept for the others."""
    if key not in at.memory:
        at.memory[key] = make()
    return at.memory[key]


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1) -> Tensor:
    """The convolution of a padded map (B, H, W, C)."""
    return full(F.conv2d(x.permute(0, 3, 1, 2), weight, bias, stride), x.dtype).permute(0, 2, 3, 1)


class CausalConv(nn.Module):
    """A convolution of features that sees its own row and `up` rows above, from `left` before to `right` after.

    Args:
        inputs, outputs: channels.
        up, left, right: the window, in rows and columns of the input.
        own: what is seen of the own row: "all" of the window, where a row of features knows the rows above only;
            or "B", up to the own place.
        channels: of the image, where features are in ordered groups by channel and see those up to their own.
        parts: of the outputs, that are grouped alike.
        stride: 2 gives a map of half as many rows and columns, rounded up.
        bias: whether a constant is added.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        up: int = 0,
        left: int = 0,
        right: int = 0,
        own: Own = "B",
        channels: int = 1,
        parts: int = 1,
        stride: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.up, self.left, self.right, self.stride, self.own = up, left, right, stride, own
        size = up + 1, left + 1 + right
        mask = _mask(size, (up, left), own, groups(inputs, channels), groups(outputs, channels, parts))
        self.conv = _Masked(nn.Conv2d(inputs, outputs, size, bias=bias), mask)

    @property
    def reach(self) -> Reach:
        """How far to the right it sees."""
        return {k: self.right if k or self.own == "all" else 0 for k in range(self.up + 1)}

    def forward(self, x: Tensor, at: Place | None = None) -> Tensor:
        """x (B, H, W, inputs), or the row or pixel at a place: the same of the output.

        With stride 2 a place that is not even has no output, and what comes back means nothing.
        """
        if self.up == self.left == self.right == 0 and self.stride == 1:
            return F.linear(x, self.conv.effective()[:, :, 0, 0], self.conv.bias)
        if at is None:
            return self._convolved(F.pad(x, (0, 0, self.left, self.right, self.up, 0)))
        return self._row(x, at) if at.column is None else self._pixel(x, at)

    def _convolved(self, padded: Tensor) -> Tensor:
        return _conv(padded, self.conv.effective(), self.conv.bias, self.stride)

    def _row(self, x: Tensor, at: Place) -> Tensor:
        before = _once(at, self, lambda: x.new_zeros(len(x), self.up, *x.shape[2:]))
        rows = torch.cat([before, x], 1)
        at.memory[self] = rows[:, 1:]
        if at.row % self.stride:
            return x
        return self._convolved(F.pad(rows, (0, 0, self.left, self.right)))

    def _pixel(self, x: Tensor, at: Place) -> Tensor:
        if at.recorder is not None and at.recorder.wave:
            return cast(Tensor, _record_whole(self, cast(Vector, x), at, at.recorder))
        images = at.recorder.images if at.recorder is not None else len(x)
        kept: _Window = _once(at, self, lambda: _Window(self, images, at.width))
        if at.recorder is not None:
            at.recorder.before_rows.append(lambda row: kept.enter(self, row >> at.level))
            return cast(Tensor, kept.record(self, cast(Vector, x), at, at.recorder))
        assert at.column is not None
        if at.column == 0:
            kept.enter(self, at.row)
        return kept.pixel(self, x, at.row, at.column)


class _Window:
    """The rows that a convolution keeps while it goes from pixel to pixel, and the share of those above in the sum."""

    def __init__(self, layer: CausalConv, images: int, width: int) -> None:
        weight = layer.conv.effective()
        outputs, inputs = weight.shape[:2]
        self.rows = weight.new_zeros(images, layer.up + 1, layer.left + width + layer.right, inputs)
        self.taps = layer.left + 1
        self.own = weight[:, :, layer.up, : self.taps].permute(2, 1, 0).flatten(0, 1).contiguous()  # (taps inputs, O)
        self.above = weight[:, :, : layer.up]
        self.base: Tensor | None = None
        if layer.up:
            self.base = weight.new_zeros(images, -(-width // layer.stride), outputs)
        self.entered = -1

    def enter(self, layer: CausalConv, row: int) -> None:
        """Begin a row: those before move up, and what they add is computed for all columns at once."""
        if self.entered == row:  # a pixel is visited once per channel
            return
        self.entered = row
        if self.base is None:
            return
        if row > 0:
            self.rows[:, :-1] = self.rows[:, 1:].clone()
        if row % layer.stride == 0:
            self.base.copy_(_conv(self.rows[:, : layer.up], self.above, layer.conv.bias, layer.stride)[:, 0])

    def pixel(self, layer: CausalConv, x: Tensor, row: int, column: int) -> Tensor:
        """Take note of x, and give the output where there is one."""
        self.rows[:, -1, layer.left + column] = x[:, 0, 0]
        if row % layer.stride or column % layer.stride:
            return x
        window = self.rows[:, -1, column : column + self.taps].flatten(1)
        if self.base is not None:
            total = torch.addmm(self.base[:, column // layer.stride], window, self.own)
        elif layer.conv.bias is not None:
            total = torch.addmm(layer.conv.bias, window, self.own)
        else:
            total = window @ self.own
        return total[:, None, None]

    def record(self, layer: CausalConv, x: Vector, at: Place, recorder: Recorder) -> Vector:
        """Write down what `pixel` does."""
        own = self.rows[:, -1]
        recorder.store(x, recorder.map(own, at, layer.left))
        if at.row % layer.stride:
            return x
        start: Vector | None = None
        if self.base is not None:
            start = recorder.map(self.base, at.coarser() if layer.stride > 1 else at)
        elif layer.conv.bias is not None:
            start = recorder.of(layer.conv.bias[None, None, None])
        end = recorder.only_even(at.level + 1) if layer.stride > 1 else None
        total = recorder.linear(recorder.map(own, at).operand, self.own, start)
        if end is not None:
            end()
        return total


def _record_whole(layer: CausalConv, x: Vector, at: Place, recorder: Recorder) -> Vector:
    """Write down a convolution that keeps its whole map, for pixels of any row, and may see its own row in whole.

    What it gives is as many columns behind what it is given as it sees to the right in the own row.
    """
    assert layer.stride == 1
    assert x.behind is not None
    weight = layer.conv.effective().detach()
    behind, seen = x.behind, layer.left + 1
    if layer.own == "all":
        behind, seen = behind + layer.right, seen + layer.right
    margin = behind + layer.left  # where a row begins there is nothing behind it yet
    rows = recorder.room(recorder.images, layer.up + recorder.height, margin + at.width + layer.right, weight.shape[1])
    recorder.store(x, recorder.map(rows, at, margin - x.behind, layer.up), columns=at.width)
    total = None if layer.conv.bias is None else recorder.of(layer.conv.bias[None, None, None])
    for k in range(layer.up + 1):
        taps = weight[:, :, k, : seen if k == layer.up else None]
        window = recorder.map(rows, at, 0, k).operand
        total = recorder.linear(window, taps.permute(2, 1, 0).flatten(0, 1), total, behind)
    assert total is not None
    return total


def unfolded(x: Tensor, high: int, wide: int, at: Place | None) -> Tensor:
    """A map of twice as many rows and columns: each 2 x 2 of its pixels from the channels of one.

    Args:
        x: (B, H, W, 4 C), or the row or pixel at a place of it.
        high, wide: of the finer map, for whole images.
        at: the place in the finer map.
    """
    if at is not None and at.recorder is not None:
        return cast(Tensor, at.recorder.unfold(cast(Vector, x), at))
    if at is None:
        shuffled = F.pixel_shuffle(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
        return shuffled[:, :high, :wide]
    rows = x.unflatten(-1, (-1, 2, 2))[..., at.row % 2, :]  # (B, 1, columns, C, 2)
    if at.column is not None:
        return rows[..., at.column % 2]
    return rows.transpose(3, 4).flatten(2, 3)[:, :, : at.width]


def below(at: Place | None, key: nn.Module, run: Callable[[Place | None], Tensor]) -> Tensor:
    """What a level of half the resolution gives at a place: where it has none of its own, what it gave before.

    Args:
        at: the place in the finer map.
        key: what the level's last row is remembered by.
        run: gives the level's map, row or pixel at a place of its own.
    """
    if at is None:
        return run(None)
    coarse = at.coarser()
    if at.recorder is not None:
        return cast(Tensor, _record_below(at, key, run, at.recorder))
    if coarse.column is None:
        if at.even:
            at.memory[key] = run(coarse)
        return at.memory[key]
    here = slice(coarse.column, coarse.column + 1)
    if at.even:
        result = run(coarse)
        kept = _once(at, key, lambda: result.new_zeros(len(result), 1, coarse.width, result.shape[-1]))
        kept[:, :, here] = result
    return at.memory[key][:, :, here]


def _record_below(at: Place, key: nn.Module, run: Callable[[Place | None], Tensor], recorder: Recorder) -> Vector:
    coarse = at.coarser()
    if at.row % 2 == 0:
        end = recorder.only_even(coarse.level)
        result = cast(Vector, run(coarse))
        kept = _once(at, key, lambda: torch.zeros(recorder.images, coarse.width, result.size))
        recorder.store(result, recorder.map(kept, coarse))
        end()
    return recorder.map(at.memory[key], coarse)


class CausalAttention(nn.Module):
    """Multi-head attention of each position to itself and those before it, residual and pre-normalised.

    Args:
        width: features of the map.
        heads: of attention; they divide the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = zeroed(nn.Linear(width, width))

    def forward(self, x: Tensor, at: Place | None = None) -> Tensor:
        """x (B, H, W, width), or its pixel at a place."""
        if at is not None and at.recorder is not None:
            return x + self.out(cast(Tensor, self._record(x, at, at.recorder)))
        b, h, w, c = x.shape
        qkv = full(self.qkv(self.norm(x)), x.dtype).reshape(b, h * w, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, HW, d)
        if at is None:
            with full_precision(q):
                attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            attended = F.scaled_dot_product_attention(q, *self._remembered(k, v, at))
        return x + self.out(attended.transpose(1, 2).reshape(b, h, w, c))

    def _remembered(self, k: Tensor, v: Tensor, at: Place) -> tuple[Tensor, Tensor]:
        """All keys and values until now, these included."""
        assert at.column is not None
        position = at.row * at.width + at.column
        kept = at.memory.get(self)
        if kept is None or kept.shape[3] <= position:  # grows by doubling
            larger = k.new_zeros(2, *k.shape[:2], max(2 * position, 4 * at.width), k.shape[3])
            if kept is not None:
                larger[:, :, :, : kept.shape[3]] = kept
            kept = at.memory[self] = larger
        kept[0, :, :, position], kept[1, :, :, position] = k[:, :, 0], v[:, :, 0]
        return kept[0, :, :, : position + 1], kept[1, :, :, : position + 1]

    def _record(self, x: Tensor, at: Place, recorder: Recorder) -> Vector:
        """Write down what `_remembered` and the attention do."""
        q, k, v = cast(Vector, self.qkv(self.norm(x))).chunk(3, -1)
        rows = -(-recorder.height // 2**at.level)
        kept = _once(at, self, lambda: torch.zeros(2, recorder.images, rows * at.width, q.size))
        return recorder.attend(q, k, v, kept, self.heads, at)
