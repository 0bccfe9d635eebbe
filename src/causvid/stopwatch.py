"""Seconds between points of the code, on any device."""

import time

import torch


class Stopwatch:
    def __init__(self, device: torch.device | str) -> None:
        self._device = torch.device(device)
        self._last = self._now()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = self._now()
        self.laps[name] = now - self._last
        self._last = now

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
