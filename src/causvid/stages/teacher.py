"""The teacher: flow matching on clips of growing length, with its text encoder. It sees both ways, or is causal.

Reads:  pools of latents with captions (data/clips.py), a codec for sample sheets.
Writes: a run folder; weights/teacher.safetensors and weights/text.safetensors hold the averaged weights, and
        weights/guide.safetensors those of earlier: the worse network for the pass of guidance without a caption.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from causvid import flow, sample
from causvid.checkpoints import config_metadata
from causvid.chunks import Span, chunk_bounds, hold_per_chunk
from causvid.data.clips import Batch, Pool
from causvid.data.prompts import one_prompt, ways_of
from causvid.data.vista import FIRST_FIGURE, NUM_CLASSES
from causvid.errors import UserError
from causvid.models.dit import VideoDiT, VideoDiTConfig
from causvid.noise import seeded
from causvid.presets import VISTA_DIT, VISTA_MOVING_DIT, VISTA_NOISE, VISTA_TEXT
from causvid.shapes import FrameSigma, Latents, Velocity, Video
from causvid.tensor_files import load_strictly, read_tensors
from causvid.text.vista import VistaText, VistaTextConfig
from causvid.training import parallel
from causvid.training.checkpoint import (
    MANIFEST,
    Checkpoint,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
    write_weights,
)
from causvid.training.cpu import compile_blocks, fast_training
from causvid.training.ema import EMA
from causvid.training.monitors import LossBySigma
from causvid.training.optim import OptimConfig, all_parameters, build_optimizers, learning_rate, step_all
from causvid.training.run import Budget, Run, take_steps
from causvid.training.sheet import draw_sheet
from causvid.view_noise import ViewNoise, carry_rows, set_free

LOG_EVERY = 10  # steps
STATUS_SECONDS = 20.0
SHEET_SEED = 0x5EED
CHECK_BATCHES = 6  # of clips that are learnt from, and of others, when a run looks at what it remembers
MOTION_PIXELS = 2  # motions are told apart in steps of so many pixels, right and down
NUM_MOTIONS = 17  # such steps, none in the middle
SETTLED = 0.9  # the level below which one can tell where a figure is: there, weights do not shift what is likely

# ---- config --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LengthConfig:
    """Clips of one length, trained in batches of their own."""

    pool: str
    num_frames: int  # latent frames
    batch: int
    # Of the training levels; every clip draws one. A whole clip shows its biome and light, which all its patches share,
    # until nearly nothing is left of it: unless the highest levels are trained, captions do not decide about them.
    shifts: tuple[float, ...]


@dataclass(frozen=True)
class Phase:
    """Until this part of the run, steps are of the given lengths in these proportions."""

    until: float
    mix: tuple[float, ...]  # one weight per length


@dataclass(frozen=True)
class TeacherConfig:
    model: VideoDiTConfig
    text: VistaTextConfig
    data: str  # folder of pools
    lengths: tuple[LengthConfig, ...]
    phases: tuple[Phase, ...]
    optim: OptimConfig
    sight: Literal["both ways", "causal"] = "both ways"
    chunk: int = 3  # latent frames per chunk of a causal teacher (paper, section 4.3)
    caption_dropout: float = 0.1  # (ours; the usual rate for guidance)
    ema_decay: float = 0.999
    guide_at: float | None = 0.4  # when in the run the average is put aside as a guide for the finished teacher
    align_weight: float = 0.5  # of what the renderer knows of each patch as a second target; 0 = off
    motion_weight: float = 0.5  # within that, of where it came from against what it shows
    align_layer: int = 3  # the block whose output must tell them
    num_classes: int = NUM_CLASSES  # of the patch classes
    # Of patches that show a figure, in the loss at levels where its place is already settled: the eye goes there, and
    # they are a tenth of the picture. 1 = as all others.
    figure_weight: float = 1.0
    first_figure: int = FIRST_FIGURE  # patch classes from this number on are figures
    view_noise: ViewNoise | None = None  # noise that moves with the view, where clips tell how that moves
    free_noise: float = 0.2  # the share of clips whose noise does not, so that clips of an unknown camera can be made
    # A pool of clips that are never learnt from: beside the loss of those of their length that are, it tells what is
    # remembered instead of learnt
    unseen: str | None = None
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    compile: bool = False
    seed: int = 0
    # What to start from: the averages of a run's checkpoint (its folder), or a folder of finished weights
    init: str | None = None
    # An encoder that the stage `text` wrote: it is used as it is. Trained with the network, at the network's rate, it
    # forgot within thousands of steps what it had learnt (docs/log.md). None: a new one, trained with the network.
    text_init: str | None = None
    checkpoint_minutes: float = 5.0
    sample_minutes: float = 15.0
    sample_guidance: float = 3.0
    sample_steps: int = 25
    sample_shift: float = 3.0


# One CPU core for hours: single frames and short clips cost least and teach what things look like, long clips what
# happens; small batches give more steps, and most of the gain comes while the rate falls (docs/log.md).
VISTA = TeacherConfig(
    model=VISTA_DIT,
    text=VISTA_TEXT,
    data="local/latents",
    unseen="unseen",
    lengths=(
        LengthConfig("images", 1, 32, shifts=(1.5, 4, 12)),
        LengthConfig("short", 6, 10, shifts=(2, 5, 25)),
        LengthConfig("long", 21, 5, shifts=(2.5, 10, 80)),
        LengthConfig("changing", 21, 5, shifts=(10, 60, 200)),
        LengthConfig("seldom", 21, 5, shifts=(2.5, 10, 80)),
    ),
    phases=(
        Phase(0.20, (0.65, 0.30, 0.05, 0.00, 0.00)),
        Phase(0.50, (0.35, 0.40, 0.10, 0.10, 0.05)),
        Phase(1.00, (0.15, 0.22, 0.23, 0.22, 0.18)),
    ),
    # batches at the highest levels have gradients of 2 to 9; limited to 1, they hardly counted (docs/log.md)
    optim=OptimConfig(lr=1.2e-3, muon=False, decay_from=0.2, clip=2.0),
    figure_weight=5.0,
    ema_decay=0.999,
    text_init="local/text/weights/text.safetensors",
    compile=True,
)
PRESETS = {"vista": VISTA, "vista-moving": replace(VISTA, model=VISTA_MOVING_DIT, view_noise=VISTA_NOISE)}


# ---- losses --------------------------------------------------------------------------------------------------------


def flow_loss(
    model: Velocity, x0: Latents, text: Any, sigma: FrameSigma, eps: Latents, weight: Tensor | None = None
) -> FrameSigma:
    """Flow matching: the mean squared error of the velocity, frame by frame. `weight` [B, T, h, w] is of each place."""
    x_t = flow.add_noise(x0, eps, sigma)
    error = (model(x_t, sigma, text) - flow.velocity(x0, eps)).square().mean(dim=2)
    return (error if weight is None else error * weight).mean(dim=(2, 3))


def weigh_figures(truth: Tensor, sigma: FrameSigma, cfg: TeacherConfig) -> Tensor:
    """From patch classes [B, T, gh, gw] the loss's weight of each place of the latents [B, T, h, w]."""
    weighed = (truth >= cfg.first_figure) & (sigma <= SETTLED)[:, :, None, None]
    weight = 1 + (cfg.figure_weight - 1) * weighed.float()
    return weight.repeat_interleave(cfg.model.patch, 2).repeat_interleave(cfg.model.patch, 3)


