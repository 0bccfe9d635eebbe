"""Who takes part in distillation: a frozen teacher, a critic, a student and its average. Either as four networks, or as
adapters on one frozen copy of the teacher, for a single device's memory."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from causvid.adapters import AdapterConfig, Adapters, LoraLinear
from causvid.checkpoints import config_metadata, read_state
from causvid.lora import Lora, LowRank, extract_lora, save_lora
from causvid.models.dit import VideoDiT, VideoDiTConfig
from causvid.noise import seeded
from causvid.stages.sources import Dtype, Network, Role, frozen, network_file, read_network, shard
from causvid.training import parallel
from causvid.training.checkpoint import write_weights
from causvid.training.ema import EMA


@dataclass
class Actors:
    """The four as callables, and as the modules whose parameters are trained, averaged and saved."""

    teacher: Network
    critic: Network
    student: Network
    average: Network
    trained: dict[str, nn.Module]  # student and critic
    ema: EMA

    @property
    def modules(self) -> dict[str, nn.Module]:
        return {**self.trained, "ema": self.ema.averages}


def four_networks(
    sizes: Mapping[Role, VideoDiTConfig],
    *,
    teacher: str,
    student: str | None,
    critic: str | None,
    score_sight: dict[str, Any],
    student_sight: dict[str, Any],
    ema_decay: float,
    dtype: Dtype,
    recompute: bool,
    device: torch.device,
) -> Actors:
    """`student` or `critic` None: start from the teacher's weights."""
    real = read_network(sizes["teacher"], teacher, "teacher", device)
    fake = deepcopy(real) if critic is None else None
    made = deepcopy(real) if student is None else None
    real = shard(frozen(real, dtype))  # before more is read: a large one whole and everything else may be too much
    if critic is not None:
        fake = read_network(sizes["critic"], critic, "critic", device)
    if student is not None:
        made = read_network(sizes["student"], student, "student", device)
    assert fake is not None and made is not None
    average = shard(deepcopy(made))
    shard(fake, recompute), shard(made, recompute)
    return Actors(
        Network(real, dtype, score_sight),
        Network(fake, dtype, score_sight),
        Network(made, dtype, student_sight),
        Network(average, dtype, student_sight),
        {"student": made, "critic": fake},
        EMA(average, ema_decay),
    )


class AdapterWeights(nn.Module):
    """The parameters of one adapter, as a module that optimisers, averages and checkpoints understand."""

    def __init__(self, adapters: Adapters, name: str) -> None:
        super().__init__()
        self.pairs = nn.ParameterList(adapters.parameters(name))


@dataclass
class SharedActors(Actors):
    """All four on one frozen network."""

    adapters: Adapters


def adapters_on_one(
    cfg: VideoDiTConfig,
    adapter: AdapterConfig,
    *,
    teacher: str,
    student: str | None,
    score_sight: dict[str, Any],
    student_sight: dict[str, Any],
    ema_decay: float,
    dtype: Dtype,
    recompute: bool,
    device: torch.device,
    seed: int,
) -> tuple[SharedActors, float]:
    """The second value is how much of the way from teacher to `student` the adapter's rank can hold, 1 is all of it."""
    base = frozen(read_network(cfg, teacher, "teacher", device), dtype)
    adapters = Adapters(base, dict.fromkeys(("student", "critic", "average"), adapter), seeded(seed))
    kept = _start_from(base, adapters, adapter, teacher, student) if student else 1.0
    shard(base, recompute)
    weights = {name: AdapterWeights(adapters, name) for name in ("student", "critic", "average")}
    with torch.no_grad():
        for mean, value in zip(weights["average"].parameters(), weights["student"].parameters()):
            mean.copy_(value)

    def network(name: str | None, sight: dict[str, Any]) -> Network:
        return Network(base, dtype, sight, lambda: adapters.active(name))

    actors = SharedActors(
        network(None, score_sight),
        network("critic", score_sight),
        network("student", student_sight),
        network("average", student_sight),
        {"student": weights["student"], "critic": weights["critic"]},
        EMA(weights["average"], ema_decay),
        adapters,
    )
    return actors, kept


def _start_from(base: VideoDiT, adapters: Adapters, adapter: AdapterConfig, teacher: str, student: str) -> float:
    """Give the student's adapter the best approximation of the way to given weights."""
    before = read_state(network_file(Path(teacher), "teacher"))
    after = read_state(network_file(Path(student), "student"))
    low_rank = extract_lora(after, before, adapter.rank)[0].low_rank
    layers = dict(base.named_modules())
    missed = way = 0.0
    with torch.no_grad():
        for name, value in after.items():
            change = value.float() - before[name].float()
            way += float(change.square().sum())
            layer = layers[name.rpartition(".")[0]]
            if name in low_rank and isinstance(layer, LoraLinear):
                part = low_rank[name]
                rank = len(part.down)  # a small matrix has a smaller one than the adapter
                layer.down["student"][:rank] = part.down.to(layer.weight.device)
                layer.up["student"][:, :rank] = part.up.to(layer.weight.device) * (part.scale / adapter.scale)
                change = change - part.delta()
            missed += float(change.square().sum())
    return 1 - missed / way if way else 1.0


def write_student(actors: Actors, cfg: VideoDiTConfig, weights: Path) -> None:
    """The averaged student as one file; from adapters, merged, and as a LoRA beside it. Every rank calls it."""
    file = weights / "student.safetensors"
    if not isinstance(actors, SharedActors):
        write_weights(file, actors.ema.averages, config_metadata(cfg))
        return
    low_rank = {
        name: LowRank(parallel.whole(part.down), parallel.whole(part.up), part.scale)
        for name, part in actors.adapters.lora("average").low_rank.items()
    }
    write_weights(file, _Merged(actors.teacher.model, low_rank), config_metadata(cfg))
    if parallel.is_first():
        save_lora(Lora(low_rank), weights / "student.lora.safetensors")


class _Merged(nn.Module):
    """A network's own parameters with a LoRA added, for `write_weights`."""

    def __init__(self, base: nn.Module, low_rank: dict[str, LowRank]) -> None:
        super().__init__()
        self._tensors: dict[str, Tensor] = {}
        for name, value in base.state_dict().items():
            if ".down." in name or ".up." in name:
                continue
            whole = parallel.whole(value).detach().float()
            self._tensors[name] = whole + low_rank[name].delta() if name in low_rank else whole

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        return dict(self._tensors)
