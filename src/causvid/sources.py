"""Pictures that come from outside: an image to animate, a video to extend, frames to restyle while they arrive."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from causvid import media
from causvid.codecs import Codec
from causvid.errors import UserError
from causvid.pixels import video_from_frames
from causvid.shapes import Latents, Video

IMAGE_WAYS = ("first", "fill")


def check_frames(frames: np.ndarray) -> np.ndarray:
    """A picture or several as uint8 [F, H, W, 3]."""
    frames = np.asarray(frames)
    if frames.ndim == 3:
        frames = frames[None]
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or frames.size == 0:
        raise UserError(f"frames are uint8 [F, H, W, 3], got {frames.dtype} {list(frames.shape)}; convert them first")
    return frames


@torch.no_grad()
def encode_image(codec: Codec, image: np.ndarray, size: tuple[int, int], chunk: int, how: str) -> Latents:
    """An image as the first chunk of a clip.

    first: one latent frame, which is the image and nothing else. fill: the image stands still for a whole chunk, so
    that what follows sees the chunks it was trained on (the paper's zero-shot way).
    """
    if how not in IMAGE_WAYS:
        raise UserError(f"there is no way '{how}' to begin with an image; use {' or '.join(IMAGE_WAYS)}")
    count = 1 if how == "first" else 1 + (chunk - 1) * codec.time_factor
    frames = media.fit(check_frames(image)[:1], *size).repeat(count, axis=0)
    return codec.encode(video_from_frames(frames).to(codec.dtype))


@torch.no_grad()
def encode_clip(codec: Codec, frames: np.ndarray, size: tuple[int, int], chunk: int) -> list[Tensor]:
    """A clip as chunks. Its end is exact: frames that fill no whole latent are left out at its beginning, and the odd
    chunk, if there is one, comes first."""
    frames = check_frames(frames)
    frames = frames[(len(frames) - 1) % codec.time_factor :]
    latents = codec.encode(video_from_frames(media.fit(frames, *size)).to(codec.dtype))
    odd = latents.shape[1] % chunk
    sizes = [odd] * bool(odd) + [chunk] * (latents.shape[1] // chunk)
    return list(latents.split(sizes, dim=1))


@dataclass(frozen=True)
class MotionStrength:
    """Noise for restyling from how much the source moves: still pictures can take much and change their look, moving
    ones keep more of themselves so that the movement is followed."""

    still: float = 0.9
    moving: float = 0.6
    full_motion: float = 0.06  # mean change of a pixel from frame to frame, in [0, 1], that counts as moving
    memory: float = 0.5  # share of the chunk before in the smoothed motion

    def next(self, motion: float, before: float | None) -> tuple[float, float]:
        """(noise level, smoothed motion)"""
        smooth = motion if before is None else self.memory * before + (1 - self.memory) * motion
        share = min(1.0, smooth / self.full_motion)
        return self.still + (self.moving - self.still) * share, smooth


def measure_motion(frames: np.ndarray) -> float:
    """Mean change of a pixel from one frame to the next, 0 to 1."""
    if len(frames) < 2:
        return 0.0
    return float(np.abs(np.diff(frames.astype(np.int16), axis=0)).mean() / 255)


def levels_from(strength: float, sigmas: Sequence[float]) -> tuple[float, ...]:
    """A student's steps from `strength` down: as many of its own levels as lie below."""
    return (strength, *(sigma for sigma in sigmas if sigma < strength - 1e-6))


@dataclass
class Source:
    """Frames in, chunks of latents out, in step with the stream: what goes in at a time comes out restyled then.

    A stream that runs already asks for whole groups of frames, but an encoder begins with a single one; so the first
    frame is shown to it twice, and its latent dropped.
    """

    codec: Codec
    size: tuple[int, int]
    limit: int | None = None  # frames kept waiting; older ones are dropped, as live pictures must not lag

    def __post_init__(self) -> None:
        self._encode = self.codec.encode_stream()
        self._begun = False
        self._waiting: deque[np.ndarray] = deque(maxlen=self.limit)
        self._last: np.ndarray | None = None
        self.num_dropped = 0

    def push(self, frames: np.ndarray) -> None:
        for frame in media.fit(check_frames(frames), *self.size):
            if self.limit is not None and len(self._waiting) == self.limit:
                self.num_dropped += 1
            self._waiting.append(frame)

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def nbytes(self) -> int:
        return len(self._waiting) * 3 * self.size[0] * self.size[1]

    def needed(self, num_latents: int, clip_starts: bool) -> int:
        factor = self.codec.time_factor
        return 1 + (num_latents - 1) * factor if clip_starts and not self._begun else num_latents * factor

    @torch.no_grad()
    def take(self, num_latents: int, clip_starts: bool) -> tuple[Latents, float]:
        """The next chunk, and how much moves in it."""
        count = self.needed(num_latents, clip_starts)
        if len(self._waiting) < count:
            raise UserError(
                f"the next chunk restyles {count} frames and {len(self._waiting)} have come; push more, "
                "or end the source"
            )
        frames = np.stack([self._waiting.popleft() for _ in range(count)])
        if not self._begun and not clip_starts:
            self._encode(self._video(frames[:1]))
        self._begun = True
        seen = frames if self._last is None else np.concatenate([self._last[None], frames])
        self._last = frames[-1]
        return self._encode(self._video(frames)), measure_motion(seen)

    def _video(self, frames: np.ndarray) -> Video:
        return video_from_frames(frames).to(self.codec.dtype)
