"""The Vista codec, trained on clips rendered while it trains: reconstruction, with noise on its latents.

Reads:  the renderer; to train a decoder further the codec it is of, and a teacher whose latents it learns to show.
Writes: a run folder; weights/codec.safetensors holds the averaged weights with the statistics of their latents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from causvid import flow, sample
from causvid.checkpoints import load_dit
from causvid.codecs.vista import (
    DECODING,
    PACKAGED,
    VistaAutoencoder,
    VistaCodec,
    VistaCodecConfig,
    groups_from_video,
    video_from_groups,
)
from causvid.errors import UserError
from causvid.noise import seeded
from causvid.shapes import Frames, Latents, Scalar, Video
from causvid.stages.sources import Network, frozen, network_file, read_words
from causvid.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from causvid.training.cpu import fast_training
from causvid.training.ema import EMA
from causvid.training.optim import OptimConfig, learning_rate, orthogonalize, step_all
from causvid.training.run import Budget, Run, take_steps
from causvid.training.sheet import draw_sheet

LOG_EVERY = 20  # steps
STATUS_SECONDS = 20.0
POOL_FRAMES = 33  # of a rendered clip; batches are windows of it
CALIBRATION_CLIPS = 192
DETAIL_POWER = 0.7  # (ours) 0: all channels of one size; 1: sizes as they count in the picture
NUDGE = 0.3  # of a channel's deviation, to see how it counts

Clips = Callable[[int, int], Frames]  # (index, num_frames) -> a clip; the same index is always the same clip
Captions = Callable[[int], str]  # what the clip of this index shows
Remake = Callable[[Latents], Latents]

# ---- config --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CodecConfig:
    model: VistaCodecConfig
    optim: OptimConfig  # `lr` is Muon's, for the deep convolutions
    linear_rate: float = 0.3  # AdamW's rate for the linear maps and the biases, as a part of `lr`
    batch: int = 3  # clips
    num_latents: int = 4  # latent frames per clip
    pool: int = 384  # rendered clips to draw from; one is replaced at every step
    max_noise: float = 0.1  # on the latents the decoder learns from, in units of about their deviation
    size_weight: float = 0.003  # of the latents' mean square; without it they would outgrow the noise
    motion_weight: float = 0.25  # of differences along time
    # A finished codec whose latents are kept: only its decoder goes on learning, and may have more blocks than it had.
    # Networks that learnt these latents still fit.
    decoder_of: str | None = None
    # A teacher (its folder of weights) of the same latents, which makes this share of the clips anew from up to this
    # level: in use, a decoder is shown what a network made, whose detail does not quite follow what moves.
    made_by: str | None = None
    made_share: float = 0.6
    made_from: float = 0.35
    ema_decay: float = 0.998
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    seed: int = 0
    checkpoint_minutes: float = 4.0
    sample_minutes: float = 8.0


# One CPU core, 35 minutes.
VISTA = CodecConfig(model=PACKAGED, optim=OptimConfig(lr=3e-3, weight_decay=0.0, warmup=50, decay_from=0.0))
# Of the packaged codec; its own latents are learnt from with more noise, as networks never get them quite right.
VISTA_DECODER = replace(
    VISTA,
    optim=replace(VISTA.optim, lr=2e-3),
    max_noise=0.15,
    motion_weight=0.75,
    decoder_of="src/causvid/weights/vista/codec.safetensors",
    made_by="src/causvid/weights/vista",
)
PRESETS = {"vista": VISTA, "vista-decoder": VISTA_DECODER}


def vista_clips(split: str) -> Clips:
    """Windows that start anywhere in a scene's first 81 frames, so that its events are seen too."""
    from causvid.worlds import vista

    def clip(index: int, num_frames: int) -> Frames:
        start = int(torch.randint(0, max(1, 82 - num_frames), (), generator=seeded(index)))
        return vista.render(vista.sample_scene(index, split), num_frames, start_frame=start)[0]

    return clip


