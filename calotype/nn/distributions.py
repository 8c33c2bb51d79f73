"""Distributions of the pixels of 8-bit images: log-probabilities, and draws by inverse CDF.

A network gives numbers for each pixel, (..., parameters), and a pixel is bytes (..., channels). Of the C channels x_1
to x_C of a pixel:

    Categorical   p(x) = prod_c softmax(logits_c)[x_c]
    Bernoulli     p(x) = prod_c sigmoid(±logit_c), of bytes that are 0 or 255
    Logistics     p(x) = sum_k w_k prod_c P(x_c | mu_ck + sum_{d<c} a_cdk x_d, s_ck)
    Gaussian      p(x) = prod_c N(x_c; mu_c, s^2), s^2 the mean of (x - mu)^2 over all of an image: an estimate

where P is the mass of a logistic distribution between x_c - 1/2 and x_c + 1/2, in units of 1/255 of the range, and all
that lies beyond is in the bins of 0 and 255. With sigma(u) - sigma(v) = sigma(u) sigma(-v) (1 - e^(v - u)) its
logarithm is exact at any distance from the mean and at any scale, and so is its gradient.

Source: Salimans et al. 2017, arXiv:1701.05517 (Logistics); van den Oord et al. 2016, arXiv:1601.06759 (Categorical);
Rybkin et al. 2021, arXiv:2006.13202 (Gaussian).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from calotype.core.images import to_unit
from calotype.core.rng import Noise

LEVELS = 256
CHUNK = 256  # images that are compared at once, for memory
# Share of pixels of the colour of the one to their left, see `flat_share`, from which on colours count as flat. Between
# what was measured to do better without (photographs: CIFAR-10 0.025) and with it (smooth icons of 16x16: 0.12).
FLAT = 0.1
# Of a logistic distribution on [-1, 1]: at the smallest 97 % of its mass is in one bin; at the largest the bins between
# 0 and 255 are alike, and beyond it their mass would be lost in rounding.
LOG_SCALES = (-7.0, 7.0)


class Taste(NamedTuple):
    """Changes of the distribution for sampling: temperature, top_k and top_p."""

    temperature: float = 1.0  # below 1: more of what is likely; 0: the likeliest
    top_k: int = 0  # only the k likeliest values; 0: all
    top_p: float = 1.0  # only the likeliest values that together have this probability


AS_LEARNED = Taste()


class Distribution(ABC):
    """The distribution of a pixel's `channels` bytes, given `parameters` numbers."""

    proper: bool = True  # whether the probabilities of all images sum to 1; else what it gives is an estimate
    logits: bool = False  # whether its numbers are logits, so that sums of those of several are those of another
    channelwise: bool  # whether each channel has parameters of its own, and so can be drawn on its own
    draws: int  # uniform values that one pixel takes
    parameters: int

    def __init__(self, channels: int) -> None:
        self.channels = channels

    def prepared(self, images: Tensor, noise: Noise) -> Tensor:
        """Images of the values that it has, of uint8 (B, C, H, W). Default: the images themselves."""
        return images

    @abstractmethod
    def log_prob(self, parameters: Tensor, pixels: Tensor) -> Tensor:
        """Nats of uint8 pixels (..., channels), summed over channels: (...)."""

    @abstractmethod
    def sample(self, parameters: Tensor, uniforms: Tensor, taste: Taste = AS_LEARNED) -> Tensor:
        """Pixels, uint8 (..., channels), by inverse CDF of uniforms (..., draws) in [0, 1)."""

    @abstractmethod
    def mean(self, parameters: Tensor) -> Tensor:
        """The mean pixel, from 0 to 255: (..., channels)."""

    def channel(self, parameters: Tensor, c: int) -> Tensor:
        """The parameters (..., parameters / channels) of channel c, where channels have their own."""
        each = self.parameters // self.channels
        return parameters[..., c * each : (c + 1) * each]


