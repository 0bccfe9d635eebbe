"""Distribution matching distillation as pure functions (DMD, and Eq. 5 of the paper). Networks are callables."""

from typing import Any

import torch
from torch import Tensor

from causvid import flow, sample
from causvid.shapes import FrameSigma, Latents, Scalar, Velocity


@torch.no_grad()
def dmd_gradient(
    x0: Latents,
    teacher: Velocity,
    critic: Velocity,
    text: Any,
    no_text: Any,
    sigma: FrameSigma,
    eps: Latents,
    guidance: flow.Guidance,
    guide: Velocity | None = None,
) -> Latents:
    """What the student's video x0 has too much of: critic - teacher, as clean videos, at one noise level per clip.

    Scores are differences of these predictions up to a factor of sigma; dividing by the teacher's distance instead
    makes all levels count alike."""
    x_t = flow.add_noise(x0, eps, sigma)
    fake = flow.x0_from_velocity(x_t, critic(x_t, sigma, text), sigma)
    wanted = sample.guided(teacher, text, no_text, guidance, guide)
    real = flow.x0_from_velocity(x_t, wanted(x_t, sigma), sigma)
    size = (x0 - real).abs().mean(dim=(1, 2, 3, 4), keepdim=True)
    return (fake - real) / size.clamp_min(1e-8)


def student_loss(x0: Latents, gradient: Latents) -> Scalar:
    """A number whose derivative with respect to x0 is gradient / numel."""
    wanted = x0.detach().double() - gradient
    return 0.5 * (x0.double() - wanted).square().mean()


def critic_loss(critic: Velocity, x0: Latents, text: Any, sigma: FrameSigma, eps: Latents) -> FrameSigma:
    """The critic keeps up with the student: flow matching on the student's own videos, frame by frame."""
    x_t = flow.add_noise(x0, eps, sigma)
    return (critic(x_t, sigma, text) - flow.velocity(x0, eps)).square().mean(dim=(2, 3, 4))


def signs_of_life(x0: Latents, starts: list[int]) -> dict[str, Tensor]:
    """What ails videos that a falling loss hides. `starts`: the first frames of chunks after the first.

    std       grows when pictures burn out, falls when they turn grey
    motion    mean change from frame to frame: near 0 is a still picture
    seams     change into a new chunk over change inside chunks: above 1, the cut shows
    """
    change = (x0[:, 1:] - x0[:, :-1]).abs().mean(dim=(0, 2, 3, 4))  # [T - 1], into frames 1, 2, ...
    is_seam = torch.zeros(len(change), dtype=torch.bool, device=x0.device)
    is_seam[[start - 1 for start in starts]] = True
    life = {"std": x0.std(), "motion": change.sum() / max(1, len(change))}  # a single frame does not move
    inside = ~is_seam
    inside[:1] = False  # the first frame stands for one picture, the others for several: a cut of its own
    if starts and inside.any():
        life["seams"] = change[is_seam].mean() / change[inside].mean().clamp_min(1e-8)
    return life


def spread(clips: Latents) -> Tensor:
    """Of clips in pairs of one prompt and two seeds [prompts * 2, ...]: the distance within pairs, over that between
    prompts. 1: a prompt says nothing; near 0: every seed gives the same clip."""
    a, b = clips[0::2].flatten(1), clips[1::2].flatten(1)
    within = (a - b).norm(dim=1).mean()
    between = (a - b.roll(1, dims=0)).norm(dim=1).mean()
    return within / between.clamp_min(1e-8)