def draw_levels(batch: int, bounds: list[Span], rng: torch.Generator, shifts: tuple[float, ...]) -> FrameSigma:
    """One level per chunk; a clip seen both ways is one chunk."""
    shift = torch.tensor(shifts)[torch.randint(len(shifts), (batch, 1), generator=rng)]
    return hold_per_chunk(flow.shift_sigma(flow.draw_logit_normal((batch, len(bounds)), rng), shift), bounds)


class AlignmentHead(nn.Module):
    """Reads a block's output: which of the world's materials and entities each patch shows, and how it moves, before
    it is clean.

    A second target for the teacher's middle layers (in the manner of REPA, Yu et al. 2025), dropped after training.
    """

    def __init__(self, block: nn.Module, width: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, num_classes + 2 * NUM_MOTIONS))
        self._features: Tensor | None = None
        block.register_forward_hook(self._remember)

    def forward(self, truth: Tensor, motion: Tensor | None, motion_weight: float) -> Tensor:
        """Cross-entropy with [B, T, gh, gw] and, by its weight, [B, T, gh, gw, 2], for the last pass of the network."""
        assert self._features is not None
        logits = self.mlp(self._features).float()  # [B, T, S, classes and motions]
        shows, moves = logits.split([self.num_classes, 2 * NUM_MOTIONS], -1)
        loss = F.cross_entropy(shows.flatten(0, 2), truth.long().flatten())
        if motion is None or motion.shape[1] == 1:  # the first frame of a clip has come from nowhere
            return loss
        steps = torch.round(motion[:, 1:].float() / MOTION_PIXELS) + NUM_MOTIONS // 2
        moves = moves[:, 1:].unflatten(-1, (2, NUM_MOTIONS)).flatten(0, 3)
        return loss + motion_weight * F.cross_entropy(moves, steps.clamp(0, NUM_MOTIONS - 1).long().flatten())

    def _remember(self, block: nn.Module, args: Any, output: Tensor) -> None:
        self._features = output


