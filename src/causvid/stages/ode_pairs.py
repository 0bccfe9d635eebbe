"""Teacher trajectories for the student's initialisation (section 4.2, stage 1): where noise is at each of its levels.

Reads:  a teacher, prompts (and clips, where a causal teacher is given the true past).
Writes: a folder of pairs (data/pairs.py). The same command makes what is missing; processes share the shards.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from torch import Tensor

from causvid import config, flow, sample
from causvid.cache import KVCache
from causvid.chunks import Span, chunk_bounds
from causvid.data.clips import Pool
from causvid.data.pairs import PairsSpec, claim, missing_shards, write_shard
from causvid.data.prompts import VISTA, one_prompt, read_prompts, ways_of
from causvid.errors import UserError
from causvid.models.dit import VideoDiT, VideoDiTConfig
from causvid.noise import chunk_noise, mix
from causvid.presets import (
    PAPER_STUDENT,
    VISTA_DIT,
    VISTA_MOVING_DIT,
    VISTA_MOVING_STUDENT,
    VISTA_NOISE,
    VISTA_STUDENT,
    WAN_DIT,
    WAN_STUDENT,
)
from causvid.rollout import RolloutConfig, commit_chunk
from causvid.shapes import Latents, Text
from causvid.stages.sources import Dtype, Network, frozen, read_network, read_words
from causvid.training import parallel
from causvid.training.run import stop_signal
from causvid.view_noise import ViewNoise, carry_rows, unknown_ways


@dataclass(frozen=True)
class PairsConfig:
    model: VideoDiTConfig
    teacher: str  # a folder of weights, or a Wan model
    student: RolloutConfig  # whose levels are kept, and how it cuts a clip
    num_pairs: int
    clip: tuple[int, int, int, int]  # latent frames, channels, height, width
    guidance: flow.Guidance  # 1 is none
    batch: int
    steps: int = 48  # divides by 4 and 3: the grid holds the levels of students of 2, 3 and 4 steps
    solver: Literal["euler", "heun"] = "euler"
    guide: str | None = None  # weights of a worse teacher, for the pass of guidance that has no caption; None: the same
    prompts: str = VISTA  # 'vista', or a text file
    sight: Literal["both ways", "causal"] = "both ways"
    past: Literal["own", "data"] = "own"  # of a causal teacher: what it made, or the chunks of true clips
    data: str | None = None  # folder of pools, for true clips
    pool: str = "long"
    view_noise: ViewNoise | None = None  # noise that moves with the view, as the teacher learnt it
    pairs_per_shard: int = 16
    dtype: Dtype = "bfloat16"
    seed: int = 0

    @property
    def grid(self) -> list[float]:
        """Levels of the integration."""
        if self.student.shift is None:
            raise UserError("the student's levels are not a shifted grid; set student.shift to the shift they follow.")
        return flow.sigma_grid(self.steps, self.student.shift)

    def check(self) -> None:
        off = [s for s in self.student.sigmas if min(abs(s - level) for level in self.grid) > 1e-6]
        if off:
            told = ", ".join(f"{s:.4f}" for s in off)
            raise UserError(
                f"{self.steps} steps do not pass through the student's levels {told}; choose steps (such as 48) whose "
                "grid contains every level."
            )
        if self.past == "data" and (self.sight != "causal" or self.data is None):
            raise UserError("past=data gives true clips to a causal teacher: set sight=causal and data.")


VISTA_PAIRS = PairsConfig(
    model=VISTA_DIT,
    teacher="local/teacher/weights",
    student=VISTA_STUDENT,
    num_pairs=256,
    clip=(21, 16, 8, 14),
    guidance=3.0,
    batch=8,
    steps=24,  # half the time of 48
)
WAN_PAIRS = PairsConfig(
    model=WAN_DIT,
    teacher="models/Wan2.1-T2V-1.3B",
    student=WAN_STUDENT,
    num_pairs=1500,  # (CausVid's README)
    clip=(21, 16, 60, 104),
    guidance=6.0,  # (CausVid and Self Forcing, ODE data)
    batch=1,
    prompts="prompts/train.txt",
    pairs_per_shard=4,
)
# The paper's teacher is not public; its settings, with the public one.
PAPER_PAIRS = replace(WAN_PAIRS, student=PAPER_STUDENT, num_pairs=1000, clip=(20, 16, 60, 104))
VISTA_MOVING_PAIRS = replace(VISTA_PAIRS, model=VISTA_MOVING_DIT, student=VISTA_MOVING_STUDENT, view_noise=VISTA_NOISE)
PRESETS = {"vista": VISTA_PAIRS, "vista-moving": VISTA_MOVING_PAIRS, "wan-1.3b": WAN_PAIRS, "paper": PAPER_PAIRS}


# ---- trajectories --------------------------------------------------------------------------------------------------


@torch.no_grad()
def whole_clip(
    cfg: PairsConfig,
    teacher: Network,
    eps: Latents,
    text: Text,
    no_text: Text,
    guide: Network | None = None,
    ways: Tensor | None = None,
) -> Tensor:
    """States [B, Q+1, T, C, H, W] of clips that are denoised as a whole."""
    told, worse = partial(teacher, travel=ways), guide and partial(guide, travel=ways)
    field = sample.guided(told, text, no_text, cfg.guidance, worse)
    states = sample.trajectory(getattr(sample, cfg.solver), field, eps, cfg.grid, cfg.student.sigmas)
    return torch.stack(states, dim=1)


@torch.no_grad()
def chunk_by_chunk(
    cfg: PairsConfig,
    teacher: Network,
    eps: Latents,
    text: Text,
    no_text: Text,
    history: Latents | None,
    guide: Network | None = None,
    ways: Tensor | None = None,
) -> Tensor:
    """States of a causal teacher: every chunk is denoised in many steps behind a clean past, its own or `history`."""
    readers = [(teacher, text)]
    if cfg.guidance != 1:
        readers.append((guide or teacher, no_text))  # guidance needs a past under either text
    caches = [_cache(teacher.model, eps) for _ in readers]
    chunks = []
    for start, stop in bounds_of(cfg):
        way = None if ways is None else ways[:, start:stop]
        pasts = [cache.at_hand(stop - start, way) for cache in caches]

        def field(x: Latents, sigma: Tensor, pasts=pasts) -> Latents:
            seen = [network(x, sigma, words, past=past) for (network, words), past in zip(readers, pasts)]
            return seen[0] if len(seen) == 1 else flow.guide(seen[0], seen[1], cfg.guidance, sigma)

        states = sample.trajectory(getattr(sample, cfg.solver), field, eps[:, start:stop], cfg.grid, cfg.student.sigmas)
        chunks.append(torch.stack(states, dim=1))
        clean = states[-1] if history is None else history[:, start:stop]
        for past, (network, words) in zip(pasts, readers):
            commit_chunk(network, clean, words, past)
    return torch.cat(chunks, dim=2)


def bounds_of(cfg: PairsConfig) -> list[Span]:
    return chunk_bounds(cfg.clip[0], cfg.student.chunk, cfg.student.first_chunk)


def _cache(model: VideoDiT, eps: Latents) -> KVCache:
    batch, frames, _, height, width = eps.shape
    return KVCache(model.cache_shape(height, width), batch=batch, max_frames=frames, device=eps.device)


# ---- the run -------------------------------------------------------------------------------------------------------


def train(
    cfg: PairsConfig, run_dir: Path, *, minutes: float | None = None, steps: int | None = None, device: str = "cpu"
) -> Path:
    """Make the pairs that are missing in `run_dir`, at most `steps` shards of them, starting none after `minutes`."""
    cfg.check()
    place = parallel.start(device)
    maker = Maker(cfg, place)  # first: a mistake in its sources must not claim the folder
    spec = PairsSpec(cfg.student.sigmas, cfg.num_pairs, cfg.pairs_per_shard)
    made_from = {key: value for key, value in config.to_json(cfg).items() if key != "num_pairs"}
    if parallel.is_first():
        claim(run_dir, spec, made_from)
    parallel.wait_for_all()
    missing = missing_shards(run_dir, spec, parallel.rank(), parallel.num_ranks())
    console, start = Console(stderr=True, quiet=not parallel.is_first()), time.monotonic()
    with stop_signal() as stopped:
        for done, shard in enumerate(missing[:steps]):
            if stopped or (minutes is not None and time.monotonic() - start > 60 * minutes):
                break
            write_shard(run_dir, shard, *maker.make(spec.numbers(shard)))
            pace = (time.monotonic() - start) / ((done + 1) * cfg.pairs_per_shard)
            console.print(f"pairs: {done + 1} of {len(missing)} shards, {pace:.2f} s a pair", highlight=False)
    return run_dir


class Maker:
    """The teacher at work on pairs, each of which is a function of its number."""

    def __init__(self, cfg: PairsConfig, device: torch.device) -> None:
        self.cfg, self.device = cfg, device
        self.teacher = self.read(cfg.teacher)
        self.guide = self.read(cfg.guide) if cfg.guide is not None else None
        self.words = read_words(cfg.teacher, device)
        self.prompts = read_prompts(cfg.prompts, cfg.seed)
        self.pool = Pool(Path(cfg.data), cfg.pool) if cfg.past == "data" and cfg.data else None

    def read(self, folder: str) -> Network:
        network = read_network(self.cfg.model, folder, "teacher", self.device)
        return Network(frozen(network, self.cfg.dtype), self.cfg.dtype, {})

    def make(self, numbers: Sequence[int]) -> tuple[Tensor, list[str], Latents | None, Tensor]:
        """States, prompts, given past and ways of these pairs, on the CPU."""
        made = [self._batch(numbers[i : i + self.cfg.batch]) for i in range(0, len(numbers), self.cfg.batch)]
        states, prompts, histories, ways = zip(*made)
        history = None if self.pool is None else torch.cat(histories)
        return torch.cat(states), [p for group in prompts for p in group], history, torch.cat(ways)

    def _batch(self, numbers: Sequence[int]) -> tuple[Tensor, list[str], Latents | None, Tensor]:
        cfg = self.cfg
        eps = torch.stack([chunk_noise(cfg.seed, number, 0, cfg.clip) for number in numbers]).to(self.device)
        prompts, history, ways = [self.prompts(number) for number in numbers], None, None
        if self.pool is not None:
            clips = self.pool.batch(numbers[0], len(numbers), cfg.clip[0], cfg.seed)
            prompts, history, ways = clips.captions, clips.latents, clips.travel
        elif cfg.view_noise is not None:
            seeds = (mix(cfg.seed, number) for number in numbers)
            ways = ways_of(map(one_prompt, prompts), cfg.clip[0], seeds)
        if ways is None or cfg.view_noise is None:
            ways = unknown_ways(len(numbers), cfg.clip[0])
        eps = carry_rows(cfg.view_noise, eps, ways, [(cfg.seed, number) for number in numbers])
        told = ways.to(self.device)
        text, no_text = self.words(prompts), self.words.none(len(prompts))
        if cfg.sight == "both ways":
            states = whole_clip(cfg, self.teacher, eps, text, no_text, self.guide, told)
        else:
            given = None if history is None else history.to(self.device)
            states = chunk_by_chunk(cfg, self.teacher, eps, text, no_text, given, self.guide, told)
        return states.cpu(), prompts, history, ways