def vista_captions(split: str) -> Captions:
    from causvid.worlds import vista
    from causvid.worlds.vista.captions import caption

    return lambda index: caption(vista.sample_scene(index, split), index, split)


# ---- losses --------------------------------------------------------------------------------------------------------


def reconstruction_loss(output: Video, target: Video, motion_weight: float = 0.25) -> Scalar:
    """Absolute and squared errors of pixels, and absolute errors of their differences along x, y and time.

    Edges and motion are what heroes are made of, and most pixels are neither.
    """
    error = output - target
    across = error.diff(dim=4).abs().mean() + error.diff(dim=3).abs().mean()
    return (
        (error.square() + 1e-4).sqrt().mean()
        + 5 * error.square().mean()
        + 0.5 * across
        + motion_weight * error.diff(dim=1).abs().mean()
    )


def codec_loss(
    network: VistaAutoencoder,
    video: Video,
    noise: Latents,
    size_weight: float,
    motion_weight: float,
    remake: Remake | None = None,
) -> tuple[Scalar, Scalar]:
    """The loss and its mean squared error alone; `noise` is added to the latents, after they were made anew."""
    latents, _ = network.encode(groups_from_video(video), [])
    if remake is not None:
        latents = remake(latents)
    groups, _ = network.decode(latents + noise, [])
    output = video_from_groups(groups.float())
    loss = reconstruction_loss(output, video, motion_weight) + size_weight * latents.square().mean()
    return loss, (output.detach() - video).square().mean()


def draw_noise(shape: tuple[int, ...], largest: float, rng: torch.Generator) -> Latents:
    """One level per clip, mostly small, up to `largest`."""
    level = torch.rand(shape[0], 1, 1, 1, 1, generator=rng).square() * largest
    return level * torch.randn(shape, generator=rng)


class Remaker:
    """Noises latents part of the way, and lets a teacher denoise them, as if it had made them."""

    STEP = 0.12  # of levels, at most

    def __init__(self, folder: str) -> None:
        file = network_file(Path(folder), "teacher")
        self.network = Network(frozen(load_dit(file), "bfloat16"), "bfloat16")
        self.words = read_words(folder, torch.device("cpu"))

    @torch.no_grad()
    def __call__(self, latents: Latents, captions: list[str], level: float, noise: Latents) -> Latents:
        count, text = math.ceil(level / self.STEP), self.words(captions)
        x = flow.add_noise(latents, noise, torch.full(latents.shape[:2], level))
        levels = [level * sigma for sigma in flow.sigma_grid(count)]
        return sample.euler(lambda x_t, sigma: self.network(x_t, sigma, text), x, levels)


# ---- data ----------------------------------------------------------------------------------------------------------


class ClipPool:
    """Rendered clips in memory: at step n it holds the clips n, n + 1, ..., n + size - 1."""

    def __init__(self, clips: Clips, size: int, step: int) -> None:
        self.clips, self.step = clips, step
        rendered = {index % size: clips(index, POOL_FRAMES) for index in range(step, step + size)}
        self.frames = [rendered[place] for place in range(size)]

    def advance(self) -> None:
        """Replace the oldest clip."""
        size = len(self.frames)
        self.frames[self.step % size] = self.clips(self.step + size, POOL_FRAMES)
        self.step += 1

    def batch(self, count: int, num_frames: int, rng: torch.Generator) -> tuple[Video, list[int]]:
        """Windows of clips drawn from here, and the indices of the clips."""
        size = len(self.frames)
        places = torch.randint(size, (count,), generator=rng).tolist()
        starts = torch.randint(POOL_FRAMES - num_frames + 1, (count,), generator=rng).tolist()
        video = video_from_frames([self.frames[p][s : s + num_frames] for p, s in zip(places, starts)])
        return video, [self.step + (place - self.step) % size for place in places]