class Categorical(Distribution):
    """256 logits for each channel."""

    logits = True
    channelwise = True

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.parameters, self.draws = LEVELS * channels, channels

    def log_prob(self, parameters: Tensor, pixels: Tensor) -> Tensor:
        """Nats of uint8 pixels (..., C), summed over channels: (...). Parameters are logits (..., 256 C)."""
        logits = parameters.reshape(-1, LEVELS)
        nats: Tensor = _LogSoftmaxAt.apply(logits, pixels.reshape(-1, 1).long())
        return nats.reshape(pixels.shape).sum(-1)

    def sample(self, parameters: Tensor, uniforms: Tensor, taste: Taste = AS_LEARNED) -> Tensor:
        """Draw each channel from its 256 logits by inverse CDF of uniforms (..., C) in [0, 1): uint8 (..., C)."""
        return _inverse(parameters.unflatten(-1, (self.channels, LEVELS)), uniforms, taste).to(torch.uint8)

    def mean(self, parameters: Tensor) -> Tensor:
        """The expected byte of each channel, 0 to 255: logits (..., 256 C) to float (..., C)."""
        levels = torch.arange(LEVELS, dtype=parameters.dtype, device=parameters.device)
        return parameters.unflatten(-1, (self.channels, LEVELS)).softmax(-1) @ levels


