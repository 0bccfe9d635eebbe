"""A teacher, its words, clips and prompts at a size of milliseconds, as the distillation stages find them on disk."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from causvid import flow
from causvid.cache import CachePolicy
from causvid.data.clips import Clip, PoolSpec, write_shard
from causvid.flow import sigma_grid
from causvid.models.dit import VideoDiT, VideoDiTConfig
from causvid.rollout import RolloutConfig
from causvid.stages.dmd import DMDConfig
from causvid.stages.ode_init import InitConfig
from causvid.stages.ode_pairs import PairsConfig
from causvid.stages.sources import Gallery
from causvid.tensor_files import read_tensors
from causvid.text.vista import VistaText, VistaTextConfig
from causvid.training.optim import OptimConfig
from causvid.view_noise import ViewNoise
from tiny_models import BoxCodec

MODEL = VideoDiTConfig(24, 48, 2, 2, 4, 4, 2, 16, 16, 6, 1e-6, "islands")
CLIP = (5, 4, 4, 4)
MOVING = {"model": replace(MODEL, parallax=(0.0, 1.0)), "view_noise": ViewNoise(0.8, pixels=4)}
STUDENT = RolloutConfig(sigmas=tuple(sigma_grid(4, 3.0)), shift=3.0, chunk=2, policy=CachePolicy(window=5))
OPTIM = OptimConfig(lr=1e-3, muon=False, warmup=1)
GALLERY = Gallery(["red car", "blue car"], lambda latents: latents[:, :, :3].repeat_interleave(4, dim=1))


def write_weights_folder(folder: Path, name: str = "teacher", seed: int = 0, model: VideoDiTConfig = MODEL) -> Path:
    """A random network whose every parameter matters, beside a text encoder."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = torch.Generator().manual_seed(seed)
    network = VideoDiT(model)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.2, generator=rng)
    save_file(network.state_dict(), folder / f"{name}.safetensors")
    torch.manual_seed(seed)
    text = VistaText(VistaTextConfig(16, 32, 1, 2, 6), ("red", "blue", "car"))
    save_file(text.state_dict(), folder / "text.safetensors", metadata=text.about())
    return folder


class Squares(BoxCodec):
    """Clips of noise whose 'pixels' the identity codec takes as latents."""

    def __call__(self, seeds, num_latents: int) -> list[Clip]:
        return [self.clip(seed, num_latents) for seed in seeds]

    def clip(self, seed: int, num_latents: int) -> Clip:
        frames = np.random.default_rng(seed).integers(0, 256, (num_latents, 4, 4, 3), dtype=np.uint8)
        return Clip(frames, ["red car", "blue car"], camera=np.linspace(0, seed, num_latents, dtype=np.float32))

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        return torch.cat([video, video[:, :, :1]], dim=2)


def write_world(folder: Path) -> Path:
    """weights/, latents/long and prompts.txt."""
    write_weights_folder(folder / "weights")
    spec = PoolSpec("long", CLIP[0], 6)
    write_shard(folder / "latents/long/shard-00000.safetensors", spec, spec.seeds(0), Squares(), Squares())
    (folder / "prompts.txt").write_text("red car\nblue car\ncar\n\nred\n")
    return folder


def pairs_config(world: Path, **changes) -> PairsConfig:
    base = PairsConfig(
        model=MODEL,
        teacher=str(world / "weights"),
        student=STUDENT,
        num_pairs=5,
        clip=CLIP,
        guidance=2.0,
        batch=2,
        steps=8,
        prompts=str(world / "prompts.txt"),
        pairs_per_shard=2,
        dtype="float32",
    )
    return replace(base, **changes)


def init_config(world: Path, **changes) -> InitConfig:
    base = InitConfig(
        model=MODEL,
        teacher=str(world / "weights"),
        student=STUDENT,
        optim=OPTIM,
        batch=2,
        pairs=str(world / "pairs"),
        steps=8,
        num_frames=CLIP[0],
        dtype="float32",
    )
    return replace(base, **changes)


def dmd_config(world: Path, **changes) -> DMDConfig:
    base = DMDConfig(
        model=MODEL,
        teacher=str(world / "weights"),
        init=None,
        student=STUDENT,
        clip=CLIP,
        student_optim=OPTIM,
        critic_optim=OPTIM,
        batch=2,
        guidance=2.0,
        input="self",
        prompts=str(world / "prompts.txt"),
        data=str(world / "latents"),
        critic_updates=2,
        log_every=1,
        dtype="float32",
    )
    return replace(base, **changes)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {f"{file.stem}.{k}": v for file in folder.glob("*.safetensors") for k, v in read_tensors(file).items()}


def assert_same_weights(a: Path, b: Path, **tolerance) -> None:
    one, two = weights_of(a), weights_of(b)
    assert one.keys() == two.keys() and len(one) > 10
    for name in one:
        torch.testing.assert_close(
            one[name],
            two[name],
            msg=lambda text, name=name: f"{name}: {text}",
            equal_nan=True,
            **tolerance or {"rtol": 0, "atol": 0},
        )


def gaussian(mean: float):
    """The exact velocity of N(mean, 1): clean and noise are drawn together given x_t."""

    def velocity(x_t, sigma, text, travel=None):
        s = flow.per_frame(sigma, x_t)
        variance = (1 - s) ** 2 + s**2
        x0 = mean + (1 - s) / variance * (x_t - (1 - s) * mean)
        return (x_t - x0) / s

    return velocity
