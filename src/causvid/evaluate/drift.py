"""How long streams change: curves over seconds, next to the ground truth's own, and the numbers that sum them up.

No single number suffices. A start-to-end difference hides a dip, an absolute value hides the direction, and an early
weakness looks like drift; so there are several.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from causvid.evaluate import metrics, stats
from causvid.evaluate.alignment import wanted
from causvid.evaluate.judge_data import CONSTANT, STACK, TIMED, VALUES
from causvid.evaluate.scoring import Instruments

Timeline = Sequence[tuple[float, str]]  # (start second, prompt in force from there on)
CURVES = ("IQ*", "distance", "accuracy", "chroma", "brightness", "sharpness", "travelled")
SETTLE = 2.0  # seconds after a switch in which the old and the new prompt both hold


def curves(instruments: Instruments, frames: np.ndarray, timeline: Timeline, fps: int = 12) -> dict[str, np.ndarray]:
    """One value per whole second for each of CURVES. Frames uint8 [F, H, W, 3]."""
    out: dict[str, list[float]] = {name: [] for name in CURVES}
    for second in range(len(frames) // fps):
        part = frames[second * fps : (second + 1) * fps + 1]
        quality = instruments.quality.read(part)
        around = frames[max(0, (second - 1) * fps) : (second + 2) * fps]
        reading = instruments.judge.read(around)
        now = slice(fps // STACK, 2 * fps // STACK) if second > 0 else slice(0, fps // STACK)
        out["IQ*"].append(quality.frame_quality)
        out["distance"].append(float(quality.distance.mean()))
        out["accuracy"].append(_accuracy(reading, now, timeline, second))
        out["chroma"].append(metrics.chroma(part))
        out["brightness"].append(metrics.brightness(part))
        out["sharpness"].append(metrics.sharpness(part))
        hero = np.ptp(reading.place, axis=0).max()
        out["travelled"].append(64 * float(max(hero, np.abs(np.cumsum(reading.speed * STACK)).max())))
    return {name: np.array(values) for name, values in out.items()}


def _accuracy(reading: Any, now: slice, timeline: Timeline, second: float) -> float:
    """Share of the attributes asked for at this second that are read there; during a switch either prompt will do."""
    accepted: dict[str, set[str]] = {}
    for index, (start, prompt) in enumerate(timeline):
        end = timeline[index + 1][0] + SETTLE if index + 1 < len(timeline) else np.inf
        if start <= second + 1 and second < end:
            for name, value in _asked(prompt).items():
                accepted.setdefault(name, set()).add(value)
    if not accepted:
        return float("nan")
    right = [reading.answer(name, now) in values for name, values in accepted.items()]
    return float(np.mean(right))


def _asked(prompt: str) -> dict[str, str]:
    want = wanted(prompt)
    last = {name: value for name, value in want.phases[-1].items() if value is not None and name in TIMED}
    return {
        name: value for name, value in (want.constant | last).items() if name in VALUES and name in (*CONSTANT, *TIMED)
    }


@dataclass
class Drift:
    """[videos, seconds] per curve, of the model and of the ground truth (or None)."""

    made: dict[str, np.ndarray]
    true: dict[str, np.ndarray] | None
    about: dict[str, Any]

    def mean(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean curve over videos with its 95 % band."""
        table = self.made[name]
        draws = np.stack([np.nanmean(table[rows], 0) for rows in _resampled_rows(len(table))])
        low, high = np.percentile(draws, [2.5, 97.5], axis=0)
        return np.nanmean(table, 0), low, high

    def summary(self, name: str) -> dict[str, Any]:
        """The numbers for one curve; intervals are bootstrapped over videos."""
        table = self.made[name]
        per_video = {key: np.array([f(row) for row in table]) for key, f in SUMMARIES.items()}
        out: dict[str, Any] = {key: stats.bootstrap(values, 2000)._asdict() for key, values in per_video.items()}
        if self.true is not None:
            gap = np.nanmean(np.abs(table - self.true[name][:, : table.shape[1]]), 1)
            out["gap to truth"] = stats.bootstrap(gap, 2000)._asdict()
            slope = per_video["slope per 30 s"] - np.array(
                [SUMMARIES["slope per 30 s"](row) for row in self.true[name]]
            )
            out["slope beyond truth"] = stats.bootstrap(slope, 2000)._asdict()
        return out

    def survival(self, least: float = 0.75) -> tuple[np.ndarray, np.ndarray]:
        """Seconds and share of videos whose attributes are still right (at least `least` of them, for two seconds)."""
        lifetimes, died = zip(*(_lifetime(row, least) for row in self.made["accuracy"]))
        return stats.survival(lifetimes, died)

    def to_json(self) -> dict[str, Any]:
        times, shares = self.survival()
        return {"about": self.about, "summary": {name: self.summary(name) for name in self.made},
                "survival": {"seconds": times.tolist(), "share": shares.tolist()},
                "curves": {name: np.nanmean(table, 0).tolist() for name, table in self.made.items()}}  # fmt: skip


def _resampled_rows(count: int, resamples: int = 1000) -> np.ndarray:
    return np.random.default_rng(0).integers(count, size=(resamples, count))


def slope_per_30_s(curve: np.ndarray) -> float:
    kept = ~np.isnan(curve)
    return float(np.polyfit(np.arange(len(curve))[kept], curve[kept], 1)[0] * 30) if kept.sum() > 1 else float("nan")


def start_to_end(curve: np.ndarray) -> float:
    """FramePack's measure: the first 15 % against the last, without sign."""
    return abs(metrics.drift(curve))


def worst_second(curve: np.ndarray) -> float:
    """The deepest second below the first three."""
    return float(np.nanmin(curve) - np.nanmean(curve[:3]))


SUMMARIES: dict[str, Callable[[np.ndarray], float]] = {
    "slope per 30 s": slope_per_30_s,
    "start to end": start_to_end,
    "worst second": worst_second,
}


def _lifetime(accuracy: np.ndarray, least: float) -> tuple[float, bool]:
    """When two seconds in a row have failed, and whether that happened at all."""
    failed = accuracy < least
    both = failed[:-1] & failed[1:]
    return (float(np.argmax(both)), True) if both.any() else (float(len(accuracy)), False)


def measure_drift(
    videos: Iterable[tuple[Timeline, np.ndarray, np.ndarray | None]],
    instruments: Instruments,
    *,
    fps: int = 12,
    about: dict[str, Any] | None = None,
    on_video: Callable[[int], None] | None = None,
) -> Drift:
    """Each video: its timeline of prompts, its frames, the frames of the rendered truth or None. One length for all."""
    made: list[dict[str, np.ndarray]] = []
    true: list[dict[str, np.ndarray]] = []
    for number, (timeline, frames, truth) in enumerate(videos):
        made.append(curves(instruments, frames, timeline, fps))
        if truth is not None:
            true.append(curves(instruments, truth, timeline, fps))
        if on_video is not None:
            on_video(number)
    if not made:
        raise ValueError("there are no videos to measure")
    if true and len(true) != len(made):
        raise ValueError("give the truth of all videos or of none")
    return Drift(_stack(made), _stack(true) if true else None, {"videos": len(made), **(about or {})})


def _stack(rows: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([row[name] for row in rows]) for name in CURVES}
