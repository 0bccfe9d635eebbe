"""How much memory a distillation will take, counted before it is launched rather than found out after an hour."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from causvid.adapters import num_values
from causvid.cache import KVCache
from causvid.chunks import chunk_bounds
from causvid.models.dit import VideoDiT, VideoDiTConfig, num_parameters
from causvid.shapes import FrameSigma, Latents
from causvid.stages.self_rollout import roll_out
from causvid.stages.sources import Network
from causvid.text.umt5 import UMT5_XXL_BYTES, UMT5_XXL_CONFIG

if TYPE_CHECKING:
    from causvid.stages.dmd import DMDConfig

GB = 1e9


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes on each of the ranks."""

    weights: float  # all networks, or adapters, with gradients, moments and averages
    activations: float  # of the largest graph that is held for a backward pass
    cache: float  # of the clips that a student makes at once
    text: float  # a large text encoder, while it reads prompts

    @property
    def total(self) -> float:
        return self.weights + self.activations + self.cache

    def __str__(self) -> str:
        told = f"about {self.total / GB:.1f} GB on each process: {self.weights / GB:.1f} for weights, gradients, "
        told += f"moments and averages, {self.activations / GB:.1f} for what a backward pass needs"
        if self.cache:
            told += f", {self.cache / GB:.1f} for the student's past"
        return told + (f"; {self.text / GB:.1f} more while the text encoder reads new prompts" if self.text else "")


def memory_need(cfg: DMDConfig, num_ranks: int) -> MemoryNeed:
    """The student's graph is the largest one, a pass over the clip, and in a roll-out the pasts it looks back at; or
    the critic's, where that is a larger network."""
    part = max(1, cfg.batch // num_ranks // cfg.accumulate)
    bounds = chunk_bounds(cfg.clip[0], cfg.student.chunk, cfg.student.first_chunk)

    def text() -> Tensor:
        return torch.empty(part, cfg.model.text_length, cfg.model.text_width)

    def one_pass(model: VideoDiT, sight: dict[str, Any]) -> Tensor:
        x_t, sigma = torch.empty(part, *cfg.clip), torch.empty(part, cfg.clip[0])
        return DryNetwork(model, cfg.dtype, sight)(x_t, sigma, text())

    def student(model: VideoDiT) -> Tensor:
        if cfg.input == "data":
            return one_pass(model, {"bounds": bounds})

        def noise(chunk: int, draw: int, frames: int) -> Tensor:
            return torch.empty(part, frames, *cfg.clip[1:])

        return roll_out(
            DryNetwork(model, cfg.dtype), cfg.student, cfg.clip, text(), noise, [0] * len(bounds), grad=True
        )

    frozen_bytes = 2 if cfg.dtype == "bfloat16" and num_ranks == 1 else 4
    size = {role: num_parameters(model)[0] for role, model in cfg.sizes.items()}
    weights = frozen_bytes * size["teacher"] * (1 if cfg.guide is None else 2)
    if cfg.adapter is None:
        # critic and student in float32 with gradients and two moments, and the student's average
        weights += 16 * size["critic"] + (16 + 4) * size["student"]
    else:
        with torch.device("meta"):
            weights += (16 + 16 + 4) * num_values(VideoDiT(cfg.model), cfg.adapter)
    kept = activation_bytes(cfg.sizes["student"], cfg.recompute, student)
    if cfg.student_model is not None:
        kept = max(kept, activation_bytes(cfg.sizes["critic"], cfg.recompute, lambda model: one_pass(model, {})))
    text_bytes = UMT5_XXL_BYTES if cfg.model.text_width == UMT5_XXL_CONFIG["d_model"] else 0
    return MemoryNeed(weights / num_ranks, kept, cache_bytes(cfg, part), text_bytes)


def cache_bytes(cfg: DMDConfig, batch: int) -> float:
    """What a student remembers of `batch` clips that it makes on its own past."""
    if cfg.input == "data":
        return 0
    with torch.device("meta"):
        shape = VideoDiT(cfg.sizes["student"]).cache_shape(*cfg.clip[2:])
    num_frames = max(cfg.clip[0], cfg.student.policy.window or 0)
    return KVCache(shape, batch=batch, max_frames=num_frames, dtype=getattr(torch, cfg.dtype), device="meta").nbytes


class DryNetwork(Network):
    """Autocast without the CPU's written-out attention: on the devices where memory matters it is fused."""

    def __call__(self, x_t: Latents, sigma: FrameSigma, text: Any, **sight: Any) -> Latents:
        dtype = getattr(torch, self.dtype)
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            return self.model(x_t.to(dtype), sigma, text, **self.sight | sight).float()


def activation_bytes(cfg: VideoDiTConfig, recompute: bool, graph: Callable[[VideoDiT], Tensor]) -> float:
    """What `graph(network)` keeps for its backward pass. It is run without data, on one and two layers, so that any
    size takes moments; a deeper network keeps proportionally more."""

    def kept(num_layers: int) -> int:
        with FakeTensorMode():
            model = VideoDiT(replace(cfg, num_layers=num_layers))
            model.checkpoint_blocks = recompute
            return bytes_saved(lambda: graph(model))

    one, two = kept(1), kept(2)
    return one + (cfg.num_layers - 1) * (two - one)


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
