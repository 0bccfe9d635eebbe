"""The student's first weights (section 4.2, stage 1): a causal network learns where its teacher's trajectories end.

Reads:  a teacher (or a student to go on from), ODE pairs; for consistency distillation, clips instead of pairs.
Writes: a run folder; weights/student.safetensors, beside the text encoder that belongs to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from causvid import flow
from causvid.cache import CachePolicy, KVCache
from causvid.checkpoints import config_metadata
from causvid.chunks import Span, chunk_bounds, hold_per_chunk
from causvid.data.clips import Batch, Pool
from causvid.data.pairs import PairBatch, Pairs
from causvid.errors import UserError
from causvid.models.dit import VideoDiT, VideoDiTConfig
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
from causvid.shapes import FrameSigma, Latents, Scalar, Text, Velocity
from causvid.stages.self_rollout import write_student_sheet
from causvid.stages.sources import (
    Draws,
    Dtype,
    Gallery,
    Network,
    encode_ahead,
    frozen,
    hand_on_words,
    open_gallery,
    parts_of,
    read_network,
    read_words,
    shard,
)
from causvid.training import parallel
from causvid.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, write_weights
from causvid.training.ema import EMA
from causvid.training.monitors import LossBySigma
from causvid.training.optim import OptimConfig, all_parameters, build_optimizers, learning_rate, step_all
from causvid.training.run import Budget, Run, take_steps
from causvid.view_noise import ViewNoise

LOG_EVERY = 10  # steps
STATUS_SECONDS = 20.0
LEVELS, NOISE = 1, 2  # names of draws


@dataclass(frozen=True)
class InitConfig:
    model: VideoDiTConfig
    teacher: str  # a folder of weights: what the student starts from, and whose text encoder it reads
    student: RolloutConfig
    optim: OptimConfig
    batch: int
    method: Literal["regression", "consistency"] = "regression"
    past: Literal["noisy", "clean"] = "noisy"  # of a chunk: the other chunks at levels of their own, or finished ones
    pairs: str | None = None  # regression: folder of ODE pairs
    data: str | None = None  # consistency: folder of pools
    pool: str = "long"
    num_frames: int = 21  # consistency: latent frames of a clip
    steps: int = 48  # consistency: levels of the teacher's steps
    guidance: flow.Guidance = 3.0  # consistency: of the teacher's step
    view_noise: ViewNoise | None = None  # noise that moves with the view, as the teacher learnt it
    start: str | None = None  # weights of a student to go on from
    accumulate: int = 1  # parts of a batch, one after the other
    ema_decay: float = 0.99
    recompute: bool = False  # activations in the backward pass, to save memory
    dtype: Dtype = "bfloat16"
    seed: int = 0
    checkpoint_minutes: float = 5.0
    sample_minutes: float = 10.0

    def check(self) -> None:
        if self.method == "regression" and self.pairs is None:
            raise UserError("regression needs ODE pairs; set pairs to a folder that `causvid train ode-pairs` made.")
        if self.method == "consistency" and (self.data is None or self.student.shift is None):
            raise UserError("consistency distillation needs clips and a grid of levels; set data and student.shift.")


VISTA_INIT = InitConfig(
    model=VISTA_DIT,
    teacher="local/teacher/weights",
    student=VISTA_STUDENT,
    pairs="local/pairs",
    optim=OptimConfig(lr=5e-4, warmup=20, decay_from=0.7),
    batch=8,
)
# (CausVid's released configuration) AdamW at a constant rate; 128 pairs a step, over 64 GPUs there
WAN_OPTIM = OptimConfig(lr=2e-6, muon=False, betas=(0.9, 0.999), clip=10.0, warmup=0)
WAN_INIT = InitConfig(
    model=WAN_DIT,
    teacher="models/Wan2.1-T2V-1.3B",
    student=WAN_STUDENT,
    pairs="local/pairs",
    optim=WAN_OPTIM,
    batch=128,
    accumulate=8,
    recompute=True,
    checkpoint_minutes=30.0,
    sample_minutes=60.0,
)
PAPER_INIT = replace(WAN_INIT, student=PAPER_STUDENT, num_frames=20, optim=replace(WAN_OPTIM, lr=5e-6))  # 3000 steps
PRESETS = {
    "vista": VISTA_INIT,
    "vista-moving": replace(VISTA_INIT, model=VISTA_MOVING_DIT, student=VISTA_MOVING_STUDENT, view_noise=VISTA_NOISE),
    "vista-causal-cd": replace(
        VISTA_INIT, method="consistency", past="clean", pairs=None, data="local/latents", teacher="local/causal/weights"
    ),
    "wan-1.3b": WAN_INIT,
    "paper": PAPER_INIT,
}


# ---- losses --------------------------------------------------------------------------------------------------------


def regression_error(
    student: Velocity, states: Tensor, levels: Tensor, index: Tensor, text: Any
) -> tuple[FrameSigma, FrameSigma]:
    """Eq. L_init: from the state of each frame at its level, predict where the trajectory ends.

    states [B, Q+1, T, C, H, W], levels [Q+1], index [B, T]. Returns squared errors per frame, 0 where the input is
    clean already, and the levels.
    """
    frames = torch.arange(states.shape[2], device=states.device)
    rows = torch.arange(len(states), device=states.device)[:, None]
    x_t, sigma = states[rows, index, frames], levels[index]
    x0 = flow.x0_from_velocity(x_t, student(x_t, sigma, text), sigma)
    error = (x0 - states[:, -1]).square().mean(dim=(2, 3, 4))
    return error * (sigma > 0), sigma


def consistency_error(
    student: Velocity,
    target: Velocity,
    teacher: Velocity,
    x0: Latents,
    eps: Latents,
    sigma: FrameSigma,
    sigma_next: FrameSigma,
    text: Any,
) -> FrameSigma:
    """Both ends of one teacher step must lead to the same clean clip; `target` is an average of past students.

    At sigma 0 a prediction of x0 is its input, which is what ties all levels to the data."""
    x_t = flow.add_noise(x0, eps, sigma)
    with torch.no_grad():
        x_next = x_t + flow.per_frame(sigma_next - sigma, x_t) * teacher(x_t, sigma, text)
        wanted = flow.x0_from_velocity(x_next, target(x_next, sigma_next, text), sigma_next)
    made = flow.x0_from_velocity(x_t, student(x_t, sigma, text), sigma)
    return (made - wanted).square().mean(dim=(2, 3, 4))


def behind_clean_past(
    network: Network, history: Latents, bounds: list[Span], policy: CachePolicy, ways: Tensor | None = None
) -> Velocity:
    """The network as it streams: every chunk of x_t looks back at a cache of the finished chunks of `history`.

    Gradients reach a chunk's own pass; the past is constant, as in a roll-out."""

    def velocity(x_t: Latents, sigma: FrameSigma, text: Text) -> Latents:
        batch, num_frames, _, height, width = x_t.shape
        shape = network.model.cache_shape(height, width)
        cache = KVCache(
            shape,
            policy,
            batch=batch,
            max_frames=num_frames,
            keep_all=torch.is_grad_enabled(),
            dtype=getattr(torch, network.dtype),
            device=x_t.device,
        )
        out = []
        for start, stop in bounds:
            past = cache.at_hand(stop - start, None if ways is None else ways[:, start:stop])
            out.append(network(x_t[:, start:stop], sigma[:, start:stop], text, past=past))
            if stop < num_frames:
                commit_chunk(network, history[:, start:stop], text, past)
        return torch.cat(out, dim=1)

    return velocity