class _LogSoftmaxAt(torch.autograd.Function):
    """log_softmax(logits)[index] of each row: logits (N, n), indices (N, 1) -> (N, 1).

    For its gradient the softmax itself is kept, not its logarithm: half of the time of torch's cross entropy on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, index: Tensor) -> Tensor:
        p = torch.softmax(logits, -1)
        ctx.save_for_backward(p, index)
        largest = logits.amax(-1, keepdim=True)  # it has a probability of 1 / n at least, which does not underflow
        return logits.gather(-1, index) - largest + p.amax(-1, keepdim=True).log()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        p, index = ctx.saved_tensors
        return (p * -grad).scatter_add_(-1, index, grad), None


class Bernoulli(Distribution):
    """A logit for each channel, of the byte 255; the other is 0."""

    logits = True
    channelwise = True

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.parameters = self.draws = channels

    def prepared(self, images: Tensor, noise: Noise) -> Tensor:
        """Each value 255 with the probability of its brightness, else 0: those of 0 and 255 stay."""
        bright = noise.fork("binarise").uniform(*images.shape[1:]).to(images.device) * 255 < images
        return bright.to(torch.uint8) * 255

    def log_prob(self, parameters: Tensor, pixels: Tensor) -> Tensor:
        """Nats of uint8 pixels (..., C), 0 or not, summed over channels: (...). Parameters are logits (..., C)."""
        signs = 1 - 2 * (pixels > 0).to(parameters.dtype)
        return -F.softplus(signs * parameters).sum(-1)

    def sample(self, parameters: Tensor, uniforms: Tensor, taste: Taste = AS_LEARNED) -> Tensor:
        """Draw 0 or 255 for each channel by uniforms (..., C) in [0, 1): logits (..., C) to uint8 (..., C)."""
        if taste.temperature == 0:
            return (parameters > 0).to(torch.uint8) * 255
        dark = torch.sigmoid(-parameters / taste.temperature)
        return (uniforms >= dark).to(torch.uint8) * 255

    def mean(self, parameters: Tensor) -> Tensor:
        """255 sigmoid(logit), 0 to 255: logits (..., C) to float (..., C)."""
        return 255 * torch.sigmoid(parameters)


class Logistics(Distribution):
    """A mixture of discretised logistic distributions, whose means depend linearly on the channels before.

    Where all parameters are 0 the means lie evenly over the range, and bytes are about equally likely.
    """

    channelwise = False

    def __init__(self, channels: int, mixtures: int = 10) -> None:
        super().__init__(channels)
        self.mixtures = mixtures
        self.pairs = channels * (channels - 1) // 2
        self.parameters = mixtures * (1 + 2 * channels + self.pairs)
        self.draws = 1 + channels

    def log_prob(self, parameters: Tensor, pixels: Tensor) -> Tensor:
        """Nats of uint8 pixels (..., C) under the mixture, all channels together: (...)."""
        weights, means, log_scales, slopes = self._split(parameters)
        x = to_unit(pixels, parameters.dtype)[..., None]  # (..., C, 1)
        means = self._conditional(means, slopes, x)
        inverse = torch.exp(-log_scales)
        centred = (x - means) * inverse
        half = inverse / (LEVELS - 1)
        # With u = centred + half and v = centred - half; half is a bin's half width in scales.
        zero, last = (pixels == 0)[..., None], (pixels == LEVELS - 1)[..., None]
        below = torch.where(last, 0.0, F.logsigmoid(centred + half))
        above = torch.where(zero, 0.0, F.logsigmoid(half - centred))
        between = torch.where(zero | last, 0.0, torch.log(-torch.expm1(-2 * half)))
        each = (below + above + between).sum(-2)  # (..., K)
        return torch.logsumexp(each + F.log_softmax(weights, -1), -1)

    def sample(self, parameters: Tensor, uniforms: Tensor, taste: Taste = AS_LEARNED) -> Tensor:
        """Draw a component by uniforms[..., 0], then its channels in order by the others: uint8 (..., C)."""
        weights, means, log_scales, slopes = self._split(parameters)
        k = _inverse(weights, uniforms[..., 0], taste._replace(top_k=0, top_p=1.0))[..., None]
        picked = [t.gather(-1, k[..., None, :].expand(*t.shape[:-1], 1))[..., 0] for t in (means, log_scales, slopes)]
        mean, scale, slope = picked[0], torch.exp(picked[1]) * taste.temperature, picked[2]  # (..., C), (..., pairs)
        tiny = torch.finfo(uniforms.dtype).tiny
        standard = torch.log(uniforms.clamp(min=tiny)) - torch.log1p(-uniforms)
        values: list[Tensor] = []
        for c in range(self.channels):
            first = c * (c - 1) // 2
            centre = mean[..., c]
            for d, known in enumerate(values):
                centre = centre + slope[..., first + d] * known
            x = centre + scale[..., c] * standard[..., 1 + c]
            byte = ((x + 1) * 127.5).round().clamp(0, LEVELS - 1)
            values.append(byte / 127.5 - 1)
        return torch.stack([((x + 1) * 127.5).round() for x in values], -1).to(torch.uint8)

    def mean(self, parameters: Tensor) -> Tensor:
        """The mean of the mixture with previous channels at their means, clipped to 0..255: float (..., C)."""
        weights, means, _, slopes = self._split(parameters)
        each: list[Tensor] = []
        for c in range(self.channels):
            centre = means[..., c, :]
            for d, known in enumerate(each):
                centre = centre + slopes[..., c * (c - 1) // 2 + d, :] * known[..., None]
            each.append((weights.softmax(-1) * centre.clamp(-1, 1)).sum(-1))
        return (torch.stack(each, -1) + 1) * 127.5

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weights' logits (..., K), means and log scales (..., C, K), and slopes (..., pairs, K)."""
        k, c = self.mixtures, self.channels
        weights, means, log_scales, slopes = parameters.split([k, k * c, k * c, k * self.pairs], -1)
        centres = torch.linspace(-1, 1, k, dtype=parameters.dtype, device=parameters.device) if k > 1 else 0.0
        return (
            weights,
            means.unflatten(-1, (c, k)) + centres,
            (log_scales.unflatten(-1, (c, k)) - math.log(k)).clamp(*LOG_SCALES),
            torch.tanh(slopes).unflatten(-1, (self.pairs, k)),
        )

    def _conditional(self, means: Tensor, slopes: Tensor, x: Tensor) -> Tensor:
        """The means (..., C, K) given the channels before, x (..., C, 1)."""
        if self.channels == 1:
            return means
        each = []
        for c in range(self.channels):
            first, mean = c * (c - 1) // 2, means[..., c, :]
            for d in range(c):
                mean = mean + slopes[..., first + d, :] * x[..., d, :]
            each.append(mean)
        return torch.stack(each, -2)


