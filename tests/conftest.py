"""Small random networks that every test may use: the same classes as everywhere, at a size that takes milliseconds."""

import pytest
import torch

from causvid.models.dit import VideoDiT, VideoDiTConfig

TINY = VideoDiTConfig(
    width=48,
    ffn_width=96,
    num_heads=2,
    num_layers=3,
    in_channels=4,
    out_channels=4,
    patch=2,
    freq_width=32,
    text_width=8,
    text_length=5,
    eps=1e-6,
    precision="islands",
)


def random_dit(cfg: VideoDiTConfig = TINY, seed: int = 0) -> VideoDiT:
    """A network whose every parameter matters: the real initialisation ends in a head of zeros."""
    rng = torch.Generator().manual_seed(seed)
    model = VideoDiT(cfg)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2, generator=rng)
    return model.eval().requires_grad_(False)


@pytest.fixture
def dit() -> VideoDiT:
    return random_dit()


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(7)