# ---- the run -------------------------------------------------------------------------------------------------------


def train(
    cfg: InitConfig,
    run_dir: Path,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    device: str = "cpu",
    gallery: Gallery | None = None,
) -> Path:
    """Train until the budget is used up, or resume and do so. Returns the folder of the weights."""
    cfg.check()
    place = parallel.start(device)
    sitting = Sitting(cfg, run_dir, place, gallery or open_gallery(cfg.teacher, place))
    weights = run_dir / "weights"

    def hand_on() -> None:
        write_weights(weights / "student.safetensors", sitting.average, config_metadata(cfg.model))
        hand_on_words(cfg.teacher, weights)

    take_steps(
        sitting,
        Budget(minutes, steps, sitting.seconds),
        save_minutes=cfg.checkpoint_minutes,
        show_minutes=cfg.sample_minutes,
        show=lambda progress: sitting.write_sheet(),
        hand_on=hand_on,
    )
    return weights


class Sitting:
    """Everything that one process of a run holds between two steps."""

    def __init__(self, cfg: InitConfig, run_dir: Path, device: torch.device, gallery: Gallery) -> None:
        self.cfg, self.device, self.gallery = cfg, device, gallery
        self.pairs = Pairs(Path(cfg.pairs)) if cfg.method == "regression" and cfg.pairs else None
        self.pool = Pool(Path(cfg.data), cfg.pool) if cfg.method == "consistency" and cfg.data else None
        if self.pairs is not None:
            identity, self.clip = self.pairs.identity, self.pairs.clip_shape
        else:
            assert self.pool is not None
            identity, self.clip = self.pool.identity, (cfg.num_frames, *self.pool.clip_shape[1:])
        self.run = Run(run_dir, cfg, data=identity)
        if self.pairs is not None and self.pairs.sigmas != cfg.student.sigmas:
            raise UserError(
                f"the pairs in {cfg.pairs} have the levels {self.pairs.sigmas}, the student has {cfg.student.sigmas}; "
                "make pairs for this student."
            )
        torch.manual_seed(cfg.seed)
        self.student = read_network(cfg.model, cfg.start or cfg.teacher, "student" if cfg.start else "teacher", device)
        self.average = shard(deepcopy(self.student))
        self.ema = EMA(self.average, cfg.ema_decay)
        shard(self.student, cfg.recompute)
        self.teacher = None
        if cfg.method == "consistency":
            self.teacher = shard(frozen(read_network(cfg.model, cfg.teacher, "teacher", device), cfg.dtype))
        self.words = read_words(cfg.teacher, device)
        encode_ahead(self.words, self.all_prompts(), self.run.status)
        self.bounds = chunk_bounds(self.clip[0], cfg.student.chunk, cfg.student.first_chunk)
        self.modules = {"student": self.student, "ema": self.average}
        self.optimizers = build_optimizers(cfg.optim, [self.student])
        self.by_sigma = LossBySigma()
        self.step, self.seconds, self.drawn = 0, 0.0, 0
        if self.run.checkpoint is not None:
            self.resume(self.run.checkpoint)

    def all_prompts(self) -> Iterator[str]:
        """Of what there is to learn from, and of sheets."""
        yield from self.gallery.prompts
        if self.pairs is not None:
            yield from self.pairs.prompts
        if self.pool is not None:
            yield from chain.from_iterable(self.pool.captions)

    def take_step(self, progress: float) -> None:
        cfg, loss = self.cfg, torch.zeros((), device=self.device)
        for rows in parts_of(cfg.batch, cfg.accumulate):
            draws = Draws((cfg.seed, self.step), cfg.batch, rows, self.device)
            part, errors, sigma = self.loss(draws)
            (part * parallel.num_ranks()).backward()  # gradients are averaged over ranks
            loss += part.detach()
            noisy = sigma > 0
            self.by_sigma.add(errors.detach()[noisy], sigma[noisy])
        self.drawn += cfg.batch
        norm = parallel.clip_gradients(all_parameters(self.optimizers), cfg.optim.clip)
        if not math.isfinite(norm):
            raise UserError(f"training diverged at step {self.step}; start a new run with a lower optim.lr.")
        rate = learning_rate(cfg.optim, self.step, progress)
        step_all(self.optimizers, rate)
        self.ema.update(self.student)
        self.step += 1
        if self.step % LOG_EVERY == 0:
            self.report(progress, rate, norm, loss)

    def loss(self, draws: Draws) -> tuple[Scalar, FrameSigma, FrameSigma]:
        """What this part of the next batch says; nothing else of it is read."""
        cfg, place, size = self.cfg, self.drawn + draws.rows.start, draws.rows.stop - draws.rows.start
        if self.pairs is not None:
            return self.regression(self.pairs.batch(place, size, cfg.seed), draws)
        assert self.pool is not None
        return self.consistency(self.pool.batch(place, size, cfg.num_frames, cfg.seed), draws)

    def regression(self, batch: PairBatch, draws: Draws) -> tuple[Scalar, FrameSigma, FrameSigma]:
        """This part's share of the mean over all noisy frames of the batch; errors and levels per frame."""
        cfg, num_levels = self.cfg, len(self.cfg.student.sigmas)
        # behind a clean past every chunk can be noisy; among noisy ones, clean chunks are the context to learn from
        high = num_levels - 1 if cfg.past == "clean" else num_levels
        per_chunk = torch.randint(high, (draws.batch, len(self.bounds)), generator=draws.rng(LEVELS))
        index = hold_per_chunk(per_chunk, self.bounds)
        num_noisy = int((index < num_levels - 1).sum())
        levels = torch.tensor(cfg.student.sigmas, device=self.device)
        history = batch.states[:, -1] if batch.history is None else batch.history
        ways = None if batch.travel is None else batch.travel.to(self.device)
        student = self.seen(self.student, history.to(self.device), ways)
        states, text = batch.states.to(self.device), self.words(batch.prompts)
        errors, sigma = regression_error(student, states, levels, draws.cut(index), text)
        return errors.sum() / max(1, num_noisy), errors, sigma

    def consistency(self, batch: Batch, draws: Draws) -> tuple[Scalar, FrameSigma, FrameSigma]:
        cfg = self.cfg
        assert cfg.student.shift is not None and self.teacher is not None
        grid = torch.tensor(flow.sigma_grid(cfg.steps, cfg.student.shift))
        per_chunk = torch.randint(cfg.steps, (draws.batch, len(self.bounds)), generator=draws.rng(LEVELS))
        index = hold_per_chunk(per_chunk, self.bounds)
        sigma, sigma_next = draws.cut(grid[index]), draws.cut(grid[index + 1])
        x0, text = batch.latents.to(self.device), self.words(batch.captions)
        way = None if batch.travel is None else batch.travel.to(self.device)
        eps = draws.carried(draws.normal(tuple(x0.shape[1:]), NOISE), cfg.view_noise, way, NOISE)
        seen, no_text = self.seen(self.teacher, x0, way), self.words.none(len(x0))

        def teacher(x_t: Latents, sigma: FrameSigma, text: Text) -> Latents:
            return flow.guide(seen(x_t, sigma, text), seen(x_t, sigma, no_text), cfg.guidance, sigma)

        student, target = self.seen(self.student, x0, way), self.seen(self.average, x0, way)
        errors = consistency_error(student, target, teacher, x0, eps, sigma, sigma_next, text)
        return errors.mean() * len(x0) / draws.batch, errors, sigma

    def seen(self, model: VideoDiT, history: Latents, ways: Tensor | None) -> Velocity:
        """A network whose chunks see their past as this run wants it."""
        cfg = self.cfg
        if cfg.past == "clean":
            return behind_clean_past(Network(model, cfg.dtype), history, self.bounds, cfg.student.policy, ways)
        policy = cfg.student.policy
        sight = {"bounds": self.bounds, "window": policy.window, "sink": policy.sink, "travel": ways}
        return Network(model, cfg.dtype, sight)

    def write_sheet(self) -> None:
        file = self.run.folder / "samples" / f"step-{self.step:08d}.png"
        student = Network(self.average, self.cfg.dtype)
        write_student_sheet(file, student, self.cfg.student, self.clip, self.words, self.gallery, self.cfg.view_noise)

    def report(self, progress: float, rate: float, norm: float, loss: Scalar) -> None:
        value = float(parallel.mean_over_ranks(loss)) * parallel.num_ranks()
        values = {"loss": value, "rate": rate, "gradient": norm, "seconds": round(self.seconds, 2)}
        self.run.log(self.step, **values, progress=progress, **self.by_sigma.read(), drawn=self.drawn)
        pace = self.seconds / self.step
        self.run.status(
            f"{progress:6.1%}  step {self.step}  loss {value:.4f}  gradient {norm:.2f}  {pace:.2f} s/step",
            every=STATUS_SECONDS,
        )

    def save(self) -> None:
        save_checkpoint(
            self.run.folder / "checkpoints",
            self.step,
            modules=self.modules,
            optimizers=self.optimizers,
            state={"seconds": self.seconds, "drawn": self.drawn, "ema_updates": self.ema.num_updates},
            about=self.run.about,
        )

    def resume(self, checkpoint: Checkpoint) -> None:
        load_checkpoint(checkpoint, modules=self.modules, optimizers=self.optimizers)
        self.step, state = checkpoint.step, checkpoint.state
        self.seconds, self.drawn, self.ema.num_updates = state["seconds"], state["drawn"], state["ema_updates"]
        self.run.status(f"resuming at step {self.step}, after {self.seconds / 60:.1f} minutes of training")
