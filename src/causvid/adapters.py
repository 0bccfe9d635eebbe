"""Several trainable LoRAs beside one frozen network: teacher, student and critic share its weights.

    adapters = Adapters(model, {"student": AdapterConfig(rank=64), "critic": AdapterConfig(rank=64)}, rng)
    with adapters.active("student"):
        loss(model(...)).backward()
    model(...)                                # nothing active: the frozen network itself, the teacher

The backward pass belongs inside the `with`: layers that are recomputed in it must see the same adapter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from causvid.lora import Lora, LowRank


@dataclass(frozen=True)
class AdapterConfig:
    rank: int
    alpha: float | None = None  # None: equal to the rank, a scale of 1
    targets: tuple[str, ...] = ("self_attn", "cross_attn", "ffn")  # modules inside a block

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank


class LoraLinear(nn.Linear):
    """A frozen linear layer, under its own parameter names, and the pairs of the adapters that reach it."""

    def __init__(self, base: nn.Linear, owner: Adapters) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        self._owner = (owner,)  # in a tuple, so that it is not taken for a part of this module

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        name = self._owner[0].current()
        if name is None or name not in self.down:
            return y
        scale = self._owner[0].configs[name].scale
        low = F.linear(x, self.down[name].to(x.dtype))
        return y + scale * F.linear(low, self.up[name].to(x.dtype))


class Adapters:
    def __init__(
        self, model: nn.Module, configs: Mapping[str, AdapterConfig], rng: torch.Generator, *, dtype=torch.float32
    ) -> None:
        """Freezes `model` and puts the adapters beside the linear layers of its blocks. They start as no change."""
        self.configs = dict(configs)
        self._active: str | None = None
        self._graph_of: str | None = None  # adapter of the newest pass that keeps a graph
        self._layers: dict[str, LoraLinear] = {}
        model.requires_grad_(False)
        for path, layer in list(model.named_modules()):
            users = [name for name, cfg in self.configs.items() if _targets(cfg, path)]
            if not isinstance(layer, nn.Linear) or not users:
                continue
            adapted = LoraLinear(layer, self)
            device = layer.weight.device
            for name in users:
                rank, bound = self.configs[name].rank, 1 / math.sqrt(layer.in_features)
                down = torch.empty(rank, layer.in_features).uniform_(-bound, bound, generator=rng)
                adapted.down[name] = nn.Parameter(down.to(device, dtype))
                adapted.up[name] = nn.Parameter(torch.zeros(layer.out_features, rank, device=device, dtype=dtype))
            model.set_submodule(path, adapted)
            self._layers[path] = adapted

    @contextmanager
    def active(self, name: str | None) -> Iterator[None]:
        """Within it, the network is the base with adapter `name`; None is the base alone."""
        if name is not None and name not in self.configs:
            raise ValueError(f"no adapter '{name}'; there are {sorted(self.configs)}")
        before, self._active = self._active, name
        try:
            yield
        finally:
            self._active = before

    def parameters(self, name: str) -> list[nn.Parameter]:
        """What an optimiser of this adapter trains."""
        return [side[name] for layer in self._layers.values() for side in (layer.down, layer.up) if name in side]

    def lora(self, name: str) -> Lora:
        """A copy, to save or to merge."""
        scale = self.configs[name].scale
        return Lora(
            {
                f"{path}.weight": LowRank(layer.down[name].detach().clone(), layer.up[name].detach().clone(), scale)
                for path, layer in self._layers.items()
                if name in layer.down
            }
        )

    def current(self) -> str | None:
        """The active adapter. Refuses what would otherwise give wrong gradients in silence: layers recomputed in a
        backward pass (gradient checkpointing) under another adapter than the one of their forward pass."""
        if torch._C._current_graph_task_id() == -1:
            if torch.is_grad_enabled():
                self._graph_of = self._active
        elif self._graph_of != self._active:
            raise RuntimeError(
                f"backward recomputes layers of adapter '{self._graph_of}' while '{self._active}' is active; "
                "call backward() inside the same `with adapters.active(...)`"
            )
        return self._active


def num_values(model: nn.Module, cfg: AdapterConfig) -> int:
    """Of one such adapter, counted without making it."""
    layers = [layer for path, layer in model.named_modules() if isinstance(layer, nn.Linear) and _targets(cfg, path)]
    return sum(cfg.rank * (layer.in_features + layer.out_features) for layer in layers)


def _targets(cfg: AdapterConfig, path: str) -> bool:
    """blocks.N.<target>...."""
    parts = path.split(".")
    return len(parts) > 2 and parts[0] == "blocks" and parts[2] in cfg.targets
