"""Many-step sampling of a bidirectional model: Euler and Heun over any velocity, guidance, trajectories. Stateless."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from causvid import flow
from causvid.errors import UserError
from causvid.shapes import FrameSigma, Latents, Velocity

Field = Callable[[Latents, FrameSigma], Latents]  # a velocity with its text already chosen
Noise = Callable[[int], Latents]  # of a draw: 0 is where sampling starts, k comes after the k-th step


@dataclass(frozen=True)
class Renewal:
    """Noise that is drawn anew on the way down. A network's mistakes are noised over with it and seen again; an ODE
    keeps them (Karras et al. 2022, section 4)."""

    eta: float = 0.0  # 0: the ODE; 1: as much as the reverse of diffusion draws, "ancestral" elsewhere
    until: float = 0.0  # none at levels below

    def __post_init__(self) -> None:
        if not (0 <= self.eta < math.inf and 0 <= self.until <= 1):
            raise UserError(f"noise is renewed by an eta of 0 or more, down to a level of 0 to 1; got {self!r}")

    def __str__(self) -> str:
        return f"noise renewed by {self.eta:g}" + (f" down to {self.until:g}" if self.until else "")

    def share(self, sigma: float, sigma_next: float) -> float:
        """Of the deviation of the noise at `sigma_next`, coming from `sigma`."""
        if sigma_next == 0 or sigma_next < self.until:
            return 0.0
        kept = sigma_next * (1 - sigma) / ((1 - sigma_next) * sigma)  # the ratio of noise to data, after and before
        return min(1.0, self.eta * (1 - kept**2) ** 0.5)


ODE = Renewal()


def guided(model: Velocity, text, no_text, guidance: flow.Guidance, guide: Velocity | None = None) -> Field:
    """Classifier-free guidance as one field; a guidance of 1 costs one pass instead of two.

    The pass without a caption may be that of another network, the `guide`: a worse one, such as the model was earlier
    in its training, so that guidance leads away from its mistakes too (Karras et al. 2024)."""
    if guidance == 1:
        return lambda x_t, sigma: model(x_t, sigma, text)
    other = guide or model
    return lambda x_t, sigma: flow.guide(model(x_t, sigma, text), other(x_t, sigma, no_text), guidance, sigma)


def euler(
    field: Field,
    x: Latents,
    sigmas: Sequence[float],
    on_step: Callable[[int, Latents], None] | None = None,
    renewal: Renewal = ODE,
    noise: Noise | None = None,
):
    """x at sigmas[0] -> x at sigmas[-1], first order. `on_step(i, x)` sees the state at sigmas[i], both ends too.
    With `renewal`, part of the noise comes from `noise` after every step."""
    if on_step:
        on_step(0, x)
    for i, (sigma, sigma_next) in enumerate(zip(sigmas[:-1], sigmas[1:])):
        level = _level(x, sigma)
        v = field(x, level)
        if noise and (share := renewal.share(sigma, sigma_next)):
            eps = (1 - share**2) ** 0.5 * flow.eps_from_velocity(x, v, level) + share * noise(i + 1).to(x)
            x = flow.add_noise(flow.x0_from_velocity(x, v, level), eps, _level(x, sigma_next))
        else:
            x = x + (sigma_next - sigma) * v
        if on_step:
            on_step(i + 1, x)
    return x


def heun(field: Field, x: Latents, sigmas: Sequence[float], on_step: Callable[[int, Latents], None] | None = None):
    """Second order, two evaluations a step; the last step to 0 is as accurate as the others."""
    if on_step:
        on_step(0, x)
    for i, (sigma, sigma_next) in enumerate(zip(sigmas[:-1], sigmas[1:])):
        d = field(x, _level(x, sigma))
        d_next = field(x + (sigma_next - sigma) * d, _level(x, sigma_next))
        x = x + (sigma_next - sigma) * 0.5 * (d + d_next)
        if on_step:
            on_step(i + 1, x)
    return x


def trajectory(
    solver: Callable, field: Field, x: Latents, sigmas: Sequence[float], keep: Sequence[float]
) -> list[Latents]:
    """The states at the levels `keep`, which must be levels of the grid: nothing is interpolated."""
    indices = []
    for level in keep:
        nearest = min(range(len(sigmas)), key=lambda i: abs(sigmas[i] - level))
        if abs(sigmas[nearest] - level) > 1e-6:
            raise ValueError(
                f"level {level:.6g} is not on the grid of {len(sigmas) - 1} steps; the nearest is "
                f"{sigmas[nearest]:.6g}. Choose a number of steps whose grid contains every level to keep"
            )
        indices.append(nearest)
    states: dict[int, Latents] = {}

    def remember(i: int, state: Latents) -> None:
        if i in indices:
            states[i] = state

    solver(field, x, sigmas, remember)
    return [states[i] for i in indices]


def _level(x: Latents, sigma: float) -> FrameSigma:
    return torch.full(x.shape[:2], sigma, device=x.device)
