"""Video codecs: pixels [B, F, 3, H, W] in [-1, 1] <-> latents [B, T, C, h, w], normalised to about unit variance.

Every codec offers the same computation through two doors: whole clips, and streams that receive a clip piece by piece.
A stream is a value (it holds its own history), so any number of them can run on one codec at the same time, and the
pieces put together equal the whole exactly.
"""

from typing import Any, Protocol, runtime_checkable

import torch

from causvid.shapes import Latents, Video


@runtime_checkable
class CodecStream(Protocol):
    """One direction of one clip. Feed it in order; it starts at the first frame of a clip."""

    def __call__(self, piece: Any) -> Any: ...

    def save(self) -> list[Any]:
        """A snapshot of the history, to go back to with `load`. The tensors are never written in place."""
        ...

    def load(self, state: list[Any]) -> None: ...


@runtime_checkable
class Codec(Protocol):
    """What the rest of the package asks of a codec."""

    latent_channels: int
    space_factor: int  # pixels per latent in height and width
    time_factor: int  # pixel frames per latent frame, after the first
    dtype: torch.dtype

    def encode(self, video: Video) -> Latents: ...

    def decode(self, latents: Latents) -> Video: ...

    def encode_stream(self) -> CodecStream:
        """Takes video pieces: 1 + k*time_factor frames first, then multiples of time_factor."""
        ...

    def decode_stream(self) -> CodecStream:
        """Takes latent pieces of any length."""
        ...


def num_latent_frames(num_frames: int, time_factor: int = 4) -> int:
    """Latent frames of a clip: the first pixel frame alone, then groups of `time_factor`."""
    if num_frames < 1 or (num_frames - 1) % time_factor:
        lower = max(1, num_frames - (num_frames - 1) % time_factor)
        raise ValueError(
            f"{num_frames} frames do not fill whole latent frames (1 + {time_factor}k); "
            f"use {lower} or {lower + time_factor}"
        )
    return 1 + (num_frames - 1) // time_factor


def num_pixel_frames(num_latents: int, time_factor: int = 4) -> int:
    """Pixel frames that `num_latents` latent frames decode to, counted from the start of a clip."""
    return 0 if num_latents == 0 else 1 + (num_latents - 1) * time_factor
