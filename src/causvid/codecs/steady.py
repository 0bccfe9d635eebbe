"""Pictures that go on between latent frames.

A codec makes several pixel frames of one latent frame, and how things move within them is told by that latent alone.
Networks are unsure of it: what they make stands still for four frames and jumps. How far it jumped can be seen: what
moved from one group of frames to the next is carried as far within them. Nothing of it is learnt, so it fits any codec;
it looks at decoded pictures, one group back and never ahead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from causvid.codecs import CodecStream
from causvid.errors import UserError
from causvid.shapes import Video

# (ours) at half the resolution of the picture
REACH = 5, 2  # how far is looked, to either side and up and down
WINDOW = 5  # what is compared around a place
SMOOTH = 5  # over how many places a movement is averaged
SHARPNESS = 4.0  # how much more the likest place counts than others
REST = 2.0  # by how much standing still is preferred, in the same measure
FAINT = 1e-3  # mean squares of differences below this are not told from none


class SteadyStream:
    """Frames of another stream, carried along by `share` of what has moved since the group before."""

    def __init__(self, frames: CodecStream, time_factor: int, share: float) -> None:
        if not 0 <= share <= 1:
            raise UserError(f"steady is the share of a movement that is carried on, 0 to 1; got {share}")
        self.frames, self.time_factor, self.share = frames, time_factor, share
        self.before: Tensor | None = None  # the mean picture of the group before, halved
        self.since = 0.0  # frames from the middle of that group to its end

    def __call__(self, piece: Any) -> Video:
        video, steadied = self.frames(piece), []
        if self.before is None:
            first, video = video[:, :1], video[:, 1:]
            self.before, self.since = halved(first), 0.0
            steadied.append(first)
        groups = video.split(self.time_factor, dim=1) if video.shape[1] else ()
        return torch.cat([*steadied, *map(self._steady, groups)], dim=1)

    def _steady(self, group: Video) -> Video:
        assert self.before is not None
        now, middle = halved(group), (self.time_factor - 1) / 2
        back = self.share * movement(now, self.before)
        interval = self.since + (self.time_factor + 1) / 2  # from the middle of one group to that of the next
        self.before, self.since = now, middle
        return carried(group, back, [(frame - middle) / interval for frame in range(self.time_factor)])

    def save(self) -> list[Any]:
        return [self.before, self.since, *self.frames.save()]

    def load(self, state: list[Any]) -> None:
        self.before, self.since, *frames = state
        self.frames.load(frames)


def halved(group: Video) -> Tensor:
    """The mean of frames [B, F, 3, H, W] at half the resolution [B, 3, h, w]."""
    return F.avg_pool2d(group.float().mean(1), 2)


def movement(now: Tensor, before: Tensor) -> Tensor:
    """Where what is seen in pictures [B, 3, h, w] was before: [B, 2, h, w], to the right and down, in pixels of what is
    shown."""
    (across, down), (height, width) = REACH, now.shape[2:]
    wide = F.pad(before, (across, across, down, down), mode="replicate")
    shifted = wide.unfold(2, height, 1).unfold(3, width, 1)  # [B, 3, steps down, steps across, h, w]
    red, green, blue = (there - here for there, here in zip(shifted.unbind(1), now[:, :, None, None].unbind(1)))
    unlike, brighter = (red.square() + green.square() + blue.square()) / 3, (red + green + blue) / 3
    off = around(unlike) - around(brighter).square()  # light that changes is no movement
    off = off.clamp(min=0) + FAINT
    least, rest = off.amin(1, keepdim=True), off.shape[1] // 2
    likeness = SHARPNESS * (1 - off / least).clamp(min=-8)
    likeness[:, rest] += REST
    ways = [torch.arange(-reach, reach + 1.0, device=now.device) for reach in (down, across)]
    steps = torch.stack(torch.meshgrid(*ways, indexing="ij"), dim=-1).flatten(0, 1).flip(-1)
    back = torch.einsum("bshw,sd->bdhw", likeness.softmax(1), 2 * steps)
    trusted = back * (1 - least / off[:, rest : rest + 1])  # where moving explains nothing, nothing moves
    return F.avg_pool2d(trusted, SMOOTH, 1, SMOOTH // 2, count_include_pad=False)


def around(values: Tensor) -> Tensor:
    """Means over a window, of [B, steps down, steps across, h, w]; all steps in one [B, steps, h, w]."""
    values = values.permute(0, 3, 4, 1, 2).flatten(3).movedim(3, 1)  # in memory as pooling is fastest
    for window, edge in (((WINDOW, 1), (WINDOW // 2, 0)), ((1, WINDOW), (0, WINDOW // 2))):
        values = F.avg_pool2d(values, window, 1, edge, count_include_pad=False)
    return values


def carried(group: Video, back: Tensor, parts: Sequence[float]) -> Video:
    """Every frame of [B, F, 3, H, W] with its pixels taken from where a part of `back` [B, 2, h, w] leads."""
    height, width = group.shape[3:]
    away = F.interpolate(back, (height, width), mode="bilinear", align_corners=False).movedim(1, -1)  # [B, H, W, 2]
    columns, rows = (torch.arange(size, device=group.device, dtype=torch.float32) for size in (width, height))
    places = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
    moves = torch.tensor(parts, device=group.device)[:, None, None, None]
    # grid_sample counts from -1, the outer edge of the first pixel, to 1
    grid = (2 * (places + moves * away[:, None]) + 1) / places.new_tensor([width, height]) - 1
    taken = F.grid_sample(
        group.float().flatten(0, 1), grid.flatten(0, 1), mode="bicubic", padding_mode="border", align_corners=False
    )
    return taken.unflatten(0, group.shape[:2]).clamp(-1, 1).to(group.dtype)
