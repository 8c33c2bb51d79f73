"""Generative adversarial networks: a generator that draws images of latents in one pass, and a discriminator.

Each is trained by its own loss of `losses`, in turn; the penalties are on the gradient of the discriminator in the
images as they are, before they are changed at random.

Source: Goodfellow et al. 2014, arXiv:1406.2661; Huang et al. 2024, arXiv:2501.05441.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calotype.core.images import to_unit
from calotype.core.model import Batch, Encodable, GenerativeModel, ImageSpec, Loss, Preset, Remark, Turn
from calotype.core.rng import Noise
from calotype.distributed import processes
from calotype.errors import ConfigError
from calotype.families.gan.config import GANConfig, GANOptions, players
from calotype.families.gan.losses import LOSSES, gradient_penalty, squared_gradient
from calotype.families.gan.presets import presets
from calotype.nn.augment import augmented

COLLAPSED = 0.3  # diversity of samples, as a share of that of pictures
SURE = 0.98  # accuracy of the discriminator
# By so much more often right about training pictures than about held-out ones. With few pictures few are held out: of
# 100 healthy runs of 60 to 2,000 pictures two were at 0.17 and 0.18 by chance; of 200 memorised pictures it was 0.27.
SURER = 0.25
UNSURE, FAINT = 0.65, 0.1  # its accuracy, and the difference of its logits, where it sees next to no difference
# Images seen before which that says nothing: 12 % of healthy runs of 10,000 to 11,000 images are there, and smaller
# penalties do not make their samples better (benchmarks/remarks.py). On CIFAR-10 it was there from 340,000 on.
FADES = 100_000
NOTHING = 0.005  # difference of logits, of seen and of held-out pictures, where penalties leave none from the start
FAR = 0.1  # kernel distance of samples from pictures, at which there still is one
OVERFIT = 0.6  # of the way from training pictures to generated ones, that held-out pictures are for it
FEW, SUITS_FEW = 2_000, 0.6  # images to learn from, and `overfit` with fewer: of 600 it reduced FD by a third
FALL, FALL_OF_FEW = (0.05, 0.4), (0.1, 1.0)  # penalty_end and penalty_time: of 600 images the slow one was the better
ADAPTED = 100_000  # images over which an adaptive probability can rise from 0 to 1
SEED, STARTS = 0, 16  # of the latents at which the search for those of an image begins
SEARCH, SEARCH_RATE = 200, 0.1  # steps of it, and their rate at first
SCALES = 3  # at which images are compared in it
UNLIKELY = 1e-4  # weight of the squared latents, against such as no image is drawn of
MOST_LIKELY = 0.8  # that it becomes; beyond, generated images may be changed as well


class GAN(GenerativeModel, Encodable):
    """Two players: a generator, and a discriminator that tells its images from real ones."""

    Config = GANConfig
    Options = GANOptions
    loss_ranks = False  # it is that of a game
    probability: Tensor

    def __init__(self, spec: ImageSpec, config: GANConfig) -> None:
        super().__init__(spec, config)
        self.generator, self.discriminator = players(spec, config)
        self.register_buffer("probability", torch.zeros(()))  # of a change, where it is adaptive

    @classmethod
    def presets(cls, spec: ImageSpec) -> Mapping[str, Preset]:
        """The presets for such images, by name, from the smallest to the largest."""
        return presets(spec)

    @classmethod
    def measured(cls, config: GANConfig, images: Tensor) -> GANConfig:
        """Choose by how many images there are: whether those that are judged are changed, and how penalties fall."""
        few = len(images) < FEW
        end, time = FALL_OF_FEW if few else FALL
        return replace(
            config,
            penalty_end=end if config.penalty_end == -1 else config.penalty_end,
            penalty_time=time if config.penalty_time == -1 else config.penalty_time,
            overfit=(SUITS_FEW if few and config.augment == 0 else 0.0) if config.overfit == -1 else config.overfit,
        )

    def players(self) -> Mapping[str, nn.Module]:
        """The discriminator and the generator."""
        return {"discriminator": self.discriminator, "generator": self.generator}

    def turns(self) -> Sequence[Turn]:
        """`critic_steps` turns of the discriminator, then one of the generator."""
        return (
            Turn("discriminator", self.discriminator_loss, self.config.critic_steps),
            Turn("generator", self.generator_loss),
        )

    def remark(self, parts: Mapping[str, float]) -> Remark | None:
        """A warning about mode collapse, a weak or an overfitted discriminator, with the settings to change."""
        diversity = parts.get("samples/diversity", 1.0)
        if diversity < COLLAPSED:
            if parts.get("seen/discriminator/accuracy", 0.0) > SURE:
                cause = "the discriminator tells all images apart, and no longer says how they could be better"
                r1, r2 = (3 * max(weight, 0.3) for weight in (self.config.r1, self.config.r2))
                remedy = f"--set model.r1={r1:.2g} --set model.r2={r2:.2g}"
            else:
                cause = "the generator goes after what the discriminator holds for real at the moment"
                remedy = "--set model.loss=relativistic --set model.r1=1 --set model.r2=1, or a lower rate"
            return Remark(
                f"samples have become alike ({diversity:.0%} as diverse as pictures): the generator has collapsed; "
                f"{cause}. Start again with {remedy}",
                collapsed=True,
            )
        accuracy, distance = parts.get("seen/discriminator/accuracy", 1.0), parts.get("samples/distance", 0.0)
        gaps = [_gap(parts, name) for name in ("seen", "held_out")]
        faded = self.images_seen >= FADES and accuracy < UNSURE and gaps[0] < FAINT
        starved = "seen/discriminator/real" in parts and max(map(abs, gaps)) < NOTHING
        if (faded or starved) and distance > FAR:
            config = self.config
            remedy = f"--set model.r1={config.r1 / 3:.2g} --set model.r2={config.r2 / 3:.2g}, or a smaller penalty_end"
            if not config.r1 and not config.r2:
                remedy = "a larger --preset"
            return Remark(
                "the discriminator no longer sees how samples differ from pictures, though they do: the generator has "
                f"nothing left to learn from. Start again with {remedy}"
            )
        # Beside generated ones of the same batch, since all logits of some classes may be higher than those of others.
        seen, held_out = gaps
        sure = parts.get("seen/discriminator/accuracy", 0.0) - parts.get("held_out/discriminator/accuracy", 0.0)
        if seen > FAINT and accuracy > UNSURE and seen - held_out > OVERFIT * seen and sure > SURER:
            return Remark(
                f"the discriminator has memorised the training pictures: held-out ones are {1 - held_out / seen:.0%} "
                "of the way to generated ones for it. Show it more pictures, or changed ones, by --set "
                "model.augment=0.4"
            )
        return None

    # -- the two losses

    def discriminator_loss(self, batch: Batch, noise: Noise) -> Loss:
        """The loss of the discriminator on real and generated images, with the penalties on its gradient."""
        config, training = self.config, self.training
        real = to_unit(batch.images, self.dtype)
        with torch.no_grad():
            fake = self._generated(noise.fork("latents"), batch.labels).to(real.dtype)
        if training and (config.r1 or config.r2):
            real, fake = real.requires_grad_(), fake.requires_grad_()
        of_real = self._judged(real, batch.labels, noise.fork("real"))
        of_fake = self._judged(fake, batch.labels, noise.fork("fake"))
        value = LOSSES[config.loss].discriminator(of_real, of_fake)
        # Of pairs alone the difference means anything: 0 is no more than any other logit.
        taken = of_real - of_fake if LOSSES[config.loss].paired else torch.cat([of_real, -of_fake])
        parts = {
            "real": of_real.detach().mean(),
            "fake": of_fake.detach().mean(),
            "accuracy": (taken > 0).float().mean().detach(),
        }
        if not training:
            return Loss(value, parts)
        weight = self._penalty_weight()
        for name, gamma, logits, images in (("r1", config.r1, of_real, real), ("r2", config.r2, of_fake, fake)):
            if gamma:
                penalty = squared_gradient(logits, images)
                value = value + weight * gamma * penalty
                parts[name] = penalty.detach()
        if config.gradient_penalty:
            shares = noise.fork("between").uniform()
            penalty = gradient_penalty(
                lambda x: self.discriminator(x, batch.labels).float(), real.detach(), fake.detach(), shares
            )
            value = value + config.gradient_penalty * penalty
            parts["gradient_penalty"] = penalty.detach()
        if config.overfit > 0:
            self._adapt(taken.detach()[: len(of_real)])
            parts["augment"] = self.probability.clone()
        return Loss(value, parts)

    def generator_loss(self, batch: Batch, noise: Noise) -> Loss:
        """The loss of the generator."""
        loss = LOSSES[self.config.loss]
        fake = self._generated(noise.fork("latents"), batch.labels)
        of_fake = self._judged(fake, batch.labels, noise.fork("fake"))
        of_real = of_fake
        if loss.paired:
            with torch.no_grad():
                real = to_unit(batch.images, self.dtype)
                of_real = self._judged(real, batch.labels, noise.fork("real"))
        return Loss(loss.generator(of_real, of_fake), {})

    def _generated(self, noise: Noise, labels: Tensor | None) -> Tensor:
        z = noise.normal(self.config.latents).to(self.dtype)
        images: Tensor = self.generator(z, labels)
        return images

    def _judged(self, images: Tensor, labels: Tensor | None, noise: Noise) -> Tensor:
        """Logits of images, (B,), in training changed at random."""
        if self.training and (self.config.augment > 0 or self.config.overfit > 0):
            images = augmented(images, self._augment(), noise, self.config.changes)
        logits: Tensor = self.discriminator(images, labels).float()
        return logits

    def _penalty_weight(self) -> float:
        """From 1 to penalty_end, by a cosine over the first part of training."""
        end = FALL[0] if self.config.penalty_end == -1 else self.config.penalty_end
        time = FALL[1] if self.config.penalty_time == -1 else self.config.penalty_time
        done = min(1.0, self.progress / time)
        return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * done))

    def _augment(self) -> Tensor | float:
        if self.config.overfit > 0:
            return self.probability
        return self.config.augment * 0.5 * (1 - math.cos(math.pi * min(1.0, self.progress)))

    def _adapt(self, taken: Tensor) -> None:
        """Move the probability of changes towards where as many real images are taken for real as is wanted.

        Args:
            taken: logits of real images, or of pairs the differences: (B,), whose mean sign is to be `overfit`.
        """
        signs, count = processes.summed(torch.stack([taken.sign().sum(), taken.new_tensor(len(taken))]))
        step = torch.sign(signs / count - self.config.overfit) * count / ADAPTED
        self.probability.add_(step).clamp_(0, MOST_LIKELY)

    # -- images

    def network_calls(self, options: GANOptions | None) -> int:
        """One of the generator."""
        return 1

    @torch.no_grad()
    def sample(self, noise: Noise, labels: Tensor | None = None, options: GANOptions | None = None) -> Tensor:
        """Draw noise.n images, uint8 (n, C, H, W), from normal or truncated normal latents."""
        z = noise.fork("latents").normal(self.config.latents)
        bound = (options or GANOptions()).truncation
        return self.decode(_truncated(z, bound) if bound else z, labels)

    @torch.no_grad()
    def decode(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """The images, uint8 (B, C, H, W), that the generator makes from latents, float (B, latents)."""
        if latents.shape[1] != self.config.latents:
            raise ConfigError(
                f"latents are {latents.shape[1]} for each picture, but the model has {self.config.latents}: give those "
                "that it encoded"
            )
        images: Tensor = self.generator(latents.to(self.dtype), labels)
        return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).contiguous()

    def encode(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Latents whose images are the nearest that descent finds to these: inversion, each image by itself.

        It begins at the best of some latents drawn at random, always the same.
        """
        target, generator = to_unit(images, self.dtype), self.generator
        n, tried = len(images), Noise.per_image(SEED, range(STARTS), images.device).normal(self.config.latents)
        with torch.no_grad():
            again = None if labels is None else labels.repeat_interleave(STARTS)
            drawn = generator(tried.repeat(n, 1).to(self.dtype), again)
            apart = _apart(drawn, target.repeat_interleave(STARTS, 0)).view(n, STARTS)
        z = tried[apart.argmin(1)].to(self.dtype).requires_grad_()
        best, nearest = z.detach().clone(), torch.full((n,), math.inf, device=images.device)
        optimizer = torch.optim.Adam([z], lr=SEARCH_RATE)
        for step in range(SEARCH + 1):
            with torch.enable_grad():
                apart = _apart(generator(z, labels), target)
                value = apart.sum() + UNLIKELY * z.square().sum()
            better = apart.detach() < nearest
            best[better], nearest = z.detach()[better], torch.where(better, apart.detach(), nearest)
            (z.grad,) = torch.autograd.grad(value, z)
            optimizer.param_groups[0]["lr"] = SEARCH_RATE * 0.5 * (1 + math.cos(math.pi * step / SEARCH))
            optimizer.step()
        return best


def _gap(parts: Mapping[str, float], which: str) -> float:
    """The difference between the mean logits of real and generated images; 0 if unknown."""
    real, fake = (parts.get(f"{which}/discriminator/{name}", 0.0) for name in ("real", "fake"))
    return real - fake


def _apart(x: Tensor, target: Tensor) -> Tensor:
    """Mean squared differences of images (B, C, H, W), of means of 2 x 2 and of 4 x 4 as well: (B,).

    What is brighter than white where white is wanted, or darker than black, is right: it is written so.
    """
    x = torch.where(target >= 1, x.clamp(max=1), torch.where(target <= -1, x.clamp(min=-1), x))
    found = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for k in range(SCALES):
        found = found + (x - target).square().flatten(1).mean(1)
        if k + 1 < SCALES:
            x, target = (F.avg_pool2d(t, 2, ceil_mode=True) for t in (x, target))
    return found


def _truncated(z: Tensor, bound: float) -> Tensor:
    """Values of the normal distribution as values of it between -bound and bound, in the same order."""
    edge = 0.5 * (1 + math.erf(bound / 2**0.5))
    inside = torch.special.ndtr(z.double()) * (2 * edge - 1) + (1 - edge)
    return torch.special.ndtri(inside).to(z.dtype)
