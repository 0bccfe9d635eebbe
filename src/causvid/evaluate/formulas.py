"""VBench's formulas on given features: consistency of frame features, the three competition columns, and the totals.

The weights of VBench's extractors are not part of this package. What is here are the published formulas, so that
numbers from any extractor (the real ones, or Vista's judges) are put together in the same way.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class Dimension(NamedTuple):
    """Raw values are mapped by (raw - low) / (high - low), without clipping."""

    low: float
    high: float
    weight: float = 1.0


QUALITY = {
    "subject consistency": Dimension(0.1462, 1),
    "background consistency": Dimension(0.2615, 1),
    "temporal flickering": Dimension(0.6293, 1),
    "motion smoothness": Dimension(0.706, 0.9975),
    "aesthetic quality": Dimension(0, 1),
    "imaging quality": Dimension(0, 1),
    "dynamic degree": Dimension(0, 1, 0.5),
}
SEMANTIC = {
    "object class": Dimension(0, 1),
    "multiple objects": Dimension(0, 1),
    "human action": Dimension(0, 1),
    "color": Dimension(0, 1),
    "spatial relationship": Dimension(0, 1),
    "scene": Dimension(0, 0.8222),
    "appearance style": Dimension(0.0009, 0.2855),
    "temporal style": Dimension(0, 0.364),
    "overall consistency": Dimension(0, 0.364),
}
COLUMNS: dict[str, dict[str, float]] = {
    "temporal": {"subject consistency": 1, "background consistency": 1, "motion smoothness": 1, "dynamic degree": 0.5},
    "frame": {"aesthetic quality": 1, "imaging quality": 1},
    "text": {"overall consistency": 1, "clip score": 1},
}


class Totals(NamedTuple):
    total: float
    quality: float
    semantic: float


def totals(raw: Mapping[str, float]) -> Totals:
    """VBench's totals from raw values in [0, 1]; a missing dimension counts as raw 0, as it does there."""
    quality, semantic = _weighted(raw, QUALITY), _weighted(raw, SEMANTIC)
    return Totals((4 * quality + semantic) / 5, quality, semantic)


def _weighted(raw: Mapping[str, float], dimensions: Mapping[str, Dimension]) -> float:
    terms = [d.weight * (raw.get(name, 0.0) - d.low) / (d.high - d.low) for name, d in dimensions.items()]
    return sum(terms) / sum(d.weight for d in dimensions.values())


def column(name: str, raw: Mapping[str, float]) -> float:
    """A column of the paper's tables: 'temporal', 'frame' or 'text', from raw values, all of which must be there."""
    weights = COLUMNS[name]
    return sum(weight * raw[member] for member, weight in weights.items()) / sum(weights.values())


def consistency(features: np.ndarray) -> float:
    """Subject or background consistency of one clip: each frame's feature [F, D] against the last one and the first."""
    if len(features) < 2:
        return 1.0
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    before = np.maximum(0, (unit[1:] * unit[:-1]).sum(1))
    first = np.maximum(0, unit[1:] @ unit[0])
    return float((before + first).mean() / 2)


def mid_frames(num_frames: int, count: int) -> np.ndarray:
    """Indices of the middles of `count` equal intervals; a shorter clip is padded with its last frame."""
    if num_frames < count:
        return np.minimum(np.arange(count), num_frames - 1)
    edges = np.linspace(0, num_frames, count + 1).astype(int)
    return np.array([(a + b - 1) // 2 for a, b in zip(edges[:-1], edges[1:])])


def calibrate(value: float, floor: float, ceiling: float) -> float:
    """Where `value` lies between a named bad reference and the ground truth, 0 to 100."""
    if abs(ceiling - floor) < 1e-12:
        raise ValueError(f"floor and ceiling are both {ceiling}: this metric cannot tell them apart")
    return float(np.clip((value - floor) / (ceiling - floor), 0, 1) * 100)


def two_sided(value: float, truth: float, tiny: float = 1e-9) -> float:
    """1 where `value` equals the ground truth's, less on either side: blur must not win what noise loses."""
    return float(np.exp(-abs(np.log((value + tiny) / (truth + tiny)))))
