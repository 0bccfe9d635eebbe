"""How much memory a distillation will take, counted before it is launched rather than found out after an hour."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from causvid.chunks import chunk_bounds
from causvid.models.dit import VideoDiT, num_parameters
from causvid.shapes import FrameSigma, Latents
from causvid.stages.self_rollout import roll_out
from causvid.stages.sources import Network

if TYPE_CHECKING:
    from causvid.stages.dmd import DMDConfig

GB = 1e9


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes on each of the ranks."""

    weights: float  # all networks with gradients, moments and averages
    activations: float  # of the largest graph that is held for a backward pass

    @property
    def total(self) -> float:
        return self.weights + self.activations

    def __str__(self) -> str:
        return (
            f"about {self.total / GB:.1f} GB on each process: {self.weights / GB:.1f} for weights, gradients, moments "
            f"and averages, {self.activations / GB:.1f} for what a backward pass needs"
        )


def memory_need(cfg: DMDConfig, num_ranks: int) -> MemoryNeed:
    """The student's graph is the largest one: a pass over the clip, and in a roll-out the pasts it looks back at."""
    part = max(1, cfg.batch // num_ranks // cfg.accumulate)
    bounds = chunk_bounds(cfg.clip[0], cfg.student.chunk, cfg.student.first_chunk)

    def graph(model: VideoDiT) -> Tensor:
        network = DryNetwork(model, cfg.dtype, {"bounds": bounds} if cfg.input == "data" else {})
        text = torch.empty(part, cfg.model.text_length, cfg.model.text_width)
        if cfg.input == "data":
            return network(torch.empty(part, *cfg.clip), torch.empty(part, cfg.clip[0]), text)

        def noise(chunk: int, draw: int, frames: int) -> Tensor:
            return torch.empty(part, frames, *cfg.clip[1:])

        return roll_out(network, cfg.student, cfg.clip, text, noise, [0] * len(bounds), grad=True)

    frozen_bytes = 2 if cfg.dtype == "bfloat16" and num_ranks == 1 else 4
    size = num_parameters(cfg.model)[0]
    weights = frozen_bytes * size * (1 if cfg.guide is None else 2)
    if cfg.adapter is None:
        # two trained networks in float32 with gradients and two moments, and an average
        weights += (2 * 16 + 4) * size
    return MemoryNeed(weights / num_ranks, activation_bytes(cfg, graph))


class DryNetwork(Network):
    """Autocast without the CPU's written-out attention: on the devices where memory matters it is fused."""

    def __call__(self, x_t: Latents, sigma: FrameSigma, text: Any, **sight: Any) -> Latents:
        dtype = getattr(torch, self.dtype)
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            return self.model(x_t.to(dtype), sigma, text, **self.sight | sight).float()


def activation_bytes(cfg: DMDConfig, graph: Callable[[VideoDiT], Tensor]) -> float:
    """What `graph(network)` keeps for its backward pass. It is run without data, on one and two layers, so that any
    size takes moments; a deeper network keeps proportionally more."""

    def kept(num_layers: int) -> int:
        with FakeTensorMode():
            model = VideoDiT(replace(cfg.model, num_layers=num_layers))
            model.checkpoint_blocks = cfg.recompute
            return bytes_saved(lambda: graph(model))

    one, two = kept(1), kept(2)
    return one + (cfg.model.num_layers - 1) * (two - one)


def bytes_saved(compute: Callable[[], Tensor]) -> int:
    storages: dict[int, int] = {}
    keep_alive = []  # so that no storage is freed and another one gets its number

    def remember(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            storages[storage._cdata] = storage.nbytes()
            keep_alive.append(storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        compute()
    return sum(storages.values())
