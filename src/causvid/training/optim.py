"""Optimizers and learning rates: Muon for the matrices inside blocks, AdamW for everything else.

Muon (Jordan et al. 2024) moves a matrix by its momentum with all singular values set to about one. The step is scaled
by 0.2 sqrt(max(rows, columns)) (Liu et al. 2025), which gives it the size of an AdamW step: both share one learning
rate.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from causvid.training.parallel import scattered, whole

# Quintic iterations s -> a s + b s^3 + c s^5. The first five pull singular values from 0.001 .. 1 to about 0.7 .. 1.2.
JORDAN = (3.4445, -4.7750, 2.0315)


@dataclass(frozen=True)
class OptimConfig:
    lr: float
    muon: bool = True
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    momentum: float = 0.95  # of Muon
    clip: float = 1.0  # largest joint norm of the gradients
    warmup: int = 100  # steps from 0 to the full rate
    decay_from: float = 1.0  # part of the run after which the rate falls on a half cosine; 1 = never
    decay_to: float = 0.05  # part of the rate that is left at the end


def learning_rate(cfg: OptimConfig, step: int, progress: float) -> float:
    """The rate of step 0, 1, ... when `progress` (0 to 1) of the run is over."""
    rate = cfg.lr * min(1.0, (step + 1) / max(1, cfg.warmup))
    if progress <= cfg.decay_from or cfg.decay_from >= 1:
        return rate
    way = min(1.0, (progress - cfg.decay_from) / (1 - cfg.decay_from))
    return rate * (cfg.decay_to + (1 - cfg.decay_to) * 0.5 * (1 + math.cos(math.pi * way)))


def orthogonalize(matrices: Tensor, num_steps: int = 5) -> Tensor:
    """Set the singular values of [..., rows, columns] to about 1 by Newton-Schulz iterations, in the given dtype."""
    a, b, c = JORDAN
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(num_steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(Optimizer):
    """For 2-D weights. Matrices of one shape are orthogonalised as one batch."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for shape, params in by_shape.items():
                momenta = [whole(self._momentum(p, group["momentum"])) for p in params]
                moves = orthogonalize(torch.stack(momenta).bfloat16())
                size = group["lr"] * 0.2 * max(shape) ** 0.5
                for p, move in zip(params, moves):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.sub_(scattered(move.to(p.dtype), p), alpha=size)

    def _momentum(self, p: Tensor, momentum: float) -> Tensor:
        """Nesterov's: the gradient once more on top of the running mean."""
        assert p.grad is not None
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        state["momentum"].lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(state["momentum"], momentum)


def build_optimizers(cfg: OptimConfig, modules: Iterable[nn.Module]) -> dict[str, Optimizer]:
    """Biases, norms, modulations, embeddings and heads go to AdamW; decay is for matrices only."""
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    vectors: list[Tensor] = []
    for name, p in (pair for module in modules for pair in module.named_parameters() if pair[1].requires_grad):
        if p.ndim == 2 and cfg.muon and name.startswith(("blocks.", "layers.")):
            matrices.append(p)
        else:
            (others if p.ndim >= 2 else vectors).append(p)
    groups: list[dict[str, Any]] = [{"params": others}, {"params": vectors, "weight_decay": 0.0}]
    fused = all(p.device.type in ("cpu", "cuda") for p in [*others, *vectors])
    optimizers: dict[str, Optimizer] = {
        "adamw": AdamW(groups, cfg.lr, cfg.betas, eps=1e-8, weight_decay=cfg.weight_decay, fused=fused)
    }
    if matrices:
        optimizers["muon"] = Muon(matrices, cfg.lr, cfg.momentum, cfg.weight_decay)
    return optimizers


def all_parameters(optimizers: dict[str, Optimizer]) -> Iterator[Tensor]:
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            yield from group["params"]


def step_all(optimizers: Mapping[str, Optimizer], rate: float) -> None:
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
