"""Random numbers that never change: splitmix64, one independent stream per component of a scene.

NumPy does not promise that its Generator methods give the same numbers in its next release, and one shared stream would
let a change of weather move the hero. Every parameter of a scene is therefore drawn from `Stream(seed, component)`.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

Item = TypeVar("Item")

_MASK = 0xFFFFFFFFFFFFFFFF
_STEP = 0x9E3779B97F4A7C15


def splitmix64(state: Any) -> Any:
    """Scramble one Python int or a uint64 array; both ways give the same numbers."""
    z = (state + _STEP) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def _hash_name(name: str) -> int:
    value = 0xCBF29CE484222325
    for byte in name.encode():
        value = ((value ^ byte) * 0x100000001B3) & _MASK
    return value


class Stream:
    """Draws that depend on (seed, component) and on their order, and on nothing else."""

    def __init__(self, seed: int, component: str):
        self._key = splitmix64(splitmix64(seed & _MASK) ^ _hash_name(component))
        self._count = 0

    def _next(self) -> int:
        self._count += 1
        return splitmix64((self._key + self._count * _STEP) & _MASK)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * (self._next() >> 11) * 2.0**-53

    def below(self, bound: int) -> int:
        return min(int(self.uniform() * bound), bound - 1)

    def chance(self, probability: float) -> bool:
        return self.uniform() < probability

    def pick(self, items: Sequence[Item]) -> Item:
        return items[self.below(len(items))]

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        keyed = sorted((self.uniform(), i) for i in range(len(items)))
        return [items[i] for _, i in keyed]

    def cells(self, indices: np.ndarray, slots: int) -> np.ndarray:
        """Uniform numbers [len(indices), slots] tied to integer addresses, so an endless row needs no memory."""
        rows = splitmix64(np.asarray(indices, np.int64).astype(np.uint64) ^ np.uint64(self._key))
        grid = splitmix64(rows[:, None] + (np.arange(1, slots + 1, dtype=np.uint64) * np.uint64(_STEP))[None])
        return (grid >> np.uint64(11)).astype(np.float64) * 2.0**-53
