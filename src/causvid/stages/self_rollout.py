"""The student on its own past, as it streams: to train on, with the gradient of one step per chunk, and to look at."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from causvid.cache import KVCache, Past
from causvid.chunks import chunk_bounds
from causvid.data.prompts import one_prompt, ways_of
from causvid.noise import chunk_noise
from causvid.rollout import RolloutConfig, commit_chunk, denoise_chunk
from causvid.shapes import FrameSigma, Latents, Text
from causvid.stages.sources import Gallery, Network, Words
from causvid.training import parallel
from causvid.training.sheet import draw_sheet
from causvid.view_noise import ViewNoise, carry_rows

SHEET_SEED = 0x5EED
SHEET_TOKENS = 2**14  # of the clips of a sheet that are made at once: all of Vista's, one of Wan's

ChunkNoise = Callable[[int, int, int], Tensor]  # (chunk, draw, frames) -> noise [B, frames, C, H, W]


def roll_out(
    network: Network,
    cfg: RolloutConfig,
    clip: tuple[int, ...],
    text: Text | Sequence[Text],
    noise: ChunkNoise,
    exits: Sequence[int] | None = None,
    *,
    ways: Tensor | None = None,
    grad: bool = False,
) -> Latents:
    """A clip of `clip` = (T, C, H, W), chunk by chunk with a cache. `text` may be one for every chunk: the past is then
    kept as it was made, under the words of its time.

    `exits[i]` is the step of chunk i whose prediction counts and after which no other is taken; None: the last one.
    `ways` [B, T] is how views move, for networks that are told. With `grad`, gradients flow through the last step
    alone: what came before it, and the past, are constants."""
    num_frames, _, height, width = clip
    bounds = chunk_bounds(num_frames, cfg.chunk, cfg.first_chunk)
    texts = [text] * len(bounds) if isinstance(text, Tensor) else text
    memories = [network.remember(texts[0])]
    for before, now in zip(texts[:-1], texts[1:]):
        memories.append(memories[-1] if now is before else network.remember(now))
    chunk = 0

    def taken(x: Latents, sigma: FrameSigma, text: Text, *, past: Past) -> Latents:
        return network(x, sigma, text if torch.is_grad_enabled() else memories[chunk], past=past)

    cache = KVCache(
        network.model.cache_shape(height, width),
        cfg.policy,
        batch=len(texts[0]),
        max_frames=num_frames,
        keep_all=grad,
        dtype=getattr(torch, network.dtype),
        device=texts[0].device,
    )
    out = []
    for chunk, (start, stop) in enumerate(bounds):
        past = cache.at_hand(stop - start, None if ways is None else ways[:, start:stop])
        sigmas = cfg.chunk_sigmas(start == 0)
        last = len(sigmas) - 2 if exits is None else min(exits[chunk], len(sigmas) - 2)

        def draw(step: int, chunk=chunk, frames=stop - start) -> Tensor:
            return noise(chunk, step, frames)

        # without gradients, leaving at a step is the same as a schedule that goes from its level straight to 0
        schedule, grad_step = (sigmas, last) if grad else ((*sigmas[: last + 1], 0.0), None)
        x0 = denoise_chunk(taken, draw(0), schedule, texts[chunk], draw, past=past, grad_step=grad_step)
        if stop < num_frames:
            commit_chunk(taken, x0.detach(), texts[chunk], past)
        out.append(x0)
    return torch.cat(out, dim=1)


@torch.no_grad()
def write_student_sheet(
    file: Path,
    student: Network,
    cfg: RolloutConfig,
    clip: tuple[int, ...],
    words: Words,
    gallery: Gallery,
    view_noise: ViewNoise | None = None,
) -> Latents:
    """A PNG of the gallery's prompts with two seeds each, the same ones every time. Returns the clips, prompt by prompt
    [prompts * 2, T, C, H, W], on the CPU. They are made in groups that take no more memory than training does.
    Collective."""
    prompts = [prompt for prompt in gallery.prompts for _ in range(2)]
    seeds = [SHEET_SEED + row for row in range(len(prompts))]
    starts = [start for start, _ in chunk_bounds(clip[0], cfg.chunk, cfg.first_chunk)]
    ways = None if view_noise is None else ways_of(map(one_prompt, prompts), clip[0], seeds)

    def make(rows: slice) -> Latents:
        told = None if ways is None else ways[rows]

        def noise(chunk: int, draw: int, frames: int) -> Tensor:
            own = torch.stack([chunk_noise(seed, chunk, draw, (frames, *clip[1:])) for seed in seeds[rows]])
            now = None if told is None else told[:, starts[chunk] : starts[chunk] + frames]
            return carry_rows(view_noise, own, now, [(seed, draw) for seed in seeds[rows]]).to(words.device)

        return roll_out(student, cfg, clip, words(prompts[rows]), noise, ways=told).cpu()

    size = max(1, SHEET_TOKENS // (clip[0] * student.model.cache_shape(*clip[2:]).tokens_per_frame))
    clips = torch.cat([make(slice(start, start + size)) for start in range(0, len(prompts), size)])
    if parallel.is_first():
        draw_sheet(file, [gallery.decode(one[None]) for one in clips], prompts)
    return clips