# ---- the run -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """What a run needs to know besides latents: the words, and how to look at samples."""

    vocabulary: tuple[str, ...]
    prompts: list[str]  # of the sample sheets, never trained on
    decode: Callable[[Latents], Video]


def vista_world(num_prompts: int = 8) -> World:
    from causvid.codecs.vista import VistaCodec
    from causvid.worlds.vista import sample_scene
    from causvid.worlds.vista.captions import caption, vocabulary

    prompts = [caption(sample_scene(seed, "val"), seed, "val") for seed in range(num_prompts)]
    return World(tuple(vocabulary()), prompts, VistaCodec.load_packaged().decode)


class Teacher(nn.Module):
    """The network and its text encoder, trained and averaged as one."""

    def __init__(self, cfg: TeacherConfig, vocabulary: tuple[str, ...]) -> None:
        super().__init__()
        self.model = VideoDiT(cfg.model)
        self.text = VistaText(cfg.text, vocabulary)

    def start_from(self, folder: Path) -> None:
        if not (folder / "teacher.safetensors").exists() or (folder / MANIFEST).exists():
            load_checkpoint(read_checkpoint(folder), modules={"ema": self}, optimizers={})
            return
        for network, name in ((self.model, "teacher"), (self.text, "text")):
            file = folder / f"{name}.safetensors"
            state = {key: value.float() for key, value in read_tensors(file).items()}
            load_strictly(network, with_more_channels(state, network) if name == "teacher" else state, str(file))

    def shard(self) -> Teacher:
        parallel.shard(self.model, self.model.blocks)
        parallel.shard(self.text)
        return self


