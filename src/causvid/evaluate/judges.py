"""Two judges that read a caption's attributes back from pixels: `report` gives the published numbers, `select` is the
only one that choices (of checkpoints, of settings) may look at.

Both see stacks of three frames, so that falling snow differs from noise, and both end in a head over time that names
motion and camera from what the stacks say about places and speeds. They share no weights, no training scenes and no
architecture: `report` is a convolutional pyramid with heat maps, `select` a residual net whose three queries attend.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from causvid.evaluate.judge_data import CONSTANT, STACK, VALUES, stacks_of, to_input
from causvid.tensor_files import load_strictly, read_tensors

ROLES = ("report", "select")
GLOBAL = ("biome", "light", "weather")
ENTITY = {"hero": ("hero", "colour"), "second": ("second", "second colour")}
STEP_WIDTH = 9 + len(VALUES["hero"])  # what the head over time sees per stack
MAX_SHIFT = 6  # pixels between the outer frames of a stack that the shift costs cover

WEIGHTS = Path(__file__).parent.parent / "weights" / "vista"


@dataclass
class StackReading:
    """Outputs for N stacks: logits per attribute, places in picture heights."""

    logits: dict[str, Tensor]
    place: Tensor  # [N, 2]
    second_place: Tensor  # [N, 2]
    visible: Tensor  # [N], logit
    heat: Tensor  # [N, 2, h, w] log-probabilities of both entities' places
    features: Tensor  # [N, 96] of the hero


def shift_costs(x: Tensor) -> Tensor:
    """How badly the last frame of a stack fits the first when moved sideways: [N, bands of 8 rows, shifts].

    Scenery at each depth lies in its own rows, so this is a depth-ordered view of the camera."""
    grey = x.unflatten(1, (STACK, 3)).mean(2)
    grey = F.avg_pool2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), 3, 1)
    first, last = grey[:, 0], grey[:, -1]
    width = x.shape[-1]
    inside = first[..., MAX_SHIFT : width - MAX_SHIFT]
    costs = []
    for shift in range(-MAX_SHIFT, MAX_SHIFT + 1):
        gap = (last[..., MAX_SHIFT + shift : width - MAX_SHIFT + shift] - inside).abs()
        costs.append(gap.unflatten(1, (8, -1)).mean((2, 3)))
    return torch.stack(costs, 2)


class SpeedNet(nn.Module):
    """The camera's speed from the shift costs of a stack; both judges have one, trained on their own scenes.

    The best shift of every band is given to it, softly at three sharpnesses: it is too small to learn an argmin."""

    def __init__(self) -> None:
        super().__init__()
        width = 8 * (2 * MAX_SHIFT + 1 + 5)
        first, second, last = nn.Linear(width, 96), nn.Linear(96, 48), nn.Linear(48, 1)
        self.layers = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)

    def forward(self, costs: Tensor) -> Tensor:
        """[N, 8, 13] -> heights per frame [N]"""
        relative = costs / (costs.mean(2, keepdim=True) + 0.005) - 1
        shifts = torch.arange(-MAX_SHIFT, MAX_SHIFT + 1).to(costs)
        best = [((-sharpness * relative).softmax(2) * shifts).sum(2) / 3 for sharpness in (6, 20, 60)]
        return self.layers(torch.cat([relative.flatten(1), *best, relative.amin(2), 10 * costs.mean(2)], 1))[:, 0] / 64


def grid(height: int, width: int) -> Tensor:
    """Centres of cells [h*w, 2] as x, y in picture heights."""
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / height, indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1)


def _conv(into: int, out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU())


def _heads(width: int, names: tuple[str, ...]) -> nn.ModuleDict:
    return nn.ModuleDict({name.replace(" ", "_"): nn.Linear(width, len(VALUES[name])) for name in names})


def _apply(heads: nn.ModuleDict, x: Tensor) -> dict[str, Tensor]:
    return {name.replace("_", " "): head(x) for name, head in heads.items()}


class PyramidNet(nn.Module):
    """Judge `report`: strided convolutions, fused at a quarter of the resolution, one heat map per entity."""

    def __init__(self) -> None:
        super().__init__()
        self.at2 = _conv(9, 24, 2)
        self.at4 = nn.Sequential(_conv(24, 48, 2), _conv(48, 48))
        self.at8 = nn.Sequential(_conv(48, 80, 2), _conv(80, 80))
        self.at16 = _conv(80, 96, 2)
        self.fuse = nn.ModuleList([nn.Conv2d(48, 64, 1), nn.Conv2d(80, 64, 1), nn.Conv2d(96, 64, 1)])
        self.mix = _conv(64, 64)
        self.heat = nn.Conv2d(64, 2, 1)
        pooled = 24 * 2 + 48 * 2 + 80 + 96
        self.scene = nn.Sequential(nn.Linear(pooled, 96), nn.ReLU())
        self.scene_heads = _heads(96, GLOBAL)
        entity = 64 + 80 + 24
        self.entities = nn.ModuleDict({name: nn.Sequential(nn.Linear(entity, 96), nn.ReLU()) for name in ENTITY})
        self.entity_heads = nn.ModuleDict({name: _heads(96, names) for name, names in ENTITY.items()})
        self.visible = nn.Linear(96, 1)

    def forward(self, x: Tensor) -> StackReading:
        half = self.at2(x)
        quarter = self.at4(half)
        eighth = self.at8(quarter)
        context = self.at16(eighth)
        size = quarter.shape[-2:]
        fused = self.fuse[0](quarter) + sum(
            F.interpolate(layer(level), size=size, mode="nearest")
            for layer, level in zip(self.fuse[1:], (eighth, context))  # type: ignore[arg-type]
        )
        fused = self.mix(F.relu(fused))
        heat = self.heat(fused).float().flatten(2).log_softmax(-1)  # [N, 2, h*w]
        cells = grid(*size).to(heat)
        pooled = torch.cat(
            [*_mean_and_max(half), *_mean_and_max(quarter), eighth.mean((2, 3)), context.mean((2, 3))], 1
        )
        logits = _apply(self.scene_heads, self.scene(pooled))  # type: ignore[arg-type]
        fine = F.avg_pool2d(half, 2)
        coarse = F.interpolate(eighth, size=size, mode="nearest")
        pooled_entities, places = [], []
        for index, name in enumerate(ENTITY):
            where = heat[:, index].exp()
            places.append(where @ cells)
            seen = torch.cat([torch.einsum("nchw,nhw->nc", level, where.unflatten(1, size).to(level.dtype))
                              for level in (fused, coarse, fine)], 1)  # fmt: skip
            pooled_entities.append(self.entities[name](seen))
            logits |= _apply(self.entity_heads[name], pooled_entities[-1])  # type: ignore[arg-type]
        return StackReading(logits, places[0], places[1], self.visible(pooled_entities[0])[:, 0],
                            heat.unflatten(2, size), pooled_entities[0])  # fmt: skip


def _mean_and_max(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean((2, 3)), x.amax((2, 3))


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, width)
        self.first, self.second = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(self.norm(x)))))


class QueryNet(nn.Module):
    """Judge `select`: patches with their differences in time, residual blocks, and three queries: scene, hero, second
    entity."""

    width = 88

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(15, 56, 6, 4, 1)
        self.fine = nn.Sequential(Residual(56), Residual(56))
        self.down = nn.Conv2d(56, self.width, 2, 2)
        self.coarse = nn.Sequential(Residual(self.width), Residual(self.width))
        self.keys = nn.ModuleList([nn.Conv2d(56, self.width, 1), nn.Conv2d(self.width, self.width, 1)])
        self.where = nn.Linear(18, self.width)
        self.queries = nn.Parameter(torch.randn(3, self.width) * 0.3)
        read = 56 + self.width
        self.scene = nn.Sequential(nn.Linear(read * 2, 96), nn.SiLU())
        self.scene_heads = _heads(96, GLOBAL)
        self.entities = nn.ModuleDict({name: nn.Sequential(nn.Linear(read, 96), nn.SiLU()) for name in ENTITY})
        self.entity_heads = nn.ModuleDict({name: _heads(96, names) for name, names in ENTITY.items()})
        self.offsets = nn.ModuleDict({name: nn.Linear(96, 2) for name in ENTITY})
        self.visible = nn.Linear(96, 1)

    def forward(self, x: Tensor) -> StackReading:
        before, now, after = x.split(3, 1)
        fine = self.fine(self.patches(torch.cat([x, 4 * (now - before), 4 * (after - now)], 1)))
        coarse = self.coarse(self.down(fine))
        size = fine.shape[-2:]
        up = F.interpolate(coarse, size=size, mode="nearest")
        cells = grid(*size).to(x.device)
        keys = self.keys[0](fine) + F.interpolate(self.keys[1](coarse), size=size, mode="nearest")
        keys = keys.flatten(2) + self.where(_waves(cells)).to(keys.dtype).T
        heat = (torch.einsum("qc,ncs->nqs", self.queries.to(keys.dtype), F.silu(keys)) / self.width**0.5).float()
        heat = heat.log_softmax(-1)
        values = torch.cat([fine, up], 1).flatten(2)
        reads = torch.einsum("nqs,ncs->nqc", heat.exp().to(values.dtype), values)
        overall = values.mean(2)
        logits = _apply(self.scene_heads, self.scene(torch.cat([reads[:, 0], overall], 1)))  # type: ignore[arg-type]
        places, hidden = [], []
        for index, name in enumerate(ENTITY, start=1):
            hidden.append(self.entities[name](reads[:, index]))
            logits |= _apply(self.entity_heads[name], hidden[-1])  # type: ignore[arg-type]
            places.append(heat[:, index].exp() @ cells + self.offsets[name](hidden[-1]).float() / 16)
        return StackReading(logits, places[0], places[1], self.visible(hidden[0])[:, 0],
                            heat[:, 1:].unflatten(2, size), hidden[0])  # fmt: skip


def _waves(cells: Tensor) -> Tensor:
    """Places [S, 2] as themselves and waves of four lengths, [S, 18]."""
    angles = (cells[:, :, None] * torch.tensor([1.5, 3.0, 6.0, 12.0]).to(cells)).flatten(1)
    return torch.cat([cells, angles.sin(), angles.cos()], 1)


class TimeConv(nn.Module):
    """Motion and camera from the steps of a clip, by convolutions over time with growing strides."""

    def __init__(self, width: int = 80) -> None:
        super().__init__()
        self.enter = nn.Conv1d(STEP_WIDTH, width, 3, padding=1)
        self.layers = nn.ModuleList([nn.Conv1d(width, width, 3, padding=d, dilation=d) for d in (1, 2, 4, 8)])
        self.leave = nn.Conv1d(width, len(VALUES["motion"]) + len(VALUES["camera"]), 1)

    def forward(self, steps: Tensor) -> dict[str, Tensor]:
        """[B, S, STEP_WIDTH] -> logits [B, S, n]"""
        x = self.enter(steps.transpose(1, 2))
        for layer in self.layers:
            x = x + F.relu(layer(F.relu(x)))
        return _split(self.leave(x).transpose(1, 2))


class TimeGRU(nn.Module):
    """The same by a recurrent net in both directions."""

    def __init__(self, width: int = 56) -> None:
        super().__init__()
        self.enter = nn.Linear(STEP_WIDTH, width)
        self.gru = nn.GRU(width, width, num_layers=2, batch_first=True, bidirectional=True)
        self.leave = nn.Linear(2 * width, len(VALUES["motion"]) + len(VALUES["camera"]))

    def forward(self, steps: Tensor) -> dict[str, Tensor]:
        return _split(self.leave(self.gru(F.relu(self.enter(steps)))[0]))


def _split(logits: Tensor) -> dict[str, Tensor]:
    motion, camera = logits.split([len(VALUES["motion"]), len(VALUES["camera"])], -1)
    return {"motion": motion, "camera": camera}


def steps_from(place: Tensor, visible: Tensor, speed: Tensor, hero: Tensor) -> Tensor:
    """What the head over time sees: [B, S, STEP_WIDTH] from places [B, S, 2], visibility and speed [B, S] and the
    clip's hero probabilities [B, 11]."""
    centred = place - place.mean(1, keepdim=True)
    velocity = F.pad(place[:, 1:] - place[:, :-1], (0, 0, 1, 0))
    in_world = 24 * velocity[..., 0] + 32 * speed
    columns = [*(8 * centred).unbind(-1), *(24 * velocity).unbind(-1), *place.unbind(-1), visible, 32 * speed, in_world]
    number = torch.stack(columns, -1)
    return torch.cat([number, hero[:, None].expand(-1, place.shape[1], -1)], -1)


