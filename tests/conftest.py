"""Fixtures that every test may use; the classes behind them are in tiny_models.py."""

import pytest
import torch

from causvid.bundle import Model
from causvid.models.dit import VideoDiT
from tiny_models import random_dit, random_model


@pytest.fixture
def dit() -> VideoDiT:
    return random_dit()


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(7)


@pytest.fixture
def model() -> Model:
    return random_model()
