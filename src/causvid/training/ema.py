"""An exponential moving average of weights: what is sampled from, and what a run hands on."""

from typing import Generic, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


class EMA(Generic[M]):
    """`averages` holds the mean of what its counterpart's parameters were, with the newest weighted 1 - decay.

    Early on the decay is (1 + n) / (10 + n) after n updates: an average over about the last tenth of a young run.
    """

    def __init__(self, averages: M, decay: float, num_updates: int = 0) -> None:
        """`averages` starts as a copy of the trained module, and is laid out over ranks as it is."""
        self.averages = averages.eval().requires_grad_(False)
        self.decay, self.num_updates = decay, num_updates

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        torch._foreach_lerp_(list(self.averages.parameters()), list(module.parameters()), 1 - decay)
        for mean, value in zip(self.averages.buffers(), module.buffers()):
            mean.copy_(value)