@dataclass
class Reading:
    """What a judge says about one clip, per stack of three frames (a quarter of a second)."""

    log_probs: dict[str, np.ndarray]  # attribute -> [S, n]
    place: np.ndarray  # [S, 2] of the hero, picture heights
    visible: np.ndarray  # [S] probability that the hero is in sight
    speed: np.ndarray  # [S] of the camera, heights per frame
    features: np.ndarray  # [S, 96] of the hero: what identity is compared by

    def probabilities(self, name: str, steps: slice = slice(None)) -> np.ndarray:
        """One distribution for a stretch of the clip: the normalised geometric mean over its stacks."""
        rows = self.log_probs[name][steps]
        weights = self._weights(name)[steps]
        mean = (weights[:, None] * rows).sum(0) / weights.sum()
        p = np.exp(mean - mean.max())
        return p / p.sum()

    def answer(self, name: str, steps: slice = slice(None)) -> str:
        return VALUES[name][int(self.probabilities(name, steps).argmax())]

    def _weights(self, name: str) -> np.ndarray:
        """A hero behind a bush says nothing about its colour."""
        return self.visible + 0.02 if name in ("hero", "colour") else np.ones(len(self.visible))


class Judge(nn.Module):
    """A net over stacks, a small one for the camera, and a head over time."""

    def __init__(self, role: str) -> None:
        super().__init__()
        if role not in ROLES:
            raise ValueError(f"there is no judge '{role}'; the judges are {' and '.join(ROLES)}")
        self.role = role
        self.stack_net: nn.Module = PyramidNet() if role == "report" else QueryNet()
        self.speed_net = SpeedNet()
        self.clip_net: nn.Module = TimeConv() if role == "report" else TimeGRU()

    @torch.inference_mode()
    def read(self, frames: np.ndarray, batch: int = 64) -> Reading:
        """Frames uint8 [F, H, W, 3], F >= 3; pictures of another height are resized to 64."""
        x = at_64(to_input(stacks_of(frames)))
        parts = [self.stack_net(piece) for piece in x.split(batch)]
        logits = {name: torch.cat([p.logits[name] for p in parts]).float() for name in parts[0].logits}
        place, visible = (torch.cat([getattr(p, field) for p in parts]).float() for field in ("place", "visible"))
        speed = self.speed_net(shift_costs(x))
        visible = visible.sigmoid()
        log_probs = {name: values.log_softmax(-1).numpy() for name, values in logits.items()}
        features = torch.cat([p.features for p in parts]).float().numpy()
        reading = Reading(log_probs, place.numpy(), visible.numpy(), speed.numpy(), features)
        hero = torch.from_numpy(reading.probabilities("hero")).float()
        timed = self.clip_net(steps_from(place[None], visible[None], speed[None], hero[None]))
        reading.log_probs |= {name: values[0].log_softmax(-1).numpy() for name, values in timed.items()}
        return reading


def at_64(x: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    if height == 64:
        return x
    size = (64, max(16, round(width * 64 / height / 8) * 8))
    return F.interpolate(x, size=size, mode="bilinear", antialias=True, align_corners=False)


def load_judge(role: str = "report", path: Path | None = None) -> Judge:
    """The packaged judge of that role, or one from a file, in float32."""
    judge = Judge(role)
    path = path or WEIGHTS / f"judge_{role}.safetensors"
    load_strictly(judge, {name: tensor.float() if tensor.is_floating_point() else tensor
                          for name, tensor in read_tensors(path).items()}, str(path))  # fmt: skip
    return judge.eval().requires_grad_(False)


__all__ = ["CONSTANT", "ROLES", "Judge", "Reading", "StackReading", "load_judge", "steps_from"]