class Gaussian(Distribution):
    """A mean for each byte, with the standard deviation that is the best for the image: the quick one.

    As that is not known before the image is, this is no probability but an estimate of one, from the density; and a
    standard deviation of an image drawn from it there is none, so that the mean is drawn.
    """

    proper = False
    channelwise = True
    SMALLEST = 1 / 12  # variance, that of rounding to bytes

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.parameters = self.draws = channels

    def log_prob(self, parameters: Tensor, pixels: Tensor) -> Tensor:
        """Nats of uint8 pixels (B, ..., channels) of B images, summed over channels: (B, ...)."""
        squares = (pixels - self.mean(parameters)).square()
        variance = squares.flatten(1).mean(1).clamp(min=self.SMALLEST).view(-1, *(1,) * (pixels.ndim - 1))
        return -0.5 * (squares / variance + (2 * math.pi * variance).log()).sum(-1)

    def sample(self, parameters: Tensor, uniforms: Tensor, taste: Taste = AS_LEARNED) -> Tensor:
        """The mean, rounded to bytes: parameters (..., C) to uint8 (..., C). Uniforms are not used."""
        return self.mean(parameters).round().clamp(0, LEVELS - 1).to(torch.uint8)

    def mean(self, parameters: Tensor) -> Tensor:
        """Parameters (..., C) in [-1, 1] scaled to 0 to 255, without clipping: float (..., C)."""
        return (parameters + 1) * 127.5


def _inverse(logits: Tensor, uniforms: Tensor, taste: Taste) -> Tensor:
    """The indices whose cumulative probability first exceeds the uniforms, int64: logits (..., n), uniforms (...)."""
    if taste.temperature == 0:
        return logits.argmax(-1)
    logits = logits / taste.temperature
    if 0 < taste.top_k < logits.shape[-1]:
        smallest = logits.topk(taste.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < smallest, -math.inf)
    if taste.top_p < 1:
        ordered, order = logits.softmax(-1).sort(-1, descending=True)
        left_out = ordered.cumsum(-1) - ordered >= taste.top_p  # those before have enough already
        logits = logits.masked_fill(torch.zeros_like(left_out).scatter(-1, order, left_out), -math.inf)
    cumulative = logits.softmax(-1).cumsum(-1)
    total = cumulative[..., -1:]
    index = (cumulative <= uniforms[..., None] * total).sum(-1)
    return torch.minimum(index, (cumulative < total).sum(-1))  # rounding does not lead beyond what has mass


def is_binary(images: Tensor) -> bool:
    """Whether all values are 0 or 255."""
    return bool(((images == 0) | (images == 255)).all())


def flat_share(images: Tensor) -> float:
    """The share of pixels of exactly the colour of the one to their left, of uint8 (N, C, H, W): 0 where there is none.

    Nearly all in drawings and sprites, few in photographs. Pixels like the one to their left whose values are all 0 or
    255 do not count: white and black grounds are in bins that Logistics gives all beyond, and say nothing of what is
    before them. Of the same images in any order it is the same number.
    """
    same = counted = 0
    for some in images.split(CHUNK):
        alike = (some[..., 1:] == some[..., :-1]).all(1)
        plain = alike & ((some == 0) | (some == LEVELS - 1)).all(1)[..., 1:]
        same += int((alike & ~plain).sum())
        counted += int((~plain).sum())
    return same / counted if counted else 0.0


def colours(images: Tensor, most: int) -> int:
    """The number of different colours of pixels, or some number above `most`: uint8 (N, C, H, W), C at most 7.

    Which of the two it is does not depend on the order of images.
    """
    known = torch.zeros(0, dtype=torch.int64)
    place = 256 ** torch.arange(images.shape[1])
    for some in images.split(CHUNK):
        known = torch.cat([known, (some.permute(0, 2, 3, 1).long() * place).sum(-1).flatten()]).unique()
        if len(known) > most:
            break
    return len(known)


def likelihood_for(images: Tensor, otherwise: str, palette: int = 0) -> str:
    """The name of the distribution that suits training images, uint8 (N, C, H, W).

    Args:
        otherwise: of images that are neither binary nor of flat colours, such as photographs.
        palette: colours that those of flat ones may have in all; 0: any number.
    """
    if is_binary(images):
        return "bernoulli"
    flat = flat_share(images) >= FLAT and (not palette or colours(images, palette) <= palette)
    return "categorical" if flat else otherwise


DISTRIBUTIONS: Mapping[str, type[Categorical | Logistics | Bernoulli | Gaussian]] = {
    "categorical": Categorical,
    "logistics": Logistics,
    "bernoulli": Bernoulli,
    "gaussian": Gaussian,
}


def distribution(name: str, channels: int, mixtures: int) -> Distribution:
    """The distribution of a name; `mixtures` is the number of components of those that have some."""
    return Logistics(channels, mixtures) if name == "logistics" else DISTRIBUTIONS[name](channels)
