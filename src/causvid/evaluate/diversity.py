"""How different are clips of one prompt? Per prompt: marginal distances hardly notice a collapse inside prompts.

Errors also look like diversity, so only clips that show what was asked are counted, and every number is given as a
ratio to rendered clips of the same caption, whose layouts are drawn from the world's own prior. A model that often errs
leaves few clips to count, so the same of all clips stands beside it, whatever they show.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from causvid.evaluate import distribution, stats
from causvid.evaluate.alignment import all_right, items, wanted
from causvid.evaluate.judge_data import TIMED, VALUES
from causvid.evaluate.judges import Reading
from causvid.evaluate.scoring import Instruments

SPACES = ("state", "quality", "pixels")
ANY = "{} of all clips"
FREE = ("biome", "light", "weather", "colour", "motion", "camera", "second")


@dataclass
class Sample:
    """What is kept of one clip."""

    vectors: dict[str, np.ndarray]
    answers: dict[str, str]
    right: bool


def state_vector(reading: Reading) -> np.ndarray:
    """What even a complete caption leaves open: where the hero is, and at what time, and the camera's speed."""
    steps = np.linspace(0, len(reading.place) - 1, 6).round().astype(int)
    return np.concatenate([reading.place[steps].ravel(), 16 * reading.speed[steps]])


def pixel_vector(frames: np.ndarray) -> np.ndarray:
    """Four frames at an eighth of the size, 0 to 1."""
    chosen = frames[np.linspace(0, len(frames) - 1, 4).round().astype(int)].astype(np.float32)
    height, width = (size // 8 * 8 for size in chosen.shape[1:3])
    cells = chosen[:, :height, :width].reshape(4, height // 8, 8, width // 8, 8, 3)
    return cells.mean((2, 4)).ravel() / 255


def take_sample(instruments: Instruments, caption: str, frames: np.ndarray) -> Sample:
    reading = instruments.judge.read(frames)
    quality = instruments.quality.read(frames)
    vectors = {"state": state_vector(reading), "quality": quality.features.mean(0), "pixels": pixel_vector(frames)}
    return Sample(
        vectors, {name: reading.answer(name) for name in FREE}, bool(all_right(items(wanted(caption), reading)) == 1)
    )


def spread(samples: Sequence[Sample], *, whatever: bool = False) -> dict[str, float]:
    """Mean pairwise distance per space; NaN if fewer than two show what was asked (`whatever`: are there)."""
    good = [s for s in samples if s.right or whatever]
    if len(good) < 2:
        return {space: float("nan") for space in SPACES}
    return {space: distribution.mean_pairwise_distance(np.stack([s.vectors[space] for s in good])) for space in SPACES}


def open_entropy(samples: Sequence[Sample], caption: str) -> float:
    """Mean entropy (in units of the largest possible) of the attributes that the caption leaves open."""
    want = wanted(caption)
    named = set(want.constant) | {n for n in TIMED if any(phase[n] is not None for phase in want.phases)}
    entropies = []
    for name in FREE:
        if name in named:
            continue
        counts = np.array([sum(s.answers[name] == value for s in samples) for value in VALUES[name]], float)
        p = counts[counts > 0] / counts.sum()
        entropies.append(-(p * np.log(p)).sum() / np.log(min(len(samples), len(VALUES[name]))))
    return float(np.mean(entropies)) if entropies else float("nan")


@dataclass
class Diversity:
    captions: list[str]
    made: list[dict[str, float]]  # per prompt: distances, open entropy, share of clips that show what was asked
    true: list[dict[str, float]]

    def summary(self) -> dict[str, Any]:
        """Ratios to the truth, prompt by prompt, with 95 % intervals over prompts."""
        names = (*SPACES, *map(ANY.format, SPACES), "open entropy")
        ratios = {name: [_ratio(m[name], t[name]) for m, t in zip(self.made, self.true)] for name in names}
        out: dict[str, Any] = {
            f"{name} ratio": stats.bootstrap(values, 2000)._asdict() for name, values in ratios.items()
        }
        out["clips counted"] = float(np.mean([m["right"] for m in self.made]))
        return out

    def to_json(self) -> dict[str, Any]:
        return {"summary": self.summary(), "prompts": [{"caption": c, "made": m, "true": t}
                for c, m, t in zip(self.captions, self.made, self.true)]}  # fmt: skip


def _ratio(made: float, true: float) -> float:
    return made / true if true > 1e-6 else float("nan")


def measure_diversity(
    groups: Iterable[tuple[str, Sequence[np.ndarray], Sequence[np.ndarray]]],
    instruments: Instruments,
    on_prompt: Callable[[int], None] | None = None,
) -> Diversity:
    """Each group: a caption, clips made for it from different noise, and as many rendered clips of the caption."""
    captions: list[str] = []
    made: list[dict[str, float]] = []
    true: list[dict[str, float]] = []
    for number, (caption, clips, renders) in enumerate(groups):
        captions.append(caption)
        for side, frames in ((made, clips), (true, renders)):
            samples = [take_sample(instruments, caption, f) for f in frames]
            of_all = {ANY.format(space): distance for space, distance in spread(samples, whatever=True).items()}
            shares = {
                "open entropy": open_entropy(samples, caption),
                "right": float(np.mean([s.right for s in samples])),
            }
            side.append(spread(samples) | of_all | shares)
        if on_prompt is not None:
            on_prompt(number)
    return Diversity(captions, made, true)
