"""Rectified flow: the algebra every other file relies on. Pure functions.

    x_t = (1 - sigma) x0 + sigma eps        sigma in [0, 1], 0 is data, 1 is noise
    v   = eps - x0                          what networks return
    x0  = x_t - sigma v

`sigma` is the only time variable; a network's own timestep is 1000 sigma. Guidance g = 1 means none.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from causvid.errors import UserError
from causvid.shapes import FrameSigma, Latents

S = TypeVar("S", float, Tensor)

NUM_TIMESTEPS = 1000  # scale of the timestep embedding and of published step lists


def per_frame(sigma: FrameSigma, x: Tensor) -> Tensor:
    """Append axes so that sigma [B, T] broadcasts over x [B, T, ...]."""
    return sigma.reshape(sigma.shape + (1,) * (x.ndim - sigma.ndim))


def add_noise(x0: Latents, eps: Latents, sigma: FrameSigma) -> Latents:
    s = per_frame(sigma, x0)
    return ((1 - s) * x0 + s * eps).to(x0.dtype)


def velocity(x0: Latents, eps: Latents) -> Latents:
    return eps - x0


def x0_from_velocity(x_t: Latents, v: Latents, sigma: FrameSigma) -> Latents:
    return (x_t - per_frame(sigma, x_t) * v).to(x_t.dtype)


def eps_from_velocity(x_t: Latents, v: Latents, sigma: FrameSigma) -> Latents:
    return (x_t + (1 - per_frame(sigma, x_t)) * v).to(x_t.dtype)


def velocity_from_x0(x_t: Latents, x0: Latents, sigma: FrameSigma) -> Latents:
    """Undefined at sigma = 0, where x_t is x0 whatever the velocity."""
    return ((x_t - x0) / per_frame(sigma, x_t)).to(x_t.dtype)


@dataclass(frozen=True)
class GuidanceSteps:
    """Guidance that depends on the level: what moves is decided at the highest ones, and less of it below lets it."""

    steps: tuple[tuple[float, float], ...]  # (level, guidance from there down), from level 1 on

    def __post_init__(self) -> None:
        levels = [level for level, _ in self.steps]
        if levels[:1] != [1] or any(low >= high for high, low in pairwise([*levels, 0.0])):
            raise UserError(f"steps of guidance are (1, g), (a lower level, g from there down), ...; got {self.steps}")

    def __format__(self, spec: str) -> str:
        return ", ".join(f"{g:g}" if level == 1 else f"{g:g} from {level:g} down" for level, g in self.steps)

    def at(self, sigma: FrameSigma) -> FrameSigma:
        found = torch.zeros_like(sigma)
        for level, guidance in self.steps:
            found = torch.where(sigma <= level, guidance, found)
        return found


Guidance = float | GuidanceSteps


def guide(cond: Tensor, uncond: Tensor, guidance: Guidance, sigma: FrameSigma) -> Tensor:
    """uncond + g (cond - uncond). The form cond + w (cond - uncond) of other code bases is g = 1 + w."""
    if isinstance(guidance, GuidanceSteps):
        return uncond + per_frame(guidance.at(sigma), cond).to(cond.dtype) * (cond - uncond)
    return uncond + guidance * (cond - uncond)


# ---- noise levels ----------------------------------------------------------------------------------------------


def shift_sigma(u: S, shift: float | S) -> S:
    """Move levels towards noise: s u / (1 + (s - 1) u). A shift of 1 changes nothing."""
    return shift * u / (1 + (shift - 1) * u)


def sigma_grid(num_steps: int, shift: float = 1.0) -> list[float]:
    """num_steps + 1 levels from 1 down to 0, both included."""
    return [shift_sigma(1 - i / num_steps, shift) for i in range(num_steps + 1)]


def sigmas_from_timesteps(timesteps: Sequence[float], warp_shift: float | None = None) -> list[float]:
    """A published step list (1000 is noise) as levels that end in 0.

    `warp_shift` reads an entry k as the k-th entry, from the clean end, of the shifted table of 1000 levels, which is
    the closed form below: 1000/750/500/250 at shift 8 is 1000/960/888.9/727.3.
    """
    levels = [t / NUM_TIMESTEPS for t in timesteps if t > 0]
    if not levels or any(a <= b for a, b in pairwise(levels)) or levels[0] > 1:
        raise ValueError(f"a step list must fall strictly from at most {NUM_TIMESTEPS}; got {list(timesteps)}")
    if warp_shift is not None:
        levels = [shift_sigma(s, warp_shift) for s in levels]
    return [*levels, 0.0]


def sigma_from_table(timestep: float, shift: float, num_entries: int = NUM_TIMESTEPS) -> float:
    """The level a table look-up gives (nearest of `num_entries` shifted levels that stop short of 0).

    Only for comparing with code that keeps such tables; everything here uses sigma = timestep / 1000 exactly.
    """
    table = [shift_sigma(1 - i / num_entries, shift) for i in range(num_entries)]
    return min(table, key=lambda s: abs(s * NUM_TIMESTEPS - timestep))


def draw_score_sigma(
    num: int, rng: torch.Generator, *, shift: float, low: float = 0.02, high: float = 0.98, device=None
) -> Tensor:
    """Levels at which teacher and critic look at a video: an integer timestep, shifted, then clamped. Returns [num]."""
    t = torch.randint(0, NUM_TIMESTEPS, (num,), generator=rng, device=rng.device).to(torch.float32)
    return shift_sigma(t / NUM_TIMESTEPS, shift).clamp(low, high).to(device or rng.device)


def draw_logit_normal(
    shape: tuple[int, ...], rng: torch.Generator, *, mean: float = 0.0, std: float = 1.0, shift: float = 1.0
) -> Tensor:
    """Training levels: sigmoid of a normal variable, shifted. Concentrates on the middle, where the work is."""
    u = torch.sigmoid(mean + std * torch.randn(shape, generator=rng, device=rng.device))
    return shift_sigma(u, shift)


def timestep_features(sigma: Tensor, width: int) -> Tensor:
    """Sinusoid of 1000 sigma in float64, cosines first, as Wan has it. [...] -> [..., width] in float32."""
    half = width // 2
    frequency = torch.exp(torch.arange(half, dtype=torch.float64, device=sigma.device) * (-math.log(10_000.0) / half))
    angle = sigma.to(torch.float64).unsqueeze(-1) * NUM_TIMESTEPS * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1).to(torch.float32)
