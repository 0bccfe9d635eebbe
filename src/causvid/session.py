"""A stream as a value: prompts in, chunks of frames out, for as long as somebody asks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from causvid.cache import CachePolicy
from causvid.codecs import CodecStream
from causvid.errors import UserError
from causvid.rollout import PromptMode, Rollout, RolloutConfig
from causvid.shapes import Latents, Video

if TYPE_CHECKING:
    from causvid.bundle import Model

PROMPT_MODES = ("keep", "recache", "flush")


@dataclass(frozen=True)
class Chunk:
    """What one call of `next_chunk` makes."""

    frames: np.ndarray  # uint8 [F, H, W, 3]
    latents: Latents  # [1, K, C, h, w]
    index: int
    prompt: str
    timings: dict[str, float]  # seconds: commit (of the chunk before), denoise, decode


@dataclass(frozen=True)
class StreamOptions:
    """How to run a stream; what is None comes with the model."""

    steps: int | None = None
    window: int | None = None  # latent frames a chunk sees
    sink: int | None = None
    relative: bool | None = None

    def apply(self, cfg: RolloutConfig) -> RolloutConfig:
        if self.steps is not None:
            cfg = cfg.with_steps(self.steps)
        policy = CachePolicy(
            window=cfg.policy.window if self.window is None else self.window,
            sink=cfg.policy.sink if self.sink is None else self.sink,
            relative=cfg.policy.relative if self.relative is None else self.relative,
        )
        try:
            policy.check(max(cfg.chunk, cfg.first_chunk or 0))
        except ValueError as error:
            raise UserError(str(error)) from None
        return replace(cfg, policy=policy)


class Session:
    """One stream. Hold it, ask it for chunks, change its prompt between them."""

    def __init__(self, model: Model, prompt: str, *, seed: int = 0, options: StreamOptions | None = None) -> None:
        self.model = model
        self.seed = seed
        self.options = options or StreamOptions()
        self.rollout = Rollout(
            model.need_student(),
            self.options.apply(model.cfg.rollout),
            model.latent_shape,
            seeds=(seed,),
            dtype=model.dtype,
            device=model.device,
        )
        self._decoder: CodecStream = model.codec.decode_stream()
        self.prompt = prompt
        self._text = model.remember(prompt)

    def __iter__(self) -> Iterator[Chunk]:
        while True:
            yield self.next_chunk()

    def next_chunk(self) -> Chunk:
        """Generate, decode and return the next chunk."""
        clock = Stopwatch(self.model.device)
        self.rollout.settle()
        clock.lap("commit")
        latents = self.rollout.step(self._text)
        clock.lap("denoise")
        frames = frames_from_video(self._decode(latents))
        clock.lap("decode")
        return Chunk(frames, latents, self.rollout.chunk_index - 1, self.prompt, clock.laps)

    def set_prompt(self, text: str, mode: PromptMode = "keep") -> None:
        """From the next chunk on, follow `text`.

        keep: the past stays as it is. recache: the past is recomputed under the new words, which take hold faster.
        flush: the past is forgotten and a new shot begins.
        """
        if mode not in PROMPT_MODES:
            raise UserError(f"there is no prompt mode '{mode}'; use one of {', '.join(PROMPT_MODES)}")
        self._text = self.model.remember(text)
        self.prompt = text
        if mode == "recache":
            self.rollout.recache(self._text)
        elif mode == "flush":
            self.rollout.flush()
            self._decoder = self.model.codec.decode_stream()

    def settle(self) -> None:
        """Do the work that the next chunk would begin with: useful while somebody watches this one."""
        self.rollout.settle()

    @torch.no_grad()
    def _decode(self, latents: Latents) -> Video:
        return self._decoder(latents.to(self.model.codec.dtype))


class Stopwatch:
    def __init__(self, device: torch.device | str) -> None:
        self._device = torch.device(device)
        self._last = self._now()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = self._now()
        self.laps[name] = now - self._last
        self._last = now

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def frames_from_video(video: Video) -> np.ndarray:
    """[1, F, 3, H, W] in [-1, 1] -> uint8 [F, H, W, 3]"""
    scaled = video[0].float().clamp(-1, 1).add(1).mul(127.5).round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def video_from_frames(frames: np.ndarray) -> Tensor:
    """uint8 [F, H, W, 3] -> [1, F, 3, H, W] in [-1, 1]"""
    return torch.from_numpy(np.array(frames)).permute(0, 3, 1, 2)[None].float() / 127.5 - 1


__all__ = ["Chunk", "Session", "StreamOptions", "frames_from_video", "video_from_frames"]
