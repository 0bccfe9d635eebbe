"""Numbers to watch that one loss value hides."""

import torch
from torch import Tensor


class LossBySigma:
    """Mean loss in four bands of the noise level since the last reading: the bands learn at very different times."""

    NUM_BANDS = 4

    def __init__(self) -> None:
        self._sums = torch.zeros(self.NUM_BANDS)
        self._counts = torch.zeros(self.NUM_BANDS)

    def add(self, loss: Tensor, sigma: Tensor) -> None:
        """Of any frames; both of one shape."""
        band = (sigma.detach().flatten().cpu() * self.NUM_BANDS).long().clamp(0, self.NUM_BANDS - 1)
        self._sums.index_add_(0, band, loss.detach().flatten().float().cpu())
        self._counts.index_add_(0, band, torch.ones_like(band, dtype=torch.float32))

    def read(self) -> dict[str, float]:
        """{"loss_sigma_0": ..., } for the bands that were visited; starts anew."""
        out = {
            f"loss_sigma_{band}": float(self._sums[band] / self._counts[band])
            for band in range(self.NUM_BANDS)
            if self._counts[band]
        }
        self._sums.zero_()
        self._counts.zero_()
        return out