def video_from_frames(clips: Iterable[Frames]) -> Video:
    pixels = torch.from_numpy(np.stack(list(clips)))
    return pixels.permute(0, 1, 4, 2, 3).float() / 127.5 - 1


# ---- measures ------------------------------------------------------------------------------------------------------


def psnr(output: Video, target: Video) -> float:
    """Of whole clips in [-1, 1], in dB."""
    return 10 * math.log10(4 / (output - target).square().mean().item())


@torch.no_grad()
def calibrate(network: VistaAutoencoder, videos: Iterable[Video]) -> None:
    """Set the statistics of `network` so that its latents of `videos` have mean 0 and, per channel, the deviation of
    `channel_sizes`.

    Channels that only carry fine detail, alike at every place but unpredictable, are most of the channels. Were all of
    one size, most of a diffusion model's loss would be about them, and it would take them apart from noise at the same
    levels as the composition. In order of what they show, composition comes first and detail last, as in pixels."""
    network.latent_mean.zero_()
    network.latent_std.fill_(1)
    codec = VistaCodec(network)
    latents = [codec.encode(video) for video in videos]
    flat = torch.cat([clip.movedim(2, -1).flatten(0, -2) for clip in latents]).double()
    network.latent_mean.copy_(flat.mean(0))
    network.latent_std.copy_(flat.std(0))
    examples = (torch.cat(latents[:16]) - network.latent_mean[:, None, None]) / network.latent_std[:, None, None]
    network.latent_std.div_(channel_sizes(network, examples))


@torch.no_grad()
def channel_sizes(network: VistaAutoencoder, latents: Latents) -> Tensor:
    """By how much a unit of each channel of normalised latents changes the picture, to the power DETAIL_POWER; the
    mean square over channels is 1."""
    codec, rng = VistaCodec(network), seeded(0xC4A7)
    whole, nudge = codec.decode(latents), NUDGE * torch.randint(0, 2, latents.shape, generator=rng).mul(2).sub(1.0)
    changes = []
    for channel in range(latents.shape[2]):
        one = torch.zeros_like(nudge)
        one[:, :, channel] = nudge[:, :, channel]
        changes.append((codec.decode(latents + one) - whole).square().mean().sqrt())
    sizes = torch.stack(changes) ** DETAIL_POWER
    return sizes / sizes.square().mean().sqrt()


# ---- the run -------------------------------------------------------------------------------------------------------


