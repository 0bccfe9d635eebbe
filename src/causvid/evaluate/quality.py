"""The quality judge: names what is wrong with a second of video and how much, whatever the video shows.

It reads windows of 13 frames as six overlapping stacks of three, so that every pair of neighbours is seen. Its severity
of spatial flaws is the frame quality, and the features before its last layer span the space of the set distances.
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


class QualityJudge(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(15, 32, 5, 2, 2)
        self.levels = nn.ModuleList(
            [nn.Conv2d(32, 48, 3, 2, 1), nn.Conv2d(48, 64, 3, 1, 1), nn.Conv2d(64, 64, 3, 2, 1)]
        )
        self.norms = nn.ModuleList([nn.BatchNorm2d(c) for c in (32, 48, 64, 64)])
        self.stack = nn.Sequential(nn.Linear(2 * (32 + 48 + 64 + 64) + 15, 128), nn.ReLU(), nn.Linear(128, FEATURES))
        self.time = nn.ModuleList([nn.Conv1d(FEATURES, FEATURES, 3, padding=1) for _ in range(2)])
        self.window = nn.Linear(3 * FEATURES, FEATURES)
        self.flaws = nn.Linear(FEATURES, len(TRAINED))
        self.spatial = nn.Linear(FEATURES, 1)
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
        y, pooled = pixels, [pixels.abs().mean((2, 3))]
        for layer, norm in zip([self.first, *self.levels], self.norms):
            y = F.relu(norm(layer(y)))
            pooled += [y.mean((2, 3)), (y.float().var((2, 3)) + 1e-4).sqrt().to(y.dtype)]
        stack = F.relu(self.stack(torch.cat(pooled, 1))).unflatten(0, (n, STACKS))  # [N, 6, 96]
        z = stack.transpose(1, 2)
        for layer in self.time:
            z = z + F.relu(layer(z))
        spread = (z.float().var(2) + 1e-4).sqrt().to(z.dtype)
        feature = self.window(torch.cat([z.mean(2), z.amax(2), spread], 1))
        active = F.relu(feature)
        return {"flaws": self.flaws(active), "temporal": self.temporal(active)[:, 0],
                "spatial": self.spatial(z.transpose(1, 2))[..., 0], "feature": feature, "stack": stack}  # fmt: skip

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