def with_more_channels(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """A state whose feed-forward layers are as wide as those of `network`. Channels that it lacks read what they were
    drawn to read, and write nothing yet: the network does what it did."""
    grown = dict(state)
    for name, fresh in network.state_dict().items():
        old = state.get(name)
        if ".ffn." not in name or old is None or old.ndim != fresh.ndim:
            continue
        if all(before <= now for before, now in zip(old.shape, fresh.shape)):
            grown[name] = torch.zeros_like(fresh) if name.endswith("ffn.2.weight") else fresh.clone()
            grown[name][tuple(slice(0, size) for size in old.shape)] = old
    return grown


def train(
    cfg: TeacherConfig,
    run_dir: Path,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    device: str = "cpu",
    world: World | None = None,
) -> Path:
    """Train until the budget is used up, or resume and do so. Returns the folder of the weights; `world`: Vista."""
    sitting = Sitting(cfg, run_dir, parallel.start(device), world or vista_world())
    take_steps(
        sitting,
        Budget(minutes, steps, sitting.seconds),
        save_minutes=cfg.checkpoint_minutes,
        show_minutes=cfg.sample_minutes,
        show=sitting.look,
    )
    return sitting.weights


class Sitting:
    """Everything that one process of a run holds between two steps."""

    def __init__(self, cfg: TeacherConfig, run_dir: Path, device: torch.device, world: World) -> None:
        for length in cfg.lengths:
            parallel.my_rows(length.batch)  # one that does not split is told at once, not at its first step
        self.cfg, self.device, self.world = cfg, device, world
        self.pools = [Pool(Path(cfg.data), length.pool) for length in cfg.lengths]
        self.checked = self.find_checked()
        self.weights = run_dir / "weights"
        self.run = Run(run_dir, cfg, data=" ".join(pool.identity for pool in self.pools))
        torch.manual_seed(cfg.seed)
        self.teacher = Teacher(cfg, world.vocabulary)
        if cfg.init is not None:
            self.teacher.start_from(Path(cfg.init))
        if cfg.text_init is not None:
            before = deepcopy(self.teacher.text.state_dict())
            load_strictly(self.teacher.text, read_tensors(Path(cfg.text_init)), cfg.text_init)
            self.teacher.text.requires_grad_(False)
            after = self.teacher.text.state_dict()
            alike = all(torch.allclose(before[name], after[name], rtol=0.01) for name in before)  # but for bfloat16
            if cfg.init is not None and not alike:
                self.run.status(
                    f"the text encoder is that of {cfg.text_init}, not the one that came with {cfg.init}: unless it "
                    "was mended from that one, give text_init as well as init"
                )
        self.teacher.to(device)
        self.ema = EMA(deepcopy(self.teacher).shard(), cfg.ema_decay)
        self.teacher.shard()
        block = self.teacher.model.blocks[cfg.align_layer]
        self.alignment = parallel.shard(AlignmentHead(block, cfg.model.width, cfg.num_classes).to(device))
        self.modules = {"teacher": self.teacher, "ema": self.ema.averages, "alignment": self.alignment}
        trained = [self.teacher.model, self.teacher.text] + ([self.alignment] if cfg.align_weight else [])
        self.optimizers = build_optimizers(cfg.optim, trained)
        still = [pool.name for pool in self.pools if pool.clip_shape[0] > 1 and not pool.tells_motion]
        silent = [pool.name for pool in self.pools if pool.clip_shape[0] > 1 and not pool.tells_travel]
        if cfg.unseen is not None and self.checked is None:
            self.run.status(
                f"no '{cfg.unseen}' in {cfg.data}, so it stays open how much is remembered instead of learnt"
            )
        if cfg.view_noise is not None and silent:
            self.run.status(f"clips of {', '.join(silent)} do not tell how the view moves: taken as views that rest")
        if cfg.align_weight and cfg.motion_weight and still:
            self.run.status(
                f"clips of {', '.join(still)} were made before they told motion: trained without that target"
            )
        self.by_sigma = LossBySigma()
        self.step, self.seconds, self.drawn = 0, 0.0, [0] * len(self.pools)
        self.progress: float | None = None  # of the step before
        if self.run.checkpoint is not None:
            self.resume(self.run.checkpoint)
        if cfg.compile:
            compile_blocks(self.teacher.model)

    def take_step(self, progress: float) -> None:
        cfg, rng = self.cfg, seeded(self.cfg.seed, self.step)
        if cfg.guide_at is not None and self.progress is not None and self.progress < cfg.guide_at <= progress:
            self.write(self.ema.averages.model, "guide")
        self.progress = progress
        index = choose_length(cfg.phases, progress, rng)
        length = cfg.lengths[index]
        batch = self.pools[index].batch(self.drawn[index], length.batch, length.num_frames, cfg.seed)
        self.drawn[index] += length.batch

        loss, per_frame, sigma = self.loss(batch, length, rng)
        loss.backward()
        norm = parallel.clip_gradients(all_parameters(self.optimizers), cfg.optim.clip)
        if not math.isfinite(norm):
            raise UserError(f"training diverged at step {self.step}; start a new run with a lower optim.lr.")
        rate = learning_rate(cfg.optim, self.step, progress)
        step_all(self.optimizers, rate)
        self.ema.update(self.teacher)
        self.step += 1
        self.by_sigma.add(per_frame, sigma)
        if self.step % LOG_EVERY == 0:
            self.report(progress, rate, norm, per_frame, loss)

    def loss(self, batch: Batch, length: LengthConfig, rng: torch.Generator) -> tuple[Tensor, FrameSigma, FrameSigma]:
        """The loss of this rank's rows, and how it came about. All randomness is drawn for the whole batch."""
        cfg, rows = self.cfg, parallel.my_rows(length.batch)
        bounds = chunk_bounds(length.num_frames, cfg.chunk) if cfg.sight == "causal" else [(0, length.num_frames)]
        sigma = draw_levels(length.batch, bounds, rng, length.shifts)[rows].to(self.device)
        travel, eps = self.travel(batch, rng), torch.randn(batch.latents.shape, generator=rng)
        names = [(cfg.seed, self.step, row) for row in range(length.batch)]
        eps = carry_rows(cfg.view_noise, eps, travel, names)[rows].to(self.device)
        travel = None if travel is None else travel[rows].to(self.device)
        drop = torch.rand(length.batch, generator=rng)[rows] < cfg.caption_dropout
        captions = ["" if dropped else caption for dropped, caption in zip(drop, batch.captions[rows])]
        x0 = batch.latents[rows].to(self.device)
        with fast_training(self.device, getattr(torch, cfg.dtype)):
            model = self.velocity(self.teacher.model, length.num_frames, travel)
            weight = None
            if cfg.figure_weight != 1 and batch.truth is not None:
                weight = weigh_figures(batch.truth[rows].to(self.device), sigma, cfg)
            per_frame = flow_loss(model, x0, self.teacher.text(captions), sigma, eps, weight)
            loss = per_frame.mean()
            if cfg.align_weight and batch.truth is not None:
                motion = None if batch.motion is None else batch.motion[rows].to(self.device)
                aligned = self.alignment(batch.truth[rows].to(self.device), motion, cfg.motion_weight)
                loss = loss + cfg.align_weight * aligned
        return loss, per_frame, sigma

    def travel(self, batch: Batch, rng: torch.Generator) -> Tensor | None:
        """How the views of the whole batch move, [B, T], where networks are told."""
        if self.cfg.view_noise is None or batch.travel is None:
            return None
        return set_free(batch.travel, self.cfg.free_noise, rng)

    def velocity(self, model: nn.Module, num_frames: int, travel: Tensor | None) -> Velocity:
        """The network as losses and samplers want it: float32 outside, the working dtype inside."""
        cfg, dtype = self.cfg, getattr(torch, self.cfg.dtype)
        bounds = chunk_bounds(num_frames, cfg.chunk) if cfg.sight == "causal" else None
        return lambda x_t, sigma, text: model(x_t.to(dtype), sigma, text, bounds=bounds, travel=travel).float()

    def find_checked(self) -> tuple[LengthConfig, dict[str, Pool]] | None:
        """Clips that are learnt from and clips that are not, of the first length of this run that the latter have."""
        cfg = self.cfg
        if cfg.unseen is None or not (Path(cfg.data) / cfg.unseen).is_dir():
            return None
        pool = Pool(Path(cfg.data), cfg.unseen)
        frames = [length.num_frames for length in cfg.lengths]
        if pool.clip_shape[0] not in frames:
            raise UserError(
                f"clips of '{cfg.unseen}' have {pool.clip_shape[0]} latent frames, those learnt from have "
                f"{', '.join(map(str, frames))}; set unseen to null or to a pool of one of these lengths."
            )
        index = frames.index(pool.clip_shape[0])
        return cfg.lengths[index], {"seen": self.pools[index], "unseen": pool}

    def look(self, progress: float) -> None:
        self.write_sheet(progress)
        if self.checked is not None:
            length, pools = self.checked
            losses = {name: self.check_loss(pool, length) for name, pool in pools.items()}
            self.run.log(self.step, **losses)
            self.run.status("loss of clips learnt from {seen:.4f}, of others {unseen:.4f}".format(**losses))

    @torch.no_grad()
    def check_loss(self, pool: Pool, length: LengthConfig) -> float:
        """Of the same clips of a pool every time; levels and noise do not depend on the pool."""
        rng, losses = seeded(SHEET_SEED), []
        for number in range(CHECK_BATCHES):
            batch = pool.batch(number * length.batch, length.batch, length.num_frames, SHEET_SEED)
            losses.append(parallel.mean_over_ranks(self.loss(batch, length, rng)[1].mean()))
        return float(torch.stack(losses).mean())

    @torch.no_grad()
    def write_sheet(self, progress: float) -> None:
        """Samples of the averaged weights at the longest clips of this phase: the same prompts and noise every time."""
        cfg, world = self.cfg, self.world
        mix = phase_at(cfg.phases, progress).mix
        num_frames = max(length.num_frames for length, weight in zip(cfg.lengths, mix) if weight)
        shape = (num_frames, *self.pools[0].clip_shape[1:])
        eps = torch.stack([torch.randn(shape, generator=seeded(SHEET_SEED, row)) for row in range(len(world.prompts))])
        ways = None
        if cfg.view_noise is not None:
            ways = ways_of(map(one_prompt, world.prompts), num_frames, repeat(SHEET_SEED))
            eps = carry_rows(cfg.view_noise, eps, ways, [(SHEET_SEED, row) for row in range(len(eps))])
        averages = self.ema.averages
        with fast_training(self.device, getattr(torch, cfg.dtype)):
            text, no_text = (averages.text(prompts) for prompts in (world.prompts, [""] * len(world.prompts)))
            field = sample.guided(self.velocity(averages.model, num_frames, ways), text, no_text, cfg.sample_guidance)
            x0 = sample.euler(field, eps.to(self.device), flow.sigma_grid(cfg.sample_steps, cfg.sample_shift))
        if parallel.is_first():
            file = self.run.folder / "samples" / f"step-{self.step:08d}.png"
            draw_sheet(file, [world.decode(clip[None]) for clip in x0.float().cpu()], world.prompts)

    def report(self, progress: float, rate: float, norm: float, per_frame: Tensor, loss: Tensor) -> None:
        frames = per_frame.shape[1]
        flow_part = float(parallel.mean_over_ranks(per_frame.mean()))
        values = {"loss": flow_part, "alignment": float(loss.detach() - per_frame.mean().detach()), "frames": frames}
        values |= {"rate": rate, "gradient": norm, "seconds": round(self.seconds, 2), "progress": progress}
        self.run.log(self.step, **values, **self.by_sigma.read(), drawn=sum(self.drawn))
        self.run.status(
            f"{progress:6.1%}  step {self.step}  loss {flow_part:.4f} at {frames} frames  gradient {norm:.2f}  "
            f"{self.seconds / self.step:.2f} s/step  drawn {self.drawn}",
            every=STATUS_SECONDS,
        )

    def save(self) -> None:
        save_checkpoint(
            self.run.folder / "checkpoints",
            self.step,
            modules=self.modules,
            optimizers=self.optimizers,
            state={
                "seconds": self.seconds,
                "drawn": self.drawn,
                "ema_updates": self.ema.num_updates,
                "progress": self.progress,
            },
            about=self.run.about,
        )
        averages = self.ema.averages  # for use while the run goes on
        self.write(averages.model, "teacher")
        write_weights(self.weights / "text.safetensors", averages.text, averages.text.about())

    def write(self, model: nn.Module, name: str) -> None:
        write_weights(self.weights / f"{name}.safetensors", model, config_metadata(self.cfg.model))

    def resume(self, checkpoint: Checkpoint) -> None:
        load_checkpoint(checkpoint, modules=self.modules, optimizers=self.optimizers)
        self.step, state = checkpoint.step, checkpoint.state
        self.seconds, self.drawn, self.ema.num_updates = state["seconds"], state["drawn"], state["ema_updates"]
        self.progress = state.get("progress")  # runs of before guides did not keep it
        self.run.status(f"resuming at step {self.step}, after {self.seconds / 60:.1f} minutes of training")


def phase_at(phases: tuple[Phase, ...], progress: float) -> Phase:
    return next((phase for phase in phases if progress < phase.until), phases[-1])


def choose_length(phases: tuple[Phase, ...], progress: float, rng: torch.Generator) -> int:
    """Which length of clip this step is about."""
    weights = torch.tensor(phase_at(phases, progress).mix)
    return int(torch.multinomial(weights, 1, generator=rng))