class ConvMuon(Optimizer):
    """Muon for convolutions: a kernel is the matrix [out, in * taps]; see training/optim.py for the step's size."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                by_shape.setdefault(p.shape, []).append(p)
            for params in by_shape.values():
                moves = orthogonalize(torch.stack([self._momentum(p, group["momentum"]) for p in params]).bfloat16())
                size = group["lr"] * 0.2 * max(moves.shape[1:]) ** 0.5
                for p, move in zip(params, moves):
                    p.sub_(move.view_as(p).to(p.dtype), alpha=size)

    def _momentum(self, p: Tensor, momentum: float) -> Tensor:
        assert p.grad is not None
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        state["momentum"].lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(state["momentum"], momentum).flatten(1)


def keep_latents_of(path: Path, network: VistaAutoencoder) -> None:
    """Start `network` as this codec. Only its decoder will learn; blocks that the codec lacks begin as nothing."""
    finished = VistaCodec.load(path, torch.float32).network
    ours, theirs = network.cfg, finished.cfg
    more = all(mine >= blocks for mine, blocks in zip(ours.decoder_blocks, theirs.decoder_blocks))
    if not more or replace(ours, decoder_blocks=theirs.decoder_blocks) != theirs:
        raise UserError(f"{path} is {theirs}; what goes on from it can only have more decoder_blocks, not be {ours}.")
    network.start_from(finished)
    for name, p in network.named_parameters():
        p.requires_grad_(name.startswith(DECODING))


def build_optimizers(cfg: CodecConfig, network: VistaAutoencoder) -> dict[str, Optimizer]:
    deep: list[Tensor] = []
    others: list[Tensor] = []
    for name, p in network.named_parameters():
        if p.requires_grad:
            (deep if p.ndim == 4 and name.startswith(("encoder.", "decoder.")) else others).append(p)
    return {
        "muon": ConvMuon(deep, cfg.optim.lr, cfg.optim.momentum),
        "adamw": AdamW(others, cfg.optim.lr, cfg.optim.betas, weight_decay=0.0),
    }


def train(
    cfg: CodecConfig,
    run_dir: Path,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    clips: Clips | None = None,
    held_out: Clips | None = None,
    captions: Captions | None = None,
) -> Path:
    """Train until the budget is used up, or resume and do so. Returns the weight file, or the folder of a run that was
    interrupted; `clips`: the world Vista."""
    world = clips or vista_clips("train"), held_out or vista_clips("val"), captions or vista_captions("train")
    sitting = Sitting(cfg, run_dir, *world)
    finished = take_steps(
        sitting,
        Budget(minutes, steps, sitting.seconds),
        save_minutes=cfg.checkpoint_minutes,
        show_minutes=cfg.sample_minutes,
        show=lambda progress: sitting.look(),
    )
    return sitting.freeze() if finished else run_dir


class Sitting:
    """Everything that a run holds between two steps."""

    def __init__(self, cfg: CodecConfig, run_dir: Path, clips: Clips, held_out: Clips, captions: Captions) -> None:
        self.cfg, self.clips, self.held_out, self.captions = cfg, clips, held_out, captions
        torch.manual_seed(cfg.seed)
        self.network = VistaAutoencoder(cfg.model)
        if cfg.decoder_of is not None:
            keep_latents_of(Path(cfg.decoder_of), self.network)
        elif cfg.made_by is not None:
            raise UserError("made_by needs decoder_of: a teacher knows the latents of a finished codec alone.")
        self.remaker = Remaker(cfg.made_by) if cfg.made_by is not None else None
        self.run = Run(run_dir, cfg, data="rendered clips")
        self.step, self.seconds = 0, 0.0
        checkpoint = self.run.checkpoint
        self.run.status(f"rendering {cfg.pool} clips to draw from")
        self.pool = ClipPool(clips, cfg.pool, checkpoint.step if checkpoint else 0)
        if checkpoint is None and cfg.decoder_of is None:
            examples, _ = self.pool.batch(min(cfg.pool, 256), POOL_FRAMES, seeded(cfg.seed))
            self.network.start_from_principal_components(groups_from_video(examples)[:, 1:])
        self.ema = EMA(deepcopy(self.network), cfg.ema_decay)
        self.modules = {"codec": self.network, "ema": self.ema.averages}
        self.optimizers = build_optimizers(cfg, self.network)
        self.errors: list[float] = []
        if checkpoint is not None:
            self.resume(checkpoint)

    def take_step(self, progress: float) -> None:
        cfg, rng = self.cfg, seeded(self.cfg.seed, self.step)
        video, indices = self.pool.batch(cfg.batch, 1 + 4 * (cfg.num_latents - 1), rng)
        latents = (cfg.batch, cfg.num_latents, cfg.model.latent_channels, video.shape[3] // 8, video.shape[4] // 8)
        noise = draw_noise(latents, cfg.max_noise, rng)
        with fast_training(torch.device("cpu"), getattr(torch, cfg.dtype)):
            remake = partial(self.remake, self.remaker, indices, rng) if self.remaker else None
            loss, error = codec_loss(self.network, video, noise, cfg.size_weight, cfg.motion_weight, remake)
        loss.backward()
        norm = float(nn.utils.clip_grad_norm_(self.network.parameters(), cfg.optim.clip))
        if not math.isfinite(norm):
            raise UserError(f"training diverged at step {self.step}; start a new run with a lower optim.lr.")
        rate = learning_rate(cfg.optim, self.step, progress)
        step_all({"muon": self.optimizers["muon"]}, rate)
        step_all({"adamw": self.optimizers["adamw"]}, rate * cfg.linear_rate)
        self.ema.update(self.network)
        self.pool.advance()
        self.step += 1
        self.errors.append(float(error))
        if self.step % LOG_EVERY == 0:
            self.report(progress, float(loss.detach()), rate, norm)

    def remake(self, remaker: Remaker, indices: list[int], rng: torch.Generator, latents: Latents) -> Latents:
        """The latents of these clips, a share of them made anew, all from one level."""
        chosen = torch.rand(len(indices), generator=rng) < self.cfg.made_share
        level = self.cfg.made_from * float(torch.rand((), generator=rng))
        captions = [self.captions(index) for index, is_chosen in zip(indices, chosen) if is_chosen]
        noise = torch.randn(latents.shape, generator=rng)
        if captions and level > 0:
            latents[chosen] = remaker(latents[chosen], captions, level, noise[chosen])
        return latents

    def report(self, progress: float, loss: float, rate: float, norm: float) -> None:
        quality = 10 * math.log10(4 / (sum(self.errors) / len(self.errors)))
        self.errors.clear()
        values = {
            "loss": loss,
            "noisy_psnr": quality,
            "rate": rate,
            "gradient": norm,
            "seconds": round(self.seconds, 2),
        }
        self.run.log(self.step, **values)
        self.run.status(
            f"{progress:5.1%}  step {self.step}  loss {loss:.4f}  {quality:.2f} dB with noise", every=STATUS_SECONDS
        )

    def look(self, num_clips: int = 8) -> None:
        """A sheet of held-out clips, each above its reconstruction by the averaged weights."""
        codec = VistaCodec(deepcopy(self.ema.averages).to(getattr(torch, self.cfg.dtype)))
        videos = [video_from_frames([self.held_out(index, POOL_FRAMES)]) for index in range(num_clips)]
        outputs = [codec.decode(codec.encode(video)) for video in videos]
        quality = [psnr(output, video) for output, video in zip(outputs, videos)]
        file = self.run.folder / "samples" / f"step-{self.step:08d}.png"
        rows = [row for pair in zip(videos, outputs) for row in pair]
        names = [name for db in quality for name in ("held out", f"reconstructed, {db:.2f} dB")]
        draw_sheet(file, rows, names)
        self.run.log(self.step, held_out_psnr=sum(quality) / num_clips)
        self.run.status(f"step {self.step}: {sum(quality) / num_clips:.2f} dB on held-out clips; see {file}")

    def freeze(self) -> Path:
        """The averaged weights as the file that others load; new latents are calibrated on clips never trained on."""
        network = deepcopy(self.ema.averages)
        if self.cfg.decoder_of is None:
            count = min(CALIBRATION_CLIPS, self.cfg.pool)
            calibrate(network, (video_from_frames([self.held_out(1000 + i, POOL_FRAMES)]) for i in range(count)))
        file = self.run.folder / "weights" / "codec.safetensors"
        VistaCodec(network).save(file)
        return file

    def save(self) -> None:
        state = {"seconds": self.seconds, "averaged": self.ema.num_updates}
        folder, about = self.run.folder / "checkpoints", self.run.about
        save_checkpoint(folder, self.step, modules=self.modules, optimizers=self.optimizers, state=state, about=about)

    def resume(self, checkpoint: Checkpoint) -> None:
        load_checkpoint(checkpoint, modules=self.modules, optimizers=self.optimizers)
        self.step, self.seconds = checkpoint.step, checkpoint.state["seconds"]
        self.ema.num_updates = checkpoint.state["averaged"]
        self.run.status(f"resuming at step {self.step}")
