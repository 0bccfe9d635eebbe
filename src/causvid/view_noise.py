"""Noise that moves with the view, so that what it becomes does too.

A network that makes every frame from noise of its own has to learn that scenery of which nothing is to be seen yet
scrolls. Where the camera's way is known, a share of the noise is taken from one endless canvas that passes by as the
scenery will: frames are then alike where they show the same place, before anything is denoised (as in Go-with-the-Flow,
Burgert et al. 2025, and EquiVDM, Liu et al. 2025). Every single frame is white noise all the same: a latent is the mean
of the canvas over its pixels (the integrals of Chang et al. 2024), and a canvas has one value a pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from causvid.errors import UserError
from causvid.noise import seeded

CANVAS = 0xCA4A5  # keeps a canvas's numbers apart from all others of its seed


@dataclass(frozen=True)
class ViewNoise:
    """How noise follows the view. Comes with the weights that learnt from it."""

    share: float  # of its variance: the rest is drawn anew for every frame
    parallax: tuple[float, ...] = (1.0,)  # of equal bands from the top of the picture down: far scenery passes slowly
    pixels: int = 8  # of the canvas to the side of a latent

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or not self.parallax or self.pixels < 1:
            raise UserError(f"noise moves with the view by a share of 0 to 1, in one band or more; got {self}")

    def carry(self, own: Tensor, travel: Tensor, *words: int) -> Tensor:
        """Noise [T, C, h, w] of every frame's own, with its share of the canvas `words` where the view has come
        `travel` [T] latents to the right."""
        height, width = own.shape[-2:]
        rows = [self.parallax[row * len(self.parallax) // height] for row in range(height)]
        bands, top = [], 0
        for parallax, group in groupby(rows):
            count = len(list(group))
            bands.append(
                self._band((own.shape[1], count, width), travel.double() * parallax * self.pixels, *words, top)
            )
            top += count
        return (1 - self.share) ** 0.5 * own + self.share**0.5 * torch.cat(bands, dim=2).to(own)

    def _band(self, shape: tuple[int, int, int], travel: Tensor, *words: int) -> Tensor:
        """[T, C, rows, w] of the canvas. It is made in blocks as wide as the picture, wherever they are looked at."""
        channels, rows, width = shape
        wide = width * self.pixels
        left = travel.round().long()
        first, last = int(left.min()) // wide, (int(left.max()) + wide - 1) // wide
        blocks = [
            torch.randn((channels, rows, wide), generator=seeded(CANVAS, *words, n)) for n in range(first, last + 1)
        ]
        seen = torch.cat(blocks, -1)[:, :, (left - first * wide)[:, None] + torch.arange(wide)]  # [C, rows, T, wide]
        return seen.unflatten(-1, (width, self.pixels)).sum(-1).permute(2, 0, 1, 3) / self.pixels**0.5


def carry_rows(how: ViewNoise | None, own: Tensor, travel: Tensor | None, words: Sequence[Sequence[int]]) -> Tensor:
    """The same for a batch [B, T, C, h, w] and its ways [B, T], each with its words. A way that is no number is that of
    a view of which nothing is known: such noise stays as it is."""
    if how is None or travel is None:
        return own
    moved = [
        noise if way.isnan().any() else how.carry(noise, way, *name)
        for noise, way, name in zip(own.cpu(), travel.cpu(), words, strict=True)
    ]
    return torch.stack(moved).to(own.device)


def unknown_ways(batch: int, num_frames: int) -> Tensor:
    return torch.full((batch, num_frames), float("nan"))


def set_free(travel: Tensor, share: float, rng: torch.Generator) -> Tensor:
    """Ways [B, T], this share of them unknown: for networks that shall know both kinds of noise."""
    free = torch.rand(len(travel), 1, generator=rng) < share
    return travel.masked_fill(free, float("nan"))


@runtime_checkable
class Course(Protocol):
    """How the view of a stream moves, as a value: what is asked for decides, and time."""

    def after(self, prompt: str) -> Course:
        """The course once this prompt is in force."""
        ...

    def unknown(self) -> Course:
        """The course where pictures come from elsewhere."""
        ...

    @property
    def is_known(self) -> bool:
        """Whether noise can go along."""
        ...

    def advance(self, num_frames: int) -> tuple[Tensor, Course]:
        """How far the view has come at each of the next latent frames [T], in latents to the right, and the course
        after them. One of which nothing is known rests."""
        ...
