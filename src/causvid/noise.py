"""Noise as a function of where it is used: (seed, chunk, draw) -> the same numbers, on every device, in any order.

A stream that is rewound, forked, parked or replayed needs no state of a random generator: it asks for the same noise
again. Numbers are drawn on the CPU in float32 so that they do not depend on the device either.
"""

import torch
from torch import Tensor

MASK = (1 << 64) - 1


def mix(*words: int) -> int:
    """Hash integers to 64 bits (splitmix64 over a running sum)."""
    state = 0
    for word in words:
        state = (state + (word & MASK) + 0x9E3779B97F4A7C15) & MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
        state ^= state >> 31
    return state


def seeded(*words: int) -> torch.Generator:
    """A generator whose stream belongs to these integers alone."""
    return torch.Generator().manual_seed(mix(*words) >> 1)


def chunk_noise(seed: int, chunk_index: int, draw: int, shape: tuple[int, ...]) -> Tensor:
    """Draw 0 starts a chunk, draw k re-noises it after its k-th step."""
    return torch.randn(shape, generator=seeded(seed, chunk_index, draw))
