"""The quality judge: names what is wrong with a second of video and how much, whatever the video shows.

It reads windows of 13 frames as six overlapping stacks of three, so that every pair of neighbours is seen. Sharpness at
four scales, colour and light are measured for it: convolutions alone took blur for fog and burnt colours for a sunset.
Even so, little of burnt colours was learnt beside everything else, so the severity in space has a head that is trained
by itself at the end.
Its severity of spatial flaws is the frame quality, and the features before its last layer span the space of the set
distances.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from causvid.evaluate.distortions import TRAINED
from causvid.evaluate.judges import WEIGHTS, at_64
from causvid.tensor_files import load_strictly, read_tensors

WINDOW = 13
STACKS = 6
SPATIAL = ("blur", "noise", "saturation", "exposure")
TEMPORAL = tuple(name for name in TRAINED if name not in SPATIAL)
FEATURES = 96
NUM_LOOKS, LOOKS_WIDTH = 30, 48
SEEN = FEATURES + LOOKS_WIDTH + NUM_LOOKS  # what the severity in space is told from


@dataclass
class Quality:
    """One clip, per window of a second."""

    flaws: np.ndarray  # [windows, 8] probability of each trained distortion
    spatial: np.ndarray  # [windows, 6] severity per stack, 0 clean to 1
    temporal: np.ndarray  # [windows] severity
    features: np.ndarray  # [windows, 96] of the window
    stack_features: np.ndarray  # [windows, 6, 96]
    distance: np.ndarray  # [windows] from clean renders, 1 = as far as they are from their own mean

    @property
    def frame_quality(self) -> float:
        return float(1 - self.spatial.mean())

    @property
    def naturalness(self) -> float:
        """1 while a window is no further from clean renders than half of them are."""
        return float(np.minimum(1, 1 / np.maximum(self.distance, 1e-6)).mean())


def looks_of(x: Tensor) -> Tensor:
    """Pictures [N, 3, H, W] in [-1, 1] -> what sharpness, colour and light they have, [N, 30]: means, means over cells
    of what is strongest in each, and the strongest of all."""
    rgb = (x.float() + 1) / 2
    light = rgb.mean(1, keepdim=True)
    found, level = [], light
    for scale in (1, 2, 4, 8):  # detail that the next coarser picture lacks: blur takes it from the finest first
        level = level[..., : level.shape[-2] // 2 * 2, : level.shape[-1] // 2 * 2]
        coarser = F.avg_pool2d(level, 2)
        detail = (level - F.interpolate(coarser, scale_factor=2, mode="nearest")).abs()
        found += [(value + 1e-3).log() for value in _mean_and_peaks(detail, 8 // scale)]
        level = coarser
    most, least = rgb.amax(1, keepdim=True), rgb.amin(1, keepdim=True)
    chroma = most - least
    for value in (chroma, chroma / (most + 0.05), light, most, -least):
        found += _mean_and_peaks(value, 8)
    found += [clipped.float().mean((1, 2, 3)) for clipped in (most > 0.98, least < 0.02, light < 0.03)]
    return torch.stack(found, 1)


def _mean_and_peaks(value: Tensor, cell: int) -> list[Tensor]:
    return [value.mean((1, 2, 3)), F.max_pool2d(value, cell).mean((1, 2, 3)), value.amax((1, 2, 3))]


def _spread(value: Tensor) -> Tensor:
    """The standard deviation of each map; var() takes three times as long."""
    value = value.float()
    return (value.square().mean((2, 3)) - value.mean((2, 3)).square()).clamp(min=0).add(1e-4).sqrt()


class QualityJudge(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.looks_norm = nn.BatchNorm1d(NUM_LOOKS, affine=False)
        self.looks = nn.Sequential(nn.Linear(NUM_LOOKS, 96), nn.ReLU(), nn.Linear(96, LOOKS_WIDTH), nn.ReLU())
        self.first = nn.Conv2d(15, 32, 5, 2, 2)
        self.levels = nn.ModuleList(
            [nn.Conv2d(32, 48, 3, 2, 1), nn.Conv2d(48, 64, 3, 1, 1), nn.Conv2d(64, 64, 3, 2, 1)]
        )
        self.norms = nn.ModuleList([nn.BatchNorm2d(c) for c in (32, 48, 64, 64)])
        pooled = 2 * (32 + 48 + 64 + 64) + 15 + LOOKS_WIDTH
        self.stack = nn.Sequential(nn.Linear(pooled, 128), nn.ReLU(), nn.Linear(128, FEATURES))
        self.time = nn.ModuleList([nn.Conv1d(FEATURES, FEATURES, 3, padding=1) for _ in range(2)])
        self.window = nn.Linear(3 * FEATURES, FEATURES)
        self.flaws = nn.Linear(FEATURES, len(TRAINED))
        self.spatial = nn.Sequential(nn.Linear(SEEN, 192), nn.ReLU(), nn.Linear(192, 192), nn.ReLU(), nn.Linear(192, 1))
        self.temporal = nn.Linear(FEATURES, 1)
        self.clean_mean: Tensor
        self.clean_whitening: Tensor
        self.clean_distance: Tensor
        # of the window features of clean renders, fitted after training
        self.register_buffer("clean_mean", torch.zeros(FEATURES))
        self.register_buffer("clean_whitening", torch.eye(FEATURES))
        self.register_buffer("clean_distance", torch.ones(()))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Windows [N, 13, 3, H, W] in [-1, 1] -> logits of flaws [N, 8], severities, features."""
        n = len(x)
        stacks = torch.stack([x[:, 2 * i : 2 * i + 3] for i in range(STACKS)], 1).flatten(0, 1)  # [N*6, 3, 3, H, W]
        change = 4 * (stacks[:, 1:] - stacks[:, :-1])
        pixels = torch.cat([stacks, change], 1).flatten(1, 2)
        measured = self.looks_norm(looks_of(stacks[:, 1]))  # [N*6, 30] of the middle pictures
        looks = self.looks(measured)
        y, pooled = pixels, [pixels.abs().mean((2, 3)), looks]
        for layer, norm in zip([self.first, *self.levels], self.norms):
            y = F.relu(norm(layer(y)))
            pooled += [y.mean((2, 3)), _spread(y).to(y.dtype)]
        stack = F.relu(self.stack(torch.cat(pooled, 1))).unflatten(0, (n, STACKS))  # [N, 6, 96]
        z = stack.transpose(1, 2)
        for layer in self.time:
            z = z + F.relu(layer(z))
        spread = (z.float().var(2) + 1e-4).sqrt().to(z.dtype)
        feature = self.window(torch.cat([z.mean(2), z.amax(2), spread], 1))
        active = F.relu(feature)
        seen = torch.cat([z.transpose(1, 2), torch.cat([looks, measured], 1).unflatten(0, (n, STACKS))], 2)
        return {"flaws": self.flaws(active), "temporal": self.temporal(active)[:, 0], "seen": seen,
                "spatial": self.spatial(seen)[..., 0], "feature": feature, "stack": stack}  # fmt: skip

    @torch.inference_mode()
    def read(self, frames: np.ndarray, batch: int = 8) -> Quality:
        """Frames uint8 [F, H, W, 3] of any length; a short clip is continued by going back and forth."""
        windows = torch.from_numpy(windows_of(frames)).permute(0, 1, 4, 2, 3).float().div_(127.5).sub_(1)
        windows = at_64(windows.flatten(0, 1)).unflatten(0, windows.shape[:2])
        parts = [self(piece) for piece in windows.split(batch)]
        out = {name: torch.cat([part[name] for part in parts]).float() for name in parts[0]}
        distance = self.distance(out["feature"])
        return Quality(
            flaws=out["flaws"].sigmoid().numpy(),
            spatial=out["spatial"].sigmoid().numpy(),
            temporal=out["temporal"].sigmoid().numpy(),
            features=out["feature"].numpy(),
            stack_features=out["stack"].numpy(),
            distance=distance.numpy(),
        )

    def distance(self, features: Tensor) -> Tensor:
        return ((features - self.clean_mean) @ self.clean_whitening).norm(dim=1) / self.clean_distance

    def fit_clean(self, features: Tensor) -> None:
        """Remember where clean renders lie."""
        mean = features.mean(0)
        values, vectors = torch.linalg.eigh(torch.cov(features.T).double())
        # directions in which clean renders hardly differ would make any deviation infinite
        floor = values.max() * 1e-3
        self.clean_mean.copy_(mean)
        self.clean_whitening.copy_((vectors / (values.clamp(min=0) + floor).sqrt()).float())
        self.clean_distance.fill_(1.0)
        self.clean_distance.copy_(self.distance(features).median())


def windows_of(frames: np.ndarray) -> np.ndarray:
    """[F, H, W, 3] -> [windows, 13, H, W, 3]: one starts every 12 frames, and one ends with the clip."""
    if len(frames) < WINDOW:
        there = np.arange(len(frames))
        order = np.resize(np.concatenate([there, there[-2:0:-1]]) if len(frames) > 2 else there, WINDOW)
        return frames[order][None]
    starts = list(range(0, len(frames) - WINDOW + 1, WINDOW - 1))
    if starts[-1] + WINDOW < len(frames):
        starts.append(len(frames) - WINDOW)
    return np.stack([frames[s : s + WINDOW] for s in starts])


def load_quality_judge(path: Path | None = None) -> QualityJudge:
    judge = QualityJudge()
    path = path or WEIGHTS / "judge_quality.safetensors"
    tensors = {name: t.float() if t.is_floating_point() else t for name, t in read_tensors(path).items()}
    load_strictly(judge, tensors, str(path))
    return judge.eval().requires_grad_(False)
